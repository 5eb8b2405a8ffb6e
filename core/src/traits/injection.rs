//! Prompts as data. A method returns the tensors to inject into the frozen network and their places; the backbone
//! applies them.

use std::{collections::HashMap, ops::Range};

use candle_core::Tensor;

use crate::{error::Result, traits::Selection};

/// Keys and values injected into a block, each `(B, P, D)`, or `(1, P, D)` if all images share them. The backbone
/// splits them into heads.
#[derive(Debug, Clone)]
pub struct Kv(pub(crate) Parts);

/// Storage of keys and values.
#[derive(Debug, Clone)]
pub(crate) enum Parts {
    /// Rows of the tensor `all` `(B or 1, R, D)`: keys, then the same number of values. Prompts of all blocks can share
    /// one tensor, which a backbone processes in few operations.
    Rows { all: Tensor, rows: Range<usize> },
    /// Separate tensors.
    Separate { k: Tensor, v: Tensor },
}

impl Kv {
    /// Creates an injection of keys and values of the same shape.
    pub fn new(k: Tensor, v: Tensor) -> Self {
        Self(Parts::Separate { k, v })
    }

    /// Splits prompts `(B or 1, L, D)`, `L` even, into keys (the first `L / 2` rows) and values (the rest), like the
    /// published methods.
    pub fn halves(prompts: &Tensor) -> Result<Self> {
        Self::rows(prompts, 0..prompts.dim(1)?)
    }

    /// Splits `rows` of `all` `(B or 1, R, D)` into keys (the first half) and values. The other rows may contain
    /// prompts of other blocks.
    ///
    /// # Errors
    /// An odd number of rows, or rows beyond the end.
    pub fn rows(all: &Tensor, rows: Range<usize>) -> Result<Self> {
        let (_, count, _) = all.dims3()?;
        if rows.start > rows.end || rows.end > count || !rows.len().is_multiple_of(2) {
            let message = format!(
                "rows {rows:?} of {count} are not valid keys and values: expected an even number of rows within range"
            );
            return Err(candle_core::Error::Msg(message).into());
        }
        Ok(Self(Parts::Rows { all: all.clone(), rows }))
    }

    /// Returns the keys `(B or 1, P, D)`.
    pub fn k(&self) -> Result<Tensor> {
        Ok(match &self.0 {
            Parts::Rows { all, rows } => all.narrow(1, rows.start, rows.len() / 2)?,
            Parts::Separate { k, .. } => k.clone(),
        })
    }

    /// Returns the values `(B or 1, P, D)`.
    pub fn v(&self) -> Result<Tensor> {
        Ok(match &self.0 {
            Parts::Rows { all, rows } => all.narrow(1, rows.start + rows.len() / 2, rows.len() / 2)?,
            Parts::Separate { v, .. } => v.clone(),
        })
    }

    /// Returns the number of keys, `P`.
    pub fn count(&self) -> Result<usize> {
        Ok(match &self.0 {
            Parts::Rows { rows, .. } => rows.len() / 2,
            Parts::Separate { k, .. } => k.dim(1)?,
        })
    }

    /// Returns whether keys or values are part of the autograd graph.
    pub(crate) fn is_trained(&self) -> bool {
        match &self.0 {
            Parts::Rows { all, .. } => all.track_op(),
            Parts::Separate { k, v } => k.track_op() || v.track_op(),
        }
    }

    /// Applies `f` to all tensors.
    fn map(&self, f: &mut impl FnMut(&Tensor) -> Tensor) -> Self {
        Self(match &self.0 {
            Parts::Rows { all, rows } => Parts::Rows { all: f(all), rows: rows.clone() },
            Parts::Separate { k, v } => Parts::Separate { k: f(k), v: f(v) },
        })
    }

    /// Concatenates keys and values of `self` and `other`.
    fn then(self, other: Self) -> Result<Self> {
        let (k, v) = (self.k()?, self.v()?);
        let batch = k.dim(0)?.max(other.k()?.dim(0)?);
        Ok(Self::new(join(&k, &other.k()?, batch)?, join(&v, &other.v()?, batch)?))
    }
}

/// Prompts of one block.
#[derive(Debug, Clone, Default)]
pub struct BlockInjection {
    /// Keys and values inserted before the keys and values of the image.
    pub prefix: Option<Kv>,
    /// Keys and values inserted after the keys and values of the image.
    pub suffix: Option<Kv>,
    /// Vectors `(B or 1, 1, D)` added to key and value of the CLS token.
    pub cls_add: Option<Kv>,
}

/// Injection of a method into one forward pass.
#[derive(Debug, Clone, Default)]
pub struct Injection {
    /// Prompts of each block, from the first. Blocks beyond the end of the list have none.
    pub blocks: Vec<BlockInjection>,
    /// Additional tokens `(B or 1, K, D)`, appended to the patch tokens without a position embedding. They pass through
    /// every block and the final norm.
    pub tokens: Option<Tensor>,
    /// Scalar that is added to the loss in training, already multiplied by its weight.
    pub penalty: Option<Tensor>,
    /// Prompts that each image selects from the method's pools, for the run record. The forward pass ignores them.
    pub selections: Vec<Selection>,
}

impl Injection {
    /// Injects nothing: the plain frozen network.
    pub fn none() -> Self {
        Self::default()
    }

    /// Returns the entry of `block`, which is created if necessary.
    pub fn block_mut(&mut self, block: usize) -> &mut BlockInjection {
        if self.blocks.len() <= block {
            self.blocks.resize_with(block + 1, BlockInjection::default);
        }
        &mut self.blocks[block]
    }

    /// Returns the number of additional tokens.
    pub(crate) fn token_count(&self) -> Result<usize> {
        Ok(self.tokens.as_ref().map(|tokens| tokens.dim(1)).transpose()?.unwrap_or(0))
    }

    /// Detaches all prompts from the graph, so that the forward pass builds none, and removes the penalty.
    pub(crate) fn detach(self) -> Self {
        // Parts that share a tensor must share the detached tensor too.
        let mut detached = HashMap::new();
        let mut detach =
            |tensor: &Tensor| detached.entry(tensor.id()).or_insert_with(|| tensor.detach()).clone();
        let mut detach_block = |block: BlockInjection| BlockInjection {
            prefix: block.prefix.map(|kv| kv.map(&mut detach)),
            suffix: block.suffix.map(|kv| kv.map(&mut detach)),
            cls_add: block.cls_add.map(|kv| kv.map(&mut detach)),
        };
        Self {
            blocks: self.blocks.into_iter().map(&mut detach_block).collect(),
            tokens: self.tokens.map(|tokens| tokens.detach()),
            penalty: None,
            selections: self.selections,
        }
    }

    /// Combines two injections: prompts, tokens and selections are concatenated, those of `self` first; additions to
    /// the CLS token and penalties are summed.
    ///
    /// # Errors
    /// Prompts of different batch sizes (unless one is 1) or widths.
    pub fn merge(mut self, other: Self) -> Result<Self> {
        for (index, theirs) in other.blocks.into_iter().enumerate() {
            let ours = self.block_mut(index);
            ours.prefix = both(ours.prefix.take(), theirs.prefix, Kv::then)?;
            ours.suffix = both(ours.suffix.take(), theirs.suffix, Kv::then)?;
            ours.cls_add = both(ours.cls_add.take(), theirs.cls_add, |a, b| {
                Ok(Kv::new(a.k()?.broadcast_add(&b.k()?)?, a.v()?.broadcast_add(&b.v()?)?))
            })?;
        }
        self.tokens = both(self.tokens, other.tokens, |a, b| {
            let batch = a.dim(0)?.max(b.dim(0)?);
            join(&a, &b, batch)
        })?;
        self.penalty = both(self.penalty, other.penalty, |a, b| Ok((a + b)?))?;
        self.selections.extend(other.selections);
        Ok(self)
    }
}

fn both<T>(a: Option<T>, b: Option<T>, merge: impl FnOnce(T, T) -> Result<T>) -> Result<Option<T>> {
    match (a, b) {
        (Some(a), Some(b)) => merge(a, b).map(Some),
        (a, b) => Ok(a.or(b)),
    }
}

/// Concatenates `a` and `b` along the token axis, both broadcast to `batch` images.
fn join(a: &Tensor, b: &Tensor, batch: usize) -> Result<Tensor> {
    let broadcast = |t: &Tensor| -> Result<Tensor> {
        let (_, tokens, width) = t.dims3()?;
        Ok(t.broadcast_as((batch, tokens, width))?)
    };
    Ok(Tensor::cat(&[broadcast(a)?, broadcast(b)?], 1)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn kv(batch: usize, value: f32) -> Result<Kv> {
        let t = Tensor::full(value, (batch, 2, 3), &Device::Cpu)?;
        Ok(Kv::new(t.clone(), t))
    }

    #[test]
    fn merge_keeps_order_and_broadcasts_shared_prompts() -> Result<()> {
        let mut a = Injection::none();
        a.block_mut(1).prefix = Some(kv(1, 1.0)?);
        a.penalty = Some(Tensor::new(2f32, &Device::Cpu)?);
        let mut b = Injection::none();
        b.block_mut(0).suffix = Some(kv(1, 5.0)?);
        b.block_mut(1).prefix = Some(kv(4, 2.0)?);
        b.penalty = Some(Tensor::new(3f32, &Device::Cpu)?);
        let merged = a.merge(b)?;
        assert_eq!(merged.penalty.as_ref().map(|p| p.to_scalar::<f32>()).transpose()?, Some(5.0));
        assert!(merged.blocks[0].suffix.is_some());
        let prefix = merged.blocks[1].prefix.as_ref().map(Kv::k).transpose()?;
        let keys = prefix.map(|k| k.to_vec3::<f32>()).transpose()?.unwrap_or_default();
        assert_eq!(keys.len(), 4);
        assert_eq!(keys[3].iter().map(|row| row[0]).collect::<Vec<_>>(), [1.0, 1.0, 2.0, 2.0]);
        Ok(())
    }

    #[test]
    fn detached_parts_share_one_tensor() -> Result<()> {
        let all = Tensor::zeros((1, 6, 3), candle_core::DType::F32, &Device::Cpu)?;
        let mut injection = Injection::none();
        injection.block_mut(0).prefix = Some(Kv::rows(&all, 0..2)?);
        injection.block_mut(1).suffix = Some(Kv::rows(&all, 2..6)?);
        let detached = injection.detach();
        let id = |kv: &Option<Kv>| match kv {
            Some(Kv(Parts::Rows { all, .. })) => Some(all.id()),
            _ => None,
        };
        let first = id(&detached.blocks[0].prefix);
        assert!(first.is_some());
        assert_eq!(first, id(&detached.blocks[1].suffix));
        Ok(())
    }

    #[test]
    #[allow(clippy::reversed_empty_ranges, reason = "invalid input of the test")]
    fn odd_reversed_or_excess_rows_are_refused() -> Result<()> {
        let all = Tensor::zeros((1, 6, 3), candle_core::DType::F32, &Device::Cpu)?;
        for rows in [0..3, 4..8, 4..2] {
            assert!(Kv::rows(&all, rows.clone()).is_err(), "{rows:?}");
        }
        assert!(Kv::halves(&all.narrow(1, 0, 5)?).is_err());
        Ok(())
    }
}
