//! TLS 1.3, and nothing else: the rustls configurations of every listener and every connection.
//!
//! - Cryptography is ring's, named here; no process-wide default is set or used.
//! - A server shows its certificate as a server and as a client of other servers. It asks clients for one, verifies
//!   what it gets, and accepts that a client has none: users have tokens ([`super::auth_layer`] decides).
//! - Early data is refused, because nothing says yet which requests are safe to replay.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use drsdb_proto::{ErrorCode, WireError};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject},
    server::WebPkiClientVerifier,
};
use serde::{Deserialize, Serialize};

use super::Role;
use crate::{Error, Result};

/// What speaks inside TLS: HTTP/2.
const ALPN: &[u8] = b"h2";

/// Where a server's TLS material is. All three files are PEM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// Certificates of the authorities that sign the servers' certificates of this cluster, and no others.
    pub ca: PathBuf,
    /// The server's certificate, followed by intermediate ones if there are any.
    pub certificate: PathBuf,
    /// The certificate's private key.
    pub key: PathBuf,
}

/// A server's TLS material, loaded and checked. Cheap to clone.
#[derive(Clone)]
pub struct TlsIdentity {
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: Arc<PrivateKeyDer<'static>>,
    role: Option<Role>,
}

impl TlsIdentity {
    /// Loads `files`. Errors: `invalid_argument`, naming the file and what is wrong with it.
    pub fn load(files: &TlsFiles) -> Result<TlsIdentity> {
        let roots = Arc::new(trust_roots(&files.ca)?);
        let chain = read_certificates(&files.certificate)?;
        let key = PrivateKeyDer::from_pem_file(&files.key)
            .map_err(|error| broken(&files.key, pem_problem(error, "private key")))?;
        warn_if_readable_by_others(&files.key);
        let role = Role::of_certificate(&chain[0]);
        let identity = TlsIdentity { roots, chain, key: Arc::new(key), role };
        // Only rustls knows whether certificate and key belong together: ask now, and not at the first connection.
        identity.server_config().map_err(|error| {
            let why = format!("certificate and key do not work together: {error}");
            broken(&files.certificate, why).with_field("key", files.key.display())
        })?;
        Ok(identity)
    }

    fn server_config(&self) -> Result<ServerConfig, rustls::Error> {
        let verifier = WebPkiClientVerifier::builder_with_provider(self.roots.clone(), provider())
            .allow_unauthenticated()
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain.clone(), self.key.clone_key())?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.max_early_data_size = 0;
        Ok(config)
    }

    /// What the certificate says this server is; `None` when it gives no role, or several.
    pub fn role(&self) -> Option<Role> {
        self.role
    }

    /// Checks that the certificate gives `role`: without it, the other servers of the cluster refuse this one.
    pub fn require_role(&self, role: Role) -> Result<()> {
        if self.role == Some(role) {
            return Ok(());
        }
        let has = self.role.map_or("has none".to_owned(), |other| format!("is one of an {other} server"));
        let message = format!("an {role} server needs a certificate that says so, and this one {has}");
        let hint = format!("have it signed with the alternative name {}, and no other server's", role.dns_name());
        Err(WireError::new(ErrorCode::InvalidArgument, message).with_hint(hint).into())
    }
}

impl fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsIdentity").field("role", &self.role).finish_non_exhaustive()
    }
}

/// How a server answers connections.
pub fn server_config(identity: &TlsIdentity) -> Result<Arc<ServerConfig>> {
    identity.server_config().map(Arc::new).map_err(tls_defect)
}

/// How a server connects to other servers: with its certificate.
pub fn client_config(identity: &TlsIdentity) -> Result<Arc<ClientConfig>> {
    client_builder(identity.roots.clone())
        .and_then(|builder| builder.with_client_auth_cert(identity.chain.clone(), identity.key.clone_key()))
        .map(with_alpn)
        .map_err(tls_defect)
}

/// How a client without a certificate connects: it trusts servers whose certificate `roots` signed.
pub fn user_client_config(roots: RootCertStore) -> Result<Arc<ClientConfig>> {
    client_builder(Arc::new(roots)).map(|builder| with_alpn(builder.with_no_client_auth())).map_err(tls_defect)
}

fn with_alpn(mut config: ClientConfig) -> Arc<ClientConfig> {
    config.alpn_protocols = vec![ALPN.to_vec()];
    Arc::new(config)
}

/// The authorities in the PEM file `ca`, for servers and for clients.
pub fn trust_roots(ca: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(ca)? {
        roots.add(certificate).map_err(|error| broken(ca, format!("not a usable authority: {error}")))?;
    }
    Ok(roots)
}

fn client_builder(
    roots: Arc<RootCertStore>,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&rustls::version::TLS13])?;
    Ok(builder.with_root_certificates(roots))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// At least one certificate, or an error.
fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, WireError> {
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(|certificates| certificates.collect::<Result<Vec<_>, _>>())
        .map_err(|error| broken(path, pem_problem(error, "certificate")))?;
    if certificates.is_empty() {
        return Err(broken(path, pem_problem(pem::Error::NoItemsFound, "certificate")));
    }
    Ok(certificates)
}

fn pem_problem(error: pem::Error, wanted: &str) -> String {
    match error {
        pem::Error::NoItemsFound => format!("it has no PEM block with a {wanted}"),
        pem::Error::Io(error) => error.to_string(),
        other => format!("it is broken PEM: {other}"),
    }
}

fn broken(path: &Path, why: String) -> WireError {
    WireError::new(ErrorCode::InvalidArgument, format!("TLS cannot start with {}: {why}", path.display()))
        .with_hint("set tls.ca, tls.certificate and tls.key to the PEM files of this cluster")
        .with_field("file", path.display())
}

fn tls_defect(error: rustls::Error) -> Error {
    Error::internal(format!("TLS 1.3 by ring could not be set up: {error}"))
}

#[cfg(unix)]
fn warn_if_readable_by_others(key: &Path) {
    use std::os::unix::fs::PermissionsExt;
    // A warning and not a refusal: mounted secrets often have wide permissions inside a narrow mount.
    if std::fs::metadata(key).is_ok_and(|metadata| metadata.permissions().mode() & 0o077 != 0) {
        tracing::warn!(file = %key.display(), "others can read this private key: set its permissions to 0600");
    }
}

#[cfg(not(unix))]
fn warn_if_readable_by_others(_key: &Path) {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::security::dev_ca::DevCa;

    fn load_error(files: &TlsFiles) -> WireError {
        let error = TlsIdentity::load(files).unwrap_err().to_wire();
        assert_eq!(error.code, ErrorCode::InvalidArgument);
        error
    }

    #[test]
    fn a_broken_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let ca = DevCa::open_or_create(&dir.path().join("ca")).unwrap();
        let good = ca.issue(&dir.path().join("a"), Role::Index, &[]).unwrap();
        let other = ca.issue(&dir.path().join("b"), Role::Storage, &[]).unwrap();
        TlsIdentity::load(&good).unwrap();

        let missing = dir.path().join("missing.pem");
        let error = load_error(&TlsFiles { ca: missing.clone(), ..good.clone() });
        assert_eq!(error.fields["file"], missing.display().to_string());

        let garbage = dir.path().join("garbage.pem");
        std::fs::write(&garbage, "hello").unwrap();
        let error = load_error(&TlsFiles { certificate: garbage.clone(), ..good.clone() });
        assert!(error.message.contains("no PEM block with a certificate"), "{error}");
        let error = load_error(&TlsFiles { key: good.certificate.clone(), ..good.clone() });
        assert!(error.message.contains("no PEM block with a private key"), "{error}");

        let error = load_error(&TlsFiles { key: other.key, ..good });
        assert!(error.message.contains("do not work together"), "{error}");
    }

    #[test]
    fn a_certificate_is_for_one_role() {
        let dir = tempfile::tempdir().unwrap();
        let ca = DevCa::open_or_create(dir.path()).unwrap();
        let files = ca.issue(&dir.path().join("s"), Role::Storage, &["storage.example"]).unwrap();
        let identity = TlsIdentity::load(&files).unwrap();
        assert_eq!(identity.role(), Some(Role::Storage));
        identity.require_role(Role::Storage).unwrap();
        let error = identity.require_role(Role::Index).unwrap_err();
        assert!(error.to_string().contains("index.drsdb.internal"), "{error}");
    }

    #[test]
    fn only_tls_1_3_is_spoken_and_nothing_early() {
        let dir = tempfile::tempdir().unwrap();
        let ca = DevCa::open_or_create(dir.path()).unwrap();
        let identity = TlsIdentity::load(&ca.issue(dir.path(), Role::Index, &[]).unwrap()).unwrap();
        let server = server_config(&identity).unwrap();
        assert_eq!(server.max_early_data_size, 0);
        assert_eq!(server.alpn_protocols, [ALPN]);
        assert!(!client_config(&identity).unwrap().enable_early_data);
    }
}
