//! Tables that a transaction makes and fills. Until its commit such a table is there for the transaction alone: it has shards
//! and an id, and its name is taken, but leads nowhere.
//!
//! Not here: how a transaction that nobody runs any more is found (`transaction/abandoned.rs`).

use std::sync::Arc;

use drsdb_core::{ErrorCode, Table, TableName, Ulid, WireError};

use super::{Applied, CHANGED, UNCHANGED, tables, transactions};
use crate::catalog::{CatalogState, Making, TableState};

pub(super) fn make(state: &mut CatalogState, table: &Table, making: &Making) -> Applied {
    if state.making.get(&table.id) == Some(making) {
        return UNCHANGED;
    }
    let transaction = making.transaction;
    if state.outcome(transaction).is_some() || transaction <= state.oldest_transaction {
        return Err(transactions::conflict(transaction, "it was aborted, for it took too long or a server lost it"));
    }
    if !table.foreign_keys.is_empty() || !table.uniques.is_empty() {
        // Whoever changes a parent would have to see it, and its indexes would have to be hidden, too.
        let message = format!("a transaction makes table {} with foreign keys or UNIQUE constraints", table.name);
        return Err(WireError::new(ErrorCode::Internal, message));
    }
    let mut next = state.clone();
    // The client asks again, and has lost the first run.
    let is_first_run = |first: &&Making| {
        first.statement.is_some() && first.statement == making.statement && first.transaction != transaction
    };
    if let Some(first) = of_name(state, &table.name).filter(is_first_run) {
        transactions::abort(&mut next, first.transaction)?;
    }
    tables::add(&mut next, table)?;
    next.making.insert_mut(table.id, making.clone());
    *state = next;
    CHANGED
}

/// Gives the tables of a transaction that commits their names.
pub(super) fn name(state: &mut CatalogState, transaction: Ulid) {
    for id in made_by(state, transaction) {
        state.making.remove_mut(&id);
        let Some(known) = state.tables.get(&id) else { continue };
        let (created_version, changed_version) = (state.version, state.version);
        let made = TableState { created_version, changed_version, ..(**known).clone() };
        state.names.insert_mut(made.table.name.clone(), id);
        state.tables.insert_mut(id, Arc::new(made));
    }
}

/// Removes the tables of a transaction that never commits.
pub(super) fn unmake(state: &mut CatalogState, transaction: Ulid) {
    for id in made_by(state, transaction) {
        state.making.remove_mut(&id);
        tables::remove(state, id);
    }
}

/// Refuses a name that a table in the making is to have: whether it will exist is not known.
pub(super) fn check_free(state: &CatalogState, name: &TableName) -> Result<(), WireError> {
    match of_name(state, name) {
        Some(making) => Err(taken(name, making)),
        None => Ok(()),
    }
}

/// Refuses a schema in which a table is being made.
pub(super) fn check_none_in(state: &CatalogState, schema: &str) -> Result<(), WireError> {
    match all(state).find(|(name, _)| name.schema == schema) {
        Some((name, making)) => Err(taken(name, making)),
        None => Ok(()),
    }
}

fn of_name<'a>(state: &'a CatalogState, name: &TableName) -> Option<&'a Making> {
    all(state).find(|(other, _)| *other == name).map(|(_, making)| making)
}

/// The names that tables in the making are to have, and who makes them.
fn all(state: &CatalogState) -> impl Iterator<Item = (&TableName, &Making)> {
    state.making.iter().filter_map(move |(id, making)| Some((&state.tables.get(id)?.table.name, making)))
}

fn made_by(state: &CatalogState, transaction: Ulid) -> Vec<Ulid> {
    state.making.iter().filter(|(_, making)| making.transaction == transaction).map(|(id, _)| *id).collect()
}

fn taken(name: &TableName, making: &Making) -> WireError {
    WireError::new(ErrorCode::Conflict, format!("a transaction is making table {name}"))
        .with_hint("run it again when that transaction has ended")
        .with_field("table", name)
        .with_field("transaction", making.transaction)
}
