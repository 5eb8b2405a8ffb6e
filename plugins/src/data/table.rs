//! Images in parquet files of the Hugging Face Hub: a column of encoded images, either structs `{bytes, path}` or plain
//! bytes, and a column of labels. The encoded bytes stay in memory; each image is decoded when it is requested.

use std::{
    fmt::{self, Display, Formatter},
    fs::File,
    path::Path,
    sync::Arc,
};

use cdl_core::{
    hub::dataset::DataFile,
    prelude::*,
    system::panics,
    transform::{Exif, decode},
};
use parquet::{
    basic::{ConvertedType, LogicalType, Type as Physical},
    column::reader::ColumnReaderImpl,
    data_type::{ByteArray, ByteArrayType, DataType, Int32Type, Int64Type},
    errors::ParquetError,
    file::{
        metadata::RowGroupMetaData,
        reader::{FileReader, SerializedFileReader},
    },
};
use serde_json::Value;

use super::{
    Parsed,
    pages::{Budget, Codec, Pages},
    unreadable,
};

/// Maximum size of the decompressed pages of a file, as a multiple of its size.
const MAX_EXPANSION: u64 = 100;
/// Minimum budget in bytes for the decompressed pages of a file.
const MIN_BUDGET: u64 = 64 << 20;

/// Names of the columns to read. `None`: the column is found from the file's metadata and schema.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Columns<'a> {
    pub(crate) image: Option<&'a str>,
    pub(crate) label: Option<&'a str>,
}

/// Contents of a parquet file.
pub(crate) struct Table {
    /// Encoded images.
    pub(crate) images: Vec<ByteArray>,
    /// A label for each image.
    pub(crate) labels: Vec<Label>,
    /// Names of the classes, if the file states them.
    pub(crate) names: Option<Vec<String>>,
}

/// Class of an image.
pub(crate) enum Label {
    Number(i64),
    Name(String),
}

impl Display for Label {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

/// Reads a file. Errors name the file and the column.
pub(crate) fn read(path: &Path, columns: Columns<'_>) -> Result<Table> {
    let file = cdl_core::system::files::open(path).map_err(unreadable(path))?;
    // The parquet reader panics on some damaged files. It shares no state, so catching the panic is safe.
    panics::catch(|| parse(file, columns))
        .unwrap_or_else(|_| Err("is damaged: its pages contradict one another".into()))
        .map_err(|reason| Error::data(path, reason))
}

fn parse(file: File, columns: Columns<'_>) -> Parsed<Table> {
    let length = file.metadata().map_err(|e| e.to_string())?.len();
    let again = Arc::new(file.try_clone().map_err(|e| e.to_string())?);
    let reader = SerializedFileReader::new(file).map_err(|e| format!("is not a parquet file: {e}"))?;
    let metadata = reader.metadata();
    let rows = metadata.row_groups().iter().try_fold(0u64, |sum, group| {
        u64::try_from(group.num_rows()).ok().and_then(|rows| sum.checked_add(rows))
    });
    // An image has at least one byte, so a file has at most as many rows as bytes.
    if rows.is_none_or(|rows| rows > length) {
        return Err(format!("is damaged: it claims more rows than it has bytes ({length})"));
    }
    // Pages of images expand little. Pages of equal labels expand much, but stay small.
    let budget = Budget::new(length.saturating_mul(MAX_EXPANSION).max(MIN_BUDGET));
    let schema = Schema::new(&reader, again, budget);
    let image = schema.column("image", columns.image, &["image", "img"], "Image")?;
    let label = schema.column("label", columns.label, &["label"], "ClassLabel")?;
    let images = schema.values::<ByteArrayType>(&image)?;
    let leaf = schema.leaf(&label)?;
    let labels: Vec<Label> = match metadata.file_metadata().schema_descr().column(leaf).physical_type() {
        Physical::INT64 => schema.values::<Int64Type>(&label)?.into_iter().map(Label::Number).collect(),
        Physical::INT32 => schema
            .values::<Int32Type>(&label)?
            .into_iter()
            .map(|number| Label::Number(number.into()))
            .collect(),
        Physical::BYTE_ARRAY => {
            let name = |name: ByteArray| Ok(Label::Name(name.as_utf8().map_err(|e| e.to_string())?.into()));
            schema.values::<ByteArrayType>(&label)?.into_iter().map(name).collect::<Parsed<_>>()?
        }
        other => {
            return Err(format!("column `{label}` has values of type {other}; expected numbers or names"));
        }
    };
    if labels.len() != images.len() {
        let (images, labels) = (images.len(), labels.len());
        return Err(format!("{images} images in column `{image}`, but {labels} labels in `{label}`"));
    }
    Ok(Table { images, labels, names: schema.names(&label) })
}

/// Columns of a file, and the metadata of the `datasets` library about them.
struct Schema<'a> {
    reader: &'a SerializedFileReader<File>,
    /// Second handle of the file, for its pages.
    file: Arc<File>,
    /// Bytes that the decompressed pages may still take.
    budget: Budget,
    /// Top-level columns.
    columns: Vec<String>,
    /// `features` of the metadata under the key `huggingface`; null if there are none.
    features: Value,
}

impl<'a> Schema<'a> {
    fn new(reader: &'a SerializedFileReader<File>, file: Arc<File>, budget: Budget) -> Self {
        let metadata = reader.metadata().file_metadata();
        let columns = metadata.schema().get_fields().iter().map(|field| field.name().to_string()).collect();
        let noted =
            metadata.key_value_metadata().into_iter().flatten().find(|entry| entry.key == "huggingface");
        let noted = noted.and_then(|entry| serde_json::from_str::<Value>(entry.value.as_deref()?).ok());
        let features = noted.map_or(Value::Null, |noted| noted["info"]["features"].clone());
        Self { reader, file, budget, columns, features }
    }

    /// Returns whether a column contains bytes that are not text.
    fn is_binary(&self, column: &str) -> bool {
        let schema = self.reader.metadata().file_metadata().schema_descr();
        self.position(column).map(|leaf| schema.column(leaf)).is_some_and(|leaf| {
            let text = matches!(leaf.logical_type_ref(), Some(LogicalType::String))
                || leaf.converted_type() == ConvertedType::UTF8;
            leaf.physical_type() == Physical::BYTE_ARRAY && !text
        })
    }

    /// Finds a column, in this order: the column `named`; the only column with the feature type `feature` in the
    /// metadata of the `datasets` library; for images, the only column of bytes; the first column with a usual name.
    fn column(&self, what: &str, named: Option<&str>, usual: &[&str], feature: &str) -> Parsed<String> {
        let all = || format!("its columns are {}", self.columns.join(", "));
        let has = |name: &str| self.columns.iter().any(|column| column == name);
        if let Some(name) = named {
            let missing = || format!("has no column `{name}` (`{what}_column`); {}", all());
            return has(name).then(|| name.into()).ok_or_else(missing);
        }
        let has_feature = |column: &str| self.features[column]["_type"] == feature;
        let looks_like_it = |column: &str| what == "image" && self.is_binary(column);
        for test in [&has_feature as &dyn Fn(&str) -> bool, &looks_like_it] {
            let found: Vec<&String> = self.columns.iter().filter(|column| test(column)).collect();
            if let [only] = found[..] {
                return Ok(only.clone());
            }
        }
        usual.iter().find(|usual| has(usual)).map(ToString::to_string).ok_or_else(|| {
            format!("does not state which column contains the {what}s; set `{what}_column`: {}", all())
        })
    }

    /// Returns the names of a column's classes, if the metadata contains them.
    fn names(&self, column: &str) -> Option<Vec<String>> {
        let names = self.features[column]["names"].as_array()?;
        names.iter().map(|name| name.as_str().map(String::from)).collect()
    }

    /// Returns the leaf of the schema that contains the values of a column: the column itself, or `bytes` of a struct.
    fn position(&self, column: &str) -> Option<usize> {
        let leaves = self.reader.metadata().file_metadata().schema_descr().columns();
        leaves.iter().position(|leaf| match leaf.path().parts() {
            [first] => first == column,
            [first, second] => first == column && second == "bytes",
            _ => false,
        })
    }

    /// Returns the leaf of a column and checks that its values can be read.
    fn leaf(&self, column: &str) -> Parsed<usize> {
        let schema = self.reader.metadata().file_metadata().schema_descr();
        let none = || format!("column `{column}` has neither plain values nor a field `bytes`");
        let leaf = self.position(column).ok_or_else(none)?;
        if schema.column(leaf).max_rep_level() > 0 {
            return Err(format!("column `{column}` contains lists; expected one value per row"));
        }
        for group in self.reader.metadata().row_groups() {
            codec(group, leaf, column)?;
        }
        Ok(leaf)
    }

    /// Reads all values of a column, row by row.
    fn values<T: DataType>(&self, column: &str) -> Parsed<Vec<T::T>> {
        const ROWS_PER_READ: usize = 1024;
        let text = |e: ParquetError| format!("is damaged: {e}");
        let (leaf, metadata) = (self.leaf(column)?, self.reader.metadata());
        let description = metadata.file_metadata().schema_descr().column(leaf);
        if description.physical_type() != T::get_physical_type() {
            return Err(format!(
                "column `{}` does not contain {}",
                description.path(),
                T::get_physical_type()
            ));
        }
        let full = description.max_def_level();
        let mut rows = Vec::new();
        for group in metadata.row_groups() {
            let wanted = rows.len() + usize::try_from(group.num_rows()).unwrap_or(0);
            let codec = codec(group, leaf, column)?;
            let pages =
                Pages::new(self.file.clone(), group, leaf, codec, self.budget.clone()).map_err(text)?;
            let mut values = ColumnReaderImpl::<T>::new(description.clone(), Box::new(pages));
            while rows.len() < wanted {
                let (first, mut levels) = (rows.len(), Vec::new());
                let count = ROWS_PER_READ.min(wanted - first);
                let levels_wanted = (full > 0).then_some(&mut levels);
                let (read, ..) = values.read_records(count, levels_wanted, None, &mut rows).map_err(text)?;
                if read == 0 {
                    return Err(format!("is damaged: column `{}` ends early", description.path()));
                }
                if let Some(row) = levels.iter().position(|&level| level < full) {
                    let none = format!("column `{column}` has no value in row {}", first + row);
                    return Err(format!("{none}; expected one in every row"));
                }
            }
        }
        Ok(rows)
    }
}

/// Returns the codec of a column's pages in a row group.
fn codec(group: &RowGroupMetaData, leaf: usize, column: &str) -> Parsed<Codec> {
    let compression = group.column(leaf).compression();
    let expected = || format!("column `{column}` is compressed as {compression}; expected {}", Codec::NAMES);
    Codec::of(compression).ok_or_else(expected)
}

/// Encoded images of several files with their labels.
pub(crate) struct EncodedImages {
    images: Vec<ByteArray>,
    exif: Exif,
    labels: Vec<usize>,
    /// Files in order, each with the number of images before it.
    files: Vec<(usize, DataFile)>,
}

impl EncodedImages {
    /// Joins the images of several files. `class` returns the class of a label, one of `classes`.
    pub(crate) fn new(
        tables: Vec<(DataFile, Table)>,
        class: impl Fn(&Label) -> Option<usize>,
        classes: usize,
        exif: Exif,
    ) -> Result<Self> {
        let mut all = Self { images: Vec::new(), exif, labels: Vec::new(), files: Vec::new() };
        for (file, table) in tables {
            for (row, label) in table.labels.iter().enumerate() {
                all.labels.push(class(label).ok_or_else(|| {
                    let none = format!("which is not one of the {classes} classes");
                    Error::data(&file.path, format!("row {row} has the label {label}, {none}"))
                })?);
            }
            all.files.push((all.images.len(), file));
            all.images.extend(table.images);
        }
        Ok(all)
    }

    /// Returns the file of an image and its row in that file.
    fn place(&self, index: usize) -> (&DataFile, usize) {
        let after = self.files.partition_point(|(start, _)| *start <= index);
        let (start, file) = &self.files[after - 1];
        (file, index - start)
    }
}

impl ImageSet for EncodedImages {
    fn len(&self) -> usize {
        self.images.len()
    }

    fn label(&self, index: usize) -> usize {
        self.labels[index]
    }

    fn image(&self, index: usize) -> Result<RgbImage> {
        decode(self.images[index].data(), self.exif).map_err(|reason| {
            let (file, row) = self.place(index);
            Error::data(&file.path, format!("row {row} is not a readable image: {reason}"))
        })
    }

    fn files(&self) -> Result<Vec<DataRecord>> {
        Ok(self.files.iter().map(|(_, file)| DataRecord::file(file.provenance.clone())).collect())
    }

    fn id(&self, index: usize) -> String {
        let (file, row) = self.place(index);
        format!("{}, row {row}", file.name)
    }
}
