//! BEGIN, COMMIT, ROLLBACK and savepoints: as SQL, where the session's cookie has the transaction, and as Flight SQL's
//! actions, where the client does.

use arrow_flight::sql::{
    ActionBeginSavepointRequest, ActionBeginSavepointResult, ActionBeginTransactionResult, ActionEndSavepointRequest,
    ActionEndTransactionRequest,
};
use drsdb_core::{ErrorCode, Result, WireError, v1};
use prost::Message;

use super::{FlightSqlServer, service::Caller};
use crate::{
    statement::TransactionStatement,
    transaction::{Committed, Handle, Modes, OpenTransaction},
};

/// Flight SQL's numbers for both ends: of transactions, commit and roll back; of savepoints, release and roll back.
const FIRST_END: i32 = 1;
const ROLLBACK: i32 = 2;

impl FlightSqlServer {
    /// Carries out a statement about the transaction; the answer is the commit version, of a COMMIT, else 0.
    pub(super) async fn step(&self, step: TransactionStatement, caller: &mut Caller) -> Result<u64> {
        match step {
            TransactionStatement::Begin(modes) => {
                if self.open_transaction(caller).is_ok_and(|open| open.is_some()) {
                    return Err(WireError::new(ErrorCode::InvalidArgument, "a transaction is open already")
                        .with_hint("COMMIT or ROLLBACK it first; for a part of it, write SAVEPOINT name")
                        .into());
                }
                let handle = self.begin(modes, caller).await?;
                caller.session.set_transaction(Some(handle));
            }
            TransactionStatement::Commit => {
                // Who was told that nobody knows what came of it asks again.
                let asked_again = caller.session.ended_by(caller.statement).cloned();
                let handle = asked_again.map_or_else(|| named(caller, "COMMIT"), Ok)?;
                caller.session.set_transaction(None);
                let committed = self.sessions.commit(&handle, &caller.login).await;
                let unknown = committed.as_ref().is_err_and(|error| error.code() == ErrorCode::Unavailable);
                let ended = caller.statement.filter(|_| unknown).map(|statement| (statement, handle));
                caller.session.set_ended(ended);
                return Ok(committed?.version);
            }
            TransactionStatement::Rollback => {
                let handle = named(caller, "ROLLBACK")?;
                caller.session.set_transaction(None);
                self.sessions.rollback(&handle, &caller.login).await?;
            }
            TransactionStatement::Savepoint(name) => {
                self.required(caller)?.hold().await?.savepoint(name);
            }
            TransactionStatement::RollbackTo(name) => {
                self.required(caller)?.hold().await?.rollback_to(&name, None).await?;
            }
            TransactionStatement::Release(name) => self.required(caller)?.hold().await?.release(&name, None)?,
            TransactionStatement::SetModes(modes) => self.required(caller)?.set_modes(modes),
        }
        Ok(0)
    }

    async fn begin(&self, modes: Modes, caller: &Caller) -> Result<Handle> {
        // One that writes begins at the newest state: an older snapshot would only meet more conflicts.
        let state = match modes.read_only {
            Some(true) => self.state_to_read(&caller.session).await?,
            _ => self.current_state().await?,
        };
        self.sessions.begin(state, &caller.login, modes, caller.session.timeouts())
    }

    fn required(&self, caller: &Caller) -> Result<std::sync::Arc<OpenTransaction>> {
        self.open_transaction(caller)?.ok_or_else(|| no_transaction("this statement"))
    }

    /// BeginTransaction.
    pub(super) async fn begin_transaction(&self, caller: &Caller) -> Result<ActionBeginTransactionResult> {
        let handle = self.begin(Modes::default(), caller).await?;
        Ok(ActionBeginTransactionResult { transaction_id: handle.encode().into() })
    }

    /// EndTransaction; the answer to a commit is a `WriteResult`, which standard clients do not look for.
    pub(super) async fn end_transaction(
        &self,
        request: &ActionEndTransactionRequest,
        caller: &Caller,
    ) -> Result<Option<Vec<u8>>> {
        let handle = Handle::decode(&request.transaction_id)?;
        match request.action {
            FIRST_END => {
                let Committed { version, repeated } = self.sessions.commit(&handle, &caller.login).await?;
                Ok(Some(v1::WriteResult { rows: repeated.unwrap_or(0), version }.encode_to_vec()))
            }
            ROLLBACK => {
                self.sessions.rollback(&handle, &caller.login).await?;
                Ok(None)
            }
            _ => Err(no_end()),
        }
    }

    /// BeginSavepoint.
    pub(super) async fn begin_savepoint(
        &self,
        request: ActionBeginSavepointRequest,
        caller: &Caller,
    ) -> Result<ActionBeginSavepointResult> {
        let handle = Handle::decode(&request.transaction_id)?;
        let number = self.sessions.find(&handle, &caller.login)?.hold().await?.savepoint(request.name.clone());
        let savepoint = v1::SavepointHandle {
            transaction: Some(v1::TransactionHandle { transaction_id: handle.id.to_string(), server: handle.server }),
            name: request.name,
            number,
        };
        Ok(ActionBeginSavepointResult { savepoint_id: savepoint.encode_to_vec().into() })
    }

    /// EndSavepoint.
    pub(super) async fn end_savepoint(&self, request: &ActionEndSavepointRequest, caller: &Caller) -> Result<()> {
        let broken = || WireError::new(ErrorCode::InvalidArgument, "not the handle of a savepoint");
        let savepoint = v1::SavepointHandle::decode(&request.savepoint_id[..]).map_err(|_| broken())?;
        let transaction = savepoint.transaction.ok_or_else(broken)?;
        let handle = Handle::decode(&transaction.encode_to_vec())?;
        let open = self.sessions.find(&handle, &caller.login)?;
        let mut held = open.hold().await?;
        let number = Some(savepoint.number);
        match request.action {
            FIRST_END => held.release(&savepoint.name, number),
            ROLLBACK => held.rollback_to(&savepoint.name, number).await,
            _ => Err(no_end()),
        }
    }
}

/// The transaction that COMMIT or ROLLBACK ends.
fn named(caller: &Caller, what: &str) -> Result<Handle> {
    caller.transaction().cloned().ok_or_else(|| no_transaction(what))
}

fn no_transaction(what: &str) -> drsdb_core::Error {
    WireError::new(ErrorCode::InvalidArgument, format!("no transaction is open for {what}"))
        .with_hint(
            "BEGIN one first, on the same connection; a driver of another make may have to be told to keep cookies",
        )
        .into()
}

fn no_end() -> drsdb_core::Error {
    WireError::new(ErrorCode::InvalidArgument, "the action does not say how to end it").into()
}
