//! Several index servers: real ports, real TLS. Any of them takes commands and reads; one may be gone, and another leads;
//! new ones come and old ones go.

use std::{collections::BTreeMap, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use drsdb_core::{
    ErrorCode, Result,
    ids::new_ulid,
    net::{self, ChannelPool},
    security::{
        Role,
        auth_layer::{AuthLayer, LateKey},
        dev_ca::DevCa,
        digest::sha256,
        tls::{self, TlsIdentity},
    },
};
use drsdb_index::{
    catalog::Command,
    raft::{
        Catalog, CatalogOptions,
        store::{Database, LogStore, NodeId},
    },
};
use openraft::storage::RaftLogStorage;
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use super::{create_user, id};

struct Node {
    id: NodeId,
    address: SocketAddr,
    catalog: Arc<Catalog>,
    shutdown: CancellationToken,
    server: JoinHandle<Result<()>>,
}

impl Node {
    fn identity(base: &Path, id: NodeId) -> TlsIdentity {
        let ca = DevCa::open_or_create(&base.join("ca")).unwrap();
        let files = ca.issue(&base.join(format!("tls{id}")), Role::Index, &[]).unwrap();
        TlsIdentity::load(&files).unwrap()
    }

    async fn open(base: &Path, id: NodeId, voters: BTreeMap<NodeId, String>) -> Result<Arc<Catalog>> {
        let identity = Self::identity(base, id);
        let pool = ChannelPool::new(tls::client_config(&identity).unwrap());
        let options = CatalogOptions {
            dir: base.join(id.to_string()),
            node_id: id,
            voters,
            named: BTreeMap::new(),
            dial: Arc::new(move |url| pool.channel(url)),
            snapshot_entries: 5_000,
        };
        Catalog::open(options).await
    }

    async fn start(base: &Path, id: NodeId, listener: TcpListener, voters: BTreeMap<NodeId, String>) -> Self {
        let identity = Self::identity(base, id);
        let address = listener.local_addr().unwrap();
        let catalog = Self::open(base, id, voters).await.unwrap();
        let shutdown = CancellationToken::new();
        let server = tokio::spawn(net::serve(
            listener,
            tls::server_config(&identity).unwrap(),
            AuthLayer::new(Arc::new(LateKey::new())),
            Routes::new(catalog.raft_service()),
            shutdown.clone(),
        ));
        let (known, until) = (catalog.clone(), shutdown.clone());
        tokio::spawn(async move { known.keep_known_servers(until).await });
        let (joining, url, until) = (catalog.clone(), format!("https://{address}/"), shutdown.clone());
        tokio::spawn(async move {
            // One that is stopped need not get there.
            drop(until.run_until_cancelled(joining.join_again(&url)).await);
        });
        Self { id, address, catalog, shutdown, server }
    }

    async fn stop(self) {
        self.catalog.shutdown().await;
        self.shutdown.cancel();
        self.server.await.unwrap().unwrap();
    }

    fn url(&self) -> String {
        format!("https://{}/", self.address)
    }

    /// As a client does that gave its statement an id: what was lost on its way to a leader that ends is proposed again.
    async fn propose(&self, name: &str) {
        let command = Command::Once { statement: new_ulid(), command: Box::new(create_user(name)) };
        self.catalog.propose(command).await.unwrap_or_else(|error| panic!("{name} at {}: {error}", self.id));
    }

    /// Whether a linearizable read here finds the user.
    async fn reads(&self, name: &str) -> bool {
        self.catalog.linearize().await.unwrap_or_else(|error| panic!("{name} at {}: {error}", self.id));
        self.catalog.state().user(name).is_some()
    }

    /// Starts without others' help: as a part of a cluster that it knows, or to be added to one.
    async fn start_waiting(base: &Path, id: NodeId, address: SocketAddr) -> Self {
        Self::start(base, id, net::bind(address).unwrap(), BTreeMap::new()).await
    }
}

/// `count` nodes of a new cluster, of which the first one knows the others.
async fn start(count: u64) -> (TempDir, Vec<Node>) {
    let base = tempfile::tempdir().unwrap();
    let listeners: Vec<_> = (1..=count).map(|id| (id, net::bind(any_port()).unwrap())).collect();
    let url = |listener: &TcpListener| format!("https://{}/", listener.local_addr().unwrap());
    let voters: BTreeMap<NodeId, String> = listeners.iter().map(|(id, listener)| (*id, url(listener))).collect();
    let starts = listeners.into_iter().map(|(id, listener)| {
        Node::start(base.path(), id, listener, if id == 1 { voters.clone() } else { BTreeMap::new() })
    });
    let nodes = futures::future::join_all(starts).await;
    (base, nodes)
}

fn any_port() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// Takes out the node that leads.
fn take_leader(nodes: &mut Vec<Node>) -> Node {
    let leader = nodes.iter().position(|node| node.catalog.leads()).expect("somebody leads");
    nodes.remove(leader)
}

/// All have the same state at the same version, and so the same hash.
async fn agree(nodes: &[Node]) {
    for node in nodes {
        node.catalog.linearize().await.unwrap();
    }
    let first = nodes[0].catalog.state_hash().await.unwrap();
    for node in nodes {
        let hash = node.catalog.state_hash().await.unwrap();
        assert_eq!(hash, first, "nodes {} and {}", nodes[0].id, node.id);
        assert_eq!(node.catalog.state(), nodes[0].catalog.state());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_voters_agree_and_survive_the_loss_of_one() {
    let (base, mut nodes) = start(3).await;
    nodes[2].propose("first").await;
    for node in &nodes {
        assert!(node.reads("first").await);
    }
    agree(&nodes).await;
    assert_eq!(nodes.iter().filter(|node| node.catalog.leads()).count(), 1);

    let lost = take_leader(&mut nodes);
    let (id, address) = (lost.id, lost.address);
    lost.stop().await;
    // The other two elect one of them, and go on: nobody has to ask twice.
    nodes[0].propose("second").await;
    for node in &nodes {
        assert!(node.reads("second").await && node.reads("first").await);
    }

    // The lost one comes back and learns what it missed.
    let back = Node::start_waiting(base.path(), id, address).await;
    assert!(back.reads("second").await);
    nodes.push(back);
    agree(&nodes).await;

    // Alone, one acknowledges nothing, and promises nothing.
    let leader = take_leader(&mut nodes);
    nodes.remove(0).stop().await;
    nodes.remove(0).stop().await;
    let (proposed, read) = tokio::join!(leader.catalog.propose(create_user("third")), leader.catalog.linearize());
    let error = proposed.unwrap_err().to_wire();
    assert_eq!(error.code, ErrorCode::Unavailable, "{error}");
    assert_eq!(error.fields.get("outcome").map(String::as_str), Some("unknown"), "its entry may be committed yet");
    assert_eq!(read.unwrap_err().code(), ErrorCode::Unavailable);
    // By now it knows that it is cut off, and takes nothing that it cannot carry out.
    let error = leader.catalog.propose(create_user("fourth")).await.unwrap_err().to_wire();
    assert_eq!((error.code, error.fields.get("outcome")), (ErrorCode::Unavailable, None), "{error}");
    leader.stop().await;
}

/// Every acknowledged write is in every read that begins later, wherever either of them goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_anywhere_sees_what_was_acknowledged_anywhere() {
    let (_base, nodes) = start(3).await;
    for round in 0..30 {
        let (writer, name) = (&nodes[round % 3], format!("user {round}"));
        writer.propose(&name).await;
        assert!(writer.catalog.state().user(&name).is_some(), "the proposer's own state has it without asking");
        let reads = (0..40).map(|read| nodes[read % 3].reads(&name));
        assert!(futures::future::join_all(reads).await.into_iter().all(|found| found), "{name}");
    }
    let (log_before, reads) = (nodes[0].catalog.node_status().await.log, 300);
    let reads = (0..reads).map(|read| nodes[read % 3].catalog.linearize());
    assert!(futures::future::join_all(reads).await.into_iter().all(|read| read.is_ok()));
    assert!(nodes[0].catalog.node_status().await.log <= log_before + 2, "reads write nothing");
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_proposals_at_all_nodes_get_one_order() {
    let (_base, nodes) = start(3).await;
    let proposals = (0..150).map(|number| {
        let catalog = nodes[number % 3].catalog.clone();
        tokio::spawn(async move { catalog.propose(create_user(&format!("user {number}"))).await.unwrap().0 })
    });
    for proposal in proposals.collect::<Vec<_>>() {
        proposal.await.unwrap();
    }
    // The same name twice, at two nodes at once: one of them is refused.
    let twice = [0, 1].map(|node: usize| nodes[node].catalog.propose(create_user("twin")));
    let twice = futures::future::join_all(twice).await;
    let refused: Vec<_> = twice.into_iter().filter_map(Result::err).collect();
    assert_eq!(refused.iter().map(|error| error.code()).collect::<Vec<_>>(), [ErrorCode::AlreadyExists]);
    // What may be repeated is: the same outcome everywhere.
    let transaction = id();
    for node in &nodes {
        node.catalog.propose(Command::AbortTransaction { transaction }).await.unwrap();
    }
    agree(&nodes).await;
    assert_eq!(nodes[0].catalog.state().users().count(), 151);
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_away_catches_up_through_a_snapshot() {
    let (base, mut nodes) = start(3).await;
    nodes[0].propose("before").await;
    for node in &nodes {
        assert!(node.reads("before").await);
    }
    let away = nodes.iter().position(|node| !node.catalog.leads()).unwrap();
    let away = nodes.remove(away);
    let (id, address) = (away.id, away.address);
    away.stop().await;
    // More than one chunk, and several of them while it is sent.
    for number in 0..12 {
        let large =
            Command::CreateUser { name: format!("large {number}"), password_hash: "x".repeat(1 << 20), by: None };
        nodes[0].catalog.propose(large).await.unwrap();
    }
    // A leader forgets no entry that it is just about to send: it is asked until it has.
    let leader = nodes.iter().find(|node| node.catalog.leads()).unwrap();
    let forgotten = async {
        while leader.catalog.node_status().await.purged < 12 {
            leader.propose(&format!("one more {}", leader.catalog.state().version())).await;
            leader.catalog.snapshot().await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(60), forgotten).await.expect("the leader forgets the log's beginning");
    let back = Node::start_waiting(base.path(), id, address).await;
    let writing = async {
        for number in 0..20 {
            nodes[1].propose(&format!("during {number}")).await;
        }
    };
    tokio::join!(writing, async { assert!(back.reads("large 11").await) });
    assert!(back.reads("during 19").await);
    nodes.push(back);
    agree(&nodes).await;
    nodes.pop().unwrap().stop().await;
    let database = Database::open(&base.path().join(id.to_string())).unwrap();
    let log = LogStore::open(database, id).unwrap().get_log_state().await.unwrap();
    assert!(log.last_purged_log_id.is_some_and(|purged| purged.index >= 12), "it never had those entries: {log:?}");
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn voters_come_and_go_while_it_runs() {
    let (base, mut nodes) = start(1).await;
    nodes[0].propose("alone").await;
    // One that is not there is not added, nor one with another number.
    let missing = nodes[0].catalog.add_index_server(9, "https://127.0.0.1:1/").await.unwrap_err();
    assert_eq!(missing.code(), ErrorCode::Unavailable, "{missing}");
    for id in [2, 3] {
        let node = Node::start_waiting(base.path(), id, any_port()).await;
        let wrong = nodes[0].catalog.add_index_server(id + 10, &node.url()).await.unwrap_err();
        assert_eq!(wrong.code(), ErrorCode::InvalidArgument, "{wrong}");
        // Any server may be asked.
        let asked = nodes.last().unwrap();
        asked.catalog.add_index_server(id, &node.url()).await.unwrap();
        asked.catalog.add_index_server(id, &node.url()).await.unwrap();
        assert!(node.reads("alone").await);
        nodes.push(node);
    }
    let taken = nodes[0].catalog.add_index_server(3, "https://127.0.0.1:2/").await.unwrap_err();
    assert_eq!(taken.code(), ErrorCode::AlreadyExists, "{taken}");
    for node in &nodes {
        let servers = node.catalog.index_servers();
        assert_eq!(servers.iter().map(|server| server.id).collect::<Vec<_>>(), [1, 2, 3]);
        assert!(servers.iter().all(|server| server.voter));
    }

    // The one that leads is removed, on its own demand: the others go on without it.
    let first = take_leader(&mut nodes);
    first.catalog.remove_index_server(first.id).await.unwrap();
    first.stop().await;
    nodes[0].propose("without the first").await;
    assert!(nodes[1].reads("without the first").await);
    let unknown = nodes[0].catalog.remove_index_server(77).await.unwrap_err();
    assert_eq!(unknown.code(), ErrorCode::NotFound, "{unknown}");

    // One more, so that one that is dead can be removed.
    let fourth = Node::start_waiting(base.path(), 4, any_port()).await;
    nodes[1].catalog.add_index_server(4, &fourth.url()).await.unwrap();
    nodes.push(fourth);
    let dead = nodes.remove(0);
    let dead_id = dead.id;
    dead.stop().await;
    nodes[0].catalog.remove_index_server(dead_id).await.unwrap();
    nodes[1].propose("without the dead").await;
    agree(&nodes).await;
    let mut left: Vec<NodeId> = nodes.iter().map(|node| node.id).collect();
    left.sort_unstable();
    assert_eq!(nodes[0].catalog.index_servers().iter().map(|server| server.id).collect::<Vec<_>>(), left);

    // A restart keeps the membership, and finds the others by it.
    let addresses: Vec<_> = nodes.iter().map(|node| (node.id, node.address)).collect();
    for node in nodes {
        node.stop().await;
    }
    let starts = addresses.iter().map(|(id, address)| Node::start_waiting(base.path(), *id, *address));
    let nodes = futures::future::join_all(starts).await;
    nodes[0].propose("after the restart").await;
    assert!(nodes[1].reads("after the restart").await && nodes[1].reads("alone").await);

    // Down to one, whichever that is.
    nodes[0].catalog.remove_index_server(nodes[1].id).await.unwrap();
    nodes[0].propose("alone again").await;
    let last = nodes[0].catalog.remove_index_server(nodes[0].id).await.unwrap_err();
    assert_eq!(last.code(), ErrorCode::InvalidArgument, "{last}");
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_moved_tells_the_others() {
    let (base, mut nodes) = start(3).await;
    nodes[0].propose("before").await;
    let moved = nodes.iter().position(|node| !node.catalog.leads()).unwrap();
    let moved = nodes.remove(moved);
    let id = moved.id;
    moved.stop().await;
    let moved = Node::start_waiting(base.path(), id, any_port()).await;
    // Nobody reaches it there, but it reaches them: it knows who they are from its log.
    let announced = async {
        while moved.catalog.index_servers().iter().all(|server| server.url != moved.url()) {
            if moved.catalog.announce(&moved.url()).await.is_err() {
                tokio::task::yield_now().await;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), announced).await.expect("the others hear of it");
    assert!(moved.reads("before").await);
    nodes.push(moved);
    agree(&nodes).await;
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_whose_state_differs_is_found() {
    let (base, mut nodes) = start(3).await;
    nodes[0].propose("ada").await;
    for node in &nodes {
        assert!(node.reads("ada").await);
        node.catalog.compare_states().await.unwrap();
        assert_eq!(node.catalog.disagrees_since(), None);
    }

    let follower = nodes.iter().position(|node| !node.catalog.leads()).expect("only one leads");
    let rotten = nodes.remove(follower);
    let (id, address) = (rotten.id, rotten.address);
    rotten.stop().await;
    rot(&base.path().join(id.to_string()).join("catalog.sqlite"), b"ada", b"eve");
    let rotten = Node::start_waiting(base.path(), id, address).await;
    assert!(rotten.reads("eve").await);
    assert!(!rotten.reads("ada").await);

    for node in nodes.iter().chain([&rotten]) {
        node.catalog.compare_states().await.unwrap();
        let since = node.catalog.disagrees_since();
        assert!(since.is_some(), "node {} finds nothing wrong", node.id);
        assert_eq!(node.catalog.node_status().await.disagrees_since, since);
    }
}

/// What the file's entries end with, see `seal.rs`.
const DIGEST_BYTES: usize = 8;

/// Waits until `node` has written down who the others are.
async fn knows_the_others(base: &Path, node: &Node) {
    let file = base.join(node.id.to_string()).join("index_servers");
    let written = async {
        while !file.exists() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), written).await.expect("the list of servers is written");
}

/// Waits until `node` votes, and all say so.
async fn votes(nodes: &[Node], id: NodeId) {
    let voting = async {
        for node in nodes {
            while !node.catalog.index_servers().iter().any(|server| server.id == id && server.voter) {
                tokio::task::yield_now().await;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), voting).await.expect("it votes again");
}

async fn found_cluster(node: &Node) {
    let (_, pkcs8) = drsdb_core::security::keys::SigningKey::generate().unwrap();
    let command = Command::Bootstrap {
        cluster_id: id(),
        signing_key_pkcs8: pkcs8.into(),
        admin_user: "admin".to_owned(),
        admin_password_hash: "hash".to_owned(),
    };
    node.catalog.propose(command).await.unwrap();
}

/// Damages a file, or its log, or takes it away.
type Damage = fn(&Path);

fn overwrite(dir: &Path) {
    std::fs::write(dir.join("catalog.sqlite"), vec![0x5A; 8192]).unwrap();
    // Pages that the log has would be whole again.
    std::fs::write(dir.join("catalog.sqlite-wal"), b"").unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_file_is_damaged_joins_again_under_its_number() {
    let (base, mut nodes) = start(3).await;
    found_cluster(&nodes[0]).await;
    let damages: [Damage; 3] = [
        overwrite,
        |dir| std::fs::remove_file(dir.join("catalog.sqlite")).unwrap(),
        // Its newest votes and entries.
        |dir| {
            let log = std::fs::File::options().write(true).open(dir.join("catalog.sqlite-wal")).unwrap();
            log.set_len(0).unwrap();
        },
    ];
    for (round, damage) in damages.into_iter().enumerate() {
        let before = format!("before {round}");
        nodes[0].propose(&before).await;
        for node in &nodes {
            assert!(node.reads(&before).await);
            knows_the_others(base.path(), node).await;
        }
        // Once the one that leads.
        let lost = if round == 1 { take_leader(&mut nodes) } else { nodes.remove(0) };
        let (id, address, dir) = (lost.id, lost.address, base.path().join(lost.id.to_string()));
        // Without its end, a log that is not whole in the file itself.
        let crashed = super::crashed(&dir);
        lost.stop().await;
        for file in ["catalog.sqlite", "catalog.sqlite-wal"] {
            std::fs::copy(crashed.path().join(file), dir.join(file)).unwrap();
        }
        damage(&dir);
        let during = format!("during {round}");
        nodes[0].propose(&during).await;
        let back = Node::start_waiting(base.path(), id, address).await;
        assert!(back.reads(&during).await && back.reads(&before).await);
        nodes.push(back);
        votes(&nodes, id).await;
        agree(&nodes).await;
        let aside = std::fs::read_dir(base.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let aside = aside.filter(|name| name.to_str().unwrap().starts_with("damaged-")).count();
        assert_eq!(aside, round + 1, "what was there is kept");

        // It counts: without another one, it and the third are the majority.
        let other = nodes.remove(0);
        let (id, address) = (other.id, other.address);
        other.stop().await;
        nodes[1].propose(&format!("with it {round}")).await;
        nodes.push(Node::start_waiting(base.path(), id, address).await);
        agree(&nodes).await;
    }
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_node_joins_only_where_the_others_are_a_majority() {
    let (base, mut nodes) = start(3).await;
    found_cluster(&nodes[0]).await;
    nodes[0].propose("ada").await;
    for node in &nodes {
        assert!(node.reads("ada").await);
        knows_the_others(base.path(), node).await;
    }
    let damage = |id: NodeId| overwrite(&base.path().join(id.to_string()));
    // One that was removed while it was away is told so.
    let removed = nodes.remove(0);
    let (id, dir) = (removed.id, base.path().join(removed.id.to_string()));
    removed.stop().await;
    nodes[0].catalog.remove_index_server(id).await.unwrap();
    damage(id);
    for _ in 0..2 {
        let error = Node::open(base.path(), id, BTreeMap::new()).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::Corrupt, "{error}");
        assert!(error.to_string().contains("not one of the index servers any more"), "{error}");
    }
    assert!(dir.join("catalog.sqlite").exists(), "it is left as it is");

    // Of two, one is no majority: nothing is given up.
    let lost = nodes.remove(0);
    let id = lost.id;
    lost.stop().await;
    damage(id);
    let error = Node::open(base.path(), id, BTreeMap::new()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::Corrupt, "{error}");
    assert!(error.to_string().contains("cannot join the other index servers again"), "{error}");
    assert_eq!(nodes[0].catalog.index_servers().len(), 2);
}

/// While it learns, the founder's log says for long that it is alone: it must not act on that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_founder_that_lost_its_file_does_not_lead_by_what_it_once_was() {
    let (base, mut nodes) = start(1).await;
    found_cluster(&nodes[0]).await;
    // More than is sent at a time, in entries of their own.
    for number in 0..700 {
        nodes[0].propose(&format!("alone {number}")).await;
    }
    for id in [2, 3] {
        let node = Node::start_waiting(base.path(), id, any_port()).await;
        nodes[0].catalog.add_index_server(id, &node.url()).await.unwrap();
        nodes.push(node);
    }
    nodes[1].propose("three").await;
    for node in &nodes {
        assert!(node.reads("three").await);
        knows_the_others(base.path(), node).await;
    }
    for round in 0..3 {
        let founder = nodes.remove(0);
        let address = founder.address;
        founder.stop().await;
        overwrite(&base.path().join("1"));
        nodes[0].propose(&format!("without it {round}")).await;
        let term = nodes[0].catalog.node_status().await.term;
        let back = Node::start_waiting(base.path(), 1, address).await;
        assert!(back.reads(&format!("without it {round}")).await);
        nodes.insert(0, back);
        votes(&nodes, 1).await;
        agree(&nodes).await;
        assert_eq!(nodes[1].catalog.node_status().await.term, term, "nobody asked for an election");
    }
    for node in nodes {
        node.stop().await;
    }
}

/// Exchanges bytes in the entry of a log that has them, under a digest that fits: as if they had been others before they
/// were written.
fn rot(file: &Path, from: &[u8], to: &[u8]) {
    let connection = rusqlite::Connection::open(file).unwrap();
    let mut statement = connection.prepare("SELECT idx, entry FROM log").unwrap();
    let entries = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    let entries: Vec<(i64, Vec<u8>)> = entries.collect::<Result<_, _>>().unwrap();
    let mut rotted = 0;
    for (index, mut entry) in entries {
        let Some(at) = entry.windows(from.len()).position(|bytes| bytes == from) else { continue };
        entry[at..at + to.len()].copy_from_slice(to);
        let payload = entry.len() - DIGEST_BYTES;
        let sealed = [format!("entry {index}\0").as_bytes(), &entry[..payload]].concat();
        entry[payload..].copy_from_slice(&sha256(&sealed)[..DIGEST_BYTES]);
        connection.execute("UPDATE log SET entry = ?2 WHERE idx = ?1", rusqlite::params![index, entry]).unwrap();
        rotted += 1;
    }
    assert_eq!(rotted, 1, "one entry has it");
}
