//! Losses shared by all methods.

use std::ops::Range;

use candle_core::Tensor;

use crate::error::Result;
use cdl_kernels::{log_softmax, softmax};

/// Returns the mean cross-entropy of `logits` `(B, C)` for `labels` `(B,)`, class indices in `classes`. The softmax
/// covers `classes` only, as if the logits of all other classes were minus infinity.
pub fn cross_entropy(logits: &Tensor, labels: &Tensor, classes: &Range<usize>) -> Result<Tensor> {
    let log_p = log_softmax(&logits.narrow(1, classes.start, classes.len())?)?;
    let own = (labels.to_dtype(candle_core::DType::I64)? - classes.start as f64)?;
    Ok(log_p.gather(&own.unsqueeze(1)?, 1)?.mean_all()?.neg()?)
}

/// Returns `KL(softmax(teacher / T) || softmax(student / T))`, summed over classes and averaged over the batch, of
/// logits `(B, C)` (Hinton et al., arXiv 1503.02531, without the factor T²).
pub fn kl_divergence(student: &Tensor, teacher: &Tensor, temperature: f64) -> Result<Tensor> {
    let teacher = (teacher / temperature)?;
    let p = softmax(&teacher)?;
    let log_p = log_softmax(&teacher)?;
    let log_q = log_softmax(&(student / temperature)?)?;
    let batch = student.dim(0)? as f64;
    Ok(((p * (log_p - log_q)?)?.sum_all()? / batch)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn cross_entropy_ignores_masked_classes() -> Result<()> {
        let logits = Tensor::new(&[[9f64, 1.0, 2.0, 9.0], [-3.0, 0.0, 0.5, 7.0]], &Device::Cpu)?;
        let labels = Tensor::new(&[1u32, 2], &Device::Cpu)?;
        let loss = cross_entropy(&logits, &labels, &(1..3))?.to_scalar::<f64>()?;
        let expected = ((1f64.exp() + 2f64.exp()).ln() - 1.0 + (1.0 + 0.5f64.exp()).ln() - 0.5) / 2.0;
        assert!((loss - expected).abs() < 1e-12);
        Ok(())
    }

    #[test]
    fn divergence_is_zero_for_equal_logits_and_matches_its_definition() -> Result<()> {
        let t = Tensor::new(&[[0.3f64, -1.0, 2.0]], &Device::Cpu)?;
        let s = Tensor::new(&[[1.0f64, 0.0, -0.5]], &Device::Cpu)?;
        assert!(kl_divergence(&t, &t, 2.0)?.to_scalar::<f64>()?.abs() < 1e-15);
        let probabilities = |v: &[f64]| -> Vec<f64> {
            let e: Vec<f64> = v.iter().map(|x| (x / 2.0).exp()).collect();
            e.iter().map(|x| x / e.iter().sum::<f64>()).collect()
        };
        let (p, q) = (probabilities(&[0.3, -1.0, 2.0]), probabilities(&[1.0, 0.0, -0.5]));
        let expected: f64 = p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum();
        assert!((kl_divergence(&s, &t, 2.0)?.to_scalar::<f64>()? - expected).abs() < 1e-12);
        Ok(())
    }
}
