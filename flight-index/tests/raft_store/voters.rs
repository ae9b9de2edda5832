//! Three index servers: real ports, real TLS. One may be gone, and another leads.

use std::{collections::BTreeMap, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use drsdb_core::{
    ErrorCode, Result,
    net::{self, ChannelPool},
    security::{
        Role,
        auth_layer::{AuthLayer, LateKey},
        dev_ca::DevCa,
        tls::{self, TlsIdentity},
    },
};
use drsdb_index::raft::{Catalog, CatalogOptions, store::NodeId};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use super::create_user;

struct Node {
    catalog: Arc<Catalog>,
    shutdown: CancellationToken,
    server: JoinHandle<Result<()>>,
}

impl Node {
    async fn start(base: &Path, id: NodeId, listener: TcpListener, voters: BTreeMap<NodeId, String>) -> Self {
        let ca = DevCa::open_or_create(&base.join("ca")).unwrap();
        let files = ca.issue(&base.join(format!("tls{id}")), Role::Index, &[]).unwrap();
        let identity = TlsIdentity::load(&files).unwrap();
        let pool = ChannelPool::new(tls::client_config(&identity).unwrap());
        let options = CatalogOptions {
            dir: base.join(id.to_string()),
            node_id: id,
            voters,
            dial: Arc::new(move |url| pool.channel(url)),
        };
        let catalog = Catalog::open(options).await.unwrap();
        let shutdown = CancellationToken::new();
        let server = tokio::spawn(net::serve(
            listener,
            tls::server_config(&identity).unwrap(),
            AuthLayer::new(Arc::new(LateKey::new())),
            Routes::new(catalog.raft_service()),
            shutdown.clone(),
        ));
        Self { catalog, shutdown, server }
    }

    async fn stop(self) {
        self.catalog.shutdown().await;
        self.shutdown.cancel();
        self.server.await.unwrap().unwrap();
    }
}

/// Proposes at one node after the other until one leads. Which one does is the nodes' own business, and nothing tells when:
/// they are asked again and again.
async fn propose(nodes: &[Node], name: &str) {
    let mut patience = tokio::time::interval(Duration::from_millis(20));
    for node in nodes.iter().cycle() {
        match node.catalog.propose(create_user(name)).await {
            Ok(_) => return,
            // It was committed by a leader that did not live to say so.
            Err(error) if error.code() == ErrorCode::AlreadyExists => return,
            Err(error) => assert_eq!(error.code(), ErrorCode::Unavailable, "{error}"),
        }
        patience.tick().await;
    }
}

async fn has_user(node: &Node, name: &str) {
    let mut versions = node.catalog.watch();
    while node.catalog.state().user(name).is_none() {
        versions.changed().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_voters_agree_and_survive_the_loss_of_one() {
    let base = tempfile::tempdir().unwrap();
    let mut listeners = Vec::new();
    for id in 1..=3 {
        listeners.push((id, net::bind("127.0.0.1:0".parse().unwrap()).unwrap()));
    }
    let addresses: Vec<(NodeId, SocketAddr)> =
        listeners.iter().map(|(id, listener)| (*id, listener.local_addr().unwrap())).collect();
    let voters: BTreeMap<NodeId, String> =
        addresses.iter().map(|(id, address)| (*id, format!("https://{address}"))).collect();
    let starts = listeners.into_iter().map(|(id, listener)| Node::start(base.path(), id, listener, voters.clone()));
    let mut nodes: Vec<Node> = futures::future::join_all(starts).await;

    propose(&nodes, "first").await;
    for node in &nodes {
        has_user(node, "first").await;
    }
    let states: Vec<_> = nodes.iter().map(|node| node.catalog.state()).collect();
    assert!(states.iter().all(|state| *state == states[0]), "all have the same state");

    // Exactly one can promise that its state is the newest, and the others name it.
    let mut leader = None;
    for (at, node) in nodes.iter().enumerate() {
        match node.catalog.linearize().await {
            Ok(()) => assert_eq!(leader.replace(at), None, "one leads"),
            Err(error) => assert_eq!(error.code(), ErrorCode::Unavailable),
        }
    }
    let lost = leader.expect("somebody leads");
    nodes.remove(lost).stop().await;

    // The other two elect one of them, and go on.
    propose(&nodes, "second").await;
    for node in &nodes {
        has_user(node, "second").await;
        assert!(node.catalog.state().user("first").is_some());
    }

    // The lost one comes back and learns what it missed.
    let (id, address) = addresses[lost];
    let back = Node::start(base.path(), id, net::bind(address).unwrap(), voters).await;
    has_user(&back, "second").await;
    nodes.push(back);
    let states: Vec<_> = nodes.iter().map(|node| node.catalog.state()).collect();
    assert!(states.iter().all(|state| *state == states[0]), "all have the same state again");

    // Alone, one acknowledges nothing.
    nodes.remove(0).stop().await;
    nodes.remove(0).stop().await;
    let error = tokio::select! {
        proposed = nodes[0].catalog.propose(create_user("third")) => proposed.map(drop),
        read = nodes[0].catalog.linearize() => read,
    }
    .unwrap_err();
    assert_eq!(error.code(), ErrorCode::Unavailable);
    nodes.remove(0).stop().await;
}
