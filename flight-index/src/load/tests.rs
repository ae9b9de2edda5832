//! Whole loads: a real catalog, and storage servers that live in memory and can be made to fail.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use arrow::{
    array::{ArrayRef, AsArray, Int64Array, StringArray},
    datatypes::Int64Type,
    ipc::reader::StreamReader,
};
use drsdb_core::{Error, ErrorCode, TableName, Ulid, ids::new_ulid, row_bytes, shard::shards_of};
use futures::stream;
use tokio::sync::Notify;

use super::{
    testing::{Servers, registrations},
    *,
};
use crate::{
    catalog::Command,
    raft::CatalogOptions,
    statement::{Statement, parse},
    transaction::{BUFFER_BYTES, Buffers, MAX_MESSAGE_BYTES, Rows, encode},
};

struct Bench {
    catalog: Arc<Catalog>,
    servers: Arc<Servers>,
    loader: Loader,
    _dir: tempfile::TempDir,
}

impl Bench {
    async fn new(servers: Servers) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(CatalogOptions {
            dir: dir.path().to_owned(),
            node_id: 1,
            voters: BTreeMap::from([(1, "https://localhost:1".to_owned())]),
            named: BTreeMap::new(),
            dial: Arc::new(|_| Err(Error::internal("there is no other voter"))),
            snapshot_entries: 5_000,
        });
        let catalog = catalog.await.unwrap();
        let bootstrap = Command::Bootstrap {
            cluster_id: new_ulid(),
            signing_key_pkcs8: Vec::new().into(),
            admin_user: "admin".to_owned(),
            admin_password_hash: String::new(),
        };
        for command in std::iter::once(bootstrap).chain(registrations()) {
            catalog.propose(command).await.unwrap();
        }
        let servers = Arc::new(servers);
        let loader = Loader::new(Arc::clone(&catalog), Arc::clone(&servers) as _, "");
        Self { catalog, servers, loader, _dir: dir }
    }

    async fn create(&self, sql: &str) -> Arc<TableState> {
        let Ok(Statement::CreateTable(table)) = parse(sql) else { panic!("{sql} creates no table") };
        let no_parents = |name: &TableName| panic!("{name} is no parent");
        let table = table.resolve(new_ulid(), 6, &no_parents).unwrap();
        self.catalog.propose(Command::CreateTable { table, if_not_exists: false }).await.unwrap();
        self.table()
    }

    fn table(&self) -> Arc<TableState> {
        Arc::clone(self.catalog.state().find_table(&TableName::new("public", "t")).unwrap())
    }
}

const TABLE: &str = "CREATE TABLE t (id BIGINT PRIMARY KEY, name TEXT) WITH (replicas = 1)";

fn batch(first: i64, rows: i64) -> RecordBatch {
    let names: StringArray = (first..first + rows).map(|id| Some(format!("the name of row {id}"))).collect();
    let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(first..first + rows));
    RecordBatch::try_from_iter([("name", Arc::new(names) as ArrayRef), ("id", ids)]).unwrap()
}

fn batches(count: i64, rows: i64) -> Vec<Result<RecordBatch>> {
    (0..count).map(|number| Ok(batch(number * rows, rows))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_row_is_staged_once_in_its_shard_and_committed() {
    let bench = Bench::new(Servers::default()).await;
    let table = bench.create(TABLE).await;
    let rows = batches(30, 8_000);
    let schema = rows[0].as_ref().unwrap().schema();
    let outcome = bench.loader.load(&table, schema, stream::iter(rows)).await.unwrap();
    assert_eq!(outcome.rows, 240_000);
    assert_eq!(outcome.version, bench.catalog.state().version());
    assert_eq!(bench.table().rows(), 240_000);

    let mut seen = BTreeSet::new();
    for ((server, shard), staged) in bench.servers.staged.lock().iter() {
        for batch in staged {
            let expected = shards_of(&[batch.column(0).clone()], 6).unwrap();
            assert!(expected.iter().all(|expected| expected == shard));
            let ids = batch.column(0).as_primitive::<Int64Type>().values();
            assert!(ids.iter().all(|id| seen.insert((*server, *id))), "a row is staged once on a server");
            let names = batch.column(1).as_string_view();
            assert!((0..batch.num_rows()).all(|row| names.value(row) == format!("the name of row {}", ids[row])));
        }
    }
    let replicas = bench.servers.staged.lock().keys().map(|(server, _)| *server).collect::<BTreeSet<_>>().len();
    assert_eq!(seen.len(), 240_000 * replicas);
    assert!(bench.servers.aborted.lock().is_empty());
    bench.catalog.shutdown().await;
}

#[tokio::test]
async fn rows_without_a_shard_key_are_spread() {
    let bench = Bench::new(Servers::default()).await;
    let table = bench.create("CREATE TABLE t (id BIGINT, name TEXT)").await;
    let rows = batches(12, 1_000);
    let schema = rows[0].as_ref().unwrap().schema();
    bench.loader.load(&table, schema, stream::iter(rows)).await.unwrap();
    let per_shard: Vec<u64> = bench.table().shards.iter().map(|shard| shard.stats.rows).collect();
    assert!(per_shard.iter().all(|rows| (1_500..2_500).contains(rows)), "{per_shard:?}");
    bench.catalog.shutdown().await;
}

#[tokio::test]
async fn a_load_without_rows_commits_nothing() {
    let bench = Bench::new(Servers::default()).await;
    let table = bench.create(TABLE).await;
    let version = bench.catalog.state().version();
    let outcome = bench.loader.load(&table, batch(0, 1).schema(), stream::iter([Ok(batch(0, 0))])).await.unwrap();
    assert_eq!(outcome, LoadOutcome { rows: 0, version });
    assert_eq!(bench.catalog.state().version(), version);
    bench.catalog.shutdown().await;
}

/// Checks that nothing of a failed load is left.
fn assert_undone(bench: &Bench) {
    assert_eq!(bench.table().rows(), 0);
    let written: BTreeSet<Ulid> = bench.servers.staged.lock().keys().map(|(transaction, _)| *transaction).collect();
    let aborted: BTreeSet<Ulid> = bench.servers.aborted.lock().iter().map(|(transaction, _)| *transaction).collect();
    assert!(written.is_subset(&aborted), "{written:?} staged, {aborted:?} aborted");
}

#[tokio::test]
async fn a_bad_value_undoes_what_was_staged_before() {
    let bench = Bench::new(Servers::default()).await;
    let table =
        bench.create("CREATE TABLE t (id SMALLINT PRIMARY KEY, name TEXT) WITH (shards = 1, replicas = 1)").await;
    // Enough rows for a piece to be sent before the bad one: the 33rd batch goes over what SMALLINT holds.
    let rows = (0..40).map(|number| Ok(batch(number * 1_000, 1_000)));
    let error = bench.loader.load(&table, batch(0, 1).schema(), stream::iter(rows)).await.unwrap_err().to_wire();
    assert_eq!(error.code, ErrorCode::InvalidValue);
    assert_eq!((error.fields["row"].as_str(), error.fields["value"].as_str()), ("32769", "32768"));
    assert_undone(&bench);
    bench.catalog.shutdown().await;
}

#[tokio::test]
async fn a_server_that_refuses_ends_the_load_everywhere() {
    let bench = Bench::new(Servers { refuse_message: Some(4), ..Servers::default() }).await;
    let table = bench.create(TABLE).await;
    let endless = stream::iter(0..).map(|number| Ok(batch(number * 8_000, 8_000)));
    let error = bench.loader.load(&table, batch(0, 1).schema(), endless).await.unwrap_err().to_wire();
    assert_eq!(error.code, ErrorCode::DiskFull);
    assert!(error.fields.contains_key("server"));
    assert_undone(&bench);
    assert_eq!(bench.servers.aborted.lock().len(), 3, "all servers that had rows are told");
    bench.catalog.shutdown().await;
}

#[tokio::test]
async fn a_statement_that_has_sent_nothing_is_undone_nowhere() {
    let bench = Bench::new(Servers::default()).await;
    let table = bench.create("CREATE TABLE t (id BIGINT PRIMARY KEY, name TEXT) WITH (shards = 1)").await;
    let options = QueryOptions::default();
    let target = Arc::new(Target::new(&bench.catalog.state(), &table, &options).unwrap());
    let mut transaction = bench.loader.writes().begin(bench.catalog.state());
    let load = async |transaction: &mut Transaction, rows: Vec<Result<RecordBatch>>| {
        let (target, schema) = (Arc::clone(&target), batch(0, 1).schema());
        Loader::load_into(transaction, target, schema, &options, stream::iter(rows)).await.map(|_| ())
    };
    let died = || Err(Error::new(ErrorCode::Unavailable, "a storage server died"));
    load(&mut transaction, batches(1, 10)).await.unwrap();
    transaction.statement_done();
    let first = transaction.sequence();
    load(&mut transaction, vec![Ok(batch(10, 10)), died()]).await.unwrap_err();
    transaction.rollback_to(first).await;
    assert!(bench.servers.rolled_back.lock().is_empty());
    // What was sent before is undone, also when all was sent and the end of the statement was not heard of: nobody has looked
    // at its foreign keys.
    let before = transaction.sequence();
    load(&mut transaction, batches(20, 10)).await.unwrap();
    transaction.settle_unfinished().await;
    assert_eq!(*bench.servers.rolled_back.lock(), BTreeSet::from([(transaction.id(), before)]));
    transaction.settle_unfinished().await;
    bench.servers.rolled_back.lock().clear();
    let second = transaction.sequence();
    load(&mut transaction, batches(40, 8_000).into_iter().chain([died()]).collect()).await.unwrap_err();
    transaction.rollback_to(second).await;
    assert_eq!(*bench.servers.rolled_back.lock(), BTreeSet::from([(transaction.id(), second)]));
    transaction.rollback_to(0).await;
    assert!(bench.servers.rolled_back.lock().contains(&(transaction.id(), 0)));
    transaction.abort().await;
    bench.catalog.shutdown().await;
}

#[tokio::test]
async fn a_client_that_goes_away_undoes_its_load() {
    let bench = Bench::new(Servers::default()).await;
    let table = bench.create(TABLE).await;
    let abort_seen = bench.servers.abort_seen.notified();
    let rows = stream::iter(batches(30, 8_000)).chain(stream::pending());
    let load = bench.loader.load(&table, batch(0, 1).schema(), rows);
    let staged = async {
        while bench.servers.messages.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        _ = load => panic!("the rows never end"),
        () = staged => {}
    }
    tokio::time::timeout(Duration::from_secs(10), abort_seen).await.expect("the servers are told");
    assert_undone(&bench);
    bench.catalog.shutdown().await;
}

#[tokio::test]
async fn a_slow_server_slows_the_client_down() {
    let bench = Bench::new(Servers { hold: Some(Notify::new()), ..Servers::default() }).await;
    let table = bench.create("CREATE TABLE t (id BIGINT PRIMARY KEY, name TEXT) WITH (shards = 1, replicas = 1)").await;
    let pulled = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&pulled);
    let rows = stream::iter(batches(100, 8_192)).inspect(move |_| {
        counter.fetch_add(1, Ordering::SeqCst);
    });
    let mut load = Box::pin(bench.loader.load(&table, batch(0, 1).schema(), rows));
    // The server takes nothing: the load must stop pulling by itself.
    let mut before = usize::MAX;
    while pulled.load(Ordering::SeqCst) != before {
        before = pulled.load(Ordering::SeqCst);
        let waited = tokio::time::timeout(Duration::from_millis(500), &mut load).await;
        assert!(waited.is_err(), "a load cannot end before its server answers");
    }
    // A piece is two batches; a handful of pieces may be under way.
    assert!(before <= 40, "{before} of 100 batches were pulled while the server took none");
    bench.servers.hold.as_ref().unwrap().notify_one();
    assert_eq!(load.await.unwrap().rows, 819_200);
    bench.catalog.shutdown().await;
}

#[tokio::test]
async fn a_table_dropped_meanwhile_is_an_error_and_nothing_stays() {
    let bench = Bench::new(Servers::default()).await;
    let table = bench.create(TABLE).await;
    let drop = Command::DropTable { name: table.table.name.clone(), if_exists: false, cascade: false };
    bench.catalog.propose(drop).await.unwrap();
    let error = bench.loader.load(&table, batch(0, 1).schema(), stream::iter(batches(1, 10))).await.unwrap_err();
    assert!(matches!(error.code(), ErrorCode::NotFound | ErrorCode::Conflict), "{error}");
    assert!(bench.servers.staged.lock().is_empty());
    bench.catalog.shutdown().await;
}

#[tokio::test]
async fn columns_are_matched_by_name() {
    let bench = Bench::new(Servers::default()).await;
    let table = bench.create("CREATE TABLE t (id BIGINT PRIMARY KEY, name TEXT, other INT NOT NULL)").await;
    let load = |names: [&'static str; 2]| {
        let (a, b) = (Arc::new(Int64Array::from(vec![1])) as ArrayRef, Arc::new(Int64Array::from(vec![2])) as ArrayRef);
        let rows = RecordBatch::try_from_iter([(names[0], a), (names[1], b)]).unwrap();
        let (schema, rows) = (rows.schema(), stream::iter([Ok(rows)]));
        async { bench.loader.load(&table, schema, rows).await.map_err(|error| error.to_wire()) }
    };
    let extra = load(["id", "nam"]).await.unwrap_err();
    assert_eq!((extra.code, extra.hint.as_str()), (ErrorCode::NotFound, "did you mean name?"));
    let missing = load(["id", "name"]).await.unwrap_err();
    assert_eq!((missing.code, missing.fields["column"].as_str()), (ErrorCode::ConstraintViolation, "other"));
    let twice = load(["id", "id"]).await.unwrap_err();
    assert_eq!(twice.code, ErrorCode::InvalidArgument);
    assert_eq!(load(["other", "id"]).await.unwrap().rows, 1);
    bench.catalog.shutdown().await;
}

#[test]
fn large_rows_become_several_messages_and_a_huge_one_is_refused() {
    let Ok(Statement::CreateTable(table)) = parse("CREATE TABLE t (name TEXT PRIMARY KEY)") else { panic!("fixed") };
    let no_parents = |name: &TableName| panic!("{name} is no parent");
    let table = table.resolve(new_ulid(), 1, &no_parents).unwrap();
    let rows = |sizes: &[usize]| {
        let names: StringArray = sizes.iter().map(|size| Some("x".repeat(*size))).collect();
        RecordBatch::try_new(transit_schema(&table), vec![Arc::new(names)]).unwrap()
    };
    // One large row among small ones, so that an even division is not enough.
    let mut sizes = vec![10; 1000];
    sizes.extend([9 << 20, 9 << 20]);
    let messages = encode(&table, Rows::Inserted, &[rows(&sizes), rows(&[1])]).unwrap();
    let read = messages.iter().flat_map(|message| StreamReader::try_new(&message[..], None).unwrap());
    assert_eq!(read.map(|batch| batch.unwrap().num_rows()).sum::<usize>(), 1003);
    assert!(messages.len() > 1 && messages.iter().all(|message| message.len() <= MAX_MESSAGE_BYTES));
    let huge = encode(&table, Rows::Inserted, &[rows(&[16 << 20])]).unwrap_err();
    assert_eq!(huge.code(), ErrorCode::ResourceExhausted);
}

#[test]
fn buffers_never_hold_more_than_their_budget() {
    let shards = 512;
    let mut buffers = Buffers::new(shards);
    let (mut sent, mut ready) = (0, Vec::new());
    let rows = batch(0, 1_000);
    let bytes = row_bytes(&rows);
    for number in 0..4_000 {
        buffers.add(number % shards, rows.clone(), &mut ready);
        sent += ready.drain(..).map(|piece| piece.batches.len()).sum::<usize>();
        let held = (number as usize + 1 - sent) * bytes;
        assert!(held <= BUFFER_BYTES, "{held} bytes are held after {number} batches");
    }
    sent += buffers.finish().iter().map(|piece| piece.batches.len()).sum::<usize>();
    assert_eq!(sent, 4_000);
}

/// A client can go away at any moment, also while Raft commits its load: then the rows must not be undone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_raft_commits_is_not_undone_when_the_client_goes_away() {
    let bench = Bench::new(Servers::default()).await;
    let table = bench.create(TABLE).await;
    let loader = Arc::new(Loader::new(Arc::clone(&bench.catalog), Arc::clone(&bench.servers) as _, ""));
    let mut committed = 0;
    for round in 0..300 {
        let (loader, table) = (Arc::clone(&loader), Arc::clone(&table));
        let rows = batches(1, 10);
        let schema = rows[0].as_ref().unwrap().schema();
        let load = tokio::spawn(async move { loader.load(&table, schema, stream::iter(rows)).await });
        // A little later in each round, over the whole of a load.
        #[allow(clippy::disallowed_methods)]
        tokio::time::sleep(Duration::from_micros(round * 40)).await;
        load.abort();
        let _ = load.await;
        // Raft's order: what was proposed before this is decided after it.
        bench.catalog.propose(Command::AbortTransaction { transaction: new_ulid() }).await.unwrap();
        let transactions: BTreeSet<Ulid> =
            bench.servers.staged.lock().keys().map(|(transaction, _)| *transaction).collect();
        let aborted: BTreeSet<Ulid> = bench.servers.aborted.lock().iter().map(|(id, _)| *id).collect();
        let state = bench.catalog.state();
        for transaction in transactions {
            let is_committed = matches!(state.outcome(transaction), Some(crate::catalog::Outcome::Committed { .. }));
            assert!(!(is_committed && aborted.contains(&transaction)), "round {round}: committed, and undone");
            committed += usize::from(is_committed);
        }
        bench.servers.staged.lock().clear();
    }
    // Which side of the commit a round hits is chance; that what is dropped before it is undone, other tests show.
    assert!(committed > 0, "no load was committed");
    bench.catalog.shutdown().await;
}
