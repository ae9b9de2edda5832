//! CREATE VIEW and DROP VIEW, and what depends on views and is depended on by them. COMMENT, of tables too.

use std::sync::Arc;

use drsdb_core::{Column, ErrorCode, Table, TableName, Ulid, WireError};

use super::{Applied, CHANGED, UNCHANGED, check_name, tables::check_new_name};
use crate::catalog::{CatalogState, TableState, View};

pub(super) fn create(state: &mut CatalogState, view: &View, or_replace: bool, if_not_exists: bool) -> Applied {
    let known = state.views.get(&view.name).cloned();
    match &known {
        Some(_) if if_not_exists => return UNCHANGED,
        Some(known) if or_replace => check_replacement(state, known, view)?,
        _ => check_new_name(state, &view.name)?,
    }
    for column in &view.columns {
        check_name("column", &column.name)?;
    }
    for used in &view.uses {
        if !is_there(state, used.id, &used.columns) {
            let message = format!("what view {} reads was changed meanwhile", view.name);
            return Err(WireError::new(ErrorCode::Conflict, message).with_hint("run it again"));
        }
    }
    let id = known.as_ref().map_or(view.id, |known| known.id);
    let comment = known.and_then(|known| known.comment.clone());
    state.views.insert_mut(view.name.clone(), Arc::new(View { id, comment, ..view.clone() }));
    CHANGED
}

/// A view that takes the place of another one keeps the columns that other views may read, and reads no view that reads it.
fn check_replacement(state: &CatalogState, known: &View, view: &View) -> Result<(), WireError> {
    let mut below: Vec<Ulid> = view.uses.iter().map(|used| used.id).collect();
    while let Some(id) = below.pop() {
        if id == known.id {
            let message = format!("view {} would read itself", view.name);
            return Err(WireError::new(ErrorCode::InvalidArgument, message).with_field("view", &view.name));
        }
        let next = state.views().filter(|other| other.id == id).flat_map(|other| &other.uses);
        below.extend(next.map(|used| used.id));
    }
    let same = |old: &Column, new: &Column| old.name == new.name && old.sql_type == new.sql_type;
    let keeps = view.columns.len() >= known.columns.len()
        && known.columns.iter().zip(&view.columns).all(|(old, new)| same(old, new));
    match state.views().find(|other| other.uses(known.id)) {
        Some(user) if !keeps => {
            let message = format!("view {} reads view {}, whose columns would change", user.name, view.name);
            Err(WireError::new(ErrorCode::ConstraintViolation, message)
                .with_hint("keep its columns and add new ones at the end, or drop the views first")
                .with_field("view", &user.name))
        }
        _ => Ok(()),
    }
}

fn is_there(state: &CatalogState, id: Ulid, columns: &[usize]) -> bool {
    if let Some(table) = state.tables.get(&id).filter(|_| !state.is_in_making(id)) {
        return columns.iter().all(|&column| table.table.columns.get(column).is_some_and(Column::is_visible));
    }
    let view = state.views().find(|view| view.id == id);
    view.is_some_and(|view| columns.iter().all(|&column| column < view.columns.len()))
}

pub(super) fn drop(state: &mut CatalogState, names: &[TableName], if_exists: bool, cascade: bool) -> Applied {
    let mut dropped: Vec<Arc<View>> = Vec::new();
    for name in names {
        match state.views.get(name) {
            Some(view) => dropped.push(Arc::clone(view)),
            None if if_exists && !state.names.contains_key(name) => {}
            None => return Err(state.no_view(name)),
        }
    }
    let inside = |user: &View| dropped.iter().any(|view| view.id == user.id);
    for view in &dropped {
        let user = state.views().find(|user| user.uses(view.id) && !inside(user));
        if let (Some(user), false) = (user, cascade) {
            return Err(in_use(user, &format!("view {}", view.name), "DROP VIEW"));
        }
    }
    let mut changed = false;
    for view in dropped {
        drop_users(state, view.id);
        changed |= state.views.remove_mut(&view.name);
    }
    if changed { CHANGED } else { UNCHANGED }
}

fn in_use(user: &View, what: &str, statement: &str) -> WireError {
    WireError::new(ErrorCode::ConstraintViolation, format!("view {} reads {what}", user.name))
        .with_hint(format!("drop {} first, or say {statement} ... CASCADE to drop it too", user.name))
        .with_field("view", &user.name)
}

/// Refuses when a view reads a table that is to go, unless `cascade`.
pub(super) fn check_unused(state: &CatalogState, id: Ulid, what: &str, cascade: bool) -> Result<(), WireError> {
    // Views over views are younger: the oldest reads it itself.
    match state.views().filter(|view| view.uses(id)).min_by_key(|view| view.id) {
        Some(user) if !cascade => Err(in_use(user, what, "DROP TABLE")),
        _ => Ok(()),
    }
}

/// Refuses when a view reads one of a table's columns that are to go, unless `cascade`.
pub(super) fn check_columns_unused(
    state: &CatalogState,
    table: &Table,
    columns: &[usize],
    cascade: bool,
) -> Result<(), WireError> {
    match state.views().find(|view| view.uses_columns(table.id, columns)) {
        Some(user) if !cascade => {
            Err(in_use(user, &format!("a column of table {} that is dropped", table.name), "DROP COLUMN"))
        }
        _ => Ok(()),
    }
}

/// Drops the views that read one of a table's columns.
pub(super) fn drop_users_of_columns(state: &mut CatalogState, id: Ulid, columns: &[usize]) {
    let users: Vec<Arc<View>> = state.views().filter(|view| view.uses_columns(id, columns)).cloned().collect();
    drop_all(state, users);
}

/// Drops the views that read the table or view `id`, and those that read them.
pub(super) fn drop_users(state: &mut CatalogState, id: Ulid) {
    let users: Vec<Arc<View>> = state.views().filter(|view| view.uses(id)).cloned().collect();
    drop_all(state, users);
}

fn drop_all(state: &mut CatalogState, mut views: Vec<Arc<View>>) {
    while let Some(view) = views.pop() {
        views.extend(state.views().filter(|other| other.uses(view.id)).cloned());
        state.views.remove_mut(&view.name);
    }
}

pub(super) fn comment(state: &mut CatalogState, name: &TableName, column: Option<&str>, text: Option<&str>) -> Applied {
    let text = text.map(str::to_owned);
    if let Some(view) = state.views.get(name) {
        let mut view = (**view).clone();
        match column {
            None => view.comment = text,
            Some(column) => {
                let found = view.columns.iter_mut().find(|other| other.name == column);
                found.ok_or_else(|| no_column(name, column))?.comment = text;
            }
        }
        state.views.insert_mut(name.clone(), Arc::new(view));
        return CHANGED;
    }
    let known = Arc::clone(state.table_by_name(name).ok_or_else(|| state.no_table(name))?);
    let mut table = (*known.table).clone();
    match column {
        None => table.comment = text,
        Some(column) => {
            let position = table.column_position(column).ok_or_else(|| no_column(name, column))?;
            table.columns[position].comment = text;
        }
    }
    state.tables.insert_mut(table.id, Arc::new(TableState { table: Arc::new(table), ..(*known).clone() }));
    CHANGED
}

fn no_column(table: &TableName, column: &str) -> WireError {
    WireError::new(ErrorCode::NotFound, format!("{table} has no column {column}"))
        .with_field("table", table)
        .with_field("column", column)
}
