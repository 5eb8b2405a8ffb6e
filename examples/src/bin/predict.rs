//! Example of a program that classifies images with an exported student.
//!
//! ```sh
//! cdl run configs/quickstart.toml --run-dir runs/boots
//! cdl export runs/boots --student student
//! cargo run --release -p cdl-examples --bin predict -- student boot.png
//! ```

use std::{env, path::Path};

use anyhow::{Context, Result};
use cdl_core::{run::export::Predictor, system::threads};

fn main() -> Result<()> {
    // SAFETY: this is the start of `main`; no other thread is running.
    unsafe { threads::configure(None) };
    let mut arguments = env::args_os().skip(1);
    let folder = arguments.next().context("expected the folder of an exported network, then images")?;
    cdl_plugins::link();
    let model = Predictor::load(folder)?;
    for file in arguments {
        let image = model.description().transform.open(Path::new(&file))?;
        for best in &model.predict(&[image], 3)?[0] {
            println!("{}: {} {:.1} %", file.display(), best.class, 100.0 * best.probability);
        }
    }
    Ok(())
}
