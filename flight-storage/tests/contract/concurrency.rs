//! Many at once: loads beside loads, and readers beside loads.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use drsdb_core::{ErrorCode, ids::new_ulid};
use drsdb_storage::engine::ScanRequest;

use super::support::{Factory, Fixture, checked, ids, people, people_rows, request};

pub fn two_loads_write_in_turns(factory: Factory) {
    let fixture = Fixture::new(factory);
    let table = people();
    let (even, odd) = (new_ulid(), new_ulid());
    let mut writers = [even, odd].map(|transaction| fixture.engine().stage(checked(transaction), &table, 0).unwrap());
    for round in 0..20 {
        for (parity, writer) in writers.iter_mut().enumerate() {
            let from = round * 2000 + parity as i64;
            writer.write(&people_rows(&table, (from..from + 2000).step_by(2))).unwrap();
        }
    }
    for writer in writers {
        assert_eq!(writer.finish().unwrap().rows, 20_000);
    }
    fixture.engine().commit(odd, 1).unwrap();
    assert_eq!(ids(&fixture.read(&table, 9)), (0..20_000).map(|at| at * 2 + 1).collect::<Vec<_>>());
    fixture.engine().commit(even, 2).unwrap();
    assert_eq!(ids(&fixture.read(&table, 1)), (0..20_000).map(|at| at * 2 + 1).collect::<Vec<_>>());
    assert_eq!(ids(&fixture.read(&table, 2)), (0..40_000).collect::<Vec<_>>());
}

pub fn many_loads_at_once(factory: Factory) {
    const THREADS: i64 = 8;
    const LOADS: i64 = 6;
    let mut fixture = Fixture::new(factory);
    let table = people();
    let version = AtomicU64::new(0);
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (fixture, table, version) = (&fixture, &table, &version);
            scope.spawn(move || {
                for load in 0..LOADS {
                    // Of all sizes, some of one row and some of thousands; every third is aborted.
                    let from = (thread * LOADS + load) * 10_000;
                    let rows = people_rows(table, from..from + 1 + (thread * 379 * load) % 5000);
                    let transaction = new_ulid();
                    fixture.stage_in(transaction, table, (load % 4) as u32, &rows).unwrap();
                    if load % 3 == 2 {
                        fixture.engine().abort(transaction).unwrap();
                    } else {
                        let version = version.fetch_add(1, Ordering::SeqCst) + 1;
                        fixture.engine().commit(transaction, version).unwrap();
                    }
                }
            });
        }
    });
    let mut expected: Vec<i64> = vec![];
    for thread in 0..THREADS {
        for load in (0..LOADS).filter(|load| load % 3 != 2) {
            let from = (thread * LOADS + load) * 10_000;
            expected.extend(from..from + 1 + (thread * 379 * load) % 5000);
        }
    }
    for _ in 0..2 {
        let all = fixture.scan(ScanRequest { shards: vec![0, 1, 2, 3], ..request(&table, u64::MAX) }).unwrap();
        assert_eq!(ids(&all), expected);
        fixture.restart();
    }
}

pub fn a_reader_sees_a_load_whole_or_not_at_all(factory: Factory) {
    const LOADS: u64 = 12;
    let fixture = Fixture::new(factory);
    let table = people();
    let rows_of = |version: u64| if version.is_multiple_of(2) { 3 } else { 4000 };
    let committed = AtomicU64::new(0);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let readers: Vec<_> = (0..3)
            .map(|reader| {
                let (fixture, table, committed, done) = (&fixture, &table, &committed, &done);
                scope.spawn(move || {
                    while !done.load(Ordering::SeqCst) {
                        let known = committed.load(Ordering::SeqCst);
                        // One reader reads what is known to be committed, the others whatever there is.
                        let snapshot = if reader == 0 { known } else { u64::MAX };
                        let scanned =
                            ScanRequest { shards: vec![0, 1, 2, 3], batch_rows: 512, ..request(table, snapshot) };
                        let read = ids(&fixture.scan(scanned).unwrap());
                        let mut rows = 0;
                        for version in 1..=LOADS {
                            let from = version as i64 * 100_000;
                            let seen = read.iter().filter(|id| (from..from + 100_000).contains(*id)).count() as i64;
                            let whole = rows_of(version) * 4;
                            assert!(seen == 0 || seen == whole, "{seen} of {whole} rows of version {version}");
                            assert!(seen == whole || version > known, "version {version} is missing at {known}");
                            assert!(seen == 0 || version <= snapshot, "version {version} is seen at {snapshot}");
                            rows += seen;
                        }
                        assert_eq!(rows as usize, read.len());
                    }
                })
            })
            .collect();
        for version in 1..=LOADS {
            let transaction = new_ulid();
            for shard in 0..4 {
                let from = version as i64 * 100_000 + i64::from(shard) * 10_000;
                let rows = people_rows(&table, from..from + rows_of(version));
                fixture.stage_in(transaction, &table, shard, &rows).unwrap();
            }
            fixture.engine().commit(transaction, version).unwrap();
            committed.store(version, Ordering::SeqCst);
        }
        done.store(true, Ordering::SeqCst);
        for reader in readers {
            reader.join().unwrap();
        }
    });
}

pub fn loads_of_the_same_keys_let_one_through(factory: Factory) {
    let fixture = Fixture::new(factory);
    let table = people();
    for version in 1..=5_u64 {
        let from = version as i64 * 10_000;
        let staged: Vec<_> = thread::scope(|scope| {
            let load = || fixture.stage(&table, &people_rows(&table, from..from + 3000));
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(load)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let mut winners = 0;
        for result in staged {
            match result {
                Ok(transaction) => {
                    winners += 1;
                    fixture.engine().commit(transaction, version).unwrap();
                }
                Err(error) => assert_eq!(error.code(), ErrorCode::Conflict, "{error}"),
            }
        }
        // With bad luck each stands in the way of another; never may two get through.
        assert!(winners <= 1, "{winners} loads of the same keys were staged");
        assert_eq!(fixture.count(&table, u64::MAX) % 3000, 0);
    }
    fixture.load(&table, &people_rows(&table, [1]), 9);
}
