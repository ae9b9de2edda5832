//! DataFusion makes a join of a subquery that compares its columns with outer ones. It carries these columns up to the join and
//! finds them there by their names alone: `a.id` and `c.id` are one to it, and the join compares the wrong ones.
//!
//! ```text
//! Filter: a.id = outer(o.x) AND c.id = outer(o.y)      Filter: __compared_1 = outer(o.x) AND __compared_2 = outer(o.y)
//!   Join: a.cid = c.id                            ──▶    Projection: *, a.id AS __compared_1, c.id AS __compared_2
//!                                                          Join: a.cid = c.id
//! ```
//!
//! Of `a.i > ALL (SELECT a.i FROM a)` it makes a subquery that compares the one `a.i` with the other. The subquery's is renamed
//! before that.

use std::sync::Arc;

use datafusion::{
    common::{
        Column, Result as DfResult,
        tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion},
    },
    logical_expr::{
        Expr, Filter, LogicalPlan, LogicalPlanBuilder,
        expr_rewriter::NamePreserver,
        utils::{conjunction, split_conjunction, split_conjunction_owned},
    },
};

/// The plan, in which no two columns that a subquery compares with outer ones have one name. Others stay as they are.
pub fn tell_compared_apart(plan: LogicalPlan) -> DfResult<LogicalPlan> {
    let mut names = 0;
    let plan = plan.transform_up_with_subqueries(|node| {
        let kept = NamePreserver::new(&node);
        node.map_expressions(|expr| {
            let name = kept.save(&expr);
            let renamed = expr.transform_up(|expr| compared_with_all(expr, &mut names))?;
            Ok(renamed.update_data(|expr| name.restore(expr)))
        })
    });
    plan.data()?
        .transform_up_with_subqueries(|node| {
            node.map_subqueries(|subquery| match subquery {
                LogicalPlan::Subquery(mut subquery) if collide(&subquery.subquery)? => {
                    subquery.subquery = Arc::new(renamed(Arc::unwrap_or_clone(subquery.subquery), &mut names)?);
                    Ok(Transformed::yes(LogicalPlan::Subquery(subquery)))
                }
                other => Ok(Transformed::no(other)),
            })
        })
        .data()
}

/// A comparison with ANY or ALL rows of a subquery, whose column has a name of its own.
fn compared_with_all(expr: Expr, names: &mut usize) -> DfResult<Transformed<Expr>> {
    let Expr::SetComparison(mut asked) = expr else { return Ok(Transformed::no(expr)) };
    let columns = asked.subquery.subquery.schema().columns();
    let [column] = columns.as_slice() else { return Ok(Transformed::no(Expr::SetComparison(asked))) };
    *names += 1;
    let renamed = Expr::Column(column.clone()).alias(format!("__compared_{names}"));
    let input = Arc::unwrap_or_clone(asked.subquery.subquery);
    asked.subquery.subquery = Arc::new(LogicalPlanBuilder::from(input).project([renamed])?.build()?);
    Ok(Transformed::yes(Expr::SetComparison(asked)))
}

/// Whether a compared column has a namesake among the others, or in what the subquery selects.
fn collide(plan: &LogicalPlan) -> DfResult<bool> {
    let mut compared: Vec<Column> = Vec::new();
    plan.apply(|node| {
        match node {
            LogicalPlan::Subquery(_) => return Ok(TreeNodeRecursion::Jump),
            LogicalPlan::Filter(filter) => {
                let outer = split_conjunction(&filter.predicate).into_iter().filter(|part| part.contains_outer());
                compared.extend(outer.flat_map(Expr::column_refs).cloned());
            }
            _ => {}
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(compared.iter().any(|column| {
        compared.iter().any(|other| other.name == column.name && other.relation != column.relation)
            || plan
                .schema()
                .iter()
                .any(|(relation, field)| field.name() == &column.name && relation != column.relation.as_ref())
    }))
}

fn renamed(plan: LogicalPlan, names: &mut usize) -> DfResult<LogicalPlan> {
    plan.transform_up(|node| match node {
        LogicalPlan::Filter(filter) if filter.predicate.contains_outer() => {
            renamed_filter(filter, names).map(Transformed::yes)
        }
        other => other.recompute_schema().map(Transformed::yes),
    })
    .data()
}

fn renamed_filter(filter: Filter, names: &mut usize) -> DfResult<LogicalPlan> {
    let mut known: Vec<(Column, String)> = Vec::new();
    let mut renamed = |part: Expr| {
        part.transform(|expr| match expr {
            Expr::Column(column) => {
                let name = match known.iter().find(|(known, _)| *known == column) {
                    Some((_, name)) => name.clone(),
                    None => {
                        *names += 1;
                        let name = format!("__compared_{names}");
                        known.push((column, name.clone()));
                        name
                    }
                };
                Ok(Transformed::yes(Expr::Column(Column::new_unqualified(name))))
            }
            other => Ok(Transformed::no(other)),
        })
        .data()
    };
    let parts = split_conjunction_owned(filter.predicate).into_iter();
    let parts = parts.map(|part| if part.contains_outer() { renamed(part) } else { Ok(part) });
    let predicate = conjunction(parts.collect::<DfResult<Vec<_>>>()?).expect("a filter has a condition");
    let mut all: Vec<Expr> = filter.input.schema().columns().into_iter().map(Expr::Column).collect();
    all.extend(known.into_iter().map(|(column, name)| Expr::Column(column).alias(name)));
    let input = LogicalPlanBuilder::from(Arc::unwrap_or_clone(filter.input)).project(all)?.build()?;
    Ok(LogicalPlan::Filter(Filter::try_new(predicate, Arc::new(input))?))
}
