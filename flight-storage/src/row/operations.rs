//! What the writer does to the file. Each operation runs inside a transaction that [`super::writer`] begins and commits,
//! and may be run again when that transaction failed for another's sake.

use std::any::Any;

use arrow::array::RecordBatch;
use drsdb_core::{Result, Ulid, row_bytes};
use rusqlite::{Connection, params};

use super::{
    changes::Change,
    compaction::compact,
    error::{Context, name_shard},
    file::{execute, id_bytes, id_from_bytes, integers, state},
    import::{Import, abandon_import},
    outcome::{abandon, commit, forget_staged, remove_slice, undo},
    shards::{find_shard, free_shard, give_up_shard},
};
use crate::engine::ShardId;

/// Something to be done to the file.
#[derive(Debug)]
pub(crate) enum Operation {
    /// Stages changes.
    Change(Change),
    /// The writer of a piece went away without finishing.
    Abandon {
        piece: i64,
    },
    /// Takes rows that are to replace a shard.
    Import(Import),
    /// The writer of an import went away without finishing.
    AbandonImport {
        piece: i64,
    },
    Commit {
        transaction: Ulid,
        version: u64,
    },
    Abort {
        transaction: Ulid,
    },
    /// Undoes the statements after `sequence`.
    RollbackTo {
        transaction: Ulid,
        sequence: u32,
    },
    DropTable {
        table: Ulid,
    },
    DropShard {
        shard: ShardId,
    },
    /// Undoes what is staged in a shard.
    ForgetStaged {
        shard: ShardId,
    },
    /// Undoes a part of a piece in state REMOVING.
    RemoveSlice {
        piece: i64,
    },
    /// Gives a dropped shard's pages back to the file.
    FreeShard {
        number: i64,
    },
    /// Does a part of the compaction.
    Compact {
        horizon: u64,
    },
    /// Something of another engine that keeps its books in this file, so that both share each fsync.
    #[allow(dead_code, reason = "for the column engine")]
    Foreign(Box<dyn ForeignOperation>),
    /// Nothing, but what was done before is on disk when it is answered.
    Sync,
}

/// What another engine does to the file.
pub(crate) trait ForeignOperation: std::fmt::Debug + Send {
    /// Bytes that it will write, about.
    fn weight(&self) -> usize {
        0
    }

    /// See [`Operation::is_outcome`].
    fn is_outcome(&self) -> bool {
        false
    }

    /// Does it, inside a savepoint: an error undoes it, and only it. May be run again, when the transaction around it failed
    /// for another's sake, so it must not hold what it changed outside the file before it has been answered.
    fn run(&self, connection: &Connection) -> Result<Done>;
}

/// What an operation did.
#[derive(Debug, Default)]
pub(crate) struct Done {
    /// Bytes of values written.
    pub(crate) bytes: u64,
    /// Of a compaction: whether there is more to do.
    pub(crate) more: bool,
    /// What is left to be done later, in other transactions.
    pub(crate) later: Vec<Operation>,
    /// Whatever a foreign operation answers.
    #[allow(dead_code, reason = "for the column engine")]
    pub(crate) answer: Option<Box<dyn Any + Send>>,
}

impl Operation {
    /// Bytes that the operation will write, about.
    pub(crate) fn weight(&self) -> usize {
        let bytes = |batches: &[RecordBatch]| batches.iter().map(row_bytes).sum::<usize>();
        match self {
            Operation::Change(change) => bytes(&change.inserts) + bytes(&change.deletes),
            Operation::Import(import) => bytes(&import.rows),
            Operation::Foreign(foreign) => foreign.weight(),
            _ => 0,
        }
    }

    /// Whether it only takes in that a transaction has committed. The index servers' log has that durably and tells it again
    /// to a server that does not know, so it need not be on disk when it is answered.
    pub(crate) fn is_outcome(&self) -> bool {
        match self {
            Operation::Commit { .. } => true,
            Operation::Foreign(foreign) => foreign.is_outcome(),
            _ => false,
        }
    }

    /// Does it.
    pub(crate) fn run(&self, connection: &Connection) -> Result<Done> {
        match self {
            Operation::Change(change) => {
                let shard = ShardId { table: change.table.id, shard: change.shard };
                change.run(connection).map_err(|error| name_shard(error, shard))
            }
            Operation::Abandon { piece } => abandon(connection, *piece),
            Operation::Import(import) => import.run(connection),
            Operation::AbandonImport { piece } => abandon_import(connection, *piece),
            Operation::Commit { transaction, version } => commit(connection, *transaction, *version),
            Operation::Abort { transaction } => undo(connection, *transaction, None),
            Operation::RollbackTo { transaction, sequence } => undo(connection, *transaction, Some(*sequence)),
            Operation::ForgetStaged { shard } => forget_staged(connection, *shard),
            Operation::DropTable { table } => drop_table(connection, *table),
            Operation::DropShard { shard } => drop_shard(connection, *shard),
            Operation::RemoveSlice { piece } => remove_slice(connection, *piece),
            Operation::FreeShard { number } => free_shard(connection, *number).map(|()| Done::default()),
            Operation::Compact { horizon } => compact(connection, *horizon),
            Operation::Foreign(foreign) => foreign.run(connection),
            Operation::Sync => Ok(Done::default()),
        }
    }
}

/// The largest number in use of a piece.
pub(crate) fn last_piece(connection: &Connection) -> Result<i64> {
    connection
        .query_row("SELECT coalesce(max(piece), 0) FROM pieces", [], |row| row.get(0))
        .context("reading its pieces")
}

/// Transactions that wait for their outcome.
pub(crate) fn staged_transactions(connection: &Connection) -> Result<Vec<Ulid>> {
    let what = "reading staged transactions";
    let mut statement = connection
        .prepare_cached("SELECT DISTINCT transaction_id FROM pieces WHERE state = ?1 ORDER BY transaction_id")
        .context(what)?;
    let ids = statement.query_map([state::STAGED], |row| row.get(0).map(id_from_bytes)).context(what)?;
    ids.collect::<rusqlite::Result<_>>().context(what)
}

fn drop_table(connection: &Connection, table: Ulid) -> Result<Done> {
    let table = id_bytes(table);
    execute(connection, "INSERT OR IGNORE INTO dropped_tables VALUES (?1)", params![table])?;
    let numbers =
        integers(connection, "SELECT number FROM shards WHERE table_id = ?1 AND NOT dropped", params![table])?;
    give_up(connection, &numbers)
}

fn drop_shard(connection: &Connection, shard: ShardId) -> Result<Done> {
    let number = find_shard(connection, shard)?.map(|shard| shard.number);
    give_up(connection, number.as_slice())
}

fn give_up(connection: &Connection, numbers: &[i64]) -> Result<Done> {
    for number in numbers {
        give_up_shard(connection, *number)?;
    }
    let later = numbers.iter().map(|&number| Operation::FreeShard { number }).collect();
    Ok(Done { later, ..Done::default() })
}
