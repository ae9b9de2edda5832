//! What travels between drsdb's processes: generated protocol-buffer types, ids and error codes.
//!
//! - [`v1`]: the messages and services of `proto/drsdb/v1/*.proto`.
//! - [`ids`]: ULIDs that need no coordination and survive a clock that steps back.
//! - [`limits`]: how long names and passwords may be.
//! - [`ErrorCode`], [`WireError`]: the closed set of errors, and how one crosses a gRPC boundary unharmed.
//!
//! Invariant: nothing here knows DataFusion, tables' contents or servers' state.

pub mod ids;
pub mod limits;
mod wire_error;

pub use ids::Ulid;
pub use wire_error::{ErrorCode, WireError};

/// Generated from `proto/drsdb/v1/*.proto`, whose comments are the documentation.
#[allow(clippy::all, missing_docs, rustdoc::all, unused_qualifications)]
pub mod v1 {
    tonic::include_proto!("drsdb.v1");
}
