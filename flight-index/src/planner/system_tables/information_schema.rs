//! `information_schema`, as SQL-92 and PostgreSQL have it. What is hidden from users is not in it, and neither are system
//! tables themselves.

use drsdb_core::{SqlType, Table};

use super::{
    Entry, Sources,
    rows::{
        Cell,
        Kind::{Number, Text},
        row,
    },
};
use crate::{
    catalog::CatalogState,
    statement::{CATALOG, quoted},
};

pub(super) const TABLES: &[Entry] = &[
    (
        "schemata",
        &[
            ("catalog_name", Text),
            ("schema_name", Text),
            ("schema_owner", Text),
            ("default_character_set_catalog", Text),
            ("default_character_set_schema", Text),
            ("default_character_set_name", Text),
            ("sql_path", Text),
        ],
        schemata,
    ),
    (
        "tables",
        &[
            ("table_catalog", Text),
            ("table_schema", Text),
            ("table_name", Text),
            ("table_type", Text),
            ("self_referencing_column_name", Text),
            ("reference_generation", Text),
            ("is_insertable_into", Text),
            ("is_typed", Text),
            ("commit_action", Text),
        ],
        tables,
    ),
    (
        "columns",
        &[
            ("table_catalog", Text),
            ("table_schema", Text),
            ("table_name", Text),
            ("column_name", Text),
            ("ordinal_position", Number),
            ("column_default", Text),
            ("is_nullable", Text),
            ("data_type", Text),
            ("character_maximum_length", Number),
            ("character_octet_length", Number),
            ("numeric_precision", Number),
            ("numeric_precision_radix", Number),
            ("numeric_scale", Number),
            ("datetime_precision", Number),
            ("interval_type", Text),
            ("is_identity", Text),
            ("is_generated", Text),
            ("is_updatable", Text),
        ],
        columns,
    ),
    (
        "views",
        &[
            ("table_catalog", Text),
            ("table_schema", Text),
            ("table_name", Text),
            ("view_definition", Text),
            ("check_option", Text),
            ("is_updatable", Text),
            ("is_insertable_into", Text),
        ],
        views,
    ),
    (
        "table_constraints",
        &[
            ("constraint_catalog", Text),
            ("constraint_schema", Text),
            ("constraint_name", Text),
            ("table_catalog", Text),
            ("table_schema", Text),
            ("table_name", Text),
            ("constraint_type", Text),
            ("is_deferrable", Text),
            ("initially_deferred", Text),
            ("enforced", Text),
        ],
        table_constraints,
    ),
    (
        "key_column_usage",
        &[
            ("constraint_catalog", Text),
            ("constraint_schema", Text),
            ("constraint_name", Text),
            ("table_catalog", Text),
            ("table_schema", Text),
            ("table_name", Text),
            ("column_name", Text),
            ("ordinal_position", Number),
            ("position_in_unique_constraint", Number),
        ],
        key_column_usage,
    ),
    (
        "referential_constraints",
        &[
            ("constraint_catalog", Text),
            ("constraint_schema", Text),
            ("constraint_name", Text),
            ("unique_constraint_catalog", Text),
            ("unique_constraint_schema", Text),
            ("unique_constraint_name", Text),
            ("match_option", Text),
            ("update_rule", Text),
            ("delete_rule", Text),
        ],
        referential_constraints,
    ),
    (
        "check_constraints",
        &[("constraint_catalog", Text), ("constraint_schema", Text), ("constraint_name", Text), ("check_clause", Text)],
        check_constraints,
    ),
];

const YES: &str = "YES";
const NO: &str = "NO";

fn user_tables(state: &CatalogState) -> impl Iterator<Item = &Table> {
    state.user_tables().map(|table| &*table.table)
}

fn schemata(from: &Sources<'_>) -> Vec<Vec<Cell>> {
    let schemas = from.state.schemas().chain(super::SCHEMAS);
    let row = |schema: &str| row![CATALOG, schema, Cell::Null, Cell::Null, Cell::Null, Cell::Null, Cell::Null];
    schemas.map(row).collect()
}

fn tables(from: &Sources<'_>) -> Vec<Vec<Cell>> {
    let tables = user_tables(from.state).map(|table| (&table.name, "BASE TABLE", YES));
    let views = from.state.views().map(|view| (&view.name, "VIEW", NO));
    let row = |(name, kind, insertable): (&drsdb_core::TableName, &str, &str)| {
        let (schema, table) = (name.schema.as_str(), name.table.as_str());
        row![CATALOG, schema, table, kind, Cell::Null, Cell::Null, insertable, NO, Cell::Null]
    };
    tables.chain(views).map(row).collect()
}

fn columns(from: &Sources<'_>) -> Vec<Vec<Cell>> {
    let tables = user_tables(from.state).map(|table| (&table.name, table.columns.as_slice(), YES));
    let views = from.state.views().map(|view| (&view.name, view.columns.as_slice(), NO));
    let mut rows = Vec::new();
    for (name, columns, updatable) in tables.chain(views) {
        for (number, column) in columns.iter().filter(|column| column.is_visible()).enumerate() {
            let sql_type = column.sql_type;
            let (precision, radix, scale) = numeric(sql_type);
            rows.push(row![
                CATALOG,
                name.schema.as_str(),
                name.table.as_str(),
                column.name.as_str(),
                number + 1,
                column.default.clone(),
                if column.not_null { NO } else { YES },
                data_type(sql_type),
                sql_type.max_characters(),
                sql_type.is_text().then(|| sql_type.max_characters().map_or(1 << 30, |most| u64::from(most) * 4)),
                precision,
                radix,
                scale,
                datetime_precision(sql_type),
                Cell::Null,
                NO,
                "NEVER",
                updatable,
            ]);
        }
    }
    rows
}

/// The standard's names of types; UUID and ULID have none.
fn data_type(sql_type: SqlType) -> &'static str {
    match sql_type {
        SqlType::Boolean => "boolean",
        SqlType::SmallInt => "smallint",
        SqlType::Integer => "integer",
        SqlType::BigInt => "bigint",
        SqlType::Real => "real",
        SqlType::Double => "double precision",
        SqlType::Decimal { .. } => "numeric",
        SqlType::Char { .. } => "character",
        SqlType::Varchar { .. } => "character varying",
        SqlType::Text => "text",
        SqlType::Date => "date",
        SqlType::Time => "time without time zone",
        SqlType::Timestamp => "timestamp without time zone",
        SqlType::TimestampTz => "timestamp with time zone",
        SqlType::Interval => "interval",
        SqlType::Bytea => "bytea",
        SqlType::Uuid => "uuid",
        SqlType::Ulid => "ulid",
    }
}

/// Precision, its radix, and scale.
fn numeric(sql_type: SqlType) -> (Option<u32>, Option<u32>, Option<u32>) {
    match sql_type {
        SqlType::SmallInt => (Some(16), Some(2), Some(0)),
        SqlType::Integer => (Some(32), Some(2), Some(0)),
        SqlType::BigInt => (Some(64), Some(2), Some(0)),
        SqlType::Real => (Some(24), Some(2), None),
        SqlType::Double => (Some(53), Some(2), None),
        SqlType::Decimal { precision, scale } => (Some(u32::from(precision)), Some(10), Some(scale.max(0) as u32)),
        _ => (None, None, None),
    }
}

fn datetime_precision(sql_type: SqlType) -> Option<u32> {
    match sql_type {
        SqlType::Date => Some(0),
        SqlType::Time | SqlType::Timestamp | SqlType::TimestampTz | SqlType::Interval => Some(6),
        _ => None,
    }
}

fn views(from: &Sources<'_>) -> Vec<Vec<Cell>> {
    let views = from.state.views();
    let row = |view: &std::sync::Arc<crate::catalog::View>| {
        let name = &view.name;
        row![CATALOG, name.schema.as_str(), name.table.as_str(), view.sql.as_str(), "NONE", NO, NO]
    };
    views.map(row).collect()
}

fn table_constraints(from: &Sources<'_>) -> Vec<Vec<Cell>> {
    let mut rows = Vec::new();
    for table in user_tables(from.state) {
        let (schema, name) = (table.name.schema.as_str(), table.name.table.as_str());
        let mut add = |constraint: &str, kind: &str| {
            rows.push(row![CATALOG, schema, constraint, CATALOG, schema, name, kind, NO, NO, YES]);
        };
        table.key_name().iter().for_each(|key| add(key, "PRIMARY KEY"));
        table.uniques.iter().for_each(|key| add(&key.name, "UNIQUE"));
        table.checks.iter().for_each(|check| add(&check.name, "CHECK"));
        not_nulls(table).for_each(|position| add(&table.not_null_name(position), "CHECK"));
        table.foreign_keys.iter().for_each(|key| add(&key.name, "FOREIGN KEY"));
    }
    rows
}

fn key_column_usage(from: &Sources<'_>) -> Vec<Vec<Cell>> {
    let mut rows = Vec::new();
    for table in user_tables(from.state) {
        let (schema, name) = (table.name.schema.as_str(), table.name.table.as_str());
        let mut add = |constraint: &str, columns: &[usize], referenced: &dyn Fn(usize) -> Option<usize>| {
            for (at, &position) in columns.iter().enumerate() {
                let column = table.columns[position].name.as_str();
                let position = referenced(at);
                rows.push(row![CATALOG, schema, constraint, CATALOG, schema, name, column, at + 1, position]);
            }
        };
        table.key_name().iter().for_each(|key| add(key, &table.primary_key, &|_| None));
        table.uniques.iter().for_each(|key| add(&key.name, &key.columns, &|_| None));
        for key in &table.foreign_keys {
            let parent = from.state.table(key.parent).map(|parent| &*parent.table);
            let referenced = |at: usize| {
                let (_, columns) = referenced_key(parent?, &key.parent_columns)?;
                columns.iter().position(|column| *column == key.parent_columns[at]).map(|position| position + 1)
            };
            add(&key.name, &key.columns, &referenced);
        }
    }
    rows
}

/// The key of `parent` that is made of `columns`: its name, and its columns in order.
fn referenced_key<'a>(parent: &'a Table, columns: &[usize]) -> Option<(String, &'a [usize])> {
    let same = |key: &[usize]| key.len() == columns.len() && key.iter().all(|column| columns.contains(column));
    let primary = parent.key_name().filter(|_| same(&parent.primary_key));
    let unique = || parent.uniques.iter().find(|key| same(&key.columns));
    match primary {
        Some(name) => Some((name, &parent.primary_key)),
        None => unique().map(|key| (key.name.clone(), key.columns.as_slice())),
    }
}

fn referential_constraints(from: &Sources<'_>) -> Vec<Vec<Cell>> {
    let mut rows = Vec::new();
    for table in user_tables(from.state) {
        for key in &table.foreign_keys {
            let parent = from.state.table(key.parent).map(|parent| &*parent.table);
            let unique = parent.and_then(|parent| referenced_key(parent, &key.parent_columns));
            rows.push(row![
                CATALOG,
                table.name.schema.as_str(),
                key.name.as_str(),
                CATALOG,
                parent.map(|parent| parent.name.schema.as_str()),
                unique.map(|(name, _)| name),
                "NONE",
                key.on_update.as_str(),
                key.on_delete.as_str(),
            ]);
        }
    }
    rows
}

/// The columns that are NOT NULL by a constraint of their own; SQL takes it for a CHECK.
fn not_nulls(table: &Table) -> impl Iterator<Item = usize> {
    let is_own = |position: &usize| {
        let column = &table.columns[*position];
        column.not_null && column.is_visible() && !table.primary_key.contains(position)
    };
    (0..table.columns.len()).filter(is_own)
}

fn check_constraints(from: &Sources<'_>) -> Vec<Vec<Cell>> {
    let mut rows = Vec::new();
    for table in user_tables(from.state) {
        let mut add = |name: &str, sql: &str| rows.push(row![CATALOG, table.name.schema.as_str(), name, sql]);
        table.checks.iter().for_each(|check| add(&check.name, &check.sql));
        for position in not_nulls(table) {
            let column = quoted(&table.columns[position].name);
            add(&table.not_null_name(position), &format!("{column} IS NOT NULL"));
        }
    }
    rows
}
