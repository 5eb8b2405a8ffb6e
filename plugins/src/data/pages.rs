//! Pages of a parquet column, decompressed here and not by the parquet crate, which allocates whatever size the header
//! of a page claims: up to 2 GiB.

use std::{fs::File, io::Read, sync::Arc};

use flate2::read::MultiGzDecoder;
use parquet::{
    basic::Compression,
    column::page::{Page, PageMetadata, PageReader},
    errors::ParquetError,
    file::{metadata::RowGroupMetaData, serialized_reader::SerializedPageReader},
};
use ruzstd::decoding::StreamingDecoder;

type Result<T> = std::result::Result<T, ParquetError>;

/// Maximum expansion of snappy: three bytes copy at most 64.
const MAX_EXPANSION: usize = 22;

/// Compression of a column's pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Codec {
    None,
    Snappy,
    Gzip,
    Zstd,
}

impl Codec {
    /// Names of the supported compressions, for messages.
    pub(crate) const NAMES: &str = "snappy, zstd, gzip or none";

    fn name(self) -> &'static str {
        match self {
            Self::None => "uncompressed",
            Self::Snappy => "snappy",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }

    /// Returns the codec of a column, or `None` if it is not supported.
    pub(crate) fn of(compression: Compression) -> Option<Self> {
        match compression {
            Compression::UNCOMPRESSED => Some(Self::None),
            Compression::SNAPPY => Some(Self::Snappy),
            Compression::GZIP(_) => Some(Self::Gzip),
            Compression::ZSTD(_) => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// Reader of pages that rejects a page whose claimed size exceeds what its bytes can expand to.
pub(crate) struct Pages {
    packed: SerializedPageReader<File>,
    codec: Codec,
    /// Number of bytes to which the pages may still expand. Few bytes of gzip and zstd can expand to gigabytes.
    left: u64,
}

impl Pages {
    /// Opens the pages of a leaf of the schema in one row group, compressed by `codec`. They may expand to `limit` bytes.
    pub(crate) fn new(
        file: Arc<File>,
        group: &RowGroupMetaData,
        leaf: usize,
        codec: Codec,
        limit: u64,
    ) -> Result<Self> {
        let column = group.column(leaf);
        // Declared uncompressed, the pages arrive as they are stored.
        let as_stored = column.clone().into_builder().set_compression(Compression::UNCOMPRESSED).build()?;
        let rows = usize::try_from(group.num_rows())
            .map_err(|_| ParquetError::General(format!("{} rows", group.num_rows())))?;
        let packed = SerializedPageReader::new(file, &as_stored, rows, None)?;
        Ok(Self { packed, codec, left: limit })
    }

    /// Decompresses the values of a page. The first `plain` bytes are not compressed.
    fn unpack(&mut self, stored: &[u8], plain: usize) -> Result<Vec<u8>> {
        let codec = self.codec;
        let damaged = || ParquetError::General(format!("a page that is not {} data", codec.name()));
        let (levels, mut packed) = stored.split_at_checked(plain).ok_or_else(damaged)?;
        let mut values = levels.to_vec();
        match codec {
            Codec::None => values.extend(packed),
            Codec::Snappy => unpack_snappy(packed, &mut values)?,
            Codec::Gzip => self.read(MultiGzDecoder::new(packed), &mut values).map_err(|_| damaged())?,
            Codec::Zstd => {
                while !packed.is_empty() {
                    let frame = StreamingDecoder::new(&mut packed).map_err(|_| damaged())?;
                    self.read(frame, &mut values).map_err(|_| damaged())?;
                }
            }
        }
        if self.left == 0 {
            let reason = "its pages expand to far more than the size of the file";
            return Err(ParquetError::General(reason.into()));
        }
        Ok(values)
    }

    /// Appends decompressed data to `values`, up to the limit.
    fn read(&mut self, data: impl Read, values: &mut Vec<u8>) -> std::io::Result<()> {
        let read = data.take(self.left).read_to_end(values)?;
        self.left -= read as u64;
        Ok(())
    }
}

/// Appends the decompressed data of a page to `values`.
fn unpack_snappy(packed: &[u8], values: &mut Vec<u8>) -> Result<()> {
    let damaged = || ParquetError::General("a page that is not snappy data".into());
    // The snappy decoder rejects empty input.
    if packed.is_empty() {
        return Ok(());
    }
    let claimed = snap::raw::decompress_len(packed).map_err(|_| damaged())?;
    if claimed > packed.len().saturating_mul(MAX_EXPANSION) {
        let reason = format!("a page of {} bytes claims to expand to {claimed}", packed.len());
        return Err(ParquetError::General(reason));
    }
    let plain = values.len();
    values.resize(plain + claimed, 0);
    let unpacked = snap::raw::Decoder::new().decompress(packed, &mut values[plain..]);
    unpacked.map(|_| ()).map_err(|_| damaged())
}

impl PageReader for Pages {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        let Some(mut page) = self.packed.get_next_page()? else { return Ok(None) };
        match &mut page {
            Page::DataPage { buf, .. } | Page::DictionaryPage { buf, .. } if self.codec != Codec::None => {
                *buf = self.unpack(buf, 0)?.into();
            }
            Page::DataPageV2 { buf, def_levels_byte_len, rep_levels_byte_len, is_compressed, .. }
                if self.codec != Codec::None && *is_compressed =>
            {
                let levels = *def_levels_byte_len as usize + *rep_levels_byte_len as usize;
                *buf = self.unpack(buf, levels)?.into();
            }
            _ => {}
        }
        // The decoder allocates as many values as the header of a dictionary claims.
        if let Page::DictionaryPage { buf, num_values, .. } = &page
            && *num_values as usize > buf.len()
        {
            let reason = format!("a dictionary of {num_values} values in {} bytes", buf.len());
            return Err(ParquetError::General(reason));
        }
        Ok(Some(page))
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.packed.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.packed.skip_next_page()
    }
}

impl Iterator for Pages {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Result<Page>> {
        self.get_next_page().transpose()
    }
}
