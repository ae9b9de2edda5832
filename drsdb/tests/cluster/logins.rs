//! What becomes of logins when users change: the Rust client, and the transactions that it has open.

use drsdb_client::{Client, ClientOptions, ErrorCode};

use crate::support::{TestCluster, eventually};

async fn ada(cluster: &TestCluster, password: &str) -> Client {
    let options = ClientOptions {
        user: Some("ada".to_owned()),
        password: Some(password.into()),
        ..cluster.cluster.client_options()
    };
    Client::connect(options).await.unwrap()
}

async fn refused(client: &Client, sql: &str) -> ErrorCode {
    client.execute(sql).await.map(drop).expect_err(sql).code()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_and_its_transaction_end_with_the_password() {
    let cluster = TestCluster::start(1).await;
    cluster.run(&["CREATE TABLE t (id BIGINT PRIMARY KEY)", "CREATE USER ada PASSWORD 'the first one'"]).await;
    let (reader, writer) = (ada(&cluster, "the first one").await, ada(&cluster, "the first one").await);
    for sql in ["SET idle_in_transaction_timeout = 0", "BEGIN", "INSERT INTO t VALUES (1)"] {
        writer.execute(sql).await.unwrap();
    }
    assert_eq!(reader.collect("SELECT id FROM t").await.unwrap().rows(), 0);

    cluster.run(&["ALTER USER ada PASSWORD 'the second one'"]).await;
    // Both log in again, each with a password that is none any more.
    assert_eq!(reader.collect("SELECT id FROM t").await.unwrap_err().code(), ErrorCode::Unauthenticated);
    for sql in ["INSERT INTO t VALUES (2)", "COMMIT", "ALTER USER ada PASSWORD 'mine again'"] {
        assert_eq!(refused(&writer, sql).await, ErrorCode::Unauthenticated, "{sql}");
    }
    eventually("the transaction is undone", || async {
        cluster.value("SELECT count(*) FROM drsdb.transactions WHERE user_name = 'ada'").await == "0"
    })
    .await;
    cluster.run(&["INSERT INTO t VALUES (1)"]).await;

    // Somebody else of the same name: a client whose password happens to be right goes on, and its transaction does not.
    let writer = ada(&cluster, "the second one").await;
    for sql in ["BEGIN", "INSERT INTO t VALUES (3)"] {
        writer.execute(sql).await.unwrap();
    }
    cluster.run(&["DROP USER ada"]).await;
    assert_eq!(refused(&writer, "INSERT INTO t VALUES (4)").await, ErrorCode::Unauthenticated);
    cluster.run(&["CREATE USER ada PASSWORD 'the second one'"]).await;
    assert_eq!(refused(&writer, "INSERT INTO t VALUES (4)").await, ErrorCode::Conflict);
    assert_eq!(refused(&writer, "COMMIT").await, ErrorCode::Conflict);
    writer.execute("INSERT INTO t VALUES (3)").await.unwrap();
    assert_eq!(writer.collect("SELECT id FROM t").await.unwrap().rows(), 2);
    cluster.cluster.shutdown().await.unwrap();
}
