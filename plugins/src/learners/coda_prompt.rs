//! CODA-Prompt (Smith et al., "CODA-Prompt: COntinual Decomposed Attention-based Prompting for Rehearsal-Free
//! Continual Learning", CVPR 2023, arXiv 2211.13218).
//!
//! Builds every prompt as a weighted sum of components. A component has a key `K_m` and an attention vector `A_m`; its
//! weight for an image with query `q` is `cos(q ∘ A_m, K_m)`. Each task adds components that are initialised
//! orthogonal to the earlier ones, and trains only these.

use std::ops::Range;

use cdl_core::{kernels::l2_normalize, prelude::*};

/// Number of blocks with prompts, counted from the first, as published. A shallower network has fewer.
const BLOCKS: usize = 5;

/// Settings of `coda_prompt`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct CodaPromptConfig {
    /// Number of components of all tasks together, at least the number of tasks. Task t = 0, 1, ... of T trains
    /// components floor(t pool/T) to floor((t+1) pool/T) - 1.
    pub pool: usize,
    /// Rows of a prompt. The first half are keys, the second half values.
    pub length: usize,
    /// Weight of the orthogonality penalty on components, keys and attention vectors (`mu` in the published options).
    pub ortho_penalty: f64,
}

impl Default for CodaPromptConfig {
    fn default() -> Self {
        Self { pool: 100, length: 8, ortho_penalty: 0.0 }
    }
}

cdl_core::register!(Learner {
    name: "coda_prompt",
    about: "CODA-Prompt: prompts as attention-weighted sums of components; each task adds components",
    citation: "Smith et al., CVPR 2023, arXiv:2211.13218",
    config: CodaPromptConfig,
    build: |config, context| Ok(Box::new(CodaPrompt::new(config, context)?) as Box<dyn Learner>),
});

/// Components of one block.
struct Block {
    /// Prompts `P` `(M, L, D)`.
    prompts: NamedVar,
    /// Keys `K` `(M, Dq)`.
    keys: NamedVar,
    /// Attention vectors `A` `(M, Dq)`.
    attention: NamedVar,
}

struct CodaPrompt {
    config: CodaPromptConfig,
    blocks: Vec<Block>,
    head: Linear,
    tasks: usize,
    /// Components of the current task.
    current: Range<usize>,
}

impl CodaPrompt {
    fn new(config: CodaPromptConfig, context: &LearnerContext<'_>) -> Result<Self> {
        if config.pool < context.tasks {
            let expected = format!("expected at least one component for each of the {} tasks", context.tasks);
            return Err(Error::setting("pool", config.pool, expected));
        }
        ranges::halves("length", config.length)?;
        ranges::non_negative("ortho_penalty", config.ortho_penalty)?;
        let mut rng = context.rng.clone();
        let (width, query, device) = (context.backbone.width, context.query_width, context.device);
        let zeros = |name: String, shape: &[usize]| NamedVar::zeros(name, shape, device);
        let mut blocks = Vec::new();
        for block in 0..context.backbone.depth.min(BLOCKS) {
            blocks.push(Block {
                prompts: zeros(format!("prompt.e_p_{block}"), &[config.pool, config.length, width])?,
                keys: zeros(format!("prompt.e_k_{block}"), &[config.pool, query])?,
                attention: zeros(format!("prompt.e_a_{block}"), &[config.pool, query])?,
            });
        }
        let head = Linear::new("last", width, context.classes, &mut rng, device)?;
        Ok(Self { config, blocks, head, tasks: context.tasks, current: 0..0 })
    }

    fn components(&self, task: usize) -> Range<usize> {
        let at = |task: usize| task * self.config.pool / self.tasks;
        at(task)..at(task + 1)
    }

    /// Returns the `f` rows of all tasks so far, `(f, ...)`. Rows of earlier tasks are detached from the graph.
    fn used(&self, var: &NamedVar) -> Result<Tensor> {
        let Range { start, end } = self.current;
        let current = var.tensor().narrow(0, start, end - start)?;
        if start == 0 {
            return Ok(current);
        }
        Ok(Tensor::cat(&[var.tensor().narrow(0, 0, start)?.detach(), current], 0)?)
    }

    /// Returns the used rows of all `N` blocks, block after block: `(N f, ...)`. One operation then serves all blocks.
    fn all_used(&self, of: impl Fn(&Block) -> &NamedVar) -> Result<Tensor> {
        let of_blocks = self.blocks.iter().map(|block| self.used(of(block)));
        Ok(Tensor::cat(&of_blocks.collect::<Result<Vec<_>>>()?, 0)?)
    }
}

impl Learner for CodaPrompt {
    fn begin_task(&mut self, task: &Task, rng: &mut Rng) -> Result<()> {
        self.current = self.components(task.index);
        for block in &self.blocks {
            for var in [&block.prompts, &block.keys, &block.attention] {
                grow_orthogonally(var, self.current.clone(), rng)?;
            }
        }
        Ok(())
    }

    fn inject(&self, query: &Query<'_>, pass: Pass) -> Result<Injection> {
        let mut injection = Injection::none();
        let (n, f) = (self.blocks.len(), self.current.end);
        let p = self.all_used(|block| &block.prompts)?; // (N f, L, D)
        let k = self.all_used(|block| &block.keys)?; // (N f, Dq)
        let a = self.all_used(|block| &block.attention)?; // (N f, Dq)
        let (_, length, width) = p.dims3()?;
        let p = p.reshape((n, f, length * width))?;
        let w = component_weights(query.get()?, &k, &a)?; // (B, N f)
        let w = w.reshape(((), n, f))?.transpose(0, 1)?.contiguous()?; // (N, B, f)
        let prompts = w.matmul(&p)?.transpose(0, 1)?.reshape(((), n * length, width))?; // (B, N L, D)
        let mut penalties = Vec::new();
        for (index, block) in self.blocks.iter().enumerate() {
            injection.selections.push(Selection::weighted(&block.keys.name, &w.get(index)?));
            let rows = index * length..(index + 1) * length;
            injection.block_mut(index).prefix = Some(Kv::rows(&prompts, rows)?);
            if pass == Pass::Train && self.config.ortho_penalty > 0.0 {
                let of_block = |t: &Tensor| t.narrow(0, index * f, f);
                for x in [of_block(&k)?, of_block(&a)?, p.get(index)?] {
                    penalties.push(non_orthogonality(&x)?);
                }
            }
        }
        if !penalties.is_empty() {
            injection.penalty = Some((Tensor::stack(&penalties, 0)?.sum_all()? * self.config.ortho_penalty)?);
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
        let of = |block: &Block| [block.prompts.clone(), block.keys.clone(), block.attention.clone()];
        self.blocks.iter().flat_map(of).chain(self.head.trainable()).collect()
    }

    fn restore(&mut self, task: &Task, state: &StateDict) -> Result<()> {
        self.current = self.components(task.index);
        state.load_into(&self.trainable())
    }
}

/// Returns `w_m = cos(q ∘ A_m, K_m)` `(B, f)` for queries `(B, Dq)`, keys and attention vectors `(f, Dq)`.
///
/// `(q ∘ A_m)·K̂_m = q·(A_m ∘ K̂_m)` and `‖q ∘ A_m‖² = q²·A_m²`: two matrix products replace a `(B, f, Dq)` tensor.
fn component_weights(query: &Tensor, keys: &Tensor, attention: &Tensor) -> Result<Tensor> {
    let directions = (attention * l2_normalize(keys)?)?;
    let dots = query.matmul(&directions.t()?)?;
    let norms = query.sqr()?.matmul(&attention.sqr()?.t()?)?.sqrt()?.maximum(1e-12)?;
    Ok((dots / norms)?)
}

/// Returns `mean((X Xᵀ - I)²)` of rows `(f, n)`, computed in float64: new rows are orthonormal, so in float32 the
/// difference and its gradient would be mostly rounding error.
fn non_orthogonality(x: &Tensor) -> Result<Tensor> {
    let exact = x.to_dtype(DType::F64)?;
    let eye = Tensor::eye(x.dim(0)?, DType::F64, x.device())?;
    Ok((exact.matmul(&exact.t()?)? - eye)?.sqr()?.mean_all()?.to_dtype(x.dtype())?)
}

/// Initialises `rows` of a variable, flattened to vectors. Each row is drawn from a normal distribution, orthogonalised
/// against all rows before it by classical Gram-Schmidt (all projections are of the drawn vector), and scaled to length
/// 1. Earlier rows keep their values; later rows become zero.
///
/// With more rows than dimensions, orthogonalisation leaves only rounding errors. The drawn vector, scaled to length 1,
/// is then used instead.
fn grow_orthogonally(var: &NamedVar, rows: Range<usize>, rng: &mut Rng) -> Result<()> {
    let shape = var.tensor().dims().to_vec();
    let n: usize = shape[1..].iter().product();
    let values = var.tensor().flatten_all()?.to_vec1::<f32>()?;
    let mut basis: Vec<Vec<f64>> =
        values.chunks(n).take(rows.start).map(|row| row.iter().map(|&v| v as f64).collect()).collect();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    for _ in rows {
        let drawn: Vec<f64> = (0..n).map(|_| rng.standard_normal()).collect();
        let mut free = drawn.clone();
        for earlier in &basis {
            let part = dot(&drawn, earlier) / dot(earlier, earlier).max(f64::MIN_POSITIVE);
            free.iter_mut().zip(earlier).for_each(|(v, u)| *v -= part * u);
        }
        let length = |v: &[f64]| dot(v, v).sqrt();
        let chosen = if length(&free) > 1e-6 * length(&drawn) { free } else { drawn };
        let length = length(&chosen);
        basis.push(chosen.into_iter().map(|v| v / length).collect());
    }
    let mut values: Vec<f32> = basis.into_iter().flatten().map(|v| v as f32).collect();
    values.resize(shape.iter().product(), 0.0);
    var.var.set(&Tensor::from_vec(values, shape, var.tensor().device())?)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gram(var: &NamedVar, rows: usize) -> Result<Vec<Vec<f32>>> {
        let x = var.tensor().flatten_from(1)?.narrow(0, 0, rows)?;
        Ok(x.matmul(&x.t()?)?.to_vec2()?)
    }

    #[test]
    fn new_rows_are_orthonormal_and_earlier_rows_keep_their_values() -> Result<()> {
        let var = NamedVar::zeros("p", &[6, 2, 8], &Device::Cpu)?;
        let mut rng = Rng::new(1);
        grow_orthogonally(&var, 0..2, &mut rng)?;
        let before = var.tensor().narrow(0, 0, 2)?.flatten_all()?.to_vec1::<f32>()?;
        assert!(var.tensor().narrow(0, 2, 4)?.flatten_all()?.to_vec1::<f32>()?.iter().all(|v| *v == 0.0));
        grow_orthogonally(&var, 2..5, &mut rng)?;
        assert_eq!(var.tensor().narrow(0, 0, 2)?.flatten_all()?.to_vec1::<f32>()?, before);
        for (i, row) in gram(&var, 5)?.iter().enumerate() {
            for (j, v) in row.iter().enumerate() {
                assert!((v - f32::from(u8::from(i == j))).abs() < 1e-5, "row {i} · row {j} = {v}");
            }
        }
        Ok(())
    }

    #[test]
    fn more_rows_than_dimensions_still_have_length_one() -> Result<()> {
        let var = NamedVar::zeros("k", &[5, 3], &Device::Cpu)?;
        grow_orthogonally(&var, 0..5, &mut Rng::new(2))?;
        for (i, row) in gram(&var, 5)?.iter().enumerate() {
            assert!((row[i] - 1.0).abs() < 1e-5, "row {i} has length² {}", row[i]);
        }
        Ok(())
    }

    #[test]
    fn weights_are_cosines() -> Result<()> {
        let mut rng = Rng::new(3);
        let mut draw = |shape: &[usize]| rng.normal(shape, 1.0, &Device::Cpu);
        let (q, k, a) = (draw(&[2, 5])?, draw(&[3, 5])?, draw(&[3, 5])?);
        let ours = component_weights(&q, &k, &a)?.to_vec2::<f32>()?;
        let (q, k, a) = (q.to_vec2::<f32>()?, k.to_vec2::<f32>()?, a.to_vec2::<f32>()?);
        for b in 0..2 {
            for m in 0..3 {
                let v: Vec<f32> = (0..5).map(|i| q[b][i] * a[m][i]).collect();
                let dot: f32 = (0..5).map(|i| v[i] * k[m][i]).sum();
                let length = |v: &[f32]| v.iter().map(|x| x * x).sum::<f32>().sqrt();
                assert!((ours[b][m] - dot / (length(&v) * length(&k[m]))).abs() < 1e-5);
            }
        }
        Ok(())
    }
}
