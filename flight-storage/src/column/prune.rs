//! Which segments, and which chunks of them, can hold rows that a scan's filters accept.
//!
//! 1. [`prune_segments`]: by the bounds of each column in the manifest; no file is touched.
//! 2. [`prune_chunks`]: by the page index, a chunk at a time; a column without usable pages counts with the bounds of its
//!    row group. What is derived from the page index is kept with the footer, as [`Zones`].
//! 3. [`prune_by_bloom_filters`]: for equality with the primary key; reads the filters of the row groups that are left.
//!
//! All three ask DataFusion's [`PruningPredicate`], each with its own statistics. Whatever is unknown is kept.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    sync::Arc,
};

use arrow::{
    array::{Array, ArrayRef, BooleanArray, UInt32Array, UInt64Array, new_null_array},
    compute::{interleave, take},
    datatypes::{DataType, SchemaRef},
};
use datafusion::{
    common::{Column, pruning::PruningStatistics},
    physical_optimizer::pruning::PruningPredicate,
    scalar::ScalarValue,
};
use drsdb_core::Table;
use parquet::{
    arrow::arrow_reader::statistics::StatisticsConverter,
    basic::Type as PhysicalType,
    bloom_filter::Sbbf,
    errors::ParquetError,
    file::{
        metadata::{ColumnChunkMetaData, ParquetMetaData},
        page_index::column_index::ColumnIndexMetaData,
    },
};

use super::{
    format::{CHUNK_ROWS, ChunkSet, chunk_rows, chunks_of},
    segment::{Footer, Segment},
};

/// Bounds of one column, a value for each chunk of a segment, in order.
#[derive(Debug)]
pub struct Zones {
    mins: ArrayRef,
    maxes: ArrayRef,
    null_counts: ArrayRef,
}

impl Zones {
    /// The smallest value of each chunk; NULL where unknown.
    pub fn mins(&self) -> ArrayRef {
        Arc::clone(&self.mins)
    }

    /// The largest value of each chunk; NULL where unknown.
    pub fn maxes(&self) -> ArrayRef {
        Arc::clone(&self.maxes)
    }
}

/// Bounds of the column at `position` for each chunk, unless nothing is known.
pub fn zones(schema: &SchemaRef, segment: &Segment, footer: &Footer, position: usize) -> Option<Arc<Zones>> {
    ChunkBounds::new(schema, segment, footer).zones_at(position)
}

/// Of `segments`, those that can hold rows that `predicate` accepts, each with what belongs to it.
pub fn prune_segments<T>(
    predicate: &PruningPredicate,
    schema: &SchemaRef,
    segments: Vec<(Arc<Segment>, T)>,
) -> Vec<(Arc<Segment>, T)> {
    let bounds: Vec<Arc<Segment>> = segments.iter().map(|(segment, _)| Arc::clone(segment)).collect();
    let kept = ask(predicate, &SegmentBounds { schema, segments: &bounds });
    segments.into_iter().zip(kept).filter_map(|(segment, kept)| kept.then_some(segment)).collect()
}

/// Which containers are kept. A predicate that cannot be evaluated over statistics says nothing: where it fails over rows,
/// the caller's filter fails as well.
fn ask(predicate: &PruningPredicate, statistics: &dyn PruningStatistics) -> Vec<bool> {
    predicate.prune(statistics).unwrap_or_else(|error| {
        tracing::debug!(%error, "statistics could not be asked");
        vec![true; statistics.num_containers()]
    })
}

/// The chunks of each row group that can hold rows that `predicate` accepts.
pub fn prune_chunks(
    predicate: &PruningPredicate,
    schema: &SchemaRef,
    segment: &Segment,
    footer: &Footer,
) -> Vec<ChunkSet> {
    let kept = ask(predicate, &ChunkBounds::new(schema, segment, footer));
    let mut kept = kept.into_iter();
    let groups = 0..footer.parquet().num_row_groups();
    groups
        .map(|row_group| {
            let count = chunks_of(footer.group_rows(row_group));
            let none = ChunkSet(0);
            kept.by_ref()
                .take(count)
                .enumerate()
                .fold(none, |set, (chunk, kept)| if kept { set.with(chunk) } else { set })
        })
        .collect()
}

/// Every chunk of each row group.
pub fn all_chunks(footer: &Footer) -> Vec<ChunkSet> {
    let groups = 0..footer.parquet().num_row_groups();
    groups.map(|row_group| ChunkSet::first(chunks_of(footer.group_rows(row_group)))).collect()
}

/// Whether bloom filters of `table` can say anything about `predicate`.
pub fn wants_bloom_filters(predicate: &PruningPredicate, table: &Table) -> bool {
    let columns = predicate.literal_columns();
    table.primary_key.iter().any(|&position| columns.contains(&table.columns[position].name))
}

/// Empties the sets of the row groups whose bloom filters say that `predicate` accepts none of their rows. Returns the
/// bytes read.
pub fn prune_by_bloom_filters(
    predicate: &PruningPredicate,
    table: &Table,
    footer: &Footer,
    file: &File,
    kept: &mut [ChunkSet],
) -> Result<u64, ParquetError> {
    let columns = predicate.literal_columns();
    let positions = table.primary_key.iter().copied().filter(|&at| columns.contains(&table.columns[at].name));
    let mut filters = HashMap::new();
    let mut bytes = 0;
    for position in positions {
        for (row_group, _) in kept.iter().enumerate().filter(|(_, chunks)| !chunks.is_empty()) {
            let chunk = footer.parquet().row_group(row_group).column(position);
            if let Some(filter) = Sbbf::read_from_column_chunk(chunk, file)? {
                bytes += chunk.bloom_filter_length().unwrap_or(0).max(0) as u64;
                filters.insert((row_group, table.columns[position].name.as_str()), (filter, chunk));
            }
        }
    }
    let statistics = BloomFilters { filters, row_groups: kept.len() };
    let answers = ask(predicate, &statistics);
    for (chunks, _) in kept.iter_mut().zip(answers).filter(|(_, answer)| !answer) {
        *chunks = ChunkSet(0);
    }
    Ok(bytes)
}

/// Whether a bloom filter leaves it open that the column has `value`.
pub fn may_contain(filter: &Sbbf, chunk: &ColumnChunkMetaData, value: &ScalarValue) -> bool {
    use ScalarValue as V;
    match (value, chunk.column_type()) {
        (V::Int16(Some(value)), PhysicalType::INT32) => filter.check(&i32::from(*value)),
        (V::Int32(Some(value)) | V::Date32(Some(value)), PhysicalType::INT32) => filter.check(value),
        (
            V::Int64(Some(value)) | V::Time64Microsecond(Some(value)) | V::TimestampMicrosecond(Some(value), _),
            PhysicalType::INT64,
        ) => filter.check(value),
        (V::Decimal128(Some(value), ..), PhysicalType::INT32) => filter.check(&(*value as i32)),
        (V::Decimal128(Some(value), ..), PhysicalType::INT64) => filter.check(&(*value as i64)),
        (V::Decimal128(Some(value), ..), PhysicalType::FIXED_LEN_BYTE_ARRAY) => {
            let length = chunk.column_descr().type_length() as usize;
            filter.check(&value.to_be_bytes()[16 - length..])
        }
        (V::Utf8View(Some(text)) | V::Utf8(Some(text)), PhysicalType::BYTE_ARRAY) => filter.check(text.as_str()),
        (V::BinaryView(Some(bytes)) | V::Binary(Some(bytes)), PhysicalType::BYTE_ARRAY) => filter.check(&bytes[..]),
        (V::FixedSizeBinary(_, Some(bytes)), PhysicalType::FIXED_LEN_BYTE_ARRAY) => filter.check(&bytes[..]),
        _ => true,
    }
}

/// A container is a segment.
struct SegmentBounds<'a> {
    schema: &'a SchemaRef,
    segments: &'a [Arc<Segment>],
}

impl SegmentBounds<'_> {
    /// Row `row` of each segment's bounds of `column`.
    fn bounds(&self, column: &Column, row: usize) -> Option<ArrayRef> {
        let position = self.schema.index_of(column.name()).ok()?;
        // Of a column that was added later nothing is known.
        let unknown = new_null_array(self.schema.field(position).data_type(), 2);
        let bounds: Vec<_> = self
            .segments
            .iter()
            .map(|segment| match position < segment.record().columns() {
                true => segment.record().statistics.bounds(position).as_ref(),
                false => unknown.as_ref(),
            })
            .collect();
        interleave(&bounds, &(0..bounds.len()).map(|segment| (segment, row)).collect::<Vec<_>>()).ok()
    }
}

impl PruningStatistics for SegmentBounds<'_> {
    fn min_values(&self, column: &Column) -> Option<ArrayRef> {
        self.bounds(column, 0)
    }

    fn max_values(&self, column: &Column) -> Option<ArrayRef> {
        self.bounds(column, 1)
    }

    fn num_containers(&self) -> usize {
        self.segments.len()
    }

    fn null_counts(&self, column: &Column) -> Option<ArrayRef> {
        let position = self.schema.index_of(column.name()).ok()?;
        let counts = self.segments.iter().map(|segment| segment.record().statistics.null_counts.get(position).copied());
        Some(Arc::new(counts.collect::<UInt64Array>()))
    }

    fn row_counts(&self) -> Option<ArrayRef> {
        Some(Arc::new(UInt64Array::from_iter_values(self.segments.iter().map(|segment| segment.record().rows))))
    }

    fn contained(&self, _: &Column, _: &HashSet<ScalarValue>) -> Option<BooleanArray> {
        None
    }
}

/// A container is a chunk; the row groups of a segment follow each other.
struct ChunkBounds<'a> {
    schema: &'a SchemaRef,
    segment: &'a Segment,
    footer: &'a Footer,
    row_counts: UInt64Array,
}

impl<'a> ChunkBounds<'a> {
    fn new(schema: &'a SchemaRef, segment: &'a Segment, footer: &'a Footer) -> Self {
        let row_counts = (0..footer.parquet().num_row_groups()).flat_map(|row_group| {
            let rows = footer.group_rows(row_group);
            (0..chunks_of(rows)).map(move |chunk| chunk_rows(rows, chunk) as u64)
        });
        Self { schema, segment, footer, row_counts: UInt64Array::from_iter_values(row_counts) }
    }

    fn zones(&self, column: &Column) -> Option<Arc<Zones>> {
        self.zones_at(self.schema.index_of(column.name()).ok()?)
    }

    fn zones_at(&self, position: usize) -> Option<Arc<Zones>> {
        let mut zones = self.footer.zones.lock();
        zones.entry(position).or_insert_with(|| self.derive(position).map(Arc::new)).clone()
    }

    fn derive(&self, position: usize) -> Option<Zones> {
        let field = self.schema.field(position);
        if position >= self.segment.record().columns() {
            return None;
        }
        if matches!(field.data_type(), DataType::Interval(_)) || self.segment.record().statistics.may_have_nan(position)
        {
            return None;
        }
        let file: &ParquetMetaData = self.footer.parquet();
        let schema = file.file_metadata().schema_descr();
        let converter = StatisticsConverter::from_column_index(position, field, schema).ok()?;
        let zones = match page_per_chunk(self.footer, position) {
            true => {
                let (columns, offsets) = (file.column_index()?, file.offset_index()?);
                let groups: Vec<usize> = (0..file.num_row_groups()).collect();
                Zones {
                    mins: converter.data_page_mins(columns, offsets, &groups).ok()?,
                    maxes: converter.data_page_maxes(columns, offsets, &groups).ok()?,
                    null_counts: Arc::new(converter.data_page_null_counts(columns, offsets, &groups).ok()?),
                }
            }
            false => {
                let groups = file.row_groups();
                let chunks = groups
                    .iter()
                    .zip(0u32..)
                    .flat_map(|(group, number)| std::iter::repeat_n(number, chunks_of(group.num_rows() as usize)));
                let chunks = UInt32Array::from_iter_values(chunks);
                let null_counts = converter.row_group_null_counts(groups).ok()?;
                Zones {
                    mins: take(&converter.row_group_mins(groups).ok()?, &chunks, None).ok()?,
                    maxes: take(&converter.row_group_maxes(groups).ok()?, &chunks, None).ok()?,
                    // The NULLs of a row group are no NULLs of a chunk, unless there are none.
                    null_counts: Arc::new(
                        take(&null_counts, &chunks, None)
                            .ok()?
                            .as_any()
                            .downcast_ref::<UInt64Array>()?
                            .iter()
                            .map(|count| count.filter(|count| *count == 0))
                            .collect::<UInt64Array>(),
                    ),
                }
            }
        };
        let known = [&zones.mins, &zones.maxes, &zones.null_counts];
        known.iter().all(|values| values.len() == self.row_counts.len()).then_some(zones)
    }
}

/// Whether page `i` of column `position` is chunk `i`, in every row group.
fn page_per_chunk(footer: &Footer, position: usize) -> bool {
    let file = footer.parquet();
    let (Some(columns), Some(offsets)) = (file.column_index(), file.offset_index()) else {
        return false;
    };
    (0..file.num_row_groups()).all(|row_group| {
        let pages = offsets[row_group][position].page_locations();
        let starts = pages.iter().enumerate().all(|(page, location)| {
            usize::try_from(location.first_row_index).is_ok_and(|row| row == page * CHUNK_ROWS)
        });
        let indexed = !matches!(columns[row_group][position], ColumnIndexMetaData::NONE);
        indexed && starts && pages.len() == chunks_of(footer.group_rows(row_group))
    })
}

impl PruningStatistics for ChunkBounds<'_> {
    fn min_values(&self, column: &Column) -> Option<ArrayRef> {
        Some(Arc::clone(&self.zones(column)?.mins))
    }

    fn max_values(&self, column: &Column) -> Option<ArrayRef> {
        Some(Arc::clone(&self.zones(column)?.maxes))
    }

    fn num_containers(&self) -> usize {
        self.row_counts.len()
    }

    fn null_counts(&self, column: &Column) -> Option<ArrayRef> {
        Some(Arc::clone(&self.zones(column)?.null_counts))
    }

    fn row_counts(&self) -> Option<ArrayRef> {
        Some(Arc::new(self.row_counts.clone()))
    }

    fn contained(&self, _: &Column, _: &HashSet<ScalarValue>) -> Option<BooleanArray> {
        None
    }
}

/// A container is a row group, and only membership is known.
struct BloomFilters<'a> {
    filters: HashMap<(usize, &'a str), (Sbbf, &'a ColumnChunkMetaData)>,
    row_groups: usize,
}

impl PruningStatistics for BloomFilters<'_> {
    fn min_values(&self, _: &Column) -> Option<ArrayRef> {
        None
    }

    fn max_values(&self, _: &Column) -> Option<ArrayRef> {
        None
    }

    fn num_containers(&self) -> usize {
        self.row_groups
    }

    fn null_counts(&self, _: &Column) -> Option<ArrayRef> {
        None
    }

    fn row_counts(&self) -> Option<ArrayRef> {
        None
    }

    fn contained(&self, column: &Column, values: &HashSet<ScalarValue>) -> Option<BooleanArray> {
        let answers = (0..self.row_groups).map(|row_group| {
            let (filter, chunk) = self.filters.get(&(row_group, column.name()))?;
            // A filter can deny that a value is there, and never say that nothing else is.
            (!values.iter().any(|value| may_contain(filter, chunk, value))).then_some(false)
        });
        Some(answers.collect())
    }
}
