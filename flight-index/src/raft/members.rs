//! Who the index servers are, and how that changes while they run.
//!
//! A new server starts empty ([`CatalogOptions::voters`](super::CatalogOptions) is), is added as a learner, and votes as
//! soon as it has what the others have. One that is removed votes no more once the others have agreed; if it leads, it
//! leads until then. The list is an entry of the log like any other change, so every server has it, and a restart too.
//!
//! Each change here may be repeated: what is so already is no error.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use drsdb_core::{Error, ErrorCode, Result, Ulid, WireError};
use futures::future::join_all;
use openraft::{
    BasicNode, ChangeMembers, ServerState,
    error::{ChangeMembershipError, ClientWriteError, RaftError},
};
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time::Instant};

use super::{
    agreement::StateHash,
    batch::stopped,
    peers::{Call, CallFailed, Leader},
    propose::no_leader,
    shell::Catalog,
    types::{IndexServer, NodeId, index_servers},
};
use crate::catalog::Refusal;

/// How long a new server may take to learn what the others know.
const LEARN_TIME: Duration = Duration::from_secs(60);
/// Entries that a new server may be behind when it begins to vote.
const NEARLY_THERE: u64 = 200;
/// How long a change of the members may take in all.
pub(super) const CHANGE_TIME: Duration = Duration::from_secs(90);
/// How long a server may take to say how it is.
const STATUS_TIME: Duration = Duration::from_secs(2);
/// How long it is waited before a leader is asked again, at most.
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// A change of the index servers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum MemberChange {
    /// A new one, which runs already, and waits.
    Add { id: NodeId, url: String },
    /// One that votes no more.
    Remove { id: NodeId },
    /// One that is reached elsewhere now.
    Move { id: NodeId, url: String },
}

/// What the leader says of a change.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Changed {
    Done,
    NotLeading,
    Refused(Refusal),
}

/// What an index server says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its number.
    pub id: NodeId,
    /// Its cluster; `None` while it waits for one.
    pub cluster: Option<Ulid>,
    /// The index servers that have been agreed on, as far as it knows.
    #[serde(default)]
    pub members: Vec<NodeId>,
    /// `leader`, `follower`, `candidate`, `learner` or `shutdown`.
    pub state: String,
    /// The term, which grows with each election.
    pub term: u64,
    /// The index of the last entry in its log.
    pub log: u64,
    /// The index up to which its log is forgotten: a snapshot covers it.
    pub purged: u64,
    /// The index of the last entry in its state.
    pub applied: u64,
    /// Its state's hash.
    pub hash: StateHash,
    /// Since which version it knows that its state and another server's differ.
    #[serde(default)]
    pub disagrees_since: Option<u64>,
}

/// An index server, and what it says about itself; `None` when it does not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexServerStatus {
    /// The server.
    pub server: IndexServer,
    /// Its answer.
    pub status: Option<NodeStatus>,
}

impl Catalog {
    /// The index servers, as this node knows them; empty while it waits for a cluster.
    pub fn index_servers(&self) -> Vec<IndexServer> {
        index_servers(&self.peers.raft.metrics().borrow().membership_config)
    }

    /// The index servers as they have been agreed on, as that changes.
    pub fn watch_index_servers(&self) -> watch::Receiver<Arc<Vec<IndexServer>>> {
        self.published.members()
    }

    /// What every index server says about itself.
    pub async fn index_server_status(&self) -> Vec<IndexServerStatus> {
        let asked = self.index_servers().into_iter().map(|server| async move {
            let status = if server.id == self.peers.id {
                Some(self.node_status().await)
            } else {
                self.peers.call(&server.url, Call::NodeStatus, &(), STATUS_TIME).await.ok()
            };
            IndexServerStatus { server, status }
        });
        join_all(asked).await
    }

    /// What this node says about itself.
    pub async fn node_status(&self) -> NodeStatus {
        let hash = self.state_hash().await.unwrap_or(StateHash { version: 0, sha256: [0; 32] });
        self.status_with(hash)
    }

    fn status_with(&self, hash: StateHash) -> NodeStatus {
        let (state, term, log, purged) = {
            let metrics = self.peers.raft.metrics();
            let metrics = metrics.borrow();
            let purged = metrics.purged.map_or(0, |purged| purged.index);
            (metrics.state, metrics.current_term, metrics.last_log_index.unwrap_or(0), purged)
        };
        let applied = *self.published.applied().borrow();
        NodeStatus {
            id: self.peers.id,
            cluster: self.state().cluster_id(),
            members: self.published.members().borrow().iter().map(|server| server.id).collect(),
            state: match state {
                ServerState::Leader => "leader",
                ServerState::Follower => "follower",
                ServerState::Candidate => "candidate",
                ServerState::Learner => "learner",
                ServerState::Shutdown => "shutdown",
            }
            .to_owned(),
            term,
            log,
            purged,
            applied,
            hash,
            disagrees_since: self.disagrees_since(),
        }
    }

    /// Adds the server that waits at `url` as number `id`, and returns when it votes. May be asked of any index server.
    ///
    /// Errors: `already_exists` when the number or the URL is another server's, `invalid_argument` when the server at the
    /// URL has another number or belongs to another cluster, `unavailable` when it does not answer or does not catch up.
    pub async fn add_index_server(&self, id: NodeId, url: &str) -> Result<()> {
        self.change_members(MemberChange::Add { id, url: url.to_owned() }).await
    }

    /// Removes a server, and returns when it votes no more. It may be the one that leads, and need not run.
    ///
    /// Errors: `not_found`, and `invalid_argument` for the last one that votes.
    pub async fn remove_index_server(&self, id: NodeId) -> Result<()> {
        self.change_members(MemberChange::Remove { id }).await
    }

    /// Tells the others where this server is now, if that changed since it was last here.
    pub async fn announce(&self, url: &str) -> Result<()> {
        let known = self.index_servers().into_iter().find(|server| server.id == self.peers.id);
        match known {
            Some(known) if known.url != url => {
                self.change_members(MemberChange::Move { id: known.id, url: url.to_owned() }).await
            }
            _ => Ok(()),
        }
    }

    async fn change_members(&self, change: MemberChange) -> Result<()> {
        let deadline = Instant::now() + CHANGE_TIME;
        let mut asked_before = false;
        loop {
            let leader = self.peers.leader();
            let answer = match &leader {
                Leader::Here => Ok(self.change_members_here(&change).await),
                Leader::There(_, url) => self.peers.call(url, Call::ChangeMembers, &change, CHANGE_TIME).await,
                // A server that moved is not heard of by the leader until it has said so.
                Leader::Nobody => Ok(self.ask_each_to_change(&change).await),
            };
            let error = match answer {
                Ok(Changed::Done) => return Ok(()),
                // The first attempt did it, and could not say so.
                Ok(Changed::Refused(why))
                    if asked_before
                        && matches!(change, MemberChange::Remove { .. })
                        && why.clone().into_wire().code == ErrorCode::NotFound =>
                {
                    return Ok(());
                }
                Ok(Changed::Refused(why)) => return Err(why.into_wire().into()),
                Ok(Changed::NotLeading) => no_leader(),
                Err(CallFailed::NotSent(error)) => error.into(),
                Err(CallFailed::Lost(error)) => {
                    asked_before = true;
                    error.into()
                }
            };
            if let Some(stopped) = self.stopped_because() {
                return Err(stopped);
            }
            if Instant::now() >= deadline {
                return Err(error);
            }
            self.peers.leader_changed(&leader, ASK_AGAIN).await;
        }
    }

    async fn ask_each_to_change(&self, change: &MemberChange) -> Changed {
        for server in self.index_servers().iter().filter(|server| server.id != self.peers.id) {
            match self.peers.call(&server.url, Call::ChangeMembers, change, CHANGE_TIME).await {
                Ok(Changed::NotLeading) | Err(_) => {}
                Ok(answer) => return answer,
            }
        }
        Changed::NotLeading
    }

    /// Of a node that leads, for another one.
    pub(super) async fn change_members_for_another(&self, change: MemberChange) -> Changed {
        match self.peers.leader() {
            Leader::Here => self.change_members_here(&change).await,
            _ => Changed::NotLeading,
        }
    }

    pub(super) async fn change_members_here(&self, change: &MemberChange) -> Changed {
        let _one = self.changing.lock().await;
        let changed = match change {
            MemberChange::Add { id, url } => self.add(*id, url).await,
            MemberChange::Remove { id } => self.remove(*id).await,
            MemberChange::Move { id, url } => self.relocate(*id, url).await,
        };
        match changed {
            Ok(()) => {
                tracing::info!(?change, "the index servers changed");
                Changed::Done
            }
            Err(NotChanged::NotLeading) => Changed::NotLeading,
            Err(NotChanged::Refused(error)) => Changed::Refused(error.to_wire().into()),
        }
    }

    async fn add(&self, id: NodeId, url: &str) -> Result<(), NotChanged> {
        let known = self.index_servers();
        match known.iter().find(|server| server.id == id) {
            Some(server) if server.url != url => {
                let message = format!("index server {id} is at {}", server.url);
                return refuse(WireError::new(ErrorCode::AlreadyExists, message).with_hint(
                    "give the new server a node_id of its own, or start the known one with its new public_url: it tells",
                ));
            }
            Some(server) if server.voter && !self.is_changing() => return Ok(()),
            // An earlier leader did not get to the end.
            Some(server) if server.voter => {
                return self.agree(ChangeMembers::AddVoterIds(BTreeSet::from([id])), true).await;
            }
            _ => {}
        }
        if let Some(other) = known.iter().find(|server| server.url == url && server.id != id) {
            let message = format!("index server {} is at {url} already", other.id);
            return refuse(WireError::new(ErrorCode::AlreadyExists, message).with_field("server", url));
        }
        self.check_newcomer(id, url).await?;
        let learner = BTreeMap::from([(id, BasicNode::new(url))]);
        self.agree(ChangeMembers::AddNodes(learner), true).await?;
        if let Err(error) = self.has_learnt(id).await {
            // It would be a burden: every entry is sent to it, and kept for it.
            self.agree(ChangeMembers::RemoveNodes(BTreeSet::from([id])), false).await?;
            return Err(error);
        }
        self.agree(ChangeMembers::AddVoterIds(BTreeSet::from([id])), true).await
    }

    /// Whether the index servers are on the way from one list to another.
    fn is_changing(&self) -> bool {
        self.peers.raft.metrics().borrow().membership_config.membership().get_joint_config().len() > 1
    }

    /// Refuses a server that is somebody else: two with one number would each count as the other.
    async fn check_newcomer(&self, id: NodeId, url: &str) -> Result<(), NotChanged> {
        let asked = self.peers.call::<_, NodeStatus>(url, Call::NodeStatus, &(), STATUS_TIME).await;
        let status = asked.map_err(|failed| {
            let hint = "start it first, with join = true in its configuration";
            NotChanged::Refused(WireError::from(failed).with_hint(hint).into())
        })?;
        if status.id != id {
            let message = format!("the server at {url} is index server {}, not {id}", status.id);
            return refuse(WireError::new(ErrorCode::InvalidArgument, message).with_hint("use its node_id"));
        }
        match (status.cluster, self.state().cluster_id()) {
            (Some(theirs), ours) if Some(theirs) != ours => {
                let message = format!("the server at {url} belongs to another cluster, {theirs}");
                let hint = "start it with an empty data_dir and join = true";
                refuse(WireError::new(ErrorCode::InvalidArgument, message).with_hint(hint))
            }
            _ => Ok(()),
        }
    }

    /// Waits until a learner has nearly all.
    async fn has_learnt(&self, id: NodeId) -> Result<(), NotChanged> {
        let mut metrics = self.peers.raft.metrics();
        let mut leads = true;
        let learnt = metrics.wait_for(|metrics| {
            let Some(replication) = &metrics.replication else {
                leads = false;
                return true;
            };
            let matching = replication.get(&id).copied().flatten().map_or(0, |matching| matching.index);
            matching > 0 && matching + NEARLY_THERE >= metrics.last_log_index.unwrap_or(0)
        });
        match tokio::time::timeout(LEARN_TIME, learnt).await {
            Ok(Ok(_)) if leads => Ok(()),
            Ok(Ok(_)) => Err(NotChanged::NotLeading),
            Ok(Err(_)) => Err(NotChanged::Refused(stopped())),
            Err(_) => {
                let message = format!("index server {id} did not catch up within {LEARN_TIME:?}, and was not added");
                refuse(
                    WireError::new(ErrorCode::Unavailable, message).with_hint("look into its log, then add it again"),
                )
            }
        }
    }

    pub(super) async fn remove(&self, id: NodeId) -> Result<(), NotChanged> {
        let known = self.index_servers();
        let Some(server) = known.iter().find(|server| server.id == id) else {
            let ids: Vec<String> = known.iter().map(|server| server.id.to_string()).collect();
            let error = WireError::new(ErrorCode::NotFound, format!("there is no index server {id}"));
            return refuse(error.with_hint(format!("the index servers are {}", ids.join(", "))));
        };
        if !server.voter {
            return self.agree(ChangeMembers::RemoveNodes(BTreeSet::from([id])), false).await;
        }
        if known.iter().filter(|server| server.voter).count() == 1 {
            let error = WireError::new(ErrorCode::InvalidArgument, "the last index server cannot be removed");
            return refuse(error.with_hint("add another one first"));
        }
        self.agree(ChangeMembers::RemoveVoters(BTreeSet::from([id])), false).await
    }

    async fn relocate(&self, id: NodeId, url: &str) -> Result<(), NotChanged> {
        if let Some(other) = self.index_servers().iter().find(|server| server.url == url && server.id != id) {
            let message = format!("index server {} is at {url}", other.id);
            return refuse(WireError::new(ErrorCode::AlreadyExists, message).with_field("server", url));
        }
        self.agree(ChangeMembers::SetNodes(BTreeMap::from([(id, BasicNode::new(url))])), true).await
    }

    /// Has a change of the membership committed; waits for one that is going on.
    async fn agree(&self, change: ChangeMembers<NodeId, BasicNode>, retain: bool) -> Result<(), NotChanged> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let agreed = self.peers.raft.change_membership(change.clone(), retain);
            let error = match tokio::time::timeout_at(deadline, agreed).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(RaftError::Fatal(fatal))) => {
                    return Err(NotChanged::Refused(
                        self.stopped_because().unwrap_or_else(|| Error::internal(fatal.to_string())),
                    ));
                }
                Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_)))) => {
                    return Err(NotChanged::NotLeading);
                }
                Ok(Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(
                    ChangeMembershipError::InProgress(_),
                )))) => WireError::new(ErrorCode::Conflict, "another change of the index servers is going on")
                    .with_hint("wait for it, then retry"),
                Ok(Err(RaftError::APIError(error))) => {
                    return refuse(WireError::new(ErrorCode::InvalidArgument, error.to_string()));
                }
                Err(_) => WireError::new(ErrorCode::Unavailable, "most index servers do not answer")
                    .with_field("outcome", "unknown")
                    .with_hint("start them, then look with SHOW CLUSTER"),
            };
            if Instant::now() >= deadline {
                return refuse(error);
            }
            self.peers.leader_changed(&Leader::Here, ASK_AGAIN).await;
        }
    }
}

/// Why the members did not change.
pub(super) enum NotChanged {
    /// Another node leads: ask it.
    NotLeading,
    Refused(Error),
}

fn refuse<T>(error: WireError) -> Result<T, NotChanged> {
    Err(NotChanged::Refused(error.into()))
}
