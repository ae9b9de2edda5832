//! The types that openraft works with here.

use std::{collections::BTreeSet, fmt, io::Cursor};

use serde::{Deserialize, Serialize};

use crate::catalog::{Command, Response};

openraft::declare_raft_types!(
    /// drsdb's choice of openraft's types.
    pub TypeConfig:
        D = Proposal,
        R = Responses,
        NodeId = NodeId,
        Node = openraft::BasicNode,
        Entry = openraft::Entry<TypeConfig>,
        SnapshotData = Cursor<Vec<u8>>,
        AsyncRuntime = openraft::TokioRuntime,
);

/// Identifies an index server among the voters.
pub type NodeId = u64;
/// An entry of the log.
pub type Entry = openraft::Entry<TypeConfig>;
/// An entry's term, leader and index.
pub type LogId = openraft::LogId<NodeId>;
/// What a node voted for last.
pub type Vote = openraft::Vote<NodeId>;

pub(super) type Raft = openraft::Raft<TypeConfig>;
pub(super) type StorageError = openraft::StorageError<NodeId>;
pub(super) type StoredMembership = openraft::StoredMembership<NodeId, openraft::BasicNode>;
pub(super) type SnapshotMeta = openraft::SnapshotMeta<NodeId, openraft::BasicNode>;

/// One of the index servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexServer {
    /// Its number.
    pub id: NodeId,
    /// `https://host:port`.
    pub url: String,
    /// Whether it votes; one that does not is still learning.
    pub voter: bool,
}

/// The index servers of a membership, by number.
pub(super) fn index_servers(membership: &StoredMembership) -> Vec<IndexServer> {
    let voters: BTreeSet<NodeId> = membership.voter_ids().collect();
    let server = |(id, node): (&NodeId, &openraft::BasicNode)| IndexServer {
        id: *id,
        url: node.addr.clone(),
        voter: voters.contains(id),
    };
    membership.nodes().map(server).collect()
}

/// What one log entry holds: commands that were proposed at the same time.
#[derive(Clone, Serialize, Deserialize)]
pub struct Proposal {
    /// The commands, in the order in which they take effect.
    pub commands: Vec<Command>,
}

/// What came of a [`Proposal`], command by command, with the versions; empty for an entry without commands.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Responses(pub Vec<(u64, Response)>);

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.commands).finish()
    }
}
