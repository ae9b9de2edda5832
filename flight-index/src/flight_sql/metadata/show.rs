//! SHOW TABLES, SHOW SCHEMAS, SHOW COLUMNS and DESCRIBE, SHOW setting.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, BooleanArray, RecordBatch, StringArray, UInt32Array, UInt64Array},
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use drsdb_core::{Result, Table};

use crate::{
    catalog::CatalogState,
    flight_sql::session::{SETTINGS, Session},
    statement::Show,
};

/// The columns of SHOW's answer.
pub fn show_schema(show: &Show) -> SchemaRef {
    let text = |name: &str| Field::new(name, DataType::Utf8, false);
    let number = |name: &str, data_type| Field::new(name, data_type, false);
    Arc::new(Schema::new(match show {
        Show::Tables(_) => vec![
            text("table_schema"),
            text("table_name"),
            text("engine"),
            number("shards", DataType::UInt32),
            number("rows", DataType::UInt64),
            number("bytes", DataType::UInt64),
        ],
        Show::Schemas => vec![text("schema_name")],
        Show::Columns(_) => vec![
            text("column_name"),
            text("data_type"),
            number("is_nullable", DataType::Boolean),
            Field::new("key", DataType::Utf8, true),
        ],
        Show::Setting(_) | Show::AllSettings => vec![text("name"), text("value"), text("description")],
    }))
}

/// SHOW's answer.
pub fn show(show: &Show, state: &CatalogState, session: &Session) -> Result<RecordBatch> {
    let columns: Vec<ArrayRef> = match show {
        Show::Tables(schema) => {
            if let Some(schema) = schema {
                require_schema(state, schema)?;
            }
            let wanted = |name: &str| schema.as_deref().is_none_or(|schema| schema == name);
            let mut tables: Vec<_> = state.tables().filter(|state| wanted(&state.table.name.schema)).collect();
            tables.sort_by_key(|state| &state.table.name);
            vec![
                texts(tables.iter().map(|state| state.table.name.schema.as_str())),
                texts(tables.iter().map(|state| state.table.name.table.as_str())),
                texts(tables.iter().map(|state| state.table.engine.as_str())),
                Arc::new(UInt32Array::from_iter_values(tables.iter().map(|state| state.table.shards))),
                Arc::new(UInt64Array::from_iter_values(tables.iter().map(|state| state.rows()))),
                Arc::new(UInt64Array::from_iter_values(tables.iter().map(|state| state.bytes()))),
            ]
        }
        Show::Schemas => vec![texts(state.schemas())],
        Show::Columns(name) => {
            let table = &state.find_table(name)?.table;
            let keys: Vec<Option<String>> =
                (0..table.columns.len()).map(|column| key_of(table, column, state)).collect();
            vec![
                texts(table.columns.iter().map(|column| column.name.as_str())),
                Arc::new(StringArray::from_iter_values(table.columns.iter().map(|column| column.sql_type.to_string()))),
                Arc::new(BooleanArray::from_iter(table.columns.iter().map(|column| Some(!column.not_null)))),
                Arc::new(StringArray::from(keys)),
            ]
        }
        Show::Setting(name) => {
            let name = if name == "timezone" { "time_zone" } else { name.as_str() };
            let value = session.get(name)?;
            let description = SETTINGS.iter().find(|(setting, _)| *setting == name).map_or("", |(_, what)| what);
            vec![texts([name].into_iter()), texts([value.as_str()].into_iter()), texts([description].into_iter())]
        }
        Show::AllSettings => {
            let values = SETTINGS.iter().map(|(name, _)| session.get(name)).collect::<Result<Vec<_>>>()?;
            vec![
                texts(SETTINGS.iter().map(|(name, _)| *name)),
                texts(values.iter().map(String::as_str)),
                texts(SETTINGS.iter().map(|(_, description)| *description)),
            ]
        }
    };
    Ok(RecordBatch::try_new(show_schema(show), columns)?)
}

/// `primary key`, `foreign key -> parent`, or both.
fn key_of(table: &Table, column: usize, state: &CatalogState) -> Option<String> {
    let mut keys = Vec::new();
    if table.primary_key.contains(&column) {
        keys.push("primary key".to_owned());
    }
    for key in table.foreign_keys.iter().filter(|key| key.columns.contains(&column)) {
        if let Some(parent) = state.table(key.parent) {
            keys.push(format!("foreign key -> {}", parent.table.name));
        }
    }
    (!keys.is_empty()).then(|| keys.join(", "))
}

fn require_schema(state: &CatalogState, name: &str) -> Result<()> {
    if state.has_schema(name) {
        return Ok(());
    }
    let error = drsdb_core::WireError::new(drsdb_core::ErrorCode::NotFound, format!("schema {name} does not exist"));
    Err(match drsdb_core::nearest_name(name, state.schemas()) {
        Some(near) => error.with_hint(format!("did you mean {near}?")),
        None => error,
    }
    .into())
}

fn texts<'a>(values: impl Iterator<Item = &'a str>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(values))
}
