//! Queries that several storage servers work on together, while one of them dies: they are planned again without it, and
//! so are the questions that statements ask.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicI64, Ordering},
};

use drsdb_client::{Client, Error, Executed};

use crate::{
    replication::{impatient, progress},
    support::TestCluster,
};

/// Rows of each of the two tables that are read.
const ROWS: i64 = 2000;
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
