//! A process that is killed while it updates, rolls back, aborts and compacts. Each row is written by one thread of the child
//! alone, so the parent knows what it must hold: what the last acknowledged transaction wrote, or the one after it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    thread,
};

use arrow::array::{Int64Array, StringViewArray};
use drsdb_core::{Table, TableName, Ulid, ids::new_ulid};
use drsdb_storage::engine::StorageEngine;

use super::{
    crash::{Ack, CHILD_FOLDER, CHILD_VERSION, kill_after, say},
    support::{Factory, Fixture, batch, keys, people, statement},
};

const THREADS: u64 = 2;

/// Rows that a thread changes at a time, in turn few and many.
const FEW: i64 = 3;
const MANY: i64 = 1500;

fn shared_table() -> Arc<Table> {
    let mut table = Table::clone(&people());
    table.id = Ulid(43);
    table.name = TableName::new("public", "changed");
    Arc::new(table)
}

/// The rows that transaction `number` changes; the thread is the number modulo [`THREADS`].
fn ids_of(number: u64) -> std::ops::Range<i64> {
    let thread = (number % THREADS) as i64 * 100_000;
    if (number / THREADS).is_multiple_of(4) { thread + 50_000..thread + 50_000 + MANY } else { thread..thread + FEW }
}

/// What it leaves in them.
fn name_of(number: u64) -> String {
    format!("{number} {}", if number.is_multiple_of(3) { 1 } else { 2 })
}

pub fn changes_until_killed(factory: Factory) {
    let Ok(folder) = std::env::var(CHILD_FOLDER) else { return };
    let first: u64 = std::env::var(CHILD_VERSION).unwrap().parse().unwrap();
    let engine = factory(Path::new(&folder));
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let engine = &engine;
            scope.spawn(move || {
                for number in (first + thread..).step_by(THREADS as usize) {
                    change_until_killed(engine, number);
                    // Nobody reads here; the parent reads the newest.
                    engine.compact(number.saturating_sub(5)).unwrap();
                }
            });
        }
    });
}

fn change_until_killed(engine: &Arc<dyn StorageEngine>, number: u64) {
    let transaction = new_ulid();
    update(engine, transaction, 1, ids_of(number), &format!("{number} 1"));
    update(engine, transaction, 2, ids_of(number), &format!("{number} 2"));
    if number.is_multiple_of(3) {
        engine.rollback_to(transaction, 1).unwrap();
    }
    say(&format!("staged {number} {transaction}"));
    if number.is_multiple_of(7) {
        engine.abort(transaction).unwrap();
    } else {
        engine.commit(transaction, number).unwrap();
        say(&format!("committed {number} {transaction}"));
    }
}

fn update(engine: &Arc<dyn StorageEngine>, transaction: Ulid, sequence: u32, ids: std::ops::Range<i64>, name: &str) {
    let table = shared_table();
    let mut writer = engine.stage(statement(transaction, sequence, u64::MAX), &table, 0).unwrap();
    writer.delete(&keys(&table, ids.clone())).unwrap();
    let names: StringViewArray = ids.clone().map(|_| Some(name)).collect();
    writer.write(&batch(&table, vec![Arc::new(Int64Array::from_iter_values(ids)), Arc::new(names)])).unwrap();
    writer.finish().unwrap();
}

pub fn a_killed_process_keeps_each_transaction_whole(factory: Factory) {
    let directory = tempfile::TempDir::new().unwrap();
    // The rows of a thread that go together, by the first one's id: the number that must be in them.
    let mut expected: BTreeMap<i64, BTreeSet<String>> = BTreeMap::new();
    {
        let fixture = Fixture::at(factory, directory.path());
        for number in 0..THREADS * 5 {
            let ids = ids_of(number);
            if expected.insert(ids.start, BTreeSet::from(["new".to_owned()])).is_none() {
                let rows: Vec<(i64, &str)> = ids.map(|id| (id, "new")).collect();
                fixture.commit_change(&shared_table(), &[], &rows, 1);
            }
        }
    }
    let mut next = 10;
    for acknowledgements in [1, 3, 8, 15, 24, 40] {
        let acks = kill_after(directory.path(), "changes_until_killed", next, acknowledgements);
        let fixture = Fixture::at(factory, directory.path());
        for ack in acks {
            let (number, committed) = match ack {
                Ack::Staged(number, _) => (number, false),
                Ack::Committed(number, _) => (number, true),
            };
            next = next.max(number + 1);
            let outcomes = expected.get_mut(&ids_of(number).start).unwrap();
            if committed {
                // Each is acknowledged before the next one of its rows begins.
                *outcomes = BTreeSet::from([name_of(number)]);
            } else if !number.is_multiple_of(7) {
                outcomes.insert(name_of(number));
            }
        }
        let staged = fixture.engine().staged_transactions().unwrap();
        assert!(staged.len() as u64 <= THREADS, "{staged:?}");
        for transaction in staged {
            fixture.engine().abort(transaction).unwrap();
        }
        let mut found: BTreeMap<i64, (i64, String)> = BTreeMap::new();
        for (id, name) in fixture.names(&shared_table(), u64::MAX, None) {
            let start = *expected.range(..=id).next_back().unwrap().0;
            let (count, first) = found.entry(start).or_insert_with(|| (0, name.clone()));
            *count += 1;
            assert_eq!(*first, name, "a transaction is not whole");
        }
        for (start, outcomes) in &mut expected {
            let (count, name) = found.remove(start).expect("all rows of a thread are gone");
            assert_eq!(count, if start % 100_000 == 0 { FEW } else { MANY });
            assert!(outcomes.contains(&name), "{name} is none of {outcomes:?}");
            *outcomes = BTreeSet::from([name]);
        }
        assert!(found.is_empty(), "{found:?}");
        // Nothing is held any more. The version is one that the child has not come to.
        next += 10 * THREADS;
        for start in expected.keys() {
            let number = (next..).find(|number| ids_of(*number).start == *start).unwrap();
            let transaction = new_ulid();
            update(fixture.engine(), transaction, 1, ids_of(number), "unlocked");
            fixture.engine().abort(transaction).unwrap();
        }
        next += 10 * THREADS;
    }
}
