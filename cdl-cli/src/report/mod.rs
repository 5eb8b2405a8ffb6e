//! `cdl report`: runs as one page, as figures and as tables.

mod confusion;
mod cost;
pub mod html;
pub mod plot;
mod prompts;
mod raster;
mod tables;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use cdl_core::{
    Confusion, EpochReport, Error, Role, Summary,
    run_dir::{
        Results, is_held, read_confusion, read_epochs, read_record, read_results_so_far, write_atomic,
    },
};
use clap::{Args, ValueEnum};

pub use self::tables::latex_safe;
use self::{
    html::Section,
    plot::{Axes, Cell, Plot, Series},
};
use crate::{failure::Failure, place, sweep::grid::refuse, tensorboard::EventFiles, terminal::emit};

/// Arguments of `cdl report`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cdl report runs/quickstart
  cdl report runs/alone runs/kd --out compared.html --figures figures --tables tables
  cdl report runs/quickstart --figures figures --format png

A run that is not done is shown as far as it is.")]
pub struct ReportArgs {
    /// Directories of runs; with several, differences are those from the first
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// The page [default: report.html in the run's directory, with several runs in the working directory]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Write each plot as a file of its own into this folder as well
    #[arg(long, value_name = "DIR")]
    figures: Option<PathBuf>,
    /// What these files are: drawings, or images of three times the size on the page
    #[arg(long, value_enum, default_value_t = Format::Svg, requires = "figures")]
    format: Format,
    /// Write the summary as CSV, Markdown and LaTeX into this folder as well
    #[arg(long, value_name = "DIR")]
    tables: Option<PathBuf>,
    /// Write event files for TensorBoard into this folder as well, a folder in it for each run
    #[arg(long, value_name = "DIR")]
    tensorboard: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Svg,
    Png,
    Both,
}

/// What a run directory holds.
pub struct Run {
    /// From 0.
    number: usize,
    name: String,
    /// How far it is, in words.
    progress: String,
    results: Results,
    record: serde_json::Value,
    epochs: Vec<EpochReport>,
    confusions: Vec<(Role, Confusion)>,
    /// `config.toml`, and its values by dotted key.
    config: String,
    values: BTreeMap<String, String>,
}

impl Run {
    fn read(number: usize, root: &Path) -> Result<Self, Failure> {
        let results = read_results_so_far(root)?;
        let file = root.join("config.toml");
        let fail = |reason: String| Error::Config { origin: file.display().to_string(), reason };
        let config = fs::read_to_string(&file).map_err(|e| fail(e.to_string()))?;
        let table: toml::Table = config.parse().map_err(|e: toml::de::Error| fail(e.message().into()))?;
        let mut values = BTreeMap::new();
        flatten("", &table, &mut values);
        let mut confusions = Vec::new();
        for role in [Role::Student, Role::Teacher] {
            confusions.extend(read_confusion(root, role)?.map(|confusion| (role, confusion)));
        }
        let whole = fs::canonicalize(root).unwrap_or_else(|_| root.into());
        let name = whole.file_name().map_or("run".into(), |name| name.to_string_lossy().into_owned());
        let (record, epochs) = (read_record(root)?, read_epochs(root)?);
        let progress = progress(root, &results, &values, epochs.last());
        Ok(Self { number, name, progress, results, record, epochs, confusions, config, values })
    }

    fn summary(&self, role: Role) -> Option<&Summary> {
        match role {
            Role::Teacher => self.results.teacher.as_ref(),
            Role::Student => self.results.student.as_ref(),
        }
    }

    /// The networks that were trained.
    fn roles(&self) -> impl Iterator<Item = Role> + use<'_> {
        [Role::Student, Role::Teacher].into_iter().filter(|role| self.summary(*role).is_some())
    }

    /// How far it came, on what, and what it took.
    fn headline(&self) -> String {
        let of = |key: &str| self.values.get(key).map_or("?", String::as_str).trim_matches('"');
        let seconds = match self.results.tasks_done {
            0 => String::new(),
            _ => format!(", {:.1} s", self.results.wall_seconds),
        };
        let memory =
            self.results.peak_memory_bytes.map(|bytes| format!(", {:.0} MB at most", bytes as f64 / 1e6));
        format!(
            "{}: {}, learner {}, seed {}; {}{seconds}{}",
            self.name,
            of("stream.name"),
            of("learner.name"),
            of("seed"),
            self.progress,
            memory.unwrap_or_default()
        )
    }

    fn classes(&self) -> Vec<String> {
        let names = self.record.get("classes").and_then(|classes| classes.as_array());
        names.into_iter().flatten().map(|name| name.as_str().unwrap_or("?").to_string()).collect()
    }
}

/// How far the run in `root` is, with its last line of `metrics.jsonl` where it has begun another task.
fn progress(
    root: &Path,
    results: &Results,
    values: &BTreeMap<String, String>,
    last: Option<&EpochReport>,
) -> String {
    let done = results.tasks_done;
    // Runs of earlier versions have the stream's tasks in their results.
    let most = values.get("stream.max_tasks").and_then(|most| most.parse().ok());
    let tasks = results.tasks.min(most.unwrap_or(usize::MAX));
    let mut text = format!("{done} of {tasks} tasks done");
    if done < tasks {
        text += if is_held(root) { ", still running" } else { ", stopped" };
        if let Some(last) = last.filter(|last| last.task >= done) {
            let EpochReport { task, role, epoch, epochs, .. } = last;
            let (task, epoch) = (task + 1, epoch + 1);
            text += &format!(" in task {task} after epoch {epoch} of {epochs} of the {}", role.as_str());
        }
    }
    text
}

fn flatten(prefix: &str, table: &toml::Table, values: &mut BTreeMap<String, String>) {
    for (key, value) in table {
        match value {
            toml::Value::Table(table) => flatten(&format!("{prefix}{key}."), table, values),
            value => {
                values.insert(format!("{prefix}{key}"), value.to_string());
            }
        }
    }
}

/// Writes the page of one run into its directory.
pub fn place_page(root: &Path) -> Result<(), Failure> {
    let runs = [Run::read(0, root)?];
    Ok(write_atomic(&root.join("report.html"), html::page(&runs, &sections(&runs)).as_bytes())?)
}

/// Reads runs and writes what was asked for.
pub fn report(args: &ReportArgs) -> Result<(), Failure> {
    let out = args.out.clone().unwrap_or_else(|| match &args.runs[..] {
        [run] => run.join("report.html"),
        _ => "report.html".into(),
    });
    let mut runs = Vec::new();
    for (number, root) in args.runs.iter().enumerate() {
        refuse(root, "report")?;
        let mut run = Run::read(number, root)?;
        if runs.iter().any(|other: &Run| other.name == run.name) {
            run.name += &format!(" ({})", number + 1);
        }
        runs.push(run);
    }
    refuse_places(args, &out, &runs)?;
    for run in runs.iter().filter(|run| run.results.tasks_done < run.results.tasks) {
        tracing::info!("{}: {}", run.name, run.progress);
    }
    let sections = sections(&runs);
    let page = html::page(&runs, &sections).into_bytes();
    let mut files = Vec::new();
    if let Some(folder) = &args.figures {
        for (name, plot) in sections.iter().flat_map(|section| &section.plots) {
            let svg = plot.standalone();
            if args.format != Format::Png {
                files.push((folder.join(format!("{name}.svg")), svg.clone().into_bytes()));
            }
            if args.format != Format::Svg {
                files.push((folder.join(format!("{name}.png")), raster::png(&svg)?));
            }
        }
    }
    if let Some(folder) = &args.tables {
        let tables = [
            ("summary.csv", tables::csv(&runs)?),
            ("summary.md", tables::markdown(&runs)),
            ("summary.tex", tables::latex(&runs)),
            ("cost.csv", cost::csv(&runs)?),
        ];
        files.extend(tables.map(|(name, text)| (folder.join(name), text.into_bytes())));
    }
    let place = place::resolved(&out);
    if let Some((file, _)) = files.iter().find(|(file, _)| place.starts_with(place::resolved(file))) {
        let (out, file) = (out.display(), file.display());
        return Err(Failure::mistake(format!(
            "--out {out}: expected another name, {file} is written as well"
        )));
    }
    let mut told = String::new();
    for (file, bytes) in [(out, page)].into_iter().chain(files) {
        if let Some(folder) = file.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::create_dir_all(folder).map_err(|source| Error::Io { file: folder.into(), source })?;
        }
        write_atomic(&file, &bytes)?;
        told += &format!("{}\n", file.display());
    }
    if let Some(folder) = &args.tensorboard {
        for (run, root) in runs.iter().zip(&args.runs) {
            let into = folder.join(&run.name);
            EventFiles::convert(root, &into)?;
            told += &format!("{}\n", into.display());
        }
    }
    emit(&told)
}

/// Refuses places for the results that cannot be had, before anything is written.
fn refuse_places(args: &ReportArgs, out: &Path, runs: &[Run]) -> Result<(), Failure> {
    place::page(if args.out.is_some() { "--out" } else { "the page" }, out)?;
    let folders =
        [("--figures", &args.figures), ("--tables", &args.tables), ("--tensorboard", &args.tensorboard)];
    let page = place::resolved(out);
    for (option, folder) in folders {
        let Some(folder) = folder else { continue };
        place::folder(option, folder)?;
        if place::resolved(folder).starts_with(&page) {
            let (folder, out) = (folder.display(), out.display());
            return Err(Failure::mistake(format!(
                "{option} {folder}: expected a folder, and {out} becomes the page"
            )));
        }
    }
    let Some(folder) = &args.tensorboard else { return Ok(()) };
    for run in runs.iter().map(|run| folder.join(&run.name)) {
        for events in [Role::Student, Role::Teacher].map(|role| run.join(role.as_str())) {
            place::folder("--tensorboard", &events)?;
            if place::resolved(&events).starts_with(&page) {
                let (events, out) = (events.display(), out.display());
                return Err(Failure::mistake(format!(
                    "--out {out}: expected another name, {events} becomes a folder"
                )));
            }
        }
    }
    Ok(())
}

fn sections(runs: &[Run]) -> Vec<Section> {
    vec![
        Section {
            title: "Accuracy after each task",
            note: "Mean over the tasks seen so far.",
            plots: drawn("accuracy", runs, accuracy),
        },
        Section {
            title: "Accuracy matrix",
            note: "On each task's test images after learning each task.",
            plots: each_network(runs, matrix),
        },
        Section {
            title: "Forgetting by task",
            note: "Accuracy right after a task was learned, less that after the last task: A[j][j] - A[T-1][j].",
            plots: drawn("forgetting", runs, forgetting),
        },
        Section {
            title: "Accuracy by class",
            note: "After the last task, among all classes seen.",
            plots: by_class(runs),
        },
        Section {
            title: "Confusion matrix",
            note: "After the last task. Shades are shares of the true class's images, numbers are images.",
            plots: each_network(runs, confusion::plot),
        },
        Section {
            title: "Prompts",
            note: "Which prompts of each pool the test images take after the last task, by task of the image: the share of a \
                   task's images, or the mean weight with its sign where each image weighs all prompts. The scale of \
                   shades stands below each; that of weights goes to the largest of the pool.",
            plots: each_network(runs, prompts::plots),
        },
        Section {
            title: "Losses",
            note: "Means over each epoch's steps; loss is the sum that was minimised.",
            plots: losses(runs),
        },
    ]
}

/// What `of` plots of each network of each run.
fn each_network<P>(runs: &[Run], of: fn(&Run, Role, &str) -> P) -> Vec<(String, Plot)>
where
    P: IntoIterator<Item = (String, Plot)>,
{
    let mut plots = Vec::new();
    for run in runs {
        for role in run.roles() {
            let title = match runs.len() {
                1 => role.as_str().to_string(),
                _ => format!("{}: {}", run.name, role.as_str()),
            };
            let name =
                |name: String| if runs.len() > 1 { format!("{}_{name}", run.number + 1) } else { name };
            plots.extend(of(run, role, &title).into_iter().map(|(file, plot)| (name(file), plot)));
        }
    }
    plots
}

/// `name` in letters that every file system takes.
fn file_name(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect()
}

/// A series of each network of each run. With one run colours tell the networks apart, with several the runs.
fn series(runs: &[Run], values: impl Fn(&Run, Role) -> Option<Vec<Option<f64>>>) -> Vec<Series> {
    let mut all = Vec::new();
    for run in runs {
        for role in run.roles() {
            let Some(values) = values(run, role) else { continue };
            let dashed = role == Role::Teacher;
            let (name, colour) = match runs.len() {
                1 => (role.as_str().to_string(), usize::from(dashed)),
                _ => (format!("{}, {}", run.name, role.as_str()), run.number),
            };
            all.push(Series { name, colour, dashed, values });
        }
    }
    all
}

fn numbers(count: usize) -> Vec<String> {
    (1..=count).map(|number| number.to_string()).collect()
}

fn most_tasks(runs: &[Run]) -> usize {
    let rows = runs.iter().flat_map(|run| run.roles().filter_map(|role| run.summary(role)));
    rows.map(|summary| summary.accuracy_matrix.rows().len()).max().unwrap_or(0)
}

fn mean(row: &[f64]) -> Option<f64> {
    if row.is_empty() { None } else { Some(row.iter().sum::<f64>() / row.len() as f64) }
}

/// A plot of all runs under its name, if any of them has finished a task.
fn drawn(name: &str, runs: &[Run], of: fn(&[Run]) -> Plot) -> Vec<(String, Plot)> {
    if most_tasks(runs) == 0 { Vec::new() } else { vec![(name.into(), of(runs))] }
}

fn accuracy(runs: &[Run]) -> Plot {
    let series = series(runs, |run, role| {
        Some(run.summary(role)?.accuracy_matrix.rows().iter().map(|row| mean(row)).collect())
    });
    let axes = Axes { x: "after task", percent: true, places: numbers(most_tasks(runs)), groups: Vec::new() };
    plot::lines("Average accuracy, %", &axes, &series, 560.0)
}

fn forgetting(runs: &[Run]) -> Plot {
    let series = series(runs, |run, role| {
        let rows = run.summary(role)?.accuracy_matrix.rows();
        let last = rows.last()?;
        let learned = rows.iter().enumerate().map(|(task, row)| row.get(task).zip(last.get(task)));
        Some(learned.map(|pair| pair.map(|(first, last)| first - last)).collect())
    });
    let axes = Axes { x: "task", percent: false, places: numbers(most_tasks(runs)), groups: Vec::new() };
    plot::bars("Forgetting, percentage points", &axes, &series, 560.0)
}

fn matrix(run: &Run, role: Role, title: &str) -> Option<(String, Plot)> {
    let rows = run.summary(role)?.accuracy_matrix.rows();
    let names = numbers(rows.len());
    let cell = |after: usize, task: usize, accuracy: f64| Cell {
        shade: accuracy / 100.0,
        label: if rows.len() > 12 { format!("{accuracy:.0}") } else { format!("{accuracy:.1}") },
        tip: format!("task {} after task {}: {accuracy:.2} %", task + 1, after + 1),
    };
    let cells: Vec<Vec<Option<Cell>>> = (rows.iter().enumerate())
        .map(|(after, row)| {
            row.iter().enumerate().map(|(task, value)| Some(cell(after, task, *value))).collect()
        })
        .collect();
    let plot = plot::heat(
        &format!("{title}, accuracy in %"),
        (&names, &names),
        ("after task", "task"),
        &cells,
        None,
    );
    Some((format!("accuracy_matrix_{}", role.as_str()), plot))
}

fn by_class(runs: &[Run]) -> Vec<(String, Plot)> {
    let series = series(runs, |run, role| run.results.class_accuracy.of(role).cloned());
    let (Some(first), Some(most)) = (runs.first(), series.iter().map(|one| one.values.len()).max()) else {
        return Vec::new();
    };
    let names = first.classes();
    // Runs on other classes, or in another order, have no common places.
    if runs.iter().any(|run| run.classes() != names) {
        return Vec::new();
    }
    let places: Vec<String> = names.into_iter().take(most).collect();
    vec![("class_accuracy".into(), plot::dots("Accuracy by class, %", &places, &series, 560.0))]
}

/// A plot for each network and name of a loss, over all epochs.
fn losses(runs: &[Run]) -> Vec<(String, Plot)> {
    let of =
        |run: &Run, role: Role| run.epochs.iter().filter(move |epoch| epoch.role == role).cloned().collect();
    let mut plots = Vec::new();
    for role in [Role::Student, Role::Teacher] {
        let all: Vec<Vec<EpochReport>> = runs.iter().map(|run| of(run, role)).collect();
        let names: BTreeSet<&String> = all.iter().flatten().flat_map(|epoch| epoch.losses.keys()).collect();
        let Some(longest) = all.iter().max_by_key(|epochs| epochs.len()) else { continue };
        let mut groups: Vec<(usize, String)> = Vec::new();
        for (index, epoch) in longest.iter().enumerate() {
            if index == 0 || longest.get(index - 1).is_some_and(|before| before.task != epoch.task) {
                let name = if epoch.tasks <= 10 { format!("task {}", epoch.task + 1) } else { String::new() };
                groups.push((index, name));
            }
        }
        for name in names {
            let series: Vec<Series> = (runs.iter().zip(&all))
                .filter(|(_, epochs)| epochs.iter().any(|epoch| epoch.losses.contains_key(name)))
                .map(|(run, epochs)| Series {
                    name: run.name.clone(),
                    colour: if runs.len() == 1 { usize::from(role == Role::Teacher) } else { run.number },
                    dashed: role == Role::Teacher,
                    values: epochs.iter().map(|epoch| epoch.losses.get(name).copied()).collect(),
                })
                .collect();
            let places = numbers(longest.len());
            let axes = Axes { x: "epoch", percent: false, places, groups: groups.clone() };
            let plot = plot::lines(&format!("{}: {name}", role.as_str()), &axes, &series, 520.0);
            plots.push((format!("loss_{}_{}", role.as_str(), file_name(name)), plot));
        }
    }
    plots
}
