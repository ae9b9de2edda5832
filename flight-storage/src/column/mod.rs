//! The column engine: immutable Parquet segments, a buffer of rows for small writes, a manifest that says what a snapshot
//! sees of both, and decoded columns in memory.
//!
//! # Life of a write
//!
//! 1. A [`stage_writer`] takes what one statement changes in one shard. Many new rows are sorted by the cluster key and
//!    written into segment files ([`mod@write`], [`segment_writer`]), in the [`mod@format`] whose units are the segment, the
//!    row group and the chunk. Few stay rows.
//! 2. [`stage`] finds the rows to delete ([`locate`]), compares new keys with what is there ([`unique`]), and makes all of it
//!    durable in one operation on the [`buffer`]'s file: rows to delete and to insert in the buffer, and in the [`manifest`]
//!    segments and [`mod@deletes`] of rows of segments.
//! 3. A commit gives all of it its version, in one operation again. An abort or a rollback takes it back.
//! 4. [`compact`]ion moves rows from the buffer into segments and writes segments anew that are small or have many
//!    deletions; [`plan`] says when.
//!
//! # Life of a scan
//!
//! 1. A [`snapshot`] collects segments, what is deleted of them, and the buffer's rows. [`prune`] drops the segments whose
//!    bounds exclude the filters, then row groups and chunks of the rest.
//! 2. [`scan`] takes each row group's columns from the [`cache`], or has [`decode`] read what is missing ([`read`]).
//! 3. Batches go out whose arrays are the cache's own, where nothing was deleted; then those of the buffer.
//!
//! The [`store`] has the state of all shards in memory, and says which locks there are. A crash leaves files that the manifest
//! does not know; the next start deletes them. A file or an entry of the manifest that is not what was written makes its
//! shard damaged: it is not served, and [`ColumnEngine::damaged`](crate::engine::StorageEngine::damaged) says so.
//!
//! Not here: the order of commits (`crate::commits`), plans (`crate::query`), and when compaction runs
//! (`crate::maintenance`).

mod buffer;
mod cache;
mod compact;
mod decode;
mod deletes;
mod distinct;
mod engine;
mod format;
pub(crate) mod keys;
mod locate;
mod lru;
mod manifest;
mod plan;
mod prune;
mod read;
mod scan;
mod segment;
mod segment_writer;
mod snapshot;
mod sort;
mod stage;
mod stage_writer;
mod stats;
mod store;
mod unique;
pub(crate) mod write;

pub use engine::{ColumnEngine, ColumnOptions};
use store::Store;
