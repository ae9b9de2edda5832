//! What is special to changes of column tables: deletions of rows of segments, the row buffer, and compaction, which may
//! run at any point, be killed at any point, and never changes what is read.

use std::{
    collections::BTreeMap,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use arrow::array::{AsArray, RecordBatch};
use datafusion::{
    logical_expr::Operator,
    physical_expr::{
        PhysicalExpr,
        expressions::{binary, col, lit},
    },
};
use drsdb_core::{ErrorCode, Table, TableName, Ulid, ids::new_ulid};
use drsdb_storage::{
    column::{ColumnEngine, ColumnOptions},
    engine::{ScanRequest, ShardId, StorageEngine},
};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use tempfile::TempDir;

use super::support::{Fixture, checked, filter, ids, keys, people, people_rows, plain, request, statement};

/// Small units; up to `buffer_rows` rows of a statement go to the buffer.
fn options(buffer_rows: usize) -> ColumnOptions {
    ColumnOptions {
        cache_bytes: 64 << 20,
        segment_rows: 32_768,
        row_group_rows: 16_384,
        write_buffer_bytes: 8 << 20,
        buffer_rows,
        ..ColumnOptions::default()
    }
}

fn open_buffered(dir: &Path) -> Arc<dyn StorageEngine> {
    Arc::new(ColumnEngine::open(dir, options(1000)).unwrap())
}

fn fixture() -> (Fixture, TempDir) {
    let directory = TempDir::new().unwrap();
    (Fixture::at(open_buffered, directory.path()), directory)
}

fn segments(dir: &TempDir) -> usize {
    std::fs::read_dir(dir.path().join("segments")).unwrap().count()
}

/// Deletes rows and writes new ones, in one statement that commits.
fn change(fixture: &Fixture, table: &Arc<Table>, deletes: &[i64], inserts: &[i64], version: u64) {
    let transaction = new_ulid();
    stage_change(fixture.engine().as_ref(), table, statement(transaction, 1, version - 1), deletes, inserts).unwrap();
    fixture.engine().commit(transaction, version).unwrap();
}

fn stage_change(
    engine: &dyn StorageEngine,
    table: &Arc<Table>,
    options: drsdb_storage::engine::StageOptions,
    deletes: &[i64],
    inserts: &[i64],
) -> drsdb_core::Result<()> {
    let mut writer = engine.stage(options, table, 0)?;
    if !deletes.is_empty() {
        writer.delete(&keys(table, deletes.iter().copied()))?;
    }
    if !inserts.is_empty() {
        writer.write(&people_rows(table, inserts.iter().copied()))?;
    }
    let piece = writer.finish()?;
    assert_eq!((piece.deleted, piece.rows), (deletes.len() as u64, inserts.len() as u64));
    Ok(())
}

#[test]
fn small_writes_make_no_files_until_they_are_compacted() {
    let (mut fixture, directory) = fixture();
    let table = people();
    let piece = fixture.stage_in(new_ulid(), &table, 1, &people_rows(&table, 0..10)).unwrap();
    assert_eq!((piece.segments.len(), piece.columns.len()), (0, 2), "it tells what its columns hold all the same");
    assert_eq!(piece.columns[0].max.as_ref().unwrap().as_primitive::<arrow::datatypes::Int64Type>().value(0), 9);
    for version in 1..=20 {
        fixture.load(&table, &people_rows(&table, version as i64 * 100..version as i64 * 100 + 30), version);
    }
    assert_eq!(segments(&directory), 0);
    let before = plain(&fixture.read(&table, 20));
    fixture.compact(20);
    assert_eq!(segments(&directory), 1);
    for _ in 0..2 {
        assert_eq!(plain(&fixture.read(&table, 20)), before);
        let error = fixture.stage(&table, &people_rows(&table, [505])).unwrap_err();
        assert_eq!(error.code(), ErrorCode::ConstraintViolation);
        fixture.restart();
    }
}

#[test]
fn scans_pass_over_deleted_rows() {
    let (mut fixture, _directory) = fixture();
    let table = people();
    fixture.load(&table, &people_rows(&table, 0..100_000), 1);
    let deleted: Vec<i64> = (0..100_000).filter(|id| id % 97 == 3 || (16_384..24_576).contains(id)).collect();
    change(&fixture, &table, &deleted, &[], 2);
    let left: Vec<i64> = (0..100_000).filter(|id| !(id % 97 == 3 || (16_384..24_576).contains(id))).collect();
    for _ in 0..2 {
        // Cold, then from memory.
        for _ in 0..2 {
            assert!(ids(&fixture.read(&table, 2)) == left);
            assert_eq!(fixture.count(&table, 1), 100_000);
            let counted = fixture.scan(ScanRequest { projection: vec![], ..request(&table, 2) }).unwrap();
            assert_eq!(counted.num_rows(), left.len());
        }
        for limit in [0, 1, 8150, 16_000, 16_300, 50_000, 99_000] {
            let rows = fixture.scan(ScanRequest { limit: Some(limit), ..request(&table, 2) }).unwrap();
            assert_eq!(rows.num_rows(), limit.min(left.len()));
        }
        for batch_rows in [1000, 8191] {
            let rows = fixture.scan(ScanRequest { batch_rows, ..request(&table, 2) }).unwrap();
            assert!(ids(&rows) == left);
        }
        let schema = table.arrow_schema();
        let filters: Vec<Arc<dyn PhysicalExpr>> =
            vec![binary(col("id", &schema).unwrap(), Operator::Lt, lit(9000_i64), &schema).unwrap()];
        let rows = fixture.scan(ScanRequest { filters: filters.clone(), ..request(&table, 2) }).unwrap();
        assert!(ids(&filter(&rows, &filters)) == left.iter().copied().filter(|id| *id < 9000).collect::<Vec<_>>());
        fixture.restart();
    }
}

#[test]
fn a_limit_counts_segments_and_buffer() {
    let (fixture, _directory) = fixture();
    let table = people();
    fixture.load(&table, &people_rows(&table, 0..2000), 1);
    fixture.load(&table, &people_rows(&table, 2000..2500), 2);
    change(&fixture, &table, &[0, 1, 2, 2400], &[], 3);
    for (limit, expected) in [(10, 10), (1997, 1997), (1998, 1998), (2400, 2400), (5000, 2496)] {
        let rows = fixture.scan(ScanRequest { limit: Some(limit), ..request(&table, 3) }).unwrap();
        assert_eq!(rows.num_rows(), expected);
    }
}

#[test]
fn keys_are_compared_across_buffer_and_segments() {
    let (fixture, _directory) = fixture();
    let table = people();
    fixture.load(&table, &people_rows(&table, 0..5000), 1);
    fixture.load(&table, &people_rows(&table, 5000..5100), 2);
    let refused = |rows: Vec<i64>| fixture.stage(&table, &people_rows(&table, rows)).unwrap_err().code();
    assert_eq!(refused(vec![4999]), ErrorCode::ConstraintViolation, "few against a segment");
    assert_eq!(refused((5050..9000).collect()), ErrorCode::ConstraintViolation, "many against the buffer");
    // Staged in one, wanted in the other.
    let few = fixture.stage(&table, &people_rows(&table, [6000])).unwrap();
    assert_eq!(refused((5500..9000).collect()), ErrorCode::Conflict);
    fixture.engine().abort(few).unwrap();
    let many = fixture.stage(&table, &people_rows(&table, 5500..9000)).unwrap();
    assert_eq!(refused(vec![6000]), ErrorCode::Conflict);
    fixture.engine().commit(many, 3).unwrap();
    // An update of both, by many rows and by few.
    let many: Vec<i64> = (4000..5100).chain(5500..7000).collect();
    change(&fixture, &table, &many, &many, 4);
    change(&fixture, &table, &[4500, 5050, 8999], &[4500, 5050, 8999], 5);
    assert_eq!(ids(&fixture.read(&table, 5)), (0..5100).chain(5500..9000).collect::<Vec<_>>());
    assert_eq!(ids(&fixture.read(&table, 2)), (0..5100).collect::<Vec<_>>());
}

#[derive(Debug, Clone)]
enum Step {
    /// Deletes what is there of these keys, and inserts what is not, from `from` on; `many` rows or few.
    Change {
        from: i64,
        many: bool,
        deletes: i64,
        keep_staged: bool,
    },
    Resolve {
        commit: bool,
    },
    Compact {
        lag: u64,
    },
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..8000_i64, any::<bool>(), 0..3_i64, prop::bool::weighted(0.3))
            .prop_map(|(from, many, deletes, keep_staged)| Step::Change { from, many, deletes, keep_staged }),
        3 => any::<bool>().prop_map(|commit| Step::Resolve { commit }),
        6 => (0..4_u64).prop_map(|lag| Step::Compact { lag }),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 5..30)
}

/// Rows by id, and the version that wrote each.
type Rows = BTreeMap<i64, u64>;

fn named_rows(table: &Arc<Table>, rows: &[i64], version: u64) -> RecordBatch {
    let name = version.to_string();
    super::support::named_rows(table, &rows.iter().map(|id| (*id, name.as_str())).collect::<Vec<_>>())
}

#[test]
fn compaction_at_random_points_changes_nothing() {
    let config = Config { cases: 12, failure_persistence: None, max_shrink_iters: 100, ..Config::default() };
    let result = TestRunner::new(config).run(&steps(), |steps| {
        let (mut fixture, _directory) = fixture();
        let table = people();
        let mut history: Vec<Rows> = vec![Rows::new()];
        let mut staged: Option<(Ulid, u64, Rows)> = None;
        let mut horizon = 0;
        for step in steps {
            let version = history.len() as u64;
            match step {
                Step::Change { from, many, deletes, keep_staged } => {
                    let mut rows = history[version as usize - 1].clone();
                    let span = if many { 1500 } else { 40 };
                    let is_free = |id: i64| {
                        staged.as_ref().is_none_or(|(_, base, new)| history[*base as usize].get(&id) == new.get(&id))
                    };
                    let within = |id: &i64| (from..from + span).contains(id) && is_free(*id);
                    let gone: Vec<i64> = rows.keys().copied().filter(within).filter(|id| id % 3 <= deletes).collect();
                    rows.retain(|id, _| !gone.contains(id));
                    let new: Vec<i64> = (from..from + span)
                        .filter(|id| is_free(*id) && !rows.contains_key(id) && id % 7 != 2)
                        .collect();
                    let value = version * 2 + u64::from(keep_staged);
                    rows.extend(new.iter().map(|id| (*id, value)));
                    let transaction = new_ulid();
                    let mut writer = fixture.engine().stage(statement(transaction, 1, version - 1), &table, 0).unwrap();
                    if !gone.is_empty() {
                        writer.delete(&keys(&table, gone)).unwrap();
                    }
                    if !new.is_empty() {
                        writer.write(&named_rows(&table, &new, value)).unwrap();
                    }
                    writer.finish().unwrap();
                    if keep_staged && staged.is_none() {
                        staged = Some((transaction, version - 1, rows));
                    } else {
                        fixture.engine().commit(transaction, version).unwrap();
                        history.push(rows);
                    }
                }
                Step::Resolve { commit } => {
                    let Some((transaction, base, new)) = staged.take() else { continue };
                    if commit {
                        // Its changes, over what has been committed since.
                        let mut rows = history[version as usize - 1].clone();
                        let old = &history[base as usize];
                        rows.retain(|id, _| !old.contains_key(id) || new.contains_key(id));
                        new.iter().filter(|(id, value)| old.get(id) != Some(value)).for_each(|(id, value)| {
                            rows.insert(*id, *value);
                        });
                        fixture.engine().commit(transaction, version).unwrap();
                        history.push(rows);
                    } else {
                        fixture.engine().abort(transaction).unwrap();
                    }
                }
                Step::Compact { lag } => {
                    horizon = horizon.max((version - 1).saturating_sub(lag));
                    fixture.engine().compact(horizon).unwrap();
                }
                Step::Restart => fixture.restart(),
            }
            let last = history.len() as u64 - 1;
            for snapshot in [horizon, (horizon + last) / 2, last] {
                let found = read(&fixture, &table, snapshot, None);
                assert!(
                    found == history[snapshot as usize],
                    "at {snapshot}, {}",
                    difference(&found, &history[snapshot as usize])
                );
            }
            if let Some((transaction, base, rows)) = staged.as_ref().filter(|(_, base, _)| *base >= horizon) {
                let found = read(&fixture, &table, *base, Some(*transaction));
                assert!(found == *rows, "its own: {}", difference(&found, rows));
            }
        }
        if let Some((transaction, ..)) = staged {
            fixture.engine().abort(transaction).unwrap();
        }
        let last = history.len() as u64 - 1;
        fixture.compact(last);
        assert!(read(&fixture, &table, last, None) == history[last as usize]);
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

fn difference(found: &Rows, expected: &Rows) -> String {
    let lost: Vec<_> = expected.iter().filter(|(id, value)| found.get(id) != Some(value)).take(5).collect();
    let more: Vec<_> = found.iter().filter(|(id, value)| expected.get(id) != Some(value)).take(5).collect();
    format!("{} rows, not {}; lost {lost:?}, more {more:?}", found.len(), expected.len())
}

fn read(fixture: &Fixture, table: &Arc<Table>, snapshot: u64, own: Option<Ulid>) -> Rows {
    let rows = fixture.names(table, snapshot, own.map(|transaction| (transaction, 1)));
    let count = rows.len();
    let rows: Rows = rows.into_iter().map(|(id, name)| (id, name.parse().unwrap())).collect();
    assert_eq!(rows.len(), count, "a row came twice");
    rows
}

#[test]
fn writers_readers_and_compaction_side_by_side() {
    const ROWS: i64 = 20_000;
    let (fixture, _directory) = fixture();
    let table = people();
    fixture.load(&table, &people_rows(&table, 0..ROWS), 1);
    let (version, done) = (AtomicU64::new(1), AtomicBool::new(false));
    let engine = fixture.engine();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..60_u64 {
                let (from, count) = (round as i64 * 331 % ROWS, if round % 5 == 0 { 3000 } else { 20 });
                let rows: Vec<i64> = (from..ROWS.min(from + count)).collect();
                let transaction = new_ulid();
                let next = version.load(Ordering::SeqCst) + 1;
                stage_change(engine.as_ref(), &table, statement(transaction, 1, next - 1), &rows, &rows).unwrap();
                if round % 7 == 3 {
                    engine.abort(transaction).unwrap();
                } else {
                    engine.commit(transaction, next).unwrap();
                    version.store(next, Ordering::SeqCst);
                }
            }
            done.store(true, Ordering::SeqCst);
        });
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                engine.compact(version.load(Ordering::SeqCst).saturating_sub(2)).unwrap();
            }
        });
        let mut reads = 0;
        while !done.load(Ordering::SeqCst) {
            let snapshot = version.load(Ordering::SeqCst);
            match fixture.scan(request(&table, snapshot)) {
                Ok(rows) => {
                    assert!(ids(&rows) == (0..ROWS).collect::<Vec<_>>(), "at {snapshot}: {} rows", rows.num_rows())
                }
                // Three commits and a compaction came before the scan began.
                Err(error) => assert_eq!(error.code(), ErrorCode::Conflict, "{error}"),
            }
            reads += 1;
        }
        assert!(reads > 3);
    });
    fixture.compact(version.load(Ordering::SeqCst));
    assert!(ids(&fixture.read(&table, u64::MAX - 1)) == (0..ROWS).collect::<Vec<_>>());
}

/// The folder the child is to compact, and the step before which it is to end. Not set: the test is not the child.
const CHILD_FOLDER: &str = "DRSDB_COMPACTION_FOLDER";
const CHILD_STEP: &str = "DRSDB_COMPACTION_STEP";

fn crash_table() -> Arc<Table> {
    let mut table = Table::clone(&people());
    table.id = Ulid(44);
    table.name = TableName::new("public", "compacted");
    Arc::new(table)
}

#[test]
fn a_compaction_until_it_is_killed() {
    let Ok(folder) = std::env::var(CHILD_FOLDER) else { return };
    let on_step = |step: &str| {
        if std::env::var(CHILD_STEP).unwrap() == step {
            // As a kill: nothing is dropped, nothing is flushed.
            std::process::abort();
        }
    };
    let options = ColumnOptions { on_step: Some(on_step), ..options(1000) };
    let engine = ColumnEngine::open(Path::new(&folder), options).unwrap();
    for _ in 0..10 {
        engine.compact(4).unwrap();
    }
    panic!("the step never came");
}

#[test]
fn a_compaction_that_is_killed_leaves_the_rows_as_they_were() {
    let name = std::thread::current().name().unwrap().rsplit_once("::").unwrap().0.to_owned();
    for step in ["read", "write", "exchange", "forget", "done"] {
        let directory = TempDir::new().unwrap();
        let table = crash_table();
        let staged = new_ulid();
        let expected = {
            let fixture = Fixture::at(open_buffered, directory.path());
            fixture.load(&table, &people_rows(&table, 0..5000), 1);
            fixture.load(&table, &people_rows(&table, 5000..5500), 2);
            change(&fixture, &table, &(0..2000).chain([5001]).collect::<Vec<_>>(), &[0, 1, 7000], 3);
            change(&fixture, &table, &[3000, 5002, 0], &[], 4);
            let options = statement(staged, 1, 4);
            stage_change(fixture.engine().as_ref(), &table, options, &[3001, 5003, 7000], &[7000]).unwrap();
            plain(&fixture.read(&table, 4))
        };
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &format!("{name}::a_compaction_until_it_is_killed"), "--nocapture"])
            .env(CHILD_FOLDER, directory.path())
            .env(CHILD_STEP, step)
            .output()
            .unwrap();
        assert!(!child.status.success() && !String::from_utf8_lossy(&child.stderr).contains("panicked"), "{step}");
        let fixture = Fixture::at(open_buffered, directory.path());
        assert!(plain(&fixture.read(&table, 4)) == expected, "killed before {step}");
        assert_eq!(fixture.engine().staged_transactions().unwrap(), [staged]);
        fixture.engine().compact(4).unwrap();
        fixture.engine().commit(staged, 5).unwrap();
        let rows = ids(&fixture.read(&table, 5));
        assert_eq!(rows.len(), expected.len() - 2, "killed before {step}");
        assert!(!rows.contains(&3001) && !rows.contains(&5003) && rows.contains(&7000));
        fixture.compact(5);
        assert_eq!(ids(&fixture.read(&table, 5)), rows);
        assert_eq!(segments(&directory), 1, "killed before {step}");
    }
}

#[test]
fn a_damaged_shard_is_told_and_replaced() {
    let (mut fixture, directory) = fixture();
    let table = people();
    let rows = people_rows(&table, 0..3000);
    fixture.load(&table, &rows, 1);
    let file = std::fs::read_dir(directory.path().join("segments")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(&file, bytes).unwrap();
    assert_eq!(fixture.engine().damaged(), []);
    // Found by a look, without a scan.
    while fixture.engine().verify().unwrap() {}
    let shard = ShardId { table: table.id, shard: 0 };
    assert_eq!(fixture.engine().damaged(), [shard]);
    fixture.restart();
    let error = fixture.scan(request(&table, 1)).unwrap_err();
    assert_eq!(error.code(), ErrorCode::Corrupt);
    assert!(error.to_string().contains(&table.id.to_string()), "{error}");
    assert_eq!(fixture.engine().damaged(), [shard]);
    let mut import = fixture.engine().import(&table, 0, 2).unwrap();
    import.write(&rows).unwrap();
    import.finish().unwrap();
    assert_eq!(fixture.engine().damaged(), []);
    assert!(plain(&fixture.read(&table, 2)) == plain(&rows));
}

#[test]
fn a_damaged_entry_of_the_manifest_is_told() {
    for (sql, whole) in [
        ("UPDATE deletions SET rows = x'05000000'", false),
        ("UPDATE segments SET row_count = row_count + 1", false),
        ("UPDATE segments SET bounds = x'00'", false),
        ("UPDATE segments SET from_version = from_version", true),
    ] {
        let (fixture, directory) = fixture();
        let table = people();
        fixture.load(&table, &people_rows(&table, 0..3000), 1);
        change(&fixture, &table, &[4], &[], 2);
        drop(fixture);
        let file = directory.path().join("rows").join("rows.sqlite");
        let connection = rusqlite::Connection::open(file).unwrap();
        connection.execute(sql, []).unwrap();
        connection.close().unwrap();
        // It was not the engine that wrote, so its checksums of pages are not those of the file.
        std::fs::remove_file(directory.path().join("rows").join("rows.sums")).unwrap();
        let fixture = Fixture::at(open_buffered, directory.path());
        let read = fixture.scan(request(&table, 2));
        if whole {
            assert_eq!(read.unwrap().num_rows(), 2999);
            continue;
        }
        assert_eq!(read.unwrap_err().code(), ErrorCode::Corrupt, "{sql}");
        assert_eq!(fixture.engine().damaged(), [ShardId { table: table.id, shard: 0 }]);
        assert_eq!(segments(&directory), 1, "the file may be needed to find out more");
        let error = fixture.stage_in(new_ulid(), &table, 0, &people_rows(&table, [1])).unwrap_err();
        assert_eq!(error.code(), ErrorCode::Corrupt);
    }
}

#[test]
fn an_update_of_one_row_reads_little() {
    let (fixture, _directory) = fixture();
    let table = people();
    fixture.load(&table, &people_rows(&table, 0..100_000), 1);
    let transaction = new_ulid();
    let mut writer = fixture.engine().stage(checked(transaction), &table, 0).unwrap();
    writer.delete(&keys(&table, [70_000])).unwrap();
    writer.write(&super::support::named_rows(&table, &[(70_000, "new")])).unwrap();
    writer.finish().unwrap();
    fixture.engine().commit(transaction, 2).unwrap();
    let names = fixture.names(&table, 2, None);
    assert_eq!((names.len(), names[70_000].1.as_str()), (100_000, "new"));
}
