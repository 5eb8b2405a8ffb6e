//! Distillation of the source network into a micro network.
//!
//! Through throw-away linear layers, the micro network predicts
//! - from its class token: the source's class token, the mean of the source's patch tokens, and a thumbnail of the image;
//! - from every patch token: the source's token for the same patch.
//!
//! Every dimension of these four targets is standardised over the images; the loss is the sum of the mean squared errors,
//! so that predicting nothing but means costs 1 for each target.

use std::{f64::consts::PI, time::Instant};

use anyhow::{Context, Result, ensure};
use candle_core::{D, DType, Device, Tensor, Var, backprop::GradStore};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal};
use rayon::prelude::*;

use super::{
    Normalisation,
    procedural::SIDE,
    source::Lesson,
    unit_pixels,
    vit::{Vit, linear},
};

/// A batch is cut into that many pieces, whose gradients are computed side by side and added in order: the result does
/// not depend on the number of processors.
const PIECES: usize = 2;

/// Side of the thumbnails.
const THUMBNAIL: usize = 14;

/// Smallest standard deviation that a dimension of the targets is divided by.
const LEAST_STD: f64 = 0.02;

/// How to train, whichever network it is.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Recipe {
    /// Images of one step.
    #[arg(long, default_value_t = 16)]
    pub batch: usize,
    /// Highest learning rate of a network that is 128 wide; it is inverse to the square root of the width.
    #[arg(long, default_value_t = 2e-3)]
    pub learning_rate: f64,
    /// Share of every weight that a step at learning rate 1 would take away.
    #[arg(long, default_value_t = 0.02)]
    pub weight_decay: f64,
    /// Share of the steps in which the learning rate rises.
    #[arg(long, default_value_t = 0.05)]
    pub warm_up: f64,
    /// Images kept aside, for the loss on images that were not trained on.
    #[arg(long, default_value_t = 512)]
    pub held_out: usize,
}

impl Recipe {
    /// Linear warm-up, then half a cosine down to zero.
    fn learning_rate(&self, width: usize, progress: f64) -> f64 {
        let highest = self.learning_rate * (128.0 / width as f64).sqrt();
        if progress < self.warm_up {
            highest * progress / self.warm_up
        } else {
            let rest = (progress - self.warm_up) / (1.0 - self.warm_up);
            highest * 0.5 * (1.0 + (PI * rest).cos())
        }
    }
}

/// What a micro network learns to predict.
const TARGETS: [&str; 4] = ["class", "pooled", "thumbnail", "patches"];

/// Inputs and standardised targets.
pub struct Exercises {
    /// (N, 28, 28), bytes.
    images: Tensor,
    /// In the order of [`TARGETS`], float16: (N, D), (N, D), (N, 14 * 14) and (N, P, D).
    targets: [Tensor; TARGETS.len()],
}

impl Exercises {
    pub fn new(lesson: &Lesson) -> Result<Self> {
        let (_, count, _) = lesson.tokens.dims3()?;
        let tokens = lesson.tokens.to_dtype(DType::F32)?;
        let class = tokens.narrow(1, 0, 1)?.squeeze(1)?;
        let patches = tokens.narrow(1, 1, count - 1)?;
        let pooled = patches.mean(1)?;
        let thumbnails = unit_pixels(&lesson.images)?
            .unsqueeze(1)? // (N, 1, 28, 28)
            .avg_pool2d(SIDE / THUMBNAIL)?
            .flatten_from(1)?;
        Ok(Self {
            images: lesson.images.clone(),
            targets: [
                standardise(&class)?,
                standardise(&pooled)?,
                standardise(&thumbnails)?,
                standardise(&patches.flatten_to(1)?)?.reshape(patches.shape())?,
            ],
        })
    }

    fn select(&self, indices: &[u32]) -> Result<Self> {
        let indices = Tensor::new(indices, &Device::Cpu)?;
        let select = |tensor: &Tensor| tensor.index_select(&indices, 0);
        let [class, pooled, thumbnails, patches] = &self.targets;
        Ok(Self {
            images: select(&self.images)?,
            targets: [select(class)?, select(pooled)?, select(thumbnails)?, select(patches)?],
        })
    }
}

/// Every column of (N, D) gets mean 0 and standard deviation 1, and is stored as float16.
fn standardise(rows: &Tensor) -> Result<Tensor> {
    let centred = rows.broadcast_sub(&rows.mean_keepdim(0)?)?;
    let std = centred.sqr()?.mean_keepdim(0)?.sqrt()?.maximum(LEAST_STD)?;
    Ok(centred.broadcast_div(&std)?.to_dtype(DType::F16)?)
}

/// A micro network in training, with the throw-away layer for each of the [`TARGETS`].
struct Pupil {
    network: Vit,
    heads: Vec<Head>,
}

struct Head {
    weight: Var,
    bias: Var,
}

impl Head {
    fn random(inputs: usize, outputs: usize, rng: &mut ChaCha8Rng) -> Result<Self> {
        let normal = Normal::new(0f32, (inputs as f32).sqrt().recip())?;
        let values = normal.sample_iter(rng).take(outputs * inputs).collect();
        let weight = Tensor::from_vec(values, (outputs, inputs), &Device::Cpu)?;
        Ok(Self { weight: Var::from_tensor(&weight)?, bias: Var::zeros(outputs, DType::F32, &Device::Cpu)? })
    }

    fn predict(&self, tokens: &Tensor) -> Result<Tensor> {
        linear(tokens, &self.weight, &self.bias)
    }
}

impl Pupil {
    /// The mean squared error for each of the [`TARGETS`].
    fn errors(&self, exercises: &Exercises) -> Result<Tensor> {
        let pixels = Normalisation::MICRO.apply(&unit_pixels(&exercises.images)?)?;
        let tokens = self.network.tokens(&pixels)?;
        let class = tokens.narrow(1, 0, 1)?.squeeze(1)?; // (B, D)
        let patches = tokens.narrow(1, 1, tokens.dim(1)? - 1)?; // (B, P, D)
        let seen = [&class, &class, &class, &patches];
        let mut errors = Vec::with_capacity(TARGETS.len());
        for ((head, tokens), target) in self.heads.iter().zip(seen).zip(&exercises.targets) {
            let gap = (head.predict(tokens)? - target.to_dtype(DType::F32)?)?;
            errors.push(gap.sqr()?.mean_all()?);
        }
        Ok(Tensor::stack(&errors, 0)?)
    }

    /// Loss and gradients of a batch.
    fn gradients(&self, exercises: &Exercises, batch: &[u32], variables: &[Var]) -> Result<(f32, GradStore)> {
        let pieces = batch
            .par_chunks(batch.len().div_ceil(PIECES))
            .map(|piece| {
                let errors = self.errors(&exercises.select(piece)?)?;
                let loss = (errors.sum_all()? * (piece.len() as f64 / batch.len() as f64))?;
                Ok((loss.to_scalar::<f32>()?, loss.backward()?))
            })
            .collect::<Result<Vec<_>>>()?;
        let mut pieces = pieces.into_iter();
        let (mut loss, mut gradients) = pieces.next().context("an empty batch")?;
        for (more_loss, more) in pieces {
            loss += more_loss;
            for variable in variables {
                if let (Some(sum), Some(term)) = (gradients.get(variable), more.get(variable)) {
                    let sum = (sum + term)?;
                    gradients.insert(variable, sum);
                }
            }
        }
        Ok((loss, gradients))
    }

    /// The errors over `indices`.
    fn evaluate(&self, exercises: &Exercises, indices: &[u32], batch: usize) -> Result<Vec<f32>> {
        let sums = indices
            .par_chunks(batch)
            .map(|piece| Ok((self.errors(&exercises.select(piece)?)? * piece.len() as f64)?))
            .collect::<Result<Vec<_>>>()?;
        let mean = Tensor::stack(&sums, 0)?.sum(0)?.detach();
        Ok((mean / indices.len() as f64)?.to_vec1()?)
    }
}

/// Trains `network` on the exercises, which it goes through `epochs` times.
pub fn distil(network: Vit, exercises: &Exercises, epochs: usize, recipe: &Recipe, seed: u64) -> Result<Vit> {
    let count = exercises.images.dim(0)?;
    ensure!(
        count >= recipe.held_out + recipe.batch && recipe.held_out > 0 && recipe.batch > 0,
        "{count} images are too few for {} held out and batches of {}",
        recipe.held_out,
        recipe.batch
    );
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let width = network.shape.width;
    let (network, mut variables) = network.trainable()?;
    let mut heads = Vec::with_capacity(TARGETS.len());
    for target in &exercises.targets {
        heads.push(Head::random(width, target.dim(D::Minus1)?, &mut rng)?);
    }
    for head in &heads {
        variables.extend([head.weight.clone(), head.bias.clone()]);
    }
    let pupil = Pupil { network, heads };
    let settings = ParamsAdamW { weight_decay: recipe.weight_decay, ..ParamsAdamW::default() };
    let mut optimiser = AdamW::new(variables.clone(), settings)?;

    let mut indices: Vec<u32> = (0..u32::try_from(count)?).collect();
    let (held_out, training) = indices.split_at_mut(recipe.held_out);
    let steps_per_epoch = training.len() / recipe.batch;
    let start = Instant::now();
    for epoch in 0..epochs {
        training.shuffle(&mut rng);
        let mut total = 0.0;
        for (step, batch) in training.chunks_exact(recipe.batch).enumerate() {
            let done = (epoch * steps_per_epoch + step) as f64;
            let progress = done / (epochs * steps_per_epoch) as f64;
            optimiser.set_learning_rate(recipe.learning_rate(width, progress));
            let (loss, gradients) = pupil.gradients(exercises, batch, &variables)?;
            optimiser.step(&gradients)?;
            total += loss;
        }
        print!(
            "epoch {:2}, {:4.0} s: loss {:.3}; held-out errors:",
            epoch + 1,
            start.elapsed().as_secs_f32(),
            total / steps_per_epoch as f32
        );
        let errors = pupil.evaluate(exercises, held_out, recipe.batch)?;
        for (target, error) in TARGETS.iter().zip(errors) {
            print!(" {target} {error:.3}");
        }
        println!();
    }
    Ok(pupil.network)
}
