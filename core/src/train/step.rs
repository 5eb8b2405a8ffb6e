//! One training step: the losses of a batch, and the update that follows from them.

use candle_core::{DType, Tensor};

use crate::{
    error::{Error, Result},
    nn::cross_entropy,
    registry,
    train::{Optimizer, Passed, Trainer},
    traits::{Batch, Distiller, LossTerm, Pass, Role, Task},
};

/// The loss of one batch with what it is made of.
#[derive(Debug)]
pub struct BatchLoss {
    /// The scalar to minimise.
    pub total: Tensor,
    /// Its summands, weighted.
    pub terms: Vec<LossTerm>,
    /// The learner's logits over all classes, `(B, C)`.
    pub logits: Tensor,
    /// Teacher's logits that the student learned from, if any.
    pub teacher_logits: Option<Tensor>,
}

impl Trainer {
    /// The loss of one batch in the phase of `role`, over `task.classes`: cross-entropy and the learner's penalty; of the
    /// student also the distiller's terms, with the weight that the distiller leaves to cross-entropy.
    pub fn loss(&self, role: Role, task: &Task, batch: &Batch) -> Result<BatchLoss> {
        let (pixels, queries) = (&batch.pixels, self.queries(&batch.pixels));
        let distiller = self.distiller_of(role);
        let taps = distiller.map(Distiller::taps).unwrap_or_default();
        let needed = distiller.is_some_and(Distiller::needs_teacher);
        let teach = || self.teacher.pass(None, pixels, queries.of(Role::Teacher), Pass::Teach, &taps.teacher);
        let teacher = needed.then(teach).transpose()?.map(|passed| passed.output);
        let network = self.network(role);
        let Passed { output, penalty, .. } =
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

    /// Moves what `optimizer` holds down the gradient of `loss`.
    pub fn update(loss: &BatchLoss, optimizer: &mut Optimizer) -> Result<()> {
        let gradients =
            tracing::debug_span!("backward").in_scope(|| registry::backward(|| loss.total.backward()))?;
        tracing::debug_span!("optimizer").in_scope(|| optimizer.step(&gradients))
    }
}

impl BatchLoss {
    fn sum(terms: Vec<LossTerm>, logits: Tensor, teacher_logits: Option<Tensor>) -> Result<Self> {
        for (index, LossTerm { name, value }) in terms.iter().enumerate() {
            let broken =
                |promise: String| Err(Error::Promise { plugin: format!("loss term {name}"), promise });
            if value.rank() != 0 {
                return broken(format!("a loss term is a scalar, not {:?}", value.dims()));
            }
            // `loss` is what the sum is called.
            if name == "loss" || terms[..index].iter().any(|other| other.name == *name) {
                return broken("the name of a loss term is its own".into());
            }
        }
        let mut total = terms[0].value.clone();
        for term in &terms[1..] {
            total = (total + &term.value)?;
        }
        Ok(Self { total, terms, logits: logits.detach(), teacher_logits })
    }

    /// The terms and their sum, called `loss`, as numbers.
    pub fn values(&self) -> Result<Vec<(String, f64)>> {
        let names = self.terms.iter().map(|term| term.name.clone()).chain(["loss".into()]);
        let values: Vec<Tensor> =
            self.terms.iter().map(|term| &term.value).chain([&self.total]).map(Tensor::detach).collect();
        // At once: every answer of a GPU is a wait.
        let numbers = Tensor::stack(&values, 0)?.to_dtype(DType::F64)?.to_vec1()?;
        Ok(names.zip(numbers).collect())
    }
}
