//! The format of a segment file: how a table's columns are written to Parquet and what they are when read back.
//!
//! A segment is cut three times, and each cut is the unit of something:
//!
//! ```text
//! segment    ~1M rows       a file: written once, checksummed, visible or not as a whole
//! row group  131,072 rows   what one decoding task works on; has a bloom filter on the primary key
//! chunk      8,192 rows     a data page of every column, a decoded array in the cache, a batch of a scan
//! ```
//!
//! Since a page, a cached array and a batch are the same rows, page statistics select cached arrays, a skipped page is
//! never decompressed, and a batch of a scan is a handful of reference counts. Values too long for a page of 8,192 break
//! the first equality for that column only; readers then find no page statistics and still read the right rows.
//!
//! Here: schemas, writer properties, the chunk arithmetic, errors of Parquet. Not here: files and their life.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, FixedSizeBinaryBuilder, IntervalMonthDayNanoBuilder},
    datatypes::{DataType, Field, IntervalMonthDayNano, IntervalMonthDayNanoType, IntervalUnit, Schema, SchemaRef},
    record_batch::RecordBatch,
};
use drsdb_core::{Error, ErrorCode, Result, Table};
use parquet::{
    basic::Compression,
    errors::ParquetError,
    file::{
        metadata::SortingColumn,
        properties::{EnabledStatistics, WriterProperties, WriterVersion},
    },
    schema::types::ColumnPath,
};

/// Rows of a chunk: a page of each column, an array in the cache, a batch.
pub const CHUNK_ROWS: usize = 8192;

/// The most chunks a row group may have, so that a set of chunks fits a [`ChunkSet`].
pub const MAX_GROUP_CHUNKS: usize = 64;

/// A set of chunks of one row group, a bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkSet(pub u64);

impl ChunkSet {
    /// The first `count` chunks.
    pub fn first(count: usize) -> Self {
        debug_assert!(count <= MAX_GROUP_CHUNKS);
        ChunkSet(if count >= 64 { u64::MAX } else { (1 << count) - 1 })
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether `chunk` is one of them.
    pub fn contains(self, chunk: usize) -> bool {
        self.0 >> chunk & 1 == 1
    }

    /// Without `chunk`.
    pub fn without(self, chunk: usize) -> Self {
        ChunkSet(self.0 & !(1 << chunk))
    }

    /// With `chunk`.
    pub fn with(self, chunk: usize) -> Self {
        ChunkSet(self.0 | 1 << chunk)
    }

    /// Those of `self` that are not in `other`.
    pub fn minus(self, other: ChunkSet) -> Self {
        ChunkSet(self.0 & !other.0)
    }

    /// Their numbers, in order.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..MAX_GROUP_CHUNKS).filter(move |&chunk| self.contains(chunk))
    }
}

/// How many chunks `rows` rows of a row group make.
pub fn chunks_of(rows: usize) -> usize {
    rows.div_ceil(CHUNK_ROWS)
}

/// Rows of chunk `chunk` in a row group of `group_rows`.
pub fn chunk_rows(group_rows: usize, chunk: usize) -> usize {
    CHUNK_ROWS.min(group_rows - chunk * CHUNK_ROWS)
}

/// The type in the file for a stored type. Parquet's own INTERVAL counts milliseconds, so intervals are 16 bytes.
fn file_type(stored: &DataType) -> DataType {
    match stored {
        DataType::Interval(IntervalUnit::MonthDayNano) => DataType::FixedSizeBinary(16),
        other => other.clone(),
    }
}

/// A column's name in files and in predicates: that of a dropped one may be another's by now.
fn unique_name(table: &Table, position: usize) -> String {
    let column = &table.columns[position];
    if column.dropped { format!("{} (dropped, column {position})", column.name) } else { column.name.clone() }
}

/// The Arrow schema of the segment files that are written for a table: [`stored_schema`] in the types of [`file_type`].
pub fn file_schema(table: &Table) -> SchemaRef {
    let fields = table.columns.iter().enumerate().map(|(position, column)| {
        Field::new(unique_name(table, position), file_type(&column.sql_type.to_arrow()), !column.not_null)
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// [`Table::arrow_schema`], with names that are unique even if columns were dropped: statistics are asked by name.
pub fn stored_schema(table: &Table) -> SchemaRef {
    let schema = table.arrow_schema();
    if table.columns.iter().all(|column| !column.dropped) {
        return schema;
    }
    let fields = schema.fields().iter().enumerate();
    let fields = fields.map(|(position, field)| field.as_ref().clone().with_name(unique_name(table, position)));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// A stored batch as it goes into the file.
pub fn to_file(batch: &RecordBatch, file_schema: &SchemaRef) -> Result<RecordBatch> {
    let columns = batch.columns().iter().map(to_file_array).collect::<Result<Vec<_>>>()?;
    Ok(RecordBatch::try_new(Arc::clone(file_schema), columns)?)
}

fn to_file_array(array: &ArrayRef) -> Result<ArrayRef> {
    let DataType::Interval(IntervalUnit::MonthDayNano) = array.data_type() else {
        return Ok(Arc::clone(array));
    };
    let mut bytes = FixedSizeBinaryBuilder::with_capacity(array.len(), 16);
    for value in array.as_primitive::<IntervalMonthDayNanoType>() {
        match value {
            Some(interval) => bytes.append_value(interval_bytes(interval))?,
            None => bytes.append_null(),
        }
    }
    Ok(Arc::new(bytes.finish()))
}

fn interval_bytes(interval: IntervalMonthDayNano) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&interval.months.to_le_bytes());
    bytes[4..8].copy_from_slice(&interval.days.to_le_bytes());
    bytes[8..].copy_from_slice(&interval.nanoseconds.to_le_bytes());
    bytes
}

/// An array of the file as the stored type `stored`.
pub fn from_file(array: ArrayRef, stored: &DataType) -> Result<ArrayRef> {
    if array.data_type() == stored {
        return Ok(array);
    }
    let (DataType::Interval(IntervalUnit::MonthDayNano), DataType::FixedSizeBinary(16)) = (stored, array.data_type())
    else {
        let found = array.data_type();
        return Err(corrupt(format!("a segment holds {found} where the table says {stored}")));
    };
    let mut intervals = IntervalMonthDayNanoBuilder::with_capacity(array.len());
    for bytes in array.as_fixed_size_binary() {
        intervals.append_option(bytes.map(|bytes| {
            let (months, rest) = bytes.split_first_chunk().expect("the type says 16 bytes");
            let (days, rest) = rest.split_first_chunk().expect("the type says 16 bytes");
            let (nanoseconds, _) = rest.split_first_chunk().expect("the type says 16 bytes");
            IntervalMonthDayNano {
                months: i32::from_le_bytes(*months),
                days: i32::from_le_bytes(*days),
                nanoseconds: i64::from_le_bytes(*nanoseconds),
            }
        }));
    }
    Ok(Arc::new(intervals.finish()))
}

/// How a segment is laid out.
#[derive(Debug)]
pub struct Layout {
    /// Rows of a row group.
    pub row_group_rows: usize,
    /// How many values of a key column a row group has, at most: bloom filters are made for as many.
    pub distinct_keys: usize,
    /// Whether a column repeats values enough for a dictionary to pay; where it says nothing, it does not.
    pub dictionary: Vec<bool>,
    /// Whether pages are compressed.
    pub compressed: bool,
}

/// How a segment is written.
pub fn writer_properties(table: &Table, layout: &Layout) -> WriterProperties {
    // Pages end at the row limit alone, or chunks and pages fall apart: the byte limit is only a bound on memory.
    const PAGE_BYTES: usize = 16 << 20;
    const BLOOM_FALSE_POSITIVES: f64 = 0.01;
    let mut properties = WriterProperties::builder()
        .set_writer_version(WriterVersion::PARQUET_1_0)
        .set_compression(if layout.compressed { Compression::LZ4_RAW } else { Compression::UNCOMPRESSED })
        .set_created_by("drsdb".to_owned())
        .set_max_row_group_row_count(Some(layout.row_group_rows))
        .set_data_page_row_count_limit(CHUNK_ROWS)
        .set_data_page_size_limit(PAGE_BYTES)
        .set_write_batch_size(1024)
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_dictionary_enabled(false);
    for (position, _) in layout.dictionary.iter().enumerate().filter(|(_, dictionary)| **dictionary) {
        properties = properties.set_column_dictionary_enabled(column_path(table, position), true);
    }
    for &position in &table.primary_key {
        let path = column_path(table, position);
        properties = properties
            .set_column_bloom_filter_enabled(path.clone(), true)
            .set_column_bloom_filter_fpp(path.clone(), BLOOM_FALSE_POSITIVES)
            .set_column_bloom_filter_max_ndv(path, layout.distinct_keys as u64);
    }
    if !table.cluster_key.is_empty() {
        let columns = table.cluster_key.iter().map(|&position| SortingColumn {
            column_idx: position as i32,
            descending: false,
            nulls_first: true,
        });
        properties = properties.set_sorting_columns(Some(columns.collect()));
    }
    properties.build()
}

/// A column's path: one part, whatever characters its name has.
fn column_path(table: &Table, position: usize) -> ColumnPath {
    ColumnPath::new(vec![unique_name(table, position)])
}

/// An error of code `corrupt`.
pub fn corrupt(message: impl Into<String>) -> Error {
    Error::Wire(
        drsdb_core::WireError::new(ErrorCode::Corrupt, message)
            .with_hint("restore the shard from another replica or from a backup; nothing of the segment was served"),
    )
}

/// An error of the Parquet writer: of the disk below it, when that is the cause.
pub fn write_error(context: &str, error: ParquetError) -> Error {
    match error {
        ParquetError::External(source) => match source.downcast::<std::io::Error>() {
            Ok(io) => Error::io(context, *io),
            Err(source) => Error::internal(format!("{context}: {source}")),
        },
        other => Error::internal(format!("{context}: {other}")),
    }
}

/// An error of the Parquet reader: what a file that passed its checksum cannot say means a damaged file.
pub fn read_error(context: &str, error: ParquetError) -> Error {
    match error {
        ParquetError::External(source) => match source.downcast::<std::io::Error>() {
            Ok(io) => Error::io(context, *io),
            Err(source) => match source.downcast::<Error>() {
                Ok(error) => *error,
                Err(source) => corrupt(format!("{context}: {source}")),
            },
        },
        other => corrupt(format!("{context}: {other}")),
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{FixedSizeBinaryArray, IntervalMonthDayNanoArray};

    use super::*;

    #[test]
    fn intervals_keep_every_bit() {
        let extremes = vec![
            Some(IntervalMonthDayNano::new(i32::MIN, i32::MAX, i64::MIN)),
            None,
            Some(IntervalMonthDayNano::new(-1, 0, i64::MAX)),
        ];
        let array: ArrayRef = Arc::new(IntervalMonthDayNanoArray::from(extremes));
        let file = to_file_array(&array).unwrap();
        assert_eq!(file.data_type(), &DataType::FixedSizeBinary(16));
        assert_eq!(&from_file(file, array.data_type()).unwrap(), &array);
    }

    #[test]
    fn a_file_of_other_types_is_corrupt() {
        let array = FixedSizeBinaryArray::try_from_iter([[0u8; 4]].into_iter()).unwrap();
        let array: ArrayRef = Arc::new(array);
        assert_eq!(from_file(array, &DataType::Int64).unwrap_err().code(), ErrorCode::Corrupt);
    }

    #[test]
    fn chunk_sets_are_sets() {
        let set = ChunkSet::first(3).without(1);
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 2]);
        assert_eq!(ChunkSet::first(64).iter().count(), 64);
        assert_eq!(ChunkSet::first(3).minus(set), ChunkSet(2));
        assert_eq!(ChunkSet(0).with(63).iter().collect::<Vec<_>>(), [63]);
        assert_eq!((chunks_of(8193), chunk_rows(8193, 1)), (2, 1));
    }
}
