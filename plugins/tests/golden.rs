//! Tests against recorded runs of the published code: every loss, the first gradients, parameters and logits of
//! complete two-phase runs in float64 are reproduced.
//!
//! Runs all cases in `CDL_GOLDEN_DIR` (by default `shared/golden` beside the repository) and the committed cases. A
//! case whose methods are not registered is reported as `unknown` and does not fail.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use cdl_core::{
    candle_core::{Device, IndexOp, Tensor, safetensors},
    error::Result,
    registry::{self, Kind, Settings},
    rng::Rng,
    train::{Network, Optimizer, OptimizerConfig, ScheduleConfig, TrainSettings, Trainer},
    traits::{
        Backbone, Batch, Distiller, DistillerContext, Injection, Learner, LearnerContext, Mode,
        Normalization, QuerySource, Role, StateDict, Taps, Task,
    },
    vit::VitWeights,
};
use common::networks::{self, difference};
use serde::Deserialize;

/// Largest accepted relative errors: ten times the measured float32 rounding errors.
struct Tolerance {
    loss: f64,
    grad: f64,
    param: f64,
    logits: f64,
}

const TOLERANCE: Tolerance = Tolerance { loss: 5e-5, grad: 5e-4, param: 1e-3, logits: 5e-5 };
/// Tolerance on a GPU, which computes sums in another order.
const TOLERANCE_ON_GPU: Tolerance = Tolerance { loss: 1e-3, grad: 1e-3, param: 1e-3, logits: 1e-3 };
/// The orthogonality penalty amplifies rounding in the parameters.
const PARAM_WITH_PENALTY: f64 = 5e-2;

fn tolerance() -> Tolerance {
    if networks::device().is_cpu() { TOLERANCE } else { TOLERANCE_ON_GPU }
}

#[derive(Deserialize)]
struct Case {
    lr: f64,
    momentum: f64,
    weight_decay: f64,
    optimizer: String,
    #[serde(rename = "Soft_T")]
    temperature: f64,
    kd_alpha: f64,
    #[serde(default)]
    ema_coeff: f64,
    learner_name: String,
    #[serde(rename = "KD_method")]
    kd_method: String,
    kd_prompt_param: Vec<f64>,
    prompt_param: Vec<f64>,
    num_tasks: usize,
    classes_per_task: usize,
    epochs: usize,
    eval_images: [usize; 2],
    teacher: Sizes,
    student: Sizes,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
struct Sizes {
    embed_dim: usize,
    depth: usize,
    num_heads: usize,
}

#[derive(Deserialize)]
struct Step {
    task: usize,
    phase: Role,
    epoch: usize,
    step: usize,
    lr: f64,
    images: Vec<u32>,
    labels: Vec<u32>,
    loss: f64,
    soft_loss: Option<f64>,
    feature_loss: Option<f64>,
}

/// Published names and registered names of methods. A case must pass if both of its methods are registered.
const LEARNERS: [(&str, &str); 4] =
    [("CODAPrompt", "coda_prompt"), ("DualPrompt", "dual_prompt"), ("L2P", "l2p"), ("APT", "apt")];
const DISTILLERS: [(&str, &str); 5] = [
    ("KD", "kd"),
    ("KD_Token", "kd_prompts"),
    ("DKD", "dkd"),
    ("FitNets", "fitnets"),
    ("ReviewKD", "review_kd"),
];

/// Returns whether the published name corresponds to a registered method.
fn is_registered(kind: Kind, names: &[(&str, &str)], published: &str) -> bool {
    let ours = names.iter().find(|(name, _)| *name == published);
    ours.is_some_and(|(_, name)| registry::find(kind, name).is_ok())
}

/// Returns the registered name and the settings of a published learner.
fn learner_of(case: &Case) -> Option<(&'static str, Settings)> {
    let p = &case.prompt_param;
    let whole = |index: usize| toml::Value::Integer(p[index] as i64);
    match case.learner_name.as_str() {
        "CODAPrompt" => Some((
            "coda_prompt",
            table([("pool", whole(0)), ("length", whole(1)), ("ortho_penalty", toml::Value::Float(p[2]))]),
        )),
        "L2P" => {
            let deep = ("deep", toml::Value::Boolean(p[2] > 0.0));
            Some(("l2p", table([("pool", whole(0)), ("length", whole(1)), deep])))
        }
        "DualPrompt" => {
            Some(("dual_prompt", table([("pool", whole(0)), ("e_length", whole(1)), ("g_length", whole(2))])))
        }
        "APT" => Some(("apt", table([("ema", toml::Value::Float(case.ema_coeff))]))),
        _ => None,
    }
}

/// Returns the registered name and the settings of a published distiller.
fn distiller_of(case: &Case) -> Option<(&'static str, Settings)> {
    let alpha = || ("alpha", toml::Value::Float(case.kd_alpha));
    let temperature = || ("temperature", toml::Value::Float(case.temperature));
    let whole = |index: usize| toml::Value::Integer(case.kd_prompt_param[index] as i64);
    match case.kd_method.as_str() {
        "KD" => Some(("kd", table([alpha(), temperature()]))),
        "KD_Token" => {
            Some(("kd_prompts", table([alpha(), temperature(), ("layers", whole(0)), ("length", whole(1))])))
        }
        // DKD has its own temperature.
        "DKD" => Some(("dkd", table([alpha()]))),
        "FitNets" => Some(("fitnets", table([alpha(), temperature()]))),
        "ReviewKD" => Some(("review_kd", table([alpha(), temperature()]))),
        _ => None,
    }
}

/// Loss terms recorded as `soft_loss`; a distiller's other terms are its `feature_loss`.
const SOFT_TERMS: [&str; 2] = ["kd", "dkd"];

fn table<const N: usize>(entries: [(&str, toml::Value); N]) -> Settings {
    entries.into_iter().map(|(key, value)| (key.to_string(), value)).collect()
}

/// Largest relative error of each kind, with its location.
#[derive(Default)]
struct Worst(BTreeMap<&'static str, (f64, String)>);

impl Worst {
    fn record(&mut self, kind: &'static str, error: f64, place: impl Into<String>) {
        let worst = self.0.entry(kind).or_insert((0.0, String::new()));
        // NaN must count as a large error.
        if error.is_nan() || error > worst.0 {
            *worst = (if error.is_nan() { f64::INFINITY } else { error }, place.into());
        }
    }

    fn of(&self, kind: &str) -> (f64, &str) {
        self.0.get(kind).map_or((f64::INFINITY, "never compared"), |(error, place)| (*error, place))
    }
}

/// Returns the package's folder, or `plugins` in the working directory if the test was copied to another computer.
fn package() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| "plugins".into(), PathBuf::from)
}

fn shared(name: &str) -> PathBuf {
    package().join("../../shared").join(name)
}

fn directories() -> Vec<PathBuf> {
    let recorded = match std::env::var_os("CDL_GOLDEN_DIR") {
        Some(dir) => {
            let dir = PathBuf::from(dir);
            assert!(dir.is_dir(), "CDL_GOLDEN_DIR: no directory {}", dir.display());
            Some(dir)
        }
        None => Some(shared("golden")).filter(|dir| dir.is_dir()),
    };
    if recorded.is_none() {
        println!(
            "golden: CDL_GOLDEN_DIR is not set and there is no shared/golden; only the committed cases are run"
        );
    }
    let committed = package().join("tests/fixtures/golden");
    recorded.into_iter().chain([committed]).collect()
}

fn backbone(dir: &Path, role: Role, heads: usize, image_size: usize) -> Result<Arc<dyn Backbone>> {
    let file = dir.join(format!("{}_backbone.safetensors", role.as_str()));
    let weights = VitWeights::read(&file, None)?;
    Ok(Arc::new(networks::vit(&weights, Some(heads), image_size, Normalization::NONE)?))
}

/// Reproduction of one recorded run.
struct Reproduction {
    name: String,
    /// First word of the printed line.
    label: &'static str,
    case: Case,
    recorded: std::collections::HashMap<String, Tensor>,
    images: Tensor,
    trainer: Trainer,
    worst: Worst,
}

impl Reproduction {
    /// Reads a case; `None` if it names a method that is not registered.
    fn new(dir: &Path, name: &str) -> Result<Option<Self>> {
        let case = read_case(dir, name);
        if !is_registered(Kind::Distiller, &DISTILLERS, &case.kd_method) {
            return Ok(None);
        }
        let distiller = distiller_of(&case);
        Self::with(dir, name, case, distiller)
    }

    /// Reads a case with the distiller replaced by `none`.
    fn with_any_distiller(dir: &Path, name: &str) -> Result<Option<Self>> {
        Self::with(dir, name, read_case(dir, name), Some(("none", Settings::new())))
    }

    fn with(
        dir: &Path,
        name: &str,
        case: Case,
        distiller: Option<(&'static str, Settings)>,
    ) -> Result<Option<Self>> {
        if !is_registered(Kind::Learner, &LEARNERS, &case.learner_name) {
            return Ok(None);
        }
        let (learner, learner_settings) = learner_of(&case).expect("settings of a registered learner");
        let (distiller, distiller_settings) = distiller.expect("settings of a registered distiller");
        let device = networks::device();
        let recorded = safetensors::load(dir.join(name).join("tensors.safetensors"), &Device::Cpu)?;
        let images = safetensors::load(dir.join("images.safetensors"), &Device::Cpu)?["images"].clone();
        let size = images.dim(2)?;
        let teacher = backbone(dir, Role::Teacher, case.teacher.num_heads, size)?;
        let student = backbone(dir, Role::Student, case.student.num_heads, size)?;
        for (sizes, spec) in [(&case.teacher, teacher.spec()), (&case.student, student.spec())] {
            assert_eq!((sizes.embed_dim, sizes.depth), (spec.width, spec.depth), "{name}: backbone sizes");
        }
        let make = |role, backbone: &Arc<dyn Backbone>| -> Result<Box<dyn Learner>> {
            let context = LearnerContext {
                role,
                backbone: backbone.spec(),
                query_width: student.spec().width,
                classes: case.num_tasks * case.classes_per_task,
                tasks: case.num_tasks,
                mode: Mode::Published,
                device: &device,
                rng: Rng::new(0),
            };
            registry::learner(learner, &learner_settings, &context)
        };
        let (teacher_learner, student_learner) =
            (make(Role::Teacher, &teacher)?, make(Role::Student, &student)?);
        let context = DistillerContext {
            teacher: teacher.spec(),
            student: student.spec(),
            learner: student_learner.as_ref(),
            tasks: case.num_tasks,
            mode: Mode::Published,
            device: &device,
            rng: Rng::new(0),
        };
        let distiller: Box<dyn Distiller> = registry::distiller(distiller, &distiller_settings, &context)?;
        let settings = TrainSettings {
            epochs: case.epochs,
            batch_size: case.steps[0].images.len(),
            optimizer: OptimizerConfig {
                name: serde_json::from_value(case.optimizer.to_lowercase().into()).expect("known optimiser"),
                lr: case.lr,
                momentum: case.momentum,
                weight_decay: case.weight_decay,
                ..Default::default()
            },
            schedule: ScheduleConfig::default(),
            mode: Mode::Published,
            query: QuerySource::Student,
            roles: vec![Role::Teacher, Role::Student],
        };
        let trainer = Trainer {
            teacher: Network { backbone: teacher, learner: teacher_learner },
            student: Network { backbone: student, learner: student_learner },
            distiller,
            settings,
            rng: Rng::new(0),
        };
        Ok(Some(Self {
            name: name.into(),
            label: "golden",
            case,
            recorded,
            images,
            trainer,
            worst: Worst::default(),
        }))
    }

    fn run(&mut self, phases: &[Role]) -> Result<()> {
        for index in 0..self.case.num_tasks {
            let size = self.case.classes_per_task;
            let classes = index * size..(index + 1) * size;
            let task = Task { index, count: self.case.num_tasks, classes };
            self.trainer.begin_task(&task)?;
            for &role in phases {
                let start = match index {
                    0 => format!("init/{}/", role.as_str()),
                    _ => format!("task{index}/start/{}/", role.as_str()),
                };
                self.load(&start, role, &task)?;
                self.phase(role, &task)?;
            }
            self.trainer.end_task(&task)?;
            for &role in phases {
                let state = self.trainer.state(role)?;
                self.compare_parameters(&format!("task{index}/end/{}/", role.as_str()), &state);
                self.compare_predictions(role, &task)?;
            }
        }
        Ok(())
    }

    /// Replaces the trainer's values by recorded ones. Recorded tensors that the trainer lacks must be untrained.
    fn load(&mut self, prefix: &str, role: Role, task: &Task) -> Result<()> {
        let mut state = self.trainer.state(role)?;
        let mut found = 0;
        for (name, value) in self.recorded.iter().filter_map(|(n, v)| Some((n.strip_prefix(prefix)?, v))) {
            if state.get(name).is_some() {
                state.insert(name, value.clone());
                found += 1;
            } else {
                let grad = format!("task{}/{}/step0/grad/{name}", task.index, role.as_str());
                let trained = match self.recorded.get(&grad) {
                    Some(grad) => difference(grad, &grad.zeros_like()?)? != 0.0,
                    None => false,
                };
                assert!(
                    !trained,
                    "{}: {prefix}{name} is trained in the recording, but the trainer has no such tensor",
                    self.name
                );
            }
        }
        if task.index == 0 {
            let ours = state.iter().count();
            assert_eq!(found, ours, "{}: {prefix} sets {found} of {ours} tensors", self.name);
        }
        self.trainer.restore(role, task, &state)
    }

    fn phase(&mut self, role: Role, task: &Task) -> Result<()> {
        let mut optimizer = Optimizer::new(&self.trainer.settings.optimizer, self.trainer.trainable(role))?;
        let steps: Vec<usize> = (0..self.case.steps.len())
            .filter(|&i| self.case.steps[i].task == task.index && self.case.steps[i].phase == role)
            .collect();
        assert!(!steps.is_empty(), "{}: no steps for task {}, {}", self.name, task.index, role.as_str());
        let first = format!("task{}/{}/step0/", task.index, role.as_str());
        for i in steps {
            let step = &self.case.steps[i];
            let place =
                format!("task {}, {}, epoch {}, step {}", task.index, role.as_str(), step.epoch, step.step);
            let settings = &self.trainer.settings;
            let lr =
                settings.schedule.rate(settings.optimizer.lr, step.epoch, settings.epochs, settings.mode);
            assert!((lr - step.lr).abs() <= 1e-12 * step.lr, "{}: rate {lr} at {place}", self.name);
            optimizer.set_lr(lr);

            let batch = Batch {
                pixels: self.pixels(&step.images)?,
                labels: Tensor::new(step.labels.as_slice(), &networks::device())?,
            };
            let loss = self.trainer.loss(role, task, &batch)?;
            let values = loss.values()?;
            let sum = |wanted: &dyn Fn(&str) -> bool| -> f64 {
                values.iter().filter(|(name, _)| wanted(name)).map(|(_, value)| value).sum()
            };
            let total = sum(&|name| name == "loss");
            self.worst.record(
                "loss",
                (total - step.loss).abs() / step.loss.abs(),
                format!("loss at {place}"),
            );
            let soft = sum(&|name| SOFT_TERMS.contains(&name));
            let feature =
                sum(&|name| !["loss", "ce", "penalty"].contains(&name) && !SOFT_TERMS.contains(&name));
            for (what, ours, recorded) in
                [("soft loss", soft, step.soft_loss), ("feature loss", feature, step.feature_loss)]
            {
                let recorded = recorded.unwrap_or(0.0);
                self.worst.record(
                    "loss",
                    (ours - recorded).abs() / step.loss.abs(),
                    format!("{what} at {place}"),
                );
            }
            if step.epoch == 0 {
                let (key, ours) = match role {
                    Role::Teacher => ("logits", Some(&loss.logits)),
                    Role::Student => ("teacher_logits", loss.teacher_logits.as_ref()),
                };
                let key = format!("task{}/{}/step{}/{key}", task.index, role.as_str(), step.step);
                if let (Some(ours), Some(recorded)) = (ours, self.recorded.get(&key)) {
                    // Columns of earlier tasks are masked, recorded as -1e30.
                    let error = difference(&columns(ours, task)?, &columns(recorded, task)?)?;
                    self.worst.record("logits", error, key);
                }
            }

            let gradients = loss.total.backward()?;
            if step.epoch == 0 && step.step == 0 {
                for var in self.trainer.trainable(role) {
                    let key = format!("{first}grad/{}", var.name);
                    let recorded =
                        self.recorded.get(&key).unwrap_or_else(|| panic!("{}: no {key}", self.name));
                    let ours = match gradients.get(var.tensor()) {
                        Some(gradient) => gradient.clone(),
                        None => recorded.zeros_like()?,
                    };
                    self.worst.record("grad", difference(&ours, recorded)?, key);
                }
            }
            optimizer.step(&gradients)?;
            if step.epoch == 0 && step.step == 0 {
                // After a step, compare trainable tensors; tensors merged at a task's end are compared there.
                self.compare_parameters(
                    &format!("{first}after/"),
                    &StateDict::of(&self.trainer.trainable(role))?,
                );
            }
        }
        Ok(())
    }

    fn compare_parameters(&mut self, prefix: &str, state: &StateDict) {
        for (name, ours) in state.iter() {
            let key = format!("{prefix}{name}");
            let recorded = self.recorded.get(&key).unwrap_or_else(|| panic!("{}: no {key}", self.name));
            self.worst.record("param", difference(ours, recorded).expect("tensors"), key);
        }
    }

    fn compare_predictions(&mut self, role: Role, task: &Task) -> Result<()> {
        let images: Vec<u32> = (self.case.eval_images[0] as u32..self.case.eval_images[1] as u32).collect();
        let ours = self.trainer.predict(role, &self.pixels(&images)?)?;
        let key = format!("task{}/eval/{}_logits", task.index, role.as_str());
        let error = difference(&ours.narrow(1, 0, task.seen())?, &self.recorded[&key])?;
        self.worst.record("logits", error, key);
        Ok(())
    }

    fn pixels(&self, numbers: &[u32]) -> Result<Tensor> {
        let numbers = Tensor::new(numbers, &Device::Cpu)?;
        networks::pixels(&self.images.index_select(&numbers, 0)?)
    }

    /// Prints the case's line and returns whether the case passed.
    fn report(&self) -> bool {
        let penalty = self.case.learner_name == "CODAPrompt"
            && self.case.prompt_param.get(2).is_some_and(|mu| *mu > 0.0);
        let allowed = tolerance();
        let limits = [
            ("loss", allowed.loss),
            ("grad", allowed.grad),
            ("param", if penalty { PARAM_WITH_PENALTY } else { allowed.param }),
            ("logits", allowed.logits),
        ];
        let failed: Vec<_> = limits.iter().filter(|(kind, limit)| self.worst.of(kind).0 > *limit).collect();
        let errors: Vec<String> =
            limits.iter().map(|(kind, _)| format!("{kind}={:.1e}", self.worst.of(kind).0)).collect();
        let word = if failed.is_empty() { "pass" } else { "FAIL" };
        println!("{} {} {word} {}", self.label, self.name, errors.join(" "));
        for (kind, limit) in &failed {
            let (error, place) = self.worst.of(kind);
            println!("  {kind} {error:.1e} above {limit:.0e}: {place}");
        }
        failed.is_empty()
    }
}

fn columns(logits: &Tensor, task: &Task) -> Result<Tensor> {
    Ok(logits.narrow(1, task.classes.start, task.classes.len())?)
}

fn read_case(dir: &Path, name: &str) -> Case {
    let case = std::fs::read(dir.join(name).join("case.json")).expect("case.json");
    serde_json::from_slice(&case).expect("case.json")
}

fn cases(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .expect("golden directory")
        .flatten()
        .filter(|entry| entry.path().join("case.json").is_file())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn recorded_runs_are_reproduced() {
    cdl_plugins::link();
    let mut failures = 0;
    for dir in directories() {
        for name in cases(&dir) {
            // A case that returns an error or panics fails; the others still run.
            let passed = std::panic::catch_unwind(|| -> Result<bool> {
                match Reproduction::new(&dir, &name)? {
                    None => {
                        println!("golden {name} unknown loss=- grad=- param=- logits=-");
                        Ok(true)
                    }
                    Some(mut reproduction) => {
                        reproduction.run(&[Role::Teacher, Role::Student])?;
                        Ok(reproduction.report())
                    }
                }
            });
            if !matches!(passed, Ok(Ok(_))) {
                let reason = passed.as_ref().map(|result| result.as_ref().err());
                println!("golden {name} FAIL loss=- grad=- param=- logits=- (stopped: {reason:?})");
            }
            failures += usize::from(!matches!(passed, Ok(Ok(true))));
        }
    }
    assert_eq!(failures, 0, "recorded runs are not reproduced");
}

/// The teacher does not depend on the distiller, so its half of a run can be reproduced for every registered learner,
/// even with unregistered distillers. This covers CODA-Prompt's orthogonality penalty.
#[test]
fn recorded_teachers_are_reproduced_under_any_distiller() {
    cdl_plugins::link();
    let mut failures = 0;
    for dir in directories() {
        for name in cases(&dir) {
            let teacher = Reproduction::with_any_distiller(&dir, &name).expect("golden case");
            let Some(mut reproduction) = teacher else { continue };
            reproduction.label = "golden-teacher";
            reproduction.run(&[Role::Teacher]).expect("golden case");
            failures += usize::from(!reproduction.report());
        }
    }
    assert_eq!(failures, 0, "recorded teachers are not reproduced");
}

#[test]
fn backbone_features_are_reproduced() -> Result<()> {
    for dir in directories() {
        for role in [Role::Teacher, Role::Student] {
            let device = Device::Cpu;
            let features = dir.join(format!("{}_features.safetensors", role.as_str()));
            if cases(&dir).is_empty() || !features.is_file() {
                println!("features: none recorded in {}", dir.display());
                continue;
            }
            let expected = safetensors::load(&features, &device)?;
            let case = read_case(&dir, &cases(&dir)[0]);
            let heads = if role == Role::Teacher { case.teacher.num_heads } else { case.student.num_heads };
            let images = safetensors::load(dir.join("images.safetensors"), &device)?["images"].i(..2)?;
            let vit = backbone(&dir, role, heads, images.dim(2)?)?;
            let pixels = networks::pixels(&images)?;
            let blocks = (0..vit.spec().depth).collect();
            let features = vit.forward(&pixels, &Injection::none(), &Taps { blocks, norm: true })?;
            for (name, expected) in &expected {
                let ours = match name.strip_prefix("block") {
                    Some(block) => features.blocks.get(&block.parse().expect("blockN")).cloned(),
                    None => features.norm.clone(),
                };
                let error = difference(&ours.expect("feature"), expected)?;
                println!("features {} {} {name} {error:.1e}", dir.display(), role.as_str());
                assert!(error < tolerance().logits, "{} {name}: {error:e}", role.as_str());
            }
            // The features that methods read do not depend on other taps.
            let plain = vit.forward(&pixels, &Injection::none(), &Taps::none())?;
            let norm = features.norm.expect("norm").i((.., 0))?;
            assert!(
                difference(&plain.cls, &norm)?
                    < if networks::device().is_cpu() { 1e-6 } else { tolerance().logits }
            );
        }
    }
    Ok(())
}

#[test]
fn a_real_vit_gives_the_tokens_of_the_original() -> Result<()> {
    let dir = match std::env::var_os("CDL_MODELS_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => shared("models"),
    }
    .join("vit_small_patch14_dinov2");
    if !dir.is_dir() {
        println!("features: no {} (set CDL_MODELS_DIR); the real network is not checked", dir.display());
        return Ok(());
    }
    let weights = VitWeights::read(&dir.join("model.safetensors"), Some(&dir.join("config.json")))?;
    let normalization = weights.normalization().expect("config.json has mean and std");
    let vit = networks::vit(&weights, None, 224, normalization)?;
    let expected = safetensors::load(dir.join("expected.safetensors"), &Device::Cpu)?;
    let pixels = networks::pixels(&expected["images_224"])?;
    let tokens = networks::tokens(&vit, &pixels, &Injection::none())?;
    let error = difference(&tokens, &expected["tokens_224"])?;
    println!("features dinov2 tokens_224 {error:.1e}");
    assert!(error < tolerance().logits, "{error:e}");
    Ok(())
}
