//! Split lists of image folders, as text and as YAML.
#![no_main]

use std::sync::LazyLock;

use cdl_fuzz::{folder, judge, read, start, write};
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = folder();
    for file in ["a/0.png", "a/1.png", "b/0.png", "b/1.png"] {
        write(&folder, file, include_bytes!("../../../core/tests/fixtures/transform/decode_bits.png"));
    }
    folder
});

fuzz_target!(init: start(), |bytes: &[u8]| {
    for file in ["list.txt", "list.yaml"] {
        write(&FOLDER, file, bytes);
        let list = FOLDER.path().join(file);
        let list = list.display();
        let settings = format!("train_list = \"{list}\"\ntest_list = \"{list}\"\nverify = false");
        judge(read("image_folder", &FOLDER, &settings));
    }
});
