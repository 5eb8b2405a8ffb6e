//! L2P (Wang et al., "Learning to Prompt for Continual Learning", CVPR 2022, arXiv 2112.08654).
//!
//! A pool of prompts with keys is shared by all tasks. Each image selects the prompts whose keys have the largest
//! cosine similarity with its query; a penalty pulls the selected keys towards the query. The prompts enter attention
//! as keys and values, as in the published code of continual distillation learning. Selection is per image, not per
//! batch.

use cdl_core::{kernels::l2_normalize, prelude::*};

/// Number of blocks with prompts in deep L2P. A shallower network has fewer.
const DEEP_BLOCKS: usize = 5;

/// Settings of `l2p`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct L2pConfig {
    /// Number of prompts in the pool of a block, shared by all tasks.
    pub pool: usize,
    /// Rows of a prompt. The first half are keys, the second half values.
    pub length: usize,
    /// Number of prompts that each image selects, in training and at test. At most `pool`.
    pub top_k: usize,
    /// Insert prompts in the first five blocks (fewer in a shallower network), each with its own pool. Otherwise only
    /// the first block has prompts.
    pub deep: bool,
}

impl Default for L2pConfig {
    fn default() -> Self {
        Self { pool: 30, length: 20, top_k: 5, deep: false }
    }
}

cdl_core::register!(Learner {
    name: "l2p",
    about: "L2P: each image selects the prompts of a pool whose keys are nearest to its query",
    citation: "Wang et al., CVPR 2022, arXiv:2112.08654",
    config: L2pConfig,
    build: |config, context| Ok(Box::new(L2p::new(config, context)?) as Box<dyn Learner>),
});

/// Prompt pool of one block.
struct Pool {
    /// Prompts `(M, L, D)`.
    prompts: NamedVar,
    /// Keys `(M, Dq)`.
    keys: NamedVar,
}

struct L2p {
    config: L2pConfig,
    /// Prompt pools of blocks 0, 1, ...
    pools: Vec<Pool>,
    head: Linear,
}

impl L2p {
    fn new(config: L2pConfig, context: &LearnerContext<'_>) -> Result<Self> {
        let L2pConfig { pool, length, top_k, deep } = config;
        if top_k == 0 || top_k > pool {
            let expected = format!("expected 1 to {pool}, the number of prompts in the pool");
            return Err(Error::setting("top_k", top_k, expected));
        }
        ranges::halves("length", length)?;
        let mut rng = context.rng.clone();
        let (width, device) = (context.backbone.width, context.device);
        let blocks = if deep { context.backbone.depth.min(DEEP_BLOCKS) } else { 1 };
        let mut pools = Vec::new();
        for block in 0..blocks {
            let mut rng = rng.derive(&format!("block {block}"));
            let prompts = rng.uniform(&[pool, length, width], 0.0, 1.0, device)?;
            let keys = rng.uniform(&[pool, context.query_width], 0.0, 1.0, device)?;
            let prompts = NamedVar::new(format!("prompt.e_p_{block}"), &prompts)?;
            let keys = NamedVar::new(format!("prompt.e_k_{block}"), &keys)?;
            pools.push(Pool { prompts, keys });
        }
        let head = Linear::new("last", width, context.classes, &mut rng, device)?;
        Ok(Self { config, pools, head })
    }
}

impl Learner for L2p {
    fn inject(&self, query: &Query<'_>, pass: Pass) -> Result<Injection> {
        let mut injection = Injection::none();
        let mut penalties = Vec::new();
        for (block, Pool { prompts, keys }) in self.pools.iter().enumerate() {
            let similarity = cosine(query.get()?, keys.tensor())?; // (B, M)
            let nearest = top_k_indices(&similarity, self.config.top_k)?; // (B, k)
            injection.selections.push(Selection::chosen(&keys.name, &nearest, self.config.pool));
            let chosen = gather_prompts(prompts.tensor(), &nearest)?; // (B, k, L, D)
            let half = self.config.length / 2;
            let rows = |start: usize| chosen.narrow(2, start, half)?.flatten(1, 2); // (B, k L/2, D)
            injection.block_mut(block).prefix = Some(Kv::new(rows(0)?, rows(half)?));
            if pass == Pass::Train {
                // Sum of 1 - cos over the selected keys, averaged over the batch.
                let distance = similarity.gather(&nearest, 1)?.affine(-1.0, 1.0)?;
                penalties.push(distance.sum(D::Minus1)?.mean_all()?);
            }
        }
        if !penalties.is_empty() {
            injection.penalty = Some(Tensor::stack(&penalties, 0)?.sum_all()?);
        }
        Ok(injection)
    }

    fn logits(&self, features: &Features) -> Result<Tensor> {
        self.head.forward(&features.cls)
    }

    fn new_head(&self, name: &str, rng: &mut Rng) -> Result<Box<dyn Head>> {
        Ok(Box::new(self.head.like(name, rng)?))
    }

    fn trainable(&self) -> Vec<NamedVar> {
        let of = |pool: &Pool| [pool.prompts.clone(), pool.keys.clone()];
        self.pools.iter().flat_map(of).chain(self.head.trainable()).collect()
    }
}

/// Returns `cos(q, K_m)` `(B, M)` for queries `(B, Dq)` and keys `(M, Dq)`.
pub(super) fn cosine(query: &Tensor, keys: &Tensor) -> Result<Tensor> {
    Ok(l2_normalize(query)?.matmul(&l2_normalize(keys)?.t()?)?)
}

/// Returns the columns of the `count` largest entries of each row, largest first: `(B, M)` to `(B, count)` (u32). Equal
/// entries keep their order and NaNs come last; on a GPU their order is not defined.
pub(super) fn top_k_indices(similarity: &Tensor, count: usize) -> Result<Tensor> {
    if !similarity.device().is_cpu() {
        // Sort on the device: a copy to the host would stall the GPU within the step.
        let order = similarity.detach().contiguous()?.arg_sort_last_dim(false)?;
        return Ok(order.narrow(1, 0, count)?.contiguous()?);
    }
    let mut chosen = Vec::new();
    for row in similarity.detach().to_vec2::<f32>()? {
        let mut order: Vec<u32> = (0..row.len() as u32).collect();
        let rank = |&m: &u32| Some(row[m as usize]).filter(|v| !v.is_nan()).unwrap_or(f32::NEG_INFINITY);
        order.sort_by(|a, b| rank(b).total_cmp(&rank(a)));
        chosen.extend(order.into_iter().take(count));
    }
    Ok(Tensor::from_vec(chosen, (similarity.dim(0)?, count), similarity.device())?)
}

/// Gathers prompts `(M, L, D)` by `indices` `(B, k)`: `(B, k, L, D)`.
pub(super) fn gather_prompts(prompts: &Tensor, indices: &Tensor) -> Result<Tensor> {
    let (batch, count) = indices.dims2()?;
    let (_, length, width) = prompts.dims3()?;
    Ok(prompts.index_select(&indices.flatten_all()?, 0)?.reshape((batch, count, length, width))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn top_k_is_sorted_with_ties_in_order_and_nan_last() -> Result<()> {
        let similarity = Tensor::new(&[[0.1f32, 0.9, f32::NAN, 0.5], [0.2, 0.2, -1.0, 0.2]], &Device::Cpu)?;
        assert_eq!(top_k_indices(&similarity, 3)?.to_vec2::<u32>()?, [[1, 3, 0], [0, 1, 3]]);
        Ok(())
    }

    #[test]
    fn cosine_equals_its_definition() -> Result<()> {
        let q = Tensor::new(&[[3f32, 4.0], [1.0, 0.0]], &Device::Cpu)?;
        let k = Tensor::new(&[[4f32, 3.0], [0.0, -2.0]], &Device::Cpu)?;
        let expected = [[24.0 / 25.0, -0.8], [0.8, 0.0]];
        for (ours, expected) in cosine(&q, &k)?.to_vec2::<f32>()?.iter().zip(expected) {
            ours.iter().zip(expected).for_each(|(a, b)| assert!((a - b).abs() < 1e-6, "{a} against {b}"));
        }
        Ok(())
    }
}
