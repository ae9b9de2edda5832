//! Pieces -> messages to storage servers: Arrow IPC streams in the types of [`drsdb_core::transit`], each below the size that
//! a gRPC message may have.

use std::{mem, sync::Arc};

use arrow::{
    array::RecordBatch,
    compute::concat_batches,
    datatypes::{Schema, SchemaRef},
    ipc::writer::StreamWriter,
};
use drsdb_core::{
    ErrorCode, Result, Table, WireError, row_bytes,
    transit::{message_array, message_type},
};

use super::{split::key_transit_schema, stager::Rows};
use crate::load::transit_schema;

/// What a message aims at: each replica has some of them under way for each shard.
const TARGET_BYTES: usize = 256 << 10;
/// What a message may have: below the 16 MiB that servers accept.
pub const MAX_MESSAGE_BYTES: usize = 15 << 20;
/// Batches of fewer rows are put together: what a batch costs besides its rows would be more than the copy.
const MIN_BATCH_ROWS: usize = 256;
/// What a message needs beside its rows, about: the schema, and what a batch says of each column's buffers.
const OVERHEAD_BYTES: usize = 8 << 10;

/// The messages that carry a piece's rows, or keys, in order.
pub fn encode(table: &Table, rows: Rows, batches: &[RecordBatch]) -> Result<Vec<Vec<u8>>> {
    let schema = match rows {
        Rows::Inserted => transit_schema(table),
        Rows::Deleted => key_transit_schema(table),
    };
    let count: usize = batches.iter().map(RecordBatch::num_rows).sum();
    let together;
    let batches = match batches {
        [_] => batches,
        // Each batch of keys is looked for by itself.
        many if rows == Rows::Inserted && count >= many.len() * MIN_BATCH_ROWS => many,
        many => {
            together = [concat_batches(&schema, many)?];
            &together[..]
        }
    };
    let fields = schema.fields().iter().map(|field| {
        let data_type = message_type(field.data_type());
        field.as_ref().clone().with_data_type(data_type)
    });
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    let (mut encoded, mut message, mut message_bytes) = (Vec::new(), Vec::new(), 0);
    for batch in batches {
        let bytes = row_bytes(batch);
        let slices = bytes.div_ceil(TARGET_BYTES).max(1);
        let rows = batch.num_rows().div_ceil(slices).max(1);
        for start in (0..batch.num_rows()).step_by(rows) {
            if message_bytes + bytes / slices > TARGET_BYTES {
                encode_message(&schema, mem::take(&mut message), &mut encoded)?;
                message_bytes = 0;
            }
            message.push(batch.slice(start, rows.min(batch.num_rows() - start)));
            message_bytes += bytes / slices;
        }
    }
    encode_message(&schema, message, &mut encoded)?;
    Ok(encoded)
}

/// Appends a message of the schema with the batches in transit, or as many as they need.
fn encode_message(schema: &SchemaRef, mut batches: Vec<RecordBatch>, encoded: &mut Vec<Vec<u8>>) -> Result<()> {
    if batches.is_empty() {
        return Ok(());
    }
    let bytes: usize = batches.iter().map(row_bytes).sum();
    let mut writer = StreamWriter::try_new(Vec::with_capacity(bytes + OVERHEAD_BYTES), schema)?;
    for batch in &batches {
        let columns = batch.columns().iter().map(message_array).collect::<Result<_, _>>()?;
        writer.write(&RecordBatch::try_new(Arc::clone(schema), columns)?)?;
    }
    let message = writer.into_inner()?;
    if message.len() <= MAX_MESSAGE_BYTES {
        encoded.push(message);
        return Ok(());
    }
    drop(message);
    // Rows of very different sizes: halve until each half fits.
    let second = match &batches[..] {
        [one] if one.num_rows() == 1 => {
            let error = format!("a row of {} bytes; at most {MAX_MESSAGE_BYTES} are accepted", row_bytes(one));
            return Err(WireError::new(ErrorCode::ResourceExhausted, error)
                .with_hint("split large values into rows")
                .into());
        }
        [one] => {
            let half = one.num_rows() / 2;
            let second = vec![one.slice(half, one.num_rows() - half)];
            batches = vec![one.slice(0, half)];
            second
        }
        many => batches.split_off(many.len() / 2),
    };
    encode_message(schema, batches, encoded)?;
    encode_message(schema, second, encoded)
}
