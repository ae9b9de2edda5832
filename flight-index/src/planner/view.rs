//! What a transaction sees: its snapshot, what it has changed itself, and, for the statements that change rows, the hidden
//! identity of rows. An answer that goes on elsewhere sees the snapshot at which it began.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use drsdb_core::{ErrorCode, Result, Ulid, WireError, scan::OwnWrites};

use crate::catalog::{CatalogState, TableState};

/// The storage servers that have all of a transaction's own changes of a shard, by table and shard. A shard that is not
/// listed was not changed.
pub type Holders = BTreeMap<(Ulid, u32), BTreeSet<Ulid>>;

/// What a statement sees that does not simply see the newest state.
#[derive(Debug, Clone)]
pub struct View {
    /// The version at which rows are read.
    pub snapshot: u64,
    /// The catalog when the transaction began. `None`: of an answer that goes on, whose definitions are compared with those of
    /// its beginning ([`Resume`](super::Resume)).
    pub begun: Option<Arc<CatalogState>>,
    /// The transaction's own changes.
    pub own: Option<OwnWrites>,
    /// Where those are: a replica that missed one of them is not read.
    pub holders: Arc<Holders>,
    /// The table whose hidden columns can be named.
    pub with_hidden: Option<Ulid>,
}

impl View {
    /// Of a transaction that begins at `state`, and has changed nothing.
    pub fn begin(state: Arc<CatalogState>) -> Self {
        let snapshot = state.version();
        Self { begun: Some(state), ..Self::at(snapshot) }
    }

    /// Of an answer that goes on at `snapshot`.
    pub fn at(snapshot: u64) -> Self {
        Self { snapshot, begun: None, own: None, holders: Arc::default(), with_hidden: None }
    }

    /// Refuses a table that is not what it was when the transaction began: rows of the snapshot would be read with another
    /// definition than the transaction's other statements have.
    pub fn check(&self, table: &TableState) -> Result<()> {
        let Some(begun) = &self.begun else { return Ok(()) };
        let definition = &table.table;
        let why = match begun.table(definition.id).filter(|_| !begun.is_in_making(definition.id)) {
            Some(begun) if begun.table.version == definition.version => return Ok(()),
            Some(_) => "was altered",
            None => "was created",
        };
        Err(WireError::new(ErrorCode::Conflict, format!("table {} {why} since the transaction began", definition.name))
            .with_hint("run the transaction again")
            .with_field("table", &definition.name)
            .into())
    }
}
