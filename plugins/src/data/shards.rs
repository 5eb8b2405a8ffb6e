//! Data sets in parquet files: selection of the files of a split, and the meaning of their labels.

use std::collections::BTreeSet;

use cdl_core::{
    error::nearest,
    hub::{
        WeightSource,
        dataset::{DataFile, fetch},
    },
    prelude::*,
};

use super::{
    Parsed,
    table::{self, Columns, EncodedImages, Label, Table},
};

/// Reads a data set from the hub (`hf:owner/name[@revision]`) or a folder. Returns the class names in the order of the
/// labels, the training images and the test images. `train` and `test` are names of splits or patterns; the first
/// entry of `test` that matches a file is used.
pub(crate) fn read(
    path: &str,
    train: &str,
    test: &[&str],
    columns: Columns<'_>,
) -> Result<(Vec<String>, EncodedImages, EncodedImages)> {
    let source: WeightSource = path.parse()?;
    let train_files = fetch(&source, |names| of_split(path, names, &[train], "train_split"), &|| ())?;
    let test_files = fetch(&source, |names| of_split(path, names, test, "test_split"), &|| ())?;
    let both = train_files.iter().find(|file| test_files.iter().any(|other| other.name == file.name));
    if let Some(both) = both {
        let both = &both.name;
        let reason =
            format!("`{both}` is in both splits; set `train_split` or `test_split` to another split");
        return Err(Error::data(path, reason));
    }
    let count = train_files.len();
    let open = |file: DataFile| table::read(&file.path, columns).map(|table| (file, table));
    let mut train = train_files.into_iter().chain(test_files).map(open).collect::<Result<Vec<_>>>()?;
    let classes = classes(path, &train)?;
    let test = train.split_off(count);
    let (train, test) = (EncodedImages::new(train, &classes)?, EncodedImages::new(test, &classes)?);
    Ok((classes, train, test))
}

/// Returns the names of all classes: those that the files state; otherwise the names in the label column, sorted;
/// otherwise numbers.
fn classes(path: &str, tables: &[(DataFile, Table)]) -> Result<Vec<String>> {
    let mut stated = tables.iter().filter_map(|(file, table)| Some((&file.path, table.names.as_ref()?)));
    if let Some((first, names)) = stated.next() {
        let Some((file, _)) = stated.find(|(_, others)| *others != names) else { return Ok(names.clone()) };
        return Err(Error::data(file, format!("its classes differ from those of {}", first.display())));
    }
    let (mut names, mut largest, mut images) = (BTreeSet::new(), -1, 0);
    for label in tables.iter().flat_map(|(_, table)| &table.labels) {
        images += 1;
        match label {
            Label::Name(name) => drop(names.insert(name)),
            Label::Number(number) => largest = largest.max(*number),
        }
    }
    if !names.is_empty() {
        return Ok(names.into_iter().cloned().collect());
    }
    // Each class has an image, so a larger label is an error; without the check it would allocate a list of its length.
    if !(0..images).contains(&largest) {
        let reason =
            format!("the largest label is {largest} among {images} images; expected labels 0, 1, 2, ...");
        return Err(Error::data(path, reason));
    }
    Ok((0..=largest).map(|label| label.to_string()).collect())
}

/// Returns the parquet files of the first of `splits` that exists. All its shards must exist.
fn of_split(path: &str, names: &[String], splits: &[&str], key: &str) -> Result<Vec<String>> {
    let parquet: Vec<&String> = names.iter().filter(|name| name.ends_with(".parquet")).collect();
    let fail = |reason: String| Error::data(path, reason);
    for split in splits {
        let chosen: Vec<String> =
            parquet.iter().filter(|name| is_of_split(name, split)).map(ToString::to_string).collect();
        if chosen.is_empty() {
            continue;
        }
        let folders: BTreeSet<&str> = chosen.iter().map(|name| folder_of(name)).collect();
        if folders.len() > 1 && !split.contains('*') {
            let patterns: Vec<String> = folders.iter().map(|folder| format!("`{folder}{split}*`")).collect();
            let choice = format!("set `{key}` to one of the patterns {}", patterns.join(", "));
            return Err(fail(format!("split `{split}` is in several folders; {choice}")));
        }
        check_shards(&chosen).map_err(fail)?;
        return Ok(chosen);
    }
    let known: Vec<&str> = parquet.iter().map(|name| name.as_str()).collect();
    let near = splits.first().and_then(|split| nearest(split, known.iter().copied()));
    let near = near.map(|near| format!("; the nearest name is `{near}`")).unwrap_or_default();
    let (splits, count) = (splits.join("` or `"), known.len());
    Err(fail(format!(
        "no parquet file belongs to the split `{splits}` (`{key}`), among {count} parquet files{near}"
    )))
}

/// Returns whether a file belongs to a split: its name begins with the split (`train.parquet`,
/// `train-00000-of-00002.parquet`), one of its folders has the split's name, or the pattern with `*` matches its path.
fn is_of_split(name: &str, split: &str) -> bool {
    if split.contains('*') {
        return matches(name, split);
    }
    let (folder, file) = name.split_at(folder_of(name).len());
    if folder.split('/').any(|part| part == split) {
        return true;
    }
    if let Some(own) = split_of_shard(file) {
        return own == split;
    }
    file.strip_prefix(split).is_some_and(|rest| rest.starts_with(['-', '_', '.']))
}

/// Returns the split of a file named as the `datasets` library names shards: `train_small` of
/// `train_small-00000-of-00002.parquet`, also with a hash before the extension.
fn split_of_shard(file: &str) -> Option<&str> {
    let (rest, count) = file.strip_suffix(".parquet")?.split_once("-of-")?;
    let (split, number) = rest.rsplit_once('-')?;
    let digits = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    let count = count.split_once('-').map_or(count, |(count, _)| count);
    (digits(number) && digits(count)).then_some(split)
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

/// Checks that all files named `...-00000-of-00003.parquet` exist.
fn check_shards(names: &[String]) -> Parsed<()> {
    for name in names {
        let stem = name.trim_end_matches(".parquet");
        let Some((rest, count)) = stem.rsplit_once("-of-") else { continue };
        let (Some((base, _)), Ok(count)) = (rest.rsplit_once('-'), count.parse::<usize>()) else { continue };
        let suffix = format!("{}.parquet", &stem[rest.len()..]);
        let is_shard = |name: &&String| {
            let number =
                name.strip_prefix(base).and_then(|rest| rest.strip_prefix('-')?.strip_suffix(&suffix));
            number.is_some_and(|number| number.parse::<usize>().is_ok())
        };
        let there = names.iter().filter(is_shard).count();
        if there != count {
            let files = format!("{there} of the {count} files `{base}-*{suffix}`");
            return Err(format!("found only {files}; fetch all of them"));
        }
    }
    Ok(())
}
