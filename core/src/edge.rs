//! Edge types: what leaves the cluster.
//!
//! Inside, text and bytes are view arrays and ULIDs are 16 bytes; clients of every age read plain Utf8 and Binary only.
//! [`edge_schema`] is decided once, by the index server; [`EdgeConverter`] turns batches into it on the server that
//! streams them. Casting a view to a plain array also compacts it: the buffers a view shares stay behind.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch, RecordBatchOptions, StringBuilder, new_null_array},
    compute::{CastOptions, cast_with_options},
    datatypes::{DataType, Field, FieldRef, Schema, SchemaRef},
    util::display::FormatOptions,
};
use drsdb_proto::Ulid;

use crate::{Error, Result, table::SQL_TYPE_KEY};

/// Whether a field of a plan holds ULIDs.
pub fn is_ulid(field: &Field) -> bool {
    field.data_type() == &DataType::FixedSizeBinary(16)
        && field.metadata().get(SQL_TYPE_KEY).is_some_and(|sql_type| sql_type == "ULID")
}

/// The schema in which clients see rows of `planned`.
pub fn edge_schema(planned: &Schema) -> SchemaRef {
    Arc::new(Schema::new(planned.fields().iter().map(edge_field).collect::<Vec<FieldRef>>()))
}

fn edge_field(field: &FieldRef) -> FieldRef {
    let data_type = if is_ulid(field) { DataType::Utf8 } else { edge_type(field.data_type()) };
    Arc::new(field.as_ref().clone().with_data_type(data_type))
}

fn edge_type(planned: &DataType) -> DataType {
    match planned {
        DataType::Utf8View | DataType::LargeUtf8 => DataType::Utf8,
        DataType::BinaryView | DataType::LargeBinary => DataType::Binary,
        DataType::Dictionary(_, values) => edge_type(values),
        DataType::RunEndEncoded(_, values) => edge_type(values.data_type()),
        DataType::List(item) | DataType::ListView(item) => DataType::List(edge_field(item)),
        DataType::LargeList(item) | DataType::LargeListView(item) => DataType::LargeList(edge_field(item)),
        DataType::FixedSizeList(item, length) => DataType::FixedSizeList(edge_field(item), *length),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(edge_field).collect()),
        DataType::Map(entries, sorted) => DataType::Map(edge_field(entries), *sorted),
        other => other.clone(),
    }
}

/// Turns batches of a plan into batches of the edge schema.
#[derive(Debug, Clone)]
pub struct EdgeConverter {
    schema: SchemaRef,
    ulids: Vec<bool>,
}

impl EdgeConverter {
    /// A converter from batches of `planned` to `edge`, which [`edge_schema`] made of the same plan.
    pub fn new(planned: &Schema, edge: SchemaRef) -> Result<Self> {
        if planned.fields().len() != edge.fields().len() {
            return Err(Error::internal(format!(
                "a plan of {} columns cannot stream a result of {}",
                planned.fields().len(),
                edge.fields().len()
            )));
        }
        let ulids =
            planned.fields().iter().zip(edge.fields()).map(|(from, to)| {
                from.data_type() == &DataType::FixedSizeBinary(16) && to.data_type() == &DataType::Utf8
            });
        Ok(Self { ulids: ulids.collect(), schema: edge })
    }

    /// The edge schema.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// The batch in edge types.
    pub fn convert(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let columns = batch.columns().iter().zip(self.schema.fields()).zip(&self.ulids);
        let columns = columns.map(|((column, field), ulid)| {
            if *ulid {
                Ok(ulid_text(column))
            } else if column.data_type() == field.data_type() {
                Ok(Arc::clone(column))
            } else if column.data_type() == &DataType::Null {
                Ok(new_null_array(field.data_type(), column.len()))
            } else {
                let options = CastOptions { safe: false, format_options: FormatOptions::default() };
                cast_with_options(column, field.data_type(), &options).map_err(Error::from)
            }
        });
        let columns = columns.collect::<Result<Vec<ArrayRef>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)?)
    }
}

/// 16 bytes -> the 26 characters of a ULID.
pub fn ulid_text(column: &ArrayRef) -> ArrayRef {
    let bytes = column.as_fixed_size_binary();
    let mut text = StringBuilder::with_capacity(bytes.len(), bytes.len() * 26);
    for row in 0..bytes.len() {
        if bytes.is_null(row) {
            text.append_null();
        } else {
            let value: [u8; 16] = bytes.value(row).try_into().expect("the type has 16 bytes");
            text.append_value(Ulid::from_bytes(value).to_string());
        }
    }
    Arc::new(text.finish())
}

#[cfg(test)]
mod tests {
    use arrow::array::{FixedSizeBinaryArray, StringViewArray};

    use super::*;

    #[test]
    fn views_and_ulids_leave_as_plain_text() {
        let id = drsdb_proto::ids::new_ulid();
        let ulid_field = Field::new("id", DataType::FixedSizeBinary(16), true)
            .with_metadata([(SQL_TYPE_KEY.to_owned(), "ULID".to_owned())].into());
        let planned = Schema::new(vec![ulid_field, Field::new("t", DataType::Utf8View, true)]);
        let ids = FixedSizeBinaryArray::try_from_sparse_iter_with_size([Some(id.to_bytes()), None].into_iter(), 16);
        let batch = RecordBatch::try_new(
            Arc::new(planned.clone()),
            vec![Arc::new(ids.unwrap()), Arc::new(StringViewArray::from(vec![Some("x"), None]))],
        );
        let converter = EdgeConverter::new(&planned, edge_schema(&planned)).unwrap();
        let edge = converter.convert(&batch.unwrap()).unwrap();
        assert_eq!(edge.column(0).as_string::<i32>().value(0), id.to_string());
        assert!(edge.column(0).is_null(1));
        assert_eq!(edge.column(1).as_string::<i32>().value(0), "x");
    }
}
