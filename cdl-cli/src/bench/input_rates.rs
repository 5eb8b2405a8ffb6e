//! Images per second that the input delivers, beside those that a training step consumes.

use std::{fmt::Write, time::Instant};

use cdl_core::{
    error::Result,
    traits::{Batches, EpochKey, Role, TaskStream},
};

/// Seconds after which a first pass over the images is broken off; the pass after it goes no further, so that it finds
/// all that the first one left in memory and no other images.
const LIMIT: f64 = 3.0;

/// Images a second of one kind of pass.
pub struct Pass {
    name: &'static str,
    key: &'static str,
    rate: f64,
}

/// Reads images of the first task as training and testing do, with nothing else to compute.
pub fn measure(stream: &dyn TaskStream, batch_size: usize) -> Result<Vec<Pass>> {
    let key = EpochKey { task: 0, role: Role::Teacher, epoch: 0 };
    let train = || stream.train_batches(key, batch_size, 0);
    let test = || stream.test_batches(0, batch_size);
    let mut passes = Vec::new();
    let (images, rate) = read(train(), |_, seconds| seconds > LIMIT)?;
    passes.push(Pass { name: "training images, first time", key: "input_train_first_images_s", rate });
    let (_, rate) = read(train(), |read, _| read >= images)?;
    passes.push(Pass { name: "training images, once more", key: "input_train_next_images_s", rate });
    let (images, rate) = read(test(), |_, seconds| seconds > LIMIT)?;
    passes.push(Pass { name: "test images, first time", key: "input_test_first_images_s", rate });
    let (_, rate) = read(test(), |read, _| read >= images)?;
    passes.push(Pass { name: "test images, once more", key: "input_test_next_images_s", rate });
    Ok(passes)
}

/// Reads images until `enough` holds of their number and the seconds; returns their number and the rate.
fn read(batches: Batches<'_>, enough: impl Fn(usize, f64) -> bool) -> Result<(usize, f64)> {
    let start = Instant::now();
    let mut images = 0;
    for batch in batches {
        images += batch?.len();
        if enough(images, start.elapsed().as_secs_f64()) {
            break;
        }
    }
    Ok((images, images as f64 / start.elapsed().as_secs_f64()))
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
