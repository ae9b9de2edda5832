//! Compares a result with the reference, row by row.
//!
//! Decimals, integers, text and dates must be equal; floats may differ by 1e-9 of their size. Without ORDER BY, rows may come
//! in any order. With it, rows that share a key may come in any order among themselves, and where LIMIT cuts such a group any
//! of its rows may be there: so the expected rows are those of the query without its LIMIT.
//!
//! ```text
//! expected, unlimited     actual, limit 4
//!   key 9   a               key 9   a        group of 1: the same row
//!   key 7   b  c            key 7   c  b     group of 2: the same rows in any order
//!   key 5   d  e  f         key 5   f        cut group: one of its rows, and not one twice
//! ```

use std::{collections::HashMap, ops::Range};

use arrow::{datatypes::DataType, error::ArrowError, record_batch::RecordBatch};

use super::cells::{Cell, Kind, Tolerance, column_cells};

/// How far floats may be apart, relative to their size.
const FLOAT_TOLERANCE: f64 = 1e-9;

/// What a query promises about the order and the number of its rows.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ordering<'a> {
    /// Positions of the columns that the rows are ordered by; empty: no order.
    pub keys: &'a [usize],
    /// The most rows of the result.
    pub limit: Option<usize>,
}

/// How strictly types must agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// The same engine made both: a decimal against a float is a difference.
    SameEngine,
    /// Another engine made the result: it may answer with a float where the reference has a decimal. Then the values may be
    /// apart by one unit of the decimal's last digit, because engines round or cut there.
    OtherEngine,
}

/// How a result differs from the reference.
#[derive(Debug, thiserror::Error)]
pub enum Mismatch {
    /// The columns are not the same.
    #[error("columns are {actual}, expected {expected}")]
    #[allow(missing_docs)]
    Columns { expected: String, actual: String },
    /// Rows are missing or too many.
    #[error("{actual} rows, expected {expected}")]
    #[allow(missing_docs)]
    Rows { expected: usize, actual: usize },
    /// A row is not in the reference, or not at this place of the order.
    #[error("row {position} is ({actual}), expected {expected}")]
    #[allow(missing_docs)]
    Row { position: usize, actual: String, expected: String },
    /// A value of a type that no TPC-H result has.
    #[error(transparent)]
    Arrow(#[from] ArrowError),
}

/// Checks `actual` against `expected`, the rows of the reference without LIMIT.
pub fn verify(
    expected: &[RecordBatch],
    actual: &[RecordBatch],
    ordering: Ordering<'_>,
    rule: Rule,
) -> Result<(), Mismatch> {
    let rows = |batches: &[RecordBatch]| batches.iter().map(RecordBatch::num_rows).sum::<usize>();
    let wanted = rows(expected).min(ordering.limit.unwrap_or(usize::MAX));
    if rows(actual) != wanted {
        return Err(Mismatch::Rows { expected: wanted, actual: rows(actual) });
    }
    // A result of no rows may come without any batch, and then without columns to compare.
    let (Some(expected_batch), Some(actual_batch)) = (expected.first(), actual.first()) else { return Ok(()) };
    let tolerances = compare_columns(expected_batch, actual_batch, rule)?;
    let expected = Rows::new(expected, tolerances.len())?;
    let actual = Rows::new(actual, tolerances.len())?;
    for group in groups(&expected, ordering.keys) {
        let cut = group.start.min(wanted)..group.end.min(wanted);
        match_group(&expected, group, &actual, cut, &tolerances)?;
    }
    Ok(())
}

/// Checks names and kinds; returns each column's tolerance, `None` for columns compared exactly.
fn compare_columns(
    expected: &RecordBatch,
    actual: &RecordBatch,
    rule: Rule,
) -> Result<Vec<Option<Tolerance>>, Mismatch> {
    let describe = |batch: &RecordBatch| {
        let fields = batch.schema_ref().fields().iter();
        fields.map(|field| format!("{} {}", field.name(), field.data_type())).collect::<Vec<_>>().join(", ")
    };
    let differ = || Mismatch::Columns { expected: describe(expected), actual: describe(actual) };
    if expected.num_columns() != actual.num_columns() {
        return Err(differ());
    }
    let pairs = expected.schema_ref().fields().iter().zip(actual.schema_ref().fields());
    pairs
        .map(|(expected, actual)| {
            // Only names that the query gives are the same in every engine.
            if rule == Rule::SameEngine && expected.name() != actual.name() {
                return Err(differ());
            }
            let relative = FLOAT_TOLERANCE;
            match (Kind::of(expected.data_type()), Kind::of(actual.data_type())) {
                (Some(Kind::Float), Some(Kind::Float)) => Ok(Some(Tolerance { relative, absolute: 0.0 })),
                (Some(left), Some(right)) if left == right => Ok(None),
                (Some(Kind::Number), Some(Kind::Float)) if rule == Rule::OtherEngine => {
                    Ok(Some(Tolerance { relative, absolute: last_digit(expected.data_type()) }))
                }
                (Some(Kind::Float), Some(Kind::Number)) if rule == Rule::OtherEngine => {
                    Ok(Some(Tolerance { relative, absolute: last_digit(actual.data_type()) }))
                }
                _ => Err(differ()),
            }
        })
        .collect()
}

/// One unit of a decimal's last digit; nothing for integers.
fn last_digit(data_type: &DataType) -> f64 {
    match data_type {
        DataType::Decimal32(_, scale) | DataType::Decimal64(_, scale) | DataType::Decimal128(_, scale) => {
            10f64.powi(-i32::from(*scale))
        }
        _ => 0.0,
    }
}

/// A result's cells by column.
struct Rows {
    columns: Vec<Vec<Cell>>,
}

impl Rows {
    fn new(batches: &[RecordBatch], columns: usize) -> Result<Self, ArrowError> {
        Ok(Self { columns: (0..columns).map(|column| column_cells(batches, column)).collect::<Result<_, _>>()? })
    }

    fn len(&self) -> usize {
        self.columns.first().map_or(0, Vec::len)
    }

    fn describe(&self, row: usize) -> String {
        self.columns.iter().map(|column| column[row].to_string()).collect::<Vec<_>>().join(", ")
    }
}

/// Ranges of neighbouring rows with equal keys; without keys, one range of all rows.
fn groups(rows: &Rows, keys: &[usize]) -> Vec<Range<usize>> {
    let mut groups = Vec::new();
    if keys.is_empty() {
        groups.push(0..rows.len());
        return groups;
    }
    let mut start = 0;
    for row in 1..=rows.len() {
        let same = row < rows.len() && keys.iter().all(|&key| rows.columns[key][row] == rows.columns[key][start]);
        if !same {
            groups.push(start..row);
            start = row;
        }
    }
    groups
}

/// Finds for each actual row an expected row of the group that no other row has taken.
fn match_group(
    expected: &Rows,
    group: Range<usize>,
    actual: &Rows,
    positions: Range<usize>,
    tolerances: &[Option<Tolerance>],
) -> Result<(), Mismatch> {
    if positions.is_empty() {
        return Ok(());
    }
    let exact_cells = |rows: &Rows, row: usize| {
        let columns = rows.columns.iter().zip(tolerances);
        columns.filter(|(_, tolerance)| tolerance.is_none()).map(|(column, _)| column[row].clone()).collect::<Vec<_>>()
    };
    let mut free: HashMap<Vec<Cell>, Vec<usize>> = HashMap::new();
    for row in group.clone() {
        free.entry(exact_cells(expected, row)).or_default().push(row);
    }
    for position in positions {
        let close = |candidate: usize| {
            tolerances.iter().enumerate().all(|(column, tolerance)| {
                tolerance.is_none_or(|tolerance| {
                    tolerance.close(&expected.columns[column][candidate], &actual.columns[column][position])
                })
            })
        };
        let candidates = free.get_mut(&exact_cells(actual, position));
        let taken = candidates.and_then(|rows| {
            let index = rows.iter().position(|&candidate| close(candidate))?;
            Some(rows.swap_remove(index))
        });
        if taken.is_none() {
            let expected = match group.len() {
                1 => format!("({})", expected.describe(group.start)),
                rows => format!("one of {rows} rows like ({})", expected.describe(group.start)),
            };
            return Err(Mismatch::Row { position, actual: actual.describe(position), expected });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Decimal128Array, Float64Array, Int64Array, StringArray};

    use super::*;

    fn batch(names: &[&str], prices: &[i128], shares: &[f64]) -> RecordBatch {
        let prices = Decimal128Array::from(prices.to_vec()).with_precision_and_scale(15, 2).unwrap();
        RecordBatch::try_from_iter([
            ("name", Arc::new(StringArray::from(names.to_vec())) as ArrayRef),
            ("price", Arc::new(prices) as ArrayRef),
            ("share", Arc::new(Float64Array::from(shares.to_vec())) as ArrayRef),
        ])
        .unwrap()
    }

    fn reference() -> RecordBatch {
        batch(&["a", "b", "c", "d"], &[900, 700, 700, 500], &[0.1, 0.2, 0.2, 0.4])
    }

    const BY_PRICE: Ordering<'static> = Ordering { keys: &[1], limit: None };
    const ANY: Ordering<'static> = Ordering { keys: &[], limit: None };

    fn check(actual: RecordBatch, ordering: Ordering<'_>) -> Result<(), Mismatch> {
        verify(&[reference()], &[actual], ordering, Rule::SameEngine)
    }

    #[test]
    fn equal_results_pass() {
        check(reference(), ANY).unwrap();
        check(reference(), BY_PRICE).unwrap();
    }

    #[test]
    fn a_changed_decimal_is_found() {
        let actual = batch(&["a", "b", "c", "d"], &[900, 700, 700, 501], &[0.1, 0.2, 0.2, 0.4]);
        assert!(matches!(check(actual.clone(), ANY), Err(Mismatch::Row { position: 3, .. })));
        let error = check(actual, BY_PRICE).unwrap_err().to_string();
        assert!(error.contains("5.01"), "{error}");
    }

    #[test]
    fn missing_and_extra_rows_are_found() {
        assert!(matches!(check(reference().slice(0, 3), ANY), Err(Mismatch::Rows { expected: 4, actual: 3 })));
        let twice = verify(&[reference()], &[reference(), reference()], ANY, Rule::SameEngine);
        assert!(matches!(twice, Err(Mismatch::Rows { expected: 4, actual: 8 })));
        let none = verify(&[reference()], &[], ANY, Rule::SameEngine);
        assert!(matches!(none, Err(Mismatch::Rows { actual: 0, .. })));
    }

    #[test]
    fn a_row_twice_in_place_of_another_is_found() {
        let actual = batch(&["a", "b", "b", "d"], &[900, 700, 700, 500], &[0.1, 0.2, 0.2, 0.4]);
        assert!(matches!(check(actual, ANY), Err(Mismatch::Row { position: 2, .. })));
    }

    #[test]
    fn order_counts_only_where_the_query_asks_for_it_and_not_among_ties() {
        let ties = batch(&["a", "c", "b", "d"], &[900, 700, 700, 500], &[0.1, 0.2, 0.2, 0.4]);
        check(ties, BY_PRICE).unwrap();
        let reordered = batch(&["b", "a", "c", "d"], &[700, 900, 700, 500], &[0.2, 0.1, 0.2, 0.4]);
        check(reordered.clone(), ANY).unwrap();
        assert!(matches!(check(reordered, BY_PRICE), Err(Mismatch::Row { position: 0, .. })));
    }

    #[test]
    fn a_limit_may_cut_ties_anywhere_but_takes_no_row_twice() {
        let top_two = Ordering { keys: &[1], limit: Some(2) };
        for tie in ["b", "c"] {
            check(batch(&["a", tie], &[900, 700], &[0.1, 0.2]), top_two).unwrap();
        }
        assert!(check(batch(&["a", "d"], &[900, 500], &[0.1, 0.4]), top_two).is_err());
        let top_three = Ordering { keys: &[1], limit: Some(3) };
        assert!(check(batch(&["a", "b", "b"], &[900, 700, 700], &[0.1, 0.2, 0.2]), top_three).is_err());
    }

    #[test]
    fn floats_may_differ_in_the_last_digits_only() {
        let nearly = |share| batch(&["a", "b", "c", "d"], &[900, 700, 700, 500], &[0.1, 0.2, 0.2, share]);
        check(nearly(0.4 + 1e-12), ANY).unwrap();
        assert!(check(nearly(0.4 + 1e-8), ANY).is_err());
        assert!(check(nearly(f64::NAN), ANY).is_err());
    }

    #[test]
    fn nulls_equal_only_nulls() {
        let column = |values: Vec<Option<i64>>| {
            RecordBatch::try_from_iter([("v", Arc::new(Int64Array::from(values)) as ArrayRef)]).unwrap()
        };
        let compare = |left, right| verify(&[column(left)], &[column(right)], ANY, Rule::SameEngine);
        compare(vec![None, Some(1)], vec![Some(1), None]).unwrap();
        assert!(compare(vec![None], vec![Some(0)]).is_err());
    }

    #[test]
    fn another_engine_may_answer_with_a_float_for_a_decimal() {
        let names = StringArray::from(vec!["a", "b", "c", "d"]);
        let actual = RecordBatch::try_from_iter([
            ("name", Arc::new(names) as ArrayRef),
            ("price", Arc::new(Float64Array::from(vec![9.0, 7.0, 7.0, 4.995])) as ArrayRef),
            ("share", Arc::new(Float64Array::from(vec![0.1, 0.2, 0.2, 0.4])) as ArrayRef),
        ])
        .unwrap();
        verify(&[reference()], std::slice::from_ref(&actual), ANY, Rule::OtherEngine).unwrap();
        assert!(matches!(check(actual, ANY), Err(Mismatch::Columns { .. })));
    }
}
