//! A shard's replicas: where they are, which have everything, and how many must have staged a change before it counts.
//!
//! ```text
//!            AddReplica                 StartRebuild                    ReplicaCurrent
//!  (nothing) ──────────▶ Stale, joining ────────────▶ Rebuilding ─────────────────────▶ Current
//!                                                      ▲      │ a commit without it          │ a commit without it,
//!                                        StartRebuild  │      └▶ since moves on              │ or DemoteReplica
//!                                                    Stale ◀────────────────────────────────┘
//! ```

use drsdb_core::Ulid;
use serde::{Deserialize, Serialize};

use super::ShardStats;

/// A shard: where it is, and what is in it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShardState {
    /// Statistics of its rows.
    pub stats: ShardStats,
    /// Its replicas. The first current one decides who may write which key.
    pub replicas: Vec<Replica>,
    /// The version at which it last changed where or how rows are staged, 0 before that. What is staged notes it.
    pub epoch: u64,
    /// The version at which another replica became the first current one, 0 before that. What was checked by the one before
    /// does not count any more. Never above `epoch`.
    #[serde(default)]
    pub authority: u64,
    /// The last commit that inserted rows here.
    pub last_insert: u64,
    /// The last commit that deleted rows here.
    pub last_delete: u64,
}

/// A copy of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    /// The storage server that has it.
    pub server: Ulid,
    /// Whether it has everything.
    pub state: ReplicaState,
    /// What was staged here in an earlier epoch does not count: a rebuild has replaced it, or will.
    #[serde(default)]
    pub accepts: u64,
    /// It is new: it does not count among the replicas before it is current.
    #[serde(default)]
    pub joining: bool,
    /// Where it is not current: the last version of which it has all commits, once it has heard their outcomes. 0 when it may
    /// have nothing.
    #[serde(default)]
    pub complete_to: u64,
    /// The server that loses its replica to this one when this one is current.
    #[serde(default)]
    pub replaces: Option<Ulid>,
}

/// How far a replica is. Versions are those at which it came to be so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReplicaState {
    /// It has every commit: snapshots of `since` and later can be read there.
    Current {
        /// Since when.
        since: u64,
    },
    /// It may have missed a commit, and is neither read nor written.
    Stale {
        /// Since when.
        since: u64,
    },
    /// It is written, and is being given what it missed: commits up to `since`, of which a copy must have all.
    Rebuilding {
        /// The last commit that it cannot have taken in itself.
        since: u64,
    },
}

impl Replica {
    /// A replica of an empty shard.
    pub fn new(server: Ulid, version: u64) -> Self {
        let state = ReplicaState::Current { since: version };
        Self { server, state, accepts: 0, joining: false, complete_to: 0, replaces: None }
    }

    /// Whether it has every commit.
    pub fn is_current(&self) -> bool {
        matches!(self.state, ReplicaState::Current { .. })
    }

    /// It misses a commit at `since`, or may miss later ones; 0: it has not been current since a rebuild began.
    pub(super) fn becomes_stale(&mut self, since: u64) {
        if self.is_current() {
            self.complete_to = since.saturating_sub(1);
        }
        self.state = ReplicaState::Stale { since };
    }

    /// Whether changes are to be staged there: it has every commit, or is on the way to it.
    pub fn is_written(&self) -> bool {
        !matches!(self.state, ReplicaState::Stale { .. })
    }
}

impl ShardState {
    /// A new shard, empty on all of `servers`.
    pub fn new(servers: &[Ulid], version: u64) -> Self {
        Self {
            stats: ShardStats::default(),
            replicas: servers.iter().map(|&server| Replica::new(server, version)).collect(),
            epoch: 0,
            authority: 0,
            last_insert: version,
            last_delete: version,
        }
    }

    /// Servers whose replicas have everything, the one that checks writes first.
    pub fn current(&self) -> impl Iterator<Item = Ulid> {
        self.replicas.iter().filter(|replica| replica.is_current()).map(|replica| replica.server)
    }

    /// Servers whose replicas are being rebuilt: they are written to as well, and do not count towards the majority.
    pub fn rebuilding(&self) -> impl Iterator<Item = Ulid> {
        let rebuilding =
            self.replicas.iter().filter(|replica| matches!(replica.state, ReplicaState::Rebuilding { .. }));
        rebuilding.map(|replica| replica.server)
    }

    /// Servers at which `snapshot` can be read.
    pub fn readable_at(&self, snapshot: u64) -> impl Iterator<Item = Ulid> {
        let readable = move |state| matches!(state, ReplicaState::Current { since } if since <= snapshot);
        self.replicas.iter().filter(move |replica| readable(replica.state)).map(|replica| replica.server)
    }

    /// How many current replicas must have staged a change for it to be committed.
    pub fn majority(&self) -> usize {
        self.counted() / 2 + 1
    }

    /// How many replicas it has; those that join do not count yet.
    pub fn counted(&self) -> usize {
        self.replicas.iter().filter(|replica| !replica.joining).count()
    }

    /// The replica on `server`.
    pub fn replica(&self, server: Ulid) -> Option<&Replica> {
        self.replicas.iter().find(|replica| replica.server == server)
    }

    /// Whether enough replicas are current for the shard to be written.
    pub fn is_writable(&self) -> bool {
        self.current().count() >= self.majority()
    }

    /// The last commit that changed a row.
    pub fn last_change(&self) -> u64 {
        self.last_insert.max(self.last_delete)
    }

    /// Whether `replica` counts what a transaction staged in `epoch`.
    pub(super) fn accepts(replica: &Replica, epoch: u64) -> bool {
        replica.is_written() && replica.accepts <= epoch
    }

    /// Changes the replicas, and notes at `version` when another one decides about writes from now on.
    pub(super) fn change_replicas(&mut self, version: u64, change: impl FnOnce(&mut Vec<Replica>)) {
        let before = self.current().next();
        change(&mut self.replicas);
        if self.current().next() != before {
            self.authority = version;
            self.epoch = version;
        }
    }
}
