//! A run of frozen blocks as one operation on any device, its backward pass written out. It computes gradients of
//! injected rows and of the input, where they are wanted, and no others:
//!
//! - blocks before the first trainable value keep nothing and have no backward pass;
//! - the first block that has one ends with the gradients of its rows if its input is constant;
//! - a tensor of the graph would hold a gradient of its own for every step inside a block; here they are gone as soon
//!   as they are used.

use std::{
    mem,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use candle_core::{CpuStorage, CustomOp1, CustomOp2, D, Layout, Shape, Storage, Tensor};

use crate::{
    error::Result,
    vit::model::{Block, Linear},
};
use cdl_kernels::{
    Attended, attend, attend_backward, fused::Rows, gelu_backward, gelu_value, layer_norm_backward,
    layer_norm_value, linear_backward, linear_value,
};

/// What all blocks of a network share.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setting {
    pub(super) heads: usize,
    pub(super) eps: f64,
    /// Compute a block's intermediate values again in the backward pass instead of keeping them.
    pub(super) recompute: bool,
}

/// Which tokens leave a block.
#[derive(Debug, Clone, Copy)]
pub(super) enum Read {
    All,
    /// CLS and the last `extra` tokens: after the last block nothing else is looked at.
    ClsAndLast {
        extra: usize,
    },
}

impl Read {
    /// The tokens of `x` `(B, N, D)` that are read, `(B, M, D)`.
    fn keep(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::All => Ok(x.clone()),
            Self::ClsAndLast { extra: 0 } => Ok(x.narrow(1, 0, 1)?.contiguous()?),
            Self::ClsAndLast { extra } => {
                let last = x.narrow(1, x.dim(1)? - extra, extra)?;
                Ok(Tensor::cat(&[x.narrow(1, 0, 1)?, last], 1)?)
            }
        }
    }

    /// The gradient of all `tokens` for that of those that are read: zero for the others.
    fn spread(self, dy: &Tensor, tokens: usize) -> Result<Tensor> {
        let Self::ClsAndLast { extra } = self else { return Ok(dy.clone()) };
        let (batch, _, width) = dy.dims3()?;
        let all = Tensor::zeros((batch, tokens, width), dy.dtype(), dy.device())?;
        all.slice_set(&dy.narrow(1, 0, 1)?.contiguous()?, 1, 0)?;
        if extra > 0 {
            all.slice_set(&dy.narrow(1, 1, extra)?.contiguous()?, 1, tokens - extra)?;
        }
        Ok(all)
    }
}

/// What the backward pass of one block needs.
struct Kept {
    /// The block's input `(B, N, D)`.
    x: Tensor,
    /// `None` where it is computed again.
    inner: Option<Inner>,
}

/// Values inside a block.
struct Inner {
    /// Queries, keys and values, `(B, N, 3D)`.
    qkv: Tensor,
    attended: Attended,
    /// After the attention's residual connection, tokens that are read, `(B, M, D)`.
    middle: Tensor,
    /// Before the GELU, `(B, M, 4D)`.
    hidden: Tensor,
}

impl Linear {
    /// `x Wᵀ + b + plus`.
    pub(super) fn value(&self, x: &Tensor, plus: Option<&Tensor>) -> Result<Tensor> {
        Ok(linear_value(x, &self.weight, &self.bias, plus)?)
    }
}

impl Block {
    /// Values inside for `x` `(B, N, D)`; keys and values come from every token, what follows acts on each by itself.
    fn inner(&self, s: Setting, x: &Tensor, rows: Option<&Tensor>, own: &Rows, read: Read) -> Result<Inner> {
        let normal = layer_norm_value(x, &self.norm1.gamma, &self.norm1.beta, s.eps)?;
        let qkv = self.qkv.value(&normal, None)?;
        if let (Some(rows), Some(at)) = (rows, own.cls) {
            let third = qkv.dim(2)? / 3;
            let cls = qkv.narrow(1, 0, 1)?;
            let key_and_value = (cls.narrow(2, third, 2 * third)? + rows.narrow(1, at, 1)?)?;
            let cls = Tensor::cat(&[cls.narrow(2, 0, third)?, key_and_value], D::Minus1)?;
            qkv.slice_set(&cls.contiguous()?, 1, 0)?;
        }
        let attended = attend(&qkv, self.extra(rows, own)?.as_ref(), s.heads)?;
        let middle = self.proj.value(&read.keep(&attended.y)?, Some(&read.keep(x)?))?;
        let normal = layer_norm_value(&middle, &self.norm2.gamma, &self.norm2.beta, s.eps)?;
        let hidden = self.fc1.value(&normal, None)?;
        Ok(Inner { qkv, attended, middle, hidden })
    }

    /// The output `(B, M, D)`.
    fn output(&self, inner: &Inner) -> Result<Tensor> {
        self.fc2.value(&gelu_value(&inner.hidden)?, Some(&inner.middle))
    }

    /// The injected keys and values `(B, P, 2D)`.
    fn extra(&self, rows: Option<&Tensor>, own: &Rows) -> Result<Option<Tensor>> {
        Ok(match rows {
            Some(rows) if !own.attended.is_empty() => {
                Some(rows.narrow(1, own.attended.start, own.attended.len())?.contiguous()?)
            }
            _ => None,
        })
    }

    /// Gradients for that of the output, `dy` `(B, M, D)`: of the block's rows, in order, and of its input, if wanted.
    #[allow(clippy::too_many_arguments, reason = "the forward pass has as many")]
    fn backward(
        &self,
        s: Setting,
        x: &Tensor,
        inner: Inner,
        rows: Option<&Tensor>,
        own: &Rows,
        read: Read,
        dy: &Tensor,
        wants_input: bool,
    ) -> Result<(Vec<Tensor>, Option<Tensor>)> {
        let Inner { qkv, attended, middle, hidden } = inner;
        let d_hidden = gelu_backward(&hidden, &linear_backward(&self.fc2.weight, dy)?)?;
        drop(hidden);
        let d_normal = linear_backward(&self.fc1.weight, &d_hidden)?;
        drop(d_hidden);
        let d_middle = layer_norm_backward(&middle, &self.norm2.gamma, s.eps, &d_normal, dy)?;
        drop((middle, d_normal));
        let d_read = linear_backward(&self.proj.weight, &d_middle)?;
        let tokens = x.dim(1)?;
        let d_attended = read.spread(&d_read, tokens)?;
        let extra = self.extra(rows, own)?;
        let (d_qkv, d_extra) = attend_backward(&qkv, extra.as_ref(), &attended, &d_attended, s.heads)?;
        drop((qkv, attended, d_attended));
        let mut d_rows = Vec::from_iter(d_extra);
        if own.cls.is_some() {
            let third = d_qkv.dim(2)? / 3;
            d_rows.push(d_qkv.narrow(1, 0, 1)?.narrow(2, third, 2 * third)?.contiguous()?);
        }
        if !wants_input {
            return Ok((d_rows, None));
        }
        let d_normal = linear_backward(&self.qkv.weight, &d_qkv)?;
        drop(d_qkv);
        let past = read.spread(&d_middle, tokens)?;
        Ok((d_rows, Some(layer_norm_backward(x, &self.norm1.gamma, s.eps, &d_normal, &past)?)))
    }
}

/// Blocks one after the other.
pub(super) struct Run {
    pub(super) blocks: Arc<Vec<Block>>,
    /// Which of them.
    pub(super) range: Range<usize>,
    pub(super) setting: Setting,
    /// Of every block in `range`, where in the injected rows its own are.
    pub(super) own: Vec<Rows>,
    /// Which tokens leave the last one.
    pub(super) read: Read,
}

impl Run {
    /// Output `(B, M, D)` for `x` `(B, N, D)` and the rows injected into these blocks, `(B, R, 2D)`.
    pub(super) fn apply(self, x: &Tensor, rows: Option<&Tensor>) -> Result<Tensor> {
        let trainable_rows = rows.is_some_and(Tensor::track_op);
        let first = match (x.track_op(), trainable_rows) {
            (true, _) => Some(0),
            (false, true) => self.own.iter().position(|own| !own.is_empty()),
            (false, false) => None,
        };
        let wants_input = x.track_op();
        let (y, kept) = self.forward(&x.detach(), rows.map(Tensor::detach).as_ref(), first)?;
        let Some(first) = first else { return Ok(y) };
        let op = Taped { run: self, first, wants_input, y: Mutex::new(Some(y)), kept: Mutex::new(kept) };
        Ok(match rows {
            Some(rows) => x.apply_op2(rows, op)?,
            None => x.apply_op1(op)?,
        })
    }

    /// Which tokens leave a block.
    fn read(&self, index: usize) -> Read {
        if index + 1 == self.own.len() { self.read } else { Read::All }
    }

    /// The output, and what blocks from `first` on keep.
    fn forward(
        &self,
        x: &Tensor,
        rows: Option<&Tensor>,
        first: Option<usize>,
    ) -> Result<(Tensor, Vec<Kept>)> {
        let mut kept = Vec::new();
        let mut x = x.contiguous()?;
        for (index, block) in self.blocks[self.range.clone()].iter().enumerate() {
            let inner = block.inner(self.setting, &x, rows, &self.own[index], self.read(index))?;
            let x = mem::replace(&mut x, block.output(&inner)?);
            if first.is_some_and(|first| index >= first) {
                kept.push(Kept { x, inner: Some(inner).filter(|_| !self.setting.recompute) });
            }
        }
        Ok((x, kept))
    }
}

/// A run with what its backward pass needs.
struct Taped {
    run: Run,
    /// First block, of those of the run, that has a backward pass.
    first: usize,
    wants_input: bool,
    /// Computed before the operation enters the graph.
    y: Mutex<Option<Tensor>>,
    /// Of blocks from `first` on; empty once the backward pass has used it.
    kept: Mutex<Vec<Kept>>,
}

fn take<T: Default>(cell: &Mutex<T>) -> T {
    mem::take(&mut *cell.lock().unwrap_or_else(PoisonError::into_inner))
}

impl Taped {
    /// Gradients of the input and of the rows for that of the output.
    fn backward(
        &self,
        x: &Tensor,
        rows: Option<&Tensor>,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (x, rows) = (x.detach(), rows.map(Tensor::detach));
        let mut kept = take(&self.kept);
        if kept.is_empty() {
            // A second backward pass through one graph.
            kept = self.run.forward(&x, rows.as_ref(), Some(self.first))?.1;
        }
        let mut dy = Some(dy.contiguous()?);
        let mut d_rows = Vec::new();
        for index in (self.first..self.run.own.len()).rev() {
            let (Some(Kept { x, inner }), Some(dy_of_block)) = (kept.pop(), dy.take()) else { break };
            let (block, own) = (&self.run.blocks[self.run.range.start + index], &self.run.own[index]);
            let (setting, read) = (self.run.setting, self.run.read(index));
            let inner = match inner {
                Some(inner) => inner,
                None => block.inner(setting, &x, rows.as_ref(), own, read)?,
            };
            let wants_input = self.wants_input || index > self.first;
            let (of_block, dx) =
                block.backward(setting, &x, inner, rows.as_ref(), own, read, &dy_of_block, wants_input)?;
            d_rows.extend(of_block.into_iter().rev());
            dy = dx;
        }
        // Rows stand in the order of the blocks.
        d_rows.reverse();
        let d_rows = if d_rows.is_empty() { None } else { Some(Tensor::cat(&d_rows, 1)?) };
        Ok((dy, d_rows))
    }

    /// The output that is there already.
    fn output(&self) -> candle_core::Result<Tensor> {
        take(&self.y).ok_or_else(|| candle_core::Error::Msg("a run of blocks entered two graphs".into()))
    }

    fn on_cpu(&self) -> candle_core::Result<(CpuStorage, Shape)> {
        let y = self.output()?;
        match &*y.storage_and_layout().0 {
            Storage::Cpu(storage) => Ok((storage.clone(), y.shape().clone())),
            _ => candle_core::bail!("blocks and their input are on different devices"),
        }
    }

    #[cfg(feature = "cuda")]
    fn on_cuda(&self) -> candle_core::Result<(candle_core::CudaStorage, Shape)> {
        use candle_core::backend::BackendStorage;
        let y = self.output()?;
        let (storage, layout) = y.storage_and_layout();
        match &*storage {
            Storage::Cuda(storage) => Ok((storage.try_clone(layout)?, y.shape().clone())),
            _ => candle_core::bail!("blocks and their input are on different devices"),
        }
    }
}

impl CustomOp1 for Taped {
    fn name(&self) -> &'static str {
        "frozen-blocks"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        self.on_cpu()
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        _: &candle_core::CudaStorage,
        _: &Layout,
    ) -> candle_core::Result<(candle_core::CudaStorage, Shape)> {
        self.on_cuda()
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(self.backward(x, None, dy).map_err(candle_core::Error::wrap)?.0)
    }
}

impl CustomOp2 for Taped {
    fn name(&self) -> &'static str {
        "frozen-blocks-with-prompts"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        self.on_cpu()
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        _: &candle_core::CudaStorage,
        _: &Layout,
        _: &candle_core::CudaStorage,
        _: &Layout,
    ) -> candle_core::Result<(candle_core::CudaStorage, Shape)> {
        self.on_cuda()
    }

    fn bwd(
        &self,
        x: &Tensor,
        rows: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        self.backward(x, Some(rows), dy).map_err(candle_core::Error::wrap)
    }
}
