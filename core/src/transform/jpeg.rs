//! JPEG files that the decoder reads differently from libjpeg, and so from PIL.

use std::borrow::Cow;

// Markers of the format.
const START_OF_SCAN: u8 = 0xDA;
const END_OF_IMAGE: u8 = 0xD9;
const JFIF: u8 = 0xE0;
const ADOBE: u8 = 0xEE;

/// Returns whether the file has no end-of-image marker, as after an interrupted download. The decoder would fill the
/// missing part of the image; libjpeg refuses the file.
pub(super) fn is_truncated(bytes: &[u8]) -> bool {
    Markers::of(bytes).all(|(marker, _)| marker != END_OF_IMAGE)
}

/// Changes the names of components that are called `R`, `G`, `B` in a JFIF file to 1, 2, 3. A JFIF file is YCbCr whatever
/// its components are called; the decoder takes these names for RGB.
pub(super) fn rename_components(bytes: &mut Cow<'_, [u8]>) {
    for at in misleading_names(bytes) {
        if let Some(name) = bytes.to_mut().get_mut(at) {
            *name = match *name {
                b'R' => 1,
                b'G' => 2,
                b'B' => 3,
                other => other,
            };
        }
    }
}

/// Returns the positions of the names of components, if the file is JFIF and calls them `R`, `G`, `B`.
fn misleading_names(bytes: &[u8]) -> Vec<usize> {
    let mut positions = Vec::new();
    let mut is_jfif = false;
    for (marker, at) in Markers::of(bytes) {
        let segment = bytes.get(at..).unwrap_or_default();
        match marker {
            JFIF => is_jfif |= segment.get(2..7) == Some(b"JFIF\0"),
            ADOBE if segment.get(2..7) == Some(b"Adobe") => return Vec::new(),
            // Frame: length, precision, height, width, number of components, then three bytes for each.
            0xC0..=0xC2 => match segment.get(7..17) {
                Some(&[3, b'R', _, _, b'G', _, _, b'B', ..]) => positions.extend([at + 8, at + 11, at + 14]),
                _ => return Vec::new(),
            },
            // Scan: length, number of components, then two bytes for each.
            START_OF_SCAN => {
                let count = usize::from(segment.get(2).copied().unwrap_or_default());
                positions.extend((0..count).map(|component| at + 3 + 2 * component));
            }
            _ => {}
        }
    }
    if is_jfif { positions } else { Vec::new() }
}

/// Iterator over the markers of a file, each with the position after the marker. Skips compressed data between markers.
struct Markers<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Markers<'a> {
    fn of(bytes: &'a [u8]) -> Self {
        // The first marker, start of image, has no length.
        Self { bytes, at: 2 }
    }
}

impl Iterator for Markers<'_> {
    type Item = (u8, usize);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            self.at += self.bytes.get(self.at..)?.windows(2).position(|pair| pair[0] == 0xFF)?;
            let marker = *self.bytes.get(self.at + 1)?;
            match marker {
                // Fill bytes before a marker.
                0xFF => self.at += 1,
                // In compressed data: a byte 0xFF, or a restart marker.
                0x00 | 0x01 | 0xD0..=0xD8 => self.at += 2,
                _ => break,
            }
        }
        let (marker, at) = (*self.bytes.get(self.at + 1)?, self.at + 2);
        self.at = at;
        if marker != END_OF_IMAGE {
            let length = self.bytes.get(at..at + 2)?;
            self.at += usize::from(u16::from_be_bytes([length[0], length[1]]));
        }
        Some((marker, at))
    }
}
