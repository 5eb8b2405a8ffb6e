//! Check of all cells before the first one starts.

use std::path::Path;

use cdl_core::{
    config::Config,
    run::joint_preflight::{SharedError, check_all},
};

use super::{
    layout::run_folder,
    plan::{Cell, nothing_started},
};
use crate::{
    failure::{Failure, first_line},
    lifecycle::is_begun,
    logging::Log,
    progress::Spinner,
};

/// Number of training images and of test images of each task to decode.
const IMAGES: usize = 8;

/// Checks device, data, weights and methods of all cells whose runs have not begun in `folder`.
///
/// # Errors
/// Reports the errors of all cells at once.
pub fn check(folder: &Path, cells: &[(Cell, Config)], log: &Log) -> Result<(), Failure> {
    let new = cells.iter().filter(|(cell, _)| !is_begun(&run_folder(folder, &cell.name)));
    let (names, configs): (Vec<&str>, Vec<Config>) =
        new.map(|(cell, config)| (cell.name.as_str(), config.clone())).unzip();
    let spinner = Spinner::new(log, "{pos} cells checked");
    let found = check_all(&configs, IMAGES, &|| spinner.increment());
    drop(spinner);
    let named = |shared: &SharedError| {
        let names = shared.configs.iter().filter_map(|&index| names.get(index));
        (first_line(&shared.error), names.map(|name| name.to_string()).collect())
    };
    let errors: Vec<(String, Vec<String>)> = found.iter().map(named).collect();
    let code = found.into_iter().map(|shared| Failure::before_writing(shared.error).code).max();
    code.map_or(Ok(()), |code| Err(nothing_started(&errors, code)))
}
