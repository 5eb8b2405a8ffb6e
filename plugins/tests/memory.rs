//! Memory stays flat over steps. A process of its own, so that nothing else allocates meanwhile.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![cfg(target_os = "linux")]

use cdl_core::{Config, EpochKey, Experiment, Optimizer, Result, Role};

/// Resident pages of this process.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("/proc/self/statm");
    statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).expect("resident pages")
}

/// The quickstart's methods and networks, in batches of four.
#[test]
fn a_thousand_steps_do_not_raise_resident_memory() -> Result<()> {
    cdl_plugins::link();
    // Steps alone: the cache of images fills up during the first epochs, and a worker of every epoch has an arena of
    // the allocator's.
    let sets = ["batch_size=4", "stream.input.cache_mb=0", "stream.input.workers=0"].map(String::from);
    let config = Config::load(&["../configs/quickstart.toml"], &sets)?;
    let Experiment { stream, mut trainer, .. } = Experiment::build(&config)?;
    let task = stream.tasks()[0].clone();
    trainer.begin_task(&task)?;
    let mut optimizers = Vec::new();
    for role in [Role::Teacher, Role::Student] {
        optimizers.push((role, Optimizer::new(&trainer.settings.optimizer, trainer.trainable(role))?));
    }
    let key = |epoch| EpochKey { task: 0, role: Role::Student, epoch };
    let batches = (0..).flat_map(|epoch| stream.train_batches(key(epoch), 4));
    // The allocator keeps freed memory for a while and gives it back at times of its own, so single readings swing by
    // a tenth in a process this small, and the heap settles in the first hundred steps. What a leak raises is the floor.
    let (mut early, mut late) = (usize::MAX, usize::MAX);
    for (step, batch) in (1..=1000).zip(batches) {
        let batch = batch?;
        for (role, optimizer) in &mut optimizers {
            let loss = trainer.loss(*role, &task, &batch)?;
            optimizer.step(&loss.total.backward()?)?;
        }
        match step {
            101..=200 => early = early.min(resident()),
            901..=1000 => late = late.min(resident()),
            _ => {}
        }
    }
    println!("resident pages at least: {early} in steps 101 to 200, {late} in steps 901 to 1000");
    assert!(late as f64 <= 1.02 * early as f64, "at least {early} pages early, {late} late");
    Ok(())
}
