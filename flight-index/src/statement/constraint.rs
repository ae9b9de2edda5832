//! Constraints as written, in CREATE TABLE and ALTER TABLE alike. What they mean for a table is in `definition.rs`.

use datafusion::sql::sqlparser::{
    ast::{self, Expr, ForeignKeyConstraint, Ident, IndexColumn, NullsDistinctOption, TableConstraint},
    tokenizer::Location,
};
use drsdb_core::{ReferentialAction, Result, TableName, WireError};

use super::{
    create_table::unsupported,
    expression::{column_names, location, refuse_beyond_row, without_table},
    names::{identifier, positioned, table_name},
};

/// A constraint of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConstraintClause {
    /// PRIMARY KEY.
    PrimaryKey(KeyClause),
    /// UNIQUE.
    Unique(KeyClause),
    /// CHECK.
    Check(CheckClause),
    /// FOREIGN KEY, REFERENCES.
    ForeignKey(ForeignKeyClause),
}

/// A primary key, or a UNIQUE constraint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyClause {
    /// CONSTRAINT name.
    pub name: Option<String>,
    /// Its columns.
    pub columns: Vec<String>,
    /// Where in the text it is.
    pub location: Location,
}

/// A CHECK constraint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckClause {
    /// CONSTRAINT name.
    pub name: Option<String>,
    /// The expression.
    pub sql: String,
    /// The columns that it names.
    pub columns: Vec<String>,
    /// Where in the text it is.
    pub location: Location,
}

/// A foreign key.
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
    /// ON DELETE.
    pub on_delete: ReferentialAction,
    /// ON UPDATE.
    pub on_update: ReferentialAction,
    /// Where in the text it is.
    pub location: Location,
}

/// The column in whose definition a constraint is, and where that is.
pub type OfColumn<'a> = Option<(&'a str, Location)>;

impl ConstraintClause {
    /// A constraint of the table called `table`.
    pub fn of_table(constraint: &TableConstraint, table: &str) -> Result<Self> {
        Ok(match constraint {
            TableConstraint::PrimaryKey(key) => Self::PrimaryKey(primary_key(key, None, None)?),
            TableConstraint::Unique(key) => Self::Unique(unique(key, None, None)?),
            TableConstraint::Check(check) => Self::Check(self::check(check, None, table)?),
            TableConstraint::ForeignKey(key) => Self::ForeignKey(foreign_key(key, None, None)?),
            other => {
                let hint = "PRIMARY KEY, UNIQUE, CHECK and FOREIGN KEY are done";
                return Err(unsupported(format!("{other} is not done"), hint).into());
            }
        })
    }
}

/// PRIMARY KEY; `name` is that before it in a column's definition.
pub fn primary_key(key: &ast::PrimaryKeyConstraint, name: Option<&Ident>, column: OfColumn) -> Result<KeyClause> {
    if key.index_type.is_some() || !key.index_options.is_empty() || key.characteristics.is_some() {
        let error =
            unsupported("a primary key with index options or DEFERRABLE is not done", "write PRIMARY KEY (a, b)");
        return Err(error.into());
    }
    key_clause(key.name.as_ref().or(name), &key.columns, column)
}

/// UNIQUE.
pub fn unique(key: &ast::UniqueConstraint, name: Option<&Ident>, column: OfColumn) -> Result<KeyClause> {
    if key.nulls_distinct == NullsDistinctOption::NotDistinct {
        let hint = "leave NULLS NOT DISTINCT out: keys with a NULL in them differ from all others";
        return Err(unsupported("UNIQUE NULLS NOT DISTINCT is not done", hint).into());
    }
    if key.index_type.is_some()
        || !key.index_options.is_empty()
        || key.characteristics.is_some()
        || key.index_name.is_some()
    {
        return Err(unsupported("UNIQUE with index options or DEFERRABLE is not done", "write UNIQUE (a, b)").into());
    }
    key_clause(key.name.as_ref().or(name), &key.columns, column)
}

fn key_clause(name: Option<&Ident>, columns: &[IndexColumn], column: OfColumn) -> Result<KeyClause> {
    let name = name.map(identifier).transpose()?;
    if let Some((column, location)) = column {
        return Ok(KeyClause { name, columns: vec![column.to_owned()], location });
    }
    let idents = columns.iter().map(index_column).collect::<Result<Vec<&Ident>>>()?;
    let location = idents.first().map_or(Location::empty(), |ident| ident.span.start);
    Ok(KeyClause { name, columns: idents.into_iter().map(identifier).collect::<Result<_>>()?, location })
}

fn index_column(column: &IndexColumn) -> Result<&Ident> {
    let plain = column.operator_class.is_none()
        && column.column.with_fill.is_none()
        && column.column.options.nulls_first.is_none()
        && column.column.options.asc != Some(false);
    match &column.column.expr {
        Expr::Identifier(ident) if plain => Ok(ident),
        other => Err(unsupported(format!("{other} in a key is not done"), "name columns only").into()),
    }
}

/// CHECK.
pub fn check(check: &ast::CheckConstraint, name: Option<&Ident>, table: &str) -> Result<CheckClause> {
    if check.enforced == Some(false) {
        return Err(unsupported("CHECK ... NOT ENFORCED is not done", "leave the constraint out").into());
    }
    refuse_beyond_row(&check.expr, "CHECK")?;
    let location = location(&check.expr);
    let expr = without_table(check.expr.as_ref().clone(), table);
    Ok(CheckClause {
        name: check.name.as_ref().or(name).map(identifier).transpose()?,
        columns: column_names(&expr)?,
        sql: expr.to_string(),
        location,
    })
}

/// FOREIGN KEY, or REFERENCES of a column.
pub fn foreign_key(key: &ForeignKeyConstraint, name: Option<&Ident>, column: OfColumn) -> Result<ForeignKeyClause> {
    let location = match column {
        Some((_, location)) => location,
        None => key.columns.first().map_or(Location::empty(), |ident| ident.span.start),
    };
    let at = |error: WireError| drsdb_core::Error::from(positioned(error, location));
    let action = |action: &Option<ast::ReferentialAction>| match action {
        None | Some(ast::ReferentialAction::NoAction) => Ok(ReferentialAction::NoAction),
        Some(ast::ReferentialAction::Restrict) => Ok(ReferentialAction::Restrict),
        Some(ast::ReferentialAction::Cascade) => Ok(ReferentialAction::Cascade),
        Some(ast::ReferentialAction::SetNull) => Ok(ReferentialAction::SetNull),
        Some(other) => Err(at(unsupported(
            format!("a foreign key with {other} is not done"),
            "NO ACTION, RESTRICT, CASCADE and SET NULL are done",
        ))),
    };
    let (on_delete, on_update) = (action(&key.on_delete)?, action(&key.on_update)?);
    if key.characteristics.is_some() || key.index_name.is_some() {
        let what = "a foreign key with DEFERRABLE, ENFORCED or an index name is not done";
        return Err(at(unsupported(what, "leave that out")));
    }
    if key.match_kind.as_ref().is_some_and(|kind| *kind != ast::ConstraintReferenceMatchKind::Simple) {
        let hint = "leave MATCH out: a key with a NULL in it refers to nothing";
        return Err(at(unsupported("a foreign key with MATCH FULL or PARTIAL is not done", hint)));
    }
    let columns = match column {
        Some((name, _)) => vec![name.to_owned()],
        None => key.columns.iter().map(identifier).collect::<Result<_>>()?,
    };
    Ok(ForeignKeyClause {
        name: key.name.as_ref().or(name).map(identifier).transpose()?,
        columns,
        parent: table_name(&key.foreign_table)?,
        parent_columns: key.referred_columns.iter().map(identifier).collect::<Result<_>>()?,
        on_delete,
        on_update,
        location,
    })
}
