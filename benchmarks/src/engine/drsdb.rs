//! A drsdb cluster: the `drsdb` program starts its processes, and this one queries it through the front door.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use drsdb_benchmarks::front_door;
use drsdb_client::{Client, ClientOptions};
use serde::Deserialize;
use tempfile::TempDir;
use tokio::{
    process::{Child, Command},
    time::timeout,
};

use super::Run;
use crate::process::Process;

/// How long a cluster may take to start and to stop.
const PATIENCE: Duration = Duration::from_secs(60);

/// Which program and how many servers.
#[derive(Debug, Clone, clap::Args)]
pub struct ClusterArguments {
    /// Storage servers, each a process.
    #[arg(long, default_value_t = 3)]
    pub servers: usize,
    /// Index servers, each a process: 1, 3 or 5.
    #[arg(long, default_value_t = 1)]
    pub index: usize,
    /// The drsdb program; by default the one beside this program.
    #[arg(long)]
    pub drsdb: Option<PathBuf>,
    /// Folder for the cluster's data; by default a temporary one. It must be on a disk, not in memory, for load figures.
    #[arg(long)]
    pub cluster_data: Option<PathBuf>,
    /// Milliseconds that each fsync of a server takes longer than the disk needs: what slower disks do.
    #[arg(long, default_value_t = 0)]
    pub slow_sync_ms: u64,
}

/// A running cluster. Dropped, its processes are killed.
pub struct Cluster {
    child: Child,
    client: Client,
    processes: Vec<Process>,
    data: TempDir,
}

impl Cluster {
    /// Starts the processes and waits until a query can be run.
    pub async fn start(arguments: &ClusterArguments) -> Result<Self> {
        Self::start_with(arguments, &[]).await
    }

    /// The same, with settings of the servers as environment variables.
    pub async fn start_with(arguments: &ClusterArguments, settings: &[(&str, String)]) -> Result<Self> {
        let program = match &arguments.drsdb {
            Some(program) => program.clone(),
            None => std::env::current_exe()?.with_file_name("drsdb"),
        };
        ensure!(
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
        let ready_file = data.path().join("ready.json");
        let faults = data.path().join("faults");
        if arguments.slow_sync_ms > 0 {
            let plan = format!("slow_sync_ms {}\n", arguments.slow_sync_ms);
            std::fs::write(&faults, plan).with_context(|| format!("cannot write {}", faults.display()))?;
        }
        let mut child = Command::new(&program)
            .envs((arguments.slow_sync_ms > 0).then_some(("DRSDB_FAULTS_FILE", &faults)))
            .envs(settings.iter().cloned())
            .args(["local", "--processes", "--exit-with-stdin", "--port", "0"])
            .args(["--storage", &arguments.servers.to_string()])
            .args(index_arguments(arguments.index))
            .arg("--data")
            .arg(data.path().join("cluster"))
            .arg("--ready-file")
            .arg(&ready_file)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let ready = wait_until_ready(&mut child, &ready_file).await?;
        let client = Client::connect(ClientOptions::from_file(&ready.client)?).await.context("cannot connect")?;
        Ok(Self { child, client, processes: ready.processes(), data })
    }

    /// The client.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Another client, with connections and a login of its own.
    pub async fn connect(&self) -> Result<Client> {
        let file = self.data.path().join("cluster").join("client.toml");
        Client::connect(ClientOptions::from_file(file)?).await.context("cannot connect")
    }

    /// The folder of everything that the cluster writes.
    pub fn folder(&self) -> PathBuf {
        self.data.path().join("cluster")
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
                ensure!(status.success(), "the cluster ended with {status}");
                Ok(())
            }
            Err(_) => {
                self.child.kill().await?;
                bail!("the cluster did not end within {PATIENCE:?}, and was killed")
            }
        }
    }
}

/// One index server is what `drsdb local` has without being asked.
fn index_arguments(count: usize) -> Vec<String> {
    if count == 1 { Vec::new() } else { vec!["--index".to_owned(), count.to_string()] }
}

/// What `drsdb local` writes when the cluster takes requests.
#[derive(Debug, Deserialize)]
struct Ready {
    index: Vec<Server>,
    storage: Vec<Server>,
    client: PathBuf,
}

#[derive(Debug, Deserialize)]
struct Server {
    pid: u32,
}

impl Ready {
    /// The servers by what they do, and this client.
    fn processes(&self) -> Vec<Process> {
        let index = self.index.iter().map(|server| Process { role: "index".to_owned(), pid: server.pid });
        let storage = self.storage.iter().zip(1..);
        let storage = storage.map(|(server, number)| Process { role: format!("storage {number}"), pid: server.pid });
        index.chain(storage).chain([Process::this("client")]).collect()
    }
}

async fn wait_until_ready(child: &mut Child, file: &Path) -> Result<Ready> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        // The file appears whole.
        if let Ok(text) = std::fs::read_to_string(file) {
            return serde_json::from_str(&text).with_context(|| format!("{} has an unknown form", file.display()));
        }
        if let Some(status) = child.try_wait()? {
            bail!("the cluster ended while it started ({status}): its messages are above");
        }
        ensure!(Instant::now() < deadline, "the cluster is not ready after {PATIENCE:?}");
        pause().await;
    }
}

/// Between attempts. Another process becomes ready: nothing here could be waited for instead.
async fn pause() {
    #[allow(clippy::disallowed_methods, reason = "polls another process")]
    tokio::time::sleep(Duration::from_millis(50)).await;
}
