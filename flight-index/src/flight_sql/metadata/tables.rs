//! Catalogs, schemas, tables and their types.

use std::{collections::HashMap, sync::Arc};

use arrow::{
    array::{RecordBatch, StringArray},
    datatypes::{DataType, Field, Schema},
};
use arrow_flight::sql::{CommandGetDbSchemas, CommandGetTables, metadata::GetCatalogsBuilder};
use drsdb_core::{Result, SqlType, Table, edge::edge_schema};

use super::build_error;
use crate::{catalog::CatalogState, statement::CATALOG};

/// The only type of tables there is.
const TABLE: &str = "TABLE";

/// GetCatalogs.
pub fn catalogs() -> Result<RecordBatch> {
    let mut builder = GetCatalogsBuilder::new();
    builder.append(CATALOG);
    builder.build().map_err(build_error)
}

/// GetTableTypes.
pub fn table_types() -> Result<RecordBatch> {
    let schema = Schema::new(vec![Field::new("table_type", DataType::Utf8, false)]);
    Ok(RecordBatch::try_new(Arc::new(schema), vec![Arc::new(StringArray::from(vec![TABLE]))])?)
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
    for state in state.tables() {
        let table = &state.table;
        let schema = if command.include_schema { described_schema(table) } else { Schema::empty() };
        builder.append(CATALOG, &table.name.schema, &table.name.table, TABLE, &schema).map_err(build_error)?;
    }
    builder.build().map_err(build_error)
}

/// The edge schema, with the metadata by which drivers know SQL types.
fn described_schema(table: &Table) -> Schema {
    let edge = edge_schema(&table.arrow_schema());
    let fields = edge.fields().iter().zip(&table.columns).map(|(field, column)| {
        let mut metadata: HashMap<String, String> = field.metadata().clone();
        let mut add = |key: &str, value: String| metadata.insert(format!("ARROW:FLIGHT:SQL:{key}"), value);
        add("CATALOG_NAME", CATALOG.to_owned());
        add("SCHEMA_NAME", table.name.schema.clone());
        add("TABLE_NAME", table.name.table.clone());
        add("TYPE_NAME", column.sql_type.to_string());
        add("IS_CASE_SENSITIVE", if column.sql_type.is_text() { "1" } else { "0" }.to_owned());
        add("IS_AUTO_INCREMENT", "0".to_owned());
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
