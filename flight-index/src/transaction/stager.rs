//! What one statement changes, gathered by table and shard and staged.
//!
//! ```text
//! add(table, shard, rows) ──▶ buffer of the shard ── never full ──▶ finish: sent to every replica as a whole
//!                                  └── full ──▶ streams to every replica, opened once and fed from then on
//! ```
//!
//! A statement that is streamed has two streams to a shard: deletions under its first number, new rows under the next. The
//! second is complete only after the first was staged, so that an update may put a row under a key that it has deleted. The row
//! engine looks at keys as they come, so that its new rows are kept here until all deletions are staged.

use std::{
    collections::{BTreeMap, HashMap},
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arrow::array::RecordBatch;
use drsdb_core::{Engine, Error, ErrorCode, Result, Table, Ulid, WireError, row_bytes};
use futures::future::join_all;
use parking_lot::Mutex;
use tokio::{
    runtime::Handle,
    sync::mpsc,
    task::{JoinError, JoinSet},
};

use super::{
    Writes,
    shard_writer::{Changes, ShardWriter},
    split::{Buffers, Piece},
};
use crate::catalog::{PieceInfo, ReplicaState, StorageServer, TableState};

/// Shards of a small statement that are staged at a time.
const SHARDS_AT_A_TIME: usize = 64;
/// New rows that wait for a statement's deletions, at most.
const MAX_KEPT_BYTES: usize = 512 << 20;
/// How long an undo may take; a server that misses it asks for the transaction's outcome later.
pub(super) const ABORT_TIMEOUT: Duration = Duration::from_secs(10);

/// What happens to rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rows {
    /// They go; batches have the primary key's columns.
    Deleted,
    /// They come; batches have all columns.
    Inserted,
}

/// A piece that is staged.
#[derive(Debug, Clone)]
pub struct Staged {
    /// The number under which it is.
    pub sequence: u32,
    /// The table.
    pub table: Arc<Table>,
    /// What the commit says about it.
    pub piece: PieceInfo,
}

/// Servers that may have something of a transaction.
#[derive(Debug, Clone, Default)]
pub struct Touched {
    servers: Arc<Mutex<BTreeMap<Ulid, Arc<StorageServer>>>>,
    /// Whether the statement that runs now has sent something to any.
    by_this_statement: Arc<AtomicBool>,
}

impl Touched {
    pub(super) fn add(&self, server: &Arc<StorageServer>) {
        self.by_this_statement.store(true, Ordering::Release);
        self.servers.lock().insert(server.id, Arc::clone(server));
    }

    pub(super) fn servers(&self) -> Vec<Arc<StorageServer>> {
        self.servers.lock().values().cloned().collect()
    }

    /// The statement is over: what comes next is another's. Says whether it has sent anything.
    pub(super) fn statement_over(&self) -> bool {
        self.by_this_statement.swap(false, Ordering::AcqRel)
    }

    /// Forgets them: somebody else decides what becomes of what is there.
    pub(super) fn take(&self) -> Vec<Arc<StorageServer>> {
        std::mem::take(&mut *self.servers.lock()).into_values().collect()
    }
}

/// Stages one statement. Dropping it cuts its streams; the transaction undoes what is there.
#[derive(Debug)]
pub struct Stager {
    pub(super) writes: Arc<Writes>,
    pub(super) transaction: Ulid,
    pub(super) snapshot: u64,
    /// The statement's first number; the next one is its own as well.
    pub(super) sequence: u32,
    pub(super) touched: Touched,
    tables: Vec<TableStage>,
    tasks: JoinSet<Result<Staged>>,
    staged: Vec<Staged>,
    streams: bool,
    kept_bytes: usize,
}

#[derive(Debug)]
struct TableStage {
    state: Arc<TableState>,
    deleted: Buffers,
    inserted: Buffers,
    writers: HashMap<(u32, Rows), mpsc::Sender<Piece>>,
    deletes: bool,
    /// New rows that wait until everything is deleted.
    kept: Vec<Piece>,
}

impl Stager {
    pub(super) fn new(writes: Arc<Writes>, transaction: Ulid, snapshot: u64, sequence: u32, touched: Touched) -> Self {
        Self {
            writes,
            transaction,
            snapshot,
            sequence,
            touched,
            tables: Vec::new(),
            tasks: JoinSet::new(),
            staged: Vec::new(),
            streams: false,
            kept_bytes: 0,
        }
    }

    /// A table that the statement may change; the answer names it in [`Stager::add`].
    pub fn table(&mut self, state: &Arc<TableState>) -> usize {
        if let Some(known) = self.tables.iter().position(|stage| stage.state.table.id == state.table.id) {
            return known;
        }
        self.tables.push(TableStage {
            state: Arc::clone(state),
            deleted: Buffers::new(state.table.shards),
            inserted: Buffers::new(state.table.shards),
            writers: HashMap::new(),
            deletes: false,
            kept: Vec::new(),
        });
        self.tables.len() - 1
    }

    /// Adds rows; waits while the servers have enough to do.
    pub async fn add(&mut self, table: usize, rows: Rows, shard: u32, batch: RecordBatch) -> Result<()> {
        let stage = &mut self.tables[table];
        let mut ready = Vec::new();
        match rows {
            Rows::Deleted => stage.deleted.add(shard, batch, &mut ready),
            Rows::Inserted => stage.inserted.add(shard, batch, &mut ready),
        }
        stage.deletes |= rows == Rows::Deleted;
        let waits = rows == Rows::Inserted && stage.deletes && stage.state.table.engine == Engine::Row;
        for piece in ready {
            if waits {
                self.keep(table, piece)?;
            } else {
                self.send(table, rows, piece).await?;
            }
        }
        Ok(())
    }

    fn keep(&mut self, table: usize, piece: Piece) -> Result<()> {
        self.streams = true;
        self.kept_bytes += piece.batches.iter().map(row_bytes).sum::<usize>();
        if self.kept_bytes > MAX_KEPT_BYTES {
            let name = &self.tables[table].state.table.name;
            let message = format!("the statement replaces more than {} MiB of row table {name}", MAX_KEPT_BYTES >> 20);
            let hint =
                "change fewer rows at a time, in one transaction if it must be all or none, or use engine = 'column'";
            return Err(WireError::new(ErrorCode::ResourceExhausted, message).with_hint(hint).into());
        }
        self.tables[table].kept.push(piece);
        Ok(())
    }

    /// The error of the first stream that fails; waits for ever while none does.
    pub async fn failure(&mut self) -> Error {
        loop {
            match self.tasks.join_next().await {
                None => return pending().await,
                Some(done) => match flatten(done) {
                    Err(error) => return error,
                    Ok(staged) => self.staged.push(staged),
                },
            }
        }
    }

    /// Stages everything that was added. Durable when it returns.
    pub async fn finish(mut self) -> Result<Vec<Staged>> {
        if !self.streams {
            return self.stage_small().await;
        }
        for rows in [Rows::Deleted, Rows::Inserted] {
            for table in 0..self.tables.len() {
                let stage = &mut self.tables[table];
                let rest = match rows {
                    Rows::Deleted => stage.deleted.finish(),
                    Rows::Inserted => {
                        std::mem::take(&mut stage.kept).into_iter().chain(stage.inserted.finish()).collect()
                    }
                };
                for piece in rest {
                    self.send(table, rows, piece).await?;
                }
            }
            // What is closed now is complete when its tasks have ended. New rows wait for deletions.
            let mut open = 0;
            for stage in &mut self.tables {
                stage.writers.retain(|(_, kind), _| *kind != rows);
                open += stage.writers.len();
            }
            while self.tasks.len() > open {
                match self.tasks.join_next().await.map(flatten) {
                    Some(Ok(staged)) => self.staged.push(staged),
                    Some(Err(error)) => return Err(error),
                    None => break,
                }
            }
        }
        Ok(std::mem::take(&mut self.staged))
    }

    async fn send(&mut self, table: usize, rows: Rows, piece: Piece) -> Result<()> {
        self.streams = true;
        let writer = match self.tables[table].writers.get(&(piece.shard, rows)) {
            Some(writer) => writer.clone(),
            None => self.open(table, rows, piece.shard)?,
        };
        let sent = tokio::select! {
            biased;
            error = self.failure() => return Err(error),
            sent = writer.send(piece) => sent,
        };
        match sent {
            Ok(()) => Ok(()),
            Err(_) => Err(self.failure().await),
        }
    }

    fn open(&mut self, table: usize, rows: Rows, shard: u32) -> Result<mpsc::Sender<Piece>> {
        let writer = self.writer(&self.tables[table].state, shard)?;
        let (sender, pieces) = mpsc::channel(1);
        let sequence = if rows == Rows::Deleted { self.sequence } else { self.sequence + 1 };
        self.tasks.spawn(writer.stream(sequence, rows, pieces));
        self.tables[table].writers.insert((shard, rows), sender.clone());
        Ok(sender)
    }

    /// Everything is in memory, and complete.
    async fn stage_small(mut self) -> Result<Vec<Staged>> {
        let mut waiting = Vec::new();
        for stage in &mut self.tables {
            let mut shards: BTreeMap<u32, Changes> = BTreeMap::new();
            for piece in stage.deleted.finish() {
                shards.entry(piece.shard).or_default().deleted = piece.batches;
            }
            for piece in stage.inserted.finish() {
                shards.entry(piece.shard).or_default().inserted = piece.batches;
            }
            waiting.extend(shards.into_iter().map(|(shard, changes)| (Arc::clone(&stage.state), shard, changes)));
        }
        let mut waiting = waiting.into_iter();
        loop {
            while self.tasks.len() < SHARDS_AT_A_TIME
                && let Some((table, shard, changes)) = waiting.next()
            {
                let writer = self.writer(&table, shard)?;
                self.tasks.spawn(writer.stage(self.sequence, changes));
            }
            match self.tasks.join_next().await.map(flatten) {
                Some(Ok(staged)) => self.staged.push(staged),
                Some(Err(error)) => return Err(error),
                None => return Ok(std::mem::take(&mut self.staged)),
            }
        }
    }

    fn writer(&self, table: &TableState, shard: u32) -> Result<ShardWriter> {
        let definition = &table.table;
        // Where the shard is now, and not when the transaction began: replicas come and go.
        let state = self.writes.catalog().state();
        let now = state.table(definition.id).ok_or_else(|| dropped(definition))?;
        if now.table.version != definition.version {
            return Err(altered(definition));
        }
        let placed = now.shards.get(shard as usize).ok_or_else(|| no_server(definition, shard, "there is none"))?;
        let find = |id: Ulid| {
            state.server(id).cloned().ok_or_else(|| no_server(definition, shard, &format!("server {id} is unknown")))
        };
        let first = placed.current().next().ok_or_else(|| no_server(definition, shard, "no replica is current"))?;
        let mut servers = vec![find(first)?];
        // One that does not answer would only make all wait; the commit makes it stale.
        let answering = placed.current().filter(|server| !self.writes.is_suspect(*server)).count();
        for replica in &placed.replicas {
            let left_out = answering >= placed.majority() && self.writes.is_suspect(replica.server);
            if replica.server != first && !left_out && !matches!(replica.state, ReplicaState::Stale { .. }) {
                servers.push(find(replica.server)?);
            }
        }
        for server in &servers {
            self.touched.add(server);
        }
        Ok(ShardWriter {
            writes: Arc::clone(&self.writes),
            transaction: self.transaction,
            snapshot: self.snapshot,
            table: Arc::clone(definition),
            shard,
            placed: Arc::clone(placed),
            servers,
        })
    }
}

fn flatten(done: Result<Result<Staged>, JoinError>) -> Result<Staged> {
    done.unwrap_or_else(|error| Err(Error::internal(format!("a writer of a statement failed: {error}"))))
}

fn dropped(table: &Table) -> Error {
    WireError::new(ErrorCode::Conflict, format!("table {} was dropped meanwhile", table.name))
        .with_field("table", &table.name)
        .into()
}

/// The error of a definition that is not the current one any more.
pub fn altered(table: &Table) -> Error {
    WireError::new(ErrorCode::Conflict, format!("table {} was altered since the transaction began", table.name))
        .with_hint("run the transaction again")
        .with_field("table", &table.name)
        .into()
}

fn no_server(table: &Table, shard: u32, why: &str) -> Error {
    WireError::new(
        ErrorCode::Unavailable,
        format!("shard {shard} of table {} has no storage server: {why}", table.name),
    )
    .with_field("table", &table.name)
    .into()
}

/// Aborts a transaction on servers, in the background: what does not answer asks for the outcome later.
pub(super) fn undo_in_background(writes: &Arc<Writes>, transaction: Ulid, servers: Vec<Arc<StorageServer>>) {
    if servers.is_empty() {
        return;
    }
    if let Ok(runtime) = Handle::try_current() {
        let writes = Arc::clone(writes);
        runtime.spawn(async move { abort_at(&writes, transaction, servers).await });
    }
}

/// Aborts a transaction on servers. Nobody waits for those that do not answer anything now.
pub(super) async fn undo(writes: &Arc<Writes>, transaction: Ulid, servers: Vec<Arc<StorageServer>>) {
    let (silent, answering) = servers.into_iter().partition(|server| writes.is_suspect(server.id));
    undo_in_background(writes, transaction, silent);
    abort_at(writes, transaction, answering).await;
}

async fn abort_at(writes: &Writes, transaction: Ulid, servers: Vec<Arc<StorageServer>>) {
    let aborts = servers.iter().map(|server| async {
        let done = tokio::time::timeout(ABORT_TIMEOUT, writes.transport.abort(server, transaction)).await;
        let fault = match done {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer in time".to_owned(),
        };
        tracing::warn!(%transaction, server = %server.url, fault, "a transaction could not be undone at once");
    });
    join_all(aborts).await;
}
