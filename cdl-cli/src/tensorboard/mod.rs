//! Event files for TensorBoard: `FOLDER/student/events...` and `FOLDER/teacher/events...`, with the same tags, so that the
//! two networks share their charts.
//!
//! Everything in them follows from `run.json`, `metrics.jsonl` and the accuracy matrices: written as a run goes on, made
//! anew when it is resumed, or made of a finished run, they have the same bytes. `docs/metrics.md` has the tags.

mod event;
mod matrix;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

use cdl_core::{
    Accuracies, AccuracyMatrix, DEFINITIONS, EpochReport, Error, Result, Role,
    run_dir::{read_epochs, read_record, read_results, read_results_so_far},
};

use self::event::{Event, Value};

/// The folder in a run directory.
const FOLDER: &str = "tensorboard";

/// The event files of one run, open to be added to.
pub struct EventFiles {
    folder: PathBuf,
    /// Seconds since 1970 when the run began.
    started: f64,
    /// Seconds of training so far.
    trained: f64,
    files: BTreeMap<Role, (PathBuf, File)>,
}

impl EventFiles {
    /// Files of the run in `root`, which goes on before task `task` (from 0): made anew, with what `metrics.jsonl` has by
    /// now and the accuracies after the tasks before.
    ///
    /// # Errors
    /// Records of the run that cannot be read, a place that cannot be written.
    pub fn begin(root: &Path, task: usize) -> Result<Self> {
        let results = if task == 0 { None } else { Some(read_results(root)?) };
        let matrix = |summary: Option<&cdl_core::Summary>| {
            summary.map(|summary| summary.accuracy_matrix.first(task)).unwrap_or_default()
        };
        let accuracies = Accuracies {
            teacher: matrix(results.as_ref().and_then(|results| results.teacher.as_ref())),
            student: matrix(results.as_ref().and_then(|results| results.student.as_ref())),
        };
        Self::replay(root, &root.join(FOLDER), &accuracies)
    }

    /// The same files of a run as it is now, in another folder.
    ///
    /// # Errors
    /// Records of the run that cannot be read, a place that cannot be written.
    pub fn convert(root: &Path, folder: &Path) -> Result<()> {
        let results = read_results_so_far(root)?;
        let matrix =
            |summary: Option<cdl_core::Summary>| summary.map(|s| s.accuracy_matrix).unwrap_or_default();
        let accuracies = Accuracies { teacher: matrix(results.teacher), student: matrix(results.student) };
        Self::replay(root, folder, &accuracies).map(|_| ())
    }

    fn replay(root: &Path, folder: &Path, accuracies: &Accuracies) -> Result<Self> {
        let record = read_record(root)?;
        let started = record["started"].as_str().and_then(|text| text.parse::<jiff::Timestamp>().ok());
        let started = started.ok_or_else(|| Error::RunDir {
            dir: root.into(),
            reason: "run.json does not say when the run started".into(),
        })?;
        // To the microsecond, which a float64 holds.
        let started = started.as_microsecond() as f64 / 1e6;
        let mut events = Self { folder: folder.into(), started, trained: 0.0, files: BTreeMap::new() };
        let epochs = read_epochs(root)?;
        let tested = [Role::Teacher, Role::Student].map(|role| accuracies.of(role).rows().len());
        let tested = tested.into_iter().max().unwrap_or_default();
        let tasks = epochs.iter().map(|report| report.task + 1).max().unwrap_or_default().max(tested);
        for task in 0..tasks {
            epochs.iter().filter(|report| report.task == task).try_for_each(|report| events.epoch(report))?;
            if task < tested {
                events.task(task, accuracies)?;
            }
        }
        Ok(events)
    }

    /// Adds an epoch.
    ///
    /// # Errors
    /// A place that cannot be written.
    pub fn epoch(&mut self, report: &EpochReport) -> Result<()> {
        self.trained += report.seconds;
        let mut values: Vec<(String, Value)> = Vec::new();
        for (name, loss) in &report.losses {
            let name = if name == "loss" { "total" } else { name };
            values.push((format!("loss/{name}"), Value::Scalar(*loss as f32)));
        }
        for (name, value) in [
            ("accuracy", report.accuracy),
            ("learning_rate", report.lr),
            ("images_per_second", report.images_per_second),
        ] {
            values.push((format!("training/{name}"), Value::Scalar(value as f32)));
        }
        self.add(report.role, report.task * report.epochs + report.epoch + 1, values)
    }

    /// Adds what both networks know after task `task` (from 0): row `task` of their matrices, and what follows from it and
    /// the rows before.
    ///
    /// # Errors
    /// A place that cannot be written.
    pub fn task(&mut self, task: usize, accuracies: &Accuracies) -> Result<()> {
        for role in [Role::Teacher, Role::Student] {
            let rows: AccuracyMatrix = accuracies.of(role).first(task + 1);
            let (Some(row), Some(summary)) = (rows.rows().get(task), rows.summary()) else { continue };
            let mut values: Vec<(String, Value)> = Vec::new();
            for (j, accuracy) in row.iter().enumerate() {
                values.push((format!("accuracy/task_{}", j + 1), Value::Scalar(*accuracy as f32)));
            }
            for definition in DEFINITIONS {
                if let Some(value) = (definition.value)(&summary) {
                    values.push((format!("summary/{}", definition.name), Value::Scalar(value as f32)));
                }
            }
            values.push(("accuracy_matrix".into(), Value::Image(matrix::png(rows.rows())?)));
            self.add(role, task + 1, values)?;
        }
        Ok(())
    }

    /// Adds an event to the file of `role`, which is made if it is not open yet.
    fn add(&mut self, role: Role, step: usize, values: Vec<(String, Value)>) -> Result<()> {
        let io = |path: &Path| {
            let file = path.to_path_buf();
            move |source| Error::Io { file, source }
        };
        if !self.files.contains_key(&role) {
            let folder = self.folder.join(role.as_str());
            fs::create_dir_all(&folder).map_err(io(&folder))?;
            remove_earlier(&folder).map_err(io(&folder))?;
            // TensorBoard looks for this in a name.
            let path = folder.join(format!("events.out.tfevents.{}.cdl", self.started as u64));
            let mut file = File::create(&path).map_err(io(&path))?;
            file.write_all(&event::first(self.started)).map_err(io(&path))?;
            self.files.insert(role, (path, file));
        }
        let Some((path, file)) = self.files.get_mut(&role) else { return Ok(()) };
        let event = Event { wall_time: self.started + self.trained, step, values };
        file.write_all(&event.to_record()).map_err(io(path))
    }
}

/// Removes the event files of an earlier run from a network's folder: TensorBoard would draw both as one.
fn remove_earlier(folder: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let ours =
            name.to_str().is_some_and(|n| n.starts_with("events.out.tfevents.") && n.ends_with(".cdl"));
        if ours && entry.file_type()?.is_file() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
