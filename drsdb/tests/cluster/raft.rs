//! Three index servers as processes: one dies, hangs, comes back; others come and go; nothing acknowledged is lost.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use arrow::array::AsArray;
use drsdb::local::LocalCluster;
use drsdb_client::{Client, ClientOptions, ErrorCode};
use tempfile::TempDir;
use tokio::{process::Command, task::JoinHandle};

use crate::support::{TestCluster, eventually, options};

async fn three(storage: usize) -> TestCluster {
    let cluster = TestCluster::start_with(storage, |options| options.index = 3).await;
    cluster.run(&["CREATE TABLE n (id BIGINT PRIMARY KEY, writer BIGINT NOT NULL)"]).await;
    cluster
}

/// A client that asks index server `number` first.
async fn client_of(cluster: &TestCluster, number: usize) -> Client {
    let options = ClientOptions {
        index_servers: vec![cluster.cluster.index_url(number).clone()],
        ..cluster.cluster.client_options()
    };
    Client::connect(options).await.unwrap()
}

/// An index server in SHOW CLUSTER.
#[derive(Debug, Clone, PartialEq, Eq)]
struct IndexServer {
    id: usize,
    state: String,
    version: Option<u64>,
    hash: Option<String>,
}

async fn index_servers(client: &Client) -> Result<Vec<IndexServer>, drsdb_client::Error> {
    let shown = client.collect("SHOW CLUSTER").await?;
    let mut servers = Vec::new();
    for batch in &shown.batches {
        let text = |column: usize, row: usize| {
            let column = batch.column(column);
            column.is_valid(row).then(|| column.as_string::<i32>().value(row).to_owned())
        };
        for row in 0..batch.num_rows() {
            if text(0, row).as_deref() == Some("index") {
                let version = batch.column(4);
                servers.push(IndexServer {
                    id: text(1, row).unwrap().parse().unwrap(),
                    state: text(3, row).unwrap(),
                    version: version
                        .is_valid(row)
                        .then(|| version.as_primitive::<arrow::datatypes::UInt64Type>().value(row)),
                    hash: text(5, row),
                });
            }
        }
    }
    Ok(servers)
}

/// The index server that leads, from 0.
async fn leader(client: &Client) -> usize {
    let mut found = None;
    let found = &mut found;
    let deadline = Instant::now() + Duration::from_secs(30);
    while found.is_none() {
        assert!(Instant::now() < deadline, "nobody leads");
        if let Ok(servers) = index_servers(client).await {
            *found = servers.iter().find(|server| server.state == "leader").map(|server| server.id - 1);
        }
    }
    found.unwrap()
}

/// All index servers answer, with the same version and the same state.
async fn all_agree(client: &Client, count: usize) {
    eventually("all index servers have the same state", || async {
        let Ok(servers) = index_servers(client).await else { return false };
        let first = &servers[0];
        servers.len() == count
            && first.hash.is_some()
            && servers.iter().all(|server| (server.version, &server.hash) == (first.version, &first.hash))
    })
    .await;
}

/// Clients that insert one row after the other, and note which were acknowledged.
struct Writers {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
    running: Vec<JoinHandle<Vec<i64>>>,
}

impl Writers {
    async fn start(cluster: &TestCluster, count: usize) -> Self {
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut running = Vec::new();
        for writer in 0..count {
            let client = client_of(cluster, writer % cluster.cluster.index_count()).await;
            let (stop, acknowledged) = (stop.clone(), acknowledged.clone());
            running.push(tokio::spawn(async move {
                let mut mine = Vec::new();
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let id = (writer * 1_000_000 + number) as i64;
                    match client.execute(&format!("INSERT INTO n VALUES ({id}, {writer})")).await {
                        Ok(_) => {
                            mine.push(id);
                            acknowledged.fetch_add(1, Ordering::Relaxed);
                        }
                        // Nobody knows about this row; the next one has another key.
                        Err(error) => assert!(
                            matches!(error.code(), ErrorCode::Unavailable | ErrorCode::Conflict | ErrorCode::Timeout),
                            "{error:?}"
                        ),
                    }
                }
                mine
            }));
        }
        Self { stop, acknowledged, running }
    }

    /// Waits until so many more rows have been acknowledged, and says how long that took.
    async fn more(&self, rows: usize) -> Duration {
        let (from, started) = (self.acknowledged.load(Ordering::Relaxed), Instant::now());
        eventually("writes go on", || async { self.acknowledged.load(Ordering::Relaxed) >= from + rows }).await;
        started.elapsed()
    }

    /// Ends them; every acknowledged row is there.
    async fn all_are_there(self, cluster: &TestCluster) {
        self.stop.store(true, Ordering::Relaxed);
        let mut acknowledged = Vec::new();
        for writer in self.running {
            acknowledged.extend(writer.await.unwrap());
        }
        for number in 0..cluster.cluster.index_count() {
            let rows = client_of(cluster, number).await.collect("SELECT id FROM n").await.unwrap();
            let present: std::collections::HashSet<i64> = rows
                .batches
                .iter()
                .flat_map(|batch| batch.column(0).as_primitive::<arrow::datatypes::Int64Type>().values().to_vec())
                .collect();
            let lost: Vec<&i64> = acknowledged.iter().filter(|id| !present.contains(id)).collect();
            assert!(lost.is_empty(), "acknowledged and not there, asked at index server {}: {lost:?}", number + 1);
            let doubled = rows.rows() - present.len();
            assert_eq!(doubled, 0, "rows that are there twice");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_go_on_when_the_leader_is_killed() {
    let mut cluster = three(2).await;
    let writers = Writers::start(&cluster, 6).await;
    for round in 0..2 {
        writers.more(30).await;
        let killed = leader(&cluster.client).await;
        cluster.cluster.kill_index(killed).await.unwrap();
        let pause = writers.more(30).await;
        assert!(pause < Duration::from_secs(20), "round {round}: no write for {pause:?}");
        cluster.cluster.restart_index(killed).await.unwrap();
    }
    writers.all_are_there(&cluster).await;
    all_agree(&cluster.client, 3).await;
    cluster.cluster.shutdown().await.unwrap();
}

/// Its folder keeps what was damaged, it has its number, and the others have not lost what was acknowledged.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_server_that_lost_its_file_or_its_disk_comes_back_by_itself() {
    let mut cluster = three(2).await;
    let writers = Writers::start(&cluster, 3).await;
    for disk in [false, true] {
        writers.more(20).await;
        let lost = leader(&cluster.client).await;
        cluster.cluster.kill_index(lost).await.unwrap();
        let data = cluster.cluster.index_folder(lost).join("data");
        if disk {
            fs::remove_dir_all(&data).unwrap();
        } else {
            for name in ["catalog.sqlite", "catalog.sqlite-wal"] {
                let file = fs::File::options().write(true).open(data.join("catalog").join(name)).unwrap();
                file.set_len(file.metadata().unwrap().len() / 2).unwrap();
            }
        }
        writers.more(20).await;
        cluster.cluster.restart_index(lost).await.unwrap();
        eventually("it votes again", || async {
            let servers = index_servers(&cluster.client).await.unwrap_or_default();
            servers.iter().filter(|server| ["leader", "follower"].contains(&server.state.as_str())).count() == 3
        })
        .await;
        let aside = fs::read_dir(&data).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let aside: Vec<String> = aside.filter(|name| name.starts_with("damaged-")).collect();
        assert_eq!(aside.is_empty(), disk, "{aside:?}");
        // It is needed: another one dies.
        let other = (lost + 1) % 3;
        cluster.cluster.kill_index(other).await.unwrap();
        writers.more(20).await;
        cluster.cluster.restart_index(other).await.unwrap();
    }
    writers.all_are_there(&cluster).await;
    all_agree(&cluster.client, 3).await;
    cluster.cluster.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_hangs_is_replaced_and_finds_its_place_again() {
    let cluster = three(1).await;
    let hung = leader(&cluster.client).await;
    let other = client_of(&cluster, (hung + 1) % 3).await;
    cluster.cluster.pause_index(hung).await.unwrap();
    let started = Instant::now();
    let mut id = 0;
    eventually("a write succeeds", || {
        id += 1;
        let insert = format!("INSERT INTO n VALUES ({id}, 0)");
        let other = other.clone();
        async move { other.execute(&insert).await.is_ok() }
    })
    .await;
    assert!(started.elapsed() < Duration::from_secs(20), "it took {:?}", started.elapsed());
    let next = leader(&other).await;
    assert_ne!(next, hung);
    // It wakes as a leader, and must not answer like one.
    cluster.cluster.resume_index(hung).await.unwrap();
    let woken = client_of(&cluster, hung).await;
    let rows = woken.collect("SELECT id FROM n").await.unwrap();
    assert!(rows.rows() >= 1, "it answers from before the others' writes");
    woken.execute("INSERT INTO n VALUES (-1, 0)").await.unwrap();
    all_agree(&other, 3).await;
    cluster.cluster.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_index_server_acknowledged_the_others_know() {
    let cluster = three(1).await;
    let clients = [client_of(&cluster, 0).await, client_of(&cluster, 1).await, client_of(&cluster, 2).await];
    for round in 0..12 {
        let (writer, reader) = (&clients[round % 3], &clients[(round + 1 + round / 3) % 3]);
        let table = format!("t{round}");
        writer.execute(&format!("CREATE TABLE {table} (id BIGINT PRIMARY KEY)")).await.unwrap();
        reader.execute(&format!("INSERT INTO {table} VALUES ({round})")).await.unwrap();
        assert_eq!(writer.collect(&format!("SELECT id FROM {table}")).await.unwrap().rows(), 1);
        for client in &clients {
            assert_eq!(client.collect(&format!("SELECT id FROM {table} WHERE id = {round}")).await.unwrap().rows(), 1);
        }
    }
    clients[1].execute("CREATE USER ada WITH PASSWORD 'long enough'").await.unwrap();
    for number in 0..3 {
        let options = ClientOptions {
            index_servers: vec![cluster.cluster.index_url(number).clone()],
            user: Some("ada".to_owned()),
            password: Some("long enough".into()),
            ..cluster.cluster.client_options()
        };
        let ada = Client::connect(options).await.unwrap();
        assert_eq!(ada.collect("SELECT * FROM t1").await.unwrap().rows(), 1);
        let refused = ada.execute("ALTER CLUSTER REMOVE INDEX SERVER 1").await.err().unwrap();
        assert_eq!(refused.code(), ErrorCode::PermissionDenied, "{refused}");
        assert_eq!(ada.collect("SHOW CLUSTER").await.unwrap_err().code(), ErrorCode::PermissionDenied);
    }
    all_agree(&cluster.client, 3).await;
    cluster.cluster.shutdown().await.unwrap();
}

/// A session with `read_consistency = 'bounded ...'` on index server `number`.
async fn bounded(cluster: &TestCluster, number: usize, bound: &str) -> Client {
    let client = client_of(cluster, number).await;
    client.execute(&format!("SET read_consistency = 'bounded {bound}'")).await.unwrap();
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bounded_read_is_answered_by_a_server_that_is_cut_off_until_the_bound_is_over() {
    let cluster = three(1).await;
    cluster.run(&["INSERT INTO n VALUES (1, 0)"]).await;
    let last = (leader(&cluster.client).await + 1) % 3;
    let (short, long) = (bounded(&cluster, last, "6s").await, bounded(&cluster, last, "1h").await);
    let exact = client_of(&cluster, last).await;
    assert_eq!(exact.collect("SHOW read_consistency").await.unwrap().rows(), 1);
    let sql = "SELECT id FROM n";
    // A read that asks the leader: what it confirms is what the others may be as old as.
    assert_eq!(exact.collect(sql).await.unwrap().rows(), 1);
    let confirmed = Instant::now();
    for number in (0..3).filter(|number| *number != last) {
        cluster.cluster.pause_index(number).await.unwrap();
    }
    let read = short.collect(sql).await;
    let after = confirmed.elapsed();
    assert!(after < Duration::from_secs(5), "the machine is too slow for this test: {after:?}");
    assert_eq!(read.unwrap().rows(), 1, "the bound is not over after {after:?}");
    // Linearizable reads wait for the others, and then say that there are none; bounded ones from when the bound is over.
    let refused = exact.collect(sql).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::Unavailable, "{refused}");
    assert!(confirmed.elapsed() > Duration::from_secs(6), "linearizable reads are patient");
    let refused = short.collect(sql).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::Unavailable, "{refused}");
    assert_eq!(long.collect(sql).await.unwrap().rows(), 1, "a longer bound still holds");
    assert!(long.execute("INSERT INTO n VALUES (2, 0)").await.is_err(), "writes are never planned on what is old");
    for number in (0..3).filter(|number| *number != last) {
        cluster.cluster.resume_index(number).await.unwrap();
    }
    eventually("it reads again", || async { short.collect(sql).await.is_ok() }).await;
    cluster.cluster.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn bounded_reads_see_what_the_same_client_wrote_elsewhere() {
    let mut cluster = three(1).await;
    // It asks server 0 first, and 1 when that one is gone: both have just confirmed what they have.
    let client = bounded(&cluster, 0, "1h").await;
    let other = bounded(&cluster, 1, "1h").await;
    assert_eq!(other.collect("SELECT id FROM n").await.unwrap().rows(), 0);
    for id in 0..20 {
        client.execute(&format!("INSERT INTO n VALUES ({id}, 0)")).await.unwrap();
        let rows = client.collect("SELECT id FROM n").await.unwrap().rows();
        assert_eq!(rows, id + 1, "a bounded read is older than what its client wrote");
    }
    cluster.cluster.kill_index(0).await.unwrap();
    let rows = client.collect("SELECT id FROM n").await.unwrap().rows();
    assert_eq!(rows, 20, "a bounded read on another server is older than what its client wrote");
    cluster.cluster.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_transactions_of_all_index_servers_are_shown() {
    let mut cluster = three(1).await;
    let clients = [client_of(&cluster, 0).await, client_of(&cluster, 1).await];
    let shown = |server: &str| {
        let sql = format!(
            "SELECT concat_ws(' ', user_name, state, statements, read_only, begun <= now(), snapshot > 0)
             FROM drsdb.transactions WHERE index_server LIKE '%{server}%' ORDER BY begun"
        );
        let client = clients[1].clone();
        async move {
            let rows = client.collect(&sql).await.unwrap();
            let text = |batch: &arrow::array::RecordBatch| {
                batch.column(0).as_string::<i32>().iter().map(|row| row.unwrap().to_owned()).collect::<Vec<_>>()
            };
            rows.batches.iter().flat_map(text).collect::<Vec<_>>()
        }
    };
    let ports: Vec<String> =
        (0..3).map(|number| format!(":{}", cluster.cluster.index_url(number).port().unwrap())).collect();
    assert!(shown("").await.is_empty());
    let begun = clients[0].begin().await.unwrap();
    begun.execute("INSERT INTO n VALUES (1, 0)").await.unwrap();
    assert_eq!(begun.collect("SELECT id FROM n").await.unwrap().rows(), 1);
    let expected = "admin idle 2 false true true".to_owned();
    assert_eq!(shown(&ports[0]).await, std::slice::from_ref(&expected));
    let here = clients[1].begin().await.unwrap();
    here.execute("INSERT INTO n VALUES (2, 0)").await.unwrap();
    assert_eq!(shown(&ports[1]).await, [expected.replace('2', "1")]);
    assert_eq!(shown("").await.len(), 2);
    begun.rollback().await.unwrap();
    assert!(shown(&ports[0]).await.is_empty());
    // One that nobody hears of is not one without transactions.
    cluster.cluster.kill_index(2).await.unwrap();
    eventually("the dead one has a row", || async { shown(&ports[2]).await.len() == 1 }).await;
    here.commit().await.unwrap();
    cluster.cluster.shutdown().await.unwrap();
}

async fn admin(cluster: &TestCluster, arguments: &[&str]) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_drsdb"));
    command.arg("admin").args(arguments).arg("--config").arg(cluster.cluster.client_file());
    let done = tokio::time::timeout(Duration::from_secs(120), command.output()).await.expect("it ends").unwrap();
    let text = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    (done.status.success(), text)
}

#[tokio::test(flavor = "multi_thread")]
async fn index_servers_are_added_and_removed_while_it_runs() {
    let mut cluster = three(2).await;
    let writers = Writers::start(&cluster, 3).await;
    writers.more(10).await;
    let (number, url) = cluster.cluster.start_joining_index().await.unwrap();
    assert_eq!(number, 4);
    let id = number.to_string();
    let add = ["index", "add", "--id", &id, "--url", url.as_str()];
    let mut said = String::new();
    let mut added = false;
    // Its process may not listen yet.
    while !added {
        (added, said) = admin(&cluster, &add).await;
        assert!(added || said.contains("cannot be reached"), "{said}");
    }
    assert!(added, "{said}");
    let (ok, status) = admin(&cluster, &["status"]).await;
    assert!(ok && status.contains(url.as_str()) && status.contains("leader"), "{status}");
    // The leader goes, by SQL: the four servers were one more than needed. Its process ends, however often it is started.
    let first = leader(&cluster.client).await;
    cluster.client.execute(&format!("ALTER CLUSTER REMOVE INDEX SERVER {}", first + 1)).await.unwrap();
    for _ in 0..2 {
        let ended = tokio::time::timeout(Duration::from_secs(30), cluster.cluster.index_ended(first)).await;
        assert!(ended.expect("it finds out that it was removed"), "that is no failure");
        cluster.cluster.restart_index(first).await.unwrap();
    }
    writers.more(10).await;
    // The storage servers were told of the first three, and follow whoever is there: another one dies.
    let second = leader(&cluster.client).await;
    assert_ne!(second, first);
    cluster.cluster.kill_index(second).await.unwrap();
    writers.more(10).await;
    cluster.cluster.restart_index(second).await.unwrap();
    let (ok, said) = admin(&cluster, &["index", "remove", "--id", "77"]).await;
    assert!(!ok && said.contains("77"), "{said}");
    // A storage server, by commands as well: it goes when it has nothing, and not before.
    let storage = cluster.status(0).await.server_id;
    let remove = ["storage", "remove", "--id", &storage];
    let (ok, said) = admin(&cluster, &remove).await;
    assert!(!ok && said.contains("still has"), "{said}");
    for (verb, state) in [("drain", "draining"), ("add", "active"), ("drain", "draining")] {
        let (ok, said) = admin(&cluster, &["storage", verb, "--id", &storage]).await;
        assert!(ok, "{said}");
        let shown = format!("SELECT state FROM drsdb.servers WHERE id = '{storage}'");
        assert_eq!(cluster.value(&shown).await, state);
    }
    let held = format!("SELECT count(*) FROM drsdb.replicas WHERE server = '{storage}'");
    eventually("it has nothing", || async { cluster.value(&held).await == "0" }).await;
    let (ok, said) = admin(&cluster, &remove).await;
    assert!(ok, "{said}");
    cluster.cluster.kill_storage(0).await.unwrap();
    // Started again it says so, and ends; perhaps before it is ready.
    let _ = cluster.cluster.restart_storage(0).await;
    let told = format!("storage server {storage} was removed");
    eventually("it ends", || async { crate::damage::log(&cluster, 0).contains(&told) }).await;
    let _ = cluster.cluster.kill_storage(0).await;
    writers.more(10).await;
    all_agree(&cluster.client, 3).await;
    // Not asked at the removed one, which knows nothing any more.
    writers.stop.store(true, Ordering::Relaxed);
    let mut acknowledged = 0;
    for writer in writers.running {
        acknowledged += writer.await.unwrap().len();
    }
    let rows = cluster.client.collect("SELECT id FROM n").await.unwrap().rows();
    assert!(rows >= acknowledged, "{acknowledged} rows were acknowledged, and {rows} are there");
    cluster.cluster.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_comes_up_again_and_takes_more_index_servers() {
    let folder: TempDir = tempfile::tempdir().unwrap();
    let mut urls = Vec::new();
    for (start, index) in [1, 3, 1].into_iter().enumerate() {
        let cluster = LocalCluster::start(drsdb::local::LocalOptions { index, ..options(&folder, 1) }).await.unwrap();
        let client = Client::connect(cluster.client_options()).await.unwrap();
        let now: Vec<_> = (0..cluster.index_count()).map(|number| cluster.index_url(number).clone()).collect();
        assert_eq!(now.len(), if start == 0 { 1 } else { 3 });
        assert!(now.starts_with(&urls), "{now:?} after {urls:?}");
        urls = now;
        if start == 0 {
            client.execute("CREATE TABLE t (id BIGINT PRIMARY KEY)").await.unwrap();
        }
        client.execute(&format!("INSERT INTO t VALUES ({start})")).await.unwrap();
        assert_eq!(client.collect("SELECT id FROM t").await.unwrap().rows(), start + 1);
        all_agree(&client, urls.len()).await;
        cluster.shutdown().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_index_servers_in_one_process() {
    let folder = tempfile::tempdir().unwrap();
    for start in 0..2 {
        let options = drsdb::local::LocalOptions { index: 3, processes: false, ..options(&folder, 2) };
        let cluster = LocalCluster::start(options).await.unwrap();
        let client = Client::connect(cluster.client_options()).await.unwrap();
        client.execute("CREATE TABLE IF NOT EXISTS t (id BIGINT PRIMARY KEY)").await.unwrap();
        client.execute(&format!("INSERT INTO t VALUES ({start})")).await.unwrap();
        assert_eq!(client.collect("SELECT id FROM t").await.unwrap().rows(), start + 1);
        cluster.shutdown().await.unwrap();
    }
}
