//! Decoupled knowledge distillation (Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, arXiv 2203.08679).
//!
//! Splits the divergence of teacher and student into two terms with separate weights: target class against all other
//! classes (TCKD, two probabilities), and the distribution among the other classes (NCKD).

use cdl_core::{kernels::log_softmax, prelude::*};

/// Settings of `dkd`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DkdConfig {
    /// Weight of the distillation term. Cross-entropy is weighted by `1 - alpha`.
    pub alpha: f64,
    /// Weight of the target class term (TCKD).
    pub tckd_weight: f64,
    /// Weight of the non-target class term (NCKD).
    pub nckd_weight: f64,
    /// Softmax temperature. The published code uses 4 for this method, independently of its temperature option.
    pub temperature: f64,
}

impl Default for DkdConfig {
    fn default() -> Self {
        Self { alpha: 0.5, tckd_weight: 1.0, nckd_weight: 4.0, temperature: 4.0 }
    }
}

cdl_core::register!(Distiller {
    name: "dkd",
    about: "Decoupled knowledge distillation: separate terms for the target class and the other classes",
    citation: "Zhao et al., CVPR 2022, arXiv:2203.08679",
    config: DkdConfig,
    build: |config: DkdConfig, _context: &DistillerContext<'_>| {
        ranges::fraction("alpha", config.alpha)?;
        ranges::positive("temperature", config.temperature)?;
        ranges::non_negative("tckd_weight", config.tckd_weight)?;
        ranges::non_negative("nckd_weight", config.nckd_weight)?;
        Ok(Box::new(config) as Box<dyn Distiller>)
    },
});

/// Amount subtracted from the target class's logit so that its probability among the other classes is zero.
const MASK: f64 = 1000.0;

impl Distiller for DkdConfig {
    fn cross_entropy_weight(&self) -> f64 {
        1.0 - self.alpha
    }

    fn loss(
        &self,
        student: &Output,
        teacher: Option<&Output>,
        labels: &Tensor,
        task: &Task,
    ) -> Result<Vec<LossTerm>> {
        let DkdConfig { alpha, tckd_weight, nckd_weight, temperature } = *self;
        let (start, count) = (task.classes.start, task.classes.len());
        let target = (labels.to_dtype(DType::I64)? - start as f64)?.unsqueeze(1)?; // (B, 1)
        let student = Parts::new(&student.logits.narrow(1, start, count)?, &target, temperature)?;
        let teacher =
            Parts::new(&require_teacher(teacher)?.logits.narrow(1, start, count)?, &target, temperature)?;
        let scale = alpha * temperature * temperature;
        let tckd = (divergence(&teacher.pair, &student.pair)? * (scale * tckd_weight))?;
        let nckd = (divergence(&teacher.others, &student.others)? * (scale * nckd_weight))?;
        Ok(vec![LossTerm::new("dkd", (tckd + nckd)?)])
    }
}

/// Prediction split into two distributions, as log-probabilities.
struct Parts {
    /// Target class against the rest, `(log p_y, log(1 - p_y))`: `(B, 2)`.
    pair: Tensor,
    /// Distribution among the classes other than `y`: `(B, C)`.
    others: Tensor,
}

impl Parts {
    /// Splits the prediction of logits `(B, C)` for target classes `(B, 1)`.
    fn new(logits: &Tensor, target: &Tensor, temperature: f64) -> Result<Self> {
        let z = (logits / temperature)?;
        let classes = Tensor::arange(0, z.dim(1)? as i64, z.device())?.unsqueeze(0)?;
        let right = classes.broadcast_eq(target)?.to_dtype(z.dtype())?; // one-hot (B, C)
        let without = (&z - (right * MASK)?)?;
        let total = z.log_sum_exp(D::Minus1)?.unsqueeze(1)?; // (B, 1)
        let own = (z.gather(target, 1)? - &total)?;
        let rest = (without.log_sum_exp(D::Minus1)?.unsqueeze(1)? - total)?;
        Ok(Self { pair: Tensor::cat(&[own, rest], 1)?, others: log_softmax(&without)? })
    }
}

/// Returns `KL(p ‖ q)` of log-probabilities `(B, n)`, averaged over the batch.
fn divergence(log_p: &Tensor, log_q: &Tensor) -> Result<Tensor> {
    let each = (log_p.exp()? * (log_p - log_q)?)?;
    Ok((each.sum_all()? / log_p.dim(0)? as f64)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares with both divergences computed from probabilities by their definition.
    #[test]
    fn the_loss_equals_the_definition() -> Result<()> {
        let (s, t, y) = ([0.5f64, -1.0, 2.0], [1.5f64, 0.3, -0.7], 2usize);
        let softmax = |z: &[f64]| -> Vec<f64> {
            let e: Vec<f64> = z.iter().map(|z| (z / 4.0).exp()).collect();
            e.iter().map(|v| v / e.iter().sum::<f64>()).collect()
        };
        let kl = |p: &[f64], q: &[f64]| p.iter().zip(q).map(|(p, q)| p * (p / q).ln()).sum::<f64>();
        let (p, q) = (softmax(&t), softmax(&s));
        let tckd = kl(&[p[y], 1.0 - p[y]], &[q[y], 1.0 - q[y]]);
        let nckd = kl(&softmax(&t[..2]), &softmax(&s[..2]));
        let expected = 0.3 * 16.0 * (1.0 * tckd + 4.0 * nckd);

        let config = DkdConfig { alpha: 0.3, ..Default::default() };
        let output = |z: &[f64; 3]| -> Result<Output> {
            // Class 0 belongs to an earlier task and must be ignored.
            let logits = Tensor::new(&[[9.0, z[0], z[1], z[2]]], &Device::Cpu)?;
            let cls = logits.clone();
            let features = Features { cls, tokens: None, blocks: Default::default(), norm: None };
            Ok(Output { features, logits })
        };
        let labels = Tensor::new(&[1 + y as u32], &Device::Cpu)?;
        let task = Task { index: 1, count: 2, classes: 1..4 };
        let terms = config.loss(&output(&s)?, Some(&output(&t)?), &labels, &task)?;
        let found = terms[0].value.to_scalar::<f64>()?;
        assert!((found - expected).abs() < 1e-12, "{found} against {expected}");
        Ok(())
    }

    #[test]
    fn the_loss_of_a_task_with_one_class_is_zero() -> Result<()> {
        let parts = |z: f64| {
            Parts::new(&Tensor::new(&[[z]], &Device::Cpu)?, &Tensor::new(&[[0i64]], &Device::Cpu)?, 4.0)
        };
        let (a, b) = (parts(3.0)?, parts(-2.0)?);
        assert_eq!(divergence(&a.pair, &b.pair)?.to_scalar::<f64>()?, 0.0);
        assert_eq!(divergence(&a.others, &b.others)?.to_scalar::<f64>()?, 0.0);
        Ok(())
    }
}
