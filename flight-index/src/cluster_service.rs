//! What storage servers ask of the index servers: the gRPC service `Cluster`.
//!
//! A storage server announces itself, then follows the commits: first those after the last one that it took in, then each
//! new one as it is applied here. Who may call is decided before a call gets here. [`forget_what_all_have`] asks the
//! storage servers how far they are, so that commits need not be remembered for ever.
//!
//! Not here: what a storage server does with a commit, and everything that clients ask.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use drsdb_core::{
    Error, ErrorCode, Result, Ulid, parse_ulid,
    security::keys::SigningKey,
    v1::{
        Commit, FollowCommitsRequest, RegisterStorageRequest, RegisterStorageResponse, ResolveTransactionRequest,
        StatusRequest, TransactionOutcome,
        cluster_server::{Cluster, ClusterServer},
        commit::Change,
        storage_client::StorageClient,
    },
};
use futures::stream::{BoxStream, StreamExt};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response as Answer, Status};
use url::Url;

use crate::{
    catalog::{Command, Event, Outcome, Response, StorageServer},
    raft::{Catalog, Dial},
};

/// The service. It ends its streams on `shutdown`.
#[derive(Debug)]
pub struct ClusterService {
    catalog: Arc<Catalog>,
    shutdown: CancellationToken,
}

impl ClusterService {
    /// The service on `catalog`, ready to be served.
    pub fn server(catalog: Arc<Catalog>, shutdown: CancellationToken) -> ClusterServer<Self> {
        ClusterServer::new(Self { catalog, shutdown })
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
        })
    }

    async fn resolve(&self, request: ResolveTransactionRequest) -> Result<TransactionOutcome> {
        let transaction = parse_ulid(&request.transaction_id)?;
        match self.catalog.propose(Command::AbortTransaction { transaction }).await? {
            (_, Response::Transaction(outcome)) => Ok(outcome_message(transaction, outcome)),
            (_, other) => Err(Error::internal(format!("a transaction's outcome is no {other:?}"))),
        }
    }

    /// Notes what a server that comes (back) has taken in, so that it can be forgotten here.
    async fn note_applied(&self, server: Ulid, version: u64) -> Result<()> {
        let known = self.catalog.state().applied_by(server);
        if known.is_some_and(|known| version <= known) {
            return Ok(());
        }
        match self.catalog.propose(Command::StorageApplied { server, version }).await {
            Ok(_) => Ok(()),
            // Another index server leads: it can wait for the next time.
            Err(error) if error.code() == ErrorCode::Unavailable => Ok(()),
            Err(error) => Err(error),
        }
    }
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
        let follower = Follower::new(self.catalog.clone(), request.after_version);
        let stream =
            futures::stream::unfold(follower, Follower::next).take_until(self.shutdown.clone().cancelled_owned());
        Ok(Answer::new(stream.boxed()))
    }

    async fn resolve_transaction(
        &self,
        request: Request<ResolveTransactionRequest>,
    ) -> Result<Answer<TransactionOutcome>, Status> {
        Ok(Answer::new(self.resolve(request.into_inner()).await?))
    }
}

/// How often storage servers are asked how far they are.
const ASK_EVERY: Duration = Duration::from_secs(30);
/// How many versions a storage server has to be further for it to be worth an entry in the log.
const WORTH_NOTING: u64 = 1_000;

/// Until `shutdown`, asks the storage servers how far they have durably taken in commits, and lets the catalog forget what
/// all of them have. Run it on every index server: only the one that leads gets it noted.
pub async fn forget_what_all_have(catalog: Arc<Catalog>, dial: Dial, shutdown: CancellationToken) {
    let mut ticks = tokio::time::interval(ASK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
        let servers: Vec<Arc<StorageServer>> = catalog.state().servers().cloned().collect();
        for server in servers {
            let noted = note_status(&catalog, &dial, &server);
            if let Some(Err(error)) = shutdown.run_until_cancelled(noted).await {
                // One that is down holds the others' commits in memory until it is back: it will need them.
                tracing::debug!(server = %server.url, %error, "a storage server does not say how far it is");
            }
        }
    }
}

async fn note_status(catalog: &Catalog, dial: &Dial, server: &StorageServer) -> Result<()> {
    let url = Url::parse(&server.url).map_err(|error| Error::internal(format!("{}: {error}", server.url)))?;
    let status = StorageClient::new(dial(&url)?).status(StatusRequest {}).await?.into_inner();
    let known = catalog.state().applied_by(server.id).unwrap_or(0);
    // The answer may come from another server that has the URL now.
    if status.server_id == server.id.to_string() && status.applied_version >= known + WORTH_NOTING {
        let noted = Command::StorageApplied { server: server.id, version: status.applied_version };
        catalog.propose(noted).await?;
    }
    Ok(())
}

/// One storage server's place in the sequence of commits.
struct Follower {
    catalog: Arc<Catalog>,
    versions: watch::Receiver<u64>,
    sent: u64,
    ready: VecDeque<Commit>,
}

impl Follower {
    fn new(catalog: Arc<Catalog>, after: u64) -> Self {
        let forgotten = catalog.state().forgotten_version();
        if after < forgotten {
            // It took these in: that is why they are forgotten. It only does not remember.
            tracing::info!(after, forgotten, "a storage server follows from where commits are still known");
        }
        Self { versions: catalog.watch(), catalog, sent: after.max(forgotten), ready: VecDeque::new() }
    }

    async fn next(mut self) -> Option<(Result<Commit, Status>, Self)> {
        loop {
            if let Some(commit) = self.ready.pop_front() {
                return Some((Ok(commit), self));
            }
            self.versions.mark_unchanged();
            let state = self.catalog.state();
            if state.version() > self.sent {
                for (version, events) in state.events_after(self.sent) {
                    self.ready.extend(commits(version, events));
                }
                if self.ready.back().is_none_or(|last| last.version < state.version()) {
                    self.ready.push_back(Commit { version: state.version(), change: None });
                }
                self.sent = state.version();
            } else if self.versions.changed().await.is_err() {
                return None;
            }
        }
    }
}

/// The messages of one version. A message's version is a watermark: everything up to it has been sent. So only the last
/// message carries the version itself; who loses the stream in between asks again from before it.
fn commits(version: u64, events: &[Event]) -> impl Iterator<Item = Commit> {
    events.iter().enumerate().map(move |(at, event)| Commit {
        version: if at + 1 == events.len() { version } else { version - 1 },
        change: Some(match event {
            Event::Committed(transaction) => {
                Change::Transaction(outcome_message(*transaction, Outcome::Committed { version, rows: 0 }))
            }
            Event::Aborted(transaction) => Change::Transaction(outcome_message(*transaction, Outcome::Aborted)),
            Event::TableDropped(table) => Change::DroppedTable(table.to_string()),
        }),
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
