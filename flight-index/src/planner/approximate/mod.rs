//! DOUBLE and REAL beside DECIMAL. SQL says that what is approximate stays so: the decimal becomes the other's type. DataFusion
//! computes so, but compares the other way round and makes DECIMAL(30, 15) of a DOUBLE: `f = 0.0` then holds for 1e-20, and
//! `f > 0.5` fails for 1e15 and for infinity.
//!
//! So before types are coerced, decimals that meet a floating-point value in a comparison, IN, BETWEEN, CASE, a function that
//! wants one type, UNION or a join's USING are cast here. A literal is read anew, so that the value is the nearest one.
//! [`exponents()`] is for literals such as `1e3`, which SQL counts as approximate.
//!
//! Here is the way through a plan, inputs first. What is done to one expression is in [`expression`], to columns that are brought
//! together in [`columns`], and to WITH RECURSIVE in [`recursion`]; [`types`] knows which type comes of which.

mod columns;
mod exponents;
mod expression;
mod recursion;
mod types;

use std::sync::Arc;

use datafusion::{
    common::{
        DFSchema, Result as DfResult,
        tree_node::{Transformed, TransformedResult, TreeNode},
    },
    logical_expr::{Expr, LogicalPlan, Subquery, expr_rewriter::NamePreserver, utils::merge_schema},
};

use self::{
    columns::{rewrite_join, rewrite_union, rewrite_values},
    expression::rewrite,
    recursion::before_inputs,
    types::{float_of, has_decimal},
};

pub use exponents::{exponents, exponents_in};

/// The plan, in which nothing approximate is compared as a decimal. Types of its columns may change with it.
pub fn stay_approximate(plan: LogicalPlan) -> DfResult<LogicalPlan> {
    plan.transform_down_up(before_inputs, after_inputs).data()
}

/// The same for an expression over columns of `schema`, which is not a part of a plan.
pub fn stay_approximate_expr(expr: Expr, schema: &DFSchema) -> DfResult<Expr> {
    let rewritten = expr.transform_up(|expr| rewrite(expr, schema))?;
    Ok(if rewritten.transformed { rewritten.data.unalias_nested().data } else { rewritten.data })
}

fn after_inputs(plan: LogicalPlan) -> DfResult<Transformed<LogicalPlan>> {
    // Of all inputs: it is for looking up types only.
    let schema = merge_schema(&plan.inputs());
    let plan = plan.map_subqueries(|node| match node {
        LogicalPlan::Subquery(subquery) => {
            let plan = with_outer(Arc::unwrap_or_clone(subquery.subquery), &schema)?.data;
            let outer = subquery.outer_ref_columns.into_iter().map(|expr| retyped(expr, &schema)).collect();
            let plan = Arc::new(stay_approximate(plan)?);
            let subquery = Subquery { subquery: plan, outer_ref_columns: outer, spans: subquery.spans };
            Ok(Transformed::yes(LogicalPlan::Subquery(subquery)))
        }
        other => Ok(Transformed::no(other)),
    })?;
    let names = NamePreserver::new(&plan.data);
    let plan = plan.data.map_expressions(|expr| {
        let name = names.save(&expr);
        let rewritten = expr.transform_up(|expr| rewrite(expr, &schema))?;
        Ok(rewritten.update_data(|expr| name.restore(expr)))
    })?;
    let plan = match plan.data {
        LogicalPlan::Join(join) => LogicalPlan::Join(rewrite_join(join)?),
        LogicalPlan::Union(union) => LogicalPlan::Union(rewrite_union(union)?),
        LogicalPlan::Values(values) => LogicalPlan::Values(rewrite_values(values)?),
        other => other,
    };
    plan.recompute_schema().map(Transformed::yes)
}

/// A subquery that reads the columns of `outer` with the types that they have now.
fn with_outer(plan: LogicalPlan, outer: &DFSchema) -> DfResult<Transformed<LogicalPlan>> {
    plan.transform_up_with_subqueries(|node| {
        node.map_expressions(|expr| {
            expr.transform_up(|expr| match expr {
                Expr::OuterReferenceColumn(..) => {
                    let new = retyped(expr.clone(), outer);
                    Ok(if new == expr { Transformed::no(expr) } else { Transformed::yes(new) })
                }
                other => Ok(Transformed::no(other)),
            })
        })
    })
}

fn retyped(expr: Expr, outer: &DFSchema) -> Expr {
    match &expr {
        Expr::OuterReferenceColumn(field, column) => match outer.qualified_field_from_column(column) {
            // Only so far as this pass changes types: a column of the same name may be in a nearer scope, which is looked at later.
            Ok((_, now)) if has_decimal(field.data_type()) && float_of(now.data_type()).is_some() => {
                let field = field.as_ref().clone().with_data_type(now.data_type().clone());
                Expr::OuterReferenceColumn(Arc::new(field), column.clone())
            }
            _ => expr,
        },
        _ => expr,
    }
}

#[cfg(test)]
mod tests;
