//! Ends work that nobody waits for any more, where dropping it is not enough.
//!
//! A query that is cancelled is dropped, and its tasks end when they next return to the runtime. A join whose filter lets
//! nothing through returns only when it has compared every pair. So the index server wraps the filters of joins into
//! [`WhileWanted`], which every storage server knows as a function of its own for each query: it hands on what it is
//! given, and is an error once the query is over.

use std::{
    hash::{Hash, Hasher},
    sync::Arc,
};

use arrow::datatypes::DataType;
use datafusion::{
    common::{Result as DfResult, exec_err, tree_node::Transformed},
    execution::{FunctionRegistry, SessionState},
    logical_expr::{
        ColumnarValue, Expr, LogicalPlan, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
        expr::ScalarFunction,
    },
    optimizer::{ApplyOrder, OptimizerConfig, OptimizerRule},
};
use drsdb_proto::{ErrorCode, WireError};
use tokio_util::sync::CancellationToken;

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
        if self.over.is_cancelled() {
            let error = WireError::new(ErrorCode::Cancelled, "nobody waits for the query any more");
            return Err(Error::from(error).into_datafusion());
        }
        match arguments.args.into_iter().next() {
            Some(value) => Ok(value),
            None => exec_err!("{NAME} takes one argument"),
        }
    }
}

/// Registers the function for a session whose query is over when `over` is cancelled.
pub fn register_wanted(state: &mut SessionState, over: CancellationToken) -> DfResult<()> {
    state.register_udf(Arc::new(ScalarUDF::from(WhileWanted::new(over))))?;
    Ok(())
}

/// Wraps the filters of joins, when all other rules have had them.
#[derive(Debug)]
pub struct EndUnwantedJoins(Arc<ScalarUDF>);

impl Default for EndUnwantedJoins {
    fn default() -> Self {
        Self(Arc::new(ScalarUDF::from(WhileWanted::new(CancellationToken::new()))))
    }
}

impl OptimizerRule for EndUnwantedJoins {
    fn name(&self) -> &str {
        "end_unwanted_joins"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::BottomUp)
    }

    fn rewrite(&self, plan: LogicalPlan, _: &dyn OptimizerConfig) -> DfResult<Transformed<LogicalPlan>> {
        let LogicalPlan::Join(mut join) = plan else { return Ok(Transformed::no(plan)) };
        let wrapped = |filter: &Expr| matches!(filter, Expr::ScalarFunction(call) if call.func.name() == NAME);
        match join.filter.take() {
            Some(filter) if !wrapped(&filter) => {
                let call = ScalarFunction::new_udf(Arc::clone(&self.0), vec![filter]);
                join.filter = Some(Expr::ScalarFunction(call));
                Ok(Transformed::yes(LogicalPlan::Join(join)))
            }
            filter => {
                join.filter = filter;
                Ok(Transformed::no(LogicalPlan::Join(join)))
            }
        }
    }
}
