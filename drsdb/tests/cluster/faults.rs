//! Servers that die, and clients that go away.

use std::{sync::Arc, time::Duration};

use arrow::{
    array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray},
    datatypes::Int64Type,
};
use drsdb_client::{Client, ErrorCode};
use futures::{TryStreamExt, stream};

use crate::support::{TestCluster, eventually};

async fn numbers(storage: usize, rows: usize) -> TestCluster {
    let cluster = TestCluster::start(storage).await;
    // Of each row there is one copy: what happens to a server happens to the query.
    cluster.run(&["CREATE TABLE n (id BIGINT PRIMARY KEY, text TEXT) WITH (replicas = 1)"]).await;
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
    let error = ended.expect_err("the result is not complete");
    assert_eq!(error.code(), ErrorCode::Unavailable, "{error:?}");
    let dead = cluster.cluster.storage_url(2).port().unwrap().to_string();
    assert!(error.to_string().contains(&dead), "{error} does not name the server at port {dead}");
    cluster.cluster.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_survive_a_killed_index_server() {
    let mut cluster = numbers(2, 1000).await;
    cluster.cluster.kill_index(0).await.unwrap();
    cluster.cluster.restart_index(0).await.unwrap();
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
    cluster.cluster.kill_index(0).await.unwrap();
    cluster.cluster.restart_index(0).await.unwrap();
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
    for sql in [
        // Many rows come out of the joins, none comes out, and none comes out of one that compares all pairs.
        "SELECT count(*) FROM n a JOIN n b ON a.id % 2 = b.id % 2 JOIN n c ON c.id % 3 = b.id % 3",
        "SELECT count(*) FROM n a JOIN n b ON a.id % 2 = b.id % 2 AND a.id + b.id < length(a.text) - 100",
        "SELECT count(*) FROM n a JOIN n b ON a.id < b.id AND a.id * b.id % 7 = 9",
    ] {
        stops(&cluster, sql).await;
    }
    assert_eq!(cluster.value("SELECT count(DISTINCT text) FROM n").await, "20000");
    cluster.cluster.shutdown().await.unwrap();
}

async fn stops(cluster: &TestCluster, sql: &str) {
    let pids: Vec<u32> = (0..3).map(|number| cluster.cluster.storage_pid(number)).collect();
    let query = cluster.client.query(sql).await.unwrap();
    let busy = |pids: &[u32]| pids.iter().map(|pid| cpu_ms(*pid)).sum::<u64>();
    let before = busy(&pids);
    eventually("the query keeps the servers busy", || {
        let now = busy(&pids);
        async move { now > before + 500 }
    })
    .await;
    let dropped = busy(&pids);
    drop(query);
    // In CPU time, of which there may be little for a while on a busy machine: a second on two cores.
    loop {
        let statuses = [cluster.status(0).await, cluster.status(1).await, cluster.status(2).await];
        if statuses.iter().all(|status| status.running_queries == 0 && status.query_pool_bytes == 0) {
            break;
        }
        let more = busy(&pids) - dropped;
        assert!(more < 2000, "{sql}: work goes on after {more} ms of CPU time: {statuses:?}");
    }
    // Idle means: hardly any CPU time within a fifth of a second.
    let idle = busy(&pids);
    #[allow(clippy::disallowed_methods)]
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(busy(&pids) - idle <= 100, "{sql}: the servers use {} ms of CPU time in 200 ms", busy(&pids) - idle);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_beyond_its_memory_spills_or_is_refused() {
    let cluster = TestCluster::start_with(1, |options| {
        options.storage_settings.insert("query_memory_bytes".into(), (96i64 << 20).into());
        options.storage_settings.insert("column_cache_bytes".into(), (16i64 << 20).into());
    })
    .await;
    cluster.run(&["CREATE TABLE n (id BIGINT PRIMARY KEY)", "INSERT INTO n VALUES (1), (2), (3)"]).await;
    // A sort of 160 MB spills, and every row comes out, in order.
    let sql = "SELECT v, (v * 7919) % 10000019 AS k FROM generate_series(1, 10000000) g(v) ORDER BY k";
    let mut rows = cluster.client.query(sql).await.unwrap();
    let (mut count, mut last) = (0, i64::MIN);
    while let Some(batch) = rows.try_next().await.unwrap() {
        for key in batch.column(1).as_primitive::<Int64Type>().values() {
            assert!(*key >= last);
            last = *key;
        }
        count += batch.num_rows();
    }
    assert_eq!(count, 10_000_000);
    // The build side of a hash join cannot spill: it is refused, and the server stays.
    let sql =
        "SELECT a.v, b.v FROM generate_series(1, 8000000) a(v) JOIN generate_series(1, 8000000) b(v) ON a.v = b.v";
    let error = cluster.error(sql).await;
    assert_eq!(error.code(), ErrorCode::ResourceExhausted, "{error}");
    assert_eq!(cluster.client.collect("SELECT id FROM n").await.unwrap().rows(), 3);
    eventually("the memory is given back", || async { cluster.status(0).await.query_pool_bytes == 0 }).await;
    let status = cluster.status(0).await;
    assert!(status.peak_memory_bytes < 400 << 20, "96 MiB for queries, 16 MiB of cache, and {status:?}");
    cluster.cluster.shutdown().await.unwrap();
}

/// A storage server whose disk is a small tmpfs of its own, in a mount namespace that it makes itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_ends_a_load_and_nothing_else() {
    let tools = tempfile::tempdir().unwrap();
    let wrapper = tools.path().join("small-disk");
    let script = format!(
        "#!/bin/sh\nset -e\ncase \"$1 $3\" in\n*storage-2*)\n  folder=$(dirname \"$3\")/data\n  mkdir -p \"$folder\"\n  \
         exec unshare --user --map-root-user --mount sh -c 'mount -t tmpfs -o size=24m tmpfs \"$0\" && exec \"$@\"' \
         \"$folder\" {program} \"$@\";;\nesac\nexec {program} \"$@\"\n",
        program = env!("CARGO_BIN_EXE_drsdb")
    );
    std::fs::write(&wrapper, script).unwrap();
    std::fs::set_permissions(&wrapper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let probe = std::process::Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", "mount -t tmpfs tmpfs /mnt"])
        .output();
    if !probe.is_ok_and(|probe| probe.status.success()) {
        eprintln!("skipped: this machine lets nobody mount in a namespace of their own");
        return;
    }
    let cluster = TestCluster::start_with(2, |options| options.program = Some(wrapper)).await;
    for engine in ["column", "row"] {
        let table = format!("{engine}_table");
        let create = format!("CREATE TABLE {table} (id BIGINT PRIMARY KEY, text TEXT) WITH (engine = '{engine}')");
        cluster.run(&[&create]).await;
        let insert = format!("INSERT INTO {table} VALUES (-1, 'before'), (-2, 'too'), (-3, 'and')");
        // What the failed load of the other engine took is given back soon, and not at once.
        eventually("there is space again", || async { cluster.client.execute(&insert).await.is_ok() }).await;
        // 200 MB of text that does not compress, in many batches.
        let batches = (0..200u64).map(|batch| {
            let ids = Int64Array::from_iter_values((0..1000).map(|row| (batch * 1000 + row) as i64));
            let mut state = batch + 1;
            let texts = StringArray::from_iter_values((0..1000).map(|_| {
                let words = std::iter::repeat_with(|| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    format!("{state:016x}")
                });
                words.take(64).collect::<String>()
            }));
            RecordBatch::try_from_iter([("id", Arc::new(ids) as ArrayRef), ("text", Arc::new(texts) as ArrayRef)])
        });
        let schema = RecordBatch::try_from_iter([
            ("id", Arc::new(Int64Array::from(vec![0])) as ArrayRef),
            ("text", Arc::new(StringArray::from(vec![""])) as ArrayRef),
        ]);
        let batches: Vec<_> = batches.collect();
        let load = cluster.client.ingest(&table, schema.unwrap().schema(), stream::iter(batches), Default::default());
        let error = load.await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::DiskFull, "{error:?}");
        let full = cluster.status(1).await.server_id;
        assert_eq!(error.field("server"), Some(full.as_str()), "{error:?}");
        let rows = cluster.client.collect(&format!("SELECT id, text FROM {table}")).await.unwrap();
        assert_eq!(rows.rows(), 3, "nothing of the load is there, and all of what was before");
        cluster.run(&[&format!("DROP TABLE {table}")]).await;
    }
    cluster.cluster.shutdown().await.unwrap();
}

/// A load whose index server dies leaves staged rows behind. They hold their keys until the storage servers have asked.
#[tokio::test(flavor = "multi_thread")]
async fn a_load_that_lost_its_index_server_is_undone() {
    let mut cluster = TestCluster::start_with(2, |options| {
        options.storage_settings.insert("staged_lease_s".into(), 1i64.into());
    })
    .await;
    cluster.run(&["CREATE TABLE n (id BIGINT PRIMARY KEY)", "INSERT INTO n VALUES (-1), (-2), (-3), (-4)"]).await;
    let batch = |from: i64| {
        let ids = Int64Array::from_iter_values(from..from + 10_000);
        RecordBatch::try_from_iter([("id", Arc::new(ids) as ArrayRef)])
    };
    let schema = batch(0).unwrap().schema();
    for round in 0..4 {
        let loader = cluster.client.new_session();
        let batches: Vec<_> = (0..20).map(|number| batch(number * 10_000)).collect();
        let schema = schema.clone();
        let load =
            tokio::spawn(async move { loader.ingest("n", schema, stream::iter(batches), Default::default()).await });
        // Different moments of the load.
        #[allow(clippy::disallowed_methods)]
        tokio::time::sleep(Duration::from_millis(30 + round * 120)).await;
        cluster.cluster.kill_index(0).await.unwrap();
        let acknowledged = load.await.unwrap().is_ok();
        cluster.cluster.restart_index(0).await.unwrap();
        let client = Client::connect(cluster.cluster.client_options()).await.unwrap();
        let left = client.collect("SELECT id FROM n WHERE id > -100").await.unwrap().rows();
        if acknowledged || left == 200_004 {
            assert_eq!(left, 200_004);
            break;
        }
        assert_eq!(left, 4, "all of a load or nothing");
        // Its keys are free again, without any other commit that would wake the servers.
        eventually("the keys are free", || async {
            client.execute("INSERT INTO n VALUES (5), (77), (4711)").await.is_ok()
        })
        .await;
        assert_eq!(client.collect("SELECT id FROM n WHERE id > -100").await.unwrap().rows(), 7);
        client.execute("DROP TABLE n").await.unwrap();
        client.execute("CREATE TABLE n (id BIGINT PRIMARY KEY)").await.unwrap();
        client.execute("INSERT INTO n VALUES (-1), (-2), (-3), (-4)").await.unwrap();
    }
    cluster.cluster.shutdown().await.unwrap();
}
