//! Two transactions that want the same row: which of them is refused, and how.

use drsdb_core::{ErrorCode, ids::new_ulid};
use drsdb_storage::engine::StageOptions;

use super::support::{Factory, Fixture, keys, named, people, people_rows, statement};

/// Runs a statement that must be refused, and checks that it left nothing behind.
fn refused(
    fixture: &Fixture,
    options: StageOptions,
    table: &std::sync::Arc<drsdb_core::Table>,
    deletes: &[i64],
    inserts: &[(i64, &str)],
) -> ErrorCode {
    let before = fixture.engine().staged_transactions().unwrap();
    let error = fixture.change(options, table, deletes, inserts).map(|piece| format!("{piece:?}")).unwrap_err();
    assert_eq!(fixture.engine().staged_transactions().unwrap(), before, "{error}");
    let wire = error.to_wire();
    assert!(!wire.hint.is_empty() && wire.fields.contains_key("key"), "{wire:?}");
    wire.code
}

pub fn a_row_that_changed_after_the_snapshot(factory: Factory) {
    let mut fixture = Fixture::new(factory);
    let table = people();
    fixture.commit_change(&table, &[], &[(1, "a"), (2, "b"), (3, "c")], 1);
    fixture.commit_change(&table, &[1], &[(1, "a2")], 2);
    fixture.commit_change(&table, &[2], &[], 3);
    fixture.load(&table, &people_rows(&table, 10_000..12_000), 4);
    for _ in 0..2 {
        let at = |snapshot| statement(new_ulid(), 1, snapshot);
        assert_eq!(refused(&fixture, at(1), &table, &[1], &[]), ErrorCode::Conflict, "updated since");
        assert_eq!(refused(&fixture, at(2), &table, &[2], &[]), ErrorCode::Conflict, "deleted since");
        assert_eq!(refused(&fixture, at(3), &table, &[10_000], &[]), ErrorCode::Conflict, "inserted since");
        assert_eq!(refused(&fixture, at(2), &table, &[], &[(2, "b")]), ErrorCode::Conflict, "deleted since");
        assert_eq!(refused(&fixture, at(1), &table, &[], &[(1, "a")]), ErrorCode::Conflict, "updated since");
        let code = refused(&fixture, at(3), &table, &[], &[(10_000, "x")]);
        assert_eq!(code, ErrorCode::ConstraintViolation, "inserted since");
        fixture.restart();
    }
    // Those who see it may.
    let transaction = new_ulid();
    fixture.change(statement(transaction, 1, 4), &table, &[1, 10_000], &[(2, "b5"), (1, "a5")]).unwrap();
    fixture.engine().commit(transaction, 5).unwrap();
    assert_eq!(fixture.names(&table, 5, None)[..3], named(&[(1, "a5"), (2, "b5"), (3, "c")]));
}

pub fn a_row_that_is_not_there(factory: Factory) {
    let fixture = Fixture::new(factory);
    let table = people();
    let at = |snapshot| statement(new_ulid(), 1, snapshot);
    assert_eq!(refused(&fixture, at(0), &table, &[1], &[]), ErrorCode::Conflict, "no such shard");
    fixture.commit_change(&table, &[], &[(1, "a")], 1);
    assert_eq!(refused(&fixture, at(1), &table, &[2], &[]), ErrorCode::Conflict);
    assert_eq!(refused(&fixture, at(1), &table, &[1, 1], &[]), ErrorCode::Conflict, "twice in a statement");
    let transaction = new_ulid();
    fixture.change(statement(transaction, 1, 1), &table, &[1], &[]).unwrap();
    let again = refused(&fixture, statement(transaction, 2, 1), &table, &[1], &[]);
    assert_eq!(again, ErrorCode::Conflict, "twice in a transaction");
}

pub fn a_row_that_another_transaction_deletes(factory: Factory) {
    let mut fixture = Fixture::new(factory);
    let table = people();
    fixture.commit_change(&table, &[], &[(1, "a"), (2, "b")], 1);
    let holder = new_ulid();
    fixture.change(statement(holder, 1, 1), &table, &[1], &[]).unwrap();
    fixture.change(statement(holder, 2, 1), &table, &[2], &[(2, "b2"), (3, "c2")]).unwrap();
    for _ in 0..2 {
        let at = || statement(new_ulid(), 1, 1);
        for key in [1, 2, 3] {
            assert_eq!(refused(&fixture, at(), &table, &[key], &[]), ErrorCode::Conflict, "deleting {key}");
            assert_eq!(refused(&fixture, at(), &table, &[], &[(key, "x")]), ErrorCode::Conflict, "inserting {key}");
        }
        fixture.restart();
    }
    // An abort sets all of it free.
    fixture.engine().abort(holder).unwrap();
    fixture.commit_change(&table, &[1, 2], &[(1, "mine"), (3, "mine")], 2);
    assert_eq!(fixture.names(&table, 2, None), named(&[(1, "mine"), (3, "mine")]));
}

pub fn a_key_that_another_transaction_has_freed(factory: Factory) {
    let fixture = Fixture::new(factory);
    let table = people();
    fixture.commit_change(&table, &[], &[(1, "a")], 1);
    let holder = new_ulid();
    fixture.change(statement(holder, 1, 1), &table, &[1], &[]).unwrap();
    let inserting = |snapshot| (statement(new_ulid(), 1, snapshot), [(1, "b")]);
    let (options, rows) = inserting(1);
    assert_eq!(refused(&fixture, options, &table, &[], &rows), ErrorCode::Conflict, "not known yet");
    fixture.engine().commit(holder, 2).unwrap();
    let (options, rows) = inserting(1);
    assert_eq!(refused(&fixture, options, &table, &[], &rows), ErrorCode::Conflict, "after the snapshot");
    let (options, rows) = inserting(2);
    fixture.change(options, &table, &[], &rows).unwrap();
}

pub fn a_failed_statement_leaves_nothing(factory: Factory) {
    let fixture = Fixture::new(factory);
    let table = people();
    fixture.load(&table, &people_rows(&table, 0..20_000), 1);
    let transaction = new_ulid();
    fixture.change(statement(transaction, 1, 1), &table, &[7], &[(7, "seven")]).unwrap();
    // Fails at the last of many rows: what went before is undone, in the background too.
    let mut writer = fixture.engine().stage(statement(transaction, 2, 1), &table, 0).unwrap();
    writer.delete(&keys(&table, 0..19_999)).unwrap();
    let result = writer.delete(&keys(&table, [77_777])).and_then(|()| writer.finish().map(drop));
    assert_eq!(result.unwrap_err().code(), ErrorCode::Conflict);
    let own = fixture.names(&table, 1, Some((transaction, 9)));
    assert_eq!((own.len(), own[7].1.as_str()), (20_000, "seven"));
    fixture.change(statement(transaction, 2, 1), &table, &[7, 19_998], &[(19_998, "last")]).unwrap();
    fixture.engine().commit(transaction, 2).unwrap();
    let rows = fixture.names(&table, 2, None);
    assert_eq!((rows.len(), rows[19_997].1.as_str()), (19_999, "last"));
}

pub fn followers_take_what_the_first_let_through(factory: Factory) {
    let fixture = Fixture::new(factory);
    let table = people();
    fixture.commit_change(&table, &[], &[(1, "a")], 5);
    // The first replica checked at another version: here it does not matter.
    let transaction = new_ulid();
    let options = StageOptions { checked: false, ..statement(transaction, 1, 1) };
    fixture.change(options, &table, &[1], &[(1, "b")]).unwrap();
    fixture.change(StageOptions { sequence: 2, ..options }, &table, &[1], &[(2, "c")]).unwrap();
    fixture.engine().commit(transaction, 6).unwrap();
    assert_eq!(fixture.names(&table, 6, None), named(&[(2, "c")]));
    let options = StageOptions { checked: false, ..statement(new_ulid(), 1, 1) };
    fixture.change(options, &table, &[], &[(1, "deleted later than it reads")]).unwrap();
}

pub fn followers_refuse_what_is_in_the_way(factory: Factory) {
    let fixture = Fixture::new(factory);
    let table = people();
    fixture.commit_change(&table, &[], &[(1, "a"), (2, "b")], 1);
    fixture.change(statement(new_ulid(), 1, 1), &table, &[1], &[(3, "c")]).unwrap();
    let follower = || StageOptions { checked: false, ..statement(new_ulid(), 1, 1) };
    for (deletes, inserts) in
        [(vec![1], vec![]), (vec![3], vec![]), (vec![], vec![(1, "x")]), (vec![], vec![(3, "x")]), (vec![9], vec![])]
    {
        let code = refused(&fixture, follower(), &table, &deletes, &inserts);
        assert_eq!(code, ErrorCode::Conflict, "{deletes:?} {inserts:?}");
    }
    // That the first replica has no such row, and this one does, is not the user's fault.
    assert_eq!(refused(&fixture, follower(), &table, &[], &[(2, "x")]), ErrorCode::Conflict);
}
