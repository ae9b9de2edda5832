//! Follows the commits of the catalog and applies them to the engines, in their order.
//!
//! The index servers' Raft log decides what is committed; a storage server hears of it by `Cluster.FollowCommits`, a stream
//! that starts after the last version that it has applied. Engines make `commit` idempotent, so that a replay after a
//! crash does no harm: what has been applied is remembered in a small file that may be behind, and never ahead.

use std::{path::PathBuf, sync::Arc, time::Duration};

use drsdb_core::{
    Error, ErrorCode, Result, Ulid, WireError, ids,
    net::ChannelPool,
    parse_ulid,
    v1::{self, cluster_client::ClusterClient, commit::Change},
};
use futures::{StreamExt, stream::FuturesOrdered};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::engines::Engines;

/// Commits that are applied side by side, so that they share an fsync.
const BATCH: usize = 64;

/// A staged transaction without an outcome is asked about when it is this old.
const STAGED_LEASE: Duration = Duration::from_secs(120);

/// How far commits have been applied on this server: scans wait on it.
#[derive(Debug, Clone)]
pub struct AppliedVersion {
    version: Arc<watch::Sender<u64>>,
    file: Arc<PathBuf>,
}

impl AppliedVersion {
    /// Reads what was applied before the last stop; 0 on the first start.
    pub fn open(file: PathBuf) -> Result<Self> {
        let version = match std::fs::read_to_string(&file) {
            // An unreadable number only costs a longer replay.
            Ok(text) => text.trim().parse().unwrap_or(0),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
            Err(error) => return Err(Error::io(format!("reading {}", file.display()), error)),
        };
        Ok(Self { version: Arc::new(watch::Sender::new(version)), file: Arc::new(file) })
    }

    /// The last applied version.
    pub fn get(&self) -> u64 {
        *self.version.borrow()
    }

    fn advance(&self, version: u64) {
        self.version.send_if_modified(|current| {
            let newer = version > *current;
            *current = version.max(*current);
            newer
        });
    }

    /// Remembers the version for the next start.
    pub fn save(&self) -> Result<()> {
        let temporary = self.file.with_extension("new");
        let context = || format!("writing {}", self.file.display());
        std::fs::write(&temporary, self.get().to_string()).map_err(|error| Error::io(context(), error))?;
        std::fs::rename(&temporary, self.file.as_ref()).map_err(|error| Error::io(context(), error))
    }

    /// Waits until every commit up to `version` has been applied.
    pub async fn wait_for(&self, version: u64, patience: Duration) -> Result<()> {
        if self.get() >= version {
            return Ok(());
        }
        let mut receiver = self.version.subscribe();
        match tokio::time::timeout(patience, receiver.wait_for(|applied| *applied >= version)).await {
            Ok(_) => Ok(()),
            Err(_) => Err(WireError::new(
                ErrorCode::Unavailable,
                format!("commits up to version {version} have not arrived here; this server is at {}", self.get()),
            )
            .with_hint("check that the storage server reaches an index server, then retry")
            .into()),
        }
    }
}

/// Follows commits until `shutdown`, reconnecting to the next index server whenever a stream ends.
pub async fn follow(
    engines: Engines,
    applied: AppliedVersion,
    channels: ChannelPool,
    index_servers: Vec<Url>,
    server_id: Ulid,
    shutdown: CancellationToken,
) {
    let mut attempt = 0usize;
    while !shutdown.is_cancelled() {
        let url = &index_servers[attempt % index_servers.len()];
        attempt += 1;
        let ended = shutdown.run_until_cancelled(follow_one(&engines, &applied, &channels, url, server_id)).await;
        if let Some(Err(error)) = ended {
            tracing::warn!(index_server = %url, %error, "lost the stream of commits");
            // Nothing tells when an index server is back: ask again after a moment.
            #[allow(clippy::disallowed_methods)]
            let pause = tokio::time::sleep(Duration::from_millis(200));
            shutdown.run_until_cancelled(pause).await;
        }
    }
    if let Err(error) = applied.save() {
        tracing::warn!(%error, "could not save the applied version: the next start replays more");
    }
}

async fn follow_one(
    engines: &Engines,
    applied: &AppliedVersion,
    channels: &ChannelPool,
    url: &Url,
    server_id: Ulid,
) -> Result<()> {
    let mut client = ClusterClient::new(channels.channel(url)?);
    let request = v1::FollowCommitsRequest { server_id: server_id.to_string(), after_version: applied.get() };
    let stream = client.follow_commits(request).await?.into_inner();
    let mut batches = stream.ready_chunks(BATCH);
    let mut asked = ids::unix_ms();
    while let Some(batch) = batches.next().await {
        let mut tasks = FuturesOrdered::new();
        let mut last = 0;
        for commit in batch {
            let commit = commit?;
            last = commit.version;
            if let Some(change) = commit.change {
                let engines = engines.clone();
                tasks.push_back(tokio::task::spawn_blocking(move || apply(&engines, commit.version, change)));
            }
        }
        let changes = !tasks.is_empty();
        while let Some(result) = tasks.next().await {
            result.map_err(|error| Error::internal(format!("applying a commit failed: {error}")))??;
        }
        applied.advance(last);
        if changes {
            applied.save()?;
        }
        if ids::unix_ms().saturating_sub(asked) > STAGED_LEASE.as_millis() as u64 {
            asked = ids::unix_ms();
            resolve_old(engines, &mut client).await?;
        }
    }
    Err(Error::new(ErrorCode::Unavailable, "the index server ended the stream"))
}

fn apply(engines: &Engines, version: u64, change: Change) -> Result<()> {
    match change {
        Change::Transaction(outcome) => {
            let transaction = parse_ulid(&outcome.transaction_id)?;
            if outcome.committed { engines.commit(transaction, version) } else { engines.abort(transaction) }
        }
        Change::DroppedTable(table) => engines.drop_table(parse_ulid(&table)?),
    }
}

/// Asks for the outcome of transactions that were staged long ago; asking aborts what never committed.
async fn resolve_old(engines: &Engines, client: &mut ClusterClient<tonic::transport::Channel>) -> Result<()> {
    let newest = ids::unix_ms().saturating_sub(STAGED_LEASE.as_millis() as u64);
    for transaction in engines.staged_transactions()? {
        if transaction.timestamp_ms() > newest {
            continue;
        }
        let request = v1::ResolveTransactionRequest { transaction_id: transaction.to_string() };
        let outcome = client.resolve_transaction(request).await?.into_inner();
        tracing::info!(%transaction, committed = outcome.committed, "resolved an old transaction");
        let engines = engines.clone();
        let resolved = tokio::task::spawn_blocking(move || {
            if outcome.committed { engines.commit(transaction, outcome.version) } else { engines.abort(transaction) }
        });
        resolved.await.map_err(|error| Error::internal(error.to_string()))??;
    }
    Ok(())
}
