//! One training step: the losses of a batch, and the parameter update.

use candle_core::{DType, Tensor};

use crate::{
    error::{Error, Result},
    nn::cross_entropy,
    registry,
    train::{Optimizer, PassOutput, Trainer},
    traits::{Batch, Distiller, LossTerm, Pass, Role, Task},
};

/// Loss of one batch, with its terms.
#[derive(Debug)]
pub struct BatchLoss {
    /// Scalar to minimise, the sum of the terms.
    pub total: Tensor,
    /// Terms, multiplied by their weights.
    pub terms: Vec<LossTerm>,
    /// Logits of the learner over all classes, `(B, C)`.
    pub logits: Tensor,
    /// Logits of the teacher `(B, C)`, if the distiller needs them.
    pub teacher_logits: Option<Tensor>,
}

impl Trainer {
    /// Computes the loss of one batch in the phase of `role`, over `task.classes`: cross-entropy and the penalty of the
    /// learner. For the student, the terms of the distiller are added, and the distiller sets the weight of
    /// cross-entropy.
    ///
    /// # Errors
    /// Errors of the methods and of tensor operations; a loss term that is not a scalar; two terms of one name.
    pub fn loss(&self, role: Role, task: &Task, batch: &Batch) -> Result<BatchLoss> {
        let (pixels, queries) = (&batch.pixels, self.queries(&batch.pixels));
        let distiller = self.distiller_of(role);
        let taps = distiller.map(Distiller::taps).unwrap_or_default();
        let needs_teacher = distiller.is_some_and(Distiller::needs_teacher);
        let teach = || self.teacher.pass(None, pixels, queries.of(Role::Teacher), Pass::Teach, &taps.teacher);
        let teacher = needs_teacher.then(teach).transpose()?.map(|pass| pass.output);
        let network = self.network(role);
        let PassOutput { output, penalty, .. } =
            network.pass(distiller, pixels, queries.of(role), Pass::Train, &taps.student)?;
        let mut ce = cross_entropy(&output.logits, &batch.labels, &task.classes)?;
        if let Some(distiller) = distiller {
            ce = (ce * distiller.cross_entropy_weight())?;
        }
        let mut terms = vec![LossTerm::new("ce", ce)];
        if let Some(distiller) = distiller {
            terms.extend(distiller.loss(&output, teacher.as_ref(), &batch.labels, task)?);
        }
        terms.extend(penalty.map(|penalty| LossTerm::new("penalty", penalty)));
        BatchLoss::sum(terms, output.logits, teacher.map(|teacher| teacher.logits))
    }

    /// Computes the gradients of `loss` and takes a step of `optimizer`.
    pub fn update(loss: &BatchLoss, optimizer: &mut Optimizer) -> Result<()> {
        let gradients =
            tracing::debug_span!("backward").in_scope(|| registry::backward(|| loss.total.backward()))?;
        tracing::debug_span!("optimizer").in_scope(|| optimizer.step(&gradients))
    }
}

impl BatchLoss {
    fn sum(terms: Vec<LossTerm>, logits: Tensor, teacher_logits: Option<Tensor>) -> Result<Self> {
        for (index, LossTerm { name, value }) in terms.iter().enumerate() {
            let broken = |promise: String| {
                Err(Error::ContractViolation { plugin: format!("loss term {name}"), promise })
            };
            if value.rank() != 0 {
                return broken(format!("a loss term is a scalar, not a tensor of shape {:?}", value.dims()));
            }
            // `loss` is the name of the sum.
            if name == "loss" || terms[..index].iter().any(|other| other.name == *name) {
                return broken("names of loss terms are unique, and `loss` is reserved for their sum".into());
            }
        }
        let mut total = terms[0].value.clone();
        for term in &terms[1..] {
            total = (total + &term.value)?;
        }
        Ok(Self { total, terms, logits: logits.detach(), teacher_logits })
    }

    /// Returns the values of the terms and of their sum, `loss`.
    pub fn values(&self) -> Result<Vec<(String, f64)>> {
        let names = self.terms.iter().map(|term| term.name.clone()).chain(["loss".into()]);
        let values: Vec<Tensor> =
            self.terms.iter().map(|term| &term.value).chain([&self.total]).map(Tensor::detach).collect();
        // One transfer for all values: the host waits for the GPU in each transfer.
        let numbers = Tensor::stack(&values, 0)?.to_dtype(DType::F64)?.to_vec1()?;
        Ok(names.zip(numbers).collect())
    }
}
