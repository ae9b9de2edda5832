//! ALTER TABLE: one definition takes the place of another one. What it must keep is checked here, whoever made it.

use std::sync::Arc;

use drsdb_core::{Column, ErrorCode, Table, Ulid, WireError};

use super::{
    Applied, CHANGED, UNCHANGED,
    tables::{check_definition, check_new_name, foreign_keys_added, new_parents, place, remove},
    views,
};
use crate::catalog::{CatalogState, TableState, statistics};

pub(super) fn alter(
    state: &mut CatalogState,
    table: &Table,
    seen: u64,
    unchanged_since: Option<u64>,
    cascade: bool,
    exact_keys: bool,
) -> Applied {
    let known = state.tables.get(&table.id).filter(|known| known.is_users() && !state.is_in_making(table.id)).cloned();
    let known = known.ok_or_else(|| conflict(table, "was dropped meanwhile"))?;
    if known.table.version != seen {
        return Err(conflict(table, "was altered meanwhile"));
    }
    let before = &*known.table;
    let parents = new_parents(table, &before.foreign_keys, exact_keys);
    if let Some(version) = unchanged_since {
        if known.changed_version > version {
            return Err(conflict(table, "was written to while its rows were checked"));
        }
        // Nobody who deleted there knew of the key.
        let mut shards = parents.iter().filter_map(|parent| state.tables.get(parent)).flat_map(|parent| &parent.shards);
        if exact_keys && shards.any(|shard| shard.last_delete > version) {
            return Err(conflict(table, "refers to a table whose rows were changed while they were looked for"));
        }
    }
    if before == table {
        return UNCHANGED;
    }
    check_kept(before, table)?;
    if table.name != before.name {
        check_new_name(state, &table.name)?;
        if let Some(view) = state.views().find(|view| view.uses(table.id)) {
            return Err(renamed(&format!("table {}", before.name), &view.name));
        }
    }
    check_definition(state, table)?;

    let columns = || before.columns.iter().zip(&table.columns).enumerate();
    let dropped: Vec<usize> =
        columns().filter(|(_, (old, new))| !old.dropped && new.dropped).map(|(position, _)| position).collect();
    for (position, (old, _)) in columns().filter(|(_, (old, new))| !new.dropped && old.name != new.name) {
        if let Some(view) = state.views().find(|view| view.uses_columns(table.id, &[position])) {
            return Err(renamed(&format!("column {} of table {}", old.name, before.name), &view.name));
        }
    }
    views::check_columns_unused(state, table, &dropped, cascade)?;
    let dangling = |child: &TableState| {
        let mut keys = child.table.foreign_keys.iter();
        keys.any(|key| key.parent == table.id && !table.is_key(&key.parent_columns))
    };
    let children: Vec<Arc<TableState>> =
        state.children(table.id).filter(|child| child.table.id != table.id && dangling(child)).cloned().collect();
    if let (Some(child), false) = (children.first(), cascade) {
        let message = format!("a foreign key of table {} refers to a key of {}", child.table.name, before.name);
        return Err(WireError::new(ErrorCode::ConstraintViolation, message)
            .with_hint("drop the foreign key first, or say CASCADE to drop it too")
            .with_field("table", &child.table.name));
    }
    let keeps = |keys: &Table, index: Ulid| keys.uniques.iter().any(|key| key.index == index);
    let added = table.uniques.iter().filter(|key| !keeps(before, key.index));
    let added = added.map(|key| place(state, &table.unique_index(key))).collect::<Result<Vec<_>, _>>()?;

    foreign_keys_added(state, parents);
    views::drop_users_of_columns(state, table.id, &dropped);
    for child in children {
        let mut definition = (*child.table).clone();
        definition.foreign_keys.retain(|key| key.parent != table.id || table.is_key(&key.parent_columns));
        let changed = TableState { table: Arc::new(definition), ..(*child).clone() };
        state.tables.insert_mut(child.table.id, Arc::new(changed));
    }
    for key in before.uniques.iter().filter(|key| !keeps(table, key.index)) {
        remove(state, key.index);
    }
    for index in added {
        state.tables.insert_mut(index.table.id, Arc::new(index));
    }
    if table.name != before.name {
        state.names.remove_mut(&before.name);
        state.names.insert_mut(table.name.clone(), table.id);
    }
    let definition = Table { version: seen + 1, ..table.clone() };
    let mut altered = (*known).clone();
    for shard in &mut altered.shards {
        if !shard.stats.columns.is_empty() {
            Arc::make_mut(shard).stats.add_columns(&definition);
        }
    }
    altered.columns = statistics::of_table(&definition, altered.shards.iter().map(|shard| &shard.stats));
    altered.table = Arc::new(definition);
    state.tables.insert_mut(table.id, Arc::new(altered));
    CHANGED
}

/// Rows that are stored rely on these.
fn check_kept(before: &Table, after: &Table) -> Result<(), WireError> {
    let keys = |table: &Table| (table.primary_key.clone(), table.shard_key.clone(), table.cluster_key.clone());
    let placed = |table: &Table| (table.engine, table.shards, table.shard_function, table.kind);
    let column = |(old, new): (&Column, &Column)| {
        old.sql_type == new.sql_type
            && old.hidden == new.hidden
            && old.initial == new.initial
            && (new.dropped || !old.dropped)
    };
    let columns = after.columns.len() >= before.columns.len()
        && before.columns.iter().zip(&after.columns).all(column)
        && keys(before).0.iter().all(|&position| !after.columns[position].dropped);
    if keys(before) == keys(after) && placed(before) == placed(after) && columns {
        return Ok(());
    }
    let message = format!("ALTER TABLE of {} would change what its rows are stored by", before.name);
    Err(WireError::new(ErrorCode::Internal, message))
}

fn conflict(table: &Table, why: &str) -> WireError {
    WireError::new(ErrorCode::Conflict, format!("table {} {why}", table.name))
        .with_hint("run it again")
        .with_field("table", &table.name)
}

fn renamed(what: &str, view: impl std::fmt::Display) -> WireError {
    WireError::new(ErrorCode::ConstraintViolation, format!("view {view} reads {what} by its name"))
        .with_hint(format!("drop view {view}, rename, and create the view again"))
        .with_field("view", view)
}
