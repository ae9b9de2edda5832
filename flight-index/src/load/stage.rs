//! A running load: one writer for each shard that has rows, and the transaction that they belong to.
//!
//! ```text
//! Transaction::send ── piece ──▶ writer of the shard ── encode ──▶ replica 1 (gRPC stream)
//!                                                              └──▶ replica 2
//! Transaction::commit: all writers done ──▶ CommitTransaction through Raft ──▶ version
//! Transaction::abort, or dropped: streams are cut, Abort to every server that was written to
//! ```

use std::{
    collections::{BTreeMap, HashMap},
    future::pending,
    sync::Arc,
    time::Duration,
};

use drsdb_core::{Error, ErrorCode, Result, Table, Ulid, WireError, v1};
use futures::future::{join_all, try_join, try_join_all};
use tokio::{
    runtime::Handle,
    sync::mpsc,
    task::{JoinError, JoinSet},
};

use super::{encode::encode, split::Piece, transport::StageTransport};
use crate::{
    catalog::{Command, Outcome, PieceInfo, Response, ShardState, StorageServer, TableChange, TableState},
    raft::Catalog,
};

/// Messages that wait for one server.
const MESSAGES_AHEAD: usize = 1;
/// How long an undo may take; a server that misses it asks for the transaction's outcome later.
const ABORT_TIMEOUT: Duration = Duration::from_secs(10);

/// A transaction that loads one table.
pub struct Transaction {
    id: Ulid,
    catalog: Arc<Catalog>,
    transport: Arc<dyn StageTransport>,
    table: Arc<Table>,
    shards: Vec<Arc<ShardState>>,
    writers: HashMap<u32, mpsc::Sender<Piece>>,
    tasks: JoinSet<Result<PieceInfo>>,
    /// Servers that may have rows of the transaction.
    touched: BTreeMap<Ulid, Arc<StorageServer>>,
}

impl Transaction {
    /// A transaction that has sent nothing.
    pub fn new(id: Ulid, catalog: Arc<Catalog>, transport: Arc<dyn StageTransport>, table: &TableState) -> Self {
        Self {
            id,
            catalog,
            transport,
            table: Arc::clone(&table.table),
            shards: table.shards.clone(),
            writers: HashMap::new(),
            tasks: JoinSet::new(),
            touched: BTreeMap::new(),
        }
    }

    /// The error of the first writer that fails; waits for ever while none does.
    pub async fn failure(&mut self) -> Error {
        match self.tasks.join_next().await {
            None => pending().await,
            Some(done) => match flatten(done) {
                Err(error) => error,
                Ok(piece) => Error::internal(format!("the writer of shard {} ended before its rows", piece.shard)),
            },
        }
    }

    /// Hands a piece to its shard's writer; waits while that has enough to do.
    pub async fn send(&mut self, piece: Piece) -> Result<()> {
        let writer = match self.writers.get(&piece.shard) {
            Some(writer) => writer.clone(),
            None => self.open(piece.shard)?,
        };
        let sent = tokio::select! {
            error = self.failure() => return Err(error),
            sent = writer.send(piece) => sent,
        };
        match sent {
            Ok(()) => Ok(()),
            Err(_) => Err(self.failure().await),
        }
    }

    fn open(&mut self, shard: u32) -> Result<mpsc::Sender<Piece>> {
        let state = self.catalog.state();
        let placed = self.shards.get(shard as usize).ok_or_else(|| no_server(&self.table, shard, "there is none"))?;
        let servers = placed.current().map(|id| {
            state.server(id).cloned().ok_or_else(|| no_server(&self.table, shard, &format!("server {id} is unknown")))
        });
        let servers = servers.collect::<Result<Vec<_>>>()?;
        if servers.is_empty() {
            return Err(no_server(&self.table, shard, "it is placed nowhere"));
        }
        self.touched.extend(servers.iter().map(|server| (server.id, Arc::clone(server))));
        let (sender, pieces) = mpsc::channel(1);
        let writer = ShardWriter {
            transaction: self.id,
            table: Arc::clone(&self.table),
            shard,
            epoch: placed.epoch,
            servers,
            transport: Arc::clone(&self.transport),
        };
        self.tasks.spawn(writer.run(pieces));
        self.writers.insert(shard, sender.clone());
        Ok(sender)
    }

    /// Waits until everything is staged, and commits it. A transaction without rows needs no commit.
    pub async fn commit(mut self) -> Result<u64> {
        self.writers.clear();
        let mut pieces = Vec::with_capacity(self.tasks.len());
        while let Some(done) = self.tasks.join_next().await {
            match flatten(done) {
                Ok(piece) => pieces.push(piece),
                Err(error) => return Err(self.abort(error).await),
            }
        }
        if pieces.is_empty() {
            return Ok(self.catalog.state().version());
        }
        // The same load makes the same log entry, whichever server was faster.
        pieces.sort_by_key(|piece| piece.shard);
        let change = TableChange { table: self.table.id, version: self.table.version, pieces };
        let command = Command::CommitTransaction {
            transaction: self.id,
            tables: vec![change],
            statement: None,
            validations: Vec::new(),
        };
        // From here on only Raft decides. Whoever drops this future drops no staged rows: the proposal goes on without
        // it, and may commit. If it is never made, the storage servers ask about what they have staged.
        let touched = std::mem::take(&mut self.touched);
        match self.catalog.propose(command).await {
            Ok((_, Response::Transaction(Outcome::Committed { version, .. }))) => Ok(version),
            Ok(_) => {
                self.touched = touched;
                let error = WireError::new(ErrorCode::Conflict, "the load was aborted: it took too long to commit");
                Err(self.abort(error.with_hint("load the rows again").into()).await)
            }
            Err(error) => self.settle(error, touched).await,
        }
    }

    /// A proposal that fails may still take effect. Asking for an abort finds out: in Raft's order the first of the two
    /// wins.
    async fn settle(mut self, error: Error, touched: BTreeMap<Ulid, Arc<StorageServer>>) -> Result<u64> {
        let response = self.catalog.propose(Command::AbortTransaction { transaction: self.id }).await;
        match response.map(|(_, response)| response) {
            Ok(Response::Transaction(Outcome::Committed { version, .. })) => Ok(version),
            Ok(_) => {
                self.touched = touched;
                Err(self.abort(error).await)
            }
            Err(_) => {
                // Servers with staged rows will ask for the outcome themselves.
                let mut error = error.to_wire();
                error.hint = "whether the rows are there is unknown: count them before loading again".to_owned();
                Err(error.into())
            }
        }
    }

    /// Undoes the transaction and gives the reason back.
    pub async fn abort(mut self, reason: Error) -> Error {
        self.tasks.shutdown().await;
        let touched = std::mem::take(&mut self.touched);
        undo(self.id, Arc::clone(&self.transport), touched).await;
        reason
    }
}

/// A client that goes away drops its load in the middle.
impl Drop for Transaction {
    fn drop(&mut self) {
        let touched = std::mem::take(&mut self.touched);
        if touched.is_empty() {
            return;
        }
        self.tasks.abort_all();
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(undo(self.id, Arc::clone(&self.transport), touched));
        }
    }
}

async fn undo(id: Ulid, transport: Arc<dyn StageTransport>, servers: BTreeMap<Ulid, Arc<StorageServer>>) {
    let aborts = servers.values().map(|server| async {
        let done = tokio::time::timeout(ABORT_TIMEOUT, transport.abort(server, id)).await;
        let fault = match done {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer in time".to_owned(),
        };
        tracing::warn!(transaction = %id, server = %server.url, fault, "a load could not be undone at once");
    });
    join_all(aborts).await;
}

fn flatten(done: Result<Result<PieceInfo>, JoinError>) -> Result<PieceInfo> {
    done.unwrap_or_else(|error| Err(Error::internal(format!("a writer of a load failed: {error}"))))
}

fn no_server(table: &Table, shard: u32, why: &str) -> Error {
    WireError::new(
        ErrorCode::Unavailable,
        format!("shard {shard} of table {} has no storage server: {why}", table.name),
    )
    .with_field("table", &table.name)
    .into()
}

/// Sends one shard's rows to all of its replicas.
struct ShardWriter {
    transaction: Ulid,
    table: Arc<Table>,
    shard: u32,
    epoch: u64,
    servers: Vec<Arc<StorageServer>>,
    transport: Arc<dyn StageTransport>,
}

impl ShardWriter {
    async fn run(self, pieces: mpsc::Receiver<Piece>) -> Result<PieceInfo> {
        let channels = self.servers.iter().map(|_| mpsc::channel(MESSAGES_AHEAD));
        let (senders, receivers): (Vec<_>, Vec<_>) = channels.unzip();
        let stages =
            self.servers.iter().zip(receivers).map(|(server, messages)| self.transport.stage(server, messages));
        let (rows, staged) = try_join(self.feed(pieces, senders), try_join_all(stages)).await?;
        for (staged, server) in staged.iter().zip(&self.servers) {
            if staged.rows != rows {
                let message = format!("storage server {} staged {} rows of {rows}", server.url, staged.rows);
                return Err(Error::internal(message));
            }
        }
        let piece = PieceInfo::from_stage(&self.table, self.shard, &staged[0])?;
        let acks = self.servers.iter().map(|server| server.id).collect();
        Ok(PieceInfo { acks, epoch: self.epoch, ..piece })
    }

    /// Returns how many rows there were.
    async fn feed(
        &self,
        mut pieces: mpsc::Receiver<Piece>,
        senders: Vec<mpsc::Sender<v1::StageRequest>>,
    ) -> Result<u64> {
        let header = v1::StageHeader {
            transaction_id: self.transaction.to_string(),
            table: Some(self.table.to_proto()),
            shard: self.shard,
            snapshot: u64::MAX,
            sequence: 1,
            ..v1::StageHeader::default()
        };
        let mut rows = 0;
        let mut open = send_all(&senders, v1::stage_request::Part::Header(header)).await;
        while open && let Some(piece) = pieces.recv().await {
            rows += piece.batches.iter().map(|batch| batch.num_rows() as u64).sum::<u64>();
            let table = Arc::clone(&self.table);
            let encoded = tokio::task::spawn_blocking(move || encode(&table, &piece.batches)).await;
            let encoded = encoded.map_err(|panic| Error::internal(format!("encoding rows failed: {panic}")))??;
            for message in encoded {
                open = open && send_all(&senders, v1::stage_request::Part::Batch(message.into())).await;
            }
        }
        Ok(rows)
    }
}

/// False when a server has stopped listening: its stage call says why, or a row count will.
async fn send_all(senders: &[mpsc::Sender<v1::StageRequest>], part: v1::stage_request::Part) -> bool {
    for sender in senders {
        if sender.send(v1::StageRequest { part: Some(part.clone()) }).await.is_err() {
            return false;
        }
    }
    true
}
