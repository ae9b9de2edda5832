//! What is known of the values of a set of rows, a column at a time: NULLs, smallest and largest value, and about how
//! many different ones. Gathered while a segment is written, kept in the manifest, and sent to the catalog.
//!
//! Order is DataFusion's own (floating-point numbers in their total order, NaN the largest), so that a bound that
//! excludes a predicate here excludes it in a filter too. Not here: statistics of parts of a segment, which are in its
//! file (`prune`).

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, GenericByteViewArray, new_null_array},
    compute::concat,
    datatypes::{ByteViewType, DataType, Field, Float32Type, Float64Type, Schema, SchemaRef},
    ipc::{reader::StreamReader, writer::StreamWriter},
    record_batch::RecordBatch,
};
use datafusion::{
    common::hash_utils::{HLL_RANDOM_STATE, create_hashes},
    functions_aggregate::min_max::{MaxAccumulator, MinAccumulator},
    logical_expr::Accumulator,
    scalar::ScalarValue,
};
use drsdb_core::{Result, Table};

use super::{distinct::DistinctCounter, format::corrupt};
use crate::engine::ColumnStatistics;

/// Longer values are not kept as bounds: statistics must stay small beside what they describe.
const MAX_BOUND_BYTES: usize = 1024;

/// Gathers the statistics of one column.
#[derive(Debug, Clone)]
struct ColumnGatherer {
    data_type: DataType,
    null_count: u64,
    /// `None` for a type without an order.
    bounds: Option<(MinAccumulator, MaxAccumulator)>,
    distinct: DistinctCounter,
}

impl ColumnGatherer {
    fn new(data_type: DataType) -> Self {
        let bounds = match &data_type {
            DataType::Interval(_) => None,
            data_type => MinAccumulator::try_new(data_type).ok().zip(MaxAccumulator::try_new(data_type).ok()),
        };
        Self { data_type, null_count: 0, bounds, distinct: DistinctCounter::default() }
    }

    fn add(&mut self, array: &ArrayRef, hashes: &[u64]) -> Result<()> {
        self.null_count += array.null_count() as u64;
        match array.nulls().filter(|nulls| nulls.null_count() > 0) {
            None => hashes.iter().for_each(|&hash| self.distinct.add_hash(hash)),
            Some(nulls) => nulls.valid_indices().for_each(|row| self.distinct.add_hash(hashes[row])),
        }
        if let Some((min, max)) = &mut self.bounds {
            let ends = match array.data_type() {
                DataType::Utf8View => ends_of_views(array.as_string_view()),
                DataType::BinaryView => ends_of_views(array.as_binary_view()),
                _ => None,
            };
            let (least, most) = match ends {
                Some((least, most)) => (array.slice(least, 1), array.slice(most, 1)),
                None => (Arc::clone(array), Arc::clone(array)),
            };
            min.update_batch(&[least])?;
            max.update_batch(&[most])?;
        }
        Ok(())
    }

    fn merge(&mut self, other: &ColumnGatherer) -> Result<()> {
        self.null_count += other.null_count;
        self.distinct.merge(&other.distinct);
        if let (Some((min, max)), Some((other_min, other_max))) = (&mut self.bounds, other.bounds.clone().as_mut()) {
            min.update_batch(&[other_min.evaluate()?.to_array()?])?;
            max.update_batch(&[other_max.evaluate()?.to_array()?])?;
        }
        Ok(())
    }

    /// The bounds as an array of two values, NULL where there is none.
    fn bounds(&mut self) -> Result<ArrayRef> {
        let bound = |value: ScalarValue| match bytes_of(&value) <= MAX_BOUND_BYTES {
            true => value.to_array(),
            false => Ok(new_null_array(&self.data_type, 1)),
        };
        let Some((min, max)) = &mut self.bounds else { return Ok(new_null_array(&self.data_type, 2)) };
        Ok(concat(&[&bound(min.evaluate()?)?, &bound(max.evaluate()?)?])?)
    }
}

/// Where the smallest and the largest value are, unless one is NULL. Most are told apart by their first four bytes, which are in
/// the view: Arrow's own kernels compare whole values, twice.
fn ends_of_views<T: ByteViewType>(array: &GenericByteViewArray<T>) -> Option<(usize, usize)> {
    if array.null_count() > 0 || array.is_empty() {
        return None;
    }
    let prefix = |view: u128| ((view >> 32) as u32).swap_bytes();
    let value = |row: usize| -> &[u8] { array.value(row).as_ref() };
    let first = prefix(array.views()[0]);
    let (mut least, mut least_prefix, mut most, mut most_prefix) = (0, first, 0, first);
    for (row, &view) in array.views().iter().enumerate().skip(1) {
        let prefix = prefix(view);
        if prefix < least_prefix || prefix == least_prefix && view != array.views()[least] && value(row) < value(least)
        {
            (least, least_prefix) = (row, prefix);
        }
        if prefix > most_prefix || prefix == most_prefix && view != array.views()[most] && value(row) > value(most) {
            (most, most_prefix) = (row, prefix);
        }
    }
    Some((least, most))
}

fn bytes_of(value: &ScalarValue) -> usize {
    match value {
        ScalarValue::Utf8View(Some(text)) => text.len(),
        ScalarValue::BinaryView(Some(bytes)) => bytes.len(),
        _ => 16,
    }
}

/// Gathers the statistics of a table's columns.
#[derive(Debug, Clone)]
pub struct Gatherer {
    columns: Vec<ColumnGatherer>,
    hashes: Vec<u64>,
}

impl Gatherer {
    /// Nothing gathered yet.
    pub fn new(table: &Table) -> Self {
        let columns = table.columns.iter().map(|column| ColumnGatherer::new(column.sql_type.to_arrow()));
        Self { columns: columns.collect(), hashes: Vec::new() }
    }

    /// Takes rows of [`Table::arrow_schema`].
    pub fn add(&mut self, batch: &RecordBatch) -> Result<()> {
        for (column, array) in self.columns.iter_mut().zip(batch.columns()) {
            self.hashes.clear();
            self.hashes.resize(batch.num_rows(), 0);
            create_hashes([array], &HLL_RANDOM_STATE, &mut self.hashes)?;
            column.add(array, &self.hashes)?;
        }
        Ok(())
    }

    /// Takes what `other` has gathered.
    pub fn merge(&mut self, other: &Gatherer) -> Result<()> {
        self.columns.iter_mut().zip(&other.columns).try_for_each(|(column, other)| column.merge(other))
    }

    /// About how many different values column `position` has so far.
    pub fn distinct_estimate(&self, position: usize) -> u64 {
        self.columns[position].distinct.estimate()
    }

    /// What was gathered.
    pub fn finish(mut self) -> Result<SegmentStatistics> {
        let bounds = self.columns.iter_mut().map(ColumnGatherer::bounds).collect::<Result<Vec<_>>>()?;
        Ok(SegmentStatistics {
            bounds: RecordBatch::try_new(bounds_schema(bounds.iter().map(|array| array.data_type().clone())), bounds)?,
            null_counts: self.columns.iter().map(|column| column.null_count).collect(),
            distinct_estimates: self.columns.iter().map(|column| column.distinct.estimate()).collect(),
        })
    }
}

/// Statistics of a segment, or of several together.
#[derive(Debug, Clone, PartialEq)]
pub struct SegmentStatistics {
    /// Two rows, the smallest values and the largest ones; NULL where unknown.
    bounds: RecordBatch,
    /// NULLs in each column.
    pub null_counts: Vec<u64>,
    /// About how many different values each column has.
    pub distinct_estimates: Vec<u64>,
}

fn bounds_schema(types: impl Iterator<Item = DataType>) -> SchemaRef {
    let fields = types.enumerate().map(|(position, data_type)| Field::new(position.to_string(), data_type, true));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

impl SegmentStatistics {
    /// The smallest and the largest value of column `position`, as an array of two; a NULL is unknown.
    pub fn bounds(&self, position: usize) -> &ArrayRef {
        self.bounds.column(position)
    }

    /// Whether column `position` may hold a NaN: statistics in Parquet files pass over them.
    pub fn may_have_nan(&self, position: usize) -> bool {
        let bounds = self.bounds(position);
        match bounds.data_type() {
            DataType::Float32 => bounds.as_primitive::<Float32Type>().iter().flatten().any(f32::is_nan),
            DataType::Float64 => bounds.as_primitive::<Float64Type>().iter().flatten().any(f64::is_nan),
            _ => false,
        }
    }

    /// In the form of the storage trait.
    pub fn columns(&self) -> Vec<ColumnStatistics> {
        let known = |array: &ArrayRef, row: usize| array.is_valid(row).then(|| array.slice(row, 1));
        (0..self.bounds.num_columns())
            .map(|position| ColumnStatistics {
                null_count: self.null_counts[position],
                min: known(self.bounds(position), 0),
                max: known(self.bounds(position), 1),
                distinct_estimate: self.distinct_estimates[position],
            })
            .collect()
    }

    /// For the manifest: an Arrow IPC stream with the bounds, then the counts.
    pub fn encode(&self) -> Result<(Vec<u8>, Vec<u8>)> {
        let mut bounds = StreamWriter::try_new(Vec::new(), &self.bounds.schema())?;
        bounds.write(&self.bounds)?;
        let counts = self.null_counts.iter().chain(&self.distinct_estimates).flat_map(|count| count.to_le_bytes());
        Ok((bounds.into_inner()?, counts.collect()))
    }

    /// Back from the manifest.
    pub fn decode(bounds: &[u8], counts: &[u8]) -> Result<Self> {
        let broken = || corrupt("the manifest's statistics of a segment cannot be read");
        let bounds = StreamReader::try_new(bounds, None)?.next().ok_or_else(broken)??;
        let (counts, rest) = counts.as_chunks::<8>();
        let mut counts: Vec<u64> = counts.iter().map(|count| u64::from_le_bytes(*count)).collect();
        if !rest.is_empty() || counts.len() != 2 * bounds.num_columns() || bounds.num_rows() != 2 {
            return Err(broken());
        }
        let distinct_estimates = counts.split_off(bounds.num_columns());
        Ok(Self { bounds, null_counts: counts, distinct_estimates })
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Float64Array, StringViewArray};
    use drsdb_core::{Column, Engine, SqlType, TableName, ids};
    use proptest::prelude::*;

    use super::*;

    fn gather(sql_type: SqlType, arrays: &[ArrayRef]) -> SegmentStatistics {
        let table = Table {
            id: ids::new_ulid(),
            name: TableName::new("public", "t"),
            columns: vec![Column::new("a".to_owned(), sql_type, false)],
            primary_key: vec![],
            foreign_keys: vec![],
            engine: Engine::Column,
            shards: 1,
            shard_key: vec![],
            shard_function: 1,
            cluster_key: vec![],
            ..Table::default()
        };
        let mut gatherer = Gatherer::new(&table);
        for array in arrays {
            gatherer.add(&RecordBatch::try_new(table.arrow_schema(), vec![Arc::clone(array)]).unwrap()).unwrap();
        }
        gatherer.finish().unwrap()
    }

    #[test]
    fn nan_is_the_largest_and_is_noticed() {
        let statistics = gather(
            SqlType::Double,
            &[Arc::new(Float64Array::from(vec![Some(1.0), None])), Arc::new(Float64Array::from(vec![f64::NAN, -7.0]))],
        );
        assert!(statistics.may_have_nan(0));
        assert_eq!(statistics.bounds(0).as_primitive::<Float64Type>().value(0), -7.0);
        assert_eq!(statistics.null_counts, [1]);
        assert_eq!(statistics.distinct_estimates, [3]);
    }

    #[test]
    fn many_batches_fold_and_survive_the_manifest() {
        let arrays: Vec<ArrayRef> =
            (0..200).map(|i| Arc::new(StringViewArray::from(vec![format!("{i:03}")])) as ArrayRef).collect();
        let statistics = gather(SqlType::Text, &arrays);
        let expected: ArrayRef = Arc::new(StringViewArray::from(vec!["000", "199"]));
        assert_eq!(statistics.bounds(0), &expected);
        let (bounds, counts) = statistics.encode().unwrap();
        assert_eq!(SegmentStatistics::decode(&bounds, &counts).unwrap(), statistics);
        assert!(SegmentStatistics::decode(&bounds, &counts[1..]).is_err());
    }

    proptest! {
        #[test]
        fn the_ends_of_views_are_those_of_their_values(
            values in proptest::collection::vec("[a-c\\x00]{0,4}(|same and long enough)[ab]?", 1..40),
        ) {
            let array = StringViewArray::from_iter_values(&values);
            let (least, most) = ends_of_views(&array).unwrap();
            prop_assert_eq!(Some(&values[least]), values.iter().min());
            prop_assert_eq!(Some(&values[most]), values.iter().max());
        }
    }

    #[test]
    fn a_bound_too_long_to_keep_is_unknown() {
        let statistics =
            gather(SqlType::Text, &[Arc::new(StringViewArray::from(vec!["a".to_owned(), "z".repeat(2000)]))]);
        assert!(statistics.bounds(0).is_valid(0) && statistics.bounds(0).is_null(1));
        assert!(statistics.columns()[0].max.is_none());
    }
}
