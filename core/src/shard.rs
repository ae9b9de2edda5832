//! Row -> shard, as a pure function.
//!
//! A row's shard is DataFusion's repartition hash of the shard key's columns, modulo the shard count. It is that hash and
//! no other, because DataFusion takes two hash partitionings as equal when their expressions and counts are: only data
//! that lies where its own repartition would put it may ever be declared as hash partitioned. The function's version is
//! stored with each table; the golden test below pins version 1.

use arrow::array::{Array, ArrayRef};
use datafusion::{common::hash_utils::create_hashes, physical_plan::repartition::REPARTITION_RANDOM_STATE};

use crate::Result;

/// The version of the function that [`shards_of`] computes.
pub const SHARD_FUNCTION: u32 = 1;

/// The largest number of shards of a table.
pub const MAX_SHARDS: u32 = 4096;

/// The shard of each row, given the shard key's columns in their stored types (see [`crate::SqlType`]).
///
/// All columns have the same length, and there is at least one.
pub fn shards_of(key: &[ArrayRef], shards: u32) -> Result<Vec<u32>> {
    let rows = key[0].len();
    let mut hashes = vec![0u64; rows];
    create_hashes(key, REPARTITION_RANDOM_STATE.random_state(), &mut hashes)?;
    Ok(hashes.into_iter().map(|hash| (hash % u64::from(shards)) as u32).collect())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::{
        array::{Decimal128Array, FixedSizeBinaryArray, Int32Array, Int64Array, RecordBatch, StringViewArray},
        datatypes::{DataType, Field, Schema},
    };
    use datafusion::{
        physical_expr::expressions::col,
        physical_plan::{Partitioning, metrics::Time, repartition::BatchPartitioner},
    };

    use super::*;

    fn columns() -> Vec<ArrayRef> {
        vec![
            Arc::new(Int64Array::from(vec![Some(0), Some(1), Some(-7), Some(i64::MAX), None])),
            Arc::new(Int32Array::from(vec![1, 2, 3, 4, 5])),
            Arc::new(StringViewArray::from(vec!["", "a", "a string longer than twelve bytes", "ä", "z"])),
            Arc::new(Decimal128Array::from(vec![0, 1, -1, i128::MAX / 2, 10]).with_precision_and_scale(38, 2).unwrap()),
            Arc::new(
                FixedSizeBinaryArray::try_from_iter(
                    (0u8..5).map(|byte| vec![byte; 16]).collect::<Vec<_>>().into_iter(),
                )
                .unwrap(),
            ),
        ]
    }

    #[test]
    fn version_1_is_pinned() {
        // Rows on disk lie where this function put them: when this test fails, the hash has changed and needs a new version.
        let found: Vec<Vec<u32>> =
            columns().iter().map(|column| shards_of(std::slice::from_ref(column), 997).unwrap()).collect();
        assert_eq!(format!("{found:?}"), include_str!("shard_golden.txt").trim());
    }

    #[test]
    fn the_function_is_datafusions_repartition() {
        let fields: Vec<Field> = columns()
            .iter()
            .enumerate()
            .map(|(i, column)| Field::new(format!("c{i}"), column.data_type().clone(), true))
            .chain([Field::new("row", DataType::Int32, false)])
            .collect();
        let schema = Arc::new(Schema::new(fields));
        let mut arrays = columns();
        arrays.push(Arc::new(Int32Array::from(vec![0, 1, 2, 3, 4])));
        let batch = RecordBatch::try_new(schema.clone(), arrays).unwrap();
        for shards in [1u32, 2, 7, 12, 64] {
            let exprs = vec![col("c0", &schema).unwrap(), col("c2", &schema).unwrap()];
            let partitioning = Partitioning::Hash(exprs, shards as usize);
            let mut partitioner = BatchPartitioner::try_new(partitioning, Time::default(), 0, 1).unwrap();
            let mut expected = vec![u32::MAX; 5];
            partitioner
                .partition(batch.clone(), |partition, rows| {
                    let positions = rows.column_by_name("row").unwrap();
                    for &row in positions.as_any().downcast_ref::<Int32Array>().unwrap().values() {
                        expected[row as usize] = partition as u32;
                    }
                    Ok(())
                })
                .unwrap();
            let key = [batch.column(0).clone(), batch.column(2).clone()];
            assert_eq!(shards_of(&key, shards).unwrap(), expected);
        }
    }
}
