//! Environment for tests of methods: two tiny random vision transformers, a stream of random pixels, and a plain
//! learner and a plain distiller that complete the trainer.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use crate::{
    error::{Error, Result},
    nn::{Linear, kl_divergence},
    registry::{self, Settings},
    rng::Rng,
    train::{DistillerStack, Network, OptimizerConfig, ScheduleConfig, TrainSettings, Trainer},
    traits::{
        Backbone, Batch, Batches, Distiller, DistillerContext, EpochKey, Features, Head, Injection, Kv,
        Learner, LearnerContext, LossTerm, Mode, NamedVar, Output, Pass, Provenance, Query, QuerySource,
        Role, StreamRecord, Task, TaskStream, require_teacher,
    },
    vit::{Vit, VitOptions, VitSizes, VitWeights},
};

pub(super) const TASKS: usize = 3;
pub(super) const CLASSES: usize = 6;
pub(super) const BATCH: usize = 4;
pub(super) const SIDE: usize = 16;
pub(super) const ROLES: [Role; 2] = [Role::Teacher, Role::Student];

/// Sizes of a random vision transformer.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Token width.
    pub width: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Number of attention heads.
    pub heads: usize,
    /// Side of a patch in pixels; images have a side of 16 pixels.
    pub patch: usize,
}

impl Shape {
    /// Sizes of the teacher of [`TestBed::new`].
    pub const TEACHER: Self = Self { width: 24, depth: 7, heads: 3, patch: 4 };
    /// Sizes of the student of [`TestBed::new`].
    pub const STUDENT: Self = Self { width: 16, depth: 6, heads: 2, patch: 4 };
}

/// Two tiny random vision transformers and an environment in which learners and distillers are built, for tests of
/// methods on the stream [`Noise`].
#[derive(Clone)]
pub struct TestBed {
    teacher: Arc<dyn Backbone>,
    student: Arc<dyn Backbone>,
    mode: Mode,
    query: QuerySource,
    rng: Rng,
}

impl TestBed {
    /// Creates a teacher and a student of different sizes. The networks do not depend on `seed`, which is the seed of
    /// learners and distillers.
    pub fn new(seed: u64) -> Result<Self> {
        Self::with_shapes(seed, Shape::TEACHER, Shape::STUDENT)
    }

    /// Creates a test bed with networks of the given sizes.
    pub fn with_shapes(seed: u64, teacher: Shape, student: Shape) -> Result<Self> {
        Ok(Self {
            teacher: Arc::new(random_vit("random teacher", teacher)?),
            student: Arc::new(random_vit("random student", student)?),
            mode: Mode::Published,
            query: QuerySource::Student,
            rng: Rng::new(seed),
        })
    }

    /// Changes the mode and the source of the query.
    pub fn with_mode(self, mode: Mode, query: QuerySource) -> Self {
        Self { mode, query, ..self }
    }

    /// Returns the environments that a plugin must support: the default, the corrected mode with separate queries, a
    /// teacher with fewer blocks than the student, networks of few blocks, and different patch sizes.
    pub(super) fn variants() -> Result<Vec<Self>> {
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

    /// Returns the context with which a learner is built.
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

    /// Returns the context with which a distiller is built.
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

    /// Builds the registered learner `name`, for the teacher and for the student.
    fn learners(&self, name: &str, settings: &Settings) -> Result<[Box<dyn Learner>; 2]> {
        let [teacher, student] =
            ROLES.map(|role| registry::learner(name, settings, &self.learner_context(role)));
        Ok([teacher?, student?])
    }

    /// Builds a trainer with one epoch per task.
    pub fn trainer(
        &self,
        [teacher, student]: [Box<dyn Learner>; 2],
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
                roles: ROLES.into(),
            },
            rng: self.rng.derive("tasks"),
        }
    }

    /// Builds a trainer of registered methods, each with its settings.
    pub fn trainer_of(&self, learner: (&str, &Settings), distiller: (&str, &Settings)) -> Result<Trainer> {
        let learners = self.learners(learner.0, learner.1)?;
        let (name, context) = (distiller.0, self.distiller_context(learners[1].as_ref()));
        let distiller = registry::distiller(name, distiller.1, &context)?;
        Ok(self.trainer(learners, Box::new(DistillerStack::new(vec![(name.into(), 1.0, distiller)])?)))
    }
}

fn random_vit(name: &str, shape: Shape) -> Result<Vit> {
    let Shape { width, depth, heads, patch } = shape;
    let weights = VitWeights::random(name, VitSizes { width, depth, patch_size: patch, image_size: SIDE })?;
    let options = VitOptions { heads: Some(heads), image_size: SIDE, ..VitOptions::default() };
    Vit::new("vit", &weights, &options, Provenance::of_bytes(name, name.as_bytes()), &Device::Cpu)
}

/// Stream of random pixels: three tasks of two classes.
pub struct Noise {
    classes: Vec<String>,
    tasks: Vec<Task>,
    steps: usize,
    poisoned: usize,
}

impl Noise {
    /// Creates the stream with `steps` training steps per epoch.
    pub fn new(steps: usize) -> Self {
        let size = CLASSES / TASKS;
        let task = |index| Task { index, count: TASKS, classes: index * size..(index + 1) * size };
        let classes = (0..CLASSES).map(|class| class.to_string()).collect();
        Self { classes, tasks: (0..TASKS).map(task).collect(), steps, poisoned: usize::MAX }
    }

    /// Replaces all pixels of task `task` and of later tasks by NaN.
    pub fn poisoned_from(self, task: usize) -> Self {
        Self { poisoned: task, ..self }
    }

    /// Returns batch `number` of a task. Equal arguments give equal batches.
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
    fn record(&self) -> Result<StreamRecord> {
        Ok(StreamRecord::of("noise"))
    }
    fn train_batches(&self, key: EpochKey, _batch_size: usize, first: usize) -> Batches<'_> {
        Box::new((first..self.steps).map(move |step| self.batch(key.task, 100 * key.epoch + step)))
    }
    fn test_batches(&self, task: usize, _batch_size: usize) -> Batches<'_> {
        Box::new(std::iter::once(self.batch(task, 10_000)))
    }
}

/// Learner of the kit, used in tests of distillers: a prompt in the first block, an extra token, a penalty, and a
/// linear head on the sum of the CLS token and the extra token.
pub(super) struct PlainPrompts {
    prompts: NamedVar,
    token: NamedVar,
    head: Linear,
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
        })
    }
}

impl Learner for PlainPrompts {
    fn inject(&self, _query: &Query<'_>, pass: Pass) -> Result<Injection> {
        let mut injection = Injection { tokens: Some(self.token.tensor().clone()), ..Injection::none() };
        injection.block_mut(0).prefix = Some(Kv::halves(self.prompts.tensor())?);
        if pass == Pass::Train {
            injection.penalty = Some((self.prompts.tensor().sqr()?.mean_all()? * 0.1)?);
        }
        Ok(injection)
    }
    fn logits(&self, features: &Features) -> Result<Tensor> {
        let tokens = features.tokens.as_ref().filter(|tokens| tokens.dim(1).is_ok_and(|count| count == 1));
        let (owner, reason) = ("learner".into(), "the features do not contain its one injected token".into());
        let token = tokens.ok_or(Error::State { owner, reason })?.squeeze(1)?;
        self.head.forward(&(&features.cls + token)?)
    }
    fn new_head(&self, name: &str, rng: &mut Rng) -> Result<Box<dyn Head>> {
        Ok(Box::new(self.head.like(name, rng)?))
    }
    fn trainable(&self) -> Vec<NamedVar> {
        [self.prompts.clone(), self.token.clone()].into_iter().chain(self.head.trainable()).collect()
    }
}

/// Distiller of the kit, used in tests of learners: soft targets, and an extra token whose output is not used.
pub(super) struct SoftTargets {
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

/// Builds a trainer of the learner `name` in both networks, with the distiller of the kit.
pub(super) fn learner_trainer(bed: &TestBed, name: &str, settings: &Settings) -> Result<Trainer> {
    let distiller = SoftTargets { width: bed.student.spec().width };
    Ok(bed.trainer(bed.learners(name, settings)?, Box::new(distiller)))
}

/// Builds a trainer of the distiller `name`, with the learner of the kit in both networks.
pub(super) fn distiller_trainer(bed: &TestBed, name: &str, settings: &Settings) -> Result<Trainer> {
    let [teacher, student] = ROLES.map(|role| PlainPrompts::new(&bed.learner_context(role)));
    let learners: [Box<dyn Learner>; 2] = [Box::new(teacher?), Box::new(student?)];
    let distiller = registry::distiller(name, settings, &bed.distiller_context(learners[1].as_ref()))?;
    Ok(bed.trainer(learners, distiller))
}
