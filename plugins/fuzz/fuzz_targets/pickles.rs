//! Pickles with all opcodes of the reader and any function: a superset of the pickles allowed in any file format.
#![no_main]

use cdl_core::pickle::{Format, Pickle};
use libfuzzer_sys::fuzz_target;

const FORMAT: Format = Format {
    name: "a fuzzed file",
    opcodes: b"(NKMJGUTCBX])}taesucRbQqrhj\x81\x85\x86\x87\x88\x89\x8a\x8c\x8d\x8e\x93\x94\x95\x96",
    allows: |_, _| true,
};

fuzz_target!(|bytes: &[u8]| {
    match Pickle::read(bytes, &FORMAT) {
        Ok(pickle) => assert!(pickle.items(pickle.root).is_none_or(|items| items.len() <= bytes.len())),
        Err(error) => assert!(error.to_string().len() < 1_000, "{error}"),
    }
});
