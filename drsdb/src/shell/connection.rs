//! Where to connect: flags, then environment, then the connection file that `drsdb local` writes.

use std::path::{Path, PathBuf};

use drsdb_client::{ClientIdentity, ClientOptions, Error, ErrorCode, Secret, TlsRoots, WireError};

/// Where `drsdb local` writes how to connect to it.
const DEFAULT_FILE: &str = "drsdb-data/client.toml";

/// How to connect.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Connection")]
pub struct ConnectArgs {
    /// An index server, https://host:port; can be given several times.
    #[arg(long = "index", value_name = "URL", env = "DRSDB_INDEX", value_delimiter = ',')]
    pub index: Vec<String>,
    /// Who logs in.
    #[arg(long, env = "DRSDB_USER")]
    pub user: Option<String>,
    /// The password. Other users of this machine can see it; DRSDB_PASSWORD and --password-file are safer.
    #[arg(long, env = "DRSDB_PASSWORD", hide_env_values = true)]
    pub password: Option<String>,
    /// A file whose first line is the password.
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
    /// The certificate of the CA that signed the servers' certificates, in PEM; without it, the machine's CAs.
    #[arg(long, value_name = "FILE", env = "DRSDB_CA")]
    pub ca: Option<PathBuf>,
    /// A client certificate in PEM, to log in without a password.
    #[arg(long, value_name = "FILE", requires = "client_key")]
    pub client_certificate: Option<PathBuf>,
    /// The client certificate's key, in PEM.
    #[arg(long, value_name = "FILE", requires = "client_certificate")]
    pub client_key: Option<PathBuf>,
    /// A file with all of this; without it and without --index, ./drsdb-data/client.toml.
    #[arg(long = "config", value_name = "FILE", env = "DRSDB_CLIENT_CONFIG")]
    pub connect_file: Option<PathBuf>,
}

impl ConnectArgs {
    /// The options: what the flags say, over what the file says.
    pub fn options(&self) -> Result<ClientOptions, Error> {
        let mut options = match (&self.connect_file, self.index.is_empty()) {
            (Some(file), _) => ClientOptions::from_file(file)?,
            (None, false) => ClientOptions::new([]),
            (None, true) if Path::new(DEFAULT_FILE).exists() => ClientOptions::from_file(DEFAULT_FILE)?,
            (None, true) => {
                return Err(WireError::new(ErrorCode::InvalidArgument, "which cluster? None is named")
                    .with_hint(format!("start one with `drsdb local` (it writes {DEFAULT_FILE}), or give --index"))
                    .into());
            }
        };
        if !self.index.is_empty() {
            let parse = |text: &String| {
                url::Url::parse(text)
                    .map_err(|error| bad(format!("--index {text} is not a URL ({error}): write https://host:port")))
            };
            options.index_servers = self.index.iter().map(parse).collect::<Result<_, _>>()?;
        }
        if let Some(ca) = &self.ca {
            options.tls_roots = TlsRoots::File(ca.clone());
        }
        if let Some(user) = &self.user {
            // Another user's password, from the file, would be of no use.
            if options.user.as_ref() != Some(user) {
                options.password = None;
            }
            options.user = Some(user.clone());
        }
        if let Some(password) = &self.password {
            options.password = Some(Secret::from(password.as_str()));
        }
        if let Some(file) = &self.password_file {
            options.password = Some(Secret::from(read(file)?.lines().next().unwrap_or_default()));
        }
        if let (Some(certificate), Some(key)) = (&self.client_certificate, &self.client_key) {
            options.client_identity = Some(ClientIdentity {
                certificate_pem: read(certificate)?.into_bytes(),
                key_pem: Secret::from(read(key)?),
            });
        }
        if options.user.is_some() && options.password.is_none() {
            let user = options.user.unwrap_or_default();
            return Err(WireError::new(ErrorCode::InvalidArgument, format!("what is the password of {user}?"))
                .with_hint("set DRSDB_PASSWORD, or give --password-file")
                .into());
        }
        Ok(options)
    }
}

fn bad(message: String) -> Error {
    Error::new(ErrorCode::InvalidArgument, message)
}

fn read(file: &Path) -> Result<String, Error> {
    std::fs::read_to_string(file).map_err(|error| bad(format!("cannot read {}: {error}", file.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_file() -> (tempfile::TempDir, ConnectArgs) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("client.toml");
        std::fs::write(&file, "index_servers = ['https://a:1']\nca = 'ca.pem'\nuser = 'admin'\npassword = 'p'")
            .unwrap();
        (folder, ConnectArgs { connect_file: Some(file), ..Default::default() })
    }

    #[test]
    fn flags_come_before_the_file() {
        let (folder, args) = with_file();
        let options = args.options().unwrap();
        assert_eq!(options.password.as_ref().map(Secret::expose), Some("p"));
        assert_eq!(options.tls_roots, TlsRoots::File(folder.path().join("ca.pem")));

        let args = ConnectArgs { index: vec!["https://b:2".into(), "https://c:3".into()], ..args };
        let options = args.options().unwrap();
        assert_eq!(
            options.index_servers.iter().map(|url| url.as_str()).collect::<Vec<_>>(),
            ["https://b:2/", "https://c:3/"]
        );
        assert_eq!(options.user.as_deref(), Some("admin"));
    }

    #[test]
    fn another_user_needs_another_password() {
        let (folder, args) = with_file();
        let args = ConnectArgs { user: Some("ada".into()), ..args };
        assert!(args.options().unwrap_err().message().contains("ada"));
        let password = folder.path().join("password");
        std::fs::write(&password, "secret\n").unwrap();
        let options = ConnectArgs { password_file: Some(password), ..args }.options().unwrap();
        assert_eq!(options.password.as_ref().map(Secret::expose), Some("secret"));
    }

    #[test]
    fn a_wrong_address_says_how_to_write_one() {
        let error =
            ConnectArgs { index: vec!["localhost:1".into(), "nonsense".into()], ..Default::default() }.options();
        assert!(error.unwrap_err().message().contains("https://host:port"));
    }
}
