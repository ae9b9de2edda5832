//! What the planner would answer wrongly, in any statement that contains a query: clauses that it passes over without a word,
//! and some that it takes for others. What it refuses by itself is not here, nor is what the parser's dialect does not know.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    self, Expr, FunctionArguments, GroupByExpr, LockType, Query, Select, SetExpr, SetOperator, SetQuantifier,
    TableFactor,
};
use drsdb_core::{Error, Result};

use super::classify::refused;

/// The error of the first such clause.
pub(super) fn refuse_wrong_answers(statement: &ast::Statement) -> Result<()> {
    match ast::Visit::visit(statement, &mut Look) {
        ControlFlow::Break(error) => Err(error),
        ControlFlow::Continue(()) => Ok(()),
    }
}

struct Look;

/// What a clause is called, and what to do instead of it.
type Found = Option<(&'static str, &'static str)>;

impl ast::Visitor for Look {
    type Break = Error;

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<Error> {
        let mut bodies = vec![query.body.as_ref()];
        while let Some(body) = bodies.pop() {
            let SetExpr::SetOperation { op, set_quantifier, left, right } = body else { continue };
            // It takes EXCEPT ALL and INTERSECT ALL for sets.
            let all = matches!(set_quantifier, SetQuantifier::All | SetQuantifier::AllByName);
            if all && *op != SetOperator::Union {
                let hint = "leave ALL out, or count the rows of each side with GROUP BY and compare the counts";
                return ControlFlow::Break(refused(&format!("{op} ALL"), hint));
            }
            bodies.extend([left.as_ref(), right.as_ref()]);
        }
        verdict(of_query(query))
    }

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<Error> {
        verdict(of_select(select))
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<Error> {
        verdict(of_table(factor))
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<Error> {
        verdict(match expr {
            // It takes SIMILAR TO for a search.
            Expr::SimilarTo { .. } => Some(("SIMILAR TO", "use LIKE, or ~ with a regular expression")),
            Expr::Function(call) if call.parameters != FunctionArguments::None => {
                Some(("a function with two lists of arguments", "write all arguments into one list"))
            }
            _ => None,
        })
    }
}

fn verdict(found: Found) -> ControlFlow<Error> {
    match found {
        Some((what, hint)) => ControlFlow::Break(refused(what, hint)),
        None => ControlFlow::Continue(()),
    }
}

fn of_query(query: &Query) -> Found {
    if let Some(lock) = query.locks.first() {
        return Some(match lock.lock_type {
            LockType::Update => ("SELECT ... FOR UPDATE", "leave FOR UPDATE out: queries read one snapshot"),
            LockType::Share => ("SELECT ... FOR SHARE", "leave FOR SHARE out: queries read one snapshot"),
        });
    }
    if query.for_clause.is_some() {
        return Some(("a query FOR XML, JSON or BROWSE", "leave it out: rows are answered as columns of Arrow"));
    }
    if query.settings.is_some() {
        return Some(("SETTINGS of a query", "change settings with SET"));
    }
    if query.format_clause.is_some() {
        return Some(("FORMAT of a query", "leave it out: rows are answered as columns of Arrow"));
    }
    None
}

fn of_select(select: &Select) -> Found {
    if select.into.is_some() {
        return Some(("SELECT ... INTO", "create the table, then load it"));
    }
    if select.prewhere.is_some() {
        return Some(("PREWHERE", "write the condition into WHERE"));
    }
    if !select.connect_by.is_empty() {
        return Some(("CONNECT BY", "write WITH RECURSIVE"));
    }
    let (GroupByExpr::All(modifiers) | GroupByExpr::Expressions(_, modifiers)) = &select.group_by;
    if !modifiers.is_empty() {
        return Some((
            "GROUP BY ... WITH a modifier",
            "write GROUP BY ROLLUP (...), CUBE (...) or GROUPING SETS (...) over all columns",
        ));
    }
    None
}

fn of_table(factor: &TableFactor) -> Found {
    let sample = Some(("TABLESAMPLE", "write WHERE random() < 0.1, or LIMIT"));
    let ordinality = Some(("WITH ORDINALITY", "number the rows with row_number() OVER ()"));
    match factor {
        TableFactor::Table { sample: Some(_), .. } | TableFactor::Derived { sample: Some(_), .. } => sample,
        TableFactor::Table { with_ordinality: true, .. } | TableFactor::Function { with_ordinality: true, .. } => {
            ordinality
        }
        TableFactor::Table { partitions, .. } if !partitions.is_empty() => {
            Some(("PARTITION of a table", "say in WHERE which rows to read"))
        }
        _ => None,
    }
}
