//! The Rust client on a real cluster: parameters, loads, metadata, cancelling, and endpoints with other locations.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arrow::{
    array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray},
    datatypes::Int64Type,
    error::ArrowError,
};
use drsdb_client::{Client, Error, ErrorCode, Executed, IngestMode, IngestOptions, WriteResult};
use futures::{TryStreamExt, stream};

use crate::support::{TestCluster, eventually};

fn rows(ids: impl IntoIterator<Item = i64>) -> RecordBatch {
    let ids: Vec<i64> = ids.into_iter().collect();
    let names: Vec<String> = ids.iter().map(|id| format!("name {id}")).collect();
    let columns: [(&str, ArrayRef); 2] =
        [("id", Arc::new(Int64Array::from(ids))), ("name", Arc::new(StringArray::from(names)))];
    RecordBatch::try_from_iter(columns).unwrap()
}

async fn ingest(
    client: &Client,
    batches: Vec<Result<RecordBatch, ArrowError>>,
    mode: IngestMode,
) -> Result<WriteResult, Error> {
    let options = IngestOptions { mode, ..IngestOptions::default() };
    client.ingest("people", rows([0]).schema(), stream::iter(batches), options).await
}

/// Rows, and not a count that the catalog could answer.
async fn ids(client: &Client) -> Vec<i64> {
    let result = client.collect("SELECT id FROM people WHERE name LIKE 'name%'").await.unwrap();
    let columns = result.batches.iter().flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec());
    let mut ids: Vec<i64> = columns.collect();
    ids.sort_unstable();
    ids
}

#[tokio::test(flavor = "multi_thread")]
async fn loads_are_whole_or_not_there() {
    let cluster = TestCluster::start(3).await;
    cluster.run(&["CREATE TABLE people (id BIGINT PRIMARY KEY, name TEXT)"]).await;
    let client = &cluster.client;
    // Every shard has rows from now on, so that no shard is left out of a scan as empty.
    let good = ingest(client, vec![Ok(rows(0..1000)), Ok(rows(1000..2000))], IngestMode::Append).await.unwrap();
    assert_eq!(good.rows, 2000);
    assert_eq!(ids(client).await, (0..2000).collect::<Vec<_>>());

    let broken = vec![Ok(rows(2000..9000)), Err(ArrowError::ComputeError("the source broke".to_owned()))];
    let error = ingest(client, broken, IngestMode::Append).await.unwrap_err();
    assert!(error.to_string().contains("the source broke"), "{error}");
    let duplicate = vec![Ok(rows(9000..16_000)), Ok(rows([7]))];
    let error = ingest(client, duplicate, IngestMode::Append).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::ConstraintViolation, "{error}");
    let error = ingest(client, vec![Ok(rows([1]))], IngestMode::Create).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::AlreadyExists, "{error}");
    assert_eq!(ids(client).await, (0..2000).collect::<Vec<_>>());
    // What failed holds no keys.
    ingest(client, vec![Ok(rows(2000..16_000))], IngestMode::Append).await.unwrap();
    assert_eq!(ids(client).await.len(), 16_000);
    cluster.cluster.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_makes_its_table_with_all_rows_or_not_at_all() {
    let cluster = TestCluster::start(2).await;
    let (sender, receiver) = tokio::sync::mpsc::channel::<Result<RecordBatch, ArrowError>>(1);
    let creator = cluster.client.new_session();
    let creating = tokio::spawn(async move {
        let batches = tokio_stream::wrappers::ReceiverStream::new(receiver);
        let options = IngestOptions { mode: IngestMode::Create, ..IngestOptions::default() };
        creator.ingest("people", rows([0]).schema(), batches, options).await
    });
    sender.send(Ok(rows(0..10))).await.unwrap();
    let loads = || async { cluster.value("SELECT count(*) FROM drsdb.transactions").await == "1" };
    eventually("the load has begun", loads).await;
    assert_eq!(cluster.error("SELECT * FROM people").await.code(), ErrorCode::NotFound);
    assert_eq!(cluster.error("CREATE TABLE people (id BIGINT)").await.code(), ErrorCode::Conflict);
    let error = ingest(&cluster.client, vec![Ok(rows(100..200))], IngestMode::Append).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::NotFound, "{error}");
    sender.send(Err(ArrowError::ComputeError("the source broke".to_owned()))).await.unwrap();
    assert!(creating.await.unwrap().is_err());
    // Nothing is left, the name included.
    assert_eq!(cluster.client.table("people").await.unwrap_err().code(), ErrorCode::NotFound);
    ingest(&cluster.client, vec![Ok(rows(100..200))], IngestMode::Create).await.unwrap();
    assert_eq!(ids(&cluster.client).await, (100..200).collect::<Vec<_>>());
    cluster.cluster.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn prepared_statements_and_metadata() {
    let cluster = TestCluster::start(2).await;
    cluster
        .run(&[
            "CREATE TABLE people (id BIGINT PRIMARY KEY, name TEXT)",
            "CREATE TABLE pet (id ULID PRIMARY KEY, owner BIGINT REFERENCES people (id))",
        ])
        .await;
    let client = &cluster.client;
    let mut insert = client.prepare("INSERT INTO people VALUES (?, ?)").await.unwrap();
    assert!(insert.dataset_schema().fields().is_empty());
    insert.bind(rows(0..50)).await.unwrap();
    let Executed::Write(written) = insert.execute().await.unwrap() else { panic!("an INSERT gives no rows") };
    assert_eq!(written.rows, 50);
    let mut select = client.prepare("SELECT name FROM people WHERE id = $1").await.unwrap();
    assert_eq!(select.dataset_schema().field(0).name(), "name");
    for id in [3, 17] {
        let id = Int64Array::from(vec![id]);
        let values = RecordBatch::try_from_iter([("id", Arc::new(id.clone()) as ArrayRef)]).unwrap();
        select.bind(values).await.unwrap();
        let found = select.query().await.unwrap().read_all().await.unwrap();
        assert_eq!(found.batches[0].column(0).as_string::<i32>().value(0), format!("name {}", id.value(0)));
    }
    let mut page = client.prepare("SELECT id FROM people ORDER BY id LIMIT ? OFFSET ?").await.unwrap();
    let count = |count: i64| Arc::new(Int64Array::from(vec![count])) as ArrayRef;
    page.bind(RecordBatch::try_from_iter([("limit", count(5)), ("offset", count(40))]).unwrap()).await.unwrap();
    let found = page.query().await.unwrap().read_all().await.unwrap();
    assert_eq!(found.batches[0].column(0).as_primitive::<Int64Type>().values(), &[40, 41, 42, 43, 44]);
    // A ULID is text outside, as a parameter too.
    let ulid = "01ARZ3NDEKTSV4RRFFQ69G5FAV";
    client.execute(&format!("INSERT INTO pet VALUES ('{ulid}', 3)")).await.unwrap();
    let mut by_id = client.prepare("SELECT owner FROM pet WHERE id = ?").await.unwrap();
    assert_eq!(by_id.parameter_schema().field(0).data_type(), &arrow::datatypes::DataType::Utf8);
    let value = Arc::new(StringArray::from(vec![ulid])) as ArrayRef;
    by_id.bind(RecordBatch::try_from_iter([("id", value)]).unwrap()).await.unwrap();
    assert_eq!(by_id.query().await.unwrap().read_all().await.unwrap().rows(), 1);
    for condition in
        ["IN ('01ARZ3NDEKTSV4RRFFQ69G5FAV')", "BETWEEN '00000000000000000000000000' AND '7ZZZZZZZZZZZZZZZZZZZZZZZZZ'"]
    {
        assert_eq!(client.collect(&format!("SELECT owner FROM pet WHERE id {condition}")).await.unwrap().rows(), 1);
    }
    assert_eq!(cluster.error("SELECT owner FROM pet WHERE id = 'short'").await.code(), ErrorCode::InvalidValue);

    let tables: Vec<String> = client.tables().await.unwrap().into_iter().map(|table| table.name).collect();
    assert!(tables.contains(&"people".to_owned()) && tables.contains(&"pet".to_owned()), "{tables:?}");
    let pet = client.table("pet").await.unwrap();
    assert_eq!(client.primary_key(&pet).await.unwrap(), ["id"]);
    let keys = client.foreign_keys(&pet).await.unwrap();
    assert_eq!((keys[0].parent_table.as_str(), keys[0].columns.as_slice()), ("people", &["owner".to_owned()][..]));
    cluster.cluster.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_query_ends_on_all_servers() {
    let cluster = TestCluster::start(3).await;
    cluster.run(&["CREATE TABLE people (id BIGINT PRIMARY KEY, name TEXT)"]).await;
    ingest(&cluster.client, vec![Ok(rows(0..20_000))], IngestMode::Append).await.unwrap();
    let endless = "SELECT a.id, b.name FROM people a JOIN people b ON a.id % 2 = b.id % 2";
    let mut stream = cluster.client.query(endless).await.unwrap();
    assert!(stream.try_next().await.unwrap().is_some());
    stream.cancel_handle().cancel();
    while let Ok(Some(_)) = stream.try_next().await {}
    eventually("no query runs", || async {
        let mut running = 0;
        for number in 0..3 {
            running += cluster.status(number).await.running_queries;
        }
        running == 0
    })
    .await;
    cluster.cluster.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_takes_longer_than_it_may_ends_on_all_servers() {
    let cluster = TestCluster::start(3).await;
    cluster.run(&["CREATE TABLE people (id BIGINT PRIMARY KEY, name TEXT)"]).await;
    ingest(&cluster.client, vec![Ok(rows(0..20_000))], IngestMode::Append).await.unwrap();
    let nothing_runs = || async {
        let mut busy = 0;
        for number in 0..3 {
            let status = cluster.status(number).await;
            busy += status.running_queries + status.query_pool_bytes;
        }
        busy == 0
    };
    let client = &cluster.client;
    client.execute("SET statement_timeout = '700ms'").await.unwrap();
    let pairs = "people a JOIN people b ON a.id % 2 = b.id % 2";
    let fruitless = format!("SELECT count(*) FROM {pairs} JOIN people c ON a.id + b.id + c.id < 0");
    // A whole partition in one call, each row of which looks at all before it.
    let medians = "max(m) FROM (SELECT median(v) OVER (ORDER BY v) AS m, ntile(3) OVER (ORDER BY v) AS n";
    let endless = [
        // Rows all the time, pulled from every server or from one.
        format!("SELECT a.id, b.name FROM {pairs}"),
        // No row ever: the filter of a join is all that runs.
        fruitless.clone(),
        format!("EXPLAIN ANALYZE {fruitless}"),
        "SELECT sum(v) FROM generate_series(1, 1000000000000) g(v)".to_owned(),
        format!("SELECT max(n), {medians} FROM generate_series(1, 1000000) g(v))"),
        // Rows without end, each of which takes long.
        format!(
            "SELECT sum(length({}v{})) FROM generate_series(1, 1000000000) g(v)",
            "md5(".repeat(30) + "'x' || ",
            ")".repeat(30)
        ),
        // On the index server.
        format!("SELECT max(n), {medians} FROM drsdb.raft JOIN generate_series(1, 1000000) g(v) ON id + v > 0)"),
        "SELECT count(*) FROM drsdb.raft JOIN generate_series(1, 1000000000000) g(v) ON id + v < 0".to_owned(),
    ];
    for sql in &endless {
        let started = Instant::now();
        let error = cluster.error(sql).await;
        assert_eq!(error.code(), ErrorCode::Timeout, "{sql}: {error}");
        assert!(error.to_string().contains("statement_timeout, 700ms"), "{sql}: {error}");
        assert!(error.hint().contains("SET statement_timeout"), "{sql}: {error}");
        assert!(started.elapsed() < Duration::from_secs(10), "{sql} took {:?}", started.elapsed());
        eventually("no query runs", nothing_runs).await;
    }
    let tx = client.begin().await.unwrap();
    tx.execute("DELETE FROM people WHERE id = 1").await.unwrap();
    assert_eq!(tx.collect(&fruitless).await.unwrap_err().code(), ErrorCode::Timeout);
    assert_eq!(tx.collect("SELECT id FROM people WHERE id < 3").await.unwrap().rows(), 2, "the transaction goes on");
    tx.rollback().await.unwrap();
    client.execute("SET statement_timeout = 0").await.unwrap();
    // As long as it likes, which is longer than it was allowed before.
    let slow = "SELECT count(*) FROM generate_series(1, 150000000) g(v)";
    assert_eq!(cluster.value(slow).await, "150000000");
    eventually("no query runs", nothing_runs).await;
    cluster.cluster.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_any_server_can_serve_outlives_the_first() {
    let mut cluster = TestCluster::start(3).await;
    let sql = "SELECT v FROM generate_series(1, 1000) g(v)";
    let info = cluster.client.flight_info(sql).await.unwrap();
    assert_eq!(info.endpoint.len(), 1);
    assert_eq!(info.endpoint[0].location.len(), 3, "every server that could serve it is listed");
    // Queries take turns with the servers: whichever it is, one of the next ones begins at the dead one.
    cluster.cluster.kill_storage(0).await.unwrap();
    let mut asked = 0;
    for _ in 0..12 {
        let result = cluster.client.collect(sql).await.unwrap();
        assert_eq!(result.rows(), 1000);
        asked = asked.max(result.statistics.endpoints[0].servers_asked);
    }
    assert!(asked > 1, "the dead server was never the first");
    cluster.cluster.shutdown().await.unwrap();
}

/// Both people's sum stays, whatever meets: conflicts are run again until each transfer is done once.
#[tokio::test(flavor = "multi_thread")]
async fn transactions_of_several_statements_are_run_again_on_conflict() {
    let cluster = TestCluster::start(3).await;
    cluster.run(&["CREATE TABLE people (id BIGINT PRIMARY KEY, money BIGINT NOT NULL) WITH (engine = 'row')"]).await;
    cluster.run(&["INSERT INTO people VALUES (1, 100), (2, 100)"]).await;
    let client = &cluster.client;
    let transfers = (0..8).map(|_| {
        let client = client.new_session();
        tokio::spawn(async move {
            client
                .transaction(|tx| async move {
                    tx.execute("UPDATE people SET money = money - 1 WHERE id = 1").await?;
                    tx.execute("UPDATE people SET money = money + 1 WHERE id = 2").await?;
                    Ok(())
                })
                .await
        })
    });
    let mut done = 0;
    for transfer in futures::future::join_all(transfers).await {
        match transfer.unwrap() {
            Ok(()) => done += 1,
            Err(error) => assert!(error.is_retryable(), "{error}"),
        }
    }
    assert!(done > 0);
    let expected = format!("{} {}", 100 - done, 100 + done);
    let sql = "SELECT concat(min(money), ' ', max(money)) FROM people";
    assert_eq!(cluster.value(sql).await, expected);

    let tx = client.begin().await.unwrap();
    tx.execute("DELETE FROM people WHERE id = 1").await.unwrap();
    let savepoint = tx.savepoint("all gone").await.unwrap();
    tx.execute("DELETE FROM people").await.unwrap();
    assert_eq!(tx.collect("SELECT id FROM people").await.unwrap().rows(), 0);
    savepoint.rollback().await.unwrap();
    assert_eq!(tx.collect("SELECT id FROM people").await.unwrap().rows(), 1);
    assert_eq!(cluster.value("SELECT count(*) FROM people WHERE money > 0").await, "2");
    // Dropped, it is rolled back, and holds nothing.
    drop(tx);
    let set_again = "UPDATE people SET money = 1 WHERE id = 1";
    eventually("the row is free", || async { client.execute(set_again).await.is_ok() }).await;
    cluster.cluster.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_savepoint_is_no_other_one_of_its_name() {
    let cluster = TestCluster::start(1).await;
    cluster.run(&["CREATE TABLE people (id BIGINT PRIMARY KEY, name TEXT)"]).await;
    let tx = cluster.client.begin().await.unwrap();
    let insert = async |id: i64| tx.execute(&format!("INSERT INTO people VALUES ({id}, 'name {id}')")).await.unwrap();
    let first = tx.savepoint("s").await.unwrap();
    insert(1).await;
    let second = tx.savepoint("s").await.unwrap();
    insert(2).await;
    first.rollback().await.unwrap();
    assert!(ids(&tx).await.is_empty(), "all that followed the first is undone");
    assert_eq!(second.rollback().await.unwrap_err().code(), ErrorCode::NotFound);
    insert(3).await;
    let third = tx.savepoint("s").await.unwrap();
    insert(4).await;
    first.release().await.unwrap();
    assert_eq!(third.release().await.unwrap_err().code(), ErrorCode::NotFound, "it is released with the first");
    assert_eq!(ids(&tx).await, [3, 4]);
    // By its name it is the last.
    let outer = tx.savepoint("").await.unwrap();
    insert(5).await;
    tx.execute("SAVEPOINT t").await.unwrap();
    let inner = tx.savepoint("t").await.unwrap();
    insert(6).await;
    tx.execute("ROLLBACK TO t").await.unwrap();
    assert_eq!(ids(&tx).await, [3, 4, 5]);
    inner.release().await.unwrap();
    tx.execute("ROLLBACK TO t").await.unwrap();
    outer.rollback().await.unwrap();
    assert_eq!(ids(&tx).await, [3, 4]);
    tx.commit().await.unwrap();
    assert_eq!(ids(&cluster.client).await, [3, 4]);
    cluster.cluster.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_within_a_transaction_is_a_part_of_it() {
    let cluster = TestCluster::start(3).await;
    let (client, other) = (&cluster.client, cluster.client.new_session());
    for engine in ["row", "column"] {
        let create = format!("CREATE TABLE people (id BIGINT PRIMARY KEY, name TEXT) WITH (engine = '{engine}')");
        cluster.run(&[&create, "INSERT INTO people VALUES (-1, 'name')"]).await;
        let all: Vec<i64> = (-1..5000).collect();
        for commits in [false, true] {
            let tx = client.begin().await.unwrap();
            let loaded = ingest(&tx, vec![Ok(rows(0..2000)), Ok(rows(2000..5000))], IngestMode::Append).await.unwrap();
            assert_eq!(loaded.rows, 5000);
            // Another load of the transaction fails, and is undone alone.
            let duplicate = vec![Ok(rows(5000..9000)), Ok(rows([7]))];
            let error = ingest(&tx, duplicate, IngestMode::Append).await.unwrap_err();
            assert_eq!(error.code(), ErrorCode::ConstraintViolation, "{error}");
            tx.execute("UPDATE people SET name = 'name' WHERE id < 2").await.unwrap();
            assert_eq!(ids(&tx).await, all, "{engine}");
            assert_eq!(ids(&other).await, [-1], "{engine}");
            let ended = if commits { tx.commit().await.map(drop) } else { tx.rollback().await };
            ended.unwrap();
            let expected = if commits { &all[..] } else { &all[..1] };
            assert_eq!(ids(&other).await, expected, "{engine}");
        }
        assert_eq!(cluster.value("SELECT count(*) FROM people WHERE name = 'name'").await, "3");
        cluster.run(&["DROP TABLE people"]).await;
    }
    cluster.cluster.shutdown().await.unwrap();
}
