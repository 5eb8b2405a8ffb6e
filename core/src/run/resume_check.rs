//! What may differ when a run goes on: nothing that could change what it computes.

use std::path::Path;

use crate::{
    config::Config,
    error::{Error, Result},
    run::{RunRecord, directory},
};

/// Keys whose values cannot change a result; one that ends in a dot stands for all below it. Where a run computes is
/// compared as it was recorded, not by the key: `auto` may mean another device today.
const HARMLESS: [&str; 6] = [
    "stream.input.workers",
    "stream.input.prefetch",
    "stream.input.cache_mb",
    "checkpoint.",
    "record.",
    "device",
];

/// Refuses a configuration that could give another result than the one that the run was begun with.
///
/// # Errors
/// The first key that differs and may not, with both values and where the new one was written.
pub fn check_config(now: &Config, begun: &Config) -> Result<()> {
    let (now, begun) = (now.explain()?, begun.explain()?);
    let value_in = |rows: &[(String, String, String)], key: &str| {
        rows.iter().find(|row| row.0 == key).map_or("(nothing)".to_string(), |row| row.1.clone())
    };
    let keys = now.iter().chain(begun.iter().filter(|row| !now.iter().any(|other| other.0 == row.0)));
    for (key, _, origin) in keys {
        let (value, before) = (value_in(&now, key), value_in(&begun, key));
        if value != before && !is_harmless(key) {
            let harmless =
                HARMLESS.map(|key| if key.ends_with('.') { format!("{key}*") } else { key.into() });
            let expected = format!(
                "the run was begun with `{before}`, and another value could change its results; when a run goes \
                 on, only {} may change",
                harmless.join(", ")
            );
            return Err(Error::Setting { origin: origin.clone(), key: key.clone(), value, expected });
        }
    }
    Ok(())
}

fn is_harmless(key: &str) -> bool {
    HARMLESS.iter().any(|harmless| key == *harmless || (harmless.ends_with('.') && key.starts_with(harmless)))
}

/// Refuses data, weights or a kind of device that are not those that the run in `root` was begun with, and warns of
/// another version of this software.
///
/// # Errors
/// What differs, with both values.
pub fn check_record(root: &Path, record: &RunRecord) -> Result<()> {
    directory::check_same(root, record)?;
    let recorded = directory::read_record(root)?;
    let of = |key: &str| recorded.get(key).and_then(|value| value.as_str()).unwrap_or_default();
    let kind = |device: &str| device.chars().take_while(|c| c.is_alphabetic()).collect::<String>();
    if kind(of("device")) != kind(&record.device) {
        let reason = format!(
            "the run was begun on `{}` and would go on on `{}`, which does not compute to the same bytes; \
             `--set device=...` chooses",
            of("device"),
            record.device
        );
        return Err(Error::RunDir { dir: root.into(), reason });
    }
    let portable = |kernels: &str| kernels == "portable";
    if !of("kernels").is_empty() && portable(of("kernels")) != portable(&record.kernels) {
        let reason = format!(
            "the run was begun with kernels of the kind `{}` and would go on with `{}`, which do not compute to the same \
             bytes; `CDL_SIMD` chooses",
            of("kernels"),
            record.kernels
        );
        return Err(Error::RunDir { dir: root.into(), reason });
    }
    if of("version") != record.version {
        tracing::warn!(
            "the run was begun by version {} of cdl, this is {}: its results may differ from those of a run that was \
             not stopped",
            of("version"),
            record.version
        );
    }
    Ok(())
}
