//! Builds the parts of an experiment: of a run from its configuration, of an exported model from its description.

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

/// Adds to the error of a part the place of the section, by name, that the part is built from.
pub(crate) type Locate<'a> = Box<dyn Fn(&str, Error) -> Error + 'a>;

/// Properties of an experiment that its parts are built for.
pub(crate) struct Setup<'a> {
    pub(crate) seed: u64,
    pub(crate) mode: Mode,
    pub(crate) device: &'a Device,
    pub(crate) precision: Precision,
    /// Side of an image in pixels.
    pub(crate) image_size: usize,
    /// Classes over all tasks.
    pub(crate) classes: usize,
    /// Tasks of the whole stream, also where a run stops early.
    pub(crate) tasks: usize,
    pub(crate) locate: Locate<'a>,
}

impl Setup<'_> {
    /// The frozen network of `role` from the section `place`; its weights lie in `folder` where the model was exported.
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

    /// The learner of `role` from the section `place`.
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

    /// The distiller number `index` of a run from the section `place`.
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
    device::open(&config.run.device, config.run.precision).map_err(|error| match error {
        Error::Setting { key, value, expected, .. } => config.refused(&key, value, expected),
        error => error,
    })
}

pub(crate) fn stream(config: &Config, device: &Device) -> Result<Box<dyn TaskStream>> {
    let run = &config.run;
    let context = StreamContext { mode: run.mode, device, rng: Rng::new(run.seed).derive(STREAM_RNG) };
    registry::stream(&run.stream.name, &run.stream.settings, &context)
        .map_err(|error| config.locate("stream", error))
}

/// Refuses batches that a task does not fill, since incomplete batches are dropped in training.
pub(crate) fn check_batches(config: &Config, stream: &dyn TaskStream) -> Result<()> {
    let counts = stream.tasks().iter().map(|task| (stream.train_count(task.index), task.index));
    let (images, task) = counts.min().unwrap_or((0, 0));
    if images >= config.run.batch_size {
        return Ok(());
    }
    let task = task + 1;
    let expected =
        format!("at most {images}, the training images of task {task}: incomplete batches are dropped");
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
        Self::of_sizes(config, device, stream.image_size(), stream.classes().len(), tasks)
    }

    /// The builder of a run whose stream could not be built, as far as the stream's settings contain what the others
    /// need: an image size.
    pub(crate) fn without_stream(config: &'a Config, device: &'a Device) -> Option<Self> {
        let settings = &config.run.stream.settings;
        let number = |key: &str| usize::try_from(lookup(settings, key)?.as_integer()?).ok();
        let lists = lookup(settings, "task_classes").and_then(toml::Value::as_array).map(Vec::len);
        let tasks = lists.or_else(|| number("tasks")).unwrap_or(1);
        // A class for each task: no setting depends on the rows of a head.
        Some(Self::of_sizes(config, device, number("transform.image_size")?, tasks, tasks))
    }

    fn of_sizes(
        config: &'a Config,
        device: &'a Device,
        image_size: usize,
        classes: usize,
        tasks: usize,
    ) -> Self {
        let (seed, mode, precision) = (config.run.seed, config.run.mode, config.run.precision);
        let locate = Box::new(|place: &str, error: Error| match error {
            // A network is built for the image size of the stream.
            Error::Setting { key, value, expected, .. }
                if key == "image_size" && ["teacher", "student"].contains(&place) =>
            {
                config.locate("stream.transform", Error::setting(&key, value, expected))
            }
            error => config.locate(place, error),
        });
        Self { config, setup: Setup { seed, mode, device, precision, image_size, classes, tasks, locate } }
    }

    /// The frozen network of `role`.
    pub(crate) fn backbone(&self, role: Role) -> Result<Arc<dyn Backbone>> {
        let section = self.config.run.network(role);
        self.setup.backbone(role, role.as_str(), (&section.name, &section.settings), None)
    }

    /// The learner of `role`; the student's network makes the query unless each network makes its own.
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

    /// The distiller number `index`.
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

/// Refuses two tensors of one name: they could not be saved side by side.
pub(crate) fn check_names(config: &Config, learner: &dyn Learner, distiller: &dyn Distiller) -> Result<()> {
    let (learners, distillers) = (learner.state()?, distiller.state()?);
    let Some((name, _)) = distillers.iter().find(|(name, _)| learners.get(name).is_some()) else {
        return Ok(());
    };
    let all: Vec<&str> = config.run.distillers().iter().map(|section| section.name.as_str()).collect();
    Err(Error::Incompatible {
        first: config.run.learner(Role::Student).0.name,
        second: all.join("`, `"),
        reason: format!("learner and distiller both have a tensor called `{name}`"),
    })
}
