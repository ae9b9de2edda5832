//! CREATE VIEW as written.

use datafusion::sql::sqlparser::ast::{self, CreateTableOptions};
use drsdb_core::{Result, TableName};

use super::{
    create_table::unsupported,
    names::{identifier, table_name},
};

/// A CREATE VIEW statement.
#[derive(Debug, Clone, PartialEq)]
pub struct CreateView {
    /// The view's name.
    pub name: TableName,
    /// Whether a view of that name is replaced.
    pub or_replace: bool,
    /// Whether one that exists is no error.
    pub if_not_exists: bool,
    /// Names for the query's columns, of the first ones or of all.
    pub columns: Vec<String>,
    /// The query.
    pub query: Box<ast::Query>,
}

impl CreateView {
    /// Reads the parser's tree.
    pub fn from_ast(tree: ast::CreateView) -> Result<Self> {
        let plain = !tree.or_alter
            && !tree.secure
            && !tree.temporary
            && !tree.with_no_schema_binding
            && !tree.copy_grants
            && tree.options == CreateTableOptions::None
            && tree.cluster_by.is_empty()
            && tree.comment.is_none()
            && tree.to.is_none()
            && tree.params.is_none()
            && tree.columns.iter().all(|column| column.data_type.is_none() && column.options.is_none());
        if tree.materialized {
            let hint = "write CREATE TABLE ... AS, and fill it again when the rows are old";
            return Err(unsupported("CREATE MATERIALIZED VIEW is not done", hint).into());
        }
        if !plain {
            let hint = "write CREATE [OR REPLACE] VIEW [IF NOT EXISTS] name [(column, ...)] AS SELECT ...";
            return Err(unsupported("this form of CREATE VIEW is not done", hint).into());
        }
        Ok(Self {
            name: table_name(&tree.name)?,
            or_replace: tree.or_replace,
            if_not_exists: tree.if_not_exists,
            columns: tree.columns.iter().map(|column| identifier(&column.name)).collect::<Result<_>>()?,
            query: tree.query,
        })
    }
}
