//! Transactions of several statements: [`Client::begin`], and [`Client::transaction`], which runs them again on conflict.
//!
//! A transaction lives on the index server that began it, and every call of it goes there. Only its end may be asked of
//! any index server: the outcome is in the cluster's log, so that a COMMIT whose answer was lost is asked about again.

use std::{
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arrow_flight::sql::{
    ActionBeginSavepointRequest, ActionBeginSavepointResult, ActionBeginTransactionRequest,
    ActionBeginTransactionResult, ActionEndSavepointRequest, ActionEndTransactionRequest, Any, EndTransaction,
    ProstMessageExt,
};
use bytes::Bytes;
use drsdb_proto::{ErrorCode, WireError, ids::new_ulid};
use prost::Message;
use url::Url;

use crate::{
    Client, Error, Result, WriteResult,
    calls::wait,
    error::Failure,
    route::{Kind, Place, Route},
};

/// Flight SQL's `ActionEndSavepointRequest.EndSavepoint`.
#[derive(Debug, Clone, Copy)]
enum EndSavepoint {
    Release = 1,
    Rollback = 2,
}

/// How often [`Client::transaction`] runs its work, at most.
const MAX_RUNS: u32 = 10;

/// The longest pause before the second run; it doubles from run to run, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(640);

/// An open transaction. It is a [`Client`] whose statements, loads and prepared statements belong to the transaction:
/// they see its snapshot and its own writes. Dropping the last clone rolls it back.
///
/// An error of code `conflict` means that another transaction was first, or that the transaction's index server is lost:
/// nothing of it took effect, and it may be run again from its start, as after every error that says so
/// ([`Error::is_retryable`]).
#[derive(Debug, Clone)]
pub struct Transaction {
    client: Client,
}

/// A point in a transaction to go back to. It borrows the transaction, so that it keeps none open that is dropped.
#[derive(Debug)]
pub struct Savepoint<'a> {
    client: &'a Client,
    id: Bytes,
}

/// What clones of a transaction share.
#[derive(Debug)]
pub(crate) struct Open {
    /// The client that began it, outside of it.
    client: Client,
    pub id: Bytes,
    pub server: Url,
    /// It ended, or its server is lost.
    over: AtomicBool,
    /// Its holder has ended it, whatever came of that.
    ended: AtomicBool,
    /// It may have been committed: what it did must not be done again.
    may_be_committed: AtomicBool,
}

impl Client {
    /// Begins a transaction.
    pub async fn begin(&self) -> Result<Transaction> {
        if self.transaction.is_some() {
            return Err(WireError::new(ErrorCode::InvalidArgument, "a transaction within a transaction")
                .with_hint("set a savepoint, or begin the other one at the client")
                .into());
        }
        let body = ActionBeginTransactionRequest {}.as_any().encode_to_vec().into();
        // Begun twice is harmless: one that nobody uses ends by itself.
        let route = Route::anywhere(Kind::Read);
        let (server, answer) = self.action(&route, "BeginTransaction", body).await?;
        let begun: ActionBeginTransactionResult = unpack(answer, &server)?;
        let open = Open {
            client: self.clone(),
            id: begun.transaction_id,
            server,
            over: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            may_be_committed: AtomicBool::new(false),
        };
        Ok(Transaction { client: Client { transaction: Some(Arc::new(open)), ..self.clone() } })
    }

    /// Runs `work` in a transaction and commits it. When it ends in a conflict, whether a statement's or the commit's, or in
    /// `unavailable` before anything was committed, `work` is run again in a new transaction, a few times; any other error
    /// rolls it back and is returned.
    ///
    /// ```no_run
    /// # async fn example(client: drsdb_client::Client) -> drsdb_client::Result<()> {
    /// client
    ///     .transaction(|tx| async move {
    ///         tx.execute("UPDATE account SET balance = balance - 10 WHERE id = 1").await?;
    ///         tx.execute("UPDATE account SET balance = balance + 10 WHERE id = 2").await?;
    ///         Ok(())
    ///     })
    ///     .await
    /// # }
    /// ```
    pub async fn transaction<T, W, F>(&self, work: W) -> Result<T>
    where
        W: Fn(Transaction) -> F,
        F: Future<Output = Result<T>>,
    {
        let mut run = 1;
        loop {
            let error = match self.run_once(&work).await {
                Ok(value) => return Ok(value),
                Err((error, true)) if run < MAX_RUNS => error,
                Err((error, _)) => return Err(error),
            };
            tracing::debug!(%error, run, "the transaction is run again");
            wait(pause_after(run)).await;
            run += 1;
        }
    }

    /// An error says whether the work may be run again.
    async fn run_once<T, W, F>(&self, work: &W) -> Result<T, (Error, bool)>
    where
        W: Fn(Transaction) -> F,
        F: Future<Output = Result<T>>,
    {
        let again = |error: &Error| error.allows_another_run();
        let transaction = self.begin().await.map_err(|error| (error.clone(), again(&error)))?;
        let ended = match work(transaction.clone()).await {
            // The work may have ended it itself.
            Ok(value) if transaction.open().ended.load(Ordering::Acquire) => Ok(value),
            Ok(value) => transaction.clone().commit().await.map(|_| value),
            Err(error) => {
                // The error of the work is the one that matters; a transaction that is left open ends by itself.
                let _ = transaction.clone().rollback().await;
                Err(error)
            }
        };
        let committed = transaction.open().may_be_committed.load(Ordering::Acquire);
        ended.map_err(|error| (error.clone(), again(&error) && !committed))
    }

    /// The way of a call: to the transaction's server inside of one, anywhere outside.
    pub(crate) fn route(&self, kind: Kind) -> Result<Route> {
        let place = match &self.transaction {
            Some(open) if open.over.load(Ordering::Acquire) => return Err(is_over()),
            Some(open) => Place::Only(open.server.clone()),
            None => self.sql_session.transaction().map_or(Place::Anywhere, Place::Only),
        };
        // Within a transaction nothing remembers a statement's id before the commit.
        let kind = match (kind, &place) {
            (Kind::Write(id), Place::Only(_)) => Kind::Single(id),
            _ => kind,
        };
        Ok(Route { kind, place })
    }

    /// The transaction that statements belong to.
    pub(crate) fn transaction_id(&self) -> Option<Bytes> {
        self.transaction.as_ref().map(|open| open.id.clone())
    }

    /// The transaction's server is lost, and so is the transaction.
    pub(crate) fn transaction_lost(&self) {
        match &self.transaction {
            Some(open) => open.over.store(true, Ordering::Release),
            None => self.sql_session.lost(),
        }
    }
}

impl Transaction {
    /// Makes everything that it did visible, at once. When no index server answers, the error says that the outcome is
    /// unknown ([`Error::is_outcome_unknown`]).
    pub async fn commit(self) -> Result<WriteResult> {
        let open = self.open();
        let answer = open.end(EndTransaction::Commit).await?;
        let result = WriteResult::decode(&answer);
        open.client.has_seen(result.version);
        Ok(result)
    }

    /// Forgets everything that it did.
    pub async fn rollback(self) -> Result<()> {
        let open = self.open();
        if open.over.load(Ordering::Acquire) {
            return Ok(());
        }
        open.end(EndTransaction::Rollback).await.map(|_| ())
    }

    /// Sets a savepoint. `name` is for SQL's `ROLLBACK TO`; the answer is enough for everything else.
    pub async fn savepoint(&self, name: &str) -> Result<Savepoint<'_>> {
        let request = ActionBeginSavepointRequest { transaction_id: self.open().id.clone(), name: name.to_owned() };
        let route = self.client.route(Kind::write())?;
        let (server, answer) =
            self.client.action(&route, "BeginSavepoint", request.as_any().encode_to_vec().into()).await?;
        let begun: ActionBeginSavepointResult = unpack(answer, &server)?;
        Ok(Savepoint { client: &self.client, id: begun.savepoint_id })
    }

    fn open(&self) -> &Arc<Open> {
        self.client.transaction.as_ref().expect("a transaction's client is in it")
    }
}

impl Deref for Transaction {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Savepoint<'_> {
    /// Undoes everything since; the savepoint stays.
    pub async fn rollback(&self) -> Result<()> {
        self.end(EndSavepoint::Rollback).await
    }

    /// Forgets the savepoint; what was done since stays.
    pub async fn release(self) -> Result<()> {
        self.end(EndSavepoint::Release).await
    }

    async fn end(&self, action: EndSavepoint) -> Result<()> {
        let request = ActionEndSavepointRequest { savepoint_id: self.id.clone(), action: action as i32 };
        let route = self.client.route(Kind::write())?;
        self.client.action(&route, "EndSavepoint", request.as_any().encode_to_vec().into()).await.map(|_| ())
    }
}

impl Open {
    /// Ends it, once.
    async fn end(&self, action: EndTransaction) -> Result<Bytes> {
        if self.over.swap(true, Ordering::AcqRel) {
            return Err(is_over());
        }
        let route = Route { kind: Kind::End, place: Place::First(self.server.clone()) };
        self.ended.store(true, Ordering::Release);
        self.may_be_committed.store(action == EndTransaction::Commit, Ordering::Release);
        let ended = self.client.action(&route, "EndTransaction", end_request(&self.id, action)).await;
        if ended.as_ref().is_err_and(Error::allows_another_run) {
            self.may_be_committed.store(false, Ordering::Release);
        }
        let (_, answer) = ended?;
        Ok(answer.unwrap_or_default())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if self.over.load(Ordering::Acquire) {
            return;
        }
        // Its keys stay locked until it is rolled back. Where no runtime is left, the server's timeout does it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (client, body) = (self.client.clone(), end_request(&self.id, EndTransaction::Rollback));
            let route = Route { kind: Kind::Single(new_ulid()), place: Place::Only(self.server.clone()) };
            runtime.spawn(async move {
                let _ = client.action(&route, "EndTransaction", body).await;
            });
        }
    }
}

fn end_request(id: &Bytes, action: EndTransaction) -> Bytes {
    ActionEndTransactionRequest { transaction_id: id.clone(), action: action.into() }.as_any().encode_to_vec().into()
}

fn is_over() -> Error {
    WireError::new(ErrorCode::Conflict, "the transaction is over")
        .with_hint("run it again from its start")
        .with_field("transaction", "over")
        .into()
}

fn unpack<M: ProstMessageExt>(answer: Option<Bytes>, server: &Url) -> Result<M> {
    let broken = |what: String| Failure::broken_data(&what, server).error;
    let any = Any::decode(answer.unwrap_or_default()).map_err(|error| broken(error.to_string()))?;
    any.unpack()?.ok_or_else(|| broken(format!("{:?} for {}", any.type_url, M::type_url())))
}

/// Random, so that transactions that met once do not meet again.
fn pause_after(run: u32) -> Duration {
    let longest = FIRST_PAUSE.saturating_mul(1 << run.min(16)).min(LONGEST_PAUSE);
    longest.mul_f64((new_ulid().random() % 1000) as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_are_bounded() {
        for run in 1..40 {
            assert!(pause_after(run) <= LONGEST_PAUSE.min(FIRST_PAUSE * (1 << run.min(16))));
        }
    }
}
