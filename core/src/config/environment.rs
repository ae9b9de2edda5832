//! Settings from environment variables. Values stay text: a password of digits is not a number.

use drsdb_proto::{ErrorCode, WireError};
use figment::{
    Metadata, Profile, Provider,
    value::{Dict, Map, Value},
};

use crate::{Result, nearest_name};

pub(super) const PREFIX: &str = "DRSDB_";

/// An index server's settings, at their first level.
pub(super) const INDEX_SETTINGS: &[&str] = &[
    "bootstrap",
    "data_dir",
    "default_shards",
    "demote_after_s",
    "join",
    "listen",
    "node_id",
    "public_url",
    "replace_after_s",
    "shard_copies",
    "snapshot_entries",
    "target_partitions",
    "ticket_lifetime_s",
    "tls",
    "token_lifetime_s",
    "voters",
];

/// A storage server's settings, at their first level.
pub(super) const STORAGE_SETTINGS: &[&str] = &[
    "column_cache_bytes",
    "data_dir",
    "index_servers",
    "labels",
    "listen",
    "public_url",
    "query_memory_bytes",
    "query_threads",
    "retention_s",
    "staged_lease_s",
    "tls",
];

/// `DRSDB_*` of a process, as nested settings.
#[derive(Debug)]
pub(super) struct Environment {
    settings: Dict,
}

impl Environment {
    pub(super) fn of_this_process() -> Result<Self> {
        let variables = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
        let mut known = Vec::new();
        for (name, value) in variables {
            let Some(name) = name.strip_prefix(PREFIX) else { continue };
            let value = value.into_string().map_err(|_| {
                WireError::new(ErrorCode::InvalidArgument, format!("the value of {PREFIX}{name} is not UTF-8"))
            })?;
            known.push((name.to_owned(), value));
        }
        Self::from_variables(known)
    }

    /// From names without their prefix. A name that is almost a setting is refused; any other is another program's.
    pub(super) fn from_variables(variables: impl IntoIterator<Item = (String, String)>) -> Result<Self> {
        let mut settings = Dict::new();
        for (name, value) in variables {
            let path: Vec<String> = name.to_ascii_lowercase().split("__").map(str::to_owned).collect();
            let first = path[0].as_str();
            let settings_of_servers = || INDEX_SETTINGS.iter().chain(STORAGE_SETTINGS).copied();
            if !settings_of_servers().any(|setting| setting == first) {
                if let Some(near) = nearest_name(first, settings_of_servers()) {
                    let (is, meant) = (format!("{PREFIX}{name}"), format!("{PREFIX}{}", near.to_uppercase()));
                    return Err(WireError::new(ErrorCode::InvalidArgument, format!("there is no setting {is}"))
                        .with_hint(format!("write {meant} instead, or unset it"))
                        .into());
                }
                continue;
            }
            insert(&mut settings, &path, value);
        }
        Ok(Self { settings })
    }

    /// Only the `settings` of one kind of server: servers of several kinds may share an environment.
    pub(super) fn only(mut self, settings: &[&str]) -> Self {
        self.settings.retain(|name, _| settings.contains(&name.as_str()));
        self
    }
}

fn insert(settings: &mut Dict, path: &[String], value: String) {
    let (first, rest) = path.split_first().expect("splitting a text gives at least one part");
    if rest.is_empty() {
        settings.insert(first.clone(), Value::from(value));
        return;
    }
    let below = settings.entry(first.clone()).or_insert_with(|| Value::from(Dict::new()));
    if !matches!(below, Value::Dict(..)) {
        *below = Value::from(Dict::new());
    }
    if let Value::Dict(_, below) = below {
        insert(below, rest, value);
    }
}

impl Provider for Environment {
    fn metadata(&self) -> Metadata {
        Metadata::named("the environment")
            .interpolater(|_: &Profile, path: &[&str]| format!("{PREFIX}{}", path.join("__").to_uppercase()))
    }

    fn data(&self) -> figment::error::Result<Map<Profile, Dict>> {
        Ok(Map::from([(Profile::Default, self.settings.clone())]))
    }
}
