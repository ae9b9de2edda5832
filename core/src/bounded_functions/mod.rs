//! Functions whose result can be far larger than what they are given, held to a limit.
//!
//! `lpad('x', 2000000000)` is a short statement, and no memory pool sees what a function allocates: enough of it ends the
//! process. So the functions that make much of little are registered here anew. They work out first how many bytes a call
//! makes, of all rows of a batch, and refuse more than [`MAX_BYTES`].

mod sizes;

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, AsArray, Int64Array},
    datatypes::{DataType, FieldRef, Int64Type},
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

use self::sizes::{Growth, Sizes};
use crate::Error;

/// What one call may make of the rows of a batch.
const MAX_BYTES: u64 = 64 << 20;

const FUNCTIONS: &[(&str, Growth)] = &[
    ("repeat", Growth::Repeat),
    ("lpad", Growth::Pad),
    ("rpad", Growth::Pad),
    ("replace", Growth::Replace),
    ("regexp_replace", Growth::ReplaceMatches),
    ("range", Growth::Range),
    ("generate_series", Growth::Range),
    ("array_repeat", Growth::Elements),
    ("array_replace_n", Growth::ReplaceElements),
    ("array_replace_all", Growth::ReplaceElements),
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
        let sizes = Sizes::new(arguments, self.growth)?;
        let rows = if sizes.are_constant() { 1 } else { rows };
        let mut bytes = 0_u64;
        for row in 0..rows {
            bytes = bytes.saturating_add(sizes.of(row));
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
            Growth::Range => {
                "FROM generate_series(start, stop) makes rows one batch after the other; a step's parts must have one sign"
            }
            _ => "ask for shorter values, or SET batch_rows to fewer rows at a time",
        };
        Error::from(WireError::new(ErrorCode::ResourceExhausted, message).with_hint(hint)).into_datafusion()
    }
}

/// A length of text, 0 for what is negative.
fn not_negative(length: &ColumnarValue) -> ColumnarValue {
    match length {
        ColumnarValue::Scalar(ScalarValue::Int64(Some(length))) => {
            ColumnarValue::Scalar(ScalarValue::Int64(Some((*length).max(0))))
        }
        ColumnarValue::Array(lengths) if lengths.data_type() == &DataType::Int64 => {
            let lengths: Int64Array = lengths.as_primitive::<Int64Type>().unary(|length| length.max(0));
            ColumnarValue::Array(Arc::new(lengths) as ArrayRef)
        }
        other => other.clone(),
    }
}

// Every method is here: a new one of the trait must not be answered by its default.
#[warn(clippy::missing_trait_methods)]
impl ScalarUDFImpl for Bounded {
    fn invoke_with_args(&self, mut args: ScalarFunctionArgs) -> DfResult<ColumnarValue> {
        self.check(&args.args, args.number_rows)?;
        if self.growth == Growth::Pad
            && let Some(length) = args.args.get_mut(1)
        {
            // It would ask for more memory than there can be.
            *length = not_negative(length);
        }
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
            "generate_series(-9223372036854775808, 9223372036854775807)",
            &format!("range({times}, INTERVAL '1 day' - INTERVAL '24 hours')"),
            &format!("range({times}, INTERVAL '1 month' - INTERVAL '30 days')"),
            "range(TIMESTAMP '2020-01-01', TIMESTAMP '2020-01-01 00:00:08', INTERVAL '1 nanosecond')",
            "array_repeat(array_repeat(true, 1000000), 500)",
            "array_to_string([range(0, 100000)], repeat('x', 100000))",
            "array_to_string(array_repeat(CAST(1e300 AS DOUBLE), 1000000), '')",
            "regexp_replace(repeat('x', 100000), 'x', repeat('y', 100000), 'g')",
            "array_replace_all(array_repeat([1], 1000), [1], range(0, 1000000))",
            "lpad(NULL, 2000000000)",
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
            ("lpad('x', n)", ""),
            ("rpad('x', n, y)", ""),
            ("length(replace(repeat('x', 50000000), 'x', 'y'))", "50000000"),
            ("array_length(array_repeat([a, b], 2))", "2"),
            ("regexp_replace('a-b-c', '-', '+', 'g')", "a+b+c"),
            ("array_to_string([1.5, 2.5], ', ')", "1.5, 2.5"),
            ("array_replace_all([1, 2, 1], 1, 3)", "[3, 2, 3]"),
            ("generate_series(1, 3)", "[1, 2, 3]"),
        ] {
            let rows = "(SELECT -1 AS n, 'z' AS y, value AS a, value + 1 AS b FROM generate_series(1, 8000)) AS t";
            let sql =
                format!("SELECT 1 FROM {rows} WHERE coalesce(CAST({call} AS VARCHAR), '') = '{expected}' LIMIT 1");
            let found = asked(&sql).await.unwrap_or_else(|error| panic!("{call}: {error}"));
            assert_eq!(found, 1, "{call}");
        }
    }
}
