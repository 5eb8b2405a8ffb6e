//! Axes of a sweep: the settings that differ from cell to cell.

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::failure::Failure;

/// Maximum length, in characters, of a value that tables and folder names contain in full.
const MAX_LABEL: usize = 40;

/// Axis of the grid with all its values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Axis {
    /// Name in cell names and column titles.
    pub name: String,
    pub values: Vec<Value>,
}

/// Value of an axis: configuration files and settings that override the sweep's configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Value {
    /// Name in tables.
    pub label: String,
    /// Configuration files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<PathBuf>,
    /// Settings as in `--set`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sets: Vec<String>,
}

impl Axis {
    /// Parses `KEY=VALUE,VALUE,...`. A comma in brackets or quotes belongs to a value.
    pub fn of_key(option: &str, text: &str) -> Result<Self, Failure> {
        let fail = |reason: &str| Failure::invalid(format!("{option} {text}: {reason}"));
        let (key, values) =
            text.split_once('=').ok_or_else(|| fail("expected KEY=VALUE,VALUE,... as in --set"))?;
        let key = key.trim();
        if key.is_empty() || key.split('.').any(str::is_empty) {
            return Err(fail("expected a key like `learner.pool` before the `=`"));
        }
        let value = |value: String| Value {
            label: label(&value),
            files: Vec::new(),
            sets: vec![format!("{key}={value}")],
        };
        let values =
            split(values).ok_or_else(|| fail("a value is empty, or brackets or quotes are not closed"))?;
        // The axis is named after the section: `distiller`, not `distiller.name`.
        let name = key.strip_suffix(".name").unwrap_or(key);
        Ok(Self { name: name.into(), values: values.into_iter().map(value).collect() })
    }

    /// Axis of seeds; `sets` returns the settings for a seed.
    pub fn of_seeds(name: &str, seeds: &[u64], sets: impl Fn(u64) -> Vec<String>) -> Self {
        let value = |&seed: &u64| Value { label: seed.to_string(), files: Vec::new(), sets: sets(seed) };
        Self { name: name.into(), values: seeds.iter().map(value).collect() }
    }

    /// Parses `[NAME=]FILE,FILE,...`. The default name is that of the first file's folder.
    pub fn of_files(option: &str, text: &str) -> Result<Self, Failure> {
        let fail = |reason: &str| Failure::invalid(format!("{option} {text}: {reason}"));
        let (name, files) = match text.split_once('=') {
            Some((name, files)) if !name.contains(['/', '\\', '.']) => (Some(name.trim()), files),
            _ => (None, text),
        };
        let files: Vec<PathBuf> = files.split(',').map(|file| PathBuf::from(file.trim())).collect();
        if files.iter().any(|file| file.file_stem().is_none()) {
            return Err(fail("expected configuration files, separated by commas"));
        }
        let folder = files.first().and_then(|file| Some(last_parts(file.parent()?, 1)));
        let folder = folder.filter(|folder| !folder.is_empty() && folder != "..");
        let name = name.map(String::from).or(folder).unwrap_or_else(|| "file".into());
        let labels = unique_names(&files).into_iter().map(|name| label(&name));
        let values = labels.zip(files).map(|(label, file)| Value { label, files: vec![file], sets: vec![] });
        let values = values.collect();
        Ok(Self { name, values })
    }

    /// Part of a cell's name for one value.
    pub fn part(&self, value: &Value) -> String {
        format!("{}-{}", file_name(&self.name), file_name(&value.label))
    }
}

/// Splits at commas outside brackets and quotes. Returns `None` if brackets or quotes are not closed or a part is
/// empty.
fn split(text: &str) -> Option<Vec<String>> {
    let (mut parts, mut depth, mut quote) = (vec![String::new()], 0usize, None);
    for c in text.chars() {
        match (quote, c) {
            (None, ',') if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            (None, '[' | '{') => depth += 1,
            (None, ']' | '}') => depth = depth.checked_sub(1)?,
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), c) if c == open => quote = None,
            _ => {}
        }
        parts.last_mut()?.push(c);
    }
    let parts: Vec<String> = parts.into_iter().map(|part| part.trim().to_string()).collect();
    let valid = depth == 0 && quote.is_none() && parts.iter().all(|part| !part.is_empty());
    valid.then_some(parts)
}

/// Returns a name for each file: the stem; if others have the same stem, as many folders before it as make it unique;
/// if that fails, the file name with its extension.
fn unique_names(files: &[PathBuf]) -> Vec<String> {
    let parts = files.iter().map(|file| file.components().count()).max().unwrap_or(1);
    let name = |file: &PathBuf| {
        let unique = |parts: &usize| {
            let same = |other: &&PathBuf| last_parts(other, *parts) == last_parts(file, *parts);
            files.iter().filter(same).count() == 1
        };
        let whole = || file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        (1..=parts).find(unique).map_or_else(whole, |parts| last_parts(file, parts))
    };
    files.iter().map(name).collect()
}

/// Last `parts` components of a path, without the file's extension. The root is an empty component.
fn last_parts(path: &Path, parts: usize) -> String {
    let whole = path.with_extension("");
    let names = whole.components().filter_map(|part| match part {
        Component::Normal(_) | Component::ParentDir => Some(part.as_os_str().to_string_lossy().into_owned()),
        Component::RootDir => Some(String::new()),
        Component::CurDir | Component::Prefix(_) => None,
    });
    let names: Vec<String> = names.collect();
    names[names.len().saturating_sub(parts)..].join("/")
}

/// Label of a value, without quotes. Long values are shortened to their beginning and eight digits of their SHA-256.
pub fn label(value: &str) -> String {
    let value = value.trim_matches('"');
    match value.chars().count() > MAX_LABEL {
        true => {
            value.chars().take(MAX_LABEL / 2).chain("...".chars()).collect::<String>() + &short_hash(value)
        }
        false => value.into(),
    }
}

/// Makes a text safe for file names on any system. If characters are replaced, eight digits of its SHA-256 keep it
/// unique.
fn file_name(text: &str) -> String {
    let keep = |c: char| if c.is_ascii_alphanumeric() || "._+-".contains(c) { c } else { '_' };
    let kept: String = text.chars().map(keep).collect();
    if kept == text { kept } else { format!("{kept}-{}", short_hash(text)) }
}

/// First eight hexadecimal digits of a text's SHA-256.
pub fn short_hash(text: &str) -> String {
    Sha256::digest(text).iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn commas_in_brackets_and_quotes_belong_to_values() {
        let of = |text: &str| split(text).map(|parts| parts.join(" | "));
        assert_eq!(of("a, b,c").as_deref(), Some("a | b | c"));
        assert_eq!(of("[1,2],[3,[4,5]]").as_deref(), Some("[1,2] | [3,[4,5]]"));
        assert_eq!(of("{a=1,b=2},\"x,[\",'y,z'").as_deref(), Some("{a=1,b=2} | \"x,[\" | 'y,z'"));
        for faulty in ["", "a,,b", "a,", "[1,2", "1]", "\"a,b"] {
            assert_eq!(of(faulty), None, "{faulty}");
        }
    }

    #[test]
    fn names_are_readable_unique_and_safe_for_file_systems() {
        let axis = |text: &str| Axis::of_key("--vary", text).map_err(|e| e.message).expect("an axis");
        let files = |text: &str| Axis::of_files("--vary-file", text).map_err(|e| e.message).expect("an axis");
        let parts = |axis: &Axis| axis.values.iter().map(|value| axis.part(value)).collect::<Vec<_>>();
        assert_eq!(parts(&axis("distiller.name=one,\"two\"")), ["distiller-one", "distiller-two"]);
        assert_eq!(parts(&axis("optimizer.lr=1e-3")), ["optimizer.lr-1e-3"]);
        let lists = parts(&axis("stream.task_classes=[[\"a\"],[\"b\"]],[[\"b\"],[\"a\"]]"));
        assert!(lists.iter().all(|name| name.len() < 80 && !name.contains(['[', '"', ','])), "{lists:?}");
        assert_ne!(lists[0], lists[1]);
        let long = axis(&format!("learner.x={},{}", "v".repeat(300), "v".repeat(301)));
        assert!(parts(&long).iter().all(|name| name.len() < 80), "{long:?}");
        assert_ne!(long.values[0].label, long.values[1].label);

        let folder = files("configs/distiller/one.toml,configs/distiller/two.toml");
        assert_eq!(parts(&folder), ["distiller-one", "distiller-two"]);
        assert_eq!(parts(&files("method=a=1/one.toml")), ["method-one"]);
        let same = files("method=a/kd.toml,b/x/kd.toml,c/x/kd.toml,./c/none.toml");
        let labels: Vec<&str> = same.values.iter().map(|value| value.label.as_str()).collect();
        assert_eq!(labels, ["a/kd", "b/x/kd", "c/x/kd", "none"]);
        let parts: BTreeSet<String> = parts(&same).into_iter().collect();
        assert!(parts.len() == 4 && parts.iter().all(|part| !part.contains('/')), "{parts:?}");

        let labels = |text: &str| {
            let axis = files(text);
            (axis.name, axis.values.into_iter().map(|value| value.label).collect::<Vec<_>>().join(" "))
        };
        let outside = labels("m=../a/kd.toml,a/kd.toml,/a/kd.toml,../../a/kd.toml");
        assert_eq!(outside, ("m".into(), "../a/kd a/kd /a/kd ../../a/kd".into()));
        assert_eq!(labels("a/kd.toml,a/kd.conf,b/kd.toml").1, "kd.toml kd.conf b/kd");
        assert_eq!(labels("../kd.toml,kd.toml,/kd.toml"), ("file".into(), "../kd kd /kd".into()));
        // The same file twice gets the same name.
        assert_eq!(labels("a/kd.toml,./a/kd.toml"), ("a".into(), "kd.toml kd.toml".into()));
    }
}
