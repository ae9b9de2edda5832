//! `sum` of BIGINT that fails when the total is no BIGINT, and of DECIMAL ([`decimal_sum`](crate::decimal_sum)).
//!
//! DataFusion's `sum` of integers wraps around. This one takes its place under the same name: it adds up in 128 bits,
//! with DataFusion's own accumulators for decimals, and looks at the total once, when it is handed out. Partial sums that
//! storage servers exchange are 128 bits wide as well, so that only the total of all servers counts. All other types,
//! and `sum(DISTINCT ...)`, are DataFusion's.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, AsArray, BooleanArray, Decimal128Array, PrimitiveArray},
    datatypes::{DataType, Decimal128Type, Field, FieldRef, Int64Type},
};
use datafusion::{
    common::{Result as DfResult, ScalarValue, internal_err},
    functions_aggregate::sum::Sum,
    logical_expr::{
        Accumulator, AggregateUDFImpl, EmitTo, Expr, GroupsAccumulator, Operator, ReversedUDAF, SetMonotonicity,
        Signature, StatisticsArgs,
        expr::AggregateFunction,
        function::{AccumulatorArgs, StateFieldsArgs},
        utils::{AggregateOrderSensitivity, format_state_name},
    },
};
use drsdb_proto::{ErrorCode, WireError};

use crate::{
    Error,
    decimal_sum::{DecimalSum, DecimalSums, SumType},
};

/// Every sum of fewer than 2^63 BIGINTs fits.
const WIDE: DataType = DataType::Decimal128(38, 0);

/// The aggregate function.
#[derive(Debug, Default, PartialEq, Eq, Hash)]
pub struct CheckedSum {
    unchecked: Sum,
}

fn is_checked(returned: &Field, distinct: bool) -> bool {
    returned.data_type() == &DataType::Int64 && !distinct
}

fn decimals(returned: &Field, distinct: bool) -> Option<SumType> {
    match *returned.data_type() {
        DataType::Decimal128(precision, scale) if !distinct => Some(SumType { precision, scale }),
        _ => None,
    }
}

fn wide_field(name: &str) -> FieldRef {
    Arc::new(Field::new(name, WIDE, true))
}

impl AggregateUDFImpl for CheckedSum {
    fn name(&self) -> &str {
        self.unchecked.name()
    }

    fn signature(&self) -> &Signature {
        self.unchecked.signature()
    }

    fn return_type(&self, arguments: &[DataType]) -> DfResult<DataType> {
        self.unchecked.return_type(arguments)
    }

    fn accumulator(&self, arguments: AccumulatorArgs) -> DfResult<Box<dyn Accumulator>> {
        if let Some(sum_type) = decimals(&arguments.return_field, arguments.is_distinct) {
            return Ok(Box::new(DecimalSum::new(sum_type)));
        }
        if !is_checked(&arguments.return_field, arguments.is_distinct) {
            return self.unchecked.accumulator(arguments);
        }
        let return_field = wide_field(arguments.name);
        Ok(Box::new(Narrowed(self.unchecked.accumulator(AccumulatorArgs { return_field, ..arguments })?)))
    }

    fn create_sliding_accumulator(&self, arguments: AccumulatorArgs) -> DfResult<Box<dyn Accumulator>> {
        if let Some(sum_type) = decimals(&arguments.return_field, arguments.is_distinct) {
            return Ok(Box::new(DecimalSum::new(sum_type)));
        }
        if !is_checked(&arguments.return_field, arguments.is_distinct) {
            return self.unchecked.create_sliding_accumulator(arguments);
        }
        let return_field = wide_field(arguments.name);
        let sliding = self.unchecked.create_sliding_accumulator(AccumulatorArgs { return_field, ..arguments })?;
        Ok(Box::new(Narrowed(sliding)))
    }

    fn state_fields(&self, arguments: StateFieldsArgs) -> DfResult<Vec<FieldRef>> {
        if !is_checked(&arguments.return_field, arguments.is_distinct) {
            return self.unchecked.state_fields(arguments);
        }
        Ok(vec![wide_field(&format_state_name(arguments.name, "sum"))])
    }

    fn groups_accumulator_supported(&self, arguments: AccumulatorArgs) -> bool {
        self.unchecked.groups_accumulator_supported(arguments)
    }

    fn create_groups_accumulator(&self, arguments: AccumulatorArgs) -> DfResult<Box<dyn GroupsAccumulator>> {
        if let Some(sum_type) = decimals(&arguments.return_field, arguments.is_distinct) {
            return Ok(Box::new(DecimalSums::new(sum_type)));
        }
        if !is_checked(&arguments.return_field, arguments.is_distinct) {
            return self.unchecked.create_groups_accumulator(arguments);
        }
        let return_field = wide_field(arguments.name);
        let groups = self.unchecked.create_groups_accumulator(AccumulatorArgs { return_field, ..arguments })?;
        Ok(Box::new(NarrowedGroups(groups)))
    }

    fn reverse_expr(&self) -> ReversedUDAF {
        self.unchecked.reverse_expr()
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        self.unchecked.order_sensitivity()
    }

    fn set_monotonicity(&self, data_type: &DataType) -> SetMonotonicity {
        self.unchecked.set_monotonicity(data_type)
    }

    fn simplify_expr_op_literal(
        &self,
        function: &AggregateFunction,
        argument: &Expr,
        operator: Operator,
        literal: &Expr,
        argument_is_left: bool,
    ) -> DfResult<Option<Expr>> {
        self.unchecked.simplify_expr_op_literal(function, argument, operator, literal, argument_is_left)
    }

    fn value_from_stats(&self, arguments: &StatisticsArgs) -> Option<ScalarValue> {
        self.unchecked.value_from_stats(arguments)
    }
}

fn widen(values: &[ArrayRef]) -> DfResult<ArrayRef> {
    let [values] = values else { return internal_err!("sum takes one argument") };
    let wide: Decimal128Array = values.as_primitive::<Int64Type>().unary(i128::from);
    Ok(Arc::new(wide.with_data_type(WIDE)))
}

fn narrow(total: i128) -> DfResult<i64> {
    i64::try_from(total).map_err(|_| {
        let error = WireError::new(ErrorCode::InvalidValue, format!("the sum {total} is out of range for BIGINT"));
        Error::from(error.with_hint("write sum(CAST(... AS DECIMAL(38, 0)))")).into_datafusion()
    })
}

/// 128 bits inside, BIGINT outside.
#[derive(Debug)]
struct Narrowed(Box<dyn Accumulator>);

impl Accumulator for Narrowed {
    fn update_batch(&mut self, values: &[ArrayRef]) -> DfResult<()> {
        self.0.update_batch(&[widen(values)?])
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> DfResult<()> {
        self.0.retract_batch(&[widen(values)?])
    }

    fn supports_retract_batch(&self) -> bool {
        self.0.supports_retract_batch()
    }

    fn evaluate(&mut self) -> DfResult<ScalarValue> {
        match self.0.evaluate()? {
            ScalarValue::Decimal128(total, _, _) => Ok(ScalarValue::Int64(total.map(narrow).transpose()?)),
            other => internal_err!("the sum of decimals is {other}"),
        }
    }

    fn size(&self) -> usize {
        self.0.size()
    }

    fn state(&mut self) -> DfResult<Vec<ScalarValue>> {
        self.0.state()
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> DfResult<()> {
        self.0.merge_batch(states)
    }
}

/// The same for many groups at once.
struct NarrowedGroups(Box<dyn GroupsAccumulator>);

impl GroupsAccumulator for NarrowedGroups {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        groups: &[usize],
        filter: Option<&BooleanArray>,
        total_groups: usize,
    ) -> DfResult<()> {
        self.0.update_batch(&[widen(values)?], groups, filter, total_groups)
    }

    fn evaluate(&mut self, emit: EmitTo) -> DfResult<ArrayRef> {
        let totals = self.0.evaluate(emit)?;
        let narrowed: PrimitiveArray<Int64Type> = totals.as_primitive::<Decimal128Type>().try_unary(narrow)?;
        Ok(Arc::new(narrowed))
    }

    fn state(&mut self, emit: EmitTo) -> DfResult<Vec<ArrayRef>> {
        self.0.state(emit)
    }

    fn merge_batch(&mut self, states: &[ArrayRef], groups: &[usize], total_groups: usize) -> DfResult<()> {
        self.0.merge_batch(states, groups, total_groups)
    }

    fn convert_to_state(&self, values: &[ArrayRef], filter: Option<&BooleanArray>) -> DfResult<Vec<ArrayRef>> {
        self.0.convert_to_state(&[widen(values)?], filter)
    }

    fn size(&self) -> usize {
        self.0.size()
    }
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::{Int64Array, RecordBatch},
        util::pretty::pretty_format_batches,
    };
    use datafusion::prelude::{SessionConfig, SessionContext};

    use super::*;
    use crate::checked_arithmetic::register_functions;

    async fn answer(sql: &str) -> DfResult<String> {
        let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(4));
        let mut state = context.state();
        register_functions(&mut state)?;
        let context = SessionContext::new_with_state(state);
        let values = Int64Array::from(vec![Some(i64::MAX), Some(1), None, Some(-1), Some(i64::MIN)]);
        let groups = Int64Array::from(vec![1, 1, 2, 1, 3]);
        let batch = RecordBatch::try_from_iter([("g", Arc::new(groups) as ArrayRef), ("v", Arc::new(values) as _)]);
        context.register_batch("t", batch?)?;
        let rows = context.sql(sql).await?.collect().await?;
        Ok(pretty_format_batches(&rows)?.to_string())
    }

    #[tokio::test]
    async fn totals_that_fit_are_exact_whatever_lies_between() {
        let grouped = answer("SELECT g, sum(v) AS s FROM t GROUP BY g ORDER BY g").await.unwrap();
        for row in ["| 1 | 9223372036854775807  |", "| 2 |                      |", "| 3 | -9223372036854775808 |"] {
            assert!(grouped.contains(row), "{grouped}");
        }
        assert!(answer("SELECT sum(v) AS s FROM t").await.unwrap().contains("| -1 |"));
        let window =
            "SELECT sum(v) OVER (ORDER BY g, v ROWS BETWEEN 1 PRECEDING AND CURRENT ROW) AS s FROM t WHERE g < 3";
        assert!(answer(window).await.is_err(), "1 + MAX is in one frame");
        assert!(answer("SELECT sum(DISTINCT g) AS s FROM t").await.unwrap().contains("| 6 |"));
        assert!(answer("SELECT sum(v) AS s FROM t WHERE false").await.unwrap().contains("|   |"));
    }

    #[tokio::test]
    async fn sums_of_decimals_are_checked_too() {
        let d = |digits: &str| format!("CAST('{digits}' AS DECIMAL(38, 0))");
        let (most, one) = (d(&"9".repeat(38)), d("1"));
        for (rows, fits) in [
            (format!("(1, {most}), (1, {one}), (1, -{one}), (2, NULL), (3, {one})"), true),
            (format!("(1, {most}), (1, {one})"), false),
            (format!("(1, {most}), (1, {most})"), false),
            (format!("(1, -{most}), (1, -{most}), (1, -{most})"), false),
        ] {
            let from = format!("FROM (VALUES {rows}) AS t (g, v)");
            for sql in [
                format!("SELECT sum(v) AS s {from} WHERE g = 1"),
                format!("SELECT g, sum(v) AS s {from} GROUP BY g ORDER BY g"),
                format!("SELECT sum(v) FILTER (WHERE g = 1) AS s {from}"),
                format!("SELECT max(s) FROM (SELECT sum(v) OVER (PARTITION BY g) AS s {from})"),
            ] {
                match answer(&sql).await {
                    Ok(rows) => assert!(fits && rows.contains(&"9".repeat(38)), "{sql}: {rows}"),
                    Err(error) => {
                        let error = Error::from(error).to_wire();
                        assert_eq!((error.code, fits), (ErrorCode::InvalidValue, false), "{sql}: {error}");
                    }
                }
            }
        }
        let nothing = answer("SELECT sum(CAST(v AS DECIMAL(10, 2))) AS s FROM t WHERE g = 2").await.unwrap();
        assert!(nothing.contains("|   |"), "{nothing}");
        let moving = "SELECT sum(CAST(g AS DECIMAL(3, 1))) OVER (ORDER BY g ROWS 1 PRECEDING) AS s FROM t";
        let moving = answer(moving).await.unwrap();
        assert!(moving.contains("| 2.0 |") && moving.contains("| 5.0 |"), "{moving}");
    }

    #[tokio::test]
    async fn totals_out_of_range_are_errors() {
        for sql in ["SELECT sum(v) FROM t WHERE v > 0", "SELECT g, sum(v) FROM t WHERE v > 0 GROUP BY g"] {
            let error = Error::from(answer(sql).await.unwrap_err()).to_wire();
            assert_eq!(error.code, ErrorCode::InvalidValue, "{error}");
            assert!(error.message.contains("9223372036854775808"), "{error}");
        }
    }
}
