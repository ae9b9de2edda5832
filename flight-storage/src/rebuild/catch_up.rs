//! Gives a replica what has changed since the last version of which it has everything, the *base*, in place of a copy of all.
//!
//! ```text
//! there   rows of the base that are gone at V ──▶ deleted here ┐
//!         rows of V that are not in the base ───▶ written here ├─ one transaction, committed here at V
//! here    what was committed here since the base is undone ────┘
//! ```
//!
//! A replica that missed a commit may have later ones, and pieces of the one that it missed: so nothing that it has since the
//! base is believed. Snapshots between the base and V cannot be read here afterwards ([`super::floors`]).
//!
//! It takes versions of rows from before: it is not possible when compaction has forgotten what the base sees, here or there
//! (`retention_s`), nor when the source is a copy itself that is younger than the base. Then the shard is copied, and also
//! when a catch-up has failed or died midway: from its beginning on, the base cannot be read here.

use std::{collections::HashSet, sync::Arc};

use arrow::{array::BooleanArray, compute::filter_record_batch, record_batch::RecordBatch};
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use drsdb_core::{
    Error, ErrorCode, Result, Table, crash_point, ids,
    net::name_server,
    row_bytes,
    v1::{ExportShardRequest, RebuildSource, StartRebuildResponse},
};
use futures::TryStreamExt;
use tokio::sync::{mpsc, oneshot};

use super::copy::{QUEUE, Rebuilder, SNAPSHOT_PATIENCE, blocking, pause};
use crate::{
    column::keys::KeyFormat,
    engine::{ScanRequest, ShardId, StageOptions, StageWriter},
    row_messages::batches,
};

/// How often the sources are asked when one of them is not there.
const ROUNDS: usize = 5;
/// What the replica has since the base may take so many bytes; with more, a copy is as good.
const OWN_BYTES: usize = 64 << 20;
/// Keys of deleted rows may take so many bytes: they are in memory all at once.
const DELETED_BYTES: usize = 128 << 20;
/// Rows of a batch that is read here.
const BATCH_ROWS: usize = 8192;

/// What was committed here since the base.
#[derive(Debug)]
struct Own {
    /// Rows of the base that are gone.
    gone: Vec<RecordBatch>,
    /// Keys of rows that are there and not in the base.
    made: Vec<RecordBatch>,
}

/// A message of the source.
enum Change {
    /// Keys of rows that are gone.
    Deleted(bytes::Bytes),
    /// New rows, which come after all deleted ones.
    Written(bytes::Bytes),
}

impl Rebuilder {
    /// True when the shard has everything up to the snapshot now; false when that takes a copy.
    pub(super) async fn catch_up(
        &self,
        shard: ShardId,
        table: &Arc<Table>,
        started: &StartRebuildResponse,
    ) -> Result<bool> {
        let (base, engines) = (started.complete_to, self.follower.engines.clone());
        let is_readable = engines.floors().check(shard.table, &[shard.shard], base).is_ok();
        if base == 0 || !is_readable || table.primary_key.is_empty() || engines.damaged().contains(&shard) {
            return Ok(false);
        }
        self.begin_step(shard, "catching up");
        // Outcomes of what was staged before the base, and of whatever else was staged here.
        self.follower.applied.wait_for(started.snapshot, SNAPSHOT_PATIENCE).await?;
        let snapshot = started.snapshot;
        blocking(move || {
            // Before anything changes: a scan that looks afterwards must know, of a transaction that staged rows here too.
            engines.floors().set(shard, snapshot)?;
            engines.forget_staged(shard)
        })
        .await?;
        let own = match self.own_changes(shard, table, base).await {
            Ok(Some(own)) => Arc::new(own),
            Ok(None) => return Ok(false),
            Err(error) => {
                tracing::info!(table = %table.name, shard = shard.shard, base, %error, "what a shard has is not known");
                return Ok(false);
            }
        };
        let mut sources: Vec<&RebuildSource> = started.sources.iter().collect();
        for round in 0..ROUNDS {
            let mut lost = Vec::new();
            for source in sources {
                match self.catch_up_from(source, shard, table, started, Arc::clone(&own)).await? {
                    Ok(()) => return Ok(true),
                    Err(error) => {
                        tracing::info!(
                            table = %table.name, shard = shard.shard, base, round, %error, "a shard is not caught up"
                        );
                        lost.extend((error.code() == ErrorCode::Unavailable).then_some(source));
                    }
                }
            }
            if lost.is_empty() {
                break;
            }
            // A source that went away may be back, and is asked for less than a copy.
            sources = lost;
            pause().await;
        }
        Ok(false)
    }

    /// `None` when that cannot be told any more, or is a lot.
    async fn own_changes(&self, shard: ShardId, table: &Arc<Table>, base: u64) -> Result<Option<Own>> {
        let all = (0..table.columns.len()).collect();
        let Some(gone) = self.difference(shard, table, (base, u64::MAX), all).await? else { return Ok(None) };
        let key = table.primary_key.clone();
        let made = self.difference(shard, table, (u64::MAX, base), key).await?;
        Ok(made.map(|made| Own { gone, made }))
    }

    /// The rows here that one snapshot sees and another one does not.
    async fn difference(
        &self,
        shard: ShardId,
        table: &Arc<Table>,
        (snapshot, except): (u64, u64),
        projection: Vec<usize>,
    ) -> Result<Option<Vec<RecordBatch>>> {
        let request = ScanRequest {
            table: Arc::clone(table),
            shards: vec![shard.shard],
            snapshot,
            except: Some(except),
            projection,
            filters: Vec::new(),
            limit: None,
            batch_rows: BATCH_ROWS,
            metrics: ExecutionPlanMetricsSet::new(),
            partition: 0,
            own: None,
        };
        let engines = self.follower.engines.clone();
        let read = async {
            let mut rows = blocking(move || engines.scan_engine(request)).await?;
            let (mut found, mut bytes) = (Vec::new(), 0);
            while let Some(batch) = rows.try_next().await? {
                bytes += row_bytes(&batch);
                if bytes > OWN_BYTES {
                    return Ok(None);
                }
                found.push(batch);
            }
            Ok(Some(found))
        };
        match read.await {
            // Compacted.
            Err(error) if Error::code(&error) == ErrorCode::Conflict => Ok(None),
            read => read,
        }
    }

    /// The inner error is the source's: nothing was changed here, and another source may do. With the outer one, what this
    /// replica has is not known any more.
    async fn catch_up_from(
        &self,
        source: &RebuildSource,
        shard: ShardId,
        table: &Arc<Table>,
        started: &StartRebuildResponse,
        own: Arc<Own>,
    ) -> Result<Result<()>> {
        let (base, snapshot) = (started.complete_to, started.snapshot);
        let (mut client, url) = self.source(source)?;
        let named = |status| name_server(status, &url);
        let request = |snapshot, except, keys_only| ExportShardRequest {
            table: Some(table.to_proto()),
            shard: shard.shard,
            snapshot,
            except,
            keys_only,
            server_id: source.server_id.clone(),
        };
        let exports = async {
            let deleted = client.export_shard(request(base, snapshot, true)).await.map_err(named)?.into_inner();
            let written = client.export_shard(request(snapshot, base, false)).await.map_err(named)?.into_inner();
            Ok::<_, Error>((deleted, written))
        };
        let (mut deleted, mut written) = match exports.await {
            Ok(exports) => exports,
            Err(error) => return Ok(Err(error)),
        };
        // What is staged for a moment is nobody's to abort.
        let transaction = ids::new_ulid();
        let open = self.follower.open.enter(transaction, 1)?;
        let (sender, mut receiver) = mpsc::channel::<Change>(QUEUE);
        // Dropped before its end, the sender leaves the writer unfinished.
        let (complete, completed) = oneshot::channel::<()>();
        let (engines, table) = (self.follower.engines.clone(), Arc::clone(table));
        let writer = tokio::task::spawn_blocking(move || {
            let _open = open;
            let options = StageOptions { transaction, sequence: 1, snapshot, checked: false };
            let mut writer = engines.stage(options, &table, shard.shard)?;
            let mut undo = Undo::begin(&table, &own, &mut *writer)?;
            while let Some(change) = receiver.blocking_recv() {
                match change {
                    Change::Deleted(bytes) => {
                        batches(bytes, &table.key_schema(), |keys| undo.delete(keys, &mut *writer))?;
                    }
                    Change::Written(bytes) => {
                        undo.end(&mut *writer)?;
                        batches(bytes, &table.arrow_schema(), |rows| writer.write(rows))?;
                    }
                }
            }
            if completed.blocking_recv().is_err() {
                return Err(Error::new(ErrorCode::Cancelled, "the changes ended before all had come"));
            }
            undo.end(&mut *writer)?;
            let piece = writer.finish()?;
            crash_point::reach("catch_up.staged");
            engines.commit(transaction, snapshot)?;
            crash_point::reach("catch_up.committed");
            Ok(piece)
        });
        let pulled = async {
            let mut deleted_bytes = 0;
            while let Some(message) = deleted.message().await.map_err(named)? {
                self.received(shard, message.batch.len());
                deleted_bytes += message.batch.len();
                if deleted_bytes > DELETED_BYTES {
                    return Err(Error::new(
                        ErrorCode::ResourceExhausted,
                        "more rows were deleted than can be told one by one",
                    ));
                }
                if sender.send(Change::Deleted(message.batch)).await.is_err() {
                    return Ok(());
                }
            }
            while let Some(message) = written.message().await.map_err(named)? {
                self.received(shard, message.batch.len());
                if sender.send(Change::Written(message.batch)).await.is_err() {
                    break;
                }
            }
            Ok(())
        };
        let pulled = pulled.await;
        drop(sender);
        match &pulled {
            Ok(()) => drop(complete.send(())),
            Err(_) => drop(complete),
        }
        // In any case: the next source begins where nothing is staged.
        let written = writer.await.map_err(|error| Error::internal(format!("a catch-up's writer failed: {error}")))?;
        if let Err(error) = pulled {
            return Ok(Err(error));
        }
        let piece = written?;
        tracing::info!(shard = shard.shard, base, snapshot, rows = piece.rows, deleted = piece.deleted, "caught up");
        Ok(Ok(()))
    }
}

/// Takes back what was committed here since the base, on the way: a row that the source deleted as well is not brought back.
struct Undo {
    format: KeyFormat,
    own: Arc<Own>,
    /// Keys of which this replica has not what the base has.
    touched: HashSet<Box<[u8]>>,
    /// Those that the source deleted.
    deleted: HashSet<Box<[u8]>>,
    ended: bool,
}

impl Undo {
    fn begin(table: &Table, own: &Arc<Own>, writer: &mut dyn StageWriter) -> Result<Self> {
        let format = KeyFormat::new(table, &table.primary_key)?;
        let format = format.ok_or_else(|| Error::internal("a table without a primary key is caught up"))?;
        let mut touched = HashSet::new();
        for made in &own.made {
            touched.extend(format.keys_of(made.columns())?.iter().map(|key| key.data().into()));
            writer.delete(made)?;
        }
        for gone in &own.gone {
            touched.extend(format.keys(gone)?.iter().map(|key| key.data().into()));
        }
        Ok(Self { format, own: Arc::clone(own), touched, deleted: HashSet::new(), ended: false })
    }

    /// Deletes rows of the base, but those that are gone here.
    fn delete(&mut self, keys: &RecordBatch, writer: &mut dyn StageWriter) -> Result<()> {
        let of_rows = self.format.keys_of(keys.columns())?;
        let mut is_here = Vec::with_capacity(keys.num_rows());
        for key in of_rows.iter().map(|key| key.data()) {
            let is_touched = self.touched.contains(key);
            if is_touched {
                self.deleted.insert(key.into());
            }
            is_here.push(!is_touched);
        }
        let here = filter_record_batch(keys, &BooleanArray::from(is_here))?;
        if here.num_rows() > 0 { writer.delete(&here) } else { Ok(()) }
    }

    /// Brings back what only this replica deleted.
    fn end(&mut self, writer: &mut dyn StageWriter) -> Result<()> {
        if std::mem::replace(&mut self.ended, true) {
            return Ok(());
        }
        for gone in &self.own.gone {
            let keys = self.format.keys(gone)?;
            let only_here: BooleanArray = keys.iter().map(|key| Some(!self.deleted.contains(key.data()))).collect();
            let back = filter_record_batch(gone, &only_here)?;
            if back.num_rows() > 0 {
                writer.write(&back)?;
            }
        }
        Ok(())
    }
}
