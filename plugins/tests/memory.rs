//! Test that training steps do not increase memory. It is the only test of its process, so that nothing else allocates.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![cfg(target_os = "linux")]

use cdl_core::{
    config::Config,
    error::Result,
    run::Experiment,
    train::Optimizer,
    traits::{EpochKey, Role},
};

/// Returns the number of resident pages of this process.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("/proc/self/statm");
    statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).expect("resident pages")
}

/// Uses the methods and networks of the quickstart, in batches of two.
#[test]
fn steps_do_not_raise_resident_memory() -> Result<()> {
    cdl_plugins::link();
    // Measure steps only: the image cache fills during the first epochs, and the workers of every epoch have their own
    // arenas in the allocator.
    let sets = ["batch_size=2", "stream.input.cache_mb=0", "stream.input.workers=0"].map(String::from);
    let config = Config::load(&["../configs/quickstart.toml"], &sets)?;
    let Experiment { stream, mut trainer, .. } = Experiment::build(&config)?;
    let task = stream.tasks()[0].clone();
    trainer.begin_task(&task)?;
    let mut optimizers = Vec::new();
    for role in [Role::Teacher, Role::Student] {
        optimizers.push((role, Optimizer::new(&trainer.settings.optimizer, trainer.trainable(role))?));
    }
    let key = |epoch| EpochKey { task: 0, role: Role::Student, epoch };
    let batches = (0..).flat_map(|epoch| stream.train_batches(key(epoch), 2, 0));
    // The allocator releases freed memory at irregular times, so single readings vary by a tenth in such a small
    // process. A leak raises the minimum. The heap settles slowly: over 5,000 steps the minimum rose by 2 % until step
    // 500, by 1 % more until step 3,000, and not at all after that.
    let (mut early, mut late) = (usize::MAX, usize::MAX);
    for (step, batch) in (1..=1400).zip(batches) {
        let batch = batch?;
        for (role, optimizer) in &mut optimizers {
            let loss = trainer.loss(*role, &task, &batch)?;
            optimizer.step(&loss.total.backward()?)?;
        }
        match step {
            501..=600 => early = early.min(resident()),
            1301..=1400 => late = late.min(resident()),
            _ => {}
        }
    }
    println!("resident pages at least: {early} in steps 501 to 600, {late} in steps 1301 to 1400");
    assert!(late as f64 <= 1.02 * early as f64, "resident memory rose from {early} to {late} pages");
    Ok(())
}
