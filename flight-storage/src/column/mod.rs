//! The column engine: immutable Parquet segments, a manifest that says which of them a snapshot sees, and decoded columns
//! in memory.
//!
//! # Life of a load
//!
//! 1. A [`mod@write`] writer buffers rows, sorts them by the cluster key and writes segment files through [`segment_writer`],
//!    in the [`mod@format`] whose units are the segment, the row group and the chunk.
//! 2. When it finishes, files and folder are synced, the primary key is compared with the shard's other segments
//!    ([`unique`]), and the [`manifest`] records the segments as staged: one small durable write.
//! 3. A commit gives all of the transaction's segments their version, in one durable write again. An abort forgets them.
//!
//! # Life of a scan
//!
//! 1. The segments that the snapshot sees are picked, and [`prune`] drops those whose bounds exclude the filters, then
//!    row groups and chunks of the rest.
//! 2. [`scan`] takes each row group's columns from the [`cache`], or has [`decode`] read what is missing.
//! 3. Batches go out whose arrays are the cache's own.
//!
//! A crash leaves files that the manifest does not know; the next start deletes them. Not here: the order of commits
//! (`crate::commits`), plans (`crate::query`).

mod cache;
mod decode;
mod distinct;
mod engine;
mod format;
mod keys;
mod lru;
mod manifest;
mod prune;
mod scan;
mod segment;
mod segment_writer;
mod sort;
mod stats;
mod unique;
mod write;

use engine::Store;
pub use engine::{ColumnEngine, ColumnOptions};
