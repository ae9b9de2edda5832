//! The transactions that run on this index server, as `drsdb.transactions` shows them.

use std::sync::{Arc, atomic::Ordering};

use drsdb_core::{Ulid, ids::unix_ms, v1};

use super::{OpenTransaction, Sessions, Transaction};

/// A statement without a transaction of its client's is listed while this lives.
#[derive(Debug)]
#[must_use = "a statement is listed while this lives"]
pub struct Listed {
    sessions: Arc<Sessions>,
    transaction: Ulid,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.sessions.alone.lock().remove(&self.transaction);
    }
}

impl Sessions {
    /// Lists the transaction that a statement or a load is by itself.
    pub fn list(self: &Arc<Self>, transaction: &Transaction, user: &str) -> Listed {
        let running = v1::RunningTransaction {
            id: transaction.id().to_string(),
            user: user.to_owned(),
            state: "active".to_owned(),
            begun_unix_ms: unix_ms(),
            snapshot: transaction.begun().version(),
            statements: 1,
            read_only: false,
            idle_ms: 0,
        };
        self.alone.lock().insert(transaction.id(), running);
        Listed { sessions: Arc::clone(self), transaction: transaction.id() }
    }

    /// What runs here, the oldest first: what clients hold open, and statements that are transactions by themselves.
    pub fn running(&self) -> Vec<v1::RunningTransaction> {
        let open: Vec<_> = self.open.lock().values().cloned().collect();
        let mut running: Vec<_> = open.iter().map(|open| open.shown()).collect();
        running.extend(self.alone.lock().values().cloned());
        running.sort_by(|a, b| (a.begun_unix_ms, &a.id).cmp(&(b.begun_unix_ms, &b.id)));
        running
    }
}

impl OpenTransaction {
    fn shown(&self) -> v1::RunningTransaction {
        let state = match self.state.try_lock() {
            Err(_) => "active",
            Ok(held) if held.as_ref().is_some_and(|running| running.doomed.is_some()) => "failed",
            Ok(_) => "idle",
        };
        let idle = if state == "active" { 0 } else { self.used.lock().elapsed().as_millis() };
        v1::RunningTransaction {
            id: self.id.to_string(),
            user: self.login.user.clone(),
            state: state.to_owned(),
            begun_unix_ms: self.begun_unix_ms,
            snapshot: self.snapshot,
            statements: self.statements.load(Ordering::Relaxed),
            read_only: self.is_read_only(),
            idle_ms: u64::try_from(idle).unwrap_or(u64::MAX),
        }
    }
}
