//! SHOW TABLES, SHOW SCHEMAS, SHOW COLUMNS and DESCRIBE, SHOW setting.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, BooleanArray, RecordBatch, StringArray, UInt32Array, UInt64Array},
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use drsdb_core::{Column, Result, Table};

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
            Field::new("default", DataType::Utf8, true),
            Field::new("comment", DataType::Utf8, true),
        ],
        // `version` and the first digits of `state_hash` are of an index server's state, `replicas` lie on a storage server.
        Show::Cluster => vec![
            text("kind"),
            text("id"),
            text("url"),
            text("state"),
            Field::new("version", DataType::UInt64, true),
            Field::new("state_hash", DataType::Utf8, true),
            Field::new("replicas", DataType::UInt64, true),
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
            let tables = state.user_tables().map(|state| {
                let table = &state.table;
                (&table.name, table.engine.as_str(), table.shards, state.rows(), state.bytes())
            });
            let views = state.views().map(|view| (&view.name, "view", 0, 0, 0));
            let mut shown: Vec<_> = tables.chain(views).filter(|(name, ..)| wanted(&name.schema)).collect();
            shown.sort_unstable();
            vec![
                texts(shown.iter().map(|(name, ..)| name.schema.as_str())),
                texts(shown.iter().map(|(name, ..)| name.table.as_str())),
                texts(shown.iter().map(|(_, engine, ..)| *engine)),
                Arc::new(UInt32Array::from_iter_values(shown.iter().map(|shown| shown.2))),
                Arc::new(UInt64Array::from_iter_values(shown.iter().map(|shown| shown.3))),
                Arc::new(UInt64Array::from_iter_values(shown.iter().map(|shown| shown.4))),
            ]
        }
        Show::Schemas => vec![texts(state.schemas())],
        Show::Columns(name) => {
            let (columns, keys): (Vec<&Column>, Vec<Option<String>>) = match state.view(name) {
                Some(view) => view.columns.iter().map(|column| (column, None)).unzip(),
                None => {
                    let table = &state.find_table(name)?.table;
                    table.visible_columns().map(|(at, column)| (column, key_of(table, at, state))).unzip()
                }
            };
            vec![
                texts(columns.iter().map(|column| column.name.as_str())),
                Arc::new(StringArray::from_iter_values(columns.iter().map(|column| column.sql_type.to_string()))),
                Arc::new(BooleanArray::from_iter(columns.iter().map(|column| Some(!column.not_null)))),
                Arc::new(StringArray::from(keys)),
                Arc::new(columns.iter().map(|column| column.default.as_deref()).collect::<StringArray>()),
                Arc::new(columns.iter().map(|column| column.comment.as_deref()).collect::<StringArray>()),
            ]
        }
        Show::Setting(name) => {
            let name = if name == "timezone" { "time_zone" } else { name.as_str() };
            let value = session.get(name)?;
            let description = SETTINGS.iter().find(|(setting, _)| *setting == name).map_or("", |(_, what)| what);
            vec![texts([name].into_iter()), texts([value.as_str()].into_iter()), texts([description].into_iter())]
        }
        Show::Cluster => {
            return Err(drsdb_core::Error::internal("the servers are asked, and not looked up"));
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

/// `primary key`, `unique`, `foreign key -> parent`, or several of them.
fn key_of(table: &Table, column: usize, state: &CatalogState) -> Option<String> {
    let mut keys = Vec::new();
    if table.primary_key.contains(&column) {
        keys.push("primary key".to_owned());
    }
    if table.uniques.iter().any(|key| key.columns.contains(&column)) {
        keys.push("unique".to_owned());
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
