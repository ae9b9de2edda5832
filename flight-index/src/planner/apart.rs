//! Planning happens on threads of its own: it returns to the runtime hardly ever, may take long, and must starve neither the
//! service nor Raft, whose voters would elect another leader. Each statement has a thread, so that long ones leave the
//! processor to short ones.

use std::future::Future;

use drsdb_core::{Error, ErrorCode, Result, WireError};
use tokio::{runtime::Handle, sync::Semaphore};
use tokio_util::sync::CancellationToken;

/// Statements that are planned at a time; more wait. Each may hold a few megabytes.
static PLANS: Semaphore = Semaphore::const_new(64);
/// Statements about the catalog and about constants that are answered at a time: these may run for as long as a statement may, and
/// are not to hold up plans.
static ANSWERS: Semaphore = Semaphore::const_new(64);

/// Passes over plans recurse, and not all of them make room: what the longest statement that is let through needs, and more. Pages
/// that are not touched cost nothing.
const STACK_BYTES: usize = 64 << 20;

/// Runs `plan` on a thread for it. When this is dropped, `plan` ends where it next waits for something.
pub(super) async fn apart<T: Send + 'static>(plan: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    on_a_thread(&PLANS, plan).await
}

/// The same for what computes rows.
pub(super) async fn answer_apart<T: Send + 'static>(
    answer: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    on_a_thread(&ANSWERS, answer).await
}

async fn on_a_thread<T: Send + 'static>(
    threads: &'static Semaphore,
    plan: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let thread = threads.acquire().await.map_err(|_| Error::internal("the planner has stopped"))?;
    let (runtime, dropped) = (Handle::current(), CancellationToken::new());
    let _guard = dropped.clone().drop_guard();
    let planned = tokio::task::spawn_blocking(move || {
        let _thread = thread;
        stacker::grow(STACK_BYTES, || runtime.block_on(dropped.run_until_cancelled_owned(plan)))
    });
    match planned.await {
        Ok(Some(planned)) => planned,
        Ok(None) => Err(WireError::new(ErrorCode::Cancelled, "nobody waits for the statement any more").into()),
        Err(panic) => Err(Error::internal(format!("planning failed: {panic}"))),
    }
}
