//! Several distillers as one: prompts merged, taps united, terms weighted, added and named.

use candle_core::Tensor;

use crate::{
    error::{Error, Result},
    traits::{
        Distiller, DistillerTaps, Features, Injection, LossTerm, NamedVar, Output, Pass, StateDict, Task,
    },
};

/// Distillers that work together.
///
/// Each one's terms are multiplied by its weight. The labels keep what the most demanding distiller leaves them: the
/// smallest [`Distiller::cross_entropy_weight`]. Terms are logged as `distiller/term`.
pub struct DistillerStack {
    members: Vec<Member>,
}

struct Member {
    plugin: String,
    /// In logs: the plugin's, with a number from the second of the same plugin on.
    name: String,
    weight: f64,
    distiller: Box<dyn Distiller>,
    /// Extra tokens that it injects.
    tokens: usize,
}

impl DistillerStack {
    /// Puts `distillers`, each with its name and weight, together.
    ///
    /// # Errors
    /// Two that cannot go together, by name: both change the prediction, or both have a tensor of the same name in
    /// their state. A distiller that injects what it may not.
    pub fn new(distillers: Vec<(String, f64, Box<dyn Distiller>)>) -> Result<Self> {
        let mut members: Vec<Member> = Vec::new();
        for (plugin, weight, distiller) in distillers {
            let state = distiller.state()?;
            for other in &members {
                let clash = |reason: String| {
                    Err(Error::Incompatible { first: other.name.clone(), second: plugin.clone(), reason })
                };
                if other.distiller.predicts() && distiller.predicts() {
                    return clash("both change the student's prediction".into());
                }
                let theirs = other.distiller.state()?;
                if let Some((name, _)) = theirs.iter().find(|(name, _)| state.get(name).is_some()) {
                    return clash(format!("both have a tensor called `{name}`"));
                }
            }
            let [tokens, at_test] = [distiller.inject(Pass::Train)?, distiller.inject(Pass::Test)?];
            let broken = |promise: &str| {
                Err(Error::Promise { plugin: format!("`{plugin}`"), promise: promise.into() })
            };
            if tokens.penalty.is_some() || at_test.penalty.is_some() {
                return broken("a distiller's penalty is a loss term, not part of what it injects");
            }
            if tokens.token_count()? != at_test.token_count()? {
                return broken("it injects as many tokens in training as at test");
            }
            let labels = distiller.cross_entropy_weight();
            if !(0.0..=1.0).contains(&labels) {
                return broken(&format!("the weight of the labels is a number from 0 to 1, not {labels}"));
            }
            let tokens = tokens.token_count()?;
            let namesakes = members.iter().filter(|member| member.plugin == plugin).count();
            let name = if namesakes == 0 { plugin.clone() } else { format!("{plugin}#{}", namesakes + 1) };
            members.push(Member { plugin, name, weight, distiller, tokens });
        }
        Ok(Self { members })
    }

    /// Student's output as each member sees it, with its own extra tokens alone.
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

impl Distiller for DistillerStack {
    fn cross_entropy_weight(&self) -> f64 {
        self.members.iter().map(|member| member.distiller.cross_entropy_weight()).fold(1.0, f64::min)
    }

    fn needs_teacher(&self) -> bool {
        self.members.iter().any(|member| member.distiller.needs_teacher())
    }

    fn taps(&self) -> DistillerTaps {
        let mut all = DistillerTaps::default();
        for taps in self.members.iter().map(|member| member.distiller.taps()) {
            all.teacher = all.teacher.union(taps.teacher);
            all.student = all.student.union(taps.student);
        }
        all
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traits::Taps;
    use candle_core::{DType, Device};

    /// Injects `tokens` tokens filled with `mark`, and reports the mean of those that it is shown.
    struct Marked {
        mark: f64,
        tokens: usize,
        varying: bool,
        teacher: bool,
        predicts: bool,
        var: NamedVar,
    }

    impl Marked {
        fn new(mark: f64, tokens: usize) -> Result<Self> {
            let var = NamedVar::new(format!("mark {mark}"), &Tensor::zeros(1, DType::F32, &Device::Cpu)?)?;
            Ok(Self { mark, tokens, varying: false, teacher: false, predicts: false, var })
        }
    }

    impl Distiller for Marked {
        fn cross_entropy_weight(&self) -> f64 {
            self.mark / 10.0
        }
        fn needs_teacher(&self) -> bool {
            self.teacher
        }
        fn taps(&self) -> DistillerTaps {
            DistillerTaps { teacher: Taps::none(), student: Taps::block(self.mark as usize) }
        }
        fn inject(&self, pass: Pass) -> Result<Injection> {
            let count = self.tokens + usize::from(self.varying && pass == Pass::Test);
            let tokens = match count {
                0 => None,
                count => Some(Tensor::full(self.mark as f32, (1, count, 3), &Device::Cpu)?),
            };
            Ok(Injection { tokens, ..Injection::none() })
        }
        fn loss(
            &self,
            student: &Output,
            teacher: Option<&Output>,
            _: &Tensor,
            _: &Task,
        ) -> Result<Vec<LossTerm>> {
            assert_eq!(teacher.is_some(), self.teacher);
            let seen = match &student.features.tokens {
                Some(tokens) => tokens.mean_all()?,
                None => Tensor::new(0f32, &Device::Cpu)?,
            };
            assert_eq!(student.features.tokens.as_ref().map_or(0, |tokens| tokens.dims()[1]), self.tokens);
            Ok(vec![LossTerm::new("seen", seen)])
        }
        fn predicts(&self) -> bool {
            self.predicts
        }
        fn predict(&self, student: &Output) -> Result<Tensor> {
            Ok((&student.logits + self.mark)?)
        }
        fn trainable(&self) -> Vec<NamedVar> {
            vec![self.var.clone()]
        }
    }

    fn stack(distillers: Vec<(&str, f64, Marked)>) -> Result<DistillerStack> {
        let boxed =
            |(name, weight, d): (&str, f64, Marked)| (name.into(), weight, Box::new(d) as Box<dyn Distiller>);
        DistillerStack::new(distillers.into_iter().map(boxed).collect())
    }

    fn output(tokens: Option<Tensor>) -> Result<Output> {
        let logits = Tensor::zeros((1, 2), DType::F32, &Device::Cpu)?;
        let features = Features { cls: logits.clone(), tokens, blocks: Default::default(), norm: None };
        Ok(Output { features, logits })
    }

    #[test]
    fn each_sees_its_own_tokens_and_its_terms_are_weighted_and_named() -> Result<()> {
        let taught = Marked { teacher: true, ..Marked::new(5.0, 1)? };
        let stack = stack(vec![
            ("a", 1.0, Marked::new(3.0, 2)?),
            ("b", 0.5, Marked::new(4.0, 0)?),
            ("a", 2.0, taught),
        ])?;
        let tokens = stack.inject(Pass::Train)?.tokens;
        assert_eq!(tokens.as_ref().map(|t| t.dims().to_vec()), Some(vec![1, 3, 3]));
        let labels = Tensor::new(&[0u32], &Device::Cpu)?;
        let task = Task { index: 0, count: 1, classes: 0..2 };
        let terms = stack.loss(&output(tokens)?, Some(&output(None)?), &labels, &task)?;
        let terms: Vec<(String, f32)> =
            terms.into_iter().map(|term| Ok((term.name, term.value.to_scalar()?))).collect::<Result<_>>()?;
        let expected = [("a/seen", 3.0), ("b/seen", 0.0), ("a#2/seen", 10.0)];
        assert_eq!(terms, expected.map(|(name, value)| (name.to_string(), value)));
        assert_eq!(stack.cross_entropy_weight(), 0.3, "the smallest that any leaves to the labels");
        assert_eq!(stack.taps().student.blocks.into_iter().collect::<Vec<_>>(), [3, 4, 5]);
        assert_eq!(
            (stack.needs_teacher(), stack.trainable().len(), stack.state()?.iter().count()),
            (true, 3, 3)
        );
        Ok(())
    }

    #[test]
    fn one_may_predict_and_alone_it_keeps_its_names() -> Result<()> {
        let predicting = Marked { predicts: true, ..Marked::new(4.0, 1)? };
        let two = stack(vec![("a", 1.0, Marked::new(3.0, 1)?), ("b", 1.0, predicting)])?;
        let tokens = two.inject(Pass::Test)?.tokens;
        assert_eq!(two.predict(&output(tokens)?)?.to_vec2::<f32>()?, [[4.0, 4.0]]);
        let one = stack(vec![("a", 1.0, Marked::new(3.0, 0)?)])?;
        assert_eq!(one.predict(&output(None)?)?.to_vec2::<f32>()?, [[0.0, 0.0]]);
        let labels = Tensor::new(&[0u32], &Device::Cpu)?;
        let task = Task { index: 0, count: 1, classes: 0..2 };
        assert_eq!(one.loss(&output(None)?, None, &labels, &task)?[0].name, "seen");
        Ok(())
    }

    #[test]
    fn tokens_at_test_alone_are_refused() -> Result<()> {
        let varying = stack(vec![("a", 1.0, Marked { varying: true, ..Marked::new(1.0, 1)? })]);
        let said = varying.err().map(|e| e.to_string()).unwrap_or_default();
        assert!(said.contains("as many tokens in training as at test"), "{said}");
        Ok(())
    }
}
