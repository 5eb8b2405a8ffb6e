//! Reads and checks the description of an exported model. The folder may be damaged or malicious: every error contains
//! file and key, and no size is used before it has been compared with the tensors.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    error::{Error, Result, types_in_words},
    hub::{
        checksum,
        checksum_list::{self, ChecksumList},
    },
    registry::{dynamic, leaves},
    run::{
        PluginRecord,
        export::{CLASSES, Description, FORMAT, MODEL, TRAINED, fail},
    },
    traits::{BackboneSpec, StateDict},
};

/// Maximum number of characters of a value in a message.
const MAX_QUOTED: usize = 100;

/// Number of classes, and query width, up to which neither is compared with the sizes of the tensors.
const ALWAYS_ACCEPTED: usize = 1 << 16;

/// Maximum of a whole number in the settings of a method. Any such number may be a seed, so the limit exceeds all sizes
/// of tensors.
const MAX_SETTING: usize = 1 << 32;

/// Function that returns one of the sizes of a network.
type Size = fn(&BackboneSpec) -> usize;

/// Maximum sizes of a teacher, which cannot be compared with tensors of the folder.
const TEACHER: [(&str, Size, usize); 3] = [
    ("width", |spec| spec.width, 1 << 16),
    ("depth", |spec| spec.depth, 1 << 10),
    ("patches", |spec| spec.patches, 1 << 13),
];

/// Reads `model.json` of a folder and checks the checksums of all files.
pub(super) fn description(folder: &Path) -> Result<Description> {
    let file = folder.join(MODEL);
    let value: Value = json(&file)?;
    match value["format"].as_u64() {
        Some(FORMAT) => {}
        Some(other) => {
            let reason = format!("has format {other}; this version of cdl reads format {FORMAT}");
            return Err(fail(&file, reason));
        }
        None => return Err(fail(&file, "has no `format`: it is not an exported model")),
    }
    let sums_file = folder.join(checksum_list::NAME);
    let sums = ChecksumList::read(&sums_file).map_err(|error| match error {
        Error::Io { file, source } => fail(&file, format!("cannot be read: {source}")),
        error => error,
    })?;
    let check_sum = |name: &str| -> Result<()> {
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
            let reason = format!(
                "is damaged: its SHA-256 is {found}, that in {list} is {sum}; export the model again"
            );
            return Err(fail(&file, reason));
        }
        Ok(())
    };
    check_sum(MODEL)?;
    let description: Description = typed(&file, value)?;
    description.transform.validate().map_err(|reason| fail(&file, reason))?;
    if description.batch_size == 0 {
        return Err(setting(&file, "batch_size", "0", "expected at least 1".into()));
    }
    if let Some(teacher) = &description.teacher {
        for (name, size, max) in TEACHER {
            let size = size(teacher);
            if !(1..=max).contains(&size) {
                let expected = format!("expected 1 to {max}");
                return Err(setting(&file, &format!("teacher.{name}"), &size.to_string(), expected));
            }
        }
    }
    description.files().iter().try_for_each(|name| check_sum(name))?;
    Ok(description)
}

pub(super) fn classes(folder: &Path) -> Result<Vec<String>> {
    let file = folder.join(CLASSES);
    typed(&file, json(&file)?)
}

fn json(file: &Path) -> Result<Value> {
    let bytes = crate::system::files::read(file).map_err(|e| {
        fail(file, format!("cannot be read ({e}); expected a folder written by `cdl export`"))
    })?;
    serde_json::from_slice(&bytes)
        .map_err(|e| fail(file, format!("is damaged: it is not JSON ({e}); export the model again")))
}

/// Converts the `value` read from `file`. An error contains the key and the invalid value.
fn typed<T: DeserializeOwned>(file: &Path, value: Value) -> Result<T> {
    serde_path_to_error::deserialize(&value).map_err(|e| {
        let key = e.path().to_string();
        let reason = types_in_words(&e.into_inner().to_string());
        // The path `tasks[0].start` becomes the JSON pointer `/tasks/0/start`.
        let pointer = format!("/{}", key.replace(['.', '['], "/").replace(']', ""));
        match value.pointer(&pointer) {
            Some(found) => setting(file, &key, &quoted(found), reason),
            None => fail(file, format!("{reason}; expected a file written by `cdl export`")),
        }
    })
}

fn quoted(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(MAX_QUOTED) {
        Some((end, _)) => format!("{} ...", &text[..end]),
        None => text,
    }
}

/// Returns the error of an invalid value of `key` in `file`.
pub(super) fn setting(file: &Path, key: &str, value: &str, expected: String) -> Error {
    Error::Setting { origin: file.display().to_string(), key: key.into(), value: value.into(), expected }
}

/// Checks that no size exceeds the number of elements of the largest tensor, before anything is built: a malicious
/// folder may contain sizes that do not fit into memory. Later checks limit each tensor of a method under construction
/// to the bytes of all saved tensors together, and compare the shapes of restored tensors with those of saved ones.
pub(super) fn check_sizes(
    folder: &Path,
    description: &Description,
    classes: usize,
    trained: &StateDict,
) -> Result<()> {
    let largest_tensor = trained.iter().map(|(_, tensor)| tensor.elem_count()).max().unwrap_or(0);
    let max = largest_tensor.max(ALWAYS_ACCEPTED);
    let refuse = |file: &str, key: &str, value: usize| {
        let expected = format!("expected at most {max}; no tensor in {TRAINED} has more elements");
        Err(setting(&folder.join(file), key, &value.to_string(), expected))
    };
    if classes > max {
        return refuse(CLASSES, "classes", classes);
    }
    if let Some(width) = description.query_width.filter(|width| *width > max) {
        return refuse(MODEL, "query_width", width);
    }
    let distillers = description
        .distillers
        .iter()
        .enumerate()
        .map(|(index, distiller)| (format!("distillers[{index}].section"), &distiller.section.settings));
    for (section, settings) in distillers.chain([("learner".into(), &description.learner.settings)]) {
        let found = leaves(settings).into_iter().find(|(_, value)| largest(value) > MAX_SETTING);
        if let Some((key, value)) = found {
            let (key, expected) = (format!("{section}.{key}"), format!("expected at most {MAX_SETTING}"));
            return Err(setting(&folder.join(MODEL), &key, &value.to_string(), expected));
        }
    }
    Ok(())
}

/// Returns the largest whole number in a value, or 0 if there is none.
fn largest(value: &toml::Value) -> usize {
    match value {
        toml::Value::Integer(number) => usize::try_from(*number).unwrap_or(0),
        toml::Value::Array(values) => values.iter().map(largest).max().unwrap_or(0),
        toml::Value::Table(table) => table.values().map(largest).max().unwrap_or(0),
        _ => 0,
    }
}

/// Adds the file and the key to the error of a method with settings under `section`. The error of an unknown name also
/// contains the plugins of the model.
pub(super) fn located(folder: &Path, description: &Description, section: &str, error: Error) -> Error {
    let file = folder.join(MODEL);
    let plugins: Vec<String> =
        (description.plugins.iter()).map(|plugin| format!("{} {}", plugin.name, plugin.version)).collect();
    match error {
        unknown @ Error::UnknownName { .. } => {
            let key = match section.strip_suffix(".settings") {
                Some(network) => format!("{network}.plugin"),
                None => format!("{section}.name"),
            };
            let hint = match &plugins[..] {
                [] => String::new(),
                plugins => format!("; the model needs the plugin {}, see --plugin", plugins.join(", ")),
            };
            fail(&file, format!("`{key}`: {unknown}{hint}"))
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

/// Checks that the loaded plugins of the model are those with which it was exported. Methods that are linked into the
/// program are not checked.
pub(super) fn check_plugins(folder: &Path, description: &Description) -> Result<()> {
    let loaded = dynamic::loaded();
    for PluginRecord { name, sha256, .. } in &description.plugins {
        let found = loaded.iter().find(|loaded| loaded.manifest.name == *name);
        if let Some(found) = found.filter(|found| found.sha256 != *sha256) {
            let (file, other) = (found.file.display(), &found.sha256);
            let reason =
                format!("needs the plugin {name} with the SHA-256 {sha256}; {file} has the SHA-256 {other}");
            return Err(fail(&folder.join(MODEL), reason));
        }
    }
    Ok(())
}

/// Checks that the sizes of a frozen network in the description, `stated` under `key`, are those of its tensors,
/// `found`.
pub(super) fn check_spec(file: &Path, key: &str, stated: &BackboneSpec, found: &BackboneSpec) -> Result<()> {
    let sizes: [(&str, Size); 6] = [
        ("width", |spec| spec.width),
        ("depth", |spec| spec.depth),
        ("heads", |spec| spec.heads),
        ("patch_size", |spec| spec.patch_size),
        ("image_size", |spec| spec.image_size),
        ("patches", |spec| spec.patches),
    ];
    for (name, size) in sizes {
        if size(stated) != size(found) {
            let expected = format!("expected {}, the size of the tensors in {key}/", size(found));
            return Err(setting(file, &format!("{key}.spec.{name}"), &size(stated).to_string(), expected));
        }
    }
    if (&stated.plugin, stated.normalization) != (&found.plugin, found.normalization) {
        return Err(fail(
            file,
            format!("`{key}.spec` states another plugin or normalisation than {key}/ contains"),
        ));
    }
    Ok(())
}
