//! Lists of the images of a split: text with one path and label a line, or the published code's YAML.

use std::{
    collections::BTreeMap,
    path::{Component, Path, PathBuf},
};

use cdl_core::prelude::*;
use saphyr_parser::{Event, Parser};

use super::folder::Folders;

/// Labels by class.
pub(crate) type Labels = BTreeMap<String, usize>;

/// One image of a list.
struct Entry {
    /// Where it stands, for messages: `line 3` or `item 3`.
    place: String,
    path: PathBuf,
    label: Option<usize>,
}

/// Files of a split list by class, the folder that holds a file, and the labels that the list gives to classes.
///
/// Paths are looked up below `root`. Lists are often written for another folder, `data/imagenet-r/n01443537/art_0.jpg`
/// for one: of a path that leads nowhere, leading folders are left out until it leads to a file, down to
/// `CLASS/image`. No path may leave `root`.
pub(crate) fn read(root: &Path, file: &Path, labels: &mut Labels) -> Result<Folders> {
    let fail = |reason: String| Error::Data { file: file.into(), reason };
    let text = std::fs::read_to_string(file).map_err(|e| fail(format!("cannot be read: {e}")))?;
    let extension = file.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    let entries = match extension.as_str() {
        "yaml" | "yml" => yaml(&text).map_err(fail)?,
        _ => lines(&text),
    };
    let mut classes = Folders::new();
    for Entry { place, path, label } in entries {
        let Some(class) =
            path.parent().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned())
        else {
            return Err(fail(format!("{place}: `{}` has no class folder", path.display())));
        };
        let image = resolve(root, &path).map_err(|reason| fail(format!("{place}: {reason}")))?;
        if let Some(label) = label {
            let first = *labels.entry(class.clone()).or_insert(label);
            if first != label {
                return Err(fail(format!("{place}: label {label}, but {first} earlier for class `{class}`")));
            }
        }
        classes.entry(class).or_default().push(image);
    }
    if classes.is_empty() {
        return Err(fail("names no images".into()));
    }
    Ok(classes)
}

/// Classes in the order of their labels, if the lists label them all, else of their names. `stream` is for messages.
pub(crate) fn in_order(stream: &str, mut classes: Vec<String>, labels: &Labels) -> Result<Vec<String>> {
    if classes.iter().all(|class| labels.contains_key(class)) {
        classes.sort_by_key(|class| labels[class]);
        if let Some(pair) = classes.windows(2).find(|pair| labels[&pair[0]] == labels[&pair[1]]) {
            let reason =
                format!("classes `{}` and `{}` have the same label {}", pair[0], pair[1], labels[&pair[0]]);
            return Err(Error::Tasks(format!("{stream}: {reason}")));
        }
    }
    Ok(classes)
}

/// The file that a listed path stands for.
fn resolve(root: &Path, listed: &Path) -> Result<PathBuf, String> {
    let mut parts = Vec::new();
    for component in listed.components() {
        match component {
            Component::Normal(part) => parts.push(part),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                return Err(format!(
                    "`{}` leads out of `{}`; expected a path below it, without `..`",
                    listed.display(),
                    root.display()
                ));
            }
        }
    }
    let deepest = parts.len().saturating_sub(2);
    let file = (0..=deepest).map(|skipped| root.join(parts[skipped..].iter().collect::<PathBuf>()));
    file.into_iter().find(|file| file.is_file()).ok_or_else(|| {
        let other = if deepest > 0 { ", nor without its leading folders" } else { "" };
        format!("no file `{}`{other}", root.join(listed).display())
    })
}

/// `path [label]` a line; lines that begin with `#` are comments. Names may hold spaces; only a number at the end is a label.
fn lines(text: &str) -> Vec<Entry> {
    let mut entries = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (path, label) = match line.rsplit_once(char::is_whitespace) {
            Some((path, label)) => match label.parse::<usize>() {
                Ok(label) => (path.trim_end(), Some(label)),
                Err(_) => (line, None),
            },
            None => (line, None),
        };
        entries.push(Entry { place: format!("line {}", number + 1), path: path.into(), label });
    }
    entries
}

/// A mapping with the lists `data` (paths) and `targets` (labels), of one length. Only plain lists are taken: what
/// could make much of little text, aliases of anchors, is refused.
fn yaml(text: &str) -> Result<Vec<Entry>, String> {
    let mut events = Parser::new_from_str(text);
    let mut lists: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut next = || match events.next() {
        Some(Ok((event, span))) => Ok((event, span.start.line())),
        Some(Err(e)) => Err(format!("is not YAML: {e}")),
        None => Ok((Event::StreamEnd, 0)),
    };
    let plan = "expected a mapping with the lists `data` (paths) and `targets` (labels)";
    loop {
        match next()? {
            (Event::StreamStart | Event::DocumentStart(_), _) => {}
            (Event::MappingStart(..), _) => break,
            (_, line) => return Err(format!("line {line}: {plan}")),
        }
    }
    loop {
        let key = match next()? {
            (Event::Scalar(key, ..), _) => key.into_owned(),
            (Event::MappingEnd, _) => break,
            (_, line) => return Err(format!("line {line}: {plan}")),
        };
        match next()? {
            (Event::SequenceStart(..), _) => {}
            (_, line) => return Err(format!("line {line}: `{key}` is not a list; {plan}")),
        }
        let mut items = Vec::new();
        loop {
            match next()? {
                (Event::Scalar(item, ..), _) => items.push(item.into_owned()),
                (Event::SequenceEnd, _) => break,
                (Event::Alias(_), line) => {
                    return Err(format!("line {line}: an alias; expected every item of `{key}` in full"));
                }
                (_, line) => return Err(format!("line {line}: expected paths or numbers in `{key}`")),
            }
        }
        if lists.insert(key.clone(), items).is_some() {
            return Err(format!("has the list `{key}` twice"));
        }
    }
    let mut take = |key: &str| lists.remove(key).ok_or_else(|| format!("has no list `{key}`; {plan}"));
    let (data, targets) = (take("data")?, take("targets")?);
    if data.len() != targets.len() {
        return Err(format!("{} items in `data`, but {} in `targets`", data.len(), targets.len()));
    }
    let entries = data.into_iter().zip(targets).enumerate().map(|(index, (path, label))| {
        let place = format!("item {}", index + 1);
        match label.parse() {
            Ok(label) => Ok(Entry { place, path: path.into(), label: Some(label) }),
            Err(_) => Err(format!("{place}: label `{label}` is not a number")),
        }
    });
    entries.collect()
}
