//! The manifest: which segments there are, whose they are, from which version on they are visible, and which of their rows
//! were deleted.
//!
//! It is tables in the row engine's SQLite file, beside the rows of the buffer, and [`Change`]s to it are parts of the
//! row engine's operations: what a statement deletes in segments and inserts into the buffer is staged in one step, a
//! commit of both is one step, and so is compaction's exchange of rows for a segment. A crash finds all of it or nothing,
//! and whatever is written at the same time shares one fsync.
//!
//! Every entry carries a checksum over what never changes of it. Where one is broken, its shard is damaged.
//!
//! Invariant: a segment's file is complete and synced before the manifest names it, and is deleted only after the manifest
//! has forgotten it. Hence a file that the manifest does not name is rubbish, and one that is missing is damage.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, atomic::AtomicU64},
};

use drsdb_core::{Error, ErrorCode, Result, Table, Ulid, WireError};
use rusqlite::{Connection, Row, params};

use super::{
    deletes::Deletion,
    format::corrupt,
    segment::{KeyRange, NEVER, SegmentRecord},
    stats::SegmentStatistics,
};
use crate::{
    engine::ShardId,
    row::{error::from_sqlite as sqlite_error, shards::check_not_dropped},
};

/// The format of the manifest, of segment files and of key ranges; older ones would be converted when opened.
const FORMAT: i64 = 2;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS column_format (format INTEGER NOT NULL) STRICT;
    CREATE TABLE IF NOT EXISTS column_tables (
        table_id   BLOB PRIMARY KEY,
        version    INTEGER NOT NULL,       -- of the definition
        definition TEXT NOT NULL           -- JSON
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS column_shards (
        table_id BLOB NOT NULL,
        shard    INTEGER NOT NULL,
        horizon  INTEGER NOT NULL,         -- no snapshot below it can be read any more
        PRIMARY KEY (table_id, shard)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS segments (
        id             BLOB PRIMARY KEY,
        table_id       BLOB NOT NULL,
        shard          INTEGER NOT NULL,
        transaction_id BLOB NOT NULL,
        sequence       INTEGER NOT NULL,
        from_version   INTEGER,            -- NULL: staged
        row_count      INTEGER NOT NULL,
        byte_count     INTEGER NOT NULL,
        checksum       INTEGER NOT NULL,   -- CRC-32 of the file
        bounds         BLOB NOT NULL,      -- Arrow IPC: smallest and largest value of each column
        counts         BLOB NOT NULL,      -- u64 little-endian: NULLs of each column, then distinct values
        min_key        BLOB,               -- primary key in row format; NULL: the table has none
        max_key        BLOB,
        seal           INTEGER NOT NULL    -- CRC-32 of the columns that never change
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS segments_staged ON segments (transaction_id) WHERE from_version IS NULL;
    CREATE INDEX IF NOT EXISTS segments_of_shard ON segments (table_id, shard);
    CREATE TABLE IF NOT EXISTS deletions (
        segment        BLOB NOT NULL,
        piece          BLOB NOT NULL,      -- of one statement in one shard
        transaction_id BLOB NOT NULL,
        sequence       INTEGER NOT NULL,
        version        INTEGER,            -- NULL: staged
        rows           BLOB NOT NULL,      -- u32 little-endian, in order
        seal           INTEGER NOT NULL,   -- CRC-32 of `segment` and `rows`
        PRIMARY KEY (segment, piece)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS deletions_staged ON deletions (transaction_id) WHERE version IS NULL;
";

/// A segment as found when the manifest was read.
#[derive(Debug)]
pub struct KnownSegment {
    /// What was recorded.
    pub record: SegmentRecord,
    /// `None`: staged.
    pub from_version: Option<u64>,
    /// Of its rows.
    pub deletions: Vec<Deletion>,
}

/// What a manifest knew when it was read.
#[derive(Debug, Default)]
pub struct Known {
    /// The segments.
    pub segments: Vec<KnownSegment>,
    /// The newest definition of each table that ever had rows.
    pub tables: HashMap<Ulid, Arc<Table>>,
    /// Shards of which old versions were forgotten.
    pub horizons: HashMap<ShardId, u64>,
    /// Shards with entries that cannot be believed.
    pub damaged: HashSet<ShardId>,
    /// The outcome that deletions of a staged transaction share.
    pub outcomes: HashMap<Ulid, Arc<AtomicU64>>,
}

/// Deletions that compaction moves to another segment: those of `piece` in `from` are these rows of `to`.
#[derive(Debug, Clone)]
pub struct Moved {
    /// The segment that goes.
    pub from: Ulid,
    /// The one that has its rows now.
    pub to: Ulid,
    /// Whose deletions.
    pub piece: Ulid,
    /// Rows of `to`, in order.
    pub rows: Arc<[u32]>,
}

/// A change of the manifest.
#[derive(Debug)]
pub enum Change {
    /// A table's definition, before anything of it is staged.
    Define(Arc<Table>),
    /// Segments and deletions of a statement, staged. The deletions come with their segments.
    Stage { table: Arc<Table>, segments: Vec<SegmentRecord>, deletions: Vec<(Ulid, Deletion)> },
    /// What `transaction` staged counts from `version` on.
    Commit { transaction: Ulid, version: u64 },
    /// What `transaction` staged in statements after `after` is forgotten; all of it, if there is none.
    Undo { transaction: Ulid, after: Option<u32> },
    /// What is staged in a shard is forgotten.
    ForgetStaged { shard: ShardId },
    /// All of a table is forgotten.
    DropTable { table: Ulid },
    /// All of a shard is forgotten; in its place come segments, visible from `version` on.
    Replace { shard: ShardId, segments: Vec<SegmentRecord>, version: u64 },
    /// Compaction: segments go, and others come, visible from `version` on.
    Exchange {
        shard: ShardId,
        gone: Vec<Ulid>,
        new: Vec<SegmentRecord>,
        version: u64,
        horizon: u64,
        moved: Vec<Moved>,
        /// Rows of the new segments that are none.
        void: Vec<(Ulid, Deletion)>,
    },
    /// Deletions of a segment up to the horizon become one.
    Condense { shard: ShardId, segment: Ulid, horizon: u64, one: Arc<Deletion>, gone: Vec<Ulid> },
}

impl Change {
    /// Makes it, within a transaction of the caller's.
    pub fn apply(&self, connection: &Connection) -> Result<()> {
        let run = |sql: &str, parameters: &[&dyn rusqlite::ToSql]| {
            connection
                .prepare_cached(sql)
                .and_then(|mut statement| statement.execute(parameters))
                .map(drop)
                .map_err(|error| sqlite_error("writing the manifest", &error))
        };
        match self {
            Change::Define(table) => {
                check_not_dropped(connection, table)?;
                let definition = serde_json::to_string(table.as_ref())
                    .map_err(|error| Error::internal(format!("table {} has no JSON form: {error}", table.name)))?;
                run(
                    "INSERT INTO column_tables VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE
                     SET version = ?2, definition = ?3 WHERE version < ?2",
                    params![table.id.to_bytes(), table.version as i64, definition],
                )
            }
            Change::Stage { table, segments, deletions } => {
                check_not_dropped(connection, table)?;
                segments.iter().try_for_each(|segment| insert_segment(connection, segment, None))?;
                deletions.iter().try_for_each(|(segment, deletion)| insert_deletion(connection, *segment, deletion))
            }
            Change::Commit { transaction, version } => {
                let parameters = params![transaction.to_bytes(), *version as i64];
                let sql = "UPDATE segments SET from_version = ?2 WHERE transaction_id = ?1 AND from_version IS NULL";
                run(sql, parameters)?;
                let sql = "UPDATE deletions SET version = ?2 WHERE transaction_id = ?1 AND version IS NULL";
                run(sql, parameters)
            }
            Change::Undo { transaction, after } => {
                let after = after.map_or(-1, i64::from);
                let parameters = params![transaction.to_bytes(), after];
                let sql = "DELETE FROM segments WHERE transaction_id = ?1 AND from_version IS NULL AND sequence > ?2";
                run(sql, parameters)?;
                let sql = "DELETE FROM deletions WHERE transaction_id = ?1 AND version IS NULL AND sequence > ?2";
                run(sql, parameters)
            }
            Change::ForgetStaged { shard } => {
                let parameters = params![shard.table.to_bytes(), shard.shard];
                run(
                    "DELETE FROM deletions WHERE version IS NULL AND segment IN
                         (SELECT id FROM segments WHERE table_id = ?1 AND shard = ?2)",
                    parameters,
                )?;
                run("DELETE FROM segments WHERE table_id = ?1 AND shard = ?2 AND from_version IS NULL", parameters)
            }
            Change::DropTable { table } => {
                let table = table.to_bytes();
                run(
                    "DELETE FROM deletions WHERE segment IN (SELECT id FROM segments WHERE table_id = ?1)",
                    params![table],
                )?;
                run("DELETE FROM segments WHERE table_id = ?1", params![table])?;
                run("DELETE FROM column_shards WHERE table_id = ?1", params![table])?;
                run("DELETE FROM column_tables WHERE table_id = ?1", params![table])
            }
            Change::Replace { shard, segments, version } => {
                let parameters = params![shard.table.to_bytes(), shard.shard];
                run(
                    "DELETE FROM deletions WHERE segment IN
                         (SELECT id FROM segments WHERE table_id = ?1 AND shard = ?2)",
                    parameters,
                )?;
                run("DELETE FROM segments WHERE table_id = ?1 AND shard = ?2", parameters)?;
                segments.iter().try_for_each(|segment| insert_segment(connection, segment, Some(*version)))
            }
            Change::Exchange { shard, gone, new, version, horizon, moved, void } => {
                let known = connection
                    .prepare_cached("SELECT 1 FROM column_tables WHERE table_id = ?1")
                    .and_then(|mut statement| statement.exists([shard.table.to_bytes()]))
                    .map_err(|error| sqlite_error("writing the manifest", &error))?;
                if !known {
                    return Err(Error::new(ErrorCode::NotFound, "the table was dropped while it was compacted"));
                }
                new.iter().try_for_each(|segment| insert_segment(connection, segment, Some(*version)))?;
                void.iter().try_for_each(|(segment, deletion)| insert_deletion(connection, *segment, deletion))?;
                for Moved { from, to, piece, rows } in moved {
                    let rows = encode_rows(rows);
                    // Whatever outcome they have had by now, and none if they were undone.
                    run(
                        "INSERT INTO deletions
                         SELECT ?1, piece, transaction_id, sequence, version, ?4, ?5 FROM deletions
                         WHERE segment = ?2 AND piece = ?3",
                        params![to.to_bytes(), from.to_bytes(), piece.to_bytes(), rows, seal_of_deletion(*to, &rows)],
                    )?;
                }
                for segment in gone {
                    run("DELETE FROM segments WHERE id = ?1", params![segment.to_bytes()])?;
                    run("DELETE FROM deletions WHERE segment = ?1", params![segment.to_bytes()])?;
                }
                set_horizon(connection, *shard, *horizon)
            }
            Change::Condense { shard, segment, horizon, one, gone } => {
                for piece in gone {
                    let sql = "DELETE FROM deletions WHERE segment = ?1 AND piece = ?2";
                    run(sql, params![segment.to_bytes(), piece.to_bytes()])?;
                }
                insert_deletion(connection, *segment, one)?;
                set_horizon(connection, *shard, *horizon)
            }
        }
    }
}

/// Remembers that snapshots below `horizon` cannot be read any more.
fn set_horizon(connection: &Connection, shard: ShardId, horizon: u64) -> Result<()> {
    let horizon = i64::try_from(horizon).unwrap_or(i64::MAX);
    connection
        .prepare_cached(
            "INSERT INTO column_shards VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET horizon = max(horizon, ?3)",
        )
        .and_then(|mut statement| statement.execute(params![shard.table.to_bytes(), shard.shard, horizon]))
        .map(drop)
        .map_err(|error| sqlite_error("writing the manifest", &error))
}

/// Makes the manifest's tables if they are not there.
pub fn create(connection: &Connection) -> Result<()> {
    let failed = |error| sqlite_error("setting up the manifest", &error);
    connection.execute_batch(SCHEMA).map_err(failed)?;
    let format: Option<i64> =
        connection.query_row("SELECT max(format) FROM column_format", [], |row| row.get(0)).map_err(failed)?;
    match format {
        Some(FORMAT) => Ok(()),
        None => connection.execute("INSERT INTO column_format VALUES (?1)", [FORMAT]).map(drop).map_err(failed),
        Some(format) => {
            let message =
                format!("the manifest of column segments has format {format}, and this version reads {FORMAT}");
            Err(WireError::new(ErrorCode::Unsupported, message)
                .with_hint("run the version of drsdb that wrote it")
                .into())
        }
    }
}

/// Reads the manifest.
pub fn read(connection: &Connection) -> Result<Known> {
    let mut known = Known::default();
    let failed = |error: rusqlite::Error| sqlite_error("reading the manifest", &error);
    let mut read = |sql: &str, each: &mut dyn FnMut(&mut Known, &Row<'_>) -> Result<()>| -> Result<()> {
        let mut statement = connection.prepare(sql).map_err(failed)?;
        let mut rows = statement.query([]).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            each(&mut known, row)?;
        }
        Ok(())
    };
    read("SELECT table_id, definition FROM column_tables", &mut |known, row| {
        let definition: String = row.get(1).map_err(failed)?;
        let table: Table = serde_json::from_str(&definition)
            .map_err(|error| corrupt(format!("a table's definition in the manifest cannot be read: {error}")))?;
        known.tables.insert(table.id, Arc::new(table));
        Ok(())
    })?;
    read("SELECT table_id, shard, horizon FROM column_shards", &mut |known, row| {
        let shard = ShardId { table: ulid(row, 0)?, shard: row.get(1).map_err(failed)? };
        known.horizons.insert(shard, row.get::<_, i64>(2).map_err(failed)? as u64);
        Ok(())
    })?;
    let mut places = HashMap::new();
    let sql =
        "SELECT id, table_id, shard, transaction_id, sequence, from_version, row_count, byte_count, checksum, bounds,
                   counts, min_key, max_key, seal FROM segments ORDER BY id";
    read(sql, &mut |known, row| {
        let shard = ShardId { table: ulid(row, 1)?, shard: row.get(2).map_err(failed)? };
        match segment(row)? {
            Some((record, from_version)) => {
                places.insert(record.id, known.segments.len());
                known.segments.push(KnownSegment { record, from_version, deletions: Vec::new() });
            }
            None => drop(known.damaged.insert(shard)),
        }
        Ok(())
    })?;
    let sql = "SELECT segment, piece, transaction_id, sequence, version, rows, seal FROM deletions";
    read(sql, &mut |known, row| {
        let (segment, transaction) = (ulid(row, 0)?, ulid(row, 2)?);
        // One of a segment that cannot be believed.
        let Some(&place) = places.get(&segment) else { return Ok(()) };
        let rows: Vec<u8> = row.get(5).map_err(failed)?;
        let (numbers, rest) = rows.as_chunks::<4>();
        let sealed = row.get::<_, u32>(6).map_err(failed)? == seal_of_deletion(segment, &rows);
        if !rest.is_empty() || !sealed {
            known.damaged.insert(known.segments[place].record.shard);
            return Ok(());
        }
        let outcome = match row.get::<_, Option<i64>>(4).map_err(failed)? {
            Some(version) => Arc::new(AtomicU64::new(version as u64)),
            None => {
                let staged = known.outcomes.entry(transaction);
                Arc::clone(staged.or_insert_with(|| Arc::new(AtomicU64::new(NEVER))))
            }
        };
        known.segments[place].deletions.push(Deletion {
            piece: ulid(row, 1)?,
            transaction,
            sequence: row.get(3).map_err(failed)?,
            outcome,
            rows: numbers.iter().map(|number| u32::from_le_bytes(*number)).collect(),
        });
        Ok(())
    })?;
    Ok(known)
}

/// A row of `segments`; `None` when it is not what was written.
fn segment(row: &Row<'_>) -> Result<Option<(SegmentRecord, Option<u64>)>> {
    let failed = |error: rusqlite::Error| sqlite_error("reading the manifest", &error);
    let parts = || -> rusqlite::Result<_> {
        let numbers: (u32, u32, i64, i64, u32) = (row.get(2)?, row.get(4)?, row.get(6)?, row.get(7)?, row.get(8)?);
        let statistics: (Vec<u8>, Vec<u8>) = (row.get(9)?, row.get(10)?);
        let keys: (Option<Vec<u8>>, Option<Vec<u8>>) = (row.get(11)?, row.get(12)?);
        Ok((numbers, statistics, keys, row.get::<_, Option<i64>>(5)?, row.get::<_, u32>(13)?))
    };
    let ((shard, sequence, rows, bytes, checksum), (bounds, counts), (min, max), from_version, seal) =
        parts().map_err(failed)?;
    let Ok(statistics) = SegmentStatistics::decode(&bounds, &counts) else { return Ok(None) };
    let key_range = min.zip(max).map(|(min, max)| KeyRange { min: min.into(), max: max.into() });
    let record = SegmentRecord {
        id: ulid(row, 0)?,
        shard: ShardId { table: ulid(row, 1)?, shard },
        transaction: ulid(row, 3)?,
        sequence,
        rows: rows as u64,
        bytes: bytes as u64,
        checksum,
        statistics,
        key_range,
    };
    let sealed = seal == seal_of_segment(&record, &bounds, &counts);
    Ok(sealed.then_some((record, from_version.map(|version| version as u64))))
}

fn ulid(row: &Row<'_>, column: usize) -> Result<Ulid> {
    let bytes = row.get::<_, [u8; 16]>(column).map(Ulid::from_bytes);
    bytes.map_err(|error| sqlite_error("reading the manifest", &error))
}

fn insert_segment(connection: &Connection, segment: &SegmentRecord, from_version: Option<u64>) -> Result<()> {
    let (bounds, counts) = segment.statistics.encode()?;
    let keys = segment.key_range.as_ref().map(|range| (&*range.min, &*range.max)).unzip();
    let (min_key, max_key): (Option<&[u8]>, Option<&[u8]>) = keys;
    connection
        .prepare_cached("INSERT INTO segments VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)")
        .and_then(|mut statement| {
            statement.execute(params![
                segment.id.to_bytes(),
                segment.shard.table.to_bytes(),
                segment.shard.shard,
                segment.transaction.to_bytes(),
                segment.sequence,
                from_version.map(|version| version as i64),
                segment.rows as i64,
                segment.bytes as i64,
                segment.checksum,
                bounds,
                counts,
                min_key,
                max_key,
                seal_of_segment(segment, &bounds, &counts),
            ])
        })
        .map(drop)
        .map_err(|error| sqlite_error("writing the manifest", &error))
}

fn insert_deletion(connection: &Connection, segment: Ulid, deletion: &Deletion) -> Result<()> {
    let version = Some(deletion.version()).filter(|&version| version != NEVER).map(|version| version as i64);
    let rows = encode_rows(&deletion.rows);
    connection
        .prepare_cached("INSERT INTO deletions VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")
        .and_then(|mut statement| {
            statement.execute(params![
                segment.to_bytes(),
                deletion.piece.to_bytes(),
                deletion.transaction.to_bytes(),
                deletion.sequence,
                version,
                rows,
                seal_of_deletion(segment, &rows),
            ])
        })
        .map(drop)
        .map_err(|error| sqlite_error("writing the manifest", &error))
}

fn encode_rows(rows: &[u32]) -> Vec<u8> {
    rows.iter().flat_map(|row| row.to_le_bytes()).collect()
}

fn seal_of_segment(segment: &SegmentRecord, bounds: &[u8], counts: &[u8]) -> u32 {
    let mut seal = crc32fast::Hasher::new();
    seal.update(&segment.id.to_bytes());
    seal.update(&segment.shard.table.to_bytes());
    seal.update(&segment.shard.shard.to_le_bytes());
    seal.update(&segment.transaction.to_bytes());
    seal.update(&segment.sequence.to_le_bytes());
    [segment.rows, segment.bytes, segment.checksum.into()].iter().for_each(|number| seal.update(&number.to_le_bytes()));
    seal.update(bounds);
    seal.update(counts);
    if let Some(range) = &segment.key_range {
        seal.update(&range.min);
        seal.update(&range.max);
    }
    seal.finalize()
}

fn seal_of_deletion(segment: Ulid, rows: &[u8]) -> u32 {
    let mut seal = crc32fast::Hasher::new();
    seal.update(&segment.to_bytes());
    seal.update(rows);
    seal.finalize()
}
