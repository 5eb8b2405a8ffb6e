//! Prompts that the images of a batch take from a pool, as a learner reports them.

use candle_core::Tensor;

/// Prompts that the images of a batch take from one pool. It is recorded and changes nothing.
#[derive(Debug, Clone)]
pub struct Selection {
    /// Name of the pool, for instance that of its keys in the saved models; no two pools of a pass have one name.
    pub pool: String,
    /// Chosen prompts, or the weight of each.
    pub usage: PromptUsage,
}

/// How images share out the prompts of a pool. Where the first dimension is 1, all images take the same.
#[derive(Debug, Clone)]
pub enum PromptUsage {
    /// Each image takes some prompts and leaves the others.
    Chosen {
        /// Numbers of the prompts, `(B or 1, k)` (u32), no two alike in a row.
        numbers: Tensor,
        /// Prompts in the pool.
        of: usize,
    },
    /// Each image takes every prompt by a weight, `(B or 1, M)`, without gradient.
    Weighted(Tensor),
}

impl Selection {
    /// Each image takes the prompts `numbers` `(B or 1, k)` (u32) out of a pool of so many.
    pub fn chosen(pool: impl Into<String>, numbers: &Tensor, of: usize) -> Self {
        Self { pool: pool.into(), usage: PromptUsage::Chosen { numbers: numbers.detach(), of } }
    }

    /// Each image takes the prompts of the pool by `weights` `(B or 1, M)`.
    pub fn weighted(pool: impl Into<String>, weights: &Tensor) -> Self {
        Self { pool: pool.into(), usage: PromptUsage::Weighted(weights.detach()) }
    }
}
