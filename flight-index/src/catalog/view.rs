//! Views: a name for a query.

use drsdb_core::{Column, TableName, Ulid};
use serde::{Deserialize, Serialize};

/// A view. Its text is planned anew in each query that uses it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// Identifies it for ever, also when it is replaced.
    pub id: Ulid,
    /// Its name, which no table has.
    pub name: TableName,
    /// The query in SQL. Tables named without a schema are in `public`.
    pub sql: String,
    /// Its columns.
    pub columns: Vec<Column>,
    /// What the query calls its columns, in the order of `columns`: `*` may stand for more by now.
    pub query_columns: Vec<String>,
    /// What it reads.
    pub uses: Vec<ViewUse>,
    /// COMMENT ON VIEW.
    #[serde(default)]
    pub comment: Option<String>,
}

/// A table or a view that a view reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewUse {
    /// Its id.
    pub id: Ulid,
    /// The positions of the columns that are read.
    pub columns: Vec<usize>,
}

impl View {
    /// Whether it reads the table or view `id`.
    pub fn uses(&self, id: Ulid) -> bool {
        self.uses.iter().any(|used| used.id == id)
    }

    /// Whether it reads one of the `columns` of the table or view `id`.
    pub fn uses_columns(&self, id: Ulid, columns: &[usize]) -> bool {
        self.uses.iter().any(|used| used.id == id && used.columns.iter().any(|column| columns.contains(column)))
    }
}
