//! The conformance kit: what a plugin promises by implementing one of the four traits, checked in one line.
//!
//! ```ignore
//! #[test]
//! fn it_keeps_its_promises() -> cdl_core::Result<()> {
//!     cdl_core::testing::check_distiller("my_method", "alpha = 0.5")
//! }
//! ```
//!
//! [`check_backbone`] and [`check_stream`] say themselves what they check. A learner or distiller is found by its
//! registered name and run on a [`Lab`]: two tiny random vision transformers and a stream
//! of random pixels in three tasks. Checked are
//!
//! - its settings: documented, and refused if unknown;
//! - the shapes of what it returns, in all passes, with networks of several sizes, both modes, either query, and all
//!   classes learned at once as with rehearsal;
//! - its gradients against finite differences of the loss, in the first task;
//! - that everything it trains gets a gradient and moves, and nothing else changes;
//! - that a seed decides everything;
//! - that a state saved in the middle of a task or at its end restores it, and an incomplete one is refused;
//! - that evaluation leaves no trace.
//!
//! The first broken promise is returned as [`Error::Promise`]. A method that stops gradients on purpose turns the
//! finite differences off by [`Conformance`].

mod backbone;
mod stream;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use candle_core::{DType, Device, Tensor, Var};
use sha2::{Digest, Sha256};

pub use self::{backbone::check_backbone, stream::check_stream};
use crate::{
    Backbone, BackboneSpec, Batch, Batches, Distiller, DistillerContext, EpochKey, Error, Features, Head,
    Injection, Kv, Learner, LearnerContext, Linear, LossTerm, Mode, NamedVar, Network, Normalization,
    Optimizer, OptimizerConfig, Output, Pass, Query, QuerySource, Result, Rng, Role, ScheduleConfig, Stack,
    StateDict, Taps, Task, TaskStream, TrainSettings, Trainer,
    hub::Provenance,
    loss::kl_divergence,
    registry::{self, Kind, Settings},
    require_teacher,
    vit::{Vit, VitOptions, VitSizes, VitWeights},
};

const TASKS: usize = 3;
const CLASSES: usize = 6;
const BATCH: usize = 4;
const SIDE: usize = 16;

/// Checks the learner registered as `name`, with `settings` in TOML, by all of [`Conformance`].
///
/// # Errors
/// The first promise that it breaks, or whatever it fails with itself.
pub fn check_learner(name: &str, settings: &str) -> Result<()> {
    Conformance { settings, ..Default::default() }.learner(name)
}

/// Checks the distiller registered as `name`, with `settings` in TOML, by all of [`Conformance`].
///
/// # Errors
/// The first promise that it breaks, or whatever it fails with itself.
pub fn check_distiller(name: &str, settings: &str) -> Result<()> {
    Conformance { settings, ..Default::default() }.distiller(name)
}

/// Checks a registered learner with a registered distiller, with settings in TOML: everything that is trained gets a
/// gradient and moves, nothing else changes, a saved state restores them, evaluation leaves no trace.
///
/// # Errors
/// The first promise that they break, or whatever they fail with themselves.
pub fn check_pair(learner: (&str, &str), distiller: (&str, &str)) -> Result<()> {
    let settings = [
        read_settings(Kind::Learner, learner.0, learner.1)?,
        read_settings(Kind::Distiller, distiller.0, distiller.1)?,
    ];
    let build = |seed: u64, lab: Lab| {
        lab.seeded(seed).trainer_of((learner.0, &settings[0]), (distiller.0, &settings[1]))
    };
    let check = Check { plugin: format!("`{}` with `{}`", learner.0, distiller.0), build: &build };
    check.what_is_trained_moves_and_nothing_else(Lab::new(3)?)?;
    check.a_saved_state_restores_it()?;
    check.evaluation_leaves_no_trace()
}

/// What is checked of a plugin, and with which settings.
#[derive(Debug, Clone, Copy)]
pub struct Conformance<'a> {
    /// Its settings in TOML.
    pub settings: &'a str,
    /// Whether gradients are compared with finite differences; not for methods that stop or reverse them on purpose.
    pub finite_differences: bool,
}

impl Default for Conformance<'_> {
    fn default() -> Self {
        Self { settings: "", finite_differences: true }
    }
}

impl Conformance<'_> {
    /// Checks the learner registered as `name`.
    ///
    /// # Errors
    /// The first promise that it breaks, or whatever it fails with itself.
    pub fn learner(&self, name: &str) -> Result<()> {
        let settings = read_settings(Kind::Learner, name, self.settings)?;
        let build = |seed: u64, lab: Lab| learner_trainer(&lab.seeded(seed), name, &settings);
        let check = Check { plugin: format!("`{name}`"), build: &build };
        for lab in Lab::variants()? {
            check.learner_shapes(lab)?;
        }
        if self.finite_differences {
            check.gradients_are_derivatives(&[Role::Teacher, Role::Student])?;
        }
        check.everything()
    }

    /// Checks the distiller registered as `name`.
    ///
    /// # Errors
    /// The first promise that it breaks, or whatever it fails with itself.
    pub fn distiller(&self, name: &str) -> Result<()> {
        let settings = read_settings(Kind::Distiller, name, self.settings)?;
        let alone = |seed: u64, lab: Lab| distiller_trainer(&lab.seeded(seed), name, &settings);
        // As a run uses it.
        let build = |seed: u64, lab: Lab| -> Result<Trainer> {
            let Trainer { teacher, student, distiller, settings, rng } = alone(seed, lab)?;
            let distiller = Box::new(Stack::new(vec![(name.into(), 1.0, distiller)])?);
            Ok(Trainer { teacher, student, distiller, settings, rng })
        };
        let check = Check { plugin: format!("`{name}`"), build: &build };
        for lab in Lab::variants()? {
            check.distiller_shapes(lab)?;
        }
        if self.finite_differences {
            check.gradients_are_derivatives(&[Role::Student])?;
        }
        check.everything()?;
        check.prediction_is_announced(&alone(1, Lab::new(1)?)?)
    }
}

/// The learner `name` in both networks, with the kit's own distiller.
fn learner_trainer(lab: &Lab, name: &str, settings: &Settings) -> Result<Trainer> {
    let [teacher, student] = [Role::Teacher, Role::Student].map(|role| lab.learner(role, name, settings));
    let distiller = SoftTargets { width: lab.student.spec().width };
    Ok(lab.trainer(teacher?, student?, Box::new(distiller)))
}

/// The distiller `name`, with the kit's own learner in both networks.
fn distiller_trainer(lab: &Lab, name: &str, settings: &Settings) -> Result<Trainer> {
    let [teacher, student] =
        [Role::Teacher, Role::Student].map(|role| PlainPrompts::new(&lab.learner_context(role)));
    let (teacher, student) = (Box::new(teacher?), Box::new(student?));
    let distiller = registry::distiller(name, settings, &lab.distiller_context(student.as_ref()))?;
    Ok(lab.trainer(teacher, student, distiller))
}

/// SHA-256 over the gradients of a registered learner or distiller in the first step of a task, and over all parameters
/// after that step: equal digests mean equal to the byte. So one can tell whether a method computes the same linked in and
/// loaded, or on two machines.
///
/// # Errors
/// Whatever the method fails with; a kind of plugin that trains nothing.
pub fn gradient_digest(kind: Kind, name: &str, settings: &str) -> Result<String> {
    let settings = read_settings(kind, name, settings)?;
    let lab = Lab::new(1)?;
    let mut trainer = match kind {
        Kind::Learner => learner_trainer(&lab, name, &settings)?,
        Kind::Distiller => distiller_trainer(&lab, name, &settings)?,
        Kind::Backbone | Kind::Stream => {
            let promise = format!("it is a {kind} and trains nothing");
            return Err(Error::Promise { plugin: format!("`{name}`"), promise });
        }
    };
    let noise = Noise::new(1);
    let task = &noise.tasks()[0];
    trainer.begin_task(task)?;
    let mut digest = Sha256::new();
    let mut add = |name: &str, tensor: &Tensor| -> Result<()> {
        digest.update(name);
        for value in tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()? {
            digest.update(value.to_le_bytes());
        }
        Ok(())
    };
    for role in [Role::Teacher, Role::Student] {
        let vars = trainer.trainable(role);
        let mut optimizer = Optimizer::new(&trainer.settings.optimizer, vars.clone())?;
        let loss = trainer.loss(role, task, &noise.batch(0, 0)?)?;
        let gradients = loss.total.backward()?;
        for var in &vars {
            if let Some(gradient) = gradients.get(var.tensor()) {
                add(&var.name, gradient)?;
            }
        }
        optimizer.step(&gradients)?;
        for (name, tensor) in trainer.state(role)?.iter() {
            add(name, tensor)?;
        }
    }
    Ok(crate::hex(&digest.finalize()))
}

/// Reads settings as a configuration would, and checks that they can be described to a user.
fn read_settings(kind: Kind, name: &str, settings: &str) -> Result<Settings> {
    let entry = registry::find(kind, name)?;
    let broken = |promise: String| Err(Error::Promise { plugin: format!("`{name}`"), promise });
    let taken: &[&str] = match kind {
        Kind::Distiller => &["name", "weight"],
        Kind::Backbone => &["name", "learner"],
        Kind::Learner | Kind::Stream => &["name"],
    };
    let schema = (entry.schema)();
    for (key, property) in schema.get("properties").and_then(|p| p.as_object()).into_iter().flatten() {
        if taken.contains(&key.as_str()) {
            return broken(format!(
                "a setting of a {kind} cannot be called `{key}`: configurations use that key themselves"
            ));
        }
        if property.get("description").is_none() {
            return broken(format!(
                "its setting `{key}` has no doc comment, so `cdl describe` cannot explain it"
            ));
        }
    }
    let mut unknown = Settings::new();
    unknown.insert("no such setting".into(), toml::Value::Boolean(true));
    if (entry.complete)(&unknown).is_ok() {
        return broken("a setting that does not exist is refused".into());
    }
    let settings: Settings = toml::from_str(settings)
        .map_err(|e| Error::Config { origin: "settings".into(), reason: e.to_string() })?;
    (entry.complete)(&settings)
}

/// Sizes of a random vision transformer.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Token width.
    pub width: usize,
    /// Blocks.
    pub depth: usize,
    /// Attention heads.
    pub heads: usize,
    /// Side of a patch; images have 16 pixels.
    pub patch: usize,
}

impl Shape {
    /// The teacher of [`Lab::new`].
    pub const TEACHER: Self = Self { width: 24, depth: 7, heads: 3, patch: 4 };
    /// The student of [`Lab::new`].
    pub const STUDENT: Self = Self { width: 16, depth: 6, heads: 2, patch: 4 };
}

/// Two tiny random vision transformers and the stream [`Noise`], for tests of methods.
#[derive(Clone)]
pub struct Lab {
    teacher: Arc<dyn Backbone>,
    student: Arc<dyn Backbone>,
    mode: Mode,
    query: QuerySource,
    rng: Rng,
}

impl Lab {
    /// A teacher and a student of different sizes. The networks are always the same; `seed` decides what learners and
    /// distillers draw.
    ///
    /// # Errors
    /// Tensor operations that fail.
    pub fn new(seed: u64) -> Result<Self> {
        Self::with_shapes(seed, Shape::TEACHER, Shape::STUDENT)
    }

    /// The same with networks of these sizes.
    ///
    /// # Errors
    /// Sizes that no network can have.
    pub fn with_shapes(seed: u64, teacher: Shape, student: Shape) -> Result<Self> {
        Ok(Self {
            teacher: Arc::new(random_vit("random teacher", teacher)?),
            student: Arc::new(random_vit("random student", student)?),
            mode: Mode::Published,
            query: QuerySource::Student,
            rng: Rng::new(seed),
        })
    }

    /// The same in another mode, with another query.
    pub fn with_mode(self, mode: Mode, query: QuerySource) -> Self {
        Self { mode, query, ..self }
    }

    fn seeded(self, seed: u64) -> Self {
        Self { rng: Rng::new(seed), ..self }
    }

    /// What a plugin may meet: the usual, the corrected mode with own queries, a teacher with fewer blocks than the
    /// student, networks of few blocks, other patches.
    fn variants() -> Result<Vec<Self>> {
        let of = |teacher: usize, student: usize, patch: usize| {
            let student = Shape { depth: student, patch, ..Shape::STUDENT };
            Self::with_shapes(1, Shape { depth: teacher, ..Shape::TEACHER }, student)
        };
        let corrected = of(7, 6, 4)?.with_mode(Mode::Corrected, QuerySource::Own);
        Ok(vec![of(7, 6, 4)?, corrected, of(3, 6, 4)?, of(2, 1, 4)?, of(4, 4, 8)?])
    }

    fn network(&self, role: Role) -> &Arc<dyn Backbone> {
        match role {
            Role::Teacher => &self.teacher,
            Role::Student => &self.student,
        }
    }

    /// What a learner is built with here.
    pub fn learner_context(&self, role: Role) -> LearnerContext<'_> {
        let querying = if self.query == QuerySource::Own { role } else { Role::Student };
        LearnerContext {
            role,
            backbone: self.network(role).spec(),
            query_width: self.network(querying).spec().width,
            classes: CLASSES,
            tasks: TASKS,
            mode: self.mode,
            device: &Device::Cpu,
            rng: self.rng.derive(role.as_str()),
        }
    }

    /// What a distiller is built with here.
    pub fn distiller_context<'a>(&'a self, learner: &'a dyn Learner) -> DistillerContext<'a> {
        DistillerContext {
            teacher: self.teacher.spec(),
            student: self.student.spec(),
            learner,
            tasks: TASKS,
            mode: self.mode,
            device: &Device::Cpu,
            rng: self.rng.derive("distiller"),
        }
    }

    /// The registered learner `name`.
    ///
    /// # Errors
    /// An unknown name, or settings that the learner refuses.
    pub fn learner(&self, role: Role, name: &str, settings: &Settings) -> Result<Box<dyn Learner>> {
        registry::learner(name, settings, &self.learner_context(role))
    }

    /// A trainer of one epoch a task.
    pub fn trainer(
        &self,
        teacher: Box<dyn Learner>,
        student: Box<dyn Learner>,
        distiller: Box<dyn Distiller>,
    ) -> Trainer {
        Trainer {
            teacher: Network { backbone: self.teacher.clone(), learner: teacher },
            student: Network { backbone: self.student.clone(), learner: student },
            distiller,
            settings: TrainSettings {
                epochs: 1,
                batch_size: BATCH,
                optimizer: OptimizerConfig { lr: 1e-2, ..Default::default() },
                schedule: ScheduleConfig::default(),
                mode: self.mode,
                query: self.query,
                roles: vec![Role::Teacher, Role::Student],
            },
            rng: self.rng.derive("tasks"),
        }
    }

    /// A trainer of registered methods, each with its settings.
    ///
    /// # Errors
    /// Unknown names, or settings that a method refuses.
    pub fn trainer_of(&self, learner: (&str, &Settings), distiller: (&str, &Settings)) -> Result<Trainer> {
        let [teacher, student] =
            [Role::Teacher, Role::Student].map(|role| self.learner(role, learner.0, learner.1));
        let (teacher, student) = (teacher?, student?);
        let name = distiller.0;
        let distiller = registry::distiller(name, distiller.1, &self.distiller_context(student.as_ref()))?;
        Ok(self.trainer(teacher, student, Box::new(Stack::new(vec![(name.into(), 1.0, distiller)])?)))
    }
}

fn random_vit(name: &str, shape: Shape) -> Result<Vit> {
    let Shape { width, depth, heads, patch } = shape;
    let sizes = VitSizes { width, depth, patch_size: patch, image_size: SIDE };
    let weights = VitWeights::random(name, sizes)?;
    let options = VitOptions {
        heads: Some(heads),
        depth: None,
        image_size: SIDE,
        normalization: Normalization::NONE,
        checkpoint_blocks: false,
    };
    Vit::new("vit", &weights, &options, Provenance::of_bytes(name, name.as_bytes()), &Device::Cpu)
}

/// A stream of random pixels: three tasks of two classes.
pub struct Noise {
    classes: Vec<String>,
    tasks: Vec<Task>,
    steps: usize,
    poisoned: usize,
}

impl Noise {
    /// With so many training steps an epoch.
    pub fn new(steps: usize) -> Self {
        let size = CLASSES / TASKS;
        let task = |index| Task { index, count: TASKS, classes: index * size..(index + 1) * size };
        let classes = (0..CLASSES).map(|class| class.to_string()).collect();
        Self { classes, tasks: (0..TASKS).map(task).collect(), steps, poisoned: usize::MAX }
    }

    /// The same with pixels that are no numbers from `task` on.
    pub fn poisoned_from(self, task: usize) -> Self {
        Self { poisoned: task, ..self }
    }

    /// Batch `number` of a task, always the same.
    pub fn batch(&self, task: usize, number: usize) -> Result<Batch> {
        let mut rng = Rng::new(9).derive(&format!("{task} {number}"));
        let mut pixels = rng.uniform(&[BATCH, 3, SIDE, SIDE], 0.0, 1.0, &Device::Cpu)?;
        if task >= self.poisoned {
            pixels = (pixels * f64::NAN)?;
        }
        let classes = &self.tasks[task].classes;
        let labels: Vec<u32> = (0..BATCH).map(|i| (classes.start + i % classes.len()) as u32).collect();
        Ok(Batch { pixels, labels: Tensor::new(labels.as_slice(), &Device::Cpu)? })
    }
}

impl TaskStream for Noise {
    fn classes(&self) -> &[String] {
        &self.classes
    }
    fn tasks(&self) -> &[Task] {
        &self.tasks
    }
    fn image_size(&self) -> usize {
        SIDE
    }
    fn train_count(&self, _task: usize) -> usize {
        self.steps * BATCH
    }
    fn test_count(&self, _task: usize) -> usize {
        BATCH
    }
    fn fingerprint(&self) -> &str {
        "noise"
    }
    fn train_batches(&self, key: EpochKey, _batch_size: usize) -> Batches<'_> {
        Box::new((0..self.steps).map(move |step| self.batch(key.task, 100 * key.epoch + step)))
    }
    fn test_batches(&self, task: usize, _batch_size: usize) -> Batches<'_> {
        Box::new(std::iter::once(self.batch(task, 10_000)))
    }
}

/// The kit's own learner, a partner for distillers under test: a prompt in the first block, an extra token, a penalty,
/// and a linear head on the CLS token and its own token.
struct PlainPrompts {
    prompts: NamedVar,
    token: NamedVar,
    head: Linear,
    width: usize,
}

impl PlainPrompts {
    fn new(context: &LearnerContext<'_>) -> Result<Self> {
        let (width, mut rng) = (context.backbone.width, context.rng.clone());
        let mut draw = |rows: usize| rng.uniform(&[1, rows, width], 0.0, 1.0, context.device);
        let (prompts, token) = (draw(4)?, draw(1)?);
        Ok(Self {
            prompts: NamedVar::new("prompt.p_0", &prompts)?,
            token: NamedVar::new("prompt.token", &token)?,
            head: Linear::new("last", width, context.classes, &mut rng, context.device)?,
            width,
        })
    }
}

impl Learner for PlainPrompts {
    fn begin_task(&mut self, _task: &Task, _rng: &mut Rng) -> Result<()> {
        Ok(())
    }
    fn inject(&self, _query: &Query<'_>, pass: Pass) -> Result<Injection> {
        let mut injection = Injection { tokens: Some(self.token.tensor().clone()), ..Injection::none() };
        injection.block_mut(0).prefix = Some(Kv::halves(self.prompts.tensor())?);
        if pass == Pass::Train {
            injection.penalty = Some((self.prompts.tensor().sqr()?.mean_all()? * 0.1)?);
        }
        Ok(injection)
    }
    fn logits(&self, features: &Features) -> Result<Tensor> {
        let token = match &features.tokens {
            Some(tokens) if tokens.dim(1)? == 1 => tokens.squeeze(1)?,
            _ => {
                return Err(Error::State {
                    owner: "learner".into(),
                    reason: "its one token was not shown to it".into(),
                });
            }
        };
        self.head.forward(&(&features.cls + token)?)
    }
    fn new_head(&self, name: &str, rng: &mut Rng) -> Result<Box<dyn Head>> {
        Ok(Box::new(Linear::new(name, self.width, CLASSES, rng, &Device::Cpu)?))
    }
    fn end_task(&mut self, _task: &Task) -> Result<()> {
        Ok(())
    }
    fn trainable(&self) -> Vec<NamedVar> {
        [self.prompts.clone(), self.token.clone()].into_iter().chain(self.head.trainable()).collect()
    }
    fn state(&self) -> Result<StateDict> {
        StateDict::of(&self.trainable())
    }
    fn restore(&mut self, _task: &Task, state: &StateDict) -> Result<()> {
        state.load_into(&self.trainable())
    }
}

/// The kit's own distiller, a partner for learners under test: soft targets, and an extra token that nothing reads.
struct SoftTargets {
    width: usize,
}

impl Distiller for SoftTargets {
    fn inject(&self, _pass: Pass) -> Result<Injection> {
        let token = Tensor::ones((1, 1, self.width), DType::F32, &Device::Cpu)?;
        Ok(Injection { tokens: Some(token), ..Injection::none() })
    }
    fn loss(
        &self,
        student: &Output,
        teacher: Option<&Output>,
        _labels: &Tensor,
        task: &Task,
    ) -> Result<Vec<LossTerm>> {
        let current = |logits: &Tensor| logits.narrow(1, task.classes.start, task.classes.len());
        let kl =
            kl_divergence(&current(&student.logits)?, &current(&require_teacher(teacher)?.logits)?, 2.0)?;
        Ok(vec![LossTerm::new("soft", kl)])
    }
}

/// A plugin under test in a trainer that can be built again and again, from a seed and what it runs on.
struct Check<'a> {
    plugin: String,
    build: &'a dyn Fn(u64, Lab) -> Result<Trainer>,
}

impl Check<'_> {
    fn broken<T>(&self, promise: impl Into<String>) -> Result<T> {
        Err(Error::Promise { plugin: self.plugin.clone(), promise: promise.into() })
    }

    fn trainer(&self, seed: u64) -> Result<Trainer> {
        (self.build)(seed, Lab::new(seed)?)
    }

    /// What holds for learners and distillers alike.
    fn everything(&self) -> Result<()> {
        self.what_is_trained_moves_and_nothing_else(Lab::new(3)?)?;
        self.what_is_trained_moves_and_nothing_else(
            Lab::new(3)?.with_mode(Mode::Corrected, QuerySource::Own),
        )?;
        self.a_seed_decides_everything()?;
        self.evaluation_leaves_no_trace()?;
        self.a_saved_state_restores_it()
    }

    fn learner_shapes(&self, lab: Lab) -> Result<()> {
        let mut trainer = (self.build)(1, lab)?;
        let stream = Noise::new(1);
        for task in stream.tasks() {
            trainer.begin_task(task)?;
            for (role, network) in [(Role::Teacher, &trainer.teacher), (Role::Student, &trainer.student)] {
                let spec = network.backbone.spec();
                for (pass, images) in
                    [(Pass::Train, BATCH), (Pass::Teach, BATCH), (Pass::Test, BATCH), (Pass::Test, 1)]
                {
                    let pixels = stream.batch(task.index, 0)?.pixels.narrow(0, 0, images)?;
                    let injection = network.learner.inject(&trainer.query(role, &pixels), pass)?;
                    self.injection_fits(&injection, spec, images)?;
                    if injection.penalty.as_ref().is_some_and(|penalty| penalty.rank() != 0) {
                        return self.broken("a penalty is a scalar");
                    }
                    if pass != Pass::Train && injection.penalty.is_some() {
                        return self
                            .broken(format!("a penalty applies in training alone, but {pass:?} has one"));
                    }
                    let features = network.backbone.forward(&pixels, &injection, &Taps::none())?;
                    self.logits_fit("logits", &network.learner.logits(&features)?, images)?;
                    let head = network.learner.new_head("second", &mut Rng::new(0))?;
                    self.logits_fit("the logits of a further head", &head.logits(&features.cls)?, images)?;
                    if !head.trainable().iter().all(|var| var.name.starts_with("second.")) {
                        return self.broken(
                            "a further head trains tensors called after it, `second.weight` and so on",
                        );
                    }
                }
            }
            trainer.end_task(task)?;
        }
        Ok(())
    }

    fn distiller_shapes(&self, lab: Lab) -> Result<()> {
        let mut trainer = (self.build)(1, lab)?;
        let stream = Noise::new(1);
        let taps = trainer.distiller.taps();
        for (network, taps) in [(&trainer.teacher, &taps.teacher), (&trainer.student, &taps.student)] {
            let spec = network.backbone.spec();
            if let Some(block) = taps.blocks.iter().find(|block| **block >= spec.depth) {
                return self
                    .broken(format!("it taps block {block} of a network with {} (from 0)", spec.depth));
            }
        }
        for task in stream.tasks() {
            trainer.begin_task(task)?;
            for pass in [Pass::Train, Pass::Test] {
                self.injection_fits(&trainer.distiller.inject(pass)?, trainer.student.backbone.spec(), 1)?;
            }
            // The task's own classes, and all seen so far as with rehearsal.
            for classes in [task.classes.clone(), 0..task.seen()] {
                let task = Task { classes, ..*task };
                let loss = trainer.loss(Role::Student, &task, &stream.batch(task.index, 0)?)?;
                if let Some((name, value)) = loss.values()?.iter().find(|(_, value)| !value.is_finite()) {
                    return self.broken(format!("the loss term `{name}` is a finite number, not {value}"));
                }
            }
            for images in [BATCH, 1] {
                let pixels = stream.batch(task.index, 0)?.pixels.narrow(0, 0, images)?;
                self.logits_fit("the prediction", &trainer.predict(Role::Student, &pixels)?, images)?;
            }
            trainer.end_task(task)?;
        }
        Ok(())
    }

    /// A prediction of its own counts only if the distiller says that it has one.
    fn prediction_is_announced(&self, alone: &Trainer) -> Result<()> {
        let pixels = Noise::new(1).batch(0, 0)?.pixels;
        let in_a_run = self.trainer(1)?.predict(Role::Student, &pixels)?;
        match bits(&alone.predict(Role::Student, &pixels)?)? == bits(&in_a_run)? {
            true => Ok(()),
            false => {
                self.broken("a distiller whose `predict` is not the learner's logits says so by `predicts`")
            }
        }
    }

    fn injection_fits(&self, injection: &Injection, spec: &BackboneSpec, images: usize) -> Result<()> {
        if injection.blocks.len() > spec.depth {
            return self.broken(format!("it prompts block {} of {}", injection.blocks.len(), spec.depth));
        }
        let fits = |tensor: &Tensor| {
            tensor
                .dims3()
                .is_ok_and(|(batch, _, width)| (batch == 1 || batch == images) && width == spec.width)
        };
        for block in &injection.blocks {
            for kv in [&block.prefix, &block.suffix, &block.cls_add].into_iter().flatten() {
                if !fits(&kv.k) || !fits(&kv.v) || kv.k.dims() != kv.v.dims() {
                    let (k, v, width) = (kv.k.dims(), kv.v.dims(), spec.width);
                    return self.broken(format!(
                        "keys and values are (B or 1, P, {width}) alike, not {k:?} and {v:?}"
                    ));
                }
            }
            if block.cls_add.as_ref().is_some_and(|kv| kv.k.dims()[1] != 1) {
                return self.broken("one vector is added to the CLS token's key and one to its value");
            }
        }
        match &injection.tokens {
            Some(tokens) if !fits(tokens) => {
                self.broken(format!("tokens are (B or 1, K, {}), not {:?}", spec.width, tokens.dims()))
            }
            _ => Ok(()),
        }
    }

    fn logits_fit(&self, what: &str, logits: &Tensor, images: usize) -> Result<()> {
        if logits.dims() != [images, CLASSES] {
            return self.broken(format!(
                "{what} of {images} images are ({images}, {CLASSES}), not {:?}",
                logits.dims()
            ));
        }
        match numbers(logits)?.iter().all(|v| v.is_finite()) {
            true => Ok(()),
            false => self.broken(format!("{what} are finite numbers")),
        }
    }

    /// Central differences of the loss along random directions in every tensor, in the first task (later ones may hold
    /// what earlier ones trained). In float32 and with choices that jump, no one step size is right for all tensors:
    /// the nearest of several counts, which a gradient that is wrong or partly missing cannot meet in all directions.
    fn gradients_are_derivatives(&self, roles: &[Role]) -> Result<()> {
        let mut trainer = self.trainer(2)?;
        let stream = Noise::new(1);
        let (task, batch) = (&stream.tasks()[0], stream.batch(0, 0)?);
        trainer.begin_task(task)?;
        for &role in roles {
            let gradients = trainer.loss(role, task, &batch)?.total.backward()?;
            let loss = || -> Result<f64> {
                Ok(trainer.loss(role, task, &batch)?.total.to_dtype(DType::F64)?.to_scalar::<f64>()?)
            };
            // What rounding makes of a difference of losses.
            let noise = 5e-5 * loss()?.abs().max(1.0);
            for NamedVar { name, var } in trainer.trainable(role) {
                let gradient = match gradients.get(var.as_tensor()) {
                    Some(gradient) => numbers(gradient)?,
                    None => vec![0.0; var.elem_count()],
                };
                let length = gradient.iter().map(|g| g * g).sum::<f64>().sqrt();
                for number in 0..4 {
                    let direction = random_signs(&name, number, gradient.len());
                    let expected: f64 = gradient.iter().zip(&direction).map(|(g, d)| g * d).sum();
                    let near = |found: f64| (found - expected).abs() <= 0.02 * length + noise;
                    let found = derivative_near(&var, &direction, &loss, &near)?;
                    if let Some(nearest) = nearest(&found, expected).filter(|found| !near(*found)) {
                        return self.broken(format!(
                            "the gradient of `{name}` is the derivative of the {} loss: along a direction it is \
                             {expected:.3e}, finite differences give {nearest:.3e}; a value taken out of the graph \
                             (`detach`, `to_vec`) or an operation without a backward pass (`softmax_last_dim`, \
                             `ops::layer_norm`) often is why",
                            role.as_str()
                        ));
                    }
                }
            }
        }
        Ok(())
    }

    fn what_is_trained_moves_and_nothing_else(&self, lab: Lab) -> Result<()> {
        let mut trainer = (self.build)(3, lab)?;
        let stream = Noise::new(4);
        let frozen = |trainer: &Trainer| -> Result<Vec<Vec<u64>>> {
            let both = [&trainer.teacher, &trainer.student];
            let mut all = Vec::new();
            for network in both {
                for (_, tensor) in network.backbone.weights()? {
                    all.push(bits(&tensor)?);
                }
            }
            Ok(all)
        };
        let before = frozen(&trainer)?;
        for task in stream.tasks() {
            trainer.begin_task(task)?;
            for (role, other) in [(Role::Teacher, Role::Student), (Role::Student, Role::Teacher)] {
                let (others, own) = (state_bits(&trainer.state(other)?)?, state_bits(&trainer.state(role)?)?);
                let vars = trainer.trainable(role);
                let names: BTreeSet<_> = vars.iter().map(|var| var.name.clone()).collect();
                if names.len() != vars.len() {
                    return self.broken("tensors that are trained have different names");
                }
                let mut optimizer = Optimizer::new(&trainer.settings.optimizer, vars.clone())?;
                let mut reached = BTreeSet::new();
                for step in 0..4 {
                    let gradients =
                        trainer.loss(role, task, &stream.batch(task.index, step)?)?.total.backward()?;
                    for var in &vars {
                        let gradient =
                            gradients.get(var.tensor()).map(numbers).transpose()?.unwrap_or_default();
                        if gradient.iter().any(|g| !g.is_finite()) {
                            return self.broken(format!("the gradient of `{}` is finite", var.name));
                        }
                        if gradient.iter().any(|g| *g != 0.0) {
                            reached.insert(var.name.clone());
                        }
                    }
                    optimizer.step(&gradients)?;
                }
                if let Some(name) = names.difference(&reached).next() {
                    return self.broken(format!(
                        "`{name}` is trained by the {}, but never gets a gradient",
                        role.as_str()
                    ));
                }
                if state_bits(&trainer.state(other)?)? != others {
                    return self.broken(format!(
                        "the {}'s phase leaves the {} as it is",
                        role.as_str(),
                        other.as_str()
                    ));
                }
                let now = state_bits(&trainer.state(role)?)?;
                if let Some(name) = names.iter().find(|name| !now.contains_key(*name)) {
                    return self.broken(format!("`{name}` is trained, but not part of the state"));
                }
                for (name, now) in &now {
                    if names.contains(name) == (own.get(name) == Some(now)) {
                        return self.broken(format!("`{name}` changes in a phase exactly if it is trained"));
                    }
                }
            }
            trainer.end_task(task)?;
        }
        match frozen(&trainer)? == before {
            true => Ok(()),
            false => self.broken("frozen weights stay as they are"),
        }
    }

    fn a_seed_decides_everything(&self) -> Result<()> {
        let run = || -> Result<_> {
            let mut trainer = self.trainer(4)?;
            trainer.run(&Noise::new(3), &mut |_| Ok(()))?;
            states(&trainer)
        };
        match run()? == run()? {
            true => Ok(()),
            false => self.broken("the same seed gives the same run"),
        }
    }

    /// Saved in the middle of the second task and at its end, into trainers that were made with another seed:
    /// predictions and what is trained afterwards, also in the next task, are the same. An empty state is refused.
    fn a_saved_state_restores_it(&self) -> Result<()> {
        let stream = Noise::new(2);
        let [mut original, mut middle, mut end] = [self.trainer(5)?, self.trainer(6)?, self.trainer(7)?];
        // What is drawn at the start of a task follows from the run's seed, not from the state.
        (middle.rng, end.rng) = (original.rng.clone(), original.rng.clone());
        let [first, second, third] = [0, 1, 2].map(|index| &stream.tasks()[index]);
        original.begin_task(first)?;
        train(&mut original, &stream, first, 2)?;
        original.end_task(first)?;
        original.begin_task(second)?;
        train(&mut original, &stream, second, 2)?;
        restore(&original, &mut middle, second)?;
        let pixels = stream.batch(1, 77)?.pixels;
        let predictions = |trainer: &Trainer| -> Result<_> {
            Ok([
                bits(&trainer.predict(Role::Teacher, &pixels)?)?,
                bits(&trainer.predict(Role::Student, &pixels)?)?,
            ])
        };
        if predictions(&original)? != predictions(&middle)? {
            return self.broken("a restored state predicts as the saved one");
        }
        for trainer in [&mut original, &mut middle] {
            train(trainer, &stream, second, 2)?;
            trainer.end_task(second)?;
        }
        if predictions(&original)? != predictions(&middle)? {
            return self.broken("a restored state trains on as the saved one");
        }
        restore(&original, &mut end, second)?;
        if predictions(&original)? != predictions(&end)? {
            return self.broken("a state restored at the end of a task predicts as the saved one");
        }
        for trainer in [&mut original, &mut end] {
            trainer.begin_task(third)?;
            train(trainer, &stream, third, 2)?;
            trainer.end_task(third)?;
        }
        if predictions(&original)? != predictions(&end)? {
            return self.broken("a state restored at the end of a task learns the next one as the saved one");
        }
        for role in [Role::Teacher, Role::Student] {
            if !end.trainable(role).is_empty() && end.restore(role, third, &StateDict::default()).is_ok() {
                return self.broken("a saved state without its tensors is refused");
            }
        }
        Ok(())
    }

    /// A run with predictions between all steps is the run without.
    fn evaluation_leaves_no_trace(&self) -> Result<()> {
        let stream = Noise::new(2);
        let run = |predict: bool| -> Result<_> {
            let mut trainer = self.trainer(8)?;
            for task in stream.tasks() {
                trainer.begin_task(task)?;
                for _ in 0..2 {
                    train(&mut trainer, &stream, task, 1)?;
                    if predict {
                        for role in [Role::Teacher, Role::Student] {
                            trainer.predict(role, &stream.batch(task.index, 55)?.pixels)?;
                        }
                    }
                }
                trainer.end_task(task)?;
            }
            states(&trainer)
        };
        match run(true)? == run(false)? {
            true => Ok(()),
            false => self.broken("evaluation changes nothing"),
        }
    }
}

/// `steps` of the teacher, then of the student.
fn train(trainer: &mut Trainer, stream: &Noise, task: &Task, steps: usize) -> Result<()> {
    for role in [Role::Teacher, Role::Student] {
        let mut optimizer = Optimizer::new(&trainer.settings.optimizer, trainer.trainable(role))?;
        for step in 0..steps {
            let loss = trainer.loss(role, task, &stream.batch(task.index, step)?)?;
            optimizer.step(&loss.total.backward()?)?;
        }
    }
    Ok(())
}

/// Takes the state of one trainer, by way of the bytes of a file, into another.
fn restore(from: &Trainer, to: &mut Trainer, task: &Task) -> Result<()> {
    for role in [Role::Teacher, Role::Student] {
        let bytes = from.state(role)?.to_bytes()?;
        let saved = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)?.into_iter().collect();
        to.restore(role, task, &saved)?;
    }
    Ok(())
}

/// Signs that depend on the tensor's name and a number.
fn random_signs(name: &str, number: usize, count: usize) -> Vec<f64> {
    let mut rng = Rng::new(0).derive(&format!("{name} {number}"));
    (0..count).map(|_| rng.standard_normal().signum()).collect()
}

/// Estimates of the derivative along a direction until one is `near`: central differences at ever smaller steps, and
/// what each gives with the one before when their error in `h²` is cancelled.
fn derivative_near(
    var: &Var,
    direction: &[f64],
    loss: &dyn Fn() -> Result<f64>,
    near: &dyn Fn(f64) -> bool,
) -> Result<Vec<f64>> {
    let mut estimates = Vec::new();
    let mut last: Option<f64> = None;
    for step in [2.7e-2, 9e-3, 3e-3, 1e-3, 1e-3 / 3.0] {
        let now = central_difference(var, direction, step, loss)?;
        estimates.push(now);
        estimates.extend(last.map(|last| (9.0 * now - last) / 8.0));
        if estimates.iter().any(|estimate| near(*estimate)) {
            break;
        }
        last = Some(now);
    }
    Ok(estimates)
}

/// The estimate nearest to `expected`.
fn nearest(estimates: &[f64], expected: f64) -> Option<f64> {
    let distance = |estimate: &f64| (estimate - expected).abs();
    estimates.iter().copied().min_by(|a, b| distance(a).total_cmp(&distance(b)))
}

/// `(f(x + h d) - f(x - h d)) / 2h` of a variable, which is put back.
fn central_difference(
    var: &Var,
    direction: &[f64],
    step: f64,
    loss: &dyn Fn() -> Result<f64>,
) -> Result<f64> {
    let original = var.as_tensor().detach().copy()?;
    let direction = Tensor::new(direction, &Device::Cpu)?.reshape(var.shape())?.to_dtype(var.dtype())?;
    let at = |step: f64| -> Result<f64> {
        var.set(&(&original + (&direction * step)?)?)?;
        loss()
    };
    let (up, down) = (at(step)?, at(-step)?);
    var.set(&original)?;
    Ok((up - down) / (2.0 * step))
}

fn numbers(tensor: &Tensor) -> Result<Vec<f64>> {
    Ok(tensor.flatten_all()?.to_dtype(DType::F64)?.to_vec1()?)
}

/// The entries exactly; float64 holds whatever a state is made of.
fn bits(tensor: &Tensor) -> Result<Vec<u64>> {
    Ok(numbers(tensor)?.into_iter().map(f64::to_bits).collect())
}

fn state_bits(state: &StateDict) -> Result<BTreeMap<String, Vec<u64>>> {
    state.iter().map(|(name, tensor)| Ok((name.to_string(), bits(tensor)?))).collect()
}

/// Everything trained of both networks.
fn states(trainer: &Trainer) -> Result<[BTreeMap<String, Vec<u64>>; 2]> {
    Ok([state_bits(&trainer.state(Role::Teacher)?)?, state_bits(&trainer.state(Role::Student)?)?])
}
