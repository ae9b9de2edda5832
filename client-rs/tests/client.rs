//! The client against servers of its own protocol over real TLS: parallel pulls, order, bounds, failures, logins, loads.

// A failed step of a test ends it.
#![allow(clippy::unwrap_used)]
// `vec![0..5]` is one range of rows, and is meant.
#![allow(clippy::single_range_in_vec_init)]

#[path = "client/fake.rs"]
mod fake;
#[path = "client/retries.rs"]
mod retries;
#[path = "client/transactions.rs"]
mod transactions;

use std::{
    io::{Read, Write},
    sync::{Arc, atomic::Ordering},
};

use arrow::{
    array::RecordBatch,
    datatypes::{DataType, Field, Schema},
};
use arrow_flight::FlightInfo;
use drsdb_client::{Client, Error, ErrorCode, Executed, IngestMode, IngestOptions, WireError, WriteResult};
use drsdb_proto::v1;
use fake::*;
use futures::{StreamExt, TryStreamExt, stream};
use prost::Message;
use tokio::sync::{Barrier, Notify};
use url::Url;

/// An index server and some storage servers.
struct Cluster {
    tls: Tls,
    script: Arc<Script>,
    index: FakeServer,
    storage: Vec<FakeServer>,
}

impl Cluster {
    fn start(storage: usize) -> Self {
        let tls = Tls::new(&[&rustls::version::TLS13]);
        let script = Arc::new(Script::default());
        let index = FakeServer::start(&tls, &script);
        let storage = (0..storage).map(|_| FakeServer::start(&tls, &script)).collect();
        script.index_servers.lock().push(index.url.clone());
        Cluster { tls, script, index, storage }
    }

    async fn connect(&self) -> Client {
        Client::connect(self.tls.options([self.index.url.clone()])).await.unwrap()
    }

    fn location(&self, server: usize) -> Vec<Url> {
        vec![self.storage[server].url.clone()]
    }
}

#[tokio::test]
async fn endpoints_are_pulled_at_once_and_directly() {
    let cluster = Cluster::start(3);
    // Each part waits until the others have begun: pulled one after the other they would wait for ever.
    let barrier = Arc::new(Barrier::new(3));
    let mut parts = Vec::new();
    for (server, name) in ["a", "b", "c"].into_iter().enumerate() {
        let first = server as i64 * 100;
        let batches = vec![first..first + 10, first + 10..first + 20];
        cluster.script.part(name, Part { batches, barrier: Some(barrier.clone()), ..Default::default() });
        parts.push((name, cluster.location(server)));
    }
    cluster.script.answer("SELECT", info(&parts));

    let client = cluster.connect().await;
    let mut rows = client.query("SELECT").await.unwrap();
    assert_eq!(rows.schema(), schema());
    let mut pulled = values(&mut rows).await.unwrap();
    pulled.sort();
    assert_eq!(pulled, (0..20).chain(100..120).chain(200..220).collect::<Vec<_>>());

    let statistics = rows.statistics();
    assert_eq!(statistics.rows(), 60);
    assert!(statistics.bytes() > 60 * 8);
    for (endpoint, server) in statistics.endpoints.iter().zip(&cluster.storage) {
        assert_eq!(format!("{}/", endpoint.server), server.url.as_str());
        assert_eq!((endpoint.rows, endpoint.batches, endpoint.servers_asked), (20, 2, 1));
    }
}

#[tokio::test]
async fn an_ordered_result_keeps_its_order_while_all_parts_are_pulled() {
    let cluster = Cluster::start(3);
    let gate = Arc::new(Notify::new());
    let last = Part { batches: vec![20..30], ..Default::default() };
    let last_sent = last.dropped.clone();
    let first = Part { batches: vec![0..5, 5..10], gate: Some(gate.clone()), ..Default::default() };
    cluster.script.part("first", first);
    cluster.script.part("second", Part { batches: vec![10..20], ..Default::default() });
    cluster.script.part("third", last);
    let parts = [("first", cluster.location(0)), ("second", cluster.location(1)), ("third", cluster.location(2))];
    cluster.script.answer("SELECT ordered", info(&parts).with_ordered(true));

    let client = cluster.connect().await;
    let rows = client.query("SELECT ordered").await.unwrap();
    assert!(rows.ordered());
    // The third part is sent in full before the first one begins.
    last_sent.notified().await;
    gate.notify_one();
    assert_eq!(values(rows).await.unwrap(), (0..30).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_slow_consumer_bounds_what_is_pulled() {
    let cluster = Cluster::start(2);
    let (rows_per_batch, batches) = (8192i64, 400);
    let parts: Vec<Part> =
        (0..2).map(|_| Part { batches: vec![0..rows_per_batch; batches], ..Default::default() }).collect();
    for (part, name) in parts.iter().zip(["a", "b"]) {
        cluster.script.part(name, part.clone());
    }
    for ordered in [true, false] {
        let sql = format!("SELECT {ordered}");
        let endpoints = [("a", cluster.location(0)), ("b", cluster.location(1))];
        cluster.script.answer(&sql, info(&endpoints).with_ordered(ordered));
        parts.iter().for_each(|part| part.produced.store(0, Ordering::SeqCst));

        let mut options = cluster.tls.options([cluster.index.url.clone()]);
        options.buffer_bytes = 1 << 20;
        options.window_bytes = 256 << 10;
        let client = Client::connect(options).await.unwrap();
        let mut rows = client.query(&sql).await.unwrap();
        let mut taken = 0;
        while let Some(batch) = rows.try_next().await.unwrap() {
            taken += batch.num_rows() as u64 / rows_per_batch as u64;
            let produced: u64 = parts.iter().map(|part| part.produced.load(Ordering::SeqCst)).sum();
            // 64 KiB a batch: 16 in the buffer; for each server 8 in the connection's window, 7 in its send buffer, and
            // some that are being encoded or decoded. All in all far from the 800 there are.
            assert!(produced - taken < 80, "{produced} batches were produced when {taken} were taken");
        }
        assert_eq!(taken, 2 * batches as u64);
    }
}

#[tokio::test]
async fn another_location_is_tried_while_no_row_was_handed_out() {
    let cluster = Cluster::start(2);
    cluster.script.part("a", Part { batches: vec![0..10], ..Default::default() });
    let locations = vec![dead_server(), cluster.storage[1].url.clone()];
    cluster.script.answer("SELECT", info(&[("a", locations)]));
    let result = cluster.connect().await.collect("SELECT").await.unwrap();
    assert_eq!(result.rows(), 10);
    assert_eq!(result.statistics.endpoints[0].servers_asked, 2);
    assert_eq!(format!("{}/", result.statistics.endpoints[0].server), cluster.storage[1].url.as_str());
}

#[tokio::test]
async fn when_no_location_answers_the_error_names_each() {
    let cluster = Cluster::start(0);
    let dead = [dead_server(), dead_server()];
    cluster.script.answer("SELECT", info(&[("a", dead.to_vec())]));
    let error = cluster.connect().await.collect("SELECT").await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::Unavailable);
    for server in dead {
        assert!(error.message().contains(server.as_str().trim_end_matches('/')), "{error}");
    }
}

#[tokio::test]
async fn a_server_that_dies_midway_is_an_error_and_never_a_short_result() {
    for ordered in [false, true] {
        let cluster = Cluster::start(2);
        cluster.script.part("a", Part { batches: vec![0..10], hangs: true, ..Default::default() });
        cluster.script.part("b", Part { batches: vec![10..20], ..Default::default() });
        // The other location is alive and would serve it: but rows were handed out.
        let locations = vec![cluster.storage[0].url.clone(), cluster.storage[1].url.clone()];
        let endpoints = [("a", locations), ("b", cluster.location(1))];
        cluster.script.answer("SELECT", info(&endpoints).with_ordered(ordered));
        let client = cluster.connect().await;
        let mut rows = client.query("SELECT").await.unwrap();
        // Wait for the part's own rows; in an unordered result others may come first.
        loop {
            rows.try_next().await.unwrap().unwrap();
            if rows.statistics().endpoints[0].rows == 10 {
                break;
            }
        }
        cluster.storage[0].kill();
        let error = loop {
            match rows.next().await {
                Some(Ok(_)) => {}
                Some(Err(error)) => break error,
                None => panic!("a short result"),
            }
        };
        assert_eq!(error.code(), ErrorCode::Unavailable, "{error}");
        let dead = cluster.storage[0].url.as_str().trim_end_matches('/');
        assert_eq!(error.field("server"), Some(dead), "{error}");
        assert!(error.message().starts_with(&format!("server {dead} was lost,")) && error.is_retryable(), "{error}");
        assert!(rows.next().await.is_none(), "a failed stream has ended");
    }
}

#[tokio::test]
async fn a_typed_error_in_the_middle_arrives_whole() {
    let cluster = Cluster::start(1);
    let error = WireError::new(ErrorCode::InvalidValue, "division by zero").with_hint("divide by something else");
    cluster.script.part("a", Part { batches: vec![0..10], error: Some(error), ..Default::default() });
    cluster.script.answer("SELECT", info(&[("a", cluster.location(0))]));
    let error = cluster.connect().await.collect("SELECT").await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::InvalidValue);
    assert_eq!(error.message(), "division by zero");
    assert_eq!(error.hint(), "divide by something else");
}

#[tokio::test]
async fn a_part_with_other_columns_is_refused() {
    let cluster = Cluster::start(1);
    let other = Arc::new(Schema::new(vec![Field::new("m", DataType::Int64, false)]));
    cluster.script.part("a", Part { answer: Some(RecordBatch::new_empty(other)), ..Default::default() });
    cluster.script.answer("SELECT", info(&[("a", cluster.location(0))]));
    let error = cluster.connect().await.collect("SELECT").await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::Corrupt);
    assert!(error.message().contains("m Int64") && error.message().contains("n Int64"), "{error}");
}

#[tokio::test]
async fn dropping_or_cancelling_a_stream_stops_its_servers() {
    let cluster = Cluster::start(1);
    let part = Part { batches: vec![0..10], hangs: true, ..Default::default() };
    cluster.script.part("a", part.clone());
    cluster.script.answer("SELECT", info(&[("a", cluster.location(0))]));
    let client = cluster.connect().await;

    let mut rows = client.query("SELECT").await.unwrap();
    rows.try_next().await.unwrap().unwrap();
    drop(rows);
    part.dropped.notified().await;

    let mut rows = client.query("SELECT").await.unwrap();
    rows.try_next().await.unwrap().unwrap();
    let handle = rows.cancel_handle();
    let waiting = tokio::spawn(async move { rows.next().await });
    handle.cancel();
    let error = waiting.await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.code(), ErrorCode::Cancelled);
    part.dropped.notified().await;
}

#[tokio::test]
async fn a_token_that_ends_is_renewed_once_for_all() {
    let cluster = Cluster::start(2);
    cluster.script.part("a", Part { batches: vec![0..10], ..Default::default() });
    cluster.script.part("b", Part { batches: vec![10..20], ..Default::default() });
    cluster.script.answer("SELECT", info(&[("a", cluster.location(0)), ("b", cluster.location(1))]));
    let client = cluster.connect().await;
    assert_eq!(cluster.script.logins.load(Ordering::SeqCst), 1);

    // Refused by the index server.
    cluster.script.end_tokens();
    assert_eq!(client.collect("SELECT").await.unwrap().rows(), 20);
    assert_eq!(cluster.script.logins.load(Ordering::SeqCst), 3, "one end and one login");

    // Refused by two storage servers at once, between the plan and the pull.
    cluster.script.end_tokens_after_statement.store(true, Ordering::SeqCst);
    assert_eq!(client.collect("SELECT").await.unwrap().rows(), 20);
    assert_eq!(cluster.script.logins.load(Ordering::SeqCst), 5, "one end and one login");
}

#[tokio::test]
async fn a_wrong_password_is_final() {
    let cluster = Cluster::start(0);
    let options = cluster.tls.options([cluster.index.url.clone()]).with_login("admin", "wrong");
    let error = Client::connect(options).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::Unauthenticated);
    assert_eq!(error.message(), "wrong user name or password");
}

#[tokio::test]
async fn a_dead_index_server_is_passed_over_dropped_and_replaced() {
    let cluster = Cluster::start(0);
    let second = FakeServer::start(&cluster.tls, &cluster.script);
    let third = FakeServer::start(&cluster.tls, &cluster.script);
    *cluster.script.index_servers.lock() = vec![cluster.index.url.clone(), second.url.clone()];
    cluster.script.answer("SELECT", info(&[]));
    let options = cluster.tls.options([dead_server(), cluster.index.url.clone()]);
    let client = Client::connect(options).await.unwrap();
    // Learnt from the one that answered; the dead seed is no longer listed.
    assert_eq!(client.index_servers(), [cluster.index.url.clone(), second.url.clone()]);

    // The current one dies: the next call goes on with the other, and it is current from then on.
    *cluster.script.index_servers.lock() = vec![second.url.clone(), third.url.clone()];
    cluster.index.kill();
    client.collect("SELECT").await.unwrap();
    assert_eq!(client.index_servers()[0], second.url);

    // It returns to the dead one only when the second fails too; that drops it, and a new list is fetched.
    second.kill();
    let error = client.collect("SELECT").await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::Unavailable);
    assert!(error.message().contains("no index server answers"), "{error}");
    for server in [&cluster.index.url, &second.url] {
        assert!(error.message().contains(server.as_str().trim_end_matches('/')), "{error}");
    }
}

#[tokio::test]
async fn a_new_list_is_fetched_after_a_drop() {
    let cluster = Cluster::start(0);
    let others: Vec<FakeServer> = (0..3).map(|_| FakeServer::start(&cluster.tls, &cluster.script)).collect();
    let url = |at: usize| others[at].url.clone();
    *cluster.script.index_servers.lock() = vec![cluster.index.url.clone(), url(0), url(1)];
    cluster.script.answer("SELECT", info(&[]));
    let client = cluster.connect().await;
    // The current one fails once; the next, of which nothing is known yet, is dropped at its first failure.
    *cluster.script.index_servers.lock() = vec![url(1), url(2)];
    cluster.index.kill();
    others[0].kill();
    client.collect("SELECT").await.unwrap();
    while client.index_servers() != [url(1), url(2)] {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_server_that_cannot_prove_who_it_is_is_refused() {
    let cluster = Cluster::start(0);
    let other = Tls::new(&[&rustls::version::TLS13]);
    let error = Client::connect(other.options([cluster.index.url.clone()])).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::Unauthenticated, "{error}");
    assert!(error.message().contains("certificate") && error.hint().contains("CA"), "{error}");
}

#[tokio::test]
async fn a_server_of_tls_1_2_or_without_tls_is_refused_with_its_name() {
    let tls = Tls::new(&[&rustls::version::TLS12]);
    let old = FakeServer::start(&tls, &Arc::default());
    let error = Client::connect(tls.options([old.url.clone()])).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::Unavailable, "{error}");
    assert!(error.message().contains(old.url.as_str().trim_end_matches('/')), "{error}");

    let plain = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = Url::parse(&format!("https://{}", plain.local_addr().unwrap())).unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = plain.accept().unwrap();
        let _ = stream.read(&mut [0; 1024]);
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    });
    let error = Client::connect(tls.options([url.clone()])).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::Unavailable, "{error}");
    assert!(error.message().contains(url.as_str().trim_end_matches('/')), "{error}");
    server.join().unwrap();

    let http = Url::parse("http://127.0.0.1:1").unwrap();
    let error = Client::connect(tls.options([http])).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::InvalidArgument, "{error}");
}

#[tokio::test]
async fn settings_belong_to_a_session() {
    let cluster = Cluster::start(0);
    for sql in ["SET a", "SELECT"] {
        cluster.script.answer(sql, info(&[]));
    }
    let client = cluster.connect().await;
    client.execute("SET a").await.unwrap();
    client.clone().execute("SELECT").await.unwrap();
    client.new_session().execute("SELECT").await.unwrap();
    let statements = cluster.script.statements.lock();
    let cookies: Vec<Option<&str>> = statements.iter().map(|(_, cookie)| cookie.as_deref()).collect();
    assert_eq!(cookies, [None, Some("session=a"), None]);
}

#[tokio::test]
async fn a_write_says_what_it_did() {
    let cluster = Cluster::start(0);
    let metadata = v1::WriteResult { rows: 3, version: 9 }.encode_to_vec();
    let done = FlightInfo::new().try_with_schema(&Schema::empty()).unwrap().with_app_metadata(metadata);
    cluster.script.answer("INSERT", done);
    let client = cluster.connect().await;
    let Executed::Write(result) = client.execute("INSERT").await.unwrap() else { panic!("rows") };
    assert_eq!(result, WriteResult { rows: 3, version: 9 });
    let stream = client.query("INSERT").await.unwrap();
    assert_eq!(stream.write_result(), result);
    assert!(values(stream).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_load_arrives_whole_or_is_aborted() {
    let cluster = Cluster::start(0);
    let client = cluster.connect().await;
    let options = || IngestOptions { mode: IngestMode::CreateAppend, schema: None };

    let batches = stream::iter((0..5).map(|at| Ok::<_, Error>(batch(at * 10..at * 10 + 10))));
    let result = client.ingest("t", schema(), batches, options()).await.unwrap();
    assert_eq!(result, WriteResult { rows: 50, version: 7 });
    let empty = stream::iter(Vec::<Result<RecordBatch, Error>>::new());
    assert_eq!(client.ingest("t", schema(), empty, options()).await.unwrap().rows, 0);
    assert_eq!(*cluster.script.loads.lock(), [(50, true), (0, true)]);
    cluster.script.load_ended.notified().await;
    cluster.script.loads.lock().clear();

    // The third batch is broken: the server must never see an end that looks like a finished load.
    let broken = Error::from(WireError::new(ErrorCode::InvalidValue, "line 21").with_field("line", 21));
    let batches = stream::iter([Ok(batch(0..10)), Ok(batch(10..20)), Err(broken.clone())]);
    let error = client.ingest("t", schema(), batches, options()).await.unwrap_err();
    assert_eq!(error, broken);
    while cluster.script.loads.lock().is_empty() {
        cluster.script.load_ended.notified().await;
    }
    assert_eq!(ends(&cluster), [false], "a broken load ended like a finished one");

    // The caller goes away in the middle.
    let begun = Arc::new(Notify::new());
    let told = begun.clone();
    let batches = stream::iter([Ok::<_, Error>(batch(0..10))]).chain(stream::poll_fn(move |_| {
        told.notify_one();
        std::task::Poll::Pending
    }));
    let load = tokio::spawn(async move { client.ingest("t", schema(), batches, IngestOptions::default()).await });
    begun.notified().await;
    load.abort();
    while cluster.script.loads.lock().is_empty() {
        cluster.script.load_ended.notified().await;
    }
    assert_eq!(ends(&cluster), [false], "an abandoned load ended like a finished one");
}

/// For each load that has ended, whether it looked finished; forgets them.
fn ends(cluster: &Cluster) -> Vec<bool> {
    cluster.script.loads.lock().drain(..).map(|(_, finished)| finished).collect()
}

#[tokio::test]
async fn a_load_that_was_refused_after_it_began_is_not_sent_again_in_part() {
    let cluster = Cluster::start(0);
    let client = cluster.connect().await;
    cluster.script.refuse_begun_loads.store(true, Ordering::SeqCst);
    let batches = stream::iter((0..50).map(|at| Ok::<_, Error>(batch(at * 10..at * 10 + 10))));
    let error = client.ingest("t", schema(), batches, IngestOptions::default()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::Unavailable, "{error}");
    assert!(cluster.script.loads.lock().is_empty(), "a part of the load was sent again");
}

#[tokio::test]
async fn a_prepared_statement_takes_its_values_along() {
    let cluster = Cluster::start(1);
    cluster.script.part("a", Part { batches: vec![0..3], ..Default::default() });
    cluster.script.answer("bound to 42", info(&[("a", cluster.location(0))]));
    let client = cluster.connect().await;
    let mut prepared = client.prepare("SELECT ?").await.unwrap();
    assert_eq!(prepared.parameter_schema(), schema());
    prepared.bind(batch(42..43)).await.unwrap();
    assert_eq!(values(prepared.query().await.unwrap()).await.unwrap(), [0, 1, 2]);
}

#[tokio::test]
async fn a_table_is_found_by_its_exact_name() {
    let cluster = Cluster::start(1);
    let mut tables = arrow_flight::sql::metadata::GetTablesBuilder::new(
        None::<String>,
        None::<String>,
        None::<String>,
        Vec::<String>::new(),
        true,
    );
    // `part_x` as a LIKE pattern matches both.
    for name in ["partax", "part_x"] {
        tables.append("drsdb", "public", name, "TABLE", &schema()).unwrap();
    }
    let batch = tables.build().unwrap();
    let columns = batch.schema();
    cluster.script.part("tables", Part { answer: Some(batch), ..Default::default() });
    let info = info(&[("tables", cluster.location(0))]).try_with_schema(&columns).unwrap();
    cluster.script.answer("CommandGetTables", info);
    let client = cluster.connect().await;
    let table = client.table("part_x").await.unwrap();
    assert_eq!((table.name.as_str(), &table.columns), ("part_x", &schema()));
    assert_eq!(client.tables().await.unwrap().len(), 2);
    let error = client.table("part_y").await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::NotFound);
    assert!(error.hint().contains("public.part"), "{error}");
}
