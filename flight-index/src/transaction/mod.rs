//! Transactions: what statements change is staged on storage servers as they run, and one entry of the log commits it all.
//!
//! # Life of a transaction
//!
//! 1. [`Writes::begin`] fixes its snapshot: a catalog state. Nothing is told to anybody yet.
//! 2. Each statement that writes takes a [`Stager`], which gathers rows by table and shard ([`split`]). A small statement is
//!    sent to a shard's replicas when it is complete, and what grows large while it comes; the first replica checks it
//!    ([`shard_writer`]).
//! 3. The statement's pieces become the transaction's ([`Transaction::absorb`]). A statement that fails is undone alone
//!    ([`Transaction::rollback_to`]), and so is what follows a savepoint.
//! 4. [`Transaction::commit`] proposes one `CommitTransaction`. A replica that has not staged everything is left out of
//!    the acknowledgements, and becomes stale with that very entry, as long as a majority has it.
//!
//! CREATE TABLE AS, and a bulk load that makes its table, begin with [`Transaction::make_table`]: the commit gives the table its
//! name, and without one the table goes ([`abandoned`]).
//!
//! [`Sessions`] keeps those that clients hold open. A transaction lives on one index server: when that ends, nothing of the
//! transaction is ever seen, and the storage servers have it aborted when they ask for its outcome.
//!
//! Not here: which rows a statement changes ([`crate::dml`]), and bulk loads ([`crate::load`]).

mod abandoned;
mod encode;
mod running;
mod sessions;
mod shard_writer;
mod split;
mod stager;
#[allow(clippy::module_inception)]
mod transaction;
mod transport;

use std::{fmt, sync::Arc};

pub use abandoned::abort_abandoned;
#[cfg(test)]
pub use encode::MAX_MESSAGE_BYTES;
#[cfg(test)]
pub(crate) use encode::encode;
pub use running::Listed;
pub use sessions::{Handle, Modes, OpenTransaction, Sessions, Timeouts};
#[cfg(test)]
pub(crate) use split::{BUFFER_BYTES, Buffers};
pub(crate) use split::{divide, key_transit_schema, shards_of_rows};
pub use stager::{Rows, Stager};
pub use transaction::{Committed, Transaction};
pub use transport::{GrpcTransport, StageTransport};

use drsdb_core::{Error, ErrorCode, Ulid};

use crate::{
    catalog::CatalogState,
    raft::Catalog,
    replication::{ActiveTransactions, Liveness},
};

/// What every transaction of an index server needs.
pub struct Writes {
    catalog: Arc<Catalog>,
    transport: Arc<dyn StageTransport>,
    /// This index server's URL.
    coordinator: String,
    /// Who answers; `None` in tests.
    liveness: Option<Arc<Liveness>>,
    /// What storage servers are told runs here.
    active: ActiveTransactions,
}

impl fmt::Debug for Writes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writes").field("coordinator", &self.coordinator).finish_non_exhaustive()
    }
}

impl Writes {
    /// Transactions that commit through `catalog` and stage through `transport`, on the index server at `coordinator`.
    pub fn new(catalog: Arc<Catalog>, transport: Arc<dyn StageTransport>, coordinator: impl Into<String>) -> Self {
        Self {
            catalog,
            transport,
            coordinator: coordinator.into(),
            liveness: None,
            active: ActiveTransactions::default(),
        }
    }

    /// The same, leaving out servers that do not answer, and telling others which transactions run here.
    pub fn watched(mut self, liveness: Arc<Liveness>, active: ActiveTransactions) -> Self {
        self.liveness = Some(liveness);
        self.active = active;
        self
    }

    fn is_suspect(&self, server: Ulid) -> bool {
        self.liveness.as_ref().is_some_and(|liveness| liveness.is_suspect(server))
    }

    /// A server failed a call. When it is a shard's `first` replica, another one has to take its place before the shard can
    /// be written again.
    async fn failed(&self, server: Ulid, first: bool) {
        let Some(liveness) = &self.liveness else { return };
        liveness.report_failure(server);
        if first && let Err(error) = liveness.demote(server).await {
            tracing::warn!(%server, %error, "a storage server that does not answer could not be demoted");
        }
    }

    /// A query failed with `error`. A server that it names as one that does not answer is doubted, so that the next plan may
    /// leave it out.
    pub fn query_failed(&self, error: &Error) {
        let Some(liveness) = &self.liveness else { return };
        let error = error.to_wire();
        let (ErrorCode::Unavailable, Some(named)) = (error.code, error.fields.get("server")) else { return };
        let named = named.trim_end_matches('/');
        let state = self.catalog.state();
        if let Some(server) = state.servers().find(|server| server.url.trim_end_matches('/') == named) {
            liveness.doubt(server.id);
        }
    }

    /// A transaction that sees `state`.
    pub fn begin(self: &Arc<Self>, state: Arc<CatalogState>) -> Transaction {
        Transaction::new(Arc::clone(self), state)
    }

    /// The catalog.
    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }
}
