//! How many images a second the input delivers, beside how many a training step consumes.

use std::{fmt::Write, time::Instant};

use cdl_core::{Batches, EpochKey, Result, Role, TaskStream};

/// Seconds after which a pass over the images is broken off.
const LIMIT: f64 = 3.0;

/// Images a second of one kind of pass.
pub struct Pass {
    name: &'static str,
    key: &'static str,
    rate: f64,
}

/// Reads images of the first task as training and testing do, with nothing else to compute.
pub fn measure(stream: &dyn TaskStream, batch_size: usize) -> Result<Vec<Pass>> {
    let epoch = |epoch| stream.train_batches(EpochKey { task: 0, role: Role::Teacher, epoch }, batch_size);
    let test = || stream.test_batches(0, batch_size);
    let mut passes = Vec::new();
    // The first of each pair decodes; the second finds what the first one left in memory.
    for (name, key, batches) in [
        ("training images, first epoch", "input_train_first_images_s", &(|| epoch(0)) as &dyn Fn() -> _),
        ("training images, next epoch", "input_train_next_images_s", &|| epoch(1)),
        ("test images, first time", "input_test_first_images_s", &test),
        ("test images, once more", "input_test_next_images_s", &test),
    ] {
        passes.push(Pass { name, key, rate: rate(batches)? });
    }
    Ok(passes)
}

fn rate<'a>(batches: &dyn Fn() -> Batches<'a>) -> Result<f64> {
    let start = Instant::now();
    let mut images = 0;
    for batch in batches() {
        images += batch?.len();
        if start.elapsed().as_secs_f64() > LIMIT {
            break;
        }
    }
    Ok(images as f64 / start.elapsed().as_secs_f64())
}

/// A table of the rates, each also as a multiple of what the steps consume (name and images a second).
pub fn table(passes: &[Pass], steps: &[(&str, f64)]) -> String {
    let mut text = format!("\n{:<32} {:>10}", "input", "images/s");
    for (step, _) in steps {
        let _ = write!(text, " {:>20}", format!("x {step} step"));
    }
    text.push('\n');
    for pass in passes {
        let _ = write!(text, "{:<32} {:>10.1}", pass.name, pass.rate);
        for (_, consumed) in steps {
            let _ = write!(text, " {:>20.1}", pass.rate / consumed);
        }
        text.push('\n');
    }
    text
}

/// Adds the rates to an object.
pub fn json(passes: &[Pass], object: &mut serde_json::Value) {
    for pass in passes {
        object[pass.key] = pass.rate.into();
    }
}
