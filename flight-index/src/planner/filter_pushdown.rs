//! DataFusion's FilterPushdown, for plans in which it is right.
//!
//! It finds a filter's columns again by name: in a projection, a union or an exchange above a join whose sides both have an
//! `id`, the filter of one may arrive at the other's scan, and rows are lost. So it is left out where any operator has two
//! columns of one name, a union's input has other names than the union, or a semi join's key has a namesake on the other side. What a filter can do above scans has been done by
//! then in the logical plan, which knows whose columns they are; such plans only go without the filters that joins and sorts
//! make while they run.

use std::{collections::HashSet, sync::Arc};

use arrow::datatypes::Schema;
use datafusion::{
    common::{JoinType, Result as DfResult, config::ConfigOptions, tree_node::TreeNode},
    physical_expr::{PhysicalExpr, expressions::Column},
    physical_optimizer::{PhysicalOptimizerRule, optimizer::PhysicalOptimizer},
    physical_plan::{ExecutionPlan, joins::HashJoinExec, union::UnionExec},
};

type Rule = Arc<dyn PhysicalOptimizerRule + Send + Sync>;

/// DataFusion's rules.
pub(super) fn physical_optimizer_rules() -> Vec<Rule> {
    let rules = PhysicalOptimizer::new().rules.into_iter();
    let guarded =
        |rule: Rule| if rule.name().starts_with("FilterPushdown") { Arc::new(ByName(rule)) as Rule } else { rule };
    rules.map(guarded).collect()
}

/// A rule that knows columns by their names.
#[derive(Debug)]
struct ByName(Rule);

impl PhysicalOptimizerRule for ByName {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, config: &ConfigOptions) -> DfResult<Arc<dyn ExecutionPlan>> {
        if plan.exists(|node| Ok(has_ambiguous_names(node)))? { Ok(plan) } else { self.0.optimize(plan, config) }
    }

    fn name(&self) -> &str {
        self.0.name()
    }

    fn schema_check(&self) -> bool {
        self.0.schema_check()
    }
}

fn has_ambiguous_names(node: &Arc<dyn ExecutionPlan>) -> bool {
    let schema = node.schema();
    let mut names = HashSet::with_capacity(schema.fields().len());
    if !schema.fields().iter().all(|field| names.insert(field.name())) {
        return true;
    }
    if node.downcast_ref::<HashJoinExec>().is_some_and(mistakes_keys) {
        return true;
    }
    node.is::<UnionExec>()
        && node.children().iter().any(|input| {
            let input = input.schema();
            input.fields().iter().zip(schema.fields()).any(|(input, output)| input.name() != output.name())
        })
}

/// Of a semi join, a filter of one side's key goes to the other side as well, where its column is looked for by the key's name
/// and not by the column that it is compared with.
fn mistakes_keys(join: &HashJoinExec) -> bool {
    let (left, right) = (join.left().schema(), join.right().schema());
    let elsewhere = |key: &Arc<dyn PhysicalExpr>, paired: &Arc<dyn PhysicalExpr>, other: &Schema| {
        let paired = paired.downcast_ref::<Column>().map(Column::index);
        let key = key.downcast_ref::<Column>();
        key.is_some_and(|key| other.index_of(key.name()).is_ok_and(|at| Some(at) != paired))
    };
    match join.join_type() {
        JoinType::LeftSemi => join.on().iter().any(|(left, paired)| elsewhere(left, paired, &right)),
        JoinType::RightSemi => join.on().iter().any(|(paired, right)| elsewhere(right, paired, &left)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_are_datafusions_and_two_of_them_are_guarded() {
        let names = |rules: &[Rule]| rules.iter().map(|rule| rule.name().to_owned()).collect::<Vec<_>>();
        let (ours, theirs) = (physical_optimizer_rules(), PhysicalOptimizer::new().rules);
        assert_eq!(names(&ours), names(&theirs));
        let guarded = ours.iter().filter(|rule| format!("{rule:?}").starts_with("ByName")).count();
        assert_eq!(guarded, 2, "a rule that pushes filters has another name now: {:?}", names(&theirs));
    }
}
