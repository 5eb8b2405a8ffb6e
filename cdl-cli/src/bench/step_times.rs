//! Times of training steps, compared with the rate of matrix products on the device.

use std::{fmt::Write, time::Instant};

use cdl_core::{
    candle_core::{DType, Device},
    config::Config,
    error::{Error, Result},
    kernels::fused,
    rng::Rng,
    run::Experiment,
    system::{device, memory},
    train::{Optimizer, Trainer},
    traits::{Batch, EpochKey, Role, Task},
};

use super::profile::{Profile, Times};
use crate::failure::Failure;

/// Measurements of the steps of one network.
struct Step {
    role: Role,
    /// Seconds of the timed steps (at least one), sorted.
    seconds: Vec<f64>,
    /// Floating-point operations of one step in the frozen networks. Recomputed operations count once.
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
}

/// Measurements of an experiment.
pub struct Measured<'a> {
    config: &'a Config,
    pub experiment: Experiment,
    steps: Vec<Step>,
    /// Rates of matrix products on the device.
    rates: fused::Rates,
    peak_bytes: Option<u64>,
}

impl<'a> Measured<'a> {
    /// Builds an experiment and times `timed` steps of each network after `warmup` untimed ones.
    pub fn of(config: &'a Config, warmup: u32, timed: u32, profile: &Profile) -> Result<Self, Failure> {
        let mut experiment = Experiment::build(config).map_err(Failure::before_writing)?;
        let task = experiment.stream.tasks()[0].clone();
        experiment.trainer.begin_task(&task)?;
        let Experiment { stream, trainer, device } = &experiment;
        let key = EpochKey { task: 0, role: Role::Teacher, epoch: 0 };
        let batch = stream.train_batches(key, config.run.batch_size, 0).next();
        let batch = batch.ok_or_else(|| Error::Tasks("the first task fills no batch".into()))??;

        device::reset_peak(device);
        let mut steps = Vec::new();
        for role in config.run.roles() {
            steps.push(measure(&experiment, role, (&task, &batch), (warmup, timed), profile)?);
        }
        // Read before the matrix products below, which are not part of a run.
        let peak_bytes = device::peak_bytes(device).or_else(memory::peak_bytes);
        let spec = trainer.teacher.backbone.spec();
        // The first layer of the teacher's MLP, for all tokens.
        let layer = (config.run.batch_size * (1 + spec.patches), spec.width, 4 * spec.width);
        let rates = match device.is_cpu() {
            true => fused::rates(1.0, layer),
            false => rates_of(device, config.run.precision.dtype(), layer)?,
        };
        Ok(Self { config, experiment, steps, rates, peak_bytes })
    }

    /// Images per second of each network by name.
    pub fn images_per_second(&self) -> Vec<(&'static str, f64)> {
        let rate = |step: &Step| (step.role.as_str(), self.config.run.batch_size as f64 / step.median());
        self.steps.iter().map(rate).collect()
    }

    /// Sources of the teacher's and the student's weights.
    fn networks(&self) -> [&str; 2] {
        let trainer = &self.experiment.trainer;
        [&trainer.teacher, &trainer.student].map(|network| {
            let source = network.backbone.spec().provenance.source.as_str();
            source.strip_prefix("random:").unwrap_or(source)
        })
    }

    /// Results as a JSON object.
    pub fn json(&self) -> serde_json::Value {
        let (run, device) = (&self.config.run, &self.experiment.device);
        let [teacher, student] = self.networks();
        let mut line = serde_json::json!({
            "peer": format!("cdl {}", env!("CARGO_PKG_VERSION")),
            "mode": device::kernels(device),
            "precision": run.precision.as_str(),
            "device": device::describe(device),
            "teacher": teacher,
            "student": student,
            "batch": run.batch_size,
            "threads": rayon::current_num_threads(),
        });
        for step in &self.steps {
            let role = step.role.as_str();
            line[format!("{role}_step_s")] = step.median().into();
            line[format!("{role}_step_min_s")] = step.seconds[0].into();
            line[format!("{role}_gflop")] = (step.operations / 1e9).into();
        }
        line["matmul_gflops"] = (self.rates.matmul / 1e9).into();
        line["kernel_gflops"] = (self.rates.kernel / 1e9).into();
        line["peak_bytes"] = self.peak_bytes.into();
        line
    }

    /// Results as tables.
    pub fn tables(&self) -> String {
        let (run, device) = (&self.config.run, &self.experiment.device);
        let (batch, precision, kernels) = (run.batch_size, run.precision.as_str(), device::kernels(device));
        let (threads, [teacher, student]) = (rayon::current_num_threads(), self.networks());
        let fused::Rates { kernel, matmul } = self.rates;
        let mut text = format!(
            "teacher {teacher}, student {student}, batch {batch}, {precision} on {}, {kernels} kernels\n\n\
             matrix products: {:.0} GFLOP/s at best, {:.0} GFLOP/s at the size of an MLP layer\n\n\
             step        median s   fastest   slowest  images/s     GFLOP   GFLOP/s  of MLP layer\n",
            device::describe(device),
            kernel / 1e9,
            matmul / 1e9,
        );
        for (step, (role, images)) in self.steps.iter().zip(self.images_per_second()) {
            let (median, fastest) = (step.median(), step.seconds[0]);
            let (slowest, rate) = (step.seconds[step.seconds.len() - 1], step.operations / median);
            let _ = writeln!(
                text,
                "{role:<10} {median:>9.4} {fastest:>9.4} {slowest:>9.4} {images:>9.2} {:>9.1} {:>9.1} {:>11.1} %",
                step.operations / 1e9,
                rate / 1e9,
                100.0 * rate / matmul,
            );
        }
        for step in &self.steps {
            text += &breakdown(step, threads);
        }
        if let Some(bytes) = self.peak_bytes {
            let _ = writeln!(text, "\npeak memory {:.0} MB", bytes as f64 / 1e6);
        }
        text
    }
}

/// Times `timed` steps of one network after `warmup` untimed ones.
fn measure(
    Experiment { trainer, device, .. }: &Experiment,
    role: Role,
    (task, batch): (&Task, &Batch),
    (warmup, timed): (u32, u32),
    profile: &Profile,
) -> Result<Step, Failure> {
    let mut optimizer = Optimizer::new(&trainer.settings.optimizer, trainer.trainable(role))?;
    let mut step = || -> Result<f64, Failure> {
        let start = Instant::now();
        let loss = trainer.loss(role, task, batch)?;
        Trainer::update(&loss, &mut optimizer)?;
        drop(loss);
        // A GPU runs asynchronously, so the step ends when the device is idle.
        device.synchronize().map_err(Error::from)?;
        Ok(start.elapsed().as_secs_f64())
    };
    for _ in 0..warmup {
        step()?;
    }
    profile.take();
    let before = fused::multiply_adds();
    let mut seconds = (0..timed).map(|_| step()).collect::<Result<Vec<f64>, _>>()?;
    let operations = match device.is_cpu() {
        true => 2.0 * (fused::multiply_adds() - before) as f64 / f64::from(timed),
        // Operations on a GPU are not counted while they run, so the number is computed by formula.
        false => 2.0 * trainer.cost(role)?.training_macs.total as f64 * batch.len() as f64,
    };
    seconds.sort_by(f64::total_cmp);
    Ok(Step { role, seconds, operations, times: profile.take() })
}

/// Rates of matrix products on a GPU in operations per second: the best one, and the one at the size of an MLP layer.
fn rates_of(device: &Device, dtype: DType, layer: (usize, usize, usize)) -> Result<fused::Rates> {
    // Random values, as in a network: constant values need less power, so that a GPU would run faster.
    let random = Rng::new(0).normal(&[1 << 16], 1.0, device)?.to_dtype(dtype)?;
    let numbers = |rows: usize, columns: usize| {
        let count = rows * columns;
        random.repeat(count.div_ceil(random.elem_count()))?.narrow(0, 0, count)?.reshape((rows, columns))
    };
    // Returns the seconds of a product and its rate.
    let measure = |(rows, inputs, outputs): (usize, usize, usize)| -> Result<(f64, f64)> {
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
        let (seconds, rate) = measure((size, size, size))?;
        best = best.max(rate);
        if seconds > 0.1 {
            break;
        }
    }
    Ok(fused::Rates { kernel: best, matmul: measure(layer)?.1 })
}

/// Formats the mean time of phases and their operations. Times of operations are summed over threads and divided by the
/// number of threads.
fn breakdown(step: &Step, threads: usize) -> String {
    let count = step.seconds.len() as f64;
    let whole: f64 = step.seconds.iter().sum::<f64>() / count;
    let mut rest = whole;
    let mut text = format!("\nmean {} step\n", step.role.as_str());
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
        line("    other and waiting", other);
    }
    line("losses and other", rest);
    line("total", whole);
    text
}
