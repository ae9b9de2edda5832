//! Random tables, loads and filters: what an engine answers is what a list in memory answers.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, Int64Array, RecordBatch, UInt32Array},
    compute::{concat_batches, take},
};
use datafusion::{
    logical_expr::Operator,
    physical_expr::{
        PhysicalExpr,
        expressions::{BinaryExpr, Column, InListExpr, IsNotNullExpr, IsNullExpr, Literal, NotExpr},
    },
    scalar::ScalarValue,
};
use drsdb_core::{SqlType, Table, ids::new_ulid};
use drsdb_storage::engine::ScanRequest;
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};

use super::support::{Factory, Fixture, TYPES, VALUES, batch, filter, plain, request, table, values};

/// A filter before it knows the table: numbers that are taken modulo what there is.
#[derive(Debug, Clone)]
enum Test {
    Compare { column: usize, operator: usize, value: usize, swapped: bool },
    In { column: usize, members: Vec<usize>, negated: bool },
    IsNull { column: usize, negated: bool },
    Not(Box<Test>),
    And(Box<Test>, Box<Test>),
    Or(Box<Test>, Box<Test>),
}

#[derive(Debug, Clone)]
struct Load {
    shard: u32,
    committed: bool,
    /// For each row a number for each column, which picks a value.
    rows: Vec<Vec<usize>>,
}

#[derive(Debug, Clone)]
struct Case {
    types: Vec<usize>,
    loads: Vec<Load>,
    scans: Vec<Scan>,
}

#[derive(Debug, Clone)]
struct Scan {
    snapshot: u64,
    shards: Vec<u32>,
    filters: Vec<Test>,
    batch_rows: usize,
}

const MAX_COLUMNS: usize = 5;

fn tests() -> impl Strategy<Value = Test> {
    let number = || 0..1000_usize;
    let leaf = prop_oneof![
        4 => (number(), number(), number(), any::<bool>()).prop_map(|(column, operator, value, swapped)| {
            Test::Compare { column, operator, value, swapped }
        }),
        1 => (number(), prop::collection::vec(number(), 1..5), any::<bool>())
            .prop_map(|(column, members, negated)| Test::In { column, members, negated }),
        1 => (number(), any::<bool>()).prop_map(|(column, negated)| Test::IsNull { column, negated }),
    ];
    leaf.prop_recursive(3, 12, 2, |inner| {
        let pair = || (inner.clone(), inner.clone());
        prop_oneof![
            inner.clone().prop_map(|test| Test::Not(Box::new(test))),
            pair().prop_map(|(left, right)| Test::And(Box::new(left), Box::new(right))),
            pair().prop_map(|(left, right)| Test::Or(Box::new(left), Box::new(right))),
        ]
    })
}

fn cases() -> impl Strategy<Value = Case> {
    let row = prop::collection::vec(0..1000_usize, MAX_COLUMNS);
    let load = (0..3_u32, prop::bool::weighted(0.8), prop::collection::vec(row, 0..40))
        .prop_map(|(shard, committed, rows)| Load { shard, committed, rows });
    let scan =
        (0..6_u64, prop::sample::subsequence(vec![0, 1, 2], 1..=3), prop::collection::vec(tests(), 0..3), 1..50_usize)
            .prop_map(|(snapshot, shards, filters, batch_rows)| Scan { snapshot, shards, filters, batch_rows });
    (
        prop::collection::vec(0..TYPES.len(), 1..=MAX_COLUMNS),
        prop::collection::vec(load, 1..5),
        prop::collection::vec(scan, 1..8),
    )
        .prop_map(|(types, loads, scans)| Case { types, loads, scans })
}

const OPERATORS: [Operator; 6] =
    [Operator::Eq, Operator::NotEq, Operator::Lt, Operator::LtEq, Operator::Gt, Operator::GtEq];

/// The test as an expression over the table; column 0 is the id, which tests leave alone but for the first kind.
fn expression(test: &Test, table: &Table) -> Arc<dyn PhysicalExpr> {
    let column = |number: usize| {
        let position = number % table.columns.len();
        let expr: Arc<dyn PhysicalExpr> = Arc::new(Column::new(&table.columns[position].name, position));
        (expr, table.columns[position].sql_type)
    };
    let literal = |sql_type: SqlType, number: usize| -> Arc<dyn PhysicalExpr> {
        Arc::new(Literal::new(ScalarValue::try_from_array(&values(sql_type), number % VALUES).unwrap()))
    };
    match test {
        Test::Compare { column: number, operator, value, swapped } => {
            let (expr, sql_type) = column(*number);
            let (left, right) = (expr, literal(sql_type, *value));
            let (left, right) = if *swapped { (right, left) } else { (left, right) };
            Arc::new(BinaryExpr::new(left, OPERATORS[operator % OPERATORS.len()], right))
        }
        Test::In { column: number, members, negated } => {
            let (expr, sql_type) = column(*number);
            let members = members.iter().map(|member| literal(sql_type, *member)).collect();
            Arc::new(InListExpr::try_new(expr, members, *negated, &table.arrow_schema()).unwrap())
        }
        Test::IsNull { column: number, negated: false } => Arc::new(IsNullExpr::new(column(*number).0)),
        Test::IsNull { column: number, negated: true } => Arc::new(IsNotNullExpr::new(column(*number).0)),
        Test::Not(test) => Arc::new(NotExpr::new(expression(test, table))),
        Test::And(left, right) => {
            Arc::new(BinaryExpr::new(expression(left, table), Operator::And, expression(right, table)))
        }
        Test::Or(left, right) => {
            Arc::new(BinaryExpr::new(expression(left, table), Operator::Or, expression(right, table)))
        }
    }
}

/// Rows of a load; ids go on from `next_id`.
fn rows_of(load: &Load, table: &Table, next_id: i64) -> RecordBatch {
    let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(next_id..next_id + load.rows.len() as i64));
    let columns = table.columns.iter().enumerate().skip(1).map(|(position, column)| {
        let picks: UInt32Array = load.rows.iter().map(|row| Some((row[position - 1] % VALUES) as u32)).collect();
        take(&values(column.sql_type), &picks, None).unwrap()
    });
    batch(table, std::iter::once(ids).chain(columns).collect())
}

/// Loads the case into every engine and compares each scan of each with memory.
fn run(case: &Case, fixtures: &[Fixture]) {
    let names: Vec<String> = (0..case.types.len()).map(|at| format!("x{at}")).collect();
    let mut columns = vec![("id", SqlType::BigInt)];
    columns.extend(names.iter().zip(&case.types).map(|(name, sql_type)| (name.as_str(), TYPES[*sql_type])));
    let table = table(&columns, &[0]);

    let mut memory: Vec<(u64, u32, RecordBatch)> = vec![];
    let mut next_id = -20;
    for (version, load) in (1..).zip(&case.loads) {
        let rows = rows_of(load, &table, next_id);
        next_id += rows.num_rows() as i64;
        for fixture in fixtures {
            let transaction = new_ulid();
            fixture.stage_in(transaction, &table, load.shard, &rows).unwrap();
            if load.committed {
                fixture.engine().commit(transaction, version).unwrap();
            }
        }
        if load.committed {
            memory.push((version, load.shard, rows));
        }
    }

    for scan in &case.scans {
        let visible =
            memory.iter().filter(|(version, shard, _)| *version <= scan.snapshot && scan.shards.contains(shard));
        let visible: Vec<RecordBatch> = visible.map(|(_, _, rows)| rows.clone()).collect();
        let visible = concat_batches(&table.arrow_schema(), &visible).unwrap();
        let filters: Vec<_> = scan.filters.iter().map(|test| expression(test, &table)).collect();
        let expected = plain(&filter(&visible, &filters));
        for (engine, fixture) in fixtures.iter().enumerate() {
            let scanned = fixture
                .scan(ScanRequest {
                    shards: scan.shards.clone(),
                    filters: filters.clone(),
                    batch_rows: scan.batch_rows,
                    ..request(&table, scan.snapshot)
                })
                .unwrap();
            assert_eq!(plain(&filter(&scanned, &filters)), expected, "engine {engine}, filters {filters:?}");
        }
    }
    for fixture in fixtures {
        fixture.engine().drop_table(table.id).unwrap();
    }
}

fn run_cases(factories: &[Factory]) {
    let fixtures: Vec<Fixture> = factories.iter().map(|factory| Fixture::new(*factory)).collect();
    let config = Config { cases: 64, failure_persistence: None, ..Config::default() };
    TestRunner::new(config)
        .run(&cases(), |case| {
            run(&case, &fixtures);
            Ok(())
        })
        .unwrap();
}

/// One engine against memory.
pub fn random_tables_and_filters_agree_with_memory(factory: Factory) {
    run_cases(&[factory]);
}

/// Several engines, on the same tables, against memory.
pub fn engines_agree(factories: &[Factory]) {
    run_cases(factories);
}
