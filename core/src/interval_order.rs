//! Intervals are compared by how long they are, with 30 days to a month and 24 hours to a day, as PostgreSQL does. Arrow compares
//! months first, then days, then the rest, so that 48 hours would be less than a day.
//!
//! The index server rewrites comparisons, before it optimizes, into ones of [`IntervalNanos`], which every server has. What sorts
//! and groups intervals still does it field by field.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, AsArray, Decimal128Array},
    datatypes::{DataType, IntervalMonthDayNano, IntervalMonthDayNanoType, IntervalUnit},
};
use datafusion::{
    common::{DFSchema, Result as DfResult, exec_err, tree_node::Transformed},
    config::ConfigOptions,
    logical_expr::{
        Between, BinaryExpr, ColumnarValue, Expr, ExprSchemable, Operator, ScalarFunctionArgs, ScalarUDF,
        ScalarUDFImpl, Signature, Volatility, expr::InList, expr_rewriter::FunctionRewrite,
    },
};

const NANOS_PER_DAY: i128 = 86_400_000_000_000;
const DAYS_PER_MONTH: i128 = 30;
/// All lengths fit: 2^31 months are less than 10^25 nanoseconds.
const LENGTH: DataType = DataType::Decimal128(38, 0);

/// `interval_nanos(interval)`: how long it is, in nanoseconds.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct IntervalNanos {
    signature: Signature,
}

impl Default for IntervalNanos {
    fn default() -> Self {
        Self { signature: Signature::user_defined(Volatility::Immutable) }
    }
}

fn nanos(interval: IntervalMonthDayNano) -> i128 {
    let days = i128::from(interval.months) * DAYS_PER_MONTH + i128::from(interval.days);
    days * NANOS_PER_DAY + i128::from(interval.nanoseconds)
}

impl ScalarUDFImpl for IntervalNanos {
    fn name(&self) -> &str {
        "interval_nanos"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> DfResult<DataType> {
        Ok(LENGTH)
    }

    fn coerce_types(&self, arguments: &[DataType]) -> DfResult<Vec<DataType>> {
        match arguments {
            [of] if is_span(of) || of.is_null() => Ok(vec![DataType::Interval(IntervalUnit::MonthDayNano)]),
            _ => exec_err!("interval_nanos takes one interval"),
        }
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> DfResult<ColumnarValue> {
        let arrays = ColumnarValue::values_to_arrays(&arguments.args)?;
        let [intervals] = arrays.as_slice() else { return exec_err!("interval_nanos takes one interval") };
        let Some(intervals) = intervals.as_primitive_opt::<IntervalMonthDayNanoType>() else {
            return exec_err!("interval_nanos takes one interval, not {}", intervals.data_type());
        };
        let lengths: Decimal128Array = intervals.iter().map(|interval| interval.map(nanos)).collect();
        Ok(ColumnarValue::Array(Arc::new(lengths.with_data_type(LENGTH)) as ArrayRef))
    }
}

fn is_span(of: &DataType) -> bool {
    matches!(of, DataType::Interval(_) | DataType::Duration(_))
}

/// Rewrites comparisons of intervals.
#[derive(Debug)]
pub struct CompareIntervals {
    function: Arc<ScalarUDF>,
}

impl Default for CompareIntervals {
    fn default() -> Self {
        Self { function: Arc::new(ScalarUDF::from(IntervalNanos::default())) }
    }
}

impl CompareIntervals {
    fn length(&self, of: Expr) -> Expr {
        self.function.call(vec![of])
    }

    /// Whether all of these are intervals, spans of time or NULL, and one is an interval: spans alone compare as they are.
    fn are_spans<'a>(schema: &DFSchema, all: impl IntoIterator<Item = &'a Expr>) -> DfResult<bool> {
        let mut any = false;
        for one in all {
            let of = one.get_type(schema)?;
            any |= matches!(of, DataType::Interval(_));
            if !is_span(&of) && !of.is_null() {
                return Ok(false);
            }
        }
        Ok(any)
    }
}

impl FunctionRewrite for CompareIntervals {
    fn name(&self) -> &str {
        "compare_intervals"
    }

    fn rewrite(&self, expr: Expr, schema: &DFSchema, _: &ConfigOptions) -> DfResult<Transformed<Expr>> {
        match expr {
            Expr::BinaryExpr(BinaryExpr { left, op, right })
                if compares(op) && Self::are_spans(schema, [left.as_ref(), right.as_ref()])? =>
            {
                let (left, right) = (Box::new(self.length(*left)), Box::new(self.length(*right)));
                Ok(Transformed::yes(Expr::BinaryExpr(BinaryExpr { left, op, right })))
            }
            Expr::Between(Between { expr, negated, low, high })
                if Self::are_spans(schema, [expr.as_ref(), low.as_ref(), high.as_ref()])? =>
            {
                let [expr, low, high] = [expr, low, high].map(|one| Box::new(self.length(*one)));
                Ok(Transformed::yes(Expr::Between(Between { expr, negated, low, high })))
            }
            Expr::InList(InList { expr, list, negated })
                if Self::are_spans(schema, std::iter::once(expr.as_ref()).chain(&list))? =>
            {
                let list = list.into_iter().map(|one| self.length(one)).collect();
                let expr = Box::new(self.length(*expr));
                Ok(Transformed::yes(Expr::InList(InList { expr, list, negated })))
            }
            other => Ok(Transformed::no(other)),
        }
    }
}

fn compares(operator: Operator) -> bool {
    matches!(
        operator,
        Operator::Eq
            | Operator::NotEq
            | Operator::Lt
            | Operator::LtEq
            | Operator::Gt
            | Operator::GtEq
            | Operator::IsDistinctFrom
            | Operator::IsNotDistinctFrom
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_of_one_length_are_equal() {
        let nanos = |months, days, nanoseconds| nanos(IntervalMonthDayNano { months, days, nanoseconds });
        let day = 86_400_000_000_000;
        assert_eq!(nanos(0, 1, 0), nanos(0, 0, day));
        assert_eq!(nanos(1, 0, 0), nanos(0, 29, day));
        assert!(nanos(0, 0, 2 * day) > nanos(0, 1, 0));
        assert!(nanos(0, 40, 0) > nanos(1, 0, 0));
        assert!(nanos(-1, 0, 0) < nanos(0, -29, 0));
        let longest = nanos(i32::MAX, i32::MAX, i64::MAX);
        assert!(longest < 10_i128.pow(38) && nanos(i32::MIN, i32::MIN, i64::MIN) > -(10_i128.pow(38)));
    }
}
