//! Memory stays flat over steps. A process of its own, so that nothing else allocates meanwhile.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![cfg(target_os = "linux")]

mod common;

use cdl_core::{Optimizer, Result, Role, TaskStream};

/// Resident pages of this process.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("/proc/self/statm");
    statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).expect("resident pages")
}

#[test]
fn three_hundred_steps_do_not_raise_resident_memory() -> Result<()> {
    let stream = common::Noise::new(1);
    let mut trainer = common::trainer("coda_prompt", "kd_prompts")?;
    let task = stream.tasks()[0].clone();
    trainer.begin_task(&task)?;
    let mut optimizers = Vec::new();
    for role in [Role::Teacher, Role::Student] {
        optimizers.push((role, Optimizer::new(&trainer.settings.optimizer, trainer.trainable(role))?));
    }
    let mut after_20 = 0;
    for step in 1..=300 {
        for (role, optimizer) in &mut optimizers {
            let loss = trainer.loss(*role, &task, &stream.batch(0, step)?)?;
            optimizer.step(&loss.total.backward()?)?;
        }
        if step == 20 {
            after_20 = resident();
        }
    }
    let now = resident();
    println!("resident pages: {after_20} after 20 steps, {now} after 300");
    assert!(now as f64 <= 1.02 * after_20 as f64, "{after_20} pages after 20 steps, {now} after 300");
    Ok(())
}
