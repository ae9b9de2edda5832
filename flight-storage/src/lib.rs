//! drsdb's storage server: it keeps rows and columns, and runs its part of every query.
//!
//! - [`engine`]: the storage trait, what the rest asks of an engine.
//! - [`engines`]: both engines of a server side by side.
//! - [`row`]: the row engine, on SQLite: point access and small writes.
//! - [`mod@column`]: the column engine, on Parquet segments: scans.
//! - [`checksum`]: a digest of a shard's rows, to compare replicas.
//! - [`commits`]: follows the catalog's commits and applies them to the engines, in their order.
//! - [`coordinators`]: which index server runs a staged transaction.
//! - [`maintenance`]: compaction and checks of what is stored, in the background.
//! - `lookup`: rows by their keys, without a plan.
//! - `row_messages`: rows as other servers send them.
//! - [`needed_snapshots`]: what index servers still read, so that it is not compacted away.
//! - [`revoked_logins`]: whose tokens are refused although they have not expired.
//! - [`repair`]: has copied from other servers what was found damaged.
//! - [`stage_service`]: takes the rows of loads from index servers.
//! - [`rebuild`]: copies shards from other storage servers, when their replicas here are stale or new.
//! - [`query`]: opens tickets, runs plans, and turns scans of plans into scans of engines.
//! - [`server`]: one storage server from its configuration to its orderly end.
//! - [`metrics`]: what a storage server counts.
//!
//! # Life of a write
//!
//! 1. [`stage_service`] receives a transaction's rows for one shard and hands them to a
//!    [`StageWriter`](engine::StageWriter): durable, checked against the primary key, invisible.
//! 2. The index server commits the transaction through the catalog; the commit's version is its position there.
//! 3. [`commits`] sees the commit and calls [`StorageEngine::commit`](engine::StorageEngine::commit): from now on the rows
//!    are visible at snapshots of that version and later.
//!
//! # Life of a scan
//!
//! 1. A plan arrives, inside a ticket or from another storage server, and [`query`] decodes it.
//! 2. Its leaves become a [`ScanRequest`](engine::ScanRequest) each: shards, projection, filters, snapshot.
//! 3. The table's engine answers with a stream of batches; dropping the stream stops the work behind it.
//!
//! Invariant: engines know nothing of plans, tickets or the network, and the rest knows nothing of SQLite or Parquet.

pub mod checksum;
pub mod column;
pub mod commits;
pub mod coordinators;
pub mod engine;
pub mod engines;
pub mod index_servers;
mod lookup;
pub mod maintenance;
pub mod metrics;
pub mod needed_snapshots;
pub mod open_loads;
pub mod query;
pub mod rebuild;
pub mod repair;
pub mod revoked_logins;
pub mod row;
mod row_messages;
pub mod server;
mod small_file;
pub mod stage_service;
