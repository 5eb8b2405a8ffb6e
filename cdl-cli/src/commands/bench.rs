//! `cdl bench`.

use std::path::PathBuf;

use cdl_core::config::Config;
use clap::Args;

use crate::{
    bench::{inference_times, input_rates, profile::Profile, step_times::Measured},
    config_args::ConfigArgs,
    failure::Failure,
    terminal::emit,
};

/// Configuration that is measured unless another is given.
const CONFIG: &str = include_str!("../../assets/configs/bench.toml");

/// Arguments of `cdl bench`.
#[derive(Debug, Args)]
#[command(mut_arg("configs", |configs| configs.required(false)), after_help = "\
Without a configuration: the published method at the published sizes (configs/bench.toml), random weights and images.
Steps are those of the first task, on one batch; reading and augmenting images is not part of them (--input).

Examples:
  cdl bench --teacher base --student small --batch 8
  cdl bench configs/quickstart.toml --steps 50 --input
  cdl bench --teacher large --student base --set teacher.checkpoint_blocks=true --json
  cdl bench --inference student teacher               folders that `cdl export` has made")]
pub struct BenchArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Random teacher of this size: tiny, small, base, large
    #[arg(long, value_name = "SIZE")]
    teacher: Option<String>,
    /// Random student of this size
    #[arg(long, value_name = "SIZE")]
    student: Option<String>,
    /// Images in a batch
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// Steps that are timed
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Steps before them
    #[arg(long, value_name = "N", default_value_t = 1)]
    warmup: u32,
    /// Measure as well how many images a second the input delivers
    #[arg(long)]
    input: bool,
    /// Measure predicting by exported networks instead of training: the time of one image, images a second in batches
    /// (--batch), memory
    #[arg(long, value_name = "DIR", num_args = 1.., conflicts_with_all = ["configs", "sets", "teacher", "student", "input"])]
    inference: Vec<PathBuf>,
    /// Where to compute: auto, cpu, cuda or cuda:N [default: as the configuration says; with --inference auto]
    #[arg(long)]
    device: Option<String>,
    /// One line of JSON instead of tables (with --inference one for each network)
    #[arg(long)]
    json: bool,
}

/// Times steps and prints what they took.
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
