//! A panic in a query must end it in an error. Tasks that die by one end their streams early, and a stream that ends early
//! looks like one that has ended: so panics are counted, and a query during which there was one is not a success.

use std::sync::{
    Once,
    atomic::{AtomicU64, Ordering},
};

use drsdb_core::Error;

static PANICS: AtomicU64 = AtomicU64::new(0);
static HOOK: Once = Once::new();

/// Counts the panics of this process from now on, besides whatever else is done about them.
pub(super) fn count_from_now_on() {
    HOOK.call_once(|| {
        let next = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.fetch_add(1, Ordering::SeqCst);
            next(info);
        }));
    });
}

/// Since when a piece of work watches.
#[derive(Debug, Clone, Copy)]
pub(super) struct Watch(u64);

impl Watch {
    /// Begins to watch.
    pub(super) fn begin() -> Self {
        Self(PANICS.load(Ordering::SeqCst))
    }

    /// An error when anything on this server has panicked since. It may have been another query: this one can be run
    /// again, and a wrong result cannot be taken back.
    pub(super) fn check(self) -> Result<(), Error> {
        if PANICS.load(Ordering::SeqCst) == self.0 {
            return Ok(());
        }
        Err(Error::internal("a part of a query died of a defect while this one ran; the server's log says where"))
    }
}
