//! The engines that run the queries: a drsdb cluster, and what it is compared with.
//!
//! Each compared engine is a process of its own, so that its CPU time and memory are its own. It speaks lines of JSON:
//!
//! ```text
//! engine  -> {"ready": "DataFusion 55.2.0"}
//! command -> {"sql": "select ...", "result": "/tmp/x.arrow"}     result: where to write the rows, or null
//! engine  -> {"seconds": 0.0123, "rows": 4}                      time from SQL text to all rows in memory
//! engine  -> {"error": "..."}
//! ```
//!
//! It ends when its standard input does, and so never outlives the benchmark.

pub mod child;
pub mod datafusion;
pub mod drsdb;
pub mod duckdb;

use std::time::Duration;

use anyhow::Result;
use arrow::record_batch::RecordBatch;
use drsdb_benchmarks::tpch::Rule;

use crate::process::Process;

/// What one run of a query gave and cost.
#[derive(Debug)]
pub struct Run {
    /// From the SQL text to all rows in memory.
    pub elapsed: Duration,
    /// Rows of the result.
    pub rows: u64,
    /// The rows, if they were asked for.
    pub batches: Option<Vec<RecordBatch>>,
    /// Endpoints that were pulled.
    pub endpoints: usize,
    /// Bytes that the client received.
    pub received_bytes: u64,
}

/// An engine under test.
pub enum Engine {
    /// A cluster, queried through its front door.
    Drsdb(Box<drsdb::Cluster>),
    /// Another engine, in a process of its own.
    Child(Box<child::ChildEngine>),
}

impl Engine {
    /// Its name in reports.
    pub fn name(&self) -> &str {
        match self {
            Engine::Drsdb(_) => "drsdb",
            Engine::Child(engine) => engine.name(),
        }
    }

    /// Its version.
    pub fn version(&self) -> &str {
        match self {
            Engine::Drsdb(_) => env!("CARGO_PKG_VERSION"),
            Engine::Child(engine) => engine.version(),
        }
    }

    /// How strictly its results must agree with the reference, which is DataFusion.
    pub fn rule(&self) -> Rule {
        match self {
            Engine::Child(engine) if engine.name() != datafusion::NAME => Rule::OtherEngine,
            _ => Rule::SameEngine,
        }
    }

    /// Runs a query; `rows` asks for the rows themselves.
    pub async fn run(&mut self, sql: &str, rows: bool) -> Result<Run> {
        match self {
            Engine::Drsdb(cluster) => cluster.run(sql).await,
            Engine::Child(engine) => engine.run(sql, rows).await,
        }
    }

    /// Every process of it.
    pub fn processes(&self) -> Vec<Process> {
        match self {
            Engine::Drsdb(cluster) => cluster.processes(),
            Engine::Child(engine) => vec![engine.process()],
        }
    }

    /// Ends its processes and waits for them.
    pub async fn stop(self) -> Result<()> {
        match self {
            Engine::Drsdb(cluster) => cluster.stop().await,
            Engine::Child(engine) => engine.stop().await,
        }
    }
}
