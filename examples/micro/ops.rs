//! The row-wise operations of a transformer as single passes over memory, each with its gradient.
//!
//! Composed of elementary tensor operations they would take most of the training time on a CPU: every step would be a
//! pass of its own, and sums over leading dimensions are slow. All of them take f32 on the CPU.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};

/// Added to the variance by every layer normalisation, as in timm's vision transformers.
const LAYER_NORM_EPS: f32 = 1e-6;

/// `x + bias`, the bias added to every row.
pub fn add_bias(x: &Tensor, bias: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op2(bias, AddBias)
}

/// Layer normalisation of every row, followed by scale and shift.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op3(weight, bias, LayerNorm)
}

/// `softmax(scale * x)` of every row.
pub fn scaled_softmax(x: &Tensor, scale: f32) -> Result<Tensor> {
    x.contiguous()?.apply_op1(ScaledSoftmax { scale })
}

/// The exact Gaussian error linear unit, `x * Phi(x)`.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op1(Gelu)
}

struct AddBias;

impl CustomOp2 for AddBias {
    fn name(&self) -> &'static str {
        "add-bias"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let bias = elements(bias, bias_layout)?;
        let mut out = elements(x, x_layout)?.to_vec();
        for row in out.chunks_exact_mut(bias.len()) {
            for (out, b) in row.iter_mut().zip(bias) {
                *out += b;
            }
        }
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        _x: &Tensor,
        bias: &Tensor,
        _out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let mut bias_grad = vec![0.0; bias.elem_count()];
        for row in values(grad)?.chunks_exact(bias_grad.len()) {
            accumulate(&mut bias_grad, row);
        }
        let bias_grad = Tensor::from_vec(bias_grad, bias.shape(), bias.device())?;
        Ok((Some(grad.clone()), Some(bias_grad)))
    }
}

struct LayerNorm;

impl LayerNorm {
    /// Mean and reciprocal standard deviation.
    fn moments(row: &[f32]) -> (f32, f32) {
        let width = row.len() as f32;
        let mean = row.iter().sum::<f32>() / width;
        let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / width;
        (mean, (variance + LAYER_NORM_EPS).sqrt().recip())
    }
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let weight = elements(weight, weight_layout)?;
        let bias = elements(bias, bias_layout)?;
        let mut out = elements(x, x_layout)?.to_vec();
        for row in out.chunks_exact_mut(weight.len()) {
            let (mean, scale) = Self::moments(row);
            for ((out, w), b) in row.iter_mut().zip(weight).zip(bias) {
                *out = (*out - mean) * scale * w + b;
            }
        }
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let scales = values(weight)?;
        let width = scales.len();
        let mut x_grad = values(x)?;
        let mut weight_grad = vec![0.0; width];
        let mut bias_grad = vec![0.0; width];
        // Of one row: the normalised input, and the gradient with respect to it.
        let (mut normal, mut slope) = (vec![0.0; width], vec![0.0; width]);
        for (row, grad) in x_grad.chunks_exact_mut(width).zip(values(grad)?.chunks_exact(width)) {
            let (mean, scale) = Self::moments(row);
            for i in 0..width {
                normal[i] = (row[i] - mean) * scale;
                slope[i] = grad[i] * scales[i];
                weight_grad[i] += grad[i] * normal[i];
            }
            accumulate(&mut bias_grad, grad);
            let mean_slope = slope.iter().sum::<f32>() / width as f32;
            let projection = dot(&slope, &normal) / width as f32;
            for i in 0..width {
                row[i] = scale * (slope[i] - mean_slope - normal[i] * projection);
            }
        }
        Ok((
            Some(Tensor::from_vec(x_grad, x.shape(), x.device())?),
            Some(Tensor::from_vec(weight_grad, weight.shape(), x.device())?),
            Some(Tensor::from_vec(bias_grad, bias.shape(), x.device())?),
        ))
    }
}

struct ScaledSoftmax {
    scale: f32,
}

impl CustomOp1 for ScaledSoftmax {
    fn name(&self) -> &'static str {
        "scaled-softmax"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut out = elements(x, layout)?.to_vec();
        for row in out.chunks_exact_mut(row_width(layout.shape())?) {
            let peak = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            for x in row.iter_mut() {
                *x = (self.scale * (*x - peak)).exp();
            }
            let share = row.iter().sum::<f32>().recip();
            for x in row.iter_mut() {
                *x *= share;
            }
        }
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, out: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let width = row_width(x.shape())?;
        let mut x_grad = values(grad)?;
        for (grad, out) in x_grad.chunks_exact_mut(width).zip(values(out)?.chunks_exact(width)) {
            let mean = dot(grad, out);
            for (grad, out) in grad.iter_mut().zip(out) {
                *grad = self.scale * out * (*grad - mean);
            }
        }
        Ok(Some(Tensor::from_vec(x_grad, x.shape(), x.device())?))
    }
}

struct Gelu;

impl Gelu {
    /// The density of the standard normal distribution, and the share of it below `x`.
    ///
    /// Abramowitz and Stegun 7.1.26: the error is at most 1.5e-7, about the resolution of f32.
    fn normal(x: f32) -> (f32, f32) {
        const FACTORS: [f32; 5] = [1.061_405_4, -1.453_152_1, 1.421_413_8, -0.284_496_74, 0.254_829_6];
        let falloff = (-0.5 * x * x).exp();
        let t = (1.0 + 0.327_591_1 * std::f32::consts::FRAC_1_SQRT_2 * x.abs()).recip();
        let tail = 0.5 * t * falloff * FACTORS.iter().fold(0.0, |sum, factor| sum * t + factor);
        let density = falloff * 0.398_942_3;
        (density, if x < 0.0 { tail } else { 1.0 - tail })
    }
}

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let out = elements(x, layout)?.iter().map(|&x| x * Self::normal(x).1).collect();
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _out: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let mut x_grad = values(x)?;
        for (x, grad) in x_grad.iter_mut().zip(values(grad)?) {
            let (density, below) = Self::normal(*x);
            *x = grad * (below + *x * density);
        }
        Ok(Some(Tensor::from_vec(x_grad, x.shape(), x.device())?))
    }
}

/// The elements of an operand that lies in one piece.
fn elements<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("operand of a row-wise operation is not contiguous"),
    }
}

fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
}

fn row_width(shape: &Shape) -> Result<usize> {
    match shape.dims().last() {
        Some(&width) => Ok(width),
        None => bail!("a row-wise operation needs at least one dimension"),
    }
}

fn accumulate(sums: &mut [f32], row: &[f32]) {
    for (sum, x) in sums.iter_mut().zip(row) {
        *sum += x;
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use candle_core::{D, Device, Var};

    use super::*;

    fn wavy(dims: &[usize], pitch: f64) -> Result<Var> {
        let count = dims.iter().product::<usize>() as u32;
        let ramp = Tensor::arange(0u32, count, &Device::Cpu)?.to_dtype(candle_core::DType::F32)?;
        Var::from_tensor(&((ramp * pitch)?.sin()? * 2.0)?.reshape(dims)?)
    }

    /// Both ways to compute must agree in their values and, for an uneven loss, in all gradients.
    fn assert_same(fused: &Tensor, composed: &Tensor, inputs: &[&Var]) -> Result<()> {
        let assert_close = |a: &Tensor, b: &Tensor| {
            let gap = (a - b)?.abs()?.max_all()?.to_scalar::<f32>()?;
            assert!(gap < 1e-5, "differ by {gap}");
            Ok::<_, candle_core::Error>(())
        };
        assert_close(fused, composed)?;
        let uneven = wavy(fused.dims(), 0.7)?;
        let gradients = |out: &Tensor| out.mul(uneven.as_tensor())?.sum_all()?.backward();
        let (fused, composed) = (gradients(fused)?, gradients(composed)?);
        for input in inputs {
            match (fused.get(input), composed.get(input)) {
                (Some(a), Some(b)) => assert_close(a, b)?,
                _ => panic!("no gradient"),
            }
        }
        Ok(())
    }

    #[test]
    fn bias_agrees_with_broadcasting() -> Result<()> {
        let (x, bias) = (wavy(&[3, 5, 8], 0.9)?, wavy(&[8], 1.3)?);
        assert_same(&add_bias(&x, &bias)?, &x.broadcast_add(&bias)?, &[&x, &bias])
    }

    #[test]
    fn layer_norm_agrees_with_its_definition() -> Result<()> {
        let (x, weight, bias) = (wavy(&[3, 5, 8], 0.9)?, wavy(&[8], 1.3)?, wavy(&[8], 1.7)?);
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let composed = centred
            .broadcast_div(&(variance + f64::from(LAYER_NORM_EPS))?.sqrt()?)?
            .broadcast_mul(&weight)?
            .broadcast_add(&bias)?;
        let fused = layer_norm(&x, &weight, &bias)?;
        assert_same(&fused, &composed, &[&x, &weight, &bias])
    }

    #[test]
    fn softmax_agrees_with_candle() -> Result<()> {
        let x = wavy(&[3, 5, 8], 0.9)?;
        let composed = candle_nn::ops::softmax(&(x.as_tensor() * 0.3)?, D::Minus1)?;
        assert_same(&scaled_softmax(&x, 0.3)?, &composed, &[&x])
    }

    #[test]
    fn gelu_agrees_with_candle() -> Result<()> {
        let x = (wavy(&[3, 5, 8], 0.9)?.as_tensor() * 2.0)?;
        let x = Var::from_tensor(&x)?;
        assert_same(&gelu(&x)?, &x.gelu_erf()?, &[&x])
    }
}
