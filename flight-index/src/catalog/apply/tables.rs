//! CREATE TABLE and DROP TABLE.

use std::sync::Arc;

use drsdb_core::{Error, ErrorCode, ForeignKey, Table, TableName, Ulid, WireError};

use super::{Applied, CHANGED, UNCHANGED, already_exists, check_name};
use crate::{
    catalog::{CatalogState, ShardState, TableState, state::Event},
    placement,
};

pub(super) fn create(state: &mut CatalogState, table: &Table, if_not_exists: bool) -> Applied {
    if state.names.contains_key(&table.name) {
        return if if_not_exists { UNCHANGED } else { Err(already_exists("table", &table.name)) };
    }
    if !state.schemas.contains_key(&table.name.schema) {
        return Err(state.no_schema(&table.name.schema));
    }
    check_name("table", &table.name.table)?;
    for column in &table.columns {
        check_name("column", &column.name)?;
    }
    table.validate().map_err(|error| Error::to_wire(&error))?;
    if state.tables.contains_key(&table.id) {
        return Err(WireError::new(ErrorCode::Internal, format!("table id {} is taken", table.id)));
    }
    for key in &table.foreign_keys {
        check_foreign_key(state, table, key)?;
    }
    let servers: Vec<Ulid> = state.servers.keys().copied().collect();
    if servers.is_empty() {
        return Err(WireError::new(ErrorCode::Unavailable, "there is no storage server to hold a table")
            .with_hint("start a storage server and retry"));
    }
    let created = TableState {
        table: Arc::new(table.clone()),
        shards: placement::place(table.shards, &servers)
            .iter()
            .map(|servers| Arc::new(ShardState::new(servers, state.version)))
            .collect(),
        columns: Vec::new(),
        created_version: state.version,
        changed_version: state.version,
    };
    state.names.insert_mut(table.name.clone(), table.id);
    state.tables.insert_mut(table.id, Arc::new(created));
    CHANGED
}

fn check_foreign_key(state: &CatalogState, table: &Table, key: &ForeignKey) -> Result<(), WireError> {
    let refuse = |message: String| {
        WireError::new(ErrorCode::InvalidArgument, format!("foreign key {}: {message}", key.name))
            .with_field("constraint", &key.name)
            .with_field("table", &table.name)
    };
    check_name("foreign key", &key.name)?;
    let parent = if key.parent == table.id {
        table
    } else {
        match state.tables.get(&key.parent) {
            Some(parent) => &parent.table,
            None => {
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
    let mut referenced = key.parent_columns.clone();
    let mut primary = parent.primary_key.clone();
    referenced.sort_unstable();
    primary.sort_unstable();
    if referenced != primary {
        return Err(refuse(format!("the columns it refers to are not the primary key of {}", parent.name))
            .with_hint("refer to all columns of the primary key, each once"));
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

/// Drops a table that nobody has used: it has no rows, and no foreign key refers to it.
pub(super) fn drop_empty(state: &mut CatalogState, id: Ulid) -> Applied {
    let Some(table) = state.tables.get(&id) else { return UNCHANGED };
    let referred = state.children(id).any(|child| child.table.id != id);
    if table.rows() > 0 || referred {
        return UNCHANGED;
    }
    let name = table.table.name.clone();
    drop(state, &name, false, false)
}

pub(super) fn drop(state: &mut CatalogState, name: &TableName, if_exists: bool, cascade: bool) -> Applied {
    let Some(&id) = state.names.get(name) else {
        return if if_exists { UNCHANGED } else { Err(state.no_table(name)) };
    };
    let children: Vec<Arc<TableState>> = state.children(id).filter(|child| child.table.id != id).cloned().collect();
    if let (Some(child), false) = (children.first(), cascade) {
        let key = child.table.foreign_keys.iter().find(|key| key.parent == id).map_or("", |key| key.name.as_str());
        return Err(WireError::new(
            ErrorCode::ConstraintViolation,
            format!("foreign key {key} of table {} refers to table {name}", child.table.name),
        )
        .with_hint(format!(
            "drop {} first, or say DROP TABLE ... CASCADE to drop the foreign key with the table",
            child.table.name
        ))
        .with_field("constraint", key)
        .with_field("table", &child.table.name));
    }
    for child in children {
        let mut definition = (*child.table).clone();
        definition.foreign_keys.retain(|key| key.parent != id);
        let changed = TableState { table: Arc::new(definition), ..(*child).clone() };
        state.tables.insert_mut(child.table.id, Arc::new(changed));
    }
    state.names.remove_mut(name);
    state.tables.remove_mut(&id);
    state.record(Event::TableDropped(id));
    CHANGED
}
