//! How a server is set up. Each source overrides the ones before it:
//!
//! 1. the defaults below,
//! 2. a TOML file,
//! 3. environment variables: `DRSDB_DATA_DIR`, `DRSDB_TLS__CA`, ... (two underscores go one level down),
//! 4. flags.
//!
//! An unknown key or a bad combination is refused at start, with what to change. Not here: settings of a session (SQL's
//! SET), nor the command line's own syntax.

mod environment;
mod values;

use std::{
    collections::BTreeMap,
    fmt,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use drsdb_proto::{ErrorCode, WireError};
use figment::{
    Figment,
    error::Kind,
    providers::{Format, Serialized, Toml},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use url::Url;

use self::environment::Environment;
pub use self::values::machine_memory_bytes;
use crate::{Error, Result, nearest_name, security::TlsFiles, shard};

/// The port of an index server, unless said otherwise.
pub const DEFAULT_INDEX_PORT: u16 = 7432;
/// The port of a storage server, unless said otherwise.
pub const DEFAULT_STORAGE_PORT: u16 = 7433;

/// The least memory for queries: below it, a few sorts at once find no room to spill from.
pub const MIN_QUERY_MEMORY_BYTES: usize = 64 << 20;

/// The fewest entries between snapshots of the catalog.
const MIN_SNAPSHOT_ENTRIES: u64 = 10;

/// What an index server is told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IndexConfig {
    /// Where its files are.
    pub data_dir: PathBuf,
    /// Where it listens.
    pub listen: SocketAddr,
    /// How others reach it: `https://host:port`.
    #[serde(with = "values::url")]
    pub public_url: Url,
    /// Its certificate.
    pub tls: TlsFiles,
    /// Which of the index servers it is. A data folder keeps its number for ever, and a number is never given twice.
    pub node_id: u64,
    /// All index servers of a new cluster with their URLs, this one among them: 1, 3 or 5. Empty: this one alone. A
    /// cluster that exists ignores it and keeps its own list, which ALTER CLUSTER changes.
    #[serde(default, with = "values::voters", skip_serializing_if = "BTreeMap::is_empty")]
    pub voters: BTreeMap<u64, Url>,
    /// Whether it waits, empty, to be added to a cluster that exists.
    #[serde(default)]
    pub join: bool,
    /// What a new cluster starts with; a cluster that exists ignores it. One of the new cluster's index servers has it,
    /// and that one makes the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bootstrap: Option<Bootstrap>,
    /// Shards of a table that does not say how many.
    pub default_shards: u32,
    /// Seconds for which the endpoints of a result can be pulled.
    pub ticket_lifetime_s: u64,
    /// Seconds for which a login lasts.
    pub token_lifetime_s: u64,
    /// Partitions for which queries are planned; by default as many as the storage servers have cores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_partitions: Option<usize>,
    /// Seconds after which the replicas of a storage server that does not answer are taken from among the current ones.
    pub demote_after_s: u64,
    /// Seconds after which the shards of a storage server that does not answer are copied to others.
    pub replace_after_s: u64,
    /// Shards that are copied from server to server at a time.
    pub shard_copies: usize,
    /// Entries of the log after which the catalog is written down whole, and the log before forgotten.
    pub snapshot_entries: u64,
}

/// The first user of a new cluster.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bootstrap {
    /// The user's name.
    pub admin_user: String,
    /// The user's password.
    pub admin_password: String,
}

impl fmt::Debug for Bootstrap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bootstrap").field("admin_user", &self.admin_user).finish_non_exhaustive()
    }
}

/// What a storage server is told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StorageConfig {
    /// Where its files are.
    pub data_dir: PathBuf,
    /// Where it listens.
    pub listen: SocketAddr,
    /// How clients and other servers reach it: `https://host:port`.
    #[serde(with = "values::url")]
    pub public_url: Url,
    /// Its certificate.
    pub tls: TlsFiles,
    /// The cluster's index servers, as a list or separated by commas.
    #[serde(with = "values::urls")]
    pub index_servers: Vec<Url>,
    /// Memory that all queries together may hold; beyond it they spill to disk or are refused.
    pub query_memory_bytes: usize,
    /// Memory for decoded columns of hot segments.
    pub column_cache_bytes: usize,
    /// Threads that run queries; by default as many as there are cores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query_threads: Option<usize>,
    /// Seconds for which versions of rows stay readable that were changed or deleted. What open transactions and valid
    /// tickets read stays longer; queries that take longer than this and than tickets live may have to begin anew.
    pub retention_s: u64,
    /// Seconds after which a load whose rows have all come, but no outcome, is asked about and aborted if it has none.
    pub staged_lease_s: u64,
    /// Where the server is (`zone`, `rack`, ...): replicas of a shard are placed apart.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

impl IndexConfig {
    /// The defaults, and what has none.
    pub fn new(data_dir: PathBuf, listen: SocketAddr, public_url: Url, tls: TlsFiles) -> Self {
        Self {
            data_dir,
            listen,
            public_url,
            tls,
            node_id: 1,
            voters: BTreeMap::new(),
            join: false,
            bootstrap: None,
            default_shards: 12,
            ticket_lifetime_s: 300,
            token_lifetime_s: 24 * 3600,
            target_partitions: None,
            demote_after_s: 3,
            replace_after_s: 600,
            shard_copies: 4,
            snapshot_entries: 5_000,
        }
    }

    /// From all sources: defaults, `file`, the environment, `flags` (anything that serializes to a map; what is null in
    /// it was not given).
    pub fn load(file: Option<&Path>, flags: impl Serialize) -> Result<Self> {
        Self::from_sources(file, Environment::of_this_process()?, flags)
    }

    fn from_sources(file: Option<&Path>, environment: Environment, flags: impl Serialize) -> Result<Self> {
        let (data_dir, listen, url, tls) = placeholders();
        let defaults = defaults("drsdb-data/index", DEFAULT_INDEX_PORT, Self::new(data_dir, listen, url, tls));
        let environment = environment.only(environment::INDEX_SETTINGS);
        let config: Self = merge(defaults, file, environment, flags, derive_node_id)?;
        config.validate()?;
        Ok(config)
    }

    /// Checks what the types alone do not say.
    pub fn validate(&self) -> Result<()> {
        check_common(&self.data_dir, &self.public_url)?;
        if !(1..=shard::MAX_SHARDS).contains(&self.default_shards) {
            return refuse(
                "default_shards",
                format!("must be 1 to {}, not {}", shard::MAX_SHARDS, self.default_shards),
            );
        }
        if self.target_partitions == Some(0) {
            return refuse("target_partitions", "must be at least 1; leave it out to use all cores");
        }
        if self.shard_copies == 0 {
            return refuse("shard_copies", "must be at least 1: replicas would never be rebuilt");
        }
        if self.snapshot_entries < MIN_SNAPSHOT_ENTRIES {
            let (least, is) = (MIN_SNAPSHOT_ENTRIES, self.snapshot_entries);
            return refuse(
                "snapshot_entries",
                format!("must be at least {least}, not {is}: the catalog would be written again and again"),
            );
        }
        if self.replace_after_s < self.demote_after_s {
            return refuse("replace_after_s", "must not be less than demote_after_s");
        }
        const DAY_S: u64 = 24 * 3600;
        if !(1..=DAY_S).contains(&self.ticket_lifetime_s) {
            return refuse(
                "ticket_lifetime_s",
                format!("must be 1 to {DAY_S} seconds, not {}", self.ticket_lifetime_s),
            );
        }
        if !(1..=365 * DAY_S).contains(&self.token_lifetime_s) {
            let most = 365 * DAY_S;
            return refuse("token_lifetime_s", format!("must be 1 to {most} seconds, not {}", self.token_lifetime_s));
        }
        if self.token_lifetime_s < self.ticket_lifetime_s {
            return refuse(
                "token_lifetime_s",
                "must not be less than ticket_lifetime_s: a login has to outlive the results that it pulls",
            );
        }
        self.check_voters()?;
        if let Some(bootstrap) = &self.bootstrap {
            if bootstrap.admin_user.trim().is_empty() {
                return refuse("bootstrap.admin_user", "must not be empty");
            }
            let length = bootstrap.admin_password.chars().count();
            if length < 8 {
                return refuse("bootstrap.admin_password", format!("must have at least 8 characters, not {length}"));
            }
        }
        Ok(())
    }

    fn check_voters(&self) -> Result<()> {
        if self.join {
            let other = match (&self.bootstrap, self.voters.is_empty()) {
                (Some(_), _) => "bootstrap",
                (None, false) => "voters",
                (None, true) => return Ok(()),
            };
            return refuse(
                "join",
                format!("waits for a cluster that exists, and {other} makes a new one: remove one of the two"),
            );
        }
        if self.voters.is_empty() {
            return Ok(());
        }
        if !matches!(self.voters.len(), 1 | 3 | 5) {
            let is = self.voters.len();
            return refuse(
                "voters",
                format!(
                    "must name 1, 3 or 5 index servers, not {is}: one more than an odd number survives no more failures"
                ),
            );
        }
        for (id, url) in &self.voters {
            check_url("voters", url)?;
            if let Some((other, _)) = self.voters.iter().find(|(other, there)| *other != id && *there == url) {
                return refuse("voters", format!("has {url} twice, as {id} and as {other}"));
            }
        }
        match self.voters.get(&self.node_id) {
            Some(url) if *url == self.public_url => Ok(()),
            Some(url) => {
                let (id, own) = (self.node_id, &self.public_url);
                refuse("voters", format!("says that index server {id} is at {url}, and its public_url is {own}"))
            }
            None => refuse(
                "voters",
                format!(
                    "does not name this server, node_id {}: add it, or set join = true instead of voters",
                    self.node_id
                ),
            ),
        }
    }

    /// The index servers that a new cluster begins with.
    pub fn initial_voters(&self) -> BTreeMap<u64, Url> {
        if self.voters.is_empty() {
            return BTreeMap::from([(self.node_id, self.public_url.clone())]);
        }
        self.voters.clone()
    }

    /// For how long the endpoints of a result can be pulled.
    pub fn ticket_lifetime(&self) -> Duration {
        Duration::from_secs(self.ticket_lifetime_s)
    }

    /// How long a storage server may be silent before it is demoted.
    pub fn demote_after(&self) -> Duration {
        Duration::from_secs(self.demote_after_s)
    }

    /// How long a storage server may be silent before others take over its shards.
    pub fn replace_after(&self) -> Duration {
        Duration::from_secs(self.replace_after_s)
    }

    /// For how long a login lasts.
    pub fn token_lifetime(&self) -> Duration {
        Duration::from_secs(self.token_lifetime_s)
    }
}

impl StorageConfig {
    /// The defaults, and what has none.
    pub fn new(data_dir: PathBuf, listen: SocketAddr, public_url: Url, tls: TlsFiles, index_servers: Vec<Url>) -> Self {
        let memory = machine_memory_bytes();
        Self {
            data_dir,
            listen,
            public_url,
            tls,
            index_servers,
            query_memory_bytes: (memory / 5 * 2).max(MIN_QUERY_MEMORY_BYTES),
            column_cache_bytes: memory / 5,
            query_threads: None,
            retention_s: 300,
            staged_lease_s: 120,
            labels: BTreeMap::new(),
        }
    }

    /// From all sources, as [`IndexConfig::load`].
    pub fn load(file: Option<&Path>, flags: impl Serialize) -> Result<Self> {
        Self::from_sources(file, Environment::of_this_process()?, flags)
    }

    fn from_sources(file: Option<&Path>, environment: Environment, flags: impl Serialize) -> Result<Self> {
        let (data_dir, listen, url, tls) = placeholders();
        let fresh = Self::new(data_dir, listen, url, tls, Vec::new());
        let defaults = defaults("drsdb-data/storage", DEFAULT_STORAGE_PORT, fresh);
        let environment = environment.only(environment::STORAGE_SETTINGS);
        let config: Self = merge(defaults, file, environment, flags, Ok)?;
        config.validate()?;
        Ok(config)
    }

    /// Checks what the types alone do not say.
    pub fn validate(&self) -> Result<()> {
        check_common(&self.data_dir, &self.public_url)?;
        if self.index_servers.is_empty() {
            return refuse("index_servers", "must name at least one index server, as https://host:port");
        }
        for url in &self.index_servers {
            check_url("index_servers", url)?;
        }
        if self.query_memory_bytes < MIN_QUERY_MEMORY_BYTES {
            let (least, is) = (MIN_QUERY_MEMORY_BYTES, self.query_memory_bytes);
            return refuse("query_memory_bytes", format!("must be at least {least}, not {is}"));
        }
        let (together, memory) =
            (self.query_memory_bytes.saturating_add(self.column_cache_bytes), machine_memory_bytes());
        if together > memory.max(MIN_QUERY_MEMORY_BYTES) {
            return refuse(
                "query_memory_bytes",
                format!("and column_cache_bytes are {together} bytes together, and this machine has {memory}"),
            );
        }
        if self.query_threads == Some(0) {
            return refuse("query_threads", "must be at least 1; leave it out to use all cores");
        }
        if self.retention_s > 86_400 {
            return refuse("retention_s", format!("must be a day (86400) at most, not {}", self.retention_s));
        }
        if !(1..=3600).contains(&self.staged_lease_s) {
            return refuse("staged_lease_s", format!("must be 1 to 3600 seconds, not {}", self.staged_lease_s));
        }
        if let Some(label) = self.labels.keys().find(|label| label.is_empty()) {
            return refuse("labels", format!("has the empty name {label:?}: write them as zone = \"a\""));
        }
        Ok(())
    }

    /// How long versions stay readable that are not the newest.
    pub fn retention(&self) -> Duration {
        Duration::from_secs(self.retention_s)
    }

    /// How long a staged load may be without an outcome.
    pub fn staged_lease(&self) -> Duration {
        Duration::from_secs(self.staged_lease_s)
    }
}

/// The defaults as figment takes them: without the fields that have none, and without those that [`derive_public_url`] and
/// [`derive_node_id`] find from others when nothing says them.
fn defaults(data_dir: &str, port: u16, config: impl Serialize) -> serde_json::Value {
    let mut value = serde_json::to_value(config).expect("a configuration is plain data with text keys");
    let fields = value.as_object_mut().expect("a configuration is a struct");
    for field in ["public_url", "node_id", "tls", "index_servers"] {
        fields.remove(field);
    }
    fields.insert("data_dir".into(), data_dir.into());
    fields.insert("listen".into(), SocketAddr::from((Ipv4Addr::LOCALHOST, port)).to_string().into());
    value
}

/// Stand where a value is needed and [`defaults`] removes or replaces it.
fn placeholders() -> (PathBuf, SocketAddr, Url, TlsFiles) {
    let tls = TlsFiles { ca: PathBuf::new(), certificate: PathBuf::new(), key: PathBuf::new() };
    let url = Url::parse("https://localhost").expect("the text is a URL");
    (PathBuf::new(), SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), url, tls)
}

fn merge<C: DeserializeOwned>(
    defaults: serde_json::Value,
    file: Option<&Path>,
    environment: Environment,
    flags: impl Serialize,
    derive: impl FnOnce(Figment) -> Result<Figment>,
) -> Result<C> {
    let mut flags = serde_json::to_value(flags)
        .map_err(|error| Error::internal(format!("flags are not a map of settings: {error}")))?;
    values::drop_nulls(&mut flags);

    let mut figment = Figment::from(Serialized::defaults(defaults));
    if let Some(file) = file {
        // figment takes a file that is not there for an empty one; a file that someone names must be there.
        std::fs::metadata(file).map_err(|error| {
            let message = format!("the configuration file {} cannot be read: {error}", file.display());
            WireError::new(ErrorCode::InvalidArgument, message).with_hint("name a TOML file, or none")
        })?;
        figment = figment.merge(Toml::file(file));
    }
    figment = figment.merge(environment);
    if flags.as_object().is_some_and(|flags| !flags.is_empty()) {
        figment = figment.merge(Serialized::defaults(flags));
    }
    figment = derive(derive_public_url(figment)?)?;
    // Lossy: the environment has only text, also for numbers.
    figment.extract_lossy().map_err(|error| explain(&error))
}

/// Without `public_url`, others reach the server where it listens; that needs an address that means something to them.
fn derive_public_url(figment: Figment) -> Result<Figment> {
    if figment.contains("public_url") {
        return Ok(figment);
    }
    let listen: SocketAddr = figment.extract_inner("listen").map_err(|error| explain(&error))?;
    if listen.ip().is_unspecified() || listen.port() == 0 {
        return refuse(
            "public_url",
            format!("must be set when the server listens on {listen}: others cannot connect there"),
        );
    }
    Ok(figment.merge(("public_url", format!("https://{listen}"))))
}

/// The only index server of a cluster is number 1. One of several must be told: two that take themselves for one would each
/// vote as the other.
fn derive_node_id(figment: Figment) -> Result<Figment> {
    if figment.contains("node_id") {
        return Ok(figment);
    }
    let joins = figment.extract_inner_lossy::<bool>("join").unwrap_or(false);
    if joins || figment.contains("voters") {
        let why =
            "must be set with voters or join = true: a number that no other index server of the cluster has or had";
        return refuse("node_id", why);
    }
    Ok(figment.merge(("node_id", 1)))
}

fn check_common(data_dir: &Path, public_url: &Url) -> Result<()> {
    if data_dir.as_os_str().is_empty() {
        return refuse("data_dir", "must name a folder");
    }
    check_url("public_url", public_url)
}

fn check_url(setting: &str, url: &Url) -> Result<()> {
    let is_origin = url.scheme() == "https"
        && url.has_host()
        && matches!(url.path(), "" | "/")
        && url.query().is_none()
        && url.fragment().is_none()
        && url.username().is_empty()
        && url.password().is_none();
    if is_origin { Ok(()) } else { refuse(setting, format!("must be https://host:port, not {url}")) }
}

fn refuse<T>(setting: &str, why: impl fmt::Display) -> Result<T> {
    let error = WireError::new(ErrorCode::InvalidArgument, format!("setting {setting} {why}"));
    Err(error.with_field("setting", setting).into())
}

/// All that figment found wrong, with the nearest names and where each value came from.
fn explain(error: &figment::Error) -> Error {
    let mut hints = Vec::new();
    let messages: Vec<String> = error
        .clone()
        .into_iter()
        .map(|error| {
            match &error.kind {
                Kind::UnknownField(name, known) => {
                    if let Some(near) = nearest_name(name, known.iter().copied()) {
                        hints.push(format!("write {near} instead of {name}"));
                    }
                }
                Kind::MissingField(name) if name == "tls" => hints.push(format!(
                    "set tls.ca, tls.certificate and tls.key in the file, or as {0}TLS__CA, {0}TLS__CERTIFICATE and \
                     {0}TLS__KEY: paths of PEM files",
                    environment::PREFIX
                )),
                Kind::MissingField(name) => hints.push(format!(
                    "set {name} in the file, with a flag, or as {}{}",
                    environment::PREFIX,
                    name.to_uppercase()
                )),
                _ => {}
            }
            error.to_string()
        })
        .collect();
    let message = format!("the configuration is not usable: {}", messages.join("; "));
    WireError::new(ErrorCode::InvalidArgument, message).with_hint(hints.join("; ")).into()
}

#[cfg(test)]
mod tests;
