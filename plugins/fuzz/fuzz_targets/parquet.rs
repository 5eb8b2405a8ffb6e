//! Parquet files of images and labels.
#![no_main]

use cdl_fuzz::{Folder, fixtures, judge, read, start, write};
use libfuzzer_sys::fuzz_target;

static PLAIN: Folder = Folder::new(|| fixtures(&["plain/train.parquet"]));

fuzz_target!(init: start(), |bytes: &[u8]| {
    write(&PLAIN, "test.parquet", bytes);
    judge(read("hub_images", &PLAIN, "label_column = \"species\"\nverify = false"));
    // Use one file as training and test images. Its columns are found by its schema.
    judge(read("hub_images", &PLAIN, "train_split = \"test\"\ntest_split = \"test\"\nverify = false"));
});
