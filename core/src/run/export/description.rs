//! Reading what a folder says of itself. It may be damaged, or made to do harm: every mistake is told with the file and the
//! key, and no size is believed before the tensors have it.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    error::{Error, Result},
    hub::{
        checksum,
        checksum_list::{self, Manifest},
    },
    registry::{dynamic, leaves},
    run::{
        PluginRecord,
        export::{CLASSES, Description, FORMAT, MODEL, TRAINED, fail},
    },
    traits::{BackboneSpec, StateDict},
};

/// Most characters of a value that are quoted.
const QUOTED: usize = 100;

/// Number of classes, or width of a query, that is accepted whatever the tensors are.
const LARGEST: usize = 1 << 16;

/// Largest whole number in the settings of a method, beyond which no tensor has a size; it may be a seed.
const LARGEST_SETTING: usize = 1 << 32;

/// One of a network's sizes.
type Size = fn(&BackboneSpec) -> usize;

/// Largest sizes of a teacher that a distiller may be built for: no tensor of the folder shows them.
const TEACHER: [(&str, Size, usize); 3] = [
    ("width", |spec| spec.width, 1 << 16),
    ("depth", |spec| spec.depth, 1 << 10),
    ("patches", |spec| spec.patches, 1 << 13),
];

/// `model.json` of a folder whose files are those that were written.
pub(super) fn description(folder: &Path) -> Result<Description> {
    let file = folder.join(MODEL);
    let value: Value = json(&file)?;
    match value["format"].as_u64() {
        Some(FORMAT) => {}
        Some(other) => {
            let reason = format!("has format {other}, and this version of cdl reads {FORMAT}");
            return Err(fail(&file, reason));
        }
        None => return Err(fail(&file, "has no `format`: it is no exported model")),
    }
    let sums_file = folder.join(checksum_list::NAME);
    let sums = Manifest::read(&sums_file).map_err(|error| match error {
        Error::Io { file, source } => fail(&file, format!("cannot be read: {source}")),
        error => error,
    })?;
    let listed = |name: &str| -> Result<()> {
        let file: PathBuf = folder.join(name);
        let Some(sum) = sums.0.get(name) else {
            return Err(fail(&sums_file, format!("does not list {name}")));
        };
        if !file.is_file() {
            return Err(fail(&file, "is missing; export the model again"));
        }
        let (_, found) = checksum(&file)?;
        if found != *sum {
            let list = checksum_list::NAME;
            let reason = format!("is damaged: its SHA-256 is {found}, in {list} {sum}; export it again");
            return Err(fail(&file, reason));
        }
        Ok(())
    };
    listed(MODEL)?;
    let description: Description = typed(&file, value)?;
    description.transform.validate().map_err(|reason| fail(&file, reason))?;
    if description.batch_size == 0 {
        return Err(setting(&file, "batch_size", "0", "expected 1 or more".into()));
    }
    if let Some(teacher) = &description.teacher {
        for (name, size, most) in TEACHER {
            let size = size(teacher);
            if !(1..=most).contains(&size) {
                let expected = format!("expected a size of a network, 1 to {most}");
                return Err(setting(&file, &format!("teacher.{name}"), &size.to_string(), expected));
            }
        }
    }
    description.files().iter().try_for_each(|name| listed(name))?;
    Ok(description)
}

pub(super) fn classes(folder: &Path) -> Result<Vec<String>> {
    let file = folder.join(CLASSES);
    typed(&file, json(&file)?)
}

fn json(file: &Path) -> Result<Value> {
    let bytes = crate::system::files::read(file).map_err(|e| {
        fail(file, format!("cannot be read ({e}); expected a folder that `cdl export` has made"))
    })?;
    serde_json::from_slice(&bytes)
        .map_err(|e| fail(file, format!("is damaged: it is no JSON ({e}); export the model again")))
}

/// `value` of `file` as what is expected there; of a mistake the key and the value are told.
fn typed<T: DeserializeOwned>(file: &Path, value: Value) -> Result<T> {
    serde_path_to_error::deserialize(&value).map_err(|e| {
        let key = e.path().to_string();
        let reason = e.into_inner().to_string();
        // `tasks[0].start` is `/tasks/0/start`.
        let pointer = format!("/{}", key.replace(['.', '['], "/").replace(']', ""));
        match value.pointer(&pointer) {
            Some(found) => setting(file, &key, &quoted(found), reason),
            None => fail(file, format!("{reason}; expected what `cdl export` writes")),
        }
    })
}

fn quoted(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(QUOTED) {
        Some((end, _)) => format!("{} ...", &text[..end]),
        None => text,
    }
}

/// What `key` says in `file` is not valid.
pub(super) fn setting(file: &Path, key: &str, value: &str, expected: String) -> Error {
    Error::Setting { origin: file.display().to_string(), key: key.into(), value: value.into(), expected }
}

/// Refuses sizes for which no tensor is large enough, before anything is built: a folder from elsewhere may claim sizes
/// that no memory holds. While the methods are built, none of their tensors may take more than the saved ones do; when they
/// are restored, their tensors have to have the shapes of the saved ones.
pub(super) fn check_sizes(
    folder: &Path,
    description: &Description,
    classes: usize,
    trained: &StateDict,
) -> Result<()> {
    let most = trained.iter().map(|(_, tensor)| tensor.elem_count()).max().unwrap_or(0).max(LARGEST);
    let refuse = |file: &str, key: &str, value: &dyn std::fmt::Display| {
        let expected = format!("expected at most {most}: no tensor in {TRAINED} is as large");
        Err(setting(&folder.join(file), key, &value.to_string(), expected))
    };
    if classes > most {
        return refuse(CLASSES, "classes", &classes);
    }
    if let Some(width) = description.query_width.filter(|width| *width > most) {
        return refuse(MODEL, "query_width", &width);
    }
    let distillers = description
        .distillers
        .iter()
        .enumerate()
        .map(|(index, kept)| (format!("distillers[{index}].section"), &kept.section.settings));
    for (section, settings) in distillers.chain([("learner".into(), &description.learner.settings)]) {
        let found = leaves(settings).into_iter().find(|(_, value)| largest(value) > LARGEST_SETTING);
        if let Some((key, value)) = found {
            return refuse(MODEL, &format!("{section}.{key}"), value);
        }
    }
    Ok(())
}

/// The largest whole number in a value, 0 if there is none.
fn largest(value: &toml::Value) -> usize {
    match value {
        toml::Value::Integer(number) => usize::try_from(*number).unwrap_or(0),
        toml::Value::Array(values) => values.iter().map(largest).max().unwrap_or(0),
        toml::Value::Table(table) => table.values().map(largest).max().unwrap_or(0),
        _ => 0,
    }
}

/// Adds to the error of a method, whose settings stand under `section`, the file and the key that it is about, and to an
/// unknown name the plugins that the model was made with.
pub(super) fn located(folder: &Path, description: &Description, section: &str, error: Error) -> Error {
    let file = folder.join(MODEL);
    let wanted: Vec<String> =
        (description.plugins.iter()).map(|plugin| format!("{} {}", plugin.name, plugin.version)).collect();
    match error {
        unknown @ Error::UnknownName { .. } => {
            let key = match section.strip_suffix(".settings") {
                Some(network) => format!("{network}.plugin"),
                None => format!("{section}.name"),
            };
            let plugins = match &wanted[..] {
                [] => String::new(),
                wanted => format!("; it was made with the plugin {}, see --plugin", wanted.join(", ")),
            };
            fail(&file, format!("`{key}`: {unknown}{plugins}"))
        }
        Error::Setting { key, value, expected, .. } => {
            setting(&file, &format!("{section}.{key}"), &value, expected)
        }
        Error::UnknownKey { key, nearest, known, .. } => {
            let (origin, key) = (file.display().to_string(), format!("{section}.{key}"));
            Error::UnknownKey { origin, key, nearest, known }
        }
        Error::State { owner, reason } => fail(&folder.join(TRAINED), format!("{owner}: {reason}")),
        Error::Config { reason, .. } => fail(&file, format!("`{section}`: {reason}")),
        error => error,
    }
}

/// Refuses another library under the name of one that the model was made with. Methods that are linked in are taken as they
/// are.
pub(super) fn check_plugins(folder: &Path, description: &Description) -> Result<()> {
    let loaded = dynamic::loaded();
    for PluginRecord { name, sha256, .. } in &description.plugins {
        let found = loaded.iter().find(|loaded| loaded.manifest.name == *name);
        if let Some(found) = found.filter(|found| found.sha256 != *sha256) {
            let (file, other) = (found.file.display(), &found.sha256);
            let reason =
                format!("was made with the plugin {name} of the SHA-256 {sha256}; that of {file} is {other}");
            return Err(fail(&folder.join(MODEL), reason));
        }
    }
    Ok(())
}

/// Refuses sizes of a frozen network, `said` under `key`, that are not those of its tensors, `found`.
pub(super) fn same_sizes(file: &Path, key: &str, said: &BackboneSpec, found: &BackboneSpec) -> Result<()> {
    let sizes: [(&str, Size); 6] = [
        ("width", |spec| spec.width),
        ("depth", |spec| spec.depth),
        ("heads", |spec| spec.heads),
        ("patch_size", |spec| spec.patch_size),
        ("image_size", |spec| spec.image_size),
        ("patches", |spec| spec.patches),
    ];
    for (name, size) in sizes {
        if size(said) != size(found) {
            let expected = format!("expected {}, as the tensors in {key}/ have it", size(found));
            return Err(setting(file, &format!("{key}.spec.{name}"), &size(said).to_string(), expected));
        }
    }
    if (&said.plugin, said.normalization) != (&found.plugin, found.normalization) {
        return Err(fail(file, format!("`{key}.spec` is not that of the network in {key}/")));
    }
    Ok(())
}
