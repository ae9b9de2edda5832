//! Transactions of several statements.

use drsdb_client::{Client, Error, ErrorCode};

use crate::support::TestCluster;

async fn value(client: &Client, sql: &str) -> String {
    let result = client.collect(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    let batch = result.batches.iter().find(|batch| batch.num_rows() > 0).expect("the query gives a row");
    arrow::util::display::array_value_to_string(batch.column(0), 0).unwrap()
}

async fn run(client: &Client, statements: &[&str]) {
    for sql in statements {
        client.execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
}

async fn refused(client: &Client, sql: &str) -> Error {
    client.execute(sql).await.map(drop).expect_err(sql)
}

async fn two_clients(engine: &str) -> (TestCluster, Client) {
    let cluster = TestCluster::start(3).await;
    cluster
        .run(&[
            &format!("CREATE TABLE account (id BIGINT PRIMARY KEY, amount BIGINT) WITH (engine = '{engine}')"),
            "INSERT INTO account VALUES (1, 100), (2, 100), (3, 100)",
        ])
        .await;
    let other = Client::connect(cluster.cluster.client_options()).await.unwrap();
    (cluster, other)
}

async fn a_transaction_is_seen_whole(engine: &str) {
    let (cluster, other) = two_clients(engine).await;
    let client = &cluster.client;
    run(client, &["BEGIN", "UPDATE account SET amount = amount - 10 WHERE id = 1"]).await;
    run(client, &["INSERT INTO account VALUES (4, 1)", "DELETE FROM account WHERE id = 3"]).await;
    assert_eq!(value(client, "SELECT sum(amount) FROM account").await, "191");
    assert_eq!(value(client, "SELECT count(*) FROM account").await, "3");
    assert_eq!(value(&other, "SELECT sum(amount) FROM account").await, "300");
    run(client, &["SAVEPOINT s", "UPDATE account SET amount = 0", "ROLLBACK TO s"]).await;
    assert_eq!(value(client, "SELECT sum(amount) FROM account").await, "191");
    // A statement that fails is undone alone.
    let failed = refused(client, "INSERT INTO account VALUES (50, 1), (4, 1)").await;
    assert_eq!(failed.code(), ErrorCode::ConstraintViolation);
    run(client, &["UPDATE account SET amount = amount + 9 WHERE id = 4", "COMMIT"]).await;
    for client in [client, &other] {
        assert_eq!(value(client, "SELECT sum(amount) FROM account").await, "200");
        assert_eq!(value(client, "SELECT count(*) FROM account WHERE id = 50").await, "0");
    }
    run(client, &["BEGIN", "DELETE FROM account", "ROLLBACK"]).await;
    assert_eq!(value(client, "SELECT count(*) FROM account").await, "3");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_is_seen_whole_in_rows() {
    a_transaction_is_seen_whole("row").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_is_seen_whole_in_columns() {
    a_transaction_is_seen_whole("column").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_committer_wins() {
    let (cluster, other) = two_clients("row").await;
    let client = &cluster.client;
    run(client, &["BEGIN", "UPDATE account SET amount = 1 WHERE id = 1"]).await;
    run(&other, &["BEGIN"]).await;
    let conflict = refused(&other, "UPDATE account SET amount = 2 WHERE id = 1").await;
    assert_eq!(conflict.code(), ErrorCode::Conflict);
    // It cannot go on, and says so.
    let doomed = refused(&other, "UPDATE account SET amount = 2 WHERE id = 2").await;
    assert_eq!(doomed.code(), ErrorCode::Conflict);
    run(&other, &["ROLLBACK"]).await;
    run(client, &["COMMIT"]).await;
    // What was committed after a snapshot is a conflict, too.
    run(&other, &["BEGIN"]).await;
    assert_eq!(value(&other, "SELECT amount FROM account WHERE id = 1").await, "1");
    run(client, &["UPDATE account SET amount = 5 WHERE id = 1"]).await;
    assert_eq!(value(&other, "SELECT amount FROM account WHERE id = 1").await, "1");
    let late = refused(&other, "UPDATE account SET amount = 6 WHERE id = 1").await;
    assert_eq!(late.code(), ErrorCode::Conflict);
    run(&other, &["ROLLBACK"]).await;
    assert_eq!(value(&other, "SELECT amount FROM account WHERE id = 1").await, "5");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_have_rules() {
    let (cluster, other) = two_clients("row").await;
    let client = &cluster.client;
    for sql in ["COMMIT", "ROLLBACK", "SAVEPOINT s"] {
        assert_eq!(refused(client, sql).await.code(), ErrorCode::InvalidArgument, "{sql}");
    }
    run(client, &["BEGIN READ ONLY"]).await;
    assert_eq!(refused(client, "DELETE FROM account").await.code(), ErrorCode::InvalidArgument);
    assert_eq!(refused(client, "BEGIN").await.code(), ErrorCode::InvalidArgument);
    assert_eq!(refused(client, "DROP TABLE account").await.code(), ErrorCode::Unsupported);
    let near = refused(client, "ROLLBACK TO missing").await;
    assert_eq!(near.code(), ErrorCode::NotFound);
    run(client, &["ROLLBACK"]).await;
    // One that is forgotten does not stand in the way of others.
    run(&other, &["SET idle_in_transaction_timeout = '1s'", "BEGIN", "UPDATE account SET amount = 0"]).await;
    crate::support::eventually("the idle transaction ends", || async {
        client.execute("UPDATE account SET amount = 7 WHERE id = 1").await.is_ok()
    })
    .await;
    assert_eq!(refused(&other, "COMMIT").await.code(), ErrorCode::Conflict);
    assert_eq!(value(client, "SELECT sum(amount) FROM account").await, "207");
}

/// Statements that meet are run again: nothing is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn increments_beside_each_other_all_count() {
    let (cluster, _) = two_clients("row").await;
    let workers = (0..4).map(|_| {
        let client = cluster.client.clone();
        tokio::spawn(async move {
            let mut done = 0;
            for _ in 0..10 {
                match client.execute("UPDATE account SET amount = amount + 1 WHERE id = 1").await {
                    Ok(_) => done += 1,
                    Err(error) => assert_eq!(error.code(), ErrorCode::Conflict, "{error}"),
                }
            }
            done
        })
    });
    let mut done = 0;
    for worker in workers.collect::<Vec<_>>() {
        done += worker.await.unwrap();
    }
    assert!(done > 0);
    assert_eq!(cluster.value("SELECT amount FROM account WHERE id = 1").await, (100 + done).to_string());
}
