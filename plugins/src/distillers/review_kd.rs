//! ReviewKD (Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021, arXiv 2104.09044).
//!
//! Adds one review level per pair of blocks to the soft targets. A level fuses the features of the student's block with
//! those of the deeper level and predicts the teacher's block:
//! `α T² KL + w · mean over levels of MSE(level, teacher block)`.

use cdl_core::prelude::*;

use super::kd::KdConfig;

/// Settings of `review_kd`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ReviewKdConfig {
    /// Weight of the soft targets. Cross-entropy is weighted by `1 - alpha`.
    pub alpha: f64,
    /// Softmax temperature. Higher values give softer targets.
    pub temperature: f64,
    /// Weight of the review term. Blocks are compared in pairs, counted from the last block of each network, as many
    /// pairs as the shallower network has blocks. If the two networks have different patch grids, the teacher's patch
    /// tokens are resampled to the student's grid and register tokens are left out.
    pub review_weight: f64,
}

impl Default for ReviewKdConfig {
    fn default() -> Self {
        Self { alpha: 0.5, temperature: 2.0, review_weight: 0.2 }
    }
}

cdl_core::register!(Distiller {
    name: "review_kd",
    about: "ReviewKD: soft targets, and regression of the teacher's blocks from fused blocks of the student",
    citation: "Chen et al., CVPR 2021, arXiv:2104.09044",
    config: ReviewKdConfig,
    build: |config, context| Ok(Box::new(ReviewKd::new(config, context)?) as Box<dyn Distiller>),
});

/// Review level: fuses a block of the student with the features of the deeper level (ABF, attention-based fusion).
struct Level {
    /// Index of the teacher's block that the level predicts.
    teacher_block: usize,
    /// Index of the student's block that the level reads.
    student_block: usize,
    /// Linear layer from `Ds` to `Ds`.
    proj1: Linear,
    norm1: LayerNorm,
    /// Fusion with the deeper level; `None` for the deepest level.
    fusion: Option<Fusion>,
    /// Linear layer from the student's width `Ds` to the teacher's width `Dt`.
    proj2: Linear,
}

/// Layers that fuse a block with the features of the deeper level.
struct Fusion {
    /// Linear layer from `Ds` to `Ds`.
    projz: Linear,
    normz: LayerNorm,
    norm2: LayerNorm,
}

impl Level {
    /// Creates the level `index`, counted from the deepest.
    fn new(index: usize, context: &DistillerContext<'_>) -> Result<Self> {
        let (student, teacher, device) = (context.student, context.teacher, context.device);
        let name = |part: &str| format!("ReviewKD_layers.abfs.{index}.{part}");
        let linear = |part: &str, outputs: usize| {
            Linear::new(&name(part), student.width, outputs, &mut context.rng.derive(&name(part)), device)
        };
        let norm = |part: &str| LayerNorm::new(&name(part), student.width, 1e-5, device);
        let fusion = match index {
            0 => None,
            _ => {
                let (projz, normz) = (linear("projz", student.width)?, norm("normz")?);
                Some(Fusion { projz, normz, norm2: norm("norm2")? })
            }
        };
        Ok(Self {
            teacher_block: teacher.depth - 1 - index,
            student_block: student.depth - 1 - index,
            proj1: linear("proj1", student.width)?,
            norm1: norm("norm1")?,
            fusion,
            proj2: linear("proj2", teacher.width)?,
        })
    }

    /// Returns the prediction of the teacher's block, `(B, N, Dt)`, and the features for the next level, `(B, N, Ds)`,
    /// from a block output `f` `(B, N, Ds)` and the features `y` `(B, N, Ds)` of the deeper level.
    fn forward(&self, f: &Tensor, y: Option<&Tensor>) -> Result<(Tensor, Tensor)> {
        let mut x = self.norm1.forward(&self.proj1.forward(f)?)?;
        if let (Some(Fusion { projz, normz, norm2 }), Some(y)) = (&self.fusion, y) {
            let z = |map: &Tensor| normz.forward(&projz.forward(map)?);
            x = norm2.forward(&((&x * z(&x)?)? + (y * z(y)?)?)?)?;
        }
        Ok((self.proj2.forward(&x)?, x))
    }

    fn trainable(&self) -> Vec<NamedVar> {
        let mut vars = [self.proj1.trainable(), self.norm1.trainable(), self.proj2.trainable()].concat();
        if let Some(Fusion { projz, normz, norm2 }) = &self.fusion {
            vars.extend([projz.trainable(), normz.trainable(), norm2.trainable()].concat());
        }
        vars
    }
}

struct ReviewKd {
    kd: KdConfig,
    review_weight: f64,
    /// Review levels, deepest first.
    levels: Vec<Level>,
    alignment: TokenAlignment,
}

impl ReviewKd {
    fn new(config: ReviewKdConfig, context: &DistillerContext<'_>) -> Result<Self> {
        let ReviewKdConfig { alpha, temperature, review_weight } = config;
        let kd = KdConfig { alpha, temperature };
        kd.validate()?;
        ranges::non_negative("review_weight", review_weight)?;
        let levels = 0..context.student.depth.min(context.teacher.depth);
        let levels = levels.map(|index| Level::new(index, context)).collect::<Result<_>>()?;
        let alignment = TokenAlignment::new(context.student, context.teacher, context.device)?;
        Ok(Self { kd, review_weight, levels, alignment })
    }
}

impl Distiller for ReviewKd {
    fn cross_entropy_weight(&self) -> f64 {
        1.0 - self.kd.alpha
    }

    fn taps(&self) -> DistillerTaps {
        let (teacher, student) = self.levels.iter().map(|l| (l.teacher_block, l.student_block)).unzip();
        let [teacher, student] = [teacher, student].map(|blocks| Taps { blocks, norm: false });
        DistillerTaps { teacher, student }
    }

    fn loss(
        &self,
        student: &Output,
        teacher: Option<&Output>,
        _labels: &Tensor,
        task: &Task,
    ) -> Result<Vec<LossTerm>> {
        let teacher = require_teacher(teacher)?;
        let mut passed: Option<Tensor> = None;
        let mut differences = Vec::new();
        for level in &self.levels {
            let f = student.features.block(level.student_block)?; // (B, Ns, Ds)
            let goal = teacher.features.block(level.teacher_block)?; // (B, Nt, Dt)
            let (f, goal) = self.alignment.apply(f, goal)?; // both (B, N, .)
            let (out, x) = level.forward(&f, passed.as_ref())?;
            differences.push((out - goal)?.sqr()?.mean_all()?);
            passed = Some(x);
        }
        let review = (Tensor::stack(&differences, 0)?.mean_all()? * self.review_weight)?;
        Ok(vec![self.kd.term(&student.logits, &teacher.logits, task)?, LossTerm::new("review", review)])
    }

    fn trainable(&self) -> Vec<NamedVar> {
        self.levels.iter().flat_map(Level::trainable).collect()
    }
}
