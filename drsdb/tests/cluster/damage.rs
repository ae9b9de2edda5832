//! Files that rot, lose their end or go away while their server is down. What is read stays right, and what is damaged is
//! copied from other replicas; where there are none, the server says so and does not start.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use drsdb_client::{Client, ErrorCode};
use drsdb_core::Engine;

use crate::{
    replication::{TABLES, all_current, create_tables, impatient},
    support::{TestCluster, eventually},
};

const ROWS: [(&str, i64); 2] = [("row", 2_000), ("column", 100_000)];
const REPLICAS: i64 = 2 * 4 * 3;

/// What is done to the data folder of a server that is down.
type Damage<'a> = &'a dyn Fn(&Path);

/// Three servers with three replicas of everything: rows in the row file, rows in segments, and deletions of both.
async fn filled() -> TestCluster {
    let cluster = impatient(3, 600).await;
    create_tables(&cluster, "").await;
    for (engine, rows) in ROWS {
        cluster
            .run(&[
                &format!("INSERT INTO {engine}_t SELECT v, 'text ' || v FROM generate_series(1, {rows}) g(v)"),
                &format!("UPDATE {engine}_t SET text = 'other' WHERE id % 500 = 0"),
                &format!("DELETE FROM {engine}_t WHERE id % 500 = 1"),
            ])
            .await;
    }
    cluster
}

fn question(engine: &str, rows: i64) -> (String, String) {
    let sql = format!("SELECT count(*) || ' ' || sum(id) || ' ' || max(text) FROM {engine}_t WHERE id <= {rows}");
    let gone: i64 = (1..=rows).filter(|id| id % 500 == 1).sum();
    let answer = format!("{} {} text {}", rows - rows / 500, rows * (rows + 1) / 2 - gone, greatest(rows));
    (sql, answer)
}

/// The last number of a row's text, in the order of texts.
fn greatest(rows: i64) -> String {
    let there = (1..=rows).filter(|id| id % 500 > 1);
    there.map(|id| id.to_string()).max().expect("there are rows")
}

/// Asks both tables again and again. An answer is right, or it is an error that says what it is.
struct Readers {
    stop: Arc<AtomicBool>,
    right: Arc<AtomicUsize>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Readers {
    fn start(client: &Client) -> Self {
        let (stop, right) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let tasks = ROWS.map(|(engine, rows)| {
            let (client, stop, right) = (client.new_session(), Arc::clone(&stop), Arc::clone(&right));
            tokio::spawn(async move {
                let (sql, answer) = question(engine, rows);
                while !stop.load(Ordering::Relaxed) {
                    match client.collect(&sql).await {
                        Ok(result) => {
                            let batch = result.batches.iter().find(|batch| batch.num_rows() > 0).unwrap();
                            let found = arrow::util::display::array_value_to_string(batch.column(0), 0).unwrap();
                            assert_eq!(found, answer, "{sql}");
                            right.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(error) => assert!(
                            matches!(error.code(), ErrorCode::Unavailable | ErrorCode::Corrupt | ErrorCode::Timeout),
                            "{sql}: {error}"
                        ),
                    }
                }
            })
        });
        Self { stop, right, tasks: tasks.into() }
    }

    /// Waits for right answers.
    async fn answers(&self, more: usize) {
        let goal = self.right.load(Ordering::Relaxed) + more;
        eventually("queries are answered", || async { self.right.load(Ordering::Relaxed) >= goal }).await;
    }

    async fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for task in std::mem::take(&mut self.tasks) {
            task.await.unwrap();
        }
    }
}

/// A test that fails does not wait for them.
impl Drop for Readers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// All servers have the same rows of every shard, and all of them.
async fn replicas_are_equal(cluster: &TestCluster) {
    let version = cluster.status(0).await.applied_version;
    for (engine, kind) in TABLES.into_iter().zip([Engine::Row, Engine::Column]) {
        let table = cluster.definition(&format!("{engine}_t"), kind, 4).await;
        let mut all = 0;
        for shard in 0..4 {
            let first = cluster.checksum(0, &table, shard, version).await.unwrap();
            for other in [1, 2] {
                let found = cluster.checksum(other, &table, shard, version).await.unwrap();
                assert_eq!(found, first, "shard {shard} of {engine}_t on server {other}");
            }
            all += first.0;
        }
        assert_eq!(all.to_string(), cluster.value(&format!("SELECT count(*) FROM {engine}_t")).await);
    }
}

fn data(cluster: &TestCluster, server: usize) -> PathBuf {
    cluster.cluster.storage_folder(server).join("data")
}

/// Alters a bit in each page, and touches nothing else.
fn rot(file: &Path) {
    let file = fs::File::options().read(true).write(true).open(file).unwrap();
    for place in (2048..file.metadata().unwrap().len()).step_by(4096) {
        let mut byte = [0];
        file.read_exact_at(&mut byte, place).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], place).unwrap();
    }
}

/// Alters a bit in the middle, and touches nothing else.
fn flip(file: &Path) {
    let file = fs::File::options().read(true).write(true).open(file).unwrap();
    let (middle, mut byte) = (file.metadata().unwrap().len() / 2, [0]);
    file.read_exact_at(&mut byte, middle).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], middle).unwrap();
}

fn cut(file: &Path) {
    let length = fs::metadata(file).unwrap().len();
    fs::File::options().write(true).open(file).unwrap().set_len(length / 2).unwrap();
}

/// What a server has said since it was made.
pub fn log(cluster: &TestCluster, server: usize) -> String {
    fs::read_to_string(cluster.cluster.storage_folder(server).join("storage.log")).unwrap()
}

/// The largest segment of a server.
fn segment(cluster: &TestCluster, server: usize) -> PathBuf {
    let files = fs::read_dir(data(cluster, server).join("column").join("segments")).unwrap();
    files.map(|file| file.unwrap().path()).max_by_key(|file| fs::metadata(file).unwrap().len()).unwrap()
}

/// Folders in which a server has put damaged files aside.
fn aside(cluster: &TestCluster, server: usize) -> Vec<PathBuf> {
    let all = fs::read_dir(data(cluster, server)).unwrap().map(|entry| entry.unwrap().path());
    all.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("damaged-")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_segments_are_copied_from_other_replicas() {
    let mut cluster = filled().await;
    let readers = Readers::start(&cluster.client);
    for (server, damage) in [flip as fn(&Path), cut, |file| fs::remove_file(file).unwrap()].into_iter().enumerate() {
        readers.answers(2).await;
        cluster.cluster.kill_storage(server).await.unwrap();
        let file = segment(&cluster, server);
        damage(&file);
        cluster.cluster.restart_storage(server).await.unwrap();
        // A shard that has been copied has no segment of that name.
        eventually("the damaged segment is replaced", || async {
            log(&cluster, server).contains("a damaged shard is copied from another server") && !file.exists()
        })
        .await;
        all_current(&cluster, REPLICAS).await;
        replicas_are_equal(&cluster).await;
        assert_eq!(aside(&cluster, server), Vec::<PathBuf>::new(), "the rest of it was good");
    }
    readers.answers(2).await;
    // It does not know any more since when what it has copied can be read.
    cluster.cluster.kill_storage(0).await.unwrap();
    flip(&data(&cluster, 0).join("floors.json"));
    cluster.cluster.restart_storage(0).await.unwrap();
    assert!(log(&cluster, 0).contains("older snapshots cannot be read here any more"));
    readers.answers(2).await;
    readers.stop().await;
    all_current(&cluster, REPLICAS).await;
    for server in [1, 2] {
        cluster.cluster.kill_storage(server).await.unwrap();
    }
    for (engine, rows) in ROWS {
        let (sql, answer) = question(engine, rows);
        eventually("the dead servers are gone around", || async { cluster.client.collect(&sql).await.is_ok() }).await;
        assert_eq!(cluster.value(&sql).await, answer);
    }
    cluster.cluster.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_with_a_damaged_row_file_starts_empty_and_is_filled() {
    let mut cluster = filled().await;
    let readers = Readers::start(&cluster.client);
    let row = |name: &'static str| move |data: &Path| data.join("row").join(name);
    let damages: [(usize, Damage<'_>); 4] = [
        // The log that the file does not have yet: everything since the last checkpoint.
        (0, &|data| fs::File::create(row("rows.sqlite-wal")(data)).map(drop).unwrap()),
        (1, &|data| rot(&row("rows.sqlite")(data))),
        (2, &|data| cut(&row("rows.sqlite")(data))),
        (1, &|data| fs::remove_dir_all(data.join("row")).unwrap()),
    ];
    for (round, (server, damage)) in damages.into_iter().enumerate() {
        // A start brings the log into the file. Pages that the log has would be whole again after it.
        cluster.cluster.kill_storage(server).await.unwrap();
        cluster.cluster.restart_storage(server).await.unwrap();
        all_current(&cluster, REPLICAS).await;
        readers.answers(2).await;
        // Acknowledged by all three, one of which forgets it.
        let transaction = cluster.client.new_session();
        let insert = format!("INSERT INTO row_t VALUES ({}, 'staged')", 1_000_000 + round);
        for sql in ["BEGIN", &insert] {
            transaction.execute(sql).await.unwrap();
        }
        cluster.cluster.kill_storage(server).await.unwrap();
        let before = aside(&cluster, server).len();
        damage(&data(&cluster, server));
        cluster.cluster.restart_storage(server).await.unwrap();
        let kept = aside(&cluster, server);
        assert_eq!(kept.len(), before + 1, "what was left is kept");
        assert!(kept.iter().all(|folder| folder.join("column").join("segments").exists()));
        let committed = match transaction.execute("COMMIT").await {
            Ok(_) => 1,
            Err(error) => {
                assert!(matches!(error.code(), ErrorCode::Conflict), "{error}");
                0
            }
        };
        all_current(&cluster, REPLICAS).await;
        let sql = format!("SELECT count(*) FROM row_t WHERE id = {}", 1_000_000 + round);
        eventually("all replicas answer", || async { cluster.client.collect(&sql).await.is_ok() }).await;
        assert_eq!(cluster.value(&sql).await, committed.to_string());
        replicas_are_equal(&cluster).await;
    }
    readers.answers(2).await;
    readers.stop().await;
    // While it runs: scrubbing finds it, and the server ends. Whoever looks after it starts it again.
    rot(&row("rows.sqlite")(&data(&cluster, 2)));
    eventually("scrubbing finds it", || async {
        log(&cluster, 2).contains("this server ends, to be started again without its data")
    })
    .await;
    let before = aside(&cluster, 2).len();
    cluster.cluster.restart_storage(2).await.unwrap();
    assert_eq!(aside(&cluster, 2).len(), before + 1);
    all_current(&cluster, REPLICAS).await;
    replicas_are_equal(&cluster).await;
    // What was rebuilt is enough, without the others.
    for server in [0, 2] {
        cluster.cluster.kill_storage(server).await.unwrap();
    }
    for (engine, rows) in ROWS {
        let (sql, answer) = question(engine, rows);
        eventually("the dead servers are gone around", || async { cluster.client.collect(&sql).await.is_ok() }).await;
        assert_eq!(cluster.value(&sql).await, answer);
    }
    cluster.cluster.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_has_the_only_replica_does_not_start_with_less() {
    let mut cluster = impatient(1, 600).await;
    create_tables(&cluster, "").await;
    cluster.run(&["INSERT INTO row_t SELECT v, 'text ' || v FROM generate_series(1, 2000) g(v)"]).await;
    cluster.cluster.kill_storage(0).await.unwrap();
    let folder = data(&cluster, 0).join("row");
    let names = ["rows.sqlite", "rows.sqlite-wal"];
    let whole = names.map(|name| fs::read(folder.join(name)).unwrap());
    for damage in [&(|| fs::File::create(folder.join(names[1])).map(drop).unwrap()) as &dyn Fn(), &|| {
        names.iter().for_each(|name| fs::remove_file(folder.join(name)).unwrap())
    }] {
        damage();
        let error = format!("{:#}", cluster.cluster.restart_storage(0).await.unwrap_err());
        assert!(error.contains("the only current replica of shard 0 of table public."), "{error}");
        assert!(error.contains("data_dir from a backup"), "{error}");
        assert_eq!(aside(&cluster, 0), Vec::<PathBuf>::new(), "nothing is given up");
        // From the backup.
        for (name, bytes) in names.iter().zip(&whole) {
            fs::write(folder.join(name), bytes).unwrap();
        }
    }
    cluster.cluster.restart_storage(0).await.unwrap();
    eventually("it is back", || async { cluster.client.collect("SELECT count(*) FROM row_t").await.is_ok() }).await;
    assert_eq!(cluster.value("SELECT count(*) FROM row_t").await, "2000");
    cluster.cluster.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_ahead_of_its_cluster_does_not_serve() {
    let mut cluster = impatient(3, 600).await;
    create_tables(&cluster, "").await;
    cluster.run(&["INSERT INTO row_t SELECT v, 'text ' || v FROM generate_series(1, 2000) g(v)"]).await;
    cluster.cluster.kill_storage(0).await.unwrap();
    let applied = data(&cluster, 0).join("applied_version");
    fs::write(&applied, "999999").unwrap();
    // It may say that it is ready before it hears of it.
    let _ = cluster.cluster.restart_storage(0).await;
    eventually("it ends", || async { log(&cluster, 0).contains("says it took in commit 999999") }).await;
    let sql = "SELECT count(*) FROM row_t";
    eventually("the others answer", || async { cluster.client.collect(sql).await.is_ok() }).await;
    assert_eq!(cluster.value(sql).await, "2000");
    cluster.run(&["DELETE FROM row_t WHERE id % 2 = 0"]).await;

    fs::remove_file(&applied).unwrap();
    cluster.cluster.restart_storage(0).await.unwrap();
    all_current(&cluster, REPLICAS).await;
    replicas_are_equal(&cluster).await;
    assert_eq!(cluster.value(sql).await, "1000");
    cluster.cluster.shutdown().await.unwrap();
}
