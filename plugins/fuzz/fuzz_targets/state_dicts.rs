//! Weights: safetensors, PyTorch files of both formats, and pickles wrapped in a `torch.save` archive.
#![no_main]

use std::io::{Cursor, Write};

use cdl_core::{error::Result, vit::VitWeights};
use cdl_fuzz::{judge, start};
use libfuzzer_sys::fuzz_target;
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

/// Returns an archive in the format of `torch.save` with four storages of 4096 bytes, all of them 1.
fn archive(pickle: &[u8]) -> Vec<u8> {
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let mut add = |name: &str, bytes: &[u8]| {
        zip.start_file(name, stored).expect("entry");
        zip.write_all(bytes).expect("entry");
    };
    add("a/data.pkl", pickle);
    for storage in 0..4 {
        add(&format!("a/data/{storage}"), &[1; 4096]);
    }
    zip.finish().expect("archive").into_inner()
}

fn read(bytes: &[u8]) -> Result<()> {
    let weights = VitWeights::from_bytes("fuzz".into(), bytes, None)?;
    weights.geometry().map(|_| ())
}

fuzz_target!(init: start(), |bytes: &[u8]| {
    judge(read(bytes));
    if matches!(bytes, [0x80, 2..=5, ..]) {
        judge(read(&archive(bytes)));
    }
});
