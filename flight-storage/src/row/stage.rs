//! Takes the rows of one transaction for one shard and hands them to the writer in chunks, so that a load of any size
//! needs little memory and a small one exactly one operation, and with it one share of one fsync.

use std::sync::Arc;

use arrow::{
    array::{Array, AsArray, RecordBatch},
    datatypes::DataType,
};
use drsdb_core::{Result, Table, Ulid};

use super::{
    operations::{Append, Operation},
    writer::{Pending, Queue},
};
use crate::engine::{StageWriter, StagedPiece};

/// A chunk is sent when it has this many bytes of values, about.
const CHUNK_BYTES: usize = 1 << 20;

/// A chunk is sent when it has this many rows.
const CHUNK_ROWS: usize = 8192;

/// The row engine's [`StageWriter`].
#[derive(Debug)]
pub(super) struct PieceWriter {
    queue: Queue,
    piece: i64,
    transaction: Ulid,
    table: Arc<Table>,
    shard: u32,
    chunk: Vec<RecordBatch>,
    chunk_bytes: usize,
    chunk_rows: usize,
    /// The chunk before, on its way to disk while this one fills: two chunks in memory, never more.
    pending: Option<Pending>,
    /// Whether anything was sent.
    begun: bool,
    /// Whether nothing is left to be undone.
    settled: bool,
    rows: u64,
    bytes: u64,
}

impl PieceWriter {
    pub(super) fn new(queue: Queue, piece: i64, transaction: Ulid, table: Arc<Table>, shard: u32) -> Self {
        Self {
            queue,
            piece,
            transaction,
            table,
            shard,
            chunk: Vec::new(),
            chunk_bytes: 0,
            chunk_rows: 0,
            pending: None,
            begun: false,
            settled: false,
            rows: 0,
            bytes: 0,
        }
    }

    fn send(&mut self, finish: bool) -> Result<()> {
        self.await_pending()?;
        let append = Append {
            piece: self.piece,
            transaction: self.transaction,
            table: Arc::clone(&self.table),
            shard: self.shard,
            batches: std::mem::take(&mut self.chunk),
            first: !self.begun,
            finish,
        };
        (self.chunk_bytes, self.chunk_rows) = (0, 0);
        self.pending = Some(self.queue.submit(Operation::Append(append))?);
        self.begun = true;
        Ok(())
    }

    fn await_pending(&mut self) -> Result<()> {
        if let Some(pending) = self.pending.take() {
            self.bytes += pending.wait()?.bytes;
        }
        Ok(())
    }
}

impl StageWriter for PieceWriter {
    fn delete(&mut self, _: &RecordBatch) -> Result<()> {
        Err(drsdb_core::Error::new(drsdb_core::ErrorCode::Unsupported, "deleting rows is not done"))
    }

    fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        let mut offset = 0;
        let row_bytes = (value_bytes(batch) / batch.num_rows().max(1)).max(1);
        // Rows are cut evenly: a batch of megabyte texts must not become one huge operation.
        let step = (CHUNK_BYTES / row_bytes).clamp(1, CHUNK_ROWS);
        while offset < batch.num_rows() {
            let rows = step.min(batch.num_rows() - offset);
            self.chunk.push(batch.slice(offset, rows));
            self.chunk_bytes += rows * row_bytes;
            self.chunk_rows += rows;
            self.rows += rows as u64;
            offset += rows;
            if self.chunk_bytes >= CHUNK_BYTES || self.chunk_rows >= CHUNK_ROWS {
                self.send(false)?;
            }
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<StagedPiece> {
        if self.rows > 0 {
            self.send(true)?;
            self.await_pending()?;
        }
        self.settled = true;
        Ok(StagedPiece { rows: self.rows, bytes: self.bytes, ..StagedPiece::default() })
    }
}

impl Drop for PieceWriter {
    fn drop(&mut self) {
        if self.begun && !self.settled {
            self.queue.submit_unheard(Operation::Abandon { piece: self.piece });
        }
    }
}

/// Bytes of a batch's values. Arrow's own count would take in the whole buffers that views point into.
fn value_bytes(batch: &RecordBatch) -> usize {
    let of_column = |column: &dyn Array| match column.data_type() {
        DataType::Utf8View => column.as_string_view().lengths().map(|length| length as usize + 16).sum(),
        DataType::BinaryView => column.as_binary_view().lengths().map(|length| length as usize + 16).sum(),
        fixed => fixed.primitive_width().unwrap_or(16) * column.len(),
    };
    batch.columns().iter().map(|column| of_column(column.as_ref())).sum()
}
