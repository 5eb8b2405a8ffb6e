//! CIFAR files: pickles are read as images and class names of the Python version, other inputs as the binary version.
#![no_main]

use cdl_fuzz::{Folder, fixtures, judge, read, start, write};
use libfuzzer_sys::fuzz_target;

static IMAGES: Folder = Folder::new(|| fixtures(&["cifar-100-python/train"]));
static NAMES: Folder = Folder::new(|| fixtures(&["cifar-100-python/train", "cifar-100-python/test"]));
static BINARY: Folder = Folder::new(|| fixtures(&["cifar-100-binary/train.bin"]));

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
