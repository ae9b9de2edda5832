//! What a transaction sees: its snapshot, what it has changed itself, and, for the statements that change rows, the hidden
//! identity of rows.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use drsdb_core::{ErrorCode, Result, Ulid, WireError, scan::OwnWrites};

use crate::catalog::{CatalogState, TableState};

/// The storage servers that have all of a transaction's own changes of a shard, by table and shard. A shard that is not
/// listed was not changed.
pub type Holders = BTreeMap<(Ulid, u32), BTreeSet<Ulid>>;

/// What a statement in a transaction sees.
#[derive(Debug, Clone)]
pub struct View {
    /// The catalog when the transaction began; its version is the snapshot.
    pub begun: Arc<CatalogState>,
    /// The transaction's own changes.
    pub own: Option<OwnWrites>,
    /// Where those are: a replica that missed one of them is not read.
    pub holders: Arc<Holders>,
    /// The table whose hidden columns can be named.
    pub with_hidden: Option<Ulid>,
}

impl View {
    /// Refuses a table that is not what it was when the transaction began: rows of the snapshot would be read with another
    /// definition than the transaction's other statements have.
    pub fn check(&self, table: &TableState) -> Result<()> {
        let definition = &table.table;
        let why = match self.begun.table(definition.id) {
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
