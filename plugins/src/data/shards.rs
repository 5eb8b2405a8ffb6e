//! Data sets in parquet files: selection of the files of a split, and the meaning of their labels.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
};

use cdl_core::{
    error::nearest,
    hub::{
        FileSource,
        dataset::{DataFile, fetch},
    },
    prelude::*,
    transform::Exif,
};

use super::{
    Parsed,
    table::{self, Columns, EncodedImages, Label, Table},
};

/// Splits of a data set to read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SplitNames<'a> {
    /// Name or pattern of the training split.
    pub(crate) train: &'a str,
    /// Names or patterns of the test split. The first one that matches a file is used.
    pub(crate) test: &'a [&'a str],
    /// Whether held-out training images replace the test split, which is then not read.
    pub(crate) held_out: bool,
}

/// Maximum number of missing files that a message names.
const MAX_NAMED: usize = 5;

/// Names that test splits usually have.
pub(crate) const TEST_SPLITS: [&str; 4] = ["test", "validation", "valid", "val"];

/// Data set in memory.
pub(crate) struct DataSet {
    /// Names of the classes in the order of the labels.
    pub(crate) classes: Vec<String>,
    pub(crate) train: EncodedImages,
    pub(crate) test: EncodedImages,
}

/// Reads a data set from the hub (`hf:owner/name[@revision]`) or a folder.
pub(crate) fn read(path: &str, splits: SplitNames<'_>, columns: Columns<'_>, exif: Exif) -> Result<DataSet> {
    let SplitNames { train, test, held_out } = splits;
    let source: FileSource = path.parse()?;
    let listed = RefCell::new(Vec::new());
    let choose = |names: &[String]| {
        listed.borrow_mut().extend_from_slice(names);
        of_split(path, names, &[train], "train_split")
    };
    let train_files = fetch(&source, choose, &|| ())?;
    let test_files = match held_out {
        true => Vec::new(),
        false => fetch(&source, |names| of_split(path, names, test, "test_split"), &|| ())?,
    };
    let both = train_files.iter().find(|file| test_files.iter().any(|other| other.name == file.name));
    if let Some(both) = both {
        let both = &both.name;
        let reason =
            format!("`{both}` is in both splits; set `train_split` or `test_split` to another split");
        return Err(Error::data(path, reason));
    }
    let count = train_files.len();
    let open = |file: DataFile| table::read(&file.path, columns).map(|table| (file, table));
    let mut tables = train_files.into_iter().chain(test_files).map(open).collect::<Result<Vec<_>>>()?;
    for (key, tables) in [("train_split", &tables[..count]), ("test_split", &tables[count..])] {
        check_labels(path, key, tables, &listed.borrow())?;
    }
    let classes = Classes::of(&tables)?;
    let test = tables.split_off(count);
    let images =
        |tables| EncodedImages::new(tables, |label| classes.position(label), classes.names.len(), exif);
    let (train, test) = (images(tables)?, images(test)?);
    Ok(DataSet { train, test, classes: classes.names })
}

/// Returns an error if the labels of a split are withheld: -1 in every row, as in test splits of competitions. `key` is
/// the setting that names the split. `listed` contains the names of all files of the data set.
fn check_labels(path: &str, key: &str, tables: &[(DataFile, Table)], listed: &[String]) -> Result<()> {
    let mut labels = tables.iter().flat_map(|(_, table)| &table.labels).peekable();
    if labels.peek().is_none() || !labels.all(|label| matches!(label, Label::Number(-1))) {
        return Ok(());
    }
    let used = |name: &String| tables.iter().any(|(file, _)| file.name == *name);
    let others = TEST_SPLITS.into_iter().filter(|split| {
        let mut files = listed.iter().filter(|name| fit(name, split).is_some()).peekable();
        files.peek().is_some() && !files.any(used)
    });
    let other = match others.collect::<Vec<_>>()[..] {
        [] => "to another split".to_string(),
        ref others => format!("to a split with labels (there is `{}`)", others.join("`, `")),
    };
    let or = match key {
        "test_split" => ", or hold out training images with `validation = 0.2`",
        _ => "",
    };
    let files: Vec<&str> = tables.iter().map(|(file, _)| file.name.as_str()).take(1).collect();
    let files = files.concat();
    Err(Error::data(
        path,
        format!("the labels of `{files}` are withheld (-1 in every row); set `{key}` {other}{or}"),
    ))
}

/// Classes of a data set.
struct Classes {
    /// Names in the order of the labels.
    names: Vec<String>,
    /// Number that stands for each class in the label column, in ascending order.
    numbers: Vec<i64>,
}

impl Classes {
    /// Finds all classes: those that the files state; otherwise the names in the label column, sorted; otherwise the
    /// numbers in the label column, which need not begin with 0.
    fn of(tables: &[(DataFile, Table)]) -> Result<Self> {
        let numbered = |names: Vec<String>| Self { numbers: (0..names.len() as i64).collect(), names };
        let mut stated = tables.iter().filter_map(|(file, table)| Some((&file.path, table.names.as_ref()?)));
        if let Some((first, names)) = stated.next() {
            let Some((file, _)) = stated.find(|(_, others)| *others != names) else {
                return Ok(numbered(names.clone()));
            };
            return Err(Error::data(file, format!("its classes differ from those of {}", first.display())));
        }
        let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
        for (file, table) in tables {
            for (row, label) in table.labels.iter().enumerate() {
                match label {
                    Label::Name(name) => drop(names.insert(name)),
                    Label::Number(number @ 0..) => drop(numbers.insert(*number)),
                    Label::Number(number) => {
                        let reason = format!("row {row} has the label {number}; expected 0 or more");
                        return Err(Error::data(&file.path, reason));
                    }
                }
            }
        }
        if !names.is_empty() {
            return Ok(numbered(names.into_iter().cloned().collect()));
        }
        Ok(Self {
            names: numbers.iter().map(i64::to_string).collect(),
            numbers: numbers.into_iter().collect(),
        })
    }

    /// Returns the position of the class of a label.
    fn position(&self, label: &Label) -> Option<usize> {
        match label {
            Label::Number(number) => self.numbers.binary_search(number).ok(),
            Label::Name(name) => self.names.iter().position(|class| class == name),
        }
    }
}

/// Returns the parquet files of the first of `splits` that exists. All its shards must exist.
fn of_split(path: &str, names: &[String], splits: &[&str], key: &str) -> Result<Vec<String>> {
    let parquet: Vec<&String> = names.iter().filter(|name| name.ends_with(".parquet")).collect();
    let fail = |reason: String| Error::data(path, reason);
    for split in splits {
        let fitting = |fits: Fit| -> Vec<String> {
            parquet.iter().filter(|name| fit(name, split) == Some(fits)).map(ToString::to_string).collect()
        };
        let [own, longer, older] = [Fit::Own, Fit::Longer, Fit::Older].map(fitting);
        let chosen = match (own.is_empty(), longer.is_empty()) {
            (false, true) => own,
            (false, false) => {
                let (count, first) = (longer.len(), &longer[0]);
                tracing::warn!(
                    "{path}: split `{split}`: left out files with longer names, which may be of another split: {count} \
                     (`{first}`{}); a pattern in `{key}` selects them",
                    if count > 1 { ", ..." } else { "" }
                );
                own
            }
            (true, false) => longer,
            (true, true) => older,
        };
        if chosen.is_empty() {
            continue;
        }
        // Files with different starts belong to different data sets, which must not be mixed.
        let starts: BTreeSet<&str> = chosen.iter().map(|name| common_start(name, split)).collect();
        if starts.len() > 1 && !split.contains('*') {
            let patterns: Vec<String> = starts.iter().map(|start| format!("`{start}*`")).collect();
            let choice = format!("set `{key}` to one of the patterns {}", patterns.join(", "));
            return Err(fail(format!("split `{split}` is in several folders or data sets; {choice}")));
        }
        check_shards(&chosen, key).map_err(fail)?;
        return Ok(chosen);
    }
    let known: Vec<&str> = parquet.iter().map(|name| name.as_str()).collect();
    let near = splits.first().and_then(|split| nearest(split, known.iter().copied()));
    let near = near.or_else(|| known.first().map(ToString::to_string));
    let near = near.map(|near| {
        format!("; one of them is `{near}`, and a pattern such as `part.*` selects files by their names")
    });
    let (splits, count, near) = (splits.join("` or `"), known.len(), near.unwrap_or_default());
    Err(fail(format!(
        "no parquet file belongs to the split `{splits}` (`{key}`), among {count} parquet files{near}"
    )))
}

/// Way in which the name of a file fits the name of a split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fit {
    /// The file is named after the split, with or without a number (`train.parquet`, `train-1.parquet`,
    /// `train-00000-of-00002.parquet`), or one of its folders has the split's name, or the file matches the pattern.
    Own,
    /// The file's name continues after the split's name: `train_full.parquet`.
    Longer,
    /// The file is named after the data set and the split, an older convention: `NAME-train.parquet`,
    /// `NAME-train-00000-of-00002.parquet`.
    Older,
}

/// Returns how the name of a file fits a split, which may be a pattern with `*`.
fn fit(name: &str, split: &str) -> Option<Fit> {
    if split.contains('*') {
        return matches(name, split).then_some(Fit::Own);
    }
    let (folder, file) = name.split_at(folder_of(name).len());
    if folder.split('/').any(|part| part == split) {
        return Some(Fit::Own);
    }
    let shard = Shard::of(file);
    let base = shard.as_ref().map_or_else(|| without_number(file), |shard| shard.base);
    if base == split {
        return Some(Fit::Own);
    }
    // The `datasets` library writes shards. Its names of splits may contain `_` and `.`, so only a hyphen separates.
    let separators: &[char] = if shard.is_some() { &['-'] } else { &['-', '_', '.'] };
    if base.strip_suffix(split).is_some_and(|start| start.ends_with(separators)) {
        return Some(Fit::Older);
    }
    let longer = shard.is_none() && base.strip_prefix(split).is_some_and(|rest| rest.starts_with(separators));
    longer.then_some(Fit::Longer)
}

/// Returns a file's name without its extension and without a number before the extension.
fn without_number(file: &str) -> &str {
    let stem = file.strip_suffix(".parquet").unwrap_or(file);
    let base = stem.trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches(['-', '_', '.']);
    if base.is_empty() { stem } else { base }
}

/// Returns the part of a file's name that all files of this split and data set begin with: the folder if it has the
/// split's name; otherwise the folder and the file's name up to the end of the split's name.
fn common_start<'a>(name: &'a str, split: &str) -> &'a str {
    let folder = folder_of(name);
    if folder.split('/').any(|part| part == split) {
        return folder;
    }
    let file = &name[folder.len()..];
    let base = Shard::of(file).map_or_else(|| without_number(file), |shard| shard.base);
    let before = base.strip_suffix(split).map_or(0, str::len);
    name.get(..folder.len() + before + split.len()).unwrap_or(folder)
}

/// Parts of a name such as `train-00000-of-00002.parquet` or `train-00000-of-00002-HASH.parquet`.
struct Shard<'a> {
    /// Name before the number.
    base: &'a str,
    number: usize,
    /// Number of shards, as digits of the name with their leading zeros.
    count: &'a str,
}

impl<'a> Shard<'a> {
    fn of(name: &'a str) -> Option<Self> {
        let (rest, count) = name.strip_suffix(".parquet")?.rsplit_once("-of-")?;
        let (base, number) = rest.rsplit_once('-')?;
        let count = count.split_once('-').map_or(count, |(count, _)| count);
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let number = number.parse().ok().filter(|_| digits(number) && digits(count) && count.len() <= 6)?;
        Some(Self { base, number, count })
    }
}

/// Returns the folder of a file with its final `/`, or an empty string for a file at the top.
fn folder_of(name: &str) -> &str {
    name.rfind('/').map_or("", |at| &name[..=at])
}

/// Returns whether `name` matches `pattern`, in which `*` matches any text.
fn matches<'a>(name: &'a str, pattern: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return name == pattern };
    let (middle, last) = rest.rsplit_once('*').unwrap_or(("", rest));
    let name = name.strip_prefix(first).and_then(|name| name.strip_suffix(last));
    let after = |name: &'a str, part: &str| name.split_once(part).map(|(_, rest)| rest);
    name.and_then(|name| middle.split('*').try_fold(name, after)).is_some()
}

/// Checks that each file of a series `...-00000-of-00003.parquet` exists exactly once. Numbers begin with 0 or 1.
fn check_shards(names: &[String], key: &str) -> Parsed<()> {
    // File names, keyed by the name before the number, then by the number of shards, then by the shard's number.
    let mut groups: BTreeMap<&str, BTreeMap<&str, BTreeMap<usize, &String>>> = BTreeMap::new();
    for name in names {
        let Some(Shard { base, number, count }) = Shard::of(name) else { continue };
        let group = groups.entry(base).or_default().entry(count).or_default();
        if let Some(other) = group.insert(number, name) {
            return Err(format!("`{other}` and `{name}` are the same shard; remove one of them"));
        }
    }
    for (base, divisions) in groups {
        for (count, shards) in &divisions {
            let total: usize = count.parse().unwrap_or_default();
            let first = usize::from(shards.contains_key(&total));
            let missing: Vec<usize> =
                (first..first + total).filter(|number| !shards.contains_key(number)).collect();
            if !missing.is_empty() {
                let width = count.len();
                let named = missing.iter().take(MAX_NAMED);
                let named: Vec<String> =
                    named.map(|number| format!("`{base}-{number:0width$}-of-{count}`")).collect();
                let (there, named) = (total - missing.len(), named.join(", "));
                let more = if missing.len() > MAX_NAMED { ", ..." } else { "" };
                return Err(format!(
                    "found only {there} of the {total} files `{base}-*-of-{count}.parquet`; missing: {named}{more}; fetch \
                     them too"
                ));
            }
        }
        if let [one, other, ..] = divisions.keys().collect::<Vec<_>>()[..] {
            return Err(format!(
                "has the files `{base}-*-of-{one}.parquet` and also `{base}-*-of-{other}.parquet`; set `{key}` to the pattern \
                 of one of them"
            ));
        }
    }
    Ok(())
}
