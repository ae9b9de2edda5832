//! The service as a client sees it: a real listener with TLS and login, a real catalog, and storage servers in memory.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use arrow::{
    array::{ArrayRef, Int64Array, RecordBatch, StringArray},
    util::pretty::pretty_format_batches,
};
use arrow_flight::{
    Action, CancelFlightInfoRequest, CancelFlightInfoResult, CancelStatus, FlightInfo, Ticket,
    error::FlightError,
    sql::{
        CommandStatementIngest, EndTransaction, SqlInfo, TableDefinitionOptions, TableExistsOption,
        TableNotExistOption, client::FlightSqlServiceClient,
    },
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use drsdb_core::{
    Error, ErrorCode, TableName, WireError,
    config::IndexConfig,
    ids::new_ulid,
    net::{self, ChannelPool},
    security::{
        Login, Role, TlsIdentity, auth_layer::AuthLayer, dev_ca::DevCa, keys::SigningKey, password, tls, token,
    },
    v1,
};
use futures::{TryStreamExt, future::join_all, stream};
use prost::Message;
use tokio_util::sync::CancellationToken;
use tonic::{service::Routes, transport::Channel};
use url::Url;

use super::*;
use crate::{
    catalog::Command,
    load::testing::{Servers, registrations},
    raft::CatalogOptions,
    server::CatalogTokens,
};

mod ddl;
mod savepoints;

type Client = FlightSqlServiceClient<Channel>;

struct Front {
    catalog: Arc<Catalog>,
    channels: ChannelPool,
    servers: Arc<Servers>,
    url: Url,
    _stop: tokio_util::sync::DropGuard,
    _dir: tempfile::TempDir,
}

impl Front {
    async fn new() -> Self {
        Self::with_servers(Servers::default()).await
    }

    async fn with_servers(servers: Servers) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = DevCa::open_or_create(dir.path()).unwrap();
        let files = ca.issue(&dir.path().join("index"), Role::Index, &[]).unwrap();
        let listener = net::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let url: Url = format!("https://127.0.0.1:{}", listener.local_addr().unwrap().port()).parse().unwrap();
        let catalog = Catalog::open(CatalogOptions {
            dir: dir.path().join("catalog"),
            node_id: 1,
            voters: BTreeMap::from([(1, url.to_string())]),
            named: BTreeMap::new(),
            dial: Arc::new(|_| Err(Error::internal("there is no other voter"))),
            snapshot_entries: 5_000,
        });
        let catalog = catalog.await.unwrap();
        let (_, pkcs8) = SigningKey::generate().unwrap();
        let bootstrap = Command::Bootstrap {
            cluster_id: new_ulid(),
            signing_key_pkcs8: pkcs8.into(),
            admin_user: "admin".to_owned(),
            admin_password_hash: password::hash("secret").unwrap(),
        };
        for command in std::iter::once(bootstrap).chain(registrations()) {
            catalog.propose(command).await.unwrap();
        }
        let identity = TlsIdentity::load(&files).unwrap();
        let config = IndexConfig::new(dir.path().to_owned(), url_address(&url), url.clone(), files);
        let planner = Arc::new(Planner::new(Duration::from_secs(60)));
        let servers = Arc::new(servers);
        let loader = Arc::new(Loader::new(Arc::clone(&catalog), Arc::clone(&servers) as _, url.to_string()));
        let server_channels = Arc::new(ChannelPool::new(tls::client_config(&identity).unwrap()));
        let sessions = Sessions::new(Arc::clone(loader.writes()));
        let tokens = CatalogTokens { catalog: Arc::clone(&catalog), planner: Arc::clone(&planner) };
        let (catalog_of, config) = (Arc::clone(&catalog), Arc::new(config));
        let service =
            FlightSqlServer::new(catalog_of, planner, loader, sessions, server_channels, config).into_service();
        let shutdown = CancellationToken::new();
        let auth = AuthLayer::new(Arc::new(tokens));
        let server_config = tls::server_config(&identity).unwrap();
        tokio::spawn(net::serve(listener, server_config, auth, Routes::new(service), shutdown.clone()));
        let roots = tls::trust_roots(ca.certificate_file()).unwrap();
        let channels = ChannelPool::new(tls::user_client_config(roots).unwrap());
        Self { catalog, channels, servers, url, _stop: shutdown.drop_guard(), _dir: dir }
    }

    fn stranger(&self) -> Client {
        FlightSqlServiceClient::new(self.channels.channel(&self.url).unwrap())
    }

    async fn login(&self, user: &str, password: &str) -> Client {
        let mut client = self.stranger();
        client.handshake(user, password).await.unwrap();
        client
    }

    async fn admin(&self) -> Client {
        self.login("admin", "secret").await
    }
}

fn url_address(url: &Url) -> std::net::SocketAddr {
    format!("127.0.0.1:{}", url.port().unwrap()).parse().unwrap()
}

fn wire(error: FlightError) -> WireError {
    match error {
        FlightError::Tonic(status) => WireError::from(*status),
        other => panic!("not an error of the server: {other}"),
    }
}

/// Runs a statement that returns no rows.
async fn run(client: &mut Client, sql: &str) -> i64 {
    client.execute_update(sql.to_owned(), None).await.unwrap_or_else(|error| panic!("{sql}: {}", wire(error)))
}

async fn refused(client: &mut Client, sql: &str) -> WireError {
    wire(client.execute(sql.to_owned(), None).await.expect_err(sql))
}

async fn pull(client: &mut Client, info: FlightInfo) -> String {
    let mut batches = Vec::new();
    for endpoint in &info.endpoint {
        assert!(endpoint.location.is_empty(), "what the catalog knows is pulled from the same server");
        let stream = client.do_get(endpoint.ticket.clone().unwrap()).await.unwrap();
        batches.extend(stream.try_collect::<Vec<_>>().await.unwrap());
    }
    let schema = info.try_decode_schema().unwrap();
    for batch in &batches {
        assert_eq!(batch.schema().fields(), schema.fields(), "rows have the schema that was announced");
    }
    pretty_format_batches(&batches).unwrap().to_string()
}

async fn rows_of(client: &mut Client, sql: &str) -> String {
    let info = client.execute(sql.to_owned(), None).await.unwrap_or_else(|error| panic!("{sql}: {}", wire(error)));
    pull(client, info).await
}

/// The first answer may have been lost on its way, so that the client asks again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_definition_that_is_asked_for_twice_under_one_id_is_made_once() {
    let front = Front::new().await;
    let mut client = front.admin().await;
    for (number, sql) in [
        "CREATE SCHEMA s",
        "CREATE TABLE s.t (id BIGINT PRIMARY KEY, a TEXT)",
        "CREATE TABLE s.u AS SELECT id, a FROM s.t WITH NO DATA",
        "CREATE VIEW s.v AS SELECT id FROM s.t",
        "ALTER TABLE s.t ADD COLUMN b TEXT",
        "ALTER TABLE s.t RENAME COLUMN b TO c",
        "ALTER TABLE s.u RENAME TO w",
        "COMMENT ON TABLE s.t IS 'rows'",
        "CREATE USER ada WITH PASSWORD 'a long one'",
        "DROP USER ada",
        "DROP VIEW s.v",
        "DROP TABLE s.t",
        "DROP SCHEMA s CASCADE",
    ]
    .into_iter()
    .enumerate()
    {
        client.set_header("drsdb-statement-id", drsdb_core::Ulid(1 + number as u128).to_string());
        assert_eq!(run(&mut client, sql).await, 0, "{sql}");
        assert_eq!(run(&mut client, sql).await, 0, "{sql}, again");
    }
    client.set_header("drsdb-statement-id", drsdb_core::Ulid(100).to_string());
    assert_eq!(refused(&mut client, "DROP SCHEMA s").await.code, ErrorCode::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_that_is_planned_once_more_has_what_is_left_of_its_time() {
    let front = Front::new().await;
    let mut client = front.admin().await;
    let set = v1::SessionOptions { statement_timeout_ms: Some(60_000), ..Default::default() };
    client.set_header("cookie", format!("drsdb_session={}", URL_SAFE_NO_PAD.encode(set.encode_to_vec())));
    let time_limit = async |client: &mut Client| {
        let info = client.execute("SELECT 1 AS one".to_owned(), None).await.unwrap();
        let signed = v1::Signed::decode(info.endpoint[0].ticket.clone().unwrap().ticket).unwrap();
        v1::Ticket::decode(signed.body).unwrap().time_limit.unwrap()
    };
    assert!(time_limit(&mut client).await.left_ms > 40_000);
    client.set_header("drsdb-spent-ms", "30000");
    let times = time_limit(&mut client).await;
    assert_eq!(times.allowed_ms, 60_000);
    assert!(times.left_ms <= 30_000, "{times:?}");
    client.set_header("drsdb-spent-ms", "-1");
    assert_eq!(refused(&mut client, "SELECT 1 AS one").await.code, ErrorCode::InvalidArgument);
}

const LOG_IN_AGAIN: &str = "log in again with user and password";
const PARENT: &str = "CREATE TABLE parent (a INT, b TEXT, note VARCHAR(10), PRIMARY KEY (b, a)) WITH (shards = 2)";
const CHILD: &str = "CREATE TABLE child (id BIGINT PRIMARY KEY, pa INT, pb TEXT, price DECIMAL(10,2) NOT NULL,
                     CONSTRAINT to_parent FOREIGN KEY (pb, pa) REFERENCES parent (b, a)) WITH (engine = 'row')";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_right_password_logs_in() {
    let front = Front::new().await;
    for (user, password) in [("admin", "wrong"), ("nobody", "secret"), ("", "")] {
        assert!(front.stranger().handshake(user, password).await.is_err(), "{user}");
    }
    let error = refused(&mut front.stranger(), "SELECT 1").await;
    assert_eq!(error.code, ErrorCode::Unauthenticated);
    assert!(rows_of(&mut front.admin().await, "SELECT 1 AS one").await.contains("| 1   |"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ddl_has_run_when_it_is_answered() {
    let front = Front::new().await;
    let mut client = front.admin().await;
    let info = client.execute(PARENT.to_owned(), None).await.unwrap();
    assert!(front.catalog.state().table_by_name(&TableName::new("public", "parent")).is_some());
    let written = v1::WriteResult::decode(&info.app_metadata[..]).unwrap();
    assert_eq!((written.rows, written.version), (0, front.catalog.state().version()));
    assert!(info.clone().try_decode_schema().unwrap().fields().is_empty());
    // Redeeming the ticket, even twice, runs nothing again.
    let before = front.catalog.state().version();
    for _ in 0..2 {
        assert_eq!(pull(&mut client, info.clone()).await.lines().count(), 2);
    }
    assert_eq!(front.catalog.state().version(), before);

    assert_eq!(refused(&mut client, PARENT).await.code, ErrorCode::AlreadyExists);
    run(&mut client, &PARENT.replace("TABLE", "TABLE IF NOT EXISTS")).await;
    run(&mut client, CHILD).await;
    assert!(!refused(&mut client, "DROP TABLE parent").await.message.is_empty());
    let missing = refused(&mut client, "DROP TABLE child, parnt").await;
    assert_eq!((missing.code, missing.hint.as_str()), (ErrorCode::NotFound, "did you mean public.parent?"));
    assert!(front.catalog.state().table_by_name(&TableName::new("public", "child")).is_some(), "none was dropped");
    run(&mut client, "DROP TABLE child, parent").await;
    run(&mut client, "DROP TABLE IF EXISTS child").await;
    run(&mut client, "CREATE SCHEMA sales").await;
    run(&mut client, "CREATE TABLE sales.t (a INT)").await;
    assert_eq!(front.catalog.state().tables().count(), 1);
    run(&mut client, "DROP SCHEMA sales CASCADE").await;
    assert_eq!(front.catalog.state().tables().count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_catalog_describes_itself() {
    let front = Front::new().await;
    let mut client = front.admin().await;
    for sql in ["CREATE SCHEMA sales", PARENT, CHILD, "CREATE TABLE sales.parent (x INT)"] {
        run(&mut client, sql).await;
    }
    let mut shown = Vec::new();
    let info = client.get_catalogs().await.unwrap();
    shown.push(pull(&mut client, info).await);
    let info = client.get_table_types().await.unwrap();
    shown.push(pull(&mut client, info).await);
    for pattern in [None, Some("sal%"), Some("_ublic"), Some("x")] {
        let command = arrow_flight::sql::CommandGetDbSchemas {
            catalog: Some("drsdb".to_owned()),
            db_schema_filter_pattern: pattern.map(str::to_owned),
        };
        let info = client.get_db_schemas(command).await.unwrap();
        shown.push(pull(&mut client, info).await);
    }
    for (catalog, schema, table, types) in [
        (None, None, None, vec![]),
        (None, Some("public"), Some("par%"), vec!["TABLE"]),
        (Some("other"), None, None, vec![]),
        (None, None, None, vec!["VIEW"]),
    ] {
        let command = arrow_flight::sql::CommandGetTables {
            catalog: catalog.map(str::to_owned),
            db_schema_filter_pattern: schema.map(str::to_owned),
            table_name_filter_pattern: table.map(str::to_owned),
            table_types: types.into_iter().map(str::to_owned).collect(),
            include_schema: false,
        };
        let info = client.get_tables(command).await.unwrap();
        shown.push(pull(&mut client, info).await);
    }
    let info = client.get_primary_keys(arrow_flight::sql::CommandGetPrimaryKeys {
        catalog: None,
        db_schema: Some("public".to_owned()),
        table: "parent".to_owned(),
    });
    let info = info.await.unwrap();
    shown.push(pull(&mut client, info).await);
    let info = client.get_exported_keys(arrow_flight::sql::CommandGetExportedKeys {
        catalog: None,
        db_schema: None,
        table: "parent".to_owned(),
    });
    let exported = info.await.unwrap();
    let exported = pull(&mut client, exported).await;
    let info = client.get_imported_keys(arrow_flight::sql::CommandGetImportedKeys {
        catalog: None,
        db_schema: None,
        table: "child".to_owned(),
    });
    let imported = info.await.unwrap();
    assert_eq!(pull(&mut client, imported).await, exported);
    let info = client.get_cross_reference(arrow_flight::sql::CommandGetCrossReference {
        pk_catalog: None,
        pk_db_schema: Some("public".to_owned()),
        pk_table: "parent".to_owned(),
        fk_catalog: None,
        fk_db_schema: None,
        fk_table: "child".to_owned(),
    });
    let crossed = info.await.unwrap();
    assert_eq!(pull(&mut client, crossed).await, exported);
    shown.push(exported);
    for sql in ["SHOW TABLES", "SHOW SCHEMAS", "DESCRIBE child", "SHOW TABLES FROM sales"] {
        shown.push(rows_of(&mut client, sql).await);
    }
    insta::assert_snapshot!(shown.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_are_described_with_their_sql_types() {
    let front = Front::new().await;
    let mut client = front.admin().await;
    run(&mut client, PARENT).await;
    run(&mut client, CHILD).await;
    let command = arrow_flight::sql::CommandGetTables { include_schema: true, ..Default::default() };
    let info = client.get_tables(command).await.unwrap();
    let stream = client.do_get(info.endpoint[0].ticket.clone().unwrap()).await.unwrap();
    let batches: Vec<RecordBatch> = stream.try_collect().await.unwrap();
    let schemas = batches[0].column_by_name("table_schema").unwrap();
    let bytes = arrow::array::AsArray::as_binary::<i32>(schemas).value(0).to_vec();
    let schema = arrow::datatypes::Schema::try_from(arrow_flight::IpcMessage(bytes.into())).unwrap();
    let price = schema.field_with_name("price").unwrap();
    assert_eq!(price.data_type().to_string(), "Decimal128(10, 2)");
    assert_eq!(price.metadata()["ARROW:FLIGHT:SQL:TYPE_NAME"], "DECIMAL(10,2)");
    assert_eq!(price.metadata()["ARROW:FLIGHT:SQL:SCALE"], "2");
    assert!(!price.is_nullable());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sql_and_type_infos_are_there() {
    let front = Front::new().await;
    let mut client = front.admin().await;
    let info =
        client.get_sql_info(vec![SqlInfo::FlightSqlServerName, SqlInfo::FlightSqlServerTransaction]).await.unwrap();
    let shown = pull(&mut client, info).await;
    assert!(shown.contains("drsdb") && shown.lines().count() == 6, "{shown}");
    let info = client.get_sql_info(vec![]).await.unwrap();
    assert!(pull(&mut client, info).await.lines().count() > 40);
    let command = arrow_flight::sql::CommandGetXdbcTypeInfo { data_type: None };
    let info = client.get_xdbc_type_info(command).await.unwrap();
    assert_eq!(pull(&mut client, info).await.lines().count(), 18 + 4);
    let command = arrow_flight::sql::CommandGetXdbcTypeInfo { data_type: Some(-5) };
    let info = client.get_xdbc_type_info(command).await.unwrap();
    assert!(pull(&mut client, info).await.contains("BIGINT"));
}

fn ids(values: impl IntoIterator<Item = i64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(values))
}

fn ingest(table: &str, not_exist: TableNotExistOption, exists: TableExistsOption) -> CommandStatementIngest {
    CommandStatementIngest {
        table_definition_options: Some(TableDefinitionOptions {
            if_not_exist: not_exist.into(),
            if_exists: exists.into(),
        }),
        table: table.to_owned(),
        schema: None,
        catalog: None,
        temporary: false,
        transaction_id: None,
        options: Default::default(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_loads_create_append_and_fail() {
    let front = Front::new().await;
    let mut client = front.admin().await;
    let good =
        || RecordBatch::try_from_iter([("id", ids(0..1000)), ("twice", ids((0..1000).map(|id| 2 * id)))]).unwrap();
    let bad = || {
        let words = Arc::new(StringArray::from(vec!["x"])) as ArrayRef;
        RecordBatch::try_from_iter([("id", words), ("twice", ids(0..1))]).unwrap()
    };
    use TableExistsOption as Exists;
    use TableNotExistOption as Missing;
    let load = async |client: &mut Client, command: CommandStatementIngest, rows: RecordBatch| {
        client.execute_ingest(command, stream::iter([Ok(rows.clone()), Ok(rows)])).await.map_err(wire)
    };
    let table = TableName::new("public", "t");
    let missing = load(&mut client, ingest("t", Missing::Fail, Exists::Append), good()).await.unwrap_err();
    assert_eq!(missing.code, ErrorCode::NotFound);
    let mut command = ingest("t", Missing::Create, Exists::Fail);
    command
        .options
        .extend([("primary_key", "id"), ("shards", "5")].map(|(key, value)| (key.to_owned(), value.to_owned())));
    assert_eq!(load(&mut client, command.clone(), good()).await.unwrap(), 2000);
    let state = front.catalog.state();
    let made = state.find_table(&table).unwrap();
    assert_eq!((made.rows(), made.table.shards, made.table.primary_key.as_slice()), (2000, 5, &[0][..]));
    assert_eq!(load(&mut client, command, good()).await.unwrap_err().code, ErrorCode::AlreadyExists);
    assert_eq!(load(&mut client, ingest("t", Missing::Fail, Exists::Append), good()).await.unwrap(), 2000);
    assert_eq!(front.catalog.state().find_table(&table).unwrap().rows(), 4000);
    let replace = load(&mut client, ingest("t", Missing::Create, Exists::Replace), good()).await.unwrap_err();
    assert_eq!(replace.code, ErrorCode::Unsupported);
    let value = load(&mut client, ingest("t", Missing::Fail, Exists::Append), bad()).await.unwrap_err();
    assert_eq!(value.code, ErrorCode::InvalidValue, "{value:?}");
    assert_eq!(value.fields.get("row").map(String::as_str), Some("1"), "{value:?}");
    assert_eq!(front.catalog.state().find_table(&table).unwrap().rows(), 4000);
    let mut temporary = ingest("u", Missing::Create, Exists::Append);
    temporary.temporary = true;
    assert_eq!(load(&mut client, temporary, good()).await.unwrap_err().code, ErrorCode::Unsupported);
    let mut option = ingest("u", Missing::Create, Exists::Append);
    option.options.insert("shard".to_owned(), "1".to_owned());
    assert_eq!(load(&mut client, option, good()).await.unwrap_err().hint, "did you mean shards?");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_table_of_a_failed_bulk_load_does_not_stay() {
    let front = Front::with_servers(Servers { refuse_message: Some(0), ..Servers::default() }).await;
    let mut client = front.admin().await;
    let rows = RecordBatch::try_from_iter([("id", ids(0..10))]).unwrap();
    let command = ingest("t", TableNotExistOption::Create, TableExistsOption::Fail);
    let error = wire(client.execute_ingest(command, stream::iter([Ok(rows)])).await.unwrap_err());
    // A full disk: another replica decides when it is run again.
    assert_eq!((error.code, error.fields["outcome"].as_str()), (ErrorCode::Unavailable, "none"), "{error:?}");
    assert!(error.fields["cause"].contains("no space"), "{error:?}");
    assert_eq!(front.catalog.state().all_tables().count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loads_that_all_may_make_the_table_add_to_the_one_that_is_made() {
    let front = Front::new().await;
    let loads = join_all((0..5).map(|_| front.admin())).await.into_iter().zip(0..).map(|(mut client, at)| async move {
        let command = ingest("t", TableNotExistOption::Create, TableExistsOption::Append);
        let rows = RecordBatch::try_from_iter([("id", ids(at * 10..(at + 1) * 10))]).unwrap();
        client.execute_ingest(command, stream::iter([Ok(rows)])).await
    });
    for loaded in join_all(loads).await {
        assert_eq!(loaded.unwrap(), 10);
    }
    let state = front.catalog.state();
    assert_eq!(state.find_table(&TableName::new("public", "t")).unwrap().rows(), 50);
    assert_eq!((state.all_tables().count(), state.making().count()), (1, 0));
}

/// Storage servers keep the load waiting, and others look.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_is_loaded_is_seen_with_its_rows_or_not_at_all() {
    let servers = Servers { hold: Some(Default::default()), ..Servers::default() };
    let front = Front::with_servers(servers).await;
    let (mut client, mut loader) = (front.admin().await, front.admin().await);
    let command = ingest("t", TableNotExistOption::Create, TableExistsOption::Fail);
    let rows = RecordBatch::try_from_iter([("id", ids(0..10))]).unwrap();
    let load = tokio::spawn(async move { loader.execute_ingest(command, stream::iter([Ok(rows)])).await });
    let mut versions = front.catalog.watch();
    versions.wait_for(|_| front.catalog.state().making().count() == 1).await.unwrap();

    assert!(!rows_of(&mut client, "SHOW TABLES").await.contains("| t "));
    for listed in ["information_schema.tables", "drsdb.tables", "drsdb.shards", "drsdb.replicas"] {
        let sql = format!("SELECT count(*) AS n FROM {listed} WHERE table_name = 't'");
        assert!(rows_of(&mut client, &sql).await.contains("| 0 |"), "{listed}");
    }
    for sql in ["SELECT * FROM t", "INSERT INTO t VALUES (1)", "DROP TABLE t", "CREATE TABLE u (r BIGINT REFERENCES t)"]
    {
        assert_eq!(refused(&mut client, sql).await.code, ErrorCode::NotFound, "{sql}");
    }
    for sql in ["CREATE TABLE t (a INT)", "CREATE TABLE IF NOT EXISTS t (a INT)", "CREATE TABLE t AS SELECT 1 AS a"] {
        assert_eq!(refused(&mut client, sql).await.code, ErrorCode::Conflict, "{sql}");
    }
    // A client that goes away leaves nothing.
    load.abort();
    versions.wait_for(|_| front.catalog.state().all_tables().count() == 0).await.unwrap();
    run(&mut client, "CREATE TABLE t (a INT)").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prepared_statements_carry_everything_in_their_handle() {
    let front = Front::new().await;
    let mut client = front.admin().await;
    run(&mut client, "CREATE TABLE t (id BIGINT PRIMARY KEY, name TEXT)").await;
    assert_eq!(run(&mut client, "INSERT INTO t VALUES (1, 'a'), (2, NULL)").await, 2);
    let mut insert = client.prepare("INSERT INTO t (id, name) VALUES (?, upper(?))".to_owned(), None).await.unwrap();
    assert!(insert.dataset_schema().unwrap().fields().is_empty());
    let names: Vec<String> = insert
        .parameter_schema()
        .unwrap()
        .fields()
        .iter()
        .map(|field| format!("{} {}", field.name(), field.data_type()))
        .collect();
    assert_eq!(names, ["$1 Int64", "$2 Utf8"]);
    let words: ArrayRef = Arc::new(StringArray::from(vec!["x", "y", "z"]));
    insert.set_parameters(RecordBatch::try_from_iter([("a", ids(10..13)), ("b", words)]).unwrap()).unwrap();
    assert_eq!(insert.execute_update().await.unwrap(), 3);
    insert.close().await.unwrap();
    assert_eq!(front.catalog.state().find_table(&TableName::new("public", "t")).unwrap().rows(), 5);

    let mut client = front.admin().await;
    let mut query = client.prepare("SELECT $1 + 1 AS next".to_owned(), None).await.unwrap();
    assert_eq!(query.dataset_schema().unwrap().field(0).name(), "next");
    query.set_parameters(RecordBatch::try_from_iter([("n", ids([41]))]).unwrap()).unwrap();
    let info = query.execute().await.unwrap();
    assert!(pull(&mut client, info).await.contains("| 42   |"));
    let unbound = wire(
        client
            .prepare("INSERT INTO t (id) VALUES (?)".to_owned(), None)
            .await
            .unwrap()
            .execute_update()
            .await
            .unwrap_err(),
    );
    assert_eq!(unbound.code, ErrorCode::InvalidArgument, "{unbound}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_come_back_in_a_cookie() {
    let front = Front::new().await;
    let mut client = front.admin().await;
    assert!(rows_of(&mut client, "SHOW time_zone").await.contains("+00:00"));
    let token = client.token().unwrap().clone();
    let mut request = tonic::Request::new(arrow_flight::FlightDescriptor::new_cmd(
        arrow_flight::sql::ProstMessageExt::as_any(&arrow_flight::sql::CommandStatementQuery {
            query: "SET time_zone = '+05:30'".to_owned(),
            transaction_id: None,
        })
        .encode_to_vec(),
    ));
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    let response = client.inner_mut().get_flight_info(request).await.unwrap();
    let cookie = response.metadata().get("set-cookie").unwrap().to_str().unwrap().split(';').next().unwrap().to_owned();
    client.set_header("cookie", cookie);
    assert!(rows_of(&mut client, "SHOW time_zone").await.contains("+05:30"));
    assert!(rows_of(&mut client, "SHOW ALL").await.contains("target_partitions"));
    assert_eq!(refused(&mut client, "SET time_zon = 'x'").await.hint, "did you mean time_zone?");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_gets_typed_errors() {
    let front = Front::new().await;
    let mut client = front.admin().await;
    run(&mut client, "CREATE TABLE t (id BIGINT PRIMARY KEY, name TEXT)").await;
    let syntax = refused(&mut client, "SELECT 1\nFROM").await;
    assert_eq!((syntax.code, syntax.fields["line"].as_str()), (ErrorCode::Syntax, "2"));
    let table = refused(&mut client, "INSERT INTO tt VALUES (1)").await;
    assert_eq!((table.code, table.hint.as_str()), (ErrorCode::NotFound, "did you mean public.t?"));
    assert_eq!(refused(&mut client, "COPY t FROM 'x.csv'").await.code, ErrorCode::Unsupported);
    let long = refused(&mut client, &format!("SELECT '{}'", "x".repeat(50_000_000))).await;
    assert_eq!(long.code, ErrorCode::ResourceExhausted);
    let deep = refused(&mut client, &format!("SELECT {}1{}", "(".repeat(10_000), ")".repeat(10_000))).await;
    assert_eq!(deep.code, ErrorCode::ResourceExhausted);
    let rows = wire(client.execute_update("SELECT 1".to_owned(), None).await.unwrap_err());
    assert_eq!(rows.code, ErrorCode::InvalidArgument);
    for garbage in [&b"garbage"[..], b"", &[0xff; 100]] {
        let error = client.do_get(Ticket::new(garbage.to_vec())).await.err().map(wire).expect("garbage is no ticket");
        assert_eq!(error.code, ErrorCode::TicketInvalid, "{error}");
    }
    // After all that, the server still answers.
    assert!(rows_of(&mut client, "SELECT 1 AS one").await.contains("| 1   |"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_do_what_they_may() {
    let front = Front::new().await;
    let mut admin = front.admin().await;
    run(&mut admin, "CREATE USER ada WITH PASSWORD 'first'").await;
    run(&mut admin, "CREATE USER IF NOT EXISTS ada WITH PASSWORD 'ignored'").await;
    assert_eq!(refused(&mut admin, "CREATE USER ada WITH PASSWORD 'x'").await.code, ErrorCode::AlreadyExists);
    let mut ada = front.login("ada", "first").await;
    for sql in ["CREATE USER bob PASSWORD 'x'", "DROP USER admin", "ALTER USER admin PASSWORD 'x'"] {
        assert_eq!(refused(&mut ada, sql).await.code, ErrorCode::PermissionDenied, "{sql}");
    }
    let token = ada.token().unwrap().clone();
    run(&mut ada, "ALTER USER ada PASSWORD 'second'").await;
    assert!(front.stranger().handshake("ada", "first").await.is_err());
    // The login of the old password counts no more, not even for the one who has set the new one.
    for sql in ["SELECT 1", "ALTER USER ada PASSWORD 'first'", "BEGIN"] {
        let error = refused(&mut ada, sql).await;
        assert_eq!((error.code, error.hint.as_str()), (ErrorCode::Unauthenticated, LOG_IN_AGAIN), "{sql}");
    }
    let mut ada = front.login("ada", "second").await;
    assert_ne!(ada.token().unwrap(), &token);
    assert!(rows_of(&mut ada, "SELECT 1 AS one").await.contains("| 1   |"));
    // A ticket is for the user who asked.
    let info = admin.execute("SHOW TABLES".to_owned(), None).await.unwrap();
    let stolen = ada.do_get(info.endpoint[0].ticket.clone().unwrap()).await.err().map(wire).unwrap();
    assert_eq!(stolen.code, ErrorCode::TicketInvalid);
    run(&mut admin, "DROP USER ada").await;
    run(&mut admin, "DROP USER IF EXISTS ada").await;
    assert_eq!(refused(&mut admin, "DROP USER ada").await.code, ErrorCode::NotFound);
    assert_eq!(refused(&mut ada, "SELECT 1").await.code, ErrorCode::Unauthenticated);
    // Another user of the same name, even with the same password, is not the one who logged in.
    run(&mut admin, "CREATE USER ada PASSWORD 'second'").await;
    assert_eq!(refused(&mut ada, "SELECT 1").await.code, ErrorCode::Unauthenticated);
    let mut ada = front.login("ada", "second").await;
    assert!(rows_of(&mut ada, "SELECT 1 AS one").await.contains("| 1   |"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_belongs_to_the_login_that_began_it() {
    let front = Front::new().await;
    let mut admin = front.admin().await;
    run(&mut admin, "CREATE USER ada PASSWORD 'first'").await;
    let mut ada = front.login("ada", "first").await;
    let transaction = ada.begin_transaction().await.unwrap();
    // Another login with the same password is the same user, and another user is not.
    let mut also_ada = front.login("ada", "first").await;
    also_ada.execute("SELECT 1".to_owned(), Some(transaction.clone())).await.unwrap();
    let error = wire(admin.execute("SELECT 1".to_owned(), Some(transaction.clone())).await.unwrap_err());
    assert_eq!(error.code, ErrorCode::PermissionDenied);
    run(&mut admin, "ALTER USER ada PASSWORD 'second'").await;
    let mut ada = front.login("ada", "second").await;
    let error = wire(ada.execute("SELECT 1".to_owned(), Some(transaction.clone())).await.unwrap_err());
    assert_eq!(error.code, ErrorCode::Conflict);
    let error = wire(ada.end_transaction(transaction, EndTransaction::Commit).await.unwrap_err());
    assert_eq!(error.code, ErrorCode::Conflict);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_that_another_server_made_of_a_newer_state_may_be_tried_again() {
    let front = Front::new().await;
    let state = front.catalog.state();
    let key = SigningKey::from_pkcs8(state.signing_key_pkcs8().unwrap()).unwrap();
    let ahead = Login { user: "ada".to_owned(), credentials: state.version() + 1 };
    let mut ada = front.stranger();
    ada.set_token(token::issue(&key, &ahead, Duration::from_secs(60)));
    assert_eq!(refused(&mut ada, "SELECT 1").await.code, ErrorCode::Unavailable);
    run(&mut front.admin().await, "CREATE USER ada PASSWORD 'first'").await;
    assert_eq!(front.catalog.state().version(), ahead.credentials);
    assert!(rows_of(&mut ada, "SELECT 1 AS one").await.contains("| 1   |"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn actions_answer_or_say_why_not() {
    let front = Front::new().await;
    let mut client = front.admin().await;
    let act = async |client: &mut Client, name: &str, body: Vec<u8>| {
        let action = Action { r#type: name.to_owned(), body: body.into() };
        let mut answers = client.do_action(action).await.map_err(wire)?;
        Ok::<_, WireError>(answers.message().await.unwrap())
    };
    let answer = act(&mut client, "drsdb.IndexServers", vec![]).await.unwrap().unwrap();
    assert_eq!(v1::IndexServers::decode(answer.body).unwrap().urls, [front.url.to_string()]);
    let near = act(&mut client, "CancelQuerry", vec![]).await.unwrap_err();
    assert_eq!((near.code, near.hint.as_str()), (ErrorCode::NotFound, "did you mean CancelQuery?"));
    assert_eq!(act(&mut client, "CancelQuery", vec![0xff]).await.unwrap_err().code, ErrorCode::InvalidArgument);
    // What only the catalog answers runs nowhere.
    let info = client.execute("SHOW TABLES".to_owned(), None).await.unwrap();
    let body = CancelFlightInfoRequest { info: Some(info) }.encode_to_vec();
    let answer = act(&mut client, "CancelFlightInfo", body).await.unwrap().unwrap();
    let status = CancelFlightInfoResult::decode(answer.body).unwrap().status;
    assert_eq!(status, CancelStatus::NotCancellable as i32);
}
