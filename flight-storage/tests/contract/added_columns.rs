//! Tables whose definition grew after rows were written.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, StringViewArray},
    datatypes::Int64Type,
};
use datafusion::{
    logical_expr::Operator,
    physical_expr::{
        PhysicalExpr,
        expressions::{binary, col, is_null, lit},
    },
};
use drsdb_core::{Column, SqlType, Table, ids::new_ulid, initial::initial_literal};
use drsdb_storage::engine::ScanRequest;

use super::support::{
    Factory, Fixture, TYPES, VALUES, batch, checked, filter, ids, keys, people, people_rows, plain, request, values,
};

/// The table with one more column.
fn with_column(table: &Table, sql_type: SqlType, initial: Option<&str>) -> Arc<Table> {
    let mut table = table.clone();
    let name = format!("added{}", table.columns.len());
    table.columns.push(Column { initial: initial.map(str::to_owned), ..Column::new(name, sql_type, false) });
    table.version += 1;
    Arc::new(table)
}

fn rows(table: &Arc<Table>, ids: &[i64], added: &[Option<i64>]) -> RecordBatch {
    let names: StringViewArray = ids.iter().map(|id| Some(format!("name {id}"))).collect();
    let columns: Vec<ArrayRef> =
        vec![Arc::new(Int64Array::from(ids.to_vec())), Arc::new(names), Arc::new(Int64Array::from(added.to_vec()))];
    batch(table, columns)
}

fn added(fixture: &Fixture, table: &Arc<Table>, snapshot: u64) -> Vec<(i64, Option<i64>)> {
    let rows = fixture.scan(ScanRequest { projection: vec![2, 0], ..request(table, snapshot) }).unwrap();
    let ids = rows.column(1).as_primitive::<Int64Type>().values().to_vec();
    let mut rows: Vec<_> = ids.into_iter().zip(rows.column(0).as_primitive::<Int64Type>().iter()).collect();
    rows.sort_unstable();
    rows
}

pub fn rows_from_before_read_as_the_initial_value(factory: Factory) {
    let mut fixture = Fixture::new(factory);
    let old = people();
    fixture.load(&old, &people_rows(&old, [1, 2]), 1);
    let new = with_column(&old, SqlType::BigInt, Some("42"));
    for _ in 0..2 {
        assert_eq!(added(&fixture, &new, 1), [(1, Some(42)), (2, Some(42))], "before any row of the new definition");
        assert_eq!(fixture.scan(ScanRequest { projection: vec![], ..request(&new, 1) }).unwrap().num_rows(), 2);
        fixture.restart();
    }
    fixture.load(&new, &rows(&new, &[3, 4], &[Some(7), None]), 2);
    for _ in 0..2 {
        assert_eq!(added(&fixture, &new, 2), [(1, Some(42)), (2, Some(42)), (3, Some(7)), (4, None)]);
        // A query that runs with the definition of its snapshot.
        assert_eq!(plain(&fixture.read(&old, 1)), plain(&people_rows(&old, [1, 2])));
        fixture.restart();
    }
    // An update writes it down.
    let transaction = new_ulid();
    let mut writer = fixture.engine().stage(checked(transaction), &new, 0).unwrap();
    writer.delete(&keys(&new, [1])).unwrap();
    writer.write(&rows(&new, &[1], &[None])).unwrap();
    writer.finish().unwrap();
    fixture.engine().commit(transaction, 3).unwrap();
    let newest = with_column(&new, SqlType::Text, None);
    assert_eq!(added(&fixture, &newest, 3), [(1, None), (2, Some(42)), (3, Some(7)), (4, None)]);
    let all = fixture.read(&newest, 3);
    assert_eq!(all.column(3).null_count(), 4, "no initial value: NULL");
}

pub fn initial_values_of_every_type(factory: Factory) {
    let fixture = Fixture::new(factory);
    let mut table = people();
    fixture.load(&table, &people_rows(&table, [1]), 1);
    let mut expected: Vec<ArrayRef> = vec![];
    for sql_type in TYPES {
        let all = values(*sql_type);
        for at in 0..VALUES {
            let value = all.slice(at, 1);
            // Some extremes have no text, and so cannot be given.
            let Ok(literal) = initial_literal(*sql_type, &value) else { continue };
            table = with_column(&table, *sql_type, Some(&literal));
            expected.push(value);
        }
    }
    assert!(expected.len() > TYPES.len() * 8, "{}", expected.len());
    let check = |what: &str| {
        let read = fixture.read(&table, 1);
        for (position, value) in expected.iter().enumerate() {
            let column = &table.columns[position + 2];
            let read = read.column(position + 2).to_data();
            assert_eq!(read, value.to_data(), "{what}: {} DEFAULT {:?}", column.sql_type, column.initial);
        }
    };
    check("as a literal");
    // Now the engine may keep it with the rows.
    let mut columns = people_rows(&people(), [2]).columns().to_vec();
    columns.extend(expected.iter().cloned());
    fixture.stage(&table, &batch(&table, columns)).unwrap();
    check("as a default");
}

pub fn filters_on_an_added_column(factory: Factory) {
    let fixture = Fixture::new(factory);
    let old = people();
    fixture.load(&old, &people_rows(&old, 0..10), 1);
    let new = with_column(&old, SqlType::BigInt, Some("42"));
    let schema = new.arrow_schema();
    let column = || col("added2", &schema).unwrap();
    let compare = |operator, value: i64| binary(column(), operator, lit(value), &schema).unwrap();
    let id: Arc<dyn PhysicalExpr> = binary(col("id", &schema).unwrap(), Operator::Lt, lit(3_i64), &schema).unwrap();
    for round in 0..2 {
        for (filters, expected) in [
            (vec![compare(Operator::Eq, 42)], (0..10).collect::<Vec<i64>>()),
            (vec![compare(Operator::Eq, 42), Arc::clone(&id)], vec![0, 1, 2]),
            (vec![compare(Operator::Gt, 42)], vec![]),
            (vec![is_null(column()).unwrap()], if round == 0 { vec![] } else { vec![10] }),
        ] {
            let found = fixture.scan(ScanRequest { filters: filters.clone(), ..request(&new, 2) }).unwrap();
            assert_eq!(ids(&filter(&found, &filters)), expected, "{filters:?}");
        }
        if round == 0 {
            fixture.load(&new, &rows(&new, &[10], &[None]), 2);
        }
    }
}

pub fn a_dropped_column_takes_null(factory: Factory) {
    let fixture = Fixture::new(factory);
    let mut table = Table::clone(&people());
    table.columns[1].not_null = true;
    let before = Arc::new(table.clone());
    fixture.load(&before, &people_rows(&before, [1]), 1);
    table.columns[1].not_null = false;
    table.columns[1].dropped = true;
    let after = Arc::new(table);
    let columns: Vec<ArrayRef> =
        vec![Arc::new(Int64Array::from(vec![2])), Arc::new(StringViewArray::from(vec![None::<&str>]))];
    fixture.load(&after, &batch(&after, columns), 2);
    assert_eq!(ids(&fixture.read(&after, 2)), [1, 2]);
}

pub fn statements_from_before_the_change_fill_in_the_initial_value(factory: Factory) {
    let fixture = Fixture::new(factory);
    let old = people();
    let new = with_column(&old, SqlType::BigInt, Some("42"));
    // Staged before, committed after: what it wrote is older than the column.
    let early = fixture.stage(&old, &people_rows(&old, [1])).unwrap();
    fixture.load(&new, &rows(&new, &[2], &[Some(7)]), 1);
    let late = fixture.stage(&old, &people_rows(&old, [3])).unwrap();
    fixture.engine().commit(early, 2).unwrap();
    fixture.engine().commit(late, 3).unwrap();
    assert_eq!(added(&fixture, &new, 3), [(1, Some(42)), (2, Some(7)), (3, Some(42))]);
}
