//! A table's definition, as the catalog owns it and as it travels with loads and scans.

use std::{collections::HashMap, fmt, sync::Arc};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use drsdb_proto::{ErrorCode, Ulid, v1};
use serde::{Deserialize, Serialize};

use crate::{Error, Result, SqlType, shard};

/// Arrow field metadata: the column's SQL type as text, so that clients can tell VARCHAR(10) from TEXT.
pub const SQL_TYPE_KEY: &str = "drsdb.sql_type";

/// A schema-qualified table name. Names are case-sensitive; unquoted SQL identifiers arrive in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TableName {
    /// The schema; `public` unless said otherwise.
    pub schema: String,
    /// The table.
    pub table: String,
}

impl TableName {
    /// `schema.table`.
    pub fn new(schema: impl Into<String>, table: impl Into<String>) -> Self {
        Self { schema: schema.into(), table: table.into() }
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.table)
    }
}

/// How a table's shards are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Engine {
    /// SQLite: point access, small writes.
    Row,
    /// Parquet segments: scans.
    Column,
}

impl Engine {
    /// The name as `WITH (engine = ...)` takes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Engine::Row => "row",
            Engine::Column => "column",
        }
    }
}

/// A column of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its type.
    pub sql_type: SqlType,
    /// NOT NULL, stated or implied by PRIMARY KEY.
    pub not_null: bool,
}

/// A foreign key. Column positions count from 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForeignKey {
    /// The constraint's name, unique in the table.
    pub name: String,
    /// The referencing columns.
    pub columns: Vec<usize>,
    /// The referenced table.
    pub parent: Ulid,
    /// The referenced columns, in the order of `columns`.
    pub parent_columns: Vec<usize>,
}

/// A table's definition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Identifies the table for ever; a name can be given to another one.
    pub id: Ulid,
    /// Its name.
    pub name: TableName,
    /// Its columns in order.
    pub columns: Vec<Column>,
    /// Positions of the primary key's columns; empty: no primary key.
    pub primary_key: Vec<usize>,
    /// Its foreign keys.
    pub foreign_keys: Vec<ForeignKey>,
    /// How its shards are stored.
    pub engine: Engine,
    /// How many shards it has.
    pub shards: u32,
    /// Positions of the columns that decide a row's shard; empty: rows are spread evenly.
    pub shard_key: Vec<usize>,
    /// Version of the row -> shard function, see [`shard::SHARD_FUNCTION`].
    pub shard_function: u32,
    /// Sort order of column segments; the primary key unless said otherwise.
    pub cluster_key: Vec<usize>,
}

impl Table {
    /// The Arrow schema of stored rows and of plans: views for text and bytes. See [`SqlType`].
    pub fn arrow_schema(&self) -> SchemaRef {
        let fields = self.columns.iter().map(|column| {
            let mut metadata = HashMap::from([(SQL_TYPE_KEY.to_owned(), column.sql_type.to_string())]);
            if column.sql_type == SqlType::Uuid {
                metadata.insert("ARROW:extension:name".to_owned(), "arrow.uuid".to_owned());
            }
            Field::new(&column.name, column.sql_type.to_arrow(), !column.not_null).with_metadata(metadata)
        });
        Arc::new(Schema::new(fields.collect::<Vec<_>>()))
    }

    /// The Arrow type of the column at `position`.
    pub fn arrow_type(&self, position: usize) -> DataType {
        self.columns[position].sql_type.to_arrow()
    }

    /// The position of the column called `name`.
    pub fn column_position(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.name == name)
    }

    /// Checks the rules that every definition keeps, whoever made it.
    pub fn validate(&self) -> Result<()> {
        let bad = |message: String| Err(Error::new(ErrorCode::InvalidArgument, message));
        if self.columns.is_empty() {
            return bad(format!("table {} has no columns: name at least one", self.name));
        }
        let mut names = std::collections::HashSet::new();
        for column in &self.columns {
            if !names.insert(column.name.as_str()) {
                return bad(format!("column {} is there twice in table {}", column.name, self.name));
            }
        }
        if self.shards == 0 || self.shards > shard::MAX_SHARDS {
            return bad(format!("a table has 1 to {} shards, not {}", shard::MAX_SHARDS, self.shards));
        }
        let positions = self.primary_key.iter().chain(&self.shard_key).chain(&self.cluster_key);
        for &position in positions.chain(self.foreign_keys.iter().flat_map(|key| &key.columns)) {
            if position >= self.columns.len() {
                return bad(format!("column position {position} is beyond table {}", self.name));
            }
        }
        Ok(())
    }

    /// The protobuf form.
    pub fn to_proto(&self) -> v1::Table {
        let positions = |list: &[usize]| list.iter().map(|&position| position as u32).collect();
        v1::Table {
            id: self.id.to_string(),
            schema: self.name.schema.clone(),
            name: self.name.table.clone(),
            columns: self
                .columns
                .iter()
                .map(|column| v1::Column {
                    name: column.name.clone(),
                    r#type: Some(column.sql_type.to_proto()),
                    not_null: column.not_null,
                })
                .collect(),
            primary_key: positions(&self.primary_key),
            foreign_keys: self
                .foreign_keys
                .iter()
                .map(|key| v1::ForeignKey {
                    name: key.name.clone(),
                    columns: positions(&key.columns),
                    parent_table_id: key.parent.to_string(),
                    parent_columns: positions(&key.parent_columns),
                })
                .collect(),
            engine: match self.engine {
                Engine::Row => v1::Engine::Row.into(),
                Engine::Column => v1::Engine::Column.into(),
            },
            shards: self.shards,
            shard_key: positions(&self.shard_key),
            shard_function: self.shard_function,
            cluster_key: positions(&self.cluster_key),
        }
    }

    /// Back from the protobuf form, validated.
    pub fn from_proto(proto: &v1::Table) -> Result<Self> {
        let positions = |list: &[u32]| list.iter().map(|&position| position as usize).collect::<Vec<_>>();
        let columns = proto.columns.iter().map(|column| {
            let sql_type = column.r#type.as_ref().ok_or_else(|| bad_message("a column without a type"))?;
            Ok(Column {
                name: column.name.clone(),
                sql_type: SqlType::from_proto(sql_type)?,
                not_null: column.not_null,
            })
        });
        let foreign_keys = proto.foreign_keys.iter().map(|key| {
            Ok(ForeignKey {
                name: key.name.clone(),
                columns: positions(&key.columns),
                parent: parse_ulid(&key.parent_table_id)?,
                parent_columns: positions(&key.parent_columns),
            })
        });
        let table = Table {
            id: parse_ulid(&proto.id)?,
            name: TableName::new(&proto.schema, &proto.name),
            columns: columns.collect::<Result<_>>()?,
            primary_key: positions(&proto.primary_key),
            foreign_keys: foreign_keys.collect::<Result<_>>()?,
            engine: match proto.engine() {
                v1::Engine::Row => Engine::Row,
                v1::Engine::Column => Engine::Column,
                v1::Engine::Unspecified => return Err(bad_message("a table without an engine")),
            },
            shards: proto.shards,
            shard_key: positions(&proto.shard_key),
            shard_function: proto.shard_function,
            cluster_key: positions(&proto.cluster_key),
        };
        table.validate()?;
        Ok(table)
    }
}

/// Parses an id that came over the wire.
pub fn parse_ulid(text: &str) -> Result<Ulid> {
    Ulid::from_string(text).map_err(|error| bad_message(&format!("{text:?} is not a ULID ({error})")))
}

fn bad_message(what: &str) -> Error {
    Error::new(ErrorCode::InvalidArgument, format!("a message between servers is broken: {what}"))
}
