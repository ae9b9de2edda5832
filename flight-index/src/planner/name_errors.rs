//! Errors about names, with the nearest name that does exist.

use datafusion::{common::SchemaError, error::DataFusionError};
use drsdb_core::{Error, ErrorCode, TableName, WireError, nearest_name};

use super::{catalog_view::CatalogView, system_tables};

/// Turns an error of the SQL planner into drsdb's own where it is about a column's name.
pub fn explain_column(error: DataFusionError) -> Error {
    if let DataFusionError::SchemaError(schema_error, _) = error.find_root()
        && let SchemaError::FieldNotFound { field, valid_fields } = schema_error.as_ref()
    {
        let wire = WireError::new(ErrorCode::NotFound, format!("column {} does not exist", field.flat_name()))
            .with_field("column", field.flat_name());
        let names = valid_fields.iter().map(|column| column.name.as_str());
        return match nearest_name(&field.name, names) {
            Some(nearest) => wire.with_hint(format!("did you mean {nearest}?")),
            None => wire,
        }
        .into();
    }
    error.into()
}

/// Turns an error of the SQL planner into drsdb's own where it is about a name.
pub fn explain(error: DataFusionError, catalog: &CatalogView) -> Error {
    let root = error.find_root();
    if let DataFusionError::Plan(message) = root
        && let Some(rest) = message.strip_prefix("table '")
        && let Some((name, _)) = rest.split_once("' not found")
    {
        let mut parts = name.rsplitn(3, '.');
        let table = parts.next().unwrap_or(name);
        let schema = parts.next().unwrap_or("public");
        if system_tables::SCHEMAS.contains(&schema) {
            return no_system_table(schema, table);
        }
        if let Err(not_found) = catalog.state().find_table(&TableName::new(schema, table)) {
            return not_found;
        }
    }
    if let DataFusionError::Plan(message) = root
        && message.starts_with("Invalid function '")
    {
        return WireError::new(ErrorCode::NotFound, message.lines().next().unwrap_or(message)).into();
    }
    if let DataFusionError::Plan(message) = root
        && (message.contains("type_coercion")
            || message.contains("Cannot coerce")
            || message.contains("cannot be converted"))
    {
        return WireError::new(ErrorCode::TypeMismatch, message.clone()).into();
    }
    explain_column(error)
}

fn no_system_table(schema: &str, table: &str) -> Error {
    let name = TableName::new(schema, table);
    let error = WireError::new(ErrorCode::NotFound, format!("table {name} does not exist")).with_field("table", &name);
    match nearest_name(table, system_tables::names(schema)) {
        Some(nearest) => error.with_hint(format!("did you mean {schema}.{nearest}?")),
        None => {
            let names: Vec<&str> = system_tables::names(schema).collect();
            error.with_hint(format!("schema {schema} has the tables {}", names.join(", ")))
        }
    }
    .into()
}
