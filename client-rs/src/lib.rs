//! The Rust client of drsdb.
//!
//! ```no_run
//! use drsdb_client::{Client, ClientOptions};
//! use futures::TryStreamExt;
//!
//! # async fn example() -> drsdb_client::Result<()> {
//! let client = Client::connect(ClientOptions::from_file("drsdb-data/client.toml")?).await?;
//! let mut rows = client.query("SELECT n_name FROM nation ORDER BY n_name").await?;
//! while let Some(batch) = rows.try_next().await? {
//!     println!("{} rows", batch.num_rows());
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Life of a query
//! 1. [`Client`] asks the index server that `rotation` says is the current one, logged in with a
//!    bearer token (`session`); where it does not answer, the next one is asked.
//! 2. The answer is a list of endpoints: tickets, each with the storage servers that accept it.
//! 3. [`QueryStream`] pulls all endpoints at once, directly from the storage servers, into a buffer bounded in bytes;
//!    `failover` says what happens when a server does not answer.
//!    When no location answers and no row was handed out, the query is planned again, until the index servers have noticed
//!    which server is gone. When rows were, and their order can be repeated, it is planned at the same snapshot, and goes on.
//! 4. Dropping the stream, or [`CancelHandle::cancel`], resets every pull; the servers stop working on it.
//!
//! # Life of a write
//! 1. Every statement that may write carries an id of its own (`route`), and every call the highest commit version
//!    that this client has seen.
//! 2. When the answer is lost, `calls` asks the next index server, under the same id: what was done is not done again,
//!    and its first outcome is the answer. When nobody says what became of it, the error does
//!    ([`Error::is_outcome_unknown`]).
//! 3. [`Client::begin`] opens a [`Transaction`]; it stays with the index server that began it. [`Client::transaction`]
//!    runs one again when it met another, or a server that is gone ([`Error::is_retryable`]).
//!
//! A result is never silently short: a stream that ends without a gRPC status, a connection that breaks, or a pull that
//! dies is an [`Error`] that names the server.
//!
//! Invariant: no DataFusion here, and no plaintext: every connection is TLS 1.3, made in one place, `tls`.

mod calls;
mod channels;
mod client;
mod connect_file;
mod cookies;
mod error;
mod failover;
mod ingest;
mod metadata;
mod options;
mod prepared;
mod pull;
mod rotation;
mod route;
mod session;
mod sql_session;
mod sql_text;
mod stream;
mod tls;
mod transaction;

pub use client::{Client, Executed, WriteResult};
pub use drsdb_proto::{ErrorCode, WireError};
pub use error::{Error, Result};
pub use ingest::{IngestMode, IngestOptions};
pub use metadata::{ForeignKeyInfo, TableInfo};
pub use options::{ClientIdentity, ClientOptions, Secret, TlsRoots};
pub use prepared::Prepared;
pub use sql_text::is_read_only;
pub use stream::{CancelHandle, EndpointStatistics, QueryResult, QueryStatistics, QueryStream};
pub use transaction::{Savepoint, Transaction};
