//! CREATE, ALTER and DROP USER: who may, and hashing off the async threads.

use drsdb_core::{Error, Result, security::password};

use super::{FlightSqlServer, service::Caller};
use crate::{catalog::Command, statement::Password};

impl FlightSqlServer {
    /// CREATE USER.
    pub(super) async fn create_user(
        &self,
        name: String,
        secret: Password,
        if_not_exists: bool,
        caller: &Caller,
    ) -> Result<u64> {
        let (caller, statement) = (&caller.login, caller.statement);
        let state = self.current_state().await?;
        state.require_admin(caller)?;
        if if_not_exists && state.user(&name).is_some() {
            return Ok(state.version());
        }
        let password_hash = hash(secret).await?;
        self.propose(Command::CreateUser { name, password_hash, by: Some(caller.clone()) }, statement).await
    }

    /// ALTER USER; a user may set the own password.
    pub(super) async fn alter_user(&self, name: String, secret: Password, caller: &Caller) -> Result<u64> {
        let (caller, statement) = (&caller.login, caller.statement);
        let state = self.current_state().await?;
        if name == caller.user {
            // In the newest state, too: who has only the password from before must not set the next one.
            state.user_of(caller)?;
        } else {
            state.require_admin(caller)?;
        }
        let password_hash = hash(secret).await?;
        self.propose(Command::AlterUser { name, password_hash, by: Some(caller.clone()) }, statement).await
    }

    /// DROP USER.
    pub(super) async fn drop_user(&self, name: String, if_exists: bool, caller: &Caller) -> Result<u64> {
        let (caller, statement) = (&caller.login, caller.statement);
        let state = self.current_state().await?;
        state.require_admin(caller)?;
        if if_exists && state.user(&name).is_none() {
            return Ok(state.version());
        }
        self.propose(Command::DropUser { name, by: Some(caller.clone()) }, statement).await
    }
}

async fn hash(secret: Password) -> Result<String> {
    let hashed = tokio::task::spawn_blocking(move || password::hash(&secret.0)).await;
    hashed.map_err(|panic| Error::internal(format!("hashing a password failed: {panic}")))?
}
