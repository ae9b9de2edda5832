//! Compaction of the rows: versions that nobody can read are removed, and large commits are folded into their rows, so that
//! scans need not look their pieces up. A slice at a time; each is complete in itself, so it may stop anywhere.

use drsdb_core::Result;
use rusqlite::{Connection, params};

use super::{
    file::{LIVE, execute, integers, snapshot_integer, state},
    operations::Done,
    outcome::{Piece, SLICE_ROWS, stamp_deleted, stamp_inserted},
    shards::table_name,
};

/// Whether there is anything to do: each group of writes leaves something in the log, even one that changes nothing.
pub(crate) fn is_due(connection: &Connection, horizon: u64) -> Result<bool> {
    if !integers(connection, "SELECT 1 FROM pieces WHERE state = ?1 LIMIT 1", [state::COMMITTED])?.is_empty() {
        return Ok(true);
    }
    for shard in shards_with_deletions(connection)? {
        if newest_ended(connection, &table_name(shard), snapshot_integer(horizon), 1)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Does one slice; [`Done::more`] says whether there is more to do.
pub(crate) fn compact(connection: &Connection, horizon: u64) -> Result<Done> {
    let committed = Piece::find(connection, "state = ?1 ORDER BY piece LIMIT 1", [state::COMMITTED])?;
    let more = match committed.first() {
        Some(piece) => {
            fold_slice(connection, piece)?;
            true
        }
        None => forget_slice(connection, snapshot_integer(horizon))?,
    };
    Ok(Done { more, ..Done::default() })
}

/// Writes the version of a large commit into some of its rows. What a snapshot sees stays the same.
fn fold_slice(connection: &Connection, piece: &Piece) -> Result<()> {
    let &Piece { version, first_row, last_row, .. } = piece;
    if first_row <= last_row {
        let end = last_row.min(first_row + SLICE_ROWS - 1);
        // Rows that the same transaction ended again were never to be seen. The others that a piece of it ended are older.
        let name = table_name(piece.shard);
        execute(
            connection,
            &format!(
                "DELETE FROM {name} WHERE rowid BETWEEN ?1 AND ?2 AND v_from = ?3 AND v_to <> {LIVE}
                 AND (v_to = ?4 OR v_to IN (SELECT -piece FROM pieces WHERE state = ?5 AND version = ?4))"
            ),
            params![first_row, end, -piece.piece, version, state::COMMITTED],
        )?;
        stamp_inserted(connection, piece, version, first_row, end)?;
        let sql = "UPDATE pieces SET first_row = ?2 WHERE piece = ?1";
        execute(connection, sql, [piece.piece, end + 1])?;
        return Ok(());
    }
    if piece.deleted > 0 {
        let name = table_name(piece.shard);
        let deleted = execute(
            connection,
            &format!(
                "DELETE FROM {name} WHERE rowid IN (
                     SELECT rowid FROM {name} INDEXED BY {name}_ended WHERE v_to = ?1 AND v_to < {LIVE} LIMIT ?2
                 ) AND (v_from = ?3 OR v_from IN (SELECT -piece FROM pieces WHERE state = ?4 AND version = ?3))"
            ),
            params![-piece.piece, SLICE_ROWS, version, state::COMMITTED],
        )? as i64;
        if stamp_deleted(connection, piece, version, SLICE_ROWS - deleted)? + deleted == SLICE_ROWS {
            return Ok(());
        }
    }
    piece.forget(connection)
}

/// Removes some rows that were ended up to `horizon`; answers whether there may be more.
fn forget_slice(connection: &Connection, horizon: i64) -> Result<bool> {
    let mut left = SLICE_ROWS;
    for shard in shards_with_deletions(connection)? {
        let name = table_name(shard);
        let Some(newest) = newest_ended(connection, &name, horizon, left)? else { continue };
        let ended = ended_rows(&name);
        let removed =
            execute(connection, &format!("DELETE FROM {name} WHERE rowid IN (SELECT rowid {ended})"), [horizon, left])?;
        let sql = "UPDATE shard_versions SET forgotten = max(forgotten, ?2) WHERE shard = ?1";
        execute(connection, sql, [shard, newest])?;
        left -= removed as i64;
        if left <= 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A shard without deletions has nothing to forget, and needs no look.
fn shards_with_deletions(connection: &Connection) -> Result<Vec<i64>> {
    let sql = "SELECT shard FROM shard_versions WHERE shard IN (SELECT number FROM shards WHERE shard IS NOT NULL)";
    integers(connection, sql, [])
}

/// The oldest `?2` rows of a shard that were ended up to `?1`.
fn ended_rows(name: &str) -> String {
    format!("FROM {name} INDEXED BY {name}_ended WHERE v_to BETWEEN 0 AND ?1 AND v_to < {LIVE} ORDER BY v_to LIMIT ?2")
}

/// The newest of the first `rows` ends up to `horizon`.
fn newest_ended(connection: &Connection, name: &str, horizon: i64, rows: i64) -> Result<Option<i64>> {
    let sql = format!("SELECT coalesce(max(v_to), 0) FROM (SELECT v_to {})", ended_rows(name));
    let newest = integers(connection, &sql, [horizon, rows])?;
    Ok(newest.first().copied().filter(|newest| *newest > 0))
}
