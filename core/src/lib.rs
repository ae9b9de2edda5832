//! What both servers of drsdb must agree on.
//!
//! - [`SqlType`], [`Table`]: types, table definitions, and their three Arrow schemas (stored, planned, edge).
//! - [`initial`]: what rows read as that are older than a column.
//! - [`shard`]: which shard a row belongs to.
//! - [`scan`]: the leaf of every plan, and the codec that carries it between servers.
//! - [`security`]: TLS, the development CA, signed tickets and tokens, and who may call what.
//! - [`net`]: listeners and channels; every connection of drsdb is made here.
//! - [`Error`]: the error type of the servers, with its code.
//! - [`checked_arithmetic`], [`checked_sum`], `decimal_sum`: arithmetic of integers, and sums, that fail on overflow.
//! - `bounded_functions`: functions that make much of little, held to a limit.
//! - [`floats`]: the one zero and the one NaN that are stored.
//! - [`id_functions`]: ULIDs, UUIDs and snowflake ids as SQL functions.
//! - [`single_value`]: the value of the only row, for subqueries that stand for one value.
//! - [`window_functions`]: window functions in a form that survives the way to another server.
//! - [`wanted`]: ends joins and windows that nobody waits for, and counts what windows keep.
//! - [`time_limit`]: how long a statement may take, from server to server.
//! - [`row_bytes`](row_bytes()): how large rows are.
//! - [`transit`]: what rows are on their way to shards.
//! - [`config`], [`telemetry`]: how a process is set up.
//! - [`crash_point`], [`injected`]: where and how tests make a process die, slow its disk and set its clock.
//!
//! Invariant: nothing here opens a data file, and nothing here knows Raft.

mod bounded_functions;
pub mod checked_arithmetic;
pub mod checked_sum;
pub mod config;
pub mod crash_point;
mod decimal_sum;
pub mod edge;
mod error;
pub mod floats;
pub mod id_functions;
pub mod initial;
pub mod injected;
pub mod interval_order;
pub mod net;
mod now_functions;
pub mod query_session;
mod row_bytes;
pub mod scan;
pub mod security;
pub mod shard;
pub mod single_value;
mod sql_type;
mod table;
pub mod telemetry;
pub mod time_limit;
pub mod transit;
pub mod wanted;
pub mod window_functions;

pub use drsdb_proto::{ErrorCode, Ulid, WireError, ids, limits, v1};
pub use error::{Error, Result, carried_status, nearest_name};
pub use row_bytes::row_bytes;
pub use sql_type::SqlType;
pub use table::{
    Check, Column, Engine, ForeignKey, ROW_ID, ReferentialAction, SQL_TYPE_KEY, Table, TableKind, TableName, UniqueKey,
    parse_ulid,
};
