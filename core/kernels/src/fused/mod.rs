//! Runs of frozen blocks on the CPU, in float32.
//!
//! candle runs operations one at a time and allocates a tensor and a gradient for each. In this module a run of blocks
//! is one operation. Activations stay in panels of a few tokens, which every product reads without conversion. Memory
//! is reused from step to step. The backward pass computes only the gradients of injected prompts and tokens and, if
//! needed, of the input:
//!
//! - in the last block, queries, projection and MLP are computed only for the tokens that are read;
//! - blocks before the first trainable value keep nothing and have no backward pass;
//! - the first block with a backward pass computes gradients of trainable tokens and prompts, not of constant tokens.
//!
//! Every value is computed in one fixed order, so results do not depend on the number of threads.

mod block;
mod block_run;
mod call;
mod count;
mod packed_linear;
mod panel;
mod panel_attention;
mod panel_embedding;
mod tile;

use std::{ops::Range, sync::Arc};

use candle_core::{DType, Device, Result, Tensor};

pub use block_run::Input;
pub use count::{Rates, multiply_adds, rates};
pub use tile::SimdLevel;

use crate::{
    blocks::{BlockRunner, Prompts, Reads, Settings},
    layers::{Block, Stem},
};
use block_run::Network;
use packed_linear::PackedLinear;
use panel::Pool;
use tile::STRIP;

/// Returns whether a network of these widths can be computed in panels: the width of a head and the hidden width of the
/// MLP must be multiples of eight.
pub fn suits(width: usize, hidden: usize, heads: usize) -> bool {
    let whole = |x: usize| x.is_multiple_of(STRIP);
    heads > 0 && width.is_multiple_of(heads) && whole(width / heads) && whole(hidden)
}

/// Frozen blocks of a network, computed in panels.
pub struct FusedBlocks(Arc<Network>);

impl FusedBlocks {
    /// Packs the layers for the instruction set `level`, block by block, so that only one block is in memory twice.
    /// [`suits`] must be true for the widths.
    ///
    /// # Errors
    /// An error in `blocks`, weights that are not float32 on the CPU, or a level that this CPU does not support.
    pub fn new<E: From<candle_core::Error>>(
        stem: &Stem,
        blocks: impl IntoIterator<Item = std::result::Result<Block, E>>,
        settings: Settings,
        level: SimdLevel,
    ) -> std::result::Result<Self, E> {
        if !SimdLevel::available().contains(&level) {
            let message = format!("this CPU does not support the instruction set {}", level.as_str());
            return Err(candle_core::Error::Msg(message).into());
        }
        let values = |tensor: &Tensor| tensor.flatten_all()?.to_vec1();
        let arrange = |block: std::result::Result<Block, E>| Ok(block?.map(PackedLinear::new, values)?);
        let stem = stem.map(PackedLinear::new, values)?;
        let blocks = blocks.into_iter().map(arrange).collect::<std::result::Result<_, E>>()?;
        let (width, pool) = (stem.patch.outputs, Pool::shared());
        Ok(Self(Arc::new(Network { stem, blocks, width, settings, level, pool })))
    }
}

impl BlockRunner for FusedBlocks {
    type Tokens = Input;

    fn dtype(&self) -> DType {
        DType::F32
    }

    fn embed(&self, pixels: &Tensor, prompts: &Prompts) -> Result<Input> {
        self.0.embed(pixels, prompts.tokens.as_ref()).map(Input::Images)
    }

    fn run(&self, blocks: Range<usize>, x: Input, prompts: &Prompts, reads: Reads) -> Result<Tensor> {
        self.0.run(blocks, x, prompts, reads)
    }

    fn layers(&self) -> Result<(Stem, Vec<Block>)> {
        let vector = |values: &Vec<f32>| Tensor::new(values.as_slice(), &Device::Cpu);
        let embedding = |values: &Vec<f32>| vector(values)?.reshape((1, (), self.0.width));
        let stem = self.0.stem.map(PackedLinear::unpack, embedding)?;
        let blocks = self.0.blocks.iter().map(|block| block.map(PackedLinear::unpack, vector));
        Ok((stem, blocks.collect::<Result<_>>()?))
    }
}
