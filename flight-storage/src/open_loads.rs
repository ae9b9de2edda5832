//! The calls that are staging something now, so that what undoes their transaction or their statement undoes them as well:
//! a call whose sender went away may still be at work, and end after what undoes it has come.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use drsdb_core::{Error, ErrorCode, Result, Ulid};
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Transactions whose undone statements are remembered. A call that comes later than so many has nobody that waits for it.
const REMEMBERED: usize = 10_000;

/// The calls of one server. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct OpenLoads(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    calls: Mutex<Calls>,
    ended: Notify,
}

#[derive(Debug, Default)]
struct Calls {
    open: HashMap<Ulid, Open>,
    /// The last statement that was undone. Numbers are not used again, so nothing up to it may come any more.
    undone: BTreeMap<Ulid, u32>,
}

#[derive(Debug, Default)]
struct Open {
    writers: usize,
    aborted: bool,
}

impl OpenLoads {
    /// Whether rows of the transaction are coming in.
    pub fn is_open(&self, transaction: Ulid) -> bool {
        self.0.calls.lock().open.contains_key(&transaction)
    }

    /// A call begins to stage the statement `sequence`; an error if that was undone.
    pub(crate) fn enter(&self, transaction: Ulid, sequence: u32) -> Result<Writing> {
        let mut calls = self.0.calls.lock();
        if calls.undone.get(&transaction).is_some_and(|last| sequence <= *last) {
            return Err(Error::new(ErrorCode::Cancelled, "the statement was undone"));
        }
        calls.open.entry(transaction).or_default().writers += 1;
        Ok(Writing { loads: self.clone(), transaction })
    }

    /// Marks the open calls of a transaction, so that they undo what they staged.
    pub(crate) fn abort(&self, transaction: Ulid) {
        if let Some(open) = self.0.calls.lock().open.get_mut(&transaction) {
            open.aborted = true;
        }
    }

    /// Lets no call of a statement up to `last` begin any more, and waits until those that have begun have ended: what they
    /// have staged can be undone then.
    pub(crate) async fn undo(&self, transaction: Ulid, last: u32) {
        {
            let mut calls = self.0.calls.lock();
            let known = calls.undone.entry(transaction).or_default();
            *known = last.max(*known);
            if calls.undone.len() > REMEMBERED {
                calls.undone.pop_first();
            }
        }
        loop {
            let ended = self.0.ended.notified();
            if !self.is_open(transaction) {
                return;
            }
            ended.await;
        }
    }

    /// The transaction is decided: no call of it counts any more.
    pub(crate) fn forget(&self, transaction: Ulid) {
        self.0.calls.lock().undone.remove(&transaction);
    }
}

/// One call, for as long as it lives.
#[derive(Debug)]
pub(crate) struct Writing {
    loads: OpenLoads,
    transaction: Ulid,
}

impl Writing {
    /// Whether its transaction was aborted meanwhile.
    pub(crate) fn is_aborted(&self) -> bool {
        self.loads.0.calls.lock().open.get(&self.transaction).is_some_and(|open| open.aborted)
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        let mut calls = self.loads.0.calls.lock();
        if let Some(open) = calls.open.get_mut(&self.transaction) {
            open.writers -= 1;
            if open.writers == 0 {
                calls.open.remove(&self.transaction);
            }
        }
        drop(calls);
        self.loads.0.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn an_undo_waits_for_calls_that_are_at_work_and_lets_no_more_of_them_begin() {
        let loads = OpenLoads::default();
        let transaction = Ulid(7);
        let at_work = loads.enter(transaction, 3).unwrap();
        let mut undo = Box::pin(loads.undo(transaction, 4));
        assert!(undo.as_mut().now_or_never().is_none(), "the call may still stage something");
        assert_eq!(loads.enter(transaction, 4).unwrap_err().code(), ErrorCode::Cancelled);
        let later = loads.enter(transaction, 5).unwrap();
        drop(later);
        drop(at_work);
        undo.await;
        // The next statement is none of those.
        drop(loads.enter(transaction, 5).unwrap());
        loads.forget(transaction);
        drop(loads.enter(transaction, 4).unwrap());
    }

    #[test]
    fn an_abort_marks_those_that_are_at_work() {
        let loads = OpenLoads::default();
        let at_work = loads.enter(Ulid(7), 1).unwrap();
        loads.abort(Ulid(7));
        assert!(at_work.is_aborted() && loads.is_open(Ulid(7)));
        drop(at_work);
        assert!(!loads.is_open(Ulid(7)));
    }
}
