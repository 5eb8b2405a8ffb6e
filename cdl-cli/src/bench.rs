//! `cdl bench`.

use std::{fmt::Write, path::PathBuf, time::Instant};

use cdl_core::{
    BackboneSpec, Batch, Config, EpochKey, Error, Experiment, Optimizer, Result, Rng, Role, Task, Trainer,
    candle_core::{DType, Device},
    device, memory,
    ops::fused,
};
use clap::Args;

use crate::{
    ConfigArgs, Failure, bench_inference, bench_input, emit,
    profile::{Profile, Times},
};

/// What is measured unless a configuration is given.
const CONFIG: &str = include_str!("../../configs/bench.toml");

/// Arguments of `cdl bench`.
#[derive(Debug, Args)]
#[command(after_help = "\
Without a configuration: the published method at the published sizes (configs/bench.toml), random weights and images.
Steps are those of the first task, on one batch; reading and augmenting images is not part of them (--input).

Examples:
  cdl bench --teacher base --student small --batch 8
  cdl bench configs/quickstart.toml --steps 50 --input
  cdl bench --teacher large --student base --set teacher.checkpoint_blocks=true --json
  cdl bench --inference student teacher               folders that `cdl export` has made")]
pub struct BenchArgs {
    /// Configuration files (TOML), later ones over earlier ones
    #[arg(value_name = "CONFIG")]
    configs: Vec<PathBuf>,
    /// Override a value, for instance --set learner.pool=50; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
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

/// One kind of step.
struct Step {
    role: Role,
    /// Seconds of the timed steps, sorted.
    seconds: Vec<f64>,
    /// Floating-point operations of one step in the frozen networks; what is computed twice counts once.
    operations: f64,
    times: Times,
}

impl Step {
    fn median(&self) -> f64 {
        let middle = self.seconds.len() / 2;
        match self.seconds.len() % 2 {
            0 => (self.seconds[middle - 1] + self.seconds[middle]) / 2.0,
            _ => self.seconds[middle],
        }
    }

    fn least(&self) -> f64 {
        self.seconds.first().copied().unwrap_or_default()
    }

    fn most(&self) -> f64 {
        self.seconds.last().copied().unwrap_or_default()
    }
}

/// Times steps and prints what they took.
pub fn bench(args: &BenchArgs, profile: &Profile) -> Result<(), Failure> {
    if !args.inference.is_empty() {
        let device = args.device.as_deref().unwrap_or("auto");
        let (timed, warmup) = (args.steps, args.warmup);
        let passes = bench_inference::Passes { batch: args.batch, device, timed, warmup };
        return bench_inference::bench(&args.inference, &passes, args.json);
    }
    let mut sets = args.sets.clone();
    for (network, size) in [("teacher", &args.teacher), ("student", &args.student)] {
        sets.extend(size.as_ref().map(|size| format!("{network}.weights=\"random:{size}\"")));
    }
    sets.extend(args.device.as_ref().map(|device| format!("device={device:?}")));
    sets.extend(args.batch.map(|batch| format!("batch_size={batch}")));
    let config = match args.configs.is_empty() {
        true => Config::parse("configs/bench.toml", CONFIG, &sets).map_err(Failure::before_writing)?,
        false => ConfigArgs { configs: args.configs.clone(), sets }.load()?,
    };
    let Experiment { stream, mut trainer, device } =
        Experiment::build(&config).map_err(Failure::before_writing)?;
    let task = stream.tasks()[0].clone();
    trainer.begin_task(&task)?;
    let key = EpochKey { task: 0, role: Role::Teacher, epoch: 0 };
    let batch = stream.train_batches(key, config.run.batch_size, 0).next();
    let batch = batch.ok_or_else(|| Error::Tasks("the first task fills no batch".into()))??;

    device::forget_peak(&device);
    let mut steps = Vec::new();
    for role in config.run.roles() {
        steps.push(measure(&trainer, role, &task, &batch, (&device, args, profile))?);
    }
    // What is measured from here on is not part of a run.
    let peak = device::peak_bytes(&device).or_else(memory::peak_bytes);
    let spec = trainer.teacher.backbone.spec();
    // The first layer of the teacher's MLP, for all tokens.
    let layer = (config.run.batch_size * (1 + spec.patches), spec.width, 4 * spec.width);
    let rates = match device.is_cpu() {
        true => fused::rates(1.0, layer),
        false => rates_of(&device, config.run.precision.dtype(), layer)?,
    };
    let input = match args.input {
        true => bench_input::measure(stream.as_ref(), config.run.batch_size)?,
        false => Vec::new(),
    };
    if args.json {
        let mut line = json(&config, &device, &trainer, &steps, rates, peak);
        bench_input::json(&input, &mut line);
        return emit(&format!("{line}\n"));
    }
    let mut text = tables(&config, &device, &trainer, &steps, rates, peak);
    if args.input {
        let rate = |step: &Step| (step.role.as_str(), config.run.batch_size as f64 / step.median());
        text += &bench_input::table(&input, &steps.iter().map(rate).collect::<Vec<_>>());
    }
    emit(&text)
}

fn measure(
    trainer: &Trainer,
    role: Role,
    task: &Task,
    batch: &Batch,
    (device, args, profile): (&Device, &BenchArgs, &Profile),
) -> Result<Step, Failure> {
    let mut optimizer = Optimizer::new(&trainer.settings.optimizer, trainer.trainable(role))?;
    let mut step = || -> Result<f64, Failure> {
        let start = Instant::now();
        let loss = trainer.loss(role, task, batch)?;
        Trainer::update(&loss, &mut optimizer)?;
        drop(loss);
        // A GPU has only been told what to do.
        device.synchronize().map_err(Error::from)?;
        Ok(start.elapsed().as_secs_f64())
    };
    for _ in 0..args.warmup {
        step()?;
    }
    profile.take();
    let before = fused::multiply_adds();
    let mut seconds = Vec::new();
    for _ in 0..args.steps {
        seconds.push(step()?);
    }
    let operations = match device.is_cpu() {
        true => 2.0 * (fused::multiply_adds() - before) as f64 / f64::from(args.steps),
        // By formula: what a GPU computes is counted nowhere.
        false => 2.0 * trainer.cost(role)?.training_macs.total as f64 * batch.len() as f64,
    };
    seconds.sort_by(f64::total_cmp);
    Ok(Step { role, seconds, operations, times: profile.take() })
}

/// Rates of matrix products on a GPU: at best, and of the size of a layer.
fn rates_of(
    device: &Device,
    dtype: DType,
    (rows, inputs, outputs): (usize, usize, usize),
) -> Result<fused::Rates> {
    // Of numbers that differ, as in a network: those that do not take a card less power, and it runs faster than it could.
    let few = Rng::new(0).normal(&[1 << 16], 1.0, device)?.to_dtype(dtype)?;
    let numbers = |rows: usize, columns: usize| {
        let count = rows * columns;
        few.repeat(count.div_ceil(few.elem_count()))?.narrow(0, 0, count)?.reshape((rows, columns))
    };
    // Seconds of a product, and its rate.
    let measure = |rows: usize, inputs: usize, outputs: usize| -> Result<(f64, f64)> {
        let (a, b) = (numbers(rows, inputs)?, numbers(inputs, outputs)?);
        let seconds = |products: u32| -> Result<f64> {
            device.synchronize()?;
            let start = Instant::now();
            for _ in 0..products {
                a.matmul(&b)?;
            }
            device.synchronize()?;
            Ok(start.elapsed().as_secs_f64() / f64::from(products))
        };
        let first = seconds(1)?;
        let each = seconds(if first < 0.1 { 20 } else { 1 })?;
        Ok((each, 2.0 * (rows * inputs * outputs) as f64 / each))
    };
    let mut best = 0.0f64;
    for size in [1024, 2048, 4096, 8192] {
        let (seconds, rate) = measure(size, size, size)?;
        best = best.max(rate);
        if seconds > 0.1 {
            break;
        }
    }
    Ok(fused::Rates { kernel: best, matmul: measure(rows, inputs, outputs)?.1 })
}

fn network(spec: &BackboneSpec) -> &str {
    spec.provenance.source.strip_prefix("random:").unwrap_or(&spec.provenance.source)
}

fn json(
    config: &Config,
    device: &Device,
    trainer: &Trainer,
    steps: &[Step],
    rates: fused::Rates,
    peak: Option<u64>,
) -> serde_json::Value {
    let mut line = serde_json::json!({
        "peer": format!("cdl {}", env!("CARGO_PKG_VERSION")),
        "mode": device::kernels(device),
        "precision": config.run.precision.as_str(),
        "device": device::describe(device),
        "teacher": network(trainer.teacher.backbone.spec()),
        "student": network(trainer.student.backbone.spec()),
        "batch": config.run.batch_size,
        "threads": rayon::current_num_threads(),
    });
    for step in steps {
        let role = step.role.as_str();
        line[format!("{role}_step_s")] = step.median().into();
        line[format!("{role}_step_min_s")] = step.least().into();
        line[format!("{role}_gflop")] = (step.operations / 1e9).into();
    }
    line["matmul_gflops"] = (rates.matmul / 1e9).into();
    line["kernel_gflops"] = (rates.kernel / 1e9).into();
    line["peak_bytes"] = peak.into();
    line
}

fn tables(
    config: &Config,
    device: &Device,
    trainer: &Trainer,
    steps: &[Step],
    rates: fused::Rates,
    peak: Option<u64>,
) -> String {
    let threads = rayon::current_num_threads();
    let mut text = format!(
        "teacher {}, student {}, batch {}, {} on {}, {threads} threads, {} kernels\n\n\
         matrix products on this machine: {:.0} GFLOP/s at best, {:.0} of the size of a layer\n\n\
         step        median s   fastest   slowest  images/s     GFLOP   GFLOP/s  of a layer's\n",
        network(trainer.teacher.backbone.spec()),
        network(trainer.student.backbone.spec()),
        config.run.batch_size,
        config.run.precision.as_str(),
        device::describe(device),
        device::kernels(device),
        rates.kernel / 1e9,
        rates.matmul / 1e9,
    );
    for step in steps {
        let rate = step.operations / step.median();
        let _ = writeln!(
            text,
            "{:<10} {:>9.4} {:>9.4} {:>9.4} {:>9.2} {:>9.1} {:>9.1} {:>11.1} %",
            step.role.as_str(),
            step.median(),
            step.least(),
            step.most(),
            config.run.batch_size as f64 / step.median(),
            step.operations / 1e9,
            rate / 1e9,
            100.0 * rate / rates.matmul,
        );
    }
    for step in steps {
        text += &breakdown(step, threads);
    }
    if let Some(bytes) = peak {
        let _ = writeln!(text, "\npeak memory {:.0} MB", bytes as f64 / 1e6);
    }
    text
}

/// Phases of a mean step, and in each its operations: seconds of all threads, divided by their number.
fn breakdown(step: &Step, threads: usize) -> String {
    let count = step.seconds.len() as f64;
    let whole: f64 = step.seconds.iter().sum::<f64>() / count;
    let mut rest = whole;
    let mut text = format!("\na {} step, on average\n", step.role.as_str());
    let mut line = |name: &str, seconds: f64| {
        let _ = writeln!(text, "  {name:<34} {seconds:>9.4} s {:>6.1} %", 100.0 * seconds / whole);
    };
    for (phase, time) in &step.times.phases {
        let time = time.as_secs_f64() / count;
        line(phase, time);
        rest -= time;
        let mut other = time;
        for ((_, operation), time) in step.times.operations.iter().filter(|((of, _), _)| of == phase) {
            let time = time.as_secs_f64() / count / threads as f64;
            line(&format!("    {operation}"), time);
            other -= time;
        }
        line("    other, waiting", other);
    }
    line("losses and all else", rest);
    line("together", whole);
    text
}
