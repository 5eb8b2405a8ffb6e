//! The conformance kit: what a plugin promises by implementing [`Learner`] or [`Distiller`], checked in one line.
//!
//! ```ignore
//! #[test]
//! fn it_keeps_its_promises() -> cdl_core::Result<()> {
//!     cdl_core::testing::check_distiller("my_method", "alpha = 0.5")
//! }
//! ```
//!
//! The plugin is found by its registered name and run on a [`Lab`]: two tiny random vision transformers and a stream
//! of random pixels in two tasks. Checked are its settings, the shapes of what it returns, its gradients against
//! finite differences, that everything it trains gets a gradient and nothing else changes, that a seed decides
//! everything, that a saved state restores it, and that evaluation leaves no trace. The first broken promise is
//! returned as [`Error::Promise`].

use std::{collections::BTreeSet, sync::Arc};

use candle_core::{DType, Device, Tensor, Var};

use crate::{
    Backbone, BackboneSpec, Batch, Batches, Distiller, DistillerContext, EpochKey, Error, Features, Head,
    Injection, Kv, Learner, LearnerContext, Linear, LossTerm, Mode, NamedVar, Network, Normalization,
    Optimizer, OptimizerConfig, Output, Pass, Query, QuerySource, Result, Rng, Role, ScheduleConfig,
    StateDict, Task, TaskStream, TrainSettings, Trainer,
    hub::Provenance,
    loss::kl_divergence,
    registry::{self, Kind, Settings},
    require_teacher,
    vit::{Vit, VitOptions, VitWeights},
};

const TASKS: usize = 2;
const CLASSES: usize = 6;
const BATCH: usize = 4;
const SIDE: usize = 16;

/// Checks the learner registered as `name`, with `settings` in TOML.
///
/// # Errors
/// The first promise that it breaks, or whatever it fails with itself.
pub fn check_learner(name: &str, settings: &str) -> Result<()> {
    let settings = read_settings(Kind::Learner, name, settings)?;
    let build = |seed: u64| -> Result<Trainer> {
        let lab = Lab::new(seed)?;
        let (teacher, student) =
            (lab.learner(Role::Teacher, name, &settings)?, lab.learner(Role::Student, name, &settings)?);
        Ok(lab.trainer(teacher, student, Box::new(SoftTargets)))
    };
    let check = Check { plugin: name, build: &build };
    check.learner_shapes()?;
    check.everything()
}

/// Checks the distiller registered as `name`, with `settings` in TOML.
///
/// # Errors
/// The first promise that it breaks, or whatever it fails with itself.
pub fn check_distiller(name: &str, settings: &str) -> Result<()> {
    let settings = read_settings(Kind::Distiller, name, settings)?;
    let build = |seed: u64| -> Result<Trainer> {
        let lab = Lab::new(seed)?;
        let plain = |role| -> Result<Box<dyn Learner>> {
            Ok(Box::new(PlainPrompts::new(&lab.learner_context(role))?))
        };
        let (teacher, student) = (plain(Role::Teacher)?, plain(Role::Student)?);
        let distiller = registry::distiller(name, &settings, &lab.distiller_context(student.as_ref()))?;
        Ok(lab.trainer(teacher, student, distiller))
    };
    let check = Check { plugin: name, build: &build };
    check.distiller_shapes()?;
    check.everything()
}

fn broken<T>(plugin: &str, promise: impl Into<String>) -> Result<T> {
    Err(Error::Promise { plugin: plugin.into(), promise: promise.into() })
}

/// Reads settings as a configuration would, and checks that they can be described to a user.
fn read_settings(kind: Kind, name: &str, settings: &str) -> Result<Settings> {
    let entry = registry::find(kind, name)?;
    let schema = (entry.schema)();
    for (key, property) in schema.get("properties").and_then(|p| p.as_object()).into_iter().flatten() {
        if ["name", "weight", "learner"].contains(&key.as_str()) {
            return broken(
                name,
                format!("a setting cannot be called `{key}`: configurations use that key themselves"),
            );
        }
        if property.get("description").is_none() {
            return broken(
                name,
                format!("its setting `{key}` has no doc comment, so `cdl describe` cannot explain it"),
            );
        }
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
pub struct Lab {
    teacher: Arc<dyn Backbone>,
    student: Arc<dyn Backbone>,
    stream: Noise,
    rng: Rng,
}

impl Lab {
    /// A teacher and a student of different sizes. The networks are always the same; `seed` decides what learners and
    /// distillers draw.
    pub fn new(seed: u64) -> Result<Self> {
        Self::with_shapes(seed, Shape::TEACHER, Shape::STUDENT)
    }

    /// The same with networks of these sizes.
    pub fn with_shapes(seed: u64, teacher: Shape, student: Shape) -> Result<Self> {
        Ok(Self {
            teacher: Arc::new(random_vit("random teacher", teacher)?),
            student: Arc::new(random_vit("random student", student)?),
            stream: Noise::new(3),
            rng: Rng::new(seed),
        })
    }

    /// Its images.
    pub fn stream(&self) -> &Noise {
        &self.stream
    }

    /// What a learner is built with here.
    pub fn learner_context(&self, role: Role) -> LearnerContext<'_> {
        let backbone = match role {
            Role::Teacher => &self.teacher,
            Role::Student => &self.student,
        };
        LearnerContext {
            role,
            backbone: backbone.spec(),
            query_width: self.student.spec().width,
            classes: CLASSES,
            tasks: TASKS,
            mode: Mode::Published,
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
            mode: Mode::Published,
            device: &Device::Cpu,
            rng: self.rng.derive("distiller"),
        }
    }

    /// The registered learner `name`.
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
                mode: Mode::Published,
                query: QuerySource::Student,
                roles: vec![Role::Teacher, Role::Student],
            },
            rng: self.rng.derive("tasks"),
        }
    }

    /// A trainer of registered methods with their default settings, pools of prompts made small.
    pub fn trainer_of(&self, learner: &str, distiller: &str) -> Result<Trainer> {
        let mut settings = Settings::new();
        if (registry::find(Kind::Learner, learner)?.defaults)()?.contains_key("pool") {
            settings.insert("pool".into(), toml::Value::Integer(8));
        }
        let (teacher, student) = (
            self.learner(Role::Teacher, learner, &settings)?,
            self.learner(Role::Student, learner, &settings)?,
        );
        let distiller =
            registry::distiller(distiller, &Settings::new(), &self.distiller_context(student.as_ref()))?;
        Ok(self.trainer(teacher, student, distiller))
    }
}

/// Random weights of 1/√(inputs), so that attention is uneven and GELU is used on both sides of zero.
fn random_vit(name: &str, shape: Shape) -> Result<Vit> {
    let Shape { width, depth, heads, patch } = shape;
    let rng = Rng::new(0).derive(name);
    let mut weights = StateDict::default();
    let mut add = |name: String, shape: &[usize], mean: f64, std: f32| -> Result<()> {
        let value = rng.derive(&name).normal(shape, std, &Device::Cpu)?;
        weights.insert(name, (value + mean)?);
        Ok(())
    };
    let tokens = 1 + (SIDE / patch) * (SIDE / patch);
    add("cls_token".into(), &[1, 1, width], 0.0, 0.5)?;
    add("pos_embed".into(), &[1, tokens, width], 0.0, 0.5)?;
    let pixels = 3 * patch * patch;
    add("patch_embed.proj.weight".into(), &[width, 3, patch, patch], 0.0, 1.0 / (pixels as f32).sqrt())?;
    add("patch_embed.proj.bias".into(), &[width], 0.0, 0.2)?;
    let norms = (0..depth).flat_map(|b| [format!("blocks.{b}.norm1"), format!("blocks.{b}.norm2")]);
    for norm in norms.chain(["norm".to_string()]) {
        add(format!("{norm}.weight"), &[width], 1.0, 0.2)?;
        add(format!("{norm}.bias"), &[width], 0.0, 0.2)?;
    }
    for block in 0..depth {
        for (part, outputs, inputs) in [
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.fc1", 4 * width, width),
            ("mlp.fc2", width, 4 * width),
        ] {
            add(
                format!("blocks.{block}.{part}.weight"),
                &[outputs, inputs],
                0.0,
                1.0 / (inputs as f32).sqrt(),
            )?;
            add(format!("blocks.{block}.{part}.bias"), &[outputs], 0.0, 0.2)?;
        }
    }
    let bytes = weights.to_bytes()?;
    let options =
        VitOptions { heads: Some(heads), depth: None, image_size: SIDE, normalization: Normalization::NONE };
    let weights = VitWeights::from_bytes(name.into(), &bytes, None)?;
    Vit::new("vit", &weights, &options, Provenance::of_bytes(name, &bytes), &Device::Cpu)
}

/// A stream of random pixels: two tasks of three classes.
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

/// The kit's own learner, a partner for distillers under test: one prompt in the first block and a linear head.
struct PlainPrompts {
    prompts: NamedVar,
    head: Linear,
    width: usize,
}

impl PlainPrompts {
    fn new(context: &LearnerContext<'_>) -> Result<Self> {
        let (width, mut rng) = (context.backbone.width, context.rng.clone());
        let prompts = rng.uniform(&[1, 4, width], 0.0, 1.0, context.device)?;
        Ok(Self {
            prompts: NamedVar::new("prompt.p_0", &prompts)?,
            head: Linear::new("last", width, context.classes, &mut rng, context.device)?,
            width,
        })
    }
}

impl Learner for PlainPrompts {
    fn begin_task(&mut self, _task: &Task, _rng: &mut Rng) -> Result<()> {
        Ok(())
    }
    fn inject(&self, _query: &Query<'_>, _pass: Pass) -> Result<Injection> {
        let mut injection = Injection::none();
        injection.block_mut(0).prefix = Some(Kv::halves(self.prompts.tensor())?);
        Ok(injection)
    }
    fn logits(&self, features: &Features) -> Result<Tensor> {
        self.head.forward(&features.cls)
    }
    fn new_head(&self, name: &str, rng: &mut Rng) -> Result<Box<dyn Head>> {
        Ok(Box::new(Linear::new(name, self.width, CLASSES, rng, &Device::Cpu)?))
    }
    fn end_task(&mut self, _task: &Task) -> Result<()> {
        Ok(())
    }
    fn trainable(&self) -> Vec<NamedVar> {
        std::iter::once(self.prompts.clone()).chain(self.head.trainable()).collect()
    }
    fn state(&self) -> Result<StateDict> {
        StateDict::of(&self.trainable())
    }
    fn restore(&mut self, _task: &Task, state: &StateDict) -> Result<()> {
        state.load_into(&self.trainable())
    }
}

/// The kit's own distiller, a partner for learners under test.
struct SoftTargets;

impl Distiller for SoftTargets {
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

/// A plugin under test in a trainer that can be built again and again.
struct Check<'a> {
    plugin: &'a str,
    build: &'a dyn Fn(u64) -> Result<Trainer>,
}

impl Check<'_> {
    fn broken<T>(&self, promise: impl Into<String>) -> Result<T> {
        broken(self.plugin, promise)
    }

    /// What holds for learners and distillers alike.
    fn everything(&self) -> Result<()> {
        self.gradients_are_derivatives()?;
        self.what_is_trained_moves_and_nothing_else()?;
        self.a_seed_decides_everything()?;
        self.a_saved_state_restores_it()?;
        self.evaluation_leaves_no_trace()
    }

    fn learner_shapes(&self) -> Result<()> {
        let mut trainer = (self.build)(1)?;
        let stream = Noise::new(1);
        for task in stream.tasks() {
            trainer.begin_task(task)?;
            for network in [&trainer.teacher, &trainer.student] {
                let spec = network.backbone.spec();
                for (pass, images) in
                    [(Pass::Train, BATCH), (Pass::Teach, BATCH), (Pass::Test, BATCH), (Pass::Test, 1)]
                {
                    let pixels = stream.batch(task.index, 0)?.pixels.narrow(0, 0, images)?;
                    let query = Query::of(trainer.student.backbone.as_ref(), &pixels);
                    let injection = network.learner.inject(&query, pass)?;
                    self.injection_fits(&injection, spec, images)?;
                    if injection.penalty.as_ref().is_some_and(|penalty| penalty.rank() != 0) {
                        return self.broken("a penalty is a scalar");
                    }
                    if pass != Pass::Train && injection.penalty.is_some() {
                        return self
                            .broken(format!("a penalty applies in training alone, but {pass:?} has one"));
                    }
                    let features = network.backbone.forward(&pixels, &injection, &crate::Taps::none())?;
                    self.logits_fit("logits", &network.learner.logits(&features)?, images)?;
                    let head = network.learner.new_head("second", &mut Rng::new(0))?;
                    self.logits_fit("the logits of a further head", &head.logits(&features.cls)?, images)?;
                    let named = head.trainable().iter().all(|var| var.name.starts_with("second."));
                    if head.trainable().is_empty() || !named {
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

    fn distiller_shapes(&self) -> Result<()> {
        let mut trainer = (self.build)(1)?;
        let stream = Noise::new(1);
        let weight = trainer.distiller.cross_entropy_weight();
        if !(0.0..=1.0).contains(&weight) {
            return self.broken(format!("the weight of the labels is a number from 0 to 1, not {weight}"));
        }
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
            let loss = trainer.loss(Role::Student, task, &stream.batch(task.index, 0)?)?;
            let mut names = BTreeSet::new();
            for term in &loss.terms {
                if !names.insert(&term.name) {
                    return self.broken(format!("two loss terms are called `{}`", term.name));
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
        match logits.flatten_all()?.to_vec1::<f32>()?.iter().all(|v| v.is_finite()) {
            true => Ok(()),
            false => self.broken(format!("{what} are finite numbers")),
        }
    }

    /// Central differences in the first task (later ones may hold what earlier ones trained), of some of the largest
    /// and some random entries of every tensor. In float32 and with choices that jump, no one step size is right for
    /// all; the best of several counts, which a gradient that is wrong or missing cannot meet.
    fn gradients_are_derivatives(&self) -> Result<()> {
        let mut trainer = (self.build)(2)?;
        let stream = Noise::new(1);
        let (task, batch) = (&stream.tasks()[0], stream.batch(0, 0)?);
        trainer.begin_task(task)?;
        for role in [Role::Teacher, Role::Student] {
            let gradients = trainer.loss(role, task, &batch)?.total.backward()?;
            let loss = || -> Result<f64> {
                Ok(trainer.loss(role, task, &batch)?.total.to_dtype(DType::F64)?.to_scalar::<f64>()?)
            };
            let floor = 3e-4 * loss()?.abs().max(1.0);
            for NamedVar { name, var } in trainer.trainable(role) {
                let gradient = match gradients.get(var.as_tensor()) {
                    Some(gradient) => numbers(gradient)?,
                    None => vec![0.0; var.elem_count()],
                };
                let largest = gradient.iter().fold(0f32, |all, g| all.max(g.abs())) as f64;
                for entry in entries_to_check(&name, &gradient) {
                    let expected = gradient[entry] as f64;
                    let found = [1e-1, 2e-2, 4e-3]
                        .into_iter()
                        .map(|step| central_difference(&var, entry, step, &loss))
                        .collect::<Result<Vec<_>>>()?;
                    if !found.iter().any(|found| (found - expected).abs() <= 0.01 * largest + floor) {
                        return self.broken(format!(
                            "the gradient of `{name}` is the derivative of the {} loss: entry {entry} is {expected:.4e}, \
                             finite differences give {found:?}",
                            role.as_str()
                        ));
                    }
                }
            }
        }
        Ok(())
    }

    fn what_is_trained_moves_and_nothing_else(&self) -> Result<()> {
        let mut trainer = (self.build)(3)?;
        let stream = Noise::new(4);
        let frozen = |trainer: &Trainer| -> Result<Vec<Vec<u32>>> {
            let both = [&trainer.teacher, &trainer.student];
            both.iter()
                .flat_map(|network| network.backbone.weights())
                .map(|(_, tensor)| bits(&tensor))
                .collect()
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
                for ((name, before), (_, after)) in own.iter().zip(state_bits(&trainer.state(role)?)?) {
                    if names.contains(name) == (*before == after) {
                        return self.broken(format!("`{name}` changes in training exactly if it is trained"));
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
            let mut trainer = (self.build)(4)?;
            trainer.run(&Noise::new(3), &mut |_| Ok(()))?;
            Ok((state_bits(&trainer.state(Role::Teacher)?)?, state_bits(&trainer.state(Role::Student)?)?))
        };
        match run()? == run()? {
            true => Ok(()),
            false => self.broken("the same seed gives the same run"),
        }
    }

    /// In the middle of the second task, into a trainer that was made with another seed: predictions and the next
    /// steps are the same.
    fn a_saved_state_restores_it(&self) -> Result<()> {
        let stream = Noise::new(2);
        let [mut original, mut restored] = [(self.build)(5)?, (self.build)(6)?];
        let (first, second) = (&stream.tasks()[0], &stream.tasks()[1]);
        original.begin_task(first)?;
        self.train(&mut original, &stream, first, 2)?;
        original.end_task(first)?;
        original.begin_task(second)?;
        self.train(&mut original, &stream, second, 2)?;
        for role in [Role::Teacher, Role::Student] {
            let bytes = original.state(role)?.to_bytes()?;
            let saved = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)?.into_iter().collect();
            restored.restore(role, second, &saved)?;
        }
        let pixels = stream.batch(1, 77)?.pixels;
        let predictions = |trainer: &Trainer| -> Result<_> {
            Ok((
                bits(&trainer.predict(Role::Teacher, &pixels)?)?,
                bits(&trainer.predict(Role::Student, &pixels)?)?,
            ))
        };
        if predictions(&original)? != predictions(&restored)? {
            return self.broken("a restored state predicts as the saved one");
        }
        for trainer in [&mut original, &mut restored] {
            self.train(trainer, &stream, second, 2)?;
            trainer.end_task(second)?;
        }
        match predictions(&original)? == predictions(&restored)? {
            true => Ok(()),
            false => self.broken("a restored state trains on as the saved one"),
        }
    }

    /// A run with predictions between all steps is the run without.
    fn evaluation_leaves_no_trace(&self) -> Result<()> {
        let stream = Noise::new(2);
        let run = |predict: bool| -> Result<_> {
            let mut trainer = (self.build)(7)?;
            for task in stream.tasks() {
                trainer.begin_task(task)?;
                for _ in 0..2 {
                    self.train(&mut trainer, &stream, task, 1)?;
                    if predict {
                        for role in [Role::Teacher, Role::Student] {
                            trainer.predict(role, &stream.batch(task.index, 55)?.pixels)?;
                        }
                    }
                }
                trainer.end_task(task)?;
            }
            Ok((state_bits(&trainer.state(Role::Teacher)?)?, state_bits(&trainer.state(Role::Student)?)?))
        };
        match run(true)? == run(false)? {
            true => Ok(()),
            false => self.broken("evaluation changes nothing"),
        }
    }

    /// `steps` of the teacher, then of the student.
    fn train(&self, trainer: &mut Trainer, stream: &Noise, task: &Task, steps: usize) -> Result<()> {
        for role in [Role::Teacher, Role::Student] {
            let mut optimizer = Optimizer::new(&trainer.settings.optimizer, trainer.trainable(role))?;
            for step in 0..steps {
                let loss = trainer.loss(role, task, &stream.batch(task.index, step)?)?;
                optimizer.step(&loss.total.backward()?)?;
            }
        }
        Ok(())
    }
}

/// The two entries with the largest gradient and two at random.
fn entries_to_check(name: &str, gradient: &[f32]) -> BTreeSet<usize> {
    let mut order: Vec<usize> = (0..gradient.len()).collect();
    let mut random = order.clone();
    order.sort_by(|a, b| gradient[*b].abs().total_cmp(&gradient[*a].abs()));
    Rng::new(0).derive(name).shuffle(&mut random);
    order.into_iter().take(2).chain(random.into_iter().take(2)).collect()
}

/// `(f(x + h) - f(x - h)) / 2h` in one entry of a variable, which is put back.
fn central_difference(var: &Var, entry: usize, step: f32, loss: &dyn Fn() -> Result<f64>) -> Result<f64> {
    let original = numbers(var.as_tensor())?;
    let at = |offset: f32| -> Result<(f64, f32)> {
        let mut values = original.clone();
        values[entry] += offset;
        let moved = values[entry] - original[entry];
        var.set(&Tensor::from_vec(values, var.shape(), var.device())?)?;
        Ok((loss()?, moved))
    };
    let (up, down) = (at(step)?, at(-step)?);
    var.set(&Tensor::from_vec(original, var.shape(), var.device())?)?;
    Ok((up.0 - down.0) / f64::from(up.1 - down.1))
}

fn numbers(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.flatten_all()?.to_vec1::<f32>()?)
}

fn bits(tensor: &Tensor) -> Result<Vec<u32>> {
    Ok(numbers(tensor)?.into_iter().map(f32::to_bits).collect())
}

fn state_bits(state: &StateDict) -> Result<Vec<(String, Vec<u32>)>> {
    state.iter().map(|(name, tensor)| Ok((name.to_string(), bits(tensor)?))).collect()
}
