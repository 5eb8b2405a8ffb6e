//! Configurations in layers, typed, with the origin of every value.
//!
//! Lowest to highest: built-in defaults, files named by `extends` (recursively, relative to the file that names them),
//! the file itself, `CDL_...` environment variables (`CDL_OPTIMIZER__LR=0.01`), `--set key=value`.
//! A layer that gives a section another `name` replaces the whole section: settings of the plugin before do not linger.

mod draft;

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

use figment::{
    Figment, Metadata, Profile, Provider, Source,
    value::{Dict, Map, Value},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    CheckpointConfig, Error, InputSettings, OptimizerConfig, QuerySource, Result, Role, ScheduleConfig,
    error::nearest,
    plugin,
    registry::{self, Kind, Settings},
};

pub use self::draft::Draft;

/// Which set of defaults holds where the published code has quirks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// As the published code computes: unnormalised pixels, the first two epochs at one rate, fixed class order, the
    /// student's query for the teacher, and what single methods call their quirks.
    #[default]
    Published,
    /// As the papers describe: the checkpoint's normalisation, a plain cosine, classes shuffled by seed, every network
    /// with its own query. Settings named in a configuration win over either mode.
    Corrected,
}

/// A plugin with its settings: `name` and whatever that plugin defines.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Section {
    /// The plugin, see `cdl list`.
    pub name: String,
    /// Its settings, see `cdl describe NAME`.
    #[serde(flatten)]
    #[schemars(with = "std::collections::BTreeMap<String, serde_json::Value>")]
    pub settings: Settings,
}

/// A frozen network; the plugin is `vit` unless said otherwise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkSection {
    /// The backbone plugin.
    #[serde(default = "default_backbone")]
    pub name: String,
    /// A prompt method for this network alone. Without a `name`, or with that of `[learner]`, what is not given here
    /// is as there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learner: Option<LearnerOverride>,
    /// Its settings, see `cdl describe NAME`.
    #[serde(flatten)]
    #[schemars(with = "std::collections::BTreeMap<String, serde_json::Value>")]
    pub settings: Settings,
}

/// `[teacher.learner]` or `[student.learner]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LearnerOverride {
    /// The plugin, see `cdl list`; as in `[learner]` if it is not given.
    #[serde(default)]
    pub name: Option<String>,
    /// Its settings, see `cdl describe NAME`.
    #[serde(flatten)]
    #[schemars(with = "std::collections::BTreeMap<String, serde_json::Value>")]
    pub settings: Settings,
}

/// A distillation method with its weight and settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DistillerSection {
    /// The plugin, see `cdl list`.
    pub name: String,
    /// Its terms in the loss are multiplied by this. The weight of the labels stays what the method says, the smallest
    /// of all where there are several.
    #[serde(default = "default_weight")]
    pub weight: f64,
    /// Its settings, see `cdl describe NAME`.
    #[serde(flatten)]
    #[schemars(with = "std::collections::BTreeMap<String, serde_json::Value>")]
    pub settings: Settings,
}

impl Section {
    /// Lets a stream of this section be built without reading every image (`verify`); whether it would have.
    pub(crate) fn put_off_reading(&mut self) -> bool {
        let verify = self.settings.get_mut("verify").filter(|verify| verify.as_bool() == Some(true));
        verify.map(|verify| *verify = toml::Value::Boolean(false)).is_some()
    }

    /// Whether a stream of this section leaves out images that it cannot read (`input.on_error`).
    pub(crate) fn leaves_out_damaged(&self) -> bool {
        lookup(&self.settings, "input.on_error").and_then(toml::Value::as_str) == Some("skip")
    }

    /// Batches that a stream of this section prepares ahead (`input.workers`, `input.prefetch`).
    pub(crate) fn batches_ahead(&self) -> usize {
        let input = self.settings.get("input").cloned();
        let input = input.and_then(|input| input.try_into().ok()).unwrap_or_else(InputSettings::default);
        if input.workers == 0 { 0 } else { input.prefetch }
    }
}

fn default_weight() -> f64 {
    1.0
}

fn default_backbone() -> String {
    "vit".into()
}

/// One run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunConfig {
    /// Seed of everything random: initial values, class order, batch order, augmentation.
    #[serde(default)]
    pub seed: u64,
    /// `published` or `corrected`: defaults of settings in which the published code and the papers differ.
    #[serde(default)]
    pub mode: Mode,
    /// Epochs of each task, for the teacher and for the student.
    #[serde(default = "default_epochs")]
    pub epochs: usize,
    /// Images in a batch; the last incomplete batch of an epoch is dropped in training.
    #[serde(default = "default_batch_size")]
    pub batch_size: usize,
    /// Shared libraries with more methods, made by `cdl plugin build`; relative to the working directory.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub plugins: Vec<PathBuf>,
    /// `auto` (a GPU if this build and machine have one), `cpu`, `cuda` or `cuda:N`.
    #[serde(default = "default_device")]
    pub device: String,
    /// Whether the teacher is trained and tested; `false` (the student alone) only with a distiller that needs no
    /// teacher.
    #[serde(default = "default_true")]
    pub train_teacher: bool,
    /// Whether the student is trained and tested; `false` is the teacher alone.
    #[serde(default = "default_true")]
    pub train_student: bool,
    /// Whose frozen network makes the teacher's query: the `student`'s (as published; the keys of both networks then
    /// have the student's width) or its `own`. Default: student in mode `published`, own in mode `corrected`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query: Option<QuerySource>,
    /// Where images come from and how they are split into tasks.
    pub stream: Section,
    /// The large network.
    pub teacher: NetworkSection,
    /// The small network.
    pub student: NetworkSection,
    /// The prompt method, of teacher and student alike unless `[teacher.learner]` or `[student.learner]` differ.
    pub learner: Section,
    /// The distillation method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distiller: Option<DistillerSection>,
    /// Several distillation methods that work together, instead of `[distiller]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distillers: Option<Vec<DistillerSection>>,
    /// How trainable tensors are updated.
    #[serde(default)]
    pub optimizer: OptimizerConfig,
    /// How the learning rate changes from epoch to epoch.
    #[serde(default)]
    pub schedule: ScheduleConfig,
    /// When the run is saved so that it can go on after a stop.
    #[serde(default)]
    pub checkpoint: CheckpointConfig,
}

fn default_epochs() -> usize {
    20
}
fn default_batch_size() -> usize {
    64
}
fn default_device() -> String {
    "auto".into()
}
fn default_true() -> bool {
    true
}

impl RunConfig {
    /// The distillation methods, one or several.
    pub fn distillers(&self) -> &[DistillerSection] {
        self.distillers.as_deref().unwrap_or(self.distiller.as_slice())
    }

    /// The frozen network of `role`.
    pub fn network(&self, role: Role) -> &NetworkSection {
        match role {
            Role::Teacher => &self.teacher,
            Role::Student => &self.student,
        }
    }

    /// The prompt method of `role`, and the section that holds it.
    pub fn learner(&self, role: Role) -> (Section, String) {
        let Some(own) = &self.network(role).learner else { return (self.learner.clone(), "learner".into()) };
        let mut section = match &own.name {
            Some(name) if *name != self.learner.name => {
                Section { name: name.clone(), settings: Settings::new() }
            }
            _ => self.learner.clone(),
        };
        section.settings.extend(own.settings.clone());
        (section, format!("{}.learner", role.as_str()))
    }

    /// How many tasks it stops after, where it says so (`stream.max_tasks`).
    pub fn max_tasks(&self) -> Option<usize> {
        let most = self.stream.settings.get("max_tasks")?.as_integer()?;
        usize::try_from(most).ok()
    }

    /// The loaded plugins that it uses.
    pub fn loaded_plugins(&self) -> Vec<plugin::Loaded> {
        let learners = [Role::Teacher, Role::Student].map(|role| (Kind::Learner, self.learner(role).0.name));
        let mut used = vec![
            (Kind::Stream, self.stream.name.clone()),
            (Kind::Backbone, self.teacher.name.clone()),
            (Kind::Backbone, self.student.name.clone()),
        ];
        used.extend(learners);
        used.extend(self.distillers().iter().map(|section| (Kind::Distiller, section.name.clone())));
        let registers = |loaded: &plugin::Loaded| {
            let names = loaded.entries.iter().map(|entry| (entry.build.kind(), entry.name));
            names.into_iter().any(|(kind, name)| used.iter().any(|(k, n)| *k == kind && n == name))
        };
        plugin::loaded().into_iter().filter(registers).collect()
    }

    /// The networks that are trained, in order.
    pub fn roles(&self) -> Vec<Role> {
        let trained = [(Role::Teacher, self.train_teacher), (Role::Student, self.train_student)];
        trained.into_iter().filter(|(_, trained)| *trained).map(|(role, _)| role).collect()
    }
}

/// The keys that a plugin's section has whatever the plugin.
fn common_keys(section: &str) -> Vec<String> {
    let schema = match section.split('[').next() {
        Some("teacher" | "student") => registry::schema_of::<NetworkSection>(),
        Some("distiller" | "distillers") => registry::schema_of::<DistillerSection>(),
        _ => registry::schema_of::<Section>(),
    };
    let properties = schema.get("properties").and_then(|properties| properties.as_object());
    properties.into_iter().flat_map(|properties| properties.keys().cloned()).collect()
}

/// An unknown key; or one that is known, but to the top of a configuration and not where it stands: in TOML, a key
/// written below `[section]` belongs to that section.
fn unknown_key(origin: String, key: String, nearest: Option<String>, known: Vec<String>) -> Error {
    let top = registry::schema_of::<RunConfig>();
    match key.rsplit_once('.') {
        Some((section, name)) if top["properties"].get(name).is_some() => Error::Config {
            reason: format!(
                "`{name}` stands in [{section}] and belongs to the top of a configuration: write it before the \
                 first [section]"
            ),
            origin,
        },
        _ => Error::UnknownKey { origin, key, nearest, known },
    }
}

/// Sections that a plugin or a named choice owns: another name replaces them whole.
const NAMED: [&str; 9] = [
    "stream",
    "teacher",
    "student",
    "learner",
    "teacher.learner",
    "student.learner",
    "distiller",
    "optimizer",
    "schedule",
];
/// Environment variables with the prefix `CDL_` that are not settings.
const RESERVED: [&str; 5] = ["golden_dir", "models_dir", "plugin_path", "log", "simd"];

/// A configuration with the origin of every value.
#[derive(Debug, Clone)]
pub struct Config {
    /// Typed, with every plugin's defaults filled in.
    pub run: RunConfig,
    /// The files it was read from, the lowest layer first.
    pub files: Vec<PathBuf>,
    layers: Figment,
}

impl Config {
    /// Reads `files`, later ones over earlier ones and each with everything it extends, the environment and `sets`
    /// (`key=value` each).
    ///
    /// # Errors
    /// Files that cannot be read, unknown keys or names, values of the wrong type; each with where it was written.
    pub fn load<P: AsRef<Path>>(files: &[P], sets: &[String]) -> Result<Self> {
        let (files, mut layers) = read_files(files)?;
        layers.extend(overrides(sets)?);
        Self::of_layers(files, layers)
    }

    /// The plugins that a configuration names, each with where it is named. They have to be loaded
    /// ([`plugin::load`]) before [`Config::load`] finds what they register.
    ///
    /// # Errors
    /// Files that cannot be read, or a list of another type.
    pub fn plugins<P: AsRef<Path>>(files: &[P], sets: &[String]) -> Result<Vec<(PathBuf, String)>> {
        let (_, mut layers) = read_files(files)?;
        layers.extend(overrides(sets)?);
        let figment = merge(layers)?;
        if figment.find_value("plugins").is_err() {
            return Ok(Vec::new());
        }
        let origin = origin(&figment, "plugins").unwrap_or_else(|| "configuration".into());
        let plugins: Vec<PathBuf> = figment.extract_inner("plugins").map_err(|e| Error::Setting {
            origin: origin.clone(),
            key: "plugins".into(),
            value: "...".into(),
            expected: format!("expected a list of files: {e}"),
        })?;
        Ok(plugins.into_iter().map(|plugin| (plugin, origin.clone())).collect())
    }

    /// The same of a text, which extends nothing; `name` stands for its file.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(name: &str, text: &str, sets: &[String]) -> Result<Self> {
        let mut layers = vec![text_layer(name, text)?];
        layers.extend(overrides(sets)?);
        Self::of_layers(vec![name.into()], layers)
    }

    /// What a run has recorded in `file`, whatever the environment says now.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn recorded(file: &Path, text: &str) -> Result<Self> {
        Self::of_layers(vec![file.into()], vec![text_layer(&file.display().to_string(), text)?])
    }

    fn of_layers(files: Vec<PathBuf>, layers: Vec<Layer>) -> Result<Self> {
        let figment = merge(layers)?;
        let origin = files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", ");
        let table: Settings =
            figment.extract().map_err(|e| Error::Config { origin: origin.clone(), reason: e.to_string() })?;
        let mut config = Self { run: parse_run(&table, &figment, &origin)?, files, layers: figment };
        match config.complete().into_iter().next() {
            Some((_, error)) => Err(error),
            None => Ok(config),
        }
    }

    /// A name for runs of this configuration: those of its files.
    pub fn name(&self) -> String {
        let stems = self.files.iter().filter_map(|file| file.file_stem());
        stems.map(|stem| stem.to_string_lossy().into_owned()).collect::<Vec<_>>().join("-")
    }

    /// Where the value of `key` (dotted) was set, or `default`.
    pub fn origin(&self, key: &str) -> String {
        self.written(key).unwrap_or_else(|| "default".into())
    }

    /// Where the value of `key` was written, if it was; a network's own learner has from `[learner]` what it does not
    /// say itself.
    fn written(&self, key: &str) -> Option<String> {
        let inherited = || {
            let (role, rest) = key.split_once('.')?;
            let role = [Role::Teacher, Role::Student].into_iter().find(|r| r.as_str() == role)?;
            let same = self.run.learner(role).0.name == self.run.learner.name;
            (same && rest.starts_with("learner.")).then(|| origin(&self.layers, rest))?
        };
        origin(&self.layers, key).or_else(inherited)
    }

    /// Every value as `(dotted key, value, origin)`, in order.
    pub fn explain(&self) -> Result<Vec<(String, String, String)>> {
        let table = self.to_table()?;
        let mut rows = Vec::new();
        leaves(&table, "", &mut rows);
        Ok(rows.into_iter().map(|(key, value)| (key.clone(), value, self.origin(&key))).collect())
    }

    /// The whole configuration as TOML; running it gives the same run.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(&self.to_table()?)
            .map_err(|e| Error::Config { origin: "configuration".into(), reason: e.to_string() })
    }

    /// Adds to an error about a plugin's setting which section it belongs to and where it was written.
    pub fn locate(&self, section: &str, error: Error) -> Error {
        let place = |key: String| {
            let key = format!("{section}.{key}");
            // Of one of several distillers, `distillers[0]`, the whole list has an origin.
            let list = section.split('[').next().unwrap_or(section);
            let origin =
                self.written(&key).or_else(|| origin(&self.layers, list)).unwrap_or_else(|| "default".into());
            (key, origin)
        };
        match error {
            Error::Setting { key, value, expected, .. } => {
                let (key, origin) = place(key);
                Error::Setting { origin, key, value, expected }
            }
            Error::UnknownKey { key: own, nearest: mut near, mut known, .. } => {
                let (key, origin) = place(own.clone());
                // What every plugin of this kind has besides its own settings.
                if !own.contains('.') {
                    known.extend(common_keys(section));
                    near = nearest(&own, known.iter().map(String::as_str));
                }
                unknown_key(origin, key, near, known)
            }
            Error::UnknownName { ref name, .. } => {
                let value = format!("{name:?}");
                let (key, origin) = place("name".into());
                Error::Setting { origin, key, value, expected: error.to_string() }
            }
            other => other,
        }
    }

    fn to_table(&self) -> Result<Settings> {
        Settings::try_from(&self.run)
            .map_err(|e| Error::Config { origin: "configuration".into(), reason: e.to_string() })
    }

    /// Fills in the defaults of every plugin's settings and checks what the types cannot. Gives back everything that is
    /// wrong, with the section that cannot be used because of it.
    fn complete(&mut self) -> Vec<(String, Error)> {
        let mut run = self.run.clone();
        let mut wrong = Vec::new();
        // Every key that is refused is left out, so that those after it are looked at as well.
        let mut complete = |section: &str, kind: Kind, name: &str, settings: &mut Settings| {
            let entry = match registry::find(kind, name) {
                Ok(entry) => entry,
                Err(error) => return wrong.push((section.to_string(), self.locate(section, error))),
            };
            loop {
                match (entry.complete)(settings) {
                    Ok(all) => return *settings = all,
                    Err(error) => {
                        let left_out =
                            draft::refused_key(&error).is_some_and(|key| draft::remove(settings, key));
                        wrong.push((section.to_string(), self.locate(section, error)));
                        if !left_out {
                            return;
                        }
                    }
                }
            }
        };
        complete("stream", Kind::Stream, &run.stream.name, &mut run.stream.settings);
        complete("learner", Kind::Learner, &run.learner.name, &mut run.learner.settings);
        for role in [Role::Teacher, Role::Student] {
            let (mut learner, section) = run.learner(role);
            let network = match role {
                Role::Teacher => &mut run.teacher,
                Role::Student => &mut run.student,
            };
            complete(role.as_str(), Kind::Backbone, &network.name, &mut network.settings);
            if let Some(own) = &mut network.learner {
                complete(&section, Kind::Learner, &learner.name, &mut learner.settings);
                own.settings = learner.settings;
                own.name = Some(learner.name);
            }
        }
        let many = run.distillers.is_some();
        let place = |index: usize| if many { format!("distillers[{index}]") } else { "distiller".into() };
        let distillers = run.distiller.iter_mut().chain(run.distillers.iter_mut().flatten());
        for (index, distiller) in distillers.enumerate() {
            complete(&place(index), Kind::Distiller, &distiller.name, &mut distiller.settings);
        }
        for (index, distiller) in run.distillers().iter().enumerate() {
            if !(distiller.weight.is_finite() && distiller.weight >= 0.0) {
                let error = Error::setting("weight", distiller.weight, "expected a finite number, 0 or more");
                wrong.push((place(index), self.locate(&place(index), error)));
            }
        }
        let top = |key: &str, value: &str, expected: &str| {
            let (origin, value, expected) = (self.origin(key), value.into(), expected.into());
            (key.to_string(), Error::Setting { origin, key: key.into(), value, expected })
        };
        if run.roles().is_empty() {
            let expected = "with `train_teacher = false` nothing is left to train";
            wrong.push(top("train_student", "false", expected));
        }
        // Those that were loaded in another way are written down, so that the configuration repeats the run.
        for loaded in run.loaded_plugins() {
            let same = |file: &PathBuf| file.canonicalize().is_ok_and(|file| file == loaded.file);
            if !run.plugins.iter().any(same) {
                run.plugins.push(loaded.file);
            }
        }
        run.query = Some(run.query.unwrap_or(QuerySource::of_mode(run.mode)));
        for (key, value) in [("epochs", run.epochs), ("batch_size", run.batch_size)] {
            if value == 0 {
                wrong.push(top(key, "0", "expected at least 1"));
            }
        }
        let valid = [
            ("optimizer", run.optimizer.validate()),
            ("schedule", run.schedule.validate()),
            ("checkpoint", run.checkpoint.validate()),
        ];
        for (section, valid) in valid {
            wrong.extend(valid.err().map(|error| (section.to_string(), self.locate(section, error))));
        }
        run.schedule.repeat_first_rate = Some(run.schedule.repeats_first_rate(run.mode));
        self.run = run;
        wrong
    }
}

/// One layer of values with where they came from.
struct Layer {
    metadata: Metadata,
    values: Dict,
    /// Whether it is one of several variables or `--set`, which count as one layer whatever their order.
    set: bool,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        self.metadata.clone()
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Profile::Default.collect(self.values.clone()))
    }
}

/// The paths of `files`, and their layers, the lowest first.
fn read_files<P: AsRef<Path>>(files: &[P]) -> Result<(Vec<PathBuf>, Vec<Layer>)> {
    let files: Vec<PathBuf> = files.iter().map(|file| file.as_ref().to_path_buf()).collect();
    let mut layers = Vec::new();
    for file in &files {
        read_file(file, &mut Vec::new(), &mut layers)?;
    }
    Ok((files, layers))
}

/// A text's values, under the name of its file.
fn text_layer(name: &str, text: &str) -> Result<Layer> {
    Ok(Layer { metadata: Metadata::named(name.to_string()), values: parse_toml(name, text)?, set: false })
}

/// What stands above all files: the environment, then `--set`.
fn overrides(sets: &[String]) -> Result<Vec<Layer>> {
    let mut layers = environment()?;
    for set in sets {
        layers.push(split_set(set)?);
    }
    Ok(layers)
}

/// Pushes the layers of `file`, those it extends first.
fn read_file(file: &Path, open: &mut Vec<PathBuf>, layers: &mut Vec<Layer>) -> Result<()> {
    let name = file.display().to_string();
    let fail = |reason: String| Error::Config { origin: name.clone(), reason };
    let by = open.last().map(|by| format!(" (extended by {})", by.display())).unwrap_or_default();
    let unreadable = |e: std::io::Error| fail(format!("cannot be read: {e}{by}"));
    let identity = file.canonicalize().map_err(unreadable)?;
    if open.contains(&identity) {
        return Err(fail("extends itself, by way of the files that it extends".into()));
    }
    let text = std::fs::read_to_string(file).map_err(unreadable)?;
    let mut values = parse_toml(&name, &text)?;
    open.push(identity);
    if let Some(extends) = values.remove("extends") {
        let parents = match extends.as_str() {
            Some(parent) => vec![parent.to_string()],
            None => extends.deserialize().map_err(|_| fail("`extends` must be a list of files".into()))?,
        };
        let folder = file.parent().unwrap_or(Path::new(""));
        for parent in parents {
            read_file(&folder.join(parent), open, layers)?;
        }
    }
    open.pop();
    layers.push(Layer { metadata: Metadata::from("file", Source::File(file.into())), values, set: false });
    Ok(())
}

/// A file's values; what is no TOML is refused with its place, in one line.
fn parse_toml(name: &str, text: &str) -> Result<Dict> {
    toml::from_str(text).map_err(|error| {
        let reason = error.message();
        let place = error.span().and_then(|span| text.get(..span.start)).map(|before| {
            let line = before.matches('\n').count() + 1;
            let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
            format!("line {line}, column {column}: ")
        });
        Error::Config { origin: name.into(), reason: format!("{}{reason}", place.unwrap_or_default()) }
    })
}

/// Settings from the environment: `CDL_OPTIMIZER__LR=0.01` is `optimizer.lr`.
fn environment() -> Result<Vec<Layer>> {
    let mut variables: Vec<(String, String)> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| name.starts_with("CDL_"))
        .collect();
    variables.sort();
    let mut layers = Vec::new();
    for (name, value) in variables {
        let key = name["CDL_".len()..].to_lowercase();
        if !RESERVED.contains(&key.as_str()) {
            layers.push(parse_set(&key.replace("__", "."), &value, format!("environment variable {name}"))?);
        }
    }
    Ok(layers)
}

/// Splits `--set key=value`.
fn split_set(set: &str) -> Result<Layer> {
    let origin = format!("--set {set}");
    match set.split_once('=') {
        Some((key, value)) => parse_set(key.trim(), value, origin),
        None => Err(Error::Config { origin, reason: "expected key=value".into() }),
    }
}

/// A dotted key and its value as a layer; the value is TOML, or else a string.
fn parse_set(key: &str, value: &str, origin: String) -> Result<Layer> {
    let fail = |reason: &str| Error::Config { origin: origin.clone(), reason: reason.into() };
    if key.is_empty() || key.split('.').any(str::is_empty) {
        return Err(fail("expected key=value with a key like `learner.pool`"));
    }
    let mut wrapped: Dict = toml::from_str(&format!("value = {value}"))
        .unwrap_or_else(|_| Dict::from([("value".to_string(), Value::from(value))]));
    let mut value = wrapped.remove("value").ok_or_else(|| fail("expected a value"))?;
    let mut parts: Vec<&str> = key.split('.').collect();
    let first = parts.remove(0);
    for part in parts.into_iter().rev() {
        value = Value::from(Dict::from([(part.to_string(), value)]));
    }
    let values = Dict::from([(first.to_string(), value)]);
    Ok(Layer { metadata: Metadata::named(origin), values, set: true })
}

/// All layers, lowest first, less the sections that a higher layer replaces by another name.
fn merge(mut layers: Vec<Layer>) -> Result<Figment> {
    let sets = layers.iter().position(|layer| layer.set).unwrap_or(layers.len());
    // Variables and `--set` count as one layer whatever their order.
    let start = |index: usize, layer: &Layer| if layer.set { sets } else { index };
    for section in NAMED {
        let mut current: Option<String> = None;
        let mut since = 0;
        for (index, layer) in layers.iter().enumerate() {
            let Some(dict) = section_of(&layer.values, section) else { continue };
            let written = dict.get("name").and_then(Value::as_str).map(String::from);
            let implied = || default_name(section).filter(|_| current.is_none()).map(String::from);
            if let Some(name) = written.or_else(implied) {
                if current.as_ref().is_some_and(|current| *current != name) {
                    since = start(index, layer);
                }
                current = Some(name);
            }
        }
        for layer in &mut layers[..since] {
            remove(&mut layer.values, section);
        }
    }
    // `[distiller]` and `distillers` are two ways to say one thing: the higher layer has it.
    for (section, other) in [("distiller", "distillers"), ("distillers", "distiller")] {
        let named = |layer: &Layer| match section_of(&layer.values, section) {
            Some(dict) => dict.contains_key("name"),
            None => layer.values.contains_key(section),
        };
        let since = layers
            .iter()
            .enumerate()
            .filter(|(_, layer)| named(layer))
            .map(|(at, layer)| start(at, layer))
            .max();
        for layer in &mut layers[..since.unwrap_or(0)] {
            layer.values.remove(other);
        }
    }
    Ok(layers.into_iter().fold(Figment::new(), |figment, layer| figment.merge(layer)))
}

/// The table at a dotted path.
fn section_of<'a>(values: &'a Dict, path: &str) -> Option<&'a Dict> {
    let (first, rest) = path.split_once('.').map_or((path, None), |(first, rest)| (first, Some(rest)));
    let inner = values.get(first)?.as_dict()?;
    rest.map_or(Some(inner), |rest| section_of(inner, rest))
}

/// Takes the table at a dotted path away, but for a network's learner, which is not the backbone's.
fn remove(values: &mut Dict, path: &str) {
    match path.split_once('.') {
        None => match values.get_mut(path) {
            Some(Value::Dict(_, inner)) if inner.contains_key("learner") => {
                inner.retain(|key, _| key == "learner")
            }
            _ => drop(values.remove(path)),
        },
        Some((first, rest)) => {
            if let Some(Value::Dict(_, inner)) = values.get_mut(first) {
                remove(inner, rest);
            }
        }
    }
}

/// The name of a section that gives none.
fn default_name(section: &str) -> Option<&'static str> {
    match section {
        "teacher" | "student" => Some("vit"),
        "optimizer" => Some("adam"),
        "schedule" => Some("cosine"),
        _ => None,
    }
}

/// Refuses the first key that a run does not have.
fn check_run_keys(table: &Settings) -> Result<()> {
    check_keys(&registry::schema_of::<RunConfig>(), table, "", "configuration")
}

/// Adds to [`check_run_keys`]' error where the key was written, and where it belongs.
fn misplaced(error: Error, figment: &Figment, files: &str) -> Error {
    match error {
        Error::UnknownKey { key, nearest, known, .. } => {
            let origin = origin(figment, &key).unwrap_or_else(|| files.to_string());
            unknown_key(origin, key, nearest, known)
        }
        other => other,
    }
}

fn parse_run(table: &Settings, figment: &Figment, files: &str) -> Result<RunConfig> {
    check_run_keys(table).map_err(|error| misplaced(error, figment, files))?;
    let fail = |reason: String| Error::Config { origin: files.into(), reason };
    if table.contains_key("distillers") {
        if table.contains_key("distiller") {
            return Err(fail(
                "has both [distiller] and `distillers`; to change one of several, give the whole list".into(),
            ));
        }
        let list = table["distillers"].as_array().filter(|list| !list.is_empty());
        let list = list.ok_or_else(|| {
            fail(
                "`distillers` must be a list of tables like `[{ name = \"...\" }, ...]`, one at least".into(),
            )
        })?;
        if let Some(at) = list.iter().position(|one| one.get("name").is_none()) {
            return Err(fail(format!("distillers[{at}] has no `name`; `cdl list` shows what there is")));
        }
    }
    let sections =
        ["stream", "teacher", "student", "learner", "distiller", "optimizer", "schedule", "checkpoint"];
    for section in sections.into_iter().chain(["teacher.learner", "student.learner"]) {
        if let Some(value) = lookup(table, section).filter(|value| !value.is_table()) {
            return Err(Error::Setting {
                origin: origin(figment, section).unwrap_or_else(|| files.to_string()),
                key: section.into(),
                value: value.to_string(),
                expected: format!("it is a section; its name is `{section}.name`"),
            });
        }
    }
    for section in ["stream", "teacher", "student", "learner", "distiller"] {
        match table.get(section) {
            None if section == "distiller" && table.contains_key("distillers") => {}
            None => return Err(fail(format!("section [{section}] is missing"))),
            Some(toml::Value::Table(t))
                if !t.contains_key("name") && !["teacher", "student"].contains(&section) =>
            {
                return Err(fail(format!("[{section}] has no `name`; `cdl list` shows what there is")));
            }
            Some(_) => {}
        }
    }
    serde_path_to_error::deserialize(toml::Value::Table(table.clone())).map_err(|e| {
        let key = e.path().to_string();
        let reason = e.into_inner().to_string();
        let reason = reason.lines().next().unwrap_or_default().to_string();
        let value = lookup(table, &key).map(|v| v.to_string()).unwrap_or_default();
        let origin = origin(figment, &key).unwrap_or_else(|| files.to_string());
        Error::Setting { origin, key, value, expected: reason }
    })
}

fn origin(figment: &Figment, key: &str) -> Option<String> {
    let tag = figment.find_value(key).ok()?.tag();
    let metadata = figment.get_metadata(tag)?;
    Some(match &metadata.source {
        Some(Source::File(path)) => path.display().to_string(),
        _ => metadata.name.to_string(),
    })
}

/// The value at a dotted key.
pub(crate) fn lookup<'a>(table: &'a Settings, key: &str) -> Option<&'a toml::Value> {
    let (first, rest) = key.split_once('.').map_or((key, None), |(first, rest)| (first, Some(rest)));
    match (table.get(first)?, rest) {
        (value, None) => Some(value),
        (toml::Value::Table(table), Some(rest)) => lookup(table, rest),
        _ => None,
    }
}

/// Refuses keys of `table` that `schema` does not define, at any depth.
///
/// # Errors
/// [`Error::UnknownKey`] for the first such key, with the nearest valid one; `origin` is used as is.
pub(crate) fn check_keys(
    schema: &serde_json::Value,
    table: &Settings,
    path: &str,
    origin: &str,
) -> Result<()> {
    check_at(schema, schema, table, path, origin)
}

fn check_at(
    root: &serde_json::Value,
    schema: &serde_json::Value,
    table: &Settings,
    path: &str,
    origin: &str,
) -> Result<()> {
    let mut known: HashSet<&str> = HashSet::new();
    let mut open = false;
    let mut parts = vec![schema];
    let mut properties = Vec::new();
    while let Some(part) = parts.pop() {
        if let Some(reference) = part.get("$ref").and_then(|r| r.as_str()) {
            parts.extend(root.pointer(reference.trim_start_matches('#')));
        }
        for list in ["allOf", "anyOf", "oneOf"] {
            parts.extend(part.get(list).and_then(|l| l.as_array()).into_iter().flatten());
        }
        if let Some(map) = part.get("properties").and_then(|p| p.as_object()) {
            known.extend(map.keys().map(String::as_str));
            properties.push(map);
        }
        open |= part.get("additionalProperties").is_some_and(|a| a != &serde_json::Value::Bool(false));
    }
    for (key, value) in table {
        let full = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        if !known.contains(key.as_str()) {
            if open {
                continue;
            }
            let mut names: Vec<String> = known.iter().map(|name| name.to_string()).collect();
            names.sort();
            return Err(Error::UnknownKey {
                origin: origin.into(),
                key: full,
                nearest: nearest(key, known.iter().copied()),
                known: names,
            });
        }
        if let toml::Value::Table(inner) = value {
            for map in &properties {
                if let Some(schema) = map.get(key) {
                    check_at(root, schema, inner, &full, origin)?;
                }
            }
        }
    }
    Ok(())
}

fn leaves(table: &Settings, path: &str, rows: &mut Vec<(String, String)>) {
    for (key, value) in table {
        let full = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        match value {
            toml::Value::Table(inner) => leaves(inner, &full, rows),
            value => rows.push((full, value.to_string())),
        }
    }
}
