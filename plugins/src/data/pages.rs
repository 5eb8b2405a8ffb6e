//! Pages of a parquet column, decompressed here and not by the parquet crate, which allocates whatever size the header
//! of a page claims: up to 2 GiB.

use std::{fs::File, sync::Arc};

use parquet::{
    basic::Compression,
    column::page::{Page, PageMetadata, PageReader},
    errors::ParquetError,
    file::{metadata::RowGroupMetaData, serialized_reader::SerializedPageReader},
};

type Result<T> = std::result::Result<T, ParquetError>;

/// Maximum expansion of snappy: three bytes copy at most 64.
const MAX_EXPANSION: usize = 22;

/// Reader of pages that rejects a page whose claimed size exceeds what its bytes can expand to.
pub(crate) struct Pages {
    packed: SerializedPageReader<File>,
    snappy: bool,
}

impl Pages {
    /// Opens the pages of a leaf of the schema in one row group. They are compressed by snappy or not at all.
    pub(crate) fn new(file: Arc<File>, group: &RowGroupMetaData, leaf: usize) -> Result<Self> {
        let column = group.column(leaf);
        // Declared uncompressed, the pages arrive as they are stored.
        let as_stored = column.clone().into_builder().set_compression(Compression::UNCOMPRESSED).build()?;
        let rows = usize::try_from(group.num_rows())
            .map_err(|_| ParquetError::General(format!("{} rows", group.num_rows())))?;
        let packed = SerializedPageReader::new(file, &as_stored, rows, None)?;
        Ok(Self { packed, snappy: column.compression() == Compression::SNAPPY })
    }

    /// Decompresses the values of a page. The first `plain` bytes are not compressed.
    fn unpack(&self, stored: &[u8], plain: usize) -> Result<Vec<u8>> {
        let damaged = || ParquetError::General("a page that is not snappy data".into());
        let (levels, packed) = stored.split_at_checked(plain).ok_or_else(damaged)?;
        let mut values = levels.to_vec();
        // The snappy decoder rejects empty input.
        if packed.is_empty() {
            return Ok(values);
        }
        let claimed = snap::raw::decompress_len(packed).map_err(|_| damaged())?;
        if claimed > packed.len().saturating_mul(MAX_EXPANSION) {
            let reason = format!("a page of {} bytes claims to expand to {claimed}", packed.len());
            return Err(ParquetError::General(reason));
        }
        values.resize(plain + claimed, 0);
        let unpacked = snap::raw::Decoder::new().decompress(packed, &mut values[plain..]);
        unpacked.map_err(|_| damaged())?;
        Ok(values)
    }
}

impl PageReader for Pages {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        let Some(mut page) = self.packed.get_next_page()? else { return Ok(None) };
        match &mut page {
            Page::DataPage { buf, .. } | Page::DictionaryPage { buf, .. } if self.snappy => {
                *buf = self.unpack(buf, 0)?.into();
            }
            Page::DataPageV2 { buf, def_levels_byte_len, rep_levels_byte_len, is_compressed, .. }
                if self.snappy && *is_compressed =>
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
