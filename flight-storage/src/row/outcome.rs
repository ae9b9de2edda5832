//! Commit and undo of what a transaction staged.
//!
//! ```text
//! change* (last: finish) ─▶ STAGED ── commit ─▶ small: rows get the version, the piece is forgotten
//!                              │                large: the piece gets the version (COMMITTED); compaction folds it later
//!                              └ abort, rollback ─▶ REMOVING ── slice* ─▶ gone
//! ```
//!
//! A commit costs the same whatever was staged: a few rows are stamped at once, which leaves nothing to look up when they
//! are read; for many, one row of `pieces` says from when they count, and scans look it up. So there is at most one such
//! row for every [`STAMP_ROWS`] rows that were changed.
//!
//! A row that a transaction both makes and ends is nobody's to see: the commit removes it. This also keeps the key's index
//! unique, since of a key's rows that one transaction ends only one can be older than the transaction.
//!
//! Pieces are undone youngest first, and in each the inserted rows go before the deleted ones come back, so that a row
//! finds its place free again.

use drsdb_core::{Result, Ulid};
use rusqlite::{Connection, params};

use super::{
    error::Context,
    file::{LIVE, execute, id_bytes, integers, state, version_integer},
    operations::{Done, Operation},
    shards::{find_shard, table_name},
};
use crate::engine::ShardId;

/// Up to this many changed rows a commit writes the version into the rows.
pub(crate) const STAMP_ROWS: i64 = 1024;

/// Rows looked at by one step of an undo or a compaction, so that other operations get in between.
pub(crate) const SLICE_ROWS: i64 = 20_000;

/// A piece as it is committed or undone.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Piece {
    pub(crate) piece: i64,
    pub(crate) shard: i64,
    pub(crate) rows: i64,
    pub(crate) deleted: i64,
    pub(crate) first_row: i64,
    pub(crate) last_row: i64,
    /// 0 unless committed.
    pub(crate) version: i64,
}

impl Piece {
    /// Pieces that meet `condition`, which may end in an order.
    pub(crate) fn find(
        connection: &Connection,
        condition: &str,
        parameters: impl rusqlite::Params,
    ) -> Result<Vec<Self>> {
        connection
            .prepare_cached(&format!(
                "SELECT piece, shard, row_count, deleted, first_row, last_row, coalesce(version, 0)
                 FROM pieces WHERE {condition}"
            ))
            .and_then(|mut statement| {
                let pieces = statement.query_map(parameters, |row| {
                    Ok(Piece {
                        piece: row.get(0)?,
                        shard: row.get(1)?,
                        rows: row.get(2)?,
                        deleted: row.get(3)?,
                        first_row: row.get(4)?,
                        last_row: row.get(5)?,
                        version: row.get(6)?,
                    })
                });
                pieces?.collect()
            })
            .context("reading pieces")
    }

    fn is_small(&self) -> bool {
        self.rows + self.deleted <= STAMP_ROWS
    }

    /// Forgets the piece: no row names it any more.
    pub(crate) fn forget(&self, connection: &Connection) -> Result<()> {
        execute(connection, "DELETE FROM pieces WHERE piece = ?1", [self.piece]).map(drop)
    }
}

/// The rows of a shard that a piece deletes, to be followed by further conditions. `?1` is minus the piece.
fn deleted_by_piece(name: &str) -> String {
    format!("SELECT rowid FROM {name} INDEXED BY {name}_ended WHERE v_to = ?1 AND v_to < {LIVE}")
}

/// Makes what a transaction staged visible from `version` on.
pub(crate) fn commit(connection: &Connection, transaction: Ulid, version: u64) -> Result<Done> {
    let version = version_integer(version)?;
    let id = id_bytes(transaction);
    let pieces =
        Piece::find(connection, "transaction_id = ?1 AND state = ?2 ORDER BY piece", params![id, state::STAGED])?;
    let (small, large): (Vec<Piece>, Vec<Piece>) = pieces.iter().partition(|piece| piece.is_small());
    if pieces.len() > 1 {
        for piece in small.iter().filter(|piece| piece.deleted > 0) {
            let name = table_name(piece.shard);
            execute(
                connection,
                &format!(
                    "DELETE FROM {name} WHERE rowid IN ({} AND v_from < 0)
                     AND v_from IN (SELECT -piece FROM pieces WHERE transaction_id = ?2 AND state = ?3)",
                    deleted_by_piece(&name)
                ),
                params![-piece.piece, id, state::STAGED],
            )?;
        }
    }
    for piece in pieces.iter().filter(|piece| piece.deleted > 0) {
        execute(
            connection,
            "INSERT INTO shard_versions (shard, last_delete) VALUES (?1, ?2)
             ON CONFLICT DO UPDATE SET last_delete = max(last_delete, ?2)",
            [piece.shard, version],
        )?;
    }
    for piece in small {
        stamp_deleted(connection, &piece, version, i64::MAX)?;
        stamp_inserted(connection, &piece, version, piece.first_row, piece.last_row)?;
        piece.forget(connection)?;
    }
    for piece in large {
        execute(
            connection,
            "UPDATE pieces SET state = ?2, version = ?3 WHERE piece = ?1",
            params![piece.piece, state::COMMITTED, version],
        )?;
    }
    Ok(Done::default())
}

/// Writes the version into up to `limit` rows that a piece deletes; answers how many.
pub(crate) fn stamp_deleted(connection: &Connection, piece: &Piece, version: i64, limit: i64) -> Result<i64> {
    if piece.deleted == 0 {
        return Ok(0);
    }
    let name = table_name(piece.shard);
    let rows = deleted_by_piece(&name);
    let sql = format!("UPDATE {name} SET v_to = ?2 WHERE rowid IN ({rows} LIMIT ?3)");
    execute(connection, &sql, [-piece.piece, version, limit]).map(|rows| rows as i64)
}

/// Writes the version into the rows that a piece inserted and that have these rowids.
pub(crate) fn stamp_inserted(
    connection: &Connection,
    piece: &Piece,
    version: i64,
    first: i64,
    last: i64,
) -> Result<()> {
    if piece.rows == 0 {
        return Ok(());
    }
    let name = table_name(piece.shard);
    let sql = format!("UPDATE {name} SET v_from = ?1 WHERE rowid BETWEEN ?2 AND ?3 AND v_from = ?4");
    execute(connection, &sql, [version, first, last, -piece.piece]).map(drop)
}

/// Undoes what a transaction staged in statements after `sequence`, or all of it.
pub(crate) fn undo(connection: &Connection, transaction: Ulid, sequence: Option<u32>) -> Result<Done> {
    let pieces = Piece::find(
        connection,
        "transaction_id = ?1 AND state IN (?2, ?3) AND sequence > ?4 ORDER BY piece DESC",
        params![id_bytes(transaction), state::WRITING, state::STAGED, sequence.map_or(-1, i64::from)],
    )?;
    remove(connection, &pieces)
}

/// Undoes what is staged in a shard.
pub(crate) fn forget_staged(connection: &Connection, shard: ShardId) -> Result<Done> {
    let Some(shard) = find_shard(connection, shard)? else { return Ok(Done::default()) };
    let sql = "shard = ?1 AND state IN (?2, ?3) ORDER BY piece DESC";
    let pieces = Piece::find(connection, sql, params![shard.number, state::WRITING, state::STAGED])?;
    remove(connection, &pieces)
}

fn remove(connection: &Connection, pieces: &[Piece]) -> Result<Done> {
    for piece in pieces {
        mark_removing(connection, piece.piece)?;
    }
    let mut done = Done::default();
    for piece in pieces {
        // Most are small and end here; the rest of a large one comes later, and nobody has to wait for it: what it changed
        // counts as undone from now on.
        done.later.extend(remove_slice(connection, piece.piece)?.later);
    }
    Ok(done)
}

/// Undoes a piece whose writer went away without finishing.
pub(crate) fn abandon(connection: &Connection, piece: i64) -> Result<Done> {
    let later = match mark_removing(connection, piece)? {
        0 => vec![],
        _ => vec![Operation::RemoveSlice { piece }],
    };
    Ok(Done { later, ..Done::default() })
}

fn mark_removing(connection: &Connection, piece: i64) -> Result<usize> {
    execute(connection, "UPDATE pieces SET state = ?2 WHERE piece = ?1", [piece, state::REMOVING])
}

/// Undoes a part of a piece that is being undone, or of a younger one of its transaction that must go first.
pub(crate) fn remove_slice(connection: &Connection, piece: i64) -> Result<Done> {
    let youngest = Piece::find(
        connection,
        "state = ?2 AND (transaction_id, shard) = (SELECT transaction_id, shard FROM pieces WHERE piece = ?1)
         ORDER BY piece DESC LIMIT 1",
        [piece, state::REMOVING],
    )?;
    // None: it is gone, undone or dropped with its table.
    let Some(youngest) = youngest.first() else { return Ok(Done::default()) };
    let again = Done { later: vec![Operation::RemoveSlice { piece }], ..Done::default() };
    let name = table_name(youngest.shard);
    if youngest.first_row <= youngest.last_row {
        let end = youngest.last_row.min(youngest.first_row + SLICE_ROWS - 1);
        execute(
            connection,
            &format!("DELETE FROM {name} WHERE rowid BETWEEN ?1 AND ?2 AND v_from = ?3"),
            [youngest.first_row, end, -youngest.piece],
        )?;
        if end < youngest.last_row {
            let sql = "UPDATE pieces SET first_row = ?2 WHERE piece = ?1";
            execute(connection, sql, [youngest.piece, end + 1])?;
            return Ok(again);
        }
        let sql = "UPDATE pieces SET first_row = last_row + 1 WHERE piece = ?1";
        execute(connection, sql, [youngest.piece])?;
    }
    if youngest.deleted > 0 && stamp_deleted(connection, youngest, LIVE, SLICE_ROWS)? == SLICE_ROWS {
        return Ok(again);
    }
    youngest.forget(connection)?;
    Ok(if youngest.piece == piece { Done::default() } else { again })
}

/// What a crash or an orderly end left undone.
pub(crate) fn left_undone(connection: &Connection) -> Result<Vec<Operation>> {
    let sql = "UPDATE pieces SET state = ?2 WHERE state = ?1";
    execute(connection, sql, [state::WRITING, state::REMOVING])?;
    execute(connection, "UPDATE shards SET dropped = 1, import = NULL WHERE import IS NOT NULL", [])?;
    let pieces = integers(connection, "SELECT piece FROM pieces WHERE state = ?1 ORDER BY piece", [state::REMOVING])?;
    let shards = integers(connection, "SELECT number FROM shards WHERE dropped = 1", [])?;
    let pieces = pieces.into_iter().map(|piece| Operation::RemoveSlice { piece });
    Ok(pieces.chain(shards.into_iter().map(|number| Operation::FreeShard { number })).collect())
}
