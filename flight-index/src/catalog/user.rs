//! Users, and which of their logins count.

use std::{fmt, sync::Arc};

use drsdb_core::{
    ErrorCode, Result, WireError,
    security::{Login, token},
};
use serde::{Deserialize, Serialize};

use super::CatalogState;

/// Who may log in.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// Its name.
    pub name: String,
    /// Its password, hashed.
    pub password_hash: String,
    /// The version at which it got this password; one who was dropped and made again has another one.
    #[serde(default)]
    pub credentials: u64,
    /// Whether it may do everything.
    pub admin: bool,
}

impl User {
    /// What whoever shows the user's password logs in as.
    pub fn login(&self) -> Login {
        Login { user: self.name.clone(), credentials: self.credentials }
    }
}

impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("User").field("name", &self.name).field("admin", &self.admin).finish_non_exhaustive()
    }
}

impl CatalogState {
    /// The users, by name.
    pub fn users(&self) -> impl Iterator<Item = &Arc<User>> {
        self.users.values()
    }

    /// The user called `name`.
    pub fn user(&self, name: &str) -> Option<&Arc<User>> {
        self.users.get(name)
    }

    /// The user who has logged in, if the login still counts. Errors: `unauthenticated`; `unavailable` where the state is too
    /// old to tell.
    pub fn user_of(&self, login: &Login) -> Result<&Arc<User>> {
        match self.user(&login.user) {
            Some(user) if user.credentials == login.credentials => Ok(user),
            // Made by an index server that is ahead: to refuse it for good would have its client log in again, for nothing.
            _ if login.credentials > self.version => Err(WireError::new(
                ErrorCode::Unavailable,
                format!(
                    "this index server does not know yet of version {}, at which the login began",
                    login.credentials
                ),
            )
            .with_hint("ask another index server, or retry")
            .into()),
            _ => Err(token::revoked(&login.user)),
        }
    }

    /// Refuses unless whoever has logged in is an administrator. Errors: `permission_denied`, and those of
    /// [`CatalogState::user_of`].
    pub fn require_admin(&self, login: &Login) -> Result<()> {
        if self.user_of(login)?.admin {
            return Ok(());
        }
        Err(WireError::new(ErrorCode::PermissionDenied, format!("user {} is not an administrator", login.user))
            .with_hint("log in as an administrator")
            .into())
    }

    /// Users whose logins from before a version count no more, and that version. Only the newest are here, for storage
    /// servers: index servers know by [`CatalogState::user_of`].
    pub fn revoked_logins(&self) -> impl Iterator<Item = (&str, u64)> {
        self.revoked_logins.iter().map(|(user, version)| (user.as_str(), *version))
    }
}
