//! The files of a local cluster: certificates, configurations, the login.

use std::{
    fs,
    io::Write,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use drsdb_core::security::{Role, TlsFiles, dev_ca::DevCa};
use rand::{Rng, distr::Alphanumeric};
use serde::Serialize;
use url::Url;

use super::LocalOptions;

/// The first user.
pub const ADMIN: &str = "admin";

/// Share of the machine's memory for running queries and for cached columns, of all storage servers together: the rest
/// is for the operating system's own cache and everything else on the machine.
const QUERY_MEMORY_SHARE: f64 = 0.4;
const CACHE_SHARE: f64 = 0.2;

/// The folder of a local cluster.
#[derive(Debug)]
pub struct Layout {
    root: PathBuf,
    password: String,
    ca: DevCa,
}

#[derive(Serialize)]
struct ClientFile<'a> {
    index_servers: Vec<&'a str>,
    ca: PathBuf,
    user: &'a str,
    password_file: PathBuf,
}

impl Layout {
    /// Opens the folder, or makes it; also says whether it was made now.
    pub fn open(root: &Path) -> Result<(Self, bool)> {
        fs::create_dir_all(root).with_context(|| format!("cannot create {}", root.display()))?;
        let absolute = root.canonicalize().with_context(|| format!("cannot open {}", root.display()))?;
        let ca = DevCa::open_or_create(&absolute.join("ca"))?;
        let file = absolute.join("admin.password");
        let (password, first_start) = match fs::read_to_string(&file) {
            Ok(text) => (text.trim().to_owned(), false),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let password: String = rand::rng().sample_iter(&Alphanumeric).take(20).map(char::from).collect();
                write_secret(&file, format!("{password}\n").as_bytes())?;
                (password, true)
            }
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
        };
        Ok((Self { root: root.to_owned(), password, ca }, first_start))
    }

    /// The folder as it was named.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The administrator's password.
    pub fn password(&self) -> &str {
        &self.password
    }

    /// How clients connect.
    pub fn client_file(&self) -> PathBuf {
        self.root.join("client.toml")
    }

    /// The folder of one server; numbers count from 1.
    pub fn server_folder(&self, role: Role, number: usize) -> PathBuf {
        self.root.join(format!("{}-{number}", role.as_str()))
    }

    /// The configuration of one server.
    pub fn server_file(&self, role: Role, number: usize) -> PathBuf {
        self.server_folder(role, number).join(format!("{}.toml", role.as_str()))
    }

    /// How many index servers the folder has from before.
    pub fn index_servers(&self) -> usize {
        (1..).take_while(|number| self.server_file(Role::Index, *number).exists()).count()
    }

    /// Where the index servers are: where they were, and at free ports if they are new. The first takes `port`, unless that
    /// is 0. Each one's log has the others' addresses, so they stay the same.
    pub fn index_urls(&self, count: usize, port: u16) -> Result<Vec<Url>> {
        let mut taken = Vec::new();
        (1..=count)
            .map(|number| {
                let port = match (number, port) {
                    (1, 1..) => port,
                    _ => match self.port_before(Role::Index, number)? {
                        Some(port) => port,
                        None => free_port(&taken)?,
                    },
                };
                taken.push(port);
                Url::parse(&format!("https://127.0.0.1:{port}")).context("a port makes no URL")
            })
            .collect()
    }

    fn port_before(&self, role: Role, number: usize) -> Result<Option<u16>> {
        let file = self.server_file(role, number);
        let text = match fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
        };
        let settings: toml::Table = text.parse().with_context(|| format!("cannot read {}", file.display()))?;
        let address = settings.get("listen").and_then(toml::Value::as_str).and_then(|listen| listen.parse().ok());
        Ok(address.map(|address: SocketAddr| address.port()).filter(|port| *port != 0))
    }

    /// Writes the configuration of index server `number`. It makes a cluster of the servers at `urls`, or joins the one that
    /// is there already.
    pub fn write_index(&self, number: usize, urls: &[Url], join: bool, options: &LocalOptions) -> Result<PathBuf> {
        let mut settings = self.common(Role::Index, number, urls[number - 1].port().unwrap_or(0))?;
        settings.insert("node_id".into(), (number as i64).into());
        // A number of servers that no cluster begins with was reached while it ran: then each has the list in its log.
        let founds = matches!(urls.len(), 1 | 3 | 5);
        if join || (!founds && number > 1) {
            settings.insert("join".into(), true.into());
        } else if founds {
            let voters = urls.iter().enumerate().map(|(at, url)| ((at + 1).to_string(), url.to_string().into()));
            settings.insert("voters".into(), toml::Table::from_iter(voters).into());
        }
        if number == 1 {
            let mut bootstrap = toml::Table::new();
            bootstrap.insert("admin_user".into(), ADMIN.into());
            bootstrap.insert("admin_password".into(), self.password.clone().into());
            settings.insert("bootstrap".into(), bootstrap.into());
        }
        settings.extend(options.index_settings.clone());
        self.write_settings(Role::Index, number, &settings)
    }

    /// Writes a storage server's configuration. All share this machine's memory.
    pub fn write_storage(&self, number: usize, index: &[Url], options: &LocalOptions) -> Result<PathBuf> {
        // Where it was, so that it need not be looked for after a restart.
        let port = match self.port_before(Role::Storage, number)? {
            Some(port) => port,
            None => free_port(&[])?,
        };
        let mut settings = self.common(Role::Storage, number, port)?;
        let index: Vec<toml::Value> = index.iter().map(|url| url.to_string().into()).collect();
        settings.insert("index_servers".into(), index.into());
        let memory = drsdb_core::config::machine_memory_bytes() as f64 / options.storage as f64;
        let query_memory = ((memory * QUERY_MEMORY_SHARE) as usize).max(drsdb_core::config::MIN_QUERY_MEMORY_BYTES);
        settings.insert("query_memory_bytes".into(), (query_memory as i64).into());
        settings.insert("column_cache_bytes".into(), ((memory * CACHE_SHARE) as i64).into());
        settings.extend(options.storage_settings.clone());
        self.write_settings(Role::Storage, number, &settings)
    }

    fn common(&self, role: Role, number: usize, port: u16) -> Result<toml::Table> {
        let folder = self.server_folder(role, number);
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let folder = folder.canonicalize()?;
        let tls: TlsFiles = self.ca.issue(&folder, role, &[])?;
        let mut settings = toml::Table::new();
        settings.insert("data_dir".into(), text(&folder.join("data"))?);
        settings.insert("listen".into(), format!("127.0.0.1:{port}").into());
        settings.insert("public_url".into(), format!("https://127.0.0.1:{port}").into());
        settings.insert("tls".into(), toml::Value::try_from(tls)?);
        Ok(settings)
    }

    fn write_settings(&self, role: Role, number: usize, settings: &toml::Table) -> Result<PathBuf> {
        let file = self.server_file(role, number);
        // The index server's file has the first password.
        write_secret(&file, toml::to_string(settings)?.as_bytes())?;
        Ok(file)
    }

    /// Writes how to connect.
    pub fn write_client(&self, index: &[Url]) -> Result<()> {
        let root = self.root.canonicalize()?;
        let file = ClientFile {
            index_servers: index.iter().map(Url::as_str).collect(),
            ca: root.join(self.ca.certificate_file()),
            user: ADMIN,
            password_file: root.join("admin.password"),
        };
        write_atomically(&self.client_file(), toml::to_string(&file)?.as_bytes())
    }
}

/// A port that nobody listens on. Not from the system's range of ephemeral ports, from which a connection could take it
/// before the server does.
fn free_port(taken: &[u16]) -> Result<u16> {
    for _ in 0..1000 {
        let port = rand::rng().random_range(20_000..32_000);
        if !taken.contains(&port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port between 20000 and 32000")
}

fn text(path: &Path) -> Result<toml::Value> {
    let text = path.to_str().with_context(|| format!("{} is not UTF-8: choose another folder", path.display()))?;
    Ok(text.into())
}

/// Writes a file that only its owner reads.
fn write_secret(path: &Path, bytes: &[u8]) -> Result<()> {
    let context = || format!("cannot write {}", path.display());
    let temporary = path.with_extension("new");
    let _ = fs::remove_file(&temporary);
    let mut file =
        fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary).with_context(context)?;
    file.write_all(bytes).with_context(context)?;
    fs::rename(&temporary, path).with_context(context)
}

/// Writes a file so that a reader sees all of it or nothing.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let context = || format!("cannot write {}", path.display());
    let temporary = path.with_extension("new");
    fs::write(&temporary, bytes).with_context(context)?;
    fs::rename(&temporary, path).with_context(context)
}
