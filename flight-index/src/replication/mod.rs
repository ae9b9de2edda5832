//! Keeps replicas where they should be: who answers ([`Liveness`]), and what is to be done about the others.
//!
//! Every index server pings the storage servers, so that it plans around those that do not answer and writes elsewhere. The
//! one that leads also acts ([`drive`]): it demotes servers that are silent, has their replicas rebuilt when they are back,
//! replaces servers that stay away, empties those that are drained, and gives new ones their share. What is to be done
//! next is a pure function of the catalog and of who answers (`plan.rs`), so nothing is lost when another index server
//! takes the lead.
//!
//! [`ActiveTransactions`] says which transactions run on this index server, for storage servers that hold rows of theirs; [`NeededSnapshots`] which
//! snapshots are still read through it. The latter goes with each ping.
//! Not here: what a demotion means ([`crate::catalog::apply()`]), and how a storage server copies a shard.

mod active;
mod driver;
mod liveness;
mod needed_snapshots;
mod plan;

pub use active::{ActiveGuard, ActiveTransactions};
pub use driver::{DriveOptions, drive};
#[cfg(test)]
pub use liveness::KILLED_IS_SUSPECT_WITHIN;
pub use liveness::{Liveness, Suspects};
pub use needed_snapshots::{NeededSnapshots, ResumedSnapshots};
