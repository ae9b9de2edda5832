//! The gRPC service that index servers call: takes rows of loads, aborts, and tells how the server is.

use std::{collections::HashMap, io::Cursor, sync::Arc};

use arrow::ipc::writer::StreamWriter;
use arrow::{array::RecordBatch, ipc::reader::StreamReader};
use drsdb_core::{
    Error, ErrorCode, Result, Table, Ulid, WireError, parse_ulid,
    v1::{self, storage_server::Storage},
};
use futures::{Stream, StreamExt};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc};
use tonic::{Request, Response, Status, Streaming};

use crate::{
    commits::AppliedVersion,
    engine::{ColumnStatistics, StageOptions, StagedPiece},
    engines::Engines,
    metrics::process,
    query::QueryEngine,
};

/// Messages between the network and the thread that writes.
const QUEUE: usize = 2;

/// Loads into single shards that one server takes at a time, each with a thread: half of what the process may have, see
/// [`MAX_BLOCKING_THREADS`].
const MAX_WRITERS: usize = MAX_BLOCKING_THREADS / 2;

/// How many threads the runtime of a process with a storage server must be allowed to block.
pub const MAX_BLOCKING_THREADS: usize = 4096;

/// The transactions whose rows are coming in now. An abort that arrives in the midst of it marks them, so that a writer
/// that ends after it undoes what it staged.
#[derive(Debug, Clone, Default)]
pub struct OpenLoads(Arc<Mutex<HashMap<Ulid, OpenLoad>>>);

#[derive(Debug, Default)]
struct OpenLoad {
    writers: usize,
    aborted: bool,
}

impl OpenLoads {
    /// Whether rows of the transaction are coming in.
    pub fn is_open(&self, transaction: Ulid) -> bool {
        self.0.lock().contains_key(&transaction)
    }

    fn enter(&self, transaction: Ulid) -> Writing {
        self.0.lock().entry(transaction).or_default().writers += 1;
        Writing { loads: self.clone(), transaction }
    }

    fn abort(&self, transaction: Ulid) {
        if let Some(load) = self.0.lock().get_mut(&transaction) {
            load.aborted = true;
        }
    }
}

/// One writer of a transaction, for as long as it lives.
struct Writing {
    loads: OpenLoads,
    transaction: Ulid,
}

impl Writing {
    fn is_aborted(&self) -> bool {
        self.loads.0.lock().get(&self.transaction).is_some_and(|load| load.aborted)
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        let mut loads = self.loads.0.lock();
        if let Some(load) = loads.get_mut(&self.transaction) {
            load.writers -= 1;
            if load.writers == 0 {
                loads.remove(&self.transaction);
            }
        }
    }
}

/// See `service Storage` of `cluster.proto`.
#[derive(Debug, Clone)]
pub struct StageService {
    engines: Engines,
    applied: AppliedVersion,
    queries: Arc<QueryEngine>,
    server_id: String,
    open: OpenLoads,
    writers: Arc<Semaphore>,
}

impl StageService {
    /// The service over a server's engines.
    pub fn new(
        engines: Engines,
        applied: AppliedVersion,
        queries: Arc<QueryEngine>,
        server_id: String,
        open: OpenLoads,
    ) -> Self {
        Self { engines, applied, queries, server_id, open, writers: Arc::new(Semaphore::new(MAX_WRITERS)) }
    }

    async fn stage_parts(
        &self,
        mut parts: impl Stream<Item = Result<v1::StageRequest, Status>> + Unpin,
    ) -> Result<StagedPiece> {
        let Some(v1::stage_request::Part::Header(header)) = parts.next().await.transpose()?.and_then(|p| p.part) else {
            return Err(broken("the first message of a load has no header"));
        };
        let table = header.table.as_ref().ok_or_else(|| broken("a load without a table"))?;
        let table = Arc::new(Table::from_proto(table)?);
        let transaction = parse_ulid(&header.transaction_id)?;
        if header.shard >= table.shards {
            return Err(broken("a load into a shard that the table does not have"));
        }
        let options = StageOptions {
            transaction,
            sequence: header.sequence.max(1),
            snapshot: header.snapshot,
            checked: !header.follower,
        };
        let permit = Arc::clone(&self.writers).try_acquire_owned().map_err(|_| {
            let message = format!("{MAX_WRITERS} shards are being loaded on this server already");
            let error = WireError::new(ErrorCode::ResourceExhausted, message);
            error.with_hint("load into fewer tables at a time, or into tables with fewer shards")
        })?;
        let writing = self.open.enter(transaction);
        let (sender, mut receiver) = mpsc::channel::<RecordBatch>(QUEUE);
        let engines = self.engines.clone();
        let schema = table.arrow_schema();
        // The writer lives on a thread where blocking is allowed. When the sender is dropped before the load is complete,
        // `complete` says so, and the writer is dropped unfinished.
        let (complete, completed) = tokio::sync::oneshot::channel::<()>();
        let writer = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let mut writer = engines.stage(options, &table, header.shard)?;
            while let Some(batch) = receiver.blocking_recv() {
                writer.write(&batch)?;
            }
            if completed.blocking_recv().is_err() {
                return Err(Error::new(ErrorCode::Cancelled, "the load ended before all rows had come"));
            }
            let piece = writer.finish()?;
            if writing.is_aborted() {
                engines.abort(transaction)?;
                return Err(Error::new(ErrorCode::Cancelled, "the load was aborted"));
            }
            Ok(piece)
        });
        while let Some(part) = parts.next().await {
            let Some(v1::stage_request::Part::Batch(bytes)) = part?.part else {
                return Err(broken("a second header in a load"));
            };
            for batch in StreamReader::try_new(Cursor::new(bytes), None)? {
                let batch = batch?;
                if !batch
                    .schema()
                    .fields()
                    .iter()
                    .map(|f| f.data_type())
                    .eq(schema.fields().iter().map(|f| f.data_type()))
                {
                    return Err(broken("rows of another schema than the table's"));
                }
                let batch = RecordBatch::try_new(Arc::clone(&schema), batch.columns().to_vec())?;
                if sender.send(batch).await.is_err() {
                    // The writer failed: its error says why.
                    return join(writer.await);
                }
            }
        }
        drop(sender);
        // A call that was reset looks like one that has ended. But its future is dropped when it next waits: so it waits.
        tokio::task::yield_now().await;
        let _ = complete.send(());
        join(writer.await)
    }
}

fn join<T>(result: Result<Result<T>, tokio::task::JoinError>) -> Result<T> {
    result.map_err(|error| Error::internal(format!("a load's writer failed: {error}")))?
}

fn broken(what: &str) -> Error {
    Error::new(ErrorCode::InvalidArgument, format!("a message between servers is broken: {what}"))
}

#[tonic::async_trait]
impl Storage for StageService {
    async fn stage(
        &self,
        request: Request<Streaming<v1::StageRequest>>,
    ) -> Result<Response<v1::StageResponse>, Status> {
        let piece = self.stage_parts(request.into_inner()).await.map_err(|error| self.name_server(error))?;
        Ok(Response::new(response_of(&piece)?))
    }

    async fn abort(&self, request: Request<v1::AbortRequest>) -> Result<Response<v1::AbortResponse>, Status> {
        let transaction = parse_ulid(&request.into_inner().transaction_id)?;
        let engines = self.engines.clone();
        // First those that are being written, so that none of them is staged after what is staged has been undone.
        self.open.abort(transaction);
        join(tokio::task::spawn_blocking(move || engines.abort(transaction)).await)?;
        Ok(Response::new(v1::AbortResponse {}))
    }

    async fn rollback_to(
        &self,
        request: Request<v1::RollbackToRequest>,
    ) -> Result<Response<v1::RollbackToResponse>, Status> {
        let request = request.into_inner();
        let transaction = parse_ulid(&request.transaction_id)?;
        let engines = self.engines.clone();
        join(tokio::task::spawn_blocking(move || engines.rollback_to(transaction, request.sequence)).await)?;
        Ok(Response::new(v1::RollbackToResponse {}))
    }

    async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::StatusResponse>, Status> {
        let usage = process::usage();
        Ok(Response::new(v1::StatusResponse {
            server_id: self.server_id.clone(),
            applied_version: self.applied.get(),
            running_queries: self.queries.running() as u64,
            memory_bytes: usage.memory_bytes,
            peak_memory_bytes: usage.peak_memory_bytes,
            cpu_ms: usage.cpu_ms,
            query_pool_bytes: self.queries.reserved_bytes() as u64,
        }))
    }
}

impl StageService {
    /// Says on which server a load failed: a full disk, for one, is fixed there.
    fn name_server(&self, error: Error) -> Error {
        error.to_wire().with_field("server", &self.server_id).into()
    }
}

fn response_of(piece: &StagedPiece) -> Result<v1::StageResponse> {
    Ok(v1::StageResponse {
        rows: piece.rows,
        bytes: piece.bytes,
        columns: piece.columns.iter().map(statistics_of).collect::<Result<_>>()?,
        segments: piece.segments.iter().map(|segment| segment.to_string()).collect(),
        deleted: piece.deleted,
        applied_version: 0,
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
