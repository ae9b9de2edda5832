//! The index server of drsdb: it plans queries, owns the catalog and decides the order of commits. Result rows never pass
//! it.
//!
//! # Life of a query
//!
//! 1. A client sends SQL to the Flight SQL service ([`flight_sql`]), which classifies the statement ([`statement`]).
//! 2. [`raft::Catalog::linearize`] makes sure that the state read next has all that was acknowledged anywhere, and
//!    [`raft::Catalog::state`] gives it: one immutable [`catalog::CatalogState`], whose version is the query's snapshot.
//! 3. The [`planner`] makes the whole physical plan, prunes shards by their statistics and cuts the plan into endpoints:
//!    signed tickets with the storage servers that can redeem them.
//! 4. The client takes the tickets to the storage servers and pulls rows from them.
//!
//! # Life of a write
//!
//! 1. Rows arrive as a bulk load ([`load`]), or a statement says which to change ([`dml`]).
//! 2. The changes are divided by shard and staged on the shards' replicas ([`transaction`]): checked and durable there, and
//!    invisible to others. Many statements can be one transaction.
//! 3. One [`catalog::Command::CommitTransaction`] is proposed ([`raft::Catalog::propose`]). Applied is committed: the
//!    command's version is the commit version.
//! 4. Storage servers follow the commits ([`cluster_service`]) and make the rows visible.
//!
//! DDL is step 3 alone, with another [`catalog::Command`]. A table that is made with its rows comes before step 2, and gets its
//! name in step 3.
//!
//! Invariants: only [`raft`] knows openraft and SQLite; the catalog changes only through [`catalog::apply`]; nothing here
//! links the storage server.

pub mod catalog;
pub mod cluster_service;
pub mod dml;
pub mod flight_sql;
pub mod load;
mod offload;
pub mod placement;
pub mod planner;
pub mod raft;
pub mod replication;
pub mod server;
pub mod statement;
mod system;
pub mod transaction;
