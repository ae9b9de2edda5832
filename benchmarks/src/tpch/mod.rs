//! TPC-H: schema, queries, data, loading, and the check of every result.
//!
//! - [`Table`]: the eight tables, their definitions for drsdb, and how many rows they have at a scale factor.
//! - [`Query`]: the 22 queries with the specification's validation parameters, their order and their limits.
//! - [`batches`]: the rows of a table as Arrow batches, made while they are read; the same rows every time.
//! - [`write_files`]: the same rows as files.
//! - [`Reference`]: one process of DataFusion over those files, the oracle of every other engine.
//! - [`verify()`]: compares a result with the reference row by row.
//! - [`published`]: the specification's own answers at scale factor 1, the oracle's oracle.
//!
//! What runs on a cluster is not here: see [`crate::front_door`].

mod cells;
mod files;
mod generate;
pub mod published;
mod queries;
mod reference;
mod schema;
mod verify;

pub use files::{WrittenTable, file_name, write_files};
pub use generate::batches;
pub use queries::{QUERIES, Query};
pub use reference::{Reference, ReferenceOptions};
pub use schema::{TABLES, Table};
pub use verify::{Mismatch, Ordering, Rule, verify};
