//! What a snapshot, and a transaction with changes of its own, sees of a shard: a condition on `v_from` and `v_to`.
//!
//! A row is seen from the version that made it until the version that ended it. Where a row names a piece instead, what
//! counts is whether the piece has taken effect: it is a large one that committed by then, or it is the reader's own and
//! of a statement that the reader is to see. A deletion that has not taken effect leaves the row as it was.

use drsdb_core::{Result, scan::OwnWrites};
use rusqlite::{Connection, params_from_iter, types::Value};

use super::{
    error::Context,
    file::{id_bytes, state},
};

/// A condition over the columns of shard `number`, and what its `?` stand for.
pub(crate) fn visible(
    connection: &Connection,
    number: i64,
    snapshot: i64,
    own: Option<OwnWrites>,
) -> Result<(String, Vec<Value>)> {
    let mut pieces = "FROM pieces WHERE shard = ? AND (state = ? AND version <= ?".to_owned();
    let mut of_pieces = vec![Value::Integer(number), Value::Integer(state::COMMITTED), Value::Integer(snapshot)];
    if let Some(own) = own {
        pieces += " OR state = ? AND transaction_id = ? AND sequence <= ?";
        of_pieces.extend([
            Value::Integer(state::STAGED),
            Value::Blob(id_bytes(own.transaction).to_vec()),
            Value::Integer(own.sequence.into()),
        ]);
    }
    pieces += ")";
    // Mostly there are none, and nothing needs to be looked up for a row.
    let any = connection
        .prepare_cached(&format!("SELECT 1 {pieces}"))
        .and_then(|mut statement| statement.exists(params_from_iter(&of_pieces)))
        .context("looking for pieces that have taken effect")?;
    let snapshot = Value::Integer(snapshot);
    // The `+` keeps SQLite from looking a key up twice, once for either side of the OR.
    if !any {
        let condition = "(+v_to > ? OR +v_to < 0) AND v_from BETWEEN 0 AND ?".to_owned();
        return Ok((condition, vec![snapshot.clone(), snapshot]));
    }
    let condition = format!(
        "(+v_to > ? OR (+v_to < 0 AND v_to NOT IN (SELECT -piece {pieces}))) \
         AND (v_from BETWEEN 0 AND ? OR v_from IN (SELECT -piece {pieces}))"
    );
    let mut parameters = vec![snapshot.clone()];
    parameters.extend(of_pieces.iter().cloned());
    parameters.push(snapshot);
    parameters.extend(of_pieces);
    Ok((condition, parameters))
}
