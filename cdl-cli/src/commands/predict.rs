//! `cdl predict`.

use std::path::PathBuf;

use cdl_core::{
    run::export::{Prediction, Predictor, PreprocessedImage},
    system::device::{self, Precision},
    transform,
};
use cdl_plugins::image_files::{Below, left_out};
use clap::{Args, ValueEnum};
use rayon::prelude::*;
use serde::Serialize;

use crate::{batch_size::batch_size, failure::Failure, logging::Log, progress::Spinner, terminal::emit};

/// Arguments of `cdl predict`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cdl predict student boot.png
  cdl predict student images/ --top 3 --format json > predictions.jsonl

JSON has a line for each image: {\"image\": PATH, \"predictions\": [{\"class\": NAME, \"index\": N, \"probability\": P,
\"logit\": L}, ...]}, the best first, or {\"image\": PATH, \"error\": REASON}. `probability` is the softmax over all classes that
the network has learned, `logit` what the run's own network computes. What of a path is no UTF-8 is U+FFFD there.

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
    /// Images in a batch, as far as memory allows [default: as in the run]
    #[arg(long, value_name = "N")]
    batch_size: Option<usize>,
    /// Where to compute: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    device: String,
}

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
pub fn predict(args: &PredictArgs, log: &Log) -> Result<(), Failure> {
    let device = device::open(&args.device, Precision::Float32)?;
    let files = files(&args.images)?;
    let model = Predictor::load_on(&args.model, &device).map_err(Failure::before_writing)?;
    let batch_size = batch_size(&model, "--batch-size", args.batch_size)?;
    let names: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
    let width = names.iter().map(|name| on_a_line(name).chars().count()).max().unwrap_or_default();
    let spinner = Spinner::new(log, "{pos} images");
    let mut unread = 0;
    for (files, names) in files.chunks(batch_size).zip(names.chunks(batch_size)) {
        let read = read(&model, files, &|| spinner.one());
        let errors: Vec<Option<String>> = read.iter().map(|image| image.as_ref().err().cloned()).collect();
        let images: Vec<PreprocessedImage> = read.into_iter().flatten().collect();
        let mut answers = model.predict_preprocessed(&images, args.top as usize)?.into_iter();
        let mut text = String::new();
        for (name, error) in names.iter().zip(errors) {
            let answer = match error {
                None => answers.next().unwrap_or_default(),
                Some(error) => {
                    tracing::warn!("{}", on_a_line(&error));
                    unread += 1;
                    if args.format == Format::Json {
                        text += &json(&Line::Unread { image: name, error })?;
                    }
                    continue;
                }
            };
            text += &match args.format {
                Format::Json => json(&Line::Answer { image: name, predictions: &answer })?,
                Format::Table => row(width, name, &answer),
            };
        }
        emit(&text)?;
    }
    drop(spinner);
    match unread {
        0 => Ok(()),
        _ => Err(Failure::invalid(format!("{unread} of {} images cannot be read", files.len()))),
    }
}

/// Reads the images of a batch. Nothing of an image is kept but what the network sees: files may be a thousand times larger.
fn read(
    model: &Predictor,
    files: &[PathBuf],
    seen: &(dyn Fn() + Sync),
) -> Vec<Result<PreprocessedImage, String>> {
    let way = &model.description().transform;
    let read = |file: &PathBuf| {
        let image = transform::open(file).map(|image| PreprocessedImage::of(&image, way));
        seen();
        image.map_err(|e| e.to_string())
    };
    files.par_iter().map(read).collect()
}

/// The files that are named, and those in folders that are named, sorted there.
fn files(named: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let mut all = Vec::new();
    for path in named {
        if !path.is_dir() {
            all.push(path.clone());
            continue;
        }
        let below = Below::of(path).map_err(Failure::before_writing)?;
        if below.images.is_empty() {
            return Err(Failure::invalid(format!("{}: holds no images", path.display())));
        }
        if !below.others.is_empty() {
            tracing::info!("{}: {}", path.display(), left_out(&below.others));
        }
        all.extend(below.images);
    }
    Ok(all)
}

/// A row of the table; `width` is that of the longest name.
fn row(width: usize, name: &str, answer: &[Prediction]) -> String {
    let classes = answer.iter().map(|p| format!("{} {:.1} %", on_a_line(&p.class), 100.0 * p.probability));
    format!("{:width$}  {}\n", on_a_line(name), classes.collect::<Vec<_>>().join(", "))
}

/// `name` on one line, with nothing in it that a terminal would obey.
fn on_a_line(name: &str) -> String {
    let shown = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    name.chars().map(shown).collect()
}

fn json(line: &Line<'_>) -> Result<String, Failure> {
    let line = serde_json::to_string(line).map_err(|e| Failure::working(e.to_string()))?;
    Ok(line + "\n")
}
