//! An engine in a process of its own, spoken to in lines of JSON: see [`super`].

use std::{path::Path, process::Stdio, time::Duration};

use anyhow::{Context, Result, bail};
use arrow::{ipc::reader::FileReader, record_batch::RecordBatch};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};

use super::Run;
use crate::process::Process;

/// What the command asks.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    /// The query.
    pub sql: String,
    /// The Arrow file that takes the rows.
    pub result: Option<String>,
}

/// What the engine answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Response {
    /// Once, when it can take queries.
    Ready {
        /// Its name and version.
        ready: String,
    },
    /// A query has run.
    Done {
        /// From the SQL text to all rows in memory.
        seconds: f64,
        /// Rows of the result.
        rows: u64,
    },
    /// A query has failed, or the engine cannot start.
    Failed {
        /// Why.
        error: String,
    },
}

/// The process.
pub struct ChildEngine {
    name: &'static str,
    version: String,
    child: Child,
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
    results: TempDir,
}

impl ChildEngine {
    /// Starts `command` and waits until it is ready.
    pub async fn start(name: &'static str, mut command: Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let stdin = child.stdin.take().expect("standard input is piped");
        let stdout = BufReader::new(child.stdout.take().expect("standard output is piped")).lines();
        let results = tempfile::tempdir().context("cannot create a folder for results")?;
        let mut engine = Self { name, version: String::new(), child, stdin, stdout, results };
        match engine.response().await? {
            Response::Ready { ready } => engine.version = ready,
            Response::Failed { error } => bail!("{name} cannot start: {error}"),
            Response::Done { .. } => bail!("{name} answered before it was asked"),
        }
        Ok(engine)
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// What it says it is.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Its process.
    pub fn process(&self) -> Process {
        // Without an id it has ended: reading its usage then says that it is gone.
        Process { role: self.name.to_owned(), pid: self.child.id().unwrap_or(u32::MAX) }
    }

    /// Runs a query.
    pub async fn run(&mut self, sql: &str, rows: bool) -> Result<Run> {
        let path = self.results.path().join("result.arrow");
        let result = rows.then(|| path.display().to_string());
        let mut line = serde_json::to_string(&Request { sql: sql.to_owned(), result })?;
        line.push('\n');
        self.stdin.write_all(line.as_bytes()).await.with_context(|| format!("{} is gone", self.name))?;
        self.stdin.flush().await?;
        match self.response().await? {
            Response::Done { seconds, rows: count } => Ok(Run {
                elapsed: Duration::from_secs_f64(seconds),
                rows: count,
                batches: if rows { Some(read_arrow(&path)?) } else { None },
                endpoints: 0,
                received_bytes: 0,
            }),
            Response::Failed { error } => bail!("{}: {error}", self.name),
            Response::Ready { .. } => bail!("{} started twice", self.name),
        }
    }

    async fn response(&mut self) -> Result<Response> {
        match self.stdout.next_line().await? {
            Some(line) => serde_json::from_str(&line).with_context(|| format!("{} answered {line:?}", self.name)),
            None => bail!("{} ended without an answer ({})", self.name, self.child.wait().await?),
        }
    }

    /// Closes its input and waits for its end.
    pub async fn stop(self) -> Result<()> {
        let Self { name, mut child, stdin, .. } = self;
        drop(stdin);
        let status = child.wait().await?;
        anyhow::ensure!(status.success(), "{name} ended with {status}");
        Ok(())
    }
}

fn read_arrow(path: &Path) -> Result<Vec<RecordBatch>> {
    let file = std::fs::File::open(path).with_context(|| format!("no result at {}", path.display()))?;
    Ok(FileReader::try_new(std::io::BufReader::new(file), None)?.collect::<Result<_, _>>()?)
}
