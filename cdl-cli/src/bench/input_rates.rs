//! Images per second that the input pipeline delivers, compared with those that a training step consumes.

use std::{fmt::Write, time::Instant};

use cdl_core::{
    error::Result,
    traits::{Batches, EpochKey, Role, TaskStream},
};

/// Seconds after which the first pass over the images is stopped. The second pass reads the same images, which the
/// cache may contain.
const MAX_SECONDS: f64 = 3.0;

/// Result of one pass over images.
pub struct Pass {
    /// Title of the row in tables.
    name: &'static str,
    /// Key in JSON.
    key: &'static str,
    /// Images per second.
    rate: f64,
}

/// Reads images of the first task as training and testing do, without other computation.
pub fn measure(stream: &dyn TaskStream, batch_size: usize) -> Result<Vec<Pass>> {
    let key = EpochKey { task: 0, role: Role::Teacher, epoch: 0 };
    let train = || stream.train_batches(key, batch_size, 0);
    let test = || stream.test_batches(0, batch_size);
    let mut passes = Vec::new();
    let (images, rate) = read(train(), |_, seconds| seconds > MAX_SECONDS)?;
    passes.push(Pass { name: "training images, first pass", key: "input_train_first_images_s", rate });
    let (_, rate) = read(train(), |read, _| read >= images)?;
    passes.push(Pass { name: "training images, second pass", key: "input_train_next_images_s", rate });
    let (images, rate) = read(test(), |_, seconds| seconds > MAX_SECONDS)?;
    passes.push(Pass { name: "test images, first pass", key: "input_test_first_images_s", rate });
    let (_, rate) = read(test(), |read, _| read >= images)?;
    passes.push(Pass { name: "test images, second pass", key: "input_test_next_images_s", rate });
    Ok(passes)
}

/// Reads images until `stop`, called with their number and the seconds, is true. Returns their number and the rate.
fn read(batches: Batches<'_>, stop: impl Fn(usize, f64) -> bool) -> Result<(usize, f64)> {
    let start = Instant::now();
    let mut images = 0;
    for batch in batches {
        images += batch?.len();
        if stop(images, start.elapsed().as_secs_f64()) {
            break;
        }
    }
    Ok((images, images as f64 / start.elapsed().as_secs_f64()))
}

/// Table of the rates, in images per second and as multiples of the rates of `steps` (name, images per second).
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

/// Adds the rates to a JSON object.
pub fn json(passes: &[Pass], object: &mut serde_json::Value) {
    for pass in passes {
        object[pass.key] = pass.rate.into();
    }
}
