//! Who may log in.

use std::sync::Arc;

use drsdb_core::{ErrorCode, WireError, nearest_name};

use super::{Applied, CHANGED, already_exists, check_name};
use crate::catalog::{CatalogState, User};

pub(super) fn create(state: &mut CatalogState, name: &str, password_hash: &str, admin: bool) -> Applied {
    check_name("user", name)?;
    if state.users.contains_key(name) {
        return Err(already_exists("user", name));
    }
    let user = User { name: name.to_owned(), password_hash: password_hash.to_owned(), admin };
    state.users.insert_mut(name.to_owned(), Arc::new(user));
    CHANGED
}

pub(super) fn alter(state: &mut CatalogState, name: &str, password_hash: &str) -> Applied {
    let user = state.users.get(name).ok_or_else(|| no_user(state, name))?;
    let changed = User { password_hash: password_hash.to_owned(), ..(**user).clone() };
    state.users.insert_mut(name.to_owned(), Arc::new(changed));
    CHANGED
}

pub(super) fn drop(state: &mut CatalogState, name: &str) -> Applied {
    let user = state.users.get(name).ok_or_else(|| no_user(state, name))?;
    if user.admin && state.users.values().filter(|user| user.admin).count() == 1 {
        return Err(WireError::new(ErrorCode::InvalidArgument, format!("user {name} is the last administrator"))
            .with_hint("make another one first, or nobody can make users any more"));
    }
    state.users.remove_mut(name);
    CHANGED
}

fn no_user(state: &CatalogState, name: &str) -> WireError {
    let error = WireError::new(ErrorCode::NotFound, format!("user {name} does not exist")).with_field("user", name);
    match nearest_name(name, state.users.keys().map(String::as_str)) {
        Some(nearest) => error.with_hint(format!("did you mean {nearest}?")),
        None => error,
    }
}
