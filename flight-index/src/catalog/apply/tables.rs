//! CREATE TABLE and DROP TABLE.

use std::{collections::BTreeSet, sync::Arc};

use drsdb_core::{Error, ErrorCode, ForeignKey, Table, TableName, Ulid, WireError};

use super::{Applied, CHANGED, UNCHANGED, already_exists, check_name, making, views};
use crate::{
    catalog::{CatalogState, ShardState, TableState, state::Event},
    placement,
};

pub(super) fn create(state: &mut CatalogState, table: &Table, if_not_exists: bool) -> Applied {
    if if_not_exists && state.names.contains_key(&table.name) {
        return UNCHANGED;
    }
    add(state, table)?;
    state.names.insert_mut(table.name.clone(), table.id);
    CHANGED
}

/// Adds a table and its indexes; its name leads nowhere yet.
pub(super) fn add(state: &mut CatalogState, table: &Table) -> Result<(), WireError> {
    check_new_name(state, &table.name)?;
    check_definition(state, table)?;
    let indexes: Vec<Table> = table.uniques.iter().map(|key| table.unique_index(key)).collect();
    if let Some(taken) = std::iter::once(table).chain(&indexes).find(|new| state.tables.contains_key(&new.id)) {
        return Err(WireError::new(ErrorCode::Internal, format!("table id {} is taken", taken.id)));
    }
    let placed =
        std::iter::once(table).chain(&indexes).map(|table| place(state, table)).collect::<Result<Vec<_>, _>>()?;
    foreign_keys_added(state, new_parents(table, &[], true));
    for created in placed {
        state.tables.insert_mut(created.table.id, Arc::new(created));
    }
    Ok(())
}

/// Checks that a table or a view can be called `name`.
pub(super) fn check_new_name(state: &CatalogState, name: &TableName) -> Result<(), WireError> {
    if state.names.contains_key(name) {
        return Err(already_exists("table", name));
    }
    if state.views.contains_key(name) {
        return Err(already_exists("view", name));
    }
    making::check_free(state, name)?;
    if !state.schemas.contains_key(&name.schema) {
        return Err(state.no_schema(&name.schema));
    }
    check_name("table", &name.table)
}

/// Checks all of a definition but the table's own name.
pub(super) fn check_definition(state: &CatalogState, table: &Table) -> Result<(), WireError> {
    for column in &table.columns {
        check_name("column", &column.name)?;
    }
    for name in table.constraint_names() {
        check_name("constraint", &name)?;
    }
    table.validate().map_err(|error| Error::to_wire(&error))?;
    table.foreign_keys.iter().try_for_each(|key| check_foreign_key(state, table, key))
}

/// The other tables that foreign keys refer to which were not there before, under whatever name; see
/// [`Command::AlterTable`](crate::catalog::Command::AlterTable) for `exact`.
pub(super) fn new_parents(table: &Table, before: &[ForeignKey], exact: bool) -> BTreeSet<Ulid> {
    let was_there = |key: &ForeignKey| {
        let columns = |old: &ForeignKey| (&old.columns, &old.parent_columns) == (&key.columns, &key.parent_columns);
        before.iter().any(|old| old.parent == key.parent && (!exact || columns(old)))
    };
    let added = table.foreign_keys.iter().filter(|key| !was_there(key));
    added.map(|key| key.parent).filter(|&parent| parent != table.id).collect()
}

/// Notes that tables are referred to by foreign keys that were not there before. A transaction that has deleted rows there
/// did not look for rows that refer to them, so that its version of the definition must not commit.
pub(super) fn foreign_keys_added(state: &mut CatalogState, parents: BTreeSet<Ulid>) {
    for parent in parents {
        let Some(known) = state.tables.get(&parent) else { continue };
        let definition = Table { version: known.table.version + 1, ..(*known.table).clone() };
        let changed = TableState { table: Arc::new(definition), ..(**known).clone() };
        state.tables.insert_mut(parent, Arc::new(changed));
    }
}

/// A new table, without rows, where its shards are to be.
pub(super) fn place(state: &CatalogState, table: &Table) -> Result<TableState, WireError> {
    let servers = state.placement_servers();
    if servers.is_empty() {
        return Err(WireError::new(ErrorCode::Unavailable, "there is no storage server to hold a table")
            .with_hint("start a storage server and retry"));
    }
    Ok(TableState {
        table: Arc::new(table.clone()),
        shards: placement::place(table.shards, placement::replicas_of(table), &servers)
            .iter()
            .map(|servers| Arc::new(ShardState::new(servers, state.version)))
            .collect(),
        columns: Vec::new(),
        created_version: state.version,
        changed_version: state.version,
    })
}

fn check_foreign_key(state: &CatalogState, table: &Table, key: &ForeignKey) -> Result<(), WireError> {
    let refuse = |message: String| {
        WireError::new(ErrorCode::InvalidArgument, format!("foreign key {}: {message}", key.name))
            .with_field("constraint", &key.name)
            .with_field("table", &table.name)
    };
    let parent = if key.parent == table.id {
        table
    } else {
        match state.tables.get(&key.parent) {
            Some(parent) if parent.is_users() && !state.is_in_making(key.parent) => &parent.table,
            _ => {
                return Err(WireError::new(
                    ErrorCode::NotFound,
                    format!("foreign key {}: the table it refers to does not exist (any more)", key.name),
                ));
            }
        }
    };
    if key.columns.is_empty() || key.columns.len() != key.parent_columns.len() {
        let (here, there) = (key.columns.len(), key.parent_columns.len());
        return Err(refuse(format!("{here} columns refer to {there}: name as many on both sides")));
    }
    if key.parent_columns.iter().any(|&position| position >= parent.columns.len())
        || !parent.is_key(&key.parent_columns)
    {
        let message = format!("the columns it refers to are not the primary key or a UNIQUE key of {}", parent.name);
        return Err(refuse(message).with_hint("refer to all columns of a key, each once"));
    }
    for (&child, &parent_column) in key.columns.iter().zip(&key.parent_columns) {
        let (child, parent_column) = (&table.columns[child], &parent.columns[parent_column]);
        if child.sql_type.to_arrow() != parent_column.sql_type.to_arrow() {
            return Err(WireError {
                code: ErrorCode::TypeMismatch,
                ..refuse(format!(
                    "column {} is {} and {}.{} is {}",
                    child.name, child.sql_type, parent.name, parent_column.name, parent_column.sql_type
                ))
                .with_hint("give both the same type")
            });
        }
    }
    Ok(())
}

/// Drops a table that nobody has used: it has no rows, and neither foreign key nor view refers to it.
pub(super) fn drop_empty(state: &mut CatalogState, id: Ulid) -> Applied {
    let Some(table) = state.tables.get(&id).filter(|table| table.is_users()) else { return UNCHANGED };
    let referred = state.children(id).any(|child| child.table.id != id) || state.views().any(|view| view.uses(id));
    if table.rows() > 0 || referred {
        return UNCHANGED;
    }
    let name = table.table.name.clone();
    drop(state, &[name], false, false)
}

/// Drops tables, all or none. What refers from one of them to another holds nothing.
pub(super) fn drop(state: &mut CatalogState, names: &[TableName], if_exists: bool, cascade: bool) -> Applied {
    let mut dropped: Vec<Arc<TableState>> = Vec::new();
    for name in names {
        match state.table_by_name(name) {
            Some(table) if dropped.iter().any(|other| other.table.id == table.table.id) => {}
            Some(table) => dropped.push(Arc::clone(table)),
            // A view of that name is there, and not dropped by this.
            None if if_exists && !state.views.contains_key(name) => {}
            None => return Err(state.no_table(name)),
        }
    }
    let ids: Vec<Ulid> = dropped.iter().map(|table| table.table.id).collect();
    let refers = |child: &TableState| child.table.foreign_keys.iter().any(|key| ids.contains(&key.parent));
    let outside = |child: &&Arc<TableState>| !ids.contains(&child.table.id) && refers(child);
    let children: Vec<Arc<TableState>> = state.user_tables().filter(outside).cloned().collect();
    if let (Some(child), false) = (children.first(), cascade) {
        let key = child.table.foreign_keys.iter().find(|key| ids.contains(&key.parent));
        let parent = key.and_then(|key| state.tables.get(&key.parent)).map(|parent| parent.table.name.to_string());
        let (key, parent) = (key.map_or("", |key| key.name.as_str()), parent.unwrap_or_default());
        return Err(WireError::new(
            ErrorCode::ConstraintViolation,
            format!("foreign key {key} of table {} refers to table {parent}", child.table.name),
        )
        .with_hint(format!(
            "drop {} first, or say DROP TABLE ... CASCADE to drop the foreign key with the table",
            child.table.name
        ))
        .with_field("constraint", key)
        .with_field("table", &child.table.name));
    }
    for table in &dropped {
        views::check_unused(state, table.table.id, &format!("table {}", table.table.name), cascade)?;
    }
    for table in &dropped {
        views::drop_users(state, table.table.id);
    }
    for child in children {
        let mut definition = (*child.table).clone();
        definition.foreign_keys.retain(|key| !ids.contains(&key.parent));
        let changed = TableState { table: Arc::new(definition), ..(*child).clone() };
        state.tables.insert_mut(child.table.id, Arc::new(changed));
    }
    for table in &dropped {
        state.names.remove_mut(&table.table.name);
        remove(state, table.table.id);
        for key in &table.table.uniques {
            remove(state, key.index);
        }
    }
    if dropped.is_empty() { UNCHANGED } else { CHANGED }
}

/// Removes a table that nothing refers to any more.
pub(super) fn remove(state: &mut CatalogState, id: Ulid) {
    if state.tables.remove_mut(&id) {
        state.record(Event::TableDropped(id));
    }
}
