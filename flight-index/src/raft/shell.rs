//! [`Catalog`]: the replicated catalog as the rest of the index server sees it.

use std::{collections::BTreeMap, fmt, path::PathBuf, sync::Arc, time::Duration};

use drsdb_core::{Error, ErrorCode, Result, WireError, v1::raft_server::RaftServer};
use openraft::{
    BasicNode, Config, SnapshotPolicy,
    error::{CheckIsLeaderError, Fatal, InitializeError, RaftError},
};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{
    batch::{Batcher, not_leader, stopped},
    codec,
    database::{Change, Database},
    log_store::LogStore,
    network::{Dial, Network},
    service::RaftService,
    state_machine::{Published, StateMachine},
    types::{NodeId, Raft},
};
use crate::catalog::{CatalogState, Command, Response};

/// The largest command. Messages between voters and the log's cache are made for it.
pub(super) const MAX_COMMAND_BYTES: usize = 8 << 20;
/// Entries after which a snapshot is made.
const SNAPSHOT_AFTER_ENTRIES: u64 = 5_000;
/// How long a node that is the only voter may take to start.
const START_TIME: Duration = Duration::from_secs(60);

/// How to open a [`Catalog`].
#[derive(Clone)]
pub struct CatalogOptions {
    /// Where its file is; made if it is not there.
    pub dir: PathBuf,
    /// This node among the voters.
    pub node_id: NodeId,
    /// All voters of a new cluster with their URLs, this one included. Not looked at once the cluster is made.
    pub voters: BTreeMap<NodeId, String>,
    /// How to reach the others.
    pub dial: Dial,
}

impl fmt::Debug for CatalogOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CatalogOptions").field("dir", &self.dir).field("voters", &self.voters).finish_non_exhaustive()
    }
}

/// The replicated catalog of one index server.
pub struct Catalog {
    raft: Raft,
    database: Arc<Database>,
    published: Arc<Published>,
    batcher: Mutex<Option<Arc<Batcher>>>,
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
    /// Errors: `invalid_argument` when another process uses the directory or the node has another id there, `corrupt`
    /// and `unsupported` for files that cannot be read.
    pub async fn open(options: CatalogOptions) -> Result<Arc<Self>> {
        let CatalogOptions { dir, node_id, voters, dial } = options;
        if !voters.contains_key(&node_id) {
            return Err(Error::new(ErrorCode::InvalidArgument, format!("node {node_id} is not among the voters")));
        }
        let opened = tokio::task::spawn_blocking(move || {
            let database = Database::open(&dir)?;
            let (log, state_machine) = (LogStore::open(database.clone())?, StateMachine::open(database.clone())?);
            let known = database.meta("node")?.map(|bytes| codec::decode::<NodeId>("node", &bytes)).transpose()?;
            Ok::<_, Error>((database, log, state_machine, known))
        });
        let (database, log, state_machine, known) =
            opened.await.map_err(|error| Error::internal(error.to_string())).flatten()?;
        check_node(&database, known, node_id).await?;

        let published = state_machine.published();
        let config = config()?;
        let raft = Raft::new(node_id, config, Network { dial }, log, state_machine)
            .await
            .map_err(|error| fatal_error(&database, &error))?;
        initialize(&raft, voters, &database).await?;
        let explained = database.clone();
        let batcher = Batcher::start(raft.clone(), move |fatal| fatal_error(&explained, fatal));
        let catalog = Arc::new(Self { raft, database, published, batcher: Mutex::new(Some(Arc::new(batcher))) });
        catalog.catch_up_alone(node_id).await?;
        Ok(catalog)
    }

    /// Has `command` committed and applied, and answers with the version that it made. What the catalog refuses is an
    /// error here, so the response is never [`Response::Error`].
    ///
    /// Errors: what [`crate::catalog::apply`] refuses; `resource_exhausted` for a command that is too large;
    /// `unavailable` when this node does not lead or shuts down, with the field `leader` if there is one; `disk_full` and
    /// others when the node has stopped. After an error of the last two kinds the command may still take effect.
    pub async fn propose(&self, command: Command) -> Result<(u64, Response)> {
        let bytes = codec::encoded_bytes(&command);
        if bytes > MAX_COMMAND_BYTES {
            return Err(WireError::new(
                ErrorCode::ResourceExhausted,
                format!("a change of the catalog has at most {MAX_COMMAND_BYTES} bytes, and this one has {bytes}"),
            )
            .with_hint("use fewer columns or shards, or load fewer tables at once")
            .into());
        }
        let batcher = self.batcher.lock().clone().ok_or_else(stopped)?;
        let (version, response) = batcher.propose(command, bytes).await?;
        Ok((version, response.into_result()?))
    }

    /// The state now, as far as this node knows. It never changes; ask again for a newer one.
    pub fn state(&self) -> Arc<CatalogState> {
        self.published.state()
    }

    /// The version of [`Catalog::state`], as it moves on.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.published.watch()
    }

    /// Returns when [`Catalog::state`] has everything that was acknowledged by any node before the call.
    pub async fn linearize(&self) -> Result<()> {
        self.raft.ensure_linearizable().await.map(drop).map_err(|error| match error {
            RaftError::Fatal(fatal) => fatal_error(&self.database, &fatal),
            RaftError::APIError(CheckIsLeaderError::ForwardToLeader(forward)) => {
                not_leader(forward.leader_node.as_ref().map(|node| node.addr.as_str()))
            }
            RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(error)) => {
                WireError::new(ErrorCode::Unavailable, format!("most index servers do not answer: {error}"))
                    .with_hint("start them, then retry")
                    .into()
            }
        })
    }

    /// Makes a snapshot now, and forgets the log that it covers. It happens by itself every few thousand entries.
    pub async fn snapshot(&self) -> Result<()> {
        self.raft.trigger().snapshot().await.map_err(|fatal| fatal_error(&self.database, &fatal))
    }

    /// The gRPC service that other voters call.
    pub fn raft_service(&self) -> RaftServer<RaftService> {
        RaftService::server(self.raft.clone())
    }

    /// Returns when the node can go on no longer, with the reason: its disk failed. The server should end.
    pub async fn halted(&self) -> Error {
        let mut metrics = self.raft.metrics();
        // The sender lives as long as the node, and a node that is gone has stopped.
        let state = metrics.wait_for(|metrics| metrics.running_state.is_err()).await;
        match state.map(|metrics| metrics.running_state.clone()) {
            Ok(Err(fatal)) => fatal_error(&self.database, &fatal),
            Ok(Ok(())) | Err(_) => stopped(),
        }
    }

    /// Stops the node; what was acknowledged is on disk already. Proposals that wait fail.
    pub async fn shutdown(&self) {
        self.batcher.lock().take();
        if let Err(error) = self.raft.shutdown().await {
            tracing::error!(%error, "the catalog's consensus did not end well");
        }
        let database = self.database.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || database.close()).await {
            tracing::error!(%error, "the catalog's log did not end well");
        }
    }

    /// A node that votes alone leads from its start on, and applies its whole log before it serves anybody. (It is not to be
    /// told to elect itself: a second election would turn away the first proposals.)
    async fn catch_up_alone(&self, node_id: NodeId) -> Result<()> {
        // Not from the metrics: they may not have heard yet.
        let alone =
            self.raft.with_raft_state(move |state| state.membership_state.effective().voter_ids().eq([node_id]));
        if !alone.await.map_err(|fatal| fatal_error(&self.database, &fatal))? {
            return Ok(());
        }
        let leads = self.raft.wait(Some(START_TIME)).current_leader(node_id, "the only voter leads").await;
        leads.map_err(|error| match self.database.fault() {
            Some(fault) => fault.clone().into(),
            None => Error::internal(format!("the catalog does not start: {error}")),
        })?;
        self.linearize().await
    }
}

fn config() -> Result<Arc<Config>> {
    let config = Config {
        cluster_name: "drsdb".to_owned(),
        heartbeat_interval: 200,
        election_timeout_min: 800,
        election_timeout_max: 1_600,
        install_snapshot_timeout: 10_000,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_AFTER_ENTRIES),
        replication_lag_threshold: 2 * SNAPSHOT_AFTER_ENTRIES,
        max_in_snapshot_log_to_keep: 500,
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
        .with_hint("give each index server its own data directory")
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
        // Every start but the first one.
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
