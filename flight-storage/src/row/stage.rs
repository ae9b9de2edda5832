//! Takes the changes of one statement in one shard, or the rows of an import, and hands them to the writer in chunks, so
//! that a load of any size needs little memory and a small one exactly one operation, and with it one share of one fsync.

use std::sync::Arc;

use arrow::{
    array::{Array, AsArray, RecordBatch},
    datatypes::DataType,
};
use drsdb_core::{Error, ErrorCode, Result, Table};

use super::{
    changes::Change,
    import::Import,
    operations::Operation,
    writer::{Pending, Queue},
};
use crate::engine::{StageOptions, StageWriter, StagedPiece};

/// A chunk is sent when it has this many bytes of values, about.
const CHUNK_BYTES: usize = 1 << 20;

/// A chunk is sent when it has this many rows.
const CHUNK_ROWS: usize = 8192;

/// What becomes of the rows.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Purpose {
    /// A statement of a transaction.
    Stage(StageOptions),
    /// All of a shard from now on, visible from this version.
    Import(i64),
}

/// The row engine's [`StageWriter`].
#[derive(Debug)]
pub(crate) struct PieceWriter {
    queue: Queue,
    piece: i64,
    purpose: Purpose,
    table: Arc<Table>,
    shard: u32,
    deletes: Vec<RecordBatch>,
    inserts: Vec<RecordBatch>,
    chunk_bytes: usize,
    chunk_rows: usize,
    /// The chunk before, on its way to disk while this one fills: two chunks in memory, never more.
    pending: Option<Pending>,
    /// Whether anything was sent.
    begun: bool,
    /// Whether nothing is left to be undone.
    settled: bool,
    staged: StagedPiece,
}

impl PieceWriter {
    pub(crate) fn new(queue: Queue, piece: i64, purpose: Purpose, table: Arc<Table>, shard: u32) -> Self {
        Self {
            queue,
            piece,
            purpose,
            table,
            shard,
            deletes: Vec::new(),
            inserts: Vec::new(),
            chunk_bytes: 0,
            chunk_rows: 0,
            pending: None,
            begun: false,
            settled: false,
            staged: StagedPiece::default(),
        }
    }

    fn send(&mut self, finish: bool) -> Result<()> {
        self.await_pending()?;
        let (piece, table, shard, first) = (self.piece, Arc::clone(&self.table), self.shard, !self.begun);
        let (deletes, inserts) = (std::mem::take(&mut self.deletes), std::mem::take(&mut self.inserts));
        (self.chunk_bytes, self.chunk_rows) = (0, 0);
        let operation = match self.purpose {
            Purpose::Stage(options) => {
                Operation::Change(Change { piece, options, table, shard, deletes, inserts, first, finish })
            }
            Purpose::Import(version) => {
                Operation::Import(Import { piece, version, table, shard, rows: inserts, first, finish })
            }
        };
        self.pending = Some(self.queue.submit(operation)?);
        self.begun = true;
        Ok(())
    }

    fn await_pending(&mut self) -> Result<()> {
        if let Some(pending) = self.pending.take() {
            self.staged.bytes += pending.wait()?.bytes;
        }
        Ok(())
    }

    /// Cuts a batch evenly and adds it to the chunk: a batch of megabyte texts must not become one huge operation.
    fn take(&mut self, batch: &RecordBatch, chunk: fn(&mut Self) -> &mut Vec<RecordBatch>) -> Result<()> {
        let row_bytes = (value_bytes(batch) / batch.num_rows().max(1)).max(1);
        let step = (CHUNK_BYTES / row_bytes).clamp(1, CHUNK_ROWS);
        let mut offset = 0;
        while offset < batch.num_rows() {
            let rows = step.min(batch.num_rows() - offset);
            chunk(self).push(batch.slice(offset, rows));
            self.chunk_bytes += rows * row_bytes;
            self.chunk_rows += rows;
            offset += rows;
            if self.chunk_bytes >= CHUNK_BYTES || self.chunk_rows >= CHUNK_ROWS {
                self.send(false)?;
            }
        }
        Ok(())
    }
}

impl StageWriter for PieceWriter {
    fn delete(&mut self, keys: &RecordBatch) -> Result<()> {
        if matches!(self.purpose, Purpose::Import(_)) {
            return Err(Error::new(ErrorCode::InvalidArgument, "an import deletes no rows"));
        }
        if self.staged.rows > 0 {
            return Err(Error::internal("a statement's deletions come before its rows"));
        }
        self.take(keys, |writer| &mut writer.deletes)?;
        self.staged.deleted += keys.num_rows() as u64;
        Ok(())
    }

    fn write(&mut self, rows: &RecordBatch) -> Result<()> {
        self.staged.rows += rows.num_rows() as u64;
        self.take(rows, |writer| &mut writer.inserts)
    }

    fn finish(mut self: Box<Self>) -> Result<StagedPiece> {
        // An import without rows empties the shard.
        let import = matches!(self.purpose, Purpose::Import(_));
        if import || self.staged.rows + self.staged.deleted > 0 {
            self.send(true)?;
            self.await_pending()?;
        }
        self.settled = true;
        Ok(std::mem::take(&mut self.staged))
    }
}

impl Drop for PieceWriter {
    fn drop(&mut self) {
        if self.begun && !self.settled {
            let piece = self.piece;
            self.queue.submit_unheard(match self.purpose {
                Purpose::Stage(_) => Operation::Abandon { piece },
                Purpose::Import(_) => Operation::AbandonImport { piece },
            });
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
