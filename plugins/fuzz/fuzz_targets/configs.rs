//! Configurations: reading, writing, and reading the written text again.
#![no_main]

use cdl_core::config::Config;
use cdl_fuzz::{judge, start};
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: start(), |bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let config = match Config::parse("fuzz.toml", text, &[]) {
        Ok(config) => config,
        Err(error) => return judge::<()>(Err(error)),
    };
    judge(config.explain());
    let written = config.to_toml().expect("a configuration that was read can be written");
    let again = Config::parse("again.toml", &written, &[]).expect("a configuration that was written can be read");
    assert_eq!(again.to_toml().ok(), Some(written));
});
