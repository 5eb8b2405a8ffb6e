//! From a configuration to everything that a run needs; whatever can be wrong is found here, before anything is
//! written.

use std::collections::BTreeMap;

use candle_core::Device;
use serde::Serialize;

use crate::{
    BackboneContext, BackboneSpec, Config, Distiller, DistillerContext, Error, LearnerContext, Network,
    Normalization, QuerySource, Result, Rng, Role, Stack, StreamContext, TaskStream, TrainSettings, Trainer,
    device, registry,
};

/// A run that is ready to start.
pub struct Experiment {
    /// The tasks.
    pub stream: Box<dyn TaskStream>,
    /// The networks and how to train them.
    pub trainer: Trainer,
    /// Where it computes.
    pub device: Device,
}

/// What was run, for the run directory.
#[derive(Debug, Clone, Serialize)]
pub struct RunRecord {
    /// Version of this software.
    pub version: String,
    /// When the run began (RFC 3339).
    pub started: String,
    /// Seed of everything random.
    pub seed: u64,
    /// `published` or `corrected`.
    pub mode: crate::Mode,
    /// Where it computed.
    pub device: String,
    /// Quirks of the published code, and whether each was in force.
    pub quirks: BTreeMap<String, bool>,
    /// The large network, with the origin of its weights.
    pub teacher: BackboneSpec,
    /// The small network, with the origin of its weights.
    pub student: BackboneSpec,
    /// Class names in stream order.
    pub classes: Vec<String>,
    /// Classes of each task.
    pub tasks: Vec<std::ops::Range<usize>>,
    /// SHA-256 over classes, order and membership of training and test images.
    pub split_sha256: String,
    /// Tensors and numbers trained in the first task.
    pub trained: Vec<TrainedTensor>,
}

/// One trainable tensor.
#[derive(Debug, Clone, Serialize)]
pub struct TrainedTensor {
    /// Whose.
    pub role: Role,
    /// Name in the saved models.
    pub name: String,
    /// Shape.
    pub shape: Vec<usize>,
}

impl Experiment {
    /// Builds stream, networks and methods.
    ///
    /// # Errors
    /// Whatever the plugins refuse, with the configuration key and its origin; batches larger than a task.
    pub fn build(config: &Config) -> Result<Self> {
        let run = &config.run;
        let device = device::open(&run.device)?;
        let rng = Rng::new(run.seed);
        let mode = run.mode;

        let context = StreamContext { mode, device: &device, rng: rng.derive("stream") };
        let stream = registry::stream(&run.stream.name, &run.stream.settings, &context)
            .map_err(|e| config.locate("stream", e))?;
        check_batches(stream.as_ref(), run.batch_size, &config.origin("batch_size"))?;

        let backbone = |role: Role, section: &crate::config::NetworkSection| {
            let context = BackboneContext { role, image_size: stream.image_size(), mode, device: &device };
            registry::backbone(&section.name, &section.settings, &context).map_err(|error| match error {
                // The image's size is the stream's to set.
                Error::Setting { key, value, expected, .. } if key == "image_size" => {
                    config.locate("stream.transform", Error::setting(&key, value, expected))
                }
                error => config.locate(role.as_str(), error),
            })
        };
        let student = backbone(Role::Student, &run.student)?;
        let teacher = backbone(Role::Teacher, &run.teacher)?;

        let query = run.query.unwrap_or(QuerySource::of_mode(mode));
        // Of the whole stream, also where a run stops early.
        let tasks = stream.tasks().first().map_or(1, |task| task.count);
        let learner = |role: Role, backbone: &BackboneSpec| {
            let querying = if query == QuerySource::Own { backbone } else { student.spec() };
            let context = LearnerContext {
                role,
                backbone,
                query_width: querying.width,
                classes: stream.classes().len(),
                tasks,
                mode,
                device: &device,
                rng: rng.derive(&format!("{}/learner", role.as_str())),
            };
            let (section, place) = run.learner(role);
            registry::learner(&section.name, &section.settings, &context)
                .map_err(|e| config.locate(&place, e))
        };
        let teacher_learner = learner(Role::Teacher, teacher.spec())?;
        let student_learner = learner(Role::Student, student.spec())?;

        let mut distillers = Vec::new();
        for (index, section) in run.distillers().iter().enumerate() {
            let label = if index == 0 { "distiller".into() } else { format!("distiller {}", index + 1) };
            let context = DistillerContext {
                teacher: teacher.spec(),
                student: student.spec(),
                learner: student_learner.as_ref(),
                tasks,
                mode,
                device: &device,
                rng: rng.derive(&label),
            };
            let place =
                if run.distillers.is_some() { format!("distillers[{index}]") } else { "distiller".into() };
            let distiller = registry::distiller(&section.name, &section.settings, &context)
                .map_err(|e| config.locate(&place, e))?;
            for (key, trained, reason) in [
                ("train_teacher", run.train_teacher, "learns from the teacher"),
                ("train_student", run.train_student, "teaches the student"),
            ] {
                if !trained && distiller.needs_teacher() {
                    let expected =
                        format!("the distiller `{}` {reason}; choose one that does not", section.name);
                    let (origin, value) = (config.origin(key), "false".into());
                    return Err(Error::Setting { origin, key: key.into(), value, expected });
                }
            }
            distillers.push((section.name.clone(), section.weight, distiller));
        }
        let distiller: Box<dyn Distiller> = Box::new(Stack::new(distillers)?);

        let trainer = Trainer {
            teacher: Network { backbone: teacher, learner: teacher_learner },
            student: Network { backbone: student, learner: student_learner },
            distiller,
            settings: TrainSettings {
                epochs: run.epochs,
                batch_size: run.batch_size,
                optimizer: run.optimizer.clone(),
                schedule: run.schedule.clone(),
                mode,
                query,
                roles: run.roles(),
            },
            rng: rng.derive("tasks"),
        };
        check_names(config, &trainer)?;
        Ok(Self { stream, trainer, device })
    }

    /// Bytes that the models of all tasks and the checkpoints will take, a little more for everything else.
    pub fn disk_bytes(&self, config: &Config) -> Result<u64> {
        let numbers = |role: Role| -> Result<usize> {
            Ok(self.trainer.state(role)?.iter().map(|(_, tensor)| tensor.elem_count()).sum())
        };
        let mut models = 0;
        let mut checkpoint = numbers(Role::Teacher)? + numbers(Role::Student)?;
        let mut moments = 0;
        for &role in &self.trainer.settings.roles {
            models += numbers(role)?;
            // No update rule keeps more than three numbers for each that is trained.
            let vars = self.trainer.trainable(role);
            moments = moments.max(3 * vars.iter().map(|var| var.tensor().elem_count()).sum::<usize>());
        }
        checkpoint += moments;
        // A new one is whole before an old one goes.
        let kept = if config.run.checkpoint.off { 0 } else { config.run.checkpoint.keep.saturating_add(1) };
        let all = models * self.stream.tasks().len() + checkpoint.saturating_mul(kept);
        Ok((all.saturating_mul(size_of::<f32>()) as u64).saturating_add(1 << 20))
    }

    /// Departures of the published code from the papers, and whether each is in force.
    fn quirks(&self, config: &Config) -> BTreeMap<String, bool> {
        let Trainer { teacher, student, settings, .. } = &self.trainer;
        let mut quirks = BTreeMap::new();
        let mut note = |name: String, on: bool| quirks.insert(name, on);
        note(
            "repeated_first_rate".into(),
            settings.epochs > 1 && settings.schedule.repeats_first_rate(settings.mode),
        );
        for (name, on) in self.stream.quirks() {
            note(name.into(), on);
        }
        for &role in &settings.roles {
            let network = match role {
                Role::Teacher => teacher,
                Role::Student => student,
            };
            let unnormalised = network.backbone.spec().normalization == Normalization::NONE;
            note(format!("{}/unnormalised_pixels", role.as_str()), unnormalised);
            if role == Role::Teacher {
                note("teacher/students_query".into(), settings.query == QuerySource::Student);
            }
            let (learner, _) = config.run.learner(role);
            for (name, on) in network.learner.quirks() {
                note(format!("{}/{}/{name}", role.as_str(), learner.name), on);
            }
        }
        quirks
    }

    /// What to write down about this run.
    pub fn record(&self, config: &Config) -> RunRecord {
        let trained = config
            .run
            .roles()
            .into_iter()
            .flat_map(|role| self.trainer.trainable(role).into_iter().map(move |var| (role, var)))
            .map(|(role, var)| TrainedTensor { role, shape: var.tensor().dims().to_vec(), name: var.name })
            .collect();
        RunRecord {
            version: env!("CARGO_PKG_VERSION").into(),
            started: jiff::Timestamp::now().to_string(),
            seed: config.run.seed,
            mode: config.run.mode,
            device: match &self.device {
                Device::Cpu => format!("cpu, {} threads", rayon::current_num_threads()),
                other => format!("{:?}", other.location()),
            },
            quirks: self.quirks(config),
            teacher: self.trainer.teacher.backbone.spec().clone(),
            student: self.trainer.student.backbone.spec().clone(),
            classes: self.stream.classes().to_vec(),
            tasks: self.stream.tasks().iter().map(|task| task.classes.clone()).collect(),
            split_sha256: self.stream.fingerprint().into(),
            trained,
        }
    }
}

/// Two tensors of one name could not be saved side by side.
fn check_names(config: &Config, trainer: &Trainer) -> Result<()> {
    let learners = trainer.student.learner.state()?;
    let distillers = trainer.distiller.state()?;
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
