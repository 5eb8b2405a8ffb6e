//! Prompts that the images of a batch select from a pool, as reported by a learner.

use candle_core::Tensor;

/// Prompts that the images of a batch select from one pool, for the run record. The forward pass ignores them.
#[derive(Debug, Clone)]
pub struct Selection {
    /// Name of the pool, unique within a pass, for instance the name of its keys in saved models.
    pub pool: String,
    /// Selected prompts, or the weight of each prompt.
    pub usage: PromptUsage,
}

/// Usage of the prompts of a pool by images. If the first dimension is 1, the usage is the same for all images.
#[derive(Debug, Clone)]
pub enum PromptUsage {
    /// Each image selects some of the prompts.
    Chosen {
        /// Indices of the prompts, `(B or 1, k)` (u32), distinct within a row.
        numbers: Tensor,
        /// Number of prompts in the pool.
        of: usize,
    },
    /// Each image uses all prompts, with weights `(B or 1, M)`, without gradient.
    Weighted(Tensor),
}

impl Selection {
    /// Reports that each image selects the prompts with the indices `numbers` `(B or 1, k)` (u32) from a pool of `of`
    /// prompts.
    pub fn chosen(pool: impl Into<String>, numbers: &Tensor, of: usize) -> Self {
        Self { pool: pool.into(), usage: PromptUsage::Chosen { numbers: numbers.detach(), of } }
    }

    /// Reports that each image uses the prompts of the pool with `weights` `(B or 1, M)`.
    pub fn weighted(pool: impl Into<String>, weights: &Tensor) -> Self {
        Self { pool: pool.into(), usage: PromptUsage::Weighted(weights.detach()) }
    }
}
