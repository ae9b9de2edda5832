//! CREATE TABLE as written. A clause that is not carried out is refused, never skipped. The definition that it makes is in
//! `definition.rs`.

use datafusion::sql::sqlparser::{
    ast::{
        self, ColumnOption, CreateTableOptions, Ident, TableConstraint, helpers::stmt_create_table::CreateTableBuilder,
    },
    tokenizer::Span,
};
use drsdb_core::{ErrorCode, Result, SqlType, TableName, WireError};

use super::{
    constraint::{self, CheckClause, ConstraintClause, ForeignKeyClause, KeyClause},
    expression::{column_names, location, refuse_beyond_row},
    names::{identifier, positioned, table_name},
    sql_type::sql_type,
    table_options::TableOptions,
};

/// The most columns of a table.
pub const MAX_COLUMNS: usize = 4096;

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
    /// CONSTRAINT name of the primary key.
    pub primary_key_name: Option<String>,
    /// The UNIQUE constraints.
    pub uniques: Vec<KeyClause>,
    /// The CHECK constraints.
    pub checks: Vec<CheckClause>,
    /// The foreign keys.
    pub foreign_keys: Vec<ForeignKeyClause>,
    /// WITH.
    pub options: TableOptions,
    /// AS: the columns are those of a query.
    pub query: Option<CreateAs>,
}

/// CREATE TABLE ... AS.
#[derive(Debug, Clone, PartialEq)]
pub struct CreateAs {
    /// The query.
    pub query: Box<ast::Query>,
    /// Names for its columns, of the first ones or of all.
    pub names: Vec<String>,
    /// Whether its rows are loaded.
    pub with_data: bool,
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
    /// CONSTRAINT name NOT NULL.
    pub not_null_name: Option<String>,
    /// DEFAULT.
    pub default: Option<String>,
}

impl ColumnClause {
    /// A column without a default.
    pub fn new(name: impl Into<String>, sql_type: SqlType, not_null: bool) -> Self {
        Self { name: name.into(), sql_type, not_null, not_null_name: None, default: None }
    }

    /// A column's definition, and the constraints in it.
    pub fn from_ast(column: &ast::ColumnDef, table: &str) -> Result<(Self, Vec<ConstraintClause>)> {
        let start = column.name.span.start;
        let name = identifier(&column.name)?;
        let sql_type = sql_type(&column.data_type).map_err(|error| {
            positioned(WireError { message: format!("column {name}: {}", error.message), ..error }, start)
        })?;
        let (mut null, mut not_null, mut not_null_name, mut default) = (false, false, None, None);
        let mut constraints = Vec::new();
        for ast::ColumnOptionDef { name: given, option } in &column.options {
            let (given, of) = (given.as_ref(), Some((name.as_str(), start)));
            match option {
                ColumnOption::Null => null = true,
                ColumnOption::NotNull => {
                    not_null = true;
                    not_null_name = given.map(identifier).transpose()?.or(not_null_name);
                }
                ColumnOption::Default(expr) => default = default_text(expr)?,
                ColumnOption::PrimaryKey(key) => {
                    constraints.push(ConstraintClause::PrimaryKey(constraint::primary_key(key, given, of)?));
                }
                ColumnOption::Unique(key) => {
                    constraints.push(ConstraintClause::Unique(constraint::unique(key, given, of)?));
                }
                ColumnOption::Check(check) => {
                    constraints.push(ConstraintClause::Check(constraint::check(check, given, table)?));
                }
                ColumnOption::ForeignKey(key) => {
                    constraints.push(ConstraintClause::ForeignKey(constraint::foreign_key(key, given, of)?));
                }
                other => return Err(positioned(refused_option(other, &name), start).into()),
            }
        }
        if null && not_null {
            let message = format!("column {name} is both NULL and NOT NULL");
            return Err(positioned(WireError::new(ErrorCode::InvalidArgument, message), start).into());
        }
        Ok((Self { name, sql_type, not_null, not_null_name, default }, constraints))
    }
}

/// The text of a DEFAULT; none for NULL, which is what a column without one gets.
pub fn default_text(expr: &ast::Expr) -> Result<Option<String>> {
    refuse_beyond_row(expr, "DEFAULT")?;
    if let Some(name) = column_names(expr)?.first() {
        let error = WireError::new(ErrorCode::InvalidArgument, format!("DEFAULT cannot use the column {name}"))
            .with_hint("write a value or a function; text is in single quotes");
        return Err(positioned(error, location(expr)).into());
    }
    let text = expr.to_string();
    Ok((!text.eq_ignore_ascii_case("null")).then_some(text))
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

/// The error of what is not done.
pub fn unsupported(what: impl Into<String>, hint: &str) -> WireError {
    WireError::new(ErrorCode::Unsupported, what).with_hint(hint)
}

impl CreateTable {
    /// A table without columns.
    pub fn new(name: TableName) -> Self {
        Self {
            name,
            if_not_exists: false,
            columns: Vec::new(),
            primary_key: Vec::new(),
            primary_key_name: None,
            uniques: Vec::new(),
            checks: Vec::new(),
            foreign_keys: Vec::new(),
            options: TableOptions::default(),
            query: None,
        }
    }

    /// Reads the parser's tree.
    pub fn from_ast(tree: ast::CreateTable) -> Result<Self> {
        refuse_other_clauses(&tree)?;
        let mut table = Self { if_not_exists: tree.if_not_exists, ..Self::new(table_name(&tree.name)?) };
        table.options = match &tree.table_options {
            CreateTableOptions::None => TableOptions::default(),
            CreateTableOptions::With(options) => TableOptions::parse(options)?,
            other => return Err(unsupported(format!("{other} is not done"), "write WITH (...)").into()),
        };
        if let Some(query) = tree.query {
            table.query = Some(create_as(query, &tree.columns, &tree.constraints)?);
            return Ok(table);
        }
        for column in &tree.columns {
            let (clause, constraints) = ColumnClause::from_ast(column, &table.name.table)?;
            let start = column.name.span.start;
            if table.columns.iter().any(|other| other.name == clause.name) {
                let message = format!("column {} is there twice", clause.name);
                return Err(positioned(WireError::new(ErrorCode::InvalidArgument, message), start).into());
            }
            table.columns.push(clause);
            constraints.into_iter().try_for_each(|constraint| table.add_constraint(constraint))?;
        }
        for constraint in &tree.constraints {
            table.add_constraint(ConstraintClause::of_table(constraint, &table.name.table)?)?;
        }
        if table.columns.len() > MAX_COLUMNS {
            let message = format!("a table has at most {MAX_COLUMNS} columns, not {}", table.columns.len());
            return Err(WireError::new(ErrorCode::InvalidArgument, message).into());
        }
        Ok(table)
    }

    fn add_constraint(&mut self, constraint: ConstraintClause) -> Result<()> {
        match constraint {
            ConstraintClause::PrimaryKey(key) => {
                if !self.primary_key.is_empty() {
                    return Err(positioned(second_primary_key(), key.location).into());
                }
                (self.primary_key, self.primary_key_name) = (key.columns, key.name);
            }
            ConstraintClause::Unique(key) => self.uniques.push(key),
            ConstraintClause::Check(check) => self.checks.push(check),
            ConstraintClause::ForeignKey(key) => self.foreign_keys.push(key),
        }
        Ok(())
    }
}

/// The error of a table that would have two primary keys.
pub fn second_primary_key() -> WireError {
    WireError::new(ErrorCode::InvalidArgument, "the table has more than one primary key")
        .with_hint("write one PRIMARY KEY (column, column, ...)")
}

fn create_as(query: Box<ast::Query>, columns: &[ast::ColumnDef], constraints: &[TableConstraint]) -> Result<CreateAs> {
    let plain = |column: &ast::ColumnDef| column.data_type == ast::DataType::Unspecified && column.options.is_empty();
    if !constraints.is_empty() || !columns.iter().all(plain) {
        let hint = "name the columns only, or create the table and then INSERT ... SELECT";
        return Err(unsupported("CREATE TABLE ... AS with types or constraints is not done", hint).into());
    }
    let names = columns.iter().map(|column| identifier(&column.name)).collect::<Result<_>>()?;
    Ok(CreateAs { query, names, with_data: true })
}

fn refused_option(option: &ColumnOption, column: &str) -> WireError {
    let generated = matches!(option, ColumnOption::Generated { .. } | ColumnOption::Identity(_))
        || matches!(option, ColumnOption::DialectSpecific(tokens) if tokens.iter().any(|token| token.to_string().to_uppercase().starts_with("AUTO")));
    let keyword = option.to_string();
    let keyword = keyword.split_whitespace().next().unwrap_or_default().to_uppercase();
    let what = format!("{keyword} (on {column}) is not done");
    if generated {
        return unsupported(what, "write DEFAULT snowflake_id() for a BIGINT, or DEFAULT ulid() for a ULID");
    }
    unsupported(what, "leave it out; NOT NULL, DEFAULT, PRIMARY KEY, UNIQUE, CHECK and REFERENCES are done")
}

/// The tree has a field for every clause of every database: whatever differs from a plain CREATE TABLE is refused.
fn refuse_other_clauses(tree: &ast::CreateTable) -> Result<()> {
    let plain = CreateTableBuilder::new(tree.name.clone())
        .if_not_exists(tree.if_not_exists)
        .columns(tree.columns.clone())
        .constraints(tree.constraints.clone())
        .table_options(tree.table_options.clone())
        .query(tree.query.clone())
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
    let location = first_ident(&tree.name).map_or(Span::empty(), |ident| ident.span).start;
    Err(positioned(unsupported(format!("CREATE TABLE with {clause} is not done"), hint), location).into())
}

fn first_ident(name: &ast::ObjectName) -> Option<&Ident> {
    name.0.first().and_then(|part| part.as_ident())
}
