//! What a configuration accepts, refuses and says about it.

use figment::error::Kind;
use serde_json::json;

use super::*;

const TLS: &str = "tls = { ca = \"ca.pem\", certificate = \"s.pem\", key = \"s.key\" }\n";

struct Sources {
    dir: tempfile::TempDir,
    variables: Vec<(String, String)>,
}

fn sources(toml: &str, variables: &[(&str, &str)]) -> Sources {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("drsdb.toml"), format!("{TLS}{toml}")).unwrap();
    let own = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
    Sources { dir, variables: variables.iter().map(own).collect() }
}

impl Sources {
    fn file(&self) -> PathBuf {
        self.dir.path().join("drsdb.toml")
    }

    fn index(&self, flags: serde_json::Value) -> Result<IndexConfig> {
        IndexConfig::from_sources(Some(&self.file()), Environment::from_variables(self.variables.clone())?, flags)
    }

    fn storage(&self, flags: serde_json::Value) -> Result<StorageConfig> {
        StorageConfig::from_sources(Some(&self.file()), Environment::from_variables(self.variables.clone())?, flags)
    }
}

fn refused<T: fmt::Debug>(result: Result<T>) -> String {
    let error = result.unwrap_err();
    assert_eq!(error.code(), ErrorCode::InvalidArgument, "{error}");
    error.to_string()
}

#[test]
fn defaults_are_usable_but_for_tls() {
    let config = sources("", &[]).index(json!({})).unwrap();
    assert_eq!(config.listen.port(), DEFAULT_INDEX_PORT);
    assert_eq!(config.public_url.as_str(), "https://127.0.0.1:7432/");
    assert_eq!((config.default_shards, config.ticket_lifetime_s, config.token_lifetime_s), (12, 300, 86400));
    let nothing = Environment::from_variables([]).unwrap();
    let message = refused(IndexConfig::from_sources(None, nothing, json!({})));
    assert!(message.contains("tls"), "{message}");
}

#[test]
fn each_source_overrides_those_before_it() {
    let sources =
        sources("default_shards = 3\ndata_dir = \"file\"", &[("DEFAULT_SHARDS", "4"), ("TLS__CA", "env.pem")]);
    let config = sources.index(json!({})).unwrap();
    assert_eq!(config.default_shards, 4);
    assert_eq!(config.tls.ca, Path::new("env.pem"));
    assert_eq!(config.tls.key, Path::new("s.key"), "the other TLS settings stay the file's");
    let config = sources.index(json!({"default_shards": 5, "data_dir": null, "tls": {"ca": null}})).unwrap();
    assert_eq!(config.default_shards, 5);
    assert_eq!(config.data_dir, Path::new("file"), "a flag that was not given overrides nothing");
    assert_eq!(config.tls.ca, Path::new("env.pem"));
}

#[test]
fn unknown_keys_are_refused_with_the_nearest_name() {
    let message = refused(sources("default_shard = 3", &[]).index(json!({})));
    assert!(message.contains("write default_shards instead of default_shard"), "{message}");
    let message = refused(sources("", &[("DEFAULT_SHARD", "3")]).index(json!({})));
    assert!(message.contains("DRSDB_DEFAULT_SHARDS"), "{message}");
    let message = refused(sources("", &[("TLS__CERT", "x")]).index(json!({})));
    assert!(message.contains("DRSDB_TLS__CERT"), "{message}");
    refused(sources("[tls2]\nx = 1", &[]).index(json!({})));
    refused(sources("", &[]).index(json!({"colour": "red"})));
}

#[test]
fn other_programs_and_servers_may_share_the_environment() {
    let sources = sources("", &[("PYTHON", "/usr/bin/python3"), ("QUERY_THREADS", "3"), ("TOKEN_LIFETIME_S", "999")]);
    assert_eq!(sources.index(json!({})).unwrap().token_lifetime_s, 999);
    let storage = sources.storage(json!({"index_servers": ["https://a:1"]})).unwrap();
    assert_eq!(storage.query_threads, Some(3));
}

#[test]
fn text_of_the_environment_is_taken_as_it_stands() {
    let variables = [("BOOTSTRAP__ADMIN_USER", "ada"), ("BOOTSTRAP__ADMIN_PASSWORD", "0012345678")];
    let config = sources("", &variables).index(json!({})).unwrap();
    assert_eq!(config.bootstrap.as_ref().unwrap().admin_password, "0012345678");
    assert!(!format!("{config:?}").contains("12345678"), "a password is in no log");

    let config = sources("", &[("INDEX_SERVERS", "https://a:1, https://b:2"), ("LABELS__ZONE", "eu-1")]);
    let config = config.storage(json!({})).unwrap();
    assert_eq!(config.index_servers.iter().map(Url::as_str).collect::<Vec<_>>(), ["https://a:1/", "https://b:2/"]);
    assert_eq!(config.labels["zone"], "eu-1");
}

#[test]
fn bad_values_are_refused_and_named() {
    for (toml, named) in [
        ("default_shards = 0", "default_shards"),
        ("default_shards = \"many\"", "default_shards"),
        ("listen = \"here\"", "listen"),
        ("listen = \"0.0.0.0:7432\"", "public_url"),
        ("listen = \"127.0.0.1:0\"", "public_url"),
        ("public_url = \"http://h:1\"", "public_url"),
        ("public_url = \"https://h:1/path\"", "public_url"),
        ("public_url = \"h\"", "public_url"),
        ("ticket_lifetime_s = 0", "ticket_lifetime_s"),
        ("ticket_lifetime_s = 600\ntoken_lifetime_s = 60", "token_lifetime_s"),
        ("target_partitions = 0", "target_partitions"),
        ("data_dir = \"\"", "data_dir"),
        ("bootstrap = { admin_user = \"a\", admin_password = \"short\" }", "admin_password"),
        ("bootstrap = { admin_user = \"a\" }", "admin_password"),
        ("node_id = 1\nvoters = { 1 = \"https://127.0.0.1:7432\", 2 = \"https://b:2\" }", "voters"),
        ("node_id = 1\nvoters = { 2 = \"https://b:2\" }", "join"),
        ("node_id = 1\nvoters = { 1 = \"https://c:3\" }", "public_url"),
        ("node_id = 1\nvoters = { one = \"https://127.0.0.1:7432\" }", "node_id"),
        ("node_id = 1\nvoters = { 1 = \"https://127.0.0.1:7432\", 2 = \"https://b:2\", 3 = \"https://b:2\" }", "twice"),
        ("join = true", "node_id"),
        ("voters = { 1 = \"https://127.0.0.1:7432\" }", "node_id"),
        ("node_id = 1\njoin = true\nvoters = { 1 = \"https://127.0.0.1:7432\" }", "join"),
        ("node_id = 1\njoin = true\nbootstrap = { admin_user = \"a\", admin_password = \"long enough\" }", "join"),
        ("not toml", "TOML"),
    ] {
        let message = refused(sources(toml, &[]).index(json!({})));
        assert!(message.contains(named), "{toml:?}: {message}");
    }
    for (toml, named) in [
        ("", "index_servers"),
        ("index_servers = []", "index_servers"),
        ("index_servers = [\"https://a:1/x\"]", "index_servers"),
        ("index_servers = \"https://a:1\"\nquery_threads = 0", "query_threads"),
        ("index_servers = \"https://a:1\"\nquery_memory_bytes = 1000", "query_memory_bytes"),
        ("index_servers = \"https://a:1\"\ncolumn_cache_bytes = 1000000000000000", "column_cache_bytes"),
    ] {
        let message = refused(sources(toml, &[]).storage(json!({})));
        assert!(message.contains(named), "{toml:?}: {message}");
    }
    let nothing = Environment::from_variables([]).unwrap();
    let message = refused(IndexConfig::from_sources(Some(Path::new("/no/such.toml")), nothing, json!({})));
    assert!(message.contains("/no/such.toml"), "{message}");
}

#[test]
fn voters_are_a_table_by_number() {
    let toml = "node_id = 2\npublic_url = \"https://b:2\"\n\
                voters = { 1 = \"https://a:1\", 2 = \"https://b:2\", 3 = \"https://c:3\" }";
    let config = sources(toml, &[]).index(json!({})).unwrap();
    assert_eq!(config.initial_voters()[&3].as_str(), "https://c:3/");
    let variables = [("VOTERS__1", "https://127.0.0.1:7432"), ("NODE_ID", "1")];
    let config = sources("", &variables).index(json!({})).unwrap();
    assert_eq!(config.voters.keys().copied().collect::<Vec<_>>(), [1]);
    let nothing = Environment::from_variables([]).unwrap();
    assert_eq!(IndexConfig::from_sources(None, nothing, &config).unwrap(), config);
    // Without a table, the server is a cluster of its own.
    let alone = sources("node_id = 4", &[]).index(json!({})).unwrap();
    assert_eq!(alone.initial_voters()[&4].as_str(), "https://127.0.0.1:7432/");
    assert_eq!(sources("", &[]).index(json!({})).unwrap().node_id, 1);
}

#[test]
fn an_address_for_everybody_needs_a_public_url() {
    let config =
        sources("listen = \"0.0.0.0:1\"\npublic_url = \"https://db.example:1\"", &[]).index(json!({})).unwrap();
    assert_eq!(config.public_url.as_str(), "https://db.example:1/");
}

#[test]
fn a_configuration_survives_its_own_text() {
    let tls = sources("", &[]).index(json!({})).unwrap().tls;
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    let url = Url::parse("https://a:1").unwrap();
    let index = IndexConfig::new("d".into(), listen, url.clone(), tls.clone());
    let nothing = || Environment::from_variables([]).unwrap();
    assert_eq!(IndexConfig::from_sources(None, nothing(), &index).unwrap(), index);
    let storage = StorageConfig::new("d".into(), listen, url.clone(), tls, vec![url]);
    assert_eq!(StorageConfig::from_sources(None, nothing(), &storage).unwrap(), storage);
}

#[test]
fn the_environments_lists_name_every_setting() {
    fn fields<C: DeserializeOwned>() -> Vec<&'static str> {
        let error = Figment::from(("no_such_setting", 1)).extract::<C>().err().unwrap();
        let Kind::UnknownField(_, known) = error.kind else { panic!("{error}") };
        let mut known = known.to_vec();
        known.sort_unstable();
        known
    }
    assert_eq!(fields::<IndexConfig>(), environment::INDEX_SETTINGS);
    assert_eq!(fields::<StorageConfig>(), environment::STORAGE_SETTINGS);
}
