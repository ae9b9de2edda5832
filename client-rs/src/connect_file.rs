//! The connection file, `client.toml`: what `drsdb local` writes so that a client beside it needs no flags.

use std::path::{Path, PathBuf};

use drsdb_proto::ErrorCode;
use serde::Deserialize;
use url::Url;

use crate::{ClientIdentity, ClientOptions, Error, Result, Secret, TlsRoots, options::check_server};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ConnectFile {
    index_servers: Vec<String>,
    ca: Option<PathBuf>,
    user: Option<String>,
    password: Option<String>,
    password_file: Option<PathBuf>,
    client_certificate: Option<PathBuf>,
    client_key: Option<PathBuf>,
}

impl ClientOptions {
    /// Reads a connection file. Paths in it are relative to the file's folder.
    ///
    /// ```toml
    /// index_servers = ["https://127.0.0.1:7432"]
    /// ca = "ca.pem"                    # without it: the CAs that this machine trusts
    /// user = "admin"
    /// password_file = "admin.password" # or password = "..."
    /// # client_certificate = "client.pem"
    /// # client_key = "client.key"
    /// ```
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bad = |message: String| Error::new(ErrorCode::InvalidArgument, format!("{}: {message}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|error| bad(format!("cannot be read: {error}")))?;
        let file: ConnectFile = toml::from_str(&text).map_err(|error| bad(error.to_string()))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let read = |name: &Path| {
            let path = folder.join(name);
            std::fs::read_to_string(&path).map_err(|error| bad(format!("cannot read {}: {error}", path.display())))
        };

        let mut servers = Vec::with_capacity(file.index_servers.len());
        for server in &file.index_servers {
            let url = Url::parse(server).map_err(|error| bad(format!("{server:?} is not a URL: {error}")))?;
            check_server(&url)?;
            servers.push(url);
        }
        let mut options = ClientOptions::new(servers);
        if let Some(ca) = &file.ca {
            options.tls_roots = TlsRoots::File(folder.join(ca));
        }
        options.user = file.user;
        options.password = match (file.password, &file.password_file) {
            (Some(_), Some(_)) => return Err(bad("has both password and password_file: keep one".to_owned())),
            (Some(password), None) => Some(Secret::from(password)),
            (None, Some(name)) => Some(Secret::from(read(name)?.trim_end_matches(['\r', '\n']))),
            (None, None) => None,
        };
        options.client_identity = match (&file.client_certificate, &file.client_key) {
            (Some(certificate), Some(key)) => Some(ClientIdentity {
                certificate_pem: read(certificate)?.into_bytes(),
                key_pem: Secret::from(read(key)?),
            }),
            (None, None) => None,
            _ => return Err(bad("client_certificate and client_key belong together".to_owned())),
        };
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<ClientOptions> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("client.toml"), text).unwrap();
        std::fs::write(folder.path().join("admin.password"), "s3cret\n").unwrap();
        let mut options = ClientOptions::from_file(folder.path().join("client.toml"))?;
        if let TlsRoots::File(path) = &mut options.tls_roots {
            *path = path.strip_prefix(folder.path()).unwrap().to_owned();
        }
        Ok(options)
    }

    #[test]
    fn paths_are_relative_to_the_file() {
        let options = load(
            "index_servers = ['https://127.0.0.1:5433']\nca = 'ca.pem'\nuser = 'admin'\npassword_file = 'admin.password'",
        )
        .unwrap();
        assert_eq!(options.tls_roots, TlsRoots::File("ca.pem".into()));
        assert_eq!(options.password.unwrap().expose(), "s3cret");
        assert_eq!(options.index_servers[0].as_str(), "https://127.0.0.1:5433/");
    }

    #[test]
    fn mistakes_name_the_file_and_the_key() {
        let error = load("index_server = ['https://127.0.0.1:1']").unwrap_err();
        assert!(error.message().contains("client.toml") && error.message().contains("index_server"), "{error}");
        let error = load("index_servers = ['http://127.0.0.1:1']").unwrap_err();
        assert!(error.message().contains("plaintext"), "{error}");
        let error = load("index_servers = []\npassword = 'a'\npassword_file = 'admin.password'").unwrap_err();
        assert!(error.message().contains("keep one"), "{error}");
    }

    #[test]
    fn a_password_never_shows() {
        let options = load("index_servers = ['https://h:1']\nuser = 'u'\npassword = 'hunter2'").unwrap();
        assert!(!format!("{options:?}").contains("hunter2"));
    }
}
