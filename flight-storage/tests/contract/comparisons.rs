//! A pushed-down filter never loses a row: what an engine answers, filtered again, is what a filter in memory answers.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use datafusion::{
    logical_expr::Operator,
    physical_expr::{
        PhysicalExpr,
        expressions::{BinaryExpr, Column, InListExpr, IsNotNullExpr, IsNullExpr, Literal, NotExpr},
    },
    scalar::ScalarValue,
};
use drsdb_core::{SqlType, Table};
use drsdb_storage::engine::ScanRequest;

use super::support::{Factory, Fixture, TYPES, VALUES, batch, filter, plain, request, table, values};

const OPERATORS: [Operator; 6] =
    [Operator::Eq, Operator::NotEq, Operator::Lt, Operator::LtEq, Operator::Gt, Operator::GtEq];

/// A table `id BIGINT PRIMARY KEY, x <type>` with every value of the type, and both zeros where there are two.
fn table_of(sql_type: SqlType) -> (Arc<Table>, RecordBatch) {
    let table = table(&[("id", SqlType::BigInt), ("x", sql_type)], &[0]);
    let mut values = values(sql_type);
    let negative_zero: Option<ArrayRef> = match sql_type {
        SqlType::Real => Some(Arc::new(arrow::array::Float32Array::from(vec![-0.0, -f32::NAN]))),
        SqlType::Double => Some(Arc::new(arrow::array::Float64Array::from(vec![-0.0, -f64::NAN]))),
        _ => None,
    };
    if let Some(more) = negative_zero {
        values = arrow::compute::concat(&[values.as_ref(), more.as_ref()]).unwrap();
    }
    let ids = Int64Array::from_iter_values(0..values.len() as i64);
    let rows = batch(&table, vec![Arc::new(ids), values]);
    (table, rows)
}

fn column() -> Arc<dyn PhysicalExpr> {
    Arc::new(Column::new("x", 1))
}

fn literal(rows: &RecordBatch, row: usize) -> Arc<dyn PhysicalExpr> {
    Arc::new(Literal::new(ScalarValue::try_from_array(rows.column(1), row).unwrap()))
}

fn check(fixture: &Fixture, table: &Arc<Table>, rows: &RecordBatch, expr: Arc<dyn PhysicalExpr>) {
    let filters = vec![expr];
    let expected = plain(&filter(rows, &filters));
    let scanned = fixture.scan(ScanRequest { filters: filters.clone(), ..request(table, 1) }).unwrap();
    let got = plain(&filter(&scanned, &filters));
    assert_eq!(got, expected, "{} with {}", table.columns[1].sql_type, filters[0]);
}

pub fn every_comparison_with_every_value_of_every_type(factory: Factory) {
    let fixture = Fixture::new(factory);
    for &sql_type in TYPES {
        let (table, rows) = table_of(sql_type);
        fixture.load(&table, &rows, 1);
        for row in 0..rows.num_rows() {
            for operator in OPERATORS {
                let expr: Arc<dyn PhysicalExpr> = Arc::new(BinaryExpr::new(column(), operator, literal(&rows, row)));
                check(&fixture, &table, &rows, Arc::clone(&expr));
                check(&fixture, &table, &rows, Arc::new(NotExpr::new(expr)));
                check(&fixture, &table, &rows, Arc::new(BinaryExpr::new(literal(&rows, row), operator, column())));
            }
        }
    }
}

pub fn null_tests_and_lists(factory: Factory) {
    let fixture = Fixture::new(factory);
    for &sql_type in TYPES {
        let (table, rows) = table_of(sql_type);
        fixture.load(&table, &rows, 1);
        let tests: [Arc<dyn PhysicalExpr>; 2] =
            [Arc::new(IsNullExpr::new(column())), Arc::new(IsNotNullExpr::new(column()))];
        for test in tests {
            check(&fixture, &table, &rows, Arc::clone(&test));
            check(&fixture, &table, &rows, Arc::new(NotExpr::new(test)));
        }
        let schema = table.arrow_schema();
        for members in [vec![0], vec![1, 4], vec![0, 2, 4, 6, 8, 10], vec![4, VALUES - 1], vec![VALUES - 1]] {
            let list: Vec<_> = members.iter().map(|&member| literal(&rows, member)).collect();
            for negated in [false, true] {
                let test = InListExpr::try_new(column(), list.clone(), negated, &schema).unwrap();
                let test: Arc<dyn PhysicalExpr> = Arc::new(test);
                check(&fixture, &table, &rows, Arc::clone(&test));
                check(&fixture, &table, &rows, Arc::new(NotExpr::new(test)));
            }
        }
        let between = BinaryExpr::new(
            Arc::new(BinaryExpr::new(column(), Operator::GtEq, literal(&rows, 2))),
            Operator::And,
            Arc::new(BinaryExpr::new(column(), Operator::LtEq, literal(&rows, 7))),
        );
        check(&fixture, &table, &rows, Arc::new(between.clone()));
        check(&fixture, &table, &rows, Arc::new(NotExpr::new(Arc::new(between))));
        for constant in [Some(true), Some(false), None] {
            check(&fixture, &table, &rows, Arc::new(Literal::new(ScalarValue::Boolean(constant))));
        }
    }
}
