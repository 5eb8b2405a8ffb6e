//! `cdl bench`: time and memory of training steps or of inference.

use std::path::PathBuf;

use cdl_core::config::Config;
use clap::Args;

use crate::{
    bench::{inference_times, input_rates, profile::Profile, step_times::Measured},
    config_args::ConfigArgs,
    failure::Failure,
    terminal::emit,
};

/// Default configuration.
const CONFIG: &str = include_str!("../../assets/configs/bench.toml");

/// Arguments of `cdl bench`.
#[derive(Debug, Args)]
#[command(mut_arg("configs", |configs| configs.required(false)), after_help = "\
Without a configuration, measures configs/bench.toml: the published method at the published sizes, with random weights \
and images. The timed steps belong to the first task and use one batch; reading and augmenting images is not included \
(see --input).

Examples:
  cdl bench --teacher base --student small --batch 8
  cdl bench configs/quickstart.toml --steps 50 --input
  cdl bench --teacher large --student base --set teacher.checkpoint_blocks=true --json
  cdl bench --inference student teacher       folders written by `cdl export`")]
pub struct BenchArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Use a randomly initialised teacher: tiny, small, base or large
    #[arg(long, value_name = "SIZE")]
    teacher: Option<String>,
    /// Use a randomly initialised student: tiny, small, base or large
    #[arg(long, value_name = "SIZE")]
    student: Option<String>,
    /// Batch size
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// Number of timed steps
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Number of steps before the timed ones
    #[arg(long, value_name = "N", default_value_t = 1)]
    warmup: u32,
    /// Also measure how many images per second the input pipeline delivers
    #[arg(long)]
    input: bool,
    /// Measure inference of exported networks instead of training: latency of one image, images per second in batches
    /// of --batch, memory
    #[arg(long, value_name = "DIR", num_args = 1.., conflicts_with_all = ["configs", "sets", "teacher", "student", "input"])]
    inference: Vec<PathBuf>,
    /// Device: auto, cpu, cuda or cuda:N [default: as configured; auto with --inference]
    #[arg(long)]
    device: Option<String>,
    /// Print a line of JSON instead of tables (with --inference, a line for each network)
    #[arg(long)]
    json: bool,
}

/// Measures and prints the results.
pub fn bench(args: &BenchArgs, profile: &Profile) -> Result<(), Failure> {
    if !args.inference.is_empty() {
        let device = args.device.as_deref().unwrap_or("auto");
        let (timed, warmup) = (args.steps, args.warmup);
        let passes = inference_times::Passes { batch: args.batch, device, timed, warmup };
        return inference_times::bench(&args.inference, &passes, args.json);
    }
    let ConfigArgs { configs, mut sets } = args.config.clone();
    for (network, size) in [("teacher", &args.teacher), ("student", &args.student)] {
        sets.extend(size.as_ref().map(|size| format!("{network}.weights=\"random:{size}\"")));
    }
    sets.extend(args.device.as_ref().map(|device| format!("device={device:?}")));
    sets.extend(args.batch.map(|batch| format!("batch_size={batch}")));
    let config = match configs.is_empty() {
        true => Config::parse("configs/bench.toml", CONFIG, &sets).map_err(Failure::before_writing)?,
        false => ConfigArgs { configs, sets }.load()?,
    };
    let measured = Measured::of(&config, args.warmup, args.steps, profile)?;
    let input = match args.input {
        true => input_rates::measure(measured.experiment.stream.as_ref(), config.run.batch_size)?,
        false => Vec::new(),
    };
    if args.json {
        let mut line = measured.json();
        input_rates::json(&input, &mut line);
        return emit(&format!("{line}\n"));
    }
    let mut text = measured.tables();
    if args.input {
        text += &input_rates::table(&input, &measured.images_per_second());
    }
    emit(&text)
}
