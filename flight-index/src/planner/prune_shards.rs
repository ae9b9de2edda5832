//! Leaves out the shards that cannot hold a match: when filters fix every column of the shard key to a few values, only
//! the shards of those values are read.

use std::collections::BTreeSet;

use arrow::array::ArrayRef;
use datafusion::{
    logical_expr::{BinaryExpr, Expr, Operator, expr::InList},
    scalar::ScalarValue,
};
use drsdb_core::{Result, Table, floats::canonical_scalar, shard::shards_of};

/// Combinations of key values beyond which pruning is not tried.
const MAX_KEYS: usize = 4096;

/// The shards that may hold rows for which all `filters` are true, in order.
pub fn shards_to_read(table: &Table, filters: &[Expr]) -> Result<Vec<u32>> {
    let all = || (0..table.shards).collect();
    if table.shard_key.is_empty() || table.shards == 1 {
        return Ok(all());
    }
    let mut values = Vec::new();
    for &position in &table.shard_key {
        let name = &table.columns[position].name;
        let of_column = filters.iter().filter_map(|filter| fixed_values(filter, name));
        // Any one filter's values are enough: the conjunction can only have fewer.
        let Some(of_column) = of_column.min_by_key(Vec::len) else { return Ok(all()) };
        let data_type = table.arrow_type(position);
        let cast: Vec<ScalarValue> = of_column
            .iter()
            .filter(|value| !value.is_null())
            .filter_map(|value| value.cast_to(&data_type).ok().map(canonical_scalar))
            .collect();
        if cast.len() != of_column.iter().filter(|value| !value.is_null()).count() {
            return Ok(all());
        }
        values.push(cast);
    }
    let combinations = values.iter().map(Vec::len).product::<usize>();
    if combinations > MAX_KEYS {
        return Ok(all());
    }
    if combinations == 0 {
        // The key is compared with NULL only: nothing matches.
        return Ok(Vec::new());
    }
    let mut columns: Vec<ArrayRef> = Vec::new();
    let mut repeat = 1;
    for of_column in &values {
        // Column c of combination i is value (i / product of the earlier lengths) mod its own length.
        let column = (0..combinations).map(|i| of_column[(i / repeat) % of_column.len()].clone());
        columns.push(ScalarValue::iter_to_array(column)?);
        repeat *= of_column.len();
    }
    let shards: BTreeSet<u32> = shards_of(&columns, table.shards)?.into_iter().collect();
    Ok(shards.into_iter().collect())
}

/// The values to which `filter` fixes the column, if it does.
fn fixed_values(filter: &Expr, column: &str) -> Option<Vec<ScalarValue>> {
    let is_column = |expr: &Expr| matches!(expr, Expr::Column(found) if found.name == column);
    match filter {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) => match (left.as_ref(), right.as_ref()) {
            (expr, Expr::Literal(value, _)) | (Expr::Literal(value, _), expr) if is_column(expr) => {
                Some(vec![value.clone()])
            }
            _ => None,
        },
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Or, right }) => {
            let mut values = fixed_values(left, column)?;
            values.extend(fixed_values(right, column)?);
            Some(values)
        }
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::And, right }) => {
            let sides = [fixed_values(left, column), fixed_values(right, column)];
            sides.into_iter().flatten().min_by_key(Vec::len)
        }
        Expr::InList(InList { expr, list, negated: false }) if is_column(expr) => list
            .iter()
            .map(|item| match item {
                Expr::Literal(value, _) => Some(value.clone()),
                _ => None,
            })
            .collect(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use datafusion::prelude::{col, lit};
    use drsdb_core::{Column, Engine, SqlType, TableName, Ulid, shard::SHARD_FUNCTION};
    use proptest::prelude::*;

    use super::*;

    fn table(key: &[usize]) -> Table {
        let column = |name: &str, sql_type| Column::new(name.to_owned(), sql_type, false);
        Table {
            id: Ulid::nil(),
            name: TableName::new("public", "t"),
            columns: vec![column("a", SqlType::BigInt), column("b", SqlType::Text), column("c", SqlType::Integer)],
            primary_key: key.to_vec(),
            foreign_keys: vec![],
            engine: Engine::Column,
            shards: 12,
            shard_key: key.to_vec(),
            shard_function: SHARD_FUNCTION,
            cluster_key: key.to_vec(),
            ..Table::default()
        }
    }

    proptest! {
        #[test]
        fn the_row_is_in_a_shard_that_is_read(a: i64, b in ".{0,20}", others in proptest::collection::vec(any::<i64>(), 0..5)) {
            let t = table(&[0, 1]);
            let list = others.iter().copied().chain([a]).map(lit).collect();
            let filters = [col("a").in_list(list, false), lit(b.clone()).eq(col("b")), col("c").gt(lit(3))];
            let read = shards_to_read(&t, &filters).unwrap();
            let key = [
                ScalarValue::Int64(Some(a)).to_array().unwrap(),
                ScalarValue::Utf8View(Some(b)).to_array().unwrap(),
            ];
            prop_assert!(read.contains(&shards_of(&key, 12).unwrap()[0]));
            prop_assert!(read.len() <= others.len() + 1);
        }
    }

    #[test]
    fn what_does_not_fix_the_key_reads_everything() {
        let t = table(&[0, 1]);
        for filters in [
            vec![],
            vec![col("a").eq(lit(1i64))],
            vec![col("a").eq(lit(1i64)), col("b").gt(lit("x"))],
            vec![col("a").eq(lit(1i64)).or(col("c").eq(lit(1))), col("b").eq(lit("x"))],
            vec![col("a").not_eq(lit(1i64)), col("b").eq(lit("x"))],
        ] {
            assert_eq!(shards_to_read(&t, &filters).unwrap().len(), 12, "{filters:?}");
        }
    }

    #[test]
    fn a_key_compared_with_null_reads_nothing() {
        let t = table(&[0]);
        let null = Expr::Literal(ScalarValue::Int64(None), None);
        assert_eq!(shards_to_read(&t, &[col("a").eq(null)]).unwrap(), Vec::<u32>::new());
    }
}
