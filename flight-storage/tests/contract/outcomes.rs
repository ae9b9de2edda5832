//! Commit, abort, restart: each transaction has one outcome and keeps it.

use drsdb_core::{ErrorCode, ids::new_ulid};
use drsdb_storage::engine::ScanRequest;

use super::support::{Factory, Fixture, checked, ids, people, people_rows, plain, request};

pub fn staged_rows_are_invisible_until_commit(factory: Factory) {
    let fixture = Fixture::new(factory);
    let table = people();
    let transaction = fixture.stage(&table, &people_rows(&table, [1, 2])).unwrap();
    assert_eq!(fixture.count(&table, u64::MAX), 0);
    assert_eq!(fixture.engine().staged_transactions().unwrap(), [transaction]);
    fixture.engine().commit(transaction, 7).unwrap();
    assert_eq!((fixture.count(&table, 6), fixture.count(&table, 7)), (0, 2));
    assert_eq!(fixture.engine().staged_transactions().unwrap(), []);
}

pub fn an_abort_leaves_nothing(factory: Factory) {
    let mut fixture = Fixture::new(factory);
    let table = people();
    let transaction = fixture.stage(&table, &people_rows(&table, [1, 2])).unwrap();
    fixture.engine().abort(transaction).unwrap();
    fixture.engine().abort(transaction).unwrap();
    fixture.engine().abort(new_ulid()).unwrap();
    // A commit that comes late finds nothing.
    fixture.engine().commit(transaction, 3).unwrap();
    for _ in 0..2 {
        assert_eq!(fixture.count(&table, u64::MAX), 0);
        assert_eq!(fixture.engine().staged_transactions().unwrap(), []);
        fixture.restart();
    }
    fixture.load(&table, &people_rows(&table, [1, 2]), 4);
    assert_eq!(ids(&fixture.read(&table, 4)), [1, 2]);
}

pub fn an_abort_of_a_large_load_frees_its_keys(factory: Factory) {
    let mut fixture = Fixture::new(factory);
    let table = people();
    fixture.load(&table, &people_rows(&table, [-1]), 1);
    let transaction = fixture.stage(&table, &people_rows(&table, 0..60_000)).unwrap();
    fixture.engine().abort(transaction).unwrap();
    // At once, from the end: an engine that removes rows in the background has not come here yet.
    fixture.load(&table, &people_rows(&table, (0..60_000).rev()), 2);
    fixture.restart();
    assert_eq!(ids(&fixture.read(&table, 2)), (-1..60_000).collect::<Vec<_>>());
}

pub fn an_abort_after_the_commit_does_nothing(factory: Factory) {
    let fixture = Fixture::new(factory);
    let table = people();
    for (rows, version) in [(2, 1), (20_000, 2)] {
        let from = 1_000_000 * version as i64;
        let transaction = fixture.stage(&table, &people_rows(&table, from..from + rows)).unwrap();
        fixture.engine().commit(transaction, version).unwrap();
        fixture.engine().abort(transaction).unwrap();
    }
    assert_eq!(fixture.count(&table, 2), 20_002);
}

pub fn a_commit_can_be_replayed(factory: Factory) {
    let mut fixture = Fixture::new(factory);
    let table = people();
    let small = fixture.stage(&table, &people_rows(&table, 0..2)).unwrap();
    let large = fixture.stage(&table, &people_rows(&table, 2..20_000)).unwrap();
    for round in 0..3 {
        fixture.engine().commit(small, 4).unwrap();
        fixture.engine().commit(large, 5).unwrap();
        fixture.engine().commit(new_ulid(), 6).unwrap();
        let counts = [3, 4, 5, 6].map(|snapshot| fixture.count(&table, snapshot));
        assert_eq!(counts, [0, 2, 20_000, 20_000], "round {round}");
        fixture.restart();
    }
}

pub fn a_transaction_commits_all_its_shards_and_tables(factory: Factory) {
    let mut fixture = Fixture::new(factory);
    let (one, other) = (people(), people());
    let transaction = new_ulid();
    for shard in 0..3 {
        let from = i64::from(shard) * 10_000;
        fixture.stage_in(transaction, &one, shard, &people_rows(&one, from..from + 10)).unwrap();
        fixture.stage_in(transaction, &other, shard, &people_rows(&other, from..from + 3000)).unwrap();
    }
    // Two writers of one shard are two pieces of the same transaction.
    fixture.stage_in(transaction, &one, 0, &people_rows(&one, 500..505)).unwrap();
    fixture.restart();
    assert_eq!(fixture.engine().staged_transactions().unwrap(), [transaction]);
    fixture.engine().commit(transaction, 1).unwrap();
    let all = |table, snapshot| {
        fixture.scan(ScanRequest { shards: vec![0, 1, 2], ..request(table, snapshot) }).unwrap().num_rows()
    };
    assert_eq!((all(&one, 0), all(&other, 0)), (0, 0));
    assert_eq!((all(&one, 1), all(&other, 1)), (35, 9000));
}

pub fn a_writer_that_is_dropped_leaves_nothing(factory: Factory) {
    let mut fixture = Fixture::new(factory);
    let table = people();
    for rows in [10, 50_000] {
        let mut writer = fixture.engine().stage(checked(new_ulid()), &table, 0).unwrap();
        writer.write(&people_rows(&table, 0..rows)).unwrap();
        drop(writer);
        assert_eq!(fixture.engine().staged_transactions().unwrap(), []);
        assert_eq!(fixture.count(&table, u64::MAX), 0);
    }
    fixture.load(&table, &people_rows(&table, (0..50_000).rev()), 1);
    fixture.restart();
    assert_eq!(fixture.count(&table, 1), 50_000);
}

pub fn staged_rows_survive_a_restart(factory: Factory) {
    let mut fixture = Fixture::new(factory);
    let table = people();
    let mut expected: Vec<_> = [0..5, 5..20_000, 20_000..20_001]
        .map(|range| fixture.stage(&table, &people_rows(&table, range)).unwrap())
        .into();
    expected.sort();
    for _ in 0..2 {
        fixture.restart();
        let mut staged = fixture.engine().staged_transactions().unwrap();
        staged.sort();
        assert_eq!(staged, expected);
        assert_eq!(fixture.count(&table, u64::MAX), 0);
    }
    for transaction in expected {
        fixture.engine().commit(transaction, 3).unwrap();
    }
    assert_eq!(ids(&fixture.read(&table, 3)), (0..20_001).collect::<Vec<_>>());
}

pub fn committed_rows_survive_a_restart(factory: Factory) {
    let mut fixture = Fixture::new(factory);
    let table = people();
    let mut expected = vec![];
    for version in 1..=5_u64 {
        let from = version as i64 * 10_000;
        fixture.load(&table, &people_rows(&table, from..from + 1 + version as i64 * 1000), version);
        expected.push((version, plain(&fixture.read(&table, version))));
        fixture.restart();
        for (version, rows) in &expected {
            assert!(plain(&fixture.read(&table, *version)) == *rows, "version {version} changed");
        }
    }
}

pub fn a_dropped_table_does_not_come_back(factory: Factory) {
    let mut fixture = Fixture::new(factory);
    let table = people();
    fixture.load(&table, &people_rows(&table, 0..20_000), 1);
    let staged = fixture.stage(&table, &people_rows(&table, 20_000..20_005)).unwrap();
    fixture.engine().drop_table(table.id).unwrap();
    fixture.engine().drop_table(table.id).unwrap();
    fixture.engine().drop_table(new_ulid()).unwrap();
    fixture.engine().commit(staged, 2).unwrap();
    for _ in 0..2 {
        assert_eq!(fixture.engine().staged_transactions().unwrap(), []);
        // A query that was planned before must not take it for empty.
        let refused = fixture.scan(request(&table, 1)).map(|rows| rows.num_rows()).unwrap_err();
        assert_eq!(refused.code(), ErrorCode::NotFound);
        let late = fixture.stage(&table, &people_rows(&table, 0..5)).map(drop).unwrap_err();
        assert_eq!(late.code(), ErrorCode::NotFound);
        fixture.restart();
    }
    let next = people();
    fixture.load(&next, &people_rows(&next, 0..10), 3);
    assert_eq!(fixture.count(&next, 3), 10);
}
