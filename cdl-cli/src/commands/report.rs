//! `cdl report`: a page about runs, with figures, tables and event files.

use std::{
    fs,
    path::{Path, PathBuf},
};

use cdl_core::system::atomic::write_atomic;
use clap::{Args, ValueEnum};

use crate::{
    failure::{Failure, io},
    output_paths,
    report::{
        configuration::configurations,
        cost_section::cost_csv,
        pdf, raster,
        recorded_run::{ROLES, RecordedRun},
        report_page::{page, sections},
        report_tables::{summary_csv, summary_latex, summary_markdown},
    },
    sweep::grid::expect_run,
    tensorboard::EventFiles,
    terminal::emit,
};

/// Arguments of `cdl report`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cdl report runs/quickstart
  cdl report runs/alone runs/first --out compared.html --figures figures --tables tables
  cdl report runs/quickstart --figures figures --format png,pdf

Unfinished runs are reported up to their last epoch.")]
pub struct ReportArgs {
    /// Run directories; several runs are compared with the first
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// HTML page [default: report.html in the run directory, or in the working directory for several runs]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Also write each plot as a file into this folder
    #[arg(long, value_name = "DIR")]
    figures: Option<PathBuf>,
    /// Formats of the figures, separated by commas; PNG images have three times the width and height on the page
    #[arg(
        long,
        value_enum,
        default_value = "svg",
        value_delimiter = ',',
        value_name = "FORMAT",
        requires = "figures"
    )]
    format: Vec<Format>,
    /// Also write summary and costs as tables (CSV, Markdown, LaTeX) into this folder
    #[arg(long, value_name = "DIR")]
    tables: Option<PathBuf>,
    /// Also write event files for TensorBoard into this folder, in a subfolder for each run
    #[arg(long, value_name = "DIR")]
    tensorboard: Option<PathBuf>,
}

/// Image pixels per pixel of the page. A plot 400 px wide has 360 dots per inch in a column of 3.3 inches.
const PNG_SCALE: f32 = 3.0;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Svg,
    Png,
    Pdf,
    /// SVG and PNG
    Both,
}

impl Format {
    /// Files that `formats` request: endings and conversions from SVG.
    fn files(formats: &[Self]) -> Vec<(&'static str, Convert)> {
        let is_requested = |any: &[Self]| formats.iter().any(|format| any.contains(format));
        let all: [(bool, &str, Convert); 3] = [
            (is_requested(&[Self::Svg, Self::Both]), "svg", |svg| Ok(svg.as_bytes().to_vec())),
            (is_requested(&[Self::Png, Self::Both]), "png", |svg| Ok(raster::png(svg, PNG_SCALE)?.png)),
            (is_requested(&[Self::Pdf]), "pdf", pdf::pdf),
        ];
        all.into_iter()
            .filter_map(|(requested, ending, convert)| requested.then_some((ending, convert)))
            .collect()
    }
}

/// Conversion of an SVG drawing to the bytes of a file.
type Convert = fn(&str) -> Result<Vec<u8>, String>;

/// Reads runs and writes the page, and the figures, tables and event files that `args` request.
pub fn report(args: &ReportArgs) -> Result<(), Failure> {
    let formats = Format::files(&args.format);
    for (format, available, reason) in
        [("png", raster::AVAILABLE, raster::MISSING), ("pdf", pdf::AVAILABLE, pdf::MISSING)]
    {
        if args.figures.is_some() && !available && formats.iter().any(|(ending, _)| *ending == format) {
            return Err(Failure::invalid(format!("--format: {reason}, or choose svg")));
        }
    }
    let out = args.out.clone().unwrap_or_else(|| match &args.runs[..] {
        [run] => run.join("report.html"),
        _ => "report.html".into(),
    });
    let mut runs: Vec<RecordedRun> = Vec::new();
    for (number, root) in args.runs.iter().enumerate() {
        expect_run(root, "report")?;
        let mut run = RecordedRun::with_epochs(root)?;
        if runs.iter().any(|other| other.name == run.name) {
            run.name += &format!(" ({})", number + 1);
        }
        runs.push(run);
    }
    check_places(args, &out, &runs)?;
    for run in runs.iter().filter(|run| run.results.tasks_done < run.results.tasks) {
        tracing::info!("{}: {}", run.name, run.progress());
    }
    let configurations = configurations(&runs);
    let sections = sections(&configurations);
    let page = page(&configurations, &sections).into_bytes();
    let mut files = Vec::new();
    if let Some(folder) = &args.figures {
        for (name, plot) in sections.iter().flat_map(|section| &section.plots) {
            let svg = plot.standalone();
            for (ending, convert) in &formats {
                let name = format!("{name}.{ending}");
                let bytes = convert(&svg).map_err(|reason| Failure::working(format!("{name}: {reason}")))?;
                files.push((folder.join(name), bytes));
            }
        }
    }
    if let Some(folder) = &args.tables {
        let tables = [
            ("summary.csv", summary_csv(&runs)?),
            ("summary.md", summary_markdown(&configurations)),
            ("summary.tex", summary_latex(&configurations)),
            ("cost.csv", cost_csv(&runs)?),
        ];
        files.extend(tables.map(|(name, text)| (folder.join(name), text.into_bytes())));
    }
    let place = output_paths::resolved(&out);
    if let Some((file, _)) = files.iter().find(|(file, _)| place.starts_with(output_paths::resolved(file))) {
        let reason = format!("conflicts with {}, which is also written", file.display());
        return Err(Failure::invalid(format!("--out {}: {reason}; choose another name", out.display())));
    }
    let mut written = String::new();
    for (file, bytes) in [(out, page)].into_iter().chain(files) {
        if let Some(folder) = file.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::create_dir_all(folder).map_err(io(folder))?;
        }
        write_atomic(&file, &bytes)?;
        written += &format!("{}\n", file.display());
    }
    if let Some(folder) = &args.tensorboard {
        for (run, root) in runs.iter().zip(&args.runs) {
            let into = folder.join(&run.name);
            EventFiles::convert(root, &into)?;
            written += &format!("{}\n", into.display());
        }
    }
    emit(&written)
}

/// Checks, before anything is written, that all results can be written and do not conflict.
fn check_places(args: &ReportArgs, out: &Path, runs: &[RecordedRun]) -> Result<(), Failure> {
    output_paths::page(if args.out.is_some() { "--out" } else { "the page" }, out)?;
    let page = output_paths::resolved(out);
    let named =
        [("--figures", &args.figures), ("--tables", &args.tables), ("--tensorboard", &args.tensorboard)];
    let mut folders: Vec<_> =
        named.into_iter().filter_map(|(option, folder)| Some((option, folder.clone()?))).collect();
    if let Some(events) = &args.tensorboard {
        let of_run = |run: &RecordedRun| ROLES.map(|role| events.join(&run.name).join(role.as_str()));
        folders.extend(runs.iter().flat_map(of_run).map(|folder| ("--tensorboard", folder)));
    }
    for (option, folder) in folders {
        output_paths::folder(option, &folder)?;
        if output_paths::resolved(&folder).starts_with(&page) {
            let (folder, out) = (folder.display(), out.display());
            let reason = format!("conflicts with the page {out}; choose another name");
            return Err(Failure::invalid(format!("{option}: the folder {folder} {reason}")));
        }
    }
    Ok(())
}
