//! Split lists of image folders, as text and as YAML.
#![no_main]

use cdl_fuzz::{Folder, folder, judge, read, start, write};
use libfuzzer_sys::fuzz_target;

static FOLDER: Folder = Folder::new(|| {
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
