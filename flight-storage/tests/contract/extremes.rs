//! Tables and loads of unusual shape.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, new_null_array};
use drsdb_core::{SqlType, ids::new_ulid};
use drsdb_storage::engine::ScanRequest;

use super::support::{
    Factory, Fixture, TYPES, VALUES, batch, checked, ids, people, people_rows, plain, request, table, values,
};

pub fn a_thousand_columns(factory: Factory) {
    let mut fixture = Fixture::new(factory);
    let names: Vec<String> = (0..1000).map(|at| format!("column_{at}")).collect();
    let sql_type = |at: usize| if at == 0 { SqlType::BigInt } else { TYPES[at % TYPES.len()] };
    let columns: Vec<_> = names.iter().enumerate().map(|(at, name)| (name.as_str(), sql_type(at))).collect();
    let table = table(&columns, &[0]);
    let arrays = (0..1000).map(|at| match at {
        0 => Arc::new(Int64Array::from_iter_values(0..VALUES as i64)) as ArrayRef,
        _ if at % 7 == 0 => new_null_array(&sql_type(at).to_arrow(), VALUES),
        _ => values(sql_type(at)),
    });
    let rows = batch(&table, arrays.collect());
    fixture.load(&table, &rows, 1);
    fixture.restart();
    assert!(plain(&fixture.read(&table, 1)) == plain(&rows), "1,000 columns came back changed");
    let some = ScanRequest { projection: vec![999, 0, 500], ..request(&table, 1) };
    assert_eq!(plain(&fixture.scan(some).unwrap()), plain(&rows.project(&[999, 0, 500]).unwrap()));
}

pub fn names_that_are_words_or_hold_quotes(factory: Factory) {
    let mut fixture = Fixture::new(factory);
    let names = [
        "select", "a\"b", "a'b", "a b", "`", "[x]", "naïve", "日本", "rowid", "v_from", "v_to", "c0", "C0", "oid",
        "_rowid_", "from", "a.b", "a;--", "%s", "", " ", "\\", "\n", "null", "list", "element",
    ];
    let columns: Vec<_> = names.iter().map(|name| (*name, SqlType::BigInt)).collect();
    let key = [3, 8];
    let table = table(&columns, &key);
    let array = |at: usize| Arc::new(Int64Array::from_iter_values((0..5).map(|row| row + at as i64 * 10))) as ArrayRef;
    let rows = batch(&table, (0..names.len()).map(array).collect());
    fixture.load(&table, &rows, 1);
    fixture.restart();
    assert_eq!(plain(&fixture.read(&table, 1)), plain(&rows));
    let some = ScanRequest { projection: vec![12, 1, 8], ..request(&table, 1) };
    assert_eq!(plain(&fixture.scan(some).unwrap()), plain(&rows.project(&[12, 1, 8]).unwrap()));
}

pub fn a_load_without_rows(factory: Factory) {
    let fixture = Fixture::new(factory);
    let table = people();
    let transaction = new_ulid();
    let piece = fixture.engine().stage(checked(transaction), &table, 0).unwrap().finish().unwrap();
    assert_eq!(piece.rows, 0);
    let mut writer = fixture.engine().stage(checked(transaction), &table, 1).unwrap();
    writer.write(&RecordBatch::new_empty(table.arrow_schema())).unwrap();
    assert_eq!(writer.finish().unwrap().rows, 0);
    fixture.engine().commit(transaction, 1).unwrap();
    assert_eq!(fixture.count(&table, 9), 0);
    fixture.load(&table, &people_rows(&table, [1]), 2);
    assert_eq!(ids(&fixture.read(&table, 9)), [1]);
}

pub fn loads_far_larger_than_a_chunk(factory: Factory) {
    let mut fixture = Fixture::new(factory);
    let table = people();
    let transaction = new_ulid();
    let mut writer = fixture.engine().stage(checked(transaction), &table, 0).unwrap();
    let sizes = [1, 40_000, 3, 8192, 1, 20_000, 5];
    let mut from = 0;
    for size in sizes {
        writer.write(&people_rows(&table, from..from + size)).unwrap();
        from += size;
    }
    let piece = writer.finish().unwrap();
    assert_eq!(piece.rows, from as u64);
    assert!(piece.bytes > 0);
    assert_eq!(fixture.count(&table, u64::MAX), 0);
    fixture.engine().commit(transaction, 5).unwrap();
    assert_eq!(fixture.count(&table, 4), 0);
    assert_eq!(ids(&fixture.read(&table, 5)), (0..from).collect::<Vec<_>>());
    fixture.restart();
    assert_eq!(fixture.count(&table, 4), 0);
    assert_eq!(ids(&fixture.read(&table, 5)), (0..from).collect::<Vec<_>>());
}
