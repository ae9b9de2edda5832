//! Bulk load beside readers: a reader sees all of each load or nothing of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use arrow::{
    array::{ArrayRef, Int64Array, RecordBatch, StringArray},
    error::ArrowError,
};
use drsdb_client::Client;
use futures::{future::BoxFuture, stream};
use rand::{Rng, rngs::StdRng};
use tokio::time::timeout;

use super::{Effect, Engine, Notes, Workload, ask, column, lock};

/// Rows of a load.
const ROWS: i64 = 3000;
/// So many in one shard that a storage server writes them as a segment, not into its row buffer.
const ROWS_OF_SEGMENT: i64 = 17_000;
/// Rows of each batch.
const BATCH: i64 = 500;

pub struct BulkLoad {
    table: String,
    /// Options of the table.
    options: String,
    /// Of each load.
    rows: i64,
    notes: Notes,
    next_load: AtomicI64,
    acknowledged: Mutex<BTreeSet<i64>>,
    unknown: Mutex<BTreeSet<i64>>,
}

impl BulkLoad {
    pub fn new(seed: u64, engine: Engine) -> Self {
        Self {
            table: format!("loads_{}_{seed}", engine.name()),
            options: format!("engine = '{}'", engine.name()),
            rows: ROWS,
            notes: Notes::default(),
            next_load: AtomicI64::new(1),
            acknowledged: Mutex::default(),
            unknown: Mutex::default(),
        }
    }

    /// The same with loads that become segments.
    pub fn of_segments(seed: u64) -> Self {
        let options = "engine = 'column', shards = 1".to_owned();
        Self { options, rows: ROWS_OF_SEGMENT, ..Self::new(seed, Engine::Column) }
    }

    async fn load(&self, client: &Client, random: &mut StdRng) {
        let load = self.next_load.fetch_add(1, Ordering::Relaxed);
        let mut batches: Vec<Result<RecordBatch, ArrowError>> =
            (0..self.rows / BATCH).map(|number| Ok(batch(load, number * BATCH))).collect();
        // Some loads break in the middle.
        let broken = random.random_bool(0.2);
        if broken {
            batches.truncate(random.random_range(1..batches.len()));
            batches.push(Err(ArrowError::ComputeError("the source broke".to_owned())));
        }
        let schema = batch(0, 0).schema();
        let ingest = client.ingest(&self.table, schema, stream::iter(batches), Default::default());
        match timeout(Duration::from_secs(30), ingest).await {
            Ok(Ok(written)) if !broken && written.rows == self.rows as u64 => {
                self.notes.acknowledge();
                lock(&self.acknowledged).insert(load);
            }
            Ok(Ok(written)) => {
                self.notes.violation(format!("a load of {} rows, broken: {broken}, gave {written:?}", self.rows))
            }
            // A load that broke never asked for its commit.
            Ok(Err(_)) if broken => {}
            Ok(Err(error)) => {
                self.notes.judge("a load", &error);
                if let Effect::Unknown = Effect::of(&error) {
                    lock(&self.unknown).insert(load);
                }
            }
            Err(_) => {
                self.notes.violation("a load hangs for 30 seconds".to_owned());
                lock(&self.unknown).insert(load);
            }
        }
    }

    /// Rows of each load, counted by the servers or here.
    async fn look(&self, client: &Client, random: &mut StdRng) {
        let table = &self.table;
        let counts: BTreeMap<i64, i64> = if random.random_bool(0.5) {
            let sql = format!("SELECT load, count(*) FROM {table} GROUP BY load");
            let Some(result) = self.notes.read(client, &sql).await else { return };
            column(&result, 0).into_iter().zip(column(&result, 1)).collect()
        } else {
            let Some(result) = self.notes.read(client, &format!("SELECT load FROM {table}")).await else { return };
            let mut counts = BTreeMap::new();
            for load in column(&result, 0) {
                *counts.entry(load).or_insert(0) += 1;
            }
            counts
        };
        if let Some((load, rows)) = counts.into_iter().find(|(_, rows)| *rows != self.rows) {
            self.notes.violation(format!("a reader sees {rows} of {} rows of load {load} in {table}", self.rows));
        }
    }

    async fn check(&self, client: &Client) -> Result<(), String> {
        let table = &self.table;
        let sql = format!("SELECT load, count(*), count(DISTINCT line), sum(length(text)) FROM {table} GROUP BY load");
        let result = ask(client, &sql).await?;
        let mut found = BTreeSet::new();
        let text: i64 = (0..self.rows).map(|line| line_text(line).len() as i64).sum();
        let loads =
            column(&result, 0).into_iter().zip(column(&result, 1)).zip(column(&result, 2)).zip(column(&result, 3));
        for (((load, rows), lines), length) in loads {
            if (rows, lines, length) != (self.rows, self.rows, text) {
                return Err(format!("load {load} of {table} has {rows} rows, {lines} lines, {length} characters"));
            }
            found.insert(load);
        }
        let (acknowledged, unknown) = (lock(&self.acknowledged), lock(&self.unknown));
        if let Some(lost) = acknowledged.difference(&found).next() {
            return Err(format!("load {lost} of {table} was acknowledged and is lost"));
        }
        match found.iter().find(|load| !acknowledged.contains(load) && !unknown.contains(load)) {
            Some(extra) => Err(format!("load {extra} of {table} was refused, and is there")),
            None => Ok(()),
        }
    }
}

fn line_text(line: i64) -> String {
    format!("line {line}")
}

fn batch(load: i64, first: i64) -> RecordBatch {
    let lines = first..first + BATCH;
    let loads = Int64Array::from_iter_values(lines.clone().map(|_| load));
    let texts = StringArray::from_iter_values(lines.clone().map(line_text));
    RecordBatch::try_from_iter([
        ("load", Arc::new(loads) as ArrayRef),
        ("line", Arc::new(Int64Array::from_iter_values(lines)) as ArrayRef),
        ("text", Arc::new(texts) as ArrayRef),
    ])
    .unwrap()
}

impl Workload for BulkLoad {
    fn name(&self) -> &'static str {
        "bulk load beside readers"
    }

    fn setup(&self) -> Vec<String> {
        vec![format!(
            "CREATE TABLE {} (load BIGINT, line BIGINT, text TEXT, PRIMARY KEY (load, line)) WITH ({})",
            self.table, self.options
        )]
    }

    fn tables(&self) -> Vec<String> {
        vec![self.table.clone()]
    }

    fn workers(&self) -> usize {
        2
    }

    fn operate<'a>(&'a self, worker: usize, client: &'a Client, random: &'a mut StdRng) -> BoxFuture<'a, ()> {
        Box::pin(
            async move { if worker == 0 { self.load(client, random).await } else { self.look(client, random).await } },
        )
    }

    fn verify<'a>(&'a self, client: &'a Client) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(self.check(client))
    }

    fn notes(&self) -> &Notes {
        &self.notes
    }
}
