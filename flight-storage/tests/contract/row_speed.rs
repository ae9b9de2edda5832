//! How fast the row engine is: a measurement, not a test. What a commit costs alone and in company, a load, a scan, a
//! lookup by key, an update and a deletion. Run it alone and optimized:
//!
//! `cargo test --release -p drsdb-storage --test contract -- --ignored --nocapture how_fast_rows_are`

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use datafusion::{
    logical_expr::Operator,
    physical_expr::expressions::{BinaryExpr, Column, Literal},
    scalar::ScalarValue,
};
use drsdb_core::{Table, ids::new_ulid};
use drsdb_storage::{
    engine::{ScanRequest, StorageEngine},
    row::RowEngine,
};
use futures::StreamExt;
use tokio::runtime::Runtime;

use super::support::{checked, keys, people, people_rows, request};

const ROWS: i64 = 1_000_000;
const COMMIT_TIME: Duration = Duration::from_secs(3);
const LOOKUPS: i64 = 5000;

#[test]
#[ignore = "a measurement"]
fn how_fast_rows_are() {
    let directory = tempfile::TempDir::new().unwrap();
    let engine = RowEngine::open(directory.path()).unwrap();
    println!("one fsync: {:?}", fsync_time(directory.path()));
    for threads in [1, 8, 64, 256] {
        println!("commits of one row, {threads} threads: {:.0}/s", commits_per_second(&engine, threads));
    }

    let table = people();
    let start = Instant::now();
    let transaction = new_ulid();
    let mut writer = engine.stage(checked(transaction), &table, 0).unwrap();
    for from in (0..ROWS).step_by(8192) {
        writer.write(&people_rows(&table, from..ROWS.min(from + 8192))).unwrap();
    }
    writer.finish().unwrap();
    println!("load: {:.0} rows/s", ROWS as f64 / start.elapsed().as_secs_f64());
    let start = Instant::now();
    engine.commit(transaction, 1).unwrap();
    println!("commit of that load: {:?}", start.elapsed());

    let runtime = Runtime::new().unwrap();
    let _context = runtime.enter();
    let start = Instant::now();
    let rows = runtime.block_on(count(&engine, request(&table, 1)));
    println!("scan: {:.0} rows/s", rows as f64 / start.elapsed().as_secs_f64());
    let start = Instant::now();
    for lookup in 0..LOOKUPS {
        let id = Arc::new(Literal::new(ScalarValue::Int64(Some(lookup * 7919 % ROWS))));
        let filter = Arc::new(BinaryExpr::new(Arc::new(Column::new("id", 0)), Operator::Eq, id));
        let found = ScanRequest { filters: vec![filter], ..request(&table, 1) };
        assert_eq!(runtime.block_on(count(&engine, found)), 1);
    }
    println!("lookup by key: {:?}", start.elapsed() / LOOKUPS as u32);

    let median = |deletes: bool| {
        let mut times: Vec<Duration> = (0..200)
            .map(|at| {
                let id = if deletes { at * 7919 % ROWS } else { ROWS + at };
                let start = Instant::now();
                let transaction = new_ulid();
                let mut writer = engine.stage(checked(transaction), &table, 0).unwrap();
                if deletes {
                    writer.delete(&keys(&table, [id])).unwrap();
                }
                writer.write(&people_rows(&table, [id])).unwrap();
                writer.finish().unwrap();
                engine.commit(transaction, 2 + at as u64).unwrap();
                start.elapsed()
            })
            .collect();
        times.sort_unstable();
        times[times.len() / 2]
    };
    println!("commit of one insert: {:?}, of one update: {:?} (medians)", median(false), median(true));
    let start = Instant::now();
    let transaction = new_ulid();
    let mut writer = engine.stage(checked(transaction), &table, 0).unwrap();
    writer.delete(&keys(&table, (0..ROWS).step_by(100))).unwrap();
    writer.finish().unwrap();
    engine.commit(transaction, 1000).unwrap();
    println!("deletion of 1 %: {:?}", start.elapsed());
    let start = Instant::now();
    while engine.compact(1000).unwrap() {}
    println!("compaction of all of it: {:?}", start.elapsed());
}

async fn count(engine: &RowEngine, request: ScanRequest) -> usize {
    let mut stream = engine.scan(request).unwrap();
    let mut rows = 0;
    while let Some(batch) = stream.next().await {
        rows += batch.unwrap().num_rows();
    }
    rows
}

fn fsync_time(directory: &Path) -> Duration {
    const TIMES: u32 = 50;
    let mut file = std::fs::File::create(directory.join("fsync")).unwrap();
    let start = Instant::now();
    for _ in 0..TIMES {
        std::io::Write::write_all(&mut file, &[0; 4096]).unwrap();
        file.sync_data().unwrap();
    }
    start.elapsed() / TIMES
}

/// Each thread stages a row, waits until it is durable, and commits it, which waits again.
fn commits_per_second(engine: &RowEngine, threads: i64) -> f64 {
    let table: Arc<Table> = people();
    let version = AtomicU64::new(0);
    let start = Instant::now();
    thread::scope(|scope| {
        for thread in 0..threads {
            let (table, version) = (&table, &version);
            scope.spawn(move || {
                let mut id = thread * 1_000_000;
                while start.elapsed() < COMMIT_TIME {
                    let transaction = new_ulid();
                    let mut writer = engine.stage(checked(transaction), table, 0).unwrap();
                    writer.write(&people_rows(table, [id])).unwrap();
                    writer.finish().unwrap();
                    engine.commit(transaction, version.fetch_add(1, Ordering::SeqCst)).unwrap();
                    id += 1;
                }
            });
        }
    });
    version.load(Ordering::SeqCst) as f64 / start.elapsed().as_secs_f64()
}
