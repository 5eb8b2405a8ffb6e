//! Preflight checks of several runs at once, such as the cells of a sweep. Shared data and networks are read once.

use std::collections::BTreeMap;

use candle_core::Device;

use crate::{
    config::Config,
    error::{Error, Result},
    run::{
        builder::{self, RunBuilder},
        preflight::Report,
    },
    system::Precision,
    traits::{BackboneSpec, Role, TaskStream},
};

/// Error that would stop one or several runs.
#[derive(Debug)]
pub struct SharedError {
    /// The error.
    pub error: Error,
    /// Indices of the configurations that have the error, ascending.
    pub configs: Vec<usize>,
}

/// Checks device, data, networks and methods of all runs and returns all errors. Decodes `images` training images and
/// `images` test images of each task, or all images of a stream with `verify = true`. Calls `progress` after each
/// configuration.
///
/// Everything is built on the CPU, so that no GPU stays in use. Nothing is written except files fetched into the hub's
/// cache, as the runs themselves would.
pub fn check_all(configs: &[Config], images: usize, progress: &(dyn Fn() + Sync)) -> Vec<SharedError> {
    let mut checks = Checks::default();
    let mut groups: BTreeMap<String, Vec<Run>> = BTreeMap::new();
    for (index, config) in configs.iter().enumerate() {
        let (key, run) = Run::of(index, config.clone(), images);
        if let Err(error) = builder::check_device(config) {
            checks.add(&run, error);
        }
        groups.entry(key).or_default().push(run);
    }
    for runs in groups.values() {
        checks.check_group(runs, progress);
    }
    for SharedError { configs, .. } in &mut checks.errors {
        configs.sort_unstable();
        configs.dedup();
    }
    checks.errors.sort_by_key(|shared| shared.configs.first().copied());
    checks.errors
}

/// Run to check.
struct Run {
    /// Index of the configuration.
    index: usize,
    /// Configuration for the CPU, without the stream's own verification.
    config: Config,
    /// Number of images of each task to decode.
    images: usize,
}

impl Run {
    /// Returns the run with a key that is equal for runs with the same data.
    fn of(index: usize, mut config: Config, images: usize) -> (String, Self) {
        let key = format!("{:?}", (&config.run.stream, config.run.mode));
        // `verify` would decode all images when the stream is built.
        let images = if config.run.stream.disable_verify() { usize::MAX } else { images };
        config.run.precision = Precision::Float32;
        (key, Self { index, config, images })
    }

    /// Returns a key that is equal for networks with the same weights and settings.
    fn network_key(&self, role: Role, image_size: usize) -> String {
        let section = self.config.run.network(role);
        format!("{:?}", (role, &section.name, &section.settings, image_size, self.config.run.mode))
    }

    /// Returns a key that is equal for runs that differ only in the seed: settings of learners and distillers are valid
    /// for every seed or for none.
    fn methods_key(&self) -> String {
        let mut run = self.config.run.clone();
        run.seed = 0;
        format!("{run:?}")
    }
}

/// Results of the checks so far. An error is referred to by its index.
#[derive(Default)]
struct Checks {
    errors: Vec<SharedError>,
    /// Index of each error, by its message.
    messages: BTreeMap<String, usize>,
    /// Sizes, or the error, of every network that was built, by [`Run::network_key`]. The weights are not kept.
    networks: BTreeMap<String, Result<BackboneSpec, usize>>,
    /// Errors of the methods that were checked, by [`Run::methods_key`].
    methods: BTreeMap<String, Vec<usize>>,
}

impl Checks {
    /// Records an error of a run and returns its index.
    fn add(&mut self, run: &Run, error: Error) -> usize {
        let next = self.errors.len();
        let at = *self.messages.entry(error.to_string()).or_insert(next);
        match at == next {
            true => self.errors.push(SharedError { error, configs: vec![run.index] }),
            false => self.add_known(run, at),
        }
        at
    }

    /// Records that a run has a known error, too.
    fn add_known(&mut self, run: &Run, error: usize) {
        if let Some(known) = self.errors.get_mut(error) {
            known.configs.push(run.index);
        }
    }

    /// Records an error of several runs.
    fn add_to_all(&mut self, runs: &[&Run], error: Error) {
        if let Some((first, others)) = runs.split_first() {
            let at = self.add(first, error);
            others.iter().for_each(|run| self.add_known(run, at));
        }
    }

    /// Checks runs with the same data. Once two seeds give the same tasks, the data do not depend on the seed and are
    /// not read again.
    fn check_group(&mut self, runs: &[Run], progress: &(dyn Fn() + Sync)) {
        let all: Vec<&Run> = runs.iter().collect();
        let mut by_seed: BTreeMap<u64, Vec<&Run>> = BTreeMap::new();
        for run in runs {
            by_seed.entry(run.config.run.seed).or_default().push(run);
        }
        let mut known: Option<Box<dyn TaskStream>> = None;
        let mut is_final = false;
        for runs in by_seed.values() {
            if let Some(first) = runs.first().filter(|_| !is_final) {
                match (builder::stream(&first.config, &Device::Cpu), &known) {
                    (Ok(stream), None) => {
                        self.decode_images(&all, first, stream.as_ref());
                        known = Some(stream);
                    }
                    (Ok(stream), Some(earlier)) => {
                        is_final = have_same_tasks(stream.as_ref(), earlier.as_ref());
                        known = Some(stream);
                    }
                    // Data that cannot be read with one seed cannot be read with another.
                    (Err(error), None) => {
                        self.add_to_all(&all, error);
                        is_final = true;
                    }
                    (Err(error), Some(_)) => self.add_to_all(runs, error),
                }
            }
            for run in runs {
                self.check_run(run, known.as_deref());
                progress();
            }
        }
    }

    /// Decodes some images of the data that `runs` share. `first` is one of the runs.
    fn decode_images(&mut self, runs: &[&Run], first: &Run, stream: &dyn TaskStream) {
        let mut report = Report::default();
        report.decode_images(&first.config.run, stream, first.images, &|| {});
        for error in report.errors {
            self.add_to_all(runs, error);
        }
    }

    /// Checks the parts of a run that depend on more than its data. `stream` is `None` if the data cannot be read.
    fn check_run(&mut self, run: &Run, stream: Option<&dyn TaskStream>) {
        let (config, device) = (&run.config, Device::Cpu);
        let builder = match stream {
            Some(stream) => {
                if let Err(error) = builder::check_batches(config, stream) {
                    self.add(run, error);
                }
                Some(RunBuilder::new(config, &device, stream))
            }
            None => RunBuilder::without_stream(config, &device),
        };
        let Some(builder) = builder else { return };
        let [student, teacher] = [Role::Student, Role::Teacher].map(|role| self.network(run, role, &builder));
        let key = run.methods_key();
        if let Some(known) = self.methods.get(&key).cloned() {
            return known.into_iter().for_each(|error| self.add_known(run, error));
        }
        let mut report = Report::default();
        report.build_methods(config, Some(&builder), teacher.as_ref(), student.as_ref());
        let found = report.errors.into_iter().map(|error| self.add(run, error)).collect();
        self.methods.insert(key, found);
    }

    /// Returns the sizes of a network of the run, or records its error and returns `None`.
    fn network(&mut self, run: &Run, role: Role, builder: &RunBuilder<'_>) -> Option<BackboneSpec> {
        let key = run.network_key(role, builder.image_size());
        match self.networks.get(&key) {
            Some(Ok(spec)) => return Some(spec.clone()),
            Some(&Err(error)) => {
                self.add_known(run, error);
                return None;
            }
            None => {}
        }
        let built = builder.backbone(role).map(|backbone| backbone.spec().clone());
        let found = built.map_err(|error| self.add(run, error));
        let spec = found.as_ref().ok().cloned();
        self.networks.insert(key, found);
        spec
    }
}

/// Returns whether two streams have the same classes, and as many images in each task.
fn have_same_tasks(one: &dyn TaskStream, other: &dyn TaskStream) -> bool {
    let counts = |stream: &dyn TaskStream| -> Vec<usize> {
        stream.tasks().iter().map(|task| stream.train_count(task.index)).collect()
    };
    one.classes() == other.classes() && counts(one) == counts(other)
}
