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
//! 1. [`stage`] cuts what a statement changes into chunks and queues them. The caller's thread does no I/O.
//! 2. [`writer`], the only thread that writes, runs what is queued in one transaction and syncs once. [`operations`] lists
//!    what can be done. [`changes`] stages: the row is inserted with minus its piece as `v_from`, so it is durable, holds
//!    its [`primary_key`] against others, and no snapshot sees it; a row to be deleted gets minus the piece as `v_to`, which
//!    holds it against others and leaves it to be seen. A piece is what one statement changes in one shard.
//! 3. The [`outcome`] stamps the version, or notes it once for a large piece, or undoes the piece; a rollback undoes those
//!    of some statements.
//! 4. [`scan`] reads with a connection of its own ([`readers`]), a WHERE made of the snapshot and of the transaction's own
//!    changes ([`visibility`]), and of as much of the filters as [`filter`] can say in SQLite. [`encoding`] keeps SQL's
//!    order, so that it can.
//! 5. [`compaction`] removes rows that no snapshot sees any more.
//!
//! [`shards`] makes the tables that hold the rows, in the layout of [`file`](mod@file); [`import`] replaces one.
//!
//! A crash at any point leaves a file in which each operation happened or did not: [`outcome::left_undone`] undoes pieces
//! whose writers never finished and goes on with what was being undone. [`mark`] notices a file that lost its end, and
//! [`pages`] one that is not what was written, as does [`checked_reads`] whenever a page is read; then [`health`] keeps
//! everybody from it.
//!
//! The column engine keeps its books and the rows that wait to become segments in the same file, so that one fsync carries
//! both: it queues [`operations::ForeignOperation`]s beside the row engine's own ([`RowEngine::submit`]).
//!
//! Not here: deciding outcomes and versions (`crate::commits`).

pub(crate) mod changes;
mod checked_reads;
mod compaction;
pub(crate) mod encoding;
pub(crate) mod error;
pub(crate) mod file;
pub(crate) mod filter;
pub(crate) mod health;
mod import;
mod mark;
pub(crate) mod operations;
mod outcome;
mod pages;
pub(crate) mod primary_key;
pub(crate) mod readers;
mod scan;
pub(crate) mod shards;
mod stage;
#[cfg(test)]
mod tests;
pub(crate) mod visibility;
pub(crate) mod writer;

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
use rusqlite::Connection;

use self::{
    error::Context,
    file::version_integer,
    health::Health,
    mark::Mark,
    operations::{Done, Operation},
    pages::Pages,
    readers::{Reader, Readers},
    stage::{PieceWriter, Purpose},
    writer::{Pending, Writer},
};
use crate::engine::{ScanRequest, ShardId, StageOptions, StageWriter, StorageEngine};

/// The file, in the engine's folder.
const FILE: &str = "rows.sqlite";

/// Whether there is a file in `dir`, whatever is in it.
pub(crate) fn has_file(dir: &Path) -> bool {
    dir.join(FILE).exists()
}

/// The row engine. See the module for how it works.
#[derive(Debug)]
pub struct RowEngine {
    writer: Writer,
    readers: Arc<Readers>,
    pages: Arc<Pages>,
    health: Arc<Health>,
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
        let path = dir.join(FILE);
        pages::verify(&path)?;
        let expected = checked_reads::watch(&path)?;
        let connection = file::open_writer(&path, max_pages)?;
        let mark = Mark::open(&dir.join("rows.mark"), &path, &connection)?;
        let pages = Arc::new(Pages::open(&path, &connection, expected)?);
        let undone = outcome::left_undone(&connection)?;
        let last_piece = AtomicI64::new(operations::last_piece(&connection)?);
        let health = Arc::new(Health::default());
        Ok(RowEngine {
            writer: Writer::start(connection, mark, Arc::clone(&pages), Arc::clone(&health), undone)?,
            readers: Readers::new(&path, Arc::clone(&health)),
            pages,
            health,
            last_piece,
            _lock: lock,
        })
    }

    /// Whether the file can be believed.
    pub(crate) fn health(&self) -> &Health {
        &self.health
    }

    /// Queues an operation.
    pub(crate) fn submit(&self, operation: Operation) -> Result<Pending> {
        self.writer.queue().submit(operation)
    }

    /// Waits until everything that was answered before is on disk: outcomes are answered earlier.
    pub(crate) fn sync(&self) -> Result<()> {
        self.run(Operation::Sync).map(drop)
    }

    /// Runs an operation and waits until it is durable; an outcome is when [`RowEngine::sync`] says so.
    pub(crate) fn run(&self, operation: Operation) -> Result<Done> {
        self.submit(operation)?.wait()
    }

    /// A connection to read the file with.
    pub(crate) fn reader(&self) -> Result<Reader> {
        self.readers.lease()
    }

    /// Reads the file as it is at one moment.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        let what = "reading at one moment";
        let reader = self.reader()?;
        reader.execute_batch("BEGIN").context(what)?;
        let result = self.health.note(read(&reader));
        reader.execute_batch("ROLLBACK").context(what)?;
        result
    }

    /// A number for a piece, which no other has.
    pub(crate) fn next_piece(&self) -> i64 {
        self.last_piece.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn piece_writer(&self, purpose: Purpose, table: &Arc<Table>, shard: u32) -> Box<dyn StageWriter> {
        let queue = self.writer.queue().clone();
        Box::new(PieceWriter::new(queue, self.next_piece(), purpose, Arc::clone(table), shard))
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

impl StorageEngine for RowEngine {
    fn stage(&self, options: StageOptions, table: &Arc<Table>, shard: u32) -> Result<Box<dyn StageWriter>> {
        Ok(self.piece_writer(Purpose::Stage(options), table, shard))
    }

    fn rollback_to(&self, transaction: Ulid, sequence: u32) -> Result<()> {
        self.run(Operation::RollbackTo { transaction, sequence }).map(drop)
    }

    fn import(&self, table: &Arc<Table>, shard: u32, version: u64) -> Result<Box<dyn StageWriter>> {
        Ok(self.piece_writer(Purpose::Import(version_integer(version)?), table, shard))
    }

    fn forget_staged(&self, shard: ShardId) -> Result<()> {
        self.run(Operation::ForgetStaged { shard }).map(drop)
    }

    fn drop_shard(&self, shard: ShardId) -> Result<()> {
        self.run(Operation::DropShard { shard }).map(drop)
    }

    fn compact(&self, horizon: u64) -> Result<bool> {
        Ok(self.read(|file| compaction::is_due(file, horizon))? && self.run(Operation::Compact { horizon })?.more)
    }

    fn commit_all(&self, commits: &[(Ulid, u64)]) -> Result<()> {
        let commit = |&(transaction, version)| self.submit(Operation::Commit { transaction, version });
        let queued = commits.iter().map(commit).collect::<Result<Vec<_>>>()?;
        queued.into_iter().try_for_each(|commit| commit.wait().map(drop))
    }

    fn abort(&self, transaction: Ulid) -> Result<()> {
        self.run(Operation::Abort { transaction }).map(drop)
    }

    fn staged_transactions(&self) -> Result<Vec<Ulid>> {
        operations::staged_transactions(&*self.reader()?)
    }

    fn drop_table(&self, table: Ulid) -> Result<()> {
        self.run(Operation::DropTable { table }).map(drop)
    }

    fn verify(&self) -> Result<bool> {
        self.health.check()?;
        self.health.note(self.pages.verify_some())
    }

    fn scan(&self, request: ScanRequest) -> Result<SendableRecordBatchStream> {
        scan::start(&self.readers, request)
    }
}
