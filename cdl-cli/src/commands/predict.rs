//! `cdl predict`: classifies images with an exported network.

use std::path::PathBuf;

use cdl_core::{
    run::export::{Prediction, Predictor, PreprocessedImage},
    system::device::{self, Precision},
};
use cdl_plugins::image_files::{FolderFiles, describe_skipped};
use clap::{Args, ValueEnum};
use rayon::prelude::*;
use serde::Serialize;

use crate::{
    batch_size::batch_size,
    failure::Failure,
    logging::Log,
    progress::Spinner,
    terminal::{count, emit},
};

/// Arguments of `cdl predict`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cdl predict student boot.png
  cdl predict student images/ --top 3 --format json > predictions.jsonl

JSON output has a line for each image, with the best class first, or with the error of an image that cannot be read:
  {\"image\": PATH, \"predictions\":
    [{\"class\": NAME, \"index\": N, \"probability\": P, \"logit\": L}, ...]}
  {\"image\": PATH, \"error\": REASON}
`probability` is the softmax over all learned classes, `logit` the output of the network. \
Bytes of a path that are not UTF-8 become U+FFFD.

Images that cannot be read are reported and skipped, and the exit code is 2.")]
pub struct PredictArgs {
    /// Folder written by `cdl export`
    model: PathBuf,
    /// Image files, or folders that are searched recursively
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<PathBuf>,
    /// Number of classes to print for each image [default: 5, or all if there are fewer]
    #[arg(long, value_name = "K", default_value_t = 5, hide_default_value = true, value_parser = clap::value_parser!(u32).range(1..))]
    top: u32,
    /// Output format
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Batch size [default: that of the run, reduced if memory is short]
    #[arg(long, value_name = "N")]
    batch_size: Option<usize>,
    /// Device: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    device: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A line of text for each image
    Table,
    /// A line of JSON for each image
    Json,
}

/// Line of JSON output.
#[derive(Serialize)]
#[serde(untagged)]
enum Line<'a> {
    Classified { image: &'a str, predictions: &'a [Prediction] },
    Unreadable { image: &'a str, error: String },
}

/// Classifies the images, batch by batch.
pub fn predict(args: &PredictArgs, log: &Log) -> Result<(), Failure> {
    let device = device::open(&args.device, Precision::Float32)?;
    let files = files(&args.images)?;
    let model = Predictor::load_on(&args.model, &device).map_err(Failure::before_writing)?;
    let batch_size = batch_size(&model, "--batch-size", args.batch_size)?;
    let names: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
    let width = names.iter().map(|name| escaped(name).chars().count()).max().unwrap_or_default();
    let spinner = Spinner::new(log, "{pos} images");
    let mut unreadable = 0;
    for (files, names) in files.chunks(batch_size).zip(names.chunks(batch_size)) {
        let read = read(&model, files, &|| spinner.increment());
        let errors: Vec<Option<String>> = read.iter().map(|image| image.as_ref().err().cloned()).collect();
        let images: Vec<PreprocessedImage> = read.into_iter().flatten().collect();
        let mut answers = model.predict_preprocessed(&images, args.top as usize)?.into_iter();
        let mut text = String::new();
        for (name, error) in names.iter().zip(errors) {
            let answer = match error {
                None => answers.next().unwrap_or_default(),
                Some(error) => {
                    tracing::warn!("{}", escaped(&error));
                    unreadable += 1;
                    if args.format == Format::Json {
                        text += &json(&Line::Unreadable { image: name, error })?;
                    }
                    continue;
                }
            };
            text += &match args.format {
                Format::Json => json(&Line::Classified { image: name, predictions: &answer })?,
                Format::Table => row(width, name, &answer),
            };
        }
        emit(&text)?;
    }
    drop(spinner);
    match unreadable {
        0 => Ok(()),
        _ => Err(Failure::invalid(format!("{unreadable} of {} cannot be read", count(files.len(), "image")))),
    }
}

/// Reads the images of a batch. Only the preprocessed pixels are kept, since decoded images may be a thousand times
/// larger.
fn read(
    model: &Predictor,
    files: &[PathBuf],
    on_image: &(dyn Fn() + Sync),
) -> Vec<Result<PreprocessedImage, String>> {
    let transform = &model.description().transform;
    let read = |file: &PathBuf| {
        let image = transform.open(file).map(|image| PreprocessedImage::of(&image, transform));
        on_image();
        image.map_err(|e| e.to_string())
    };
    files.par_iter().map(read).collect()
}

/// Returns the named files and the images in the named folders, those of a folder sorted by name.
fn files(named: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let mut all = Vec::new();
    for path in named {
        if !path.is_dir() {
            all.push(path.clone());
            continue;
        }
        let below = FolderFiles::list(path).map_err(Failure::before_writing)?;
        if below.images.is_empty() {
            return Err(Failure::invalid(format!("{}: contains no images", path.display())));
        }
        if !below.others.is_empty() {
            tracing::info!("{}: {}", path.display(), describe_skipped(&below.others));
        }
        all.extend(below.images);
    }
    Ok(all)
}

/// Formats a row of the table; `width` is the width of the longest name.
fn row(width: usize, name: &str, answer: &[Prediction]) -> String {
    let classes = answer.iter().map(|p| format!("{} {:.1} %", escaped(&p.class), 100.0 * p.probability));
    format!("{:width$}  {}\n", escaped(name), classes.collect::<Vec<_>>().join(", "))
}

/// Escapes control characters, such as line breaks and terminal commands.
fn escaped(name: &str) -> String {
    let shown = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    name.chars().map(shown).collect()
}

fn json(line: &Line<'_>) -> Result<String, Failure> {
    let line = serde_json::to_string(line).map_err(|e| Failure::working(e.to_string()))?;
    Ok(line + "\n")
}
