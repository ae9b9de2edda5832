//! The primary key: what is refused, with which code, and what is free again afterwards.

use std::sync::Arc;

use arrow::array::{Array, Int64Array, RecordBatch, StringViewArray};
use drsdb_core::{Error, ErrorCode, Result, SqlType, Table, Ulid, ids::new_ulid};
use drsdb_storage::engine::StagedPiece;

use super::support::{Factory, Fixture, TYPES, VALUES, batch, checked, ids, people, people_rows, plain, table, values};

/// Checks code and fields.
fn assert_refused(result: Result<impl std::fmt::Debug>, code: ErrorCode, key: &str) {
    let error: Error = result.expect_err("a key that is there twice went through");
    let wire = error.to_wire();
    assert_eq!(wire.code, code, "{wire}");
    assert_eq!(wire.fields.get("constraint").map(String::as_str), Some("t_pkey"), "{wire:?}");
    assert!(wire.fields.get("key").is_some_and(|text| text.contains(key)), "{wire:?} does not name {key}");
}

fn stage_batches(
    fixture: &Fixture,
    transaction: Ulid,
    table: &Arc<Table>,
    batches: &[RecordBatch],
) -> Result<StagedPiece> {
    let mut writer = fixture.engine().stage(checked(transaction), table, 0)?;
    for batch in batches {
        writer.write(batch)?;
    }
    writer.finish()
}

pub fn a_key_twice_in_a_batch_is_refused(factory: Factory) {
    let fixture = Fixture::new(factory);
    let table = people();
    let result = fixture.stage(&table, &people_rows(&table, [1, 77, 2, 77]));
    assert_refused(result, ErrorCode::ConstraintViolation, "77");
    assert_eq!(fixture.engine().staged_transactions().unwrap(), []);
    fixture.load(&table, &people_rows(&table, [1, 77, 2]), 1);
    assert_eq!(ids(&fixture.read(&table, 1)), [1, 2, 77]);
}

pub fn a_key_twice_in_a_load_is_refused(factory: Factory) {
    let fixture = Fixture::new(factory);
    let table = people();
    let batches = [people_rows(&table, 0..10_000), people_rows(&table, 10_000..30_000), people_rows(&table, [7777])];
    assert_refused(stage_batches(&fixture, new_ulid(), &table, &batches), ErrorCode::ConstraintViolation, "7777");
    assert_eq!(fixture.engine().staged_transactions().unwrap(), []);
    fixture.load(&table, &people_rows(&table, 0..30_000), 1);
    assert_eq!(fixture.count(&table, 1), 30_000);
}

pub fn a_key_twice_in_a_transaction_is_refused(factory: Factory) {
    let fixture = Fixture::new(factory);
    let table = people();
    let transaction = fixture.stage(&table, &people_rows(&table, [1, 2])).unwrap();
    let again = fixture.stage_in(transaction, &table, 0, &people_rows(&table, [3, 2]));
    assert_refused(again, ErrorCode::ConstraintViolation, "2");
    fixture.stage_in(transaction, &table, 0, &people_rows(&table, [3, 4])).unwrap();
    fixture.engine().commit(transaction, 1).unwrap();
    assert_eq!(ids(&fixture.read(&table, 1)), [1, 2, 3, 4]);
}

pub fn a_committed_key_is_refused(factory: Factory) {
    let mut fixture = Fixture::new(factory);
    let table = people();
    fixture.load(&table, &people_rows(&table, [1, 2, 3]), 1);
    for _ in 0..2 {
        let result = fixture.stage(&table, &people_rows(&table, [4, 2]));
        assert_refused(result, ErrorCode::ConstraintViolation, "2");
        fixture.restart();
    }
    fixture.load(&table, &people_rows(&table, [4]), 2);
    assert_eq!(ids(&fixture.read(&table, 2)), [1, 2, 3, 4]);
}

pub fn a_large_committed_load_guards_its_keys(factory: Factory) {
    let mut fixture = Fixture::new(factory);
    let table = people();
    fixture.load(&table, &people_rows(&table, 0..20_000), 1);
    for key in [0_i64, 9_999, 19_999] {
        let result = fixture.stage(&table, &people_rows(&table, [30_000, key]));
        assert_refused(result, ErrorCode::ConstraintViolation, &key.to_string());
        fixture.restart();
    }
    fixture.load(&table, &people_rows(&table, 20_000..40_000), 2);
    assert_eq!(fixture.count(&table, 2), 40_000);
}

pub fn a_staged_key_is_a_conflict(factory: Factory) {
    let mut fixture = Fixture::new(factory);
    let table = people();
    let first = fixture.stage(&table, &people_rows(&table, [1, 2])).unwrap();
    let second = fixture.stage(&table, &people_rows(&table, [2, 3]));
    assert_refused(second, ErrorCode::Conflict, "2");
    fixture.restart();
    let third = fixture.stage(&table, &people_rows(&table, [2, 3]));
    assert_refused(third, ErrorCode::Conflict, "2");
    fixture.engine().abort(first).unwrap();
    fixture.load(&table, &people_rows(&table, [2, 3]), 1);
    assert_eq!(ids(&fixture.read(&table, 1)), [2, 3]);
}

pub fn keys_of_every_type(factory: Factory) {
    let fixture = Fixture::new(factory);
    for &sql_type in TYPES {
        // BOOLEAN has too few values; INTERVAL has no order, and equal intervals that are written differently.
        if matches!(sql_type, SqlType::Boolean | SqlType::Interval) {
            continue;
        }
        let table = table(&[("x", sql_type)], &[0]);
        let rows = batch(&table, vec![values(sql_type).slice(0, VALUES - 1)]);
        fixture.load(&table, &rows, 1);
        assert_eq!(plain(&fixture.read(&table, 1)), plain(&rows), "{sql_type}");
        for row in 0..rows.num_rows() {
            let result = fixture.stage(&table, &rows.slice(row, 1));
            assert_refused(result, ErrorCode::ConstraintViolation, "");
        }
    }
}

pub fn compound_keys_compare_by_part(factory: Factory) {
    let fixture = Fixture::new(factory);
    let table = table(&[("a", SqlType::Text), ("v", SqlType::BigInt), ("b", SqlType::Text)], &[2, 0]);
    let rows = |keys: &[(&str, &str)]| {
        let a: StringViewArray = keys.iter().map(|(a, _)| Some(*a)).collect();
        let b: StringViewArray = keys.iter().map(|(_, b)| Some(*b)).collect();
        let v = Int64Array::from(vec![Some(1); keys.len()]);
        batch(&table, vec![Arc::new(a), Arc::new(v), Arc::new(b)])
    };
    fixture.load(&table, &rows(&[("a", "bc"), ("ab", "c"), ("abc", ""), ("", "abc"), ("bc", "a"), ("a\0", "b")]), 1);
    assert_refused(fixture.stage(&table, &rows(&[("x", "y"), ("ab", "c")])), ErrorCode::ConstraintViolation, "ab");
    fixture.load(&table, &rows(&[("c", "ab"), ("a", "\0b")]), 2);
    assert_eq!(fixture.count(&table, 2), 8);
}

pub fn without_a_key_rows_may_repeat(factory: Factory) {
    let fixture = Fixture::new(factory);
    let table = table(&[("id", SqlType::BigInt), ("name", SqlType::Text)], &[]);
    fixture.load(&table, &people_rows(&table, [1, 1, 2]), 1);
    fixture.load(&table, &people_rows(&table, [1]), 2);
    let nulls = RecordBatch::try_new(
        table.arrow_schema(),
        table.columns.iter().map(|column| arrow::array::new_null_array(&column.sql_type.to_arrow(), 2)).collect(),
    );
    fixture.load(&table, &nulls.unwrap(), 3);
    let read = fixture.read(&table, 3);
    assert_eq!((read.num_rows(), read.column(0).null_count()), (6, 2));
    assert_eq!(ids(&fixture.read(&table, 2)), [1, 1, 1, 2]);
}

pub fn a_key_may_come_back_in_another_shard(factory: Factory) {
    // Which shard a key belongs to is decided above the engine: the engine compares within a shard and a table only.
    let fixture = Fixture::new(factory);
    let (one, other) = (people(), people());
    fixture.load_in(&one, 0, &people_rows(&one, [1]), 1);
    fixture.load_in(&one, 1, &people_rows(&one, [1]), 2);
    fixture.load_in(&other, 0, &people_rows(&other, [1]), 3);
    assert_eq!((fixture.count(&one, 9), fixture.count(&other, 9)), (1, 1));
}
