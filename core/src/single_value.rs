//! The value of the only row, and an error where there are more: what SQL makes of a subquery that stands for one value.
//!
//! `single_value(x)` is for subqueries that are computed once: the second row is the error, wherever it is met. A subquery
//! about the row around it is computed for all rows at once and joined to them, and two rows are a mistake only where they
//! join something. So `counted_value(x)` counts, and `only_value`, above the join, looks at the count.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, StructArray, UInt8Array},
    compute::{is_null, nullif},
    datatypes::{DataType, Field, FieldRef, Fields, UInt8Type},
};
use datafusion::{
    common::{Result as DfResult, ScalarValue, exec_err, internal_err},
    error::DataFusionError,
    execution::{FunctionRegistry, SessionState},
    logical_expr::{
        Accumulator, AggregateUDF, AggregateUDFImpl, ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF,
        ScalarUDFImpl, Signature, Volatility,
        function::{AccumulatorArgs, StateFieldsArgs},
        utils::format_state_name,
    },
};
use drsdb_proto::{ErrorCode, WireError};

use crate::Error;

/// `single_value(x)`: the value of the only row, NULL without rows, an error for a second row.
pub fn single_value() -> AggregateUDF {
    AggregateUDF::from(OneValue::new(true))
}

/// `counted_value(x)`: the value of some row and how many rows there are, for [`only_value`].
pub fn counted_value() -> AggregateUDF {
    AggregateUDF::from(OneValue::new(false))
}

/// `only_value(counted_value(x))`: the value of the only row, NULL without rows, an error if there are more.
pub fn only_value() -> ScalarUDF {
    ScalarUDF::from(OnlyValue { signature: Signature::any(1, Volatility::Immutable) })
}

/// `perhaps_null(x)`: x, of which it is not known that it is never NULL. DataFusion takes a subquery's value to be NULL only where
/// the subquery's rows can have one, and forgets that there may be no row.
pub fn perhaps_null() -> ScalarUDF {
    ScalarUDF::from(PerhapsNull { signature: Signature::any(1, Volatility::Immutable) })
}

/// Registers the functions, so that plans that name them find them.
pub fn register_single_value(state: &mut SessionState) -> DfResult<()> {
    state.register_udaf(Arc::new(single_value()))?;
    state.register_udaf(Arc::new(counted_value()))?;
    state.register_udf(Arc::new(only_value()))?;
    state.register_udf(Arc::new(perhaps_null()))?;
    Ok(())
}

fn too_many_rows() -> DataFusionError {
    let message = "a subquery that stands for one value gives more than one row";
    let error = WireError::new(ErrorCode::InvalidValue, message);
    Error::from(error.with_hint("add a condition, LIMIT 1 or an aggregate to the subquery")).into_datafusion()
}

/// More rows than one are counted as two.
const TOO_MANY: u8 = 2;

/// What `counted_value` makes of a value of this type.
fn counted_fields(of: &DataType) -> Fields {
    Fields::from(vec![Field::new("value", of.clone(), true), Field::new("rows", DataType::UInt8, true)])
}

/// The type of the value in what `counted_value` makes.
fn counted_type(counted: &DataType) -> Option<&DataType> {
    match counted {
        DataType::Struct(fields) => match &fields[..] {
            [value, rows] if rows.data_type() == &DataType::UInt8 => Some(value.data_type()),
            _ => None,
        },
        _ => None,
    }
}

/// `single_value`, which is checked, and `counted_value`, which is not.
#[derive(Debug, PartialEq, Eq, Hash)]
struct OneValue {
    checked: bool,
    signature: Signature,
}

impl OneValue {
    fn new(checked: bool) -> Self {
        Self { checked, signature: Signature::any(1, Volatility::Immutable) }
    }

    /// The type of the values, of what comes out.
    fn value_type(&self, returned: &DataType) -> DfResult<DataType> {
        match (self.checked, counted_type(returned)) {
            (true, _) => Ok(returned.clone()),
            (false, Some(of)) => Ok(of.clone()),
            (false, None) => internal_err!("{} gives {returned}", self.name()),
        }
    }
}

impl AggregateUDFImpl for OneValue {
    fn name(&self) -> &str {
        if self.checked { "single_value" } else { "counted_value" }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> DfResult<DataType> {
        match arguments {
            [of] if self.checked => Ok(of.clone()),
            [of] => Ok(DataType::Struct(counted_fields(of))),
            _ => exec_err!("{} takes one argument", self.name()),
        }
    }

    // With the metadata, which has the column's SQL type.
    fn return_field(&self, arguments: &[FieldRef]) -> DfResult<FieldRef> {
        let [of] = arguments else { return exec_err!("{} takes one argument", self.name()) };
        let data_type = self.return_type(&[of.data_type().clone()])?;
        Ok(Arc::new(Field::new(self.name(), data_type, true).with_metadata(of.metadata().clone())))
    }

    fn accumulator(&self, arguments: AccumulatorArgs) -> DfResult<Box<dyn Accumulator>> {
        if arguments.is_distinct {
            return exec_err!("{} takes no DISTINCT", self.name());
        }
        let of = self.value_type(arguments.return_type())?;
        Ok(Box::new(Rows { checked: self.checked, value: ScalarValue::try_from(&of)?, rows: 0 }))
    }

    fn state_fields(&self, arguments: StateFieldsArgs) -> DfResult<Vec<FieldRef>> {
        let of = self.value_type(arguments.return_type())?;
        Ok(vec![
            Arc::new(Field::new(format_state_name(arguments.name, "value"), of, true)),
            Arc::new(Field::new(format_state_name(arguments.name, "rows"), DataType::UInt8, true)),
        ])
    }
}

/// What is known of the rows so far.
#[derive(Debug)]
struct Rows {
    checked: bool,
    /// Of the first row; NULL without rows.
    value: ScalarValue,
    /// Up to [`TOO_MANY`].
    rows: u8,
}

impl Rows {
    /// Counts `rows` more, of which one has the value at `at`.
    fn add(&mut self, values: &ArrayRef, at: usize, rows: usize) -> DfResult<()> {
        if self.rows == 0 {
            self.value = ScalarValue::try_from_array(values, at)?;
            // It must not keep the whole batch.
            self.value.compact();
        }
        self.rows = self.rows.saturating_add(u8::try_from(rows).unwrap_or(TOO_MANY)).min(TOO_MANY);
        if self.checked && self.rows == TOO_MANY { Err(too_many_rows()) } else { Ok(()) }
    }
}

impl Accumulator for Rows {
    fn update_batch(&mut self, values: &[ArrayRef]) -> DfResult<()> {
        let [values] = values else { return internal_err!("one column is looked at, not {}", values.len()) };
        if values.is_empty() { Ok(()) } else { self.add(values, 0, values.len()) }
    }

    fn evaluate(&mut self) -> DfResult<ScalarValue> {
        if self.checked {
            return Ok(self.value.clone());
        }
        let fields = counted_fields(&self.value.data_type());
        let columns: Vec<ArrayRef> = vec![self.value.to_array()?, Arc::new(UInt8Array::from(vec![self.rows]))];
        Ok(ScalarValue::Struct(Arc::new(StructArray::try_new(fields, columns, None)?)))
    }

    fn size(&self) -> usize {
        size_of_val(self) - size_of_val(&self.value) + self.value.size()
    }

    fn state(&mut self) -> DfResult<Vec<ScalarValue>> {
        Ok(vec![self.value.clone(), ScalarValue::UInt8(Some(self.rows))])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> DfResult<()> {
        let [values, rows] = states else { return internal_err!("a state of {} columns", states.len()) };
        let Some(rows) = rows.as_primitive_opt::<UInt8Type>() else {
            return internal_err!("rows are counted as UINT8");
        };
        for (at, rows) in rows.iter().enumerate() {
            match rows {
                // The value of no row says nothing.
                None | Some(0) => {}
                Some(rows) => self.add(values, at, usize::from(rows))?,
            }
        }
        Ok(())
    }
}

/// `only_value`.
#[derive(Debug, PartialEq, Eq, Hash)]
struct OnlyValue {
    signature: Signature,
}

impl OnlyValue {
    fn not_counted<T>(&self) -> DfResult<T> {
        exec_err!("{} takes what counted_value gives", self.name())
    }
}

impl ScalarUDFImpl for OnlyValue {
    fn name(&self) -> &str {
        "only_value"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> DfResult<DataType> {
        let [counted] = arguments else { return self.not_counted() };
        counted_type(counted).map_or_else(|| self.not_counted(), |of| Ok(of.clone()))
    }

    fn return_field_from_args(&self, arguments: ReturnFieldArgs) -> DfResult<FieldRef> {
        let [counted] = arguments.arg_fields else { return self.not_counted() };
        let data_type = self.return_type(&[counted.data_type().clone()])?;
        Ok(Arc::new(Field::new(self.name(), data_type, true).with_metadata(counted.metadata().clone())))
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> DfResult<ColumnarValue> {
        let [counted] = arguments.args.as_slice() else { return self.not_counted() };
        let counted = counted.to_array(arguments.number_rows)?;
        let Some(counted) = counted.as_struct_opt() else { return self.not_counted() };
        let [values, rows] = counted.columns() else { return self.not_counted() };
        let Some(rows) = rows.as_primitive_opt::<UInt8Type>() else { return self.not_counted() };
        if rows.iter().enumerate().any(|(at, rows)| counted.is_valid(at) && rows.is_some_and(|rows| rows >= TOO_MANY)) {
            return Err(too_many_rows());
        }
        // A row that nothing was joined to has no count either.
        Ok(ColumnarValue::Array(match counted.null_count() {
            0 => Arc::clone(values),
            _ => nullif(values, &is_null(counted)?)?,
        }))
    }
}

/// `perhaps_null`.
#[derive(Debug, PartialEq, Eq, Hash)]
struct PerhapsNull {
    signature: Signature,
}

impl ScalarUDFImpl for PerhapsNull {
    fn name(&self) -> &str {
        "perhaps_null"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> DfResult<DataType> {
        let [of] = arguments else { return exec_err!("perhaps_null takes one value") };
        Ok(of.clone())
    }

    fn return_field_from_args(&self, arguments: ReturnFieldArgs) -> DfResult<FieldRef> {
        let [of] = arguments.arg_fields else { return exec_err!("perhaps_null takes one value") };
        Ok(Arc::new(of.as_ref().clone().with_nullable(true)))
    }

    fn invoke_with_args(&self, mut arguments: ScalarFunctionArgs) -> DfResult<ColumnarValue> {
        arguments.args.pop().map_or_else(|| exec_err!("perhaps_null takes one value"), Ok)
    }
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::{Int64Array, ListArray, RecordBatch, StringArray},
        datatypes::Int64Type,
        util::pretty::pretty_format_batches,
    };
    use datafusion::prelude::{SessionConfig, SessionContext};

    use super::*;

    fn rows(checked: bool) -> Rows {
        Rows { checked, value: ScalarValue::Int64(None), rows: 0 }
    }

    fn values(values: &[Option<i64>]) -> Vec<ArrayRef> {
        vec![Arc::new(Int64Array::from(values.to_vec()))]
    }

    fn merge(into: &mut Rows, states: &mut [Rows]) -> DfResult<()> {
        let states = states.iter_mut().map(Accumulator::state).collect::<DfResult<Vec<_>>>()?;
        let column = |at: usize| ScalarValue::iter_to_array(states.iter().map(|state| state[at].clone()));
        into.merge_batch(&[column(0)?, column(1)?])
    }

    /// The states of some sets of rows, merged one after the other and all at once.
    fn merged(checked: bool, sets: &[&[Option<i64>]]) -> Vec<DfResult<ScalarValue>> {
        let states = || -> Vec<Rows> {
            let filled = sets.iter().map(|set| {
                let mut state = rows(checked);
                // An empty batch is no row.
                state.update_batch(&values(&[])).unwrap();
                set.iter().for_each(|value| state.update_batch(&values(&[*value])).unwrap());
                state
            });
            filled.collect()
        };
        let (mut slowly, mut at_once) = (rows(checked), rows(checked));
        let one_by_one = states().iter_mut().try_for_each(|state| merge(&mut slowly, std::slice::from_mut(state)));
        let together = merge(&mut at_once, &mut states());
        vec![one_by_one.and_then(|()| slowly.evaluate()), together.and_then(|()| at_once.evaluate())]
    }

    #[test]
    fn one_row_is_its_value_wherever_it_is() {
        for value in [Some(7), None] {
            let placed: [[&[Option<i64>]; 3]; 3] = [[&[value], &[], &[]], [&[], &[value], &[]], [&[], &[], &[value]]];
            for sets in placed {
                for result in merged(true, &sets) {
                    assert_eq!(result.unwrap(), ScalarValue::Int64(value));
                }
            }
        }
        for result in merged(true, &[&[], &[]]) {
            assert_eq!(result.unwrap(), ScalarValue::Int64(None));
        }
    }

    #[test]
    fn a_second_row_is_an_error_in_every_order() {
        // Also if both are equal, or NULL.
        for (a, b) in [(Some(1), Some(1)), (None, None), (None, Some(1)), (Some(1), None)] {
            let placed: [[&[Option<i64>]; 3]; 3] = [[&[a], &[b], &[]], [&[a], &[], &[b]], [&[], &[a], &[b]]];
            for sets in placed {
                for result in merged(true, &sets) {
                    let error = Error::from(result.unwrap_err()).to_wire();
                    assert_eq!(error.code, ErrorCode::InvalidValue, "{error}");
                    assert!(error.hint.contains("LIMIT 1"), "{error}");
                }
            }
            let mut state = rows(true);
            assert!(state.update_batch(&values(&[a, b])).is_err());
            let mut state = rows(true);
            state.update_batch(&values(&[a])).unwrap();
            assert!(state.update_batch(&values(&[b])).is_err());
        }
    }

    #[test]
    fn counting_makes_no_error() {
        let counted = |result: DfResult<ScalarValue>| match result.unwrap() {
            ScalarValue::Struct(counted) => {
                let (value, rows) = (counted.column(0), counted.column(1));
                let value = value.as_primitive::<Int64Type>().iter().next().flatten();
                (value, rows.as_primitive::<UInt8Type>().value(0))
            }
            other => panic!("{other} is counted"),
        };
        type Parts<'a> = [&'a [Option<i64>]; 2];
        let cases: [(Parts, (Option<i64>, u8)); 5] = [
            ([&[], &[]], (None, 0)),
            ([&[None], &[]], (None, 1)),
            ([&[], &[Some(3)]], (Some(3), 1)),
            ([&[Some(3)], &[Some(3)]], (Some(3), 2)),
            ([&[Some(3), None, None], &[Some(4), Some(5)]], (Some(3), 2)),
        ];
        for (sets, expected) in cases {
            for result in merged(false, &sets) {
                assert_eq!(counted(result), expected);
            }
        }
        let mut state = rows(false);
        state.update_batch(&values(&[Some(1); 1000])).unwrap();
        assert_eq!(counted(state.evaluate()), (Some(1), 2));
    }

    /// `t`: one row of group 1, two of group 2, one without values of group 3.
    async fn answer(sql: &str) -> DfResult<String> {
        let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(4));
        let mut state = context.state();
        register_single_value(&mut state)?;
        let context = SessionContext::new_with_state(state);
        let lists = vec![Some(vec![Some(1), Some(2)]), Some(vec![]), Some(vec![None]), None];
        let columns: [(&str, ArrayRef); 3] = [
            ("g", Arc::new(Int64Array::from(vec![1, 2, 2, 3]))),
            ("v", Arc::new(StringArray::from(vec![Some("one"), Some("two"), Some("three"), None]))),
            ("l", Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(lists))),
        ];
        context.register_batch("t", RecordBatch::try_from_iter(columns)?)?;
        let rows = context.sql(sql).await?.collect().await?;
        Ok(pretty_format_batches(&rows)?.to_string())
    }

    #[tokio::test]
    async fn values_of_any_type_go_through_a_plan() {
        for (sql, row) in [
            ("SELECT single_value(v) AS r FROM t WHERE g = 1", "| one |"),
            ("SELECT single_value(l) AS r FROM t WHERE g = 1", "| [1, 2] |"),
            ("SELECT single_value(v) IS NULL AS r FROM t WHERE g = 3", "| true |"),
            ("SELECT single_value(l) IS NULL AS r FROM t WHERE g = 4", "| true |"),
            ("SELECT only_value(counted_value(v)) AS r FROM t WHERE g = 1", "| one |"),
            ("SELECT only_value(counted_value(l)) AS r FROM t WHERE g = 1", "| [1, 2] |"),
            ("SELECT only_value(counted_value(v)) IS NULL AS r FROM t WHERE g = 4", "| true |"),
        ] {
            let table = answer(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
            assert!(table.split_whitespace().collect::<Vec<_>>().join(" ").contains(row), "{sql}: {table}");
        }
    }

    #[tokio::test]
    async fn two_rows_are_looked_at_where_they_are_used() {
        let counted = "(SELECT g, counted_value(v) AS c FROM t GROUP BY g) AS s";
        for (condition, fails) in [("x < 2", false), ("x > 2", false), ("x = 2", true)] {
            let sql = format!(
                "SELECT x, only_value(c) AS r FROM (VALUES (1), (2), (3), (4)) AS o (x) LEFT JOIN {counted} ON s.g = x \
                 WHERE {condition} ORDER BY x"
            );
            assert_eq!(answer(&sql).await.is_err(), fails, "{sql}");
        }
        for sql in ["SELECT single_value(v) FROM t", "SELECT only_value(counted_value(v)) FROM t WHERE g = 2"] {
            let error = Error::from(answer(sql).await.unwrap_err()).to_wire();
            assert_eq!(error.code, ErrorCode::InvalidValue, "{error}");
        }
        assert!(answer("SELECT only_value(v) FROM t").await.is_err(), "it is not counted");
    }
}
