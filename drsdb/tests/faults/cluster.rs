//! A cluster of processes with a proxy in front of each, whose servers can be killed, stopped, starved and replaced.
//!
//! Unlike [`drsdb::local::LocalCluster`] it hides nothing: a server that does not come up in time is no error here, and a
//! server listens where only its proxy knows, on a loopback address of its own.

mod disk;
mod process;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitStatus,
    time::{Duration, Instant},
};

use drsdb_client::{Client, ClientOptions, TlsRoots};
use drsdb_core::{
    injected::Faults,
    security::{Role, dev_ca::DevCa},
};
use rand::Rng;
use tempfile::TempDir;
use url::Url;

use self::{disk::SmallDisk, process::Process};
use crate::network::{Network, Node, Proxy};

const USER: &str = "admin";
const PASSWORD: &str = "only for this test";

/// The port of every server, each on a loopback address of its own.
const PORT: u16 = 7433;

/// How long servers may take to come up when nothing is wrong.
const PATIENCE: Duration = Duration::from_secs(60);

/// How many servers there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    pub index: usize,
    pub storage: usize,
    /// Whether the last storage server's disk is small, and can be filled.
    pub small_disk: bool,
}

impl Topology {
    pub fn index_nodes(self) -> impl Iterator<Item = Node> {
        (1..=self.index).map(Node::Index)
    }

    pub fn storage_nodes(self) -> impl Iterator<Item = Node> {
        (1..=self.storage).map(Node::Storage)
    }

    pub fn servers(self) -> impl Iterator<Item = Node> {
        self.index_nodes().chain(self.storage_nodes())
    }

    /// Everyone who can be at an end of a link.
    pub fn everyone(self) -> impl Iterator<Item = Node> {
        std::iter::once(Node::Client).chain(self.servers())
    }
}

struct Server {
    proxy: Proxy,
    /// The program and its arguments.
    command: Vec<String>,
    config: PathBuf,
    process: Option<Process>,
    stopped: bool,
    /// What is injected into it. It may have died of it if there is a crash among it.
    faults: Faults,
}

impl Server {
    fn faults_file(&self) -> PathBuf {
        self.config.with_extension("faults")
    }

    fn ended(&mut self) -> Option<ExitStatus> {
        self.process.as_mut().and_then(Process::ended)
    }
}

/// Dropped, it ends with all its processes.
pub struct Cluster {
    pub network: Network,
    pub topology: Topology,
    servers: BTreeMap<Node, Server>,
    disk: Option<SmallDisk>,
    /// Servers that lost their disks.
    replaced: BTreeSet<Node>,
    ca: PathBuf,
    folder: TempDir,
}

impl Cluster {
    /// Starts all servers and waits until each takes requests.
    pub async fn start(mut topology: Topology) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ca = DevCa::open_or_create(&folder.path().join("ca")).unwrap();
        let network = Network::new();
        // A part of 127.0.0.0/8 that no other cluster of this machine has, most likely.
        let (high, low) = (rand::rng().random_range(1..=254u8), rand::rng().random_range(0..=255u8));
        let mut proxies = Vec::new();
        for (node, last) in topology.servers().zip(1u8..) {
            let listen = SocketAddr::from((Ipv4Addr::new(127, high, low, last), PORT));
            let proxy = Proxy::start(network.clone(), node, listen).await.unwrap();
            proxies.push((node, listen, proxy));
        }
        let index_urls: Vec<String> = proxies
            .iter()
            .filter(|(node, ..)| matches!(node, Node::Index(_)))
            .map(|(_, _, proxy)| proxy.url())
            .collect();
        let disk = if topology.small_disk {
            let server = folder_of(folder.path(), Node::Storage(topology.storage));
            SmallDisk::mount(&server.join("data")).await
        } else {
            None
        };
        topology.small_disk = disk.is_some();
        let mut servers = BTreeMap::new();
        for (node, listen, proxy) in proxies {
            let role = if matches!(node, Node::Index(_)) { Role::Index } else { Role::Storage };
            let config = write_config(folder.path(), &ca, node, listen, &proxy.url(), &index_urls);
            let small = topology.small_disk && node == Node::Storage(topology.storage);
            let mut command = disk.as_ref().filter(|_| small).map(SmallDisk::enter).unwrap_or_default();
            command.extend(
                [env!("CARGO_BIN_EXE_drsdb"), role.as_str(), "--exit-with-stdin", "--config"].map(str::to_owned),
            );
            command.push(config.to_str().unwrap().to_owned());
            servers.insert(
                node,
                Server { proxy, command, config, process: None, stopped: false, faults: Faults::default() },
            );
        }
        let ca = ca.certificate_file().to_owned();
        let mut cluster = Self { network, topology, servers, disk, replaced: BTreeSet::new(), ca, folder };
        // Index servers need one another to become ready, and storage servers need them.
        for node in topology.servers() {
            cluster.start_server(node).await;
        }
        let deadline = Instant::now() + PATIENCE;
        while !cluster.all_ready() {
            cluster.check_alive().unwrap_or_else(|error| panic!("{error}\n{}", cluster.logs()));
            assert!(Instant::now() < deadline, "the cluster is not ready after {PATIENCE:?}\n{}", cluster.logs());
            pause().await;
        }
        cluster
    }

    fn all_ready(&self) -> bool {
        self.servers.values().all(|server| server.process.as_ref().is_some_and(Process::is_ready))
    }

    /// One client for each index server, which asks that one first.
    pub async fn clients(&self) -> Vec<Client> {
        let urls: Vec<Url> = self.topology.index_nodes().map(|node| self.url(node)).collect();
        let mut clients = Vec::new();
        for first in 0..urls.len() {
            let mut urls = urls.clone();
            urls.rotate_left(first);
            let options =
                ClientOptions::new(urls).with_login(USER, PASSWORD).with_tls_roots(TlsRoots::File(self.ca.clone()));
            clients.push(Client::connect(options).await.unwrap());
        }
        clients
    }

    /// Where everyone reaches `node`.
    pub fn url(&self, node: Node) -> Url {
        Url::parse(&self.servers[&node].proxy.url()).unwrap()
    }

    /// Starts a server that does not run, without waiting for it.
    pub async fn start_server(&mut self, node: Node) {
        let server = self.servers.get_mut(&node).unwrap();
        if server.process.is_none() {
            let (log, faults) = (server.config.with_extension("log"), server.faults_file());
            let process = Process::spawn(&server.command, &log, &faults).await;
            self.network.set_process(node, process.pid());
            server.process = Some(process);
        }
    }

    /// Has a server die when it comes to `point` for the so-manieth time from now on, or after its next start if it does
    /// not run (see [`drsdb_core::crash_point`]).
    pub async fn arm(&mut self, node: Node, point: &str, times: u64) {
        self.inject(node, |faults| faults.plan.crash = Some((point.to_owned(), times))).await;
    }

    /// Whether an armed server has died.
    pub fn has_crashed(&mut self, node: Node) -> bool {
        let server = self.servers.get_mut(&node).unwrap();
        server.faults.plan.crash.is_some() && server.ended().is_some()
    }

    /// Lets a server live on, and starts it again if it died; says whether it had died where it was told to.
    pub async fn disarm(&mut self, node: Node) -> bool {
        let was_armed = self.servers[&node].faults.plan.crash.is_some();
        self.inject(node, |faults| faults.plan.crash = None).await;
        // It may have come to the point until it heard that it is to live.
        let crashed = was_armed && self.servers.get_mut(&node).unwrap().ended().is_some();
        if crashed {
            self.kill(node).await;
            self.start_server(node).await;
        }
        crashed
    }

    /// Sets a server's wall clock ahead; with a negative offset, back.
    pub async fn set_clock(&mut self, node: Node, offset_ms: i64) {
        self.inject(node, |faults| faults.clock_offset_ms = offset_ms).await;
    }

    /// Has every fsync of a server take so much longer.
    pub async fn set_slow_disk(&mut self, node: Node, slow_sync: Duration) {
        self.inject(node, |faults| faults.plan.slow_sync = slow_sync).await;
    }

    /// Changes what is injected into a server, and waits until it knows.
    async fn inject(&mut self, node: Node, change: impl FnOnce(&mut Faults)) {
        let server = self.servers.get_mut(&node).unwrap();
        let before = server.faults.clone();
        change(&mut server.faults);
        if server.faults == before {
            return;
        }
        let (file, text) = (server.faults_file(), server.faults.to_text());
        let (written, seen) = (file.with_extension("new"), file.with_extension("seen"));
        fs::write(&written, &text).unwrap();
        fs::rename(&written, &file).unwrap();
        let knows = || fs::read_to_string(&seen).is_ok_and(|seen| seen == text);
        let deadline = Instant::now() + PATIENCE;
        // One that does not run reads it when it starts; one that stands still, when it goes on.
        while !server.stopped && server.process.is_some() && server.ended().is_none() && !knows() {
            assert!(Instant::now() < deadline, "{node} does not look which faults are injected into it");
            pause().await;
        }
    }

    /// Ends a server with SIGKILL.
    pub async fn kill(&mut self, node: Node) {
        let server = self.servers.get_mut(&node).unwrap();
        server.stopped = false;
        if let Some(process) = server.process.take() {
            process.kill().await;
        }
    }

    /// Stops a server with SIGSTOP, or lets it go on.
    pub fn set_stopped(&mut self, node: Node, stopped: bool) {
        let server = self.servers.get_mut(&node).unwrap();
        if let Some(process) = &server.process {
            process.signal(if stopped { "STOP" } else { "CONT" });
            server.stopped = stopped;
        }
    }

    /// Fills the small disk to the last byte, or frees it again.
    pub fn set_disk_full(&self, full: bool) {
        let disk = self.disk.as_ref().expect("the schedule fills disks only where there is a small one");
        if full { disk.fill() } else { disk.free() }
    }

    /// Takes a dead server's disk away: when it is started, a new and empty one takes its place.
    pub async fn lose_disk(&mut self, node: Node) {
        self.kill(node).await;
        fs::remove_dir_all(self.data_dir(node)).unwrap();
        self.replaced.insert(node);
    }

    /// Servers that lost their disks since this was last asked.
    pub fn take_replaced(&mut self) -> BTreeSet<Node> {
        std::mem::take(&mut self.replaced)
    }

    /// The id that a storage server has given itself, once it has one.
    pub fn storage_id(&self, node: Node) -> Option<String> {
        let identity = fs::read(self.data_dir(node).join("server.json")).ok()?;
        let identity: serde_json::Value = serde_json::from_slice(&identity).unwrap();
        Some(identity["server_id"].as_str().unwrap().to_owned())
    }

    fn data_dir(&self, node: Node) -> PathBuf {
        folder_of(self.folder.path(), node).join("data")
    }

    /// Undoes everything that can be wrong with processes, network and disk. Does not wait for what follows from it.
    pub async fn heal(&mut self) {
        self.network.heal_all();
        if self.disk.is_some() {
            self.set_disk_full(false);
        }
        for node in self.topology.servers() {
            self.set_stopped(node, false);
            self.disarm(node).await;
            self.inject(node, |faults| *faults = Faults::default()).await;
            self.start_server(node).await;
        }
    }

    /// That no server has ended by itself, and none has panicked.
    pub fn check_alive(&mut self) -> Result<(), String> {
        for (node, server) in &mut self.servers {
            if let Some(status) = server.ended().filter(|_| server.faults.plan.crash.is_none()) {
                return Err(format!("{node} ended by itself with {status}"));
            }
            let log = fs::read_to_string(server.config.with_extension("log")).unwrap_or_default();
            if let Some(line) = log.lines().find(|line| line.contains("panicked at")) {
                return Err(format!("{node} panicked: {line}"));
            }
        }
        Ok(())
    }

    /// The last lines of every server's log.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        for (node, server) in &self.servers {
            let log = fs::read_to_string(server.config.with_extension("log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let last = &lines[lines.len().saturating_sub(15)..];
            text += &format!("--- {node}\n{}\n", last.join("\n"));
        }
        text
    }

    /// Keeps the folder with data and logs, for whoever looks into a failure.
    pub fn keep_folder(&mut self) -> PathBuf {
        self.folder.disable_cleanup(true);
        self.folder.path().to_owned()
    }
}

fn folder_of(root: &Path, node: Node) -> PathBuf {
    match node {
        Node::Index(number) => root.join(format!("index-{number}")),
        Node::Storage(number) => root.join(format!("storage-{number}")),
        Node::Client => root.to_owned(),
    }
}

fn write_config(root: &Path, ca: &DevCa, node: Node, listen: SocketAddr, url: &str, index_urls: &[String]) -> PathBuf {
    let folder = folder_of(root, node);
    fs::create_dir_all(&folder).unwrap();
    let role = if matches!(node, Node::Index(_)) { Role::Index } else { Role::Storage };
    let tls = ca.issue(&folder, role, &[]).unwrap();
    let mut settings = toml::Table::new();
    settings.insert("data_dir".into(), folder.join("data").to_str().unwrap().into());
    settings.insert("listen".into(), listen.to_string().into());
    settings.insert("public_url".into(), url.into());
    settings.insert("tls".into(), toml::Value::try_from(tls).unwrap());
    match node {
        Node::Index(number) => {
            // Few shards: each costs a commit some work on every replica, and two cores have all of the servers.
            settings.insert("default_shards".into(), 3.into());
            // So that servers that were away get a snapshot, and servers die while they write one.
            settings.insert("snapshot_entries".into(), 100.into());
            if index_urls.len() > 1 {
                settings.insert("node_id".into(), (number as i64).into());
                let voters = index_urls.iter().zip(1..).map(|(url, id)| (id.to_string(), url.clone().into()));
                settings.insert("voters".into(), toml::Value::Table(voters.collect()));
            }
            if number == 1 {
                let bootstrap = [("admin_user", USER), ("admin_password", PASSWORD)];
                let bootstrap = bootstrap.map(|(key, value)| (key.to_owned(), value.into()));
                settings.insert("bootstrap".into(), toml::Value::Table(bootstrap.into_iter().collect()));
            }
        }
        _ => {
            let urls = index_urls.iter().map(|url| url.clone().into()).collect();
            settings.insert("index_servers".into(), toml::Value::Array(urls));
            // Shorter than a run, so that compaction merges and drops old versions amid the faults.
            settings.insert("retention_s".into(), toml::Value::Integer(1));
            settings.insert("query_memory_bytes".into(), (128i64 << 20).into());
            settings.insert("column_cache_bytes".into(), (32i64 << 20).into());
            settings.insert("staged_lease_s".into(), 2i64.into());
        }
    }
    let file = folder.join(format!("{}.toml", role.as_str()));
    fs::write(&file, toml::to_string(&settings).unwrap()).unwrap();
    file
}

/// Between looks at other processes: there is nothing to be woken by.
pub async fn pause() {
    #[allow(clippy::disallowed_methods)]
    tokio::time::sleep(Duration::from_millis(20)).await;
}
