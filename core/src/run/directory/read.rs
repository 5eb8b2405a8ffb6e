//! Reads a run directory and compares it with an experiment.

use std::path::Path;

use serde::de::DeserializeOwned;

use crate::{
    error::{Error, Result, if_there, io},
    hub::{
        checksum,
        checksum_list::{self, ChecksumList},
    },
    metrics::{Confusion, PoolUsage},
    run::{
        RunRecord,
        directory::{METRICS, PROMPT_USE, RECORD, RESULTS, Results, model_dir, model_file, role_file},
    },
    train::EpochReport,
    traits::{ByRole, Role, StateDict},
};

/// Reads `results.json` of a run.
///
/// # Errors
/// A file that is missing, damaged or written by a newer version.
pub fn read_results(root: &Path) -> Result<Results> {
    let hint = match root.join(RECORD).exists() {
        true => "check that the run has finished a task",
        false => "expected a run directory",
    };
    let results: Results = read_json(root, RESULTS, hint)?;
    check_format(results.format, Results::FORMAT)
        .map_err(|reason| Error::RunDir { dir: root.into(), reason: format!("{RESULTS} {reason}") })?;
    Ok(Results { format: Results::FORMAT, ..results })
}

/// Checks that the format of a file is supported. The error completes a sentence that begins with the file.
fn check_format(found: u32, supported: u32) -> Result<(), String> {
    match found <= supported {
        true => Ok(()),
        false => Err(format!("has format {found}; this version of cdl reads formats up to {supported}")),
    }
}

/// Reads `results.json` of a run. For a run that has not finished a task, only the number of tasks is set.
pub fn read_results_so_far(root: &Path) -> Result<Results> {
    let record = read_record(root)?;
    if root.join(RESULTS).exists() {
        return read_results(root);
    }
    Ok(Results { tasks: record["tasks"].as_array().map_or(0, Vec::len), ..Results::default() })
}

/// Reads the confusion matrix of `role` after the last finished task. `None` if the run has none.
pub fn read_confusion(root: &Path, role: Role) -> Result<Option<Confusion>> {
    let file = role_file(root, "confusion", role);
    let confusion = read_if_there(&file)?.map(|bytes| Confusion::from_csv(&bytes)).transpose();
    confusion.map_err(|reason| Error::Data { file, reason })
}

/// Reads the usage of prompts by test images after task `task` (from 0). `None` if the run did not record it.
pub fn read_prompt_use(root: &Path, task: usize) -> Result<Option<ByRole<Option<Vec<PoolUsage>>>>> {
    let file = model_dir(root, task).join(PROMPT_USE);
    check_sum(&file)?;
    let prompt_use = read_if_there(&file)?.map(|bytes| serde_json::from_slice(&bytes)).transpose();
    prompt_use.map_err(|e| Error::Data { file, reason: e.to_string() })
}

fn read_if_there(file: &Path) -> Result<Option<Vec<u8>>> {
    if_there(crate::system::files::read(file)).map_err(io(file))
}

/// Reads `metrics.jsonl` of a run, one report per line. An incomplete last line of a stopped run is ignored.
///
/// # Errors
/// A file that cannot be read, or a line that is damaged or written by a newer version.
pub fn read_epochs(root: &Path) -> Result<Vec<EpochReport>> {
    let path = root.join(METRICS);
    let text = crate::system::files::read_to_string(&path).map_err(io(&path))?;
    let complete = text.rfind('\n').map_or("", |end| &text[..end]);
    let report = |(index, line): (usize, &str)| {
        let fail = |e: String| Error::Data { file: path.clone(), reason: format!("line {} {e}", index + 1) };
        let report: EpochReport =
            serde_json::from_str(line).map_err(|e| fail(format!("cannot be read: {e}")))?;
        check_format(report.format, EpochReport::FORMAT).map_err(fail)?;
        Ok(report.updated())
    };
    complete.lines().enumerate().map(report).collect()
}

/// Reads `run.json` of a run.
pub fn read_record(root: &Path) -> Result<serde_json::Value> {
    read_json(root, RECORD, "expected a run directory")
}

/// Checks that data, plugins and weights of an experiment are those of the run in `root`.
///
/// # Errors
/// The first part that differs, with both SHA-256.
pub fn check_same(root: &Path, record: &RunRecord) -> Result<()> {
    let recorded = read_record(root)?;
    let now = serde_json::to_value(record)
        .map_err(|e| Error::RunDir { dir: root.into(), reason: e.to_string() })?;
    // Entries of lists are compared by checksum only: files may have been moved.
    for (what, field) in [
        ("images and tasks", "/split_sha256"),
        ("the files of the data set", "/data"),
        ("the plugins", "/plugins"),
        ("the teacher's weights", "/teacher/provenance/sha256"),
        ("the student's weights", "/student/provenance/sha256"),
    ] {
        let sha256 = |record: &serde_json::Value| match record.pointer(field) {
            Some(serde_json::Value::String(sha256)) => sha256.clone(),
            Some(serde_json::Value::Array(entries)) => {
                let sums = entries.iter().filter_map(|entry| entry["sha256"].as_str());
                sums.collect::<Vec<_>>().join(", ")
            }
            _ => "none".to_string(),
        };
        let (recorded, now) = (sha256(&recorded), sha256(&now));
        if recorded != now {
            let reason = format!(
                "{what} are not those of the run: their SHA-256 is {now}, run.json contains {recorded}"
            );
            return Err(Error::RunDir { dir: root.into(), reason });
        }
    }
    Ok(())
}

fn read_json<T: DeserializeOwned>(root: &Path, name: &str, hint: &str) -> Result<T> {
    let fail = |reason: String| Error::RunDir { dir: root.into(), reason };
    let bytes = crate::system::files::read(&root.join(name))
        .map_err(|e| fail(format!("{name} cannot be read ({e}); {hint}")))?;
    serde_json::from_slice(&bytes).map_err(|e| fail(format!("{name}: {e}")))
}

/// Reads the model of `role` after task `task` (from 0).
///
/// # Errors
/// A file that is missing, or that differs from its checksum in the folder's `SHA256SUMS`.
pub fn read_model(root: &Path, task: usize, role: Role, device: &candle_core::Device) -> Result<StateDict> {
    let file = model_file(&model_dir(root, task), role);
    check_sum(&file)?;
    StateDict::read(&file, device)
}

/// Compares a file with its checksum in the `SHA256SUMS` of its folder. Earlier versions wrote no such list.
fn check_sum(file: &Path) -> Result<()> {
    let (Some(folder), Some(name)) = (file.parent(), file.file_name()) else { return Ok(()) };
    let list = folder.join(checksum_list::NAME);
    if !list.exists() || !file.exists() {
        return Ok(());
    }
    let (ChecksumList(listed), found) = (ChecksumList::read(&list)?, checksum(file)?.1);
    match listed.get(&*name.to_string_lossy()) {
        Some(expected) if *expected == found => Ok(()),
        expected => Err(Error::Data {
            file: file.into(),
            reason: match expected {
                Some(expected) => format!("is damaged: its SHA-256 is {found}, expected {expected}"),
                None => format!("is not listed in {}", checksum_list::NAME),
            },
        }),
    }
}
