//! The catalog: everything the index servers agree on, as a pure state machine.
//!
//! - [`Command`]: what can be asked for; [`Response`]: what came of it.
//! - [`CatalogState`]: schemas, views, tables with their placement and statistics, storage servers, users, and the outcomes of
//!   transactions. Cloning one is cheap: clones share what they do not change.
//! - [`apply()`]: the only way from one state to the next. It knows no clock, no randomness and no I/O, so that every
//!   index server that applies the same commands at the same versions has the same state.
//! - [`statistics`]: what a commit says about the rows it adds, and how that adds up.
//!
//! Not here: how commands are ordered, made durable and replicated ([`crate::raft`]).

mod apply;
mod blob;
mod command;
mod response;
mod shard;
mod state;
pub mod statistics;
mod user;
mod view;

pub use apply::apply;
pub use blob::Blob;
pub use command::{Absent, Command, ServerState, StorageServer, TableChange, Validation};
pub use response::{Outcome, Refusal, Response};
pub use shard::{Replica, ReplicaState, ShardState};
pub use state::{CatalogState, Cluster, Event, Making, ServerCondition, TableState};
pub use statistics::{ColumnSummary, PieceInfo, ShardStats};
pub use user::User;
pub use view::{View, ViewUse};
