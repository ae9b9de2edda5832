//! Buffered rows in the order of a key, a chunk at a time.

use arrow::{compute::interleave_record_batch, record_batch::RecordBatch, row::Rows};
use drsdb_core::Result;

use super::{format::CHUNK_ROWS, keys::KeyFormat};

/// Where a row is: its chunk, and its row there.
type Position = (u32, u32);

/// Rows in the order of a key, or as they came when there is none. Rows of equal keys keep the order in which they came.
pub struct Sorted {
    chunks: Vec<RecordBatch>,
    rows: usize,
    /// Keys of each chunk; empty without a key.
    keys: Vec<Rows>,
    /// `None`: as they are.
    order: Option<Vec<Position>>,
}

impl Sorted {
    /// Sorts `chunks`, all of which but the last have [`CHUNK_ROWS`] rows.
    pub fn new(chunks: Vec<RecordBatch>, key: Option<&KeyFormat>) -> Result<Self> {
        let mut sorted = Self::unsorted(chunks, key)?;
        if !sorted.is_in_order() {
            sorted.order = Some(sorted.find_order());
        }
        Ok(sorted)
    }

    /// The same if they are in order; if not, `chunks` are given back.
    pub fn if_in_order(chunks: Vec<RecordBatch>, key: Option<&KeyFormat>) -> Result<Result<Self, Vec<RecordBatch>>> {
        let unsorted = Self::unsorted(chunks, key)?;
        Ok(if unsorted.is_in_order() { Ok(unsorted) } else { Err(unsorted.chunks) })
    }

    fn unsorted(chunks: Vec<RecordBatch>, key: Option<&KeyFormat>) -> Result<Self> {
        debug_assert!(chunks.iter().rev().skip(1).all(|chunk| chunk.num_rows() == CHUNK_ROWS));
        let rows = chunks.iter().map(RecordBatch::num_rows).sum();
        let keys =
            key.map_or(Ok(Vec::new()), |key| chunks.iter().map(|chunk| key.keys(chunk)).collect::<Result<_>>())?;
        Ok(Self { chunks, rows, keys, order: None })
    }

    fn is_in_order(&self) -> bool {
        self.keys.is_empty() || (1..self.rows).all(|row| self.key(row - 1) <= self.key(row))
    }

    fn find_order(&self) -> Vec<Position> {
        // The first bytes decide nearly always, and then no key is looked at.
        let prefix = |key: &[u8]| {
            let mut prefix = [0; 8];
            let length = key.len().min(8);
            prefix[..length].copy_from_slice(&key[..length]);
            u64::from_be_bytes(prefix)
        };
        let mut rows: Vec<(u64, Position)> = Vec::with_capacity(self.rows);
        for (chunk, keys) in (0u32..).zip(&self.keys) {
            rows.extend((0u32..).zip(keys.iter()).map(|(row, key)| (prefix(key.data()), (chunk, row))));
        }
        rows.sort_unstable_by(|(left_prefix, left), (right_prefix, right)| {
            let keys = || self.key_at(*left).cmp(self.key_at(*right));
            left_prefix.cmp(right_prefix).then_with(keys).then_with(|| left.cmp(right))
        });
        rows.into_iter().map(|(_, position)| position).collect()
    }

    fn key_at(&self, (chunk, row): Position) -> &[u8] {
        self.keys[chunk as usize].row(row as usize).data()
    }

    /// The key of row `row` in order.
    fn key(&self, row: usize) -> &[u8] {
        match &self.order {
            Some(order) => self.key_at(order[row]),
            None => self.key_at(((row / CHUNK_ROWS) as u32, (row % CHUNK_ROWS) as u32)),
        }
    }

    /// Whether nothing had to be sorted.
    pub fn came_in_order(&self) -> bool {
        self.order.is_none()
    }

    /// The chunks as they came.
    pub fn into_chunks(self) -> Vec<RecordBatch> {
        self.chunks
    }

    /// How many rows there are.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// How many chunks they make.
    pub fn chunks(&self) -> usize {
        self.rows.div_ceil(CHUNK_ROWS)
    }

    /// Chunk `number` in order.
    pub fn chunk(&self, number: usize) -> Result<RecordBatch> {
        let Some(order) = &self.order else {
            return Ok(self.chunks[number].clone());
        };
        let end = self.rows.min((number + 1) * CHUNK_ROWS);
        let rows: Vec<_> =
            order[number * CHUNK_ROWS..end].iter().map(|&(chunk, row)| (chunk as usize, row as usize)).collect();
        Ok(interleave_record_batch(&self.chunks.iter().collect::<Vec<_>>(), &rows)?)
    }

    /// The first and the last key of chunk `number` in order; `None` without a key.
    pub fn ends(&self, number: usize) -> Option<(&[u8], &[u8])> {
        let end = self.rows.min((number + 1) * CHUNK_ROWS);
        (!self.keys.is_empty()).then(|| (self.key(number * CHUNK_ROWS), self.key(end - 1)))
    }

    /// A key that comes twice.
    pub fn repeated_key(&self) -> Option<&[u8]> {
        (1..self.rows).map(|row| (self.key(row - 1), self.key(row))).find(|(one, next)| one == next).map(|(key, _)| key)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Array, AsArray, Int64Array};
    use drsdb_core::{Column, Engine, SqlType, Table, TableName, ids};
    use proptest::prelude::*;

    use super::*;

    fn table() -> Table {
        let column = |name: &str| Column::new(name.to_owned(), SqlType::BigInt, false);
        Table {
            id: ids::new_ulid(),
            name: TableName::new("public", "t"),
            columns: vec![column("key"), column("arrival")],
            primary_key: vec![],
            foreign_keys: vec![],
            engine: Engine::Column,
            shards: 1,
            shard_key: vec![],
            shard_function: 1,
            cluster_key: vec![0],
            ..Table::default()
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn sorting_is_stable_and_loses_nothing(values in proptest::collection::vec(-50i64..50, 1..3 * CHUNK_ROWS)) {
            let table = table();
            let arrivals = Int64Array::from_iter_values(0..values.len() as i64);
            let columns: Vec<Arc<dyn Array>> = vec![Arc::new(Int64Array::from(values.clone())), Arc::new(arrivals)];
            let all = RecordBatch::try_new(table.arrow_schema(), columns).unwrap();
            let chunks = (0..values.len()).step_by(CHUNK_ROWS);
            let chunks = chunks.map(|start| all.slice(start, CHUNK_ROWS.min(values.len() - start))).collect();
            let key = KeyFormat::new(&table, &[0]).unwrap();
            let sorted = Sorted::new(chunks, key.as_ref()).unwrap();

            let mut found = Vec::new();
            for number in 0..sorted.chunks() {
                let chunk = sorted.chunk(number).unwrap();
                let column = |at: usize| chunk.column(at).as_primitive::<arrow::datatypes::Int64Type>().values().to_vec();
                found.extend(column(0).into_iter().zip(column(1)));
            }
            let mut expected: Vec<(i64, i64)> = values.iter().copied().zip(0..).collect();
            expected.sort();
            let repeats = expected.windows(2).any(|pair| pair[0].0 == pair[1].0);
            prop_assert_eq!(found, expected);
            prop_assert_eq!(sorted.repeated_key().is_some(), repeats);
        }
    }
}
