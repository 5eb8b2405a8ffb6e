//! Combination of several distillers: merged prompts, united taps, weighted and named loss terms.

use candle_core::Tensor;

use crate::{
    error::{Error, Result},
    traits::{
        Distiller, DistillerTaps, Features, Injection, LossTerm, NamedVar, Output, Pass, StateDict, Task,
    },
};

/// Distillers of a run, combined into one.
///
/// The terms of each distiller are multiplied by its weight. The weight of cross-entropy is the smallest
/// [`Distiller::cross_entropy_weight`]. If there are several distillers, terms are named `distiller/term`.
pub struct DistillerStack {
    members: Vec<Member>,
}

struct Member {
    plugin: String,
    /// Name in logs: the plugin's name, with `#2`, `#3`, ... appended for further distillers of the same plugin.
    name: String,
    weight: f64,
    distiller: Box<dyn Distiller>,
    /// Number of tokens that the distiller injects.
    tokens: usize,
}

impl DistillerStack {
    /// Combines `distillers`, each with its name and weight.
    ///
    /// # Errors
    /// Two distillers that cannot be combined: both replace the prediction, or both have a tensor of the same name in
    /// their state. A distiller whose injection or weight of cross-entropy is not valid.
    pub fn new(distillers: Vec<(String, f64, Box<dyn Distiller>)>) -> Result<Self> {
        let mut members: Vec<Member> = Vec::new();
        for (plugin, weight, distiller) in distillers {
            let state = distiller.state()?;
            for other in &members {
                let clash = |reason: String| {
                    Err(Error::Incompatible { first: other.name.clone(), second: plugin.clone(), reason })
                };
                if other.distiller.predicts() && distiller.predicts() {
                    return clash("both replace the student's prediction".into());
                }
                let other_state = other.distiller.state()?;
                if let Some((name, _)) = other_state.iter().find(|(name, _)| state.get(name).is_some()) {
                    return clash(format!("both have a tensor `{name}`"));
                }
            }
            let [in_training, at_test] = [distiller.inject(Pass::Train)?, distiller.inject(Pass::Test)?];
            let broken = |promise: &str| {
                Err(Error::ContractViolation { plugin: format!("`{plugin}`"), promise: promise.into() })
            };
            if in_training.penalty.is_some() || at_test.penalty.is_some() {
                return broken("a distiller's penalty is a loss term, not part of its injection");
            }
            if in_training.token_count()? != at_test.token_count()? {
                return broken("a distiller injects the same number of tokens in training and at test");
            }
            let ce_weight = distiller.cross_entropy_weight();
            if !(0.0..=1.0).contains(&ce_weight) {
                return broken(&format!(
                    "the weight of cross-entropy is a number from 0 to 1, not {ce_weight}"
                ));
            }
            let tokens = in_training.token_count()?;
            let same_plugin = members.iter().filter(|member| member.plugin == plugin).count();
            let name =
                if same_plugin == 0 { plugin.clone() } else { format!("{plugin}#{}", same_plugin + 1) };
            members.push(Member { plugin, name, weight, distiller, tokens });
        }
        Ok(Self { members })
    }

    /// Returns the student's output for each member, with only the tokens that the member injected.
    fn outputs<'a>(&'a self, student: &'a Output) -> impl Iterator<Item = Result<(&'a Member, Output)>> {
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
        for output in self.outputs(student) {
            let (member, student) = output?;
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
        for output in self.outputs(student) {
            let (member, student) = output?;
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

    /// Distiller that injects `tokens` tokens filled with `mark`, and returns the mean of the tokens that it receives.
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
    fn each_distiller_receives_its_own_tokens_and_its_terms_are_weighted_and_named() -> Result<()> {
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
        assert_eq!(stack.cross_entropy_weight(), 0.3, "the smallest weight of cross-entropy");
        assert_eq!(stack.taps().student.blocks.into_iter().collect::<Vec<_>>(), [3, 4, 5]);
        assert_eq!(
            (stack.needs_teacher(), stack.trainable().len(), stack.state()?.iter().count()),
            (true, 3, 3)
        );
        Ok(())
    }

    #[test]
    fn one_of_two_distillers_may_predict_and_a_single_distiller_keeps_its_term_names() -> Result<()> {
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
    fn tokens_injected_only_at_test_are_refused() -> Result<()> {
        let varying = stack(vec![("a", 1.0, Marked { varying: true, ..Marked::new(1.0, 1)? })]);
        let message = varying.err().map(|e| e.to_string()).unwrap_or_default();
        assert!(message.contains("the same number of tokens in training and at test"), "{message}");
        Ok(())
    }
}
