//! CREATE TABLE: its clauses as written ([`CreateTable`]), and the definition they make once the parents of its foreign
//! keys are known ([`CreateTable::resolve`]). A clause that is not carried out is refused, never skipped.

use std::{collections::HashSet, sync::Arc};

use datafusion::sql::sqlparser::{
    ast::{
        self, ColumnOption, CreateTableOptions, Expr, ForeignKeyConstraint, Ident, IndexColumn, PrimaryKeyConstraint,
        ReferentialAction, TableConstraint, helpers::stmt_create_table::CreateTableBuilder,
    },
    tokenizer::{Location, Span},
};
use drsdb_core::{
    Column, Engine, ErrorCode, ForeignKey, Result, SqlType, Table, TableName, Ulid, WireError, nearest_name,
    shard::SHARD_FUNCTION,
};

use super::{
    names::{identifier, positioned, table_name},
    sql_type::sql_type,
    table_options::TableOptions,
};

/// The most columns of a table.
const MAX_COLUMNS: usize = 4096;

/// A CREATE TABLE statement.
#[derive(Debug, Clone, PartialEq)]
pub struct CreateTable {
    /// The table's name.
    pub name: TableName,
    /// Whether one that exists is no error.
    pub if_not_exists: bool,
    /// The columns.
    pub columns: Vec<ColumnClause>,
    /// Names of the primary key's columns; empty: none.
    pub primary_key: Vec<String>,
    /// The foreign keys.
    pub foreign_keys: Vec<ForeignKeyClause>,
    /// WITH.
    pub options: TableOptions,
}

/// A column of a CREATE TABLE statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnClause {
    /// Its name.
    pub name: String,
    /// Its type.
    pub sql_type: SqlType,
    /// NOT NULL.
    pub not_null: bool,
}

/// A foreign key of a CREATE TABLE statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignKeyClause {
    /// CONSTRAINT name.
    pub name: Option<String>,
    /// The referencing columns.
    pub columns: Vec<String>,
    /// The referenced table.
    pub parent: TableName,
    /// The referenced columns; empty: the parent's primary key.
    pub parent_columns: Vec<String>,
    /// Where in the text it is.
    pub location: Location,
}

/// Finds the tables that foreign keys reference.
pub trait Parents {
    /// The table, or the error that says that there is none.
    fn parent(&self, name: &TableName) -> Result<Arc<Table>>;
}

impl<F: Fn(&TableName) -> Result<Arc<Table>>> Parents for F {
    fn parent(&self, name: &TableName) -> Result<Arc<Table>> {
        self(name)
    }
}

/// `a, "B"` -> the names of columns; `None` when there is none, or a broken one.
pub fn parse_name_list(text: &str) -> Option<Vec<String>> {
    text.split(',')
        .map(|name| {
            let name = name.trim();
            match name.strip_prefix('"').and_then(|name| name.strip_suffix('"')) {
                Some(quoted) => Some(quoted.to_owned()),
                None => Some(name.to_lowercase()),
            }
            .filter(|name| !name.is_empty())
        })
        .collect()
}

fn unsupported(what: impl Into<String>, hint: &str) -> WireError {
    WireError::new(ErrorCode::Unsupported, what).with_hint(hint)
}

impl CreateTable {
    /// Reads the parser's tree.
    pub fn from_ast(tree: ast::CreateTable) -> Result<Self> {
        if tree.query.is_some() {
            let hint = "create the table with its columns, then load it";
            return Err(unsupported("CREATE TABLE ... AS is not done", hint).into());
        }
        refuse_other_clauses(&tree)?;
        let options = match &tree.table_options {
            CreateTableOptions::None => TableOptions::default(),
            CreateTableOptions::With(options) => TableOptions::parse(options)?,
            other => return Err(unsupported(format!("{other} is not done"), "write WITH (...)").into()),
        };
        let mut table = Self {
            name: table_name(&tree.name)?,
            if_not_exists: tree.if_not_exists,
            columns: Vec::with_capacity(tree.columns.len()),
            primary_key: Vec::new(),
            foreign_keys: Vec::new(),
            options,
        };
        for column in &tree.columns {
            table.add_column(column)?;
        }
        for constraint in &tree.constraints {
            table.add_constraint(constraint)?;
        }
        if table.columns.len() > MAX_COLUMNS {
            let message = format!("a table has at most {MAX_COLUMNS} columns, not {}", table.columns.len());
            return Err(WireError::new(ErrorCode::InvalidArgument, message).into());
        }
        Ok(table)
    }

    fn add_column(&mut self, column: &ast::ColumnDef) -> Result<()> {
        let start = column.name.span.start;
        let name = identifier(&column.name)?;
        let sql_type = sql_type(&column.data_type).map_err(|error| {
            positioned(WireError { message: format!("column {name}: {}", error.message), ..error }, start)
        })?;
        if self.columns.iter().any(|other| other.name == name) {
            let message = format!("column {name} is there twice");
            return Err(positioned(WireError::new(ErrorCode::InvalidArgument, message), start).into());
        }
        let (mut null, mut not_null) = (false, false);
        for option in &column.options {
            match &option.option {
                ColumnOption::Null => null = true,
                ColumnOption::NotNull => not_null = true,
                ColumnOption::PrimaryKey(_) => self.set_primary_key(vec![name.clone()], start)?,
                ColumnOption::ForeignKey(key) => self.add_foreign_key(key, Some((&name, start)))?,
                other => {
                    let keyword = other.to_string();
                    let keyword = keyword.split_whitespace().next().unwrap_or_default().to_uppercase();
                    return Err(positioned(refused_constraint(&keyword, &name), start).into());
                }
            }
        }
        if null && not_null {
            let message = format!("column {name} is both NULL and NOT NULL");
            return Err(positioned(WireError::new(ErrorCode::InvalidArgument, message), start).into());
        }
        self.columns.push(ColumnClause { name, sql_type, not_null });
        Ok(())
    }

    fn add_constraint(&mut self, constraint: &TableConstraint) -> Result<()> {
        match constraint {
            TableConstraint::PrimaryKey(key) => {
                refuse_key_details(key)?;
                let idents = key.columns.iter().map(index_column).collect::<Result<Vec<&Ident>>>()?;
                let start = idents.first().map_or(Location::empty(), |ident| ident.span.start);
                let columns = idents.into_iter().map(identifier).collect::<Result<_>>()?;
                self.set_primary_key(columns, start)
            }
            TableConstraint::ForeignKey(key) => self.add_foreign_key(key, None),
            other => {
                let text = other.to_string();
                let keyword = ["UNIQUE", "CHECK"].into_iter().find(|keyword| text.to_uppercase().contains(keyword));
                Err(refused_constraint(keyword.unwrap_or("this constraint"), &self.name.table).into())
            }
        }
    }

    fn set_primary_key(&mut self, columns: Vec<String>, location: Location) -> Result<()> {
        if !self.primary_key.is_empty() {
            let error = WireError::new(ErrorCode::InvalidArgument, "the table has more than one primary key")
                .with_hint("write one PRIMARY KEY (column, column, ...)");
            return Err(positioned(error, location).into());
        }
        self.primary_key = columns;
        Ok(())
    }

    fn add_foreign_key(&mut self, key: &ForeignKeyConstraint, column: Option<(&str, Location)>) -> Result<()> {
        let location = match column {
            Some((_, location)) => location,
            None => key.columns.first().map_or(Location::empty(), |ident| ident.span.start),
        };
        let refused = |what: &str, hint: &str| Err(positioned(unsupported(what, hint), location).into());
        for action in [&key.on_delete, &key.on_update].into_iter().flatten() {
            if !matches!(action, ReferentialAction::NoAction | ReferentialAction::Restrict) {
                return refused(
                    &format!("a foreign key with {action} is not done"),
                    "leave ON DELETE and ON UPDATE out",
                );
            }
        }
        if key.match_kind.is_some() || key.characteristics.is_some() || key.index_name.is_some() {
            return refused(
                "a foreign key with MATCH, DEFERRABLE, ENFORCED or an index name is not done",
                "leave that out",
            );
        }
        let columns = match column {
            Some((name, _)) => vec![name.to_owned()],
            None => key.columns.iter().map(identifier).collect::<Result<_>>()?,
        };
        self.foreign_keys.push(ForeignKeyClause {
            name: key.name.as_ref().map(identifier).transpose()?,
            columns,
            parent: table_name(&key.foreign_table)?,
            parent_columns: key.referred_columns.iter().map(identifier).collect::<Result<_>>()?,
            location,
        });
        Ok(())
    }

    /// The definition, with `id` and, unless the statement says how many, `default_shards` shards.
    pub fn resolve(&self, id: Ulid, default_shards: u32, parents: &dyn Parents) -> Result<Table> {
        let primary_key = self.positions(&self.primary_key, "the primary key")?;
        let columns = self.columns.iter().enumerate().map(|(position, column)| {
            Column::new(column.name.clone(), column.sql_type, column.not_null || primary_key.contains(&position))
        });
        let shard_key = match &self.options.shard_key {
            Some(names) => self.positions(names, "the shard key")?,
            None => primary_key.clone(),
        };
        if !primary_key.is_empty() && !shard_key.iter().all(|position| primary_key.contains(position)) {
            // A shard checks the primary key among its own rows only.
            let message = format!("the shard key of table {} has a column that is not in its primary key", self.name);
            return Err(WireError::new(ErrorCode::InvalidArgument, message)
                .with_hint("choose the shard key from the primary key's columns, or leave the primary key out")
                .into());
        }
        let cluster_key = match &self.options.cluster_key {
            Some(names) => self.positions(names, "the cluster key")?,
            None => primary_key.clone(),
        };
        let mut table = Table {
            id,
            name: self.name.clone(),
            columns: columns.collect(),
            primary_key,
            foreign_keys: Vec::new(),
            engine: self.options.engine.unwrap_or(Engine::Column),
            shards: self.options.shards.unwrap_or(default_shards),
            shard_key,
            shard_function: SHARD_FUNCTION,
            cluster_key,
            ..Table::default()
        };
        for key in &self.foreign_keys {
            let key = self.resolve_foreign_key(key, &table, parents)?;
            if table.foreign_keys.iter().any(|other| other.name == key.name) {
                let message = format!("two foreign keys of table {} are called {}", self.name, key.name);
                return Err(WireError::new(ErrorCode::InvalidArgument, message)
                    .with_hint("write CONSTRAINT name FOREIGN KEY ... with names that differ")
                    .into());
            }
            table.foreign_keys.push(key);
        }
        table.validate()?;
        Ok(table)
    }

    fn positions(&self, names: &[String], what: &str) -> Result<Vec<usize>> {
        let mut seen = HashSet::new();
        names
            .iter()
            .map(|name| {
                let position = self.columns.iter().position(|column| &column.name == name);
                let position = position.ok_or_else(|| {
                    let names = self.columns.iter().map(|column| column.name.as_str());
                    unknown_column(name, &self.name, names).with_field("used_in", what)
                })?;
                if !seen.insert(position) {
                    let message = format!("column {name} is twice in {what} of table {}", self.name);
                    return Err(WireError::new(ErrorCode::InvalidArgument, message).into());
                }
                Ok(position)
            })
            .collect()
    }

    fn resolve_foreign_key(&self, key: &ForeignKeyClause, table: &Table, parents: &dyn Parents) -> Result<ForeignKey> {
        let at = |error: WireError| positioned(error, key.location);
        let columns = self.positions(&key.columns, "a foreign key")?;
        // A table may reference itself before it exists.
        let found;
        let parent = if key.parent == self.name {
            table
        } else {
            found = parents.parent(&key.parent).map_err(|error| at(error.to_wire()))?;
            &*found
        };
        let parent_columns = if key.parent_columns.is_empty() {
            parent.primary_key.clone()
        } else {
            let position = |name: &String| {
                let names = parent.columns.iter().map(|column| column.name.as_str());
                parent.column_position(name).ok_or_else(|| at(unknown_column(name, &parent.name, names)))
            };
            key.parent_columns.iter().map(position).collect::<Result<Vec<_>, WireError>>()?
        };
        let sorted = |positions: &[usize]| {
            let mut positions = positions.to_vec();
            positions.sort_unstable();
            positions
        };
        if parent.primary_key.is_empty() || sorted(&parent_columns) != sorted(&parent.primary_key) {
            let message = format!("a foreign key must reference the primary key of table {}", parent.name);
            let names: Vec<&str> =
                parent.primary_key.iter().map(|&position| parent.columns[position].name.as_str()).collect();
            let hint = match names.is_empty() {
                true => "that table has none: create it with one".to_owned(),
                false => format!("its primary key is ({})", names.join(", ")),
            };
            return Err(at(WireError::new(ErrorCode::InvalidArgument, message).with_hint(hint)).into());
        }
        if columns.len() != parent_columns.len() {
            let message = format!(
                "a foreign key of {} columns cannot reference the {} columns of table {}'s primary key",
                columns.len(),
                parent_columns.len(),
                parent.name
            );
            return Err(at(WireError::new(ErrorCode::InvalidArgument, message)).into());
        }
        for (&column, &parent_column) in columns.iter().zip(&parent_columns) {
            let (child, parent_column) = (&table.columns[column], &parent.columns[parent_column]);
            if child.sql_type.to_arrow() != parent_column.sql_type.to_arrow() {
                let message = format!(
                    "column {} is {} and cannot reference {}.{}, which is {}",
                    child.name, child.sql_type, parent.name, parent_column.name, parent_column.sql_type
                );
                let hint = format!("make it {}", parent_column.sql_type);
                return Err(at(WireError::new(ErrorCode::TypeMismatch, message).with_hint(hint)).into());
            }
        }
        let name = key.name.clone().unwrap_or_else(|| format!("{}_{}_fkey", self.name.table, key.columns.join("_")));
        Ok(ForeignKey {
            name,
            columns,
            parent: parent.id,
            parent_columns,
            on_delete: Default::default(),
            on_update: Default::default(),
        })
    }
}

fn unknown_column<'a>(name: &str, table: &TableName, columns: impl Iterator<Item = &'a str>) -> WireError {
    let error = WireError::new(ErrorCode::NotFound, format!("table {table} has no column {name}"));
    match nearest_name(name, columns) {
        Some(near) => error.with_hint(format!("did you mean {near}?")),
        None => error,
    }
}

fn refused_constraint(keyword: &str, on: &str) -> WireError {
    unsupported(
        format!("{keyword} (on {on}) is not done"),
        "leave it out; NOT NULL, PRIMARY KEY and FOREIGN KEY are done",
    )
}

fn refuse_key_details(key: &PrimaryKeyConstraint) -> Result<()> {
    if key.index_type.is_some() || !key.index_options.is_empty() || key.characteristics.is_some() {
        let error =
            unsupported("a primary key with index options or DEFERRABLE is not done", "write PRIMARY KEY (a, b)");
        return Err(error.into());
    }
    Ok(())
}

fn index_column(column: &IndexColumn) -> Result<&Ident> {
    let plain = column.operator_class.is_none()
        && column.column.with_fill.is_none()
        && column.column.options.nulls_first.is_none()
        && column.column.options.asc != Some(false);
    match &column.column.expr {
        Expr::Identifier(ident) if plain => Ok(ident),
        other => Err(unsupported(format!("{other} in a primary key is not done"), "name columns only").into()),
    }
}

/// The tree has a field for every clause of every database: whatever differs from a plain CREATE TABLE is refused.
fn refuse_other_clauses(tree: &ast::CreateTable) -> Result<()> {
    let plain = CreateTableBuilder::new(tree.name.clone())
        .if_not_exists(tree.if_not_exists)
        .columns(tree.columns.clone())
        .constraints(tree.constraints.clone())
        .table_options(tree.table_options.clone())
        .build();
    if *tree == plain {
        return Ok(());
    }
    let clauses = [
        (tree.or_replace, "OR REPLACE"),
        (tree.temporary || tree.global.is_some(), "TEMPORARY"),
        (tree.external, "EXTERNAL"),
        (tree.like.is_some(), "LIKE"),
        (tree.partition_by.is_some() || tree.partition_of.is_some(), "PARTITION"),
        (tree.order_by.is_some() || tree.cluster_by.is_some() || tree.clustered_by.is_some(), "ORDER BY or CLUSTER BY"),
        (tree.inherits.is_some(), "INHERITS"),
        (tree.on_commit.is_some(), "ON COMMIT"),
    ];
    let clause = clauses.iter().find(|(there, _)| *there).map_or("one of its clauses", |(_, name)| name);
    let hint = "write CREATE TABLE name (columns, PRIMARY KEY (...), FOREIGN KEY ...) WITH (...)";
    let location = tree.name.0.first().and_then(|part| part.as_ident()).map_or(Span::empty(), |ident| ident.span).start;
    Err(positioned(unsupported(format!("CREATE TABLE with {clause} is not done"), hint), location).into())
}
