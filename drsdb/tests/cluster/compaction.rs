//! Old versions of rows go when nobody can need them any more, and not before.

use drsdb_client::{Client, ErrorCode};
use drsdb_core::{Engine, Table};

use crate::{
    replication::{TABLES, create_tables},
    support::{TestCluster, eventually},
};

/// A cluster that keeps old versions for nobody but those who read them.
async fn forgetful(ticket_lifetime_s: i64) -> TestCluster {
    let cluster = TestCluster::start_with(3, |options| {
        options.index_settings.insert("ticket_lifetime_s".into(), ticket_lifetime_s.into());
        options.storage_settings.insert("retention_s".into(), 0i64.into());
    })
    .await;
    create_tables(&cluster, "").await;
    for engine in TABLES {
        let insert = format!("INSERT INTO {engine}_t SELECT v, 'first' FROM generate_series(1, 1000) g(v)");
        cluster.run(&[&insert]).await;
    }
    cluster
}

async fn change(cluster: &TestCluster, text: &str) {
    for engine in TABLES {
        cluster
            .run(&[
                &format!("UPDATE {engine}_t SET text = '{text}'"),
                &format!("DELETE FROM {engine}_t WHERE id = (SELECT max(id) FROM {engine}_t)"),
            ])
            .await;
    }
}

async fn definitions(cluster: &TestCluster) -> [Table; 2] {
    [cluster.definition("row_t", Engine::Row, 4).await, cluster.definition("column_t", Engine::Column, 4).await]
}

/// Waits until every storage server has compacted some times more.
async fn compactions(cluster: &TestCluster, more: u64) {
    for server in 0..3 {
        let goal = cluster.status(server).await.compaction_steps + more;
        eventually("servers compact", || async { cluster.status(server).await.compaction_steps >= goal }).await;
    }
}

/// Waits until no server can read the version any more.
async fn forgotten(cluster: &TestCluster, version: u64) {
    for table in definitions(cluster).await {
        for server in 0..3 {
            eventually("old versions go", || async {
                match cluster.checksum(server, &table, 0, version).await {
                    Ok(_) => false,
                    Err(error) => {
                        assert_eq!(error.code(), ErrorCode::Conflict, "{error}");
                        true
                    }
                }
            })
            .await;
        }
    }
}

/// What a transaction sees of both tables.
async fn seen(client: &Client) -> Vec<String> {
    let mut all = Vec::new();
    for engine in TABLES {
        let sql = format!("SELECT count(*) || ' ' || min(text) || ' ' || max(text) FROM {engine}_t");
        let result = client.collect(&sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        let batch = result.batches.iter().find(|batch| batch.num_rows() > 0).unwrap();
        all.push(arrow::util::display::array_value_to_string(batch.column(0), 0).unwrap());
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_transaction_keeps_what_it_sees() {
    let cluster = forgetful(1).await;
    change(&cluster, "second").await;
    let version = cluster.status(0).await.applied_version;
    let transaction = cluster.client.new_session();
    transaction.execute("BEGIN").await.unwrap();
    let before = seen(&transaction).await;
    assert_eq!(before, ["999 second second", "999 second second"]);
    for round in 0..3 {
        change(&cluster, &format!("changed {round}")).await;
        compactions(&cluster, 2).await;
        assert_eq!(seen(&transaction).await, before);
    }
    for server in 0..3 {
        // It would be higher by now without the transaction.
        let status = cluster.status(server).await;
        assert!(status.horizon < status.applied_version, "{status:?}");
    }
    transaction.execute("COMMIT").await.unwrap();
    forgotten(&cluster, version).await;
    assert_eq!(seen(&cluster.client).await, ["996 changed 2 changed 2", "996 changed 2 changed 2"]);
    cluster.cluster.shutdown().await.unwrap();
}

/// A query that is planned now may be pulled for so long, by tickets that nobody asks an index server about.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_versions_stay_as_long_as_tickets_live() {
    const LIFETIME_S: u64 = 12;
    let cluster = forgetful(LIFETIME_S as i64).await;
    let version = cluster.status(0).await.applied_version;
    let planned = std::time::Instant::now();
    change(&cluster, "second").await;
    compactions(&cluster, 2).await;
    let table = cluster.definition("row_t", Engine::Row, 4).await;
    let readable = cluster.checksum(0, &table, 0, version).await;
    // On a machine that was too slow to look in time, tickets from then are over.
    assert!(readable.is_ok() || planned.elapsed().as_secs() >= LIFETIME_S, "{readable:?}");
    forgotten(&cluster, version).await;
    assert!(planned.elapsed().as_secs() >= LIFETIME_S, "not before tickets were over");
    cluster.cluster.shutdown().await.unwrap();
}
