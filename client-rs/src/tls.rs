//! Every connection of the client is made here: TCP, then TLS 1.3, then HTTP/2 (by tonic).

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use drsdb_proto::{ErrorCode, WireError};
use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tower::Service;

use crate::{ClientOptions, Error, Result, TlsRoots};

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("no connection within {0:?}")]
    Timeout(Duration),
    #[error("{0}")]
    Tcp(#[source] io::Error),
    #[error("{0}")]
    Tls(#[source] io::Error),
    #[error("{0} is not a server address")]
    Address(Uri),
}

impl ConnectError {
    /// The error as the caller sees it.
    pub fn to_wire(&self, server: &str) -> WireError {
        let certificate = match self {
            ConnectError::Tls(error) => error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()),
            _ => None,
        };
        let error = match certificate {
            Some(rustls::Error::InvalidCertificate(cause)) => WireError::new(
                ErrorCode::Unauthenticated,
                format!("{server} cannot prove who it is: its certificate is refused ({cause})"),
            )
            .with_hint("give the certificate of the cluster's CA, and the host name that the server's certificate has"),
            _ => WireError::new(ErrorCode::Unavailable, format!("cannot connect to {server}: {self}"))
                .with_hint("check the address, and whether that server runs"),
        };
        error.with_field("server", server)
    }
}

/// TLS 1.3 and nothing else, session resumption on; shared by all connections so that they resume each other's sessions.
pub(crate) fn client_config(options: &ClientOptions) -> Result<Arc<ClientConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| Error::new(ErrorCode::Internal, format!("TLS 1.3 cannot be set up: {error}")))?
        .with_root_certificates(roots(&options.tls_roots)?);
    let mut config = match &options.client_identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let chain = certificates(&identity.certificate_pem, "the client certificate")?;
            let key = PrivateKeyDer::from_pem_slice(identity.key_pem.expose().as_bytes())
                .map_err(|error| bad(format!("the client key cannot be read as PEM: {error}")))?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| bad(format!("the client certificate and key do not fit: {error}")))?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

fn bad(message: String) -> Error {
    Error::new(ErrorCode::InvalidArgument, message)
}

fn certificates(pem: &[u8], what: &str) -> Result<Vec<CertificateDer<'static>>> {
    let chain: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match chain {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        Ok(_) => Err(bad(format!("{what} holds no PEM certificate"))),
        Err(error) => Err(bad(format!("{what} cannot be read as PEM: {error}"))),
    }
}

fn roots(roots: &TlsRoots) -> Result<RootCertStore> {
    let mut store = RootCertStore::empty();
    match roots {
        TlsRoots::System => {
            let found = rustls_native_certs::load_native_certs();
            store.add_parsable_certificates(found.certs);
            if store.is_empty() {
                return Err(bad("this machine has no CA certificates: give the cluster's CA".to_owned()));
            }
        }
        TlsRoots::Pem(pem) => {
            for certificate in certificates(pem, "the CA certificate")? {
                store.add(certificate).map_err(|error| bad(format!("the CA certificate is refused: {error}")))?;
            }
        }
        TlsRoots::File(path) => {
            let pem = std::fs::read(path)
                .map_err(|error| bad(format!("cannot read the CA certificate {}: {error}", path.display())))?;
            for certificate in certificates(&pem, &path.display().to_string())? {
                store.add(certificate).map_err(|error| bad(format!("{} is refused: {error}", path.display())))?;
            }
        }
    }
    Ok(store)
}

/// Makes one connection; tonic calls it whenever a channel needs a new one.
#[derive(Clone)]
pub(crate) struct Connector {
    pub tls: Arc<ClientConfig>,
    pub timeout: Duration,
}

impl Connector {
    async fn connect(self, uri: Uri) -> Result<TlsStream<TcpStream>, ConnectError> {
        let (Some(host), Some("https")) = (uri.host(), uri.scheme_str()) else {
            return Err(ConnectError::Address(uri));
        };
        // URIs write IPv6 addresses in brackets, sockets and certificates do not.
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let Ok(name) = ServerName::try_from(host.clone()) else {
            return Err(ConnectError::Address(uri));
        };
        let port = uri.port_u16().unwrap_or(443);
        let stream = TcpStream::connect((host.as_str(), port)).await.map_err(ConnectError::Tcp)?;
        stream.set_nodelay(true).map_err(ConnectError::Tcp)?;
        TlsConnector::from(self.tls).connect(name, stream).await.map_err(ConnectError::Tls)
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move {
            let timeout = connector.timeout;
            match tokio::time::timeout(timeout, connector.connect(uri)).await {
                Ok(stream) => stream.map(TokioIo::new),
                Err(_) => Err(ConnectError::Timeout(timeout)),
            }
        })
    }
}
