//! The engines of one storage server, side by side, and the one place that picks the engine of a table.

use std::{path::Path, sync::Arc, time::Duration};

use datafusion::{execution::SendableRecordBatchStream, physical_plan::stream::RecordBatchStreamAdapter};
use drsdb_core::{
    Engine, Error, Result, Table, Ulid,
    scan::{ShardScanTask, ShardScanner},
};
use futures::TryStreamExt;

use crate::{
    column::{ColumnEngine, ColumnOptions},
    commits::AppliedVersion,
    engine::{ScanRequest, StageOptions, StageWriter, StorageEngine},
    row::RowEngine,
};

/// How long a scan waits for commits up to its snapshot to arrive here before it says that they do not.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(10);

/// The row engine, the column engine, and how far commits have been applied to both.
#[derive(Debug, Clone)]
pub struct Engines {
    server_id: Ulid,
    row: Arc<dyn StorageEngine>,
    column: Arc<dyn StorageEngine>,
    applied: AppliedVersion,
}

impl Engines {
    /// Opens both engines under `dir`.
    pub fn open(dir: &Path, server_id: Ulid, options: ColumnOptions, applied: AppliedVersion) -> Result<Self> {
        Ok(Self {
            server_id,
            row: Arc::new(RowEngine::open(&dir.join("row"))?),
            column: Arc::new(ColumnEngine::open(&dir.join("column"), options)?),
            applied,
        })
    }

    fn of(&self, engine: Engine) -> &Arc<dyn StorageEngine> {
        match engine {
            Engine::Row => &self.row,
            Engine::Column => &self.column,
        }
    }

    /// Begins to stage changes, see [`StorageEngine::stage`].
    pub fn stage(&self, options: StageOptions, table: &Arc<Table>, shard: u32) -> Result<Box<dyn StageWriter>> {
        self.of(table.engine).stage(options, table, shard)
    }

    /// Undoes the statements after `sequence` in both engines, see [`StorageEngine::rollback_to`].
    pub fn rollback_to(&self, transaction: Ulid, sequence: u32) -> Result<()> {
        self.row.rollback_to(transaction, sequence)?;
        self.column.rollback_to(transaction, sequence)
    }

    /// Commits in both engines, see [`StorageEngine::commit`].
    pub fn commit(&self, transaction: Ulid, version: u64) -> Result<()> {
        self.row.commit(transaction, version)?;
        self.column.commit(transaction, version)
    }

    /// Aborts in both engines, see [`StorageEngine::abort`].
    pub fn abort(&self, transaction: Ulid) -> Result<()> {
        self.row.abort(transaction)?;
        self.column.abort(transaction)
    }

    /// Transactions with staged rows and no outcome yet.
    pub fn staged_transactions(&self) -> Result<Vec<Ulid>> {
        let mut transactions = self.row.staged_transactions()?;
        transactions.extend(self.column.staged_transactions()?);
        transactions.sort_unstable();
        transactions.dedup();
        Ok(transactions)
    }

    /// Drops a table in both engines.
    pub fn drop_table(&self, table: Ulid) -> Result<()> {
        self.row.drop_table(table)?;
        self.column.drop_table(table)
    }
}

impl ShardScanner for Engines {
    fn server_id(&self) -> Ulid {
        self.server_id
    }

    fn scan(&self, task: ShardScanTask) -> Result<SendableRecordBatchStream> {
        let schema = Arc::new(task.table.arrow_schema().project(&task.projection)?);
        let engine = Arc::clone(self.of(task.table.engine));
        let applied = self.applied.clone();
        let request = ScanRequest {
            table: task.table,
            shards: task.shards,
            snapshot: task.snapshot,
            projection: task.projection,
            filters: task.filters,
            limit: task.limit,
            batch_rows: task.batch_rows,
            metrics: task.metrics,
            partition: task.partition,
            own: task.own,
        };
        let stream = async move {
            applied.wait_for(request.snapshot, SNAPSHOT_PATIENCE).await.map_err(Error::into_datafusion)?;
            let opened = tokio::task::spawn_blocking(move || engine.scan(request)).await;
            let opened = opened.map_err(|error| Error::internal(format!("a scan failed to open: {error}")));
            opened.and_then(|stream| stream).map_err(Error::into_datafusion)
        };
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, futures::stream::once(stream).try_flatten())))
    }
}
