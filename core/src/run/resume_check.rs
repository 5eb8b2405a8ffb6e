//! Checks of a resumed run: configuration, data and weights must be those with which the run was started.

use std::path::Path;

use crate::{
    config::Config,
    error::{Error, Result},
    run::{RunRecord, directory},
};

/// Keys of settings that cannot change a result. A key that ends in a dot stands for all keys below it.
const NEUTRAL: [&str; 5] =
    ["stream.input.workers", "stream.input.prefetch", "stream.input.cache_mb", "checkpoint.", "record."];
/// Key that may change when a run resumes because [`check_record`] compares the device itself: `auto` may select another
/// device now.
const DEVICE: &str = "device";

/// Returns whether a setting can change the results of a run.
pub fn changes_results(key: &str) -> bool {
    !NEUTRAL.iter().any(|neutral| key == *neutral || (neutral.ends_with('.') && key.starts_with(neutral)))
}

/// Checks that the configuration `now` gives the same results as `original`, with which the run was started.
///
/// # Errors
/// The first key that must not change, with both values and the origin of the new one.
pub fn check_config(now: &Config, original: &Config) -> Result<()> {
    let (now, original) = (now.explain()?, original.explain()?);
    let value_in = |rows: &[(String, String, String)], key: &str| {
        rows.iter().find(|row| row.0 == key).map_or("(not set)".to_string(), |row| row.1.clone())
    };
    for (key, _, origin) in now.iter().chain(&original) {
        let (value, before) = (value_in(&now, key), value_in(&original, key));
        if value != before && changes_results(key) && key != DEVICE {
            let changeable: Vec<String> = NEUTRAL
                .into_iter()
                .chain([DEVICE])
                .map(|key| if key.ends_with('.') { format!("{key}*") } else { key.into() })
                .collect();
            let expected = format!(
                "the run was started with `{before}`, and another value could change its results; a resumed run may \
                 only change {}",
                changeable.join(", ")
            );
            return Err(Error::Setting { origin: origin.clone(), key: key.clone(), value, expected });
        }
    }
    Ok(())
}

/// Checks that data, plugins, weights, kernels and the kind of device are those with which the run in `root` was
/// started. Warns if the version of this software differs.
pub fn check_record(root: &Path, record: &RunRecord) -> Result<()> {
    directory::check_same(root, record)?;
    let recorded = directory::read_record(root)?;
    let value_of = |key: &str| recorded.get(key).and_then(|value| value.as_str()).unwrap_or_default();
    let fail = |reason: String| Err(Error::RunDir { dir: root.into(), reason });
    let kind = |device: &str| device.chars().take_while(|c| c.is_alphabetic()).collect::<String>();
    let (original, now) = (value_of("device"), &record.device);
    if kind(original) != kind(now) {
        return fail(format!(
            "the run was started on `{original}` and would resume on `{now}`, whose results differ in the last digits; \
             select the device with `--set device=...`"
        ));
    }
    let portable = |kernels: &str| kernels == "portable";
    let (original, now) = (value_of("kernels"), &record.kernels);
    if !original.is_empty() && portable(original) != portable(now) {
        return fail(format!(
            "the run was started with the kernels `{original}` and would resume with `{now}`, whose results differ in \
             the last digits; select the kernels with `CDL_SIMD`"
        ));
    }
    let (original, now) = (value_of("version"), &record.version);
    if original != now {
        tracing::warn!(
            "the run was started by version {original} of cdl, this is version {now}: its results may differ from those \
             of an uninterrupted run"
        );
    }
    Ok(())
}
