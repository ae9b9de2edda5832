//! Transactions that clients hold open between requests.
//!
//! A client names its transaction by a [`Handle`], in Flight SQL's `transaction_id` or in the session's cookie. It belongs to
//! the login that began it and to this index server. One that nobody uses for its idle timeout is undone, and so is that of a
//! user who was dropped or got another password since.
//!
//! A statement that fails is undone alone, and the transaction goes on. A conflict is different: the transaction's snapshot
//! is too old to commit, so that every statement but ROLLBACK is refused from then on.

use std::{
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use drsdb_core::{Error, ErrorCode, Result, Ulid, WireError, ids::unix_ms, security::Login, v1};
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::MutexGuard;

use super::{Committed, Transaction, Writes};
use crate::catalog::{CatalogState, Command, Outcome, Response};

/// How often idle transactions are looked for.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Transactions that one index server keeps open.
const MAX_OPEN: usize = 10_000;

/// How a client names its transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handle {
    /// The transaction.
    pub id: Ulid,
    /// The index server that has it.
    pub server: String,
}

impl Handle {
    /// As clients carry it.
    pub fn encode(&self) -> Vec<u8> {
        v1::TransactionHandle { transaction_id: self.id.to_string(), server: self.server.clone() }.encode_to_vec()
    }

    /// Back from what a client sends.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let broken = || {
            WireError::new(ErrorCode::InvalidArgument, "not the handle of a transaction")
                .with_hint("begin a transaction, and send the handle that it answers with")
        };
        let handle = v1::TransactionHandle::decode(bytes).map_err(|_| broken())?;
        let id = Ulid::from_string(&handle.transaction_id).map_err(|_| broken())?;
        Ok(Self { id, server: handle.server })
    }
}

/// How a transaction was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Modes {
    /// READ ONLY, READ WRITE; `None`: not said.
    pub read_only: Option<bool>,
}

/// How long a client may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Between two statements of a transaction; `None`: for ever.
    pub idle: Option<Duration>,
    /// For one statement; `None`: for ever.
    pub statement: Option<Duration>,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { idle: Some(Duration::from_secs(60)), statement: None }
    }
}

/// A transaction that a client holds open.
#[derive(Debug)]
pub struct OpenTransaction {
    pub(super) id: Ulid,
    pub(super) login: Login,
    idle: Option<Duration>,
    pub(super) begun_unix_ms: u64,
    /// The version that it reads.
    pub(super) snapshot: u64,
    /// Statements so far.
    pub(super) statements: AtomicU64,
    read_only: AtomicBool,
    pub(super) used: Mutex<Instant>,
    pub(super) state: tokio::sync::Mutex<Option<Running>>,
}

/// What only one statement at a time may touch.
#[derive(Debug)]
pub struct Running {
    /// The transaction.
    pub transaction: Transaction,
    savepoints: Vec<Savepoint>,
    /// How many have been set.
    savepoints_set: u64,
    /// Why it can only be rolled back.
    pub(super) doomed: Option<WireError>,
}

#[derive(Debug)]
struct Savepoint {
    number: u64,
    name: String,
    /// The last statement before it.
    sequence: u32,
}

/// A statement's hold on its transaction.
pub struct Held<'a> {
    open: &'a OpenTransaction,
    guard: MutexGuard<'a, Option<Running>>,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        *self.open.used.lock() = Instant::now();
    }
}

impl Held<'_> {
    /// The transaction.
    pub fn transaction(&mut self) -> &mut Transaction {
        &mut self.guard.as_mut().expect("a hold is made on a transaction that is there").transaction
    }

    fn running(&mut self) -> &mut Running {
        self.guard.as_mut().expect("a hold is made on a transaction that is there")
    }

    /// Undoes a statement that failed, and notes when the whole transaction has. Says whether the statement may be run again
    /// for all that is known of the transaction.
    pub async fn failed(&mut self, before: u32, error: &Error) -> bool {
        let running = self.running();
        running.transaction.rollback_to(before).await;
        if error.code() == ErrorCode::Conflict {
            running.doomed = Some(error.to_wire());
        }
        running.doomed.is_none() && !running.transaction.is_spoiled()
    }

    /// SAVEPOINT; its number in the transaction, which no other one has.
    pub fn savepoint(&mut self, name: String) -> u64 {
        let running = self.running();
        running.savepoints_set += 1;
        let (number, sequence) = (running.savepoints_set, running.transaction.sequence());
        running.savepoints.push(Savepoint { number, name, sequence });
        number
    }

    /// RELEASE: forgets the savepoint and those after it. Without a number, the last one of the name is meant.
    pub fn release(&mut self, name: &str, number: Option<u64>) -> Result<()> {
        let running = self.running();
        let at = position(&running.savepoints, name, number)?;
        running.savepoints.truncate(at);
        Ok(())
    }

    /// ROLLBACK TO: undoes what came after the savepoint, which stays. Without a number, the last one of the name is meant.
    pub async fn rollback_to(&mut self, name: &str, number: Option<u64>) -> Result<()> {
        let running = self.running();
        let at = position(&running.savepoints, name, number)?;
        running.savepoints.truncate(at + 1);
        let sequence = running.savepoints[at].sequence;
        running.transaction.rollback_to(sequence).await;
        Ok(())
    }
}

fn position(savepoints: &[Savepoint], name: &str, number: Option<u64>) -> Result<usize> {
    let is_meant = |known: &Savepoint| number.map_or(known.name == name, |number| known.number == number);
    savepoints.iter().rposition(is_meant).ok_or_else(|| {
        let names: Vec<&str> = savepoints.iter().map(|known| known.name.as_str()).collect();
        let error = WireError::new(ErrorCode::NotFound, format!("there is no savepoint {name}"));
        match drsdb_core::nearest_name(name, names.iter().copied()) {
            // Another one may have the name.
            _ if number.is_some() => error.with_hint("it was released, or undone with what came before it"),
            Some(near) => error.with_hint(format!("did you mean {near}?")),
            None => error.with_hint(format!("set it first: SAVEPOINT {name}")),
        }
        .into()
    })
}

impl OpenTransaction {
    /// What the client calls it.
    pub fn id(&self) -> Ulid {
        self.id
    }

    /// Whether it refuses to write.
    pub fn is_read_only(&self) -> bool {
        self.read_only.load(Ordering::Relaxed)
    }

    /// SET TRANSACTION.
    pub fn set_modes(&self, modes: Modes) {
        if let Some(read_only) = modes.read_only {
            self.read_only.store(read_only, Ordering::Relaxed);
        }
    }

    /// Holds it for a statement. Waits for the statement before, if that still runs.
    pub async fn hold(&self) -> Result<Held<'_>> {
        let mut held = self.hold_doomed().await?;
        let running = held.running();
        if let Some(cause) = &running.doomed {
            return Err(doomed(self.id, cause, "ROLLBACK, then run the transaction again"));
        }
        running.transaction.settle_unfinished().await;
        self.statements.fetch_add(1, Ordering::Relaxed);
        Ok(held)
    }

    async fn hold_doomed(&self) -> Result<Held<'_>> {
        let guard = self.state.lock().await;
        *self.used.lock() = Instant::now();
        if guard.is_none() {
            return Err(over(self.id));
        }
        Ok(Held { open: self, guard })
    }
}

/// The transactions that are open here.
#[derive(Debug)]
pub struct Sessions {
    writes: Arc<Writes>,
    pub(super) open: Mutex<HashMap<Ulid, Arc<OpenTransaction>>>,
    /// Statements that are transactions by themselves, as they are shown.
    pub(super) alone: Mutex<HashMap<Ulid, v1::RunningTransaction>>,
    watched: AtomicBool,
}

impl Sessions {
    /// None yet.
    pub fn new(writes: Arc<Writes>) -> Arc<Self> {
        Arc::new(Self { writes, open: Mutex::default(), alone: Mutex::default(), watched: AtomicBool::new(false) })
    }

    /// BEGIN, with `state` as what the transaction sees.
    pub fn begin(
        self: &Arc<Self>,
        state: Arc<CatalogState>,
        login: &Login,
        modes: Modes,
        timeouts: Timeouts,
    ) -> Result<Handle> {
        let snapshot = state.version();
        let transaction = self.writes.begin(state);
        let id = transaction.id();
        let running = Running { transaction, savepoints: Vec::new(), savepoints_set: 0, doomed: None };
        let open = OpenTransaction {
            id,
            login: login.clone(),
            idle: timeouts.idle,
            begun_unix_ms: unix_ms(),
            snapshot,
            statements: AtomicU64::new(0),
            read_only: AtomicBool::new(modes.read_only.unwrap_or(false)),
            used: Mutex::new(Instant::now()),
            state: tokio::sync::Mutex::new(Some(running)),
        };
        let mut all = self.open.lock();
        if all.len() >= MAX_OPEN {
            return Err(WireError::new(ErrorCode::ResourceExhausted, format!("{MAX_OPEN} transactions are open here"))
                .with_hint("end those that are not used any more")
                .into());
        }
        all.insert(id, Arc::new(open));
        drop(all);
        if !self.watched.swap(true, Ordering::Relaxed) {
            tokio::spawn(end_unused(Arc::downgrade(self)));
        }
        Ok(Handle { id, server: self.writes.coordinator.clone() })
    }

    /// The transaction that a client names.
    pub fn find(&self, handle: &Handle, login: &Login) -> Result<Arc<OpenTransaction>> {
        let found = self.open.lock().get(&handle.id).cloned();
        match found {
            Some(open) if open.login == *login => Ok(open),
            // It is about to be undone, see `take_ended`.
            Some(open) if open.login.user == login.user => Err(over(handle.id)),
            Some(_) => Err(Error::new(
                ErrorCode::PermissionDenied,
                format!("transaction {} belongs to another user", handle.id),
            )),
            None if handle.server != self.writes.coordinator => Err(WireError::new(
                ErrorCode::Conflict,
                format!("transaction {} lives on the index server {}", handle.id, handle.server),
            )
            .with_hint("send its statements there; if that server is gone, so is the transaction")
            .with_field("server", &handle.server)
            .with_field("transaction", handle.id)
            .into()),
            None => Err(over(handle.id)),
        }
    }

    /// COMMIT. One that is not here any more is answered with its outcome, and without one it never commits.
    pub async fn commit(&self, handle: &Handle, login: &Login) -> Result<Committed> {
        match self.find(handle, login) {
            Ok(open) => {
                self.open.lock().remove(&handle.id);
                // From here on nobody else finds it; a statement that still runs comes first.
                let mut guard = open.state.lock().await;
                let running = guard.take().ok_or_else(|| over(handle.id))?;
                if let Some(cause) = &running.doomed {
                    running.transaction.abort().await;
                    return Err(doomed(handle.id, cause, "run the transaction again from its start"));
                }
                // Its own id is remembered as the statement's, so that a client that lost the answer can ask again.
                running.transaction.commit(Some(handle.id), None).await
            }
            Err(error) if error.code() == ErrorCode::PermissionDenied => Err(error),
            Err(_) => self.outcome_of(handle).await,
        }
    }

    async fn outcome_of(&self, handle: &Handle) -> Result<Committed> {
        let catalog = self.writes.catalog();
        catalog.linearize().await?;
        let state = catalog.state();
        match state.statement_outcome(handle.id).or(state.outcome(handle.id)) {
            Some(Outcome::Committed { version, rows }) => return Ok(Committed { version, repeated: Some(rows) }),
            Some(Outcome::Aborted) => return Err(over(handle.id)),
            None if state.has_forgotten(handle.id) => return Err(forgotten(handle.id)),
            None => {}
        }
        match catalog.propose(Command::AbortTransaction { transaction: handle.id }).await? {
            (_, Response::Transaction(Outcome::Committed { version, rows })) => {
                Ok(Committed { version, repeated: Some(rows) })
            }
            _ => Err(over(handle.id)),
        }
    }

    /// ROLLBACK. One that is not here any more is rolled back already, or will be.
    pub async fn rollback(&self, handle: &Handle, login: &Login) -> Result<()> {
        match self.find(handle, login) {
            Ok(open) => {
                self.open.lock().remove(&handle.id);
                if let Some(running) = open.state.lock().await.take() {
                    running.transaction.abort().await;
                }
                Ok(())
            }
            Err(error) if error.code() == ErrorCode::PermissionDenied => Err(error),
            Err(_) => Ok(()),
        }
    }

    /// Takes out the transactions that nobody has used for long, and those whose login counts no more.
    fn take_ended(&self) -> Vec<Arc<OpenTransaction>> {
        let state = self.writes.catalog().state();
        let mut all = self.open.lock();
        let ended = |open: &&Arc<OpenTransaction>| {
            let idle = open.idle.is_some_and(|idle| open.used.lock().elapsed() > idle);
            // A statement that runs comes to its end first.
            (idle || state.user_of(&open.login).is_err()) && open.state.try_lock().is_ok()
        };
        let ended: Vec<_> = all.values().filter(ended).cloned().collect();
        for open in &ended {
            all.remove(&open.id);
        }
        ended
    }
}

async fn end_unused(sessions: Weak<Sessions>) {
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(sessions) = sessions.upgrade() else { return };
        for open in sessions.take_ended() {
            let user = &open.login.user;
            tracing::info!(transaction = %open.id, user, "a transaction was idle for too long, or its login counts no more");
            if let Some(running) = open.state.lock().await.take() {
                running.transaction.abort().await;
            }
        }
    }
}

fn over(id: Ulid) -> Error {
    WireError::new(ErrorCode::Conflict, format!("transaction {id} is over: nothing of it took effect"))
        .with_hint(
            "it was idle for too long (SET idle_in_transaction_timeout), its index server was restarted, or its user has \
             another password: run it again",
        )
        .with_field("transaction", id)
        .into()
}

fn forgotten(id: Ulid) -> Error {
    WireError::new(ErrorCode::Unavailable, format!("what came of transaction {id} is not known any more"))
        .with_hint("look whether its changes are there before you run it again")
        .with_field("transaction", id)
        .with_field("outcome", "unknown")
        .into()
}

fn doomed(id: Ulid, cause: &WireError, hint: &str) -> Error {
    WireError::new(
        ErrorCode::Conflict,
        format!("transaction {id} cannot commit any more, it met a conflict: {}", cause.message),
    )
    .with_hint(hint)
    .with_field("transaction", id)
    .into()
}
