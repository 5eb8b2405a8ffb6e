//! Reading what a folder says of itself. It may be damaged, or made to do harm: every mistake is told with the file and the
//! key, and no size is believed before the tensors have it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    error::{Error, Result},
    hub::{
        checksum,
        checksum_list::{self, Manifest},
    },
    run::export::{CLASSES, Description, FORMAT, MODEL, fail},
    traits::BackboneSpec,
};

/// Most characters of a value that are quoted.
const QUOTED: usize = 100;

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
        match found == *sum {
            true => Ok(()),
            false => {
                let list = checksum_list::NAME;
                Err(fail(
                    &file,
                    format!("is damaged: its SHA-256 is {found}, in {list} {sum}; export it again"),
                ))
            }
        }
    };
    listed(MODEL)?;
    let description: Description = typed(&file, value)?;
    description.transform.validate().map_err(|reason| fail(&file, reason))?;
    if description.batch_size == 0 {
        return Err(setting(&file, "batch_size", "0", "expected 1 or more".into()));
    }
    if let Some(teacher) = &description.teacher {
        teacher_sizes(&file, teacher)?;
    }
    description.files().iter().try_for_each(|name| listed(name))?;
    Ok(description)
}

/// The names of the classes.
pub(super) fn classes(folder: &Path) -> Result<Vec<String>> {
    let file = folder.join(CLASSES);
    typed(&file, json(&file)?)
}

fn json(file: &Path) -> Result<Value> {
    let bytes = fs::read(file).map_err(|e| {
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

fn teacher_sizes(file: &Path, teacher: &BackboneSpec) -> Result<()> {
    for (name, size, most) in TEACHER {
        let size = size(teacher);
        if !(1..=most).contains(&size) {
            let expected = format!("expected a size of a network, 1 to {most}");
            return Err(setting(file, &format!("teacher.{name}"), &size.to_string(), expected));
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
    let same = said.plugin == found.plugin && said.normalization == found.normalization;
    match same {
        true => Ok(()),
        false => Err(fail(file, format!("`{key}.spec` is not that of the network in {key}/"))),
    }
}
