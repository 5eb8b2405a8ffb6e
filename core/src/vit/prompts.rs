//! Conversion of an injection's keys and values to rows of one tensor. The number of operations, forward and backward,
//! is then independent of the number of blocks with prompts.

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

/// Collects the rows injected into the first `depth` blocks in one tensor of `dtype`, with the rows that belong to each
/// block.
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
                let many =
                    format!("`cls_add` has {} vectors for the CLS token's key; expected one", kv.count()?);
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

/// Prompt tensors with rows for each image (`own`) or for all images (`shared`), and for each injected row the sources
/// of its key and its value in these tensors.
#[derive(Default)]
struct Pieces {
    batch: usize,
    own: Vec<Tensor>,
    shared: Vec<Tensor>,
    own_rows: usize,
    shared_rows: usize,
    places: Vec<[Source; 2]>,
    /// Tensors from which only some rows are used: the source of the first row, and for each row whether it is used.
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
                let unequal = format!("keys {:?} and values {:?} differ in shape", k.dims(), v.dims());
                return Err(candle_core::Error::Msg(unequal).into());
            }
            Parts::Separate { k, v } => (self.take(k)?, self.take(v)?),
        };
        self.places.extend((0..count).map(|row| [k.plus(row), v.plus(row)]));
        Ok(())
    }

    /// Adds `rows` of `all` and returns the source of the first row. Blocks that use different rows of one tensor share
    /// the tensor. A row that is used twice needs a second copy, because each source row receives one gradient.
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

    /// Adds `prompts` `(B or 1, P, D)` and returns the source of the first row.
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

    /// Returns the gathered rows `(B, R, 2D)`, or `None` if there are none.
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
