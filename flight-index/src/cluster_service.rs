//! What other servers ask of an index server: the gRPC service `Cluster`.
//!
//! A storage server announces itself, then follows the commits: first those after the last one that it took in, then each
//! new one as it is applied here. Who may call is decided before a call gets here. [`forget_what_all_have`] asks the
//! storage servers how far they are, so that commits need not be remembered for ever.
//!
//! Not here: what a storage server does with a commit, and everything that clients ask.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use drsdb_core::{
    Error, ErrorCode, Result, Ulid, WireError, crash_point, parse_ulid,
    security::keys::SigningKey,
    v1::{
        Commit, FinishRebuildRequest, FinishRebuildResponse, FollowCommitsRequest, ListTablesRequest,
        ListTablesResponse, ListTransactionsRequest, ListTransactionsResponse, ListedShard, ListedTable,
        LoseReplicasRequest, LoseReplicasResponse, RebuildSource, RegisterStorageRequest, RegisterStorageResponse,
        RemovedReplica, ResolveTransactionRequest, StartRebuildRequest, StartRebuildResponse, StatusRequest,
        TransactionActiveRequest, TransactionActiveResponse, TransactionOutcome,
        cluster_server::{Cluster, ClusterServer},
        commit::Change,
        start_rebuild_response::Next,
        storage_client::StorageClient,
    },
};
use futures::{
    future::FutureExt,
    stream::{BoxStream, StreamExt},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response as Answer, Status};
use url::Url;

use crate::{
    catalog::{Command, Event, Outcome, Replica, Response, StorageServer},
    raft::{Catalog, Dial, IndexServer, ReadConsistency},
    replication::ActiveTransactions,
    transaction::Sessions,
};

/// The service. It ends its streams on `shutdown`.
#[derive(Debug)]
pub struct ClusterService {
    catalog: Arc<Catalog>,
    active: ActiveTransactions,
    sessions: Arc<Sessions>,
    shutdown: CancellationToken,
}

impl ClusterService {
    /// The service on `catalog`, ready to be served. `active` are the transactions that this index server runs,
    /// and `sessions` knows what users see of them.
    pub fn server(
        catalog: Arc<Catalog>,
        active: ActiveTransactions,
        sessions: Arc<Sessions>,
        shutdown: CancellationToken,
    ) -> ClusterServer<Self> {
        ClusterServer::new(Self { catalog, active, sessions, shutdown })
    }

    async fn register(&self, request: RegisterStorageRequest) -> Result<RegisterStorageResponse> {
        let url = Url::parse(&request.url).ok().filter(|url| url.scheme() == "https" && url.host().is_some());
        if url.is_none() {
            return Err(Error::new(
                ErrorCode::InvalidArgument,
                format!("a storage server's URL is https://host:port, not {:?}: change its public_url", request.url),
            ));
        }
        let server = StorageServer {
            id: parse_ulid(&request.server_id)?,
            url: request.url,
            cores: request.cores,
            labels: request.labels.into_iter().collect(),
        };
        // Known as it is: no entry in the log for each restart of a server.
        let known = self.catalog.state().server(server.id).is_some_and(|known| **known == server);
        if !known {
            tracing::info!(server = %server.id, url = %server.url, "a storage server registers");
            self.catalog.propose(Command::RegisterStorage { server }).await?;
        }
        let state = self.catalog.state();
        let cluster = state.require_cluster()?;
        let key = SigningKey::from_pkcs8(&cluster.signing_key_pkcs8)?;
        Ok(RegisterStorageResponse {
            cluster_id: cluster.id.to_string(),
            verifying_key: key.verifying_key().to_bytes().into(),
            version: state.version(),
            index_servers: voters(&self.catalog.index_servers()),
        })
    }

    async fn resolve(&self, request: ResolveTransactionRequest) -> Result<TransactionOutcome> {
        let transaction = parse_ulid(&request.transaction_id)?;
        match self.catalog.propose(Command::AbortTransaction { transaction }).await? {
            (_, Response::Transaction(outcome)) => Ok(outcome_message(transaction, outcome)),
            (_, other) => Err(Error::internal(format!("a transaction's outcome is no {other:?}"))),
        }
    }

    /// Lets a storage server rebuild a replica: from now on it is written to.
    async fn start_rebuild(&self, request: StartRebuildRequest) -> Result<StartRebuildResponse> {
        let (server, table, shard) = (parse_ulid(&request.server_id)?, parse_ulid(&request.table_id)?, request.shard);
        if request.again {
            self.catalog.propose(Command::DemoteReplica { table, shard, server, last: false }).await?;
        }
        let begun =
            match self.catalog.propose(Command::StartRebuild { table, shard, server, fresh: request.fresh }).await {
                Ok((version, _)) => version,
                Err(error) if error.code() == ErrorCode::NotFound => {
                    return Ok(StartRebuildResponse { next: Next::Drop.into(), ..StartRebuildResponse::default() });
                }
                Err(error) => return Err(error),
            };
        let state = self.catalog.state();
        if state.version() < begun {
            let message = "this index server has not heard yet what it has asked for";
            return Err(WireError::new(ErrorCode::Unavailable, message).with_hint("ask again").into());
        }
        let Some(known) = state.table(table) else {
            return Ok(StartRebuildResponse { next: Next::Drop.into(), ..StartRebuildResponse::default() });
        };
        let placed = known.shards.get(shard as usize);
        let placed =
            placed.ok_or_else(|| Error::internal(format!("table {} has no shard {shard}", known.table.name)))?;
        if placed.replica(server).is_some_and(Replica::is_current) {
            return Ok(StartRebuildResponse { next: Next::Nothing.into(), ..StartRebuildResponse::default() });
        }
        let sources = placed.readable_at(state.version()).filter(|source| *source != server);
        let sources = sources.filter_map(|source| state.server(source));
        let sources = sources.map(|source| RebuildSource { server_id: source.id.to_string(), url: source.url.clone() });
        Ok(StartRebuildResponse {
            next: Next::Copy.into(),
            table: Some(known.table.to_proto()),
            snapshot: state.version(),
            complete_to: placed.replica(server).map_or(0, |replica| replica.complete_to),
            sources: sources.collect(),
        })
    }

    /// Takes note that a storage server has nothing any more of a shard, or of all.
    async fn lose_replicas(&self, request: LoseReplicasRequest) -> Result<LoseReplicasResponse> {
        let server = parse_ulid(&request.server_id)?;
        let shard = match request.shard {
            Some(shard) => Some((parse_ulid(&shard.table_id)?, shard.shard)),
            None => None,
        };
        let (version, _) = self.catalog.propose(Command::LoseReplicas { server, shard }).await?;
        tracing::warn!(%server, ?shard, "a storage server has lost data: it is copied from other replicas");
        Ok(LoseReplicasResponse { version })
    }

    async fn finish_rebuild(&self, request: FinishRebuildRequest) -> Result<()> {
        let (server, table) = (parse_ulid(&request.server_id)?, parse_ulid(&request.table_id)?);
        let (shard, copied) = (request.shard, request.copied);
        self.catalog.propose(Command::ReplicaCurrent { table, shard, server, copied }).await?;
        tracing::info!(%table, shard, %server, "a replica is current again");
        Ok(())
    }

    /// The tables as they are now, and which servers have their rows.
    async fn list_tables(&self) -> Result<ListTablesResponse> {
        let state = self.catalog.read(ReadConsistency::Linearizable).await?;
        let version = state.version();
        let tables = state.tables().map(|known| {
            let shards = known.shards.iter().map(|shard| {
                let current = shard.readable_at(version).filter_map(|server| state.server(server));
                ListedShard {
                    replicas: shard.replicas.len() as u32,
                    current: current.map(|server| server.url.clone()).collect(),
                }
            });
            ListedTable { table: Some(known.table.to_proto()), shards: shards.collect() }
        });
        Ok(ListTablesResponse { version, tables: tables.collect() })
    }

    /// Notes what a server that comes (back) has taken in, so that it can be forgotten here.
    async fn note_applied(&self, server: Ulid, version: u64) -> Result<()> {
        let known = self.catalog.state().applied_by(server);
        if known.is_some_and(|known| version <= known) {
            return Ok(());
        }
        let catalog = Arc::clone(&self.catalog);
        let noting = async move { catalog.propose(Command::StorageApplied { server, version }).await };
        match tokio::time::timeout(NOTE_TIME, tokio::spawn(noting)).await {
            Ok(Ok(Err(error))) if error.code() != ErrorCode::Unavailable => Err(error),
            // The index servers elect a leader: it can wait for the next time, and the commits must not.
            _ => Ok(()),
        }
    }
}

/// How long a storage server that comes back waits for its mark to be noted.
const NOTE_TIME: Duration = Duration::from_secs(1);

/// The URLs of those that vote.
fn voters(servers: &[IndexServer]) -> Vec<String> {
    servers.iter().filter(|server| server.voter).map(|server| server.url.clone()).collect()
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn register_storage(
        &self,
        request: Request<RegisterStorageRequest>,
    ) -> Result<Answer<RegisterStorageResponse>, Status> {
        Ok(Answer::new(self.register(request.into_inner()).await?))
    }

    type FollowCommitsStream = BoxStream<'static, Result<Commit, Status>>;

    async fn follow_commits(
        &self,
        request: Request<FollowCommitsRequest>,
    ) -> Result<Answer<Self::FollowCommitsStream>, Status> {
        let request = request.into_inner();
        let server = parse_ulid(&request.server_id)?;
        self.note_applied(server, request.after_version).await?;
        let version = self.catalog.state().version();
        if request.after_version > version {
            // It would not be told of what comes up to there.
            let message =
                format!("this index server is at version {version}, and not yet at {}", request.after_version);
            return Err(Error::new(ErrorCode::Unavailable, message).into());
        }
        let follower = Follower::new(self.catalog.clone(), request.after_version);
        let catalog = Arc::clone(&self.catalog);
        // A server that is cut off from the others hears of no commits: another one may.
        let ended = futures::future::select(
            self.shutdown.clone().cancelled_owned().boxed(),
            async move { catalog.cut_off().await }.boxed(),
        );
        Ok(Answer::new(futures::stream::unfold(follower, Follower::next).take_until(ended).boxed()))
    }

    async fn resolve_transaction(
        &self,
        request: Request<ResolveTransactionRequest>,
    ) -> Result<Answer<TransactionOutcome>, Status> {
        Ok(Answer::new(self.resolve(request.into_inner()).await?))
    }

    async fn transaction_active(
        &self,
        request: Request<TransactionActiveRequest>,
    ) -> Result<Answer<TransactionActiveResponse>, Status> {
        let transaction = parse_ulid(&request.into_inner().transaction_id)?;
        Ok(Answer::new(TransactionActiveResponse { active: self.active.contains(transaction) }))
    }

    async fn list_transactions(
        &self,
        _: Request<ListTransactionsRequest>,
    ) -> Result<Answer<ListTransactionsResponse>, Status> {
        Ok(Answer::new(ListTransactionsResponse { transactions: self.sessions.running() }))
    }

    async fn list_tables(&self, _: Request<ListTablesRequest>) -> Result<Answer<ListTablesResponse>, Status> {
        Ok(Answer::new(self.list_tables().await?))
    }

    async fn start_rebuild(
        &self,
        request: Request<StartRebuildRequest>,
    ) -> Result<Answer<StartRebuildResponse>, Status> {
        Ok(Answer::new(self.start_rebuild(request.into_inner()).await?))
    }

    async fn lose_replicas(
        &self,
        request: Request<LoseReplicasRequest>,
    ) -> Result<Answer<LoseReplicasResponse>, Status> {
        Ok(Answer::new(self.lose_replicas(request.into_inner()).await?))
    }

    async fn finish_rebuild(
        &self,
        request: Request<FinishRebuildRequest>,
    ) -> Result<Answer<FinishRebuildResponse>, Status> {
        self.finish_rebuild(request.into_inner()).await?;
        Ok(Answer::new(FinishRebuildResponse {}))
    }
}

/// How often storage servers are asked how far they are.
const ASK_EVERY: Duration = Duration::from_secs(30);
/// How many versions a storage server has to be further for it to be worth an entry in the log.
const WORTH_NOTING: u64 = 1_000;

/// Until `shutdown`, asks the storage servers how far they have durably taken in commits, and lets the catalog forget what
/// all of them have. Run it on every index server: only the one that leads asks.
pub async fn forget_what_all_have(catalog: Arc<Catalog>, dial: Dial, shutdown: CancellationToken) {
    let mut ticks = tokio::time::interval(ASK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
        let servers: Vec<Arc<StorageServer>> = catalog.state().servers().cloned().collect();
        for server in servers.into_iter().filter(|_| catalog.leads()) {
            let noted = note_status(&catalog, &dial, &server);
            if let Some(Err(error)) = shutdown.run_until_cancelled(noted).await {
                // One that is down holds the others' commits in memory until it is back: it will need them.
                tracing::debug!(server = %server.url, %error, "a storage server does not say how far it is");
            }
        }
    }
}

async fn note_status(catalog: &Catalog, dial: &Dial, server: &StorageServer) -> Result<()> {
    let url = server.address()?;
    let status = StorageClient::new(dial(&url)?).status(StatusRequest::default()).await?.into_inner();
    let known = catalog.state().applied_by(server.id).unwrap_or(0);
    // The answer may come from another server that has the URL now.
    if status.server_id == server.id.to_string() && status.durable_version >= known + WORTH_NOTING {
        let noted = Command::StorageApplied { server: server.id, version: status.durable_version };
        catalog.propose(noted).await?;
    }
    Ok(())
}

/// One storage server's place in the sequence of commits.
struct Follower {
    catalog: Arc<Catalog>,
    versions: watch::Receiver<u64>,
    members: watch::Receiver<Arc<Vec<IndexServer>>>,
    /// Whether the storage server knows the index servers as they are now.
    told_members: bool,
    sent: u64,
    ready: VecDeque<Commit>,
    /// The message that was given last tells what became of a transaction.
    told_outcome: bool,
}

impl Follower {
    fn new(catalog: Arc<Catalog>, after: u64) -> Self {
        let forgotten = catalog.state().forgotten_version();
        if after < forgotten {
            // It took these in and does not remember, or all its replicas were stale then, and it needs copies of them.
            tracing::info!(after, forgotten, "a storage server follows from where commits are still known");
        }
        Self {
            versions: catalog.watch(),
            members: catalog.watch_index_servers(),
            told_members: false,
            catalog,
            sent: after.max(forgotten),
            ready: VecDeque::new(),
            told_outcome: false,
        }
    }

    async fn next(mut self) -> Option<(Result<Commit, Status>, Self)> {
        if self.told_outcome {
            crash_point::reach("outcome.sent");
            self.told_outcome = false;
        }
        loop {
            if let Some(commit) = self.ready.pop_front() {
                self.told_outcome = matches!(commit.change, Some(Change::Transaction(_)));
                if self.told_outcome {
                    crash_point::reach("outcome.sending");
                }
                return Some((Ok(commit), self));
            }
            if !self.told_members {
                self.told_members = true;
                let index_servers = voters(&self.members.borrow_and_update());
                return Some((Ok(Commit { index_servers, ..nothing_up_to(self.sent) }), self));
            }
            self.versions.mark_unchanged();
            let state = self.catalog.state();
            if state.version() > self.sent {
                for (version, events) in state.events_after(self.sent) {
                    self.ready.extend(commits(version, events));
                }
                if self.ready.back().is_none_or(|last| last.version < state.version()) {
                    self.ready.push_back(nothing_up_to(state.version()));
                }
                self.sent = state.version();
            } else {
                let (versions, members) = (&mut self.versions, &mut self.members);
                tokio::select! {
                    moved = versions.changed() => moved.ok()?,
                    changed = members.changed() => {
                        changed.ok()?;
                        self.told_members = false;
                    }
                }
            }
        }
    }
}

/// Says that there is nothing more to know up to a version.
fn nothing_up_to(version: u64) -> Commit {
    Commit { version, complete: version, change: None, index_servers: Vec::new() }
}

/// The messages of one version. Only the last one completes it; who loses the stream in between asks again from before it.
fn commits(version: u64, events: &[Event]) -> impl Iterator<Item = Commit> {
    events.iter().enumerate().map(move |(at, event)| Commit {
        version,
        complete: if at + 1 == events.len() { version } else { version - 1 },
        change: Some(match event {
            Event::Committed(transaction) => {
                Change::Transaction(outcome_message(*transaction, Outcome::Committed { version, rows: 0 }))
            }
            Event::Aborted(transaction) => Change::Transaction(outcome_message(*transaction, Outcome::Aborted)),
            Event::TableDropped(table) => Change::DroppedTable(table.to_string()),
            Event::ReplicaRemoved { table, shard, server } => Change::RemovedReplica(RemovedReplica {
                server_id: server.to_string(),
                table_id: table.to_string(),
                shard: *shard,
            }),
        }),
        index_servers: Vec::new(),
    })
}

fn outcome_message(transaction: Ulid, outcome: Outcome) -> TransactionOutcome {
    let (committed, version) = match outcome {
        Outcome::Committed { version, .. } => (true, version),
        Outcome::Aborted => (false, 0),
    };
    TransactionOutcome { transaction_id: transaction.to_string(), committed, version }
}

#[cfg(test)]
mod tests;
