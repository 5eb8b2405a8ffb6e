//! Time and memory of inference with exported networks.

use std::{path::PathBuf, time::Instant};

use cdl_core::{
    candle_core::{Device, Tensor},
    run::export::{Predictor, PreprocessedImage},
    system::{
        device::{self, Precision},
        memory,
    },
};
use serde_json::{Value, json};

use crate::{batch_size::batch_size, failure::Failure, terminal::emit};

/// Default batch size, reduced if memory is short.
const BATCH: usize = 32;
/// Number of timed single images per timed batch.
const SINGLES: u32 = 4;

/// Forward passes to measure.
pub struct Passes<'a> {
    /// Batch size; `None` for the default.
    pub batch: Option<usize>,
    /// Device: `auto`, `cpu`, `cuda` or `cuda:N`.
    pub device: &'a str,
    /// Number of timed batches.
    pub timed: u32,
    /// Number of batches before the timed ones.
    pub warmup: u32,
}

/// Measures the networks one after the other, with one network in memory at a time.
pub fn bench(folders: &[PathBuf], passes: &Passes<'_>, as_json: bool) -> Result<(), Failure> {
    let device = device::open(passes.device, Precision::Float32)?;
    let mut lines = Vec::new();
    for folder in folders {
        let line = measure(folder, passes, &device)?;
        if as_json {
            emit(&format!("{line}\n"))?;
        }
        lines.push(line);
    }
    if as_json { Ok(()) } else { emit(&table(&lines)) }
}

fn measure(folder: &PathBuf, passes: &Passes<'_>, device: &Device) -> Result<Value, Failure> {
    let fresh = memory::reset_peak();
    device::reset_peak(device);
    let model = Predictor::load_on(folder, device).map_err(Failure::before_writing)?;
    let batch = match passes.batch {
        Some(size) => batch_size(&model, "--batch", Some(size))?,
        None => BATCH.min(model.max_batch()),
    };
    let description = model.description();
    let side = description.transform.image_size;
    let grey = |images: usize| -> Result<Tensor, Failure> {
        let blank = cdl_core::image::RgbImage::from_pixel(side as u32, side as u32, [128; 3].into());
        Ok(model.pixels(&vec![PreprocessedImage::of(&blank, &description.transform); images])?)
    };
    let time = |pixels: &Tensor, timed: u32| -> Result<f64, Failure> {
        for _ in 0..passes.warmup {
            model.logits(pixels)?;
        }
        let mut seconds = Vec::new();
        for _ in 0..timed {
            let start = Instant::now();
            // Copying the values waits until a GPU has computed them.
            model.logits(pixels)?.to_vec2::<f32>().map_err(cdl_core::error::Error::from)?;
            seconds.push(start.elapsed().as_secs_f64());
        }
        seconds.sort_by(f64::total_cmp);
        Ok(seconds[seconds.len() / 2])
    };
    let latency = time(&grey(1)?, passes.timed.saturating_mul(SINGLES))?;
    let seconds = time(&grey(batch)?, passes.timed)?;
    let peak = device::peak_bytes(model.device()).or_else(|| memory::peak_bytes().filter(|_| fresh));
    let (frozen, trained) = model.weight_bytes()?;
    let spec = &description.network.spec;
    Ok(json!({
        "model": folder.display().to_string(),
        "role": description.role,
        "source": spec.provenance.source,
        "blocks": spec.depth,
        "width": spec.width,
        "image_size": side,
        "threads": rayon::current_num_threads(),
        "device": device::describe(model.device()),
        "kernels": device::kernels(model.device()),
        "latency_s": latency,
        "batch": batch,
        "images_s": batch as f64 / seconds,
        "frozen_bytes": frozen,
        "trained_bytes": trained,
        "peak_bytes": peak,
    }))
}

/// Formats the results as a table. If the batch sizes differ, the title lists that of each network.
fn table(lines: &[Value]) -> String {
    let mut batches: Vec<String> = lines.iter().map(|line| line["batch"].to_string()).collect();
    if batches.windows(2).all(|pair| pair[0] == pair[1]) {
        batches.truncate(1);
    }
    let first = |key: &str| lines.first().and_then(|line| line[key].as_str()).unwrap_or_default();
    let (device, kernels) = (first("device"), first("kernels"));
    let mut text = format!("{device}, {kernels} kernels; decoding and resizing not included\n\n");
    let mut row = |name: &str, cells: [String; 7]| {
        text += &format!("{name:<28}");
        for (cell, width) in cells.iter().zip([6, 7, 12, 18, 10, 10, 9]) {
            text += &format!(" {cell:>width$}");
        }
        text.push('\n');
    };
    let images = format!("images/s, batch {}", batches.join(", "));
    let head = ["blocks", "width", "1 image, ms", &images, "frozen MB", "trained MB", "peak MB"];
    row("network", head.map(String::from));
    for line in lines {
        let number =
            |key: &str, scale: f64| line[key].as_f64().map_or("-".into(), |v| format!("{:.2}", v * scale));
        let [blocks, width] = ["blocks", "width"].map(|key| line[key].to_string());
        let [latency, images] = [number("latency_s", 1e3), number("images_s", 1.0)];
        let [frozen, trained, peak] =
            ["frozen_bytes", "trained_bytes", "peak_bytes"].map(|key| number(key, 1e-6));
        let name = line["model"].as_str().unwrap_or_default();
        row(name, [blocks, width, latency, images, frozen, trained, peak]);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_column_title_lists_the_measured_batch_sizes() {
        let table = |batches: &[usize]| {
            table(&batches.iter().map(|batch| json!({ "model": "m", "batch": batch })).collect::<Vec<_>>())
        };
        assert!(table(&[7, 7]).contains(" images/s, batch 7 "));
        assert!(table(&[32, 7, 7]).contains(" images/s, batch 32, 7, 7 "));
    }
}
