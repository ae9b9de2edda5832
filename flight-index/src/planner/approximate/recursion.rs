//! WITH RECURSIVE: both parts are planned for the types that the first part had before.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};
use datafusion::{
    catalog::cte_worktable::CteWorkTable,
    common::{
        DFSchemaRef, Result as DfResult,
        tree_node::{Transformed, TransformedResult, TreeNodeRecursion},
    },
    datasource::provider_as_source,
    logical_expr::{
        Expr, LogicalPlan, RecursiveQuery, TableScan, TableScanBuilder, expr_rewriter::coerce_plan_expr_for_schema,
    },
};

use super::stay_approximate;

/// The recursive part of a query reads what its first part makes, in types that were decided before.
pub(super) fn before_inputs(plan: LogicalPlan) -> DfResult<Transformed<LogicalPlan>> {
    let LogicalPlan::RecursiveQuery(query) = plan else { return Ok(Transformed::no(plan)) };
    let RecursiveQuery { name, static_term, recursive_term, is_distinct, schema } = query;
    let before = Arc::clone(static_term.schema());
    let static_term = Arc::new(stay_approximate(Arc::unwrap_or_clone(static_term))?);
    let first = static_term.schema();
    let changed: Vec<bool> =
        before.fields().iter().zip(first.fields()).map(|(old, new)| old.data_type() != new.data_type()).collect();
    let mut recursive_term = Arc::unwrap_or_clone(recursive_term);
    if changed.contains(&true) {
        recursive_term = without_casts(reading(recursive_term, &name, first)?, &before, &changed);
    }
    let recursive_term = Arc::new(coerce_plan_expr_for_schema(stay_approximate(recursive_term)?, first)?);
    let query = RecursiveQuery { name, static_term, recursive_term, is_distinct, schema };
    // Both parts are done.
    Ok(Transformed::new(LogicalPlan::RecursiveQuery(query), true, TreeNodeRecursion::Jump))
}

/// The recursive part, which reads its own rows with the types of `first`.
fn reading(recursive_term: LogicalPlan, name: &str, first: &DFSchemaRef) -> DfResult<LogicalPlan> {
    let read = recursive_term.transform_up_with_subqueries(|node| match node {
        LogicalPlan::TableScan(scan) if is_work_table(&scan, name) => {
            work_table_like(scan, name, first).map(Transformed::yes)
        }
        other => other.recompute_schema().map(Transformed::yes),
    });
    read.data()
}

fn is_work_table(scan: &TableScan, name: &str) -> bool {
    scan.table_name.table() == name && scan.table_name.schema().is_none() && scan.projection.is_none()
}

/// The scan of a recursion's own rows, with the types of `first`.
fn work_table_like(scan: TableScan, name: &str, first: &DFSchemaRef) -> DfResult<LogicalPlan> {
    let known = scan.source.schema();
    if known.fields().len() != first.fields().len() {
        return Ok(LogicalPlan::TableScan(scan));
    }
    let fields = known.fields().iter().zip(first.fields());
    let fields: Vec<Field> =
        fields.map(|(field, first)| field.as_ref().clone().with_data_type(first.data_type().clone())).collect();
    let table = CteWorkTable::new(name, Arc::new(Schema::new(fields)));
    let source = provider_as_source(Arc::new(table));
    let scan = TableScanBuilder::new(scan.table_name, source).with_filters(scan.filters).with_fetch(scan.fetch);
    scan.build().map(LogicalPlan::TableScan)
}

/// Without the casts to the types that the first part had before, where they are `changed`: the planner has put them on top.
fn without_casts(plan: LogicalPlan, before: &DFSchemaRef, changed: &[bool]) -> LogicalPlan {
    let LogicalPlan::Projection(mut projection) = plan else { return plan };
    for (at, expr) in projection.expr.iter_mut().enumerate() {
        if !changed.get(at).is_some_and(|changed| *changed) {
            continue;
        }
        let (relation, name) = expr.qualified_name();
        let computed = if let Expr::Alias(alias) = &mut *expr { alias.expr.as_mut() } else { &mut *expr };
        let inner = cast_to(computed, before.field(at).data_type());
        if let Some(inner) = inner {
            *expr = inner.alias_qualified(relation, name);
        }
    }
    LogicalPlan::Projection(projection)
}

/// What is cast to that type.
fn cast_to(expr: &mut Expr, data_type: &DataType) -> Option<Expr> {
    match expr {
        Expr::Cast(cast) if cast.field.data_type() == data_type => Some(std::mem::take(cast.expr.as_mut())),
        _ => None,
    }
}
