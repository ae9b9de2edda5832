//! Queries that several storage servers work on together, while one of them dies: they are planned again without it, and
//! so are the questions that statements ask. A client that has rows of a query already gets the rest, where order allows.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicI64, Ordering},
};

use arrow::{array::AsArray, datatypes::Int64Type};
use drsdb_client::{Client, Error, ErrorCode, Executed, QueryStream};
use futures::TryStreamExt;

use crate::{
    replication::{impatient, progress},
    support::TestCluster,
};

/// Rows of each of the two tables that are read.
const ROWS: i64 = 2000;
/// Rows of the table of which a client has a part: they take far more room than there is between client and server.
const LONG: i64 = 100_000;
/// Rows that each statement changes.
const CHANGED: i64 = 10;

/// A join and an aggregation over both tables. No server has all of either, so that every plan has exchanges.
const BALANCES: &str = "SELECT a.id % 10 AS bucket, sum(b.amount) AS total FROM a JOIN b ON a.other = b.id GROUP BY 1";

/// What a client does over and over, until it is told to stop. The first failure ends it.
struct Loop {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicI64>,
    task: tokio::task::JoinHandle<i64>,
}

impl Loop {
    fn start<W, F>(what: &'static str, client: &Client, work: W) -> Self
    where
        W: Fn(Client) -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), Error>> + Send + 'static,
    {
        let (stop, done, client) = (Arc::<AtomicBool>::default(), Arc::<AtomicI64>::default(), client.new_session());
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&done));
        let task = tokio::spawn(async move {
            while !stopped.load(Ordering::Relaxed) {
                if let Err(error) = work(client.clone()).await {
                    panic!("a {what} failed: {error:?}");
                }
                counted.fetch_add(1, Ordering::Relaxed);
            }
            counted.load(Ordering::Relaxed)
        });
        Self { stop, done, task }
    }

    async fn progress(&self, what: &str) {
        assert!(!self.task.is_finished(), "it has failed, {what}");
        progress(what, &self.done, 3).await;
    }

    async fn end(self) -> i64 {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

async fn tables(cluster: &TestCluster) {
    for (table, options) in [("a", "replicas = 2, shards = 16"), ("b", "replicas = 2, shards = 16")] {
        let columns = "id BIGINT PRIMARY KEY, other BIGINT, amount BIGINT";
        cluster
            .run(&[
                &format!("CREATE TABLE {table} ({columns}) WITH ({options})"),
                &format!("INSERT INTO {table} SELECT v, {ROWS} - v, 1 FROM generate_series(0, {}) g(v)", ROWS - 1),
            ])
            .await;
    }
    for table in ["alone", "together"] {
        cluster
            .run(&[
                &format!("CREATE TABLE {table} (id BIGINT PRIMARY KEY, n BIGINT) WITH (shards = 2)"),
                &format!("INSERT INTO {table} SELECT v, 0 FROM generate_series(0, {}) g(v)", CHANGED - 1),
            ])
            .await;
    }
    let plan = cluster.table(&format!("EXPLAIN {BALANCES}")).await;
    assert!(plan.contains("NetworkShuffleExec"), "{plan}");
}

/// Changes every row of a table by what a query of several stages says: by one.
fn change(table: &str) -> String {
    format!("UPDATE {table} SET n = n + 1 FROM ({BALANCES}) AS q WHERE q.bucket = {table}.id AND q.total > 0")
}

#[tokio::test(flavor = "multi_thread")]
async fn no_read_and_no_change_fails_when_a_server_dies() {
    let mut cluster = impatient(3, 600).await;
    tables(&cluster).await;
    let reading = Loop::start("read", &cluster.client, |client| async move {
        let result = client.collect(BALANCES).await?;
        assert_eq!(result.rows(), 10);
        Ok(())
    });
    let changing = Loop::start("change", &cluster.client, |client| async move {
        let Executed::Write(written) = client.execute(&change("alone")).await? else { panic!("an UPDATE gave rows") };
        assert_eq!(written.rows, CHANGED as u64);
        Ok(())
    });
    let in_transactions = Loop::start("transaction", &cluster.client, |client| async move {
        client
            .transaction(|tx| async move {
                tx.execute(&change("together")).await?;
                assert_eq!(tx.collect(BALANCES).await?.rows(), 10);
                tx.execute("UPDATE together SET n = n + 1").await.map(|_| ())
            })
            .await
    });
    let loops = [&reading, &changing, &in_transactions];
    for number in 0..3 {
        for each in loops {
            each.progress("before a server dies").await;
        }
        cluster.cluster.kill_storage(number).await.unwrap();
        for each in loops {
            each.progress("without a server").await;
        }
        cluster.cluster.restart_storage(number).await.unwrap();
        crate::replication::all_current(&cluster, 2 * 16 * 2 + 2 * 2 * 3).await;
    }
    reading.end().await;
    let (changed, transactions) = (changing.end().await, in_transactions.end().await);
    // Each exactly once.
    assert_eq!(cluster.value("SELECT sum(n) FROM alone").await, (changed * CHANGED).to_string());
    assert_eq!(cluster.value("SELECT sum(n) FROM together").await, (2 * transactions * CHANGED).to_string());
    cluster.cluster.shutdown().await.unwrap();
}

/// A table with many rows.
async fn many(cluster: &TestCluster) {
    cluster
        .run(&[
            "CREATE TABLE many (id BIGINT PRIMARY KEY, text TEXT) WITH (replicas = 2, shards = 16)",
            &format!("INSERT INTO many SELECT v, repeat('x', 300) FROM generate_series(0, {}) g(v)", LONG - 1),
        ])
        .await;
}

/// A client that takes little at a time.
async fn small(cluster: &TestCluster) -> Client {
    let mut options = cluster.cluster.client_options();
    options.buffer_bytes = 1 << 20;
    options.window_bytes = 256 << 10;
    Client::connect(options).await.unwrap()
}

/// Which storage server is a result's head.
fn head_of(cluster: &TestCluster, rows: &QueryStream) -> usize {
    let head = rows.statistics().endpoints[0].server.clone();
    let is_head = |number: &usize| cluster.cluster.storage_url(*number).as_str().trim_end_matches('/') == head;
    (0..3).find(is_head).expect("the head is one of the servers")
}

/// The keys of the next batch; none at the end.
async fn next_keys(rows: &mut QueryStream) -> Vec<i64> {
    let batch = rows.try_next().await.unwrap_or_else(|error| panic!("a read broke off: {error:?}"));
    batch.map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ordered_read_of_which_rows_were_seen_goes_on_when_its_head_dies() {
    let mut cluster = impatient(3, 600).await;
    many(&cluster).await;
    let client = small(&cluster).await;
    let tx = client.begin().await.unwrap();
    let sql = "SELECT id, text FROM many ORDER BY id";
    let mut streams = [client.query(sql).await.unwrap(), tx.query(sql).await.unwrap()];
    let mut seen = [next_keys(&mut streams[0]).await, next_keys(&mut streams[1]).await];
    // The rest is of the snapshot at which it began.
    cluster.run(&[&format!("DELETE FROM many WHERE id > {}", LONG / 2), "INSERT INTO many VALUES (-1, 'new')"]).await;
    let number = head_of(&cluster, &streams[0]);
    cluster.cluster.kill_storage(number).await.unwrap();
    for (rows, keys) in streams.iter_mut().zip(&mut seen) {
        assert!((keys.len() as i64) < LONG / 2, "most is still to come: {}", keys.len());
        loop {
            match next_keys(rows).await {
                more if more.is_empty() => break,
                more => keys.extend(more),
            }
        }
        assert!(*keys == (0..LONG).collect::<Vec<_>>(), "each row comes once, in order: {} rows", keys.len());
    }
    drop(streams);
    tx.rollback().await.unwrap();
    assert_eq!(cluster.value("SELECT count(*) FROM many WHERE text <> ''").await, (LONG / 2 + 2).to_string());
    cluster.cluster.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_in_no_definite_order_says_which_server_it_lost_and_may_be_run_again() {
    let mut cluster = impatient(3, 600).await;
    many(&cluster).await;
    let client = small(&cluster).await;
    // Rows that are equal to the order come in any.
    let sql = "SELECT id, text FROM many ORDER BY text";
    for in_transaction in [false, true] {
        let tx = client.begin().await.unwrap();
        let asked: &Client = if in_transaction { &tx } else { &client };
        let mut rows = asked.query(sql).await.unwrap();
        assert!(!next_keys(&mut rows).await.is_empty());
        let number = head_of(&cluster, &rows);
        cluster.cluster.kill_storage(number).await.unwrap();
        let error = loop {
            match rows.try_next().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the head died before it had sent all, and nobody noticed"),
                Err(error) => break error,
            }
        };
        let head = cluster.cluster.storage_url(number).as_str().trim_end_matches('/').to_owned();
        assert_eq!((error.code(), error.field("server")), (ErrorCode::Unavailable, Some(head.as_str())), "{error:?}");
        assert!(error.message().starts_with(&format!("server {head} was lost, and the result cannot")), "{error}");
        assert!(error.hint().contains("ORDER BY"), "{error}");
        // Of a transaction it is not said that it may be run again from its start: it goes on.
        assert_eq!(error.is_retryable(), !in_transaction, "{error:?}");
        assert_eq!(asked.collect(sql).await.unwrap().rows(), LONG as usize);
        tx.rollback().await.unwrap();
        cluster.cluster.restart_storage(number).await.unwrap();
        crate::replication::all_current(&cluster, 16 * 2).await;
    }
    cluster.cluster.shutdown().await.unwrap();
}
