//! What the cluster has: tables, their columns and keys, by Flight SQL's metadata commands.

use std::sync::Arc;

use arrow::{
    array::{Array, AsArray, RecordBatch},
    datatypes::{DataType, Int32Type, Schema, SchemaRef},
};
use arrow_flight::{
    IpcMessage,
    sql::{CommandGetImportedKeys, CommandGetPrimaryKeys, CommandGetTables, ProstMessageExt},
};
use bytes::Bytes;
use drsdb_proto::{ErrorCode, WireError};

use crate::{Client, Error, Result, route::Kind};

/// A table, as the catalog shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableInfo {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// `TABLE`, `VIEW`, ...
    pub kind: String,
    /// Its columns as clients see them; the field metadata `drsdb.sql_type` is the column's SQL type.
    pub columns: SchemaRef,
}

impl TableInfo {
    /// A column's SQL type, as text.
    pub fn sql_type(&self, column: usize) -> String {
        let field = self.columns.field(column);
        let declared = field.metadata().get("drsdb.sql_type").cloned();
        declared.unwrap_or_else(|| field.data_type().to_string())
    }
}

/// A foreign key of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignKeyInfo {
    /// Its name.
    pub name: String,
    /// The columns that refer.
    pub columns: Vec<String>,
    /// The schema of the table that they refer to.
    pub parent_schema: String,
    /// The table that they refer to.
    pub parent_table: String,
    /// The columns that they refer to, in the same order.
    pub parent_columns: Vec<String>,
}

impl Client {
    /// All tables and views, by schema and name.
    pub async fn tables(&self) -> Result<Vec<TableInfo>> {
        self.list_tables(CommandGetTables { include_schema: true, ..Default::default() }).await
    }

    /// The table `name`, written `table` (in schema `public`) or `schema.table`.
    pub async fn table(&self, name: &str) -> Result<TableInfo> {
        let (schema, table) = name.split_once('.').unwrap_or(("public", name));
        // Both are LIKE patterns: what they match besides the name is left out below.
        let command = CommandGetTables {
            db_schema_filter_pattern: Some(schema.to_owned()),
            table_name_filter_pattern: Some(table.to_owned()),
            include_schema: true,
            ..Default::default()
        };
        let found = self.list_tables(command).await?;
        if let Some(info) = found.into_iter().find(|info| info.schema == schema && info.name == table) {
            return Ok(info);
        }
        let all = self.list_tables(CommandGetTables::default()).await?;
        let nearest = all
            .iter()
            .map(|info| (strsim::damerau_levenshtein(&info.name, table), info))
            .filter(|(distance, info)| *distance <= 1.max(info.name.chars().count() / 3))
            .min_by_key(|(distance, _)| *distance);
        let hint = match nearest {
            Some((_, info)) => format!("did you mean {}.{}?", info.schema, info.name),
            None => "create it first".to_owned(),
        };
        let error = WireError::new(ErrorCode::NotFound, format!("there is no table {schema}.{table}")).with_hint(hint);
        Err(error.with_field("table", format!("{schema}.{table}")).into())
    }

    /// The names of a table's primary key columns, in key order; empty: it has none.
    pub async fn primary_key(&self, table: &TableInfo) -> Result<Vec<String>> {
        let command =
            CommandGetPrimaryKeys { catalog: None, db_schema: Some(table.schema.clone()), table: table.name.clone() };
        let mut columns = Vec::new();
        for batch in self.rows_of(&command).await? {
            let (names, sequence) = (texts(&batch, "column_name")?, numbers(&batch, "key_sequence")?);
            columns.extend(sequence.into_iter().zip(names));
        }
        columns.sort();
        Ok(columns.into_iter().map(|(_, name)| name).collect())
    }

    /// A table's foreign keys.
    pub async fn foreign_keys(&self, table: &TableInfo) -> Result<Vec<ForeignKeyInfo>> {
        let command =
            CommandGetImportedKeys { catalog: None, db_schema: Some(table.schema.clone()), table: table.name.clone() };
        let mut keys: Vec<ForeignKeyInfo> = Vec::new();
        for batch in self.rows_of(&command).await? {
            let names = texts(&batch, "fk_key_name")?;
            let columns = texts(&batch, "fk_column_name")?;
            let parent_schemas = texts(&batch, "pk_db_schema_name")?;
            let parent_tables = texts(&batch, "pk_table_name")?;
            let parent_columns = texts(&batch, "pk_column_name")?;
            // Rows of one key are together and in key order.
            for row in 0..batch.num_rows() {
                if keys.last().is_none_or(|key| key.name != names[row]) {
                    keys.push(ForeignKeyInfo {
                        name: names[row].clone(),
                        columns: Vec::new(),
                        parent_schema: parent_schemas[row].clone(),
                        parent_table: parent_tables[row].clone(),
                        parent_columns: Vec::new(),
                    });
                }
                let key = keys.last_mut().expect("one was pushed above if there was none");
                key.columns.push(columns[row].clone());
                key.parent_columns.push(parent_columns[row].clone());
            }
        }
        Ok(keys)
    }

    async fn list_tables(&self, command: CommandGetTables) -> Result<Vec<TableInfo>> {
        let mut tables = Vec::new();
        for batch in self.rows_of(&command).await? {
            let schemas = texts(&batch, "db_schema_name")?;
            let names = texts(&batch, "table_name")?;
            let kinds = texts(&batch, "table_type")?;
            let columns = match batch.column_by_name("table_schema") {
                Some(column) => schemas_of(column)?,
                None => std::iter::repeat_n(Arc::new(Schema::empty()), batch.num_rows()).collect(),
            };
            for (((schema, name), kind), columns) in schemas.into_iter().zip(names).zip(kinds).zip(columns) {
                tables.push(TableInfo { schema, name, kind, columns });
            }
        }
        tables.sort_by(|one, other| (&one.schema, &one.name).cmp(&(&other.schema, &other.name)));
        Ok(tables)
    }

    async fn rows_of<M: ProstMessageExt>(&self, command: &M) -> Result<Vec<RecordBatch>> {
        let planned = self.command_info(command, Kind::Read).await?;
        Ok(self.stream(planned)?.read_all().await?.batches)
    }
}

fn broken(what: impl std::fmt::Display) -> Error {
    Error::new(ErrorCode::Corrupt, format!("the index server's catalog answer cannot be read: {what}"))
}

fn column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a dyn Array> {
    batch.column_by_name(name).map(AsRef::as_ref).ok_or_else(|| broken(format!("it has no column {name}")))
}

fn texts(batch: &RecordBatch, name: &str) -> Result<Vec<String>> {
    let values = column(batch, name)?.as_string_opt::<i32>().ok_or_else(|| broken(format!("{name} is not text")))?;
    Ok(values.iter().map(|value| value.unwrap_or_default().to_owned()).collect())
}

fn numbers(batch: &RecordBatch, name: &str) -> Result<Vec<i32>> {
    let values = column(batch, name)?.as_primitive_opt::<Int32Type>();
    Ok(values.ok_or_else(|| broken(format!("{name} is not INTEGER")))?.values().to_vec())
}

fn schemas_of(column: &dyn Array) -> Result<Vec<SchemaRef>> {
    if column.data_type() != &DataType::Binary {
        return Err(broken("table_schema is not binary"));
    }
    let decode = |ipc: Option<&[u8]>| {
        let message = IpcMessage(Bytes::copy_from_slice(ipc.unwrap_or_default()));
        Schema::try_from(message).map(Arc::new).map_err(broken)
    };
    column.as_binary::<i32>().iter().map(decode).collect()
}
