//! Flight SQL on the index server: log in, ask, get tickets; write; look at the catalog.
//!
//! | request | answer |
//! |---|---|
//! | Handshake ([`login`]) | a bearer token for name and password |
//! | GetFlightInfo of a query ([`execute`]) | tickets, and the storage servers that redeem them; a `RepeatableAnswer` |
//! | GetFlightInfo of DDL, DML, SET ([`execute`]) | it has run; an empty result and a `WriteResult` in `app_metadata` |
//! | GetFlightInfo of the catalog ([`metadata`]) | a ticket for this server ([`answer`]) |
//! | BEGIN, COMMIT and the like, as SQL and as actions ([`transactions`]) | a handle; SQL's is in a cookie |
//! | prepared statements ([`prepared`]) | a handle that holds everything: any index server accepts it |
//! | DoPut of updates and bulk loads ([`put`]) | a `WriteResult`, which every client can read as a `DoPutUpdateResult` |
//! | DoAction ([`actions`]) | cancel, session options, the index servers |
//!
//! [`FlightSqlServer`] implements the Flight service itself and not `arrow_flight`'s trait for Flight SQL above it: that
//! one answers malformed requests with untyped errors and has no place for a commit version in a result. The messages
//! are the standard's.
//!
//! Invariants: every request has a user; nothing about a client is kept between two requests but its open transactions
//! (what else must last is in handles, tickets and cookies); DoGet serves what the catalog knows and never rows of a table.

mod actions;
mod answer;
mod cluster;
mod ddl;
mod execute;
mod limits;
mod login;
mod metadata;
mod prepared;
mod put;
mod service;
mod session;
mod transactions;
mod users;
mod write;

use std::{collections::HashMap, sync::Arc};

use arrow_flight::{FlightEndpoint, flight_service_server::FlightServiceServer};
use drsdb_core::{Result, config::IndexConfig, net::ChannelPool, query_session::QueryOptions};
use parking_lot::Mutex;

use self::session::Session;
use crate::{
    catalog::CatalogState,
    dml::Services,
    load::Loader,
    planner::Planner,
    raft::{Catalog, ReadConsistency},
    transaction::{Sessions, Writes},
};

/// The largest message that is accepted: a batch of a bulk load. SQL texts have a lower limit of their own, and it is
/// reported with a hint only if the message gets this far.
pub const MAX_REQUEST_BYTES: usize = 64 << 20;
/// The largest message that is sent: what clients accept.
pub const MAX_RESPONSE_BYTES: usize = 16 << 20;

/// The index server's Flight SQL service.
#[derive(Debug)]
pub struct FlightSqlServer {
    catalog: Arc<Catalog>,
    planner: Arc<Planner>,
    writes: Arc<Writes>,
    sessions: Arc<Sessions>,
    /// What statements that change rows need.
    services: Services,
    channels: Arc<ChannelPool>,
    config: Arc<IndexConfig>,
    /// Of a session that has set nothing.
    options: QueryOptions,
    /// By user, until when (Unix time in milliseconds) statements without rows are answered with this endpoint.
    nothing: Mutex<HashMap<String, (u64, FlightEndpoint)>>,
}

impl FlightSqlServer {
    /// A service over its parts.
    pub fn new(
        catalog: Arc<Catalog>,
        planner: Arc<Planner>,
        loader: Arc<Loader>,
        sessions: Arc<Sessions>,
        channels: Arc<ChannelPool>,
        config: Arc<IndexConfig>,
    ) -> Self {
        let mut options = QueryOptions::default();
        if let Some(partitions) = config.target_partitions {
            options.target_partitions = partitions;
        }
        let writes = Arc::clone(loader.writes());
        let services =
            Services { catalog: Arc::clone(&catalog), planner: Arc::clone(&planner), channels: Arc::clone(&channels) };
        Self { catalog, planner, writes, sessions, services, channels, config, options, nothing: Mutex::default() }
    }

    /// The tonic service, with its message sizes.
    pub fn into_service(self) -> FlightServiceServer<Self> {
        FlightServiceServer::new(self)
            .max_decoding_message_size(MAX_REQUEST_BYTES)
            .max_encoding_message_size(MAX_RESPONSE_BYTES)
    }

    /// The catalog with everything that was acknowledged before the call.
    async fn current_state(&self) -> Result<Arc<CatalogState>> {
        self.catalog.read(ReadConsistency::Linearizable).await
    }

    /// The catalog as new as the session wants it for statements that only read. What the client has seen itself is in it:
    /// that was waited for when the request came.
    async fn state_to_read(&self, session: &Session) -> Result<Arc<CatalogState>> {
        self.catalog.read(session.read_consistency()).await
    }
}

#[cfg(test)]
mod tests;
