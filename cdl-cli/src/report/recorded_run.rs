//! Records in a run directory.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use cdl_core::{
    error::{Error, Result},
    metrics::Confusion,
    run::directory::{Results, read_confusion, read_epochs, read_record, read_results, read_results_so_far},
    system::lock::is_held,
    train::EpochReport,
    traits::{ByRole, Role},
};

use crate::terminal::count;

/// Both networks, in display order.
pub const ROLES: [Role; 2] = [Role::Student, Role::Teacher];

/// Records in the directory of one run.
pub struct RecordedRun {
    root: PathBuf,
    /// Name of the directory.
    pub name: String,
    /// Contents of `results.json`.
    pub results: Results,
    /// Contents of `run.json`.
    pub record: serde_json::Value,
    /// Lines of `metrics.jsonl`.
    pub epochs: Vec<EpochReport>,
    /// Confusion matrices after the last finished task.
    pub confusions: ByRole<Option<Confusion>>,
    /// Text of `config.toml`.
    pub config_text: String,
    /// Values of `config.toml`.
    pub config: toml::Table,
}

impl RecordedRun {
    /// Reads a run, finished or not, with its epochs.
    pub fn with_epochs(root: &Path) -> Result<Self> {
        let results = read_results_so_far(root)?;
        Ok(Self { epochs: read_epochs(root)?, ..Self::read(root, results)? })
    }

    /// Reads a run that has finished a task, without its epochs.
    pub fn with_results(root: &Path) -> Result<Self> {
        Self::read(root, read_results(root)?)
    }

    fn read(root: &Path, results: Results) -> Result<Self> {
        let file = root.join("config.toml");
        let fail = |reason: String| Error::Config { origin: file.display().to_string(), reason };
        let config_text = cdl_core::system::files::read_to_string(&file).map_err(|e| fail(e.to_string()))?;
        let config = config_text.parse().map_err(|e: toml::de::Error| fail(e.message().into()))?;
        let [student, teacher] = ROLES.map(|role| read_confusion(root, role));
        let confusions = ByRole { student: student?, teacher: teacher? };
        let (record, name, root) = (read_record(root)?, folder_name(root, "run"), root.to_path_buf());
        let epochs = Vec::new();
        Ok(Self { root, name, results, record, epochs, confusions, config_text, config })
    }

    /// Networks that the run trained.
    pub fn roles(&self) -> impl Iterator<Item = Role> + use<'_> {
        ROLES.into_iter().filter(|role| self.results.of(*role).is_some())
    }

    /// Rows of the accuracy matrix of a network.
    pub fn accuracies(&self, role: Role) -> Option<&[Vec<f64>]> {
        self.results.of(role).map(|summary| summary.accuracy_matrix.rows())
    }

    /// Names of all classes, in stream order.
    pub fn classes(&self) -> Vec<&str> {
        let names = self.record["classes"].as_array();
        names.into_iter().flatten().map(|name| name.as_str().unwrap_or("?")).collect()
    }

    /// SHA-256 of the files of the data set.
    pub fn data_sums(&self) -> Vec<&str> {
        let files = self.record["data"].as_array().into_iter().flatten();
        files.filter_map(|file| file["sha256"].as_str()).collect()
    }

    /// SHA-256 of the frozen weights of both networks.
    pub fn weights_sums(&self) -> [Option<&str>; 2] {
        ROLES.map(|role| self.record[role.as_str()]["provenance"]["sha256"].as_str())
    }

    /// Values of the configuration as TOML, by dotted key.
    pub fn values(&self) -> BTreeMap<String, String> {
        fn flatten(prefix: &str, table: &toml::Table, values: &mut BTreeMap<String, String>) {
            for (key, value) in table {
                match value {
                    toml::Value::Table(table) => flatten(&format!("{prefix}{key}."), table, values),
                    value => _ = values.insert(format!("{prefix}{key}"), value.to_string()),
                }
            }
        }
        let mut values = BTreeMap::new();
        flatten("", &self.config, &mut values);
        values
    }

    /// Number of finished tasks, and for an unfinished run the last epoch in `metrics.jsonl`.
    pub fn progress(&self) -> String {
        let done = self.results.tasks_done;
        // Results of earlier versions count all tasks of the stream.
        let most = self.config.get("stream").and_then(|stream| stream.get("max_tasks")?.as_integer());
        let tasks = most.and_then(|most| most.try_into().ok()).unwrap_or(usize::MAX).min(self.results.tasks);
        let mut text = format!("{done} of {} done", count(tasks, "task"));
        if done < tasks {
            text += if is_held(&self.root) { ", still running" } else { ", stopped" };
            if let Some(last) = self.epochs.last().filter(|last| last.task > done) {
                let EpochReport { task, role, epoch, epochs, .. } = last;
                text += &format!(" in task {task} after epoch {epoch} of {epochs} of the {}", role.as_str());
            }
        }
        text
    }
}

/// Peak memory, to follow other values on a line; empty if unknown.
pub fn peak_memory(results: &Results) -> String {
    let memory = |bytes: u64| format!(", peak memory {:.0} MB", bytes as f64 / 1e6);
    results.peak_memory_bytes.map(memory).unwrap_or_default()
}

/// Name of a folder with links resolved, or `default` if it has none.
pub fn folder_name(folder: &Path, default: &str) -> String {
    let whole = fs::canonicalize(folder).unwrap_or_else(|_| folder.into());
    whole.file_name().map_or(default.into(), |name| name.to_string_lossy().into_owned())
}
