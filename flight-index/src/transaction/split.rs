//! Rows -> shards, in bounded memory.
//!
//! ```text
//! batch ── hash of the shard key ──▶ rows of each shard ──▶ buffer of that shard ── 8k rows or 1 MiB ──▶ piece
//!                                                            └── all buffers above 12 MiB: the largest goes early
//! ```

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, RecordBatch, UInt32Array},
    compute::take_record_batch,
    datatypes::SchemaRef,
};
use drsdb_core::{Result, Table, row_bytes, shard::shards_of, transit::stored_column};

use crate::load::transit_schema;

/// A shard's buffer is a piece when it has this many rows,
pub const PIECE_ROWS: usize = 8 * 1024;
/// or this many bytes.
pub const PIECE_BYTES: usize = 1 << 20;
/// What all buffers hold together, at most.
pub const BUFFER_BYTES: usize = 12 << 20;

/// The schema of a table's keys on their way to shards.
pub fn key_transit_schema(table: &Table) -> SchemaRef {
    let schema = transit_schema(table).project(&table.primary_key);
    Arc::new(schema.expect("the primary key is made of the table's columns"))
}

/// The shard of each row of a batch of the transit schema. Rows without a shard key go to shard `round_robin`, all of
/// them. Pure: batches may be divided in any order, and on any thread.
pub fn shards_of_rows(table: &Table, batch: &RecordBatch, round_robin: u64) -> Result<Vec<u32>> {
    let key = if table.shard_key.is_empty() { &table.primary_key } else { &table.shard_key };
    if key.is_empty() {
        return Ok(vec![(round_robin % u64::from(table.shards)) as u32; batch.num_rows()]);
    }
    if table.shards == 1 {
        return Ok(vec![0; batch.num_rows()]);
    }
    // The hash is over stored types: views hash as views.
    let key = key.iter().map(|&position| Ok(stored_column(batch.column(position), table.columns[position].sql_type)?));
    shards_of(&key.collect::<Result<Vec<ArrayRef>>>()?, table.shards)
}

/// Divides a batch, whatever its columns, by the shard of each row.
pub fn divide(batch: RecordBatch, shards: &[u32]) -> Result<Vec<(u32, RecordBatch)>> {
    let Some(&first) = shards.first() else { return Ok(Vec::new()) };
    if shards.iter().all(|shard| *shard == first) {
        return Ok(vec![(first, batch)]);
    }
    let highest = shards.iter().copied().max().unwrap_or(0) as usize;
    let mut rows_of = vec![Vec::new(); highest + 1];
    for (row, &shard) in shards.iter().enumerate() {
        rows_of[shard as usize].push(row as u32);
    }
    let taken = (0..).zip(rows_of).filter(|(_, rows)| !rows.is_empty());
    taken.map(|(shard, rows)| Ok((shard, take_record_batch(&batch, &UInt32Array::from(rows))?))).collect()
}

/// Gathers rows by shard until there are enough for a piece.
#[derive(Debug)]
pub struct Buffers {
    shards: Vec<Buffer>,
    bytes: usize,
}

#[derive(Debug, Default, Clone)]
struct Buffer {
    batches: Vec<RecordBatch>,
    rows: usize,
    bytes: usize,
}

/// Rows of one shard, ready to be sent.
#[derive(Debug)]
pub struct Piece {
    /// The shard.
    pub shard: u32,
    /// Batches of the transit schema, or of its key's columns.
    pub batches: Vec<RecordBatch>,
}

impl Buffers {
    /// Empty buffers for a table's shards.
    pub fn new(shards: u32) -> Self {
        Self { shards: vec![Buffer::default(); shards as usize], bytes: 0 }
    }

    /// Adds rows of a shard and appends what is ready to `ready`.
    pub fn add(&mut self, shard: u32, batch: RecordBatch, ready: &mut Vec<Piece>) {
        let bytes = row_bytes(&batch);
        let buffer = &mut self.shards[shard as usize];
        buffer.rows += batch.num_rows();
        buffer.bytes += bytes;
        buffer.batches.push(batch);
        self.bytes += bytes;
        if buffer.rows >= PIECE_ROWS || buffer.bytes >= PIECE_BYTES {
            ready.extend(self.take(shard));
        }
        while self.bytes > BUFFER_BYTES {
            let largest = (0..).zip(&self.shards).max_by_key(|(_, buffer)| buffer.bytes).map(|(shard, _)| shard);
            let piece = largest.and_then(|shard| self.take(shard));
            ready.push(piece.expect("buffers over their budget are not all empty"));
        }
    }

    /// What is left, in the order of the shards.
    pub fn finish(&mut self) -> Vec<Piece> {
        (0..self.shards.len() as u32).filter_map(|shard| self.take(shard)).collect()
    }

    fn take(&mut self, shard: u32) -> Option<Piece> {
        let buffer = std::mem::take(&mut self.shards[shard as usize]);
        self.bytes -= buffer.bytes;
        (!buffer.batches.is_empty()).then_some(Piece { shard, batches: buffer.batches })
    }
}
