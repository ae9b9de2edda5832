//! CREATE SCHEMA and DROP SCHEMA.

use drsdb_core::{ErrorCode, TableName, WireError};

use super::{Applied, CHANGED, UNCHANGED, already_exists, check_name, making, tables, views};
use crate::catalog::{
    CatalogState,
    state::{DEFAULT_SCHEMA, RESERVED_SCHEMAS},
};

pub(super) fn create(state: &mut CatalogState, name: &str, if_not_exists: bool) -> Applied {
    check_name("schema", name)?;
    if RESERVED_SCHEMAS.contains(&name) {
        return Err(WireError::new(ErrorCode::InvalidArgument, format!("schema {name} is reserved"))
            .with_hint("choose another name"));
    }
    if state.schemas.contains_key(name) {
        return if if_not_exists { UNCHANGED } else { Err(already_exists("schema", name)) };
    }
    state.schemas.insert_mut(name.to_owned(), state.version);
    CHANGED
}

pub(super) fn drop(state: &mut CatalogState, name: &str, if_exists: bool, cascade: bool) -> Applied {
    if !state.schemas.contains_key(name) {
        return if if_exists { UNCHANGED } else { Err(state.no_schema(name)) };
    }
    if name == DEFAULT_SCHEMA {
        return Err(WireError::new(ErrorCode::InvalidArgument, format!("schema {name} is always there"))
            .with_hint("drop its tables instead"));
    }
    making::check_none_in(state, name)?;
    let inside = |names: &mut dyn Iterator<Item = &TableName>| -> Vec<TableName> {
        names.filter(|table| table.schema == name).cloned().collect()
    };
    let (tables, views) = (inside(&mut state.names.keys()), inside(&mut state.views.keys()));
    let first = tables.first().map(|table| ("table", table)).or(views.first().map(|view| ("view", view)));
    if let (Some((what, first)), false) = (first, cascade) {
        let others = tables.len() + views.len() - 1;
        let message = match others {
            0 => format!("schema {name} has a {what}: {first}"),
            _ => format!("schema {name} has tables or views: {first} and {others} more"),
        };
        return Err(WireError::new(ErrorCode::ConstraintViolation, message)
            .with_hint("drop them first, or say DROP SCHEMA ... CASCADE")
            .with_field("schema", name));
    }
    tables::drop(state, &tables, true, true)?;
    views::drop(state, &views, true, true)?;
    state.schemas.remove_mut(name);
    CHANGED
}
