//! Who may log in.

use std::sync::Arc;

use drsdb_core::{ErrorCode, WireError, nearest_name, security::Login};

use super::{Applied, CHANGED, already_exists, check_name};
use crate::catalog::{CatalogState, User};

/// How many revocations are kept. They travel with every ping, and count for storage servers for as long as tickets live.
pub(super) const KEPT_REVOKED: usize = 64;

/// Refuses unless whoever asks is an administrator, and has logged in with the password that counts now.
pub(super) fn require_admin(state: &CatalogState, by: Option<&Login>) -> Result<(), WireError> {
    by.map_or(Ok(()), |by| state.require_admin(by).map_err(|error| error.to_wire()))
}

/// The same, where a user may ask about himself.
pub(super) fn require_self_or_admin(state: &CatalogState, by: Option<&Login>, name: &str) -> Result<(), WireError> {
    match by {
        Some(by) if by.user == name => state.user_of(by).map(|_| ()).map_err(|error| error.to_wire()),
        _ => require_admin(state, by),
    }
}

pub(super) fn create(state: &mut CatalogState, name: &str, password_hash: &str, admin: bool) -> Applied {
    check_name("user", name)?;
    if state.users.contains_key(name) {
        return Err(already_exists("user", name));
    }
    let user =
        User { name: name.to_owned(), password_hash: password_hash.to_owned(), credentials: state.version, admin };
    state.users.insert_mut(name.to_owned(), Arc::new(user));
    CHANGED
}

pub(super) fn alter(state: &mut CatalogState, name: &str, password_hash: &str) -> Applied {
    let user = state.users.get(name).ok_or_else(|| no_user(state, name))?;
    let changed = User { password_hash: password_hash.to_owned(), credentials: state.version, ..(**user).clone() };
    state.users.insert_mut(name.to_owned(), Arc::new(changed));
    revoke_logins(state, name);
    CHANGED
}

pub(super) fn drop(state: &mut CatalogState, name: &str) -> Applied {
    let user = state.users.get(name).ok_or_else(|| no_user(state, name))?;
    if user.admin && state.users.values().filter(|user| user.admin).count() == 1 {
        return Err(WireError::new(ErrorCode::InvalidArgument, format!("user {name} is the last administrator"))
            .with_hint("make another one first, or nobody can make users any more"));
    }
    state.users.remove_mut(name);
    revoke_logins(state, name);
    CHANGED
}

/// Notes that logins of the user from before this version count no more. Those of later commands of the same entry do: a login
/// is made from a state that has the whole entry.
fn revoke_logins(state: &mut CatalogState, name: &str) {
    state.revoked_logins.insert_mut(name.to_owned(), state.version);
    if state.revoked_logins.size() > KEPT_REVOKED {
        let oldest = state.revoked_logins.iter().min_by_key(|(name, version)| (**version, name.as_str()));
        let oldest = oldest.expect("there are some").0.clone();
        state.revoked_logins.remove_mut(&oldest);
    }
}

fn no_user(state: &CatalogState, name: &str) -> WireError {
    let error = WireError::new(ErrorCode::NotFound, format!("user {name} does not exist")).with_field("user", name);
    match nearest_name(name, state.users.keys().map(String::as_str)) {
        Some(nearest) => error.with_hint(format!("did you mean {nearest}?")),
        None => error,
    }
}
