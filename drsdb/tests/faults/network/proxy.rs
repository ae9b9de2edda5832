//! A TCP proxy in front of one server.

use std::{
    collections::VecDeque,
    io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream, tcp::OwnedReadHalf, tcp::OwnedWriteHalf},
    sync::watch,
    task::AbortHandle,
    time::Instant,
};

use super::{Network, Node, State};

/// Bytes that wait on a delayed link; beyond it the sender waits, as with a full receive window.
const MOST_WAITING: usize = 4 << 20;

/// Listens on a port of 127.0.0.1 until it is dropped.
pub struct Proxy {
    address: SocketAddr,
    task: AbortHandle,
}

impl Proxy {
    /// A proxy in front of `node`, which listens on `target`.
    pub async fn start(network: Network, node: Node, target: SocketAddr) -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        let listener = socket.listen(1024)?;
        let address = listener.local_addr()?;
        let task = tokio::spawn(accept(network, node, listener, target)).abort_handle();
        Ok(Self { address, task })
    }

    /// Where the server is reached: its public URL.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.address.port())
    }

    #[cfg(test)]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(network: Network, node: Node, listener: TcpListener, target: SocketAddr) {
    let port = listener.local_addr().map(|address| address.port()).unwrap_or_default();
    loop {
        let Ok((stream, source)) = listener.accept().await else { continue };
        let network = network.clone();
        tokio::spawn(async move {
            let lookup = network.clone();
            let from = tokio::task::spawn_blocking(move || lookup.node_of_port(source.port(), port)).await;
            serve(network, from.unwrap_or(Node::Client), node, stream, target).await;
        });
    }
}

async fn serve(network: Network, from: Node, to: Node, stream: TcpStream, target: SocketAddr) {
    let mut state = network.state.subscribe();
    let before = state.borrow_and_update().resets(from, to);
    // Not forwarded at all before the link is whole: a server behind a cut does not even see that somebody connects.
    if state.wait_for(|state| !state.condition(from, to).cut).await.is_err() {
        return;
    }
    // A server that is down refuses: so does its proxy, by closing.
    let Ok(server) = TcpStream::connect(target).await else { return };
    let _ = (stream.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = stream.into_split();
    let (from_server, to_server) = server.into_split();
    let request = pump(network.state.subscribe(), from, to, from_client, to_server);
    let response = pump(network.state.subscribe(), to, from, from_server, to_client);
    let broken = async {
        let _ = state.wait_for(|state| state.resets(from, to) != before).await;
    };
    tokio::select! {
        _ = async { tokio::join!(request, response) } => {}
        () = broken => {}
    }
}

/// Copies one direction of a connection, as its link lets it.
async fn pump(
    mut state: watch::Receiver<State>,
    from: Node,
    to: Node,
    mut reader: OwnedReadHalf,
    mut writer: OwnedWriteHalf,
) {
    let mut buffer = vec![0; 64 << 10];
    let mut waiting: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let (mut bytes, mut ended) = (0, false);
    loop {
        let condition = state.borrow_and_update().condition(from, to);
        let due = waiting.front().map(|(due, _)| *due);
        if ended && due.is_none() {
            // Half a connection may be closed while the other half goes on.
            let _ = writer.shutdown().await;
            return;
        }
        let far = Instant::now() + Duration::from_secs(3600);
        tokio::select! {
            changed = state.changed() => if changed.is_err() { return },
            read = reader.read(&mut buffer), if !ended && !condition.cut && bytes < MOST_WAITING => match read {
                Ok(0) => ended = true,
                Ok(count) if condition.delay.is_zero() && waiting.is_empty() => {
                    if writer.write_all(&buffer[..count]).await.is_err() {
                        return;
                    }
                }
                Ok(count) => {
                    // What was sent later never overtakes what was sent before.
                    let last = waiting.back().map_or_else(Instant::now, |(due, _)| *due);
                    waiting.push_back(((Instant::now() + condition.delay).max(last), buffer[..count].to_vec()));
                    bytes += count;
                }
                // The other direction may still have something to say: it ends by itself.
                Err(_) => ended = true,
            },
            () = tokio::time::sleep_until(due.unwrap_or(far)), if due.is_some() && !condition.cut => {
                let Some((_, chunk)) = waiting.pop_front() else { continue };
                bytes -= chunk.len();
                if writer.write_all(&chunk).await.is_err() {
                    return;
                }
            }
        }
    }
}
