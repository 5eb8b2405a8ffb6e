//! Trainable layers of heads and distillers, with the initialisation of PyTorch.

use candle_core::{DType, Device, Tensor};

use crate::{
    error::Result,
    rng::Rng,
    traits::{Head, NamedVar},
};
use cdl_kernels::layer_norm;

/// Linear layer `x Wᵀ + b`. Initial values of weight and bias are uniform in ±1/√(inputs).
#[derive(Debug)]
pub struct Linear {
    weight: NamedVar,
    bias: NamedVar,
}

impl Linear {
    /// Creates the tensors `{name}.weight` `(outputs, inputs)` and `{name}.bias` `(outputs,)`.
    pub fn new(name: &str, inputs: usize, outputs: usize, rng: &mut Rng, device: &Device) -> Result<Self> {
        let bound = 1.0 / (inputs as f32).sqrt();
        let weight = rng.uniform(&[outputs, inputs], -bound, bound, device)?;
        let bias = rng.uniform(&[outputs], -bound, bound, device)?;
        Ok(Self {
            weight: NamedVar::new(format!("{name}.weight"), &weight)?,
            bias: NamedVar::new(format!("{name}.bias"), &bias)?,
        })
    }

    /// Creates a layer `name` with the same sizes, on the same device.
    pub fn like(&self, name: &str, rng: &mut Rng) -> Result<Self> {
        let (outputs, inputs) = self.weight().dims2()?;
        Self::new(name, inputs, outputs, rng, self.weight().device())
    }

    /// Returns the weight `W` `(outputs, inputs)`.
    pub fn weight(&self) -> &Tensor {
        self.weight.tensor()
    }

    /// Returns the bias `b` `(outputs,)`.
    pub fn bias(&self) -> &Tensor {
        self.bias.tensor()
    }

    /// Applies the layer to the last axis: `(..., inputs)` to `(..., outputs)`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut shape = x.dims().to_vec();
        let rows = x.flatten_to(shape.len().saturating_sub(2))?;
        // Matrix products on a GPU require contiguous rows, which CLS tokens sliced from all tokens are not.
        let y = rows.contiguous()?.matmul(&self.weight().t()?)?.broadcast_add(self.bias())?;
        if let Some(last) = shape.last_mut() {
            *last = self.bias().elem_count();
        }
        Ok(y.reshape(shape)?)
    }

    /// Returns weight and bias.
    pub fn trainable(&self) -> Vec<NamedVar> {
        vec![self.weight.clone(), self.bias.clone()]
    }
}

impl Head for Linear {
    fn logits(&self, token: &Tensor) -> Result<Tensor> {
        self.forward(token)
    }

    fn trainable(&self) -> Vec<NamedVar> {
        self.trainable()
    }
}

/// Layer normalisation `(x - mean) / sqrt(var + eps) ∘ γ + β` over the last axis. Initial values: `γ = 1`, `β = 0`.
#[derive(Debug)]
pub struct LayerNorm {
    weight: NamedVar,
    bias: NamedVar,
    ones: Tensor,
    zeros: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// Creates the tensors `{name}.weight` and `{name}.bias`, each `(width,)`.
    pub fn new(name: &str, width: usize, eps: f64, device: &Device) -> Result<Self> {
        let (ones, zeros) =
            (Tensor::ones(width, DType::F32, device)?, Tensor::zeros(width, DType::F32, device)?);
        Ok(Self {
            weight: NamedVar::new(format!("{name}.weight"), &ones)?,
            bias: NamedVar::new(format!("{name}.bias"), &zeros)?,
            ones,
            zeros,
            eps,
        })
    }

    /// Normalises `x` `(..., width)`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = layer_norm(x, &self.ones, &self.zeros, self.eps)?;
        Ok(x.broadcast_mul(self.weight.tensor())?.broadcast_add(self.bias.tensor())?)
    }

    /// Returns scale `γ` and shift `β`.
    pub fn trainable(&self) -> Vec<NamedVar> {
        vec![self.weight.clone(), self.bias.clone()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_applies_to_the_last_axis() -> Result<()> {
        let mut rng = Rng::new(1);
        let layer = Linear::new("x", 3, 5, &mut rng, &Device::Cpu)?;
        let x = rng.normal(&[2, 4, 3], 1.0, &Device::Cpu)?;
        let all = layer.forward(&x)?;
        assert_eq!(all.dims(), [2, 4, 5]);
        let one = layer.forward(&x.get(1)?.narrow(0, 2, 1)?)?.to_vec2::<f32>()?;
        assert_eq!(all.to_vec3::<f32>()?[1][2], one[0]);
        Ok(())
    }

    #[test]
    fn layer_norm_has_gradients_of_scale_and_shift() -> Result<()> {
        let layer = LayerNorm::new("x", 4, 1e-5, &Device::Cpu)?;
        let x = Rng::new(2).normal(&[3, 4], 1.0, &Device::Cpu)?;
        let y = layer.forward(&x)?;
        for row in y.to_vec2::<f32>()? {
            assert!(row.iter().sum::<f32>().abs() < 1e-5 && row.iter().map(|v| v * v).sum::<f32>() > 3.9);
        }
        // d(sum y²)/dβ = 2 sum y, d(sum y²)/dγ = 2 sum y² at γ = 1, β = 0.
        let gradients = y.sqr()?.sum_all()?.backward()?;
        let expected = (y.sqr()?.sum(0)? * 2.0)?.to_vec1::<f32>()?;
        let gamma = gradients.get(layer.weight.tensor()).map(Tensor::to_vec1::<f32>).transpose()?;
        assert_eq!(gamma.unwrap_or_default(), expected);
        assert!(gradients.get(layer.bias.tensor()).is_some());
        Ok(())
    }
}
