//! The storage trait: what a storage server asks of an engine. The row engine ([`crate::row`]) and the column engine
//! ([`crate::column`]) implement it, and one contract suite (`tests/contract.rs`) holds for both.
//!
//! ```text
//! stage(transaction) ── write* ── finish ──▶ staged: durable, checked, invisible
//!                                              │ commit(transaction, version) ──▶ visible at snapshots >= version
//!                                              ├ rollback_to(transaction, n)  ──▶ statements after n are gone
//!                                              └ abort(transaction)           ──▶ gone
//! ```
//!
//! A statement's changes of a shard are one piece: deletions, then new rows. Until the commit they are seen by scans with
//! [`ScanRequest::own`] and by nobody else; for everybody else they hold the keys that they name.
//!
//! Everything here blocks: callers run it on a thread where blocking is allowed. Not here: where rows come from and
//! in which order commits happen (`crate::commits`), nor how a scan becomes part of a plan (`crate::query`).

use std::{fmt::Debug, sync::Arc};

use arrow::{array::ArrayRef, record_batch::RecordBatch};
use datafusion::{
    execution::SendableRecordBatchStream, physical_expr::PhysicalExpr, physical_plan::metrics::ExecutionPlanMetricsSet,
};
use drsdb_core::{Result, Table, Ulid, scan::OwnWrites};

/// One shard of one table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardId {
    /// The table.
    pub table: Ulid,
    /// The shard's number, from 0.
    pub shard: u32,
}

/// What a scan is to read.
#[derive(Debug, Clone)]
pub struct ScanRequest {
    /// The table, as of the snapshot.
    pub table: Arc<Table>,
    /// The shards to read. A shard that never got rows is empty, not an error.
    pub shards: Vec<u32>,
    /// Rows of commits up to this version, and no others.
    pub snapshot: u64,
    /// Rows that a scan at this snapshot finds as well are left out: what is left was made between the two, or, when this
    /// is the later one, deleted between them.
    pub except: Option<u64>,
    /// Positions in the table's columns; the stream's schema is [`Table::arrow_schema`] projected by it. May be empty:
    /// the batches then carry only a row count.
    pub projection: Vec<usize>,
    /// A conjunction over the table's full schema. It may be used to skip rows that cannot match and nothing else has
    /// to: the caller filters again.
    pub filters: Vec<Arc<dyn PhysicalExpr>>,
    /// The caller needs no more rows than this. Only set together with no filters.
    pub limit: Option<usize>,
    /// Rows in a batch, at most.
    pub batch_rows: usize,
    /// Where the scan counts what it did, for EXPLAIN ANALYZE (`segments_pruned`, `row_groups_pruned`, `bytes_read`, ...).
    pub metrics: ExecutionPlanMetricsSet,
    /// The output partition for which the metrics count.
    pub partition: usize,
    /// The transaction that reads, and how much of what it staged itself it sees.
    pub own: Option<OwnWrites>,
}

/// Who stages, and how it is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StageOptions {
    /// The transaction.
    pub transaction: Ulid,
    /// The statement's number in the transaction, from 1.
    pub sequence: u32,
    /// What the transaction reads: a row that a later commit wrote or deleted is a conflict.
    pub snapshot: u64,
    /// Whether this replica checks. Of a shard's replicas the first does, and the others take what it let through.
    pub checked: bool,
}

/// Statistics of one column over a set of rows. Values are arrays of length 1 of the column's stored type.
#[derive(Debug, Clone, Default)]
pub struct ColumnStatistics {
    /// Rows that are NULL.
    pub null_count: u64,
    /// The smallest value, unless unknown.
    pub min: Option<ArrayRef>,
    /// The largest value, unless unknown.
    pub max: Option<ArrayRef>,
    /// About how many different values there are; 0 when unknown.
    pub distinct_estimate: u64,
}

/// What one [`StageWriter`] staged.
#[derive(Debug, Clone, Default)]
pub struct StagedPiece {
    /// Rows staged.
    pub rows: u64,
    /// Rows deleted.
    pub deleted: u64,
    /// Bytes on disk, about.
    pub bytes: u64,
    /// In the table's column order; empty when the engine keeps none.
    pub columns: Vec<ColumnStatistics>,
    /// Segments made; empty for the row engine.
    pub segments: Vec<Ulid>,
}

/// Takes what one statement changes in one shard: deletions first, then new rows. Dropping it without
/// [`StageWriter::finish`] undoes what it wrote.
pub trait StageWriter: Send {
    /// Deletes rows by their primary keys: batches of [`Table::key_schema`]. Comes before the first
    /// [`StageWriter::write`], so that an update deletes the old row and writes the new one.
    ///
    /// When checked, this or [`StageWriter::finish`] fails with `conflict` when a row is not there, was written or deleted
    /// by a commit after the snapshot, or is being written or deleted by another transaction. When not checked, versions are
    /// of no account. A table without a primary key is refused as `unsupported`.
    fn delete(&mut self, keys: &RecordBatch) -> Result<()>;

    /// Takes rows of [`Table::arrow_schema`]. NOT NULL and text lengths have been checked.
    fn write(&mut self, batch: &RecordBatch) -> Result<()>;

    /// Makes the changes durable (fsync) and checks the primary key: against the rows themselves and committed rows
    /// (`constraint_violation`), and against what other transactions have staged, inserted or deleted, or what commits
    /// after the snapshot deleted (`conflict`). When not checked, whatever is in the way is a `conflict`.
    fn finish(self: Box<Self>) -> Result<StagedPiece>;
}

/// A storage engine.
pub trait StorageEngine: Debug + Send + Sync {
    /// Begins to stage a statement's changes in a shard; the shard is created if it is not there. Several writers, of
    /// one transaction or of many, may be open at once.
    fn stage(&self, options: StageOptions, table: &Arc<Table>, shard: u32) -> Result<Box<dyn StageWriter>>;

    /// Undoes what `transaction` staged in statements after `sequence`, deletions included. Durable when it returns. Their
    /// numbers may be given again.
    fn rollback_to(&self, transaction: Ulid, sequence: u32) -> Result<()>;

    /// Begins to replace all of a shard by rows that are visible at snapshots >= `version`: a copy of another replica.
    /// What was there, staged changes included, is gone when the writer finishes, and stays when it is dropped. Snapshots
    /// below `version` see an empty shard afterwards: the caller keeps them away.
    fn import(&self, table: &Arc<Table>, shard: u32, version: u64) -> Result<Box<dyn StageWriter>>;

    /// Undoes what is staged in a shard and has no outcome. Nothing may be staged there meanwhile.
    fn forget_staged(&self, shard: ShardId) -> Result<()>;

    /// Forgets a shard that lives elsewhere now. Scans that run keep their rows to the end.
    fn drop_shard(&self, shard: ShardId) -> Result<()>;

    /// Forgets versions of rows that no snapshot from `horizon` on sees, and puts stored rows into better order. May be
    /// interrupted at any point and never changes what such a snapshot sees. Does a bounded part and answers whether there
    /// is more to do. Scans at older snapshots, and statements that read one, fail with `conflict` where rows are gone.
    fn compact(&self, horizon: u64) -> Result<bool>;

    /// Makes what each of the transactions staged visible at snapshots >= its version. A power loss may take that back until
    /// the next change that is durable, and then it has to be said again. Does nothing for a transaction that staged nothing
    /// here or is committed already, so that commits can be replayed. After an error, some of them may be committed.
    fn commit_all(&self, commits: &[(Ulid, u64)]) -> Result<()>;

    /// Commits one, see [`StorageEngine::commit_all`].
    fn commit(&self, transaction: Ulid, version: u64) -> Result<()> {
        self.commit_all(&[(transaction, version)])
    }

    /// Drops what `transaction` staged. Does nothing when there is nothing staged.
    fn abort(&self, transaction: Ulid) -> Result<()>;

    /// Transactions with staged rows and no outcome yet, also from before a restart.
    fn staged_transactions(&self) -> Result<Vec<Ulid>>;

    /// Drops all of a table's shards. Scans that run keep their rows to the end.
    fn drop_table(&self, table: Ulid) -> Result<()>;

    /// Shards of which something stored was found damaged: they are to be replaced by a copy, see
    /// [`StorageEngine::import`].
    fn damaged(&self) -> Vec<ShardId> {
        Vec::new()
    }

    /// Compares the next part of what is stored with its checksums; what does not match is told by
    /// [`StorageEngine::damaged`]. Answers false at the end of a round, after which the next one begins.
    fn verify(&self) -> Result<bool> {
        Ok(false)
    }

    /// Reads rows. Errors after the start come through the stream.
    fn scan(&self, request: ScanRequest) -> Result<SendableRecordBatchStream>;
}
