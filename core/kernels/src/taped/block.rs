//! One frozen block, forward and backward, in tensor operations without a graph.

use candle_core::{D, Result, Tensor};

use crate::{
    blocks::{BlockRows, Reads},
    layers::{Block, Linear, Norm},
    ops::{
        Attended, attend, attend_backward, gelu, gelu_backward, layer_norm, layer_norm_backward,
        linear_backward, linear_value,
    },
};

/// Input of one block in one pass.
#[derive(Clone, Copy)]
pub struct Call<'a> {
    pub heads: usize,
    pub eps: f64,
    /// Input `(B, N, D)`.
    pub x: &'a Tensor,
    /// Injected rows `(B, R, 2D)` of the run.
    pub rows: Option<&'a Tensor>,
    /// Share of the injected rows that the block uses.
    pub share: &'a BlockRows,
    pub reads: Reads,
}

/// Values inside a block.
pub struct Inner {
    /// Queries, keys and values, `(B, N, 3D)`.
    qkv: Tensor,
    attended: Attended,
    /// Sum after attention's residual connection, `(B, M, D)`, for the tokens that are read.
    middle: Tensor,
    /// Values before the GELU, `(B, M, hidden)`.
    hidden: Tensor,
}

impl Call<'_> {
    /// Returns the injected keys and values `(B, P, 2D)` to which the block attends.
    fn extra(&self) -> Result<Option<Tensor>> {
        let attended = &self.share.attended;
        let rows = self.rows.filter(|_| !attended.is_empty());
        rows.map(|rows| rows.narrow(1, attended.start, attended.len())?.contiguous()).transpose()
    }

    fn normal(&self, norm: &Norm, x: &Tensor) -> Result<Tensor> {
        layer_norm(x, &norm.gamma, &norm.beta, self.eps)
    }
}

impl Linear {
    /// Computes `x Wᵀ + b + plus`.
    pub(super) fn value(&self, x: &Tensor, plus: Option<&Tensor>) -> Result<Tensor> {
        Ok(linear_value(x, &self.weight, Some(&self.bias), plus)?.tensor())
    }
}

impl Block {
    /// Computes the values inside the block. After attention, only the tokens that are read are computed.
    pub(super) fn inner(&self, call: Call<'_>) -> Result<Inner> {
        let Call { x, share, reads, .. } = call;
        let qkv = self.qkv.value(&call.normal(&self.norm1, x)?, None)?;
        if let (Some(rows), Some(at)) = (call.rows, share.cls) {
            let third = qkv.dim(2)? / 3;
            let cls = qkv.narrow(1, 0, 1)?;
            let key_and_value = (cls.narrow(2, third, 2 * third)? + rows.narrow(1, at, 1)?)?;
            let cls = Tensor::cat(&[cls.narrow(2, 0, third)?, key_and_value], D::Minus1)?;
            qkv.slice_set(&cls.contiguous()?, 1, 0)?;
        }
        let attended = attend(&qkv, call.extra()?.as_ref(), call.heads)?;
        let middle = self.proj.value(&keep(reads, &attended.y)?, Some(&keep(reads, x)?))?;
        let hidden = self.fc1.value(&call.normal(&self.norm2, &middle)?, None)?;
        Ok(Inner { qkv, attended, middle, hidden })
    }

    /// Computes the output `(B, M, D)`.
    pub(super) fn output(&self, inner: &Inner) -> Result<Tensor> {
        self.fc2.value(&gelu(&inner.hidden)?, Some(&inner.middle))
    }

    /// Returns the gradients of the block's injected rows, in order, and of its input if `wants_input`, for the
    /// gradient `dy` `(B, M, D)` of the output.
    pub(super) fn gradients(
        &self,
        call: Call<'_>,
        inner: Inner,
        dy: &Tensor,
        wants_input: bool,
    ) -> Result<(Vec<Tensor>, Option<Tensor>)> {
        let Call { heads, eps, x, share, reads, .. } = call;
        // Values are dropped as early as possible to save memory.
        let Inner { qkv, attended, middle, hidden } = inner;
        let d_hidden = gelu_backward(&hidden, &linear_backward(&self.fc2.weight, dy)?)?;
        drop(hidden);
        let d_normal = linear_backward(&self.fc1.weight, &d_hidden)?;
        drop(d_hidden);
        let d_middle = layer_norm_backward(&middle, &self.norm2.gamma, eps, &d_normal, Some(dy))?;
        drop((middle, d_normal));
        let d_read = linear_backward(&self.proj.weight, &d_middle)?;
        let tokens = x.dim(1)?;
        let d_attended = spread(reads, &d_read, tokens)?;
        let (d_qkv, d_extra) = attend_backward(&qkv, call.extra()?.as_ref(), &attended, &d_attended, heads)?;
        drop((qkv, attended, d_attended));
        let mut d_rows = Vec::from_iter(d_extra);
        if share.cls.is_some() {
            let third = d_qkv.dim(2)? / 3;
            d_rows.push(d_qkv.narrow(1, 0, 1)?.narrow(2, third, 2 * third)?.contiguous()?);
        }
        if !wants_input {
            return Ok((d_rows, None));
        }
        let d_normal = linear_backward(&self.qkv.weight, &d_qkv)?;
        drop(d_qkv);
        let residual = spread(reads, &d_middle, tokens)?;
        Ok((d_rows, Some(layer_norm_backward(x, &self.norm1.gamma, eps, &d_normal, Some(&residual))?)))
    }
}

/// Selects the tokens of `x` `(B, N, D)` that are read, `(B, M, D)`.
fn keep(reads: Reads, x: &Tensor) -> Result<Tensor> {
    match reads {
        Reads::All => Ok(x.clone()),
        Reads::ClsAndLast { extra: 0 } => x.narrow(1, 0, 1)?.contiguous(),
        Reads::ClsAndLast { extra } => {
            let last = x.narrow(1, x.dim(1)? - extra, extra)?;
            Tensor::cat(&[x.narrow(1, 0, 1)?, last], 1)
        }
    }
}

/// Expands the gradient of the tokens that are read to all `tokens`, with zeros for the others.
fn spread(reads: Reads, dy: &Tensor, tokens: usize) -> Result<Tensor> {
    let Reads::ClsAndLast { extra } = reads else { return Ok(dy.clone()) };
    let (batch, _, width) = dy.dims3()?;
    let all = Tensor::zeros((batch, tokens, width), dy.dtype(), dy.device())?;
    all.slice_set(&dy.narrow(1, 0, 1)?.contiguous()?, 1, 0)?;
    if extra > 0 {
        all.slice_set(&dy.narrow(1, 1, extra)?.contiguous()?, 1, tokens - extra)?;
    }
    Ok(all)
}
