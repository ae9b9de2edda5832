//! A server: from a bound listener to the last drained connection.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use drsdb_proto::{ErrorCode, WireError};
use futures::StreamExt;
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{service::Routes, transport::Server};

use super::{
    CONNECTION_WINDOW_BYTES, SERVER_KEEPALIVE, STREAM_WINDOW_BYTES,
    accept::{Exits, accept},
    connection::Connection,
};
use crate::{Error, Result, security::auth_layer::AuthLayer};

/// How long requests that run when a server stops may take to finish; then their connections are closed.
pub const DRAIN_TIME: Duration = Duration::from_secs(5);

/// Clients are given more time than servers to answer a ping: one that is suspended, in a debugger or on a slow link has
/// not gone away. One that did go away closes its connection, which is noticed at once.
const CLIENT_KEEPALIVE: Duration = Duration::from_secs(20);

/// Streams that one connection may have open. A query between two servers needs one for each pair of partitions of each
/// exchange, all of them at once: were one to wait for its turn, the query would never end.
const SERVER_STREAMS: u32 = 1 << 16;
const CLIENT_STREAMS: u32 = 1 << 10;

/// Listens on `address`; port 0 takes a free one. Call it inside a tokio runtime.
///
/// Errors: `unavailable` when the address is taken, else `invalid_argument`; the field `address` has it.
pub fn bind(address: SocketAddr) -> Result<TcpListener> {
    const BACKLOG: u32 = 1024;
    let listen = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // A restarted server gets its port back while connections of the old one are still in TIME_WAIT.
        #[cfg(unix)]
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listen().map_err(|error| {
        let (code, hint) = match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                (ErrorCode::Unavailable, "stop what listens there, or set another `listen`")
            }
            _ => (ErrorCode::InvalidArgument, "set `listen` to an address of this machine and a port it may use"),
        };
        let error = WireError::new(code, format!("cannot listen on {address}: {error}"));
        error.with_hint(hint).with_field("address", address).into()
    })
}

/// Serves `routes` behind `auth` until `shutdown`, then drains: the listener closes, connections are told to go away,
/// requests that run have [`DRAIN_TIME`], and what is left is closed. Dropping the future closes everything at once.
///
/// A client that stalls, speaks plaintext or an old TLS, or has a certificate of another authority, costs one task for a
/// few seconds and nothing else.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    auth: AuthLayer,
    routes: Routes,
    shutdown: CancellationToken,
) -> Result<()> {
    let close = CancellationToken::new();
    let _close_when_dropped = close.clone().drop_guard();
    let (servers, from_servers) = mpsc::channel(64);
    let (clients, from_clients) = mpsc::channel(64);

    let accepting = accept(listener, tls, Exits { servers, clients, close: close.clone() }, shutdown.clone());
    let serve_connections = |builder: Server, connections: mpsc::Receiver<Connection>| {
        let connections = ReceiverStream::new(connections).map(Ok::<_, Infallible>);
        let router = with_limits(builder).layer(auth.clone()).add_routes(routes.clone());
        router.serve_with_incoming_shutdown(connections, shutdown.clone().cancelled_owned())
    };
    let serving_servers = serve_connections(for_servers(), from_servers);
    let serving_clients = serve_connections(for_clients(), from_clients);

    let all = async { tokio::join!(accepting, serving_servers, serving_clients) };
    let ((), served_servers, served_clients) = tokio::select! {
        all = all => all,
        // Never ends by itself: closing the connections ends `all`.
        never = close_after_drain(&shutdown, &close) => match never {},
    };
    served_servers.and(served_clients).map_err(|error| Error::internal(format!("a server stopped serving: {error}")))
}

fn for_servers() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(SERVER_KEEPALIVE))
        .http2_keepalive_timeout(Some(SERVER_KEEPALIVE))
        .max_concurrent_streams(SERVER_STREAMS)
}

fn for_clients() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(CLIENT_KEEPALIVE))
        .http2_keepalive_timeout(Some(CLIENT_KEEPALIVE))
        .max_concurrent_streams(CLIENT_STREAMS)
}

fn with_limits(builder: Server) -> Server {
    builder.initial_stream_window_size(STREAM_WINDOW_BYTES).initial_connection_window_size(CONNECTION_WINDOW_BYTES)
}

/// Time is the condition here: how long a drain may take.
#[allow(clippy::disallowed_methods)]
async fn close_after_drain(shutdown: &CancellationToken, close: &CancellationToken) -> Infallible {
    shutdown.cancelled().await;
    tokio::time::sleep(DRAIN_TIME).await;
    tracing::warn!("requests still run {DRAIN_TIME:?} after the server was told to stop: closing their connections");
    close.cancel();
    std::future::pending().await
}
