//! Event files for TensorBoard: `FOLDER/student/events...` and `FOLDER/teacher/events...`. Both use the same tags, so
//! that TensorBoard shows both networks in one chart.
//!
//! The contents depend only on `run.json`, `metrics.jsonl` and the accuracy matrices. Files written during a run, after
//! a resume, or from a finished run are equal byte for byte. `docs/guide/runs-and-metrics.md` lists the tags.

mod event;
mod matrix_image;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

use cdl_core::{
    error::{Error, Result},
    metrics::{AccuracyMatrix, DEFINITIONS},
    run::directory::{Results, read_epochs, read_record, read_results, read_results_so_far},
    train::{Accuracies, EpochReport},
    traits::Role,
};

use self::event::Event;
use crate::report::raster::Image;

const FOLDER: &str = "tensorboard";

/// Event files of one run, open for appending.
pub struct EventFiles {
    folder: PathBuf,
    /// Start of the run in seconds since 1970.
    started: f64,
    /// Seconds of training so far.
    trained: f64,
    files: BTreeMap<Role, (PathBuf, File)>,
}

impl EventFiles {
    /// Opens the event files of the run in `root`, which continues with task `task` (from 0). Earlier events are
    /// written again from `metrics.jsonl` and the accuracies after earlier tasks.
    pub fn begin(root: &Path, task: usize) -> Result<Self> {
        let results = if task == 0 { Results::default() } else { read_results(root)? };
        Self::replay(root, &root.join(FOLDER), &accuracies(&results, task), &results.test_images)
    }

    /// Writes the event files of a run, finished or not, into `folder`.
    pub fn convert(root: &Path, folder: &Path) -> Result<()> {
        let results = read_results_so_far(root)?;
        Self::replay(root, folder, &accuracies(&results, usize::MAX), &results.test_images).map(|_| ())
    }

    fn replay(root: &Path, folder: &Path, accuracies: &Accuracies, test_images: &[usize]) -> Result<Self> {
        let record = read_record(root)?;
        let started = record["started"].as_str().and_then(|text| text.parse::<jiff::Timestamp>().ok());
        let reason = "run.json has no valid start time `started`";
        let started = started.ok_or_else(|| Error::RunDir { dir: root.into(), reason: reason.into() })?;
        // Microseconds are the precision of a float64 for current times.
        let started = started.as_microsecond() as f64 / 1e6;
        let mut events = Self { folder: folder.into(), started, trained: 0.0, files: BTreeMap::new() };
        let epochs = read_epochs(root)?;
        let tested = accuracies.teacher.rows().len().max(accuracies.student.rows().len());
        let tasks = epochs.iter().map(|report| report.task).max().unwrap_or_default().max(tested);
        for task in 0..tasks {
            epochs
                .iter()
                .filter(|report| report.task == task + 1)
                .try_for_each(|report| events.epoch(report))?;
            if task < tested {
                events.task(task, accuracies, test_images)?;
            }
        }
        Ok(events)
    }

    /// Adds losses, accuracy, learning rate and speed of an epoch.
    pub fn epoch(&mut self, report: &EpochReport) -> Result<()> {
        self.trained += report.seconds;
        let mut scalars = Vec::new();
        for (name, loss) in &report.losses {
            scalars.push((format!("loss/{}", if name == "loss" { "total" } else { name }), *loss));
        }
        scalars.push(("training/accuracy".into(), report.accuracy));
        scalars.push(("training/learning_rate".into(), report.lr));
        scalars.push(("training/images_per_second".into(), report.images_per_second));
        self.add(report.role, report.task.saturating_sub(1) * report.epochs + report.epoch, scalars, None)
    }

    /// Adds the accuracies of both networks after task `task` (from 0): row `task` of their matrices, and the metrics
    /// of the rows up to it. `test_images` are the numbers of test images of the tasks.
    pub fn task(&mut self, task: usize, accuracies: &Accuracies, test_images: &[usize]) -> Result<()> {
        for role in [Role::Teacher, Role::Student] {
            let rows: AccuracyMatrix = accuracies.of(role).first(task + 1);
            let (Some(row), Some(summary)) = (rows.rows().get(task), rows.summary(test_images)) else {
                continue;
            };
            let mut scalars = Vec::new();
            for (j, accuracy) in row.iter().enumerate() {
                scalars.push((format!("accuracy/task_{}", j + 1), *accuracy));
            }
            for definition in DEFINITIONS {
                let value = (definition.value)(&summary);
                scalars.extend(value.map(|value| (format!("summary/{}", definition.name), value)));
            }
            self.add(role, task + 1, scalars, matrix_image::image(role, rows.rows())?)?;
        }
        Ok(())
    }

    /// Adds an event to the file of `role`, which is created at the first event.
    fn add(
        &mut self,
        role: Role,
        step: usize,
        scalars: Vec<(String, f64)>,
        image: Option<Image>,
    ) -> Result<()> {
        let io = |path: &Path| {
            let file = path.to_path_buf();
            move |source| Error::Io { file, source }
        };
        if !self.files.contains_key(&role) {
            let folder = self.folder.join(role.as_str());
            fs::create_dir_all(&folder).map_err(io(&folder))?;
            remove_earlier(&folder).map_err(io(&folder))?;
            // TensorBoard only reads files with `tfevents` in their name.
            let path = folder.join(format!("events.out.tfevents.{}.cdl", self.started as u64));
            let mut file = File::create(&path).map_err(io(&path))?;
            file.write_all(&event::version_record(self.started)).map_err(io(&path))?;
            self.files.insert(role, (path, file));
        }
        let Some((path, file)) = self.files.get_mut(&role) else { return Ok(()) };
        let event = Event { wall_time: self.started + self.trained, step, scalars, accuracy_matrix: image };
        file.write_all(&event.to_record()).map_err(io(path))
    }
}

/// First `tasks` rows of both accuracy matrices.
fn accuracies(results: &Results, tasks: usize) -> Accuracies {
    let of =
        |role: Role| results.of(role).map(|summary| summary.accuracy_matrix.first(tasks)).unwrap_or_default();
    Accuracies { teacher: of(Role::Teacher), student: of(Role::Student) }
}

/// Removes the event files of an earlier run from a network's folder. TensorBoard would merge both.
fn remove_earlier(folder: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let by_cdl = name.starts_with("events.out.tfevents.") && name.ends_with(".cdl");
        if by_cdl && entry.file_type()?.is_file() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
