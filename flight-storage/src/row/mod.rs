//! The row engine: rows in one SQLite file for each storage server, for point access and small writes.
//!
//! # Why one file, and not one for each table
//!
//! What limits small writes is the fsync, and a file has one WAL and so one fsync: with one file, everything that is
//! staged and committed at the same time, in whatever tables and shards, shares it. With a file for each table, a
//! transaction over five tables would pay five, and its commit could not be one atomic step. The price is that dropping a
//! table does not unlink a file. It is made cheap in another way: the drop itself only marks the shards, in one small
//! transaction, and [`writer`] gives their pages back to the file later, one shard at a time between other groups. They
//! are used again for new rows; the file does not shrink.
//!
//! # Life of a row
//!
//! 1. [`stage`] cuts what a load brings into chunks and queues them. The caller's thread does no I/O.
//! 2. [`writer`], the only thread that writes, runs what is queued in one transaction and syncs once. [`operations`] says
//!    what is done: the row is inserted with minus its piece as `v_from`, so it is durable, holds its primary key against
//!    others ([`primary_key`]), and no snapshot sees it.
//! 3. The commit stamps the version, or notes it once for a large piece ([`operations`]).
//! 4. [`scan`] reads with a connection of its own ([`readers`]), a WHERE made of the snapshot and of as much of the filters
//!    as [`filter`] can say in SQLite. [`encoding`] keeps SQL's order, so that it can.
//!
//! A crash at any point leaves a file in which each operation happened or did not: [`operations::left_undone`] removes
//! pieces whose writers never finished and goes on with removals that were under way.
//!
//! Not here: deciding outcomes and versions (`crate::commits`).

mod encoding;
mod error;
mod file;
mod filter;
mod operations;
mod primary_key;
mod readers;
mod scan;
mod stage;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    fs::{File, TryLockError},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use datafusion::execution::SendableRecordBatchStream;
use drsdb_core::{Error, ErrorCode, Result, Table, Ulid, WireError};

use self::{operations::Operation, readers::Readers, stage::PieceWriter, writer::Writer};
use crate::engine::{ScanRequest, ShardId, StageOptions, StageWriter, StorageEngine};

/// The row engine. See the module for how it works.
#[derive(Debug)]
pub struct RowEngine {
    writer: Writer,
    readers: Arc<Readers>,
    last_piece: AtomicI64,
    /// Held as long as the engine lives; the operating system lets it go when the process dies.
    _lock: File,
}

impl RowEngine {
    /// Opens the engine in `dir`, which is made if it is not there. Clears up in the background what a crash left.
    ///
    /// Errors: `unavailable` when another process has it open, `corrupt` when the file is damaged, `unsupported` when
    /// another version of drsdb wrote it.
    pub fn open(dir: &Path) -> Result<RowEngine> {
        Self::open_with(dir, None)
    }

    /// The same, with a file of at most `max_pages` pages.
    fn open_with(dir: &Path, max_pages: Option<u32>) -> Result<RowEngine> {
        std::fs::create_dir_all(dir).map_err(|error| Error::io(format!("creating {}", dir.display()), error))?;
        let lock = lock(&dir.join("lock"))?;
        let path = dir.join("rows.sqlite");
        let connection = file::open_writer(&path, max_pages)?;
        let undone = operations::left_undone(&connection)?;
        let last_piece = AtomicI64::new(operations::last_piece(&connection)?);
        Ok(RowEngine {
            writer: Writer::start(connection, undone)?,
            readers: Readers::new(&path),
            last_piece,
            _lock: lock,
        })
    }

    fn run(&self, operation: Operation) -> Result<()> {
        self.writer.queue().submit(operation)?.wait().map(drop)
    }
}

/// Two processes that write one file's pieces would give the same number twice.
fn lock(path: &Path) -> Result<File> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(|error| Error::io(format!("opening {}", path.display()), error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let message = format!("another process has {} open", path.display());
            Err(WireError::new(ErrorCode::Unavailable, message)
                .with_hint("stop the other storage server, or give this one a data folder of its own")
                .into())
        }
        Err(TryLockError::Error(error)) => Err(Error::io(format!("locking {}", path.display()), error)),
    }
}

fn not_done(what: &str) -> Error {
    Error::new(ErrorCode::Unsupported, format!("{what} is not done"))
}

impl StorageEngine for RowEngine {
    fn stage(&self, options: StageOptions, table: &Arc<Table>, shard: u32) -> Result<Box<dyn StageWriter>> {
        let piece = self.last_piece.fetch_add(1, Ordering::Relaxed) + 1;
        let queue = self.writer.queue().clone();
        Ok(Box::new(PieceWriter::new(queue, piece, options.transaction, Arc::clone(table), shard)))
    }

    fn commit(&self, transaction: Ulid, version: u64) -> Result<()> {
        self.run(Operation::Commit { transaction, version })
    }

    fn abort(&self, transaction: Ulid) -> Result<()> {
        self.run(Operation::Abort { transaction })
    }

    fn rollback_to(&self, _: Ulid, _: u32) -> Result<()> {
        Err(not_done("rolling a statement back"))
    }

    fn import(&self, _: &Arc<Table>, _: u32, _: u64) -> Result<Box<dyn StageWriter>> {
        Err(not_done("importing a shard"))
    }

    fn drop_shard(&self, _: ShardId) -> Result<()> {
        Err(not_done("dropping a shard"))
    }

    fn compact(&self, _: u64) -> Result<bool> {
        Ok(false)
    }

    fn staged_transactions(&self) -> Result<Vec<Ulid>> {
        operations::staged_transactions(&*self.readers.lease()?)
    }

    fn drop_table(&self, table: Ulid) -> Result<()> {
        self.run(Operation::DropTable { table })
    }

    fn scan(&self, request: ScanRequest) -> Result<SendableRecordBatchStream> {
        scan::start(&self.readers, request)
    }
}
