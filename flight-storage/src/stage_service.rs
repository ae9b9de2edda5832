//! The gRPC service that index servers call: takes what transactions stage, undoes it, and tells how the server is; and
//! that other storage servers call: gives them copies of shards.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use arrow::{array::RecordBatch, ipc::writer::StreamWriter};
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use drsdb_core::{
    Error, ErrorCode, Result, Table, WireError, crash_point, parse_ulid,
    scan::{ShardScanTask, ShardScanner},
    v1::{self, stage_request::Part, storage_server::Storage},
};
use futures::{Stream, StreamExt, TryStreamExt, stream::BoxStream};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::Instant,
};
use tonic::{Request, Response, Status, Streaming};

use crate::{
    commits::{Follower, clear_obstacles, clear_the_way},
    engine::{ColumnStatistics, ShardId, StageOptions, StageWriter, StagedPiece},
    engines::Engines,
    lookup,
    maintenance::Progress,
    metrics::process,
    needed_snapshots::NeededSnapshots,
    open_loads::Writing,
    query::QueryEngine,
    rebuild::{
        Mode, Rebuilds,
        copy::{RebuildStep, Rebuilder},
        spool::Spool,
    },
    revoked_logins::RevokedLogins,
    row_messages::{self, broken},
};

/// Messages between the network and the thread that writes.
const QUEUE: usize = 2;

/// A call that is no larger is staged when all of it is there, without a thread that waits for its parts.
const SMALL_BYTES: usize = 64 << 10;
/// A call of a follower that is no larger is tried again when something is in its way.
const REPEATABLE_BYTES: usize = 4 << 20;
/// How long a follower tries, and how long it waits in between.
const CONFLICT_PATIENCE: Duration = Duration::from_secs(5);
const CONFLICT_PAUSE: Duration = Duration::from_millis(5);
/// After how long what is in the way is asked about: until then its outcome is probably on its way.
const OUTCOME_PATIENCE: Duration = Duration::from_millis(500);
/// How long commits may take to arrive here that a call relies on.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(10);
/// Rows of a copy in one message.
const COPY_ROWS: usize = 8192;
/// Bytes of a copy in one message, about.
const COPY_BYTES: usize = 2 << 20;

/// Loads into single shards that one server takes at a time, each with a thread: half of what the process may have, see
/// [`MAX_BLOCKING_THREADS`].
const MAX_WRITERS: usize = MAX_BLOCKING_THREADS / 2;

/// How many threads the runtime of a process with a storage server must be allowed to block.
pub const MAX_BLOCKING_THREADS: usize = 4096;

/// See `service Storage` of `cluster.proto`.
#[derive(Debug, Clone)]
pub struct StageService {
    follower: Follower,
    rebuilder: Rebuilder,
    queries: Arc<QueryEngine>,
    needed: NeededSnapshots,
    revoked: RevokedLogins,
    upkeep: Progress,
    writers: Arc<Semaphore>,
}

/// The messages of a call after its header.
type Parts = BoxStream<'static, Result<v1::StageRequest, Status>>;

impl StageService {
    /// The service of a server that follows commits as `follower` says.
    pub fn new(
        follower: Follower,
        rebuilder: Rebuilder,
        queries: Arc<QueryEngine>,
        needed: NeededSnapshots,
        revoked: RevokedLogins,
        upkeep: Progress,
    ) -> Self {
        Self { follower, rebuilder, queries, needed, revoked, upkeep, writers: Arc::new(Semaphore::new(MAX_WRITERS)) }
    }

    async fn stage_call(
        &self,
        mut parts: impl Stream<Item = Result<v1::StageRequest, Status>> + Send + Unpin + 'static,
    ) -> Result<v1::StageResponse> {
        let Some(Part::Header(header)) = parts.next().await.transpose()?.and_then(|p| p.part) else {
            return Err(broken("the first message of a load has no header"));
        };
        self.check_meant(&header.server_id)?;
        let call = StageCall::new(header)?;
        self.follower.coordinators.note(call.options.transaction, &call.header.coordinator);
        // What the transaction has seen elsewhere is here as well.
        if call.header.snapshot < u64::MAX {
            self.follower.applied.wait_for(call.header.snapshot, SNAPSHOT_PATIENCE).await?;
        }
        let piece = self.enter(&call, parts.boxed()).await?;
        crash_point::reach("stage.done");
        response_of(&piece)
    }

    /// A server that lost its disk comes back as another one, under its URL: it has none of the rows that a change is checked
    /// against, and what it stages counts for nothing.
    fn check_meant(&self, server: &str) -> Result<()> {
        if server == self.follower.server_id.to_string() {
            return Ok(());
        }
        let message = format!("this is storage server {} and not {server}", self.follower.server_id);
        Err(Error::new(ErrorCode::Unavailable, message))
    }

    fn look_up(&self, request: v1::LookupRequest) -> Result<BoxStream<'static, Result<v1::ExportedRows, Status>>> {
        self.check_meant(&request.server_id)?;
        Ok(messages(lookup::rows(&self.follower.engines, request)?))
    }

    /// Into the engine, or into the spool of a shard that is being rebuilt.
    async fn enter(&self, call: &StageCall, parts: Parts) -> Result<StagedPiece> {
        let mode = self.follower.rebuilds.enter(call.shard).await;
        match &*mode {
            Mode::Spool(_) if call.options.checked => Err(WireError::new(
                ErrorCode::Conflict,
                "this replica is being rebuilt, and does not decide about writes",
            )
            .with_hint("run the statement again")
            .into()),
            Mode::Spool(spool) => self.keep(call, Arc::clone(spool), parts).await,
            Mode::Engine if call.options.checked => self.decide(call, parts).await,
            Mode::Engine => self.follow(call, parts).await,
        }
    }

    /// Stages what this replica decides about. Whoever is refused comes again, and should not meet for long what a server has
    /// left behind that is gone: an earlier attempt of its own, for one.
    async fn decide(&self, call: &StageCall, parts: Parts) -> Result<StagedPiece> {
        let decided = match hold(parts, SMALL_BYTES).await? {
            (held, None) => self.stage_held(call, held).await,
            (held, Some(rest)) => self.stage(call, after(held, rest)).await,
        };
        if let Err(error) = &decided
            && error.code() == ErrorCode::Conflict
            && let Err(error) = clear_obstacles(&self.follower, call.options.transaction).await
        {
            tracing::info!(%error, "a transaction that is in the way of another could not be asked about");
        }
        decided
    }

    /// Stages what the first replica decides about. What is in the way here is so there as well, and then this call is given
    /// up, or it is decided by now, or about to be undone: its outcome comes, or is asked for.
    async fn follow(&self, call: &StageCall, parts: Parts) -> Result<StagedPiece> {
        match hold(parts, REPEATABLE_BYTES).await? {
            (held, None) => self.follow_held(call, held).await,
            (held, Some(rest)) => self.stage(call, after(held, rest)).await,
        }
    }

    async fn follow_held(&self, call: &StageCall, held: Vec<v1::StageRequest>) -> Result<StagedPiece> {
        let started = Instant::now();
        loop {
            let error = match self.stage_held(call, held.clone()).await {
                Err(error) if error.code() == ErrorCode::Conflict => error,
                done => return done,
            };
            if started.elapsed() > CONFLICT_PATIENCE {
                return Err(error);
            }
            if started.elapsed() > OUTCOME_PATIENCE {
                clear_the_way(&self.follower, call.options.transaction).await?;
            }
            // The outcome comes by another way; there is nothing to be woken by.
            #[allow(clippy::disallowed_methods)]
            tokio::time::sleep(CONFLICT_PAUSE).await;
        }
    }

    /// What a call's writer needs besides its parts.
    fn staging(&self, call: &StageCall) -> Result<Staging> {
        let permit = Arc::clone(&self.writers).try_acquire_owned().map_err(|_| {
            let message = format!("{MAX_WRITERS} shards are being loaded on this server already");
            let error = WireError::new(ErrorCode::ResourceExhausted, message);
            error.with_hint("load into fewer tables at a time, or into tables with fewer shards")
        })?;
        Ok(Staging {
            options: call.options,
            table: Arc::clone(&call.table),
            shard: call.shard.shard,
            engines: self.follower.engines.clone(),
            rebuilds: self.follower.rebuilds.clone(),
            open: self.follower.open.enter(call.options.transaction, call.options.sequence)?,
            _permit: permit,
        })
    }

    /// Stages a call that is there.
    async fn stage_held(&self, call: &StageCall, held: Vec<v1::StageRequest>) -> Result<StagedPiece> {
        let staging = self.staging(call)?;
        let writer = tokio::task::spawn_blocking(move || {
            let mut writer = staging.begin()?;
            for part in held {
                row_messages::take(&mut *writer, &staging.table, part.part)?;
            }
            staging.finish(writer)
        });
        join(writer.await)
    }

    /// Stages a call as it comes.
    async fn stage(&self, call: &StageCall, mut parts: Parts) -> Result<StagedPiece> {
        let staging = self.staging(call)?;
        let (sender, mut receiver) = mpsc::channel::<Option<Part>>(QUEUE);
        // The writer lives on a thread where blocking is allowed. When the sender is dropped before the load is complete,
        // `complete` says so, and the writer is dropped unfinished.
        let (complete, completed) = tokio::sync::oneshot::channel::<()>();
        let writer = tokio::task::spawn_blocking(move || {
            let mut writer = staging.begin()?;
            while let Some(part) = receiver.blocking_recv() {
                row_messages::take(&mut *writer, &staging.table, part)?;
            }
            if completed.blocking_recv().is_err() {
                return Err(Error::new(ErrorCode::Cancelled, "the load ended before all rows had come"));
            }
            staging.finish(writer)
        });
        while let Some(part) = parts.next().await {
            if sender.send(part?.part).await.is_err() {
                // The writer failed: its error says why.
                return join(writer.await);
            }
        }
        drop(sender);
        // A call that was reset looks like one that has ended. But its future is dropped when it next waits: so it waits.
        tokio::task::yield_now().await;
        let _ = complete.send(());
        join(writer.await)
    }

    /// Keeps a call as it is.
    async fn keep(&self, call: &StageCall, spool: Arc<Spool>, mut parts: Parts) -> Result<StagedPiece> {
        let transaction = call.options.transaction;
        let writing = self.follower.open.enter(transaction, call.options.sequence)?;
        let kept = Arc::new(self.follower.rebuilds.begin_call(&spool, transaction, call.options.sequence)?);
        let mut piece = StagedPiece::default();
        let mut part = v1::StageRequest { part: Some(Part::Header(call.header.clone())) };
        loop {
            let (spool, kept, table) = (Arc::clone(&spool), Arc::clone(&kept), Arc::clone(&call.table));
            let counted = join(
                tokio::task::spawn_blocking(move || {
                    let counted = row_messages::count(&table, part.part.as_ref())?;
                    spool.part(&kept, &part)?;
                    Ok(counted)
                })
                .await,
            )?;
            piece.rows += counted.rows;
            piece.deleted += counted.deleted;
            match parts.next().await.transpose()? {
                Some(next) if matches!(next.part, Some(Part::Batch(_) | Part::Deletes(_))) => part = next,
                Some(_) => return Err(broken("a second header in a load")),
                None => break,
            }
        }
        tokio::task::yield_now().await;
        let (rebuilds, engines, kept) =
            (self.follower.rebuilds.clone(), self.follower.engines.clone(), Arc::into_inner(kept));
        let kept = kept.ok_or_else(|| Error::internal("a kept call is still being written"))?;
        join(
            tokio::task::spawn_blocking(move || {
                rebuilds.end_call(&engines, &spool, kept)?;
                if writing.is_aborted() {
                    rebuilds.decide(&engines, transaction, None)?;
                    return Err(Error::new(ErrorCode::Cancelled, "the load was aborted"));
                }
                Ok(())
            })
            .await,
        )?;
        Ok(piece)
    }

    fn export(&self, request: v1::ExportShardRequest) -> Result<BoxStream<'static, Result<v1::ExportedRows, Status>>> {
        self.check_meant(&request.server_id)?;
        let table = request.table.as_ref().ok_or_else(|| broken("a copy without a table"))?;
        let table = Arc::new(Table::from_proto(table)?);
        let projection = if request.keys_only { table.primary_key.clone() } else { (0..table.columns.len()).collect() };
        let task = ShardScanTask {
            shards: vec![request.shard],
            snapshot: request.snapshot,
            except: (request.except > 0).then_some(request.except),
            projection,
            filters: Vec::new(),
            limit: None,
            batch_rows: COPY_ROWS,
            metrics: ExecutionPlanMetricsSet::new(),
            partition: 0,
            own: None,
            table,
        };
        Ok(messages(self.follower.engines.scan(task)?.map_err(Error::from)))
    }
}

/// A call that is being staged.
struct Staging {
    options: StageOptions,
    table: Arc<Table>,
    shard: u32,
    engines: Engines,
    rebuilds: Rebuilds,
    open: Writing,
    _permit: OwnedSemaphorePermit,
}

impl Staging {
    fn begin(&self) -> Result<Box<dyn StageWriter>> {
        self.engines.stage(self.options, &self.table, self.shard)
    }

    fn finish(&self, writer: Box<dyn StageWriter>) -> Result<StagedPiece> {
        let piece = writer.finish()?;
        // An abort that came before the call was entered has marked nothing.
        if self.open.is_aborted() || self.rebuilds.knows_aborted(self.options.transaction) {
            self.engines.abort(self.options.transaction)?;
            return Err(Error::new(ErrorCode::Cancelled, "the load was aborted"));
        }
        Ok(piece)
    }
}

/// The parts of a call, up to the first that make it larger than `limit` bytes, and the rest if it is.
async fn hold(mut parts: Parts, limit: usize) -> Result<(Vec<v1::StageRequest>, Option<Parts>)> {
    let (mut held, mut bytes) = (Vec::new(), 0);
    while bytes <= limit {
        let Some(part) = parts.next().await.transpose()? else {
            // A call that was reset looks like one that has ended. But its future is dropped when it next waits: so it waits.
            tokio::task::yield_now().await;
            return Ok((held, None));
        };
        bytes += part.part.as_ref().map_or(0, |part| match part {
            Part::Batch(bytes) | Part::Deletes(bytes) => bytes.len(),
            Part::Header(_) => 0,
        });
        held.push(part);
    }
    Ok((held, Some(parts)))
}

fn after(held: Vec<v1::StageRequest>, rest: Parts) -> Parts {
    futures::stream::iter(held.into_iter().map(Ok)).chain(rest).boxed()
}

/// A staged call's header, understood.
struct StageCall {
    header: v1::StageHeader,
    table: Arc<Table>,
    shard: ShardId,
    options: StageOptions,
}

impl StageCall {
    fn new(header: v1::StageHeader) -> Result<Self> {
        let table = header.table.as_ref().ok_or_else(|| broken("a load without a table"))?;
        let table = Arc::new(Table::from_proto(table)?);
        if header.shard >= table.shards {
            return Err(broken("a load into a shard that the table does not have"));
        }
        let options = StageOptions {
            transaction: parse_ulid(&header.transaction_id)?,
            sequence: header.sequence.max(1),
            snapshot: header.snapshot,
            checked: !header.follower,
        };
        Ok(Self { shard: ShardId { table: table.id, shard: header.shard }, table, options, header })
    }
}

/// Rows as messages.
fn messages(
    rows: impl Stream<Item = Result<RecordBatch>> + Send + 'static,
) -> BoxStream<'static, Result<v1::ExportedRows, Status>> {
    let messages = rows.map(|batch| Ok::<_, Status>(futures::stream::iter(encode(&batch?)?.into_iter().map(Ok))));
    messages.try_flatten().boxed()
}

/// Messages of a good size with the rows of a batch.
fn encode(batch: &RecordBatch) -> Result<Vec<v1::ExportedRows>> {
    let pieces = (batch.get_array_memory_size() / COPY_BYTES + 1).min(batch.num_rows().max(1));
    let rows = batch.num_rows().div_ceil(pieces).max(1);
    let slices = (0..batch.num_rows()).step_by(rows).map(|at| batch.slice(at, rows.min(batch.num_rows() - at)));
    slices
        .map(|slice| {
            let mut writer = StreamWriter::try_new(Vec::new(), &slice.schema())?;
            writer.write(&slice)?;
            Ok(v1::ExportedRows { batch: writer.into_inner()?.into() })
        })
        .collect()
}

fn join<T>(result: Result<Result<T>, tokio::task::JoinError>) -> Result<T> {
    result.map_err(|error| Error::internal(format!("a load's writer failed: {error}")))?
}

#[tonic::async_trait]
impl Storage for StageService {
    async fn stage(
        &self,
        request: Request<Streaming<v1::StageRequest>>,
    ) -> Result<Response<v1::StageResponse>, Status> {
        let response = self.stage_call(request.into_inner()).await.map_err(|error| self.name_server(error))?;
        Ok(Response::new(response))
    }

    async fn abort(&self, request: Request<v1::AbortRequest>) -> Result<Response<v1::AbortResponse>, Status> {
        let transaction = parse_ulid(&request.into_inner().transaction_id)?;
        let (engines, rebuilds) = (self.follower.engines.clone(), self.follower.rebuilds.clone());
        // First those that are being written, so that none of them is staged after what is staged has been undone.
        self.follower.open.abort(transaction);
        self.follower.coordinators.forget(transaction);
        self.follower.open.forget(transaction);
        let undone = tokio::task::spawn_blocking(move || rebuilds.decide(&engines, transaction, None));
        join(undone.await)?;
        Ok(Response::new(v1::AbortResponse {}))
    }

    async fn rollback_to(
        &self,
        request: Request<v1::RollbackToRequest>,
    ) -> Result<Response<v1::RollbackToResponse>, Status> {
        let request = request.into_inner();
        let (transaction, sequence) = (parse_ulid(&request.transaction_id)?, request.sequence);
        // A statement fails at one shard while its calls to others are still at work.
        self.follower.open.undo(transaction, request.last_sequence).await;
        let (engines, rebuilds) = (self.follower.engines.clone(), self.follower.rebuilds.clone());
        let undone = tokio::task::spawn_blocking(move || rebuilds.rollback_to(&engines, transaction, sequence));
        join(undone.await)?;
        Ok(Response::new(v1::RollbackToResponse {}))
    }

    async fn rebuild(&self, request: Request<v1::RebuildRequest>) -> Result<Response<v1::RebuildResponse>, Status> {
        for shard in request.into_inner().shards {
            self.rebuilder.start(ShardId { table: parse_ulid(&shard.table_id)?, shard: shard.shard });
        }
        Ok(Response::new(v1::RebuildResponse {}))
    }

    type LookupStream = BoxStream<'static, Result<v1::ExportedRows, Status>>;

    async fn lookup(&self, request: Request<v1::LookupRequest>) -> Result<Response<Self::LookupStream>, Status> {
        Ok(Response::new(self.look_up(request.into_inner()).map_err(|error| self.name_server(error))?))
    }

    type ExportShardStream = BoxStream<'static, Result<v1::ExportedRows, Status>>;

    async fn export_shard(
        &self,
        request: Request<v1::ExportShardRequest>,
    ) -> Result<Response<Self::ExportShardStream>, Status> {
        Ok(Response::new(self.export(request.into_inner()).map_err(|error| self.name_server(error))?))
    }

    async fn checksum(&self, request: Request<v1::ChecksumRequest>) -> Result<Response<v1::ChecksumResponse>, Status> {
        let request = request.into_inner();
        let table = request.table.as_ref().ok_or_else(|| broken("a checksum without a table"))?;
        let table = Arc::new(Table::from_proto(table)?);
        let checksum = self.follower.engines.checksum(table, request.shard, request.version).await;
        let checksum = checksum.map_err(|error| self.name_server(error))?;
        let bytes = checksum.digest.to_be_bytes().to_vec().into();
        Ok(Response::new(v1::ChecksumResponse { rows: checksum.rows, checksum: bytes }))
    }

    async fn status(&self, request: Request<v1::StatusRequest>) -> Result<Response<v1::StatusResponse>, Status> {
        let request = request.into_inner();
        self.needed.note(&request.index_server, request.oldest_snapshot, std::time::Instant::now());
        self.revoked.note(request.revoked);
        let usage = process::usage();
        Ok(Response::new(v1::StatusResponse {
            server_id: self.follower.server_id.to_string(),
            applied_version: self.follower.applied.get(),
            running_queries: self.queries.running() as u64,
            memory_bytes: usage.memory_bytes,
            peak_memory_bytes: usage.peak_memory_bytes,
            cpu_ms: usage.cpu_ms,
            query_pool_bytes: self.queries.reserved_bytes() as u64,
            compaction_steps: self.upkeep.compactions(),
            horizon: self.upkeep.horizon(),
            durable_version: self.follower.applied.durable(),
            rebuilds: self.rebuilder.progress().into_iter().map(progress_of).collect(),
            shards_copied: self.rebuilder.done.copied.load(Ordering::Relaxed),
            shards_caught_up: self.rebuilder.done.caught_up.load(Ordering::Relaxed),
        }))
    }
}

impl StageService {
    /// Says on which server a load failed: a full disk, for one, is fixed there.
    fn name_server(&self, error: Error) -> Error {
        error.to_wire().with_field("server", self.follower.server_id).into()
    }
}

fn progress_of((shard, progress): (ShardId, RebuildStep)) -> v1::RebuildProgress {
    let table_id = shard.table.to_string();
    v1::RebuildProgress { table_id, shard: shard.shard, step: progress.step.to_owned(), bytes: progress.bytes }
}

fn response_of(piece: &StagedPiece) -> Result<v1::StageResponse> {
    Ok(v1::StageResponse {
        rows: piece.rows,
        bytes: piece.bytes,
        columns: piece.columns.iter().map(statistics_of).collect::<Result<_>>()?,
        segments: piece.segments.iter().map(|segment| segment.to_string()).collect(),
        deleted: piece.deleted,
    })
}

fn statistics_of(column: &ColumnStatistics) -> Result<v1::ColumnStatistics> {
    let min_max = match (&column.min, &column.max) {
        (Some(min), Some(max)) => {
            let values = arrow::compute::concat(&[min, max])?;
            let batch = RecordBatch::try_from_iter([("value", values)])?;
            let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema())?;
            writer.write(&batch)?;
            writer.into_inner()?.into()
        }
        _ => Default::default(),
    };
    Ok(v1::ColumnStatistics { null_count: column.null_count, min_max, distinct_estimate: column.distinct_estimate })
}
