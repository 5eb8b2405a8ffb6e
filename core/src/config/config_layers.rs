//! Layers of values with their origins, and the merging of layers.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use figment::{
    Figment, Metadata, Profile, Provider, Source,
    value::{Dict, Map, Value},
};

use crate::{
    config::RunConfig,
    error::{Error, Result, nearest},
    registry::{Settings, schema_of},
};

/// Sections with a `name`. A layer with another name replaces the whole section.
pub(super) const NAMED: [&str; 9] = [
    "stream",
    "teacher",
    "student",
    "learner",
    "distiller",
    "optimizer",
    "schedule",
    "teacher.learner",
    "student.learner",
];
/// Environment variables, without the prefix `CDL_` and in lower case, that are not settings. The program and its tests
/// read them elsewhere.
const RESERVED: [&str; 8] =
    ["cuda_libs", "golden_dir", "log", "models_dir", "plugin_path", "require_gpu", "simd", "test_device"];

/// Maximum number of files that one file extends, directly or through others. A file extended twice counts twice.
const MAX_FILES: usize = 256;
/// Maximum number of parts of a dotted key. The deepest setting has four.
const MAX_PARTS: usize = 32;

/// Layers of a configuration: files (later ones override earlier ones and the files that they extend), then environment
/// variables, then `--set`. Each file is read once.
#[derive(Debug, Default)]
pub struct ConfigLayers {
    /// Paths of the files as given by the user, lowest layer first.
    pub(super) files: Vec<PathBuf>,
    /// Layers of each readable file of [`ConfigLayers::files`]. Layers of the files that it extends come first.
    pub(super) file_layers: Vec<Vec<Layer>>,
    /// Layers above all files.
    overrides: Vec<Layer>,
    /// Errors met while reading the layers.
    pub(super) errors: Vec<Error>,
}

/// One layer of values with its origin.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    metadata: Metadata,
    values: Dict,
    /// Whether the layer comes from an environment variable or `--set`. All such layers count as one, in any order.
    is_override: bool,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        self.metadata.clone()
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Profile::Default.collect(self.values.clone()))
    }
}

impl ConfigLayers {
    /// Reads `files`, the environment and `sets` (`key=value` each). [`ConfigLayers::draft`] returns the errors.
    pub fn read<P: AsRef<Path>>(files: &[P], sets: &[String]) -> Self {
        let mut layers = Self::default();
        for file in files.iter().map(AsRef::as_ref) {
            let mut file_layers = Vec::new();
            layers.files.push(file.into());
            match read_file(file, &mut Vec::new(), &mut file_layers) {
                Ok(()) => layers.file_layers.push(file_layers),
                Err(error) => layers.errors.push(error),
            }
        }
        layers.with_overrides(sets)
    }

    /// Reads `text`, the environment and `sets`. `name` is the origin of the text in messages. The text cannot extend
    /// files.
    pub fn parse(name: &str, text: &str, sets: &[String]) -> Self {
        Self::recorded(Path::new(name), text).with_overrides(sets)
    }

    /// Reads the configuration that a run has recorded in `file`. Environment variables are ignored.
    pub fn recorded(file: &Path, text: &str) -> Self {
        let name = file.display().to_string();
        let mut layers = Self::default();
        layers.files.push(file.into());
        match parse_toml(&name, text) {
            Ok(values) => {
                let metadata = Metadata::named(name);
                layers.file_layers.push(vec![Layer { metadata, values, is_override: false }]);
            }
            Err(error) => layers.errors.push(error),
        }
        layers
    }

    /// Adds the environment and `sets` above the files.
    fn with_overrides(mut self, sets: &[String]) -> Self {
        match environment() {
            Ok(layers) => self.overrides = layers,
            Err(error) => self.errors.push(error),
        }
        for set in sets {
            match split_set(set) {
                Ok(layer) => self.overrides.push(layer),
                Err(error) => self.errors.push(error),
            }
        }
        self
    }

    /// Returns the files listed under `plugins`, with the origin of each. The plugins must be loaded
    /// ([`load`](crate::registry::dynamic::load)) before [`ConfigLayers::draft`] can find the methods that they
    /// register. The list is empty if a layer could not be read.
    pub fn plugins(&self) -> Result<Vec<(PathBuf, String)>> {
        let figment = self.merged(None);
        if !self.errors.is_empty() || figment.find_value("plugins").is_err() {
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

    /// Returns the files without effect: later files override every key that they set.
    pub fn without_effect(&self) -> Vec<&Path> {
        let values = |excluded| self.merged(excluded).extract::<Settings>().ok();
        let all = values(None);
        // The last file cannot be overridden by another file.
        let last = self.files.len().saturating_sub(1);
        (0..last).filter(|at| values(Some(*at)) == all).map(|at| self.files[at].as_path()).collect()
    }

    /// Returns whether an environment variable or `--set` sets a key, or a layer cannot be read.
    pub fn has_overrides(&self) -> bool {
        !self.overrides.is_empty() || !self.errors.is_empty()
    }

    /// Merges all layers, lowest first, except the layers of the file with index `excluded`.
    pub(super) fn merged(&self, excluded: Option<usize>) -> Figment {
        let kept = self.file_layers.iter().enumerate().filter(|(at, _)| Some(*at) != excluded);
        merge(kept.flat_map(|(_, layers)| layers).chain(&self.overrides).cloned().collect())
    }
}

/// Appends the layers of `file` to `layers`, after the layers of the files that it extends. `open` contains the files
/// that are being read, to detect cycles.
fn read_file(file: &Path, open: &mut Vec<PathBuf>, layers: &mut Vec<Layer>) -> Result<()> {
    let name = file.display().to_string();
    let fail = |reason: String| Error::Config { origin: name.clone(), reason };
    let by = open.last().map(|by| format!(" (extended by {})", by.display())).unwrap_or_default();
    let unreadable = |e: std::io::Error| fail(format!("cannot be read: {e}{by}"));
    let identity = file.canonicalize().map_err(unreadable)?;
    if identity.is_dir() {
        return Err(fail(format!("is a folder; expected a configuration file in TOML{by}")));
    }
    if layers.len() >= MAX_FILES {
        return Err(fail(format!(
            "is one file too many: a file extends at most {MAX_FILES} files, directly or through others{by}"
        )));
    }
    if open.contains(&identity) {
        return Err(fail("extends itself through the files that it extends".into()));
    }
    let text = crate::system::files::read_to_string(file).map_err(unreadable)?;
    let mut values = parse_toml(&name, &text)?;
    let folder = file.parent().unwrap_or(Path::new(""));
    make_plugins_absolute(&mut values, folder);
    open.push(identity);
    if let Some(extends) = values.remove("extends") {
        let parents = match extends.as_str() {
            Some(parent) => vec![parent.to_string()],
            None => extends
                .deserialize()
                .map_err(|_| fail("`extends` is not valid: expected a file or a list of files".into()))?,
        };
        for parent in parents {
            read_file(&folder.join(parent), open, layers)?;
        }
    }
    open.pop();
    layers.push(Layer {
        metadata: Metadata::from("file", Source::File(file.into())),
        values,
        is_override: false,
    });
    Ok(())
}

/// Makes the paths of `plugins` absolute. `folder` is the folder of the configuration file, or the working directory. A
/// run records the paths in its own folder, from which relative paths would lead elsewhere.
fn make_plugins_absolute(values: &mut Dict, folder: &Path) {
    let Some(Value::Array(_, plugins)) = values.get_mut("plugins") else { return };
    for plugin in plugins {
        if let Value::String(_, path) = plugin
            && let Ok(absolute) = std::path::absolute(folder.join(&path))
        {
            *path = absolute.to_string_lossy().into_owned();
        }
    }
}

/// Parses TOML. An error states line, column and reason in one line of text.
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

/// Environment variable with the prefix `CDL_` that is not a setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownVariable {
    /// Name of the variable, `CDL_...`.
    pub name: String,
    /// Most similar variable that is a setting, `CDL_...`.
    pub nearest: Option<String>,
}

/// Returns the environment variables `CDL_...` that match no top-level key of a configuration.
pub fn unknown_variables() -> Vec<UnknownVariable> {
    let keys = top_level_keys();
    let unknown = variables().into_iter().filter(|(_, key, _)| !is_setting(key, &keys));
    let described = unknown.map(|(name, key, _)| {
        let nearest = nearest(key.split('.').next().unwrap_or_default(), keys.iter().map(String::as_str));
        UnknownVariable { name, nearest: nearest.map(|key| format!("CDL_{}", key.to_uppercase())) }
    });
    described.collect()
}

/// Reads settings from the environment: `CDL_OPTIMIZER__LR=0.01` sets `optimizer.lr`.
fn environment() -> Result<Vec<Layer>> {
    let keys = top_level_keys();
    let settings = variables().into_iter().filter(|(_, key, _)| is_setting(key, &keys));
    let layer = |(name, key, value): (String, String, String)| {
        parse_set(&key, &value, format!("environment variable {name}"))
    };
    settings.map(layer).collect()
}

/// Returns name, dotted key and value of the environment variables with the prefix `CDL_`, except reserved ones.
fn variables() -> Vec<(String, String, String)> {
    let text =
        |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
    let variables = std::env::vars_os().filter_map(text).filter_map(|(name, value)| {
        let key = name.strip_prefix("CDL_")?.to_lowercase();
        (!RESERVED.contains(&key.as_str())).then(|| (name, key.replace("__", "."), value))
    });
    let mut variables: Vec<_> = variables.collect();
    variables.sort();
    variables
}

fn is_setting(key: &str, top_level: &[String]) -> bool {
    top_level.iter().any(|name| Some(name.as_str()) == key.split('.').next())
}

fn top_level_keys() -> Vec<String> {
    let schema = schema_of::<RunConfig>();
    schema["properties"].as_object().map(|keys| keys.keys().cloned().collect()).unwrap_or_default()
}

/// Parses `--set key=value`.
fn split_set(set: &str) -> Result<Layer> {
    let origin = format!("--set {set}");
    match set.split_once('=') {
        Some((key, value)) => parse_set(key.trim(), value, origin),
        None => Err(Error::Config { origin, reason: "expected key=value".into() }),
    }
}

/// Creates a layer from a dotted key and its value. A value that is not TOML is taken as a string.
fn parse_set(key: &str, value: &str, origin: String) -> Result<Layer> {
    let fail = |reason: &str| Error::Config { origin: origin.clone(), reason: reason.into() };
    if key.is_empty() || key.split('.').any(str::is_empty) || key.split('.').count() > MAX_PARTS {
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
    let mut values = Dict::from([(first.to_string(), value)]);
    make_plugins_absolute(&mut values, Path::new(""));
    Ok(Layer { metadata: Metadata::named(origin), values, is_override: true })
}

/// Merges layers, lowest first. A section is first removed from all layers below the layer that gives it another name.
fn merge(mut layers: Vec<Layer>) -> Figment {
    let first_override = layers.iter().position(|layer| layer.is_override).unwrap_or(layers.len());
    // Variables and `--set` count as one layer, in any order.
    let start = |index: usize, layer: &Layer| if layer.is_override { first_override } else { index };
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
    // `[distiller]` and `distillers` exclude each other: the higher layer wins.
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
    layers.into_iter().fold(Figment::new(), |figment, layer| figment.merge(layer))
}

/// Returns the table at a dotted path.
fn section_of<'a>(values: &'a Dict, path: &str) -> Option<&'a Dict> {
    let (first, rest) = path.split_once('.').map_or((path, None), |(first, rest)| (first, Some(rest)));
    let inner = values.get(first)?.as_dict()?;
    rest.map_or(Some(inner), |rest| section_of(inner, rest))
}

/// Removes the table at a dotted path. The learner of a network is kept, since it does not belong to the backbone.
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

/// Returns the name of a section that does not set one.
fn default_name(section: &str) -> Option<&'static str> {
    match section {
        "teacher" | "student" => Some("vit"),
        "optimizer" => Some("adam"),
        "schedule" => Some("cosine"),
        _ => None,
    }
}

/// Returns the origin of the value at a dotted key: a file, a variable or an option.
pub(super) fn origin(figment: &Figment, key: &str) -> Option<String> {
    let tag = figment.find_value(key).ok()?.tag();
    let metadata = figment.get_metadata(tag)?;
    Some(match &metadata.source {
        Some(Source::File(path)) => path.display().to_string(),
        _ => metadata.name.to_string(),
    })
}
