//! `cdl check`.

use std::{fmt::Write, path::PathBuf};

use cdl_core::{
    run::{
        directory::RunDir,
        preflight::{self, Data, NetworkReport, Plan, Report, Time},
    },
    traits::Normalization,
};
use clap::Args;

use crate::{
    config_args::ConfigArgs, failure::Failure, logging::Log, plugin::loading, progress::Spinner,
    terminal::emit,
};

/// Arguments of `cdl check`.
#[derive(Debug, Args)]
#[command(after_help = "\
Nothing is written, but what is fetched into the hub's cache as the run would. Times are those of steps of the first task on
this machine as it is now. Exit code 2 if the run would fail.

Examples:
  cdl check configs/quickstart.toml
  cdl check configs/preset/cifar100_base_small.toml --set stream.path=hf:uoft-cs/cifar100 --steps 1
  cdl check configs/quickstart.toml --steps 0 --json")]
pub struct CheckArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Where the run is to be written, if not at the default place
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// A run that the directory holds is to be replaced
    #[arg(long)]
    overwrite: bool,
    /// Steps of each network that are timed, after two others; 0: no time and memory
    #[arg(long, value_name = "N", default_value_t = 3)]
    steps: usize,
    /// Training and test images of each task that are decoded; all where the stream has `verify = true`
    #[arg(long, value_name = "N", default_value_t = 8)]
    images: usize,
    /// JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// Looks at everything that a run needs and says all that is wrong.
pub fn check(args: &CheckArgs, log: &Log) -> Result<(), Failure> {
    let layers = args.config.layers();
    // The draft reports errors in the list of plugins.
    loading::load_each(layers.plugins().unwrap_or_default())?;
    let draft = layers.draft();
    let default = || draft.config.as_ref().map_or_else(|| "runs/new".into(), RunDir::default_path);
    let run_dir = args.run_dir.clone().unwrap_or_else(default);
    let plan = Plan { steps: args.steps, images: args.images, run_dir: &run_dir, overwrite: args.overwrite };
    let spinner = Spinner::new(log, "{pos} images looked at");
    let report = preflight::check(draft, &plan, &|| spinner.one());
    drop(spinner);
    let failed = |e| Failure::working(format!("the report cannot be written: {e}"));
    emit(&match args.json {
        true => serde_json::to_string_pretty(&report).map_err(failed)? + "\n",
        false => table(&report),
    })?;
    let head =
        |count: usize| format!("{count} mistake{} would stop this run", if count == 1 { "" } else { "s" });
    Failure::list(head, report.mistakes)
}

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
        let _ = writeln!(text, "memory: {:.0} MB at most so far", bytes as f64 / 1e6);
    }
    for what in &report.not_checked {
        let _ = writeln!(text, "not looked at: {what}");
    }
    match report.mistakes.len() {
        0 => text += "nothing found that would stop this run\n",
        _ => text += "this run would fail\n",
    }
    text
}

fn data(text: &mut String, data: &Data) {
    let _ = writeln!(
        text,
        "data: {}, {} classes in {} tasks, images of {} px\n  task  classes     train      test  looked at  damaged",
        data.stream,
        data.classes,
        data.tasks.len(),
        data.image_size,
    );
    let mut row = |name: &str, [classes, train, test, looked_at, damaged]: [usize; 5]| {
        let _ = writeln!(text, "  {name:>4} {classes:>8} {train:>9} {test:>9} {looked_at:>10} {damaged:>8}");
    };
    let mut all = [0; 5];
    for (index, task) in data.tasks.iter().enumerate() {
        let counts = [task.classes, task.train, task.test, task.looked_at, task.damaged];
        row(&(index + 1).to_string(), counts);
        all = std::array::from_fn(|column| all[column] + counts[column]);
    }
    row("all", all);
    for file in &data.files {
        let many =
            if file.files > 1 { format!(" ({} files, names and sizes)", file.files) } else { String::new() };
        let revision = file.provenance.revision.as_ref();
        let revision = revision.map(|revision| format!(" at {revision}")).unwrap_or_default();
        let _ = writeln!(
            text,
            "  {}{revision}{many}: {:.1} MB, SHA-256 {}",
            file.provenance.file,
            file.provenance.bytes as f64 / 1e6,
            file.provenance.sha256
        );
    }
}

fn network(text: &mut String, NetworkReport { role, spec }: &NetworkReport) {
    let Normalization { mean, std } = spec.normalization;
    let pixels = match spec.normalization {
        Normalization::NONE => "pixels as they are".to_string(),
        _ => format!("pixels less {mean:?}, by {std:?}"),
    };
    let revision = spec.provenance.revision.as_ref();
    let revision = revision.map(|revision| format!(" at {revision}")).unwrap_or_default();
    let _ = writeln!(
        text,
        "\n{}: {}{revision}, {} blocks, width {}, patches of {} px, {pixels}\n  {}: {:.1} MB, SHA-256 {}",
        role.as_str(),
        spec.provenance.source,
        spec.depth,
        spec.width,
        spec.patch_size,
        spec.provenance.file,
        spec.provenance.bytes as f64 / 1e6,
        spec.provenance.sha256,
    );
}

fn time(text: &mut String, time: &Time) {
    for network in &time.networks {
        let _ = writeln!(
            text,
            "time: {} steps of the {} at {:.4} s: {}",
            network.steps,
            network.role.as_str(),
            network.step_seconds,
            duration(network.steps as f64 * network.step_seconds),
        );
    }
    let _ = writeln!(
        text,
        "time: {} images tested at {:.1} a second: {}\ntime of the whole run: about {}",
        time.test_images,
        time.test_images_per_second,
        duration(time.test_images as f64 / time.test_images_per_second),
        duration(time.seconds),
    );
}

/// Seconds in words.
fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.1} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}
