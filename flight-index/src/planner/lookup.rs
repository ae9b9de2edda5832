//! Reads of one table by keys that the index server has in its hands: of rows that are in the way of an INSERT, or that a
//! foreign key refers to.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef};
use datafusion::{
    catalog::TableProvider,
    common::{Column, ScalarValue, TableReference},
    datasource::provider_as_source,
    logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder},
};
use drsdb_core::{Error, Result, TableName};

use super::{PlanSession, sharded_table::ShardedTable};

/// Keys in one lookup, at most: each becomes a part of the plan.
pub const MAX_LOOKUP_KEYS: usize = 512;

/// Which rows of which table.
#[derive(Debug, Clone)]
pub struct Lookup<'a> {
    /// The table.
    pub table: &'a TableName,
    /// Columns that are answered, by position.
    pub positions: Vec<usize>,
    /// Columns that are compared, by position.
    pub key: Vec<usize>,
    /// Their values, one array a column; at most [`MAX_LOOKUP_KEYS`].
    pub values: Vec<ArrayRef>,
    /// Rows that are enough; `None`: all.
    pub limit: Option<usize>,
    /// Whether hidden columns can be asked for.
    pub with_hidden: bool,
}

impl Lookup<'_> {
    pub(super) async fn plan(&self, session: &PlanSession) -> Result<LogicalPlan> {
        let state = session.catalog.state();
        let table = state.find_table(self.table)?;
        let mut view = session.catalog.view().cloned();
        if self.with_hidden
            && let Some(view) = &mut view
        {
            Arc::make_mut(view).with_hidden = Some(table.table.id);
        }
        if let Some(view) = &view {
            view.check(table)?;
        }
        let definition = &table.table;
        let column = |position: &usize| {
            let name = definition.columns.get(*position).map(|column| column.name.clone());
            let name = name.ok_or_else(|| Error::internal("a lookup by a column that is not there"))?;
            Ok::<_, Error>(Expr::Column(Column::new(Some(TableReference::bare("t")), name)))
        };
        let provider: Arc<dyn TableProvider> = Arc::new(ShardedTable::new(Arc::clone(state), Arc::clone(table), view));
        let scan = LogicalPlanBuilder::scan("t", provider_as_source(provider), None)?;
        let columns = self.key.iter().map(column).collect::<Result<Vec<_>>>()?;
        let filter = match columns.as_slice() {
            [one] => {
                let values = literals(&self.values[0])?;
                one.clone().in_list(values, false)
            }
            many => {
                let rows = self.values.first().map_or(0, |values| values.len());
                let mut alternatives = Vec::with_capacity(rows);
                for row in 0..rows {
                    let mut parts = Vec::with_capacity(many.len());
                    for (column, values) in many.iter().zip(&self.values) {
                        let value = ScalarValue::try_from_array(values, row)?;
                        parts.push(column.clone().eq(Expr::Literal(value, None)));
                    }
                    alternatives.extend(parts.into_iter().reduce(Expr::and));
                }
                // Each column alone as well, so that shards can be left out.
                let lists = many.iter().zip(&self.values);
                let lists = lists.map(|(column, values)| Ok(column.clone().in_list(literals(values)?, false)));
                let lists = lists.collect::<Result<Vec<_>>>()?;
                let any = any_of(alternatives).ok_or_else(|| Error::internal("a lookup without keys"))?;
                lists.into_iter().fold(any, Expr::and)
            }
        };
        let answered = self.positions.iter().map(column).collect::<Result<Vec<_>>>()?;
        Ok(scan.filter(filter)?.project(answered)?.limit(0, self.limit)?.build()?)
    }
}

fn literals(values: &ArrayRef) -> Result<Vec<Expr>> {
    let mut literals = Vec::with_capacity(values.len());
    for row in 0..values.len() {
        literals.push(Expr::Literal(ScalarValue::try_from_array(values, row)?, None));
    }
    Ok(literals)
}

/// A balanced tree of OR: one in a row would be as deep as it is long.
fn any_of(mut alternatives: Vec<Expr>) -> Option<Expr> {
    while alternatives.len() > 1 {
        let mut next = Vec::with_capacity(alternatives.len().div_ceil(2));
        let mut pairs = alternatives.into_iter();
        while let Some(first) = pairs.next() {
            next.push(match pairs.next() {
                Some(second) => first.or(second),
                None => first,
            });
        }
        alternatives = next;
    }
    alternatives.pop()
}
