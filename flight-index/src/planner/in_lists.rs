//! Keeps DataFusion from making one list of two. Where lists over the same value meet, as in `a IN (1, 2) AND a NOT IN (3,
//! NULL)`, its simplifier takes them for sets of constants: it forgets that a comparison with NULL is neither true nor false,
//! and that columns of different names may be equal. So as long as it works on an expression that has several lists, each is the argument of a function, of which it knows nothing.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::{
    common::{
        Result as DfResult, exec_err,
        tree_node::{Transformed, TreeNode, TreeNodeRecursion},
    },
    logical_expr::{
        BinaryExpr, ColumnarValue, Expr, LogicalPlan, Operator, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl,
        Signature, Volatility,
        expr::{InList, ScalarFunction},
        expr_rewriter::NamePreserver,
    },
    optimizer::{
        ApplyOrder, Optimizer, OptimizerConfig, OptimizerRule,
        simplify_expressions::{ExprSimplifier, SimplifyExpressions},
    },
};

type Rule = Arc<dyn OptimizerRule + Send + Sync>;

/// DataFusion's rules, with lists kept apart.
pub(super) fn optimizer_rules() -> Vec<Rule> {
    let apart = |rule: Rule| match rule.name() == SimplifyExpressions::default().name() {
        true => Arc::new(SimplifyApart::default()) as Rule,
        false => rule,
    };
    Optimizer::new().rules.into_iter().map(apart).collect()
}

/// Simplifies an expression, with lists kept apart.
pub(crate) fn simplify_apart(simplifier: &ExprSimplifier, expr: Expr) -> DfResult<Expr> {
    let hidden = hide(expr)?;
    let simplified = simplifier.simplify(hidden.data)?;
    if hidden.transformed { Ok(show(simplified)?.data) } else { Ok(simplified) }
}

#[derive(Debug, Default)]
struct SimplifyApart(SimplifyExpressions);

impl OptimizerRule for SimplifyApart {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        self.0.apply_order()
    }

    fn rewrite(&self, plan: LogicalPlan, config: &dyn OptimizerConfig) -> DfResult<Transformed<LogicalPlan>> {
        let names = NamePreserver::new(&plan);
        let mut hide = |expr: Expr| {
            let name = names.save(&expr);
            Ok(hide(expr)?.update_data(|expr| name.restore(expr)))
        };
        // A grouping set has no name of its own, and must stay one.
        let hidden = plan.map_expressions(|expr| match expr {
            Expr::GroupingSet(_) => expr.map_children(&mut hide),
            expr => hide(expr),
        })?;
        let simplified = self.0.rewrite(hidden.data, config)?;
        if !hidden.transformed {
            return Ok(simplified);
        }
        // What it was given may have become several nodes.
        let shown = simplified.data.transform_down(|plan| plan.map_expressions(show))?;
        Ok(Transformed::new_transformed(shown.data, simplified.transformed))
    }
}

/// Hides the lists of an expression that has several. Whether they are over the same value may only be seen when it has been
/// simplified.
fn hide(expr: Expr) -> DfResult<Transformed<Expr>> {
    let mut lists = 0;
    expr.apply(|expr| {
        let is_one = is_list(expr);
        lists += usize::from(is_one);
        // What a list looks for may have lists in it.
        let is_done = is_one && !matches!(expr, Expr::InList(_));
        Ok(if is_done { TreeNodeRecursion::Jump } else { TreeNodeRecursion::Continue })
    })?;
    if lists > 1 { hide_all(expr) } else { Ok(Transformed::no(expr)) }
}

fn hide_all(expr: Expr) -> DfResult<Transformed<Expr>> {
    expr.transform_down(|expr| {
        if !is_list(&expr) {
            return Ok(Transformed::no(expr));
        }
        let inner = if matches!(expr, Expr::InList(_)) { expr.map_children(hide_all)?.data } else { expr };
        let hidden = function().call(vec![inner]);
        Ok(Transformed::new(hidden, true, TreeNodeRecursion::Jump))
    })
}

/// Whether an expression is a list, or may become one: `a = 1 OR a = 2`. Such a disjunction is put together rightly.
fn is_list(expr: &Expr) -> bool {
    match expr {
        Expr::InList(_) => true,
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Or, right }) => may_be_in_one(left) && may_be_in_one(right),
        _ => false,
    }
}

fn may_be_in_one(expr: &Expr) -> bool {
    match expr {
        Expr::InList(InList { negated, .. }) => !negated,
        Expr::BinaryExpr(BinaryExpr { op: Operator::Eq, .. }) => true,
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Or, right }) => may_be_in_one(left) && may_be_in_one(right),
        _ => false,
    }
}

/// Brings what was hidden back.
fn show(expr: Expr) -> DfResult<Transformed<Expr>> {
    expr.transform_up(|expr| match expr {
        Expr::ScalarFunction(ScalarFunction { func, mut args }) if func.name() == NAME && args.len() == 1 => {
            Ok(Transformed::yes(args.remove(0)))
        }
        // The simplifier could not do this, and what prunes by lists wants it so.
        Expr::Not(inner) => match *inner {
            Expr::InList(InList { expr, list, negated }) => {
                Ok(Transformed::yes(Expr::InList(InList { expr, list, negated: !negated })))
            }
            inner => Ok(Transformed::no(Expr::Not(Box::new(inner)))),
        },
        expr => Ok(Transformed::no(expr)),
    })
}

/// No user can name a function so without quotes; and it does nothing.
const NAME: &str = "drsdb list apart";

fn function() -> ScalarUDF {
    ScalarUDF::from(Apart { signature: Signature::exact(vec![DataType::Boolean], Volatility::Immutable) })
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Apart {
    signature: Signature,
}

impl ScalarUDFImpl for Apart {
    fn name(&self) -> &str {
        NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> DfResult<DataType> {
        Ok(DataType::Boolean)
    }

    fn invoke_with_args(&self, mut arguments: ScalarFunctionArgs) -> DfResult<ColumnarValue> {
        match arguments.args.pop() {
            Some(only) if arguments.args.is_empty() => Ok(only),
            _ => exec_err!("a list apart is one argument"),
        }
    }
}

#[cfg(test)]
mod tests {
    use datafusion::{
        common::DFSchema,
        logical_expr::{col, lit, not, simplify::SimplifyContext},
    };

    use super::*;

    fn simplified(expr: &Expr) -> String {
        let schema = arrow::datatypes::Schema::new(vec![
            arrow::datatypes::Field::new("a", DataType::Int64, true),
            arrow::datatypes::Field::new("b", DataType::Int64, true),
        ]);
        let context = SimplifyContext::builder().with_schema(Arc::new(DFSchema::try_from(schema).unwrap())).build();
        simplify_apart(&ExprSimplifier::new(context), expr.clone()).unwrap().to_string()
    }

    fn list(from: i64, negated: bool) -> Expr {
        col("a").in_list((from..from + 5).map(lit).collect(), negated)
    }

    fn lists_in(expr: &Expr) -> usize {
        let text = simplified(expr);
        assert!(!text.contains(NAME), "{text}");
        text.matches(" IN (").count()
    }

    #[test]
    fn lists_over_one_value_stay_two() {
        let nothing = list(0, false).and(list(10, false));
        assert_eq!(lists_in(&nothing), 2, "a NULL is in neither, and not out of both");
        let columns = col("a").in_list(vec![col("b"), lit(1i64)], false).and(col("a").in_list(vec![lit(2i64)], false));
        let text = simplified(&columns);
        assert!(text.contains("a = b") && text.contains("a = Int64(2)"), "{text}");
        let equal = |from: i64| (from..from + 5).map(|value| col("a").eq(lit(value))).reduce(Expr::or).unwrap();
        assert_eq!(lists_in(&equal(0).and(equal(10))), 2);
        let neither = simplified(&not(list(0, false).and(list(10, false))));
        assert_eq!(neither.matches("NOT IN (").count(), 2, "{neither}");
    }

    #[test]
    fn one_list_is_simplified_as_ever() {
        assert!(!hide(list(0, false).and(col("b").eq(lit(1i64)))).unwrap().transformed);
        let both = list(0, false).or(list(10, false));
        assert!(!hide(both.clone()).unwrap().transformed);
        assert_eq!(lists_in(&both), 1);
    }
}
