//! The SQLite file of a node: one writer thread with group commit, and a connection for reading.
//!
//! ```text
//! log           (idx, entry)                  entries; idx is the log index
//! meta          (key, value)                  `node`, `vote`, `committed`, `purged`, `groups`, `rejoined`
//! snapshot_head (one, id, parts, last, meta)  at most one row: which parts are the snapshot, and the last entry in it
//! snapshot_part (id, part, bytes)             the encoded state, in pieces
//! ```
//!
//! A snapshot is written piece by piece, each in the transaction of whatever else waits, so that entries never wait for
//! more than one piece. It counts when its head is there; pieces without a head are removed when the file is opened, or
//! by the next snapshot.
//!
//! The writer takes every change that waits, writes all of them in one transaction and answers them when it is on disk.
//! Changes take effect in the order in which they were asked for, votes and entries alike, as Raft needs it.
//!
//! All of it is verified when the file is opened: what is written is sealed ([`super::seal`]), and a file that has lost
//! its end is noticed ([`super::mark`]). A damaged one is refused and left as it is.
//!
//! Not here: what the bytes mean.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    ops::Range,
    path::Path,
    sync::{Arc, OnceLock, mpsc},
    thread::JoinHandle,
};

use drsdb_core::{Error, ErrorCode, Result, WireError, crash_point};
use parking_lot::Mutex;
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};
use tokio::sync::watch;

use super::{
    mark::Mark,
    seal::{self, Place},
};

/// The layout of the file; stored in it as `user_version`.
const FORMAT: i64 = 3;
/// The tables.
const CREATE: &str = "
CREATE TABLE IF NOT EXISTS log (idx INTEGER PRIMARY KEY, entry BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS snapshot_head (
    one INTEGER PRIMARY KEY CHECK (one = 1), id INTEGER NOT NULL, parts INTEGER NOT NULL,
    last INTEGER NOT NULL, meta BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS snapshot_part (
    id INTEGER NOT NULL, part INTEGER NOT NULL, bytes BLOB NOT NULL, PRIMARY KEY (id, part));
";
pub(super) const FILE: &str = "catalog.sqlite";
pub(super) const MARK: &str = "catalog.mark";
/// SQLite before this one can corrupt a database in WAL mode.
const OLDEST_SQLITE: i32 = 3_051_003;
/// Changes in one transaction, at most.
const MAX_GROUP: usize = 1024;

/// A change of the file.
pub(super) enum Change {
    /// Adds entries.
    Append(Vec<(u64, Vec<u8>)>),
    /// Removes the entries from this index on.
    Truncate(u64),
    /// Removes the entries up to this index and notes how far, encoded.
    Purge(u64, Vec<u8>),
    /// Notes whose file it is.
    Node(Vec<u8>),
    /// Notes the vote.
    Vote(Vec<u8>),
    /// Notes that the file was made for a server that lost the one before, and which entry it must have before it votes.
    Rejoined(Vec<u8>),
    /// Notes how far the log is committed. Needs no transaction of its own.
    Committed(Vec<u8>),
    /// Adds a piece of a snapshot that is being written.
    SnapshotPart { id: i64, part: i64, bytes: Vec<u8> },
    /// Makes what was written the snapshot.
    SnapshotHead { id: i64, parts: i64, last: u64, meta: Vec<u8> },
    /// Removes a few pieces of other snapshots than this one.
    ForgetParts { keep: i64 },
}

/// Bytes of a piece of a snapshot: written in about the time of an fsync.
const PART_BYTES: usize = 1 << 20;
/// Pieces that are removed in one transaction.
const FORGET_AT_ONCE: i64 = 8;

/// A log index, and the entry as it is written.
type SealedEntry = (i64, Vec<u8>);
/// A snapshot's description and state.
type StoredSnapshot = (Vec<u8>, Vec<u8>);
type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// How far snapshots are.
#[derive(Debug, Clone, Copy)]
struct Snapshots {
    /// The last entry in the one on disk.
    last: u64,
    /// Whether one comes from the leader.
    installing: bool,
}

/// The newest snapshot.
#[derive(Debug, Clone, Copy, Default)]
struct Newest {
    /// Its id, whether it is whole or not.
    id: i64,
    /// The index of the last entry in the one that is whole.
    last: u64,
}

/// The file of one node.
pub struct Database {
    changes: Mutex<Option<mpsc::Sender<(Change, Done)>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
    reader: Mutex<Connection>,
    /// Held while a snapshot is written: one that was made here and one that came from the leader may meet.
    newest_snapshot: tokio::sync::Mutex<Newest>,
    snapshots: watch::Sender<Snapshots>,
    fault: Arc<OnceLock<WireError>>,
    /// Held as long as anything can be written: two processes on one file would be two nodes with one identity.
    lock: Mutex<Option<File>>,
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Database").field("fault", &self.fault.get()).finish_non_exhaustive()
    }
}

impl Database {
    /// Opens the file in `dir`, or makes it. Blocks.
    pub fn open(dir: &Path) -> Result<Arc<Self>> {
        if rusqlite::version_number() < OLDEST_SQLITE {
            return Err(Error::internal(format!("SQLite {} is too old: 3.51.3 or later is safe", rusqlite::version())));
        }
        fs::create_dir_all(dir).map_err(|error| Error::io(format!("cannot make {}", dir.display()), error))?;
        let lock = lock(dir)?;
        let path = dir.join(FILE);
        let opened = || -> rusqlite::Result<(Connection, Connection)> {
            let writer = Connection::open(&path)?;
            writer.pragma_update(None, "journal_mode", "WAL")?;
            writer.pragma_update(None, "synchronous", "FULL")?;
            let format: i64 = writer.pragma_query_value(None, "user_version", |row| row.get(0))?;
            // A table that is missing in a file that had it is not made anew: it would be empty.
            let create = if format == FORMAT { "" } else { CREATE };
            writer.execute_batch(create)?;
            let reader =
                Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
            Ok((writer, reader))
        };
        let (writer, reader) = opened().map_err(|error| failure(&format!("cannot open {}", path.display()), error))?;
        check_format(&writer, &path)?;
        seal::verify(&writer, &path)?;
        let mark = Mark::open(&dir.join(MARK), &path, groups(&writer)?)?;
        let newest_snapshot = tidy_snapshots(&writer)
            .map_err(|error| failure(&format!("cannot tidy the snapshots in {}", path.display()), error))?;

        let fault = Arc::new(OnceLock::new());
        let (changes, queue) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("catalog-log".to_owned())
            .spawn({
                let fault = fault.clone();
                move || Writer { connection: writer, mark, fault, committed: None }.run(&queue)
            })
            .map_err(|error| Error::io("cannot start the thread that writes the catalog's log", error))?;
        Ok(Arc::new(Self {
            changes: Mutex::new(Some(changes)),
            writer: Mutex::new(Some(thread)),
            reader: Mutex::new(reader),
            snapshots: watch::Sender::new(Snapshots { last: newest_snapshot.last, installing: false }),
            newest_snapshot: tokio::sync::Mutex::new(newest_snapshot),
            fault,
            lock: Mutex::new(Some(lock)),
        }))
    }

    /// Queues a change; `done` is called when it is on disk, or will never be.
    pub(super) fn submit(&self, change: Change, done: impl FnOnce(io::Result<()>) + Send + 'static) {
        let sent = match &*self.changes.lock() {
            Some(changes) => changes.send((change, Box::new(done))).map_err(|unsent| unsent.0.1),
            None => Err(Box::new(done) as Done),
        };
        if let Err(done) = sent {
            done(Err(io::Error::new(io::ErrorKind::BrokenPipe, "the catalog's log is closed")));
        }
    }

    /// Makes a change and waits until it is on disk.
    pub(super) async fn write(&self, change: Change) -> io::Result<()> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        // Nobody listens any more if the caller went away; the change is made all the same.
        self.submit(change, move |result| drop(sender.send(result)));
        receiver.await.unwrap_or_else(|_| Err(io::Error::other("the thread that writes the catalog's log is gone")))
    }

    /// Replaces the snapshot by one whose last entry is `last`, and lets entries be written in between. An older one than
    /// is there already changes nothing.
    pub(super) async fn write_snapshot(&self, last: u64, meta: Vec<u8>, state: &[u8]) -> io::Result<()> {
        let mut newest = self.newest_snapshot.lock().await;
        if last < newest.last {
            return Ok(());
        }
        newest.id += 1;
        let id = newest.id;
        let mut parts = 0;
        for piece in state.chunks(PART_BYTES) {
            self.write(Change::SnapshotPart { id, part: parts, bytes: piece.to_vec() }).await?;
            parts += 1;
        }
        self.write(Change::SnapshotHead { id, parts, last, meta }).await?;
        newest.last = last;
        self.snapshots.send_modify(|snapshots| snapshots.last = last);
        // As many of the old one's; whatever this leaves, the next snapshot removes.
        for _ in 0..=parts / FORGET_AT_ONCE {
            self.write(Change::ForgetParts { keep: id }).await?;
        }
        Ok(())
    }

    /// A snapshot comes from the leader, or has come: it is written, or could not be.
    pub(super) fn set_installing(&self, installing: bool) {
        self.snapshots.send_modify(|snapshots| snapshots.installing = installing);
    }

    /// Waits, while a snapshot is being installed, until one is on disk that has the entry with this index: the log must not
    /// lose entries before. openraft asks for the one without waiting for the other.
    pub(super) async fn covered(&self, index: u64) -> io::Result<()> {
        let covers = |snapshots: &Snapshots| snapshots.last >= index;
        let mut known = self.snapshots.subscribe();
        if covers(&known.borrow()) || !known.borrow().installing {
            return Ok(());
        }
        let settled = known.wait_for(|snapshots| covers(snapshots) || !snapshots.installing).await;
        match settled {
            Ok(snapshots) if covers(&snapshots) => Ok(()),
            _ => Err(io::Error::other("the snapshot that the log's entries are in could not be installed")),
        }
    }

    /// Why the file takes no more writes, if it does not.
    pub(super) fn fault(&self) -> Option<&WireError> {
        self.fault.get()
    }

    /// Writes what is queued and ends the writer. Later changes fail. Blocks.
    pub fn close(&self) {
        self.changes.lock().take();
        if let Some(thread) = self.writer.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that writes the catalog's log panicked");
        }
        // Whoever still holds this reads only.
        self.lock.lock().take();
    }

    /// The entries with indices in `range`, in order, as long as they have `max_bytes` together; at least one if there
    /// is one. And whether these are all. Blocks.
    pub(super) fn entries(&self, range: Range<u64>, max_bytes: usize) -> Result<(Vec<Vec<u8>>, bool)> {
        let read = || -> rusqlite::Result<(Vec<SealedEntry>, bool)> {
            let connection = self.reader.lock();
            let mut statement =
                connection.prepare_cached("SELECT idx, entry FROM log WHERE idx >= ?1 AND idx < ?2 ORDER BY idx")?;
            let mut rows = statement.query(params![sql_index(range.start), sql_index(range.end)])?;
            let (mut entries, mut bytes) = (Vec::new(), 0);
            while let Some(row) = rows.next()? {
                let entry: Vec<u8> = row.get(1)?;
                bytes += entry.len();
                if bytes > max_bytes && !entries.is_empty() {
                    return Ok((entries, false));
                }
                entries.push((row.get(0)?, entry));
            }
            Ok((entries, true))
        };
        let (sealed, complete) = read().map_err(|error| failure("cannot read the catalog's log", error))?;
        let entries = sealed.into_iter().map(|(index, entry)| Place::Entry(index).open(entry));
        Ok((entries.collect::<Result<_>>()?, complete))
    }

    /// The last entry. Blocks.
    pub(super) fn last_entry(&self) -> Result<Option<Vec<u8>>> {
        let connection = self.reader.lock();
        let row = connection.query_row("SELECT idx, entry FROM log ORDER BY idx DESC LIMIT 1", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        });
        let row = row.optional().map_err(|error| failure("cannot read the catalog's log", error))?;
        row.map(|(index, entry)| Place::Entry(index).open(entry)).transpose()
    }

    /// What is noted under `key`. Blocks.
    pub(super) fn meta(&self, key: &str) -> Result<Option<Vec<u8>>> {
        note(&self.reader.lock(), key)
    }

    /// The snapshot's description and state. Blocks.
    pub(super) fn snapshot(&self) -> Result<Option<StoredSnapshot>> {
        let read = || -> rusqlite::Result<Option<Result<StoredSnapshot>>> {
            let mut connection = self.reader.lock();
            // One view of the file: the head must not be replaced under its parts.
            let view = connection.transaction()?;
            let head = view.query_row("SELECT id, parts, last, meta FROM snapshot_head", [], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?, row.get(3)?))
            });
            let Some((id, parts, last, meta)) = head.optional()? else { return Ok(None) };
            let mut statement = view.prepare("SELECT bytes FROM snapshot_part WHERE id = ?1 ORDER BY part")?;
            let mut rows = statement.query([id])?;
            let (mut state, mut found) = (Vec::new(), 0);
            while let Some(row) = rows.next()? {
                match Place::Part(id, found).open(row.get(0)?) {
                    Ok(bytes) => state.extend(bytes),
                    Err(error) => return Ok(Some(Err(error))),
                }
                found += 1;
            }
            if found != parts {
                let message = format!("the catalog's snapshot has {found} pieces instead of {parts}");
                return Ok(Some(Err(seal::damaged(message))));
            }
            Ok(Some(Place::Head(id, parts, last).open(meta).map(|meta| (meta, state))))
        };
        read().map_err(|error| failure("cannot read the catalog's snapshot", error))?.transpose()
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        self.close();
    }
}

/// Locks the directory for this process.
///
/// Errors: `invalid_argument` when another one has it.
pub(super) fn lock(dir: &Path) -> Result<File> {
    let path = dir.join("lock");
    let file = File::create(&path).map_err(|error| Error::io(format!("cannot open {}", path.display()), error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => {
            Err(WireError::new(ErrorCode::InvalidArgument, format!("another index server uses {}", dir.display()))
                .with_hint("stop it first, or give this one a data directory of its own")
                .into())
        }
        Err(fs::TryLockError::Error(error)) => Err(Error::io(format!("cannot lock {}", path.display()), error)),
    }
}

fn check_format(connection: &Connection, path: &Path) -> Result<()> {
    let format: i64 = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(|error| failure(&format!("cannot read {}", path.display()), error))?;
    let sealed = || {
        seal::seal_all(connection)
            .and_then(|()| connection.pragma_update(None, "user_version", FORMAT))
            .map_err(|error| failure(&format!("cannot bring {} up to date", path.display()), error))
    };
    match format {
        // A new file.
        0 => {
            let used = "SELECT EXISTS (SELECT 1 FROM log) OR EXISTS (SELECT 1 FROM meta)";
            if connection
                .query_row(used, [], |row| row.get(0))
                .map_err(|error| failure("cannot read a new file", error))?
            {
                return Err(seal::damaged(format!("{} is damaged: it does not say its format", path.display())));
            }
            connection
                .pragma_update(None, "user_version", FORMAT)
                .map_err(|error| failure(&format!("cannot write {}", path.display()), error))
        }
        // Nothing had a digest.
        2 => sealed(),
        // The snapshot was one row.
        1 => connection
            .execute_batch(
                "BEGIN IMMEDIATE;
                 INSERT INTO snapshot_part (id, part, bytes) SELECT 1, 0, state FROM snapshot;
                 INSERT INTO snapshot_head (one, id, parts, last, meta) SELECT 1, 1, 1, 0, meta FROM snapshot;
                 DROP TABLE snapshot;
                 PRAGMA user_version = 2;
                 COMMIT;",
            )
            .map_err(|error| failure(&format!("cannot bring {} up to date", path.display()), error))
            .and_then(|()| sealed()),
        FORMAT => Ok(()),
        newer => Err(WireError::new(
            ErrorCode::Unsupported,
            format!("{} has format {newer}, and this version of drsdb knows {FORMAT}", path.display()),
        )
        .with_hint("start the version of drsdb that wrote it")
        .into()),
    }
}

/// What is noted under `key`.
fn note(connection: &Connection, key: &str) -> Result<Option<Vec<u8>>> {
    let row = connection.query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get(0));
    let sealed = row.optional().map_err(|error| failure("cannot read the catalog's notes", error))?;
    sealed.map(|sealed| Place::Note(key).open(sealed)).transpose()
}

/// How many groups of changes were ever written.
fn groups(connection: &Connection) -> Result<u64> {
    let noted = note(connection, "groups")?;
    Ok(noted.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes))
}

/// Removes pieces of a snapshot that was never finished; the newest id that is left.
fn tidy_snapshots(connection: &Connection) -> rusqlite::Result<Newest> {
    let newest = connection.query_row("SELECT id, last FROM snapshot_head", [], |row| {
        Ok(Newest { id: row.get(0)?, last: row.get::<_, i64>(1)?.unsigned_abs() })
    });
    let newest = newest.optional()?.unwrap_or_default();
    connection.execute("DELETE FROM snapshot_part WHERE id <> ?1", [newest.id])?;
    Ok(newest)
}

/// A log index as SQLite's signed integer; indices above have never been reached by anybody.
fn sql_index(index: u64) -> i64 {
    i64::try_from(index).unwrap_or(i64::MAX)
}

fn failure(what: &str, error: rusqlite::Error) -> Error {
    if let Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase) = error.sqlite_error_code() {
        return seal::damaged(format!("{what}: {error}"));
    }
    Error::io(what, io_error(error))
}

fn io_error(error: rusqlite::Error) -> io::Error {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DiskFull) => io::Error::new(io::ErrorKind::StorageFull, error),
        _ => io::Error::other(error),
    }
}

struct Writer {
    connection: Connection,
    mark: Mark,
    fault: Arc<OnceLock<WireError>>,
    /// Waits for the next transaction.
    committed: Option<Vec<u8>>,
}

impl Writer {
    fn run(mut self, queue: &mpsc::Receiver<(Change, Done)>) {
        while let Ok(first) = queue.recv() {
            let mut group = vec![first];
            group.extend(queue.try_iter().take(MAX_GROUP));
            self.write_group(group);
        }
        // The queue is closed: nothing is lost without this, but the next start is fresher at once.
        if self.committed.is_some() && self.fault.get().is_none() {
            self.write_group(Vec::new());
        }
    }

    fn write_group(&mut self, group: Vec<(Change, Done)>) {
        let (mut changes, mut done) = (Vec::with_capacity(group.len()), Vec::with_capacity(group.len()));
        let closing = group.is_empty();
        for (change, when_done) in group {
            done.push(when_done);
            match change {
                Change::Committed(committed) => self.committed = Some(committed),
                change => changes.push(change),
            }
        }
        let written = match self.fault.get() {
            // What a failed write left on disk is unknown, and a later success would hide it: only a restart reads it anew.
            Some(fault) => Err(fault.clone()),
            None if changes.is_empty() && !closing => Ok(()),
            None => self.write(&changes).map_err(|error| {
                let fault = failure("cannot write the catalog's log", error).to_wire();
                tracing::error!(%fault, "the catalog's log stops");
                self.fault.get_or_init(|| fault).clone()
            }),
        };
        for done in done {
            done(written.clone().map_err(io::Error::other));
        }
    }

    fn write(&mut self, changes: &[Change]) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let note = |key: &str, value: &[u8]| -> rusqlite::Result<()> {
            let mut statement = transaction.prepare_cached(
                "INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2",
            )?;
            statement.execute(params![key, Place::Note(key).seal(value)]).map(|_| ())
        };
        note("groups", &self.mark.next().to_le_bytes())?;
        for change in changes {
            match change {
                Change::Append(entries) => {
                    // An entry that is there already is a bug: Raft truncates first.
                    let mut insert = transaction.prepare_cached("INSERT INTO log (idx, entry) VALUES (?1, ?2)")?;
                    for (index, entry) in entries {
                        let index = sql_index(*index);
                        insert.execute(params![index, Place::Entry(index).seal(entry)])?;
                    }
                }
                Change::Truncate(from) => {
                    transaction.execute("DELETE FROM log WHERE idx >= ?1", [sql_index(*from)])?;
                }
                Change::Purge(upto, purged) => {
                    transaction.execute("DELETE FROM log WHERE idx <= ?1", [sql_index(*upto)])?;
                    note("purged", purged)?;
                }
                Change::Node(node) => note("node", node)?,
                Change::Vote(vote) => note("vote", vote)?,
                Change::Rejoined(after) => note("rejoined", after)?,
                Change::SnapshotPart { id, part, bytes } => {
                    let mut insert = transaction
                        .prepare_cached("INSERT INTO snapshot_part (id, part, bytes) VALUES (?1, ?2, ?3)")?;
                    insert.execute(params![id, part, Place::Part(*id, *part).seal(bytes)])?;
                }
                Change::SnapshotHead { id, parts, last, meta } => {
                    let meta = Place::Head(*id, *parts, sql_index(*last)).seal(meta);
                    transaction.execute(
                        "INSERT INTO snapshot_head (one, id, parts, last, meta) VALUES (1, ?1, ?2, ?3, ?4)
                         ON CONFLICT (one) DO UPDATE SET id = ?1, parts = ?2, last = ?3, meta = ?4",
                        params![id, parts, sql_index(*last), meta],
                    )?;
                }
                Change::ForgetParts { keep } => {
                    transaction.execute(
                        "DELETE FROM snapshot_part WHERE rowid IN
                             (SELECT rowid FROM snapshot_part WHERE id < ?1 LIMIT ?2)",
                        params![keep, FORGET_AT_ONCE],
                    )?;
                }
                Change::Committed(_) => unreachable!("it waits in `committed`"),
            }
        }
        if let Some(committed) = &self.committed {
            note("committed", committed)?;
        }
        // However many changes of a kind share the fsync.
        let points: BTreeSet<_> = changes.iter().filter_map(crash_points).collect();
        points.iter().for_each(|(before, _)| crash_point::reach(before));
        transaction.commit()?;
        self.mark.advance();
        points.iter().for_each(|(_, synced)| crash_point::reach(synced));
        self.committed = None;
        Ok(())
    }
}

/// Where tests make the process die around the fsync of a change.
fn crash_points(change: &Change) -> Option<(&'static str, &'static str)> {
    match change {
        Change::Append(_) => Some(("raft.append.before", "raft.append.synced")),
        Change::Truncate(_) => Some(("raft.truncate.before", "raft.truncate.synced")),
        Change::Purge(..) => Some(("raft.purge.before", "raft.purge.synced")),
        Change::Node(_) => Some(("raft.node.before", "raft.node.synced")),
        Change::Vote(_) => Some(("raft.vote.before", "raft.vote.synced")),
        Change::SnapshotPart { .. } => Some(("raft.snapshot_part.before", "raft.snapshot_part.synced")),
        Change::SnapshotHead { .. } => Some(("raft.snapshot.before", "raft.snapshot.synced")),
        Change::ForgetParts { .. } => Some(("raft.snapshot_forget.before", "raft.snapshot_forget.synced")),
        // A hint, which waits for another change; and what begins or ends a way back, which has points of its own.
        Change::Committed(_) | Change::Rejoined(_) => None,
    }
}
