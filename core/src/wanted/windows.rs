//! Functions over windows, which end with their query and whose values count.
//!
//! DataFusion evaluates a window in one call for all rows of a partition, or of a batch, and no memory pool sees the values
//! that it keeps meanwhile: `string_agg(x, '') OVER (ORDER BY id)` makes the square of what it reads. So the index server
//! replaces functions over windows by these, which every storage server knows for each query. They have other names,
//!
//! - `..._over_window` where rows go on while others come,
//! - `..._over_partition` where all rows and values stay until the last one is known.
//!
//! An aggregate among them is not turned round either. To save a sort, DataFusion would read a window from its end when its
//! rows come sorted that way. What `array_agg` collects is in the wrong order then; and a frame from the start to the current
//! row becomes one that rows leave again, which some aggregates cannot do, and sums of floats cannot do exactly.

use std::{
    collections::HashMap,
    hash::{Hash, Hasher},
    mem,
    ops::Range,
    sync::Arc,
};

use arrow::{
    array::{Array, ArrayRef, AsArray},
    buffer::Buffer,
    compute::SortOptions,
    datatypes::{DataType, FieldRef},
};
use datafusion::{
    catalog::Session,
    common::{Result as DfResult, ScalarValue, internal_datafusion_err},
    execution::{
        FunctionRegistry, SessionState,
        memory_pool::{MemoryConsumer, MemoryPool, MemoryReservation},
    },
    logical_expr::{
        Accumulator, AggregateUDF, AggregateUDFImpl, Documentation, Expr, LimitEffect, PartitionEvaluator,
        ReversedUDAF, ReversedUDWF, SetMonotonicity, Signature, WindowFunctionDefinition, WindowUDF, WindowUDFImpl,
        expr::WindowFunctionParams,
        function::{
            AccumulatorArgs, ExpressionArgs, PartitionEvaluatorArgs, StateFieldsArgs, WindowFunctionSimplification,
            WindowUDFFieldArgs,
        },
        utils::AggregateOrderSensitivity,
        window_state::WindowAggState,
    },
    physical_expr::PhysicalExpr,
};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::still_wanted;
use crate::window_functions::{reads_frames, reads_rows};

/// The pool is asked for this much at a time.
const STEP: usize = 1 << 20;

/// What the windows of a query share on one server.
#[derive(Debug)]
struct Query {
    over: CancellationToken,
    pool: Arc<dyn MemoryPool>,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    bytes: usize,
    /// Of at least so many bytes. Most queries need none.
    reservation: Option<MemoryReservation>,
}

impl Query {
    fn still_wanted(&self) -> DfResult<()> {
        still_wanted(&self.over)
    }

    fn hold(&self, bytes: usize) -> DfResult<()> {
        let mut held = self.held.lock();
        let total = held.bytes.saturating_add(bytes);
        let reservation = held
            .reservation
            .get_or_insert_with(|| MemoryConsumer::new("values of window functions").register(&self.pool));
        if total > reservation.size() {
            reservation.try_grow((total - reservation.size()).max(STEP))?;
        }
        held.bytes = total;
        Ok(())
    }

    fn let_go(&self, bytes: usize) {
        let mut held = self.held.lock();
        held.bytes -= bytes;
        if let Some(reservation) = &held.reservation
            && reservation.size() > held.bytes + 2 * STEP
        {
            reservation.resize(held.bytes);
        }
    }
}

/// The values that a window has made of the rows it was given last.
#[derive(Debug)]
struct Values {
    query: Arc<Query>,
    /// They stay until the query ends.
    stay: bool,
    bytes: usize,
    /// What the rows lie in. It is kept, so that no other rows come to lie there.
    rows: Option<Buffer>,
}

impl Values {
    fn new(query: &Arc<Query>, stay: bool) -> Self {
        Self { query: Arc::clone(query), stay, bytes: 0, rows: None }
    }

    /// Values of these rows follow. Those of others have gone on by then.
    fn follow(&mut self, rows: &[ArrayRef]) {
        if self.stay {
            return;
        }
        let Some(rows) = rows.first().and_then(lies_in) else { return };
        if self.rows.as_ref().is_none_or(|last| last.data_ptr() != rows.data_ptr()) {
            self.rows = Some(rows);
            self.query.let_go(mem::take(&mut self.bytes));
        }
    }

    fn add(&mut self, bytes: usize) -> DfResult<()> {
        // They are copied into a column, and that into the batch that goes on.
        let bytes = bytes.saturating_mul(3);
        self.query.hold(bytes)?;
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Values {
    fn drop(&mut self) {
        if !self.stay {
            self.query.let_go(self.bytes);
        }
    }
}

/// Where an array begins. This is asked for each row: `to_data` would copy the list of all buffers of a view.
fn lies_in(array: &ArrayRef) -> Option<Buffer> {
    Some(match array.data_type() {
        DataType::Utf8View => array.as_string_view().views().inner().clone(),
        DataType::BinaryView => array.as_binary_view().views().inner().clone(),
        DataType::Utf8 => array.as_string::<i32>().offsets().inner().inner().clone(),
        DataType::LargeUtf8 => array.as_string::<i64>().offsets().inner().inner().clone(),
        DataType::Binary => array.as_binary::<i32>().offsets().inner().inner().clone(),
        DataType::LargeBinary => array.as_binary::<i64>().offsets().inner().inner().clone(),
        DataType::List(_) => array.as_list::<i32>().offsets().inner().inner().clone(),
        DataType::LargeList(_) => array.as_list::<i64>().offsets().inner().inner().clone(),
        _ => return array.to_data().buffers().first().cloned(),
    })
}

fn is_of_any_length(data_type: &DataType) -> bool {
    !matches!(data_type, DataType::Null | DataType::Boolean | DataType::FixedSizeBinary(_)) && !data_type.is_primitive()
}

/// Bytes of a value of any length.
fn bytes_of(value: &ScalarValue) -> usize {
    let slice = |array: &dyn Array| array.to_data().get_slice_memory_size().unwrap_or(0);
    let bytes = match value {
        ScalarValue::Utf8(text) | ScalarValue::LargeUtf8(text) | ScalarValue::Utf8View(text) => {
            text.as_ref().map_or(0, String::len)
        }
        ScalarValue::Binary(bytes) | ScalarValue::LargeBinary(bytes) | ScalarValue::BinaryView(bytes) => {
            bytes.as_ref().map_or(0, Vec::len)
        }
        ScalarValue::List(list) => slice(list.as_ref()),
        ScalarValue::LargeList(list) => slice(list.as_ref()),
        ScalarValue::FixedSizeList(list) => slice(list.as_ref()),
        ScalarValue::Struct(fields) => slice(fields.as_ref()),
        ScalarValue::Map(map) => slice(map.as_ref()),
        ScalarValue::Dictionary(_, value) => return bytes_of(value),
        _ => 0,
    };
    bytes + size_of::<ScalarValue>()
}

/// A function under another name, for the windows of one query.
#[derive(Debug)]
struct OverWindow<F> {
    name: String,
    function: Arc<F>,
    stay: bool,
    query: Arc<Query>,
}

// There is one of a name in each session.
impl<F> PartialEq for OverWindow<F> {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl<F> Eq for OverWindow<F> {}

impl<F> Hash for OverWindow<F> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

fn name_over(function: &str, stay: bool) -> String {
    let suffix = if stay { "over_partition" } else { "over_window" };
    format!("{function}_{suffix}")
}

/// Registers the functions for a session whose query is over when `over` is cancelled.
pub(super) fn register(state: &mut SessionState, over: CancellationToken) -> DfResult<()> {
    let pool = Arc::clone(&state.runtime_env().memory_pool);
    let query = Arc::new(Query { over, pool, held: Mutex::default() });
    // Under its own name each: there are aliases.
    let aggregates = state.aggregate_functions().iter().filter(|(name, function)| *name == function.name());
    let aggregates: Vec<_> = aggregates.map(|(_, function)| Arc::clone(function)).collect();
    let framed = state.window_functions().iter().filter(|(name, _)| reads_frames(name));
    let framed: Vec<_> = framed.map(|(_, function)| Arc::clone(function)).collect();
    for stay in [false, true] {
        for function in &aggregates {
            let (name, function) = (name_over(function.name(), stay), Arc::clone(function));
            let over_window = OverWindow { name, function, stay, query: Arc::clone(&query) };
            state.register_udaf(Arc::new(AggregateUDF::from(over_window)))?;
        }
        for function in &framed {
            let (name, function) = (name_over(function.name(), stay), Arc::clone(function));
            let over_window = OverWindow { name, function, stay, query: Arc::clone(&query) };
            state.register_udwf(Arc::new(WindowUDF::from(over_window)))?;
        }
    }
    Ok(())
}

/// The window functions of one node of a plan, replaced by those of the session. Their columns keep their names.
pub(super) fn replaced(calls: Vec<Expr>, session: &dyn Session) -> DfResult<Vec<Expr>> {
    // DataFusion evaluates the whole partition if one of them needs that.
    let stay = !calls.iter().all(lets_rows_go);
    calls.into_iter().map(|call| replace(call, stay, session)).collect()
}

fn lets_rows_go(expr: &Expr) -> bool {
    match expr {
        Expr::Alias(alias) => lets_rows_go(&alias.expr),
        Expr::WindowFunction(call) => match &call.fun {
            WindowFunctionDefinition::WindowUDF(function) if reads_rows(function.name()) => true,
            WindowFunctionDefinition::WindowUDF(function) if !reads_frames(function.name()) => false,
            _ => !call.params.window_frame.end_bound.is_unbounded(),
        },
        _ => true,
    }
}

fn replace(expr: Expr, stay: bool, session: &dyn Session) -> DfResult<Expr> {
    let name = expr.schema_name().to_string();
    let mut call = match expr {
        Expr::Alias(alias) => return Ok(replace(*alias.expr, stay, session)?.unalias().alias(name)),
        Expr::WindowFunction(call) => call,
        other => return Ok(other),
    };
    match &mut call.fun {
        WindowFunctionDefinition::AggregateUDF(function) => {
            *function = known(session.aggregate_functions(), function.name(), stay)?;
        }
        WindowFunctionDefinition::WindowUDF(function) if reads_frames(function.name()) => {
            *function = known(session.window_functions(), function.name(), stay)?;
        }
        WindowFunctionDefinition::WindowUDF(_) => {}
    }
    Ok(Expr::WindowFunction(call).alias(name))
}

fn known<F>(functions: &HashMap<String, Arc<F>>, name: &str, stay: bool) -> DfResult<Arc<F>> {
    let name = name_over(name, stay);
    functions.get(&name).cloned().ok_or_else(|| internal_datafusion_err!("a session without {name}"))
}

impl AggregateUDFImpl for OverWindow<AggregateUDF> {
    fn reverse_expr(&self) -> ReversedUDAF {
        ReversedUDAF::NotSupported
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn window_function_schema_name(&self, params: &WindowFunctionParams) -> DfResult<String> {
        self.function.window_function_schema_name(params)
    }

    fn window_function_display_name(&self, params: &WindowFunctionParams) -> DfResult<String> {
        self.function.window_function_display_name(params)
    }

    fn signature(&self) -> &Signature {
        self.function.signature()
    }

    fn coerce_types(&self, types: &[DataType]) -> DfResult<Vec<DataType>> {
        self.function.coerce_types(types)
    }

    fn return_type(&self, types: &[DataType]) -> DfResult<DataType> {
        self.function.return_type(types)
    }

    fn return_field(&self, arguments: &[FieldRef]) -> DfResult<FieldRef> {
        self.function.return_field(arguments)
    }

    fn is_nullable(&self) -> bool {
        self.function.is_nullable()
    }

    fn accumulator(&self, arguments: AccumulatorArgs) -> DfResult<Box<dyn Accumulator>> {
        let any_length = is_of_any_length(arguments.return_type());
        Ok(Box::new(self.watched(self.function.accumulator(arguments)?, any_length)))
    }

    fn create_sliding_accumulator(&self, arguments: AccumulatorArgs) -> DfResult<Box<dyn Accumulator>> {
        let any_length = is_of_any_length(arguments.return_type());
        Ok(Box::new(self.watched(self.function.create_sliding_accumulator(arguments)?, any_length)))
    }

    fn state_fields(&self, arguments: StateFieldsArgs) -> DfResult<Vec<FieldRef>> {
        self.function.state_fields(arguments)
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        self.function.order_sensitivity()
    }

    fn set_monotonicity(&self, data_type: &DataType) -> SetMonotonicity {
        self.function.inner().set_monotonicity(data_type)
    }

    fn default_value(&self, data_type: &DataType) -> DfResult<ScalarValue> {
        self.function.default_value(data_type)
    }

    fn supports_null_handling_clause(&self) -> bool {
        self.function.supports_null_handling_clause()
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.function.documentation()
    }
}

impl<F> OverWindow<F> {
    fn watched<W>(&self, inner: W, any_length: bool) -> Watched<W> {
        Watched { inner, any_length, values: Values::new(&self.query, self.stay), new_rows: 0 }
    }
}

/// What evaluates a window, watched.
#[derive(Debug)]
struct Watched<W> {
    inner: W,
    /// Whether its values can be of any length. Of others, there is nothing to count for each row.
    any_length: bool,
    values: Values,
    /// Since a value was last made. Each row that a frame grows by gets one: if the frame is the same for all of them, DataFusion
    /// asks for it only once.
    new_rows: usize,
}

impl Accumulator for Watched<Box<dyn Accumulator>> {
    fn update_batch(&mut self, values: &[ArrayRef]) -> DfResult<()> {
        self.values.query.still_wanted()?;
        self.inner.update_batch(values)?;
        if self.any_length {
            self.new_rows += values.first().map_or(0, |values| values.len());
            self.values.follow(values);
        }
        Ok(())
    }

    fn evaluate(&mut self) -> DfResult<ScalarValue> {
        self.values.query.still_wanted()?;
        let value = self.inner.evaluate()?;
        if self.any_length {
            let rows = mem::take(&mut self.new_rows);
            self.values.add(bytes_of(&value).saturating_mul(rows))?;
        }
        Ok(value)
    }

    fn size(&self) -> usize {
        self.inner.size()
    }

    fn state(&mut self) -> DfResult<Vec<ScalarValue>> {
        self.inner.state()
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> DfResult<()> {
        self.inner.merge_batch(states)
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> DfResult<()> {
        self.inner.retract_batch(values)
    }

    fn supports_retract_batch(&self) -> bool {
        self.inner.supports_retract_batch()
    }
}

// Every method is here: a new one of the trait must not be answered by its default.
#[warn(clippy::missing_trait_methods)]
impl WindowUDFImpl for OverWindow<WindowUDF> {
    fn name(&self) -> &str {
        &self.name
    }

    fn aliases(&self) -> &[String] {
        &[]
    }

    fn signature(&self) -> &Signature {
        self.function.signature()
    }

    fn expressions(&self, arguments: ExpressionArgs) -> Vec<Arc<dyn PhysicalExpr>> {
        self.function.expressions(arguments)
    }

    fn partition_evaluator(&self, arguments: PartitionEvaluatorArgs) -> DfResult<Box<dyn PartitionEvaluator>> {
        Ok(Box::new(self.watched(self.function.partition_evaluator_factory(arguments)?, true)))
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
        self.function.reverse_expr()
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.function.documentation()
    }

    fn limit_effect(&self, arguments: &[Arc<dyn PhysicalExpr>]) -> LimitEffect {
        self.function.inner().limit_effect(arguments)
    }
}

#[warn(clippy::missing_trait_methods)]
impl PartitionEvaluator for Watched<Box<dyn PartitionEvaluator>> {
    fn memoize(&mut self, state: &mut WindowAggState) -> DfResult<()> {
        self.inner.memoize(state)
    }

    fn get_range(&self, row: usize, rows: usize) -> DfResult<Range<usize>> {
        self.inner.get_range(row, rows)
    }

    fn is_causal(&self) -> bool {
        self.inner.is_causal()
    }

    fn evaluate_all(&mut self, values: &[ArrayRef], rows: usize) -> DfResult<ArrayRef> {
        self.values.query.still_wanted()?;
        self.inner.evaluate_all(values, rows)
    }

    fn evaluate(&mut self, values: &[ArrayRef], range: &Range<usize>) -> DfResult<ScalarValue> {
        self.values.query.still_wanted()?;
        let value = self.inner.evaluate(values, range)?;
        if is_of_any_length(&value.data_type()) {
            self.values.follow(values);
            self.values.add(bytes_of(&value))?;
        }
        Ok(value)
    }

    fn evaluate_all_with_rank(&self, rows: usize, ranks: &[Range<usize>]) -> DfResult<ArrayRef> {
        self.inner.evaluate_all_with_rank(rows, ranks)
    }

    fn supports_bounded_execution(&self) -> bool {
        self.inner.supports_bounded_execution()
    }

    fn uses_window_frame(&self) -> bool {
        self.inner.uses_window_frame()
    }

    fn include_rank(&self) -> bool {
        self.inner.include_rank()
    }
}
