//! The catalog, replicated: Raft around [`crate::catalog::apply`]. Only this folder knows openraft and SQLite.
//!
//! - [`Catalog`]: what the rest of the index server sees. Propose a command, read the state, follow its version.
//! - [`store`]: log, vote and snapshots in one SQLite file, and the state machine in memory.
//! - [`service`]: messages of the other index servers; `network` sends Raft's, `peers` drsdb's own.
//! - `propose` and `read_index`: the way to the leader, from every node; `members`: who the index servers are;
//!   `removal`: how one of them finds out that it is none any more; `rejoin`: how one that lost its file becomes one again.
//!
//! # Life of a command
//!
//! 1. [`Catalog::propose`] hands it to the batcher of the node that leads, over the network if that is another one. The
//!    batcher takes everything that waits and makes one log entry of it: openraft writes and flushes entry by entry, so this
//!    is where concurrent proposals come to share an fsync.
//! 2. The log store writes the entry in a SQLite transaction (WAL, `synchronous = FULL`) on its writer thread; meanwhile
//!    openraft replicates it, and the others do the same and answer when it is on their disks.
//! 3. It is committed when a majority has it on disk, this node among them (`unsynced`).
//! 4. The state machine applies the entry's commands in order, publishes the new state, and each proposer gets its own
//!    response and version; a proposer on another node when its own state has that version too.
//!
//! # Life of a read
//!
//! [`Catalog::linearize`] asks the leader for the index of the last committed entry, which a majority confirms to still
//! lead, and waits until its own state has that entry. Reads that wait share one such round.
//!
//! # Versions
//!
//! A version is the index of a log entry: one number orders everything, on every node. Commands that share an entry share
//! the version, and a state is published with all of them or none: whoever reads at a version sees every transaction of
//! its entry. Entries of Raft's own change nothing here, so versions have gaps.
//!
//! # What is on disk
//!
//! The state is not written for each entry. Durable are the log and, every few thousand entries, a snapshot of the state
//! together with the id of the last entry in it, in one transaction. After a start the snapshot is loaded and the log after
//! it applied again, which gives the same state, since applying is deterministic. That costs one fsync for a batch of
//! commands and none for applying it. How far the log is known to be committed is written along with the next entry,
//! without an fsync of its own: it is a hint that makes the state fresh early after a start, and nothing depends on it.
//!
//! Errors: what [`crate::catalog::apply`] refuses is a response. A disk that fails stops the node: every later proposal
//! fails, and [`Catalog::halted`] tells the server, whose restart then finds all that was acknowledged.

mod agreement;
mod batch;
mod codec;
mod database;
mod log_store;
mod mark;
mod members;
mod network;
mod peers;
mod propose;
mod read_index;
mod rejoin;
mod removal;
mod seal;
pub mod service;
mod shell;
mod state_machine;
mod types;
mod unsynced;

pub use agreement::StateHash;
pub use members::{IndexServerStatus, NodeStatus};
pub use network::Dial;
pub use read_index::ReadConsistency;
pub use shell::{Catalog, CatalogOptions};
pub use types::{IndexServer, NodeId};

/// What openraft is given; public for the tests that hold it to openraft's rules.
pub mod store {
    pub use super::{
        database::Database,
        log_store::LogStore,
        state_machine::{SnapshotBuilder, StateMachine},
        types::{Entry, LogId, NodeId, Proposal, Responses, TypeConfig, Vote},
    };
}
