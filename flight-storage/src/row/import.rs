//! Replacing a shard: the rows go into an SQLite table of their own, which takes the shard's place in the step that ends
//! the import. Until then, and if it never ends, the shard is what it was.

use std::sync::Arc;

use arrow::array::RecordBatch;
use drsdb_core::{Error, ErrorCode, Result, Table};
use rusqlite::{Connection, params};

use super::{
    changes::insert_rows,
    file::execute,
    operations::{Done, Operation},
    primary_key::Keys,
    shards::{check_not_dropped, create_shard, find_import, find_shard, give_up_shard},
};
use crate::engine::ShardId;

/// Rows of an import, or a part of them.
#[derive(Debug)]
pub(crate) struct Import {
    /// A number that no piece and no other import has.
    pub(crate) piece: i64,
    /// From when the rows are visible.
    pub(crate) version: i64,
    pub(crate) table: Arc<Table>,
    pub(crate) shard: u32,
    pub(crate) rows: Vec<RecordBatch>,
    /// Whether the import begins with this.
    pub(crate) first: bool,
    /// Whether it ends with this.
    pub(crate) finish: bool,
}

impl Import {
    /// Takes the rows; the last part puts them in the shard's place.
    pub(crate) fn run(&self, connection: &Connection) -> Result<Done> {
        check_not_dropped(connection, &self.table)?;
        let import = match find_import(connection, self.piece)? {
            Some(import) => import,
            None if self.first => create_shard(connection, &self.table, None, Some(self.piece))?,
            None => {
                let message = format!("table {} was dropped while a shard of it came in", self.table.name);
                return Err(Error::new(ErrorCode::NotFound, message));
            }
        };
        let mut done = Done::default();
        for rows in &self.rows {
            let keys = Keys::of_rows(&self.table, rows)?;
            let twice = |row| Err(keys.violation(row, "comes twice in an import"));
            done.bytes += insert_rows(connection, &self.table, &import, self.version, rows, twice)?.bytes;
        }
        if self.finish {
            if let Some(old) = find_shard(connection, ShardId { table: self.table.id, shard: self.shard })? {
                give_up_shard(connection, old.number)?;
                done.later.push(Operation::FreeShard { number: old.number });
            }
            execute(
                connection,
                "UPDATE shards SET shard = ?2, import = NULL WHERE number = ?1",
                params![import.number, self.shard],
            )?;
        }
        Ok(done)
    }
}

/// Gives up an import whose writer went away.
pub(crate) fn abandon_import(connection: &Connection, piece: i64) -> Result<Done> {
    let Some(import) = find_import(connection, piece)? else { return Ok(Done::default()) };
    give_up_shard(connection, import.number)?;
    Ok(Done { later: vec![Operation::FreeShard { number: import.number }], ..Done::default() })
}
