//! `?` parameters become `$1`, `$2`, ... in order of appearance, which is what the planner knows.

use std::ops::ControlFlow;

use datafusion::sql::{
    parser::Statement,
    sqlparser::ast::{Expr, Value, visit_expressions_mut},
};

/// Numbers the `?` parameters of `statement`.
pub fn number(statement: &mut Statement) {
    let Statement::Statement(inner) = statement else { return };
    let mut next = 0;
    let _ = visit_expressions_mut(inner.as_mut(), |expr: &mut Expr| {
        if let Expr::Value(value) = expr
            && let Value::Placeholder(name) = &mut value.value
            && name == "?"
        {
            next += 1;
            *name = format!("${next}");
        }
        ControlFlow::<()>::Continue(())
    });
}
