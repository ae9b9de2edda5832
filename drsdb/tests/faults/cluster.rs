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
    Error,
    injected::Faults,
    net::ChannelPool,
    security::{Role, TlsIdentity, dev_ca::DevCa, tls::client_config},
};
use rand::Rng;
use tempfile::TempDir;
use tonic::transport::Channel;
use url::Url;

use self::{disk::SmallDisk, process::Process};
use crate::network::{Network, Node, Proxy};

const USER: &str = "admin";
const PASSWORD: &str = "only for this test";

/// The port of every server, each on a loopback address of its own.
const PORT: u16 = 7433;

/// How long servers may take to come up when nothing is wrong.
const PATIENCE: Duration = Duration::from_secs(60);

/// Longer than any run.
const LONG_RETENTION_S: i64 = 600;

/// Seeds that one cluster serves: their tens, so that a seed finds the same cluster whoever runs it.
pub const SEEDS_OF_A_CLUSTER: u64 = 10;

/// How many servers there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    pub index: usize,
    pub storage: usize,
    /// Servers whose disks are small, and can be filled.
    small_disks: [Option<Node>; 2],
    /// For how long storage servers keep old versions of rows, in seconds.
    retention_s: i64,
}

impl Topology {
    pub const fn new(index: usize, storage: usize) -> Self {
        Self { index, storage, small_disks: [None; 2], retention_s: LONG_RETENTION_S }
    }

    /// The same with two small disks: of one storage server, and of an index server or another storage server. Every other
    /// such cluster forgets old versions so soon that compaction does that amid the faults, and that servers which were away
    /// are too far behind for anything but a copy.
    pub fn of_seed(self, seed: u64) -> Self {
        let round = usize::try_from(seed / SEEDS_OF_A_CLUSTER % 1_000).expect("it is small");
        let first = Node::Storage(1 + round % self.storage);
        let second = match round % 2 {
            0 => Node::Index(1 + round / 2 % self.index),
            _ => Node::Storage(1 + (round + 1) % self.storage),
        };
        let retention_s = if round % 2 == 0 { 1 } else { LONG_RETENTION_S };
        Self { small_disks: [Some(first), Some(second).filter(|second| *second != first)], retention_s, ..self }
    }

    pub fn small_disks(self) -> impl Iterator<Item = Node> {
        self.small_disks.into_iter().flatten()
    }

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
    /// An index server's number in its cluster.
    id: u64,
    /// An index server without its disk has forgotten how it voted: nobody may start it under its number again.
    lost: bool,
    disk: Option<SmallDisk>,
    full: bool,
    /// It was started while its disk was full, and may not have come up.
    started_full: bool,
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
    /// Those that should have small disks, and have none.
    pub without_small_disk: Vec<Node>,
    servers: BTreeMap<Node, Server>,
    /// The number of the next index server that joins: none is given twice.
    next_id: u64,
    /// Servers that lost their disks.
    replaced: BTreeSet<Node>,
    /// To the services that servers have for one another.
    channels: ChannelPool,
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
        let (mut disks, mut without_small_disk) = (BTreeMap::new(), Vec::new());
        for node in topology.small_disks() {
            match SmallDisk::mount(&folder_of(folder.path(), node).join("data")).await {
                Some(disk) => drop(disks.insert(node, disk)),
                None => without_small_disk.push(node),
            }
        }
        topology.small_disks = topology.small_disks.map(|node| node.filter(|node| disks.contains_key(node)));
        let mut servers = BTreeMap::new();
        for (node, listen, proxy) in proxies {
            let (role, id) = match node {
                Node::Index(number) => (Role::Index, number as u64),
                _ => (Role::Storage, 0),
            };
            let config =
                write_config(folder.path(), &ca, node, listen, &proxy.url(), &index_urls, topology.retention_s);
            let disk = disks.remove(&node);
            let mut command = disk.as_ref().map(SmallDisk::enter).unwrap_or_default();
            command.extend(
                [env!("CARGO_BIN_EXE_drsdb"), role.as_str(), "--exit-with-stdin", "--config"].map(str::to_owned),
            );
            command.push(config.to_str().unwrap().to_owned());
            let server = Server {
                proxy,
                command,
                config,
                process: None,
                stopped: false,
                id,
                lost: false,
                disk,
                full: false,
                started_full: false,
                faults: Faults::default(),
            };
            servers.insert(node, server);
        }
        let identity = ca.issue(&folder.path().join("test"), Role::Index, &[]).unwrap();
        let channels = ChannelPool::new(client_config(&TlsIdentity::load(&identity).unwrap()).unwrap());
        let ca = ca.certificate_file().to_owned();
        let (next_id, replaced) = (topology.index as u64 + 1, BTreeSet::new());
        let mut cluster =
            Self { network, topology, without_small_disk, servers, next_id, replaced, channels, ca, folder };
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

    /// To the server at `url`, for calls that only servers may make.
    pub fn channel(&self, url: &Url) -> Result<Channel, Error> {
        self.channels.channel(url)
    }

    /// Starts a server that does not run, without waiting for it; not an index server that lost its disk.
    pub async fn start_server(&mut self, node: Node) {
        let server = self.servers.get_mut(&node).unwrap();
        if server.process.is_none() && !server.lost {
            let (log, faults) = (server.config.with_extension("log"), server.faults_file());
            let process = Process::spawn(&server.command, &log, &faults).await;
            self.network.set_process(node, process.pid());
            server.process = Some(process);
            server.started_full |= server.full;
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

    /// Whether a server was started, and not killed since.
    pub fn runs(&self, node: Node) -> bool {
        self.servers[&node].process.is_some()
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

    /// Fills a server's disk, which is small, to the last byte.
    pub fn fill_disk(&mut self, node: Node) {
        let server = self.servers.get_mut(&node).unwrap();
        server.disk.as_ref().expect("the schedule fills disks only where there are small ones").fill();
        server.full = true;
    }

    /// Frees a full disk again, and starts anew who could not live with it.
    pub async fn free_disk(&mut self, node: Node) {
        let server = self.servers.get_mut(&node).unwrap();
        let Some(disk) = server.disk.as_ref().filter(|_| server.full) else { return };
        disk.free();
        server.full = false;
        let was_started_full = std::mem::take(&mut server.started_full);
        // An index server that cannot write its log ends, or is about to; a storage server has to go on.
        if server.process.is_some() && (was_started_full || matches!(node, Node::Index(_))) {
            self.kill(node).await;
            self.start_server(node).await;
        }
    }

    /// Ends a server, and takes its disk away. A storage server is a new one when it is started again; what is to take an
    /// index server's place is [made](Self::renumber) first.
    pub async fn lose_disk(&mut self, node: Node) {
        self.kill(node).await;
        self.empty_disk(node);
        self.servers.get_mut(&node).unwrap().lost = matches!(node, Node::Index(_));
        self.replaced.insert(node);
    }

    /// Removes everything that a dead server has kept.
    pub fn empty_disk(&self, node: Node) {
        for entry in fs::read_dir(self.data_dir(node)).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { fs::remove_dir_all(&path).unwrap() } else { fs::remove_file(&path).unwrap() }
        }
    }

    /// Overwrites what a dead server has in its file: a storage server's rows, an index server's log.
    pub fn damage(&self, node: Node) {
        let file = match node {
            Node::Index(_) => self.data_dir(node).join("catalog").join("catalog.sqlite"),
            _ => self.data_dir(node).join("row").join("rows.sqlite"),
        };
        let length = fs::metadata(&file).unwrap().len();
        fs::write(&file, vec![0; length as usize]).unwrap();
        // Pages that the log has would be whole again.
        fs::write(file.with_extension("sqlite-wal"), b"").unwrap();
    }

    /// The number that an index server has in its cluster.
    pub fn index_id(&self, node: Node) -> u64 {
        self.servers[&node].id
    }

    /// The index server with a number.
    pub fn index_node(&self, id: i64) -> Option<Node> {
        let is_meant = |node: &Node| i64::try_from(self.index_id(*node)) == Ok(id);
        self.topology.index_nodes().find(is_meant)
    }

    /// Whether an index server's number is in the cluster still, and its disk is not.
    pub fn is_lost(&self, node: Node) -> bool {
        self.servers[&node].lost
    }

    /// Has a new server take an index server's place when it is started: under a number of its own, to be added to the cluster.
    pub fn renumber(&mut self, node: Node) {
        let server = self.servers.get_mut(&node).unwrap();
        server.id = self.next_id;
        server.lost = false;
        self.next_id += 1;
        let mut settings: toml::Table = toml::from_str(&fs::read_to_string(&server.config).unwrap()).unwrap();
        settings.remove("voters");
        settings.remove("bootstrap");
        settings.insert("node_id".into(), (server.id as i64).into());
        settings.insert("join".into(), true.into());
        fs::write(&server.config, toml::to_string(&settings).unwrap()).unwrap();
    }

    /// Servers that lost their disks since this was last asked.
    pub fn take_replaced(&mut self) -> BTreeSet<Node> {
        std::mem::take(&mut self.replaced)
    }

    /// The id that a storage server has given itself, once it has one.
    pub fn storage_id(&self, node: Node) -> Option<String> {
        let identity = fs::read_to_string(self.data_dir(node).join("server.json")).ok()?;
        // After its checksum.
        let (_, identity) = identity.split_once('\n').unwrap();
        let identity: serde_json::Value = serde_json::from_str(identity).unwrap();
        Some(identity["server_id"].as_str().unwrap().to_owned())
    }

    fn data_dir(&self, node: Node) -> PathBuf {
        let disk = self.servers[&node].disk.as_ref();
        disk.map_or_else(|| folder_of(self.folder.path(), node).join("data"), |disk| disk.folder().to_owned())
    }

    /// Undoes everything that can be wrong with processes, network and disk. Does not wait for what follows from it.
    pub async fn heal(&mut self) {
        self.network.heal_all();
        for node in self.topology.servers() {
            self.set_stopped(node, false);
            self.free_disk(node).await;
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

fn write_config(
    root: &Path,
    ca: &DevCa,
    node: Node,
    listen: SocketAddr,
    url: &str,
    index_urls: &[String],
    retention_s: i64,
) -> PathBuf {
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
            settings.insert("retention_s".into(), retention_s.into());
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
