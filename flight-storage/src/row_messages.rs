//! Messages with rows, or their keys, from other servers: decoded, and handed to an engine.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, RecordBatch},
    buffer::Buffer,
    datatypes::{FieldRef, SchemaRef},
    ipc::reader::StreamDecoder,
};
use drsdb_core::{
    Error, ErrorCode, Result, Table,
    transit::{message_type, stored_array},
    v1::stage_request::Part,
};

use crate::engine::{StageWriter, StagedPiece};

/// Hands one message of a staged call to the engine.
pub fn take(writer: &mut dyn StageWriter, table: &Table, part: Option<Part>) -> Result<()> {
    match part {
        Some(Part::Batch(bytes)) => {
            let schema = table.arrow_schema();
            batches(bytes, &schema, |batch| writer.write(batch))
        }
        Some(Part::Deletes(bytes)) => {
            let schema = table.key_schema();
            batches(bytes, &schema, |batch| writer.delete(batch))
        }
        Some(Part::Header(_)) | None => Err(broken("a second header in a load")),
    }
}

/// How many rows one message of a staged call inserts and deletes. Checks it as well, so that what is kept can be staged.
pub fn count(table: &Table, part: Option<&Part>) -> Result<StagedPiece> {
    let mut piece = StagedPiece::default();
    match part {
        Some(Part::Batch(bytes)) => batches(bytes.clone(), &table.arrow_schema(), |batch| {
            piece.rows += batch.num_rows() as u64;
            Ok(())
        })?,
        Some(Part::Deletes(bytes)) => batches(bytes.clone(), &table.key_schema(), |batch| {
            piece.deleted += batch.num_rows() as u64;
            Ok(())
        })?,
        Some(Part::Header(_)) | None => {}
    }
    Ok(piece)
}

/// Each batch of an Arrow IPC stream, which must have the types of `schema`, or those of messages
/// ([`drsdb_core::transit`]).
pub fn batches(
    bytes: bytes::Bytes,
    schema: &SchemaRef,
    mut each: impl FnMut(&RecordBatch) -> Result<()>,
) -> Result<()> {
    // Arrays point into the message where they can: a reader would copy each batch first, into memory that it clears.
    let mut rest = Buffer::from(bytes);
    let mut decoder = StreamDecoder::new();
    while let Some(batch) = decoder.decode(&mut rest)? {
        each(&stored(&batch, schema)?)?;
    }
    decoder.finish()?;
    match decoder.schema() {
        Some(_) => Ok(()),
        None => Err(broken("rows without a schema")),
    }
}

/// The batch in the types that it must have.
fn stored(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let fields = schema.fields();
    let fits = |(array, field): (&ArrayRef, &FieldRef)| {
        array.data_type() == field.data_type() || *array.data_type() == message_type(field.data_type())
    };
    if batch.num_columns() != fields.len() || !batch.columns().iter().zip(fields).all(fits) {
        return Err(broken("rows of another schema than the table's"));
    }
    let columns = batch.columns().iter().zip(fields).map(|(array, field)| stored_array(array, field.data_type()));
    Ok(RecordBatch::try_new(Arc::clone(schema), columns.collect::<Result<_, _>>()?)?)
}

/// The error of a message that cannot be what an index server sends.
pub fn broken(what: &str) -> Error {
    Error::new(ErrorCode::InvalidArgument, format!("a message between servers is broken: {what}"))
}
