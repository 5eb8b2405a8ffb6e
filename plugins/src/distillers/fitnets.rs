//! FitNets (Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, arXiv 1412.6550).
//!
//! Adds a feature term to the soft targets: a learned linear layer regresses the teacher's last block from the
//! student's, over all tokens before the final norm: `α T² KL + w · MSE(Linear(f_student), f_teacher)`.

use cdl_core::prelude::*;

use super::kd::KdConfig;

/// Settings of `fitnets`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct FitNetsConfig {
    /// Weight of the soft targets. Cross-entropy is weighted by `1 - alpha`.
    pub alpha: f64,
    /// Softmax temperature. Higher values give softer targets.
    pub temperature: f64,
    /// Weight of the mean squared error between the last blocks. If the two networks have different patch grids, the
    /// teacher's patch tokens are resampled to the student's grid and register tokens are left out.
    pub feature_weight: f64,
}

impl Default for FitNetsConfig {
    fn default() -> Self {
        Self { alpha: 0.5, temperature: 2.0, feature_weight: 0.1 }
    }
}

cdl_core::register!(Distiller {
    name: "fitnets",
    about: "FitNets: soft targets, and regression of the teacher's last block from the student's",
    citation: "Romero et al., ICLR 2015, arXiv:1412.6550",
    config: FitNetsConfig,
    build: |config, context| Ok(Box::new(FitNets::new(config, context)?) as Box<dyn Distiller>),
});

struct FitNets {
    kd: KdConfig,
    feature_weight: f64,
    /// Linear layer from the student's width `Ds` to the teacher's width `Dt`.
    projection: Linear,
    alignment: TokenAlignment,
    /// Index of the teacher's last block.
    teacher_block: usize,
    /// Index of the student's last block.
    student_block: usize,
}

impl FitNets {
    fn new(config: FitNetsConfig, context: &DistillerContext<'_>) -> Result<Self> {
        let FitNetsConfig { alpha, temperature, feature_weight } = config;
        let kd = KdConfig { alpha, temperature };
        kd.validate()?;
        ranges::non_negative("feature_weight", feature_weight)?;
        let (student, teacher, device) = (context.student, context.teacher, context.device);
        let mut rng = context.rng.clone();
        Ok(Self {
            kd,
            feature_weight,
            projection: Linear::new("project_t_s.proj", student.width, teacher.width, &mut rng, device)?,
            alignment: TokenAlignment::new(student, teacher, device)?,
            teacher_block: teacher.depth - 1,
            student_block: student.depth - 1,
        })
    }
}

impl Distiller for FitNets {
    fn cross_entropy_weight(&self) -> f64 {
        1.0 - self.kd.alpha
    }

    fn taps(&self) -> DistillerTaps {
        DistillerTaps { teacher: Taps::block(self.teacher_block), student: Taps::block(self.student_block) }
    }

    fn loss(
        &self,
        student: &Output,
        teacher: Option<&Output>,
        _labels: &Tensor,
        task: &Task,
    ) -> Result<Vec<LossTerm>> {
        let teacher = require_teacher(teacher)?;
        let f_teacher = teacher.features.block(self.teacher_block)?; // (B, Nt, Dt)
        let f_student = student.features.block(self.student_block)?; // (B, Ns, Ds)
        let (f_student, f_teacher) = self.alignment.apply(f_student, f_teacher)?; // both (B, N, .)
        let difference = (self.projection.forward(&f_student)? - f_teacher)?.sqr()?.mean_all()?;
        Ok(vec![
            self.kd.term(&student.logits, &teacher.logits, task)?,
            LossTerm::new("feature", (difference * self.feature_weight)?),
        ])
    }

    fn trainable(&self) -> Vec<NamedVar> {
        self.projection.trainable()
    }
}
