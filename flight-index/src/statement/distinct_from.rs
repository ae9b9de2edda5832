//! `a IS DISTINCT FROM b AND c`: the parser takes all that follows into the right operand, as if AND and OR bound more tightly
//! than IS. Here it comes out again, in every tree that the parser has made:
//!
//! ```text
//! z AND (a IS DISTINCT FROM (b OR c))     the parser's tree of z AND a IS DISTINCT FROM b OR c
//! z, AND a IS DISTINCT FROM b, OR c       what is there, from left to right
//! (z AND (a IS DISTINCT FROM b)) OR c     the tree by SQL's precedence
//! ```
//!
//! Parentheses are nodes of the tree, so that what was written in them is one operand. The trees that are made here have them
//! around the comparison: their text has no other meaning to any parser.

use std::{mem, ops::ControlFlow};

use datafusion::sql::sqlparser::ast::{self, BinaryOperator, Expr, Value};
use drsdb_core::{Error, ErrorCode, Result, WireError};

use super::{expression::location, names::positioned};

/// Puts all comparisons in a tree right, or says that their text has no one meaning.
pub fn correct(tree: &mut impl ast::VisitMut) -> Result<()> {
    match tree.visit(&mut Correct) {
        ControlFlow::Break(error) => Err(error),
        ControlFlow::Continue(()) => Ok(()),
    }
}

struct Correct;

impl ast::VisitorMut for Correct {
    type Break = Error;

    // From the top: what comes out of an operand may belong above what was around it.
    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<Error> {
        match Chain::of(mem::replace(expr, Expr::value(Value::Null))) {
            Ok(chain) => {
                *expr = chain.joined();
                ControlFlow::Continue(())
            }
            Err(error) => ControlFlow::Break(error),
        }
    }
}

/// Operands with AND and OR between them, from left to right.
struct Chain {
    /// The parser's tree of all that is before the operand of the first comparison, or the comparison.
    first: Expr,
    rest: Vec<(BinaryOperator, Expr)>,
}

impl Chain {
    /// Takes an expression apart as far as a comparison at its right end reaches: nothing can follow one in the parser's tree.
    fn of(expr: Expr) -> Result<Self> {
        match expr {
            Expr::IsDistinctFrom(left, right) => Self::compared(left, *right, Expr::IsDistinctFrom),
            Expr::IsNotDistinctFrom(left, right) => Self::compared(left, *right, Expr::IsNotDistinctFrom),
            Expr::UnaryOp { op, expr } => {
                let Self { first, rest } = Self::of(*expr)?;
                Ok(Self { first: Expr::UnaryOp { op, expr: Box::new(first) }, rest })
            }
            Expr::BinaryOp { left, op: op @ (BinaryOperator::And | BinaryOperator::Or), right } => {
                let Self { first, mut rest } = Self::of(*right)?;
                rest.insert(0, (op, first));
                Ok(Self { first: *left, rest })
            }
            Expr::BinaryOp { left, op, right } => {
                let Self { first, rest } = Self::of(*right)?;
                Ok(Self { first: Expr::BinaryOp { left, op, right: Box::new(first) }, rest })
            }
            other => Ok(Self { first: other, rest: Vec::new() }),
        }
    }

    fn compared(left: Box<Expr>, right: Expr, comparison: fn(Box<Expr>, Box<Expr>) -> Expr) -> Result<Self> {
        if begins_with_test(&right) {
            let message = "IS after IS DISTINCT FROM: it is not said which of them comes first";
            let error = WireError::new(ErrorCode::Syntax, message)
                .with_hint("write (a IS DISTINCT FROM b) IS ..., or a IS DISTINCT FROM (b IS ...)");
            return Err(positioned(error, location(&left)).into());
        }
        let Self { mut first, mut rest } = Self::of(right)?;
        // What is compared is the leftmost operand alone.
        while let Expr::BinaryOp { left, op: op @ (BinaryOperator::And | BinaryOperator::Or), right } = first {
            rest.insert(0, (op, *right));
            first = *left;
        }
        let whole = comparison(left, Box::new(first));
        let first = if rest.is_empty() { whole } else { Expr::Nested(Box::new(whole)) };
        Ok(Self { first, rest })
    }

    /// The tree in which AND binds more tightly than OR.
    fn joined(self) -> Expr {
        let mut or = None;
        let mut and = self.first;
        for (op, operand) in self.rest {
            if op == BinaryOperator::And {
                and = binary(and, op, operand);
            } else {
                or = Some(either(or, and));
                and = operand;
            }
        }
        either(or, and)
    }
}

fn either(left: Option<Expr>, right: Expr) -> Expr {
    match left {
        Some(left) => binary(left, BinaryOperator::Or, right),
        None => right,
    }
}

fn binary(left: Expr, op: BinaryOperator, right: Expr) -> Expr {
    Expr::BinaryOp { left: Box::new(left), op, right: Box::new(right) }
}

/// Whether the expression begins with `x IS ...`, without parentheses.
fn begins_with_test(mut expr: &Expr) -> bool {
    while let Expr::BinaryOp { left, .. } = expr {
        expr = left;
    }
    matches!(
        expr,
        Expr::IsNull(_)
            | Expr::IsNotNull(_)
            | Expr::IsTrue(_)
            | Expr::IsNotTrue(_)
            | Expr::IsFalse(_)
            | Expr::IsNotFalse(_)
            | Expr::IsUnknown(_)
            | Expr::IsNotUnknown(_)
            | Expr::IsDistinctFrom(..)
            | Expr::IsNotDistinctFrom(..)
            | Expr::IsNormalized { .. }
    )
}

#[cfg(test)]
mod tests {
    use datafusion::sql::sqlparser::{dialect::GenericDialect, parser::Parser};

    use super::*;
    use crate::statement::{Statement, parse, parse_expression};

    /// The tree without its parentheses.
    fn bare(mut expr: Expr) -> Expr {
        let _ = ast::visit_expressions_mut(&mut expr, |part: &mut Expr| {
            while let Expr::Nested(inner) = part {
                *part = mem::replace(inner.as_mut(), Expr::value(Value::Null));
            }
            ControlFlow::<()>::Continue(())
        });
        expr
    }

    #[test]
    fn what_follows_is_not_compared() {
        for (text, meant) in [
            ("a IS DISTINCT FROM b", "a IS DISTINCT FROM b"),
            ("a IS DISTINCT FROM b AND c", "(a IS DISTINCT FROM b) AND c"),
            ("a IS NOT DISTINCT FROM b OR c", "(a IS NOT DISTINCT FROM b) OR c"),
            ("a IS DISTINCT FROM (b AND c)", "a IS DISTINCT FROM (b AND c)"),
            ("(a > 1) IS DISTINCT FROM true AND d > 3", "((a > 1) IS DISTINCT FROM true) AND (d > 3)"),
            ("a IS DISTINCT FROM b AND c AND d", "((a IS DISTINCT FROM b) AND c) AND d"),
            ("a IS DISTINCT FROM b AND c OR d AND e", "((a IS DISTINCT FROM b) AND c) OR (d AND e)"),
            ("a IS DISTINCT FROM b OR c AND d OR e", "((a IS DISTINCT FROM b) OR (c AND d)) OR e"),
            ("z = 1 AND a IS DISTINCT FROM b OR c", "((z = 1) AND (a IS DISTINCT FROM b)) OR c"),
            ("x OR a IS DISTINCT FROM b AND c", "x OR ((a IS DISTINCT FROM b) AND c)"),
            ("x OR y AND a IS DISTINCT FROM b AND c", "x OR ((y AND (a IS DISTINCT FROM b)) AND c)"),
            ("x AND y OR a IS DISTINCT FROM b OR c", "((x AND y) OR (a IS DISTINCT FROM b)) OR c"),
            ("NOT a IS DISTINCT FROM b AND c", "(NOT (a IS DISTINCT FROM b)) AND c"),
            (
                "p OR x AND NOT a IS DISTINCT FROM b AND c OR d",
                "(p OR ((x AND (NOT (a IS DISTINCT FROM b))) AND c)) OR d",
            ),
            ("a IS DISTINCT FROM NOT b AND c", "(a IS DISTINCT FROM (NOT b)) AND c"),
            ("a = NOT b IS DISTINCT FROM c AND d", "(a = (NOT (b IS DISTINCT FROM c))) AND d"),
            (
                "a IS DISTINCT FROM b AND c IS NOT DISTINCT FROM d OR e IS DISTINCT FROM f",
                "((a IS DISTINCT FROM b) AND (c IS NOT DISTINCT FROM d)) OR (e IS DISTINCT FROM f)",
            ),
            ("a IS DISTINCT FROM b + 1 = c AND d", "(a IS DISTINCT FROM ((b + 1) = c)) AND d"),
            ("a IS DISTINCT FROM b BETWEEN 1 AND 2 AND c", "(a IS DISTINCT FROM (b BETWEEN 1 AND 2)) AND c"),
            ("a IS DISTINCT FROM b AND c IS NULL", "(a IS DISTINCT FROM b) AND (c IS NULL)"),
            ("a IS DISTINCT FROM (b IS NULL) OR c", "(a IS DISTINCT FROM (b IS NULL)) OR c"),
            (
                "CASE WHEN a IS DISTINCT FROM b AND c THEN d IS DISTINCT FROM e OR f ELSE g END",
                "CASE WHEN (a IS DISTINCT FROM b) AND c THEN (d IS DISTINCT FROM e) OR f ELSE g END",
            ),
            ("f(a IS DISTINCT FROM b OR c, d)", "f((a IS DISTINCT FROM b) OR c, d)"),
            (
                "x IN (SELECT 1 FROM t WHERE a IS DISTINCT FROM b AND c) AND y",
                "(x IN (SELECT 1 FROM t WHERE (a IS DISTINCT FROM b) AND c)) AND y",
            ),
        ] {
            let read = parse_expression(text).unwrap();
            assert_eq!(bare(read.clone()), bare(parse_expression(meant).unwrap()), "{text}");
            // Its own text means the same to a parser that nobody corrects.
            let again = Parser::new(&GenericDialect {}).try_with_sql(&read.to_string()).unwrap().parse_expr().unwrap();
            assert_eq!(bare(again), bare(read), "{text}");
        }
    }

    #[test]
    fn a_second_is_needs_parentheses() {
        for text in ["a IS DISTINCT FROM b IS NULL", "a IS DISTINCT FROM b IS DISTINCT FROM c OR d"] {
            let error = parse_expression(text).unwrap_err().to_wire();
            assert_eq!(error.code, ErrorCode::Syntax, "{text}: {error}");
            assert!(!error.hint.is_empty() && error.fields["column"] == "1", "{text}: {error}");
        }
    }

    #[test]
    fn all_statements_are_read_so() {
        let shown = |sql: &str| match parse(sql).unwrap() {
            Statement::Query(query) | Statement::Explain(query) => query.to_string(),
            Statement::Delete(delete) => delete.to_string(),
            Statement::CreateView(view) => view.query.to_string(),
            other => format!("{other:?}"),
        };
        assert_eq!(
            shown("EXPLAIN SELECT a FROM t WHERE a IS DISTINCT FROM 1 AND b"),
            "EXPLAIN SELECT a FROM t WHERE (a IS DISTINCT FROM 1) AND b"
        );
        assert_eq!(
            shown("DELETE FROM t WHERE NOT a IS NOT DISTINCT FROM 1 OR b"),
            "DELETE FROM t WHERE NOT (a IS NOT DISTINCT FROM 1) OR b"
        );
        assert_eq!(
            shown("CREATE VIEW v AS SELECT 1 FROM t JOIN u ON t.a IS NOT DISTINCT FROM u.a AND t.b"),
            "SELECT 1 FROM t JOIN u ON (t.a IS NOT DISTINCT FROM u.a) AND t.b"
        );
        let table = shown("CREATE TABLE t (a INT, b BOOLEAN, CHECK (a IS DISTINCT FROM 1 AND b))");
        assert!(table.contains("(a IS DISTINCT FROM 1) AND b"), "{table}");
    }
}
