//! Pieces -> messages to storage servers: Arrow IPC streams of stored types, each below the size that a gRPC message may
//! have.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, RecordBatch},
    compute::concat_batches,
    datatypes::SchemaRef,
    ipc::writer::StreamWriter,
};
use drsdb_core::{ErrorCode, Result, Table, WireError};

use super::{
    split::{batch_bytes, key_transit_schema},
    stager::Rows,
};
use crate::load::{stored_column, transit_schema};

/// What a message aims at: each replica has some of them under way for each shard.
const TARGET_BYTES: usize = 256 << 10;
/// What a message may have: below the 16 MiB that servers accept.
pub const MAX_MESSAGE_BYTES: usize = 15 << 20;

/// The messages that carry a piece's rows, or keys, in order.
pub fn encode(table: &Table, rows: Rows, batches: &[RecordBatch]) -> Result<Vec<Vec<u8>>> {
    let form = match rows {
        Rows::Inserted => Form {
            transit: transit_schema(table),
            stored: table.arrow_schema(),
            positions: (0..table.columns.len()).collect(),
            table,
        },
        Rows::Deleted => Form {
            transit: key_transit_schema(table),
            stored: table.key_schema(),
            positions: table.primary_key.clone(),
            table,
        },
    };
    let all = match batches {
        [one] => one.clone(),
        many => concat_batches(&form.transit, many)?,
    };
    let messages = batch_bytes(&all).div_ceil(TARGET_BYTES).max(1);
    let rows = all.num_rows().div_ceil(messages).max(1);
    let mut encoded = Vec::with_capacity(messages);
    for start in (0..all.num_rows()).step_by(rows) {
        form.encode(all.slice(start, rows.min(all.num_rows() - start)), &mut encoded)?;
    }
    Ok(encoded)
}

/// Which columns of the table there are, and how they are stored.
struct Form<'a> {
    table: &'a Table,
    transit: SchemaRef,
    stored: SchemaRef,
    positions: Vec<usize>,
}

impl Form<'_> {
    fn encode(&self, rows: RecordBatch, encoded: &mut Vec<Vec<u8>>) -> Result<()> {
        let columns = rows
            .columns()
            .iter()
            .zip(&self.positions)
            .map(|(array, &position)| stored_column(array, self.table.columns[position].sql_type));
        let columns = columns.collect::<Result<Vec<ArrayRef>, _>>()?;
        let stored = RecordBatch::try_new(Arc::clone(&self.stored), columns)?;
        let mut writer = StreamWriter::try_new(Vec::new(), &stored.schema())?;
        writer.write(&stored)?;
        let message = writer.into_inner()?;
        if message.len() <= MAX_MESSAGE_BYTES {
            encoded.push(message);
            return Ok(());
        }
        drop(message);
        if rows.num_rows() == 1 {
            let error = format!("a row of {} bytes; at most {MAX_MESSAGE_BYTES} are accepted", batch_bytes(&rows));
            return Err(WireError::new(ErrorCode::ResourceExhausted, error)
                .with_hint("split large values into rows")
                .into());
        }
        // Rows of very different sizes: halve until each half fits.
        let half = rows.num_rows() / 2;
        self.encode(rows.slice(0, half), encoded)?;
        self.encode(rows.slice(half, rows.num_rows() - half), encoded)
    }
}
