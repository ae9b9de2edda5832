//! `SELECT x, x`: a column's second appearance gets a name of its own, `x_1`, since DataFusion tells the columns of a SELECT
//! apart by their names only. A cast does not change the name there, so `CAST(x AS REAL), x` are two of one name as well.
//!
//! What the statement names itself stays as it is, and so does what a `*` stands for, which is not known here.

use std::{collections::HashSet, ops::ControlFlow};

use datafusion::sql::{
    parser::Statement,
    sqlparser::ast::{Expr, Ident, Select, SelectItem, VisitMut, VisitorMut},
};

/// The statement with names that differ in each of its SELECTs.
pub fn tell_apart(statement: Statement) -> Statement {
    match statement {
        Statement::Statement(mut inner) => {
            let _ = inner.visit(&mut TellApart);
            Statement::Statement(inner)
        }
        other => other,
    }
}

struct TellApart;

impl VisitorMut for TellApart {
    type Break = ();

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<()> {
        let mut names: HashSet<String> = HashSet::new();
        let mut repeated = Vec::new();
        for (at, item) in select.projection.iter().enumerate() {
            match item {
                SelectItem::ExprWithAlias { alias, .. } => drop(names.insert(alias.value.clone())),
                SelectItem::UnnamedExpr(expr) if !names.insert(name_of(expr)) => repeated.push(at),
                _ => {}
            }
        }
        for at in repeated {
            let SelectItem::UnnamedExpr(expr) = &select.projection[at] else { continue };
            let name = name_of(expr);
            let fresh = (1..).map(|number| format!("{name}_{number}")).find(|name| !names.contains(name));
            let fresh = fresh.expect("only so many names are taken");
            names.insert(fresh.clone());
            let (expr, alias) = (expr.clone(), Ident::with_quote('"', fresh));
            select.projection[at] = SelectItem::ExprWithAlias { expr, alias };
        }
        ControlFlow::Continue(())
    }
}

/// Two expressions with one of these have one name.
fn name_of(expr: &Expr) -> String {
    match expr {
        Expr::Nested(inner) | Expr::Cast { expr: inner, .. } => name_of(inner),
        Expr::Identifier(name) => folded(name),
        Expr::CompoundIdentifier(parts) => parts.iter().map(folded).collect::<Vec<_>>().join("."),
        other => other.to_string(),
    }
}

fn folded(name: &Ident) -> String {
    if name.quote_style.is_some() { name.value.clone() } else { name.value.to_lowercase() }
}

#[cfg(test)]
mod tests {
    use datafusion::sql::parser::DFParser;

    use super::*;

    fn told_apart(sql: &str) -> String {
        let statement = DFParser::parse_sql(sql).unwrap().pop_front().unwrap();
        tell_apart(statement).to_string()
    }

    #[test]
    fn only_what_comes_again_is_named() {
        assert_eq!(told_apart("SELECT x, X, x FROM t"), r#"SELECT x, X AS "x_1", x AS "x_2" FROM t"#);
        assert_eq!(told_apart("SELECT 1, 1"), r#"SELECT 1, 1 AS "1_1""#);
        assert_eq!(told_apart("SELECT x, CAST(x AS REAL), (x)"), r#"SELECT x, CAST(x AS REAL) AS "x_1", (x) AS "x_2""#);
        assert_eq!(told_apart("SELECT 2 AS x, x, 3 AS x_1"), r#"SELECT 2 AS x, x AS "x_2", 3 AS x_1"#);
        for same in ["SELECT a.x, b.x, y FROM a, b", "SELECT *, x FROM t", "SELECT f('A'), f('a')"] {
            assert_eq!(told_apart(same), same);
        }
        assert_eq!(
            told_apart("SELECT n FROM (SELECT count(*), count(*) FROM t) AS q (n, m)"),
            r#"SELECT n FROM (SELECT count(*), count(*) AS "count(*)_1" FROM t) AS q (n, m)"#
        );
    }
}
