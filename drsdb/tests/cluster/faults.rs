//! Servers that die, and clients that go away.

use std::time::{Duration, Instant};

use drsdb_client::{Client, ErrorCode};
use futures::TryStreamExt;

use crate::support::{TestCluster, eventually};

async fn numbers(storage: usize, rows: usize) -> TestCluster {
    let cluster = TestCluster::start(storage).await;
    cluster.run(&["CREATE TABLE n (id BIGINT PRIMARY KEY, text TEXT)"]).await;
    for start in (0..rows).step_by(5000) {
        let values: Vec<String> = (start..(start + 5000).min(rows)).map(|i| format!("({i}, 'row {i}')")).collect();
        cluster.run(&[&format!("INSERT INTO n VALUES {}", values.join(","))]).await;
    }
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_storage_server_is_named_and_comes_back() {
    let mut cluster = numbers(3, 10_000).await;
    let dead = cluster.cluster.storage_url(1).clone();
    cluster.cluster.kill_storage(1).await.unwrap();
    for sql in ["SELECT * FROM n", "SELECT text, count(*) FROM n GROUP BY text"] {
        let error = cluster.error(sql).await;
        assert_eq!(error.code(), ErrorCode::Unavailable, "{error}");
        let port = dead.port().unwrap().to_string();
        assert!(error.to_string().contains(&port), "{error} does not name {dead}");
    }
    cluster.cluster.restart_storage(1).await.unwrap();
    eventually("the restarted server answers", || async {
        cluster.client.collect("SELECT count(DISTINCT text) FROM n").await.is_ok()
    })
    .await;
    assert_eq!(cluster.value("SELECT count(DISTINCT text) FROM n").await, "10000");
    cluster.cluster.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_while_rows_are_pulled_never_shortens_a_result() {
    let mut cluster = numbers(3, 20_000).await;
    // The cross join streams for far longer than the test: the server dies in the middle of it.
    let sql = "SELECT a.id, b.text FROM n a JOIN n b ON a.id % 10 = b.id % 10";
    let mut rows = cluster.client.query(sql).await.unwrap();
    assert!(rows.try_next().await.unwrap().is_some());
    cluster.cluster.kill_storage(2).await.unwrap();
    let ended = async {
        while rows.try_next().await?.is_some() {}
        Ok::<(), drsdb_client::Error>(())
    };
    let ended = tokio::time::timeout(Duration::from_secs(120), ended).await.expect("the stream ends");
    assert_eq!(ended.expect_err("the result is not complete").code(), ErrorCode::Unavailable);
    cluster.cluster.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_survive_a_killed_index_server() {
    let mut cluster = numbers(2, 1000).await;
    cluster.cluster.kill_index().await.unwrap();
    cluster.cluster.restart_index().await.unwrap();
    let client = Client::connect(cluster.cluster.client_options()).await.unwrap();
    let result = client.collect("SELECT id FROM n").await.unwrap();
    assert_eq!(result.rows(), 1000);
    client.execute("INSERT INTO n VALUES (-1, 'after')").await.unwrap();
    assert_eq!(client.collect("SELECT id FROM n").await.unwrap().rows(), 1001);
    cluster.cluster.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_survives_when_all_servers_are_killed() {
    let mut cluster = numbers(2, 1000).await;
    cluster.cluster.kill_storage(0).await.unwrap();
    cluster.cluster.kill_storage(1).await.unwrap();
    cluster.cluster.kill_index().await.unwrap();
    cluster.cluster.restart_index().await.unwrap();
    cluster.cluster.restart_storage(0).await.unwrap();
    cluster.cluster.restart_storage(1).await.unwrap();
    let client = Client::connect(cluster.cluster.client_options()).await.unwrap();
    eventually("all servers answer", || async { client.collect("SELECT id FROM n").await.is_ok() }).await;
    assert_eq!(client.collect("SELECT id FROM n").await.unwrap().rows(), 1000);
    cluster.cluster.shutdown().await.unwrap();
}

fn cpu_ms(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    fields.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap() * 10).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn work_stops_when_the_client_goes_away() {
    let cluster = numbers(3, 20_000).await;
    let sql = "SELECT count(*) FROM n a JOIN n b ON a.id % 2 = b.id % 2 JOIN n c ON c.id % 3 = b.id % 3";
    let pids: Vec<u32> = (0..3).map(|number| cluster.cluster.storage_pid(number)).collect();
    let query = cluster.client.query(sql).await.unwrap();
    let busy = |pids: &[u32]| pids.iter().map(|pid| cpu_ms(*pid)).sum::<u64>();
    let before = busy(&pids);
    eventually("the query keeps the servers busy", || {
        let now = busy(&pids);
        async move { now > before + 500 }
    })
    .await;
    let started = Instant::now();
    drop(query);
    // Idle means: hardly any CPU time within a tenth of a second.
    eventually("the servers are idle again", || {
        let pids = pids.clone();
        async move {
            let before = pids.iter().map(|pid| cpu_ms(*pid)).sum::<u64>();
            #[allow(clippy::disallowed_methods)]
            tokio::time::sleep(Duration::from_millis(100)).await;
            pids.iter().map(|pid| cpu_ms(*pid)).sum::<u64>() - before <= 20
        }
    })
    .await;
    assert!(started.elapsed() < Duration::from_secs(10), "the work went on for {:?}", started.elapsed());
    assert_eq!(cluster.value("SELECT count(*) FROM n").await, "20000");
    cluster.cluster.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_beyond_its_memory_spills_or_is_refused() {
    let cluster = TestCluster::start_with(1, |options| {
        options.storage_settings.insert("query_memory_bytes".into(), (64i64 << 20).into());
        options.storage_settings.insert("column_cache_bytes".into(), (16i64 << 20).into());
    })
    .await;
    let sql = "SELECT count(*) FROM (SELECT v, repeat('x', 200) || CAST(v AS TEXT) t FROM generate_series(1, 1000000) g(v) ORDER BY t)";
    match cluster.client.collect(sql).await {
        Ok(result) => assert_eq!(result.rows(), 1),
        Err(error) => assert_eq!(error.code(), ErrorCode::ResourceExhausted, "{error}"),
    }
    let sql =
        "SELECT count(*) FROM generate_series(1, 3000000) a(v) JOIN generate_series(1, 3000000) b(v) ON a.v = b.v";
    match cluster.client.collect(sql).await {
        Ok(result) => assert_eq!(result.rows(), 1),
        Err(error) => assert_eq!(error.code(), ErrorCode::ResourceExhausted, "{error}"),
    }
    assert_eq!(cluster.value("SELECT 1 + 1").await, "2");
    cluster.cluster.shutdown().await.unwrap();
}
