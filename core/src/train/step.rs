//! One training step: the losses of a batch, and the update that follows from them.

use candle_core::{DType, Tensor};

use crate::{
    error::{Error, Result},
    nn::cross_entropy,
    registry,
    train::{Optimizer, Passed, Trainer},
    traits::{Batch, LossTerm, Pass, Role, Taps, Task},
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
    /// The loss of one batch in the phase of `role`, over `task.classes`.
    pub fn loss(&self, role: Role, task: &Task, batch: &Batch) -> Result<BatchLoss> {
        match role {
            Role::Teacher => self.teacher_loss(task, batch),
            Role::Student => self.student_loss(task, batch),
        }
    }

    /// Cross-entropy among the task's classes and the learner's penalty.
    fn teacher_loss(&self, task: &Task, batch: &Batch) -> Result<BatchLoss> {
        let query = self.query(Role::Teacher, &batch.pixels);
        let _span = tracing::debug_span!("teacher forward").entered();
        let injection = self.teacher.learner.inject(&query, Pass::Train)?;
        let features = self.teacher.backbone.forward(&batch.pixels, &injection, &Taps::none())?;
        let logits = self.teacher.learner.logits(&features)?;
        let mut terms = vec![LossTerm::new("ce", cross_entropy(&logits, &batch.labels, &task.classes)?)];
        terms.extend(injection.penalty.map(|penalty| LossTerm::new("penalty", penalty)));
        BatchLoss::sum(terms, logits, None)
    }

    /// Weighted cross-entropy, the distiller's terms and the learner's penalty.
    fn student_loss(&self, task: &Task, batch: &Batch) -> Result<BatchLoss> {
        let queries = self.queries(&batch.pixels);
        let taps = self.distiller.taps();
        let teacher = match self.distiller.needs_teacher() {
            true => {
                let query = queries.of(Role::Teacher);
                Some(self.teacher.as_teacher(&batch.pixels, query, Pass::Teach, &taps.teacher)?.output)
            }
            false => None,
        };
        let Passed { output: student, penalty, .. } = self.student.as_student(
            self.distiller.as_ref(),
            &batch.pixels,
            queries.of(Role::Student),
            Pass::Train,
            &taps.student,
        )?;
        let ce = cross_entropy(&student.logits, &batch.labels, &task.classes)?;
        let mut terms = vec![LossTerm::new("ce", (ce * self.distiller.cross_entropy_weight())?)];
        terms.extend(self.distiller.loss(&student, teacher.as_ref(), &batch.labels, task)?);
        terms.extend(penalty.map(|penalty| LossTerm::new("penalty", penalty)));
        BatchLoss::sum(terms, student.logits, teacher.map(|teacher| teacher.logits))
    }

    /// Moves what `optimizer` holds down the gradient of `loss`.
    ///
    /// # Errors
    /// Operations that have no gradient.
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
