//! What a client needs to know: where the index servers are, whom to trust, who logs in, how much to buffer.

use std::{fmt, path::PathBuf, time::Duration};

use drsdb_proto::{
    ErrorCode,
    limits::{MAX_NAME_BYTES, MAX_PASSWORD_BYTES},
};
use url::Url;

use crate::{Error, Result};

/// Text that never shows in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl<T: Into<String>> From<T> for Secret {
    fn from(text: T) -> Self {
        Secret(text.into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Whose signature on a server's certificate is accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TlsRoots {
    /// The CAs that this machine trusts.
    System,
    /// These certificates, in PEM.
    Pem(Vec<u8>),
    /// The certificates of this PEM file.
    File(PathBuf),
}

/// A client certificate, for a login without password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientIdentity {
    /// The chain in PEM, the client's own certificate first.
    pub certificate_pem: Vec<u8>,
    /// The private key in PEM.
    pub key_pem: Secret,
}

/// How to connect.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// Index servers, `https://host:port`; the first that answers is used. More are learnt from it.
    pub index_servers: Vec<Url>,
    /// Whom to trust.
    pub tls_roots: TlsRoots,
    /// The user who logs in by password, at most 255 bytes; none: the client certificate alone says who it is.
    pub user: Option<String>,
    /// That user's password, at most 1,024 bytes.
    pub password: Option<Secret>,
    /// A certificate that the client shows to servers.
    pub client_identity: Option<ClientIdentity>,
    /// The longest wait for a TCP connection and its TLS handshake.
    pub connect_timeout: Duration,
    /// How long a connection in use may be silent before it is probed, and how long the probe may then take.
    pub keepalive: Duration,
    /// How many bytes of one result may wait in the client for the consumer. One batch of each endpoint and the
    /// connections' receive windows come on top.
    pub buffer_bytes: usize,
    /// How many endpoints of one result are pulled at once.
    pub parallel_endpoints: usize,
    /// HTTP/2 receive window of a stream and of a connection: what a server may send before the client reads.
    pub window_bytes: u32,
}

impl ClientOptions {
    /// Options with the defaults: the machine's CAs, no login.
    pub fn new(index_servers: impl IntoIterator<Item = Url>) -> Self {
        Self {
            index_servers: index_servers.into_iter().collect(),
            tls_roots: TlsRoots::System,
            user: None,
            password: None,
            client_identity: None,
            connect_timeout: Duration::from_secs(3),
            keepalive: Duration::from_secs(2),
            buffer_bytes: 64 << 20,
            parallel_endpoints: 16,
            window_bytes: 8 << 20,
        }
    }

    /// The same with a login.
    pub fn with_login(mut self, user: impl Into<String>, password: impl Into<Secret>) -> Self {
        self.user = Some(user.into());
        self.password = Some(password.into());
        self
    }

    /// The same, trusting `roots`.
    pub fn with_tls_roots(mut self, roots: TlsRoots) -> Self {
        self.tls_roots = roots;
        self
    }

    /// Refuses what can never work.
    pub(crate) fn validate(&self) -> Result<()> {
        let bad = |message: &str| Err(Error::new(ErrorCode::InvalidArgument, message));
        if self.index_servers.is_empty() {
            return bad("no index server is named: give at least one, as https://host:port");
        }
        for server in &self.index_servers {
            check_server(server)?;
        }
        if self.user.is_some() && self.password.is_none() {
            return bad("a user without a password is named: give the password too");
        }
        if self.user.as_ref().is_some_and(|user| user.contains(':')) {
            return bad("a user name cannot contain a colon");
        }
        // Nobody has a longer one, and a server may be unable to read so much, and so to say it.
        if let Some(user) = self.user.as_ref().filter(|user| user.len() > MAX_NAME_BYTES) {
            return bad(&format!("a user name has at most {MAX_NAME_BYTES} bytes, and this one {}", user.len()));
        }
        if let Some(password) = self.password.as_ref().filter(|password| password.expose().len() > MAX_PASSWORD_BYTES) {
            let bytes = password.expose().len();
            return bad(&format!("a password has at most {MAX_PASSWORD_BYTES} bytes, and this one {bytes}"));
        }
        if self.buffer_bytes == 0 || self.parallel_endpoints == 0 || self.window_bytes == 0 {
            return bad("buffer_bytes, parallel_endpoints and window_bytes must be at least 1");
        }
        Ok(())
    }
}

/// A server is https and has a host; drsdb has no plaintext mode.
pub(crate) fn check_server(server: &Url) -> Result<()> {
    if server.scheme() != "https" || server.host().is_none() {
        return Err(Error::new(
            ErrorCode::InvalidArgument,
            format!("{server} is not a server of drsdb: write it as https://host:port (there is no plaintext mode)"),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_that_nobody_can_have_is_refused() {
        let options = ClientOptions::new([Url::parse("https://a:1").unwrap()]);
        let refused = |user: String, password: String| options.clone().with_login(user, password).validate();
        assert_eq!(refused("u".repeat(255), "p".repeat(1024)), Ok(()));
        let too_long = refused("u".repeat(256), "p".to_owned()).unwrap_err();
        assert_eq!((too_long.code(), too_long.message().contains("255")), (ErrorCode::InvalidArgument, true));
        let too_long = refused("u".to_owned(), "secret".repeat(200)).unwrap_err();
        assert_eq!((too_long.code(), too_long.message().contains("1024")), (ErrorCode::InvalidArgument, true));
        assert!(!too_long.to_string().contains("secret"));
    }
}
