//! Window functions in a form that survives the way to a storage server.
//!
//! The wire form of a plan has the name of a window function and its arguments. Two things that DataFusion keeps beside them
//! are lost: IGNORE NULLS, and that the optimizer has turned a window round, to read rows that are sorted the other way. So
//! the functions that depend on either are registered here anew: under their own names they cannot be turned round, and
//! [`ignoring_nulls`] has another name for each.
//!
//! What aggregates lose over windows is the index server's business.

use std::sync::Arc;

use arrow::{
    array::ArrayRef,
    compute::SortOptions,
    datatypes::{DataType, FieldRef},
};
use datafusion::{
    common::{Result as DfResult, ScalarValue},
    execution::{FunctionRegistry, SessionState},
    functions_window::{
        lead_lag::{lag_udwf, lead_udwf},
        nth_value::{first_value_udwf, last_value_udwf, nth_value_udwf},
    },
    logical_expr::{
        Documentation, LimitEffect, PartitionEvaluator, ReversedUDWF, Signature, WindowUDF, WindowUDFImpl,
        function::{ExpressionArgs, PartitionEvaluatorArgs, WindowFunctionSimplification, WindowUDFFieldArgs},
    },
    physical_expr::{PhysicalExpr, expressions::Literal},
};

/// Whether a window function looks at the rows of a frame.
pub(crate) fn reads_frames(name: &str) -> bool {
    let name = name.strip_suffix(IGNORE_NULLS).unwrap_or(name);
    matches!(name, "first_value" | "last_value" | "nth_value")
}

/// Whether a window function needs of a row no more than those beside it.
pub(crate) fn reads_rows(name: &str) -> bool {
    matches!(name, "row_number" | "rank" | "dense_rank" | "lag" | "lead")
}

const IGNORE_NULLS: &str = "_ignore_nulls";

/// One of DataFusion's functions, whose name says all that it does.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Named {
    name: String,
    function: Arc<WindowUDF>,
    ignores_nulls: bool,
}

impl Named {
    fn new(function: Arc<WindowUDF>, ignores_nulls: bool) -> Self {
        let name = function.name();
        let name = if ignores_nulls { format!("{name}{IGNORE_NULLS}") } else { name.to_owned() };
        Self { name, function, ignores_nulls }
    }

    /// It is `lag` or `lead`.
    fn shifts(&self) -> bool {
        matches!(self.function.name(), "lag" | "lead")
    }
}

fn functions() -> [Arc<WindowUDF>; 5] {
    [lag_udwf(), lead_udwf(), first_value_udwf(), last_value_udwf(), nth_value_udwf()]
}

/// Registers the functions, so that SQL and plans that name them find them.
pub(crate) fn register_window_functions(state: &mut SessionState) -> DfResult<()> {
    for function in functions() {
        for ignores_nulls in [false, true] {
            state.register_udwf(Arc::new(WindowUDF::from(Named::new(Arc::clone(&function), ignores_nulls))))?;
        }
    }
    Ok(())
}

/// The function of that name, with IGNORE NULLS. `None`: there is no value that it could ignore.
pub fn ignoring_nulls(name: &str) -> Option<Arc<WindowUDF>> {
    let function = functions().into_iter().find(|function| function.name() == name)?;
    Some(Arc::new(WindowUDF::from(Named::new(function, true))))
}

// Every method is here: a new one of the trait must not be answered by its default.
#[warn(clippy::missing_trait_methods)]
impl WindowUDFImpl for Named {
    fn name(&self) -> &str {
        &self.name
    }

    fn aliases(&self) -> &[String] {
        if self.ignores_nulls { &[] } else { self.function.aliases() }
    }

    fn signature(&self) -> &Signature {
        self.function.signature()
    }

    fn expressions(&self, arguments: ExpressionArgs) -> Vec<Arc<dyn PhysicalExpr>> {
        self.function.expressions(arguments)
    }

    fn partition_evaluator(&self, arguments: PartitionEvaluatorArgs) -> DfResult<Box<dyn PartitionEvaluator>> {
        let ignores_nulls = self.ignores_nulls || arguments.ignore_nulls();
        let (exprs, fields) = (arguments.input_exprs(), arguments.input_fields());
        let arguments = PartitionEvaluatorArgs::new(exprs, fields, false, ignores_nulls);
        let evaluator = self.function.partition_evaluator_factory(arguments)?;
        if ignores_nulls && self.shifts() {
            return Ok(Box::new(WholePartition(evaluator)));
        }
        Ok(evaluator)
    }

    fn simplify(&self) -> Option<WindowFunctionSimplification> {
        self.function.simplify()
    }

    fn field(&self, arguments: WindowUDFFieldArgs) -> DfResult<FieldRef> {
        self.function.field(arguments)
    }

    fn sort_options(&self) -> Option<SortOptions> {
        self.function.sort_options()
    }

    fn coerce_types(&self, types: &[DataType]) -> DfResult<Vec<DataType>> {
        self.function.coerce_types(types)
    }

    fn reverse_expr(&self) -> ReversedUDWF {
        ReversedUDWF::NotSupported
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.function.documentation()
    }

    fn limit_effect(&self, arguments: &[Arc<dyn PhysicalExpr>]) -> LimitEffect {
        if !self.shifts() {
            return self.function.inner().limit_effect(arguments);
        }
        if self.ignores_nulls {
            return LimitEffect::Unknown;
        }
        // DataFusion's lag says that it never reads ahead. A negative offset does.
        let offset = match arguments {
            [_] => Some(1),
            [_, offset, ..] => integer(offset),
            [] => None,
        };
        let ahead = if self.function.name() == "lag" { offset.and_then(i64::checked_neg) } else { offset };
        ahead.map_or(LimitEffect::Unknown, |rows| LimitEffect::Relative(usize::try_from(rows).unwrap_or(0)))
    }
}

fn integer(expr: &Arc<dyn PhysicalExpr>) -> Option<i64> {
    match expr.downcast_ref::<Literal>()?.value() {
        ScalarValue::Int64(value) => *value,
        _ => None,
    }
}

/// Looks at all rows of a partition at once. One after the other, DataFusion's `lead` loses count of the values that are not
/// NULL when its offset is above 1.
#[derive(Debug)]
struct WholePartition(Box<dyn PartitionEvaluator>);

impl PartitionEvaluator for WholePartition {
    fn evaluate_all(&mut self, values: &[ArrayRef], rows: usize) -> DfResult<ArrayRef> {
        self.0.evaluate_all(values, rows)
    }
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::{Array, Int64Array, RecordBatch},
        compute::concat_batches,
    };
    use datafusion::{
        physical_plan::{ExecutionPlan, collect},
        prelude::{SessionConfig, SessionContext},
    };
    use datafusion_proto::bytes::{physical_plan_from_bytes, physical_plan_to_bytes};

    use super::*;
    use crate::checked_arithmetic::register_functions;

    /// `t`: the ids 1 to 7, and `a`, which is NULL for some.
    fn session() -> SessionContext {
        let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(1));
        let mut state = context.state();
        register_functions(&mut state).unwrap();
        let context = SessionContext::new_with_state(state);
        let ids = Int64Array::from_iter_values(1..=7);
        let values = Int64Array::from(vec![Some(10), Some(20), Some(30), Some(40), None, Some(50), Some(60)]);
        let batch = RecordBatch::try_from_iter([("id", Arc::new(ids) as ArrayRef), ("a", Arc::new(values) as _)]);
        context.register_batch("t", batch.unwrap()).unwrap();
        context
    }

    async fn plan(context: &SessionContext, sql: &str) -> Arc<dyn ExecutionPlan> {
        context.sql(sql).await.unwrap().create_physical_plan().await.unwrap()
    }

    /// What a server answers that has got the plan from another one: the last column.
    async fn answered(sql: &str) -> Vec<Option<i64>> {
        let (index, storage) = (session(), session());
        let bytes = physical_plan_to_bytes(plan(&index, sql).await).unwrap();
        let decoded = physical_plan_from_bytes(&bytes, &storage.task_ctx()).unwrap();
        let schema = decoded.schema();
        let rows = concat_batches(&schema, &collect(decoded, storage.task_ctx()).await.unwrap()).unwrap();
        let last = rows.column(rows.num_columns() - 1).as_any().downcast_ref::<Int64Array>().unwrap();
        last.iter().collect()
    }

    #[tokio::test]
    async fn windows_of_both_directions_are_what_they_say_after_the_wire() {
        let beside = |call: &str| {
            format!("SELECT id, max(a) OVER (ORDER BY id DESC) AS m, {call} OVER (ORDER BY id) AS x FROM t ORDER BY id")
        };
        let ids = |first: i64, last: i64| (first..=last).map(Some);
        assert_eq!(answered(&beside("lag(id)")).await, std::iter::once(None).chain(ids(1, 6)).collect::<Vec<_>>());
        assert_eq!(answered(&beside("lead(id)")).await, ids(2, 7).chain([None]).collect::<Vec<_>>());
        assert_eq!(answered(&beside("lead(id, 2, 0)")).await, ids(3, 7).chain([Some(0); 2]).collect::<Vec<_>>());
        let second: Vec<_> = std::iter::once(None).chain([Some(2); 6]).collect();
        assert_eq!(answered(&beside("nth_value(id, 2)")).await, second);
        assert_eq!(answered(&beside("first_value(id)")).await, [Some(1); 7]);
        assert_eq!(answered(&beside("last_value(id)")).await, ids(1, 7).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn nulls_are_ignored_after_the_wire() {
        for (call, expected) in [
            ("lag_ignore_nulls(a)", [None, Some(10), Some(20), Some(30), Some(40), Some(40), Some(50)]),
            ("lead_ignore_nulls(a)", [Some(20), Some(30), Some(40), Some(50), Some(50), Some(60), None]),
            ("lead_ignore_nulls(a, 2)", [Some(30), Some(40), Some(50), Some(60), Some(60), None, None]),
            ("last_value_ignore_nulls(a)", [Some(10), Some(20), Some(30), Some(40), Some(40), Some(50), Some(60)]),
            ("nth_value_ignore_nulls(a, 5)", [None, None, None, None, None, Some(50), Some(50)]),
        ] {
            let sql = format!("SELECT id, {call} OVER (ORDER BY id) AS x FROM t ORDER BY id");
            assert_eq!(answered(&sql).await, expected, "{call}");
        }
    }

    #[tokio::test]
    async fn a_limit_leaves_the_rows_that_are_read_ahead() {
        for call in ["lag(id, -2)", "lead(id, 2)"] {
            let sql = format!(
                "SELECT id, {call} OVER (ORDER BY id ROWS UNBOUNDED PRECEDING) AS x FROM t ORDER BY id LIMIT 2"
            );
            assert_eq!(answered(&sql).await, [Some(3), Some(4)], "{call}");
        }
    }
}
