//! What clauses mean for a table: its definition, once the parents of its foreign keys are known. CREATE TABLE makes one,
//! ALTER TABLE changes one.

use std::{collections::HashSet, sync::Arc};

use drsdb_core::{
    Check, Column, Engine, ErrorCode, ForeignKey, ROW_ID, ReferentialAction, Result, SqlType, Table, TableName, Ulid,
    UniqueKey, WireError, ids::new_ulid, nearest_name, shard::SHARD_FUNCTION,
};

use super::{
    constraint::{CheckClause, ForeignKeyClause, KeyClause},
    create_table::{ColumnClause, CreateTable},
    names::positioned,
};

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

impl CreateTable {
    /// The definition, with `id` and, unless the statement says how many, `default_shards` shards. Its UNIQUE constraints
    /// have fresh ids for their [indexes](unique_indexes).
    pub fn resolve(&self, id: Ulid, default_shards: u32, parents: &dyn Parents) -> Result<Table> {
        let mut table = Table {
            id,
            name: self.name.clone(),
            columns: self.columns.iter().map(ColumnClause::column).collect(),
            engine: self.options.engine.unwrap_or(Engine::Column),
            shards: self.options.shards.unwrap_or(default_shards),
            shard_function: SHARD_FUNCTION,
            replicas: self.options.replicas,
            primary_key_name: self.primary_key_name.clone(),
            ..Table::default()
        };
        table.primary_key = positions(&table, &self.primary_key, "the primary key")?;
        for &position in &table.primary_key {
            table.columns[position].not_null = true;
        }
        if table.primary_key.is_empty() {
            if table.columns.iter().any(|column| column.name == ROW_ID) {
                let message = format!("a table without a primary key has no room for a column {ROW_ID}");
                return Err(WireError::new(ErrorCode::InvalidArgument, message)
                    .with_hint("choose another name, or a primary key")
                    .into());
            }
            table.primary_key = vec![table.columns.len()];
            table.columns.push(Column { hidden: true, ..Column::new(ROW_ID, SqlType::BigInt, true) });
        }
        table.shard_key = match &self.options.shard_key {
            Some(names) => positions(&table, names, "the shard key")?,
            None => table.primary_key.clone(),
        };
        if table.has_user_key() && !table.shard_key.iter().all(|position| table.primary_key.contains(position)) {
            // A shard checks the primary key among its own rows only.
            let message = format!("the shard key of table {} has a column that is not in its primary key", self.name);
            return Err(WireError::new(ErrorCode::InvalidArgument, message)
                .with_hint("choose the shard key from the primary key's columns, or leave the primary key out")
                .into());
        }
        table.cluster_key = match &self.options.cluster_key {
            Some(names) => positions(&table, names, "the cluster key")?,
            None if table.has_user_key() => table.primary_key.clone(),
            None => Vec::new(),
        };
        for key in &self.uniques {
            add_unique(&mut table, key)?;
        }
        for check in &self.checks {
            add_check(&mut table, check)?;
        }
        for key in &self.foreign_keys {
            add_foreign_key(&mut table, key, parents)?;
        }
        table.validate()?;
        Ok(table)
    }
}

impl ColumnClause {
    /// The column of a definition.
    pub fn column(&self) -> Column {
        Column {
            default: self.default.clone(),
            not_null_name: self.not_null_name.clone(),
            ..Column::new(&self.name, self.sql_type, self.not_null)
        }
    }
}

/// The tables that keep the keys of a table's UNIQUE constraints.
pub fn unique_indexes(table: &Table) -> Vec<Table> {
    table.uniques.iter().map(|key| table.unique_index(key)).collect()
}

/// The positions of the columns that `names` lists.
pub fn positions(table: &Table, names: &[String], what: &str) -> Result<Vec<usize>> {
    let mut seen = HashSet::new();
    names
        .iter()
        .map(|name| {
            let position = table.column_position(name);
            let position = position.ok_or_else(|| unknown_column(name, table).with_field("used_in", what))?;
            if !seen.insert(position) {
                let message = format!("column {name} is twice in {what} of table {}", table.name);
                return Err(WireError::new(ErrorCode::InvalidArgument, message).into());
            }
            Ok(position)
        })
        .collect()
}

/// Adds a UNIQUE constraint; its index has a fresh id.
pub fn add_unique(table: &mut Table, key: &KeyClause) -> Result<()> {
    let columns = positions(table, &key.columns, "a UNIQUE constraint")?;
    let base = format!("{}_{}_key", table.name.table, key.columns.join("_"));
    let name = constraint_name(table, key.name.as_deref(), base).map_err(|error| positioned(error, key.location))?;
    table.uniques.push(UniqueKey { name, columns, index: new_ulid() });
    Ok(())
}

/// Adds a CHECK constraint. Whether its expression is one is the planner's to say.
pub fn add_check(table: &mut Table, check: &CheckClause) -> Result<()> {
    for name in &check.columns {
        if table.column_position(name).is_none() {
            let error = unknown_column(name, table).with_field("used_in", "CHECK");
            return Err(positioned(error, check.location).into());
        }
    }
    let base = match check.columns.as_slice() {
        [column] => format!("{}_{column}_check", table.name.table),
        _ => format!("{}_check", table.name.table),
    };
    let name =
        constraint_name(table, check.name.as_deref(), base).map_err(|error| positioned(error, check.location))?;
    table.checks.push(Check { name, sql: check.sql.clone() });
    Ok(())
}

/// Adds a foreign key.
pub fn add_foreign_key(table: &mut Table, key: &ForeignKeyClause, parents: &dyn Parents) -> Result<()> {
    let at = |error: WireError| positioned(error, key.location);
    let columns = positions(table, &key.columns, "a foreign key")?;
    // A table may reference itself, also before it exists.
    let found;
    let parent = if key.parent == table.name {
        &*table
    } else {
        found = parents.parent(&key.parent).map_err(|error| at(error.to_wire()))?;
        &*found
    };
    let parent_columns = if key.parent_columns.is_empty() && parent.has_user_key() {
        parent.primary_key.clone()
    } else {
        let position = |name: &String| parent.column_position(name).ok_or_else(|| at(unknown_column(name, parent)));
        key.parent_columns.iter().map(position).collect::<Result<Vec<_>, WireError>>()?
    };
    if !parent.is_key(&parent_columns) {
        return Err(at(no_such_key(parent)).into());
    }
    if columns.len() != parent_columns.len() {
        let message = format!(
            "a foreign key of {} columns cannot reference the {} columns of a key of table {}",
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
        let sets_null = [key.on_delete, key.on_update].contains(&ReferentialAction::SetNull);
        if child.not_null && sets_null {
            let message = format!("column {} is NOT NULL, so that SET NULL could never be done", child.name);
            let hint = "leave NOT NULL out, or say ON DELETE CASCADE or RESTRICT";
            return Err(at(WireError::new(ErrorCode::InvalidArgument, message).with_hint(hint)).into());
        }
    }
    let parent = parent.id;
    let base = format!("{}_{}_fkey", table.name.table, key.columns.join("_"));
    let name = constraint_name(table, key.name.as_deref(), base).map_err(at)?;
    let (on_delete, on_update) = (key.on_delete, key.on_update);
    table.foreign_keys.push(ForeignKey { name, columns, parent, parent_columns, on_delete, on_update });
    Ok(())
}

fn no_such_key(parent: &Table) -> WireError {
    let message = format!("a foreign key must reference the primary key or a UNIQUE key of table {}", parent.name);
    let names = |positions: &[usize]| {
        let names: Vec<&str> = positions.iter().map(|&position| parent.columns[position].name.as_str()).collect();
        format!("({})", names.join(", "))
    };
    let mut keys = Vec::new();
    if parent.has_user_key() {
        keys.push(format!("its primary key is {}", names(&parent.primary_key)));
    }
    keys.extend(parent.uniques.iter().map(|key| format!("{} are unique", names(&key.columns))));
    let hint = match keys.is_empty() {
        true => "that table has none: create it with one".to_owned(),
        false => keys.join(", "),
    };
    WireError::new(ErrorCode::InvalidArgument, message).with_hint(hint)
}

/// The name of a new constraint: the given one, or `base`, with a number when that is taken.
fn constraint_name(table: &Table, given: Option<&str>, base: String) -> Result<String, WireError> {
    let taken: HashSet<String> = table.constraint_names().collect();
    match given {
        None => {
            let numbered = (1..).map(|number| format!("{base}{number}"));
            let mut candidates = std::iter::once(base.clone()).chain(numbered);
            Ok(candidates.find(|name| !taken.contains(name)).expect("there are more numbers than constraints"))
        }
        Some(name) if taken.contains(name) => {
            let message = format!("two constraints of table {} are called {name}", table.name);
            Err(WireError::new(ErrorCode::AlreadyExists, message).with_hint("write CONSTRAINT with names that differ"))
        }
        Some(name) => Ok(name.to_owned()),
    }
}

/// The error of a column that a table does not have.
pub fn unknown_column(name: &str, table: &Table) -> WireError {
    let error = WireError::new(ErrorCode::NotFound, format!("table {} has no column {name}", table.name));
    match nearest_name(name, table.visible_columns().map(|(_, column)| column.name.as_str())) {
        Some(near) => error.with_hint(format!("did you mean {near}?")),
        None => error,
    }
}
