//! Tests that the conformance kit finds every violation of the contracts of learners and distillers, and accepts valid
//! plugins.

#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::{
    cell::Cell,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use cdl_core::{
    candle_core::{DType, Device, Tensor, Var},
    error::Result,
    nn::Linear,
    registry::Settings,
    rng::Rng,
    testing::{self, Noise, TestBed},
    traits::{
        Distiller, DistillerContext, Features, Head, Injection, Kv, Learner, LearnerContext, LossTerm,
        NamedVar, Output, Pass, PromptUsage, Query, Selection, StateDict, Task, require_teacher,
    },
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Fault of the distiller `faulty`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Fault {
    #[default]
    None,
    GradientLost,
    GradientScaled,
    NeverTrained,
    PredictsSilently,
    InjectsPenalty,
    TermOfTakenName,
    TermNotScalar,
    TwoTermsOfOneName,
    WeightOutOfRange,
    TapBeyondDepth,
    PromptOfWrongWidth,
    PredictionOfWrongShape,
    NotDetermined,
    StateForgotten,
    TracesOfEvaluation,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
struct FaultyConfig {
    /// Fault of the distiller.
    fault: Fault,
}

cdl_core::register!(Distiller {
    name: "faulty",
    about: "",
    citation: "",
    config: FaultyConfig,
    build: |config: FaultyConfig, context: &DistillerContext<'_>| Ok(Box::new(Faulty::new(
        config.fault,
        context
    )?) as Box<dyn Distiller>),
});

/// Distiller that minimises the distance of the student's CLS token, scaled by a trainable vector, to the first entries
/// of the teacher's.
struct Faulty {
    fault: Fault,
    scale: NamedVar,
    spare: NamedVar,
    evaluations: Cell<u64>,
    depth: usize,
}

static BUILT: AtomicU64 = AtomicU64::new(0);

impl Faulty {
    fn new(fault: Fault, context: &DistillerContext<'_>) -> Result<Self> {
        let ones = Tensor::ones(context.student.width, DType::F32, &Device::Cpu)?;
        let offset = match fault {
            Fault::NotDetermined => BUILT.fetch_add(1, Ordering::Relaxed) as f64 * 0.1,
            _ => 0.0,
        };
        Ok(Self {
            fault,
            scale: NamedVar::new("scale", &(&ones + offset)?)?,
            spare: NamedVar::new("spare", &ones)?,
            evaluations: Cell::new(0),
            depth: context.student.depth,
        })
    }
}

impl Distiller for Faulty {
    fn cross_entropy_weight(&self) -> f64 {
        if self.fault == Fault::WeightOutOfRange { 1.5 } else { 1.0 }
    }

    fn taps(&self) -> cdl_core::traits::DistillerTaps {
        let block = if self.fault == Fault::TapBeyondDepth { self.depth } else { self.depth - 1 };
        cdl_core::traits::DistillerTaps {
            teacher: cdl_core::traits::Taps::none(),
            student: cdl_core::traits::Taps::block(block),
        }
    }

    fn inject(&self, pass: Pass) -> Result<Injection> {
        let mut injection = Injection::none();
        if self.fault == Fault::PromptOfWrongWidth {
            injection.tokens = Some(Tensor::zeros((1, 1, 5), DType::F32, &Device::Cpu)?);
        }
        if self.fault == Fault::InjectsPenalty {
            injection.penalty = Some(Tensor::new(1f32, &Device::Cpu)?);
        }
        if pass == Pass::Test {
            self.evaluations.set(self.evaluations.get() + 1);
        }
        Ok(injection)
    }

    fn loss(
        &self,
        student: &Output,
        teacher: Option<&Output>,
        _labels: &Tensor,
        _task: &Task,
    ) -> Result<Vec<LossTerm>> {
        let cls = &student.features.cls;
        let goal = require_teacher(teacher)?.features.cls.narrow(1, 0, cls.dim(1)?)?;
        let scaled = cls.broadcast_mul(self.scale.tensor())?;
        let mut scaled = match self.fault {
            // Half of the dependence is detached: there is a gradient, but it is not the derivative.
            Fault::GradientLost => ((&scaled * 0.5)? + (scaled.detach() * 0.5)?)?,
            // The value of x with the gradient of 1.2 x.
            Fault::GradientScaled => ((&scaled * 1.2)? - (scaled.detach() * 0.2)?)?,
            _ => scaled,
        };
        if self.fault == Fault::TracesOfEvaluation {
            scaled = (scaled * (1.0 + self.evaluations.get() as f64))?;
        }
        let distance = (scaled - goal)?.sqr()?;
        Ok(match self.fault {
            Fault::TermOfTakenName => vec![LossTerm::new("penalty", distance.mean_all()?)],
            Fault::TermNotScalar => vec![LossTerm::new("distance", distance)],
            Fault::TwoTermsOfOneName => {
                let half = (distance.mean_all()? * 0.5)?;
                vec![LossTerm::new("distance", half.clone()), LossTerm::new("distance", half)]
            }
            _ => vec![LossTerm::new("distance", distance.mean_all()?)],
        })
    }

    fn predicts(&self) -> bool {
        self.fault != Fault::PredictsSilently
    }

    fn predict(&self, student: &Output) -> Result<Tensor> {
        let shift = self.scale.tensor().mean_all()?;
        let logits = student.logits.broadcast_add(&shift)?;
        Ok(if self.fault == Fault::PredictionOfWrongShape { logits.narrow(1, 0, 2)? } else { logits })
    }

    fn trainable(&self) -> Vec<NamedVar> {
        match self.fault {
            Fault::NeverTrained => vec![self.scale.clone(), self.spare.clone()],
            _ => vec![self.scale.clone()],
        }
    }

    fn restore(&mut self, state: &StateDict) -> Result<()> {
        match self.fault {
            Fault::StateForgotten => Ok(()),
            _ => state.load_into(&self.trainable()),
        }
    }
}

#[test]
fn every_contract_violation_of_a_distiller_is_found() {
    for (fault, words) in [
        ("gradient_lost", "is the derivative of the student loss"),
        ("gradient_scaled", "is the derivative of the student loss"),
        ("predicts_silently", "`predicts` is true for a distiller"),
        ("injects_penalty", "a distiller's penalty is a loss term"),
        ("term_of_taken_name", "names of loss terms are unique"),
        ("never_trained", "`spare` is trainable in the student's phase, but never gets a gradient"),
        ("term_not_scalar", "a loss term is a scalar, not a tensor of shape [4, 16]"),
        ("two_terms_of_one_name", "names of loss terms are unique"),
        ("weight_out_of_range", "the weight of cross-entropy is a number from 0 to 1, not 1.5"),
        ("tap_beyond_depth", "tapped blocks are less than 6, the depth of the network, not 6"),
        ("prompt_of_wrong_width", "tokens have the shape (B or 1, K, 16)"),
        ("prediction_of_wrong_shape", "the prediction of 4 images has the shape (4, 6)"),
        ("not_determined", "the same seed gives the same run"),
        ("state_forgotten", "a restored state gives the predictions of the saved one"),
        ("traces_of_evaluation", "evaluation changes nothing"),
    ] {
        let found = testing::check_distiller("faulty", &format!("fault = \"{fault}\""));
        let found = found.err().map(|e| e.to_string()).unwrap_or_default();
        assert!(found.contains("violates its contract") && found.contains(words), "{fault}: {found}");
    }
}

#[test]
fn a_valid_distiller_passes() -> Result<()> {
    testing::check_distiller("faulty", "")
}

/// Returns the warnings of a run with a fault of the distiller.
fn warnings(fault: &str) -> Result<String> {
    let settings = |text: &str| toml::from_str::<Settings>(text).expect("settings");
    let distiller = ("faulty", &settings(&format!("fault = \"{fault}\"")));
    let mut trainer = TestBed::new(1)?.trainer_of(("faulty", &settings("")), distiller)?;
    let log = Arc::new(Mutex::new(Vec::new()));
    let writer = Arc::clone(&log);
    let subscriber =
        tracing_subscriber::fmt().with_ansi(false).with_writer(move || Log(Arc::clone(&writer))).finish();
    tracing::subscriber::with_default(subscriber, || trainer.run(&Noise::new(2), &mut |_| Ok(())))?;
    let log = log.lock().expect("not poisoned").clone();
    Ok(String::from_utf8(log).expect("UTF-8"))
}

struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("not poisoned").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_run_warns_once_of_tensors_that_no_gradient_reaches() -> Result<()> {
    let found = warnings("never_trained")?;
    assert_eq!(found.matches("no gradient reached `spare` in the first epoch").count(), 1, "{found}");
    assert!(!warnings("none")?.contains("no gradient"));
    Ok(())
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
struct Undocumented {
    length: usize,
}

cdl_core::register!(Distiller {
    name: "undocumented",
    about: "",
    citation: "",
    config: Undocumented,
    build: |_c: Undocumented, context: &DistillerContext<'_>| Ok(
        Box::new(Faulty::new(Fault::None, context)?) as Box<dyn Distiller>
    ),
});

#[test]
fn settings_without_documentation_are_found() {
    let found = testing::check_distiller("undocumented", "").err().map(|e| e.to_string()).unwrap_or_default();
    assert!(found.contains("`length` has no doc comment"), "{found}");
}

/// Fault of the learner `faulty`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum LearnerFault {
    #[default]
    None,
    PenaltyAtTest,
    PenaltyNotScalar,
    KeysAndValuesDiffer,
    LogitsOfTheTaskOnly,
    HeadOfAnotherName,
    GradientMissing,
    KeysWithoutGradient,
    TouchesFrozenState,
    BlockBeyondDepth,
    TwoVectorsAdded,
    LogitsNoNumbers,
    NamesTwice,
    StateForgotten,
    TaskForgotten,
    TracesOfEvaluation,
    TrainedOutsideState,
    ChoosesBeyondPool,
    ChoosesTwice,
    ChoosesForOneTooFew,
    WeightsNoNumbers,
    WeightsInGraph,
    TwoPoolsOfOneName,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
struct FaultyLearnerConfig {
    /// Fault of the learner.
    fault: LearnerFault,
}

cdl_core::register!(Learner {
    name: "faulty",
    about: "",
    citation: "",
    config: FaultyLearnerConfig,
    build: |config: FaultyLearnerConfig, context: &LearnerContext<'_>| Ok(Box::new(FaultyLearner::new(
        config.fault,
        context
    )?) as Box<dyn Learner>),
});

struct FaultyLearner {
    fault: LearnerFault,
    prompts: NamedVar,
    /// Part of the state that is not trained.
    count: Var,
    head: Linear,
    task: usize,
    width: usize,
    classes: usize,
}

impl FaultyLearner {
    fn new(fault: LearnerFault, context: &LearnerContext<'_>) -> Result<Self> {
        let mut rng = context.rng.clone();
        let prompts = rng.uniform(&[1, 4, context.backbone.width], 0.0, 1.0, &Device::Cpu)?;
        Ok(Self {
            fault,
            prompts: NamedVar::new("prompts", &prompts)?,
            count: Var::zeros(1, DType::F32, &Device::Cpu)?,
            head: Linear::new("last", context.backbone.width, context.classes, &mut rng, &Device::Cpu)?,
            task: 0,
            width: context.backbone.width,
            classes: context.classes,
        })
    }

    /// Reports a choice of two of three prompts for every image, and weights of four other prompts. The learner injects
    /// its own prompts whatever it reports.
    fn selections(&self, query: &Query<'_>) -> Result<Vec<Selection>> {
        let images = query.get()?.dim(0)?;
        let (images, numbers) = match self.fault {
            LearnerFault::ChoosesBeyondPool => (images, [1u32, 3]),
            LearnerFault::ChoosesTwice => (images, [2, 2]),
            LearnerFault::ChoosesForOneTooFew => (images.saturating_sub(1), [0, 2]),
            _ => (images, [0, 2]),
        };
        let numbers = Tensor::new(&[numbers], &Device::Cpu)?.repeat((images, 1))?;
        let weights = self.prompts.tensor().get(0)?.mean(1)?.unsqueeze(0)?; // (1, 4)
        let weights = if self.fault == LearnerFault::WeightsNoNumbers { (weights / 0.0)? } else { weights };
        let weighted = match self.fault {
            LearnerFault::WeightsInGraph => {
                Selection { pool: "weighted".into(), usage: PromptUsage::Weighted(weights) }
            }
            LearnerFault::TwoPoolsOfOneName => Selection::weighted("chosen", &weights),
            _ => Selection::weighted("weighted", &weights),
        };
        Ok(vec![Selection::chosen("chosen", &numbers, 3), weighted])
    }
}

impl Learner for FaultyLearner {
    fn begin_task(&mut self, task: &Task, _rng: &mut Rng) -> Result<()> {
        self.task = task.index;
        Ok(())
    }

    fn inject(&self, query: &Query<'_>, pass: Pass) -> Result<Injection> {
        let mut injection = Injection { selections: self.selections(query)?, ..Injection::none() };
        let prompts = match self.fault {
            LearnerFault::GradientMissing => self.prompts.tensor().detach(),
            _ => self.prompts.tensor().clone(),
        };
        let kv = Kv::halves(&prompts)?;
        let kv = match self.fault {
            LearnerFault::KeysWithoutGradient => Kv::new(kv.k()?.detach(), kv.v()?),
            LearnerFault::KeysAndValuesDiffer => Kv::new(kv.k()?, kv.v()?.narrow(1, 0, 1)?),
            _ => kv,
        };
        match self.fault {
            LearnerFault::TwoVectorsAdded => injection.block_mut(0).cls_add = Some(kv),
            LearnerFault::BlockBeyondDepth => injection.block_mut(7).prefix = Some(kv),
            _ => injection.block_mut(0).prefix = Some(kv),
        }
        if self.fault == LearnerFault::TracesOfEvaluation && pass == Pass::Test {
            self.prompts.var.set(&(self.prompts.tensor() * 1.01)?.detach())?;
        }
        if pass == Pass::Train || self.fault == LearnerFault::PenaltyAtTest {
            let penalty = prompts.sqr()?;
            injection.penalty = Some(match self.fault {
                LearnerFault::PenaltyNotScalar => penalty,
                LearnerFault::GradientMissing => (penalty.sum_all()? * 0.0)?,
                _ => (penalty.sum_all()? * 1e-3)?,
            });
        }
        if self.fault == LearnerFault::TouchesFrozenState && pass == Pass::Train {
            self.count.set(&(self.count.as_tensor() + 1.0)?.detach())?;
        }
        Ok(injection)
    }

    fn logits(&self, features: &Features) -> Result<Tensor> {
        let logits = self.head.forward(&features.cls)?;
        Ok(match self.fault {
            LearnerFault::LogitsOfTheTaskOnly => logits.narrow(1, 0, 2)?,
            LearnerFault::LogitsNoNumbers => (logits * f64::NAN)?,
            // With this fault, a restored learner lacks the task, on which the logits depend.
            LearnerFault::TaskForgotten => (logits * (1.0 + self.task as f64))?,
            _ => logits,
        })
    }

    fn new_head(&self, name: &str, rng: &mut Rng) -> Result<Box<dyn Head>> {
        let name = if self.fault == LearnerFault::HeadOfAnotherName { "mine" } else { name };
        Ok(Box::new(Linear::new(name, self.width, self.classes, rng, &Device::Cpu)?))
    }

    fn end_task(&mut self, _task: &Task) -> Result<()> {
        Ok(())
    }

    fn trainable(&self) -> Vec<NamedVar> {
        let prompts = match self.fault {
            LearnerFault::NamesTwice => NamedVar { name: "last.weight".into(), ..self.prompts.clone() },
            _ => self.prompts.clone(),
        };
        std::iter::once(prompts).chain(self.head.trainable()).collect()
    }

    fn state(&self) -> Result<StateDict> {
        let mut state = match self.fault {
            LearnerFault::TrainedOutsideState => StateDict::of(&self.head.trainable())?,
            _ => StateDict::of(&self.trainable())?,
        };
        state.insert("count", self.count.as_tensor().detach().copy()?);
        Ok(state)
    }

    fn restore(&mut self, task: &Task, state: &StateDict) -> Result<()> {
        match self.fault {
            LearnerFault::StateForgotten => return Ok(()),
            LearnerFault::TaskForgotten => {}
            _ => self.task = task.index,
        }
        let count = NamedVar { name: "count".into(), var: self.count.clone() };
        state.load_into(&[self.trainable(), vec![count]].concat())
    }
}

#[test]
fn every_contract_violation_of_a_learner_is_found() {
    for (fault, words) in [
        ("penalty_at_test", "only training passes have a penalty"),
        ("penalty_not_scalar", "a penalty is a scalar"),
        ("keys_and_values_differ", "keys and values both have the shape (B or 1, P, 24)"),
        ("logits_of_the_task_only", "logits of 4 images has the shape (4, 6), not [4, 2]"),
        ("head_of_another_name", "as prefix, such as `second.weight`"),
        ("gradient_missing", "the gradient of `prompts` is the derivative of the teacher loss"),
        ("keys_without_gradient", "the gradient of `prompts` is the derivative of the teacher loss"),
        ("block_beyond_depth", "into at most 7 blocks, not 8"),
        ("two_vectors_added", "one vector is added to the CLS token's key"),
        ("logits_no_numbers", "logits contains only finite numbers"),
        ("names_twice", "have different names"),
        ("state_forgotten", "a restored state gives the predictions of the saved one"),
        ("task_forgotten", "a restored state gives the predictions of the saved one"),
        ("traces_of_evaluation", "evaluation changes nothing"),
        ("trained_outside_state", "`prompts` is trainable, but not part of the state"),
        ("touches_frozen_state", "`count` changes in a phase if and only if it is trainable"),
        ("chooses_beyond_pool", "indices of prompts are less than 3, not 3"),
        ("chooses_twice", "an image selects prompt 2 at most once"),
        (
            "chooses_for_one_too_few",
            "a selection has a row for each of 4 images, or one row; its shape is [3, 2]",
        ),
        ("weights_no_numbers", "the weights of 4 prompts are finite, not"),
        ("weights_in_graph", "a selection is detached from the graph"),
        ("two_pools_of_one_name", "names of pools are unique"),
    ] {
        let found = testing::check_learner("faulty", &format!("fault = \"{fault}\""));
        let found = found.err().map(|e| e.to_string()).unwrap_or_default();
        assert!(
            found.contains("`faulty` violates its contract") && found.contains(words),
            "{fault}: {found}"
        );
    }
}

#[test]
fn a_valid_learner_passes() -> Result<()> {
    testing::check_learner("faulty", "")
}
