//! `coalesce(coalesce(a, b), c)` is `coalesce(a, b, c)`. DataFusion writes coalesce as a CASE that has each argument twice, and
//! would double the whole with each level.

use datafusion::{
    common::{DFSchema, Result as DfResult, tree_node::Transformed},
    config::ConfigOptions,
    logical_expr::{Expr, expr::ScalarFunction, expr_rewriter::FunctionRewrite},
};

/// Takes the arguments of an inner coalesce into the outer one.
#[derive(Debug)]
pub struct FlatCoalesce;

impl FunctionRewrite for FlatCoalesce {
    fn name(&self) -> &str {
        "flat_coalesce"
    }

    fn rewrite(&self, expr: Expr, _: &DFSchema, _: &ConfigOptions) -> DfResult<Transformed<Expr>> {
        let Expr::ScalarFunction(call) = expr else { return Ok(Transformed::no(expr)) };
        if call.func.name() != "coalesce" || !call.args.iter().any(is_coalesce) {
            return Ok(Transformed::no(Expr::ScalarFunction(call)));
        }
        let flat = |argument: Expr| match argument {
            Expr::ScalarFunction(inner) if inner.func.name() == "coalesce" => inner.args,
            other => vec![other],
        };
        let args = call.args.into_iter().flat_map(flat).collect();
        Ok(Transformed::yes(Expr::ScalarFunction(ScalarFunction { func: call.func, args })))
    }
}

fn is_coalesce(expr: &Expr) -> bool {
    matches!(expr, Expr::ScalarFunction(call) if call.func.name() == "coalesce")
}
