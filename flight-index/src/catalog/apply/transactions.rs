//! Outcomes of transactions: decided once, the same answer ever after.

use std::sync::Arc;

use drsdb_core::{ErrorCode, TableKind, Ulid, WireError};

use super::{Applied, making, remove_all};
use crate::catalog::{
    Absent, CatalogState, Outcome, PieceInfo, Replica, ReplicaState, Response, ShardState, TableChange, TableState,
    Validation, state::Event, statistics,
};

/// Aborted transactions that are remembered. Ids grow with time, so the oldest go first, and a commit older than all
/// that are remembered is refused.
pub(super) const MAX_ABORTED: usize = 100_000;

/// Statements whose outcomes are remembered; the oldest are forgotten first.
pub(super) const MAX_STATEMENTS: usize = 100_000;

pub(super) fn commit(
    state: &mut CatalogState,
    transaction: Ulid,
    statement: Option<(Ulid, Option<u64>)>,
    changes: &[TableChange],
    validations: &[Validation],
) -> Applied {
    match state.transactions.get(&transaction) {
        Some(&outcome @ Outcome::Committed { .. }) => return Ok(Response::Transaction(outcome)),
        Some(Outcome::Aborted) => {
            return Err(conflict(transaction, "it was aborted, for it took too long or a server lost it"));
        }
        None if transaction <= state.oldest_transaction => {
            return Err(conflict(transaction, "it is too old to commit"));
        }
        None => {}
    }
    if let Some(first) = statement.and_then(|(statement, _)| state.statement_outcome(statement)) {
        // The client asked twice. What the first run did stands, and this one leaves nothing.
        decide_abort(state, transaction);
        return Ok(Response::Transaction(first));
    }
    let checked = validate(state, transaction, validations).and_then(|()| changed_tables(state, transaction, changes));
    let changed = match checked {
        Ok(changed) => changed,
        Err(error) => {
            decide_abort(state, transaction);
            return Err(error);
        }
    };
    for table in changed {
        state.tables.insert_mut(table.table.id, Arc::new(table));
    }
    making::name(state, transaction);
    let told = statement.and_then(|(_, rows)| rows);
    let rows = told.unwrap_or_else(|| rows_of(state, changes));
    let outcome = Outcome::Committed { version: state.version, rows };
    state.transactions.insert_mut(transaction, outcome);
    if let Some((statement, _)) = statement {
        remember(state, statement, outcome);
    }
    state.record(Event::Committed(transaction));
    Ok(Response::Transaction(outcome))
}

/// Rows that the transaction changed in users' tables. An update deletes and inserts.
fn rows_of(state: &CatalogState, changes: &[TableChange]) -> u64 {
    let visible = |change: &&TableChange| {
        state.tables.get(&change.table).is_some_and(|table| table.table.kind == TableKind::Base)
    };
    let pieces = changes.iter().filter(visible).flat_map(|change| &change.pieces);
    let (inserted, deleted) = pieces.fold((0, 0), |(i, d), piece| (i + piece.rows, d + piece.deleted));
    u64::max(inserted, deleted)
}

pub(super) fn remember(state: &mut CatalogState, statement: Ulid, outcome: Outcome) {
    state.statements.insert_mut(statement, outcome);
    if state.statements.size() > 2 * MAX_STATEMENTS {
        // Ids grow with time.
        let oldest: Vec<Ulid> = state.statements.keys().copied().take(MAX_STATEMENTS).collect();
        remove_all(&mut state.statements, &oldest);
        // One that commits late may have a smaller id.
        state.forgotten_statement = oldest.last().copied().unwrap_or_default().max(state.forgotten_statement);
    }
}

fn validate(state: &CatalogState, transaction: Ulid, validations: &[Validation]) -> Result<(), WireError> {
    for validation in validations {
        let Some(table) = state.tables.get(&validation.table) else {
            return Err(conflict(transaction, "a table that its foreign keys involve was dropped meanwhile"));
        };
        let shards = table.shards.iter().enumerate();
        let mut watched = shards.filter(|(at, _)| validation.shard.is_none_or(|shard| shard as usize == *at));
        let last = |shard: &ShardState| match validation.absent {
            Absent::Deletes => shard.last_delete,
            Absent::Inserts => shard.last_insert,
        };
        if watched.any(|(_, shard)| last(shard) > validation.since) {
            let why = "rows on the other side of a foreign key were changed meanwhile";
            return Err(conflict(transaction, why).with_field("table", &table.table.name));
        }
    }
    Ok(())
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
        if changed[at].table.version != change.version {
            return Err(conflict(transaction, "a table that it wrote to was altered meanwhile")
                .with_field("table", &changed[at].table.name));
        }
        for piece in &change.pieces {
            add(&mut changed[at], transaction, piece, state.version)?;
        }
    }
    for table in &mut changed {
        table.changed_version = state.version;
        table.columns = statistics::of_table(&table.table, table.shards.iter().map(|shard| &shard.stats));
    }
    Ok(changed)
}

/// Takes a staged piece in, and notes which replicas missed it.
fn add(table: &mut TableState, transaction: Ulid, piece: &PieceInfo, version: u64) -> Result<(), WireError> {
    let definition = table.table.clone();
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
    let place = |error: WireError| error.with_field("table", &definition.name).with_field("shard", piece.shard);
    let shard = Arc::make_mut(shard);
    if piece.epoch < shard.authority {
        return Err(place(conflict(transaction, "another replica checks writes now")));
    }
    // What a rebuild has replaced since it was staged is not there any more.
    let has = |replica: &Replica| piece.acks.contains(&replica.server) && ShardState::accepts(replica, piece.epoch);
    let staged = shard.replicas.iter().filter(|replica| replica.is_current() && has(replica)).count();
    if staged < shard.majority() {
        let why = format!("{staged} of {} replicas have staged it, which is no majority", shard.counted());
        return Err(place(conflict(transaction, &why)));
    }
    shard.change_replicas(version, |replicas| {
        for replica in replicas.iter_mut().filter(|replica| !has(replica)) {
            match replica.state {
                ReplicaState::Current { .. } => replica.becomes_stale(version),
                // It began to write before the rebuild did: the copy must have it.
                ReplicaState::Rebuilding { .. } => replica.state = ReplicaState::Rebuilding { since: version },
                ReplicaState::Stale { .. } => {}
            }
        }
    });
    shard.stats.add(&definition, piece);
    if piece.rows > 0 {
        shard.last_insert = version;
    }
    if piece.deleted > 0 {
        shard.last_delete = version;
    }
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
    making::unmake(state, transaction);
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

pub(super) fn conflict(transaction: Ulid, why: &str) -> WireError {
    WireError::new(ErrorCode::Conflict, format!("transaction {transaction} cannot commit: {why}"))
        .with_hint("run it again")
        .with_field("transaction", transaction)
}
