//! Outcomes of transactions: decided once, the same answer ever after.

use std::sync::Arc;

use drsdb_core::{ErrorCode, Ulid, WireError};

use super::{Applied, remove_all};
use crate::catalog::{CatalogState, Outcome, Response, ShardStats, TableChange, TableState, state::Event, statistics};

/// Aborted transactions that are remembered. Ids grow with time, so the oldest go first, and a commit older than all
/// that are remembered is refused.
pub(super) const MAX_ABORTED: usize = 100_000;

pub(super) fn commit(state: &mut CatalogState, transaction: Ulid, changes: &[TableChange]) -> Applied {
    match state.transactions.get(&transaction) {
        Some(&Outcome::Committed { version }) => {
            return Ok(Response::Transaction(Outcome::Committed { version }));
        }
        Some(Outcome::Aborted) => {
            return Err(conflict(transaction, "it was aborted, for it took too long or a server lost it"));
        }
        None if transaction <= state.oldest_transaction => {
            return Err(conflict(transaction, "it is too old to commit"));
        }
        None => {}
    }
    let changed = match changed_tables(state, transaction, changes) {
        Ok(changed) => changed,
        Err(error) => {
            decide_abort(state, transaction);
            return Err(error);
        }
    };
    for table in changed {
        state.tables.insert_mut(table.table.id, Arc::new(table));
    }
    let outcome = Outcome::Committed { version: state.version };
    state.transactions.insert_mut(transaction, outcome);
    state.record(Event::Committed(transaction));
    Ok(Response::Transaction(outcome))
}

/// The tables as they are after the commit.
fn changed_tables(
    state: &CatalogState,
    transaction: Ulid,
    changes: &[TableChange],
) -> Result<Vec<TableState>, WireError> {
    let mut changed: Vec<TableState> = Vec::with_capacity(changes.len());
    for change in changes {
        let at = match changed.iter().position(|table| table.table.id == change.table) {
            Some(at) => at,
            None => {
                let known = state.tables.get(&change.table).ok_or_else(|| {
                    conflict(transaction, "a table that it wrote to was dropped meanwhile")
                        .with_field("table", change.table)
                })?;
                changed.push((**known).clone());
                changed.len() - 1
            }
        };
        add(&mut changed[at], change, state.version)?;
    }
    for table in &mut changed {
        table.columns = statistics::of_table(&table.table, table.shards.iter().map(AsRef::<ShardStats>::as_ref));
    }
    Ok(changed)
}

fn add(table: &mut TableState, change: &TableChange, version: u64) -> Result<(), WireError> {
    let definition = table.table.clone();
    for piece in &change.pieces {
        if !piece.columns.is_empty() && piece.columns.len() != definition.columns.len() {
            return Err(WireError::new(
                ErrorCode::Internal,
                format!("statistics of {} columns for table {}", piece.columns.len(), definition.name),
            ));
        }
        let shards = table.shards.len();
        let shard = table.shards.get_mut(piece.shard as usize).ok_or_else(|| {
            WireError::new(
                ErrorCode::Internal,
                format!("shard {} of table {}, which has {shards}", piece.shard, definition.name),
            )
        })?;
        Arc::make_mut(shard).add(&definition, piece);
    }
    table.changed_version = version;
    Ok(())
}

pub(super) fn abort(state: &mut CatalogState, transaction: Ulid) -> Applied {
    let outcome = match state.transactions.get(&transaction) {
        Some(&outcome) => outcome,
        None => {
            decide_abort(state, transaction);
            Outcome::Aborted
        }
    };
    Ok(Response::Transaction(outcome))
}

fn decide_abort(state: &mut CatalogState, transaction: Ulid) {
    state.record(Event::Aborted(transaction));
    if transaction <= state.oldest_transaction {
        return;
    }
    state.transactions.insert_mut(transaction, Outcome::Aborted);
    // Committed ones are forgotten when every storage server has them; of aborted ones nobody ever says so.
    if state.transactions.size() > 2 * MAX_ABORTED {
        let aborted = state.transactions.iter().filter(|(_, outcome)| **outcome == Outcome::Aborted);
        let mut aborted: Vec<Ulid> = aborted.map(|(id, _)| *id).collect();
        aborted.truncate(aborted.len().saturating_sub(MAX_ABORTED));
        state.oldest_transaction = aborted.last().copied().unwrap_or(state.oldest_transaction);
        remove_all(&mut state.transactions, &aborted);
    }
}

fn conflict(transaction: Ulid, why: &str) -> WireError {
    WireError::new(ErrorCode::Conflict, format!("transaction {transaction} cannot commit: {why}"))
        .with_hint("run it again")
        .with_field("transaction", transaction)
}
