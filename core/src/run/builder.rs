//! The parts of an experiment, each built as soon as what it needs is there: a part that cannot be built does not hide
//! what is wrong with the others.

use std::{collections::BTreeSet, sync::Arc};

use candle_core::Device;

use crate::{
    config::Config,
    data::STREAM_RNG,
    error::{Error, Result},
    registry::{self, lookup},
    rng::Rng,
    run::Experiment,
    system::device,
    train::{Network, Stack, TrainSettings, Trainer},
    traits::{
        Backbone, BackboneContext, BackboneSpec, Distiller, DistillerContext, Learner, LearnerContext,
        QuerySource, Role, StreamContext, TaskStream,
    },
};

/// How much is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    /// Nothing after the first mistake.
    First,
    /// Everything.
    Last,
}

/// What could be built.
#[derive(Default)]
pub(crate) struct Parts {
    pub(crate) device: Option<Device>,
    pub(crate) stream: Option<Box<dyn TaskStream>>,
    pub(crate) teacher: Option<Arc<dyn Backbone>>,
    pub(crate) student: Option<Arc<dyn Backbone>>,
    teacher_learner: Option<Box<dyn Learner>>,
    student_learner: Option<Box<dyn Learner>>,
    distiller: Option<Box<dyn Distiller>>,
    /// What could not be looked at, and what it waits for.
    pub(crate) skipped: Vec<String>,
}

/// What a run's seed gives the learner of `role`.
pub(crate) fn learner_rng(seed: &Rng, role: Role) -> Rng {
    seed.derive(&format!("{}/learner", role.as_str()))
}

/// What it gives distiller `index`.
pub(crate) fn distiller_rng(seed: &Rng, index: usize) -> Rng {
    seed.derive(&if index == 0 { "distiller".into() } else { format!("distiller {}", index + 1) })
}

/// Builds the parts one after the other.
struct Builder<'a> {
    config: &'a Config,
    /// Sections that are known to be wrong: they are built for the sake of others, without what is wrong.
    faulty: &'a BTreeSet<String>,
    until: Until,
    rng: Rng,
    mistakes: Vec<Error>,
    parts: Parts,
}

impl Parts {
    /// Builds what can be built, and gives back what was found wrong, each mistake once and those of the sections in
    /// `faulty`, which are known to be wrong, left out.
    pub(crate) fn build(config: &Config, faulty: &BTreeSet<String>, until: Until) -> (Self, Vec<Error>) {
        let mut builder = Builder::new(config, faulty, until);
        builder.take(&[
            Builder::device,
            Builder::stream,
            Builder::batches,
            Builder::student,
            Builder::teacher,
            Builder::learners,
            Builder::distiller,
            Builder::names,
        ]);
        (builder.parts, builder.mistakes)
    }

    /// Data and, if `networks`, weights alone, brought onto this machine where they are elsewhere.
    pub(crate) fn inputs(config: &Config, networks: bool) -> (Self, Vec<Error>) {
        let faulty = BTreeSet::new();
        let mut builder = Builder::new(config, &faulty, Until::Last);
        builder.take(&[Builder::device, Builder::stream]);
        if networks {
            builder.take(&[Builder::student, Builder::teacher]);
        }
        (builder.parts, builder.mistakes)
    }

    /// The experiment, of parts that are all there.
    ///
    /// # Errors
    /// A part that is not there.
    pub(crate) fn assemble(self, config: &Config) -> Result<Experiment> {
        let run = &config.run;
        let Self {
            device: Some(device),
            stream: Some(stream),
            teacher: Some(teacher),
            student: Some(student),
            teacher_learner: Some(teacher_learner),
            student_learner: Some(student_learner),
            distiller: Some(distiller),
            ..
        } = self
        else {
            return Err(Error::Tasks("a part of the run could not be built".into()));
        };
        let trainer = Trainer {
            teacher: Network { backbone: teacher, learner: teacher_learner },
            student: Network { backbone: student, learner: student_learner },
            distiller,
            settings: TrainSettings {
                epochs: run.epochs,
                batch_size: run.batch_size,
                optimizer: run.optimizer.clone(),
                schedule: run.schedule.clone(),
                mode: run.mode,
                query: run.query.unwrap_or(QuerySource::of_mode(run.mode)),
                roles: run.roles(),
            },
            rng: Rng::new(run.seed).derive("tasks"),
        };
        Ok(Experiment { stream, trainer, device })
    }

    /// Whether nothing is missing.
    pub(crate) fn complete(&self) -> bool {
        let networks = self.teacher.is_some() && self.student.is_some();
        let learners = self.teacher_learner.is_some() && self.student_learner.is_some();
        let around = self.device.is_some() && self.stream.is_some() && self.distiller.is_some();
        networks && learners && around
    }

    /// The frozen network of `role`.
    pub(crate) fn backbone(&self, role: Role) -> Option<&Arc<dyn Backbone>> {
        match role {
            Role::Teacher => self.teacher.as_ref(),
            Role::Student => self.student.as_ref(),
        }
    }
}

impl<'a> Builder<'a> {
    fn new(config: &'a Config, faulty: &'a BTreeSet<String>, until: Until) -> Self {
        let rng = Rng::new(config.run.seed);
        Self { config, faulty, until, rng, mistakes: Vec::new(), parts: Parts::default() }
    }

    fn take(&mut self, steps: &[fn(&mut Self)]) {
        for step in steps {
            step(self);
            if self.until == Until::First && !self.mistakes.is_empty() {
                break;
            }
        }
    }

    /// Notes a mistake once: both networks' learners often share theirs.
    fn note<T>(&mut self, built: Result<T>) -> Option<T> {
        match built {
            Ok(built) => Some(built),
            Err(error) => {
                let known = self.mistakes.iter().any(|known| known.to_string() == error.to_string());
                if !known {
                    self.mistakes.push(error);
                }
                None
            }
        }
    }

    fn skip(&mut self, what: &str, needs: &str) {
        let skipped = format!("{what}: needs {needs}");
        if !self.parts.skipped.contains(&skipped) {
            self.parts.skipped.push(skipped);
        }
    }

    /// Notes a mistake of a section, unless it is known to be wrong: what else is wrong with it may come from what was left
    /// out there.
    fn note_in<T>(&mut self, section: &str, built: Result<T>) -> Option<T> {
        match built {
            Err(_) if self.faulty.contains(section) => {
                self.skip(section, "valid settings");
                None
            }
            built => self.note(built),
        }
    }

    fn device(&mut self) {
        let device = device::open(&self.config.run.device, self.config.run.precision).map_err(|e| match e {
            Error::Setting { key, value, expected, .. } => {
                Error::Setting { origin: self.config.origin(&key), key, value, expected }
            }
            error => error,
        });
        self.parts.device = self.note(device);
    }

    fn stream(&mut self) {
        let run = &self.config.run;
        let device = self.parts.device.clone().unwrap_or(Device::Cpu);
        let context = StreamContext { mode: run.mode, device: &device, rng: self.rng.derive(STREAM_RNG) };
        let stream = registry::stream(&run.stream.name, &run.stream.settings, &context)
            .map_err(|e| self.config.locate("stream", e));
        self.parts.stream = self.note_in("stream", stream);
    }

    fn batches(&mut self) {
        if let Some(stream) = &self.parts.stream {
            let origin = self.config.origin("batch_size");
            let fits = check_batches(stream.as_ref(), self.config.run.batch_size, &origin);
            self.note_in("stream", fits);
        }
    }

    fn student(&mut self) {
        self.parts.student = self.network(Role::Student);
    }

    fn teacher(&mut self) {
        self.parts.teacher = self.network(Role::Teacher);
    }

    fn network(&mut self, role: Role) -> Option<Arc<dyn Backbone>> {
        let run = &self.config.run;
        let section = run.network(role);
        // Without the stream, its settings say the size as well.
        let written = || lookup(&run.stream.settings, "transform.image_size")?.as_integer()?.try_into().ok();
        let Some(image_size) = self.parts.stream.as_ref().map(|s| s.image_size()).or_else(written) else {
            self.skip(role.as_str(), "the stream's image size");
            return None;
        };
        let device = self.parts.device.clone().unwrap_or(Device::Cpu);
        let (mode, precision) = (run.mode, run.precision);
        let context = BackboneContext { role, image_size, mode, device: &device, precision, folder: None };
        let built =
            registry::backbone(&section.name, &section.settings, &context).map_err(|error| match error {
                // The image's size is the stream's to set.
                Error::Setting { key, value, expected, .. } if key == "image_size" => {
                    self.config.locate("stream.transform", Error::setting(&key, value, expected))
                }
                error => self.config.locate(role.as_str(), error),
            });
        self.note_in(role.as_str(), built)
    }

    /// Tasks of the whole stream, also where a run stops early. Without the stream, as many as its settings say.
    fn tasks(&self) -> usize {
        let settings = &self.config.run.stream.settings;
        let written = || match lookup(settings, "task_classes").and_then(|lists| lists.as_array()) {
            Some(lists) => lists.len(),
            None => lookup(settings, "tasks")
                .and_then(|tasks| usize::try_from(tasks.as_integer()?).ok())
                .unwrap_or(1),
        };
        match &self.parts.stream {
            Some(stream) => stream.tasks().first().map_or(1, |task| task.count),
            None => written(),
        }
    }

    fn learners(&mut self) {
        self.parts.teacher_learner = self.learner(Role::Teacher);
        if self.until == Until::First && !self.mistakes.is_empty() {
            return;
        }
        self.parts.student_learner = self.learner(Role::Student);
    }

    fn learner(&mut self, role: Role) -> Option<Box<dyn Learner>> {
        let (section, place) = self.config.run.learner(role);
        let run = &self.config.run;
        let query = run.query.unwrap_or(QuerySource::of_mode(run.mode));
        let spec = |role: Role| self.parts.backbone(role).map(|backbone| backbone.spec().clone());
        let (own, student) = (spec(role), spec(Role::Student));
        let querying = if query == QuerySource::Own { own.clone() } else { student };
        let (Some(backbone), Some(querying)) = (own, querying) else {
            self.skip(&format!("learner of the {}", role.as_str()), "its network");
            return None;
        };
        let tasks = self.tasks();
        let context = LearnerContext {
            role,
            backbone: &backbone,
            query_width: querying.width,
            // Without the stream, a class for each task: no setting depends on the rows of a head.
            classes: self.parts.stream.as_ref().map_or(tasks, |stream| stream.classes().len()),
            tasks,
            mode: run.mode,
            device: &self.parts.device.clone().unwrap_or(Device::Cpu),
            rng: learner_rng(&self.rng, role),
            saved: None,
        };
        let learner = registry::learner(&section.name, &section.settings, &context)
            .map_err(|e| self.config.locate(&place, e));
        // A network's own learner has from `[learner]` what it does not say itself.
        let section = if self.faulty.contains("learner") { "learner" } else { &place };
        self.note_in(section, learner)
    }

    fn distiller(&mut self) {
        let sections = self.config.run.distillers();
        let many = self.config.run.distillers.is_some();
        let place = |index: usize| if many { format!("distillers[{index}]") } else { "distiller".into() };
        let spec = |role: Role| self.parts.backbone(role).map(|backbone| backbone.spec().clone());
        let (teacher, student) = (spec(Role::Teacher), spec(Role::Student));
        let learner = self.parts.student_learner.take();
        let (Some(teacher), Some(student), Some(learner)) = (teacher, student, learner) else {
            return self.skip("distiller", "both networks and the student's learner");
        };
        let mut built = Vec::new();
        for (index, section) in sections.iter().enumerate() {
            let distiller = self.one_distiller(index, &place(index), &teacher, &student, learner.as_ref());
            if let Some(distiller) = self.note_in(&place(index), distiller) {
                built.push((section.name.clone(), section.weight, distiller));
            } else if self.until == Until::First {
                break;
            }
        }
        self.parts.student_learner = Some(learner);
        if built.len() == sections.len() {
            let stack = Stack::new(built);
            self.parts.distiller = self.note(stack).map(|stack| Box::new(stack) as Box<dyn Distiller>);
        }
    }

    fn one_distiller(
        &self,
        index: usize,
        place: &str,
        teacher: &BackboneSpec,
        student: &BackboneSpec,
        learner: &dyn Learner,
    ) -> Result<Box<dyn Distiller>> {
        let run = &self.config.run;
        let section = &run.distillers()[index];
        let context = DistillerContext {
            teacher,
            student,
            learner,
            tasks: self.tasks(),
            mode: run.mode,
            device: &self.parts.device.clone().unwrap_or(Device::Cpu),
            rng: distiller_rng(&self.rng, index),
            saved: None,
        };
        let distiller = registry::distiller(&section.name, &section.settings, &context)
            .map_err(|e| self.config.locate(place, e))?;
        for (key, trained, reason) in [
            ("train_teacher", run.train_teacher, "learns from the teacher"),
            ("train_student", run.train_student, "teaches the student"),
        ] {
            if !trained && distiller.needs_teacher() {
                let expected = format!("the distiller `{}` {reason}; choose one that does not", section.name);
                let (origin, value) = (self.config.origin(key), "false".into());
                return Err(Error::Setting { origin, key: key.into(), value, expected });
            }
        }
        Ok(distiller)
    }

    /// Two tensors of one name could not be saved side by side.
    fn names(&mut self) {
        if let (Some(learner), Some(distiller)) = (&self.parts.student_learner, &self.parts.distiller) {
            let checked = check_names(self.config, learner.as_ref(), distiller.as_ref());
            self.note(checked);
        }
    }
}

fn check_names(config: &Config, learner: &dyn Learner, distiller: &dyn Distiller) -> Result<()> {
    let (learners, distillers) = (learner.state()?, distiller.state()?);
    match distillers.iter().find(|(name, _)| learners.get(name).is_some()) {
        None => Ok(()),
        Some((name, _)) => {
            let all: Vec<&str> =
                config.run.distillers().iter().map(|section| section.name.as_str()).collect();
            Err(Error::Incompatible {
                first: config.run.learner(Role::Student).0.name,
                second: all.join("`, `"),
                reason: format!("learner and distiller both have a tensor called `{name}`"),
            })
        }
    }
}

/// Every task must fill at least one batch, since incomplete batches are dropped in training.
fn check_batches(stream: &dyn TaskStream, batch_size: usize, origin: &str) -> Result<()> {
    let smallest = stream
        .tasks()
        .iter()
        .map(|task| (stream.train_count(task.index), task.index))
        .min()
        .unwrap_or((0, 0));
    if smallest.0 < batch_size {
        return Err(Error::Setting {
            origin: origin.into(),
            key: "batch_size".into(),
            value: batch_size.to_string(),
            expected: format!(
                "at most {}, the training images of task {}: incomplete batches are dropped",
                smallest.0,
                smallest.1 + 1
            ),
        });
    }
    Ok(())
}
