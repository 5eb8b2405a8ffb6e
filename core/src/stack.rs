//! Several distillers as one: prompts merged, taps united, terms weighted, added and named.

use candle_core::Tensor;

use crate::{
    Distiller, DistillerTaps, Error, Features, Injection, LossTerm, NamedVar, Output, Pass, Result,
    StateDict, Task,
};

/// Distillers that work together.
///
/// Each one's terms are multiplied by its weight. The labels keep what the most demanding distiller leaves them: the
/// smallest [`Distiller::cross_entropy_weight`]. Terms are logged as `distiller/term`.
pub struct Stack {
    members: Vec<Member>,
}

struct Member {
    name: String,
    weight: f64,
    distiller: Box<dyn Distiller>,
    /// Extra tokens that it injects.
    tokens: usize,
}

impl Stack {
    /// Puts `distillers`, each with its name and weight, together.
    ///
    /// # Errors
    /// Two that cannot go together, by name: both change the prediction, or both train a tensor of the same name.
    pub fn new(distillers: Vec<(String, f64, Box<dyn Distiller>)>) -> Result<Self> {
        let mut members: Vec<Member> = Vec::new();
        for (name, weight, distiller) in distillers {
            let clash = |other: &Member, reason: String| Error::Incompatible {
                first: other.name.clone(),
                second: name.clone(),
                reason,
            };
            for other in &members {
                if other.distiller.predicts() && distiller.predicts() {
                    return Err(clash(other, "both change the student's prediction".into()));
                }
                let theirs = other.distiller.trainable();
                for var in distiller.trainable() {
                    if theirs.iter().any(|their| their.name == var.name) {
                        return Err(clash(other, format!("both train a tensor called `{}`", var.name)));
                    }
                }
            }
            let tokens = distiller.inject(Pass::Test)?.token_count()?;
            members.push(Member { name, weight, distiller, tokens });
        }
        Ok(Self { members })
    }

    /// What each member is to see of the student: its own extra tokens alone.
    fn views<'a>(&'a self, student: &'a Output) -> impl Iterator<Item = Result<(&'a Member, Output)>> {
        let mut start = 0;
        self.members.iter().map(move |member| {
            let tokens = match (&student.features.tokens, member.tokens) {
                (Some(tokens), count @ 1..) => Some(tokens.narrow(1, start, count)?),
                _ => None,
            };
            start += member.tokens;
            let features = Features { tokens, ..student.features.clone() };
            Ok((member, Output { features, logits: student.logits.clone() }))
        })
    }
}

impl Distiller for Stack {
    fn cross_entropy_weight(&self) -> f64 {
        self.members.iter().map(|member| member.distiller.cross_entropy_weight()).fold(1.0, f64::min)
    }

    fn needs_teacher(&self) -> bool {
        self.members.iter().any(|member| member.distiller.needs_teacher())
    }

    fn taps(&self) -> DistillerTaps {
        self.members.iter().map(|member| member.distiller.taps()).fold(
            DistillerTaps::default(),
            |all, taps| DistillerTaps {
                teacher: all.teacher.union(taps.teacher),
                student: all.student.union(taps.student),
            },
        )
    }

    fn inject(&self, pass: Pass) -> Result<Injection> {
        self.members
            .iter()
            .try_fold(Injection::none(), |all, member| all.merge(member.distiller.inject(pass)?))
    }

    fn loss(
        &self,
        student: &Output,
        teacher: Option<&Output>,
        labels: &Tensor,
        task: &Task,
    ) -> Result<Vec<LossTerm>> {
        let mut terms = Vec::new();
        for view in self.views(student) {
            let (member, student) = view?;
            let teacher = teacher.filter(|_| member.distiller.needs_teacher());
            for term in member.distiller.loss(&student, teacher, labels, task)? {
                let name = match self.members.len() {
                    1 => term.name,
                    _ => format!("{}/{}", member.name, term.name),
                };
                terms.push(LossTerm::new(name, (term.value * member.weight)?));
            }
        }
        Ok(terms)
    }

    fn predicts(&self) -> bool {
        self.members.iter().any(|member| member.distiller.predicts())
    }

    fn predict(&self, student: &Output) -> Result<Tensor> {
        for view in self.views(student) {
            let (member, student) = view?;
            if member.distiller.predicts() {
                return member.distiller.predict(&student);
            }
        }
        Ok(student.logits.clone())
    }

    fn trainable(&self) -> Vec<NamedVar> {
        self.members.iter().flat_map(|member| member.distiller.trainable()).collect()
    }

    fn state(&self) -> Result<StateDict> {
        let mut all = StateDict::default();
        for member in &self.members {
            all.extend(member.distiller.state()?);
        }
        Ok(all)
    }

    fn restore(&mut self, state: &StateDict) -> Result<()> {
        self.members.iter_mut().try_for_each(|member| member.distiller.restore(state))
    }
}
