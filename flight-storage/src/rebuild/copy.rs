//! One rebuild from its beginning to its end; see the steps in [`crate::rebuild`].

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use drsdb_core::{
    Error, ErrorCode, Result, Table,
    net::name_server,
    v1::{
        ExportShardRequest, FinishRebuildRequest, RebuildSource, StartRebuildRequest, StartRebuildResponse,
        cluster_client::ClusterClient, start_rebuild_response::Next, storage_client::StorageClient,
    },
};
use parking_lot::Mutex;
use tokio::sync::{OwnedRwLockWriteGuard, mpsc};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use url::Url;

use super::{Mode, replay::replay, spool::Spool};
use crate::{
    commits::{Follower, resolve_gone},
    engine::ShardId,
    server::LOAD_MESSAGE_BYTES,
};

/// How long calls into the shard may wait while the rebuild wants it for itself. It tries again after that.
const ALONE_TIME: Duration = Duration::from_secs(1);
/// How long to wait after a failure.
const PAUSE: Duration = Duration::from_millis(500);
/// How long commits up to the copy's snapshot may take to arrive here.
pub(super) const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(30);
/// Batches of a copy between the network and the thread that writes.
pub(super) const QUEUE: usize = 2;
/// A rebuild gives up after so many failures in a row; the index servers ask for it again while it is needed.
const MAX_FAILURES: usize = 10;

/// Runs rebuilds. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Rebuilder {
    /// The engines and the spools, and who is to be asked.
    pub follower: Follower,
    /// Ends all rebuilds.
    pub shutdown: CancellationToken,
    /// Those that run.
    pub running: Arc<Mutex<BTreeMap<ShardId, RebuildStep>>>,
    /// What was done since the start.
    pub done: Arc<RebuildsDone>,
}

/// How often shards were given what they missed.
#[derive(Debug, Default)]
pub struct RebuildsDone {
    /// As a whole.
    pub copied: AtomicU64,
    /// By what had changed.
    pub caught_up: AtomicU64,
}

/// How far a rebuild is.
#[derive(Debug, Clone, Copy)]
pub struct RebuildStep {
    /// For people.
    pub step: &'static str,
    /// Received from other replicas.
    pub bytes: u64,
}

/// Removes a shard from the running ones, however its rebuild ends.
struct Running(Arc<Mutex<BTreeMap<ShardId, RebuildStep>>>, ShardId);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.lock().remove(&self.1);
    }
}

impl Rebuilder {
    /// Goes on with rebuilds that a restart interrupted. Until an index server has said what is to become of them, calls
    /// into their shards wait.
    pub fn resume(&self, shards: Vec<ShardId>) {
        for shard in shards {
            let gate = self.follower.rebuilds.gate(shard).try_write_owned();
            self.begin(shard, gate.ok());
        }
    }

    /// Whether a rebuild of the shard runs.
    pub fn is_running(&self, shard: ShardId) -> bool {
        self.running.lock().contains_key(&shard)
    }

    /// Those that run.
    pub fn progress(&self) -> Vec<(ShardId, RebuildStep)> {
        self.running.lock().iter().map(|(shard, progress)| (*shard, *progress)).collect()
    }

    pub(super) fn begin_step(&self, shard: ShardId, step: &'static str) {
        if let Some(progress) = self.running.lock().get_mut(&shard) {
            *progress = RebuildStep { step, bytes: 0 };
        }
    }

    pub(super) fn received(&self, shard: ShardId, bytes: usize) {
        if let Some(progress) = self.running.lock().get_mut(&shard) {
            progress.bytes += bytes as u64;
        }
    }

    /// Begins a rebuild, unless it runs.
    pub fn start(&self, shard: ShardId) {
        self.begin(shard, None);
    }

    fn begin(&self, shard: ShardId, alone: Option<OwnedRwLockWriteGuard<Mode>>) {
        match self.running.lock().entry(shard) {
            Entry::Occupied(_) => return,
            Entry::Vacant(new) => new.insert(RebuildStep { step: "waiting", bytes: 0 }),
        };
        let (this, running) = (self.clone(), Running(Arc::clone(&self.running), shard));
        tokio::spawn(async move {
            let _running = running;
            let shutdown = this.shutdown.clone();
            shutdown.run_until_cancelled(this.run(shard, alone)).await;
        });
    }

    async fn run(&self, shard: ShardId, mut alone: Option<OwnedRwLockWriteGuard<Mode>>) {
        let resumed = alone.is_some();
        let mut failures = 0;
        // One that kept calls before a restart goes on until it knows better: calls wait for it.
        while resumed || failures < MAX_FAILURES {
            match self.attempt(shard, &mut alone).await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => {
                    failures += 1;
                    tracing::info!(table = %shard.table, shard = shard.shard, %error, "a rebuild failed; trying again");
                }
            }
            pause().await;
        }
    }

    /// Tries once; true when nothing more is to be done.
    async fn attempt(&self, shard: ShardId, alone: &mut Option<OwnedRwLockWriteGuard<Mode>>) -> Result<bool> {
        let started = match alone.take() {
            Some(guard) => self.open(shard, guard, alone).await?,
            None => {
                let Some(guard) = self.alone(shard).await else { return Ok(false) };
                self.open(shard, guard, &mut None).await?
            }
        };
        let Some((spool, started)) = started else { return Ok(true) };
        let table = started.table.as_ref().ok_or_else(|| Error::internal("a rebuild without a table"))?;
        let table = Arc::new(Table::from_proto(table)?);
        if self.catch_up(shard, &table, &started).await? {
            self.done.caught_up.fetch_add(1, Ordering::Relaxed);
        } else {
            tracing::info!(table = %table.name, shard = shard.shard, snapshot = started.snapshot, "copying a shard");
            self.copy(shard, &table, &started).await?;
            self.done.copied.fetch_add(1, Ordering::Relaxed);
        }
        self.follower.applied.wait_for(started.snapshot, SNAPSHOT_PATIENCE).await?;
        self.begin_step(shard, "replaying");
        let mut at = self.replay(&spool, shard, started.snapshot, 0).await?;
        loop {
            let Some(mut guard) = self.alone(shard).await else {
                at = self.replay(&spool, shard, started.snapshot, at).await?;
                continue;
            };
            self.replay(&spool, shard, started.snapshot, at).await?;
            // The spool, which is to go, has the outcomes that it knows on disk; the engine may not have them there yet.
            let engines = self.follower.engines.clone();
            blocking(move || engines.sync()).await?;
            // As long as it is not known whether the replica is current, nothing may go into the spool.
            while let Err(error) = self.finish(shard, started.snapshot).await {
                if matches!(error.code(), ErrorCode::Conflict | ErrorCode::NotFound) {
                    return Err(error);
                }
                pause().await;
            }
            self.follower.rebuilds.forget(shard)?;
            *guard = Mode::Engine;
            return Ok(true);
        }
    }

    /// Waits until no call into the shard is under way, and keeps new ones waiting; not for long.
    async fn alone(&self, shard: ShardId) -> Option<OwnedRwLockWriteGuard<Mode>> {
        tokio::time::timeout(ALONE_TIME, self.follower.rebuilds.gate(shard).write_owned()).await.ok()
    }

    /// Opens the spool and asks an index server to have the shard written here, while no call can come in: one that is
    /// staged afterwards is kept. `None` when there is nothing to rebuild. On failure of a resumed rebuild, calls keep
    /// waiting.
    async fn open(
        &self,
        shard: ShardId,
        mut guard: OwnedRwLockWriteGuard<Mode>,
        keep: &mut Option<OwnedRwLockWriteGuard<Mode>>,
    ) -> Result<Option<(Arc<Spool>, StartRebuildResponse)>> {
        let was_open = matches!(*guard, Mode::Spool(_));
        let (rebuilds, resumed) =
            (self.follower.rebuilds.clone(), !was_open && self.follower.rebuilds.has_spool(shard));
        let spool = blocking(move || rebuilds.spool(shard)).await?;
        let request = StartRebuildRequest {
            server_id: self.follower.server_id.to_string(),
            table_id: shard.table.to_string(),
            shard: shard.shard,
            again: spool.has_lost(),
            fresh: !was_open && !resumed,
        };
        let asked = self
            .ask(|mut client| {
                let request = request.clone();
                async move { client.start_rebuild(request).await }
            })
            .await;
        let started = match asked {
            Ok(started) => started,
            Err(error) => {
                if resumed {
                    *keep = Some(guard);
                } else if !was_open {
                    // Nothing was promised yet.
                    self.follower.rebuilds.forget(shard)?;
                }
                return Err(error);
            }
        };
        spool.told();
        match started.next() {
            Next::Copy => {
                *guard = Mode::Spool(Arc::clone(&spool));
                Ok(Some((spool, started)))
            }
            Next::Nothing => {
                // It was finished before a restart, or it had missed nothing.
                self.follower.rebuilds.forget(shard)?;
                *guard = Mode::Engine;
                Ok(None)
            }
            Next::Drop => {
                let engines = self.follower.engines.clone();
                blocking(move || {
                    engines.floors().set(shard, u64::MAX)?;
                    engines.drop_shard(shard)
                })
                .await?;
                self.follower.rebuilds.forget(shard)?;
                *guard = Mode::Engine;
                Ok(None)
            }
            Next::Unspecified => Err(Error::internal("an index server does not say how to rebuild a shard")),
        }
    }

    /// Replaces the shard by the rows of a current replica.
    async fn copy(&self, shard: ShardId, table: &Arc<Table>, started: &StartRebuildResponse) -> Result<()> {
        let mut failure = Error::new(ErrorCode::Unavailable, "no server has a current replica of the shard");
        self.begin_step(shard, "copying");
        for source in &started.sources {
            match self.copy_from(source, shard, table, started.snapshot).await {
                Ok(()) => return Ok(()),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    async fn copy_from(&self, source: &RebuildSource, shard: ShardId, table: &Arc<Table>, snapshot: u64) -> Result<()> {
        let (mut client, url) = self.source(source)?;
        let request = ExportShardRequest {
            table: Some(table.to_proto()),
            shard: shard.shard,
            snapshot,
            server_id: source.server_id.clone(),
            ..Default::default()
        };
        let named = |status| name_server(status, &url);
        let mut rows = client.export_shard(request).await.map_err(named)?.into_inner();
        let (sender, mut receiver) = mpsc::channel::<bytes::Bytes>(QUEUE);
        // Dropped before its end, the sender leaves the writer unfinished.
        let (complete, completed) = tokio::sync::oneshot::channel::<()>();
        let (engines, table) = (self.follower.engines.clone(), Arc::clone(table));
        let writer = tokio::task::spawn_blocking(move || {
            let mut writer = engines.import(&table, shard.shard, snapshot)?;
            while let Some(bytes) = receiver.blocking_recv() {
                crate::row_messages::take(
                    &mut *writer,
                    &table,
                    Some(drsdb_core::v1::stage_request::Part::Batch(bytes)),
                )?;
            }
            if completed.blocking_recv().is_err() {
                return Err(Error::new(ErrorCode::Cancelled, "the copy ended before all rows had come"));
            }
            // Before the rows are replaced: a scan that looks afterwards must know.
            engines.floors().set(shard, snapshot)?;
            writer.finish().map(drop)
        });
        while let Some(message) = rows.message().await.map_err(named)? {
            self.received(shard, message.batch.len());
            if sender.send(message.batch).await.is_err() {
                break;
            }
        }
        drop(sender);
        let _ = complete.send(());
        writer.await.map_err(|error| Error::internal(format!("the writer of a copy failed: {error}")))?
    }

    pub(super) fn source(&self, source: &RebuildSource) -> Result<(StorageClient<Channel>, Url)> {
        let url = Url::parse(&source.url).map_err(|error| Error::internal(format!("{}: {error}", source.url)))?;
        let client = StorageClient::new(self.follower.channels.channel(&url)?);
        Ok((client.max_decoding_message_size(LOAD_MESSAGE_BYTES), url))
    }

    async fn replay(&self, spool: &Arc<Spool>, shard: ShardId, copied: u64, from: usize) -> Result<usize> {
        let (engines, replayed) = (self.follower.engines.clone(), Arc::clone(spool));
        let done = blocking(move || replay(&engines, &replayed, shard.shard, copied, from)).await;
        if let Err(error) = &done
            && matches!(error.code(), ErrorCode::Conflict | ErrorCode::ConstraintViolation)
            // What nobody runs any more was aborted while this server was down, and what is in the copy is in its way.
            && let Err(error) = resolve_gone(&self.follower, spool.undecided()).await
        {
            tracing::info!(%error, "transactions that are in the way of a rebuild could not be asked about");
        }
        done
    }

    async fn finish(&self, shard: ShardId, copied: u64) -> Result<()> {
        let request = FinishRebuildRequest {
            server_id: self.follower.server_id.to_string(),
            table_id: shard.table.to_string(),
            shard: shard.shard,
            copied,
        };
        let asked = self.ask(|mut client| {
            let request = request.clone();
            async move { client.finish_rebuild(request).await }
        });
        asked.await.map(drop)
    }

    /// Asks the first index server that answers.
    async fn ask<T, F>(&self, call: impl Fn(ClusterClient<Channel>) -> F) -> Result<T>
    where
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        let mut failure = Error::new(ErrorCode::Unavailable, "no index server is known");
        for url in self.follower.index_servers.list() {
            match call(ClusterClient::new(self.follower.channels.channel(&url)?)).await {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) => failure = name_server(status, &url),
            }
            if failure.code() != ErrorCode::Unavailable {
                break;
            }
        }
        Err(failure)
    }
}

/// What failed was another server, or a snapshot that was too old: both take a moment, and nothing tells when it is over.
pub(super) async fn pause() {
    #[allow(clippy::disallowed_methods)]
    tokio::time::sleep(PAUSE).await;
}

pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Error::internal(format!("a rebuild's thread failed: {error}")))?
}
