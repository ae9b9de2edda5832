//! What replication and upkeep do to a shard: import, drop, compaction.

use drsdb_core::{ErrorCode, ids::new_ulid};
use drsdb_storage::engine::{ScanRequest, ShardId};

use super::support::{Factory, Fixture, ids, named, people, people_rows, plain, request, statement, wait_until};

pub fn an_import_replaces_a_shard(factory: Factory) {
    let mut fixture = Fixture::new(factory);
    let table = people();
    fixture.load_in(&table, 1, &people_rows(&table, 0..5), 1);
    fixture.commit_change(&table, &[], &[(1, "old"), (2, "old")], 2);
    fixture.commit_change(&table, &[1], &[(1, "newer")], 3);
    let staged = new_ulid();
    fixture.change(statement(staged, 1, 3), &table, &[2], &[(7, "staged")]).unwrap();
    // An export is a scan: what a snapshot sees. Large enough for several chunks.
    let copy = people_rows(&table, 1..20_000);
    let mut import = fixture.engine().import(&table, 0, 9).unwrap();
    import.write(&copy.slice(0, 10_000)).unwrap();
    assert_eq!(fixture.names(&table, 3, None), named(&[(1, "newer"), (2, "old")]), "not yet");
    import.write(&copy.slice(10_000, copy.num_rows() - 10_000)).unwrap();
    assert_eq!(import.finish().unwrap().rows, 19_999);
    for _ in 0..2 {
        assert!(plain(&fixture.read(&table, 9)) == plain(&copy));
        let other = fixture.scan(ScanRequest { shards: vec![1], ..request(&table, 9) }).unwrap();
        assert_eq!(other.num_rows(), 5, "another shard");
        assert_eq!(fixture.engine().staged_transactions().unwrap(), []);
        fixture.engine().commit(staged, 10).unwrap();
        fixture.restart();
    }
    // And goes on as any other.
    fixture.commit_change(&table, &[7], &[(20_000, "more")], 11);
    assert_eq!(fixture.count(&table, 11), 19_999);
    let error = fixture.stage(&table, &people_rows(&table, [1])).unwrap_err();
    assert_eq!(error.code(), ErrorCode::ConstraintViolation);
}

/// Staged things of one shard go, whoever's they are; those of another one, and what has committed, stay.
pub fn what_is_staged_in_a_shard_can_be_forgotten(factory: Factory) {
    let mut fixture = Fixture::new(factory);
    let table = people();
    let shard = ShardId { table: table.id, shard: 0 };
    fixture.load(&table, &people_rows(&table, 0..20_000), 1);
    fixture.commit_change(&table, &[1], &[(1, "committed")], 2);
    let (both, one) = (new_ulid(), new_ulid());
    fixture.change(statement(both, 1, 2), &table, &[2, 3], &[(2, "staged")]).unwrap();
    fixture.stage_in(both, &table, 1, &people_rows(&table, 0..5)).unwrap();
    // Enough for segments, and too many to be undone in one step.
    fixture.stage_in(one, &table, 0, &people_rows(&table, 100_000..150_000)).unwrap();
    fixture.engine().forget_staged(shard).unwrap();
    for restarted in [false, true] {
        if restarted {
            fixture.restart();
        }
        assert_eq!(fixture.engine().staged_transactions().unwrap(), [both]);
        assert_eq!(fixture.count(&table, 2), 20_000);
    }
    fixture.engine().forget_staged(shard).unwrap();
    fixture.engine().forget_staged(ShardId { shard: 3, ..shard }).unwrap();
    fixture.engine().commit_all(&[(both, 3), (one, 4)]).unwrap();
    // The keys are nobody's.
    fixture.commit_change(&table, &[2, 3], &[(2, "later"), (100_000, "later")], 5);
    for _ in 0..2 {
        assert_eq!(fixture.count(&table, 5), 20_000);
        let other = fixture.scan(ScanRequest { shards: vec![1], ..request(&table, 5) }).unwrap();
        assert_eq!(other.num_rows(), 5, "another shard");
        let named = fixture.names(&table, 5, None);
        assert_eq!((named[1].1.as_str(), named[2].1.as_str()), ("committed", "later"));
        fixture.restart();
    }
}

pub fn what_changed_between_snapshots_can_be_read(factory: Factory) {
    let mut fixture = Fixture::new(factory);
    let table = people();
    fixture.load(&table, &people_rows(&table, 0..20_000), 1);
    fixture.commit_change(&table, &[1, 2], &[(1, "new"), (30_000, "added")], 2);
    fixture.commit_change(&table, &[30_000, 4], &[(31_000, "added")], 3);
    let between = |fixture: &Fixture, except, snapshot| {
        let rows = fixture.scan(ScanRequest { except: Some(except), ..request(&table, snapshot) }).unwrap();
        ids(&rows)
    };
    for _ in 0..2 {
        assert_eq!(between(&fixture, 1, 3), [1, 31_000], "made, and there still");
        assert_eq!(between(&fixture, 3, 1), [1, 2, 4], "deleted");
        assert_eq!(between(&fixture, 2, 3), [31_000]);
        assert_eq!(between(&fixture, 3, 2), [4, 30_000]);
        assert_eq!(between(&fixture, 3, 3), [] as [i64; 0]);
        assert_eq!(between(&fixture, 3, u64::MAX), [] as [i64; 0]);
        assert_eq!(between(&fixture, 0, 3).len(), 19_999);
        fixture.restart();
    }
    fixture.compact(2);
    assert_eq!(between(&fixture, 2, 3), [31_000]);
    // What is forgotten may be told all the same, but never too little of it.
    for (except, snapshot, expected) in [(1, 3, vec![1, 31_000]), (3, 1, vec![1, 2, 4])] {
        match fixture.scan(ScanRequest { except: Some(except), ..request(&table, snapshot) }) {
            Ok(rows) => assert_eq!(ids(&rows), expected),
            Err(error) => assert_eq!(error.code(), ErrorCode::Conflict, "{error}"),
        }
    }
}

pub fn an_import_that_is_dropped_changes_nothing(factory: Factory) {
    let mut fixture = Fixture::new(factory);
    let table = people();
    fixture.commit_change(&table, &[], &[(1, "a"), (2, "b")], 1);
    let staged = new_ulid();
    fixture.change(statement(staged, 1, 1), &table, &[1], &[]).unwrap();
    let mut import = fixture.engine().import(&table, 0, 5).unwrap();
    import.write(&people_rows(&table, 0..30_000)).unwrap();
    drop(import);
    let error = {
        let mut import = fixture.engine().import(&table, 0, 5).unwrap();
        import.write(&people_rows(&table, [1, 2, 1])).and_then(|()| import.finish().map(drop)).unwrap_err()
    };
    assert_eq!(error.code(), ErrorCode::ConstraintViolation);
    for _ in 0..2 {
        assert_eq!(fixture.names(&table, 9, None), named(&[(1, "a"), (2, "b")]));
        assert_eq!(fixture.engine().staged_transactions().unwrap(), [staged]);
        fixture.restart();
    }
    fixture.engine().commit(staged, 2).unwrap();
    assert_eq!(fixture.names(&table, 2, None), named(&[(2, "b")]));
}

pub fn an_import_without_rows_empties_the_shard(factory: Factory) {
    let fixture = Fixture::new(factory);
    let table = people();
    fixture.commit_change(&table, &[], &[(1, "a")], 1);
    fixture.engine().import(&table, 0, 2).unwrap().finish().unwrap();
    assert_eq!(fixture.count(&table, 2), 0);
    fixture.commit_change(&table, &[], &[(1, "b")], 3);
    assert_eq!(fixture.names(&table, 3, None), named(&[(1, "b")]));
}

pub fn a_dropped_shard_is_empty_and_may_come_back(factory: Factory) {
    let mut fixture = Fixture::new(factory);
    let table = people();
    fixture.load(&table, &people_rows(&table, 0..20_000), 1);
    fixture.load_in(&table, 1, &people_rows(&table, 0..3), 1);
    let staged = fixture.stage(&table, &people_rows(&table, [50_000])).unwrap();
    let shard = ShardId { table: table.id, shard: 0 };
    let running = fixture.runtime.block_on(async { fixture.engine().scan(request(&table, 1)) }).unwrap();
    fixture.engine().drop_shard(shard).unwrap();
    fixture.engine().drop_shard(shard).unwrap();
    fixture.engine().drop_shard(ShardId { shard: 3, ..shard }).unwrap();
    let rows: Vec<_> = fixture.runtime.block_on(futures::TryStreamExt::try_collect(running)).unwrap();
    let rows: usize = rows.iter().map(arrow::array::RecordBatch::num_rows).sum();
    assert_eq!(rows, 20_000, "a scan that runs keeps its rows");
    fixture.engine().commit(staged, 2).unwrap();
    for _ in 0..2 {
        assert_eq!(fixture.count(&table, 2), 0);
        assert_eq!(fixture.engine().staged_transactions().unwrap(), []);
        let other = fixture.scan(ScanRequest { shards: vec![1], ..request(&table, 2) }).unwrap();
        assert_eq!(other.num_rows(), 3);
        fixture.restart();
    }
    let mut import = fixture.engine().import(&table, 0, 3).unwrap();
    import.write(&people_rows(&table, 0..10)).unwrap();
    import.finish().unwrap();
    fixture.restart();
    assert_eq!(fixture.count(&table, 3), 10);
}

pub fn compaction_forgets_what_nobody_sees(factory: Factory) {
    let mut fixture = Fixture::new(factory);
    let table = people();
    fixture.load(&table, &people_rows(&table, 0..3000), 1);
    for version in 2..10_u64 {
        let transaction = new_ulid();
        let ids: Vec<i64> = (0..50 * version as i64).collect();
        let name = format!("v{version}");
        let rows: Vec<(i64, &str)> = ids.iter().map(|id| (*id, name.as_str())).collect();
        fixture.change(statement(transaction, 1, version - 1), &table, &ids, &rows).unwrap();
        fixture.engine().commit(transaction, version).unwrap();
    }
    let staged = new_ulid();
    fixture.change(statement(staged, 1, 9), &table, &[0, 1], &[(1, "staged")]).unwrap();
    let seen = |fixture: &Fixture, snapshot| fixture.names(&table, snapshot, None);
    let own = |fixture: &Fixture| fixture.names(&table, 9, Some((staged, 1)));
    let expected: Vec<_> = (5..10).map(|snapshot| seen(&fixture, snapshot)).collect();
    let expected_own = own(&fixture);
    for horizon in [3, 5] {
        loop {
            let more = fixture.engine().compact(horizon).unwrap();
            for (snapshot, expected) in (5..10).zip(&expected) {
                assert!(seen(&fixture, snapshot) == *expected, "snapshot {snapshot} changed");
            }
            assert!(own(&fixture) == expected_own);
            if !more {
                break;
            }
        }
        fixture.restart();
    }
    fixture.engine().commit(staged, 10).unwrap();
    let last = seen(&fixture, 10);
    assert_eq!((last.len(), last[0].1.as_str()), (2999, "staged"));
    fixture.compact(10);
    assert!(seen(&fixture, 10) == last);
    fixture.compact(10);
    wait_until("there is nothing to do", || !fixture.engine().compact(10).unwrap());
}

pub fn a_snapshot_that_was_compacted_away_is_refused(factory: Factory) {
    let fixture = Fixture::new(factory);
    let table = people();
    fixture.commit_change(&table, &[], &[(1, "a"), (2, "b")], 1);
    fixture.commit_change(&table, &[1], &[], 2);
    fixture.compact(5);
    // Fewer rows than there were would be a silent lie.
    let error = fixture.scan(request(&table, 1)).unwrap_err();
    assert_eq!(error.code(), ErrorCode::Conflict, "{error}");
    let error = fixture.change(statement(new_ulid(), 1, 1), &table, &[], &[(1, "x")]).unwrap_err();
    assert_eq!(error.code(), ErrorCode::Conflict, "{error}");
    assert_eq!(fixture.names(&table, 2, None), named(&[(2, "b")]));
}
