//! Ends work that nobody waits for any more, where dropping it is not enough.
//!
//! A query that is cancelled is dropped, and its tasks end when they next return to the runtime. A join whose filter lets
//! nothing through returns only when it has compared every pair, and a window when it has evaluated the last row. So the
//! index server wraps the filters of joins into [`WhileWanted`], which every storage server knows as a function of its own
//! for each query: it hands on what it is given, and is an error once the query is over. What is evaluated over windows
//! is replaced by functions that do the same ([`windows`]), and other nodes are put between those of the plan ([`pass`]).

mod pass;
mod windows;

use std::{
    hash::{Hash, Hasher},
    sync::Arc,
};

use arrow::datatypes::DataType;
use datafusion::{
    catalog::Session,
    common::{
        Result as DfResult, exec_err, internal_datafusion_err,
        tree_node::{Transformed, TransformedResult},
    },
    execution::{FunctionRegistry, SessionState},
    logical_expr::{
        ColumnarValue, Expr, LogicalPlan, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
        expr::ScalarFunction,
    },
};
use drsdb_proto::{ErrorCode, WireError};
use tokio_util::sync::CancellationToken;

pub(crate) use self::pass::Sliced;
pub use self::pass::{Duty, PassExec, count_and_yield};
use crate::Error;

const NAME: &str = "while_wanted";

/// `while_wanted(BOOLEAN) -> BOOLEAN`: what it is given, until the query is over.
#[derive(Debug)]
pub struct WhileWanted {
    over: CancellationToken,
    signature: Signature,
}

impl WhileWanted {
    fn new(over: CancellationToken) -> Self {
        Self { over, signature: Signature::exact(vec![DataType::Boolean], Volatility::Volatile) }
    }
}

// There is one in each session.
impl PartialEq for WhileWanted {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for WhileWanted {}

impl Hash for WhileWanted {
    fn hash<H: Hasher>(&self, state: &mut H) {
        NAME.hash(state);
    }
}

impl ScalarUDFImpl for WhileWanted {
    fn name(&self) -> &str {
        NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> DfResult<DataType> {
        Ok(DataType::Boolean)
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> DfResult<ColumnarValue> {
        still_wanted(&self.over)?;
        match arguments.args.into_iter().next() {
            Some(value) => Ok(value),
            None => exec_err!("{NAME} takes one argument"),
        }
    }
}

fn still_wanted(over: &CancellationToken) -> DfResult<()> {
    if over.is_cancelled() {
        let error = WireError::new(ErrorCode::Cancelled, "nobody waits for the query any more");
        return Err(Error::from(error).into_datafusion());
    }
    Ok(())
}

/// Registers the functions for a session whose query is over when `over` is cancelled.
pub fn register_wanted(state: &mut SessionState, over: CancellationToken) -> DfResult<()> {
    state.register_udf(Arc::new(ScalarUDF::from(WhileWanted::new(over.clone()))))?;
    windows::register(state, over)
}

/// Wraps the filters of a plan's joins, and replaces its functions over windows, by functions of the session. The plan must
/// be optimized already: what is wrapped is no key of a join to any rule, and a join without keys compares every pair.
pub fn end_unwanted(plan: LogicalPlan, session: &dyn Session) -> DfResult<LogicalPlan> {
    let function = session.scalar_functions().get(NAME);
    let function = function.ok_or_else(|| internal_datafusion_err!("a session without {NAME}"))?;
    plan.transform_up_with_subqueries(|node| match node {
        LogicalPlan::Join(mut join) => {
            let Some(filter) = join.filter.take() else { return Ok(Transformed::no(LogicalPlan::Join(join))) };
            let call = ScalarFunction::new_udf(Arc::clone(function), vec![filter]);
            join.filter = Some(Expr::ScalarFunction(call));
            Ok(Transformed::yes(LogicalPlan::Join(join)))
        }
        LogicalPlan::Window(mut window) => {
            window.window_expr = windows::replaced(window.window_expr, session)?;
            Ok(Transformed::yes(LogicalPlan::Window(window)))
        }
        other => Ok(Transformed::no(other)),
    })
    .data()
}

#[cfg(test)]
mod tests;
