//! Builds the parts of a run from its configuration, and the parts of an exported model from its description.

use std::{path::Path, sync::Arc};

use candle_core::Device;

use crate::{
    config::{Config, DistillerSection, Section},
    data::STREAM_RNG,
    error::{Error, Result},
    registry::{self, Settings, lookup},
    rng::Rng,
    system::device::{self, Precision},
    traits::{
        Backbone, BackboneContext, BackboneSpec, Distiller, DistillerContext, Learner, LearnerContext, Mode,
        QuerySource, Role, StreamContext, TaskStream,
    },
};

/// Function that adds the section from which a part is built, and its origin, to an error.
pub(crate) type Locate<'a> = Box<dyn Fn(&str, Error) -> Error + 'a>;

/// Properties of an experiment on which all parts depend.
pub(crate) struct Setup<'a> {
    pub(crate) seed: u64,
    pub(crate) mode: Mode,
    pub(crate) device: &'a Device,
    pub(crate) precision: Precision,
    /// Side of an image in pixels.
    pub(crate) image_size: usize,
    /// Number of classes of all tasks.
    pub(crate) classes: usize,
    /// Number of tasks of the whole stream, even if the run stops earlier (`max_tasks`).
    pub(crate) tasks: usize,
    pub(crate) locate: Locate<'a>,
}

impl Setup<'_> {
    /// Builds the frozen network of `role` from the section `place`. The weights of an exported model are in `folder`.
    pub(crate) fn backbone(
        &self,
        role: Role,
        place: &str,
        (name, settings): (&str, &Settings),
        folder: Option<&Path>,
    ) -> Result<Arc<dyn Backbone>> {
        let Self { mode, device, precision, image_size, .. } = *self;
        let context = BackboneContext { role, image_size, mode, device, precision, folder };
        registry::backbone(name, settings, &context).map_err(|error| (self.locate)(place, error))
    }

    /// Builds the learner of `role` from the section `place`.
    pub(crate) fn learner(
        &self,
        role: Role,
        place: &str,
        section: &Section,
        backbone: &BackboneSpec,
        query_width: usize,
    ) -> Result<Box<dyn Learner>> {
        let Self { mode, device, classes, tasks, .. } = *self;
        let rng = Rng::new(self.seed).derive(&format!("{}/learner", role.as_str()));
        let context = LearnerContext { role, backbone, query_width, classes, tasks, mode, device, rng };
        registry::learner(&section.name, &section.settings, &context)
            .map_err(|error| (self.locate)(place, error))
    }

    /// Builds distiller `index` of a run from the section `place`.
    pub(crate) fn distiller(
        &self,
        index: usize,
        place: &str,
        section: &DistillerSection,
        [teacher, student]: [&BackboneSpec; 2],
        learner: &dyn Learner,
    ) -> Result<Box<dyn Distiller>> {
        let Self { mode, device, tasks, .. } = *self;
        let label = if index == 0 { "distiller".into() } else { format!("distiller {}", index + 1) };
        let rng = Rng::new(self.seed).derive(&label);
        let context = DistillerContext { teacher, student, learner, tasks, mode, device, rng };
        registry::distiller(&section.name, &section.settings, &context)
            .map_err(|error| (self.locate)(place, error))
    }
}

pub(crate) fn device(config: &Config) -> Result<Device> {
    device::open(&config.run.device, config.run.precision).map_err(|error| located(config, error))
}

/// Checks the device and precision of a run without opening a GPU.
pub(crate) fn check_device(config: &Config) -> Result<()> {
    device::check(&config.run.device, config.run.precision).map_err(|error| located(config, error))
}

/// Adds the origin of the value to the error of a key that belongs to no plugin.
fn located(config: &Config, error: Error) -> Error {
    match error {
        Error::Setting { key, value, expected, .. } => config.refused(&key, value, expected),
        error => error,
    }
}

pub(crate) fn stream(config: &Config, device: &Device) -> Result<Box<dyn TaskStream>> {
    let run = &config.run;
    let context = StreamContext { mode: run.mode, device, rng: Rng::new(run.seed).derive(STREAM_RNG) };
    registry::stream(&run.stream.name, &run.stream.settings, &context)
        .map_err(|error| config.locate("stream", error))
}

/// Checks that the batch size is not larger than any task, since training drops incomplete batches.
pub(crate) fn check_batches(config: &Config, stream: &dyn TaskStream) -> Result<()> {
    let counts = stream.tasks().iter().map(|task| (stream.train_count(task.index), task.index));
    let (images, task) = counts.min().unwrap_or((0, 0));
    if images >= config.run.batch_size {
        return Ok(());
    }
    let task = task + 1;
    let expected = format!(
        "expected at most {images}, the number of training images of task {task}: incomplete batches are dropped"
    );
    Err(config.refused("batch_size", config.run.batch_size, expected))
}

/// Builds the networks and methods of a run.
pub(crate) struct RunBuilder<'a> {
    config: &'a Config,
    setup: Setup<'a>,
}

impl<'a> RunBuilder<'a> {
    pub(crate) fn new(config: &'a Config, device: &'a Device, stream: &dyn TaskStream) -> Self {
        let tasks = stream.tasks().first().map_or(1, |task| task.count);
        Self::with_sizes(config, device, stream.image_size(), stream.classes().len(), tasks)
    }

    /// Creates a builder for a run whose stream could not be built. `None` if the stream's settings have no image size.
    pub(crate) fn without_stream(config: &'a Config, device: &'a Device) -> Option<Self> {
        let settings = &config.run.stream.settings;
        let number = |key: &str| usize::try_from(lookup(settings, key)?.as_integer()?).ok();
        let lists = lookup(settings, "task_classes").and_then(toml::Value::as_array).map(Vec::len);
        let tasks = lists.or_else(|| number("tasks")).unwrap_or(1);
        // The number of classes is arbitrary, since no setting depends on it: one class for each task.
        Some(Self::with_sizes(config, device, number("transform.image_size")?, tasks, tasks))
    }

    fn with_sizes(
        config: &'a Config,
        device: &'a Device,
        image_size: usize,
        classes: usize,
        tasks: usize,
    ) -> Self {
        let (seed, mode, precision) = (config.run.seed, config.run.mode, config.run.precision);
        let locate = Box::new(|place: &str, error: Error| match error {
            // The image size of a network is a setting of the stream.
            Error::Setting { key, value, expected, .. }
                if key == "image_size" && ["teacher", "student"].contains(&place) =>
            {
                config.locate("stream.transform", Error::setting(&key, value, expected))
            }
            error => config.locate(place, error),
        });
        Self { config, setup: Setup { seed, mode, device, precision, image_size, classes, tasks, locate } }
    }

    /// Side of an image in pixels.
    pub(crate) fn image_size(&self) -> usize {
        self.setup.image_size
    }

    /// Builds the frozen network of `role`.
    pub(crate) fn backbone(&self, role: Role) -> Result<Arc<dyn Backbone>> {
        let section = self.config.run.network(role);
        self.setup.backbone(role, role.as_str(), (&section.name, &section.settings), None)
    }

    /// Builds the learner of `role`. The student's network computes the query, unless each network computes its own.
    pub(crate) fn learner(
        &self,
        role: Role,
        backbone: &BackboneSpec,
        student: &BackboneSpec,
    ) -> Result<Box<dyn Learner>> {
        let run = &self.config.run;
        let querying = if run.query_source() == QuerySource::Own { backbone } else { student };
        let (section, place) = run.learner(role);
        self.setup.learner(role, &place, &section, backbone, querying.width)
    }

    /// Builds distiller `index`.
    pub(crate) fn distiller(
        &self,
        index: usize,
        section: &DistillerSection,
        networks: [&BackboneSpec; 2],
        learner: &dyn Learner,
    ) -> Result<Box<dyn Distiller>> {
        let run = &self.config.run;
        let distiller =
            self.setup.distiller(index, &run.distiller_section(index), section, networks, learner)?;
        for (key, trained, reason) in [
            ("train_teacher", run.train_teacher, "learns from the teacher"),
            ("train_student", run.train_student, "teaches the student"),
        ] {
            if !trained && distiller.needs_teacher() {
                let expected = format!("the distiller `{}` {reason}; choose one that does not", section.name);
                return Err(self.config.refused(key, false, expected));
            }
        }
        Ok(distiller)
    }
}

/// Checks that learner and distillers have no tensors of the same name, which could not be saved in one file.
pub(crate) fn check_names(config: &Config, learner: &dyn Learner, distiller: &dyn Distiller) -> Result<()> {
    let (learners, distillers) = (learner.state()?, distiller.state()?);
    let Some((name, _)) = distillers.iter().find(|(name, _)| learners.get(name).is_some()) else {
        return Ok(());
    };
    let all: Vec<&str> = config.run.distillers().iter().map(|section| section.name.as_str()).collect();
    Err(Error::Incompatible {
        first: config.run.learner(Role::Student).0.name,
        second: all.join("`, `"),
        reason: format!("learner and distiller both have a tensor `{name}`"),
    })
}
