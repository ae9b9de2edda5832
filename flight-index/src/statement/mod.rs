//! SQL text -> one [`Statement`]: what a client wants, before anything is looked up.
//!
//! ```text
//! text ── limits ──▶ tokens ── users? ──▶ users.rs ─────────────┐
//!                      └── sqlparser ──▶ classify.rs ── ddl ──▶ create_table.rs, sql_type.rs, table_options.rs
//!                                             └── queries stay syntax trees, for the planner
//! ```
//!
//! Everything here is pure: text in, statement or error out. Errors carry `line` and `column`. Not here: whether tables
//! exist ([`CreateTable::resolve`] is told), and how statements run (`crate::flight_sql`).

mod classify;
mod create_table;
mod limits;
mod names;
mod parse;
mod sql_type;
mod table_options;
mod users;

use std::fmt;

pub use create_table::{ColumnClause, CreateTable, ForeignKeyClause, Parents, parse_name_list};
use datafusion::sql::sqlparser::ast;
use drsdb_core::TableName;
pub use limits::{MAX_CHAIN, MAX_NESTING, MAX_SQL_BYTES, MAX_TOKENS};
pub use names::{CATALOG, identifier, positioned, table_name};
pub use parse::{parse, parse_type};
pub use table_options::TableOptions;

/// What a text asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Statement {
    /// Rows: SELECT, VALUES, TABLE. Placeholders are numbered `$1`, `$2`, ...
    Query(Box<ast::Statement>),
    /// EXPLAIN of a query, for the planner as a whole.
    Explain(Box<ast::Statement>),
    /// INSERT ... VALUES or INSERT ... SELECT, not looked into.
    Insert(Box<ast::Insert>),
    /// CREATE TABLE.
    CreateTable(Box<CreateTable>),
    /// DROP TABLE.
    DropTable {
        /// The tables, in the order of the text.
        names: Vec<TableName>,
        /// Whether one that does not exist is no error.
        if_exists: bool,
        /// Whether foreign keys that point at them go too.
        cascade: bool,
    },
    /// CREATE SCHEMA.
    CreateSchema {
        /// The schema.
        name: String,
        /// Whether one that exists is no error.
        if_not_exists: bool,
    },
    /// DROP SCHEMA.
    DropSchema {
        /// The schemas, in the order of the text.
        names: Vec<String>,
        /// Whether one that does not exist is no error.
        if_exists: bool,
        /// Whether their tables go too.
        cascade: bool,
    },
    /// CREATE USER.
    CreateUser {
        /// The login name.
        name: String,
        /// The password.
        password: Password,
        /// Whether one that exists is no error.
        if_not_exists: bool,
    },
    /// ALTER USER: a new password.
    AlterUser {
        /// The login name.
        name: String,
        /// The new password.
        password: Password,
    },
    /// DROP USER.
    DropUser {
        /// The login name.
        name: String,
        /// Whether one that does not exist is no error.
        if_exists: bool,
    },
    /// SET name = value; no value: back to the default (RESET, SET name TO DEFAULT).
    Set {
        /// The setting; `None`: every one (RESET ALL).
        name: Option<String>,
        /// Its value as text.
        value: Option<String>,
    },
    /// SHOW and DESCRIBE.
    Show(Show),
}

impl Statement {
    /// Whether it returns rows, instead of an update count.
    pub fn returns_rows(&self) -> bool {
        matches!(self, Statement::Query(_) | Statement::Explain(_) | Statement::Show(_))
    }
}

/// What SHOW shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Show {
    /// The tables, of one schema or of all.
    Tables(Option<String>),
    /// The schemas.
    Schemas,
    /// A table's columns.
    Columns(TableName),
    /// One setting.
    Setting(String),
    /// Every setting.
    AllSettings,
}

/// A password on its way to be hashed. It is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(pub String);

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(..)")
    }
}

#[cfg(test)]
mod tests;
