//! Lists of the images of a split: text with one path and label per line, or the YAML format of the published code.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Component, Path, PathBuf},
};

use cdl_core::prelude::*;
use saphyr_parser::{Event, Parser};

use super::{Parsed, class_folders::Folders, unreadable};

/// Labels by class.
pub(crate) type Labels = BTreeMap<String, usize>;

/// Images that the lists of a split name.
#[derive(Default)]
pub(crate) struct ListedImages {
    /// Images by the folder that contains them.
    pub(crate) classes: Folders,
    /// All images.
    pub(crate) all: BTreeSet<PathBuf>,
}

/// One image of a list.
struct Entry {
    /// Position in the list, for messages: `line 3` or `item 3`.
    place: String,
    path: PathBuf,
    label: Option<usize>,
}

/// Reads a split list. Adds its images to `images` and the labels of the classes to `labels`. Lines that repeat an
/// image are dropped with a warning.
///
/// Paths are relative to `root`. Lists are often written for another folder, such as
/// `data/imagenet-r/n01443537/art_0.jpg`: if a path does not exist, its leading folders are dropped one by one, down to
/// `CLASS/image`, until it does. No path may leave `root`.
pub(crate) fn read(root: &Path, file: &Path, images: &mut ListedImages, labels: &mut Labels) -> Result<()> {
    let fail = |reason: String| Error::data(file, reason);
    let text = cdl_core::system::files::read_to_string(file).map_err(unreadable(file))?;
    let extension = file.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    let entries = match extension.as_str() {
        "yaml" | "yml" => yaml(&text).map_err(fail)?,
        _ => lines(&text),
    };
    if entries.is_empty() {
        return Err(fail("contains no images".into()));
    }
    let mut repeated = Vec::new();
    for Entry { place, path, label } in entries {
        let fail = |reason: String| fail(format!("{place}: {reason}"));
        let Some(class) = path.parent().and_then(Path::file_name) else {
            return Err(fail(format!("`{}` has no class folder", path.display())));
        };
        let class = class.to_string_lossy().into_owned();
        let image = resolve(root, &path).map_err(fail)?;
        if let Some(label) = label {
            let first = *labels.entry(class.clone()).or_insert(label);
            if first != label {
                return Err(fail(format!("label {label}, but {first} earlier for class `{class}`")));
            }
        }
        match images.all.insert(image.clone()) {
            true => images.classes.entry(class).or_default().push(image),
            false => repeated.push((place, path)),
        }
    }
    if let Some((place, path)) = repeated.first() {
        let (list, path, count) = (file.display(), path.display(), repeated.len());
        tracing::warn!("{list}: dropped lines that repeat an image: {count}; the first is {place}, `{path}`");
    }
    Ok(())
}

/// Sorts classes by their labels if the lists label all of them, otherwise keeps the order of their names. `stream` is
/// named in errors.
pub(crate) fn in_order(stream: &str, mut classes: Vec<String>, labels: &Labels) -> Result<Vec<String>> {
    if classes.iter().all(|class| labels.contains_key(class)) {
        classes.sort_by_key(|class| labels[class]);
        if let Some([one, other]) = classes.array_windows().find(|[one, other]| labels[one] == labels[other])
        {
            let label = labels[one];
            let reason = format!("{stream}: classes `{one}` and `{other}` have the same label {label}");
            return Err(Error::Tasks(reason));
        }
    }
    Ok(classes)
}

/// Returns the file that a listed path refers to.
fn resolve(root: &Path, listed: &Path) -> Parsed<PathBuf> {
    let stays = |part: &Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    if !listed.components().all(|part| stays(&part)) {
        let (listed, root) = (listed.display(), root.display());
        return Err(format!("`{listed}` leads out of `{root}`; expected a path inside it, without `..`"));
    }
    let parts: Vec<Component<'_>> = listed.components().filter(|part| *part != Component::CurDir).collect();
    let deepest = parts.len().saturating_sub(2);
    let mut files = (0..=deepest).map(|skipped| root.join(parts[skipped..].iter().collect::<PathBuf>()));
    files.find(|file| file.is_file()).ok_or_else(|| {
        let other = if deepest > 0 { ", with or without its leading folders" } else { "" };
        format!("no file `{}`{other}", root.join(listed).display())
    })
}

/// Parses lines `path [label]`. Lines that begin with `#` are comments. Paths may contain spaces; only a final number
/// is a label.
fn lines(text: &str) -> Vec<Entry> {
    let lines = text.lines().map(str::trim).enumerate();
    let entries = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')).map(|(at, line)| {
        let last = line.rsplit_once(char::is_whitespace);
        let labelled = last.and_then(|(path, label)| Some((path.trim_end(), label.parse().ok()?)));
        let (path, label) = labelled.map_or((line, None), |(path, label)| (path, Some(label)));
        Entry { place: format!("line {}", at + 1), path: path.into(), label }
    });
    entries.collect()
}

/// Position in a YAML list.
enum Place {
    Start,
    /// In the mapping, before a key.
    Mapping,
    /// After a key, before its value.
    Key(String),
    /// In the list of a key, with the items read so far.
    List(String, Vec<String>),
}

/// Parses a YAML mapping with the lists `data` (paths) and `targets` (labels) of equal length. Aliases of anchors are
/// rejected: they can expand a small file without bound.
fn yaml(text: &str) -> Parsed<Vec<Entry>> {
    let plan = "expected a mapping with the lists `data` (paths) and `targets` (labels)";
    let (mut lists, mut place) = (BTreeMap::new(), Place::Start);
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|e| format!("is not YAML: {e}"))?;
        let fail = |reason: &str| Err(format!("line {}: {reason}", span.start.line()));
        place = match (place, event) {
            (Place::Start, Event::StreamStart | Event::DocumentStart(_)) => Place::Start,
            (Place::Start, Event::MappingStart(..)) => Place::Mapping,
            (Place::Mapping, Event::MappingEnd) => break,
            (Place::Mapping, Event::Scalar(key, ..)) => Place::Key(key.into_owned()),
            (Place::Start | Place::Mapping, _) => return fail(plan),
            (Place::Key(key), Event::SequenceStart(..)) => Place::List(key, Vec::new()),
            (Place::Key(key), _) => return fail(&format!("`{key}` is not a list; {plan}")),
            (Place::List(key, mut items), Event::Scalar(item, ..)) => {
                items.push(item.into_owned());
                Place::List(key, items)
            }
            (Place::List(key, items), Event::SequenceEnd) => match lists.insert(key.clone(), items) {
                Some(_) => return Err(format!("has the list `{key}` twice")),
                None => Place::Mapping,
            },
            (Place::List(key, _), Event::Alias(_)) => {
                return fail(&format!("an alias; expected every item of `{key}` in full"));
            }
            (Place::List(key, _), _) => return fail(&format!("expected paths or numbers in `{key}`")),
        };
    }
    let mut take = |key: &str| lists.remove(key).ok_or_else(|| format!("has no list `{key}`; {plan}"));
    let (data, targets) = (take("data")?, take("targets")?);
    if data.len() != targets.len() {
        return Err(format!("`data` has length {}, but `targets` has length {}", data.len(), targets.len()));
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
