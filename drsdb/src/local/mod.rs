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
//!   index-1/ ...       index.toml, certificate, data
//!   storage-1/ ...     storage.toml, certificate, data
//! ```
//!
//! [`LocalCluster`] is the same for the program, the demo and the tests.

mod files;
mod servers;
mod supervise;

use std::{
    io::IsTerminal,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use drsdb_client::{Client, ClientOptions};
use drsdb_core::security::Role;
use futures::future::{join_all, try_join_all};
use serde::Serialize;
use url::Url;

use self::{files::Layout, servers::Server};
use crate::node;

/// Arguments of `drsdb local`.
#[derive(Debug, Args)]
pub struct LocalArguments {
    /// Index servers: 1, 3 or 5. A folder that has more starts them all, and one that has fewer gets more.
    #[arg(long, default_value_t = 1)]
    index: usize,
    /// Storage servers.
    #[arg(long, default_value_t = 1)]
    storage: usize,
    /// One process for each server.
    #[arg(long)]
    processes: bool,
    /// Folder of everything.
    #[arg(long, default_value = "drsdb-data")]
    data: PathBuf,
    /// Port of the first index server; 0 takes a free one, or the one it had. All other servers take free ports, and keep
    /// them.
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
    /// Index servers: 1, 3 or 5. A folder that has more starts them all, and one that has fewer gets more.
    pub index: usize,
    /// Storage servers.
    pub storage: usize,
    /// One process for each server.
    pub processes: bool,
    /// Folder of everything.
    pub data: PathBuf,
    /// Port of the first index server; 0 takes a free one, or the one it had.
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
            index: 1,
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
        index: arguments.index,
        storage: arguments.storage,
        processes: arguments.processes,
        data: arguments.data,
        port: arguments.port,
        ..LocalOptions::default()
    };
    let cluster = LocalCluster::start(options).await?;
    if let Some(file) = &arguments.ready_file {
        let text = serde_json::to_string_pretty(&cluster.description()).context("cannot describe the cluster")?;
        files::write_atomically(file, text.as_bytes())?;
    }
    cluster.greet();
    supervise::until(node::stop_requested(arguments.exit_with_stdin), cluster).await
}

/// A running cluster. Dropped, it ends: servers in this process are cancelled, others see their input end.
pub struct LocalCluster {
    layout: Layout,
    options: LocalOptions,
    index: Vec<Server>,
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
        ensure!(matches!(options.index, 1 | 3 | 5), "a cluster has 1, 3 or 5 index servers, not {}", options.index);
        let (layout, first_start) = Layout::open(&options.data)?;
        let before = layout.index_servers();
        let count = options.index.max(before);
        let urls = layout.index_urls(count, options.port)?;
        // A cluster that is there already is joined by the new ones; in a new one all are there from the start.
        let founders = if before == 0 { count } else { before };
        let founding = (1..=founders).map(|number| start_index(&layout, number, &urls[..founders], false, &options));
        let mut index = try_join_all(founding).await?;
        layout.write_client(&urls[..founders])?;
        if founders < count {
            let joining = (founders + 1..=count).map(|number| start_index(&layout, number, &urls, true, &options));
            let adding = add_index_servers(&layout, founders + 1, &urls[founders..]);
            let (joined, added) = tokio::join!(try_join_all(joining), adding);
            added?;
            index.extend(joined?);
            layout.write_client(&urls)?;
        }
        let mut storage = Vec::with_capacity(options.storage);
        for number in 1..=options.storage {
            let file = layout.write_storage(number, &urls, &options)?;
            let server = Server::start(Role::Storage, file, &options).await;
            storage.push(server.with_context(|| format!("storage server {number} does not start"))?);
        }
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
        let mut pids: Vec<u32> = self.index.iter().chain(&self.storage).map(Server::pid).collect();
        pids.dedup();
        pids
    }

    /// How many index servers there are.
    pub fn index_count(&self) -> usize {
        self.index.len()
    }

    /// How many storage servers there are.
    pub fn storage_count(&self) -> usize {
        self.storage.len()
    }

    /// Where index server `number` (from 0) is. Its number in the cluster is one more.
    pub fn index_url(&self, number: usize) -> &Url {
        self.index[number].url()
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

    /// The process of index server `number` (from 0).
    pub fn index_pid(&self, number: usize) -> u32 {
        self.index[number].pid()
    }

    /// The folder of index server `number` (from 0).
    pub fn index_folder(&self, number: usize) -> PathBuf {
        self.layout.server_folder(Role::Index, number + 1)
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

    /// Starts one more storage server, which joins the cluster; its number (from 0).
    pub async fn add_storage(&mut self) -> Result<usize> {
        let number = self.storage.len() + 1;
        let urls: Vec<Url> = self.index.iter().map(|server| server.url().clone()).collect();
        let file = self.layout.write_storage(number, &urls, &self.options)?;
        let server = Server::start(Role::Storage, file, &self.options).await;
        self.storage.push(server.with_context(|| format!("storage server {number} does not start"))?);
        Ok(number - 1)
    }

    /// Ends index server `number` with SIGKILL. Servers must be processes.
    pub async fn kill_index(&mut self, number: usize) -> Result<()> {
        self.index[number].kill().await
    }

    /// Starts index server `number` again, at the port it had, and waits until it knows the cluster.
    pub async fn restart_index(&mut self, number: usize) -> Result<()> {
        let file = self.layout.server_file(Role::Index, number + 1);
        self.index[number] = Server::start_again(Role::Index, file, &self.options, self.index[number].url()).await?;
        Ok(())
    }

    /// Waits until index server `number` ends by itself; whether it did so in order, as one that was removed does.
    pub async fn index_ended(&mut self, number: usize) -> bool {
        self.index[number].ended().await.in_order
    }

    /// Stops index server `number` for a while with SIGSTOP.
    pub async fn pause_index(&self, number: usize) -> Result<()> {
        self.index[number].pause().await
    }

    /// Lets index server `number` go on.
    pub async fn resume_index(&self, number: usize) -> Result<()> {
        self.index[number].resume().await
    }

    /// Stops storage server `number` for a while with SIGSTOP.
    pub async fn pause_storage(&self, number: usize) -> Result<()> {
        self.storage[number].pause().await
    }

    /// Lets storage server `number` go on.
    pub async fn resume_storage(&self, number: usize) -> Result<()> {
        self.storage[number].resume().await
    }

    /// Starts one more index server, which waits to be added to the cluster (ALTER CLUSTER ADD INDEX SERVER), and says
    /// which number it has there and where it is. It is not waited for: it is ready when it has been added.
    pub async fn start_joining_index(&mut self) -> Result<(usize, Url)> {
        let number = self.index.len() + 1;
        let urls = self.layout.index_urls(number, self.options.port)?;
        let file = self.layout.write_index(number, &urls, true, &self.options)?;
        let url = urls[number - 1].clone();
        self.index.push(Server::start_unready(Role::Index, file, &self.options, url.clone()).await?);
        Ok((number, url))
    }

    /// Stops all servers in order, storage servers first, and waits for them.
    pub async fn shutdown(self) -> Result<()> {
        let mut failed = None;
        for server in self.storage {
            failed = server.stop().await.err().or(failed);
        }
        for stopped in join_all(self.index.into_iter().map(Server::stop)).await {
            failed = stopped.err().or(failed);
        }
        failed.map_or(Ok(()), Err)
    }

    fn description(&self) -> Description {
        let describe = |server: &Server, folder: PathBuf| ServerDescription {
            url: server.url().to_string(),
            pid: server.pid(),
            data: folder,
        };
        let all = |role: Role, servers: &[Server]| -> Vec<ServerDescription> {
            let servers = servers.iter().enumerate();
            servers.map(|(number, server)| describe(server, self.layout.server_folder(role, number + 1))).collect()
        };
        Description {
            index: all(Role::Index, &self.index),
            storage: all(Role::Storage, &self.storage),
            client: self.layout.client_file(),
        }
    }

    /// Tells a person at a terminal what there is now.
    fn greet(&self) {
        let data = display(self.layout.root());
        let index: Vec<&str> = self.index.iter().map(|server| server.url().as_str()).collect();
        let servers = if index.len() == 1 { "index server" } else { "index servers" };
        eprintln!("drsdb is running: {servers} {}, {} storage servers", index.join(" "), self.storage.len());
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

async fn start_index(
    layout: &Layout,
    number: usize,
    urls: &[Url],
    join: bool,
    options: &LocalOptions,
) -> Result<Server> {
    let file = layout.write_index(number, urls, join, options)?;
    let started = Server::start(Role::Index, file, options).await;
    started.with_context(|| format!("index server {number} does not start"))
}

/// Adds servers that wait for it, the first of them as number `first`.
async fn add_index_servers(layout: &Layout, first: usize, urls: &[Url]) -> Result<()> {
    let client = Client::connect(ClientOptions::from_file(layout.client_file())?).await?;
    for (number, url) in (first..).zip(urls) {
        let add = format!("ALTER CLUSTER ADD INDEX SERVER {number} '{url}'");
        // It may not listen yet.
        let mut attempts = tokio::time::interval(std::time::Duration::from_millis(200));
        let mut failed = None;
        for _ in 0..100 {
            attempts.tick().await;
            failed = client.execute(&add).await.err();
            if failed.as_ref().is_none_or(|error| error.code() != drsdb_client::ErrorCode::Unavailable) {
                break;
            }
        }
        if let Some(error) = failed {
            return Err(error).with_context(|| format!("index server {number} cannot be added"));
        }
    }
    Ok(())
}

fn display(path: &Path) -> String {
    path.display().to_string()
}
