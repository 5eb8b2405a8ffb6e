//! Prompts as data. A method says *what* enters the frozen network and where; the backbone applies it.

use std::{collections::HashMap, ops::Range};

use candle_core::Tensor;

use crate::{error::Result, traits::Selection};

/// Keys and values that join a block's own, each `(B, P, D)`, or `(1, P, D)` when all images share them. The backbone splits
/// them into heads.
#[derive(Debug, Clone)]
pub struct Kv(pub(crate) Parts);

/// Where keys and values are.
#[derive(Debug, Clone)]
pub(crate) enum Parts {
    /// In rows of `all` `(B or 1, R, D)`: keys, then as many values. Prompts that stay in one tensor, many blocks' even, cost a
    /// backbone a few operations together.
    Rows {
        all: Tensor,
        rows: Range<usize>,
    },
    Apart {
        k: Tensor,
        v: Tensor,
    },
}

impl Kv {
    /// Keys and values of one shape.
    pub fn new(k: Tensor, v: Tensor) -> Self {
        Self(Parts::Apart { k, v })
    }

    /// Splits prompts `(B or 1, L, D)`, an even number, into keys (the first `L / 2` rows) and values (the rest), as the
    /// published methods do.
    pub fn halves(prompts: &Tensor) -> Result<Self> {
        Self::rows(prompts, 0..prompts.dim(1)?)
    }

    /// The same of some rows of `all` `(B or 1, R, D)`, which may hold the prompts of other blocks too.
    ///
    /// # Errors
    /// An odd number of rows, or rows beyond the end.
    pub fn rows(all: &Tensor, rows: Range<usize>) -> Result<Self> {
        let (_, count, _) = all.dims3()?;
        if rows.start > rows.end || rows.end > count || !rows.len().is_multiple_of(2) {
            let wrong = format!(
                "rows {rows:?} of {count} as keys and as many values: expected an even number of them"
            );
            return Err(candle_core::Error::Msg(wrong).into());
        }
        Ok(Self(Parts::Rows { all: all.clone(), rows }))
    }

    /// The keys.
    pub fn k(&self) -> Result<Tensor> {
        Ok(match &self.0 {
            Parts::Rows { all, rows } => all.narrow(1, rows.start, rows.len() / 2)?,
            Parts::Apart { k, .. } => k.clone(),
        })
    }

    /// The values.
    pub fn v(&self) -> Result<Tensor> {
        Ok(match &self.0 {
            Parts::Rows { all, rows } => all.narrow(1, rows.start + rows.len() / 2, rows.len() / 2)?,
            Parts::Apart { v, .. } => v.clone(),
        })
    }

    /// How many keys there are, `P`.
    pub fn count(&self) -> Result<usize> {
        Ok(match &self.0 {
            Parts::Rows { rows, .. } => rows.len() / 2,
            Parts::Apart { k, .. } => k.dim(1)?,
        })
    }

    /// Whether a gradient goes to any of it.
    pub(crate) fn is_trained(&self) -> bool {
        match &self.0 {
            Parts::Rows { all, .. } => all.track_op(),
            Parts::Apart { k, v } => k.track_op() || v.track_op(),
        }
    }

    /// The same of other tensors.
    fn map(&self, f: &mut impl FnMut(&Tensor) -> Tensor) -> Self {
        Self(match &self.0 {
            Parts::Rows { all, rows } => Parts::Rows { all: f(all), rows: rows.clone() },
            Parts::Apart { k, v } => Parts::Apart { k: f(k), v: f(v) },
        })
    }

    fn then(self, other: Self) -> Result<Self> {
        let (k, v) = (self.k()?, self.v()?);
        let batch = k.dim(0)?.max(other.k()?.dim(0)?);
        Ok(Self::new(join(&k, &other.k()?, batch)?, join(&v, &other.v()?, batch)?))
    }
}

/// Prompts of one block.
#[derive(Debug, Clone, Default)]
pub struct BlockInjection {
    /// Keys and values concatenated before the image's.
    pub prefix: Option<Kv>,
    /// Keys and values concatenated after the image's.
    pub suffix: Option<Kv>,
    /// Vectors `(B or 1, 1, D)` added to the CLS token's own key and value.
    pub cls_add: Option<Kv>,
}

/// All that a method adds to one forward pass.
#[derive(Debug, Clone, Default)]
pub struct Injection {
    /// Prompts by block, from the first; blocks beyond the end get none.
    pub blocks: Vec<BlockInjection>,
    /// Extra tokens `(B or 1, K, D)`, appended after the patch tokens and their position embedding; they run through
    /// every block and the final norm.
    pub tokens: Option<Tensor>,
    /// Scalar added to the loss in training (already weighted).
    pub penalty: Option<Tensor>,
    /// For the record alone: which prompts of its pools each image takes, where a method chooses among several.
    pub selections: Vec<Selection>,
}

impl Injection {
    /// Nothing: the plain frozen network.
    pub fn none() -> Self {
        Self::default()
    }

    /// The entry of `block`, made empty if it is not there yet.
    pub fn block_mut(&mut self, block: usize) -> &mut BlockInjection {
        if self.blocks.len() <= block {
            self.blocks.resize_with(block + 1, BlockInjection::default);
        }
        &mut self.blocks[block]
    }

    /// How many extra tokens there are.
    pub(crate) fn token_count(&self) -> Result<usize> {
        Ok(self.tokens.as_ref().map(|tokens| tokens.dim(1)).transpose()?.unwrap_or(0))
    }

    /// Prompts without gradients, so that the forward pass builds no graph, and without a penalty.
    pub(crate) fn detach(self) -> Self {
        // What was one tensor stays one.
        let mut seen = HashMap::new();
        let mut cut = |tensor: &Tensor| seen.entry(tensor.id()).or_insert_with(|| tensor.detach()).clone();
        let mut of_block = |block: BlockInjection| BlockInjection {
            prefix: block.prefix.map(|kv| kv.map(&mut cut)),
            suffix: block.suffix.map(|kv| kv.map(&mut cut)),
            cls_add: block.cls_add.map(|kv| kv.map(&mut cut)),
        };
        Self {
            blocks: self.blocks.into_iter().map(&mut of_block).collect(),
            tokens: self.tokens.map(|tokens| tokens.detach()),
            penalty: None,
            selections: self.selections,
        }
    }

    /// Both at once: prompts and tokens of `self` come first, CLS additions and penalties are summed, selections
    /// stand side by side.
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

/// `a` and `b` one after the other along the token axis, both widened to `batch` images.
fn join(a: &Tensor, b: &Tensor, batch: usize) -> Result<Tensor> {
    let widen = |t: &Tensor| -> Result<Tensor> {
        let (_, tokens, width) = t.dims3()?;
        Ok(t.broadcast_as((batch, tokens, width))?)
    };
    Ok(Tensor::cat(&[widen(a)?, widen(b)?], 1)?)
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
    fn merging_keeps_order_and_widens_shared_prompts() -> Result<()> {
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
    fn parts_of_one_tensor_stay_parts_of_one() -> Result<()> {
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
    #[allow(clippy::reversed_empty_ranges, reason = "what is refused")]
    fn rows_that_are_no_keys_and_values_are_refused() -> Result<()> {
        let all = Tensor::zeros((1, 6, 3), candle_core::DType::F32, &Device::Cpu)?;
        for rows in [0..3, 4..8, 4..2] {
            assert!(Kv::rows(&all, rows.clone()).is_err(), "{rows:?}");
        }
        assert!(Kv::halves(&all.narrow(1, 0, 5)?).is_err());
        Ok(())
    }
}
