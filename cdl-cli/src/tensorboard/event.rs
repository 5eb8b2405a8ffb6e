//! Events in TensorFlow's format: the protocol buffer messages `Event` and `Summary` as far as scalars and images need
//! them (tensorflow/core/util/event.proto, framework/summary.proto), framed as TFRecords.

use crc_fast::{CrcAlgorithm, checksum};

/// What a summary shows under a tag.
pub enum Value {
    /// A number.
    Scalar(f32),
    /// A picture.
    Image(Image),
}

/// An encoded picture.
pub struct Image {
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
    /// The PNG file, 8-bit RGB.
    pub png: Vec<u8>,
}

/// Values at one step.
pub struct Event {
    /// Seconds since 1970.
    pub wall_time: f64,
    /// Place on the horizontal axis.
    pub step: usize,
    /// By tag.
    pub values: Vec<(String, Value)>,
}

/// What stands at the beginning of every file: the version of the format.
pub fn first(wall_time: f64) -> Vec<u8> {
    let mut event = Message::default();
    event.double(1, wall_time);
    event.bytes(3, b"brain.Event:2");
    record(&event.0)
}

impl Event {
    /// The event as it lies in a file.
    pub fn to_record(&self) -> Vec<u8> {
        let mut summary = Message::default();
        for (tag, value) in &self.values {
            let mut message = Message::default();
            message.bytes(1, tag.as_bytes());
            match value {
                Value::Scalar(number) => message.float(2, *number),
                Value::Image(image) => {
                    let mut inner = Message::default();
                    inner.varint(1, image.height.into());
                    inner.varint(2, image.width.into());
                    // RGB.
                    inner.varint(3, 3);
                    inner.bytes(4, &image.png);
                    message.bytes(4, &inner.0);
                }
            }
            summary.bytes(1, &message.0);
        }
        let mut event = Message::default();
        event.double(1, self.wall_time);
        event.varint(2, self.step as u64);
        event.bytes(5, &summary.0);
        record(&event.0)
    }
}

/// A TFRecord: length, masked CRC of the length, data, masked CRC of the data, numbers with the lowest byte first.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &masked(&length).to_le_bytes(), data, &masked(data).to_le_bytes()].concat()
}

/// CRC-32C turned by 15 bits, plus a constant, so that a CRC of data that holds CRCs stays a good one.
fn masked(data: &[u8]) -> u32 {
    let crc = checksum(CrcAlgorithm::Crc32Iscsi, data) as u32;
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Fields of a protocol buffer message, one after the other. Each begins with its number and kind.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn key(&mut self, field: u64, kind: u64) {
        self.number(field << 3 | kind);
    }

    /// Seven bits a byte, the lowest first; the eighth says that more follow.
    fn number(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn varint(&mut self, field: u64, value: u64) {
        self.key(field, 0);
        self.number(value);
    }

    fn double(&mut self, field: u64, value: f64) {
        self.key(field, 1);
        self.0.extend(value.to_le_bytes());
    }

    fn float(&mut self, field: u64, value: f32) {
        self.key(field, 5);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.key(field, 2);
        self.number(value.len() as u64);
        self.0.extend(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720, appendix B.4: 32 bytes of zeros have the CRC-32C 8a9136aa.
    #[test]
    fn the_checksum_is_that_of_castagnoli() {
        assert_eq!(checksum(CrcAlgorithm::Crc32Iscsi, &[0; 32]) as u32, 0x8a91_36aa);
        // ((8a9136aa >> 15) | (8a9136aa << 17)) + a282ead8, by hand.
        assert_eq!(masked(&[0; 32]), 0x0fd7_fffa);
    }

    /// Worked out by hand from the description of the wire format.
    #[test]
    fn a_scalar_has_these_bytes() {
        let values = vec![("ab".into(), Value::Scalar(1.5))];
        let bytes = Event { wall_time: 2.0, step: 300, values }.to_record();
        let value = [0x0a, 2, b'a', b'b', 0x15, 0, 0, 0xc0, 0x3f];
        let data =
            [&[0x09, 0, 0, 0, 0, 0, 0, 0, 0x40, 0x10, 0xac, 0x02, 0x2a, 11, 0x0a, 9][..], &value].concat();
        assert_eq!(bytes[..8], 25u64.to_le_bytes());
        assert_eq!(bytes[12..37], data);
        assert_eq!(bytes[37..], masked(&data).to_le_bytes());
    }
}
