//! Literals with an exponent are DOUBLE, as SQL-92 says; the parser reads all numbers as exact.

use std::ops::ControlFlow;

use datafusion::sql::{
    parser::Statement,
    sqlparser::ast::{self, Value, VisitMut, VisitorMut},
};

/// The statement, whose literals with an exponent are DOUBLE.
pub fn exponents(statement: Statement) -> Statement {
    match statement {
        Statement::Statement(mut inner) => {
            exponents_in(inner.as_mut());
            Statement::Statement(inner)
        }
        other => other,
    }
}

/// [`exponents`] of any part of a statement.
pub fn exponents_in(part: &mut impl VisitMut) {
    struct Exponents;
    impl VisitorMut for Exponents {
        type Break = ();

        fn post_visit_expr(&mut self, expr: &mut ast::Expr) -> ControlFlow<()> {
            if let ast::Expr::Value(value) = expr
                && let Value::Number(text, _) = &value.value
                && text.contains(['e', 'E'])
                // One out of range stays, for the planner to refuse it.
                && text.parse().is_ok_and(f64::is_finite)
            {
                *expr = ast::Expr::Cast {
                    kind: ast::CastKind::Cast,
                    expr: Box::new(ast::Expr::value(Value::SingleQuotedString(text.clone()))),
                    data_type: ast::DataType::DoublePrecision,
                    array: false,
                    format: None,
                };
            }
            ControlFlow::Continue(())
        }
    }
    let _ = part.visit(&mut Exponents);
}
