//! Linear probe: how well a linear classifier does on the frozen class token.

use anyhow::Result;
use candle_core::{D, Device, Tensor, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW, loss::cross_entropy};
use rayon::prelude::*;

use super::{Normalisation, unit_pixels, vit::Vit};
use crate::idx::Split;

const STEPS: usize = 600;
const LEARNING_RATE: f64 = 0.02;
/// Factor of the squared weights in the loss.
const PENALTY: f64 = 0.003;
const BATCH: usize = 50;

/// Images and labels of a labelled set, split for fitting and for testing.
pub struct Task {
    train: Labelled,
    test: Labelled,
    classes: usize,
}

struct Labelled {
    /// (N, S, S), bytes.
    images: Tensor,
    /// (N), class numbers.
    labels: Tensor,
}

impl Labelled {
    fn new(split: Split) -> Result<Self> {
        let count = split.labels.len();
        let labels: Vec<u32> = split.labels.iter().map(|&label| label.into()).collect();
        Ok(Self {
            images: Tensor::from_vec(split.images, (count, split.height, split.width), &Device::Cpu)?,
            labels: Tensor::from_vec(labels, count, &Device::Cpu)?,
        })
    }
}

impl Task {
    pub fn new(train: Split, test: Split) -> Result<Self> {
        let classes = train.labels.iter().max().map_or(0, |&last| usize::from(last) + 1);
        Ok(Self { train: Labelled::new(train)?, test: Labelled::new(test)?, classes })
    }

    /// Accuracy on the test images of a multinomial logistic regression on the class token of `network`, fitted to the
    /// training images.
    pub fn accuracy(&self, network: &Vit) -> Result<f32> {
        let train = class_tokens(network, &self.train.images)?; // (N, D)
        let test = class_tokens(network, &self.test.images)?;
        let mean = train.mean_keepdim(0)?;
        let std = (train.var_keepdim(0)? + 1e-12)?.sqrt()?;
        let standardised = |x: &Tensor| x.broadcast_sub(&mean)?.broadcast_div(&std);
        let classifier = self.fit(&standardised(&train)?)?;
        let guesses = classifier.logits(&standardised(&test)?)?.argmax(D::Minus1)?;
        let hits = guesses.eq(&self.test.labels)?.to_dtype(train.dtype())?;
        Ok(hits.mean_all()?.to_scalar()?)
    }

    /// Minimises the cross-entropy and a penalty on the weights over all training images at once.
    fn fit(&self, features: &Tensor) -> Result<Classifier> {
        let width = features.dim(1)?;
        let zeros = |dims: &[usize]| Var::zeros(dims, features.dtype(), features.device());
        let weight = zeros(&[width, self.classes])?;
        let bias = zeros(&[1, self.classes])?;
        let classifier = Classifier { weight: weight.as_tensor().clone(), bias: bias.as_tensor().clone() };
        let settings = ParamsAdamW { lr: LEARNING_RATE, weight_decay: 0.0, ..ParamsAdamW::default() };
        let mut optimiser = AdamW::new(vec![weight, bias], settings)?;
        for step in 0..STEPS {
            optimiser.set_learning_rate(LEARNING_RATE * (1.0 - step as f64 / STEPS as f64));
            let fit = cross_entropy(&classifier.logits(features)?, &self.train.labels)?;
            let penalty = (classifier.weight.sqr()?.sum_all()? * PENALTY)?;
            optimiser.backward_step(&(fit + penalty)?)?;
        }
        Ok(classifier)
    }
}

struct Classifier {
    /// (D, K)
    weight: Tensor,
    /// (1, K)
    bias: Tensor,
}

impl Classifier {
    fn logits(&self, features: &Tensor) -> candle_core::Result<Tensor> {
        features.matmul(&self.weight)?.broadcast_add(&self.bias)
    }
}

/// The class token after the final norm of every image: (N, S, S) bytes become (N, D).
fn class_tokens(network: &Vit, images: &Tensor) -> Result<Tensor> {
    let count = images.dim(0)?;
    let starts: Vec<usize> = (0..count).step_by(BATCH).collect();
    let batches = starts
        .par_iter()
        .map(|&start| {
            let batch = images.narrow(0, start, BATCH.min(count - start))?;
            let pixels = Normalisation::MICRO.apply(&unit_pixels(&batch)?)?;
            Ok(network.tokens(&pixels)?.narrow(1, 0, 1)?.squeeze(1)?)
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Tensor::cat(&batches, 0)?)
}
