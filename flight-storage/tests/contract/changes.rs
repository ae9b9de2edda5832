//! Deletions and updates: what they leave to be seen, by whom, and how they are undone.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, Int64Array, RecordBatch, StringViewArray, UInt32Array},
    compute::take,
};
use drsdb_core::{ErrorCode, SqlType, Table, Ulid, ids::new_ulid};

use super::support::{
    Factory, Fixture, TYPES, VALUES, batch, checked, keys, named, people, people_rows, statement, table, values,
};

pub fn a_deleted_row_stays_for_older_snapshots(factory: Factory) {
    let mut fixture = Fixture::new(factory);
    let table = people();
    fixture.commit_change(&table, &[], &[(1, "a"), (2, "b"), (3, "c")], 1);
    fixture.commit_change(&table, &[2], &[], 2);
    fixture.commit_change(&table, &[], &[(2, "again")], 3);
    for _ in 0..2 {
        assert_eq!(fixture.names(&table, 0, None), []);
        assert_eq!(fixture.names(&table, 1, None), named(&[(1, "a"), (2, "b"), (3, "c")]));
        assert_eq!(fixture.names(&table, 2, None), named(&[(1, "a"), (3, "c")]));
        assert_eq!(fixture.names(&table, 3, None), named(&[(1, "a"), (2, "again"), (3, "c")]));
        fixture.restart();
    }
}

pub fn an_update_replaces_a_row(factory: Factory) {
    let fixture = Fixture::new(factory);
    let table = people();
    fixture.commit_change(&table, &[], &[(1, "v1"), (2, "other")], 1);
    for version in 2..20 {
        fixture.commit_change(&table, &[1], &[(1, &format!("v{version}"))], version);
    }
    for version in 1..20 {
        let expected = named(&[(1, &format!("v{version}")), (2, "other")]);
        assert_eq!(fixture.names(&table, version, None), expected);
    }
    // A key may also change.
    fixture.commit_change(&table, &[1, 2], &[(2, "was 1"), (1, "was 2")], 20);
    assert_eq!(fixture.names(&table, 20, None), named(&[(1, "was 2"), (2, "was 1")]));
}

pub fn a_key_may_come_and_go_in_one_transaction(factory: Factory) {
    let mut fixture = Fixture::new(factory);
    let table = people();
    fixture.commit_change(&table, &[], &[(1, "old")], 1);
    // One that ends with a row, one that ends without, and one that begins and ends without.
    for (version, key, last) in [(2, 1, true), (3, 1, false), (4, 1, true), (5, 9, false)] {
        let transaction = new_ulid();
        let there = fixture.names(&table, version - 1, None).iter().any(|(id, _)| *id == key);
        if !there {
            fixture.change(statement(transaction, 1, version - 1), &table, &[], &[(key, "first")]).unwrap();
        }
        for sequence in 2..6 {
            let name = format!("{version}.{sequence}");
            let options = statement(transaction, sequence, version - 1);
            fixture.change(options, &table, &[key], &[(key, &name)]).unwrap();
            let own = fixture.names(&table, version - 1, Some((transaction, sequence)));
            assert!(own.contains(&(key, name)), "{own:?}");
        }
        if !last {
            fixture.change(statement(transaction, 6, version - 1), &table, &[key], &[]).unwrap();
        }
        fixture.restart();
        fixture.engine().commit(transaction, version).unwrap();
        let mut found = fixture.names(&table, version, None);
        found.retain(|(id, _)| *id == key);
        let expected = if last { vec![(key, format!("{version}.5"))] } else { vec![] };
        assert_eq!(found, expected, "version {version}");
        assert_eq!(fixture.names(&table, 1, None), named(&[(1, "old")]));
    }
}

pub fn a_transaction_sees_its_own_changes(factory: Factory) {
    let mut fixture = Fixture::new(factory);
    let table = people();
    fixture.commit_change(&table, &[], &[(1, "a"), (2, "b"), (3, "c")], 1);
    let (one, other) = (new_ulid(), new_ulid());
    fixture.change(statement(one, 1, 1), &table, &[1], &[(1, "a1"), (4, "d1")]).unwrap();
    fixture.change(statement(one, 2, 1), &table, &[4, 2], &[]).unwrap();
    fixture.change(statement(one, 3, 1), &table, &[], &[(4, "d3")]).unwrap();
    fixture.change(statement(other, 1, 1), &table, &[3], &[(3, "c other")]).unwrap();
    for _ in 0..2 {
        let own = |sequence| fixture.names(&table, 1, Some((one, sequence)));
        assert_eq!(own(0), named(&[(1, "a"), (2, "b"), (3, "c")]));
        assert_eq!(own(1), named(&[(1, "a1"), (2, "b"), (3, "c"), (4, "d1")]));
        assert_eq!(own(2), named(&[(1, "a1"), (3, "c")]));
        assert_eq!(own(3), named(&[(1, "a1"), (3, "c"), (4, "d3")]));
        assert_eq!(own(u32::MAX), own(3));
        assert_eq!(fixture.names(&table, u64::MAX, None), named(&[(1, "a"), (2, "b"), (3, "c")]));
        let others = fixture.names(&table, 1, Some((other, 1)));
        assert_eq!(others, named(&[(1, "a"), (2, "b"), (3, "c other")]));
        fixture.restart();
    }
    fixture.engine().commit(other, 2).unwrap();
    // A commit after the snapshot is still not to be seen.
    let own = fixture.names(&table, 1, Some((one, 3)));
    assert_eq!(own, named(&[(1, "a1"), (3, "c"), (4, "d3")]));
    fixture.engine().commit(one, 3).unwrap();
    assert_eq!(fixture.names(&table, 3, None), named(&[(1, "a1"), (3, "c other"), (4, "d3")]));
}

pub fn a_statement_that_is_rolled_back_never_was(factory: Factory) {
    let fixture = Fixture::new(factory);
    let table = people();
    fixture.commit_change(&table, &[], &[(1, "a"), (2, "b")], 1);
    let transaction = new_ulid();
    let step = |sequence, deletes: &[i64], inserts: &[(i64, &str)]| {
        fixture.change(statement(transaction, sequence, 1), &table, deletes, inserts).unwrap();
    };
    let own = || fixture.names(&table, 1, Some((transaction, u32::MAX)));
    let to = |sequence| fixture.engine().rollback_to(transaction, sequence).unwrap();
    step(1, &[1], &[(1, "a1")]);
    step(2, &[1], &[(1, "a2"), (3, "c2")]);
    step(3, &[3, 2], &[(3, "c3")]);
    to(3);
    assert_eq!(own(), named(&[(1, "a2"), (3, "c3")]));
    to(2);
    assert_eq!(own(), named(&[(1, "a2"), (2, "b"), (3, "c2")]));
    // The number is given again.
    step(3, &[1, 2, 3], &[]);
    assert_eq!(own(), []);
    to(1);
    assert_eq!(own(), named(&[(1, "a1"), (2, "b")]));
    to(1);
    step(2, &[], &[(3, "c")]);
    to(0);
    assert_eq!(own(), named(&[(1, "a"), (2, "b")]));
    assert_eq!(fixture.engine().staged_transactions().unwrap(), []);
    // Nothing is held against others.
    fixture.commit_change(&table, &[1, 2], &[(3, "new")], 2);
    fixture.engine().rollback_to(new_ulid(), 0).unwrap();
    assert_eq!(fixture.names(&table, 2, None), named(&[(3, "new")]));
}

pub fn a_rollback_survives_a_restart(factory: Factory) {
    let mut fixture = Fixture::new(factory);
    let table = people();
    fixture.commit_change(&table, &[], &[(1, "a")], 1);
    let transaction = new_ulid();
    for sequence in 1..4 {
        let options = statement(transaction, sequence, 1);
        fixture.change(options, &table, &[1], &[(1, &format!("a{sequence}"))]).unwrap();
    }
    fixture.engine().rollback_to(transaction, 1).unwrap();
    fixture.restart();
    assert_eq!(fixture.names(&table, 1, Some((transaction, 9))), named(&[(1, "a1")]));
    fixture.engine().commit(transaction, 2).unwrap();
    assert_eq!(fixture.names(&table, 2, None), named(&[(1, "a1")]));
}

/// `ids` once more, each with the name `name <id> <mark>`.
fn renamed(table: &Arc<Table>, ids: std::ops::Range<i64>, mark: &str) -> RecordBatch {
    let names: StringViewArray = ids.clone().map(|id| Some(format!("name {id} {mark}"))).collect();
    batch(table, vec![Arc::new(Int64Array::from_iter_values(ids)), Arc::new(names)])
}

fn update(fixture: &Fixture, table: &Arc<Table>, transaction: Ulid, sequence: u32, ids: std::ops::Range<i64>) {
    let options = statement(transaction, sequence, u64::MAX);
    let mut writer = fixture.engine().stage(options, table, 0).unwrap();
    writer.delete(&keys(table, ids.clone())).unwrap();
    writer.write(&renamed(table, ids, &sequence.to_string())).unwrap();
    writer.finish().unwrap();
}

pub fn large_changes_are_committed_and_undone_alike(factory: Factory) {
    const ROWS: i64 = 22_000;
    let mut fixture = Fixture::new(factory);
    let table = people();
    fixture.load(&table, &people_rows(&table, 0..ROWS), 1);
    let marks = |fixture: &Fixture, snapshot, own| {
        let rows = fixture.names(&table, snapshot, own);
        assert_eq!(rows.len() as i64, ROWS);
        let mark = |name: &str| name.splitn(3, ' ').nth(2).unwrap_or("").to_owned();
        let mut marks: Vec<String> = rows.iter().map(|(_, name)| mark(name)).collect();
        marks.dedup();
        marks
    };
    for (version, undo) in [(2, Some(1)), (3, Some(0)), (4, None)] {
        let transaction = new_ulid();
        update(&fixture, &table, transaction, 1, 0..ROWS);
        update(&fixture, &table, transaction, 2, 0..ROWS);
        // A small one that ends rows of large ones, and is followed by another large one.
        update(&fixture, &table, transaction, 3, 5..10);
        update(&fixture, &table, transaction, 4, 0..ROWS);
        assert_eq!(marks(&fixture, u64::MAX, Some((transaction, 2))), ["2"]);
        assert_eq!(marks(&fixture, u64::MAX, Some((transaction, 3))), ["2", "3", "2"]);
        assert_eq!(marks(&fixture, u64::MAX, Some((transaction, 4))), ["4"]);
        let before = marks(&fixture, version - 1, None);
        let expected = match undo {
            None => vec!["4".to_owned()],
            Some(sequence) => {
                fixture.engine().rollback_to(transaction, sequence).unwrap();
                // At once: what is undone in the background has not come far.
                update(&fixture, &table, transaction, 2, ROWS - 10..ROWS);
                let rest = if sequence == 0 { before[0].clone() } else { "1".to_owned() };
                vec![rest, "2".to_owned()]
            }
        };
        fixture.engine().commit(transaction, version).unwrap();
        for _ in 0..2 {
            assert_eq!(marks(&fixture, version, None), expected, "version {version}");
            assert_eq!(marks(&fixture, version - 1, None), before, "before version {version}");
            fixture.restart();
        }
    }
    fixture.compact(4);
    assert_eq!(marks(&fixture, 4, None), ["4"]);
    update(&fixture, &table, new_ulid(), 1, 0..ROWS);
}

pub fn changes_survive_a_restart(factory: Factory) {
    let mut fixture = Fixture::new(factory);
    let table = people();
    fixture.commit_change(&table, &[], &[(1, "a"), (2, "b")], 1);
    let (kept, dropped) = (new_ulid(), new_ulid());
    fixture.change(statement(kept, 1, 1), &table, &[1], &[(1, "kept")]).unwrap();
    fixture.change(statement(dropped, 1, 1), &table, &[2], &[(3, "dropped")]).unwrap();
    fixture.restart();
    assert_eq!(fixture.names(&table, u64::MAX, None), named(&[(1, "a"), (2, "b")]));
    fixture.engine().abort(dropped).unwrap();
    fixture.engine().commit(kept, 2).unwrap();
    // A commit may come again.
    fixture.restart();
    fixture.engine().commit(kept, 2).unwrap();
    assert_eq!(fixture.names(&table, 2, None), named(&[(1, "kept"), (2, "b")]));
    fixture.commit_change(&table, &[2], &[(3, "free")], 3);
}

pub fn a_table_without_a_key_deletes_nothing(factory: Factory) {
    let fixture = Fixture::new(factory);
    let table = table(&[("id", SqlType::BigInt), ("name", SqlType::Text)], &[]);
    fixture.load(&table, &people_rows(&table, [1, 1]), 1);
    let mut writer = fixture.engine().stage(checked(new_ulid()), &table, 0).unwrap();
    let schema = Arc::new(table.arrow_schema().project(&[0]).unwrap());
    let column: ArrayRef = Arc::new(Int64Array::from(vec![1]));
    let result = writer.delete(&RecordBatch::try_new(schema, vec![column]).unwrap());
    let error = result.and_then(|()| writer.finish().map(drop)).unwrap_err();
    assert_eq!(error.code(), ErrorCode::Unsupported, "{error}");
    assert_eq!(fixture.count(&table, 1), 2);
}

pub fn keys_of_every_type_can_be_deleted(factory: Factory) {
    let fixture = Fixture::new(factory);
    for (version, sql_type) in (1..).step_by(2).zip(TYPES) {
        let table = table(&[("key", *sql_type), ("n", SqlType::Integer), ("id", SqlType::BigInt)], &[0, 2]);
        let picks = UInt32Array::from_iter_values(0..VALUES as u32 - 1);
        let key = take(&values(*sql_type), &picks, None).unwrap();
        let rows = picks.len();
        let numbers: ArrayRef = Arc::new(arrow::array::Int32Array::from_iter_values(0..rows as i32));
        let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(0..rows as i64));
        fixture.load(&table, &batch(&table, vec![Arc::clone(&key), numbers, Arc::clone(&ids)]), version);
        for row in 0..rows {
            let transaction = new_ulid();
            let mut writer = fixture.engine().stage(statement(transaction, 1, version), &table, 0).unwrap();
            let columns = vec![key.slice(row, 1), ids.slice(row, 1)];
            writer.delete(&RecordBatch::try_new(table.key_schema(), columns).unwrap()).unwrap();
            writer.finish().unwrap();
            let own = Some(drsdb_core::scan::OwnWrites { transaction, sequence: 1 });
            let request = drsdb_storage::engine::ScanRequest { own, ..super::support::request(&table, version) };
            assert_eq!(fixture.scan(request).unwrap().num_rows(), rows - 1, "{sql_type}, row {row}");
            fixture.engine().abort(transaction).unwrap();
        }
    }
}
