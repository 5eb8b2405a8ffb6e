//! Decoupled knowledge distillation: Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, arXiv 2203.08679.
//!
//! The divergence of teacher and student is split in two, weighted apart: how sure the teacher is of the right class
//! (TCKD, a pair of probabilities), and what it thinks of all the others (NCKD).

use cdl_core::{kernels::log_softmax, prelude::*};

/// Settings of `dkd`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DkdConfig {
    /// Weight of the teacher's word; the labels have the rest, `1 - alpha`.
    pub alpha: f64,
    /// Weight of the part about the right class.
    pub tckd_weight: f64,
    /// Weight of the part about the other classes.
    pub nckd_weight: f64,
    /// Both logits are divided by it before the softmax. As published it is 4, whatever the temperature of other
    /// methods.
    pub temperature: f64,
}

impl Default for DkdConfig {
    fn default() -> Self {
        Self { alpha: 0.5, tckd_weight: 1.0, nckd_weight: 4.0, temperature: 4.0 }
    }
}

cdl_core::register!(Distiller {
    name: "dkd",
    about: "Decoupled distillation: the right class and the others apart",
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

/// The right class's logit is lowered by this among the others: its probability there is zero.
const OUT: f64 = 1000.0;

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

/// A prediction in two parts, as log-probabilities.
struct Parts {
    /// `(log p_y, log(1 - p_y))`, `(B, 2)`.
    pair: Tensor,
    /// Among the classes other than `y`, `(B, C)`.
    others: Tensor,
}

impl Parts {
    /// Of logits `(B, C)` and the right class `(B, 1)`.
    fn new(logits: &Tensor, target: &Tensor, temperature: f64) -> Result<Self> {
        let z = (logits / temperature)?;
        let classes = Tensor::arange(0, z.dim(1)? as i64, z.device())?.unsqueeze(0)?;
        let right = classes.broadcast_eq(target)?.to_dtype(z.dtype())?; // one-hot (B, C)
        let without = (&z - (right * OUT)?)?;
        let total = z.log_sum_exp(D::Minus1)?.unsqueeze(1)?; // (B, 1)
        let own = (z.gather(target, 1)? - &total)?;
        let rest = (without.log_sum_exp(D::Minus1)?.unsqueeze(1)? - total)?;
        Ok(Self { pair: Tensor::cat(&[own, rest], 1)?, others: log_softmax(&without)? })
    }
}

/// `KL(p ‖ q)` of log-probabilities `(B, n)`, mean over the batch.
fn divergence(log_p: &Tensor, log_q: &Tensor) -> Result<Tensor> {
    let each = (log_p.exp()? * (log_p - log_q)?)?;
    Ok((each.sum_all()? / log_p.dim(0)? as f64)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both divergences from probabilities, worked out plainly.
    #[test]
    fn the_two_parts_are_those_of_the_definition() -> Result<()> {
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
            // Classes of another task stand before those that count.
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
    fn a_task_of_one_class_has_nothing_to_tell() -> Result<()> {
        let parts = |z: f64| {
            Parts::new(&Tensor::new(&[[z]], &Device::Cpu)?, &Tensor::new(&[[0i64]], &Device::Cpu)?, 4.0)
        };
        let (a, b) = (parts(3.0)?, parts(-2.0)?);
        assert_eq!(divergence(&a.pair, &b.pair)?.to_scalar::<f64>()?, 0.0);
        assert_eq!(divergence(&a.others, &b.others)?.to_scalar::<f64>()?, 0.0);
        Ok(())
    }
}
