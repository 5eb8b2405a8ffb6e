//! CIFAR files: pickles as the Python version's images and class names, anything else as the binary version.
#![no_main]

use std::sync::LazyLock;

use cdl_fuzz::{fixtures, judge, read, start, write};
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

static IMAGES: LazyLock<TempDir> = LazyLock::new(|| fixtures(&["cifar-100-python/train"]));
static NAMES: LazyLock<TempDir> =
    LazyLock::new(|| fixtures(&["cifar-100-python/train", "cifar-100-python/test"]));
static BINARY: LazyLock<TempDir> = LazyLock::new(|| fixtures(&["cifar-100-binary/train.bin"]));

fuzz_target!(init: start(), |bytes: &[u8]| {
    if bytes.first() == Some(&0x80) {
        write(&IMAGES, "test", bytes);
        judge(read("cifar100", &IMAGES, ""));
        write(&NAMES, "meta", bytes);
        judge(read("cifar100", &NAMES, ""));
    } else {
        write(&BINARY, "test.bin", bytes);
        judge(read("cifar100", &BINARY, ""));
    }
});
