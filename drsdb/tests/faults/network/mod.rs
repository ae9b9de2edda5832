//! The network between the servers of a test, which can be cut, delayed and healed link by link.
//!
//! A server's public URL is that of its proxy here, so that everyone, clients included, reaches it through its proxy:
//!
//! ```text
//! client ──▶ proxy of index 1 ──▶ index 1        a link is a pair of nodes in one direction:
//! index 1 ─▶ proxy of storage 2 ─▶ storage 2     bytes of a connection from A to B's proxy pass links A→B and B→A
//! ```
//!
//! TLS hides who connects; the kernel does not: [`owner`] finds the process behind a connection's source port. So one
//! proxy for each server knows every pair, certificates stay valid for 127.0.0.1, and nobody needs to be root.
//!
//! A cut link swallows nothing: bytes wait, as they do where TCP sends packets again and again until the network is
//! back. Connections that were broken instead are [`Network::reset`].

mod owner;
mod proxy;
mod tests;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::sync::watch;

pub use proxy::Proxy;

/// Someone on the network; servers count from 1, as their folders do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Node {
    /// This process, or any other that is no server of the cluster.
    Client,
    Index(usize),
    Storage(usize),
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Node::Client => f.write_str("client"),
            Node::Index(number) => write!(f, "index {number}"),
            Node::Storage(number) => write!(f, "storage {number}"),
        }
    }
}

/// What is wrong with a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Condition {
    /// No byte passes.
    pub cut: bool,
    /// Each byte arrives this much later.
    pub delay: Duration,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct State {
    /// Links that are not as they should be.
    links: HashMap<(Node, Node), Condition>,
    /// Counts the resets of each node; connections made before one are closed.
    resets: HashMap<Node, u64>,
}

/// The state of all links. Clones share it.
#[derive(Clone)]
pub struct Network {
    state: Arc<watch::Sender<State>>,
    processes: Arc<Mutex<HashMap<u32, Node>>>,
}

impl Network {
    pub fn new() -> Self {
        Self { state: Arc::new(watch::Sender::new(State::default())), processes: Arc::default() }
    }

    /// Says that `pid` is `node` from now on.
    pub fn set_process(&self, node: Node, pid: u32) {
        let mut processes = self.processes.lock().unwrap();
        processes.retain(|_, other| *other != node);
        processes.insert(pid, node);
    }

    /// Cuts the link from `from` to `to`; the way back stays.
    pub fn cut(&self, from: Node, to: Node) {
        self.change(from, to, |condition| condition.cut = true);
    }

    /// Delays what goes from `from` to `to`.
    pub fn delay(&self, from: Node, to: Node, delay: Duration) {
        self.change(from, to, |condition| condition.delay = delay);
    }

    /// Mends one link.
    pub fn heal(&self, from: Node, to: Node) {
        self.state.send_modify(|state| {
            state.links.remove(&(from, to));
        });
    }

    /// Mends all links.
    pub fn heal_all(&self) {
        self.state.send_modify(|state| state.links.clear());
    }

    /// Breaks all connections to and from `node`, as a firewall does that lost its tables. New ones can be made.
    pub fn reset(&self, node: Node) {
        self.state.send_modify(|state| *state.resets.entry(node).or_default() += 1);
    }

    fn change(&self, from: Node, to: Node, change: impl FnOnce(&mut Condition)) {
        self.state.send_modify(|state| change(state.links.entry((from, to)).or_default()));
    }

    /// Who opened the connection whose source is `port` of this machine.
    fn node_of_port(&self, port: u16, target: u16) -> Node {
        let processes = self.processes.lock().unwrap().clone();
        owner::process_of_connection(port, target, processes.keys().copied())
            .and_then(|pid| processes.get(&pid).copied())
            .unwrap_or(Node::Client)
    }
}

impl State {
    fn condition(&self, from: Node, to: Node) -> Condition {
        self.links.get(&(from, to)).copied().unwrap_or_default()
    }

    fn resets(&self, from: Node, to: Node) -> u64 {
        let of = |node| self.resets.get(&node).copied().unwrap_or(0);
        of(from) + of(to)
    }
}
