//! Events in TensorFlow's format: the fields of the protocol buffer messages `Event` and `Summary` for scalars and
//! images (tensorflow/core/util/event.proto, framework/summary.proto), framed as TFRecords.

use crc_fast::{CrcAlgorithm, checksum};

use crate::report::raster::Image;

/// Values at one step.
pub struct Event {
    /// Seconds since 1970.
    pub wall_time: f64,
    /// Position on the horizontal axis.
    pub step: usize,
    /// Values by tag, written as float32.
    pub scalars: Vec<(String, f64)>,
    /// Image of the tag `accuracy_matrix`.
    pub accuracy_matrix: Option<Image>,
}

/// First record of every file: the version of the format.
pub fn version_record(wall_time: f64) -> Vec<u8> {
    record(&Message::default().fixed(1, 1, &wall_time.to_le_bytes()).bytes(3, b"brain.Event:2").0)
}

impl Event {
    /// Encodes the event as a record.
    pub fn to_record(&self) -> Vec<u8> {
        let mut summary = Message::default();
        for (tag, number) in &self.scalars {
            let number = (*number as f32).to_le_bytes();
            summary = summary.bytes(1, &Message::default().bytes(1, tag.as_bytes()).fixed(2, 5, &number).0);
        }
        if let Some(Image { width, height, png }) = &self.accuracy_matrix {
            let size = Message::default().varint(1, (*height).into()).varint(2, (*width).into());
            // The third field is the number of channels.
            let image = size.varint(3, 3).bytes(4, png);
            summary = summary.bytes(1, &Message::default().bytes(1, b"accuracy_matrix").bytes(4, &image.0).0);
        }
        let event = Message::default().fixed(1, 1, &self.wall_time.to_le_bytes());
        record(&event.varint(2, self.step as u64).bytes(5, &summary.0).0)
    }
}

/// Encodes a TFRecord: length, masked CRC of the length, data, masked CRC of the data; numbers are little-endian.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &masked(&length).to_le_bytes(), data, &masked(data).to_le_bytes()].concat()
}

/// CRC-32C, rotated by 15 bits plus a constant, because the CRC of data that contains CRCs would be weak.
fn masked(data: &[u8]) -> u32 {
    let crc = checksum(CrcAlgorithm::Crc32Iscsi, data) as u32;
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Encoded fields of a protocol buffer message. Each field begins with its number and wire type.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    /// Appends a varint: seven bits per byte, the lowest first; the eighth bit marks that more bytes follow.
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

    /// Appends a double (wire type 1) or a float (wire type 5).
    fn fixed(self, field: u64, wire_type: u64, value: &[u8]) -> Self {
        let Self(head) = self.number(field << 3 | wire_type);
        Self([&head, value].concat())
    }

    fn bytes(self, field: u64, value: &[u8]) -> Self {
        let Self(head) = self.number(field << 3 | 2).number(value.len() as u64);
        Self([&head, value].concat())
    }
}
