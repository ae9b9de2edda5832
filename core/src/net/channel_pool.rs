//! Connections to other servers: one HTTP/2 connection for each, made when first needed and again when it broke.

use std::{collections::HashMap, error::Error as _, io, sync::Arc, time::Duration};

use drsdb_proto::{ErrorCode, WireError};
use http::Uri;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{net::TcpStream, runtime::Handle, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::{
    Code, Status,
    metadata::MetadataValue,
    transport::{Channel, Endpoint},
};
use url::{Host, Url};

use super::{CONNECTION_WINDOW_BYTES, SERVER_KEEPALIVE, STREAM_WINDOW_BYTES};
use crate::{Error, Result};

/// How long resolving, connecting and the TLS handshake may take together.
const CONNECT_TIME: Duration = Duration::from_secs(3);

/// Channels by server. Cheap to clone, and all clones share the channels. They run on the runtime in which the pool was made, whatever
/// runtime asks for one, so that a runtime that is busy with queries starves no connection.
#[derive(Clone)]
pub struct ChannelPool {
    tls: TlsConnector,
    runtime: Handle,
    channels: Arc<Mutex<HashMap<String, Channel>>>,
}

impl ChannelPool {
    /// An empty pool; connections are made with `tls`. Call it inside the tokio runtime that shall run them.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new(tls: Arc<ClientConfig>) -> Self {
        Self { tls: TlsConnector::from(tls), runtime: Handle::current(), channels: Arc::default() }
    }

    /// The channel to the server at `url`, `https://host:port`. The server's certificate must be for the host.
    ///
    /// It does not connect yet: a server that is not there makes the calls on the channel fail, with code `unavailable`
    /// and the field `server`. Errors here: `invalid_argument` for a URL that is none of a server.
    pub fn channel(&self, url: &Url) -> Result<Channel> {
        let server = ServerAddress::of(url)?;
        let mut channels = self.channels.lock();
        if let Some(channel) = channels.get(&server.origin) {
            return Ok(channel.clone());
        }
        let channel = self.new_channel(server.clone())?;
        channels.insert(server.origin, channel.clone());
        Ok(channel)
    }

    fn new_channel(&self, server: ServerAddress) -> Result<Channel> {
        let endpoint = Endpoint::from_shared(server.origin.clone())
            .map_err(|error| bad_url(&server.origin, &error.to_string()))?
            .http2_keep_alive_interval(SERVER_KEEPALIVE)
            .keep_alive_timeout(SERVER_KEEPALIVE)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        let tls = self.tls.clone();
        // A typed status as the connector's error reaches the caller of each request whole.
        let connector = tower::service_fn(move |_: Uri| {
            let (server, tls) = (server.clone(), tls.clone());
            async move {
                let connected = connect(&server, tls).await.map(TokioIo::new);
                connected.map_err(|error| {
                    let mut status = Status::from(error);
                    status.metadata_mut().insert(NOT_SENT, MetadataValue::from_static("1"));
                    status
                })
            }
        });
        // The channel's tasks are spawned into the runtime that is entered here.
        let _entered = self.runtime.enter();
        Ok(Channel::new(connector, endpoint))
    }
}

impl std::fmt::Debug for ChannelPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let servers: Vec<String> = self.channels.lock().keys().cloned().collect();
        f.debug_struct("ChannelPool").field("servers", &servers).finish_non_exhaustive()
    }
}

/// A server's URL, taken apart.
#[derive(Clone)]
struct ServerAddress {
    /// `https://host:port`
    origin: String,
    /// As the resolver takes it.
    host: String,
    port: u16,
    /// As the certificate must say it.
    name: ServerName<'static>,
}

impl ServerAddress {
    fn of(url: &Url) -> Result<Self> {
        let bad = |why| bad_url(url.as_str(), why);
        if url.scheme() != "https" {
            return Err(bad("it does not begin with https://"));
        }
        let extra = !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some();
        if extra || !url.username().is_empty() || url.password().is_some() {
            return Err(bad("it has more than a host and a port"));
        }
        let (host, name) = match url.host().ok_or_else(|| bad("it has no host"))? {
            Host::Domain(domain) => {
                let name = ServerName::try_from(domain.to_owned()).map_err(|_| bad("its host is no DNS name"))?;
                (domain.to_owned(), name)
            }
            Host::Ipv4(address) => (address.to_string(), ServerName::IpAddress(address.into())),
            Host::Ipv6(address) => (address.to_string(), ServerName::IpAddress(address.into())),
        };
        let port = url.port_or_known_default().ok_or_else(|| bad("it has no port"))?;
        let host_in_url = url.host_str().unwrap_or(&host);
        Ok(Self { origin: format!("https://{host_in_url}:{port}"), host, port, name })
    }
}

fn bad_url(url: &str, why: &str) -> Error {
    WireError::new(ErrorCode::InvalidArgument, format!("{url:?} is no server's address: {why}"))
        .with_hint("write it as https://host:port")
        .into()
}

async fn connect(server: &ServerAddress, tls: TlsConnector) -> Result<TlsStream<TcpStream>, WireError> {
    let connecting = async {
        let stream = TcpStream::connect((server.host.as_str(), server.port)).await?;
        stream.set_nodelay(true)?;
        tls.connect(server.name.clone(), stream).await
    };
    match timeout(CONNECT_TIME, connecting).await {
        Ok(connected) => connected.map_err(|error| {
            let hint = match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
                Some(rustls::Error::InvalidCertificate(_)) => {
                    "the server's certificate must be signed by an authority in tls.ca, for the host in its URL"
                }
                Some(_) => "check that a drsdb server of this cluster listens there",
                None => "check that the server runs and can be reached",
            };
            unavailable(&server.origin, &error).with_hint(hint)
        }),
        Err(_) => Err(unavailable(&server.origin, &format!("it did not answer within {CONNECT_TIME:?}"))
            .with_hint("check that the server runs and can be reached")),
    }
}

fn unavailable(origin: &str, why: &dyn std::fmt::Display) -> WireError {
    WireError::new(ErrorCode::Unavailable, format!("server {origin} cannot be reached: {why}"))
        .with_field("server", origin)
}

/// Marks a status that was made because no connection could be made.
const NOT_SENT: &str = "drsdb-not-sent";

/// Whether the call that ended in `status` never left this process: then the server surely did nothing of it.
pub fn was_not_sent(status: &Status) -> bool {
    status.metadata().contains_key(NOT_SENT)
}

/// The error in `status`, which a call to the server at `url` returned. An error that the server itself gave stays what
/// it is. A connection that broke under the call (the server was killed, stopped answering, or drained for too long)
/// becomes `unavailable` with the field `server`: gRPC alone says neither that nor which server it was.
pub fn name_server(status: Status, url: &Url) -> Error {
    // A status that came over the wire has no source; one that the transport made has.
    let transport_failed = matches!(status.code(), Code::Unknown | Code::Cancelled | Code::Internal)
        && status.source().is_some_and(is_connection_error);
    let silent = status.code() == Code::Unavailable;
    let from_source = status.source().map(deepest).unwrap_or_default();
    let message = status.message().to_owned();
    let mut error = WireError::from(status);
    let origin = url.as_str().trim_end_matches('/');
    if transport_failed {
        let why = if from_source.is_empty() { &message } else { &from_source };
        return WireError::new(ErrorCode::Unavailable, format!("the connection to server {origin} broke: {why}"))
            .with_hint("run the statement again; if it lasts, check that the server runs")
            .with_field("server", origin)
            .into();
    }
    if silent && !error.fields.contains_key("server") {
        error = error.with_field("server", origin);
        error.message = format!("server {origin} cannot be reached: {}", error.message);
    }
    error.into()
}

/// Whether the transport failed, and not the encoding of a message.
fn is_connection_error(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut current = Some(error);
    while let Some(error) = current {
        let names_transport = error.is::<tonic::transport::Error>() || error.is::<io::Error>();
        if names_transport {
            return true;
        }
        current = error.source();
    }
    // hyper's and h2's errors, which only tonic's own dependencies name.
    let text = error.to_string();
    text.contains("connection") || text.contains("h2") || text.contains("http2") || text.contains("stream")
}

fn deepest(error: &(dyn std::error::Error + 'static)) -> String {
    let mut current = error;
    while let Some(source) = current.source() {
        current = source;
    }
    current.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(url: &str) -> Result<ServerAddress> {
        ServerAddress::of(&Url::parse(url).unwrap())
    }

    #[test]
    fn a_url_names_one_server() {
        for (url, origin, host, port) in [
            ("https://localhost:7", "https://localhost:7", "localhost", 7),
            ("https://127.0.0.1:7/", "https://127.0.0.1:7", "127.0.0.1", 7),
            ("https://[::1]:7", "https://[::1]:7", "::1", 7),
            ("https://DB.example", "https://db.example:443", "db.example", 443),
        ] {
            let address = address(url).unwrap();
            assert_eq!((address.origin.as_str(), address.host.as_str(), address.port), (origin, host, port));
        }
    }

    #[test]
    fn other_urls_are_refused() {
        for url in ["http://h:1", "https://h:1/x", "https://h:1/?q", "https://h:1/#f", "https://u@h:1", "data:x"] {
            assert_eq!(address(url).err().map(|error| error.code()), Some(ErrorCode::InvalidArgument), "{url}");
        }
    }

    #[test]
    fn a_servers_own_errors_stay_what_they_are() {
        let url = Url::parse("https://h:1").unwrap();
        for &code in ErrorCode::ALL {
            let error = WireError::new(code, "m").with_field("server", "https://other:2");
            assert_eq!(name_server(error.clone().into(), &url).to_wire(), error);
        }
        let plain = name_server(Status::internal("defect"), &url).to_wire();
        assert_eq!((plain.code, plain.message.as_str()), (ErrorCode::Internal, "defect"));
        let silent = name_server(Status::unavailable("gone"), &url).to_wire();
        assert_eq!(silent.fields["server"], "https://h:1");
    }
}
