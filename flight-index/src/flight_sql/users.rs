//! CREATE, ALTER and DROP USER: who may, and hashing off the async threads.

use drsdb_core::{
    Error, ErrorCode, Result, WireError,
    security::{Login, password},
};

use super::FlightSqlServer;
use crate::{
    catalog::{CatalogState, Command},
    statement::Password,
};

impl FlightSqlServer {
    /// Refuses unless the caller is an administrator.
    pub(super) fn require_admin(&self, state: &CatalogState, caller: &Login) -> Result<()> {
        if state.user_of(caller)?.admin {
            return Ok(());
        }
        Err(WireError::new(ErrorCode::PermissionDenied, format!("user {} is not an administrator", caller.user))
            .with_hint("log in as an administrator")
            .into())
    }

    /// CREATE USER.
    pub(super) async fn create_user(
        &self,
        name: String,
        secret: Password,
        if_not_exists: bool,
        caller: &Login,
    ) -> Result<u64> {
        let state = self.current_state().await?;
        self.require_admin(&state, caller)?;
        if if_not_exists && state.user(&name).is_some() {
            return Ok(state.version());
        }
        let password_hash = hash(secret).await?;
        self.propose(Command::CreateUser { name, password_hash }).await
    }

    /// ALTER USER; a user may set the own password.
    pub(super) async fn alter_user(&self, name: String, secret: Password, caller: &Login) -> Result<u64> {
        let state = self.current_state().await?;
        if name == caller.user {
            // In the newest state, too: who has only the password from before must not set the next one.
            state.user_of(caller)?;
        } else {
            self.require_admin(&state, caller)?;
        }
        let password_hash = hash(secret).await?;
        self.propose(Command::AlterUser { name, password_hash }).await
    }

    /// DROP USER.
    pub(super) async fn drop_user(&self, name: String, if_exists: bool, caller: &Login) -> Result<u64> {
        let state = self.current_state().await?;
        self.require_admin(&state, caller)?;
        if if_exists && state.user(&name).is_none() {
            return Ok(state.version());
        }
        self.propose(Command::DropUser { name }).await
    }
}

async fn hash(secret: Password) -> Result<String> {
    let hashed = tokio::task::spawn_blocking(move || password::hash(&secret.0)).await;
    hashed.map_err(|panic| Error::internal(format!("hashing a password failed: {panic}")))?
}
