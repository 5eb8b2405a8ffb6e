//! Pretrains two micro vision transformers, a teacher and a student, by distilling a large pretrained one on procedural
//! images, and measures what a linear probe makes of their features.
//!
//! The images are drawn by [`micro::procedural`]; no image of any data set takes part in the training.

mod idx;
mod micro;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use serde_json::json;

use idx::Split;
use micro::{
    Normalisation,
    distil::{Exercises, Recipe, distil},
    probe::Task,
    procedural::SIDE,
    source::{Lesson, Source},
    vit::{Initial, Shape, Vit},
};

/// Side of a patch of the micro networks.
const PATCH: usize = 4;

/// Licence of the weights: that of the network which they are distilled from.
const LICENCE: &str = "apache-2.0";

/// A network to make.
struct Micro {
    name: &'static str,
    shape: Shape,
    /// How often it goes through the training images unless told otherwise.
    epochs: usize,
}

const NETWORKS: [Micro; 2] = [
    Micro {
        name: "teacher",
        shape: Shape { image: SIDE, patch: PATCH, width: 128, depth: 6, heads: 4 },
        epochs: 7,
    },
    Micro {
        name: "student",
        shape: Shape { image: SIDE, patch: PATCH, width: 64, depth: 5, heads: 2 },
        epochs: 16,
    },
];

impl Micro {
    fn weights(&self, folder: &Path) -> PathBuf {
        folder.join(format!("{}.safetensors", self.name))
    }

    /// A description in the form of the `config.json` of timm.
    fn config(&self) -> serde_json::Value {
        json!({
            "architecture": format!("vit_micro_{}_patch{PATCH}_{SIDE}", self.name),
            "num_classes": 0,
            "num_features": self.shape.width,
            "global_pool": "token",
            "num_heads": self.shape.heads,
            "pretrained_cfg": {
                "input_size": [3, SIDE, SIDE],
                "fixed_input_size": true,
                "interpolation": "bilinear",
                "mean": Normalisation::MICRO.mean,
                "std": Normalisation::MICRO.std,
                "num_classes": 0,
                "first_conv": "patch_embed.proj",
                "license": LICENCE,
            },
        })
    }
}

/// Pretrain micro vision transformers on procedural images.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Distil a large pretrained vision transformer into the micro networks.
    Distil {
        /// Folder with `model.safetensors` and `config.json` of the network to distil.
        #[arg(long, value_name = "DIR")]
        source_weights: PathBuf,
        /// Folder to write weights and configurations to.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// File that keeps what the large network makes of the images, to be used again.
        #[arg(long, value_name = "FILE")]
        cache: Option<PathBuf>,
        /// Make one of the networks only.
        #[arg(long, value_parser = NETWORKS.map(|micro| micro.name))]
        only: Option<String>,
        /// Seed of images, initial weights and order.
        #[arg(long, default_value_t = 0)]
        seed: u64,
        /// Procedural images to draw.
        #[arg(long, default_value_t = 8_000)]
        images: usize,
        /// Passes over the training images [default: 7 for the teacher, 16 for the student].
        #[arg(long)]
        epochs: Option<usize>,
        #[command(flatten)]
        recipe: Recipe,
    },
    /// Print the accuracy of linear probes on random and on pretrained weights.
    Probe {
        /// Folder with the pretrained weights.
        #[arg(long, value_name = "DIR")]
        weights: PathBuf,
        /// Folder with labelled images in the IDX format of the MNIST family.
        #[arg(long, value_name = "DIR")]
        data: PathBuf,
        /// Seed of the random weights; that of the training gives those it started from.
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
}

fn main() -> Result<()> {
    match Args::parse().command {
        Command::Distil { source_weights, out, cache, only, seed, images, epochs, recipe } => {
            fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;
            let source = Source::load(&source_weights, SIDE / PATCH)?;
            let lesson = Lesson::prepare(&source, seed, images, cache.as_deref())?;
            let exercises = Exercises::new(&lesson)?;
            let wanted = |micro: &&Micro| only.as_ref().is_none_or(|name| name == micro.name);
            for micro in NETWORKS.iter().filter(wanted) {
                println!("{}", micro.name);
                let start = Vit::random(micro.shape, Initial::KeepVariance, seed)?;
                let network = distil(start, &exercises, epochs.unwrap_or(micro.epochs), &recipe, seed)?;
                network.save(&micro.weights(&out))?;
                let path = out.join(format!("{}.json", micro.name));
                fs::write(&path, format!("{:#}\n", micro.config()))
                    .with_context(|| format!("cannot write {}", path.display()))?;
            }
            Ok(())
        }
        Command::Probe { weights, data, seed } => {
            let task = Task::new(Split::read(&data, &idx::TRAIN)?, Split::read(&data, &idx::TEST)?)?;
            println!("| network | random, std 0.02 | random, as training starts | pretrained |");
            println!("|---|---|---|---|");
            for micro in &NETWORKS {
                let networks = [
                    Vit::random(micro.shape, Initial::Usual, seed)?,
                    Vit::random(micro.shape, Initial::KeepVariance, seed)?,
                    Vit::load(&micro.weights(&weights), Some(micro.shape.heads))?,
                ];
                print!("| {} |", micro.name);
                for network in &networks {
                    print!(" {:.1} % |", 100.0 * task.accuracy(network)?);
                }
                println!();
            }
            Ok(())
        }
    }
}
