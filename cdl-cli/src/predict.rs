//! `cdl predict`.

use std::path::PathBuf;

use cdl_core::{
    Prediction, Predictor,
    device::{self, Precision},
    image::RgbImage,
    transform,
};
use cdl_plugins::image_files;
use clap::{Args, ValueEnum};
use rayon::prelude::*;
use serde::Serialize;

use crate::{Failure, emit, first_line, logging::Log, progress::Spinner};

/// Arguments of `cdl predict`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cdl predict student boot.png
  cdl predict student images/ --top 3 --format json > predictions.jsonl

JSON has a line for each image: {\"image\": PATH, \"predictions\": [{\"class\": NAME, \"index\": N, \"probability\": P,
\"logit\": L}, ...]}, the best first, or {\"image\": PATH, \"error\": REASON}. `probability` is the softmax over all classes that
the network has learned, `logit` what the run's own network computes.

Images that cannot be read are named, the others go on; the exit code is 2 then.")]
pub struct PredictArgs {
    /// Folder that `cdl export` has made
    model: PathBuf,
    /// Image files, and folders of them, also below one another
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<PathBuf>,
    /// How many classes for each image [default: 5, or all where there are fewer]
    #[arg(long, value_name = "K", default_value_t = 5, hide_default_value = true, value_parser = clap::value_parser!(u32).range(1..))]
    top: u32,
    /// A table for people, or lines of JSON
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Images in a batch [default: as in the run]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: Option<u32>,
    /// Where to compute: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    device: String,
}

/// How predictions are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A line for each image.
    Table,
    /// A line of JSON for each image.
    Json,
}

/// A line of JSON.
#[derive(Serialize)]
#[serde(untagged)]
enum Line<'a> {
    Answer { image: &'a str, predictions: &'a [Prediction] },
    Unread { image: &'a str, error: String },
}

/// Predicts image after image.
pub fn predict(args: &PredictArgs, log: &Log, quiet: bool) -> Result<(), Failure> {
    let device = device::open(&args.device, Precision::Float32)?;
    let model = Predictor::load_on(&args.model, &device).map_err(Failure::before_writing)?;
    let batch_size = args.batch_size.map_or(model.description().batch_size, |size| size as usize).max(1);
    let files = files(&args.images)?;
    let names: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
    let width = names.iter().map(|name| name.chars().count()).max().unwrap_or_default();
    let spinner = Spinner::new(log, quiet, "images");
    let mut unread = 0;
    for (files, names) in files.chunks(batch_size).zip(names.chunks(batch_size)) {
        let read: Vec<Result<RgbImage, cdl_core::Error>> = files
            .par_iter()
            .map(|file| {
                let image = transform::open(file);
                spinner.one();
                image
            })
            .collect();
        let mut images = Vec::new();
        let read: Vec<Result<(), String>> = read
            .into_iter()
            .map(|image| image.map(|image| images.push(image)).map_err(|e| first_line(&e)))
            .collect();
        let mut answers = model.predict(&images, args.top as usize)?.into_iter();
        let mut text = String::new();
        for (name, read) in names.iter().zip(read) {
            let answer = match read {
                Ok(()) => answers.next().unwrap_or_default(),
                Err(error) => {
                    tracing::warn!("{error}");
                    unread += 1;
                    if args.format == Format::Json {
                        text += &json(&Line::Unread { image: name, error })?;
                    }
                    continue;
                }
            };
            text += &match args.format {
                Format::Json => json(&Line::Answer { image: name, predictions: &answer })?,
                Format::Table => row(name, width, &answer),
            };
        }
        emit(&text)?;
    }
    spinner.finish();
    match unread {
        0 => Ok(()),
        _ => Err(Failure::mistake(format!("{unread} of {} images cannot be read", files.len()))),
    }
}

/// The files that are named, and those in folders that are named, sorted there.
fn files(named: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let mut all = Vec::new();
    for path in named {
        if !path.is_dir() {
            all.push(path.clone());
            continue;
        }
        let before = all.len();
        all.extend(image_files::below(path)?);
        if all.len() == before {
            return Err(Failure::mistake(format!("{}: holds no images", path.display())));
        }
    }
    Ok(all)
}

fn row(name: &str, width: usize, answer: &[Prediction]) -> String {
    let classes: Vec<String> =
        answer.iter().map(|p| format!("{} {:.1} %", p.class, 100.0 * p.probability)).collect();
    format!("{name:width$}  {}\n", classes.join(", "))
}

fn json(line: &Line<'_>) -> Result<String, Failure> {
    let line = serde_json::to_string(line).map_err(|e| Failure::working(e.to_string()))?;
    Ok(line + "\n")
}
