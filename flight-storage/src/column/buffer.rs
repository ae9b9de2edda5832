//! The row buffer: small writes wait in the row engine until there are enough of them for a segment. Its file keeps the
//! manifest as well, so that every step is one operation of the row engine's writer, whatever it changes.
//!
//! Not here: when rows leave the buffer (`compact`), and how the row engine keeps them (`crate::row`).

use std::{collections::HashSet, sync::Arc};

use arrow::record_batch::RecordBatch;
use datafusion::execution::SendableRecordBatchStream;
use drsdb_core::{Result, Table, Ulid};
use rusqlite::{Connection, OptionalExtension, params};

use super::manifest::Change;
use crate::{
    engine::{ScanRequest, ShardId, StageOptions, StorageEngine},
    row::{
        RowEngine, changes,
        encoding::ColumnBuilder,
        error::Context,
        file::{LIVE, id_from_bytes, snapshot_integer, state},
        operations::{Done, ForeignOperation, Operation},
        shards::{ShardTable, check_not_dropped, find_shard, initial_literal},
        writer::Pending,
    },
};

const WHAT: &str = "reading the row buffer";

/// Rows of a batch that is read.
const BATCH_ROWS: usize = 8192;

/// The buffer, and the file of the manifest.
#[derive(Debug)]
pub struct Buffer {
    engine: Arc<RowEngine>,
}

/// Who a key in the buffer belongs to, for somebody who wants to insert it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// A committed row has it.
    Committed,
    /// The transaction itself has staged it.
    Own,
    /// Another transaction is about to insert or delete it, or has deleted it since the snapshot.
    Contested,
}

/// Committed rows of a shard that no transaction is about to delete.
#[derive(Debug, Default)]
pub struct Settled {
    /// The rows.
    pub batches: Vec<RecordBatch>,
    /// The number of each in the buffer.
    pub numbers: Vec<i64>,
    /// The newest version of any.
    pub newest: u64,
}

/// Operations on the file that are made together.
#[derive(Debug)]
struct Together {
    first: Option<Operation>,
    changes: Vec<Change>,
    /// Rows to be removed from a shard of the buffer.
    removed: Option<(ShardId, Vec<i64>)>,
    /// Whether the manifest's tables are to be made.
    create: bool,
}

impl ForeignOperation for Together {
    fn weight(&self) -> usize {
        self.first.as_ref().map_or(0, Operation::weight)
    }

    fn is_outcome(&self) -> bool {
        self.first.as_ref().is_some_and(Operation::is_outcome)
    }

    fn run(&self, connection: &Connection) -> Result<Done> {
        if self.create {
            super::manifest::create(connection)?;
        }
        let done = match &self.first {
            Some(operation) => operation.run(connection)?,
            None => Done::default(),
        };
        self.changes.iter().try_for_each(|change| change.apply(connection))?;
        if let Some((shard, numbers)) = &self.removed
            && let Some(shard) = find_shard(connection, *shard)?
        {
            let sql = format!("DELETE FROM {} WHERE rowid = ?1", shard.name());
            let mut statement = connection.prepare_cached(&sql).context(WHAT)?;
            for number in numbers {
                statement.execute([number]).context(WHAT)?;
            }
        }
        Ok(done)
    }
}

impl Buffer {
    /// The buffer in the file of `engine`.
    pub fn new(engine: Arc<RowEngine>) -> Result<Self> {
        let together = Together { first: None, changes: Vec::new(), removed: None, create: true };
        engine.run(Operation::Foreign(Box::new(together)))?;
        Ok(Self { engine })
    }

    fn submit(&self, first: Option<Operation>, changes: Vec<Change>) -> Result<Pending> {
        let together = Together { first, changes, removed: None, create: false };
        self.engine.submit(Operation::Foreign(Box::new(together)))
    }

    /// Queues rows to be deleted and rows to be inserted, with changes of the manifest.
    pub fn stage(
        &self,
        options: StageOptions,
        table: &Arc<Table>,
        shard: u32,
        deletes: Vec<RecordBatch>,
        inserts: Vec<RecordBatch>,
        changes: Vec<Change>,
    ) -> Result<Pending> {
        let first = (!deletes.is_empty() || !inserts.is_empty()).then(|| {
            let (piece, table) = (self.engine.next_piece(), Arc::clone(table));
            Operation::Change(changes::Change {
                piece,
                options,
                table,
                shard,
                deletes,
                inserts,
                first: true,
                finish: true,
            })
        });
        self.submit(first, changes)
    }

    /// Waits until all that was queued before is in the file.
    pub fn settle(&self) -> Result<()> {
        self.submit(None, Vec::new())?.wait().map(drop)
    }

    /// Queues a commit, with changes of the manifest.
    pub fn commit(&self, transaction: Ulid, version: u64, changes: Vec<Change>) -> Result<Pending> {
        self.submit(Some(Operation::Commit { transaction, version }), changes)
    }

    /// Undoes what a transaction staged, all or after a statement, with changes of the manifest.
    pub fn undo(&self, transaction: Ulid, after: Option<u32>, changes: Vec<Change>) -> Result<()> {
        let operation = match after {
            Some(sequence) => Operation::RollbackTo { transaction, sequence },
            None => Operation::Abort { transaction },
        };
        self.submit(Some(operation), changes)?.wait().map(drop)
    }

    /// Undoes what is staged in a shard, with changes of the manifest.
    pub fn forget_staged(&self, shard: ShardId, changes: Vec<Change>) -> Result<()> {
        self.submit(Some(Operation::ForgetStaged { shard }), changes)?.wait().map(drop)
    }

    /// Drops a table, with changes of the manifest.
    pub fn drop_table(&self, table: Ulid, changes: Vec<Change>) -> Result<()> {
        self.submit(Some(Operation::DropTable { table }), changes)?.wait().map(drop)
    }

    /// Drops all rows of a shard, with changes of the manifest.
    pub fn drop_shard(&self, shard: ShardId, changes: Vec<Change>) -> Result<()> {
        self.submit(Some(Operation::DropShard { shard }), changes)?.wait().map(drop)
    }

    /// Removes rows of a shard, with changes of the manifest.
    pub fn remove(&self, shard: ShardId, numbers: Vec<i64>, changes: Vec<Change>) -> Result<()> {
        let together = Together { first: None, changes, removed: Some((shard, numbers)), create: false };
        self.engine.run(Operation::Foreign(Box::new(together))).map(drop)
    }

    /// See [`StorageEngine::compact`].
    pub fn compact(&self, horizon: u64) -> Result<bool> {
        self.engine.compact(horizon)
    }

    /// See [`StorageEngine::staged_transactions`].
    pub fn staged_transactions(&self) -> Result<Vec<Ulid>> {
        self.engine.staged_transactions()
    }

    /// See [`StorageEngine::scan`].
    pub fn scan(&self, request: ScanRequest) -> Result<SendableRecordBatchStream> {
        self.engine.scan(request)
    }

    /// Reads the file as it is at one moment.
    pub fn read<T>(&self, read: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        self.engine.read(read)
    }

    /// Every shard of whichever engine's tables.
    pub fn shards(&self) -> Result<Vec<ShardId>> {
        self.read(|connection| {
            let sql = "SELECT table_id, shard FROM shards WHERE shard IS NOT NULL AND NOT dropped";
            let mut statement = connection.prepare_cached(sql).context(WHAT)?;
            let shards =
                statement.query_map([], |row| Ok(ShardId { table: id_from_bytes(row.get(0)?), shard: row.get(1)? }));
            shards.and_then(Iterator::collect).context(WHAT)
        })
    }

    /// Tables that were dropped.
    pub fn dropped_tables(&self) -> Result<HashSet<Ulid>> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached("SELECT table_id FROM dropped_tables").context(WHAT)?;
            let tables = statement.query_map([], |row| row.get(0).map(id_from_bytes));
            tables.and_then(Iterator::collect).context(WHAT)
        })
    }

    /// The keys in a shard that somebody who inserts rows must look at, and whose they are.
    pub fn claimed_keys(
        &self,
        table: &Table,
        shard: u32,
        options: StageOptions,
    ) -> Result<Vec<(RecordBatch, Vec<Claim>)>> {
        self.read(|connection| {
            let Some(found) = find_shard(connection, ShardId { table: table.id, shard })? else {
                return Ok(Vec::new());
            };
            let pieces = Pieces::read(connection, &found)?;
            let newest = snapshot_integer(if options.checked { options.snapshot } else { u64::MAX });
            let mut claims = Vec::new();
            let is_claimed = |_, v_from: i64, v_to: i64| {
                let claim = pieces.claim(options.transaction, newest, v_from, v_to);
                claims.extend(claim);
                claim.is_some()
            };
            let batches = read_rows(connection, table, &found, &table.primary_key, "TRUE", i64::MAX, is_claimed)?;
            let mut claims = claims.into_iter();
            Ok(batches
                .into_iter()
                .map(|batch| {
                    let of_batch = claims.by_ref().take(batch.num_rows()).collect();
                    (batch, of_batch)
                })
                .collect())
        })
    }

    /// How many settled rows of commits up to `horizon` a shard has, counted to `most`.
    pub fn count_settled(&self, shard: ShardId, horizon: u64, most: usize) -> Result<usize> {
        self.read(|connection| {
            let Some(found) = find_shard(connection, shard)? else { return Ok(0) };
            let settled = settled_condition(&found, horizon);
            let sql = format!("SELECT count(*) FROM (SELECT 1 FROM {} WHERE {settled} LIMIT ?1)", found.name());
            let count = connection.query_row(&sql, [most as i64], |row| row.get::<_, i64>(0)).context(WHAT)?;
            Ok(count as usize)
        })
    }

    /// Settled rows of commits up to `horizon`, up to `most` of them.
    pub fn settled(&self, table: &Table, shard: ShardId, horizon: u64, most: usize) -> Result<Settled> {
        self.read(|connection| {
            check_not_dropped(connection, table)?;
            let Some(found) = find_shard(connection, shard)? else { return Ok(Settled::default()) };
            let pieces = Pieces::read(connection, &found)?;
            let mut settled = Settled::default();
            let all: Vec<usize> = (0..table.columns.len()).collect();
            let condition = settled_condition(&found, horizon);
            let take = |number, v_from: i64, _| {
                settled.numbers.push(number);
                settled.newest = settled.newest.max(pieces.version(v_from) as u64);
                true
            };
            let batches = read_rows(connection, table, &found, &all, &condition, most as i64, take)?;
            settled.batches = batches;
            Ok(settled)
        })
    }

    /// Which of these rows of commits up to `horizon` are settled still.
    pub fn still_settled(&self, shard: ShardId, horizon: u64, numbers: &[i64]) -> Result<HashSet<i64>> {
        self.read(|connection| {
            let Some(found) = find_shard(connection, shard)? else { return Ok(HashSet::new()) };
            let settled = settled_condition(&found, horizon);
            let sql = format!("SELECT 1 FROM {} WHERE rowid = ?1 AND {settled}", found.name());
            let mut statement = connection.prepare_cached(&sql).context(WHAT)?;
            let mut still = HashSet::new();
            for &number in numbers {
                if statement.query_row([number], |_| Ok(())).optional().context(WHAT)?.is_some() {
                    still.insert(number);
                }
            }
            Ok(still)
        })
    }

    /// Whether a shard has any row, and the version up to which deleted ones may have been forgotten.
    pub fn has_rows(&self, shard: ShardId) -> Result<(bool, u64)> {
        self.read(|connection| {
            let Some(found) = find_shard(connection, shard)? else { return Ok((false, 0)) };
            let mut statement = connection.prepare(&format!("SELECT 1 FROM {}", found.name())).context(WHAT)?;
            Ok((statement.exists([]).context(WHAT)?, found.forgotten as u64))
        })
    }
}

/// The rows of a shard that a commit up to `horizon` wrote and that nobody is about to delete.
fn settled_condition(shard: &ShardTable, horizon: u64) -> String {
    let (number, horizon, committed) = (shard.number, snapshot_integer(horizon), state::COMMITTED);
    format!(
        "v_to = {LIVE} AND (v_from BETWEEN 0 AND {horizon} OR v_from IN
             (SELECT -piece FROM pieces WHERE shard = {number} AND state = {committed} AND version <= {horizon}))"
    )
}

/// Reads columns of the rows that meet a condition and that `takes`, which is given each row's number and versions.
fn read_rows(
    connection: &Connection,
    table: &Table,
    shard: &ShardTable,
    columns: &[usize],
    condition: &str,
    most: i64,
    mut takes: impl FnMut(i64, i64, i64) -> bool,
) -> Result<Vec<RecordBatch>> {
    let names = columns.iter().map(|&position| match position < shard.columns {
        true => Ok(format!(", c{position}")),
        // Added since the last row came.
        false => Ok(format!(", {}", initial_literal(&table.columns[position])?)),
    });
    let names = names.collect::<Result<String>>()?;
    let sql =
        format!("SELECT rowid, v_from, v_to{names} FROM {} WHERE {condition} ORDER BY rowid LIMIT ?1", shard.name());
    let schema = Arc::new(table.arrow_schema().project(columns)?);
    let builder = |&position: &usize| ColumnBuilder::new(table.columns[position].sql_type, BATCH_ROWS);
    let mut builders: Vec<ColumnBuilder> = columns.iter().map(builder).collect();
    let (mut batches, mut rows_of_batch) = (Vec::new(), 0);
    let mut finish = |builders: &mut Vec<ColumnBuilder>| -> Result<()> {
        let arrays = builders.iter_mut().map(ColumnBuilder::finish).collect();
        batches.push(RecordBatch::try_new(Arc::clone(&schema), arrays)?);
        Ok(())
    };
    let mut statement = connection.prepare(&sql).context(WHAT)?;
    let mut rows = statement.query([most]).context(WHAT)?;
    while let Some(row) = rows.next().context(WHAT)? {
        let versions = || Ok((row.get(0)?, row.get(1)?, row.get(2)?));
        let (number, v_from, v_to) = versions().context(WHAT)?;
        if !takes(number, v_from, v_to) {
            continue;
        }
        for (at, builder) in builders.iter_mut().enumerate() {
            builder.append(row.get_ref(at + 3).context(WHAT)?)?;
        }
        rows_of_batch += 1;
        if rows_of_batch == BATCH_ROWS {
            finish(&mut builders)?;
            rows_of_batch = 0;
        }
    }
    if rows_of_batch > 0 {
        finish(&mut builders)?;
    }
    Ok(batches)
}

/// The pieces that rows of a shard may name: number, state, transaction, version.
struct Pieces(Vec<(i64, i64, Ulid, i64)>);

impl Pieces {
    fn read(connection: &Connection, shard: &ShardTable) -> Result<Self> {
        let sql =
            "SELECT piece, state, transaction_id, coalesce(version, 0) FROM pieces WHERE shard = ?1 ORDER BY piece";
        let mut statement = connection.prepare_cached(sql).context(WHAT)?;
        let pieces = statement.query_map(params![shard.number], |row| {
            Ok((row.get(0)?, row.get(1)?, id_from_bytes(row.get(2)?), row.get(3)?))
        });
        pieces.and_then(Iterator::collect).context(WHAT).map(Self)
    }

    fn find(&self, piece: i64) -> Option<&(i64, i64, Ulid, i64)> {
        self.0.binary_search_by_key(&piece, |known| known.0).ok().map(|at| &self.0[at])
    }

    /// The version behind a committed row's `v_from`.
    fn version(&self, v_from: i64) -> i64 {
        if v_from >= 0 { v_from } else { self.find(-v_from).map_or(0, |piece| piece.3) }
    }

    /// Whose a row's key is, for a transaction that wants to insert it; nobody's if the row does not count any more.
    fn claim(&self, transaction: Ulid, snapshot: i64, v_from: i64, v_to: i64) -> Option<Claim> {
        let deleted_at = |version: i64| (version > snapshot).then_some(Claim::Contested);
        match v_to {
            LIVE => {}
            version if version >= 0 => return deleted_at(version),
            piece => match self.find(-piece) {
                Some((_, state::COMMITTED, _, version)) => return deleted_at(*version),
                Some((_, state::WRITING | state::STAGED, owner, _)) if *owner == transaction => return None,
                Some((_, state::WRITING | state::STAGED, ..)) => return Some(Claim::Contested),
                // Its deletion is being undone: as if it were live.
                _ => {}
            },
        }
        if v_from >= 0 {
            return Some(Claim::Committed);
        }
        match self.find(-v_from) {
            Some((_, state::COMMITTED, ..)) => Some(Claim::Committed),
            Some((_, state::WRITING | state::STAGED, owner, _)) if *owner == transaction => Some(Claim::Own),
            Some((_, state::WRITING | state::STAGED, ..)) => Some(Claim::Contested),
            _ => None,
        }
    }
}
