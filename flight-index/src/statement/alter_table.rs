//! ALTER TABLE: its operations as written ([`AlterTable`]), and the definition that they make of a table
//! ([`AlterTable::alter`]). Columns keep their positions for ever: one that is dropped leaves a tombstone.

use datafusion::sql::sqlparser::ast::{self, AlterColumnOperation, AlterTableOperation, DropBehavior};
use drsdb_core::{ErrorCode, Result, Table, TableName, WireError, nearest_name};

use super::{
    constraint::ConstraintClause,
    create_table::{ColumnClause, MAX_COLUMNS, default_text, second_primary_key, unsupported},
    definition::{Parents, add_check, add_foreign_key, add_unique, unknown_column},
    expression::{column_names, rename_column},
    names::{identifier, table_name},
    parse::parse_expression,
};

/// An ALTER TABLE statement.
#[derive(Debug, Clone, PartialEq)]
pub struct AlterTable {
    /// The table.
    pub name: TableName,
    /// Whether one that does not exist is no error.
    pub if_exists: bool,
    /// What to do, in order. All of it is done, or nothing.
    pub operations: Vec<AlterOperation>,
}

/// One change of a table.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum AlterOperation {
    AddColumn { if_not_exists: bool, column: ColumnClause, constraints: Vec<ConstraintClause> },
    DropColumn { name: String, if_exists: bool, cascade: bool },
    RenameColumn { from: String, to: String },
    RenameTable { to: TableName },
    SetDefault { column: String, default: Option<String> },
    SetNotNull { column: String, not_null: bool },
    AddConstraint(ConstraintClause),
    DropConstraint { name: String, if_exists: bool, cascade: bool },
    RenameConstraint { from: String, to: String },
}

/// What an ALTER TABLE makes of a table.
#[derive(Debug, Clone, PartialEq)]
pub struct Altered {
    /// The new definition, with the same version.
    pub table: Table,
    /// Positions of added columns: rows that are there read the default as it is now.
    pub added: Vec<usize>,
    /// What must hold for the rows that are there.
    pub needs: Vec<Need>,
    /// Whether what depends on the change goes: foreign keys of other tables, views.
    pub cascade: bool,
}

/// A condition on the rows that are there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Need {
    /// There are none, because of this.
    Empty(String),
    /// The column at this position is never NULL.
    NotNull(usize),
    /// The constraint of this name holds.
    Constraint(String),
}

impl AlterTable {
    /// Reads the parser's tree.
    pub fn from_ast(tree: ast::AlterTable) -> Result<Self> {
        if tree.only || tree.location.is_some() || tree.on_cluster.is_some() || tree.table_type.is_some() {
            return Err(unsupported("this form of ALTER TABLE is not done", "write ALTER TABLE name ...").into());
        }
        let name = table_name(&tree.name)?;
        let mut operations = Vec::new();
        for operation in tree.operations {
            read(operation, &name, &mut operations)?;
        }
        Ok(Self { name, if_exists: tree.if_exists, operations })
    }

    /// The table after all operations. Pure but for the ids of new UNIQUE constraints' indexes.
    pub fn alter(&self, table: &Table, parents: &dyn Parents) -> Result<Altered> {
        let mut altered = Altered { table: table.clone(), added: Vec::new(), needs: Vec::new(), cascade: false };
        for operation in &self.operations {
            altered.apply(operation, parents)?;
        }
        if altered.table.visible_columns().next().is_none() {
            let message = format!("table {} would have no column left", table.name);
            return Err(WireError::new(ErrorCode::InvalidArgument, message).with_hint("drop the table instead").into());
        }
        altered.table.validate()?;
        Ok(altered)
    }
}

fn cascades(behavior: Option<DropBehavior>) -> bool {
    behavior == Some(DropBehavior::Cascade)
}

fn read(operation: AlterTableOperation, table: &TableName, into: &mut Vec<AlterOperation>) -> Result<()> {
    into.push(match operation {
        AlterTableOperation::AddColumn { if_not_exists, column_def, column_position: None, .. } => {
            let (column, constraints) = ColumnClause::from_ast(&column_def, &table.table)?;
            AlterOperation::AddColumn { if_not_exists, column, constraints }
        }
        AlterTableOperation::AddColumn { .. } => {
            return Err(unsupported("ADD COLUMN at a place is not done", "columns are added at the end").into());
        }
        AlterTableOperation::DropColumn { column_names, if_exists, drop_behavior, .. } => {
            for name in &column_names {
                let (name, cascade) = (identifier(name)?, cascades(drop_behavior));
                into.push(AlterOperation::DropColumn { name, if_exists, cascade });
            }
            return Ok(());
        }
        AlterTableOperation::RenameColumn { old_column_name, new_column_name } => AlterOperation::RenameColumn {
            from: identifier(&old_column_name)?,
            to: identifier(&new_column_name)?,
        },
        AlterTableOperation::RenameTable { table_name: to } => {
            let (ast::RenameTableNameKind::To(to) | ast::RenameTableNameKind::As(to)) = to;
            // A name without a schema stays in the table's.
            let moved = to.0.len() > 1;
            let to = table_name(&to)?;
            let schema = if moved { &to.schema } else { &table.schema };
            AlterOperation::RenameTable { to: TableName::new(schema, &to.table) }
        }
        AlterTableOperation::AlterColumn { column_name, op } => {
            let column = identifier(&column_name)?;
            match op {
                AlterColumnOperation::SetNotNull => AlterOperation::SetNotNull { column, not_null: true },
                AlterColumnOperation::DropNotNull => AlterOperation::SetNotNull { column, not_null: false },
                AlterColumnOperation::SetDefault { value } => {
                    AlterOperation::SetDefault { column, default: default_text(&value)? }
                }
                AlterColumnOperation::DropDefault => AlterOperation::SetDefault { column, default: None },
                other => {
                    let hint = "add a column of the other type, copy the values with UPDATE, and drop the old one";
                    return Err(unsupported(format!("ALTER COLUMN ... {other} is not done"), hint).into());
                }
            }
        }
        AlterTableOperation::AddConstraint { constraint, not_valid: false } => {
            AlterOperation::AddConstraint(ConstraintClause::of_table(&constraint, &table.table)?)
        }
        AlterTableOperation::DropConstraint { if_exists, name, drop_behavior } => {
            AlterOperation::DropConstraint { name: identifier(&name)?, if_exists, cascade: cascades(drop_behavior) }
        }
        AlterTableOperation::RenameConstraint { old_name, new_name } => {
            AlterOperation::RenameConstraint { from: identifier(&old_name)?, to: identifier(&new_name)? }
        }
        other => {
            let hint = "ADD, DROP and RENAME of columns and constraints, RENAME TO, and ALTER COLUMN of DEFAULT and NOT NULL \
                        are done";
            return Err(unsupported(format!("ALTER TABLE ... {other} is not done"), hint).into());
        }
    });
    Ok(())
}

impl Altered {
    fn apply(&mut self, operation: &AlterOperation, parents: &dyn Parents) -> Result<()> {
        match operation {
            AlterOperation::AddColumn { if_not_exists, column, constraints } => {
                if *if_not_exists && self.table.column_position(&column.name).is_some() {
                    return Ok(());
                }
                self.add_column(column)?;
                constraints.iter().try_for_each(|constraint| self.add_constraint(constraint, parents))
            }
            AlterOperation::DropColumn { name, if_exists, cascade } => {
                match (self.table.column_position(name), if_exists) {
                    (Some(position), _) => self.drop_column(position, *cascade),
                    (None, true) => Ok(()),
                    (None, false) => Err(unknown_column(name, &self.table).into()),
                }
            }
            AlterOperation::RenameColumn { from, to } => self.rename_column(from, to),
            AlterOperation::RenameTable { to } => {
                self.table.name = to.clone();
                Ok(())
            }
            AlterOperation::SetDefault { column, default } => {
                let position = self.position(column)?;
                self.table.columns[position].default.clone_from(default);
                Ok(())
            }
            AlterOperation::SetNotNull { column, not_null } => self.set_not_null(column, *not_null),
            AlterOperation::AddConstraint(constraint) => self.add_constraint(constraint, parents),
            AlterOperation::DropConstraint { name, if_exists, cascade } => {
                self.drop_constraint(name, *if_exists, *cascade)
            }
            AlterOperation::RenameConstraint { from, to } => self.rename_constraint(from, to),
        }
    }

    fn position(&self, column: &str) -> Result<usize> {
        self.table.column_position(column).ok_or_else(|| unknown_column(column, &self.table).into())
    }

    fn refuse_taken(&self, column: &str) -> Result<()> {
        if self.table.columns.iter().any(|other| !other.dropped && other.name == column) {
            let message = format!("table {} has a column {column} already", self.table.name);
            return Err(WireError::new(ErrorCode::AlreadyExists, message).with_field("column", column).into());
        }
        Ok(())
    }

    fn add_column(&mut self, column: &ColumnClause) -> Result<()> {
        self.refuse_taken(&column.name)?;
        if self.table.columns.len() >= MAX_COLUMNS {
            let message = format!("a table has at most {MAX_COLUMNS} columns, dropped ones included");
            return Err(WireError::new(ErrorCode::InvalidArgument, message).into());
        }
        if column.not_null && column.default.is_none() {
            let why = format!("column {} is NOT NULL and has no DEFAULT for the rows that are there", column.name);
            self.needs.push(Need::Empty(why));
        }
        self.added.push(self.table.columns.len());
        self.table.columns.push(column.column());
        Ok(())
    }

    fn drop_column(&mut self, position: usize, cascade: bool) -> Result<()> {
        let table = &mut self.table;
        let name = table.columns[position].name.clone();
        let refused = |what: &str, hint: &str| {
            let message = format!("column {name} of table {} is part of {what}", table.name);
            Err(WireError::new(ErrorCode::InvalidArgument, message).with_hint(hint).with_field("column", &name).into())
        };
        let rebuild = "create a table without the column, and copy the rows with INSERT ... SELECT";
        for (key, what) in [
            (&table.primary_key, "its primary key"),
            (&table.shard_key, "its shard key"),
            (&table.cluster_key, "its cluster key"),
        ] {
            if key.contains(&position) {
                return refused(what, rebuild);
            }
        }
        let mut users = Vec::new();
        users.extend(table.uniques.iter().filter(|key| key.columns.contains(&position)).map(|key| key.name.clone()));
        users.extend(
            table.foreign_keys.iter().filter(|key| key.columns.contains(&position)).map(|key| key.name.clone()),
        );
        for check in &table.checks {
            if column_names(&parse_expression(&check.sql)?)?.contains(&name) {
                users.push(check.name.clone());
            }
        }
        if let (Some(constraint), false) = (users.first(), cascade) {
            let what = format!("constraint {constraint}");
            return refused(&what, "drop the constraint first, or say DROP COLUMN ... CASCADE");
        }
        for constraint in users {
            self.drop_constraint(&constraint, true, cascade)?;
        }
        let column = &mut self.table.columns[position];
        // The name is free for another column; this one cannot be written.
        column.name = format!(".dropped.{position}");
        (column.dropped, column.not_null, column.default, column.comment) = (true, false, None, None);
        column.not_null_name = None;
        self.added.retain(|&added| added != position);
        self.needs.retain(|need| *need != Need::NotNull(position));
        self.cascade |= cascade;
        Ok(())
    }

    fn rename_column(&mut self, from: &str, to: &str) -> Result<()> {
        let position = self.position(from)?;
        if from == to {
            return Ok(());
        }
        self.refuse_taken(to)?;
        self.table.columns[position].name = to.to_owned();
        for check in &mut self.table.checks {
            if column_names(&parse_expression(&check.sql)?)?.iter().any(|name| name == from) {
                check.sql = rename_column(&check.sql, from, to)?;
            }
        }
        Ok(())
    }

    fn set_not_null(&mut self, column: &str, not_null: bool) -> Result<()> {
        let position = self.position(column)?;
        if self.table.columns[position].not_null == not_null {
            return Ok(());
        }
        if self.table.primary_key.contains(&position) {
            let message = format!("column {column} is part of the primary key of table {}", self.table.name);
            return Err(WireError::new(ErrorCode::InvalidArgument, message).with_hint("it stays NOT NULL").into());
        }
        self.table.columns[position].not_null = not_null;
        self.table.columns[position].not_null_name = None;
        if not_null {
            self.needs.push(Need::NotNull(position));
        } else {
            self.needs.retain(|need| *need != Need::NotNull(position));
        }
        Ok(())
    }

    fn add_constraint(&mut self, constraint: &ConstraintClause, parents: &dyn Parents) -> Result<()> {
        let table = &mut self.table;
        let name = match constraint {
            ConstraintClause::PrimaryKey(_) if table.has_user_key() => return Err(second_primary_key().into()),
            ConstraintClause::PrimaryKey(_) => {
                let hint = "add a UNIQUE constraint, or create a table with the key and copy the rows";
                return Err(unsupported("adding a PRIMARY KEY to a table is not done", hint).into());
            }
            ConstraintClause::Unique(key) => {
                add_unique(table, key)?;
                table.uniques.last().map(|key| key.name.clone())
            }
            ConstraintClause::Check(check) => {
                add_check(table, check)?;
                table.checks.last().map(|check| check.name.clone())
            }
            ConstraintClause::ForeignKey(key) => {
                add_foreign_key(table, key, parents)?;
                table.foreign_keys.last().map(|key| key.name.clone())
            }
        };
        self.needs.extend(name.map(Need::Constraint));
        Ok(())
    }

    fn drop_constraint(&mut self, name: &str, if_exists: bool, cascade: bool) -> Result<()> {
        let table = &mut self.table;
        if table.key_name().as_deref() == Some(name) {
            let hint = "create a table without it, and copy the rows with INSERT ... SELECT";
            return Err(unsupported(format!("dropping the primary key {name} is not done"), hint).into());
        }
        if let Some(position) = not_null_called(table, name) {
            let column = table.columns[position].name.clone();
            return self.set_not_null(&column, false);
        }
        let before = table.uniques.len() + table.checks.len() + table.foreign_keys.len();
        table.uniques.retain(|key| key.name != name);
        table.checks.retain(|check| check.name != name);
        table.foreign_keys.retain(|key| key.name != name);
        let after = table.uniques.len() + table.checks.len() + table.foreign_keys.len();
        if before == after && !if_exists {
            return Err(no_constraint(table, name));
        }
        self.needs.retain(|need| *need != Need::Constraint(name.to_owned()));
        self.cascade |= cascade;
        Ok(())
    }

    fn rename_constraint(&mut self, from: &str, to: &str) -> Result<()> {
        let table = &mut self.table;
        if from != to && table.constraint_names().any(|name| name == to) {
            let message = format!("table {} has a constraint {to} already", table.name);
            return Err(WireError::new(ErrorCode::AlreadyExists, message).with_field("constraint", to).into());
        }
        if table.key_name().as_deref() == Some(from) {
            table.primary_key_name = Some(to.to_owned());
            return Ok(());
        }
        if let Some(position) = not_null_called(table, from) {
            table.columns[position].not_null_name = Some(to.to_owned());
            return Ok(());
        }
        let uniques = table.uniques.iter_mut().map(|key| &mut key.name);
        let checks = table.checks.iter_mut().map(|check| &mut check.name);
        let foreign_keys = table.foreign_keys.iter_mut().map(|key| &mut key.name);
        match uniques.chain(checks).chain(foreign_keys).find(|name| *name == from) {
            Some(name) => to.clone_into(name),
            None => return Err(no_constraint(&self.table, from)),
        }
        for need in &mut self.needs {
            if *need == Need::Constraint(from.to_owned()) {
                *need = Need::Constraint(to.to_owned());
            }
        }
        Ok(())
    }
}

/// The column whose NOT NULL has this name; one that nobody has given a name steps back behind other constraints.
fn not_null_called(table: &Table, name: &str) -> Option<usize> {
    let is_free = || !table.constraint_names().any(|taken| taken == name);
    (0..table.columns.len()).find(|&position| {
        let column = &table.columns[position];
        let is_there = column.not_null && column.is_visible() && table.not_null_name(position) == name;
        is_there && (column.not_null_name.is_some() || is_free())
    })
}

fn no_constraint(table: &Table, name: &str) -> drsdb_core::Error {
    let error = WireError::new(ErrorCode::NotFound, format!("table {} has no constraint {name}", table.name))
        .with_field("constraint", name);
    let names: Vec<String> = table.constraint_names().collect();
    match nearest_name(name, names.iter().map(String::as_str)) {
        Some(near) => error.with_hint(format!("did you mean {near}?")),
        None => error,
    }
    .into()
}
