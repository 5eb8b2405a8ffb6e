//! IDX files of images or of labels, plain or gzipped.
#![no_main]

use cdl_fuzz::{Folder, folder, judge, read, start, write};
use libfuzzer_sys::fuzz_target;

const IMAGES: &[u8] = include_bytes!("../seeds/idx/images");
const LABELS: &[u8] = include_bytes!("../seeds/idx/labels");

static FOLDER: Folder = Folder::new(|| {
    let folder = folder();
    write(&folder, "train-images-idx3-ubyte", IMAGES);
    write(&folder, "train-labels-idx1-ubyte", LABELS);
    folder
});

fuzz_target!(init: start(), |bytes: &[u8]| {
    for (images, labels) in [(bytes, LABELS), (IMAGES, bytes)] {
        write(&FOLDER, "t10k-images-idx3-ubyte", images);
        write(&FOLDER, "t10k-labels-idx1-ubyte", labels);
        judge(read("idx", &FOLDER, ""));
    }
});
