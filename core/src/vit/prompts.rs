//! An injection's keys and values as rows of one tensor, so that prompts cost the same few operations, forward and back,
//! however many blocks have some.

use std::{collections::HashMap, mem, ops::Range};

use candle_core::{DType, Tensor, TensorId};

use crate::{
    error::Result,
    traits::{Injection, Kv, Parts},
};
use cdl_kernels::{
    Source, Sources,
    blocks::{BlockRows, Prompts},
    gather_rows,
};

/// All rows injected into the first `depth` blocks side by side, and each block's share of them, as `dtype`.
pub(super) fn prompts(injection: &Injection, depth: usize, batch: usize, dtype: DType) -> Result<Prompts> {
    let mut pieces = Pieces { batch, ..Pieces::default() };
    let mut shares = Vec::new();
    for block in injection.blocks.iter().take(depth) {
        let first = pieces.places.len();
        for kv in [&block.prefix, &block.suffix].into_iter().flatten() {
            pieces.add(kv)?;
        }
        let attended = first..pieces.places.len();
        let cls = block.cls_add.as_ref().map(|_| attended.end);
        if let Some(kv) = &block.cls_add {
            if kv.count()? != 1 {
                let many = format!("{} vectors for the CLS token's key, expected one", kv.count()?);
                return Err(candle_core::Error::Msg(many).into());
            }
            pieces.add(kv)?;
        }
        shares.push(BlockRows { attended, cls });
    }
    let tokens = injection.tokens.as_ref().map(|tokens| {
        let (_, count, width) = tokens.dims3()?;
        tokens.broadcast_as((batch, count, width))?.to_dtype(dtype)
    });
    Ok(Prompts { tokens: tokens.transpose()?, rows: pieces.rows(dtype)?, shares })
}

/// Prompts by whether images share them, and where among them the key and the value of each row are.
#[derive(Default)]
struct Pieces {
    batch: usize,
    own: Vec<Tensor>,
    shared: Vec<Tensor>,
    own_rows: usize,
    shared_rows: usize,
    places: Vec<[Source; 2]>,
    /// Tensors of which parts were taken: where they begin, and which rows are taken.
    parts: HashMap<TensorId, (Source, Vec<bool>)>,
}

impl Pieces {
    fn add(&mut self, kv: &Kv) -> Result<()> {
        let count = kv.count()?;
        let (k, v) = match &kv.0 {
            Parts::Rows { all, rows } => {
                let keys = self.take_part(all, rows)?;
                (keys, keys.plus(count))
            }
            Parts::Separate { k, v } if k.dim(1)? != v.dim(1)? => {
                let unequal = format!("keys of shape {:?} with values of shape {:?}", k.dims(), v.dims());
                return Err(candle_core::Error::Msg(unequal).into());
            }
            Parts::Separate { k, v } => (self.take(k)?, self.take(v)?),
        };
        self.places.extend((0..count).map(|row| [k.plus(row), v.plus(row)]));
        Ok(())
    }

    /// Where the first of these rows of `all` is then. Blocks that take different rows of one tensor share it; a row has one
    /// place that its gradient comes from.
    fn take_part(&mut self, all: &Tensor, rows: &Range<usize>) -> Result<Source> {
        let free = |(_, taken): &(Source, Vec<bool>)| !taken[rows.clone()].contains(&true);
        let (first, mut taken) = match self.parts.remove(&all.id()).filter(free) {
            Some(part) => part,
            None => (self.take(all)?, vec![false; all.dim(1)?]),
        };
        taken[rows.clone()].fill(true);
        self.parts.insert(all.id(), (first, taken));
        Ok(first.plus(rows.start))
    }

    /// Where the first row of `prompts` `(B or 1, P, D)` is then.
    fn take(&mut self, prompts: &Tensor) -> Result<Source> {
        let (images, rows, _) = prompts.dims3()?;
        let shared = images != self.batch;
        let (pieces, count) = match shared {
            true => (&mut self.shared, &mut self.shared_rows),
            false => (&mut self.own, &mut self.own_rows),
        };
        pieces.push(prompts.clone());
        let row = mem::replace(count, *count + rows);
        Ok(Source { shared, row })
    }

    /// `(B, R, 2D)`; nothing without rows.
    fn rows(&self, dtype: DType) -> Result<Option<Tensor>> {
        if self.places.is_empty() {
            return Ok(None);
        }
        let one = |pieces: &[Tensor]| (!pieces.is_empty()).then(|| Tensor::cat(pieces, 1)).transpose();
        let (own, shared) = (one(&self.own)?, one(&self.shared)?);
        let sources = Sources { own: own.as_ref(), shared: shared.as_ref() };
        Ok(Some(gather_rows(sources, &self.places, self.batch, dtype)?))
    }
}
