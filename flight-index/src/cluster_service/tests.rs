//! What storage servers see of the commits: all of them, in order, and none by halves.

use std::collections::BTreeMap;

use drsdb_core::{Column, Engine, SqlType, Table, TableName, WireError, ids::new_ulid};

use super::*;
use crate::{
    catalog::{PieceInfo, TableChange},
    load::testing::Servers,
    raft::CatalogOptions,
    transaction::Writes,
};

struct Setup {
    _dir: tempfile::TempDir,
    service: ClusterService,
}

impl Setup {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = CatalogOptions {
            dir: dir.path().to_owned(),
            node_id: 1,
            voters: BTreeMap::from([(1, "https://127.0.0.1:1".to_owned())]),
            named: BTreeMap::new(),
            dial: Arc::new(|url| panic!("nobody calls {url}")),
            snapshot_entries: 5_000,
        };
        let catalog = Catalog::open(options).await.unwrap();
        let writes = Writes::new(Arc::clone(&catalog), Arc::new(Servers::default()), "https://127.0.0.1:1");
        Self {
            _dir: dir,
            service: ClusterService {
                catalog,
                active: ActiveTransactions::default(),
                sessions: Sessions::new(Arc::new(writes)),
                shutdown: CancellationToken::new(),
            },
        }
    }

    async fn bootstrapped() -> Self {
        let setup = Self::new().await;
        let (_, signing_key) = SigningKey::generate().unwrap();
        let bootstrap = Command::Bootstrap {
            cluster_id: new_ulid(),
            signing_key_pkcs8: signing_key.into(),
            admin_user: "admin".to_owned(),
            admin_password_hash: "hash".to_owned(),
        };
        setup.propose(bootstrap).await;
        setup
    }

    async fn propose(&self, command: Command) -> u64 {
        self.service.catalog.propose(command).await.unwrap().0
    }

    async fn register(&self, server: Ulid, url: &str) -> Result<RegisterStorageResponse, WireError> {
        let request = RegisterStorageRequest {
            server_id: server.to_string(),
            url: url.to_owned(),
            cores: 2,
            labels: Default::default(),
        };
        let answer = self.service.register_storage(Request::new(request)).await;
        answer.map(Answer::into_inner).map_err(WireError::from)
    }

    async fn create_table(&self, schema: &str) -> Ulid {
        let id = new_ulid();
        let table = Table {
            id,
            name: TableName::new(schema, id.to_string().to_lowercase()),
            columns: vec![Column::new("id".to_owned(), SqlType::BigInt, true)],
            primary_key: vec![0],
            foreign_keys: vec![],
            engine: Engine::Column,
            shards: 2,
            shard_key: vec![0],
            shard_function: 1,
            cluster_key: vec![0],
            ..Table::default()
        };
        self.propose(Command::CreateTable { table, if_not_exists: false }).await;
        id
    }

    async fn commit(&self, table: Ulid) -> (Ulid, u64) {
        let transaction = new_ulid();
        let pieces = vec![PieceInfo {
            rows: 1,
            bytes: 8,
            acks: self.service.catalog.state().servers().map(|server| server.id).collect(),
            ..PieceInfo::default()
        }];
        let tables = vec![TableChange { table, version: 0, pieces }];
        (
            transaction,
            self.propose(Command::CommitTransaction {
                transaction,
                tables,
                statement: None,
                rows: None,
                validations: vec![],
            })
            .await,
        )
    }

    async fn follow(&self, server: Ulid, after: u64) -> Result<BoxStream<'static, Result<Commit, Status>>, WireError> {
        let request = FollowCommitsRequest { server_id: server.to_string(), after_version: after };
        let answer = self.service.follow_commits(Request::new(request)).await;
        let mut stream = answer.map(Answer::into_inner).map_err(WireError::from)?;
        // Before everything else: who the index servers are.
        let first = stream.next().await.unwrap().unwrap();
        assert_eq!((first.change, first.index_servers), (None, vec!["https://127.0.0.1:1".to_owned()]));
        Ok(stream)
    }

    /// The changes that are there already: up to the catalog's version.
    async fn read(&self, server: Ulid, after: u64) -> Vec<Commit> {
        let mut stream = self.follow(server, after).await.unwrap();
        let mut commits = Vec::new();
        let now = self.service.catalog.state().version();
        while commits.last().map_or(after, |last: &Commit| last.complete) < now {
            commits.push(stream.next().await.unwrap().unwrap());
        }
        commits.retain(|commit| commit.change.is_some());
        commits
    }
}

fn committed(transaction: Ulid, version: u64) -> Commit {
    let outcome = outcome_message(transaction, Outcome::Committed { version, rows: 1 });
    Commit { change: Some(Change::Transaction(outcome)), ..nothing_up_to(version) }
}

#[tokio::test]
async fn a_server_registers_once_however_often_it_says_so() {
    let setup = Setup::new().await;
    let server = new_ulid();
    assert_eq!(setup.register(server, "https://a:1").await.unwrap_err().code, ErrorCode::Unavailable);
    let setup = Setup::bootstrapped().await;
    for url in ["http://a:1", "a:1", ""] {
        assert_eq!(setup.register(server, url).await.unwrap_err().code, ErrorCode::InvalidArgument, "{url}");
    }
    let first = setup.register(server, "https://a:1").await.unwrap();
    assert_eq!(setup.register(server, "https://a:1").await.unwrap(), first);
    assert_eq!(first.cluster_id, setup.service.catalog.state().cluster_id().unwrap().to_string());
    assert_eq!(first.verifying_key.len(), 32);
    assert_eq!(first.index_servers, ["https://127.0.0.1:1"]);
    // It moved.
    assert!(setup.register(server, "https://b:1").await.unwrap().version > first.version);
    assert_eq!(setup.service.catalog.state().server(server).unwrap().url, "https://b:1");
}

#[tokio::test]
async fn tables_are_listed_with_the_servers_that_have_their_rows() {
    let setup = Setup::bootstrapped().await;
    setup.register(new_ulid(), "https://a:1").await.unwrap();
    let table = setup.create_table("public").await;
    let listed = setup.service.list_tables().await.unwrap();
    assert_eq!(listed.version, setup.service.catalog.state().version());
    let [found] = &listed.tables[..] else { panic!("{listed:?}") };
    assert_eq!(found.table.as_ref().unwrap().id, table.to_string());
    let shard = ListedShard { replicas: 1, current: vec!["https://a:1".to_owned()] };
    assert_eq!(found.shards, [shard.clone(), shard]);
}

#[tokio::test]
async fn commits_are_replayed_and_then_followed() {
    let setup = Setup::bootstrapped().await;
    let server = new_ulid();
    let unknown = setup.follow(server, 0).await.map(drop).unwrap_err();
    assert_eq!(unknown.code, ErrorCode::NotFound, "it has to register first");
    let registered = setup.register(server, "https://a:1").await.unwrap().version;
    let table = setup.create_table("public").await;
    let (first, first_version) = setup.commit(table).await;
    let (second, second_version) = setup.commit(table).await;
    // CREATE TABLE has no change for storage servers: the next commit's version moves past it.
    let expected = [committed(first, first_version), committed(second, second_version)];
    assert_eq!(setup.read(server, registered).await, expected);
    assert_eq!(setup.read(server, first_version).await, expected[1..]);

    // From here on: a commit, an abort, a dropped table, and a change of the catalog alone.
    let mut stream = setup.follow(server, second_version).await.unwrap();
    let (third, version) = setup.commit(table).await;
    assert_eq!(stream.next().await.unwrap().unwrap(), committed(third, version));
    let late = new_ulid();
    let request = ResolveTransactionRequest { transaction_id: late.to_string() };
    let outcome = setup.service.resolve_transaction(Request::new(request)).await.unwrap().into_inner();
    assert_eq!((outcome.committed, outcome.version), (false, 0));
    let aborted = setup.service.catalog.state().version();
    assert!(aborted > version);
    let aborted = Commit { change: Some(Change::Transaction(outcome)), ..nothing_up_to(aborted) };
    assert_eq!(stream.next().await.unwrap().unwrap(), aborted);
    let schema = setup.propose(Command::CreateSchema { name: "s".to_owned(), if_not_exists: false }).await;
    assert_eq!(stream.next().await.unwrap().unwrap(), nothing_up_to(schema));

    // A committed one that is asked about stays committed.
    let request = ResolveTransactionRequest { transaction_id: third.to_string() };
    let outcome = setup.service.resolve_transaction(Request::new(request)).await.unwrap().into_inner();
    assert_eq!((outcome.committed, outcome.version), (true, version));

    setup.service.shutdown.cancel();
    while stream.next().await.is_some() {}
}

#[tokio::test]
async fn a_version_of_many_changes_is_not_taken_for_whole_in_its_midst() {
    let setup = Setup::bootstrapped().await;
    let server = new_ulid();
    setup.register(server, "https://a:1").await.unwrap();
    setup.propose(Command::CreateSchema { name: "s".to_owned(), if_not_exists: false }).await;
    let tables = [setup.create_table("s").await, setup.create_table("s").await];
    let before = setup.service.catalog.state().version();
    let drop = Command::DropSchema { name: "s".to_owned(), if_exists: false, cascade: true };
    let version = setup.propose(drop).await;
    let dropped = |complete, table: Ulid| Commit {
        version,
        complete,
        change: Some(Change::DroppedTable(table.to_string())),
        index_servers: vec![],
    };
    let expected = [dropped(version - 1, tables[0]), dropped(version, tables[1])];
    assert_eq!(setup.read(server, before).await, expected);
    // The stream broke after the first: asked again from what was complete, both come again.
    assert_eq!(setup.read(server, expected[0].complete).await, expected);
}

#[tokio::test]
async fn what_all_servers_have_is_forgotten() {
    let setup = Setup::bootstrapped().await;
    let servers = [new_ulid(), new_ulid()];
    for server in servers {
        setup.register(server, &format!("https://{server}:1")).await.unwrap();
    }
    let table = setup.create_table("public").await;
    let (_, first) = setup.commit(table).await;
    let (second, version) = setup.commit(table).await;
    for server in servers {
        drop(setup.follow(server, first).await.unwrap());
    }
    assert_eq!(setup.service.catalog.state().forgotten_version(), first);
    // One that lost its own note of how far it was gets what is left.
    let replayed = setup.read(servers[0], 0).await;
    assert_eq!(replayed[0], committed(second, version));

    // From the future: it is another cluster's.
    let error = setup.follow(servers[0], 1_000).await.map(drop).unwrap_err();
    assert_eq!(error.code, ErrorCode::Corrupt);
    let error = setup.follow(new_ulid(), 1).await.map(drop).unwrap_err();
    assert_eq!(error.code, ErrorCode::NotFound);
}
