//! Follows the commits of the catalog and applies them to the engines, in their order.
//!
//! The index servers' Raft log decides what is committed; a storage server hears of it by `Cluster.FollowCommits`, a stream
//! that starts after the last version that it has applied. Engines make `commit` idempotent, so that a replay after a
//! crash does no harm: what has been applied is remembered in a small file that may be behind, and never ahead. Engines do
//! not sync each outcome either: from time to time all of them are, and then the file says so, and the index servers hear it,
//! which forget what everybody has on disk.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use drsdb_core::{
    Error, ErrorCode, Result, Ulid, WireError, crash_point,
    net::ChannelPool,
    parse_ulid,
    v1::{self, cluster_client::ClusterClient, commit::Change},
};
use futures::{StreamExt, future::join_all};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::{
    coordinators::{Activity, Coordinators},
    engine::ShardId,
    engines::Engines,
    index_servers::{IndexServers, is_about},
    open_loads::OpenLoads,
    rebuild::Rebuilds,
    small_file::{read_hint, replace_hint},
};

/// Commits that are applied side by side, so that they share an fsync.
const BATCH: usize = 64;

/// How often it is looked whether a staged transaction waits for its outcome.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// A transaction that is in the way for longer than nearly every commit takes is asked about.
const OBSTACLE_TIME: Duration = Duration::from_millis(100);

/// How often what was applied is made durable, at most, while commits come.
const SAVE_EVERY: Duration = Duration::from_secs(1);

/// How far commits have been applied on this server: scans wait on it.
#[derive(Debug, Clone)]
pub struct AppliedVersion {
    version: Arc<watch::Sender<u64>>,
    /// Up to which version all of it is on disk.
    durable: Arc<AtomicU64>,
    file: Arc<PathBuf>,
}

impl AppliedVersion {
    /// Reads what was applied before the last stop; 0 on the first start.
    pub fn open(file: PathBuf) -> Result<Self> {
        // A number that is lost costs a longer replay, from where the index servers still know commits: what they have
        // forgotten is on disk here, or copied anew.
        let kept = read_hint(&file)?.and_then(|bytes| String::from_utf8(bytes).ok());
        let version: u64 = kept.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        let durable = Arc::new(AtomicU64::new(version));
        Ok(Self { version: Arc::new(watch::Sender::new(version)), durable, file: Arc::new(file) })
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

    /// The last version up to which everything survives a power loss.
    pub fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    /// Makes what `engines` have applied durable, and remembers the version for the next start. Blocks.
    pub fn save(&self, engines: &Engines) -> Result<()> {
        let version = self.get();
        if version == self.durable() {
            return Ok(());
        }
        engines.sync()?;
        self.durable.fetch_max(version, Ordering::AcqRel);
        let text = version.to_string();
        replace_hint(&self.file, text.as_bytes(), "applied_version.written", "applied_version.renamed")
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

/// What following needs to know.
#[derive(Debug, Clone)]
pub struct Follower {
    /// Where commits are applied.
    pub engines: Engines,
    /// How far they have been.
    pub applied: AppliedVersion,
    /// What is kept for shards that are being rebuilt.
    pub rebuilds: Rebuilds,
    /// Transactions that are not staged yet.
    pub open: OpenLoads,
    /// Who runs them.
    pub coordinators: Coordinators,
    /// Those that were in the way of others.
    pub obstacles: Obstacles,
    /// Connections to the index servers.
    pub channels: ChannelPool,
    /// The index servers.
    pub index_servers: IndexServers,
    /// This server.
    pub server_id: Ulid,
    /// A transaction that has been staged for so long without an outcome is asked about, which aborts it if it has not
    /// committed: longer than it takes from the first shard's end to the commit.
    pub staged_lease: Duration,
}

/// Staged transactions that were in the way of others, and when that was first seen or when they were last asked about.
#[derive(Debug, Clone, Default)]
pub struct Obstacles(Arc<Mutex<HashMap<Ulid, Instant>>>);

impl Obstacles {
    /// Those of `staged` that have been in the way for so long that their end may have been missed.
    fn due(&self, staged: Vec<Ulid>, now: Instant) -> Vec<Ulid> {
        let mut since = self.0.lock();
        let present: HashSet<Ulid> = staged.iter().copied().collect();
        since.retain(|transaction, _| present.contains(transaction));
        let mut due = staged;
        due.retain(|transaction| {
            let since = since.entry(*transaction).or_insert(now);
            let is_due = now.duration_since(*since) >= OBSTACLE_TIME;
            if is_due {
                *since = now;
            }
            is_due
        });
        due
    }
}

/// When this server first saw that a transaction was staged. The clock is this server's, since the one that made the
/// transaction's id may differ; and a load may take much longer than a lease before it is staged.
type Staged = HashMap<Ulid, Instant>;

/// Follows commits until `shutdown`, reconnecting to the next index server whenever a stream ends. An error: the cluster has
/// not what this server has taken in, so that nothing here can be believed.
pub async fn follow(follower: Follower, shutdown: CancellationToken) -> Result<()> {
    let index_servers = &follower.index_servers;
    let mut staged = Staged::new();
    let mut attempt = 0usize;
    while !shutdown.is_cancelled() {
        let url = index_servers.at(attempt);
        attempt += 1;
        let ended = shutdown.run_until_cancelled(follow_one(&follower, &url, &mut staged)).await;
        if let Some(Ok(ahead)) = ended {
            return Err(ahead);
        }
        if let Some(Err(error)) = ended {
            tracing::warn!(index_server = %url, %error, "lost the stream of commits");
            // Nothing tells when an index server is back: ask again after a moment.
            #[allow(clippy::disallowed_methods)]
            let pause = tokio::time::sleep(Duration::from_millis(200));
            shutdown.run_until_cancelled(pause).await;
        }
    }
    if let Err(error) = save(&follower).await {
        tracing::warn!(%error, "could not save the applied version: the next start replays more");
    }
    Ok(())
}

/// Follows until the stream ends, which is an error, or is refused for good, which is what it answers.
async fn follow_one(follower: &Follower, url: &Url, staged: &mut Staged) -> Result<Error> {
    let Follower { engines, applied, channels, server_id, rebuilds, coordinators, .. } = follower;
    let mut client = ClusterClient::new(channels.channel(url)?);
    let request = v1::FollowCommitsRequest { server_id: server_id.to_string(), after_version: applied.durable() };
    let stream = match client.follow_commits(request).await.map_err(Error::from) {
        Ok(stream) => stream.into_inner(),
        Err(error) if error.code() == ErrorCode::Corrupt && is_about(&error, *server_id) => return Ok(error),
        Err(error) => return Err(error),
    };
    let mut batches = stream.ready_chunks(BATCH);
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut saves = tokio::time::interval(SAVE_EVERY);
    saves.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let batch = tokio::select! {
            biased;
            _ = saves.tick() => {
                save(follower).await?;
                continue;
            }
            batch = batches.next() => batch,
            _ = looks.tick() => {
                resolve_old(follower, &mut client, staged).await?;
                continue;
            }
        };
        let Some(batch) = batch else { break };
        let (mut changes, mut decided) = (Vec::with_capacity(batch.len()), Vec::new());
        let (mut complete, mut failed) = (0, None);
        for commit in batch {
            let commit = match commit {
                Ok(commit) => commit,
                // What came before it counts.
                Err(status) => {
                    failed = Some(status);
                    break;
                }
            };
            complete = commit.complete;
            follower.index_servers.learn(&commit.index_servers);
            if let Some(change) = commit.change {
                if let Change::Transaction(outcome) = &change {
                    decided.push(parse_ulid(&outcome.transaction_id)?);
                }
                changes.push((commit.version, change));
            }
        }
        if !changes.is_empty() {
            let taker = Taker { engines: engines.clone(), rebuilds: rebuilds.clone(), server_id: *server_id };
            let taken = tokio::task::spawn_blocking(move || taker.take_all(changes)).await;
            taken.map_err(|error| Error::internal(format!("applying commits failed: {error}")))??;
        }
        for transaction in decided {
            coordinators.forget(transaction);
            follower.open.forget(transaction);
        }
        applied.advance(complete);
        if let Some(status) = failed {
            return Err(status.into());
        }
    }
    Err(Error::new(ErrorCode::Unavailable, "the index server ended the stream"))
}

/// Makes what was applied durable.
async fn save(follower: &Follower) -> Result<()> {
    let (applied, engines) = (follower.applied.clone(), follower.engines.clone());
    let saved = tokio::task::spawn_blocking(move || applied.save(&engines)).await;
    saved.map_err(|error| Error::internal(format!("saving the applied version failed: {error}")))?
}

/// Takes changes in.
struct Taker {
    engines: Engines,
    rebuilds: Rebuilds,
    server_id: Ulid,
}

impl Taker {
    /// Takes in changes with their versions, in order; outcomes that follow each other together.
    fn take_all(&self, changes: Vec<(u64, Change)>) -> Result<()> {
        let mut outcomes = Vec::new();
        for (version, change) in changes {
            if let Change::Transaction(outcome) = change {
                let transaction = parse_ulid(&outcome.transaction_id)?;
                outcomes.push((transaction, outcome.committed.then_some(version)));
                continue;
            }
            self.decide(&std::mem::take(&mut outcomes))?;
            self.take(version, change)?;
        }
        self.decide(&outcomes)
    }

    fn take(&self, version: u64, change: Change) -> Result<()> {
        match change {
            Change::Transaction(_) => Err(Error::internal("outcomes are taken in together")),
            Change::DroppedTable(table) => {
                let table = parse_ulid(&table)?;
                self.engines.floors().drop_table(table)?;
                self.engines.drop_table(table)
            }
            Change::RemovedReplica(removed) => {
                let shard = ShardId { table: parse_ulid(&removed.table_id)?, shard: removed.shard };
                let mine = parse_ulid(&removed.server_id)? == self.server_id;
                if mine && self.engines.floors().close(shard, version)? {
                    tracing::info!(table = %shard.table, shard = shard.shard, "a shard lives elsewhere now");
                    self.engines.drop_shard(shard)?;
                }
                Ok(())
            }
        }
    }

    fn decide(&self, outcomes: &[(Ulid, Option<u64>)]) -> Result<()> {
        if outcomes.is_empty() {
            return Ok(());
        }
        crash_point::reach("outcome.received");
        self.rebuilds.decide_all(&self.engines, outcomes)?;
        crash_point::reach("outcome.applied");
        Ok(())
    }
}

/// Asks for the outcome of transactions that were staged long ago; asking aborts what never committed.
async fn resolve_old(
    follower: &Follower,
    client: &mut ClusterClient<tonic::transport::Channel>,
    staged: &mut Staged,
) -> Result<()> {
    let mut present = follower.engines.staged_transactions()?;
    present.extend(follower.rebuilds.undecided());
    let present: HashSet<Ulid> = present.into_iter().filter(|load| !follower.open.is_open(*load)).collect();
    staged.retain(|transaction, _| present.contains(transaction));
    for transaction in present {
        if staged.entry(transaction).or_insert_with(Instant::now).elapsed() < follower.staged_lease {
            continue;
        }
        if activity(follower, transaction).await == Activity::Runs {
            // Somebody runs it; it may take as long as it likes.
            continue;
        }
        resolve(follower, client, transaction).await?;
    }
    Ok(())
}

/// Has transactions decided that are in the way of another one here, unless somebody runs them: the replica that checked
/// knows their outcomes already.
pub(crate) async fn clear_the_way(follower: &Follower, of: Ulid) -> Result<()> {
    let mut staged = staged(follower).await?;
    staged.retain(|transaction| *transaction != of);
    resolve_abandoned(follower, staged).await
}

/// The same where it is decided about a change, and where what is in the way has nearly always just not ended yet: only
/// what has been there for a while is asked about, and only what surely nobody runs is resolved.
pub(crate) async fn clear_obstacles(follower: &Follower, of: Ulid) -> Result<()> {
    let mut staged = staged(follower).await?;
    staged.retain(|transaction| *transaction != of);
    resolve_gone(follower, follower.obstacles.due(staged, Instant::now())).await
}

/// Has those of the transactions decided that surely nobody runs.
pub(crate) async fn resolve_gone(follower: &Follower, transactions: Vec<Ulid>) -> Result<()> {
    let asked =
        transactions.into_iter().map(|transaction| async move { (transaction, activity(follower, transaction).await) });
    for (transaction, activity) in join_all(asked).await {
        if activity == Activity::Gone && !follower.open.is_open(transaction) {
            resolve_anywhere(follower, transaction).await?;
        }
    }
    Ok(())
}

async fn staged(follower: &Follower) -> Result<Vec<Ulid>> {
    let engines = follower.engines.clone();
    let staged = tokio::task::spawn_blocking(move || engines.staged_transactions()).await;
    staged.map_err(|error| Error::internal(error.to_string()))?
}

async fn resolve_abandoned(follower: &Follower, transactions: Vec<Ulid>) -> Result<()> {
    for transaction in transactions {
        if follower.open.is_open(transaction) || activity(follower, transaction).await == Activity::Runs {
            continue;
        }
        resolve_anywhere(follower, transaction).await?;
    }
    Ok(())
}

/// At the first index server that answers.
async fn resolve_anywhere(follower: &Follower, transaction: Ulid) -> Result<()> {
    let mut resolved = Err(Error::new(ErrorCode::Unavailable, "no index server is known"));
    for url in follower.index_servers.list() {
        let mut client = ClusterClient::new(follower.channels.channel(&url)?);
        resolved = resolve(follower, &mut client, transaction).await;
        if resolved.is_ok() {
            break;
        }
    }
    resolved
}

async fn activity(follower: &Follower, transaction: Ulid) -> Activity {
    follower.coordinators.activity(&follower.channels, &follower.index_servers.list(), transaction).await
}

/// Asks for a transaction's outcome, which aborts it if it has not committed, and takes it in.
async fn resolve(
    follower: &Follower,
    client: &mut ClusterClient<tonic::transport::Channel>,
    transaction: Ulid,
) -> Result<()> {
    let request = v1::ResolveTransactionRequest { transaction_id: transaction.to_string() };
    let outcome = client.resolve_transaction(request).await?.into_inner();
    tracing::info!(%transaction, committed = outcome.committed, "resolved an old transaction");
    let taker =
        Taker { engines: follower.engines.clone(), rebuilds: follower.rebuilds.clone(), server_id: follower.server_id };
    let outcome = outcome.committed.then_some(outcome.version);
    let resolved = tokio::task::spawn_blocking(move || {
        taker.decide(&[(transaction, outcome)])?;
        // The stream may be beyond it, and then nobody tells it again.
        taker.engines.sync()
    });
    resolved.await.map_err(|error| Error::internal(error.to_string()))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::small_file::damages;

    #[test]
    fn no_damage_makes_a_server_claim_commits() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("applied_version");
        replace_hint(&file, b"1234", "applied_version.written", "applied_version.renamed").unwrap();
        assert_eq!(AppliedVersion::open(file.clone()).unwrap().durable(), 1234);
        for damage in damages(&std::fs::read(&file).unwrap()) {
            std::fs::write(&file, &damage).unwrap();
            assert_eq!(AppliedVersion::open(file.clone()).unwrap().durable(), 0, "{damage:?}");
        }
    }

    #[test]
    fn an_obstacle_is_asked_about_when_it_stays() {
        let (obstacles, start) = (Obstacles::default(), Instant::now());
        let (one, two) = (Ulid(1), Ulid(2));
        assert_eq!(obstacles.due(vec![one, two], start), []);
        assert_eq!(obstacles.due(vec![one], start + OBSTACLE_TIME / 2), []);
        // The other one had ended in between.
        let later = start + OBSTACLE_TIME;
        assert_eq!(obstacles.due(vec![one, two], later), [one]);
        assert_eq!(obstacles.due(vec![one, two], later + OBSTACLE_TIME / 2), [], "not again at once");
        assert_eq!(obstacles.due(vec![one, two], later + OBSTACLE_TIME), [one, two]);
    }
}
