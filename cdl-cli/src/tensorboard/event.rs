//! Events in TensorFlow's format: the protocol buffer messages `Event` and `Summary` as far as scalars and images need
//! them (tensorflow/core/util/event.proto, framework/summary.proto), framed as TFRecords.

use crc_fast::{CrcAlgorithm, checksum};

use crate::report::raster::Image;

/// Value of a tag.
pub enum Value {
    /// Number.
    Scalar(f32),
    /// Picture.
    Image(Image),
}

/// Values at one step.
pub struct Event {
    /// Seconds since 1970.
    pub wall_time: f64,
    /// Place on the horizontal axis.
    pub step: usize,
    /// Values by tag.
    pub values: Vec<(String, Value)>,
}

/// Record at the beginning of every file: the version of the format.
pub fn first(wall_time: f64) -> Vec<u8> {
    record(&Message::default().fixed(1, 1, &wall_time.to_le_bytes()).bytes(3, b"brain.Event:2").0)
}

impl Event {
    /// Record of the event in a file.
    pub fn to_record(&self) -> Vec<u8> {
        let mut summary = Message::default();
        for (tag, value) in &self.values {
            let message = Message::default().bytes(1, tag.as_bytes());
            let message = match value {
                Value::Scalar(number) => message.fixed(2, 5, &number.to_le_bytes()),
                Value::Image(Image { width, height, png }) => {
                    // The third field is the number of channels.
                    let size = Message::default()
                        .varint(1, (*height).into())
                        .varint(2, (*width).into())
                        .varint(3, 3);
                    message.bytes(4, &size.bytes(4, png).0)
                }
            };
            summary = summary.bytes(1, &message.0);
        }
        let event = Message::default().fixed(1, 1, &self.wall_time.to_le_bytes());
        record(&event.varint(2, self.step as u64).bytes(5, &summary.0).0)
    }
}

/// TFRecord: length, masked CRC of the length, data, masked CRC of the data, numbers with the lowest byte first.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &masked(&length).to_le_bytes(), data, &masked(data).to_le_bytes()].concat()
}

/// CRC-32C rotated by 15 bits plus a constant: the CRC of data that contains CRCs stays a good one.
fn masked(data: &[u8]) -> u32 {
    let crc = checksum(CrcAlgorithm::Crc32Iscsi, data) as u32;
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Fields of a protocol buffer message, one after the other. Each begins with its number and wire type.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    /// Seven bits a byte, the lowest first; the eighth bit marks that more follow.
    fn number(mut self, mut value: u64) -> Self {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
        self
    }

    fn varint(self, field: u64, value: u64) -> Self {
        self.number(field << 3).number(value)
    }

    /// A double (wire type 1) or a float (5).
    fn fixed(self, field: u64, wire_type: u64, value: &[u8]) -> Self {
        let Self(head) = self.number(field << 3 | wire_type);
        Self([&head, value].concat())
    }

    fn bytes(self, field: u64, value: &[u8]) -> Self {
        let Self(head) = self.number(field << 3 | 2).number(value.len() as u64);
        Self([&head, value].concat())
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
