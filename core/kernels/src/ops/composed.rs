//! Implementations of the crate's operations by candle's operations, for every device and type. They are slower and
//! also compute (and drop) gradients of frozen weights. Types without kernels use them, and tests compare with them.

use candle_core::{D, Result, Tensor};

/// See [`crate::linear`].
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let mut shape = x.dims().to_vec();
    let inputs = shape.pop().unwrap_or(1);
    shape.push(weight.dim(0)?);
    let y = x.reshape(((), inputs))?.matmul(&weight.t()?)?;
    let y = match bias {
        Some(bias) => y.broadcast_add(bias)?,
        None => y,
    };
    y.reshape(shape)
}

/// See [`crate::layer_norm`].
pub fn layer_norm(x: &Tensor, gamma: &Tensor, beta: &Tensor, eps: f64) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let normal = centred.broadcast_div(&(variance + eps)?.sqrt()?)?;
    normal.broadcast_mul(gamma)?.broadcast_add(beta)
}

/// See [`crate::gelu`]. Uses `erf`, because the backward pass of candle's `gelu_erf` has only six digits of 1/√(2π).
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    let twice_cdf = ((x * std::f64::consts::FRAC_1_SQRT_2)?.erf()? + 1.0)?;
    (x * twice_cdf)? * 0.5
}

/// See [`crate::attention`].
pub fn attention(qkv: &Tensor, extra: Option<&Tensor>, heads: usize) -> Result<Tensor> {
    let (batch, tokens, triple) = qkv.dims3()?;
    let width = triple / 3;
    let split = |t: &Tensor, part: usize| -> Result<Tensor> {
        let rows = t.dim(1)?;
        let part = t.narrow(2, part * width, width)?;
        part.reshape((batch, rows, heads, width / heads))?.transpose(1, 2)?.contiguous()
    };
    let q = split(qkv, 0)?;
    let (mut k, mut v) = (split(qkv, 1)?, split(qkv, 2)?);
    if let Some(extra) = extra {
        k = Tensor::cat(&[split(extra, 0)?, k], 2)?;
        v = Tensor::cat(&[split(extra, 1)?, v], 2)?;
    }
    let scores = (q.matmul(&k.transpose(2, 3)?.contiguous()?)? * ((heads as f64) / (width as f64)).sqrt())?;
    // candle's fused `softmax_last_dim` has no backward pass.
    let weights = candle_nn::ops::softmax(&scores, D::Minus1)?;
    weights.matmul(&v)?.transpose(1, 2)?.reshape((batch, tokens, width))
}
