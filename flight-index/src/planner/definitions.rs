//! The expressions of definitions: whether a CHECK is a condition over the table's columns, and a DEFAULT a value that its
//! column takes.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, RecordBatch, RecordBatchOptions},
    compute::cast,
    datatypes::{DataType, Schema, TimeUnit},
};
use datafusion::{
    common::{DFSchema, tree_node::TreeNode},
    logical_expr::{Expr, ExprSchemable, Volatility, expr_rewriter::FunctionRewrite, simplify::SimplifyContext},
    optimizer::simplify_expressions::ExprSimplifier,
    sql::sqlparser::ast,
};
use drsdb_core::{
    Check, Column, ErrorCode, Result, Table, WireError, checked_arithmetic::CheckIntegers, initial::initial_literal,
    transit::stored_column,
};

use super::{
    PlanSession, Planner, QueryContext,
    approximate::{exponents_in, stay_approximate_expr},
    name_errors,
};
use crate::{
    catalog::CatalogState,
    load::{check_assignable, convert_column},
    statement::parse_expression,
};

/// A column's DEFAULT as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DefaultNow {
    /// The value as a literal; `None`: NULL.
    pub literal: Option<String>,
    /// Whether each row is to have another one.
    pub differs: bool,
}

impl Planner {
    /// Checks the expressions of a definition.
    pub fn check_definition(&self, state: &Arc<CatalogState>, table: &Table, context: &QueryContext) -> Result<()> {
        if table.checks.is_empty() && table.columns.iter().all(|column| column.default.is_none()) {
            return Ok(());
        }
        let session = self.session(state, context)?;
        for check in &table.checks {
            check_condition(&session, table, check)?;
        }
        for column in &table.columns {
            default_now(&session, column)?;
        }
        Ok(())
    }

    /// What rows get that are there when a column with a DEFAULT is added.
    pub fn default_now(
        &self,
        state: &Arc<CatalogState>,
        column: &Column,
        context: &QueryContext,
    ) -> Result<DefaultNow> {
        default_now(&self.session(state, context)?, column)
    }
}

fn check_condition(session: &PlanSession, table: &Table, check: &Check) -> Result<()> {
    let visible: Vec<usize> = table.visible_columns().map(|(position, _)| position).collect();
    let schema = DFSchema::try_from(table.arrow_schema().project(&visible)?)?;
    let explained = |error: WireError| {
        WireError { message: format!("CHECK {}: {}", check.name, error.message), ..error }
            .with_field("constraint", &check.name)
    };
    let expr = planned(session, parse_expression(&check.sql)?, &schema).map_err(|error| explained(error.to_wire()))?;
    let (_, field) = expr.to_field(&schema).map_err(|error| explained(drsdb_core::Error::from(error).to_wire()))?;
    if !matches!(field.data_type(), DataType::Boolean | DataType::Null) {
        let error = WireError::new(ErrorCode::TypeMismatch, format!("{} is no condition", check.sql));
        return Err(explained(error.with_hint("write a comparison, as in CHECK (price > 0)")).into());
    }
    if is_volatile(&expr)? {
        let error = WireError::new(ErrorCode::Unsupported, "a function that gives another value each time is not done");
        return Err(explained(error.with_hint("a CHECK must stay true for rows that are there")).into());
    }
    Ok(())
}

/// A logical expression without aggregates and windows.
fn planned(session: &PlanSession, mut expr: ast::Expr, schema: &DFSchema) -> Result<Expr> {
    exponents_in(&mut expr);
    let logical = session.state.create_logical_expr_from_sql_expr(ast::ExprWithAlias { expr, alias: None }, schema);
    let logical = logical.map_err(|error| name_errors::explain(error, &session.catalog))?;
    let over_rows = |expr: &Expr| Ok(matches!(expr, Expr::AggregateFunction(_) | Expr::WindowFunction(_)));
    if logical.exists(over_rows)? {
        let message = "there is one row here, and nothing to aggregate";
        return Err(WireError::new(ErrorCode::InvalidArgument, message).with_hint("use the row's own values").into());
    }
    Ok(stay_approximate_expr(logical, schema)?)
}

fn is_volatile(expr: &Expr) -> Result<bool> {
    let volatile = |expr: &Expr| {
        Ok(matches!(expr, Expr::ScalarFunction(call) if call.func.signature().volatility == Volatility::Volatile))
    };
    Ok(expr.exists(volatile)?)
}

fn default_now(session: &PlanSession, column: &Column) -> Result<DefaultNow> {
    let Some(text) = &column.default else { return Ok(DefaultNow { literal: None, differs: false }) };
    let explained = |error: drsdb_core::Error| {
        let wire = error.to_wire();
        WireError { message: format!("DEFAULT {text} of column {}: {}", column.name, wire.message), ..wire }
            .with_field("column", &column.name)
    };
    evaluated(session, column, text).map_err(|error| explained(error).into())
}

fn evaluated(session: &PlanSession, column: &Column, text: &str) -> Result<DefaultNow> {
    let schema = DFSchema::empty();
    let logical = planned(session, parse_expression(text)?, &schema)?;
    let differs = is_volatile(&logical)?;
    // now() and its like exist only until an expression is simplified.
    let options = session.state.config_options();
    let context = SimplifyContext::builder()
        .with_schema(Arc::new(schema.clone()))
        .with_config_options(Arc::clone(options))
        .with_query_execution_start_time(session.state.execution_props().query_execution_start_time)
        .build();
    let simplifier = ExprSimplifier::new(context);
    let checked = simplifier
        .coerce(logical, &schema)?
        .transform_up(|expr| CheckIntegers::default().rewrite(expr, &schema, options))?;
    let physical = session.state.create_physical_expr(simplifier.simplify(checked.data)?, &schema)?;
    let one = RecordBatchOptions::new().with_row_count(Some(1));
    let row = RecordBatch::try_new_with_options(Arc::new(Schema::empty()), Vec::new(), &one)?;
    let mut value: ArrayRef = physical.evaluate(&row)?.into_array(1)?;
    if let DataType::Timestamp(TimeUnit::Nanosecond, zone) = value.data_type() {
        value = cast(&value, &DataType::Timestamp(TimeUnit::Microsecond, zone.clone()))?;
    }
    check_assignable(value.data_type(), column)?;
    let value = stored_column(&convert_column(&value, column, 1)?, column.sql_type)?;
    let literal = match value.is_null(0) {
        true => None,
        false => Some(initial_literal(column.sql_type, &value)?),
    };
    Ok(DefaultNow { literal, differs })
}
