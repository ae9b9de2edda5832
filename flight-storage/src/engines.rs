//! The engines of one storage server, side by side, and the one place that picks the engine of a table.

use std::{path::Path, sync::Arc, time::Duration};

use datafusion::{
    execution::SendableRecordBatchStream,
    physical_plan::{metrics::ExecutionPlanMetricsSet, stream::RecordBatchStreamAdapter},
};
use drsdb_core::{
    Engine, Error, Result, Table, Ulid, WireError,
    scan::{ShardScanTask, ShardScanner},
};
use futures::TryStreamExt;

use crate::{
    checksum::Checksum,
    column::{ColumnEngine, ColumnOptions},
    commits::AppliedVersion,
    engine::{ScanRequest, ShardId, StageOptions, StageWriter, StorageEngine},
    rebuild::floors::Floors,
    row::RowEngine,
};

/// Folders of the engines in a server's.
pub(crate) const ROW_FOLDER: &str = "row";
pub(crate) const COLUMN_FOLDER: &str = "column";

/// How long a scan waits for commits up to its snapshot to arrive here before it says that they do not.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(10);

/// Rows that a checksum looks at in one go.
const CHECKSUM_BATCH_ROWS: usize = 8192;

/// The row engine, the column engine, and how far commits have been applied to both.
#[derive(Debug, Clone)]
pub struct Engines {
    server_id: Ulid,
    row: Arc<RowEngine>,
    column: Arc<dyn StorageEngine>,
    applied: AppliedVersion,
    floors: Floors,
}

impl Engines {
    /// Opens both engines under `dir`. They share a file: what ends a transaction or a table in the column engine ends it in
    /// the row engine in the same step. `floors` are those of the same folder.
    ///
    /// Errors: `corrupt` when that file is damaged.
    pub fn open(
        dir: &Path,
        server_id: Ulid,
        options: ColumnOptions,
        applied: AppliedVersion,
        floors: Floors,
    ) -> Result<Self> {
        let row = Arc::new(RowEngine::open(&dir.join(ROW_FOLDER))?);
        let column = Arc::new(ColumnEngine::open_with(&dir.join(COLUMN_FOLDER), options, Arc::clone(&row))?);
        Ok(Self { server_id, row, column, applied, floors })
    }

    /// What was found damaged of the file that both engines share: nothing of it is used any more, and it has to be replaced
    /// as a whole.
    pub fn file_damage(&self) -> Option<WireError> {
        self.row.health().damage()
    }

    /// From which snapshots on shards can be read here.
    pub fn floors(&self) -> &Floors {
        &self.floors
    }

    /// Begins to replace a shard by a copy, see [`StorageEngine::import`].
    pub fn import(&self, table: &Arc<Table>, shard: u32, version: u64) -> Result<Box<dyn StageWriter>> {
        self.of(table.engine).import(table, shard, version)
    }

    /// Undoes what is staged in a shard, see [`StorageEngine::forget_staged`].
    pub fn forget_staged(&self, shard: ShardId) -> Result<()> {
        // The row engine's is undone on the way.
        self.column.forget_staged(shard)
    }

    /// Forgets a shard that lives elsewhere now.
    pub fn drop_shard(&self, shard: ShardId) -> Result<()> {
        self.row.drop_shard(shard)?;
        self.column.drop_shard(shard)
    }

    fn of(&self, engine: Engine) -> Arc<dyn StorageEngine> {
        match engine {
            Engine::Row => Arc::clone(&self.row) as Arc<dyn StorageEngine>,
            Engine::Column => Arc::clone(&self.column),
        }
    }

    /// Begins to stage changes, see [`StorageEngine::stage`].
    pub fn stage(&self, options: StageOptions, table: &Arc<Table>, shard: u32) -> Result<Box<dyn StageWriter>> {
        self.of(table.engine).stage(options, table, shard)
    }

    /// What the engine of a table has, whatever has been applied and can be read here.
    pub fn scan_engine(&self, request: ScanRequest) -> Result<SendableRecordBatchStream> {
        self.of(request.table.engine).scan(request)
    }

    /// Undoes the statements after `sequence` in both engines, see [`StorageEngine::rollback_to`].
    pub fn rollback_to(&self, transaction: Ulid, sequence: u32) -> Result<()> {
        self.column.rollback_to(transaction, sequence)
    }

    /// Waits until every outcome that was taken in is on disk.
    pub fn sync(&self) -> Result<()> {
        self.row.sync()
    }

    /// Commits in both engines, see [`StorageEngine::commit_all`].
    pub fn commit_all(&self, commits: &[(Ulid, u64)]) -> Result<()> {
        self.column.commit_all(commits)
    }

    /// Commits one in both engines.
    pub fn commit(&self, transaction: Ulid, version: u64) -> Result<()> {
        self.column.commit(transaction, version)
    }

    /// Aborts in both engines, see [`StorageEngine::abort`].
    pub fn abort(&self, transaction: Ulid) -> Result<()> {
        self.column.abort(transaction)
    }

    /// Transactions with staged rows and no outcome yet.
    pub fn staged_transactions(&self) -> Result<Vec<Ulid>> {
        self.column.staged_transactions()
    }

    /// Drops a table in both engines.
    pub fn drop_table(&self, table: Ulid) -> Result<()> {
        self.column.drop_table(table)
    }

    /// Does a step of compaction in both engines, see [`StorageEngine::compact`].
    pub fn compact(&self, horizon: u64) -> Result<bool> {
        self.column.compact(horizon)
    }

    /// Shards found damaged on their own, see [`StorageEngine::damaged`]. Those of the row engine are damaged together,
    /// see [`Engines::file_damage`].
    pub fn damaged(&self) -> Vec<ShardId> {
        self.column.damaged()
    }

    /// Verifies the next part of what is stored, see [`StorageEngine::verify`].
    pub fn verify(&self) -> Result<bool> {
        Ok(self.row.verify()? | self.column.verify()?)
    }
}

impl Engines {
    /// A digest of a shard's rows at a version, in whatever order they lie here. Waits until commits up to it have come.
    pub async fn checksum(&self, table: Arc<Table>, shard: u32, version: u64) -> Result<Checksum> {
        let columns: Vec<usize> = (0..table.columns.len()).filter(|&at| !table.columns[at].dropped).collect();
        let mut checksum = Checksum::new(&table, &columns)?;
        let mut rows = self.scan(ShardScanTask {
            table,
            shards: vec![shard],
            snapshot: version,
            except: None,
            projection: columns,
            filters: vec![],
            limit: None,
            batch_rows: CHECKSUM_BATCH_ROWS,
            metrics: ExecutionPlanMetricsSet::new(),
            partition: 0,
            own: None,
        })?;
        while let Some(batch) = rows.try_next().await? {
            checksum.add(&batch)?;
        }
        Ok(checksum)
    }
}

impl ShardScanner for Engines {
    fn server_id(&self) -> Ulid {
        self.server_id
    }

    fn scan(&self, task: ShardScanTask) -> Result<SendableRecordBatchStream> {
        let schema = Arc::new(task.table.arrow_schema().project(&task.projection)?);
        let engine = self.of(task.table.engine);
        let (applied, floors) = (self.applied.clone(), self.floors.clone());
        let request = ScanRequest {
            table: task.table,
            shards: task.shards,
            snapshot: task.snapshot,
            except: task.except,
            projection: task.projection,
            filters: task.filters,
            limit: task.limit,
            batch_rows: task.batch_rows,
            metrics: task.metrics,
            partition: task.partition,
            own: task.own,
        };
        let stream = async move {
            // Both: what is not applied yet would be missing in the difference.
            let newest = request.snapshot.max(request.except.unwrap_or(0));
            applied.wait_for(newest, SNAPSHOT_PATIENCE).await.map_err(Error::into_datafusion)?;
            let (table, shards) = (request.table.id, request.shards.clone());
            let oldest = request.snapshot.min(request.except.unwrap_or(u64::MAX));
            let opened = tokio::task::spawn_blocking(move || {
                let stream = engine.scan(request)?;
                // Afterwards: what was opened stays as it was, even if the shard is replaced by a copy now.
                floors.check(table, &shards, oldest)?;
                Ok(stream)
            });
            let opened = opened.await;
            let opened = opened.map_err(|error| Error::internal(format!("a scan failed to open: {error}")));
            opened.and_then(|stream| stream).map_err(Error::into_datafusion)
        };
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, futures::stream::once(stream).try_flatten())))
    }
}
