//! Functions whose result can be far larger than what they are given, held to a limit.
//!
//! `lpad('x', 2000000000)` is a short statement, and no memory pool sees what a function allocates: enough of it ends the
//! process. So the functions that make much of little are registered here anew. They work out first how many bytes a call
//! makes, of all rows of a batch, and refuse more than [`MAX_BYTES`].

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, Int64Array},
    compute::cast,
    datatypes::{DataType, FieldRef, Int64Type, IntervalMonthDayNanoType, TimeUnit},
};
use datafusion::{
    common::{ExprSchema, Result as DfResult, ScalarValue},
    config::ConfigOptions,
    error::DataFusionError,
    execution::{FunctionRegistry, SessionState},
    logical_expr::{
        ColumnarValue, Documentation, Expr, ExpressionPlacement, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF,
        ScalarUDFImpl, Signature, StructFieldMapping,
        interval_arithmetic::Interval,
        preimage::PreimageResult,
        simplify::{ExprSimplifyResult, SimplifyContext},
        sort_properties::{ExprProperties, SortProperties},
    },
};
use drsdb_proto::{ErrorCode, WireError};

use crate::Error;

/// What one call may make of the rows of a batch.
const MAX_BYTES: u64 = 64 << 20;

/// How the size of a result follows from the arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Growth {
    /// `repeat(text, count)`.
    Repeat,
    /// `lpad(text, length, ...)`.
    Pad,
    /// `replace(text, from, to)`.
    Replace,
    /// `range(start, stop, step)`, with or without the last.
    Range,
    /// `array_repeat(element, count)`.
    Elements,
    /// `array_resize(array, length, element)`.
    Resize,
    /// `array_to_string(array, separator)`.
    Join,
}

const FUNCTIONS: &[(&str, Growth)] = &[
    ("repeat", Growth::Repeat),
    ("lpad", Growth::Pad),
    ("rpad", Growth::Pad),
    ("replace", Growth::Replace),
    ("range", Growth::Range),
    ("generate_series", Growth::Range),
    ("array_repeat", Growth::Elements),
    ("array_resize", Growth::Resize),
    ("array_to_string", Growth::Join),
];

/// Registers the functions in the place of those without a limit.
pub(crate) fn register_bounded_functions(state: &mut SessionState) -> DfResult<()> {
    for &(name, growth) in FUNCTIONS {
        // Servers know these by their names; a session without DataFusion's own functions has none to hold back.
        if let Some(function) = state.scalar_functions().get(name).cloned()
            && !function.inner().is::<Bounded>()
        {
            state.register_udf(Arc::new(ScalarUDF::from(Bounded { function, growth })))?;
        }
    }
    Ok(())
}

/// One of DataFusion's functions, with the limit.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Bounded {
    function: Arc<ScalarUDF>,
    growth: Growth,
}

impl Bounded {
    fn check(&self, arguments: &[ColumnarValue], rows: usize) -> DfResult<()> {
        let arguments = arguments.iter().map(Argument::new).collect::<DfResult<Vec<_>>>()?;
        let rows = if arguments.iter().all(|argument| argument.is_constant) { 1 } else { rows };
        let sizes = Sizes { arguments: &arguments, growth: self.growth };
        let mut bytes = 0_u64;
        for row in 0..rows {
            bytes = bytes.saturating_add(sizes.of(row).unwrap_or(0));
            if bytes > MAX_BYTES {
                return Err(self.too_large());
            }
        }
        Ok(())
    }

    fn too_large(&self) -> DataFusionError {
        let megabytes = MAX_BYTES >> 20;
        let message = format!("{} would make more than {megabytes} MiB of one batch of rows", self.name());
        let hint = match self.growth {
            Growth::Range => "FROM generate_series(start, stop) makes rows one batch after the other",
            _ => "ask for shorter values, or SET batch_rows to fewer rows at a time",
        };
        Error::from(WireError::new(ErrorCode::ResourceExhausted, message).with_hint(hint)).into_datafusion()
    }
}

/// One argument's values.
struct Argument {
    /// Only one value, if it is constant.
    values: ArrayRef,
    /// As integers, if they are any, or microseconds.
    numbers: Option<Int64Array>,
    is_constant: bool,
}

impl Argument {
    fn new(argument: &ColumnarValue) -> DfResult<Self> {
        let (values, is_constant) = match argument {
            ColumnarValue::Array(values) => (Arc::clone(values), false),
            ColumnarValue::Scalar(value) => (value.to_array_of_size(1)?, true),
        };
        let times = match values.data_type() {
            integers if integers.is_integer() => Some(Arc::clone(&values)),
            DataType::Date32 | DataType::Date64 | DataType::Timestamp(..) => {
                Some(cast(&values, &DataType::Timestamp(TimeUnit::Microsecond, None))?)
            }
            _ => None,
        };
        let numbers = times.map(|values| cast(&values, &DataType::Int64)).transpose()?;
        let numbers = numbers.map(|numbers| numbers.as_primitive::<Int64Type>().clone());
        Ok(Self { values, numbers, is_constant })
    }

    fn at(&self, row: usize) -> Option<usize> {
        let row = if self.is_constant { 0 } else { row };
        (!self.values.data_type().is_null() && self.values.is_valid(row)).then_some(row)
    }

    fn text(&self, row: usize) -> Option<&str> {
        let row = self.at(row)?;
        match self.values.data_type() {
            DataType::Utf8 => Some(self.values.as_string::<i32>().value(row)),
            DataType::LargeUtf8 => Some(self.values.as_string::<i64>().value(row)),
            DataType::Utf8View => Some(self.values.as_string_view().value(row)),
            _ => None,
        }
    }

    fn number(&self, row: usize) -> Option<i64> {
        let (row, numbers) = (self.at(row)?, self.numbers.as_ref()?);
        numbers.is_valid(row).then(|| numbers.value(row))
    }

    /// Bytes of a value.
    fn bytes(&self, row: usize) -> Option<u64> {
        if let Some(text) = self.text(row) {
            return Some(text.len() as u64);
        }
        let row = self.at(row)?;
        if let Some(width) = self.values.data_type().primitive_width() {
            return Some(width as u64);
        }
        let value = self.values.slice(row, 1);
        Some(value.to_data().get_slice_memory_size().unwrap_or_default() as u64)
    }

    /// Elements of an array.
    fn elements(&self, row: usize) -> Option<u64> {
        let row = self.at(row)?;
        match self.values.data_type() {
            DataType::List(_) => Some(self.values.as_list::<i32>().value_length(row) as u64),
            DataType::LargeList(_) => Some(self.values.as_list::<i64>().value_length(row) as u64),
            DataType::FixedSizeList(_, length) => Some(*length as u64),
            _ => None,
        }
    }
}

/// Of the results for rows; NULL takes nothing.
struct Sizes<'a> {
    arguments: &'a [Argument],
    growth: Growth,
}

impl Sizes<'_> {
    fn of(&self, row: usize) -> Option<u64> {
        let argument = |number: usize| self.arguments.get(number);
        let first = argument(0)?;
        let second = argument(1).unwrap_or(first);
        let count = |argument: &Argument| argument.number(row).map(|count| u64::try_from(count).unwrap_or(0));
        match self.growth {
            Growth::Repeat => Some(first.bytes(row)?.saturating_mul(count(second)?)),
            Growth::Pad => first.at(row).and_then(|_| count(second)),
            Growth::Replace => {
                let (text, from, to) = (first.text(row)?, second.text(row)?, argument(2)?.text(row)?);
                let at_most = text.len() / from.len().max(1);
                let grown = |replaced: usize| (replaced as u64).saturating_mul(to.len() as u64);
                // To count costs as much as to replace.
                let small = to.len() <= from.len() || grown(at_most) <= text.len() as u64;
                let replaced = if small || from.is_empty() { 0 } else { text.matches(from).count() };
                Some((text.len() as u64).saturating_add(grown(replaced)))
            }
            Growth::Range => self.range(row).map(|elements| elements.saturating_mul(8)),
            Growth::Elements => Some(first.bytes(row).unwrap_or(0).max(8).saturating_mul(count(second)?)),
            Growth::Resize => {
                let element = argument(2).and_then(|element| element.bytes(row)).unwrap_or(0);
                Some(element.max(8).saturating_mul(count(second)?))
            }
            Growth::Join => {
                let null = argument(2).and_then(|null| null.bytes(row)).unwrap_or(0);
                Some(first.elements(row)?.saturating_mul(second.bytes(row)?.saturating_add(null)))
            }
        }
    }

    /// The elements from a start to a stop. A single argument is a stop.
    fn range(&self, row: usize) -> Option<u64> {
        let number = |argument: &Argument| argument.number(row).map(i128::from);
        let (start, stop, step) = match self.arguments {
            [stop] => (0, number(stop)?, 1),
            [start, stop] => (number(start)?, number(stop)?, 1),
            [start, stop, step, ..] => (number(start)?, number(stop)?, number(step).or_else(|| step.span(row))?),
            [] => return None,
        };
        let length = stop - start;
        if step == 0 || length.signum() * step.signum() < 0 {
            return Some(0);
        }
        u64::try_from(length / step + 1).ok()
    }
}

impl Argument {
    /// An interval's microseconds, at least one; a month is a short one.
    fn span(&self, row: usize) -> Option<i128> {
        let row = self.at(row)?;
        let DataType::Interval(_) = self.values.data_type() else { return None };
        let interval = self.values.as_primitive_opt::<IntervalMonthDayNanoType>()?.value(row);
        let days = i128::from(interval.months) * 28 + i128::from(interval.days);
        let nanoseconds = days * 86_400_000_000_000 + i128::from(interval.nanoseconds);
        Some(match nanoseconds / 1_000 {
            0 => nanoseconds.signum(),
            microseconds => microseconds,
        })
    }
}

// Every method is here: a new one of the trait must not be answered by its default.
#[warn(clippy::missing_trait_methods)]
impl ScalarUDFImpl for Bounded {
    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> DfResult<ColumnarValue> {
        self.check(&args.args, args.number_rows)?;
        self.function.invoke_with_args(args)
    }

    fn with_updated_config(&self, config: &ConfigOptions) -> Option<ScalarUDF> {
        let function = Arc::new(self.function.inner().with_updated_config(config)?);
        Some(ScalarUDF::from(Self { function, growth: self.growth }))
    }

    fn name(&self) -> &str {
        self.function.name()
    }

    fn aliases(&self) -> &[String] {
        self.function.aliases()
    }

    fn display_name(&self, args: &[Expr]) -> DfResult<String> {
        #[allow(deprecated)]
        self.function.inner().display_name(args)
    }

    fn schema_name(&self, args: &[Expr]) -> DfResult<String> {
        self.function.schema_name(args)
    }

    fn signature(&self) -> &Signature {
        self.function.signature()
    }

    fn return_type(&self, types: &[DataType]) -> DfResult<DataType> {
        self.function.return_type(types)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> DfResult<FieldRef> {
        self.function.return_field_from_args(args)
    }

    fn is_nullable(&self, args: &[Expr], schema: &dyn ExprSchema) -> bool {
        #[allow(deprecated)]
        self.function.is_nullable(args, schema)
    }

    fn is_strict(&self) -> bool {
        self.function.inner().is_strict()
    }

    fn simplify(&self, args: Vec<Expr>, context: &SimplifyContext) -> DfResult<ExprSimplifyResult> {
        self.function.simplify(args, context)
    }

    fn preimage(&self, args: &[Expr], literal: &Expr, context: &SimplifyContext) -> DfResult<PreimageResult> {
        self.function.preimage(args, literal, context)
    }

    fn short_circuits(&self) -> bool {
        self.function.short_circuits()
    }

    fn conditional_arguments<'a>(&self, args: &'a [Expr]) -> Option<(Vec<&'a Expr>, Vec<&'a Expr>)> {
        self.function.conditional_arguments(args)
    }

    fn evaluate_bounds(&self, inputs: &[&Interval]) -> DfResult<Interval> {
        self.function.evaluate_bounds(inputs)
    }

    fn propagate_constraints(&self, interval: &Interval, inputs: &[&Interval]) -> DfResult<Option<Vec<Interval>>> {
        self.function.propagate_constraints(interval, inputs)
    }

    fn output_ordering(&self, inputs: &[ExprProperties]) -> DfResult<SortProperties> {
        self.function.output_ordering(inputs)
    }

    fn preserves_lex_ordering(&self, inputs: &[ExprProperties]) -> DfResult<bool> {
        self.function.preserves_lex_ordering(inputs)
    }

    fn strictly_order_preserving(&self, inputs: &[ExprProperties]) -> DfResult<bool> {
        self.function.inner().strictly_order_preserving(inputs)
    }

    fn coerce_types(&self, types: &[DataType]) -> DfResult<Vec<DataType>> {
        self.function.coerce_types(types)
    }

    fn struct_field_mapping(&self, literals: &[Option<ScalarValue>]) -> Option<StructFieldMapping> {
        self.function.struct_field_mapping(literals)
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.function.documentation()
    }

    fn placement(&self, args: &[ExpressionPlacement]) -> ExpressionPlacement {
        self.function.placement(args)
    }
}

#[cfg(test)]
mod tests {
    use datafusion::prelude::SessionContext;

    use super::*;
    use crate::checked_arithmetic::register_functions;

    async fn asked(sql: &str) -> Result<usize, WireError> {
        let mut state = SessionContext::new().state();
        register_functions(&mut state).unwrap();
        let context = SessionContext::new_with_state(state);
        let wire = |error: DataFusionError| Error::from(error).to_wire();
        let rows = context.sql(sql).await.map_err(wire)?.collect().await.map_err(wire)?;
        Ok(rows.iter().map(|batch| batch.num_rows()).sum())
    }

    #[tokio::test]
    async fn calls_that_make_too_much_are_refused_before_they_make_it() {
        let times = "TIMESTAMP '2020-01-01', TIMESTAMP '2021-01-01'";
        for call in [
            "lpad('x', 2000000000)",
            "rpad('x', 300000000, 'yz')",
            "repeat('xyz', 100000000)",
            "replace(repeat('x', 100000), 'x', repeat('y', 10000))",
            "range(1, 10000000000)",
            "range(10000000000)",
            "generate_series(0, -10000000000, -1)",
            &format!("range({times}, INTERVAL '1 microsecond')"),
            "array_repeat(repeat('x', 1000), 1000000)",
            "array_repeat(1, 1000000000)",
            "array_repeat(CAST(NULL AS BIGINT), 1000000000)",
            "array_resize([1], 1000000000, 0)",
            "array_to_string(range(0, 100000), repeat('x', 100000))",
            "list_to_string(range(0, 100000), repeat('x', 100000))",
            "lpad(x, n)",
            "repeat(x, n)",
        ] {
            let sql = format!("SELECT {call} FROM (VALUES ('a', 200000000), ('b', 200000000)) AS t (x, n)");
            let refused = asked(&sql).await.unwrap_err();
            assert_eq!(refused.code, ErrorCode::ResourceExhausted, "{call}: {refused}");
            assert!(refused.message.contains("64 MiB") && !refused.hint.is_empty(), "{call}: {refused}");
        }
    }

    #[tokio::test]
    async fn calls_that_make_little_are_what_they_were() {
        let times = "TIMESTAMP '2020-01-01', TIMESTAMP '2021-01-01'";
        let days = "DATE '0001-01-01', DATE '9999-12-31'";
        for (call, expected) in [
            ("lpad('x', 3, 'ab')", "abx"),
            ("lpad('x', -1000000000)", ""),
            ("rpad('x', 3)", "x  "),
            ("repeat('ab', 2)", "abab"),
            ("repeat('', 1000000000)", ""),
            ("length(repeat(repeat('x', 1000000), 50))", "50000000"),
            ("replace(repeat('x', 3), 'x', 'yy')", "yyyyyy"),
            ("length(replace(repeat('x', 10000000), 'y', repeat('z', 10000)))", "10000000"),
            ("array_length(range(1, 1000001))", "1000000"),
            ("range(0)", "[]"),
            ("range(1, 10, -1)", "[]"),
            ("generate_series(3, 1, -1)", "[3, 2, 1]"),
            (&format!("array_length(range({times}, INTERVAL '1 minute'))"), "527040"),
            (&format!("array_length(range({days}, INTERVAL '1 day'))"), "3652058"),
            ("array_to_string([1, NULL], ',', '-')", "1,-"),
            ("array_repeat('x', 2)", "[x, x]"),
            ("array_resize([1], 2, 0)", "[1, 0]"),
            ("lpad(NULL, 2000000000)", ""),
        ] {
            let sql = format!("SELECT 1 WHERE coalesce(CAST({call} AS VARCHAR), '') = '{expected}'");
            let found = asked(&sql).await.unwrap_or_else(|error| panic!("{call}: {error}"));
            assert_eq!(found, 1, "{call}");
        }
    }
}
