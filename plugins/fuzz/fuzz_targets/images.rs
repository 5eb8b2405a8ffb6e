//! Image files: decoding, then both test transforms.
#![no_main]

use cdl_core::transform::{Exif, TestTransform, TransformConfig, decode};
use cdl_fuzz::start;
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: start(), |bytes: &[u8]| {
    match decode(bytes, Exif::Apply) {
        Ok(image) => {
            for test in [TestTransform::Resize, TestTransform::ResizeCrop] {
                let transform = TransformConfig { image_size: 32, test, ..Default::default() };
                assert_eq!(transform.test(&image).dimensions(), (32, 32));
            }
        }
        Err(reason) => assert!(!reason.is_empty() && reason.len() < 20_000, "{} bytes", reason.len()),
    }
});
