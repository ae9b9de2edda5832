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
//! 4. Dropping the stream, or [`CancelHandle::cancel`], resets every pull; the servers stop working on it.
//!
//! A result is never silently short: a stream that ends without a gRPC status, a connection that breaks, or a pull that
//! dies is an [`Error`] that names the server.
//!
//! Invariant: no DataFusion here, and no plaintext: every connection is TLS 1.3, made in one place, `tls`.

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
mod session;
mod sql_text;
mod stream;
mod tls;

pub use client::{Client, Executed, WriteResult};
pub use drsdb_proto::{ErrorCode, WireError};
pub use error::{Error, Result};
pub use ingest::{IngestMode, IngestOptions};
pub use metadata::{ForeignKeyInfo, TableInfo};
pub use options::{ClientIdentity, ClientOptions, Secret, TlsRoots};
pub use prepared::Prepared;
pub use sql_text::is_read_only;
pub use stream::{CancelHandle, EndpointStatistics, QueryResult, QueryStatistics, QueryStream};
