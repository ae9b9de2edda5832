//! What is sent again when a server is lost: reads, writes under their id, results of which nobody has seen a row, and those
//! that can go on after the rows that were seen.

use std::sync::atomic::Ordering;

use arrow_flight::FlightInfo;
use drsdb_client::{Client, ErrorCode, Executed, IngestOptions, WireError, WriteResult};
use drsdb_proto::v1;
use futures::TryStreamExt;
use prost::Message;
use url::Url;

use crate::{Cluster, fake::*};

/// A cluster with two index servers, and a client of the first.
async fn two() -> (Cluster, FakeServer, Client) {
    let cluster = Cluster::start(0);
    let second = FakeServer::start(&cluster.tls, &cluster.script);
    *cluster.script.index_servers.lock() = vec![cluster.index.url.clone(), second.url.clone()];
    let client = cluster.connect().await;
    (cluster, second, client)
}

/// What a statement without rows answers.
pub fn done(rows: u64, version: u64) -> FlightInfo {
    let metadata = v1::WriteResult { rows, version }.encode_to_vec();
    FlightInfo::new().try_with_schema(&arrow::datatypes::Schema::empty()).unwrap().with_app_metadata(metadata)
}

fn servers(calls: &[Call]) -> Vec<Url> {
    calls.iter().map(|call| call.server.clone()).collect()
}

#[tokio::test]
async fn a_lost_read_goes_to_the_next_server() {
    let (cluster, second, client) = two().await;
    cluster.script.answer("SELECT", info(&[]));
    cluster.script.deadly_once.lock().insert("SELECT".to_owned());
    client.collect("SELECT").await.unwrap();
    let calls = cluster.script.take_calls();
    assert_eq!(servers(&calls), [cluster.index.url.clone(), second.url.clone()]);
    assert!(calls.iter().all(|call| call.statement.is_none()), "{calls:?}");
}

#[tokio::test]
async fn a_lost_write_is_asked_about_under_its_id() {
    let (cluster, second, client) = two().await;
    cluster.script.answer("INSERT", done(3, 9));
    cluster.script.deadly_once.lock().insert("INSERT".to_owned());
    let Executed::Write(result) = client.execute("INSERT").await.unwrap() else { panic!("rows") };
    assert_eq!(result, WriteResult { rows: 3, version: 9 });
    let calls = cluster.script.take_calls();
    assert_eq!(servers(&calls), [cluster.index.url.clone(), second.url.clone()]);
    assert_eq!(calls[0].statement.as_ref().unwrap().len(), 26, "a ULID");
    assert_eq!(calls[0].statement, calls[1].statement);
    // Another write has another id.
    client.execute("INSERT").await.unwrap();
    assert_ne!(cluster.script.take_calls()[0].statement, calls[0].statement);
}

#[tokio::test]
async fn a_write_that_may_be_under_way_elsewhere_is_asked_about_until_that_is_decided() {
    let (cluster, second, client) = two().await;
    cluster.script.answer("INSERT", done(1, 9));
    cluster.script.deadly_once.lock().insert("INSERT".to_owned());
    // The second server meets what the first one has begun, or a disk that the first one did not need.
    for code in [ErrorCode::Conflict, ErrorCode::ConstraintViolation, ErrorCode::DiskFull] {
        cluster.script.fail("INSERT", WireError::new(code, "key 1 is taken"));
    }
    let Executed::Write(result) = client.execute("INSERT").await.unwrap() else { panic!("rows") };
    assert_eq!(result.rows, 1);
    let calls = cluster.script.take_calls();
    assert_eq!(calls.len(), 5);
    assert!(calls[1..].iter().all(|call| call.server == second.url && call.statement == calls[0].statement));

    // Of a write that was answered, a conflict is the last word.
    cluster.script.fail("INSERT", WireError::new(ErrorCode::Conflict, "key 1 is taken"));
    let Err(error) = client.execute("INSERT").await else { panic!("it succeeded") };
    assert!(error.is_retryable(), "{error}");
    assert_eq!(cluster.script.take_calls().len(), 1);
}

#[tokio::test]
async fn when_nobody_knows_what_became_of_a_write_the_error_says_so() {
    let (cluster, _second, client) = two().await;
    cluster.script.deadly.lock().insert("INSERT".to_owned());
    let Err(error) = client.execute("INSERT").await else { panic!("it succeeded") };
    assert_eq!(error.code(), ErrorCode::Unavailable, "{error}");
    assert!(error.is_outcome_unknown() && !error.is_retryable(), "{error}");
    assert_eq!(cluster.script.take_calls().len(), 2, "each server was asked");
}

#[tokio::test]
async fn a_server_that_cannot_reach_the_others_is_passed_over() {
    let (cluster, second, client) = two().await;
    for sql in ["SELECT", "INSERT"] {
        cluster.script.answer(sql, done(1, 9));
        cluster.script.fail(sql, WireError::new(ErrorCode::Unavailable, "no majority"));
        client.execute(sql).await.unwrap();
    }
    let calls = cluster.script.take_calls();
    assert_eq!(servers(&calls)[..2], [cluster.index.url.clone(), second.url.clone()]);
    for _ in 0..2 {
        cluster.script.fail("SELECT", WireError::new(ErrorCode::Unavailable, "no majority"));
    }
    let Err(error) = client.execute("SELECT").await else { panic!("it succeeded") };
    assert_eq!(error.message(), "no majority");
}

#[tokio::test]
async fn what_was_written_is_seen_at_every_server() {
    let (cluster, _second, client) = two().await;
    cluster.script.answer("INSERT", done(1, 9));
    cluster.script.answer("UPDATE", done(1, 5));
    cluster.script.answer("SELECT", info(&[]));
    client.execute("SELECT").await.unwrap();
    client.execute("INSERT").await.unwrap();
    // Versions grow, whatever comes later from a slower statement, and sessions and clones know them too.
    client.execute("UPDATE").await.unwrap();
    client.new_session().execute("SELECT").await.unwrap();
    cluster.index.kill();
    client.clone().execute("SELECT").await.unwrap();
    let batches = vec![batch(0..3)];
    client.ingest_batches("t", schema(), batches, IngestOptions::default()).await.unwrap();
    let versions: Vec<_> = cluster.script.take_calls().into_iter().map(|call| call.version).collect();
    let versions: Vec<_> = versions.iter().map(Option::as_deref).collect();
    assert_eq!(versions, [None, None, Some("9"), Some("9"), Some("9"), Some("9")]);
}

#[tokio::test]
async fn a_lost_load_of_batches_in_memory_is_sent_again() {
    let (cluster, second, client) = two().await;
    cluster.script.deadly_once.lock().insert("load".to_owned());
    let batches = vec![batch(0..10), batch(10..20)];
    let result = client.ingest_batches("t", schema(), batches, IngestOptions::default()).await.unwrap();
    assert_eq!(result.rows, 20);
    let calls = cluster.script.take_calls();
    assert_eq!(servers(&calls), [cluster.index.url.clone(), second.url.clone()]);
    assert!(calls[0].statement.is_some() && calls[0].statement == calls[1].statement);

    // A stream is there once.
    cluster.script.deadly_once.lock().insert("load".to_owned());
    let batches = futures::stream::iter([Ok::<_, drsdb_client::Error>(batch(0..10))]);
    let error = client.ingest("t", schema(), batches, IngestOptions::default()).await.unwrap_err();
    assert!(error.is_outcome_unknown(), "{error}");
}

#[tokio::test]
async fn a_result_of_which_no_row_was_seen_is_planned_again() {
    let cluster = Cluster::start(2);
    let gone = vec![dead_server()];
    cluster.script.part("a", Part { batches: vec![0..10], ..Default::default() });
    cluster.script.part("b", Part { batches: vec![10..20], ..Default::default() });
    cluster.script.answer("SELECT", info(&[("a", cluster.location(0)), ("b", gone)]));
    let client = cluster.connect().await;
    let result = client.query("SELECT").await.unwrap();
    // The next plan leaves the dead server out. What came of the first one is forgotten.
    cluster.script.answer("SELECT", info(&[("a", cluster.location(0)), ("b", cluster.location(1))]));
    let result = result.read_all().await.unwrap();
    assert_eq!(result.rows(), 20);
    assert_eq!(result.statistics.rows(), 20);
    assert_eq!(cluster.script.take_calls().len(), 2);
}

/// An answer of one part that can go on at `resume`.
fn repeatable(resume: &str, part: &str, location: Vec<Url>) -> FlightInfo {
    let metadata = v1::RepeatableAnswer { resume: resume.to_owned() }.encode_to_vec();
    info(&[(part, location)]).with_ordered(true).with_app_metadata(metadata)
}

/// A part that breaks off after its batches.
fn breaking(batches: Vec<std::ops::Range<i64>>) -> Part {
    Part {
        batches,
        error: Some(WireError::new(ErrorCode::Unavailable, "a server behind me died")),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_result_whose_order_can_be_repeated_goes_on_after_the_rows_that_were_seen() {
    let whole = || (0..40).collect::<Vec<_>>();
    // The other server has batches of its own: one ends where the first one broke off, or begins there, or goes across.
    for others in
        [vec![0..40], vec![0..20, 20..40], vec![0..7, 7..16, 16..33, 33..40], vec![0..19, 19..20, 20..21, 21..40]]
    {
        let cluster = Cluster::start(2);
        cluster.script.part("first", breaking(vec![0..10, 10..20]));
        cluster.script.part("second", Part { batches: others.clone(), ..Default::default() });
        cluster.script.answer("SELECT", repeatable("17-c0ffee", "first", cluster.location(0)));
        let client = cluster.connect().await;
        let mut rows = client.query("SELECT").await.unwrap();
        cluster.script.answer("SELECT", repeatable("17-c0ffee", "second", cluster.location(1)));
        assert_eq!(values(&mut rows).await.unwrap(), whole(), "{others:?}");
        let calls = cluster.script.take_calls();
        let resumes: Vec<_> = calls.iter().map(|call| call.resume.as_deref()).collect();
        assert_eq!(resumes, [None, Some("17-c0ffee")]);
    }
}

#[tokio::test]
async fn a_result_goes_on_more_than_once_and_from_its_start_while_nobody_has_seen_a_row() {
    let cluster = Cluster::start(1);
    cluster.script.part("nothing", breaking(vec![]));
    cluster.script.part("ten", breaking(vec![0..10]));
    cluster.script.part("fifteen", breaking(vec![0..9, 9..15]));
    cluster.script.part("all", Part { batches: vec![0..30], ..Default::default() });
    let answer = |resume, part| cluster.script.answer("SELECT", repeatable(resume, part, cluster.location(0)));
    answer("3-a", "nothing");
    let client = cluster.connect().await;
    let mut rows = client.query("SELECT").await.unwrap();
    // The second plan is of a later snapshot, and it is the one that goes on.
    answer("5-b", "ten");
    assert_eq!(rows.try_next().await.unwrap().unwrap(), batch(0..10));
    answer("5-b", "fifteen");
    assert_eq!(rows.try_next().await.unwrap().unwrap(), batch(10..15));
    answer("5-b", "all");
    assert_eq!(values(&mut rows).await.unwrap(), (15..30).collect::<Vec<_>>());
    let calls = cluster.script.take_calls();
    let resumes: Vec<_> = calls.iter().map(|call| call.resume.as_deref()).collect();
    assert_eq!(resumes, [None, None, Some("5-b"), Some("5-b")]);
    // The time that it may take goes on too: each plan comes after a pause of 200 ms at least.
    let spent: Vec<_> = calls.iter().map(|call| call.spent_ms.as_ref().map(|ms| ms.parse::<u64>().unwrap())).collect();
    assert_eq!(spent[0], None);
    for (number, spent) in (1..).zip(&spent[1..]) {
        assert!(spent.unwrap() >= number * 200, "{spent:?}");
    }
}

#[tokio::test]
async fn a_result_goes_on_as_often_as_it_makes_progress() {
    let cluster = Cluster::start(1);
    // More plans than one failure is worth, each good for one more row.
    let plan = |rows: i64| {
        let part = format!("the first {rows}");
        cluster.script.part(&part, breaking(vec![0..rows]));
        cluster.script.answer("SELECT", repeatable("5-b", &part, cluster.location(0)));
    };
    plan(1);
    let client = cluster.connect().await;
    let mut rows = client.query("SELECT").await.unwrap();
    for row in 0..10 {
        plan(row + 1);
        assert_eq!(rows.try_next().await.unwrap().unwrap(), batch(row..row + 1));
    }
    assert_eq!(cluster.script.take_calls().len(), 10);
    // Without progress there is an end to it, however often it made some before, and also where the rest is taken into memory:
    // batches that are thrown away when it begins anew are no progress.
    cluster.script.part("the first 10", breaking(vec![0..10, 10..20]));
    let error = rows.read_all().await.unwrap_err();
    assert!(error.code() == ErrorCode::Unavailable && error.is_retryable(), "{error}");
    assert_eq!(cluster.script.take_calls().len(), 7);
}

#[tokio::test]
async fn a_result_that_cannot_go_on_is_an_error() {
    let begun = async |answer: FlightInfo, rest: Part| {
        let cluster = Cluster::start(1);
        cluster.script.part("a", breaking(vec![0..10]));
        cluster.script.answer("SELECT", repeatable("17-c0ffee", "a", cluster.location(0)));
        let client = cluster.connect().await;
        let mut rows = client.query("SELECT").await.unwrap();
        rows.try_next().await.unwrap().unwrap();
        let info = FlightInfo { endpoint: info(&[("a", cluster.location(0))]).endpoint, ..answer };
        cluster.script.answer("SELECT", info);
        cluster.script.part("a", rest);
        rows.try_next().await.unwrap_err()
    };
    let rest = || Part { batches: vec![0..10, 10..20], ..Default::default() };
    // A server that has planned something else, and one that knows nothing of this.
    for answer in [repeatable("18-c0ffee", "a", vec![]), info(&[])] {
        assert_eq!(begun(answer, rest()).await.code(), ErrorCode::Conflict);
    }
    let short = Part { batches: vec![0..9], ..Default::default() };
    assert_eq!(begun(repeatable("17-c0ffee", "a", vec![]), short).await.code(), ErrorCode::Internal);

    let cluster = Cluster::start(1);
    cluster.script.part("a", breaking(vec![0..10]));
    cluster.script.answer("SELECT", repeatable("17-c0ffee", "a", cluster.location(0)));
    let client = cluster.connect().await;
    let mut rows = client.query("SELECT").await.unwrap();
    cluster.script.fail("SELECT", WireError::new(ErrorCode::Conflict, "the table was altered"));
    rows.try_next().await.unwrap().unwrap();
    assert_eq!(rows.try_next().await.unwrap_err().message(), "the table was altered");
}

#[tokio::test]
async fn a_result_of_which_a_row_was_seen_is_not_planned_again() {
    let cluster = Cluster::start(2);
    let error = WireError::new(ErrorCode::Unavailable, "a server behind me died");
    cluster.script.part("a", Part { batches: vec![0..10], error: Some(error), ..Default::default() });
    cluster.script.answer("SELECT", info(&[("a", cluster.location(0))]));
    let client = cluster.connect().await;
    let mut rows = client.query("SELECT").await.unwrap();
    rows.try_next().await.unwrap().unwrap();
    let error = rows.try_next().await.unwrap_err();
    assert!(error.message().starts_with("a server behind me died, and the result cannot go on elsewhere"), "{error}");
    assert!(error.is_retryable() && error.hint().contains("ORDER BY"), "{error}");
    assert_eq!(cluster.script.take_calls().len(), 1);
    // In a transaction as well; that nothing took effect is not said of it, for it may be committed when its rows are read.
    let tx = client.begin().await.unwrap();
    let mut rows = tx.query("SELECT").await.unwrap();
    tx.commit().await.unwrap();
    rows.try_next().await.unwrap().unwrap();
    let error = rows.try_next().await.unwrap_err();
    assert!(error.message().contains("cannot go on") && !error.is_retryable(), "{error}");
    cluster.script.take_calls();
    // Taken into memory as a whole, nobody has seen a row before the end: it is, for longer than one plan is bad, and also
    // when no plan can be had for a moment.
    let collected = tokio::spawn({
        let client = client.clone();
        async move { client.collect("SELECT").await }
    });
    while cluster.script.calls.lock().len() < 2 {
        tokio::task::yield_now().await;
    }
    cluster.script.fail("SELECT", WireError::new(ErrorCode::Unavailable, "no leader"));
    while cluster.script.errors.lock().values().any(|errors| !errors.is_empty()) {
        tokio::task::yield_now().await;
    }
    cluster.script.part("a", Part { batches: vec![0..10], ..Default::default() });
    assert_eq!(collected.await.unwrap().unwrap().rows(), 10);
    assert!(cluster.script.take_calls().len() > 2);
    // Nor is a statement that may write.
    let error = WireError::new(ErrorCode::Unavailable, "a server behind me died");
    cluster.script.part("a", Part { error: Some(error), ..Default::default() });
    cluster.script.answer("INSERT RETURNING", info(&[("a", cluster.location(0))]));
    let error = client.collect("INSERT RETURNING").await.unwrap_err();
    assert!(!error.is_retryable(), "it may have done something: {error}");
    assert_eq!(cluster.script.take_calls().len(), 1);
    assert_eq!(cluster.script.logins.load(Ordering::SeqCst), 1);
}
