//! SQL text -> one [`Statement`]: what a client wants, before anything is looked up.
//!
//! ```text
//! text ── limits ──▶ tokens ── users? ──▶ users.rs ─────────────┐
//!                      ├────── cluster? ▶ alter_cluster.rs
//!                      └── sqlparser ──▶ classify.rs ── ddl ──▶ create_table.rs, alter_table.rs, view.rs, ...
//!                                             └── queries stay syntax trees, for the planner
//! ```
//!
//! Everything here is pure, but for the ids of new indexes: text in, statement or error out. Errors carry `line` and
//! `column`. [`distinct_from`] puts right what the parser reads wrongly; [`definition`] makes table definitions of clauses.
//! Not here: whether tables exist ([`CreateTable::resolve`] is told), and how statements run (`crate::flight_sql`).

mod alter_cluster;
mod alter_table;
mod classify;
mod constraint;
mod create_table;
mod cursor;
mod definition;
mod distinct_from;
mod expression;
mod limits;
mod names;
mod parse;
mod sql_type;
mod table_options;
mod users;
mod view;
mod wrong_answers;

use std::fmt;

pub use alter_cluster::AlterCluster;
pub use alter_table::{AlterOperation, AlterTable, Altered, Need};
pub use constraint::{CheckClause, ConstraintClause, ForeignKeyClause, KeyClause};
pub use create_table::{ColumnClause, CreateAs, CreateTable, parse_name_list};
use datafusion::sql::sqlparser::ast;
pub use definition::{Parents, unique_indexes};
use drsdb_core::TableName;
pub use expression::{column_names, quoted};
pub use limits::{MAX_CHAIN, MAX_NESTING, MAX_SQL_BYTES, MAX_TOKENS};
pub use names::{CATALOG, identifier, positioned, simple_name, table_name};
pub use parse::{parse, parse_expression, parse_query, parse_type};
pub use table_options::TableOptions;
pub use view::CreateView;

use crate::transaction::Modes;

/// What a text asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Statement {
    /// Rows: SELECT, VALUES, TABLE. Placeholders are numbered `$1`, `$2`, ...
    Query(Box<ast::Statement>),
    /// EXPLAIN of a query, for the planner as a whole.
    Explain(Box<ast::Statement>),
    /// INSERT ... VALUES or INSERT ... SELECT, not looked into.
    Insert(Box<ast::Insert>),
    /// UPDATE, not looked into.
    Update(Box<ast::Update>),
    /// DELETE, not looked into.
    Delete(Box<ast::Delete>),
    /// MERGE, not looked into.
    Merge(Box<ast::Merge>),
    /// TRUNCATE: all rows of the tables go.
    Truncate {
        /// The tables, in the order of the text.
        names: Vec<TableName>,
        /// Whether one that does not exist is no error.
        if_exists: bool,
        /// Whether tables that refer to them are emptied too.
        cascade: bool,
    },
    /// EXPLAIN of a statement that changes rows.
    ExplainWrite {
        /// The statement.
        statement: Box<Statement>,
        /// EXPLAIN VERBOSE.
        verbose: bool,
    },
    /// What begins, divides and ends transactions.
    Transaction(TransactionStatement),
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
    /// ALTER TABLE.
    AlterTable(Box<AlterTable>),
    /// CREATE VIEW.
    CreateView(Box<CreateView>),
    /// DROP VIEW.
    DropView {
        /// The views, in the order of the text.
        names: Vec<TableName>,
        /// Whether one that does not exist is no error.
        if_exists: bool,
        /// Whether views that use them go too.
        cascade: bool,
    },
    /// COMMENT ON.
    Comment {
        /// What it is about.
        on: CommentOn,
        /// Whether nothing is said about what does not exist.
        if_exists: bool,
        /// The comment; `None` removes it.
        text: Option<String>,
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
    /// ALTER CLUSTER.
    AlterCluster(AlterCluster),
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
        let returning = match self {
            Statement::Insert(insert) => insert.returning.is_some(),
            Statement::Update(update) => update.returning.is_some(),
            Statement::Delete(delete) => delete.returning.is_some(),
            Statement::Merge(merge) => matches!(merge.output, Some(ast::OutputClause::Returning { .. })),
            _ => false,
        };
        let query = matches!(
            self,
            Statement::Query(_) | Statement::Explain(_) | Statement::ExplainWrite { .. } | Statement::Show(_)
        );
        query || returning
    }

    /// Whether it changes rows of tables.
    pub fn writes_rows(&self) -> bool {
        matches!(
            self,
            Statement::Insert(_)
                | Statement::Update(_)
                | Statement::Delete(_)
                | Statement::Merge(_)
                | Statement::Truncate { .. }
        )
    }
}

/// What begins, divides and ends transactions. Names of savepoints are as SQL has them: lower case unless quoted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TransactionStatement {
    /// BEGIN, START TRANSACTION.
    Begin(Modes),
    /// COMMIT, END.
    Commit,
    /// ROLLBACK.
    Rollback,
    /// SAVEPOINT.
    Savepoint(String),
    /// ROLLBACK TO SAVEPOINT.
    RollbackTo(String),
    /// RELEASE SAVEPOINT.
    Release(String),
    /// SET TRANSACTION.
    SetModes(Modes),
}

/// What COMMENT comments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommentOn {
    /// A table.
    Table(TableName),
    /// A view.
    View(TableName),
    /// A table's or a view's column.
    Column(TableName, String),
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
    /// The servers.
    Cluster,
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
