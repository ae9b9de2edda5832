//! What the planner would answer wrongly, in any statement that contains a query: clauses that it passes over without a word,
//! and some that it takes for others. What it refuses by itself is not here, nor is what the parser's dialect does not know.

use std::{collections::HashSet, ops::ControlFlow, sync::LazyLock};

use datafusion::{
    execution::SessionStateBuilder,
    sql::sqlparser::ast::{
        self, DuplicateTreatment, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentClause,
        FunctionArguments, GroupByExpr, LockType, Query, Select, SetExpr, SetOperator, SetQuantifier, TableFactor,
    },
};
use drsdb_core::{Error, Result, checked_arithmetic::register_functions};

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
            Expr::Function(call) => of_call(call),
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
    if select.from.iter().flat_map(|table| &table.joins).any(merges_wrongly) {
        return Some((
            "RIGHT or FULL JOIN with USING or NATURAL",
            "write ON l.k = r.k, and coalesce(l.k, r.k) for the column of both",
        ));
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

/// It takes the left table's column for the merged one, which is NULL where there is no left row.
fn merges_wrongly(join: &ast::Join) -> bool {
    use ast::JoinOperator::{FullOuter, Right, RightOuter};
    match &join.join_operator {
        Right(constraint) | RightOuter(constraint) | FullOuter(constraint) => {
            matches!(constraint, ast::JoinConstraint::Using(_) | ast::JoinConstraint::Natural)
        }
        _ => false,
    }
}

fn of_call(call: &Function) -> Found {
    if call.parameters != FunctionArguments::None {
        return Some(("a function with two lists of arguments", "write all arguments into one list"));
    }
    // It counts the literal 1 that it has put in the place of `*`.
    if let FunctionArguments::List(list) = &call.args
        && list.duplicate_treatment == Some(DuplicateTreatment::Distinct)
        && list.args.iter().any(is_wildcard)
    {
        return Some(("DISTINCT *", "aggregate over (SELECT DISTINCT * FROM ...), or name a column"));
    }
    let clause = clause_of_aggregates(call)?;
    let [name] = call.name.0.as_slice() else { return None };
    let name = name.as_ident()?;
    let is_scalar = match name.quote_style {
        Some(_) => SCALAR_FUNCTIONS.contains(&name.value),
        None => SCALAR_FUNCTIONS.contains(&name.value.to_ascii_lowercase()),
    };
    is_scalar.then_some(clause)
}

fn is_wildcard(argument: &FunctionArg) -> bool {
    matches!(argument, FunctionArg::Unnamed(FunctionArgExpr::Wildcard | FunctionArgExpr::QualifiedWildcard(_)))
}

/// A clause that only aggregates and window functions know, and what it is called when another function has it.
fn clause_of_aggregates(call: &Function) -> Found {
    if call.over.is_some() {
        return Some(("OVER of a function of one row", "leave OVER out, or call an aggregate or a window function"));
    }
    if call.filter.is_some() {
        return Some(("FILTER of a function of one row", "write CASE WHEN ... END, or filter with WHERE"));
    }
    if !call.within_group.is_empty() {
        return Some(("WITHIN GROUP of a function of one row", "leave it out, or call an aggregate"));
    }
    let FunctionArguments::List(list) = &call.args else { return None };
    if list.duplicate_treatment == Some(DuplicateTreatment::Distinct) {
        return Some(("DISTINCT of a function of one row", "write SELECT DISTINCT, or call an aggregate"));
    }
    let ordered = list.clauses.iter().any(|clause| matches!(clause, FunctionArgumentClause::OrderBy(_)));
    if ordered {
        return Some(("ORDER BY of a function of one row", "leave it out, or call an aggregate"));
    }
    let ignores = list.clauses.iter().any(|clause| matches!(clause, FunctionArgumentClause::IgnoreOrRespectNulls(_)));
    if ignores || call.null_treatment.is_some() {
        return Some(("IGNORE NULLS or RESPECT NULLS of a function of one row", "leave it out"));
    }
    None
}

/// The names of functions that are neither aggregates nor for windows.
static SCALAR_FUNCTIONS: LazyLock<HashSet<String>> = LazyLock::new(|| {
    let mut state = SessionStateBuilder::new().with_default_features().build();
    register_functions(&mut state).expect("a session takes functions of any name");
    let scalar = state.scalar_functions().keys().chain(state.higher_order_functions().keys());
    // These two are no functions of the session.
    scalar.cloned().chain(["unnest", "unnest_outer"].map(str::to_owned)).collect()
});

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
