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
    run_dir::{Results, read_confusion, read_epochs, read_record, read_results, write_atomic},
};
use clap::{Args, ValueEnum};

pub use self::tables::latex_safe;
use self::{
    html::Section,
    plot::{Axes, Cell, Plot, Series},
};
use crate::{Failure, emit, sweep, tensorboard::EventFiles};

/// Arguments of `cdl report`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cdl report runs/quickstart
  cdl report runs/alone runs/kd --out compared.html --figures figures --tables tables
  cdl report runs/quickstart --figures figures --format png")]
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
        let results = read_results(root)?;
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
        Ok(Self { number, name, results, record, epochs, confusions, config, values })
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
        let Results { tasks_done, tasks, wall_seconds, .. } = self.results;
        let memory =
            self.results.peak_memory_bytes.map(|bytes| format!(", {:.0} MB at most", bytes as f64 / 1e6));
        format!(
            "{}: {}, learner {}, seed {}; {tasks_done} of {tasks} tasks done, {wall_seconds:.1} s{}",
            self.name,
            of("stream.name"),
            of("learner.name"),
            of("seed"),
            memory.unwrap_or_default()
        )
    }

    fn classes(&self) -> Vec<String> {
        let names = self.record.get("classes").and_then(|classes| classes.as_array());
        names.into_iter().flatten().map(|name| name.as_str().unwrap_or("?").to_string()).collect()
    }
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
    let mut runs = Vec::new();
    for (number, root) in args.runs.iter().enumerate() {
        sweep::refuse(root, "report")?;
        let mut run = Run::read(number, root)?;
        if runs.iter().any(|other: &Run| other.name == run.name) {
            run.name += &format!(" ({})", number + 1);
        }
        runs.push(run);
    }
    let sections = sections(&runs);
    let out = args.out.clone().unwrap_or_else(|| match &args.runs[..] {
        [run] => run.join("report.html"),
        _ => "report.html".into(),
    });
    write_atomic(&out, html::page(&runs, &sections).as_bytes())?;
    let mut told = format!("{}\n", out.display());
    let mut place = |folder: &Path, name: &str, bytes: &[u8]| -> Result<(), Failure> {
        let file = folder.join(name);
        let made = fs::create_dir_all(folder);
        made.map_err(|source| Error::Io { file: folder.into(), source })?;
        write_atomic(&file, bytes)?;
        told += &format!("{}\n", file.display());
        Ok(())
    };
    if let Some(folder) = &args.figures {
        for (name, plot) in sections.iter().flat_map(|section| &section.plots) {
            let svg = plot.standalone();
            if args.format != Format::Png {
                place(folder, &format!("{name}.svg"), svg.as_bytes())?;
            }
            if args.format != Format::Svg {
                place(folder, &format!("{name}.png"), &raster::png(&svg)?)?;
            }
        }
    }
    if let Some(folder) = &args.tables {
        place(folder, "summary.csv", tables::csv(&runs)?.as_bytes())?;
        place(folder, "summary.md", tables::markdown(&runs).as_bytes())?;
        place(folder, "summary.tex", tables::latex(&runs).as_bytes())?;
        place(folder, "cost.csv", cost::csv(&runs)?.as_bytes())?;
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

fn sections(runs: &[Run]) -> Vec<Section> {
    vec![
        Section {
            title: "Accuracy after each task",
            note: "Mean over the tasks seen so far.",
            plots: vec![("accuracy".into(), progress(runs))],
        },
        Section {
            title: "Accuracy matrix",
            note: "On each task's test images after learning each task.",
            plots: each_network(runs, matrix),
        },
        Section {
            title: "Forgetting by task",
            note: "Accuracy right after a task was learned, less that after the last task: A[j][j] - A[T-1][j].",
            plots: vec![("forgetting".into(), forgetting(runs))],
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
            note: "Which prompts of each pool the test images take after the last task, by task of the image. Shades are \
                   shares of a task's images, or of the largest mean weight where each image weighs all prompts.",
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

fn progress(runs: &[Run]) -> Plot {
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
    let plot =
        plot::heat(&format!("{title}, accuracy in %"), (&names, &names), ("after task", "task"), &cells);
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
