//! Catalogs, schemas, tables and their types.

use std::{collections::HashMap, sync::Arc};

use arrow::{
    array::{RecordBatch, StringArray},
    datatypes::{DataType, Field, Schema},
};
use arrow_flight::sql::{CommandGetDbSchemas, CommandGetTables, metadata::GetCatalogsBuilder};
use drsdb_core::{Column, Result, SqlType, Table, TableName, edge::edge_schema};

use super::build_error;
use crate::{catalog::CatalogState, statement::CATALOG};

/// What users make, and what stands for a query.
const TABLE: &str = "TABLE";
const VIEW: &str = "VIEW";

/// GetCatalogs.
pub fn catalogs() -> Result<RecordBatch> {
    let mut builder = GetCatalogsBuilder::new();
    builder.append(CATALOG);
    builder.build().map_err(build_error)
}

/// GetTableTypes.
pub fn table_types() -> Result<RecordBatch> {
    let schema = Schema::new(vec![Field::new("table_type", DataType::Utf8, false)]);
    Ok(RecordBatch::try_new(Arc::new(schema), vec![Arc::new(StringArray::from(vec![TABLE, VIEW]))])?)
}

/// GetDbSchemas.
pub fn schemas(command: &CommandGetDbSchemas, state: &CatalogState) -> Result<RecordBatch> {
    let mut builder = command.clone().into_builder();
    for schema in state.schemas() {
        builder.append(CATALOG, schema);
    }
    builder.build().map_err(build_error)
}

/// GetTables.
pub fn tables(command: &CommandGetTables, state: &CatalogState) -> Result<RecordBatch> {
    let mut builder = command.clone().into_builder();
    let tables = state.user_tables().map(|state| (&state.table.name, state.table.columns.as_slice(), TABLE));
    let views = state.views().map(|view| (&view.name, view.columns.as_slice(), VIEW));
    for (name, columns, table_type) in tables.chain(views) {
        let schema = if command.include_schema { described_schema(name, columns) } else { Schema::empty() };
        builder.append(CATALOG, &name.schema, &name.table, table_type, &schema).map_err(build_error)?;
    }
    builder.build().map_err(build_error)
}

/// The edge schema, with the metadata by which drivers know SQL types.
fn described_schema(name: &TableName, columns: &[Column]) -> Schema {
    let columns: Vec<Column> = columns.iter().filter(|column| column.is_visible()).cloned().collect();
    let shown = Table { name: name.clone(), columns, ..Table::default() };
    let edge = edge_schema(&shown.arrow_schema());
    let fields = edge.fields().iter().zip(&shown.columns).map(|(field, column)| {
        let mut metadata: HashMap<String, String> = field.metadata().clone();
        let mut add = |key: &str, value: String| metadata.insert(format!("ARROW:FLIGHT:SQL:{key}"), value);
        add("CATALOG_NAME", CATALOG.to_owned());
        add("SCHEMA_NAME", name.schema.clone());
        add("TABLE_NAME", name.table.clone());
        add("TYPE_NAME", column.sql_type.to_string());
        add("IS_CASE_SENSITIVE", if column.sql_type.is_text() { "1" } else { "0" }.to_owned());
        add("IS_AUTO_INCREMENT", "0".to_owned());
        if let Some(comment) = &column.comment {
            add("REMARKS", comment.clone());
        }
        match column.sql_type {
            SqlType::Decimal { precision, scale } => {
                add("PRECISION", precision.to_string());
                add("SCALE", scale.to_string());
            }
            SqlType::Char { length } | SqlType::Varchar { length: Some(length) } => {
                add("PRECISION", length.to_string());
            }
            _ => {}
        }
        Arc::new(Field::clone(field).with_metadata(metadata))
    });
    Schema::new(fields.collect::<Vec<_>>())
}
