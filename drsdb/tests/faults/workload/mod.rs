//! What clients do while things go wrong, and how each finds out afterwards that nothing went lost.
//!
//! A workload is a set of tables, an operation that many workers do again and again, and a check. While faults fire, an
//! operation may fail in two ways: it was refused, and then nothing of it may ever be seen; or nobody knows, and then all
//! of it or nothing may be seen. Each workload keeps what its workers were told, and holds it against what the database
//! says when all is well again.

mod bank;
mod bulk_load;
mod definitions;
mod foreign_keys;
mod list_append;
mod session;
mod unique_keys;

use std::sync::Mutex;

use drsdb_client::Client;
use futures::future::BoxFuture;
use rand::rngs::StdRng;

pub use bank::Bank;
pub use bulk_load::BulkLoad;
pub use definitions::Definitions;
pub use foreign_keys::ForeignKeys;
pub use list_append::ListAppend;
pub use session::{Effect, Notes, RECOVERY_TIME, ask, column, values};
pub use unique_keys::UniqueKeys;

/// Tables, an operation, and a check.
pub trait Workload: Send + Sync + 'static {
    fn name(&self) -> &'static str;

    /// Statements that make the tables.
    fn setup(&self) -> Vec<String>;

    /// The tables that are dropped in the end, in the order in which they were made.
    fn tables(&self) -> Vec<String>;

    fn workers(&self) -> usize;

    /// One operation of worker `worker`. It never fails: what it was told goes into its notes.
    fn operate<'a>(&'a self, worker: usize, client: &'a Client, random: &'a mut StdRng) -> BoxFuture<'a, ()>;

    /// Holds the notes against the database, once all is well again. The text says what is wrong.
    fn verify<'a>(&'a self, client: &'a Client) -> BoxFuture<'a, Result<(), String>>;

    fn notes(&self) -> &Notes;
}

/// Where a table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    Row,
    Column,
}

impl Engine {
    pub fn name(self) -> &'static str {
        match self {
            Engine::Row => "row",
            Engine::Column => "column",
        }
    }
}

/// A lock that a panic elsewhere does not matter to: the test has failed then.
pub fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
