//! What the statement says about its parameters, which the parser has numbered `$1`, `$2`, ...

use std::{collections::HashSet, ops::ControlFlow};

use datafusion::sql::{
    parser::Statement,
    sqlparser::ast::{Expr, LimitClause, Query, Value, Visit, Visitor},
};

/// The parameters of LIMIT and OFFSET, which the planner gives no type: they count rows.
pub fn counts(statement: &Statement) -> HashSet<String> {
    struct Counts(HashSet<String>);
    impl Visitor for Counts {
        type Break = ();

        fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
            let (limit, offset) = match &query.limit_clause {
                Some(LimitClause::LimitOffset { limit, offset, .. }) => {
                    (limit.as_ref(), offset.as_ref().map(|offset| &offset.value))
                }
                Some(LimitClause::OffsetCommaLimit { offset, limit }) => (Some(limit), Some(offset)),
                None => (None, None),
            };
            for expr in [limit, offset].into_iter().flatten() {
                if let Expr::Value(value) = expr
                    && let Value::Placeholder(name) = &value.value
                {
                    self.0.insert(name.clone());
                }
            }
            ControlFlow::Continue(())
        }
    }
    let mut counts = Counts(HashSet::new());
    if let Statement::Statement(inner) = statement {
        let _ = inner.visit(&mut counts);
    }
    counts.0
}
