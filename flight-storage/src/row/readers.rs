//! Connections for readers, kept for the next one. Any number of scans may run; a few idle connections stay open.

use std::{
    ops::Deref,
    path::{Path, PathBuf},
    sync::Arc,
};

use drsdb_core::Result;
use parking_lot::Mutex;
use rusqlite::Connection;

use super::{error::Context, file::open_reader, health::Health};

/// Idle connections kept, each with its page cache.
const MAX_IDLE: usize = 8;

/// How many instructions of SQLite's machine pass between two questions whether anybody still wants the answer; well
/// below a millisecond.
const INSTRUCTIONS_PER_CHECK: i32 = 2000;

/// The pool.
#[derive(Debug)]
pub(crate) struct Readers {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
    health: Arc<Health>,
}

impl Readers {
    pub(crate) fn new(path: &Path, health: Arc<Health>) -> Arc<Self> {
        Arc::new(Self { path: path.to_owned(), idle: Mutex::new(Vec::new()), health })
    }

    /// Whether the file can be believed.
    pub(crate) fn health(&self) -> &Health {
        &self.health
    }

    /// A connection of one's own until it is dropped.
    pub(crate) fn lease(self: &Arc<Self>) -> Result<Reader> {
        self.health.check()?;
        let idle = self.idle.lock().pop();
        let connection = match idle {
            Some(connection) => connection,
            None => open_reader(&self.path)?,
        };
        Ok(Reader { connection: Some(connection), pool: Arc::clone(self) })
    }
}

/// A leased connection.
#[derive(Debug)]
pub(crate) struct Reader {
    /// `None` only while being dropped.
    connection: Option<Connection>,
    pool: Arc<Readers>,
}

impl Reader {
    /// Whether the file can be believed.
    pub(crate) fn health(&self) -> &Health {
        self.pool.health()
    }

    /// Has statements on this connection stop with an error soon after `unwanted` says so.
    pub(crate) fn stop_when(&mut self, unwanted: impl FnMut() -> bool + Send + 'static) -> Result<()> {
        let connection = self.connection.as_mut().expect("a reader has its connection until it is dropped");
        connection.progress_handler(INSTRUCTIONS_PER_CHECK, Some(unwanted)).context("preparing a scan")
    }
}

impl Deref for Reader {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.connection.as_ref().expect("a reader has its connection until it is dropped")
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let Some(mut connection) = self.connection.take() else { return };
        // A connection in doubt is closed and not kept.
        if connection.progress_handler(0, None::<fn() -> bool>).is_err() || !connection.is_autocommit() {
            return;
        }
        let mut idle = self.pool.idle.lock();
        if idle.len() < MAX_IDLE {
            idle.push(connection);
        }
    }
}
