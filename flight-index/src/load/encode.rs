//! Pieces -> messages to storage servers: Arrow IPC streams of the stored schema, each below the size that a gRPC
//! message may have.

use arrow::{array::RecordBatch, compute::concat_batches, ipc::writer::StreamWriter};
use drsdb_core::{ErrorCode, Result, Table, WireError};

use super::{
    convert::transit_schema,
    split::{batch_bytes, stored_batch},
};

/// What a message aims at.
const TARGET_BYTES: usize = 2 << 20;
/// What a message may have: below the 16 MiB that servers accept.
pub const MAX_MESSAGE_BYTES: usize = 15 << 20;

/// The messages that carry a piece's rows, in order.
pub fn encode(table: &Table, batches: &[RecordBatch]) -> Result<Vec<Vec<u8>>> {
    let all = match batches {
        [one] => one.clone(),
        many => concat_batches(&transit_schema(table), many)?,
    };
    let messages = batch_bytes(&all).div_ceil(TARGET_BYTES).max(1);
    let rows = all.num_rows().div_ceil(messages).max(1);
    let mut encoded = Vec::with_capacity(messages);
    for start in (0..all.num_rows()).step_by(rows) {
        encode_rows(table, all.slice(start, rows.min(all.num_rows() - start)), &mut encoded)?;
    }
    Ok(encoded)
}

fn encode_rows(table: &Table, rows: RecordBatch, encoded: &mut Vec<Vec<u8>>) -> Result<()> {
    let stored = stored_batch(table, &rows)?;
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
    encode_rows(table, rows.slice(0, half), encoded)?;
    encode_rows(table, rows.slice(half, rows.num_rows() - half), encoded)
}
