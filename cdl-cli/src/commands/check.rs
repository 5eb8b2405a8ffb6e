//! `cdl check`: validates a run without starting it.

use std::{fmt::Write, path::PathBuf};

use cdl_core::{
    config::ConfigLayers,
    run::{
        directory::RunDir,
        preflight::{self, Data, NetworkReport, NetworkTime, Plan, Report, Time},
    },
    traits::{BackboneSpec, DataRecord, Normalization, Provenance},
};
use clap::Args;

use crate::{
    config_args::ConfigArgs,
    failure::Failure,
    logging::Log,
    plugin::loading,
    progress::Spinner,
    terminal::{count, emit, emit_json, heads},
};

/// Arguments of `cdl check`.
#[derive(Debug, Args)]
#[command(after_help = "\
Nothing is written, except for files that are downloaded into the cache of the Hugging Face Hub, as the run would do. \
Times are estimated from a few steps of the first task on this machine. The exit code is 2 if the run would fail.

Examples:
  cdl check configs/quickstart.toml
  cdl check configs/preset/cifar100_base_small.toml --steps 1 \\
      --set stream.path=hf:uoft-cs/cifar100
  cdl check configs/quickstart.toml --steps 0 --json")]
pub struct CheckArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Run directory to check [default: as chosen by `cdl run`]
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Accept a run directory that contains a run, as `cdl run --overwrite` does
    #[arg(long)]
    overwrite: bool,
    /// Timed steps of each network, after two untimed ones; 0 skips time and memory
    #[arg(long, value_name = "N", default_value_t = 3)]
    steps: usize,
    /// Number of training images and of test images of each task to decode; all if the stream has `verify = true`
    #[arg(long, value_name = "N", default_value_t = 8)]
    images: usize,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// Checks everything that a run needs and reports all errors.
pub fn check(args: &CheckArgs, log: &Log) -> Result<(), Failure> {
    let layers = ConfigLayers::read(&args.config.configs, &args.config.sets);
    // An error in the list of plugins itself is reported by the draft below.
    loading::load_each(layers.plugins().unwrap_or_default())?;
    let draft = layers.draft();
    let default = || draft.config.as_ref().map_or_else(|| "runs/new".into(), RunDir::default_path);
    let run_dir = args.run_dir.clone().unwrap_or_else(default);
    let plan = Plan { steps: args.steps, images: args.images, run_dir: &run_dir, overwrite: args.overwrite };
    let spinner = Spinner::new(log, "{pos} images checked");
    let report = preflight::check(draft, &plan, &|| spinner.increment());
    drop(spinner);
    if args.json {
        emit_json(&report)?
    } else {
        emit(&table(&report))?
    }
    Failure::list(|errors| format!("{} found", count(errors, "error")), report.errors)
}

/// Formats the report as text.
fn table(report: &Report) -> String {
    let mut text = String::new();
    report.data.iter().for_each(|found| data(&mut text, found));
    report.networks.iter().for_each(|found| network(&mut text, found));
    if let Some(disk) = &report.disk {
        let (needed, free) = (disk.needed as f64 / 1e6, disk.free as f64 / 1e6);
        let _ = writeln!(text, "\ndisk: {needed:.1} MB needed, {free:.0} MB free");
    }
    report.time.iter().for_each(|found| time(&mut text, found));
    if let Some(bytes) = report.peak_memory_bytes {
        let _ = writeln!(text, "peak memory of the check: {:.0} MB", bytes as f64 / 1e6);
    }
    for what in &report.not_checked {
        let _ = writeln!(text, "not checked: {what}");
    }
    match report.errors.len() {
        0 => text += "no errors found\n",
        _ => text += "this run would fail\n",
    }
    text
}

/// Writes the table of tasks, with their classes and images, and the files of the data set.
fn data(text: &mut String, Data { stream, classes, image_size, tasks, files, .. }: &Data) {
    let (classes, number) = (count(*classes, "class"), count(tasks.len(), "task"));
    let _ = writeln!(text, "data: {stream}, {classes} in {number}, images of {image_size} px");
    let _ = writeln!(text, "  task  classes     train      test    checked  damaged");
    let mut row = |name: &str, [classes, train, test, looked_at, damaged]: [usize; 5]| {
        let _ = writeln!(text, "  {name:>4} {classes:>8} {train:>9} {test:>9} {looked_at:>10} {damaged:>8}");
    };
    let mut all = [0; 5];
    for (index, task) in tasks.iter().enumerate() {
        let counts = [task.classes, task.train, task.test, task.looked_at, task.damaged];
        row(&(index + 1).to_string(), counts);
        all = std::array::from_fn(|column| all[column] + counts[column]);
    }
    row("all", all);
    for DataRecord { provenance, files, .. } in files {
        let many =
            if *files > 1 { format!(" ({files} files; checksum of names and sizes)") } else { String::new() };
        let Provenance { file, bytes, sha256, .. } = provenance;
        let (revision, megabytes) = (revision(provenance), *bytes as f64 / 1e6);
        let _ = writeln!(text, "  {file}{revision}{many}: {megabytes:.1} MB, SHA-256 {sha256}");
    }
}

/// Revision of a file from the hub, as a suffix of its name.
fn revision(provenance: &Provenance) -> String {
    provenance.revision.as_ref().map(|revision| format!(" at {revision}")).unwrap_or_default()
}

/// Writes the size, normalisation and weight file of a network.
fn network(text: &mut String, NetworkReport { role, spec }: &NetworkReport) {
    let heads = heads(spec);
    let BackboneSpec { depth, width, patch_size, normalization, provenance, .. } = spec;
    let Provenance { source, file, bytes, sha256, .. } = provenance;
    let pixels = match normalization {
        &Normalization::NONE => "pixels not normalised".to_string(),
        Normalization { mean, std } => format!("pixels normalised with mean {mean:?}, deviation {std:?}"),
    };
    let (role, revision, megabytes) = (role.as_str(), revision(provenance), *bytes as f64 / 1e6);
    let blocks = count(*depth, "block");
    let _ = writeln!(
        text,
        "\n{role}: {source}{revision}, {blocks}, width {width}, {heads}, patches of {patch_size} px, {pixels}\n  \
         {file}: {megabytes:.1} MB, SHA-256 {sha256}"
    );
}

/// Writes the estimated times of training, testing and the whole run.
fn time(text: &mut String, time: &Time) {
    for NetworkTime { role, steps, step_seconds } in &time.networks {
        let (role, whole) = (role.as_str(), duration(*steps as f64 * step_seconds));
        let _ =
            writeln!(text, "time: {} of the {role} at {step_seconds:.4} s: {whole}", count(*steps, "step"));
    }
    let Time { test_images: images, test_images_per_second: rate, seconds, .. } = time;
    let (testing, whole) = (duration(*images as f64 / rate), duration(*seconds));
    let _ = writeln!(text, "time: {} at {rate:.1} images/s: {testing}", count(*images, "test image"));
    let _ = writeln!(text, "time of the whole run: about {whole}");
}

/// Formats seconds as seconds, minutes or hours.
fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.1} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}
