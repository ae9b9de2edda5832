//! A drsdb cluster: the `drsdb` program starts its processes, and this one queries it through the front door.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use drsdb_benchmarks::front_door;
use drsdb_client::{Client, ClientOptions};
use tempfile::TempDir;
use tokio::{
    process::{Child, Command},
    time::timeout,
};

use super::Run;
use crate::process::{self, Process};

/// How long a cluster may take to start and to stop.
const PATIENCE: Duration = Duration::from_secs(60);

/// Which program and how many servers.
#[derive(Debug, Clone, clap::Args)]
pub struct ClusterArguments {
    /// Storage servers, each a process.
    #[arg(long, default_value_t = 3)]
    pub servers: usize,
    /// The drsdb program; by default the one beside this program.
    #[arg(long)]
    pub drsdb: Option<PathBuf>,
    /// Folder for the cluster's data; by default a temporary one. It must be on a disk, not in memory, for load figures.
    #[arg(long)]
    pub cluster_data: Option<PathBuf>,
}

/// A running cluster. Dropped, its processes are killed.
pub struct Cluster {
    child: Child,
    client: Client,
    processes: Vec<Process>,
    _data: TempDir,
}

impl Cluster {
    /// Starts the processes and waits until a query can be run.
    pub async fn start(arguments: &ClusterArguments) -> Result<Self> {
        let program = match &arguments.drsdb {
            Some(program) => program.clone(),
            None => std::env::current_exe()?.with_file_name("drsdb"),
        };
        anyhow::ensure!(
            program.exists(),
            "{} is not there: build it (cargo build --release -p drsdb), or name another with --drsdb",
            program.display(),
        );
        let data = match &arguments.cluster_data {
            Some(folder) => {
                std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
                tempfile::tempdir_in(folder)
            }
            None => tempfile::tempdir(),
        };
        let data = data.context("cannot create a folder for the cluster's data")?;
        let mut child = Command::new(&program)
            .args(["local", "--processes", "--storage", &arguments.servers.to_string()])
            .arg("--data")
            .arg(data.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let client = connect(&mut child, &data.path().join("client.toml")).await?;
        let pid = child.id().context("the cluster ended as soon as it had started")?;
        let processes = processes_of(pid)?;
        Ok(Self { child, client, processes, _data: data })
    }

    /// The client.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The servers and this client.
    pub fn processes(&self) -> Vec<Process> {
        self.processes.clone()
    }

    /// Runs a query.
    pub async fn run(&self, sql: &str) -> Result<Run> {
        let answer = front_door::run(&self.client, sql).await?;
        Ok(Run {
            elapsed: answer.elapsed,
            rows: answer.rows() as u64,
            endpoints: answer.endpoints,
            received_bytes: answer.bytes,
            batches: Some(answer.batches),
        })
    }

    /// Ends the processes: the program ends when its input does.
    pub async fn stop(mut self) -> Result<()> {
        drop(self.child.stdin.take());
        match timeout(PATIENCE, self.child.wait()).await {
            Ok(status) => {
                let status = status?;
                anyhow::ensure!(status.success(), "the cluster ended with {status}");
                Ok(())
            }
            Err(_) => {
                self.child.kill().await?;
                bail!("the cluster did not end within {PATIENCE:?}, and was killed")
            }
        }
    }
}

async fn connect(child: &mut Child, file: &Path) -> Result<Client> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait()? {
            bail!("the cluster ended while it started ({status}): its messages are above");
        }
        let failure = match attempt(file).await {
            Ok(client) => return Ok(client),
            Err(failure) => failure,
        };
        if Instant::now() > deadline {
            return Err(failure.context(format!("the cluster is not ready after {PATIENCE:?}")));
        }
        pause().await;
    }
}

async fn attempt(file: &Path) -> Result<Client> {
    let client = Client::connect(ClientOptions::from_file(file)?).await?;
    client.collect("SELECT 1").await?;
    Ok(client)
}

/// Between attempts. Another process becomes ready: nothing here could be waited for instead.
async fn pause() {
    #[allow(clippy::disallowed_methods, reason = "polls another process")]
    tokio::time::sleep(Duration::from_millis(50)).await;
}

/// The cluster's processes by what they do, and this client.
fn processes_of(pid: u32) -> Result<Vec<Process>> {
    let mut processes = vec![Process { role: "local".to_owned(), pid }];
    let mut storage = 0;
    for (pid, arguments) in process::children(pid)? {
        let role = match arguments.get(1).map(String::as_str) {
            Some("storage") => {
                storage += 1;
                format!("storage {storage}")
            }
            Some(other) => other.to_owned(),
            None => continue,
        };
        processes.push(Process { role, pid });
    }
    processes.push(Process::this("client"));
    Ok(processes)
}
