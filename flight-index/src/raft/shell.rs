//! [`Catalog`]: the replicated catalog as the rest of the index server sees it.

use std::{collections::BTreeMap, fmt, path::PathBuf, sync::Arc, time::Duration};

use drsdb_core::{Error, ErrorCode, Result, WireError, v1::raft_server::RaftServer};
use openraft::{
    BasicNode, Config, SnapshotPolicy,
    error::{Fatal, InitializeError, RaftError},
};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{
    batch::{Batcher, stopped},
    codec,
    database::{Change, Database},
    network::{Dial, Network},
    peers::{Leader, Peers},
    read_index::{Confirmed, Rounds},
    rejoin::{self, Files, Rejoining},
    service::RaftService,
    state_machine::Published,
    types::{NodeId, Raft},
    unsynced::Unsynced,
};
use crate::catalog::CatalogState;

/// An election is over by then, nearly always.
const ELECTION_TIME: Duration = Duration::from_secs(4);
/// How long a node that is the only voter may take to start.
const START_TIME: Duration = Duration::from_secs(60);

/// How to open a [`Catalog`].
#[derive(Clone)]
pub struct CatalogOptions {
    /// Where its file is; made if it is not there.
    pub dir: PathBuf,
    /// This node among the voters.
    pub node_id: NodeId,
    /// All voters of a new cluster with their URLs, this one included. Empty for a node that waits for another one to make
    /// the cluster, or to be added to one. Not looked at once the node knows a cluster.
    pub voters: BTreeMap<NodeId, String>,
    /// The index servers that the configuration names, for a node that has lost what it knew of them.
    pub named: BTreeMap<NodeId, String>,
    /// How to reach the others.
    pub dial: Dial,
    /// Entries after which a snapshot is made.
    pub snapshot_entries: u64,
}

impl fmt::Debug for CatalogOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CatalogOptions").field("dir", &self.dir).field("voters", &self.voters).finish_non_exhaustive()
    }
}

/// The replicated catalog of one index server.
pub struct Catalog {
    pub(super) peers: Peers,
    pub(super) database: Arc<Database>,
    unsynced: Unsynced,
    pub(super) published: Arc<Published>,
    pub(super) batcher: Mutex<Option<Arc<Batcher>>>,
    pub(super) rounds: Mutex<Option<Rounds>>,
    pub(super) confirmed: Confirmed,
    /// Where its files are.
    pub(super) dir: PathBuf,
    /// See [`super::rejoin`].
    pub(super) rejoining: Mutex<Option<Rejoining>>,
    /// One change of the members at a time.
    pub(super) changing: tokio::sync::Mutex<()>,
    /// The first version at which another server's state was found to differ.
    pub(super) disagrees_since: Mutex<Option<u64>>,
}

impl fmt::Debug for Catalog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Catalog").field("version", &self.state().version()).finish_non_exhaustive()
    }
}

impl Catalog {
    /// Opens the catalog, making the cluster if it is new. With one voter, the state has all that was ever acknowledged
    /// when this returns; with more, [`Catalog::linearize`] says when it has.
    ///
    /// One whose files are damaged or gone becomes a new one with nothing in it, if the others can do without it
    /// ([`super::rejoin`]); then [`Catalog::join_again`] is to be called.
    ///
    /// Errors: `invalid_argument` when another process uses the directory or the node has another id there, `corrupt`
    /// and `unsupported` for files that cannot be read.
    pub async fn open(options: CatalogOptions) -> Result<Arc<Self>> {
        if !options.voters.is_empty() && !options.voters.contains_key(&options.node_id) {
            let message = format!("node {} is not among the voters", options.node_id);
            return Err(Error::new(ErrorCode::InvalidArgument, message));
        }
        let Files { database, log, state_machine, known, rejoining } = rejoin::open(&options).await?;
        let CatalogOptions { dir, node_id, voters, named: _, dial, snapshot_entries } = options;
        check_node(&database, known, node_id).await?;

        let published = state_machine.published();
        let config = config(snapshot_entries, rejoining.is_none())?;
        let unsynced = log.unsynced();
        let network = Network { dial: dial.clone(), unsynced: unsynced.clone() };
        let raft = Raft::new(node_id, config, network, log, state_machine)
            .await
            .map_err(|error| fatal_error(&database, &error))?;
        let is_new = !raft.is_initialized().await.map_err(|fatal| fatal_error(&database, &fatal))?;
        if is_new && !voters.is_empty() && rejoining.is_none() {
            initialize(&raft, voters, &database).await?;
        }
        let explained = database.clone();
        let batcher = Batcher::start(node_id, raft.clone(), move |fatal| fatal_error(&explained, fatal));
        let peers = Peers { id: node_id, raft, dial };
        let catalog = Arc::new(Self {
            rounds: Mutex::new(Some(Rounds::start(peers.clone()))),
            confirmed: Confirmed::default(),
            peers,
            database,
            unsynced,
            published,
            batcher: Mutex::new(Some(Arc::new(batcher))),
            dir,
            rejoining: Mutex::new(rejoining),
            changing: tokio::sync::Mutex::new(()),
            disagrees_since: Mutex::new(None),
        });
        catalog.catch_up_alone(node_id).await?;
        Ok(catalog)
    }

    /// The state now, as far as this node knows. It never changes; ask again for a newer one.
    pub fn state(&self) -> Arc<CatalogState> {
        self.published.state()
    }

    /// The version of [`Catalog::state`], as it moves on.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.published.watch()
    }

    /// Makes a snapshot of all that is applied now, and forgets the log that it covers: a node that is behind gets the
    /// snapshot. It happens by itself every few thousand entries, which keeps some of the log for those that are a little
    /// behind.
    pub async fn snapshot(&self) -> Result<()> {
        let fatal = |fatal| fatal_error(&self.database, &fatal);
        let Some(applied) = self.peers.raft.metrics().borrow().last_applied else { return Ok(()) };
        self.peers.raft.trigger().snapshot().await.map_err(fatal)?;
        let mut metrics = self.peers.raft.metrics();
        let made = metrics.wait_for(|metrics| metrics.snapshot >= Some(applied) || metrics.running_state.is_err());
        made.await.map_err(|_| stopped())?;
        self.peers.raft.trigger().purge_log(applied.index).await.map_err(fatal)
    }

    /// The gRPC service that other index servers call.
    pub fn raft_service(self: &Arc<Self>) -> RaftServer<RaftService> {
        RaftService::server(Arc::clone(self))
    }

    /// Whether this node leads the others, as far as it knows.
    pub fn leads(&self) -> bool {
        self.peers.leader() == Leader::Here
    }

    /// Whether it knows of a leader.
    pub fn knows_leader(&self) -> bool {
        self.peers.leader() != Leader::Nobody
    }

    /// Returns when this node has known of no leader for longer than an election takes.
    pub async fn cut_off(&self) {
        loop {
            match self.peers.leader() {
                Leader::Nobody => {
                    self.peers.leader_changed(&Leader::Nobody, ELECTION_TIME).await;
                    if self.peers.leader() == Leader::Nobody {
                        return;
                    }
                }
                leader => self.peers.leader_changed(&leader, Duration::MAX).await,
            }
        }
    }

    /// Whether the node belongs to a cluster, or makes one: its log is not empty.
    pub async fn is_initialized(&self) -> Result<bool> {
        self.peers.raft.is_initialized().await.map_err(|fatal| fatal_error(&self.database, &fatal))
    }

    /// Why the node can go on no longer, if it cannot.
    pub(super) fn stopped_because(&self) -> Option<Error> {
        let metrics = self.peers.raft.metrics();
        let state = metrics.borrow().running_state.clone();
        state.err().map(|fatal| fatal_error(&self.database, &fatal))
    }

    /// Returns when the node can go on no longer, with the reason: its disk failed. The server should end.
    pub async fn halted(&self) -> Error {
        let mut metrics = self.peers.raft.metrics();
        // The sender lives as long as the node, and a node that is gone has stopped. One whose disk failed under an early entry
        // need not have heard of it.
        let state = tokio::select! {
            state = metrics.wait_for(|metrics| metrics.running_state.is_err()) => state,
            () = self.unsynced.failed() => return fatal_error(&self.database, &Fatal::Stopped),
        };
        match state.map(|metrics| metrics.running_state.clone()) {
            Ok(Err(fatal)) => fatal_error(&self.database, &fatal),
            Ok(Ok(())) | Err(_) => stopped(),
        }
    }

    /// Stops the node; what was acknowledged is on disk already. Proposals that wait fail.
    pub async fn shutdown(&self) {
        self.batcher.lock().take();
        self.rounds.lock().take();
        if let Err(error) = self.peers.raft.shutdown().await {
            tracing::error!(%error, "the catalog's consensus did not end well");
        }
        let database = self.database.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || database.close()).await {
            tracing::error!(%error, "the catalog's log did not end well");
        }
    }

    /// A node that votes alone elects itself soon, and applies its whole log before it serves anybody. (It is not to be told to
    /// elect itself: a second election would turn away the first proposals.)
    async fn catch_up_alone(&self, node_id: NodeId) -> Result<()> {
        // What it knows of the others is of a time before it lost its file.
        if self.is_rejoining() {
            return Ok(());
        }
        // Not from the metrics: they may not have heard yet.
        let alone =
            self.peers.raft.with_raft_state(move |state| state.membership_state.effective().voter_ids().eq([node_id]));
        if !alone.await.map_err(|fatal| fatal_error(&self.database, &fatal))? {
            return Ok(());
        }
        let leads = self.peers.raft.wait(Some(START_TIME)).current_leader(node_id, "the only voter leads").await;
        leads.map_err(|error| match self.database.fault() {
            Some(fault) => fault.clone().into(),
            None => Error::internal(format!("the catalog does not start: {error}")),
        })?;
        self.linearize().await
    }
}

/// `elect`: whether the node may have itself elected from the beginning.
fn config(snapshot_entries: u64, elect: bool) -> Result<Arc<Config>> {
    let config = Config {
        cluster_name: "drsdb".to_owned(),
        enable_elect: elect,
        // For one network without routers between. openraft gives an append as long as a heartbeat's interval: an fsync of
        // a busy disk must fit. Followers hold still for the longest election timeout, then for their own: a lost leader
        // costs 2.3 to 3 seconds.
        heartbeat_interval: 250,
        election_timeout_min: 750,
        election_timeout_max: 1_500,
        // For one chunk; the last one includes taking the whole state in.
        install_snapshot_timeout: 10_000,
        snapshot_max_chunk_size: 1 << 20,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(snapshot_entries),
        replication_lag_threshold: snapshot_entries.saturating_mul(2),
        max_in_snapshot_log_to_keep: snapshot_entries / 10,
        ..Config::default()
    };
    config.validate().map(Arc::new).map_err(|error| Error::internal(error.to_string()))
}

/// A directory belongs to one node: with another id, its votes and entries would be somebody else's.
async fn check_node(database: &Database, known: Option<NodeId>, node_id: NodeId) -> Result<()> {
    match known {
        Some(known) if known == node_id => Ok(()),
        Some(known) => Err(WireError::new(
            ErrorCode::InvalidArgument,
            format!("the data directory belongs to index server {known}, and this one is {node_id}"),
        )
        .with_hint(format!("set node_id = {known} if it is that one, or else give this one a data_dir of its own"))
        .into()),
        None => {
            let written = database.write(Change::Node(codec::encode(&node_id))).await;
            written.map_err(|error| Error::io("cannot write the catalog", error))
        }
    }
}

async fn initialize(raft: &Raft, voters: BTreeMap<NodeId, String>, database: &Database) -> Result<()> {
    let voters: BTreeMap<NodeId, BasicNode> = voters.into_iter().map(|(id, url)| (id, BasicNode::new(url))).collect();
    match raft.initialize(voters).await {
        // Another server was faster.
        Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
        Err(RaftError::APIError(error)) => Err(Error::internal(error.to_string())),
        Err(RaftError::Fatal(fatal)) => Err(fatal_error(database, &fatal)),
    }
}

/// Why the node stopped, as precisely as is known.
fn fatal_error(database: &Database, fatal: &Fatal<NodeId>) -> Error {
    match (database.fault(), fatal) {
        (Some(fault), _) => fault.clone().into(),
        (None, Fatal::Stopped) => stopped(),
        (None, fatal) => Error::internal(format!("the catalog stopped: {fatal}")),
    }
}
