//! A process that is killed while it loads. The test runs its own binary again as a child, which loads without end and
//! says what was acknowledged to it; the parent kills it at some point and opens what is left.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use drsdb_core::{Table, TableName, Ulid, ids::new_ulid};
use drsdb_storage::engine::{ScanRequest, StorageEngine};

use super::support::{Factory, Fixture, checked, ids, people, people_rows, request};

/// The folder the child is to work in. Not set: the test is not the child, and does nothing.
pub const CHILD_FOLDER: &str = "DRSDB_CONTRACT_CHILD_FOLDER";

/// The first version the child is to commit.
pub const CHILD_VERSION: &str = "DRSDB_CONTRACT_CHILD_VERSION";

/// The ids of a load that the child never finishes.
const UNFINISHED: std::ops::Range<i64> = -30_000..0;

/// The same table in both processes.
fn shared_table() -> Arc<Table> {
    let mut table = Table::clone(&people());
    table.id = Ulid(42);
    table.name = TableName::new("public", "killed");
    Arc::new(table)
}

/// A load's size and place follow from its number, so that the parent knows them too.
fn ids_of(load: u64) -> std::ops::Range<i64> {
    let from = load as i64 * 100_000;
    from..from + if load.is_multiple_of(3) { 7000 } else { 1 + (load % 5) as i64 }
}

/// The child: two threads load, each load into two shards, until the process is killed.
pub fn loads_until_killed(factory: Factory) {
    let Ok(folder) = std::env::var(CHILD_FOLDER) else { return };
    let first: u64 = std::env::var(CHILD_VERSION).unwrap().parse().unwrap();
    let engine = factory(Path::new(&folder));
    let table = shared_table();
    // A load of many chunks that never ends: whenever the process dies, this one is half written.
    let mut unfinished = engine.stage(checked(new_ulid()), &table, 0).unwrap();
    unfinished.write(&people_rows(&table, UNFINISHED)).unwrap();
    let next = AtomicU64::new(first);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let load = next.fetch_add(1, Ordering::SeqCst);
                    load_until_killed(&engine, load);
                }
            });
        }
    });
}

fn load_until_killed(engine: &Arc<dyn StorageEngine>, load: u64) {
    let table = shared_table();
    let transaction = new_ulid();
    let ids: Vec<i64> = ids_of(load).collect();
    for shard in 0..2_u32 {
        let mut writer = engine.stage(checked(transaction), &table, shard).unwrap();
        let mine = ids.iter().copied().filter(|id| *id as u32 % 2 == shard);
        let rows = people_rows(&table, mine);
        for from in (0..rows.num_rows()).step_by(1000) {
            writer.write(&rows.slice(from, 1000.min(rows.num_rows() - from))).unwrap();
        }
        writer.finish().unwrap();
    }
    say(&format!("staged {load} {transaction}"));
    // Every seventh is left staged: its outcome is unknown when the process dies.
    if !load.is_multiple_of(7) {
        engine.commit(transaction, load).unwrap();
        say(&format!("committed {load} {transaction}"));
    }
}

pub fn say(what: &str) {
    // One write for a line of its own, whatever the test harness prints around it.
    let mut out = std::io::stdout().lock();
    out.write_all(format!("\nack {what}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

pub fn a_killed_process_loses_nothing_it_acknowledged(factory: Factory) {
    let directory = tempfile::TempDir::new().unwrap();
    let mut next_load = 1;
    let mut committed: BTreeSet<u64> = BTreeSet::new();
    // Killed after the first word, and later and later.
    for acknowledgements in [1, 2, 5, 9, 20, 33] {
        let acks = kill_after(directory.path(), "loads_until_killed", next_load, acknowledgements);
        let fixture = Fixture::at(factory, directory.path());
        let engine = fixture.engine();
        let table = shared_table();

        let mut staged: BTreeMap<Ulid, u64> = BTreeMap::new();
        for ack in acks {
            match ack {
                Ack::Staged(load, transaction) => drop(staged.insert(transaction, load)),
                Ack::Committed(load, transaction) => {
                    staged.remove(&transaction);
                    committed.insert(load);
                }
            }
        }
        // Commits that were under way happened or did not; the others that were staged are still.
        let still_staged: BTreeSet<Ulid> = engine.staged_transactions().unwrap().into_iter().collect();
        for (transaction, load) in &staged {
            if !still_staged.contains(transaction) {
                assert!(!load.is_multiple_of(7), "load {load} was staged and is lost");
                committed.insert(*load);
            }
        }
        check(&fixture, &table, &committed);
        // Half of what is left is committed, half aborted, as an index server would say.
        for (at, transaction) in still_staged.iter().enumerate() {
            match staged.get(transaction) {
                Some(load) if at % 2 == 0 => {
                    engine.commit(*transaction, *load).unwrap();
                    committed.insert(*load);
                }
                _ => engine.abort(*transaction).unwrap(),
            }
        }
        assert_eq!(engine.staged_transactions().unwrap(), []);
        check(&fixture, &table, &committed);
        let again = fixture.stage_in(new_ulid(), &table, 0, &people_rows(&table, UNFINISHED));
        assert_eq!(again.unwrap().rows, 30_000, "the keys of a load that was never finished are taken");
        // Keys of loads that did not make it are free, those of the others are not.
        let highest = committed.last().copied().unwrap_or(0).max(next_load) + 50;
        for load in next_load..highest {
            let ids: Vec<i64> = ids_of(load).filter(|id| id % 2 == 0).collect();
            let result = fixture.stage_in(new_ulid(), &table, 0, &people_rows(&table, ids.iter().copied()));
            assert_eq!(result.is_err(), committed.contains(&load) && !ids.is_empty(), "load {load}: {result:?}");
        }
        for transaction in engine.staged_transactions().unwrap() {
            engine.abort(transaction).unwrap();
        }
        next_load = highest;
    }
    assert!(committed.len() > 20, "only {} loads were committed", committed.len());
}

pub enum Ack {
    Staged(u64, Ulid),
    Committed(u64, Ulid),
}

/// Runs the child, kills it after some acknowledgements, and answers all of them.
pub fn kill_after(folder: &Path, child: &str, first: u64, acknowledgements: usize) -> Vec<Ack> {
    // The child runs the test beside the one that runs here, for the same engine.
    let name = thread::current().name().unwrap().rsplit_once("::").unwrap().0.to_owned() + "::" + child;
    let binary: PathBuf = std::env::current_exe().unwrap();
    let mut child = Command::new(binary)
        .args(["--exact", &name, "--nocapture", "--test-threads=1"])
        .env(CHILD_FOLDER, folder)
        .env(CHILD_VERSION, first.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut acks = Vec::new();
    let mut killed = false;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        let ["ack", what, load, transaction] = words[..] else { continue };
        // The last line may be half a line: it was not acknowledged.
        let Ok(transaction) = Ulid::from_string(transaction) else { continue };
        let load = load.parse().unwrap();
        acks.push(match what {
            "staged" => Ack::Staged(load, transaction),
            _ => Ack::Committed(load, transaction),
        });
        if acks.len() == acknowledgements {
            // SIGKILL. What the child said before it died is still in the pipe.
            child.kill().unwrap();
            killed = true;
        }
    }
    child.wait().unwrap();
    assert!(killed, "the child ended by itself after {} acknowledgements", acks.len());
    acks
}

/// Exactly the loads that were committed are there, each whole and at its version.
fn check(fixture: &Fixture, table: &Arc<Table>, committed: &BTreeSet<u64>) {
    for snapshot in committed.iter().copied().chain([0, u64::MAX]) {
        let read = fixture.scan(ScanRequest { shards: vec![0, 1], ..request(table, snapshot) }).unwrap();
        let expected: Vec<i64> = committed.range(..=snapshot).flat_map(|load| ids_of(*load)).collect();
        let read = ids(&read);
        assert!(read == expected, "at {snapshot}: {} rows, not {}", read.len(), expected.len());
    }
}
