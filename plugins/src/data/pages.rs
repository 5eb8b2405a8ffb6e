//! Pages of a parquet column, decompressed here and not by the parquet crate, which allocates whatever size the header
//! of a page claims: up to 2 GiB.

use std::{
    fs::File,
    io::Read,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use flate2::read::MultiGzDecoder;
use parquet::{
    basic::Compression,
    column::page::{Page, PageMetadata, PageReader},
    errors::ParquetError,
    file::{metadata::RowGroupMetaData, serialized_reader::SerializedPageReader},
};
use ruzstd::decoding::StreamingDecoder;

type Result<T> = std::result::Result<T, ParquetError>;

/// Maximum expansion factor of snappy, rounded up: an instruction of three bytes copies at most 64 bytes.
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

/// Number of bytes that the decompressed pages of a file may still take. A few bytes of gzip or zstd can expand to
/// gigabytes, and a file can refer to the same pages many times.
#[derive(Debug, Clone)]
pub(crate) struct Budget(Arc<AtomicU64>);

impl Budget {
    pub(crate) fn new(bytes: u64) -> Self {
        Self(Arc::new(bytes.into()))
    }

    fn left(&self) -> u64 {
        self.0.load(Relaxed)
    }

    fn spend(&self, bytes: usize) -> Result<()> {
        let too_much =
            || ParquetError::General("its pages expand to far more than the size of the file".into());
        let left = self.left().checked_sub(bytes as u64).filter(|&left| left > 0).ok_or_else(too_much)?;
        self.0.store(left, Relaxed);
        Ok(())
    }
}

/// Reader of pages that rejects a page whose claimed size exceeds what its bytes can expand to.
pub(crate) struct Pages {
    packed: SerializedPageReader<File>,
    codec: Codec,
    budget: Budget,
}

impl Pages {
    /// Opens the pages of a leaf of the schema in one row group, compressed by `codec`.
    pub(crate) fn new(
        file: Arc<File>,
        group: &RowGroupMetaData,
        leaf: usize,
        codec: Codec,
        budget: Budget,
    ) -> Result<Self> {
        let column = group.column(leaf);
        // With this declaration the parquet crate returns pages as they are stored, without decompressing them.
        let as_stored = column.clone().into_builder().set_compression(Compression::UNCOMPRESSED).build()?;
        let rows = usize::try_from(group.num_rows())
            .map_err(|_| ParquetError::General(format!("{} rows", group.num_rows())))?;
        let packed = SerializedPageReader::new(file, &as_stored, rows, None)?;
        Ok(Self { packed, codec, budget })
    }

    /// Decompresses the values of a page whose first `plain` bytes are not compressed. Returns `None` if nothing in the
    /// page is compressed.
    fn unpack(&self, stored: &[u8], plain: usize) -> Result<Option<Vec<u8>>> {
        let damaged = || ParquetError::General(format!("a page that is not {} data", self.codec.name()));
        let (levels, mut packed) = stored.split_at_checked(plain).ok_or_else(damaged)?;
        // Decoders reject empty input.
        if self.codec == Codec::None || packed.is_empty() {
            self.budget.spend(stored.len())?;
            return Ok(None);
        }
        let mut values = levels.to_vec();
        let read = |data: &mut dyn Read, values: &mut Vec<u8>| {
            let bytes = data.take(self.budget.left()).read_to_end(values).map_err(|_| damaged())?;
            self.budget.spend(bytes)
        };
        match self.codec {
            Codec::None => {}
            Codec::Snappy => {
                let claimed = snap::raw::decompress_len(packed).map_err(|_| damaged())?;
                if claimed > packed.len().saturating_mul(MAX_EXPANSION) {
                    let reason = format!("a page of {} bytes claims to expand to {claimed}", packed.len());
                    return Err(ParquetError::General(reason));
                }
                self.budget.spend(claimed)?;
                values.resize(plain + claimed, 0);
                let unpacked = snap::raw::Decoder::new().decompress(packed, &mut values[plain..]);
                unpacked.map_err(|_| damaged())?;
            }
            Codec::Gzip => read(&mut MultiGzDecoder::new(packed), &mut values)?,
            Codec::Zstd => {
                while !packed.is_empty() {
                    let mut frame = StreamingDecoder::new(&mut packed).map_err(|_| damaged())?;
                    read(&mut frame, &mut values)?;
                }
            }
        }
        Ok(Some(values))
    }
}

impl PageReader for Pages {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        let Some(mut page) = self.packed.get_next_page()? else { return Ok(None) };
        let (buf, plain) = match &mut page {
            Page::DataPage { buf, .. } | Page::DictionaryPage { buf, .. } => (buf, 0),
            Page::DataPageV2 { buf, is_compressed: false, .. } => {
                let all = buf.len();
                (buf, all)
            }
            Page::DataPageV2 { buf, def_levels_byte_len, rep_levels_byte_len, .. } => {
                let levels = *def_levels_byte_len as usize + *rep_levels_byte_len as usize;
                (buf, levels)
            }
        };
        if let Some(values) = self.unpack(buf, plain)? {
            *buf = values.into();
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
