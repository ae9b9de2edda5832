//! What drsdb's benchmarks and its demo share.
//!
//! - [`tpch`]: schema, queries, data and the check of every result.
//! - [`front_door`]: loading and querying a running cluster as any client does, with what each query cost.
//! - [`output`]: record batches into files.
//! - [`progress`]: progress bars on a terminal, lines elsewhere.
//!
//! The engines that are compared, the cluster's processes and the reports are in the binary beside this library.

pub mod front_door;
pub mod output;
pub mod progress;
pub mod tpch;
