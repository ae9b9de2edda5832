//! Subqueries that stand for one value. SQL makes an error of more than one row; DataFusion makes a join of each, and more
//! rows of the subquery would be more rows of the answer.
//!
//! ```text
//! (SELECT a FROM u)                   ──▶  (SELECT single_value(a) FROM u)
//! (SELECT a FROM u WHERE u.k = t.k)   ──▶  only_value((SELECT counted_value(a) FROM u WHERE u.k = t.k))
//! ```
//!
//! Those that cannot give a second row stay as they are. DataFusion's own `max_rows` is no proof: it counts a SELECT without
//! FROM as no row, and takes `id = v + 1` for a key. The second form is for those about the row around them, which DataFusion
//! wants to be aggregated: it groups the aggregate by the columns that are compared, for all rows at once. Whether a group has
//! too many rows is looked at above the join, since nobody may ask for it.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::{
    common::{
        Column, DFSchema, Dependency, Result as DfResult, internal_err,
        tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion},
    },
    error::DataFusionError,
    logical_expr::{
        Aggregate, AggregateUDF, BinaryExpr, Distinct, Expr, ExprSchemable, FetchType, Filter, JoinType, LogicalPlan,
        Operator, Subquery, expr_rewriter::NamePreserver, utils::split_conjunction,
    },
};
use drsdb_core::{
    Error, ErrorCode, WireError,
    single_value::{counted_value, only_value, perhaps_null, single_value},
};

/// The plan, in which a subquery that stands for one value gives one row or is an error. Names of columns stay; those that
/// are made of a subquery may be NULL.
pub fn check_single_rows(plan: LogicalPlan) -> DfResult<LogicalPlan> {
    if !has_scalar_subquery(&plan)? {
        return Ok(plan);
    }
    let mut changed = false;
    plan.transform_up_with_subqueries(|node| {
        let names = NamePreserver::new(&node);
        let node = node.map_expressions(|expr| {
            if !expr.contains_scalar_subquery() {
                return Ok(Transformed::no(expr));
            }
            let name = names.save(&expr);
            let checked = expr.transform_up(|expr| match expr {
                Expr::ScalarSubquery(subquery) => single_row(subquery),
                other => Ok(Transformed::no(other)),
            })?;
            Ok(checked.update_data(|expr| name.restore(expr)))
        })?;
        changed |= node.transformed;
        if changed { node.data.recompute_schema().map(Transformed::yes) } else { Ok(node) }
    })
    .data()
}

fn has_scalar_subquery(plan: &LogicalPlan) -> DfResult<bool> {
    let mut has = false;
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            has |= expr.contains_scalar_subquery();
            Ok(if has { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
        })
    })?;
    Ok(has)
}

fn single_row(subquery: Subquery) -> DfResult<Transformed<Expr>> {
    let correlated = !subquery.outer_ref_columns.is_empty();
    if gives_one_row(&subquery.subquery, correlated) {
        let never_null = !subquery.subquery.schema().fields().iter().any(|field| field.is_nullable());
        let may_be_missing = never_null && !gives_a_row(&subquery.subquery);
        let subquery = Expr::ScalarSubquery(subquery);
        return Ok(match may_be_missing {
            true => Transformed::yes(perhaps_null().call(vec![subquery])),
            false => Transformed::no(subquery),
        });
    }
    if !correlated {
        return Ok(Transformed::yes(Expr::ScalarSubquery(aggregated(subquery, &single_value())?)));
    }
    if !can_be_grouped(&subquery.subquery) {
        return Err(refused(true));
    }
    let counted = Expr::ScalarSubquery(aggregated(subquery, &counted_value())?);
    Ok(Transformed::yes(only_value().call(vec![counted])))
}

/// The subquery as an aggregate of its only column, over all of its rows.
fn aggregated(subquery: Subquery, function: &AggregateUDF) -> DfResult<Subquery> {
    let Subquery { subquery, outer_ref_columns, spans } = subquery;
    // A projection's name can be that of a column that is compared, which DataFusion adds to the projection.
    let (input, value) = if let LogicalPlan::Projection(projection) = subquery.as_ref()
        && let [value] = projection.expr.as_slice()
        && !value.exists(|part| Ok(is_subquery(part)))?
    {
        (Arc::clone(&projection.input), value.clone().unalias())
    } else {
        let Some(column) = subquery.schema().columns().into_iter().next() else {
            return internal_err!("a subquery without a column stands for a value");
        };
        (subquery, Expr::Column(column))
    };
    let aggregate = Aggregate::try_new(input, Vec::new(), vec![function.call(vec![value])])?;
    Ok(Subquery { subquery: Arc::new(LogicalPlan::Aggregate(aggregate)), outer_ref_columns, spans })
}

/// Whether the plan gives one row at most, whatever is in the tables. `strictly`: and DataFusion sees that as well, after it
/// has coerced types.
fn gives_one_row(plan: &LogicalPlan, strictly: bool) -> bool {
    let one = |plan: &LogicalPlan| gives_one_row(plan, strictly);
    match plan {
        LogicalPlan::EmptyRelation(_) => true,
        LogicalPlan::Values(values) => values.values.len() <= 1,
        LogicalPlan::Projection(projection) => one(&projection.input),
        LogicalPlan::SubqueryAlias(alias) => one(&alias.input),
        LogicalPlan::Window(window) => one(&window.input),
        LogicalPlan::Sort(sort) => one(&sort.input),
        LogicalPlan::Distinct(Distinct::All(input)) => one(input),
        LogicalPlan::Distinct(Distinct::On(distinct)) => one(&distinct.input),
        LogicalPlan::Limit(limit) => {
            matches!(limit.get_fetch_type(), Ok(FetchType::Literal(Some(0 | 1)))) || one(&limit.input)
        }
        LogicalPlan::Filter(filter) => names_one_key(filter, strictly) || one(&filter.input),
        LogicalPlan::Aggregate(aggregate) => {
            aggregate.group_expr.is_empty() || (!strictly && !has_grouping_sets(aggregate) && one(&aggregate.input))
        }
        LogicalPlan::Join(join) => match join.join_type {
            JoinType::Inner | JoinType::Left | JoinType::Right => one(&join.left) && one(&join.right),
            JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => one(&join.left),
            JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark => one(&join.right),
            // Both rows, if they do not match.
            JoinType::Full => false,
        },
        _ => false,
    }
}

/// Whether a plan of one row at most has that one, whatever is in the tables.
fn gives_a_row(plan: &LogicalPlan) -> bool {
    match plan {
        LogicalPlan::EmptyRelation(none) => none.produce_one_row,
        LogicalPlan::Values(values) => !values.values.is_empty(),
        LogicalPlan::Projection(projection) => gives_a_row(&projection.input),
        LogicalPlan::SubqueryAlias(alias) => gives_a_row(&alias.input),
        LogicalPlan::Sort(sort) => sort.fetch.is_none() && gives_a_row(&sort.input),
        LogicalPlan::Aggregate(aggregate) => aggregate.group_expr.is_empty(),
        _ => false,
    }
}

fn has_grouping_sets(aggregate: &Aggregate) -> bool {
    aggregate.group_expr.iter().any(|expr| matches!(expr, Expr::GroupingSet(_)))
}

/// Whether a filter names all columns of a key.
fn names_one_key(filter: &Filter, strictly: bool) -> bool {
    let schema = filter.input.schema();
    let compared = split_conjunction(&filter.predicate).into_iter().filter_map(|part| {
        let (column, apart) = compared_column(part, schema)?;
        if strictly && apart != Apart::SameType { None } else { schema.index_of_column(column).ok() }
    });
    let compared: Vec<usize> = compared.collect();
    schema.functional_dependencies().iter().any(|key| {
        let nullable = key.nullable && key.source_indices.iter().any(|&at| schema.field(at).is_nullable());
        !nullable
            && key.mode == Dependency::Single
            && key.target_indices.len() == schema.fields().len()
            && !key.source_indices.is_empty()
            && key.source_indices.iter().all(|at| compared.contains(at))
    })
}

/// Why two values of a column cannot both be equal to one value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Apart {
    /// They are compared as they are.
    SameType,
    /// They are cast, and stay different.
    Cast,
}

/// The column that a predicate says to be equal to something which is the same for all rows of `schema`. Not so if
/// different values of the column could be equal to it: 9007199254740992 and 9007199254740993 are one DOUBLE.
fn compared_column<'a>(predicate: &'a Expr, schema: &DFSchema) -> Option<(&'a Column, Apart)> {
    let Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) = predicate else { return None };
    let ((Expr::Column(column), other) | (other, Expr::Column(column))) = (left.as_ref(), right.as_ref()) else {
        return None;
    };
    let varies = other.exists(|part| {
        Ok(match part {
            Expr::Column(_) => true,
            Expr::ScalarSubquery(subquery) => !subquery.outer_ref_columns.is_empty(),
            part => part.is_volatile_node() || is_subquery(part),
        })
    });
    if varies.unwrap_or(true) {
        return None;
    }
    let mine = schema.field(schema.index_of_column(column).ok()?).data_type();
    let other = other.get_type(schema).ok()?;
    if *mine == other {
        Some((column, Apart::SameType))
    } else if (is_exact(mine) && is_exact(&other)) || (is_text(mine) && is_text(&other)) {
        Some((column, Apart::Cast))
    } else {
        None
    }
}

fn is_exact(data_type: &DataType) -> bool {
    data_type.is_integer() || matches!(data_type, DataType::Decimal128(..) | DataType::Decimal256(..))
}

fn is_text(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

fn is_subquery(expr: &Expr) -> bool {
    matches!(expr, Expr::ScalarSubquery(_) | Expr::Exists(_) | Expr::InSubquery(_) | Expr::SetComparison(_))
}

/// Whether an aggregate over the plan can be computed for all rows outside at once, grouped by the columns that are compared
/// with theirs. Everything between those comparisons and the aggregate must do the same to all groups together as to each
/// alone: LIMIT, a window or another aggregate does not.
fn can_be_grouped(plan: &LogicalPlan) -> bool {
    if plan.all_out_ref_exprs().is_empty() {
        return true;
    }
    match plan {
        LogicalPlan::Filter(filter) => {
            let predicates = split_conjunction(&filter.predicate);
            let mut outer = predicates.into_iter().filter(|part| part.contains_outer());
            outer.all(|part| is_group(part, filter.input.schema())) && can_be_grouped(&filter.input)
        }
        LogicalPlan::Distinct(Distinct::All(input)) => can_be_grouped(input),
        LogicalPlan::SubqueryAlias(alias) => can_be_grouped(&alias.input),
        _ if plan.contains_outer_reference() => false,
        LogicalPlan::Projection(projection) => can_be_grouped(&projection.input),
        LogicalPlan::Aggregate(aggregate) => {
            !aggregate.group_expr.is_empty() && !has_grouping_sets(aggregate) && can_be_grouped(&aggregate.input)
        }
        LogicalPlan::Join(join) => can_be_grouped(&join.left) && can_be_grouped(&join.right),
        _ => false,
    }
}

/// Whether the rows for which a predicate holds are one group of the column that it compares.
fn is_group(predicate: &Expr, schema: &DFSchema) -> bool {
    let Some((column, _)) = compared_column(predicate, schema) else { return false };
    // A computed -0.0 is another group than 0.0.
    schema.index_of_column(column).is_ok_and(|at| !schema.field(at).data_type().is_floating())
}

/// An error if DataFusion has not made a join of a subquery that stands for a value: the optimized plan still has it, and
/// cannot be run.
pub fn refuse_left_over(plan: &LogicalPlan) -> DfResult<()> {
    plan.apply(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|part| match part {
                Expr::ScalarSubquery(subquery) => Err(refused(!subquery.outer_ref_columns.is_empty())),
                _ => Ok(TreeNodeRecursion::Continue),
            })
        })?;
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(())
}

fn refused(correlated: bool) -> DataFusionError {
    let error = if correlated {
        WireError::new(
            ErrorCode::Unsupported,
            "a subquery that stands for one value uses columns from outside in a way that cannot be planned",
        )
        .with_hint(
            "compare them by = with columns of the same kind in the subquery's WHERE, and without LIMIT (an aggregate \
             such as max(x) or first_value(x ORDER BY y) gives one row as well), or write a join",
        )
    } else {
        WireError::new(ErrorCode::Unsupported, "a subquery that stands for one value cannot be planned in this place")
            .with_hint("have it in SELECT or WHERE, perhaps of a subquery in FROM")
    };
    Error::from(error).into_datafusion()
}

#[cfg(test)]
mod tests;
