//! The accept loop: TCP in, authenticated TLS connections out.
//!
//! ```text
//! accept ──▶ handshake (a task each, at most HANDSHAKE_TIME) ──▶ with a server's certificate ──▶ servers
//!   └ never waits for a client                                └─▶ without                     ──▶ clients
//! ```

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::{Instant, timeout_at},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::{
    connection::Connection,
    refusal::{Opening, close_gently, look, refuse_plaintext},
};
use crate::security::{Peer, Role};

/// How long a client may take from connecting to the end of its handshake.
const HANDSHAKE_TIME: Duration = Duration::from_secs(5);

/// Handshakes that may be under way; a connection above that is closed at once. Bounds what clients that nobody knows
/// yet can occupy.
const MOST_HANDSHAKES: usize = 4096;

/// Where connections go.
#[derive(Clone)]
pub(super) struct Exits {
    pub(super) servers: mpsc::Sender<Connection>,
    pub(super) clients: mpsc::Sender<Connection>,
    /// Closes all of them.
    pub(super) close: CancellationToken,
}

/// Accepts until `shutdown`; then the listener is closed, and handshakes under way are dropped.
pub(super) async fn accept(listener: TcpListener, tls: Arc<ServerConfig>, exits: Exits, shutdown: CancellationToken) {
    let acceptor = TlsAcceptor::from(tls);
    let mut handshakes = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            Some(_) = handshakes.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((_, address)) if handshakes.len() >= MOST_HANDSHAKES => {
                tracing::warn!(%address, "connection closed: too many handshakes are under way");
            }
            Ok((stream, address)) => {
                handshakes.spawn(handshake(stream, address, acceptor.clone(), exits.clone()));
            }
            Err(error) => recover(error).await,
        }
    }
}

/// Waits after a failed accept where trying again at once would fail again.
#[allow(clippy::disallowed_methods)]
async fn recover(error: io::Error) {
    // The connection was gone before it was accepted: the next one is fine.
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    if matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted) {
        return;
    }
    // Out of file descriptors or memory, most likely, and nobody tells when they come back: time is the condition.
    tracing::warn!(%error, "cannot accept connections; trying again");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

async fn handshake(stream: TcpStream, address: SocketAddr, acceptor: TlsAcceptor, exits: Exits) {
    let deadline = Instant::now() + HANDSHAKE_TIME;
    // Small messages go out at once: a request's answer is often one packet.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%address, %error, "connection lost before its handshake");
        return;
    }
    match timeout_at(deadline, look(&stream)).await {
        Ok(Ok(Opening::Tls)) => {}
        Ok(Ok(Opening::Plaintext)) => {
            tracing::info!(%address, "plaintext connection refused");
            let _ = timeout_at(deadline, refuse_plaintext(stream)).await;
            return;
        }
        Ok(Ok(Opening::Nothing)) => return,
        Ok(Err(error)) => {
            tracing::debug!(%address, %error, "connection lost before its handshake");
            return;
        }
        Err(_) => {
            tracing::info!(%address, "connection closed: it said nothing for {HANDSHAKE_TIME:?}");
            return;
        }
    }
    match timeout_at(deadline, acceptor.accept(stream).into_fallible()).await {
        Ok(Ok(stream)) => {
            let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
            let role = certificate.and_then(|certificate| Role::of_certificate(certificate));
            tracing::debug!(%address, ?role, "connected");
            let exit = if role.is_some() { &exits.servers } else { &exits.clients };
            // It fails only when the server stops; then the connection is dropped with it.
            let _ = exit.send(Connection::new(stream, Peer { address, role }, exits.close.clone())).await;
        }
        Ok(Err((error, stream))) => {
            tracing::info!(%address, %error, "TLS handshake refused");
            // The TLS alert that says why is on its way.
            close_gently(stream).await;
        }
        Err(_) => tracing::info!(%address, "connection closed: its TLS handshake took more than {HANDSHAKE_TIME:?}"),
    }
}
