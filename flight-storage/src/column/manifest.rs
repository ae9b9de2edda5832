//! The manifest: which segments there are, whose they are, and from which version to which they are visible. SQLite, with
//! `synchronous = FULL`, so that what it has confirmed survives a power failure.
//!
//! One thread owns the connection. Changes queue up before it, and all that wait are made durable by one transaction
//! (group commit): a disk that takes milliseconds to sync then bounds the latency of a commit, not their number.
//!
//! Invariant: a segment's file is complete and synced before the manifest names it, and is deleted only after the manifest
//! has forgotten it. Hence a file that the manifest does not name is rubbish, and one that is missing is damage.

use std::{collections::HashSet, path::Path, sync::mpsc, thread::JoinHandle, time::Duration};

use drsdb_core::{Error, ErrorCode, Result, Ulid, WireError};
use rusqlite::{Connection, Row, params};

use super::{
    segment::{KeyRange, SegmentRecord},
    stats::SegmentStatistics,
};
use crate::engine::ShardId;

/// The format of the manifest, of segment files and of key ranges; older ones would be converted when opened.
const FORMAT: i64 = 1;

/// The most changes made durable together.
const MAX_GROUP: usize = 1024;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS segment (
        id             BLOB PRIMARY KEY,
        table_id       BLOB NOT NULL,
        shard          INTEGER NOT NULL,
        transaction_id BLOB NOT NULL,
        from_version   INTEGER,            -- NULL: staged
        to_version     INTEGER,            -- NULL: not deleted
        row_count      INTEGER NOT NULL,
        byte_count     INTEGER NOT NULL,
        checksum       INTEGER NOT NULL,   -- CRC-32 of the file
        bounds         BLOB NOT NULL,      -- Arrow IPC: smallest and largest value of each column
        counts         BLOB NOT NULL,      -- u64 little-endian: NULLs of each column, then distinct values
        min_key        BLOB,               -- primary key in row format; NULL: the table has none
        max_key        BLOB
    ) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS segment_staged ON segment (transaction_id) WHERE from_version IS NULL;
    CREATE INDEX IF NOT EXISTS segment_table ON segment (table_id);
    CREATE TABLE IF NOT EXISTS dropped_table (table_id BLOB PRIMARY KEY) WITHOUT ROWID;
";

/// A segment as found when the manifest was opened.
#[derive(Debug)]
pub struct KnownSegment {
    /// What was recorded.
    pub record: SegmentRecord,
    /// `None`: staged.
    pub from_version: Option<u64>,
    /// `None`: not deleted.
    pub to_version: Option<u64>,
}

/// What a manifest knew when it was opened.
#[derive(Debug)]
pub struct Known {
    /// The segments.
    pub segments: Vec<KnownSegment>,
    /// Tables that may not come back: their ids are never used again.
    pub dropped: HashSet<Ulid>,
}

#[derive(Debug)]
enum Change {
    Stage(Vec<SegmentRecord>),
    Commit { transaction: Ulid, version: u64 },
    Abort { transaction: Ulid },
    DropTable { table: Ulid },
}

#[derive(Debug)]
struct Waiting {
    change: Change,
    done: mpsc::SyncSender<Result<()>>,
}

/// The manifest. Dropping it waits for its thread.
#[derive(Debug)]
pub struct Manifest {
    changes: Option<mpsc::Sender<Waiting>>,
    thread: Option<JoinHandle<()>>,
}

impl Manifest {
    /// Opens or creates the manifest at `path`, which no other process may have open.
    pub fn open(path: &Path) -> Result<(Self, Known)> {
        let context = format!("opening the manifest {}", path.display());
        let (connection, known) = open(path).map_err(|error| match error {
            OpenError::Sqlite(rusqlite::Error::SqliteFailure(failure, _))
                if failure.code == rusqlite::ErrorCode::DatabaseBusy =>
            {
                WireError::new(ErrorCode::InvalidArgument, format!("{context}: another process has it open"))
                    .with_hint("give each storage server a data folder of its own, or stop the other one")
                    .into()
            }
            OpenError::Sqlite(error) => sqlite_error(&context, error),
            OpenError::Drsdb(error) => error,
        })?;
        let (changes, queue) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("column-manifest".to_owned())
            .spawn(move || write_changes(connection, &queue))
            .map_err(|error| Error::io(context, error))?;
        Ok((Self { changes: Some(changes), thread: Some(thread) }, known))
    }

    /// Records segments, all of them or none, as staged.
    pub fn stage(&self, segments: Vec<SegmentRecord>) -> Result<()> {
        self.make_durable(Change::Stage(segments))
    }

    /// Makes what `transaction` staged visible at `version` and later.
    pub fn commit(&self, transaction: Ulid, version: u64) -> Result<()> {
        self.make_durable(Change::Commit { transaction, version })
    }

    /// Forgets what `transaction` staged.
    pub fn abort(&self, transaction: Ulid) -> Result<()> {
        self.make_durable(Change::Abort { transaction })
    }

    /// Forgets all segments of `table`, and remembers that it was dropped.
    pub fn drop_table(&self, table: Ulid) -> Result<()> {
        self.make_durable(Change::DropTable { table })
    }

    fn make_durable(&self, change: Change) -> Result<()> {
        let gone = || Error::internal("the manifest's thread has ended");
        let (done, outcome) = mpsc::sync_channel(1);
        let changes = self.changes.as_ref().expect("it is taken by drop alone");
        changes.send(Waiting { change, done }).map_err(|_| gone())?;
        outcome.recv().map_err(|_| gone())?
    }
}

impl Drop for Manifest {
    fn drop(&mut self) {
        self.changes = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

enum OpenError {
    Sqlite(rusqlite::Error),
    Drsdb(Error),
}

impl From<rusqlite::Error> for OpenError {
    fn from(error: rusqlite::Error) -> Self {
        OpenError::Sqlite(error)
    }
}

fn open(path: &Path) -> Result<(Connection, Known), OpenError> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(Duration::from_millis(100))?;
    // An exclusive lock, held until the connection is closed: two engines on one folder would destroy each other's files.
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    let format: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if format != 0 && format != FORMAT {
        let message = format!("{} has format {format}, and this version reads {FORMAT}", path.display());
        let hint = "run the version of drsdb that wrote it";
        return Err(OpenError::Drsdb(WireError::new(ErrorCode::Unsupported, message).with_hint(hint).into()));
    }
    connection.execute_batch(&format!("BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version = {FORMAT}; COMMIT;"))?;
    let mut statement = connection.prepare(
        "SELECT id, table_id, shard, transaction_id, from_version, to_version, row_count, byte_count, checksum, bounds,
             counts, min_key, max_key
         FROM segment ORDER BY id",
    )?;
    let mut rows = statement.query([])?;
    let mut segments = Vec::new();
    while let Some(row) = rows.next()? {
        segments.push(known_segment(row)?);
    }
    drop(rows);
    drop(statement);
    let mut statement = connection.prepare("SELECT table_id FROM dropped_table")?;
    let dropped = statement.query_map([], |row| ulid(row, 0))?.collect::<Result<_, _>>()?;
    drop(statement);
    Ok((connection, Known { segments, dropped }))
}

fn known_segment(row: &Row<'_>) -> Result<KnownSegment, OpenError> {
    let (bounds, counts): (Vec<u8>, Vec<u8>) = (row.get(9)?, row.get(10)?);
    let keys: (Option<Vec<u8>>, Option<Vec<u8>>) = (row.get(11)?, row.get(12)?);
    let key_range = match keys {
        (Some(min), Some(max)) => Some(KeyRange { min: min.into(), max: max.into() }),
        _ => None,
    };
    let record = SegmentRecord {
        id: ulid(row, 0)?,
        shard: ShardId { table: ulid(row, 1)?, shard: row.get(2)? },
        transaction: ulid(row, 3)?,
        rows: row.get::<_, i64>(6)? as u64,
        bytes: row.get::<_, i64>(7)? as u64,
        checksum: row.get(8)?,
        statistics: SegmentStatistics::decode(&bounds, &counts).map_err(OpenError::Drsdb)?,
        key_range,
    };
    let version = |column| row.get::<_, Option<i64>>(column).map(|version| version.map(|version| version as u64));
    Ok(KnownSegment { record, from_version: version(4)?, to_version: version(5)? })
}

fn ulid(row: &Row<'_>, column: usize) -> rusqlite::Result<Ulid> {
    row.get::<_, [u8; 16]>(column).map(Ulid::from_bytes)
}

/// The life of the manifest's thread.
fn write_changes(mut connection: Connection, queue: &mpsc::Receiver<Waiting>) {
    while let Ok(first) = queue.recv() {
        let mut group = vec![first];
        group.extend(queue.try_iter().take(MAX_GROUP - 1));
        if group.len() > 1 && apply(&mut connection, group.iter().map(|waiting| &waiting.change)).is_ok() {
            group.into_iter().for_each(|waiting| answer(&waiting, Ok(())));
            continue;
        }
        // One of them cannot be made. Alone, each gets its own answer.
        for waiting in group {
            let outcome = apply(&mut connection, std::iter::once(&waiting.change));
            answer(&waiting, outcome.map_err(|error| sqlite_error("writing the manifest", error)));
        }
    }
}

fn answer(waiting: &Waiting, outcome: Result<()>) {
    // Whoever asked may have gone away; the change is made all the same.
    let _ = waiting.done.try_send(outcome);
}

fn apply<'a>(connection: &mut Connection, changes: impl Iterator<Item = &'a Change>) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    for change in changes {
        match change {
            Change::Stage(segments) => segments.iter().try_for_each(|segment| insert(&transaction, segment))?,
            Change::Commit { transaction: staged, version } => {
                let sql = "UPDATE segment SET from_version = ?2 WHERE transaction_id = ?1 AND from_version IS NULL";
                transaction.prepare_cached(sql)?.execute(params![staged.to_bytes(), *version as i64])?;
            }
            Change::Abort { transaction: staged } => {
                let sql = "DELETE FROM segment WHERE transaction_id = ?1 AND from_version IS NULL";
                transaction.prepare_cached(sql)?.execute([staged.to_bytes()])?;
            }
            Change::DropTable { table } => {
                let table = table.to_bytes();
                transaction.prepare_cached("DELETE FROM segment WHERE table_id = ?1")?.execute([table])?;
                transaction.prepare_cached("INSERT OR IGNORE INTO dropped_table VALUES (?1)")?.execute([table])?;
            }
        }
    }
    transaction.commit()
}

fn insert(transaction: &rusqlite::Transaction<'_>, segment: &SegmentRecord) -> rusqlite::Result<()> {
    let broken = |error: Error| rusqlite::Error::ToSqlConversionFailure(Box::new(error));
    let (bounds, counts) = segment.statistics.encode().map_err(broken)?;
    let keys = segment.key_range.as_ref().map(|range| (&*range.min, &*range.max)).unzip();
    let (min_key, max_key): (Option<&[u8]>, Option<&[u8]>) = keys;
    transaction
        .prepare_cached("INSERT INTO segment VALUES (?1, ?2, ?3, ?4, NULL, NULL, ?5, ?6, ?7, ?8, ?9, ?10, ?11)")?
        .execute(params![
            segment.id.to_bytes(),
            segment.shard.table.to_bytes(),
            segment.shard.shard,
            segment.transaction.to_bytes(),
            segment.rows as i64,
            segment.bytes as i64,
            segment.checksum,
            bounds,
            counts,
            min_key,
            max_key,
        ])?;
    Ok(())
}

fn sqlite_error(context: &str, error: rusqlite::Error) -> Error {
    use rusqlite::ErrorCode as Sqlite;
    let code = match error.sqlite_error_code() {
        Some(Sqlite::DiskFull) => ErrorCode::DiskFull,
        Some(Sqlite::DatabaseCorrupt | Sqlite::NotADatabase) => ErrorCode::Corrupt,
        _ => ErrorCode::Internal,
    };
    let error = WireError::new(code, format!("{context}: {error}"));
    Error::Wire(if code == ErrorCode::DiskFull {
        error.with_hint("free space on the server's disk, then retry")
    } else {
        error
    })
}
