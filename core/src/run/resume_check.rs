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
    for (key, _, origin) in now.iter().chain(&begun) {
        let (value, before) = (value_in(&now, key), value_in(&begun, key));
        let harmless = HARMLESS.iter().any(|of| key == of || (of.ends_with('.') && key.starts_with(of)));
        if value != before && !harmless {
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

/// Refuses data, weights or a kind of device that are not those that the run in `root` was begun with, and warns of
/// another version of this software.
pub fn check_record(root: &Path, record: &RunRecord) -> Result<()> {
    directory::check_same(root, record)?;
    let recorded = directory::read_record(root)?;
    let of = |key: &str| recorded.get(key).and_then(|value| value.as_str()).unwrap_or_default();
    let fail = |reason: String| Err(Error::RunDir { dir: root.into(), reason });
    let kind = |device: &str| device.chars().take_while(|c| c.is_alphabetic()).collect::<String>();
    let (begun, now) = (of("device"), &record.device);
    if kind(begun) != kind(now) {
        return fail(format!(
            "the run was begun on `{begun}` and would go on on `{now}`, which does not compute to the same bytes; \
             `--set device=...` chooses"
        ));
    }
    let portable = |kernels: &str| kernels == "portable";
    let (begun, now) = (of("kernels"), &record.kernels);
    if !begun.is_empty() && portable(begun) != portable(now) {
        return fail(format!(
            "the run was begun with kernels of the kind `{begun}` and would go on with `{now}`, which do not compute to the \
             same bytes; `CDL_SIMD` chooses"
        ));
    }
    let (begun, now) = (of("version"), &record.version);
    if begun != now {
        tracing::warn!(
            "the run was begun by version {begun} of cdl, this is {now}: its results may differ from those of a run that \
             was not stopped"
        );
    }
    Ok(())
}
