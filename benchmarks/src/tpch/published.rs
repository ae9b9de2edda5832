//! The answers that the specification publishes for scale factor 1, against which the reference itself can be checked.
//!
//! They are text with two decimals, some rounded and some cut, so numbers may be apart by 0.01; the order of rows that
//! share their sort key is chance.

use anyhow::{Context, Result, ensure};
use arrow::{
    array::{Array, AsArray},
    compute::cast,
    datatypes::{DataType, Float64Type},
    record_batch::RecordBatch,
};

use super::Query;

/// The only scale factor with published answers.
pub const SCALE: f64 = 1.0;

/// How far a published number may be from the computed one.
const TOLERANCE: f64 = 0.0101;

/// How far query 17's number may be: the published one was computed from averages that were cut to two decimals.
const TOLERANCE_OF_AVERAGES: f64 = 0.05;

/// How many places a row may have moved among rows that share its key.
const WINDOW: usize = 64;

/// Checks a result at scale factor 1 against the published answer.
pub fn check(query: &Query, answer: &[RecordBatch]) -> Result<()> {
    let number = i32::from(query.number);
    let text = tpchgen::q_and_a::answers_sf1::answer(number).context("every query has a published answer")?;
    let rule = match number {
        // The key column of the copy that the library has is cut off after four characters.
        11 => Rule { skipped: 1, tolerance: TOLERANCE },
        17 => Rule { skipped: 0, tolerance: TOLERANCE_OF_AVERAGES },
        _ => Rule { skipped: 0, tolerance: TOLERANCE },
    };
    compare(text, answer, rule).with_context(|| format!("query {number} against the published answer"))
}

/// How a published answer is compared.
#[derive(Debug, Clone, Copy)]
struct Rule {
    /// Columns at the left that are not compared.
    skipped: usize,
    tolerance: f64,
}

fn compare(published: &str, answer: &[RecordBatch], rule: Rule) -> Result<()> {
    let lines = published.lines().filter(|line| !line.trim().is_empty()).skip(1);
    let published = lines.map(|line| line.split('|').map(str::trim).collect::<Vec<_>>()).collect::<Vec<_>>();
    let mut computed = Vec::new();
    for batch in answer {
        computed.extend(texts(batch)?.into_iter().map(Some));
    }
    ensure!(published.len() == computed.len(), "{} rows, published are {}", computed.len(), published.len());
    for (position, row) in published.iter().enumerate() {
        let window = position.saturating_sub(WINDOW)..(position + WINDOW).min(computed.len());
        let found = std::iter::once(position)
            .chain(window)
            .find(|&candidate| computed[candidate].as_ref().is_some_and(|computed| same(row, computed, rule)));
        let found = found.with_context(|| format!("row {position} is missing: {}", row.join(" | ")))?;
        computed[found] = None;
    }
    Ok(())
}

fn same(published: &[&str], computed: &[String], rule: Rule) -> bool {
    let mut pairs = published.iter().zip(computed).skip(rule.skipped);
    published.len() == computed.len()
        && pairs.all(|(left, right)| match (left.parse::<f64>(), right.parse::<f64>()) {
            (Ok(left), Ok(right)) => (left - right).abs() <= rule.tolerance,
            _ => left == right,
        })
}

/// A batch's values as text, row by row.
fn texts(batch: &RecordBatch) -> Result<Vec<Vec<String>>> {
    let mut rows = vec![Vec::with_capacity(batch.num_columns()); batch.num_rows()];
    for column in batch.columns() {
        if matches!(column.data_type(), DataType::Decimal128(..)) {
            let numbers = cast(column, &DataType::Float64)?;
            let numbers = numbers.as_primitive::<Float64Type>();
            rows.iter_mut().enumerate().for_each(|(row, cells)| cells.push(numbers.value(row).to_string()));
        } else {
            let strings = cast(column, &DataType::Utf8)?;
            let strings = strings.as_string::<i32>();
            for (row, cells) in rows.iter_mut().enumerate() {
                cells.push(if strings.is_null(row) { "NULL".to_owned() } else { strings.value(row).trim().to_owned() });
            }
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Float64Array, StringArray};

    use super::*;

    const PLAIN: Rule = Rule { skipped: 0, tolerance: TOLERANCE };
    const PUBLISHED: &str = "\nname |share  \na    | 0.33\nb    | 0.66\n";

    fn answer(names: [&str; 2], shares: [f64; 2]) -> Vec<RecordBatch> {
        let names = Arc::new(StringArray::from(names.to_vec())) as ArrayRef;
        let shares = Arc::new(Float64Array::from(shares.to_vec())) as ArrayRef;
        vec![RecordBatch::try_from_iter([("name", names), ("share", shares)]).unwrap()]
    }

    #[test]
    fn rounded_and_cut_numbers_pass_and_others_do_not() {
        compare(PUBLISHED, &answer(["a", "b"], [1.0 / 3.0, 2.0 / 3.0]), PLAIN).unwrap();
        assert!(compare(PUBLISHED, &answer(["a", "b"], [1.0 / 3.0, 0.68]), PLAIN).is_err());
        let second_only = Rule { skipped: 1, ..PLAIN };
        compare(PUBLISHED, &answer(["x", "y"], [1.0 / 3.0, 2.0 / 3.0]), second_only).unwrap();
        assert!(compare(PUBLISHED, &answer(["a", "c"], [1.0 / 3.0, 2.0 / 3.0]), PLAIN).is_err());
        assert!(compare(PUBLISHED, &answer(["a", "b"], [1.0 / 3.0, 2.0 / 3.0])[..0], PLAIN).is_err());
    }
}
