//! `drsdb demo`: a cluster of processes on this machine, TPC-H in through the front door, and 22 results checked.
//!
//! 1. Generates the tables as Parquet files in a temporary folder.
//! 2. Starts an index server and storage servers, each an OS process with its own port and data folder.
//! 3. Creates the tables and loads the files with the Rust client.
//! 4. Runs the 22 queries with the Rust client, and on one process of DataFusion over the same files; compares row by row.
//! 5. Prints a table and stops the cluster.
//!
//! Whatever ends it (a failure, Ctrl-C, SIGTERM), the processes are stopped first. A failure or a difference is an error.

mod report;

use std::{path::PathBuf, time::Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use drsdb_benchmarks::{
    front_door,
    output::Format,
    progress::Progress,
    tpch::{self, QUERIES, Query, Reference, ReferenceOptions, Rule, WrittenTable},
};
use drsdb_client::Client;
use report::{Line, Outcome};

use crate::{
    local::{LocalCluster, LocalOptions},
    node,
};

/// Tables that are loaded beside each other: enough that the largest never waits for a small one.
const TABLES_AT_ONCE: usize = 2;

/// Arguments of `drsdb demo`.
#[derive(Debug, Args)]
pub struct DemoArguments {
    /// TPC-H scale factor: 1 is about 1 GB.
    #[arg(long, default_value_t = 0.1)]
    scale: f64,
    /// Storage servers.
    #[arg(long, default_value_t = 3)]
    storage: usize,
    /// Folder for generated files and the servers' data, emptied at the end; by default below the system's temporary folder.
    #[arg(long)]
    folder: Option<PathBuf>,
}

/// Runs the demo.
pub async fn run(arguments: DemoArguments) -> Result<()> {
    let progress = Progress::new();
    let folder = match &arguments.folder {
        Some(folder) => {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
            tempfile::tempdir_in(folder)
        }
        None => tempfile::tempdir(),
    };
    let folder = folder.context("cannot create a temporary folder")?;
    let started = Instant::now();

    let files = folder.path().join("files");
    let written = or_interrupted(generate(files.clone(), arguments.scale, progress.clone())).await?;

    progress.say(&format!("start 1 index server and {} storage servers", arguments.storage));
    let options = LocalOptions {
        storage: arguments.storage,
        processes: true,
        data: folder.path().join("cluster"),
        ..LocalOptions::default()
    };
    let cluster = or_interrupted(LocalCluster::start(options)).await.context("the cluster does not start")?;
    let pids = cluster.pids();
    let client = cluster.client_options();
    let result = or_interrupted(async {
        let client = Client::connect(client).await.context("cannot connect to the cluster")?;
        front_door::create_tables(&client).await?;
        let loaded = front_door::load(&client, &written, TABLES_AT_ONCE, &progress).await?;
        let reference = Reference::open(&files, arguments.scale, ReferenceOptions::default()).await?;
        let lines = run_queries(&client, &reference, arguments.scale, &progress).await;
        Ok((loaded, lines))
    })
    .await;
    // First of all, whatever happened: nothing may be left running.
    let stopped = cluster.shutdown().await.context("the cluster does not stop");
    let (loaded, lines) = result?;
    stopped?;
    let left = pids.iter().filter(|pid| is_running(**pid)).collect::<Vec<_>>();
    ensure!(left.is_empty(), "processes {left:?} are still running");

    report::print(&lines, &loaded, &pids, started.elapsed());
    let bad = lines.iter().filter(|line| !line.is_ok()).count();
    if bad > 0 {
        bail!("{bad} of {} queries failed or differ from the reference", lines.len());
    }
    Ok(())
}

/// Ends the work early on Ctrl-C or SIGTERM. What it started is dropped with it.
async fn or_interrupted<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        result = work => result,
        () = node::stop_requested(false) => bail!("interrupted"),
    }
}

async fn generate(folder: PathBuf, scale: f64, progress: Progress) -> Result<Vec<WrittenTable>> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let generate = move || tpch::write_files(&folder, scale, Format::Parquet, threads, &progress);
    tokio::task::spawn_blocking(generate).await.context("generating the data panicked")?
}

/// Runs every query, also after one has failed: the table shows all.
async fn run_queries(client: &Client, reference: &Reference, scale: f64, progress: &Progress) -> Vec<Line> {
    let step = progress.step("queries", QUERIES.len() as u64, "queries");
    let mut lines = Vec::with_capacity(QUERIES.len());
    for query in QUERIES {
        let outcome = run_query(client, reference, &query, scale).await;
        lines.push(Line { query: query.number, outcome });
        step.advance(1);
    }
    step.finish();
    lines
}

async fn run_query(client: &Client, reference: &Reference, query: &Query, scale: f64) -> Outcome {
    let answer = match front_door::run(client, &query.sql(scale)).await {
        Ok(answer) => answer,
        Err(error) => return Outcome::Failed(format!("{error:#}")),
    };
    let difference = match reference.expected(query).await {
        Ok(expected) => tpch::verify(&expected, &answer.batches, query.ordering(), Rule::SameEngine)
            .err()
            .map(|mismatch| mismatch.to_string()),
        Err(error) => Some(format!("{error:#}")),
    };
    Outcome::Answered {
        rows: answer.rows(),
        elapsed: answer.elapsed,
        endpoints: answer.endpoints,
        bytes: answer.bytes,
        difference,
    }
}

/// Whether a process of that id is there and not merely waiting to be collected by its parent.
fn is_running(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(')').and_then(|(_, fields)| fields.trim_start().chars().next());
    state.is_some_and(|state| state != 'Z' && state != 'X')
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, sync::Arc};

    use arrow::array::RecordBatchReader;
    use drsdb_core::{Table, TableName, Ulid, edge::edge_schema};
    use drsdb_index::statement::{self, Statement};

    use super::*;

    /// What the definitions say is what the generator makes: names, types, NOT NULL, and keys that exist.
    #[test]
    fn the_definitions_fit_the_generated_rows() {
        let mut defined: HashMap<TableName, Arc<Table>> = HashMap::new();
        for (table, number) in tpch::TABLES.into_iter().zip(1..) {
            let Statement::CreateTable(definition) = statement::parse(table.definition()).unwrap() else {
                panic!("{table} is not defined by CREATE TABLE")
            };
            let parents = |name: &TableName| Ok(Arc::clone(&defined[name]));
            let resolved = definition.resolve(Ulid(number), 12, &parents).unwrap();
            let generated = tpch::batches(table, 0.001, 1, 1, 10).schema();
            let fields = |schema: &arrow::datatypes::Schema| {
                let fields = schema.fields().iter();
                fields
                    .map(|field| (field.name().clone(), field.data_type().clone(), field.is_nullable()))
                    .collect::<Vec<_>>()
            };
            assert_eq!(fields(&edge_schema(&resolved.arrow_schema())), fields(&generated), "{table}");
            assert!(!resolved.primary_key.is_empty(), "{table}");
            let small = matches!(table, tpch::Table::Region | tpch::Table::Nation);
            assert_eq!(resolved.shards, if small { 1 } else { 12 }, "{table}");
            defined.insert(resolved.name.clone(), Arc::new(resolved));
        }
    }

    #[test]
    fn a_process_is_running_until_it_has_ended() {
        let mut child = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        assert!(is_running(child.id()));
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(!is_running(child.id()));
    }
}
