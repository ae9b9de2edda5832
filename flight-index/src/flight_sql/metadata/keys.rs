//! Primary and foreign keys.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, Int32Array, RecordBatch, StringArray, UInt8Array},
    datatypes::{DataType, Field, Schema},
};
use arrow_flight::sql::{
    CommandGetCrossReference, CommandGetExportedKeys, CommandGetImportedKeys, CommandGetPrimaryKeys, UpdateDeleteRules,
};
use drsdb_core::{ForeignKey, ReferentialAction, Result, Table};

use super::allows;
use crate::{catalog::CatalogState, statement::CATALOG};

/// Which tables a command is about.
struct Filter<'a> {
    catalog: Option<&'a str>,
    schema: Option<&'a str>,
    table: &'a str,
}

impl Filter<'_> {
    fn allows(&self, table: &Table) -> bool {
        allows(self.catalog, CATALOG) && allows(self.schema, &table.name.schema) && self.table == table.name.table
    }
}

/// GetPrimaryKeys.
pub fn primary_keys(command: &CommandGetPrimaryKeys, state: &CatalogState) -> Result<RecordBatch> {
    let filter =
        Filter { catalog: command.catalog.as_deref(), schema: command.db_schema.as_deref(), table: &command.table };
    let mut rows = Vec::new();
    for table in state.user_tables().map(|state| &state.table).filter(|table| filter.allows(table)) {
        // A table without a key of its users' has none to show.
        let Some(name) = table.key_name() else { continue };
        for (sequence, &position) in table.primary_key.iter().enumerate() {
            rows.push((table, table.columns[position].name.as_str(), sequence as i32 + 1, name.clone()));
        }
    }
    rows.sort_by(|a, b| (&a.0.name, &a.3, a.2).cmp(&(&b.0.name, &b.3, b.2)));
    let text = |name: &str, nullable| Field::new(name, DataType::Utf8, nullable);
    let schema = Schema::new(vec![
        text("catalog_name", true),
        text("db_schema_name", true),
        text("table_name", false),
        text("column_name", false),
        text("key_name", true),
        Field::new("key_sequence", DataType::Int32, false),
    ]);
    let columns: Vec<ArrayRef> = vec![
        texts(rows.iter().map(|_| CATALOG)),
        texts(rows.iter().map(|row| row.0.name.schema.as_str())),
        texts(rows.iter().map(|row| row.0.name.table.as_str())),
        texts(rows.iter().map(|row| row.1)),
        texts(rows.iter().map(|row| row.3.as_str())),
        Arc::new(Int32Array::from_iter_values(rows.iter().map(|row| row.2))),
    ];
    Ok(RecordBatch::try_new(Arc::new(schema), columns)?)
}

/// One column of one foreign key.
struct KeyColumn<'a> {
    parent: &'a Table,
    parent_column: &'a str,
    child: &'a Table,
    child_column: &'a str,
    sequence: i32,
    key: &'a ForeignKey,
}

/// The name of the key that a foreign key refers to.
fn referenced_key_name(row: &KeyColumn<'_>) -> Option<String> {
    let columns = &row.key.parent_columns;
    let same = |key: &[usize]| key.len() == columns.len() && key.iter().all(|column| columns.contains(column));
    let primary = row.parent.key_name().filter(|_| same(&row.parent.primary_key));
    let unique = || row.parent.uniques.iter().find(|key| same(&key.columns)).map(|key| key.name.clone());
    primary.or_else(unique)
}

fn rule(action: ReferentialAction) -> u8 {
    let rule = match action {
        ReferentialAction::NoAction => UpdateDeleteRules::NoAction,
        ReferentialAction::Restrict => UpdateDeleteRules::Restrict,
        ReferentialAction::Cascade => UpdateDeleteRules::Cascade,
        ReferentialAction::SetNull => UpdateDeleteRules::SetNull,
    };
    rule as u8
}

/// GetExportedKeys: the keys that reference a table.
pub fn exported_keys(command: &CommandGetExportedKeys, state: &CatalogState) -> Result<RecordBatch> {
    let parent =
        Filter { catalog: command.catalog.as_deref(), schema: command.db_schema.as_deref(), table: &command.table };
    foreign_keys(state, Some(parent), None, Order::ByChild)
}

/// GetImportedKeys: the keys of a table.
pub fn imported_keys(command: &CommandGetImportedKeys, state: &CatalogState) -> Result<RecordBatch> {
    let child =
        Filter { catalog: command.catalog.as_deref(), schema: command.db_schema.as_deref(), table: &command.table };
    foreign_keys(state, None, Some(child), Order::ByParent)
}

/// GetCrossReference: the keys of one table that reference another one.
pub fn cross_reference(command: &CommandGetCrossReference, state: &CatalogState) -> Result<RecordBatch> {
    let parent = Filter {
        catalog: command.pk_catalog.as_deref(),
        schema: command.pk_db_schema.as_deref(),
        table: &command.pk_table,
    };
    let child = Filter {
        catalog: command.fk_catalog.as_deref(),
        schema: command.fk_db_schema.as_deref(),
        table: &command.fk_table,
    };
    foreign_keys(state, Some(parent), Some(child), Order::ByParent)
}

enum Order {
    ByParent,
    ByChild,
}

fn foreign_keys(
    state: &CatalogState,
    parent: Option<Filter<'_>>,
    child: Option<Filter<'_>>,
    order: Order,
) -> Result<RecordBatch> {
    let mut rows = Vec::new();
    for table in state.user_tables().map(|state| &state.table) {
        if child.as_ref().is_some_and(|child| !child.allows(table)) {
            continue;
        }
        for key in &table.foreign_keys {
            let Some(referenced) = state.table(key.parent).map(|state| &state.table) else { continue };
            if parent.as_ref().is_some_and(|parent| !parent.allows(referenced)) {
                continue;
            }
            for (sequence, (&column, &parent_column)) in key.columns.iter().zip(&key.parent_columns).enumerate() {
                rows.push(KeyColumn {
                    parent: referenced,
                    parent_column: &referenced.columns[parent_column].name,
                    child: table,
                    child_column: &table.columns[column].name,
                    sequence: sequence as i32 + 1,
                    key,
                });
            }
        }
    }
    match order {
        Order::ByParent => rows.sort_by_key(|row| (&row.parent.name, &row.child.name, &row.key.name, row.sequence)),
        Order::ByChild => rows.sort_by_key(|row| (&row.child.name, &row.parent.name, &row.key.name, row.sequence)),
    }
    let text = |name: &str, nullable| Field::new(name, DataType::Utf8, nullable);
    let schema = Schema::new(vec![
        text("pk_catalog_name", true),
        text("pk_db_schema_name", true),
        text("pk_table_name", false),
        text("pk_column_name", false),
        text("fk_catalog_name", true),
        text("fk_db_schema_name", true),
        text("fk_table_name", false),
        text("fk_column_name", false),
        Field::new("key_sequence", DataType::Int32, false),
        text("fk_key_name", true),
        text("pk_key_name", true),
        Field::new("update_rule", DataType::UInt8, false),
        Field::new("delete_rule", DataType::UInt8, false),
    ]);
    let rules = |action: fn(&ForeignKey) -> ReferentialAction| -> ArrayRef {
        Arc::new(UInt8Array::from_iter_values(rows.iter().map(|row| rule(action(row.key)))))
    };
    let columns: Vec<ArrayRef> = vec![
        texts(rows.iter().map(|_| CATALOG)),
        texts(rows.iter().map(|row| row.parent.name.schema.as_str())),
        texts(rows.iter().map(|row| row.parent.name.table.as_str())),
        texts(rows.iter().map(|row| row.parent_column)),
        texts(rows.iter().map(|_| CATALOG)),
        texts(rows.iter().map(|row| row.child.name.schema.as_str())),
        texts(rows.iter().map(|row| row.child.name.table.as_str())),
        texts(rows.iter().map(|row| row.child_column)),
        Arc::new(Int32Array::from_iter_values(rows.iter().map(|row| row.sequence))),
        texts(rows.iter().map(|row| row.key.name.as_str())),
        Arc::new(rows.iter().map(referenced_key_name).collect::<StringArray>()),
        rules(|key| key.on_update),
        rules(|key| key.on_delete),
    ];
    Ok(RecordBatch::try_new(Arc::new(schema), columns)?)
}

fn texts<'a>(values: impl Iterator<Item = &'a str>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(values))
}
