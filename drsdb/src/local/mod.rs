//! `drsdb local`: a whole cluster on this machine.
//!
//! By default all servers live in this process; with `--processes` each is a process of its own, as in a real
//! deployment. Either way every server has its own port, certificate and data folder, and speaks TLS to the others:
//!
//! ```text
//! drsdb-data/
//!   client.toml        how to connect; clients look for it here
//!   admin.password     made on the first start
//!   ca/                the development CA
//!   index-1/           index.toml, certificate, data
//!   storage-1/ ...     storage.toml, certificate, data
//! ```
//!
//! [`LocalCluster`] is the same for the program, the demo and the tests.

mod files;
mod servers;

use std::{
    collections::HashSet,
    io::IsTerminal,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use drsdb_client::ClientOptions;
use drsdb_core::security::Role;
use serde::Serialize;
use url::Url;

use self::{files::Layout, servers::Server};
use crate::node;

/// Arguments of `drsdb local`.
#[derive(Debug, Args)]
pub struct LocalArguments {
    /// Storage servers.
    #[arg(long, default_value_t = 1)]
    storage: usize,
    /// One process for each server.
    #[arg(long)]
    processes: bool,
    /// Folder of everything.
    #[arg(long, default_value = "drsdb-data")]
    data: PathBuf,
    /// Port of the index server; 0 takes a free one. Storage servers take free ports.
    #[arg(long, default_value_t = drsdb_core::config::DEFAULT_INDEX_PORT)]
    port: u16,
    /// A file to write, as JSON, when the cluster takes requests.
    #[arg(long)]
    ready_file: Option<PathBuf>,
    /// Ends when standard input does.
    #[arg(long)]
    exit_with_stdin: bool,
}

/// How a local cluster is made.
#[derive(Debug, Clone)]
pub struct LocalOptions {
    /// Storage servers.
    pub storage: usize,
    /// One process for each server.
    pub processes: bool,
    /// Folder of everything.
    pub data: PathBuf,
    /// Port of the index server; 0 takes a free one.
    pub port: u16,
    /// The program to start servers with; this one by default.
    pub program: Option<PathBuf>,
    /// Settings that are added to every storage server's file.
    pub storage_settings: toml::Table,
    /// Settings that are added to every index server's file.
    pub index_settings: toml::Table,
}

impl Default for LocalOptions {
    fn default() -> Self {
        Self {
            storage: 1,
            processes: false,
            data: PathBuf::from("drsdb-data"),
            port: 0,
            program: None,
            storage_settings: toml::Table::new(),
            index_settings: toml::Table::new(),
        }
    }
}

/// Runs `drsdb local` until it is told to stop.
pub async fn run(arguments: LocalArguments) -> Result<()> {
    let options = LocalOptions {
        storage: arguments.storage,
        processes: arguments.processes,
        data: arguments.data,
        port: arguments.port,
        ..LocalOptions::default()
    };
    let mut cluster = LocalCluster::start(options).await?;
    if let Some(file) = &arguments.ready_file {
        let text = serde_json::to_string_pretty(&cluster.description()).context("cannot describe the cluster")?;
        files::write_atomically(file, text.as_bytes())?;
    }
    cluster.greet();
    let mut stop = std::pin::pin!(node::stop_requested(arguments.exit_with_stdin));
    let mut told = HashSet::new();
    loop {
        tokio::select! {
            () = &mut stop => return cluster.shutdown().await,
            // The others go on, and clients get errors that name it: here is why.
            death = cluster.next_death(&told) => {
                eprintln!("{}", death.1);
                told.insert(death.0);
            }
        }
    }
}

/// A running cluster. Dropped, it ends: servers in this process are cancelled, others see their input end.
pub struct LocalCluster {
    layout: Layout,
    options: LocalOptions,
    index: Server,
    storage: Vec<Server>,
    first_start: bool,
}

/// What the ready file says.
#[derive(Debug, Serialize)]
struct Description {
    index: Vec<ServerDescription>,
    storage: Vec<ServerDescription>,
    client: PathBuf,
}

#[derive(Debug, Serialize)]
struct ServerDescription {
    url: String,
    pid: u32,
    data: PathBuf,
}

impl LocalCluster {
    /// Starts the servers and waits until all take requests.
    pub async fn start(options: LocalOptions) -> Result<Self> {
        ensure!(options.storage > 0, "a cluster has at least one storage server: use --storage 1 or more");
        let (layout, first_start) = Layout::open(&options.data)?;
        let index_file = layout.write_index(&options)?;
        let index =
            Server::start(Role::Index, index_file, &options).await.context("the index server does not start")?;
        let mut storage = Vec::with_capacity(options.storage);
        for number in 1..=options.storage {
            let file = layout.write_storage(number, index.url(), &options)?;
            let server = Server::start(Role::Storage, file, &options).await;
            storage.push(server.with_context(|| format!("storage server {number} does not start"))?);
        }
        layout.write_client(index.url())?;
        Ok(Self { layout, options, index, storage, first_start })
    }

    /// How to connect as the administrator.
    pub fn client_options(&self) -> ClientOptions {
        ClientOptions::from_file(self.layout.client_file()).expect("the cluster wrote the file itself")
    }

    /// The file that clients connect with.
    pub fn client_file(&self) -> PathBuf {
        self.layout.client_file()
    }

    /// Processes of the servers; this one when they live here.
    pub fn pids(&self) -> Vec<u32> {
        let mut pids: Vec<u32> = std::iter::once(&self.index).chain(&self.storage).map(Server::pid).collect();
        pids.dedup();
        pids
    }

    /// Where the index server is.
    pub fn index_url(&self) -> &Url {
        self.index.url()
    }

    /// Where storage server `number` (from 0) is.
    pub fn storage_url(&self, number: usize) -> &Url {
        self.storage[number].url()
    }

    /// The process of storage server `number` (from 0).
    pub fn storage_pid(&self, number: usize) -> u32 {
        self.storage[number].pid()
    }

    /// The folder of storage server `number` (from 0).
    pub fn storage_folder(&self, number: usize) -> PathBuf {
        self.layout.server_folder(Role::Storage, number + 1)
    }

    /// The process of the index server.
    pub fn index_pid(&self) -> u32 {
        self.index.pid()
    }

    /// Ends storage server `number` with SIGKILL. Servers must be processes.
    pub async fn kill_storage(&mut self, number: usize) -> Result<()> {
        self.storage[number].kill().await
    }

    /// Starts storage server `number` again, at the port it had.
    pub async fn restart_storage(&mut self, number: usize) -> Result<()> {
        let file = self.layout.server_file(Role::Storage, number + 1);
        self.storage[number] =
            Server::start_again(Role::Storage, file, &self.options, self.storage[number].url()).await?;
        Ok(())
    }

    /// Ends the index server with SIGKILL. Servers must be processes.
    pub async fn kill_index(&mut self) -> Result<()> {
        self.index.kill().await
    }

    /// Starts the index server again, at the port it had.
    pub async fn restart_index(&mut self) -> Result<()> {
        let file = self.layout.server_file(Role::Index, 1);
        self.index = Server::start_again(Role::Index, file, &self.options, self.index.url()).await?;
        Ok(())
    }

    /// Waits until a server's process ends that is not among `told`; its process, and what to tell people.
    async fn next_death(&mut self, told: &HashSet<u32>) -> (u32, String) {
        let restart = "stop this program and start it again to have it back";
        let servers = std::iter::once(&mut self.index).chain(&mut self.storage);
        let deaths = servers.filter(|server| !told.contains(&server.pid())).map(|server| {
            Box::pin(async move {
                let (pid, url) = (server.pid(), server.url().clone());
                let how = server.process_ended().await;
                (pid, format!("the server at {url} has ended (process {pid}, {how}): {restart}"))
            })
        });
        let deaths: Vec<_> = deaths.collect();
        if deaths.is_empty() {
            return std::future::pending().await;
        }
        futures::future::select_all(deaths).await.0
    }

    /// Stops all servers in order, storage servers first, and waits for them.
    pub async fn shutdown(self) -> Result<()> {
        let mut failed = None;
        for server in self.storage {
            failed = server.stop().await.err().or(failed);
        }
        failed = self.index.stop().await.err().or(failed);
        failed.map_or(Ok(()), Err)
    }

    fn description(&self) -> Description {
        let describe = |server: &Server, folder: PathBuf| ServerDescription {
            url: server.url().to_string(),
            pid: server.pid(),
            data: folder,
        };
        let storage = self.storage.iter().enumerate();
        Description {
            index: vec![describe(&self.index, self.layout.server_folder(Role::Index, 1))],
            storage: storage
                .map(|(number, server)| describe(server, self.layout.server_folder(Role::Storage, number + 1)))
                .collect(),
            client: self.layout.client_file(),
        }
    }

    /// Tells a person at a terminal what there is now.
    fn greet(&self) {
        let data = display(self.layout.root());
        eprintln!("drsdb is running: index server {}, {} storage servers", self.index.url(), self.storage.len());
        if self.first_start {
            eprintln!("made the user {} with the password {}", files::ADMIN, self.layout.password());
        }
        eprintln!("data, certificates and login are in {data}; connect with: drsdb sql{}", self.connect_flag());
        if std::io::stderr().is_terminal() {
            eprintln!("stop with Ctrl-C");
        }
    }

    fn connect_flag(&self) -> String {
        if self.layout.root() == Path::new("drsdb-data") {
            String::new()
        } else {
            format!(" --config {}", display(&self.layout.client_file()))
        }
    }
}

fn display(path: &Path) -> String {
    path.display().to_string()
}
