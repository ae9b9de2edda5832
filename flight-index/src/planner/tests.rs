//! Plans over catalogs that no server of a test could be.

use drsdb_core::{
    TableName, Ulid,
    security::{keys::SigningKey, ticket},
};

use super::*;
use crate::{
    catalog::{Command, PieceInfo, Response, StorageServer, TableChange, apply},
    statement::{Statement as Classified, parse},
};

/// A table `t` of `shards` shards, with rows in all, on that many servers.
struct Cluster {
    state: Arc<CatalogState>,
    planner: Arc<Planner>,
    key: SigningKey,
}

impl Cluster {
    fn new(servers: u128, shards: u32, cores: u32) -> Self {
        Self::with_rows(servers, shards, cores, 1_000_000)
    }

    fn with_rows(servers: u128, shards: u32, cores: u32, rows: u64) -> Self {
        let (key, pkcs8) = SigningKey::generate().unwrap();
        let bootstrap = Command::Bootstrap {
            cluster_id: Ulid(1),
            signing_key_pkcs8: pkcs8.into(),
            admin_user: "admin".to_owned(),
            admin_password_hash: "hash".to_owned(),
        };
        let register = |id| Command::RegisterStorage {
            server: StorageServer {
                id: Ulid(id),
                url: format!("https://storage-{id}:1"),
                cores,
                labels: Default::default(),
            },
        };
        let Ok(Classified::CreateTable(table)) = parse("CREATE TABLE t (id BIGINT PRIMARY KEY, v BIGINT)") else {
            panic!("it creates a table")
        };
        let no_parents = |name: &TableName| panic!("{name} is no parent");
        let table = table.resolve(Ulid(10), shards, &no_parents).unwrap();
        let pieces = (0..shards).map(|shard| PieceInfo {
            shard,
            rows,
            bytes: 10 * rows,
            acks: (1..=servers).map(Ulid).collect(),
            ..PieceInfo::default()
        });
        let change = TableChange { table: Ulid(10), version: 0, pieces: pieces.collect() };
        let commands = std::iter::once(bootstrap)
            .chain((1..=servers).map(register))
            .chain([Command::CreateTable { table, if_not_exists: false }])
            .chain([Command::CommitTransaction {
                transaction: Ulid(100),
                tables: vec![change],
                statement: None,
                rows: None,
                validations: vec![],
            }]);
        let mut state = CatalogState::default();
        for (version, command) in (1..).zip(commands) {
            let response = apply(&mut state, version, &command);
            assert!(!matches!(response, Response::Error(_)), "{response:?}");
        }
        Self { state: Arc::new(state), planner: Arc::new(Planner::new(Duration::from_secs(60))), key }
    }

    fn apply(&mut self, command: &Command) {
        let mut state = (*self.state).clone();
        let version = state.version() + 1;
        let response = apply(&mut state, version, command);
        assert!(!matches!(response, Response::Error(_)), "{response:?}");
        self.state = Arc::new(state);
    }

    /// The plan of a query, or of the rest of one, as the service has it planned.
    async fn planned(&self, sql: &str, options: QueryOptions, resume: Option<Resume>) -> Result<PlannedQuery> {
        let parsed = parse(sql);
        let Ok(Classified::Query(statement) | Classified::Explain(statement)) = parsed else {
            panic!("{sql} is a query")
        };
        let view = resume.map(|resume| Arc::new(View::at(resume.snapshot)));
        let context = QueryContext { view, resume, ..QueryContext::new("admin", options) };
        self.planner.plan(Arc::clone(&self.state), Statement::Statement(statement), None, &context).await
    }

    async fn endpoints(&self, sql: &str) -> Vec<PlannedEndpoint> {
        let Ok(Classified::Query(statement)) = parse(sql) else { panic!("{sql} is a query") };
        let context = QueryContext::new("admin", QueryOptions::default());
        let planned =
            self.planner.plan(Arc::clone(&self.state), Statement::Statement(statement), None, &context).await.unwrap();
        let Source::Endpoints(endpoints) = planned.source else { panic!("{sql} is answered by storage servers") };
        for endpoint in &endpoints {
            let ticket = ticket::open(&self.key.verifying_key(), &endpoint.ticket, "admin").unwrap();
            assert_eq!(ticket.snapshot, self.state.version());
        }
        endpoints
    }
}

fn distinct(endpoints: &[PlannedEndpoint]) -> usize {
    endpoints.iter().flat_map(|endpoint| &endpoint.locations).collect::<std::collections::BTreeSet<_>>().len()
}

#[tokio::test]
async fn a_scan_has_an_endpoint_for_each_server_up_to_sixteen() {
    for servers in [1, 3, 16] {
        let cluster = Cluster::new(servers, 256, 2);
        let scan = cluster.endpoints("SELECT id, v + 1 FROM t WHERE v > 3").await;
        assert_eq!((scan.len(), distinct(&scan)), (servers as usize, servers as usize));
    }
    // More than a client can keep connections for: one server brings the rows together.
    let cluster = Cluster::new(20, 512, 2);
    let scan = cluster.endpoints("SELECT id FROM t").await;
    assert_eq!((scan.len(), distinct(&scan)), (1, MAX_LOCATIONS));
}

#[tokio::test]
async fn a_head_can_be_any_server_that_is_listed() {
    let cluster = Cluster::new(3, 12, 2);
    let sql = "SELECT v, count(*) FROM t GROUP BY v";
    let endpoints = cluster.endpoints(sql).await;
    assert_eq!((endpoints.len(), distinct(&endpoints)), (1, 3));
    let first = |endpoints: &[PlannedEndpoint]| endpoints[0].locations[0].clone();
    let mut heads = std::collections::BTreeSet::new();
    for _ in 0..64 {
        heads.insert(first(&cluster.endpoints(sql).await));
    }
    assert_eq!(heads.len(), 3, "queries take turns with the servers");
}

#[tokio::test]
async fn a_key_is_looked_up_where_it_is() {
    let cluster = Cluster::new(6, 12, 2);
    let endpoints = cluster.endpoints("SELECT v FROM t WHERE id = 7").await;
    assert_eq!((endpoints.len(), distinct(&endpoints)), (1, 3), "each replica can answer");
}

#[tokio::test]
async fn little_is_read_on_one_server_without_exchange() {
    let cluster = Cluster::with_rows(3, 12, 2, 1000);
    let mut firsts = std::collections::BTreeSet::new();
    for _ in 0..64 {
        let endpoints =
            cluster.endpoints("SELECT a.v, count(*) FROM t a JOIN t b ON a.v = b.v GROUP BY a.v ORDER BY 1").await;
        assert_eq!((endpoints.len(), distinct(&endpoints)), (1, 3));
        let ticket = ticket::open(&cluster.key.verifying_key(), &endpoints[0].ticket, "admin").unwrap();
        assert!(matches!(ticket.fragment, Some(drsdb_core::v1::ticket::Fragment::Task(_))));
        firsts.insert(endpoints[0].locations[0].clone());
    }
    assert_eq!(firsts.len(), 3, "servers take turns");
    // No server has all shards of a table with fewer replicas than there are servers.
    let cluster = Cluster::with_rows(6, 12, 2, 1000);
    assert_eq!(cluster.endpoints("SELECT v FROM t").await.len(), 6);
}

#[tokio::test]
async fn endpoints_name_servers_that_can_stand_in() {
    let cluster = Cluster::new(3, 12, 2);
    let endpoints = cluster.endpoints("SELECT v FROM t").await;
    assert_eq!(endpoints.iter().map(|endpoint| endpoint.locations.len()).collect::<Vec<_>>(), [3, 3, 3]);
}

#[tokio::test]
async fn an_answer_goes_on_at_its_snapshot_as_long_as_its_tables_are_what_they_were() {
    let mut cluster = Cluster::new(3, 12, 2);
    let sql = "SELECT v FROM t ORDER BY id";
    let defaults = QueryOptions::default;
    let begun = cluster.planned(sql, defaults(), None).await.unwrap();
    let resume = begun.resume.expect("its order can be repeated");
    assert_eq!(resume.snapshot, cluster.state.version());
    let unordered = cluster.planned("SELECT v FROM t", defaults(), None).await.unwrap();
    assert_eq!(unordered.resume, None);

    // What was written meanwhile is not read.
    let piece = PieceInfo { rows: 1, bytes: 10, acks: vec![Ulid(1), Ulid(2), Ulid(3)], ..PieceInfo::default() };
    cluster.apply(&Command::CommitTransaction {
        transaction: Ulid(101),
        tables: vec![TableChange { table: Ulid(10), version: 0, pieces: vec![piece] }],
        statement: None,
        rows: None,
        validations: vec![],
    });
    let rest = cluster.planned(sql, defaults(), Some(resume)).await.unwrap();
    assert_eq!(rest.resume, Some(resume));
    let Source::Endpoints(endpoints) = rest.source else { panic!("its rows are on storage servers") };
    let ticket = ticket::open(&cluster.key.verifying_key(), &endpoints[0].ticket, "admin").unwrap();
    assert_eq!((endpoints.len(), ticket.snapshot), (1, resume.snapshot));

    // Nothing else goes on there, nor does it under other settings, or with another definition.
    let refused = async |cluster: &Cluster, sql: &str, options| {
        let error = cluster.planned(sql, options, Some(resume)).await.unwrap_err();
        assert_eq!(error.code(), drsdb_core::ErrorCode::Conflict, "{error}");
    };
    refused(&cluster, "SELECT v FROM t", defaults()).await;
    refused(&cluster, "EXPLAIN SELECT v FROM t ORDER BY id", defaults()).await;
    let mut east = defaults();
    east.time_zone = "+02:00".to_owned();
    refused(&cluster, sql, east).await;
    let mut table = (*cluster.state.table_by_name(&TableName::new("public", "t")).unwrap().table).clone();
    let seen = table.version;
    table.columns.push(drsdb_core::Column::new("w", drsdb_core::SqlType::BigInt, false));
    cluster.apply(&Command::AlterTable { table, seen, unchanged_since: None, cascade: false, exact_keys: true });
    refused(&cluster, sql, defaults()).await;
}

/// Small machines and containers: with one partition, datafusion-distributed would leave the exchange out.
#[tokio::test]
async fn servers_of_one_core_share_queries_too() {
    let cluster = Cluster::new(3, 12, 1);
    assert_eq!(cluster.endpoints("SELECT id FROM t").await.len(), 3);
    assert_eq!(cluster.endpoints("SELECT v, count(*) FROM t GROUP BY v").await.len(), 1);
    let limited =
        cluster.endpoints("SELECT id FROM (SELECT id FROM t LIMIT 5) UNION ALL (SELECT id FROM t LIMIT 5)").await;
    assert_eq!(limited.len(), 1);
}

/// Later passes name and type all that is below each level of an expression, and some of them recurse.
#[tokio::test]
async fn long_and_deep_expressions_are_planned_on_threads_of_their_own() {
    let cluster = Cluster::new(3, 12, 2);
    let context = QueryContext::new("admin", QueryOptions::default());
    let plan = |sql: String| {
        let (planner, state, context) = (Arc::clone(&cluster.planner), Arc::clone(&cluster.state), context.clone());
        let Ok(Classified::Query(statement)) = parse(&sql) else { panic!("it is a query") };
        async move { planner.plan(state, Statement::Statement(statement), None, &context).await }
    };
    let terms = |count: usize, operators: [&str; 2]| {
        (1..count).fold("v".to_owned(), |sum, at| format!("{sum} {} v", operators[at % 2]))
    };
    plan(format!("SELECT {} FROM t", terms(1_900, ["+", "+"]))).await.unwrap();
    plan(format!("SELECT id FROM t WHERE {} > 7", terms(40, ["+", "-"]))).await.unwrap();
    let nested = (0..40).fold("v".to_owned(), |inner, at| format!("coalesce({inner}, {at})"));
    plan(format!("SELECT {nested} FROM t")).await.unwrap();
    // Its own thread has the room.
    plan(format!("SELECT {}", terms(90, ["+", "-"]).replace('v', "1"))).await.unwrap();
    let error = plan(format!("SELECT {}", terms(1_900, ["+", "-"]).replace('v', "1"))).await.unwrap_err();
    assert_eq!(error.code(), drsdb_core::ErrorCode::ResourceExhausted, "{error}");
}
