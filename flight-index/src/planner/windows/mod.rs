//! What a window function says beside its arguments, said in a way that survives the way to a storage server.
//!
//! The wire form of a plan has no FILTER of a window function, and no IGNORE NULLS but for aggregates. The rows would come
//! without a word, and be wrong. So here, before a plan is optimized,
//!
//! - `count(x) FILTER (WHERE p)` becomes `count(CASE WHEN p THEN x END)`, for what passes over NULLs ([`PASS_OVER_NULLS`]);
//! - `lag(x) IGNORE NULLS` becomes the function of that meaning ([`window_functions`](drsdb_core::window_functions)).
//!
//! Columns keep their names and types. What cannot be said is refused.

use std::{mem, sync::Arc};

use datafusion::{
    common::{
        Result as DfResult,
        tree_node::{Transformed, TransformedResult, TreeNode},
    },
    logical_expr::{
        Case, Expr, LogicalPlan, WindowFunctionDefinition, WindowUDF,
        expr::{NullTreatment, WindowFunction, WindowFunctionParams},
        expr_rewriter::NamePreserver,
    },
};
use drsdb_core::{Error, ErrorCode, WireError, window_functions::ignoring_nulls};

/// Aggregates that answer the same with and without a row whose first argument is NULL.
const PASS_OVER_NULLS: [&str; 34] = [
    "any_value",
    "approx_distinct",
    "approx_median",
    "approx_percentile_cont",
    "approx_percentile_cont_with_weight",
    "avg",
    "bit_and",
    "bit_or",
    "bit_xor",
    "bool_and",
    "bool_or",
    "corr",
    "count",
    "covar_pop",
    "covar_samp",
    "max",
    "median",
    "min",
    "percentile_cont",
    "regr_avgx",
    "regr_avgy",
    "regr_count",
    "regr_intercept",
    "regr_r2",
    "regr_slope",
    "regr_sxx",
    "regr_sxy",
    "regr_syy",
    "stddev",
    "stddev_pop",
    "string_agg",
    "sum",
    "var",
    "var_pop",
];

/// The plan, all of whose windows say in names and arguments what they do.
pub(super) fn spell_out_windows(plan: LogicalPlan) -> DfResult<LogicalPlan> {
    plan.transform_up_with_subqueries(|node| {
        if !matches!(node, LogicalPlan::Window(_)) {
            return Ok(Transformed::no(node));
        }
        let names = NamePreserver::new(&node);
        node.map_expressions(|expr| {
            let name = names.save(&expr);
            let spelled_out = expr.transform_up(spell_out)?;
            Ok(spelled_out.update_data(|expr| name.restore(expr)))
        })
    })
    .data()
}

fn spell_out(expr: Expr) -> DfResult<Transformed<Expr>> {
    let Expr::WindowFunction(mut call) = expr else { return Ok(Transformed::no(expr)) };
    let WindowFunction { fun, params } = call.as_mut();
    let changed = match fun {
        WindowFunctionDefinition::AggregateUDF(function) => take_filter(function.name(), params)?,
        WindowFunctionDefinition::WindowUDF(function) => take_null_treatment(function, params)?,
    };
    let expr = Expr::WindowFunction(call);
    Ok(if changed { Transformed::yes(expr) } else { Transformed::no(expr) })
}

fn take_filter(name: &str, params: &mut WindowFunctionParams) -> DfResult<bool> {
    let Some(filter) = params.filter.take() else { return Ok(false) };
    let argument = params.args.first_mut().filter(|_| PASS_OVER_NULLS.contains(&name));
    let Some(argument) = argument else {
        return refused(
            format!("FILTER of {name} over a window"),
            "filter the rows in a subquery, or write CASE WHEN ... END as its argument",
        );
    };
    let value = Box::new(mem::take(argument));
    *argument = Expr::Case(Case::new(None, vec![(filter, value)], None));
    Ok(true)
}

fn take_null_treatment(function: &mut Arc<WindowUDF>, params: &mut WindowFunctionParams) -> DfResult<bool> {
    let name = function.name();
    // DataFusion passes over it.
    if params.distinct {
        return refused(format!("DISTINCT of {name}"), "leave it out, or use DISTINCT in a subquery");
    }
    if params.null_treatment != Some(NullTreatment::IgnoreNulls) {
        return Ok(false);
    }
    let Some(ignoring) = ignoring_nulls(name) else {
        return refused(format!("IGNORE NULLS of {name}"), "leave it out, or leave out the rows in a subquery");
    };
    *function = ignoring;
    params.null_treatment = None;
    Ok(true)
}

fn refused<T>(what: String, hint: &str) -> DfResult<T> {
    let error = WireError::new(ErrorCode::Unsupported, format!("{what} is not done")).with_hint(hint);
    Err(Error::from(error).into_datafusion())
}

#[cfg(test)]
mod tests;
