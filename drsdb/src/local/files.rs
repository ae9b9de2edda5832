//! The files of a local cluster: certificates, configurations, the login.

use std::{
    fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
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

    /// Writes the index server's configuration.
    pub fn write_index(&self, options: &LocalOptions) -> Result<PathBuf> {
        let mut settings = self.common(Role::Index, 1, options.port)?;
        let mut bootstrap = toml::Table::new();
        bootstrap.insert("admin_user".into(), ADMIN.into());
        bootstrap.insert("admin_password".into(), self.password.clone().into());
        settings.insert("bootstrap".into(), bootstrap.into());
        settings.extend(options.index_settings.clone());
        self.write_settings(Role::Index, 1, &settings)
    }

    /// Writes a storage server's configuration. All share this machine's memory.
    pub fn write_storage(&self, number: usize, index: &Url, options: &LocalOptions) -> Result<PathBuf> {
        let mut settings = self.common(Role::Storage, number, 0)?;
        settings.insert("index_servers".into(), toml::Value::Array(vec![index.to_string().into()]));
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
    pub fn write_client(&self, index: &Url) -> Result<()> {
        let root = self.root.canonicalize()?;
        let file = ClientFile {
            index_servers: vec![index.as_str()],
            ca: root.join(self.ca.certificate_file()),
            user: ADMIN,
            password_file: root.join("admin.password"),
        };
        write_atomically(&self.client_file(), toml::to_string(&file)?.as_bytes())
    }
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
