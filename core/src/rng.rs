//! Seeded random numbers, the only source of randomness. Every consumer derives its own generator from the run's seed
//! and a label. Numbers therefore depend neither on other consumers nor on the timing of threads.

use candle_core::{Device, Tensor};
use rand::{Rng as _, RngExt, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use sha2::{Digest, Sha256};

use crate::{error::Result, system::memory};

/// A seeded generator (ChaCha8), derived by label: `Rng::new(seed).derive("student/learner")`.
#[derive(Debug, Clone)]
pub struct Rng {
    key: [u8; 32],
    generator: ChaCha8Rng,
}

impl Rng {
    /// Creates the root generator of a run.
    pub fn new(seed: u64) -> Self {
        Self::from_key(Sha256::digest(seed.to_le_bytes()).into())
    }

    /// Returns the generator of `label`. Draws from `self` do not affect the returned generator.
    pub fn derive(&self, label: &str) -> Self {
        let mut hash = Sha256::new();
        hash.update(self.key);
        hash.update(label.as_bytes());
        Self::from_key(hash.finalize().into())
    }

    fn from_key(key: [u8; 32]) -> Self {
        Self { key, generator: ChaCha8Rng::from_seed(key) }
    }

    /// Draws a float32 tensor with entries uniform in `[low, high)`.
    ///
    /// # Errors
    /// A tensor that does not fit into memory.
    pub fn uniform(&mut self, shape: &[usize], low: f32, high: f32, device: &Device) -> Result<Tensor> {
        let count = memory::check_size(shape)?;
        let values: Vec<f32> =
            (0..count).map(|_| low + (high - low) * self.generator.random::<f32>()).collect();
        Ok(Tensor::from_vec(values, shape, device)?)
    }

    /// Draws a float32 tensor with normal entries of mean 0 and standard deviation `std`.
    ///
    /// # Errors
    /// A tensor that does not fit into memory.
    pub fn normal(&mut self, shape: &[usize], std: f32, device: &Device) -> Result<Tensor> {
        let count = memory::check_size(shape)?;
        let values: Vec<f32> = (0..count).map(|_| std * self.standard_normal() as f32).collect();
        Ok(Tensor::from_vec(values, shape, device)?)
    }

    /// Draws a number from the standard normal distribution.
    pub fn standard_normal(&mut self) -> f64 {
        StandardNormal.sample(&mut self.generator)
    }

    /// Shuffles `items`.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        items.shuffle(&mut self.generator);
    }
}

impl rand::TryRng for Rng {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        Ok(self.generator.next_u32())
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        Ok(self.generator.next_u64())
    }

    fn try_fill_bytes(&mut self, dst: &mut [u8]) -> Result<(), Self::Error> {
        self.generator.fill_bytes(dst);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_generators_depend_only_on_seed_and_label() -> Result<()> {
        let draw = |rng: &mut Rng| rng.next_u64();
        let mut root = Rng::new(7);
        let before = draw(&mut root.derive("a"));
        draw(&mut root);
        assert_eq!(draw(&mut root.derive("a")), before);
        assert_ne!(draw(&mut root.derive("b")), before);
        assert_ne!(draw(&mut Rng::new(8).derive("a")), before);
        Ok(())
    }

    #[test]
    fn uniform_and_normal_tensors_have_the_stated_mean_and_variance() -> Result<()> {
        let mut rng = Rng::new(0);
        let uniform = rng.uniform(&[20_000], -1.0, 3.0, &Device::Cpu)?.to_vec1::<f32>()?;
        assert!(uniform.iter().all(|v| (-1.0..3.0).contains(v)));
        let mean = uniform.iter().sum::<f32>() / 20_000.0;
        assert!((mean - 1.0).abs() < 0.05, "mean {mean}");
        let normal = rng.normal(&[20_000], 0.5, &Device::Cpu)?.to_vec1::<f32>()?;
        let variance = normal.iter().map(|v| v * v).sum::<f32>() / 20_000.0;
        assert!((variance - 0.25).abs() < 0.02, "variance {variance}");
        Ok(())
    }
}
