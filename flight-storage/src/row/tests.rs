//! What is special to the row engine: its file's damage, a full disk, its lock, and that operations share a transaction.
//! What every engine must do is in `tests/contract.rs`.

use std::{
    io::{Seek, SeekFrom, Write},
    os::unix::fs::FileExt,
    path::Path,
    sync::Arc,
};

use arrow::array::{Int64Array, RecordBatch, StringViewArray};
use datafusion::{
    common::Result as DataFusionResult,
    logical_expr::Operator,
    physical_expr::{
        PhysicalExpr,
        expressions::{BinaryExpr, Column as ColumnExpr, DynamicFilterPhysicalExpr, InListExpr, Literal, NotExpr, lit},
    },
    physical_plan::metrics::ExecutionPlanMetricsSet,
    scalar::ScalarValue,
};
use drsdb_core::{Column, Engine, ErrorCode, Result, SqlType, Table, TableName, Ulid, ids::new_ulid};
use futures::TryStreamExt;
use tempfile::TempDir;

use super::{RowEngine, file::LIVE, filter::conjunction};
use crate::engine::{ScanRequest, ShardId, StageOptions, StorageEngine};

fn checked(transaction: Ulid) -> StageOptions {
    StageOptions { transaction, sequence: 1, snapshot: u64::MAX, checked: true }
}

fn people() -> Arc<Table> {
    let column = |name: &str, sql_type, not_null| Column::new(name.to_owned(), sql_type, not_null);
    Arc::new(Table {
        id: new_ulid(),
        name: TableName::new("public", "people"),
        columns: vec![column("id", SqlType::BigInt, true), column("name", SqlType::Text, false)],
        primary_key: vec![0],
        foreign_keys: vec![],
        engine: Engine::Row,
        shards: 1,
        shard_key: vec![0],
        shard_function: 1,
        cluster_key: vec![0],
        ..Table::default()
    })
}

fn rows(table: &Table, ids: std::ops::Range<i64>, name_bytes: usize) -> RecordBatch {
    let names: StringViewArray = ids.clone().map(|id| Some(format!("{id:0name_bytes$}"))).collect();
    let ids = Int64Array::from_iter_values(ids);
    RecordBatch::try_new(table.arrow_schema(), vec![Arc::new(ids), Arc::new(names)]).unwrap()
}

fn stage(engine: &RowEngine, table: &Arc<Table>, rows: &RecordBatch) -> Result<Ulid> {
    let transaction = new_ulid();
    let mut writer = engine.stage(checked(transaction), table, 0)?;
    writer.write(rows)?;
    writer.finish()?;
    Ok(transaction)
}

fn request(table: &Arc<Table>) -> ScanRequest {
    ScanRequest {
        table: Arc::clone(table),
        shards: vec![0],
        snapshot: u64::MAX,
        except: None,
        projection: vec![0, 1],
        filters: vec![],
        limit: None,
        batch_rows: 1000,
        metrics: ExecutionPlanMetricsSet::new(),
        partition: 0,
        own: None,
    }
}

async fn count(engine: &RowEngine, request: ScanRequest) -> DataFusionResult<usize> {
    let stream = engine.scan(request).map_err(drsdb_core::Error::into_datafusion)?;
    let batches: Vec<RecordBatch> = stream.try_collect().await?;
    Ok(batches.iter().map(RecordBatch::num_rows).sum())
}

fn compare(column: usize, operator: Operator, value: ScalarValue) -> Arc<dyn PhysicalExpr> {
    Arc::new(BinaryExpr::new(Arc::new(ColumnExpr::new("c", column)), operator, Arc::new(Literal::new(value))))
}

#[test]
fn a_second_process_is_refused() {
    let directory = TempDir::new().unwrap();
    let engine = RowEngine::open(directory.path()).unwrap();
    let error = RowEngine::open(directory.path()).unwrap_err();
    assert_eq!(error.code(), ErrorCode::Unavailable);
    drop(engine);
    RowEngine::open(directory.path()).unwrap();
}

#[test]
fn another_layout_is_refused() {
    let directory = TempDir::new().unwrap();
    drop(RowEngine::open(directory.path()).unwrap());
    let connection = rusqlite::Connection::open(directory.path().join("rows.sqlite")).unwrap();
    connection.execute_batch("PRAGMA user_version = 99").unwrap();
    drop(connection);
    // It has its own idea of what was written.
    std::fs::remove_file(directory.path().join("rows.sums")).unwrap();
    let error = RowEngine::open(directory.path()).unwrap_err();
    assert_eq!(error.code(), ErrorCode::Unsupported);
}

fn overwrite(path: &Path, from: u64, bytes: usize) {
    let mut file = std::fs::File::options().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(from)).unwrap();
    file.write_all(&vec![0xa5; bytes]).unwrap();
    file.sync_all().unwrap();
}

#[test]
fn a_file_that_is_no_database_is_corrupt() {
    let directory = TempDir::new().unwrap();
    drop(RowEngine::open(directory.path()).unwrap());
    overwrite(&directory.path().join("rows.sqlite"), 0, 100);
    let error = RowEngine::open(directory.path()).unwrap_err();
    assert_eq!(error.code(), ErrorCode::Corrupt, "{error}");
}

#[tokio::test]
async fn a_damaged_page_is_an_error_and_not_fewer_rows() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("rows.sqlite");
    let table = people();
    let engine = RowEngine::open(directory.path()).unwrap();
    let transaction = stage(&engine, &table, &rows(&table, 0..20_000, 100)).unwrap();
    engine.commit(transaction, 1).unwrap();
    // The writer copies the WAL into the file when it ends.
    drop(engine);
    let size = std::fs::metadata(&path).unwrap().len();
    let engine = RowEngine::open(directory.path()).unwrap();
    overwrite(&path, size / 2, 64 << 10);
    let error = drsdb_core::Error::from(count(&engine, request(&table)).await.unwrap_err());
    assert_eq!(error.code(), ErrorCode::Corrupt, "{error}");
    // Nothing of the file is used from now on.
    assert_eq!(stage(&engine, &table, &rows(&table, 30_000..30_001, 1)).unwrap_err().code(), ErrorCode::Corrupt);
    assert_eq!(engine.staged_transactions().unwrap_err().code(), ErrorCode::Corrupt);
    assert!(engine.health().damage().is_some());
}

/// A number that is another number is nothing that SQLite could notice.
#[tokio::test]
async fn a_flipped_bit_is_noticed_at_the_start_and_by_scrubbing() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("rows.sqlite");
    let table = people();
    let engine = RowEngine::open(directory.path()).unwrap();
    for number in 0..20 {
        let transaction = stage(&engine, &table, &rows(&table, number * 100..(number + 1) * 100, 100)).unwrap();
        engine.commit(transaction, number as u64 + 1).unwrap();
    }
    drop(engine);
    let whole = std::fs::read(&path).unwrap();
    for place in (0..whole.len()).step_by(whole.len() / 60) {
        let mut flipped = whole.clone();
        flipped[place] ^= 1;
        std::fs::write(&path, &flipped).unwrap();
        let error = RowEngine::open(directory.path()).unwrap_err();
        assert_eq!(error.code(), ErrorCode::Corrupt, "byte {place}: {error}");
    }
    for kept in [whole.len() / 2, whole.len() - 1, 0] {
        std::fs::write(&path, &whole[..kept]).unwrap();
        assert_eq!(RowEngine::open(directory.path()).unwrap_err().code(), ErrorCode::Corrupt, "{kept} bytes");
    }
    std::fs::write(&path, &whole).unwrap();
    let engine = RowEngine::open(directory.path()).unwrap();
    while engine.verify().unwrap() {}
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    std::fs::write(&path, &flipped).unwrap();
    assert_eq!(engine.verify().unwrap_err().code(), ErrorCode::Corrupt);
    assert_eq!(drsdb_core::Error::from(count(&engine, request(&table)).await.unwrap_err()).code(), ErrorCode::Corrupt);
}

/// Nobody is told another number than was written, also before scrubbing comes by.
#[tokio::test]
async fn a_bit_that_flips_while_the_engine_runs_is_never_served() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("rows.sqlite");
    let table = people();
    let expected = rows(&table, 0..4000, 100);
    let engine = RowEngine::open(directory.path()).unwrap();
    let transaction = stage(&engine, &table, &expected).unwrap();
    engine.commit(transaction, 1).unwrap();
    drop(engine);
    let whole = std::fs::read(&path).unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    let mut noticed = 0;
    for place in (4096..whole.len()).step_by(whole.len() / 40) {
        let engine = RowEngine::open(directory.path()).unwrap();
        file.write_all_at(&[whole[place] ^ 1], place as u64).unwrap();
        let found = match engine.scan(request(&table)) {
            Ok(found) => found.try_collect::<Vec<_>>().await.map_err(drsdb_core::Error::from),
            Err(error) => Err(error),
        };
        match found {
            // A page of the index, or of another table, or a free one.
            Ok(found) => assert_eq!(arrow::compute::concat_batches(&expected.schema(), &found).unwrap(), expected),
            Err(error) => {
                assert_eq!(error.code(), ErrorCode::Corrupt, "byte {place}: {error}");
                assert!(engine.health().damage().is_some());
                noticed += 1;
            }
        }
        drop(engine);
        file.write_all_at(&whole[place..=place], place as u64).unwrap();
    }
    assert!(noticed > 10, "{noticed}");
}

/// A cluster that nobody uses must not write all the time.
#[test]
fn compaction_that_has_nothing_to_do_writes_nothing() {
    let directory = TempDir::new().unwrap();
    let table = people();
    let engine = RowEngine::open(directory.path()).unwrap();
    let transaction = stage(&engine, &table, &rows(&table, 0..100, 10)).unwrap();
    engine.commit(transaction, 1).unwrap();
    let deletion = new_ulid();
    let mut writer = engine.stage(checked(deletion), &table, 0).unwrap();
    writer.delete(&rows(&table, 0..10, 10).project(&table.primary_key).unwrap()).unwrap();
    writer.finish().unwrap();
    engine.commit(deletion, 2).unwrap();
    while engine.compact(2).unwrap() {}
    engine.sync().unwrap();
    let log = || std::fs::metadata(directory.path().join("rows.sqlite-wal")).unwrap().len();
    let before = log();
    for horizon in [1, 2, 3] {
        assert!(!engine.compact(horizon).unwrap());
        assert_eq!(log(), before, "at horizon {horizon}");
    }
}

/// What a crash leaves is believed, whenever it comes: also between a checkpoint and the sums of what it wrote.
#[tokio::test]
async fn a_crash_is_no_damage() {
    let directory = TempDir::new().unwrap();
    let table = people();
    let engine = RowEngine::open(directory.path()).unwrap();
    let mut committed = 0;
    for round in 0..12_i64 {
        // More than a checkpoint's worth now and then.
        let count_of = if round % 4 == 3 { 40_000 } else { 100 };
        let first = round * 100_000;
        let transaction = stage(&engine, &table, &rows(&table, first..first + count_of, 400)).unwrap();
        engine.commit(transaction, round as u64 + 1).unwrap();
        committed += count_of;
        let copy = crashed(&directory);
        std::fs::copy(directory.path().join("rows.sums"), copy.path().join("rows.sums")).unwrap();
        let opened = RowEngine::open(copy.path()).unwrap();
        let wanted = ScanRequest { snapshot: round as u64 + 1, ..request(&table) };
        assert_eq!(count(&opened, wanted).await.unwrap() as i64, committed);
        drop(opened);
        RowEngine::open(copy.path()).unwrap();
    }
    // The sums that were there before the last checkpoint, and the log that it copied.
    let early = std::fs::read(directory.path().join("rows.sums")).unwrap();
    let log = std::fs::read(directory.path().join("rows.sqlite-wal")).unwrap();
    drop(engine);
    std::fs::write(directory.path().join("rows.sums"), early).unwrap();
    std::fs::write(directory.path().join("rows.sqlite-wal"), log).unwrap();
    let opened = RowEngine::open(directory.path()).unwrap();
    let wanted = ScanRequest { snapshot: 100, ..request(&table) };
    assert_eq!(count(&opened, wanted).await.unwrap() as i64, committed);
}

#[tokio::test]
async fn a_full_disk_is_an_error_that_leaves_the_rest_alone() {
    let directory = TempDir::new().unwrap();
    let table = people();
    // SQLite refuses to grow its file just as it does when the disk refuses: 500 pages are 2 MB.
    let engine = RowEngine::open_with(directory.path(), Some(500)).unwrap();
    let small = stage(&engine, &table, &rows(&table, 0..100, 10)).unwrap();
    engine.commit(small, 1).unwrap();
    let error = stage(&engine, &table, &rows(&table, 1000..50_000, 200)).unwrap_err();
    assert_eq!(error.code(), ErrorCode::DiskFull, "{error}");
    assert!(!error.to_wire().hint.is_empty());
    // Smaller ones still fit: what the failed one wrote is free again, sooner or later.
    let mut from = 100;
    let mut next = || {
        from += 10;
        stage(&engine, &table, &rows(&table, from - 10..from, 10))
    };
    let again = (0..100).find_map(|_| next().ok()).expect("no room comes back");
    engine.commit(again, 2).unwrap();
    assert_eq!(engine.staged_transactions().unwrap(), []);
    assert_eq!(count(&engine, request(&table)).await.unwrap(), 110);
    drop(engine);
    let engine = RowEngine::open(directory.path()).unwrap();
    assert_eq!(count(&engine, request(&table)).await.unwrap(), 110);
}

#[tokio::test]
async fn one_that_fails_takes_no_other_of_its_group_with_it() {
    const LOADS: i64 = 64;
    let directory = TempDir::new().unwrap();
    let table = people();
    let engine = RowEngine::open(directory.path()).unwrap();
    let first = stage(&engine, &table, &rows(&table, 0..1, 5)).unwrap();
    engine.commit(first, 1).unwrap();
    // All at once, so that they meet in groups; every fourth has a key that is taken.
    let results: Vec<Result<Ulid>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..LOADS)
            .map(|load| {
                let (engine, table) = (&engine, &table);
                let from = if load % 4 == 0 { 0 } else { load * 100 };
                scope.spawn(move || stage(engine, table, &rows(table, from..from + 10, 5)))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for (load, result) in results.into_iter().enumerate() {
        match result {
            Ok(transaction) => {
                assert_ne!(load % 4, 0);
                engine.commit(transaction, 2).unwrap();
            }
            Err(error) => {
                assert_eq!((load % 4, error.code()), (0, ErrorCode::ConstraintViolation), "{error}");
            }
        }
    }
    assert_eq!(count(&engine, request(&table)).await.unwrap() as i64, 1 + LOADS / 4 * 3 * 10);
}

#[tokio::test]
async fn a_scan_that_finds_nothing_stops_when_it_is_dropped() {
    let directory = TempDir::new().unwrap();
    let table = people();
    let engine = RowEngine::open(directory.path()).unwrap();
    let transaction = stage(&engine, &table, &rows(&table, 0..200_000, 20)).unwrap();
    engine.commit(transaction, 1).unwrap();
    let idle = Arc::strong_count(&table);
    let nothing = compare(1, Operator::Eq, ScalarValue::Utf8View(Some("nobody".to_owned())));
    // Many of them at once take long enough that they cannot all be at their ends already.
    let streams: Vec<_> = (0..50)
        .map(|_| engine.scan(ScanRequest { filters: vec![Arc::clone(&nothing)], ..request(&table) }).unwrap())
        .collect();
    drop(streams);
    let start = std::time::Instant::now();
    while Arc::strong_count(&table) > idle {
        assert!(start.elapsed() < std::time::Duration::from_secs(5), "scans go on that nobody wants");
        tokio::task::yield_now().await;
    }
    assert_eq!(count(&engine, request(&table)).await.unwrap(), 200_000);
}

#[tokio::test]
async fn dropped_tables_give_their_room_back() {
    let directory = TempDir::new().unwrap();
    let engine = RowEngine::open(directory.path()).unwrap();
    let mut sizes = vec![];
    for version in 1..=6 {
        let table = people();
        let transaction = stage(&engine, &table, &rows(&table, 0..20_000, 100)).unwrap();
        engine.commit(transaction, version).unwrap();
        assert_eq!(count(&engine, request(&table)).await.unwrap(), 20_000);
        engine.drop_table(table.id).unwrap();
        let error = count(&engine, request(&table)).await.unwrap_err();
        assert_eq!(drsdb_core::Error::from(error).code(), ErrorCode::NotFound);
        let error = stage(&engine, &table, &rows(&table, 0..1, 1)).unwrap_err();
        assert_eq!(error.code(), ErrorCode::NotFound);
        sizes.push(std::fs::metadata(directory.path().join("rows.sqlite")).unwrap().len());
    }
    assert!(sizes[5] <= 2 * sizes[1].max(4 << 20), "the file grows with each table that is dropped: {sizes:?}");
}

#[test]
fn filters_become_conditions() {
    let table = people();
    let id = |operator, value| compare(0, operator, ScalarValue::Int64(Some(value)));
    let name = |value: &str| compare(1, Operator::Eq, ScalarValue::Utf8View(Some(value.to_owned())));
    let and = |a, b| -> Arc<dyn PhysicalExpr> { Arc::new(BinaryExpr::new(a, Operator::And, b)) };
    let or = |a, b| -> Arc<dyn PhysicalExpr> { Arc::new(BinaryExpr::new(a, Operator::Or, b)) };
    let not = |a| -> Arc<dyn PhysicalExpr> { Arc::new(NotExpr::new(a)) };
    // A comparison with a value of another type stands for what is not understood.
    let unknown = || compare(0, Operator::Eq, ScalarValue::Int32(Some(1)));
    let sql = |filter: Arc<dyn PhysicalExpr>| conjunction(&table, &[filter]).0.map(|condition| condition.sql);
    let some = |text: &str| Some(text.to_owned());

    assert_eq!(sql(id(Operator::Lt, 5)), some("c0 < ?"));
    assert_eq!(sql(not(id(Operator::Lt, 5))), some("c0 >= ?"));
    assert_eq!(sql(and(id(Operator::Gt, 1), name("x"))), some("(c0 > ? AND c1 = ?)"));
    assert_eq!(sql(not(and(id(Operator::Gt, 1), name("x")))), some("(c0 <= ? OR c1 <> ?)"));
    assert_eq!(sql(unknown()), None);
    assert_eq!(sql(and(unknown(), name("x"))), some("c1 = ?"));
    assert_eq!(sql(or(unknown(), name("x"))), None);
    assert_eq!(sql(not(or(unknown(), name("x")))), some("c1 <> ?"));
    assert_eq!(sql(not(and(unknown(), name("x")))), None);
    let list = vec![Arc::new(Literal::new(ScalarValue::Int64(Some(1)))) as _; 3];
    let list = InListExpr::try_new(Arc::new(ColumnExpr::new("id", 0)), list, false, &table.arrow_schema()).unwrap();
    assert_eq!(sql(not(Arc::new(list))), some("c0 NOT IN (?, ?, ?)"));
    // What a join learns before the scan begins is pushed as far as it is known then.
    let learned = DynamicFilterPhysicalExpr::new(vec![Arc::new(ColumnExpr::new("id", 0))], lit(true));
    let learned: Arc<DynamicFilterPhysicalExpr> = Arc::new(learned);
    assert_eq!(sql(Arc::clone(&learned) as _), some("1"));
    learned.update(id(Operator::GtEq, 7)).unwrap();
    assert_eq!(sql(Arc::clone(&learned) as _), some("c0 >= ?"));
    assert_eq!(sql(not(learned)), None);
    // Too many for SQLite's parser: what fits is pushed, the rest is left to the caller.
    let long = (0..2000).map(|value| id(Operator::NotEq, value)).reduce(and).unwrap();
    assert!(conjunction(&table, &[long]).0.is_some());
    let long = (0..2000).map(|value| id(Operator::Eq, value)).reduce(or).unwrap();
    assert_eq!(sql(long), None);
}

/// The files as a crash right now would leave them.
fn crashed(directory: &TempDir) -> TempDir {
    let copy = TempDir::new().unwrap();
    for name in ["rows.sqlite", "rows.sqlite-wal", "rows.mark"] {
        std::fs::copy(directory.path().join(name), copy.path().join(name)).unwrap();
    }
    copy
}

#[tokio::test]
async fn a_log_that_lost_its_end_is_noticed() {
    let directory = TempDir::new().unwrap();
    let table = people();
    let engine = RowEngine::open(directory.path()).unwrap();
    let first = stage(&engine, &table, &rows(&table, 0..10, 10)).unwrap();
    engine.commit(first, 1).unwrap();
    // Staged and not committed: nobody else would miss it.
    stage(&engine, &table, &rows(&table, 10..20, 10)).unwrap();

    let whole = crashed(&directory);
    let opened = RowEngine::open(whole.path()).unwrap();
    assert_eq!(count(&opened, request(&table)).await.unwrap(), 10);
    assert_eq!(opened.staged_transactions().unwrap().len(), 1);
    drop(opened);
    RowEngine::open(whole.path()).unwrap();

    let size = std::fs::metadata(directory.path().join("rows.sqlite-wal")).unwrap().len();
    for kept in [size - 1, size - 5000, 0] {
        let torn = crashed(&directory);
        let log = std::fs::File::options().write(true).open(torn.path().join("rows.sqlite-wal")).unwrap();
        log.set_len(kept).unwrap();
        let error = RowEngine::open(torn.path()).unwrap_err();
        assert_eq!(error.code(), ErrorCode::Corrupt, "{kept} of {size} bytes: {error}");
    }
    let rotten = crashed(&directory);
    overwrite(&rotten.path().join("rows.sqlite-wal"), size - 2000, 1);
    let error = RowEngine::open(rotten.path()).unwrap_err();
    assert_eq!(error.code(), ErrorCode::Corrupt, "{error}");
    // Without the mark, or with half of it, nothing can be said.
    let unmarked = crashed(&directory);
    overwrite(&unmarked.path().join("rows.mark"), 3, 2);
    RowEngine::open(unmarked.path()).unwrap();
}

#[tokio::test]
async fn an_outcome_that_a_power_loss_took_can_be_told_again() {
    let directory = TempDir::new().unwrap();
    let table = people();
    let engine = RowEngine::open(directory.path()).unwrap();
    let log_bytes = |of: &TempDir| std::fs::metadata(of.path().join("rows.sqlite-wal")).unwrap().len();
    let first = stage(&engine, &table, &rows(&table, 0..10, 10)).unwrap();
    let synced = log_bytes(&directory);
    engine.commit(first, 1).unwrap();
    assert!(log_bytes(&directory) > synced);
    assert_eq!(count(&engine, request(&table)).await.unwrap(), 10, "it counts at once");

    let lost = crashed(&directory);
    let log = std::fs::File::options().write(true).open(lost.path().join("rows.sqlite-wal")).unwrap();
    log.set_len(synced).unwrap();
    let opened = RowEngine::open(lost.path()).unwrap();
    assert_eq!(opened.staged_transactions().unwrap(), [first], "nothing but the outcome is lost");
    assert_eq!(count(&opened, request(&table)).await.unwrap(), 0);
    opened.commit(first, 1).unwrap();
    assert_eq!(count(&opened, request(&table)).await.unwrap(), 10);

    // From here on it is on disk, and to lose it is damage.
    engine.sync().unwrap();
    let damaged = crashed(&directory);
    let log = std::fs::File::options().write(true).open(damaged.path().join("rows.sqlite-wal")).unwrap();
    log.set_len(synced).unwrap();
    let error = RowEngine::open(damaged.path()).unwrap_err();
    assert_eq!(error.code(), ErrorCode::Corrupt, "{error}");
}

#[tokio::test]
async fn damage_names_the_shard() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("rows.sqlite");
    let table = people();
    let engine = RowEngine::open(directory.path()).unwrap();
    let transaction = stage(&engine, &table, &rows(&table, 0..20_000, 100)).unwrap();
    engine.commit(transaction, 1).unwrap();
    drop(engine);
    let size = std::fs::metadata(&path).unwrap().len();
    let engine = RowEngine::open(directory.path()).unwrap();
    overwrite(&path, size / 2, 64 << 10);
    let error = drsdb_core::Error::from(count(&engine, request(&table)).await.unwrap_err()).to_wire();
    assert_eq!(error.code, ErrorCode::Corrupt);
    assert_eq!((error.fields["table_id"].clone(), error.fields["shard"].as_str()), (table.id.to_string(), "0"));
}

/// How SQLite runs a statement, one step a line.
fn plan(engine: &RowEngine, sql: &str, parameters: &[rusqlite::types::Value]) -> String {
    let reader = engine.reader().unwrap();
    let mut statement = reader.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
    let steps = statement.query_map(rusqlite::params_from_iter(parameters), |row| row.get::<_, String>(3)).unwrap();
    steps.collect::<rusqlite::Result<Vec<String>>>().unwrap().join("\n")
}

#[test]
fn lookups_by_key_use_its_index() {
    let directory = TempDir::new().unwrap();
    let table = people();
    let engine = RowEngine::open(directory.path()).unwrap();
    // With a large commit and changes of the reader's own, so that the conditions are at their longest.
    let large = stage(&engine, &table, &rows(&table, 0..5000, 10)).unwrap();
    engine.commit(large, 1).unwrap();
    let transaction = stage(&engine, &table, &rows(&table, 5000..5010, 10)).unwrap();
    let own = Some(drsdb_core::scan::OwnWrites { transaction, sequence: 1 });
    let shard = super::shards::find_shard(&engine.reader().unwrap(), ShardId { table: table.id, shard: 0 });
    let name = shard.unwrap().unwrap().name();
    let id = || Arc::new(ColumnExpr::new("id", 0));
    let list = (0..3).map(|id| Arc::new(Literal::new(ScalarValue::Int64(Some(id)))) as _).collect();
    let filters: [Arc<dyn PhysicalExpr>; 2] = [
        compare(0, Operator::Eq, ScalarValue::Int64(Some(7))),
        Arc::new(InListExpr::try_new(id(), list, false, &table.arrow_schema()).unwrap()),
    ];
    for own in [None, own] {
        for filter in &filters {
            let (visible, mut parameters) = super::visibility::visible(&engine.reader().unwrap(), 1, 1, own).unwrap();
            let condition = conjunction(&table, &[Arc::clone(filter)]).0.unwrap();
            parameters.extend(condition.parameters);
            let sql = format!("SELECT c0, c1 FROM {name} WHERE {visible} AND {}", condition.sql);
            let plan = plan(&engine, &sql, &parameters);
            assert!(plan.contains(&format!("SEARCH {name} USING INDEX {name}_key (c0=?")), "{sql}\n{plan}");
            assert_eq!(plan.matches(&name).count(), 2, "one search: {plan}");
        }
    }
    // What staging, committing, undoing and compacting look for.
    for (sql, index) in [
        (
            format!(
                "UPDATE {name} INDEXED BY {name}_key SET v_to = 1 WHERE c0 = 1 AND v_to = {LIVE} AND v_from BETWEEN 0 AND 9"
            ),
            "key",
        ),
        (format!("SELECT rowid FROM {name} INDEXED BY {name}_key WHERE c0 = 1 AND v_to < 0"), "key"),
        (format!("SELECT rowid FROM {name} INDEXED BY {name}_ended WHERE v_to = -1 AND v_to < {LIVE}"), "ended"),
        (
            format!("SELECT rowid FROM {name} INDEXED BY {name}_ended WHERE v_to BETWEEN 0 AND 9 AND v_to < {LIVE}"),
            "ended",
        ),
    ] {
        let plan = plan(&engine, &sql, &[]);
        assert!(
            plan.contains(&format!("SEARCH {name} USING")) && plan.contains(&format!("{name}_{index} (")),
            "{plan}"
        );
    }
}
