//! Aggregates over windows that are not turned round.
//!
//! To save a sort, DataFusion reads a window from its end when its rows come sorted that way. What `array_agg` collects is in
//! the wrong order then; and a frame from the start to the current row becomes one that rows leave again, which some
//! aggregates cannot do, and sums of floats cannot do exactly.

use std::sync::Arc;

use arrow::datatypes::{DataType, FieldRef};
use datafusion::{
    common::{Result as DfResult, ScalarValue},
    logical_expr::{
        Accumulator, AggregateUDF, AggregateUDFImpl, Documentation, ReversedUDAF, SetMonotonicity, Signature,
        expr::WindowFunctionParams,
        function::{AccumulatorArgs, StateFieldsArgs},
        utils::AggregateOrderSensitivity,
    },
};

/// Another function under its own name, by which a storage server finds that one. It is used over windows only, so that
/// nothing here is about groups.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Onward(Arc<AggregateUDF>);

/// Whether the function had to be changed.
pub(super) fn keep_direction(function: &mut Arc<AggregateUDF>) -> bool {
    if matches!(function.reverse_udf(), ReversedUDAF::NotSupported) {
        return false;
    }
    *function = Arc::new(AggregateUDF::from(Onward(Arc::clone(function))));
    true
}

impl AggregateUDFImpl for Onward {
    fn reverse_expr(&self) -> ReversedUDAF {
        ReversedUDAF::NotSupported
    }

    fn name(&self) -> &str {
        self.0.name()
    }

    fn aliases(&self) -> &[String] {
        self.0.aliases()
    }

    fn window_function_schema_name(&self, params: &WindowFunctionParams) -> DfResult<String> {
        self.0.inner().window_function_schema_name(params)
    }

    fn window_function_display_name(&self, params: &WindowFunctionParams) -> DfResult<String> {
        self.0.inner().window_function_display_name(params)
    }

    fn signature(&self) -> &Signature {
        self.0.signature()
    }

    fn coerce_types(&self, types: &[DataType]) -> DfResult<Vec<DataType>> {
        self.0.inner().coerce_types(types)
    }

    fn return_type(&self, types: &[DataType]) -> DfResult<DataType> {
        self.0.inner().return_type(types)
    }

    fn return_field(&self, arguments: &[FieldRef]) -> DfResult<FieldRef> {
        self.0.inner().return_field(arguments)
    }

    fn is_nullable(&self) -> bool {
        self.0.inner().is_nullable()
    }

    fn accumulator(&self, arguments: AccumulatorArgs) -> DfResult<Box<dyn Accumulator>> {
        self.0.inner().accumulator(arguments)
    }

    fn create_sliding_accumulator(&self, arguments: AccumulatorArgs) -> DfResult<Box<dyn Accumulator>> {
        self.0.inner().create_sliding_accumulator(arguments)
    }

    fn state_fields(&self, arguments: StateFieldsArgs) -> DfResult<Vec<FieldRef>> {
        self.0.inner().state_fields(arguments)
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        self.0.inner().order_sensitivity()
    }

    fn set_monotonicity(&self, data_type: &DataType) -> SetMonotonicity {
        self.0.inner().set_monotonicity(data_type)
    }

    fn default_value(&self, data_type: &DataType) -> DfResult<ScalarValue> {
        self.0.inner().default_value(data_type)
    }

    fn supports_null_handling_clause(&self) -> bool {
        self.0.inner().supports_null_handling_clause()
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.0.inner().documentation()
    }
}
