//! Transactions: where their calls go, what becomes of them when a server is lost, and when they are run again.

use std::sync::atomic::{AtomicU64, Ordering};

use drsdb_client::{Client, Error, ErrorCode, IngestOptions, Transaction, WireError};
use url::Url;

use crate::{Cluster, fake::*, retries::done};

async fn two() -> (Cluster, FakeServer, Client) {
    let cluster = Cluster::start(1);
    let second = FakeServer::start(&cluster.tls, &cluster.script);
    *cluster.script.index_servers.lock() = vec![cluster.index.url.clone(), second.url.clone()];
    cluster.script.part("a", Part { batches: vec![0..3], ..Default::default() });
    cluster.script.answer("SELECT", info(&[("a", cluster.location(0))]));
    cluster.script.answer("INSERT", done(1, 0));
    for sql in ["BEGIN", "COMMIT", "ROLLBACK", "ROLLBACK TO s"] {
        cluster.script.answer(sql, done(0, 0));
    }
    let client = cluster.connect().await;
    (cluster, second, client)
}

fn conflict() -> WireError {
    WireError::new(ErrorCode::Conflict, "another transaction was first")
}

/// Each call as `what` or `what in transaction`.
fn told(calls: &[Call]) -> Vec<String> {
    let told = |call: &Call| match &call.transaction {
        Some(transaction) => format!("{} in {transaction}", call.what),
        None => call.what.clone(),
    };
    calls.iter().map(told).collect()
}

fn only_at(calls: &[Call], server: &Url) -> bool {
    calls.iter().all(|call| call.server == *server)
}

#[tokio::test]
async fn all_of_a_transaction_goes_to_its_server() {
    let (cluster, second, client) = two().await;
    let tx = client.begin().await.unwrap();
    assert!(tx.in_transaction() && !client.in_transaction());
    // Another call of the same client makes the second server the current one.
    cluster.script.fail("elsewhere", WireError::new(ErrorCode::Unavailable, "no majority"));
    cluster.script.answer("elsewhere", info(&[]));
    client.execute("elsewhere").await.unwrap();
    assert_eq!(client.index_servers()[0], second.url);
    cluster.script.calls.lock().retain(|call| call.what != "elsewhere");

    tx.execute("INSERT").await.unwrap();
    assert_eq!(tx.collect("SELECT").await.unwrap().rows(), 3);
    let savepoint = tx.savepoint("s").await.unwrap();
    tx.ingest_batches("t", schema(), vec![batch(0..3)], IngestOptions::default()).await.unwrap();
    savepoint.rollback().await.unwrap();
    savepoint.release().await.unwrap();
    let result = tx.commit().await.unwrap();
    assert_eq!(result.version, 11);

    let calls = cluster.script.take_calls();
    let expected = [
        "BeginTransaction",
        "INSERT in transaction 0",
        "SELECT in transaction 0",
        "BeginSavepoint",
        "load in transaction 0",
        "ROLLBACK TO action",
        "RELEASE action",
        "COMMIT action in transaction 0",
    ];
    assert_eq!(told(&calls), expected);
    assert!(only_at(&calls, &cluster.index.url), "{calls:?}");
    client.execute("SELECT").await.unwrap();
    assert_eq!(cluster.script.take_calls()[0].version.as_deref(), Some("11"), "the commit's version is known");
    assert_eq!(client.index_servers()[0], second.url, "a pinned call does not change who is current");
}

#[tokio::test]
async fn a_transaction_ends_with_its_server() {
    for sql in ["SELECT", "INSERT"] {
        let (cluster, second, client) = two().await;
        let tx = client.begin().await.unwrap();
        cluster.script.deadly_once.lock().insert(sql.to_owned());
        let error = tx.collect(sql).await.unwrap_err();
        assert!(error.is_retryable(), "{error}");
        assert_eq!(error.field("transaction"), Some("lost"), "{error}");
        assert!(cluster.script.take_calls().iter().all(|call| call.server != second.url));
        // It stays over, and nobody is asked.
        for error in [tx.collect(sql).await.unwrap_err(), tx.clone().commit().await.unwrap_err()] {
            assert!(error.is_retryable(), "{error}");
        }
        tx.rollback().await.unwrap();
        assert!(cluster.script.take_calls().is_empty());
        client.execute(sql).await.unwrap();
    }
}

#[tokio::test]
async fn a_lost_commit_is_asked_about_at_another_server() {
    let (cluster, second, client) = two().await;
    let tx = client.begin().await.unwrap();
    tx.execute("INSERT").await.unwrap();
    cluster.script.take_calls();
    cluster.script.deadly_once.lock().insert("COMMIT action".to_owned());
    // It has no leader yet, and then it knows.
    cluster.script.fail("COMMIT action", WireError::new(ErrorCode::Unavailable, "no leader"));
    assert_eq!(tx.commit().await.unwrap().version, 11);
    let calls = cluster.script.take_calls();
    assert_eq!(told(&calls), ["COMMIT action in transaction 0"; 3]);
    assert_eq!(calls[0].server, cluster.index.url);
    assert!(only_at(&calls[1..], &second.url), "{calls:?}");

    // Aborted, as the other server knows.
    let tx = client.begin().await.unwrap();
    cluster.script.fail("COMMIT action", conflict());
    let error = tx.commit().await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
}

#[tokio::test]
async fn a_commit_that_nobody_answers_is_of_unknown_outcome() {
    let (cluster, _second, client) = two().await;
    let tx = client.begin().await.unwrap();
    cluster.script.deadly.lock().insert("COMMIT action".to_owned());
    let error = tx.commit().await.unwrap_err();
    assert!(error.is_outcome_unknown() && !error.is_retryable(), "{error}");
}

#[tokio::test]
async fn a_transaction_that_is_dropped_is_rolled_back() {
    let (cluster, _second, client) = two().await;
    let tx = client.begin().await.unwrap();
    let copy = tx.clone();
    drop(tx);
    copy.execute("INSERT").await.unwrap();
    drop(copy);
    while !told(&cluster.script.calls.lock()).contains(&"ROLLBACK action in transaction 0".to_owned()) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn work_that_meets_a_conflict_is_run_again() {
    let (cluster, _second, client) = two().await;
    cluster.script.fail("INSERT", conflict());
    cluster.script.fail("COMMIT action", conflict());
    let runs = AtomicU64::new(0);
    let sum = client
        .transaction(|tx| {
            let run = runs.fetch_add(1, Ordering::SeqCst);
            async move {
                tx.execute("INSERT").await?;
                Ok(run)
            }
        })
        .await
        .unwrap();
    assert_eq!(sum, 2);
    let expected = [
        "BeginTransaction",
        "INSERT in transaction 0",
        "ROLLBACK action in transaction 0",
        "BeginTransaction",
        "INSERT in transaction 1",
        "COMMIT action in transaction 1",
        "BeginTransaction",
        "INSERT in transaction 2",
        "COMMIT action in transaction 2",
    ];
    assert_eq!(told(&cluster.script.take_calls()), expected);
    // A storage server that is gone has committed nothing, whether a statement, a query or the beginning met it.
    cluster.script.fail("INSERT", WireError::new(ErrorCode::Unavailable, "a server died"));
    client.transaction(|tx| async move { tx.execute("INSERT").await }).await.unwrap();
    let calls = told(&cluster.script.take_calls());
    assert_eq!(calls.iter().filter(|call| *call == "BeginTransaction").count(), 2, "{calls:?}");
    assert_eq!(calls.iter().filter(|call| call.starts_with("COMMIT")).count(), 1, "{calls:?}");
    // Other errors are returned at once, and conflicts in the end.
    for (error, begun) in [(WireError::new(ErrorCode::InvalidValue, "1 / 0"), 1), (conflict(), 10)] {
        let failing = Error::from(error);
        let failed = client.transaction(|_| std::future::ready(Err::<(), _>(failing.clone()))).await;
        assert_eq!(failed.unwrap_err(), failing);
        let calls = told(&cluster.script.take_calls());
        assert_eq!(calls.iter().filter(|call| *call == "BeginTransaction").count(), begun);
    }
    let spawned = tokio::spawn(async move { client.transaction(|tx| async move { tx.execute("INSERT").await }).await });
    assert!(spawned.await.unwrap().is_ok(), "its future can go to another thread");
}

#[tokio::test]
async fn work_that_ends_its_transaction_itself_is_done_once() {
    let (cluster, _second, client) = two().await;
    for (commits, last) in [(true, "COMMIT action in transaction 0"), (false, "ROLLBACK action in transaction 1")] {
        let work = |tx: Transaction| async move {
            tx.execute("INSERT").await?;
            if commits { tx.commit().await.map(|_| ()) } else { tx.rollback().await }
        };
        client.transaction(work).await.unwrap();
        let calls = told(&cluster.script.take_calls());
        assert_eq!((calls.len(), calls.last().map(String::as_str)), (3, Some(last)), "{calls:?}");
    }
    // Not even when it goes on, and fails.
    let on = |tx: Transaction| async move {
        tx.execute("INSERT").await?;
        tx.clone().commit().await?;
        tx.execute("INSERT").await.map(|_| ())
    };
    assert_eq!(client.transaction(on).await.unwrap_err().code(), ErrorCode::Conflict);
    assert_eq!(told(&cluster.script.take_calls()).iter().filter(|call| call.starts_with("COMMIT")).count(), 1);
    // A commit that surely failed is nothing to keep from doing it again.
    cluster.script.fail("COMMIT action", conflict());
    client.transaction(|tx| async move { tx.commit().await.map(|_| ()) }).await.unwrap();
    assert_eq!(told(&cluster.script.take_calls()).iter().filter(|call| call.starts_with("COMMIT")).count(), 2);
    for sql in ["COMMIT", "ROLLBACK"] {
        let ended = client.transaction(|tx| async move { tx.execute(sql).await }).await;
        assert_eq!(ended.unwrap_err().code(), ErrorCode::InvalidArgument);
    }
}

#[tokio::test]
async fn sql_transactions_stay_with_their_server_as_well() {
    let (cluster, second, client) = two().await;
    client.execute("BEGIN").await.unwrap();
    assert!(client.in_transaction() && client.clone().in_transaction() && !client.new_session().in_transaction());
    let other = client.new_session();
    cluster.script.fail("elsewhere", WireError::new(ErrorCode::Unavailable, "no majority"));
    cluster.script.answer("elsewhere", info(&[]));
    other.execute("elsewhere").await.unwrap();
    cluster.script.take_calls();
    client.execute("INSERT").await.unwrap();
    client.execute("ROLLBACK TO s").await.unwrap();
    assert!(client.in_transaction());
    client.execute("COMMIT").await.unwrap();
    assert!(!client.in_transaction());
    assert!(only_at(&cluster.script.take_calls(), &cluster.index.url));

    // Its server is lost: it is over, and the next statements go elsewhere.
    client.execute("BEGIN").await.unwrap();
    cluster.script.deadly_once.lock().insert("INSERT".to_owned());
    let Err(error) = client.execute("INSERT").await else { panic!("it succeeded") };
    assert!(error.is_retryable() && error.field("transaction") == Some("lost"), "{error}");
    assert!(!client.in_transaction());
    let survivor = if cluster.script.take_calls()[0].server == second.url { &cluster.index } else { &second };
    client.execute("ROLLBACK").await.unwrap();
    assert!(only_at(&cluster.script.take_calls(), &survivor.url));
}
