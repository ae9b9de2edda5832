//! How fast the column engine scans: a measurement, not a test. Six million rows like TPC-H's lineitem, read cold (a new
//! start, so every file is checked and decoded) and hot (decoded columns in memory), beside DataFusion's own scan of the
//! same files. Run it alone and optimized:
//!
//! `cargo test --release -p drsdb-storage --test contract -- --ignored --nocapture how_fast_scans_are`

use std::{
    fmt,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use arrow::array::{ArrayRef, Date32Array, Decimal128Array, Int32Array, Int64Array, RecordBatch, StringViewArray};
use datafusion::prelude::{ParquetReadOptions, SessionConfig, SessionContext};
use drsdb_core::{SqlType, Table, ids::new_ulid};
use drsdb_storage::{
    column::{ColumnEngine, ColumnOptions},
    engine::{ScanRequest, StorageEngine},
};
use futures::StreamExt;
use tokio::runtime::Runtime;

use super::support::{batch, checked, request, table};

const ROWS: i64 = 6_000_000;
const SHARDS: i64 = 12;
const PARTITIONS: usize = 2;

fn lines() -> Arc<Table> {
    let money = SqlType::Decimal { precision: 15, scale: 2 };
    let columns = [
        ("orderkey", SqlType::BigInt),
        ("linenumber", SqlType::Integer),
        ("partkey", SqlType::BigInt),
        ("suppkey", SqlType::BigInt),
        ("quantity", money),
        ("extendedprice", money),
        ("discount", money),
        ("tax", money),
        ("returnflag", SqlType::Char { length: 1 }),
        ("linestatus", SqlType::Char { length: 1 }),
        ("shipdate", SqlType::Date),
        ("commitdate", SqlType::Date),
        ("receiptdate", SqlType::Date),
        ("shipinstruct", SqlType::Char { length: 25 }),
        ("shipmode", SqlType::Char { length: 10 }),
        ("comment", SqlType::Varchar { length: Some(44) }),
    ];
    table(&columns, &[0, 1])
}

/// Spreads a number over 64 bits.
fn mix(value: i64) -> u64 {
    let value = (value as u64 ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (value ^ (value >> 29)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 8
}

fn rows(table: &Table, numbers: impl Iterator<Item = i64> + Clone) -> RecordBatch {
    let draw = |salt: i64, below: u64| numbers.clone().map(move |row| (mix(row * 31 + salt) % below) as i64);
    let big = |salt, below| Arc::new(Int64Array::from_iter_values(draw(salt, below))) as ArrayRef;
    let money = |salt, below| {
        let values = Decimal128Array::from_iter_values(draw(salt, below).map(i128::from));
        Arc::new(values.with_precision_and_scale(15, 2).unwrap()) as ArrayRef
    };
    let date =
        |salt| Arc::new(Date32Array::from_iter_values(draw(salt, 2500).map(|day| 8000 + day as i32))) as ArrayRef;
    let pick = |salt, words: &'static [&'static str]| {
        let words = draw(salt, words.len() as u64).map(|at| Some(words[at as usize]));
        Arc::new(words.collect::<StringViewArray>()) as ArrayRef
    };
    let comments = draw(9, 1 << 40).map(|at| Some(format!("carefully final deposits {at:x}")));
    let columns = vec![
        Arc::new(Int64Array::from_iter_values(numbers.clone().map(|row| row / 4 * 4))) as ArrayRef,
        Arc::new(Int32Array::from_iter_values(numbers.clone().map(|row| (row % 4) as i32))),
        big(1, 200_000),
        big(2, 10_000),
        money(3, 50),
        money(4, 10_000_000),
        money(5, 11),
        money(6, 9),
        pick(7, &["A", "N", "R"]),
        pick(8, &["O", "F"]),
        date(10),
        date(11),
        date(12),
        pick(13, &["DELIVER IN PERSON", "COLLECT COD", "NONE", "TAKE BACK RETURN"]),
        pick(14, &["AIR", "FOB", "MAIL", "RAIL", "REG AIR", "SHIP", "TRUCK"]),
        Arc::new(comments.collect::<StringViewArray>()),
    ];
    batch(table, columns)
}

fn load(engine: &dyn StorageEngine, table: &Arc<Table>) -> Duration {
    let transaction = new_ulid();
    let mut elapsed = Duration::ZERO;
    for shard in 0..SHARDS {
        let per_shard = ROWS / SHARDS;
        let mut writer = engine.stage(checked(transaction), table, shard as u32).unwrap();
        for start in (0..per_shard).step_by(50_000) {
            let start = shard * per_shard + start;
            let rows = rows(table, start..start + 50_000);
            let clock = Instant::now();
            writer.write(&rows).unwrap();
            elapsed += clock.elapsed();
        }
        let clock = Instant::now();
        writer.finish().unwrap();
        elapsed += clock.elapsed();
    }
    engine.commit(transaction, 1).unwrap();
    elapsed
}

/// What a run cost: by the clock, and on all processors together.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
struct Cost {
    wall_ms: f64,
    cpu_ms: f64,
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} ms ({:.0} ms CPU)", self.wall_ms, self.cpu_ms)
    }
}

/// The processor time of this process so far, in milliseconds, as Linux counts it: in hundredths of a second.
fn cpu_ms() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(") ").next().unwrap_or_default().split(' ').skip(11).take(2);
    fields.filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() * 10.0
}

/// The median of some runs.
fn median(runs: usize, mut run: impl FnMut()) -> Cost {
    let (mut walls, cpu) = (Vec::new(), cpu_ms());
    for _ in 0..runs {
        let clock = Instant::now();
        run();
        walls.push(clock.elapsed().as_secs_f64() * 1e3);
    }
    walls.sort_by(f64::total_cmp);
    Cost { wall_ms: walls[runs / 2], cpu_ms: (cpu_ms() - cpu) / runs as f64 }
}

/// Reads every row of every batch's first column's length, two partitions side by side, and no more.
fn scan(runtime: &Runtime, engine: &Arc<ColumnEngine>, table: &Arc<Table>, projection: &[usize]) {
    let rows: usize = runtime.block_on(async {
        let partitions = (0..PARTITIONS).map(|partition| {
            let shards = (0..SHARDS as u32).filter(|shard| *shard as usize % PARTITIONS == partition).collect();
            let request = ScanRequest { shards, projection: projection.to_vec(), ..request(table, 1) };
            let mut stream = engine.scan(request).unwrap();
            tokio::spawn(async move {
                let mut rows = 0;
                while let Some(batch) = stream.next().await {
                    rows += batch.unwrap().num_rows();
                }
                rows
            })
        });
        futures::future::join_all(partitions).await.into_iter().map(Result::unwrap).sum()
    });
    assert_eq!(rows, ROWS as usize);
}

fn scan_with_datafusion(runtime: &Runtime, folder: &Path, names: &[String]) {
    runtime.block_on(async {
        let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(PARTITIONS));
        let path = folder.join("segments");
        context.register_parquet("lines", path.to_str().unwrap(), ParquetReadOptions::default()).await.unwrap();
        let query = format!("SELECT {} FROM lines", names.join(", "));
        let plan = context.sql(&query).await.unwrap().create_physical_plan().await.unwrap();
        let partitions = plan.properties().output_partitioning().partition_count();
        let tasks = (0..partitions).map(|partition| {
            let mut stream = plan.execute(partition, context.task_ctx()).unwrap();
            tokio::spawn(async move {
                let mut rows = 0;
                while let Some(batch) = stream.next().await {
                    rows += batch.unwrap().num_rows();
                }
                rows
            })
        });
        let rows: usize = futures::future::join_all(tasks).await.into_iter().map(Result::unwrap).sum();
        assert_eq!(rows, ROWS as usize);
    });
}

#[test]
#[ignore = "a measurement"]
fn how_fast_scans_are() {
    let directory = tempfile::TempDir::new().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(PARTITIONS).enable_all().build().unwrap();
    let table = lines();
    let options = ColumnOptions { cache_bytes: 4 << 30, ..ColumnOptions::default() };
    let open = || Arc::new(ColumnEngine::open(directory.path(), options.clone()).unwrap());
    let loading = load(&*open(), &table);
    let files = std::fs::read_dir(directory.path().join("segments")).unwrap().map(|entry| entry.unwrap());
    let sizes: Vec<u64> = files.map(|file| file.metadata().unwrap().len()).collect();
    let bytes: u64 = sizes.iter().sum();
    println!("{ROWS} rows in {} segments, {} MB on disk", sizes.len(), bytes >> 20);
    println!("load: {:.2} M rows/s", ROWS as f64 / 1e6 / loading.as_secs_f64());
    let cases: [(&str, Vec<usize>); 3] =
        [("6 numbers", vec![4, 5, 6, 7, 10, 0]), ("comment", vec![15]), ("all 16 columns", (0..16).collect())];
    for (name, projection) in cases {
        let names: Vec<String> = projection.iter().map(|&at| table.columns[at].name.clone()).collect();
        let cold = median(3, || scan(&runtime, &open(), &table, &projection));
        let engine = open();
        scan(&runtime, &engine, &table, &projection);
        let hot = median(31, || scan(&runtime, &engine, &table, &projection));
        let datafusion = median(3, || scan_with_datafusion(&runtime, directory.path(), &names));
        let cached = engine.cached_bytes() >> 20;
        println!("{name}: cold {cold}, hot {hot}, DataFusion {datafusion}; {cached} MB in memory");
    }
}
