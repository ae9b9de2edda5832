//! `IN (subquery)` with SQL's three values: `a IN (S)` is NULL when no member of S is equal to `a`, and either a member
//! is NULL, or `a` is and S has members.
//!
//! DataFusion makes joins of it. Two are right, if the whole condition is one: a semi join, and, of an uncorrelated
//! `a NOT IN (S)`, an anti join that knows of NULLs. Anywhere else it takes NULL for false. There, before types are
//! coerced, this is written out, with `c` as the column of S:
//!
//! ```text
//! EXISTS (S, c = a)  OR  (EXISTS (S, c IS NULL)  OR  (a IS NULL AND EXISTS (S)))  AND  NULL
//! ```
//!
//! What is ANDed with NULL is left out where NULL is as good as false, or where nothing can be NULL. An EXISTS becomes
//! a join if it depends on the row, else S is counted once; in a select list, where DataFusion has no EXISTS, it is
//! always a count. A subquery is refused if DataFusion would take outer columns out of it with another result.
//!
//! Not here: `= ANY` and `> ALL`, which DataFusion writes out itself, and EXISTS in a condition, which is never NULL.

use std::sync::Arc;

use datafusion::{
    common::{
        Column, DFSchema, JoinType, Result as DfResult, ScalarValue, Spans,
        tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion},
    },
    error::DataFusionError,
    functions_aggregate::count::count_all,
    logical_expr::{
        BinaryExpr, Distinct, Expr, ExprSchemable, FetchType, Filter, Join, Limit, LogicalPlan, LogicalPlanBuilder,
        Operator, Projection, SkipType, Sort, Subquery, binary_expr,
        expr::{Exists, InSubquery},
        expr_rewriter::NamePreserver,
        lit, not,
        utils::{conjunction, disjunction, split_conjunction_owned},
    },
};
use drsdb_core::{Error, ErrorCode, WireError};

/// The name of S's column where it is compared: its own may be that of the other side, when S reads the same table.
const MEMBER: &str = "__member";

/// Where an expression is, and what is asked of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In a condition, where NULL is as good as false.
    Truth,
    /// In a condition, inside of something that tells NULL from false.
    Value,
    /// In a select list.
    Select,
}

/// The plan, in which all conditions and select lists know of NULL in subqueries.
pub fn three_valued(plan: LogicalPlan) -> DfResult<LogicalPlan> {
    let mut changed = false;
    plan.transform_up_with_subqueries(|node| {
        // Which columns may be NULL, as it is now.
        let node = rewrite(if changed { node.recompute_schema()? } else { node })?;
        changed |= node.transformed;
        Ok(if changed { Transformed::yes(node.data) } else { node })
    })
    .data()
}

/// Turns an error of DataFusion's planner into drsdb's own where it is about a subquery that has become no join.
pub fn explain(error: DataFusionError) -> Error {
    const KINDS: [&str; 4] = ["Exists(", "InSubquery(", "ScalarSubquery(", "SetComparison("];
    let unplanned = match error.find_root() {
        DataFusionError::NotImplemented(text) => {
            text.starts_with("Physical plan does not support logical expression")
                && KINDS.iter().any(|kind| text.contains(kind))
        }
        DataFusionError::Plan(text) => text.starts_with("In/Exist/SetComparison subquery can only be used in"),
        _ => false,
    };
    if unplanned { unsupported("a subquery here, or one that uses outer columns like this,") } else { error.into() }
}

fn unsupported(what: &str) -> Error {
    WireError::new(ErrorCode::Unsupported, format!("{what} is not supported"))
        .with_hint("write it as a join with the subquery in FROM")
        .into()
}

fn refused<T>(what: &str) -> DfResult<T> {
    Err(unsupported(what).into_datafusion())
}

fn rewrite(plan: LogicalPlan) -> DfResult<Transformed<LogicalPlan>> {
    match plan {
        LogicalPlan::Filter(filter) if has_subquery(&filter.predicate) => {
            let predicate = condition(filter.predicate, filter.input.schema(), true)?;
            Ok(Transformed::yes(LogicalPlan::Filter(Filter::try_new(predicate, filter.input)?)))
        }
        LogicalPlan::Join(mut join) => match join.filter.take_if(|filter| has_subquery(filter)) {
            Some(filter) => rewrite_join(join, filter).map(Transformed::yes),
            None => Ok(Transformed::no(LogicalPlan::Join(join))),
        },
        LogicalPlan::Projection(Projection { expr, input, .. }) if expr.iter().any(has_subquery) => {
            let names = NamePreserver::new_for_projection();
            let selected = expr.into_iter().map(|expr| -> DfResult<Expr> {
                let name = names.save(&expr);
                Ok(name.restore(value(expr, input.schema(), Place::Select)?))
            });
            let selected = selected.collect::<DfResult<Vec<_>>>()?;
            Ok(Transformed::yes(LogicalPlan::Projection(Projection::try_new(selected, input)?)))
        }
        other => Ok(Transformed::no(other)),
    }
}

/// Of an inner join, conditions are as good above it, where DataFusion can make joins of them. Of an outer join, it can
/// if they go down to one side as they are.
fn rewrite_join(mut join: Join, filter: Expr) -> DfResult<LogicalPlan> {
    if join.join_type != JoinType::Inner {
        if !stays(&filter, true)? {
            return refused("this IN (subquery) in the condition of an outer join");
        }
        join.filter = Some(filter);
        return Ok(LogicalPlan::Join(join));
    }
    let (asking, other): (Vec<_>, Vec<_>) = split_conjunction_owned(filter).into_iter().partition(has_subquery);
    join.filter = conjunction(other);
    let schema = Arc::clone(&join.schema);
    let mut plan = LogicalPlan::Join(join);
    for expr in asking {
        plan = LogicalPlan::Filter(Filter::try_new(condition(expr, &schema, true)?, Arc::new(plan))?);
    }
    Ok(plan)
}

fn has_subquery(expr: &Expr) -> bool {
    let asks = |expr: &Expr| matches!(expr, Expr::InSubquery(_) | Expr::Exists(_) | Expr::SetComparison(_));
    let found = expr.exists(|expr| Ok(asks(expr)));
    found.expect("looking at an expression cannot fail")
}

/// An expression of which only matters whether it is true. `top`: it is one of the conditions that all have to be.
fn condition(expr: Expr, schema: &DFSchema, top: bool) -> DfResult<Expr> {
    match expr {
        Expr::BinaryExpr(BinaryExpr { left, op: op @ (Operator::And | Operator::Or), right }) => {
            let top = top && op == Operator::And;
            Ok(binary_expr(condition(*left, schema, top)?, op, condition(*right, schema, top)?))
        }
        expr if top && stays(&expr, true)? => Ok(expr),
        Expr::InSubquery(asked) if !asked.negated => membership(asked, schema, Place::Truth),
        other => value(other, schema, Place::Value),
    }
}

/// Whether DataFusion's joins are right for it, where it only matters whether it is true.
fn stays(expr: &Expr, top: bool) -> DfResult<bool> {
    let needs_no_form = |part: &Expr| match part {
        Expr::InSubquery(_) => Ok(false),
        Expr::Exists(asked) => lifts(&asked.subquery.subquery),
        Expr::SetComparison(asked) => lifts(&asked.subquery.subquery),
        _ => Ok(true),
    };
    let has_none = |expr: &Expr| expr.exists(|part| needs_no_form(part).map(|stays| !stays)).map(|found| !found);
    match expr {
        Expr::BinaryExpr(BinaryExpr { left, op: op @ (Operator::And | Operator::Or), right }) => {
            let top = top && *op == Operator::And;
            Ok(stays(left, top)? && stays(right, top)?)
        }
        Expr::InSubquery(asked) if !asked.negated => lifts(&asked.subquery.subquery),
        Expr::InSubquery(asked) => Ok(top && is_anti_join(asked)?),
        Expr::Not(inner) => match inner.as_ref() {
            Expr::InSubquery(asked) => Ok(top && is_anti_join(asked)?),
            other => has_none(other),
        },
        other => has_none(other),
    }
}

/// Whether NOT IN becomes an anti join that knows of NULLs. DataFusion looks for them in columns only, of which the analyzer may
/// have cast one: a view comes with types.
fn is_anti_join(asked: &InSubquery) -> DfResult<bool> {
    let mut compared = asked.expr.as_ref();
    while let Expr::Cast(cast) = compared {
        compared = cast.expr.as_ref();
    }
    Ok(matches!(compared, Expr::Column(_)) && !holds_outer(&asked.subquery.subquery)?)
}

/// An expression all of whose values matter.
fn value(expr: Expr, schema: &DFSchema, place: Place) -> DfResult<Expr> {
    expr.transform_up(|expr| match expr {
        Expr::InSubquery(asked) => membership(asked, schema, place).map(Transformed::yes),
        Expr::Exists(Exists { subquery, negated }) if place == Place::Select || !lifts(&subquery.subquery)? => {
            let found = existence(Arc::unwrap_or_clone(subquery.subquery), place)?;
            Ok(Transformed::yes(if negated { not(found) } else { found }))
        }
        Expr::SetComparison(asked) if place == Place::Select || !lifts(&asked.subquery.subquery)? => {
            refused("ANY or ALL of a subquery here, or of one that uses outer columns like this,")
        }
        other => Ok(Transformed::no(other)),
    })
    .data()
}

fn membership(asked: InSubquery, schema: &DFSchema, place: Place) -> DfResult<Expr> {
    let plan = without_order(Arc::unwrap_or_clone(asked.subquery.subquery));
    let found = if is_one_row(&plan) {
        binary_expr(*asked.expr, Operator::Eq, Expr::ScalarSubquery(subquery(plan)))
    } else {
        written_out(*asked.expr, plan, schema, place)?
    };
    Ok(if asked.negated { not(found) } else { found })
}

/// What is at the top of this file.
fn written_out(expr: Expr, plan: LogicalPlan, schema: &DFSchema, place: Place) -> DfResult<Expr> {
    must_lift(&plan)?;
    let inside = seen_from_inside(&expr, schema)?;
    let member = Expr::Column(Column::new_unqualified(MEMBER));
    let column = Expr::Column(Column::from(plan.schema().qualified_field(0)));
    let members = Arc::new(LogicalPlanBuilder::from(plan.clone()).project([column.alias(MEMBER)])?.build()?);
    let those = |condition: Expr| -> DfResult<Expr> {
        any(LogicalPlan::Filter(Filter::try_new(condition, Arc::clone(&members))?), place)
    };
    let found = those(binary_expr(member.clone(), Operator::Eq, inside))?;
    let mut unknown = Vec::new();
    if place != Place::Truth && plan.schema().field(0).is_nullable() {
        unknown.push(those(member.is_null())?);
    }
    if place != Place::Truth && expr.nullable(schema).unwrap_or(true) {
        unknown.push(expr.is_null().and(any(plan.clone(), place)?));
    }
    let Some(unknown) = disjunction(unknown) else { return Ok(found) };
    if is_volatile(&plan)? {
        return refused("IN (subquery) with a volatile function in the subquery");
    }
    Ok(found.or(unknown.and(lit(ScalarValue::Boolean(None)))))
}

/// The left side of IN, as it is written in the subquery.
fn seen_from_inside(expr: &Expr, schema: &DFSchema) -> DfResult<Expr> {
    if expr.is_volatile() {
        return refused("a volatile function on the left of IN (subquery)");
    }
    if expr.contains_outer() {
        return refused("a column of the outer query on the left of IN (subquery)");
    }
    // A subquery that uses no row is the same everywhere.
    let alone = !expr.any_column_refs();
    let moves = |expr: &Expr| match expr {
        Expr::ScalarSubquery(subquery) => alone && subquery.outer_ref_columns.is_empty(),
        Expr::Exists(_) | Expr::InSubquery(_) | Expr::SetComparison(_) => false,
        _ => true,
    };
    if expr.exists(|expr| Ok(!moves(expr)))? {
        return refused("this subquery on the left of IN (subquery)");
    }
    expr.clone()
        .transform(|expr| match expr {
            Expr::Column(column) => {
                let (_, field) = schema.qualified_field_from_column(&column)?;
                Ok(Transformed::yes(Expr::OuterReferenceColumn(Arc::clone(field), column)))
            }
            other => Ok(Transformed::no(other)),
        })
        .data()
}

/// EXISTS in a select list, or where DataFusion's join would be another question.
fn existence(plan: LogicalPlan, place: Place) -> DfResult<Expr> {
    let plan = without_form(plan)?;
    if is_one_row(&plan) {
        return Ok(lit(true));
    }
    must_lift(&plan)?;
    any(plan, place)
}

/// Whether a plan has a row.
fn any(plan: LogicalPlan, place: Place) -> DfResult<Expr> {
    let correlated = holds_outer(&plan)?;
    if correlated && place != Place::Select {
        return Ok(Expr::Exists(Exists::new(subquery(plan), false)));
    }
    let mut rows = LogicalPlanBuilder::from(plan);
    if !correlated {
        rows = rows.limit(0, Some(1))?;
    }
    let counted = rows.aggregate(Vec::<Expr>::new(), [count_all()])?;
    let count = Expr::Column(Column::from(counted.schema().qualified_field(0)));
    Ok(Expr::ScalarSubquery(subquery(counted.project([count.gt(lit(0_i64))])?.build()?)))
}

fn subquery(plan: LogicalPlan) -> Subquery {
    Subquery { outer_ref_columns: plan.all_out_ref_exprs(), subquery: Arc::new(plan), spans: Spans::new() }
}

fn must_lift(plan: &LogicalPlan) -> DfResult<()> {
    if lifts(plan)? { Ok(()) } else { refused("this use of outer columns in the subquery of IN or EXISTS") }
}

/// Whether DataFusion can take conditions with outer columns out of a subquery and into a join, with the same result.
/// It would do so past LIMIT, window functions and aggregates of all rows, which then see other rows.
fn lifts(plan: &LogicalPlan) -> DfResult<bool> {
    if !holds_outer(plan)? {
        return Ok(true);
    }
    match plan {
        LogicalPlan::Filter(filter) => lifts(&filter.input),
        _ if plan.contains_outer_reference() => Ok(false),
        LogicalPlan::Projection(projection) => lifts(&projection.input),
        LogicalPlan::Distinct(Distinct::All(input)) => lifts(input),
        LogicalPlan::SubqueryAlias(alias) => lifts(&alias.input),
        LogicalPlan::Aggregate(aggregate) => match aggregate.group_expr.first() {
            None | Some(Expr::GroupingSet(_)) => Ok(false),
            Some(_) => lifts(&aggregate.input),
        },
        LogicalPlan::Join(join) => match join.join_type {
            JoinType::Inner => Ok(lifts(&join.left)? && lifts(&join.right)?),
            JoinType::Left | JoinType::LeftSemi | JoinType::LeftAnti => {
                Ok(lifts(&join.left)? && !holds_outer(&join.right)?)
            }
            JoinType::Right => Ok(lifts(&join.right)? && !holds_outer(&join.left)?),
            _ => Ok(false),
        },
        _ => Ok(false),
    }
}

/// Whether a subquery uses columns of the query around it. What a LATERAL in it uses is its own.
fn holds_outer(plan: &LogicalPlan) -> DfResult<bool> {
    let mut holds = false;
    plan.apply(|node| {
        if matches!(node, LogicalPlan::Subquery(_)) {
            return Ok(TreeNodeRecursion::Jump);
        }
        holds |= node.contains_outer_reference();
        Ok(if holds { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    Ok(holds)
}

fn is_volatile(plan: &LogicalPlan) -> DfResult<bool> {
    let mut volatile = false;
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            volatile |= expr.is_volatile();
            Ok(TreeNodeRecursion::Continue)
        })
    })?;
    Ok(volatile)
}

/// Whether it has one row, whatever its tables hold.
fn is_one_row(plan: &LogicalPlan) -> bool {
    match plan {
        LogicalPlan::Projection(projection) => is_one_row(&projection.input),
        LogicalPlan::Aggregate(aggregate) => aggregate.group_expr.is_empty(),
        _ => false,
    }
}

/// A plan of the same rows; which is the first does not matter.
fn without_order(plan: LogicalPlan) -> LogicalPlan {
    match plan {
        LogicalPlan::Sort(Sort { input, fetch: None, .. }) => without_order(Arc::unwrap_or_clone(input)),
        other => other,
    }
}

/// A plan that has a row when this one has.
fn without_form(plan: LogicalPlan) -> DfResult<LogicalPlan> {
    let input = match plan {
        LogicalPlan::Sort(Sort { input, fetch: None, .. }) => input,
        LogicalPlan::Projection(projection) => projection.input,
        LogicalPlan::Window(window) => window.input,
        LogicalPlan::Distinct(Distinct::All(input)) => input,
        LogicalPlan::Limit(limit) if keeps_a_row(&limit)? => limit.input,
        other => return Ok(other),
    };
    without_form(Arc::unwrap_or_clone(input))
}

fn keeps_a_row(limit: &Limit) -> DfResult<bool> {
    let fetches = matches!(limit.get_fetch_type()?, FetchType::Literal(fetch) if fetch != Some(0));
    Ok(fetches && matches!(limit.get_skip_type()?, SkipType::Literal(0)))
}

#[cfg(test)]
mod tests;
