//! SQL expressions that are computed here, over rows on their way to storage: VALUES, DEFAULT, CHECK, RETURNING and the SET of
//! ON CONFLICT.

use std::{
    collections::VecDeque,
    ops::ControlFlow,
    sync::{Arc, OnceLock},
};

use arrow::{
    array::{ArrayRef, RecordBatch},
    compute::cast,
    datatypes::{DataType, TimeUnit},
};
use datafusion::{
    common::{
        DFSchema,
        tree_node::{Transformed, TreeNode},
    },
    execution::{FunctionRegistry, SessionState, SessionStateBuilder},
    logical_expr::{Expr, execution_props::ExecutionProps, expr_rewriter::FunctionRewrite, simplify::SimplifyContext},
    optimizer::simplify_expressions::ExprSimplifier,
    physical_expr::PhysicalExpr,
    prelude::col,
    sql::sqlparser::ast,
};
use drsdb_core::{
    ErrorCode, Result, WireError,
    checked_arithmetic::{CheckIntegers, register_functions},
    interval_order::CompareIntervals,
    query_session::{QueryOptions, session_config, session_like},
    v1,
};
use parking_lot::Mutex;

use crate::planner::{ParseIds, explain_column, exponents_in, simplify_apart, stay_approximate_expr};

/// Turns expressions into what computes them. `now()` is the same for all that one of these has made.
pub struct Expressions {
    state: Arc<SessionState>,
    started: ExecutionProps,
}

impl Expressions {
    /// For a statement with these options.
    pub fn new(options: &QueryOptions) -> Result<Self> {
        let state = session_with(options)?;
        let mut started = ExecutionProps::new();
        started.mark_start_execution(Arc::clone(state.config_options()));
        Ok(Self { state, started })
    }

    /// What computes `expr`, whose names are looked up in `names`, over batches of `schema`. Placeholders are the columns
    /// [`parameter_name`].
    pub fn compile(&self, expr: ast::Expr, names: &DFSchema, schema: &DFSchema) -> Result<Arc<dyn PhysicalExpr>> {
        let mut expr = ast::ExprWithAlias { expr, alias: None };
        let subquery = |part: &ast::Expr| match part {
            ast::Expr::Subquery(_) | ast::Expr::Exists { .. } | ast::Expr::InSubquery { .. } => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        };
        if ast::visit_expressions(&expr.expr, subquery).is_break() {
            return Err(WireError::new(ErrorCode::Unsupported, "a subquery is not done here")
                .with_hint("query its value first, or write it into an INSERT ... SELECT, UPDATE or MERGE")
                .into());
        }
        exponents_in(&mut expr.expr);
        let logical = self.state.create_logical_expr_from_sql_expr(expr, names).map_err(explain_column)?;
        let over_rows = |expr: &Expr| Ok(matches!(expr, Expr::AggregateFunction(_) | Expr::WindowFunction(_)));
        if logical.exists(over_rows)? {
            let message = "there are no rows here for an aggregate or window function";
            return Err(WireError::new(ErrorCode::InvalidArgument, message).with_hint("write a value").into());
        }
        let logical = logical.transform(|expr| match &expr {
            Expr::Placeholder(holder) => {
                let number = holder.id.trim_start_matches('$').parse().unwrap_or(0);
                Ok(Transformed::yes(col(parameter_name(number))))
            }
            _ => Ok(Transformed::no(expr)),
        })?;
        // now() and its like exist only until an expression is simplified; but what folds constants wraps integers around,
        // so they become checked ones before.
        let options = self.state.config_options();
        let context = SimplifyContext::builder()
            .with_schema(Arc::new(schema.clone()))
            .with_config_options(Arc::clone(options))
            .with_query_execution_start_time(self.started.query_execution_start_time)
            .build();
        let simplifier = ExprSimplifier::new(context);
        let approximate = stay_approximate_expr(logical.data, schema)?;
        let ids = approximate.transform_up(|expr| ParseIds.rewrite(expr, schema, options))?;
        let checked = simplifier
            .coerce(ids.data, schema)?
            .transform_up(|expr| CheckIntegers::default().rewrite(expr, schema, options))?
            .data
            .transform_up(|expr| CompareIntervals::default().rewrite(expr, schema, options))?;
        Ok(self.state.create_physical_expr(simplify_apart(&simplifier, checked.data)?, schema)?)
    }
}

/// Sessions that are kept: there are as many as there are time zones in use, nearly always.
const KEPT_SESSIONS: usize = 16;

/// A session with these options. To make one takes longer than to compile an expression or two.
fn session_with(options: &QueryOptions) -> Result<Arc<SessionState>> {
    static KEPT: Mutex<VecDeque<(v1::SessionOptions, Arc<SessionState>)>> = Mutex::new(VecDeque::new());
    let key = options.to_proto();
    if let Some((_, state)) = KEPT.lock().iter().find(|(known, _)| *known == key) {
        return Ok(Arc::clone(state));
    }
    let state = Arc::new(session_like(all_functions()?, session_config(options)?)?);
    let mut kept = KEPT.lock();
    if kept.len() >= KEPT_SESSIONS {
        kept.pop_front();
    }
    kept.push_back((key, Arc::clone(&state)));
    Ok(state)
}

/// A session that knows all functions.
fn all_functions() -> Result<&'static SessionState> {
    static ALL: OnceLock<SessionState> = OnceLock::new();
    if let Some(all) = ALL.get() {
        return Ok(all);
    }
    let mut state = SessionStateBuilder::new().with_default_features().build();
    register_functions(&mut state)?;
    state.register_function_rewrite(Arc::new(CheckIntegers::default()))?;
    state.register_function_rewrite(Arc::new(ParseIds))?;
    state.register_expr_planner(Arc::new(ParseIds))?;
    Ok(ALL.get_or_init(|| state))
}

/// The values of an expression for the rows of a batch.
pub fn evaluate(expr: &Arc<dyn PhysicalExpr>, batch: &RecordBatch) -> Result<ArrayRef> {
    let values = expr.evaluate(batch)?.into_array(batch.num_rows())?;
    match values.data_type() {
        // Expressions may compute with nanoseconds; columns have microseconds, as SQL's users know.
        DataType::Timestamp(TimeUnit::Nanosecond, zone) => {
            Ok(cast(&values, &DataType::Timestamp(TimeUnit::Microsecond, zone.clone()))?)
        }
        _ => Ok(values),
    }
}

/// The column that a statement's parameter is. A column's name in the statement would find it only by this name.
pub fn parameter_name(number: usize) -> String {
    format!("parameter_{number}")
}
