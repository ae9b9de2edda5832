//! A table's definition, as the catalog owns it and as it travels with loads and scans.

use std::{collections::HashMap, fmt, sync::Arc};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use drsdb_proto::{ErrorCode, Ulid, v1};
use serde::{Deserialize, Serialize};

use crate::{Error, Result, SqlType, shard};

/// Arrow field metadata: the column's SQL type as text, so that clients can tell VARCHAR(10) from TEXT.
pub const SQL_TYPE_KEY: &str = "drsdb.sql_type";

/// The name of the hidden column that identifies the rows of a table without a primary key.
pub const ROW_ID: &str = "_row_id";

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

/// A column of a table. Its position in the table is its identity: columns are added at the end and never renumbered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its type.
    pub sql_type: SqlType,
    /// NOT NULL, stated or implied by PRIMARY KEY.
    pub not_null: bool,
    /// The name that NOT NULL was given, see [`Table::not_null_name`].
    #[serde(default)]
    pub not_null_name: Option<String>,
    /// DEFAULT: a SQL expression, evaluated for each row that names no value.
    #[serde(default)]
    pub default: Option<String>,
    /// What rows read as that were written before the column was there, see [`Column::initial_value`]. `None`: NULL.
    #[serde(default)]
    pub initial: Option<String>,
    /// The database's own: the identity of rows in a table without a primary key. Users do not see it.
    #[serde(default)]
    pub hidden: bool,
    /// Dropped by ALTER TABLE; only its position is left.
    #[serde(default)]
    pub dropped: bool,
    /// COMMENT ON COLUMN.
    #[serde(default)]
    pub comment: Option<String>,
}

impl Column {
    /// A column without a default.
    pub fn new(name: impl Into<String>, sql_type: SqlType, not_null: bool) -> Self {
        Self {
            name: name.into(),
            sql_type,
            not_null,
            not_null_name: None,
            default: None,
            initial: None,
            hidden: false,
            dropped: false,
            comment: None,
        }
    }

    /// Whether users see it.
    pub fn is_visible(&self) -> bool {
        !self.hidden && !self.dropped
    }
}

/// What happens to rows that refer to a row which is deleted, or whose key is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum ReferentialAction {
    /// The statement is refused when, at its end, a row still refers to it.
    #[default]
    NoAction,
    /// The statement is refused.
    Restrict,
    /// They are deleted, or follow.
    Cascade,
    /// Their referring columns become NULL.
    SetNull,
}

impl ReferentialAction {
    /// As SQL says it.
    pub fn as_str(self) -> &'static str {
        match self {
            ReferentialAction::NoAction => "NO ACTION",
            ReferentialAction::Restrict => "RESTRICT",
            ReferentialAction::Cascade => "CASCADE",
            ReferentialAction::SetNull => "SET NULL",
        }
    }

    /// Back from [`ReferentialAction::as_str`]; an empty text is the default.
    fn parse(text: &str) -> Result<Self> {
        let all = [Self::NoAction, Self::Restrict, Self::Cascade, Self::SetNull];
        let found = all.into_iter().find(|action| action.as_str() == text);
        found.or(text.is_empty().then_some(Self::NoAction)).ok_or_else(|| bad_message("an unknown referential action"))
    }
}

/// A UNIQUE constraint. Its keys are the rows of a table of their own, so that it holds across shards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UniqueKey {
    /// The constraint's name, unique in the table.
    pub name: String,
    /// Its columns.
    pub columns: Vec<usize>,
    /// The table that keeps its keys, see [`TableKind::UniqueIndex`].
    pub index: Ulid,
}

/// A CHECK constraint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// The constraint's name, unique in the table.
    pub name: String,
    /// The expression in SQL; a row for which it is false is refused.
    pub sql: String,
}

/// What a table is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum TableKind {
    /// A user's table.
    #[default]
    Base,
    /// The keys of a UNIQUE constraint: a row for each key without NULLs, its primary key; the other columns are the
    /// identity of the row in the table `of`. Users do not see it.
    UniqueIndex {
        /// The constraint's table.
        of: Ulid,
    },
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
    /// ON DELETE.
    #[serde(default)]
    pub on_delete: ReferentialAction,
    /// ON UPDATE.
    #[serde(default)]
    pub on_update: ReferentialAction,
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
    /// What it is for.
    #[serde(default)]
    pub kind: TableKind,
    /// Grows with each ALTER TABLE.
    #[serde(default)]
    pub version: u64,
    /// Its UNIQUE constraints.
    #[serde(default)]
    pub uniques: Vec<UniqueKey>,
    /// Its CHECK constraints.
    #[serde(default)]
    pub checks: Vec<Check>,
    /// The primary key constraint's name, if it has one of its own.
    #[serde(default)]
    pub primary_key_name: Option<String>,
    /// Replicas of each shard; `None`: the cluster's default.
    #[serde(default)]
    pub replicas: Option<u32>,
    /// COMMENT ON TABLE.
    #[serde(default)]
    pub comment: Option<String>,
}

/// The start of a definition: a column table of one shard, without columns.
impl Default for Table {
    fn default() -> Self {
        Self {
            id: Ulid::nil(),
            name: TableName::new("public", ""),
            columns: Vec::new(),
            primary_key: Vec::new(),
            foreign_keys: Vec::new(),
            engine: Engine::Column,
            shards: 1,
            shard_key: Vec::new(),
            shard_function: shard::SHARD_FUNCTION,
            cluster_key: Vec::new(),
            kind: TableKind::Base,
            version: 0,
            uniques: Vec::new(),
            checks: Vec::new(),
            primary_key_name: None,
            replicas: None,
            comment: None,
        }
    }
}

impl Table {
    /// The columns that users see, with their positions.
    pub fn visible_columns(&self) -> impl Iterator<Item = (usize, &Column)> {
        self.columns.iter().enumerate().filter(|(_, column)| column.is_visible())
    }

    /// Whether the primary key is the user's, and not the hidden identity of rows.
    pub fn has_user_key(&self) -> bool {
        self.primary_key.iter().any(|&position| !self.columns[position].hidden)
    }

    /// The name of the primary key constraint; `None` when users have not made one.
    pub fn key_name(&self) -> Option<String> {
        let default = || format!("{}_pkey", self.name.table);
        self.has_user_key().then(|| self.primary_key_name.clone().unwrap_or_else(default))
    }

    /// The name of the NOT NULL constraint of a column.
    pub fn not_null_name(&self, position: usize) -> String {
        let column = &self.columns[position];
        column.not_null_name.clone().unwrap_or_else(|| format!("{}_{}_not_null", self.name.table, column.name))
    }

    /// The names of all constraints but those of NOT NULL that nobody has given one. Each is there once.
    pub fn constraint_names(&self) -> impl Iterator<Item = String> {
        let not_nulls = self.columns.iter().filter(|column| column.not_null && !column.dropped);
        let not_nulls = not_nulls.filter_map(|column| column.not_null_name.clone());
        let uniques = self.uniques.iter().map(|key| key.name.clone());
        let checks = self.checks.iter().map(|check| check.name.clone());
        let foreign_keys = self.foreign_keys.iter().map(|key| key.name.clone());
        self.key_name().into_iter().chain(uniques).chain(checks).chain(foreign_keys).chain(not_nulls)
    }

    /// Whether `columns`, in any order, are the user's primary key or a UNIQUE key: what a foreign key can reference.
    pub fn is_key(&self, columns: &[usize]) -> bool {
        let sorted = |positions: &[usize]| {
            let mut positions = positions.to_vec();
            positions.sort_unstable();
            positions
        };
        let wanted = sorted(columns);
        (self.has_user_key() && sorted(&self.primary_key) == wanted)
            || self.uniques.iter().any(|key| sorted(&key.columns) == wanted)
    }

    /// The table that keeps the keys of a UNIQUE constraint of this one: columns `u0`, `u1`, ... are the constraint's, and
    /// the key; `k0`, `k1`, ... are the primary key's, the identity of the row. Names by position, for columns can be
    /// renamed.
    pub fn unique_index(&self, key: &UniqueKey) -> Table {
        let named = |prefix: &'static str, positions: &[usize]| {
            let columns = positions.iter().enumerate();
            columns
                .map(|(at, &position)| Column::new(format!("{prefix}{at}"), self.columns[position].sql_type, true))
                .collect::<Vec<_>>()
        };
        let columns = [named("u", &key.columns), named("k", &self.primary_key)].concat();
        let positions: Vec<usize> = (0..key.columns.len()).collect();
        Table {
            id: key.index,
            name: TableName::new(&self.name.schema, &key.name),
            columns,
            primary_key: positions.clone(),
            engine: Engine::Row,
            shards: self.shards,
            shard_key: positions,
            kind: TableKind::UniqueIndex { of: self.id },
            replicas: self.replicas,
            ..Table::default()
        }
    }

    /// The schema of the primary key's columns: what a deletion names rows by.
    pub fn key_schema(&self) -> SchemaRef {
        let schema = self.arrow_schema();
        Arc::new(schema.project(&self.primary_key).expect("the primary key is made of the table's columns"))
    }

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
        self.columns.iter().position(|column| column.is_visible() && column.name == name)
    }

    /// Checks the rules that every definition keeps, whoever made it.
    pub fn validate(&self) -> Result<()> {
        let bad = |message: String| Err(Error::new(ErrorCode::InvalidArgument, message));
        if self.columns.is_empty() {
            return bad(format!("table {} has no columns: name at least one", self.name));
        }
        let mut names = std::collections::HashSet::new();
        for column in self.columns.iter().filter(|column| !column.dropped) {
            if !names.insert(column.name.as_str()) {
                return bad(format!("column {} is there twice in table {}", column.name, self.name));
            }
        }
        let mut names = std::collections::HashSet::new();
        for name in self.constraint_names() {
            if let Some(name) = names.replace(name) {
                return bad(format!("two constraints of table {} are called {name}: give one another name", self.name));
            }
        }
        if self.shards == 0 || self.shards > shard::MAX_SHARDS {
            return bad(format!("a table has 1 to {} shards, not {}", shard::MAX_SHARDS, self.shards));
        }
        let positions = self.primary_key.iter().chain(&self.shard_key).chain(&self.cluster_key);
        let constraints =
            self.foreign_keys.iter().map(|key| &key.columns).chain(self.uniques.iter().map(|key| &key.columns));
        for &position in positions.chain(constraints.flatten()) {
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
                    not_null_name: column.not_null_name.clone(),
                    default: column.default.clone(),
                    initial: column.initial.clone(),
                    hidden: column.hidden,
                    dropped: column.dropped,
                    comment: column.comment.clone(),
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
                    on_delete: key.on_delete.as_str().to_owned(),
                    on_update: key.on_update.as_str().to_owned(),
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
            unique_index_of: match self.kind {
                TableKind::Base => String::new(),
                TableKind::UniqueIndex { of } => of.to_string(),
            },
            version: self.version,
            uniques: self
                .uniques
                .iter()
                .map(|key| v1::UniqueKey {
                    name: key.name.clone(),
                    columns: positions(&key.columns),
                    index_table_id: key.index.to_string(),
                })
                .collect(),
            checks: self
                .checks
                .iter()
                .map(|check| v1::Check { name: check.name.clone(), sql: check.sql.clone() })
                .collect(),
            primary_key_name: self.primary_key_name.clone(),
            replicas: self.replicas,
            comment: self.comment.clone(),
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
                not_null_name: column.not_null_name.clone(),
                default: column.default.clone(),
                initial: column.initial.clone(),
                hidden: column.hidden,
                dropped: column.dropped,
                comment: column.comment.clone(),
            })
        });
        let foreign_keys = proto.foreign_keys.iter().map(|key| {
            Ok(ForeignKey {
                name: key.name.clone(),
                columns: positions(&key.columns),
                parent: parse_ulid(&key.parent_table_id)?,
                parent_columns: positions(&key.parent_columns),
                on_delete: ReferentialAction::parse(&key.on_delete)?,
                on_update: ReferentialAction::parse(&key.on_update)?,
            })
        });
        let uniques = proto.uniques.iter().map(|key| {
            Ok(UniqueKey {
                name: key.name.clone(),
                columns: positions(&key.columns),
                index: parse_ulid(&key.index_table_id)?,
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
            kind: match proto.unique_index_of.as_str() {
                "" => TableKind::Base,
                of => TableKind::UniqueIndex { of: parse_ulid(of)? },
            },
            version: proto.version,
            uniques: uniques.collect::<Result<_>>()?,
            checks: proto
                .checks
                .iter()
                .map(|check| Check { name: check.name.clone(), sql: check.sql.clone() })
                .collect(),
            primary_key_name: proto.primary_key_name.clone(),
            replicas: proto.replicas,
            comment: proto.comment.clone(),
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
