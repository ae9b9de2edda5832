//! Shards with replicas: what goes on when storage servers die, come back, are drained, or join.

use std::{
    collections::BTreeMap,
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use arrow::{array::AsArray, datatypes::Int64Type};
use drsdb_client::{Client, ErrorCode};
use drsdb_core::{Engine, WireError, ids::new_ulid, v1};

use crate::support::{TestCluster, eventually};

/// A cluster that is not patient.
pub async fn impatient(storage: usize, replace_after_s: i64) -> TestCluster {
    TestCluster::start_with(storage, |options| {
        options.index_settings.insert("demote_after_s".into(), 1i64.into());
        options.index_settings.insert("replace_after_s".into(), replace_after_s.into());
        options.index_settings.insert("shard_copies".into(), 16i64.into());
        options.storage_settings.insert("staged_lease_s".into(), 2i64.into());
    })
    .await
}

/// Inserts rows one by one until it is told to stop; how many are acknowledged.
pub fn insert_rows(
    client: &Client,
    table: &str,
    first: i64,
) -> (Arc<AtomicBool>, tokio::task::JoinHandle<i64>, Arc<AtomicI64>) {
    let (client, stop, done) = (client.new_session(), Arc::new(AtomicBool::new(false)), Arc::new(AtomicI64::new(0)));
    let (stopped, counted, table) = (Arc::clone(&stop), Arc::clone(&done), table.to_owned());
    let task = tokio::spawn(async move {
        let mut id = first;
        while !stopped.load(Ordering::Relaxed) {
            let inserted = client.execute(&format!("INSERT INTO {table} VALUES ({id}, 'row {id}')")).await;
            match inserted {
                Ok(_) => {}
                // It was there: the answer to the first try was lost.
                Err(error) if error.code() == ErrorCode::ConstraintViolation => {}
                Err(error) => {
                    assert!(matches!(error.code(), ErrorCode::Unavailable | ErrorCode::Conflict), "{error}");
                    continue;
                }
            }
            id += 1;
            counted.store(id - first, Ordering::Relaxed);
        }
        id - first
    });
    (stop, task, done)
}

/// Waits until `task` has done `more` rows than now.
pub async fn progress(what: &str, done: &AtomicI64, more: i64) {
    let goal = done.load(Ordering::Relaxed) + more;
    eventually(what, || async { done.load(Ordering::Relaxed) >= goal }).await;
}

async fn count(cluster: &TestCluster, condition: &str) -> i64 {
    let sql = format!("SELECT count(*) FROM drsdb.replicas WHERE {condition}");
    match cluster.client.collect(&sql).await {
        Ok(result) => result
            .batches
            .iter()
            .find(|batch| batch.num_rows() > 0)
            .map_or(-1, |batch| batch.column(0).as_primitive::<Int64Type>().value(0)),
        Err(error) => panic!("{sql}: {error}"),
    }
}

pub async fn all_current(cluster: &TestCluster, replicas: i64) {
    eventually("all replicas are current", || async {
        count(cluster, "state = 'current'").await == replicas && count(cluster, "true").await == replicas
    })
    .await;
}

/// The ids of the storage servers by their URLs.
async fn ids(cluster: &TestCluster) -> BTreeMap<String, String> {
    let result = cluster.client.collect("SELECT url, id FROM drsdb.servers WHERE kind = 'storage'").await.unwrap();
    let text = |batch: &arrow::record_batch::RecordBatch, column: usize, row: usize| {
        arrow::util::display::array_value_to_string(batch.column(column), row).unwrap()
    };
    let rows = result.batches.iter().flat_map(|batch| {
        (0..batch.num_rows()).map(|row| (text(batch, 0, row).trim_end_matches('/').to_owned(), text(batch, 1, row)))
    });
    rows.collect()
}

async fn id_of(cluster: &TestCluster, number: usize) -> String {
    let url = cluster.cluster.storage_url(number).as_str().trim_end_matches('/').to_owned();
    ids(cluster).await[&url].clone()
}

pub const TABLES: [&str; 2] = ["row", "column"];

pub async fn create_tables(cluster: &TestCluster, options: &str) {
    for engine in TABLES {
        let options = format!("engine = '{engine}', shards = 4{options}");
        cluster.run(&[&format!("CREATE TABLE {engine}_t (id BIGINT PRIMARY KEY, text TEXT) WITH ({options})")]).await;
    }
}

/// All replicas of every shard hold the same rows; at the last version that all have.
async fn replicas_are_equal(cluster: &TestCluster) {
    let tables =
        [cluster.definition("row_t", Engine::Row, 4).await, cluster.definition("column_t", Engine::Column, 4).await];
    let mut version = 0;
    for server in 0..3 {
        version = version.max(cluster.status(server).await.applied_version);
    }
    for (table, shard) in tables.iter().flat_map(|table| (0..4).map(move |shard| (table, shard))) {
        let expected = cluster.checksum(0, table, shard, version).await.unwrap();
        for server in 1..3 {
            let found = cluster.checksum(server, table, shard, version).await.unwrap();
            assert_eq!(found, expected, "shard {shard} of {} on server {server}", table.name);
        }
    }
}

/// Changes of every kind, one transaction among them.
async fn change_all(cluster: &TestCluster, round: i64) {
    for table in TABLES.map(|engine| format!("{engine}_t")) {
        let from = round * 100_000;
        let statements = [
            format!("INSERT INTO {table} SELECT v, 'of round {round}' FROM generate_series({from}, {from} + 999) g(v)"),
            format!("UPDATE {table} SET text = 'updated' WHERE id % 7 = {round}"),
            format!("DELETE FROM {table} WHERE id % 11 = {round}"),
            format!("INSERT INTO {table} SELECT -v, 'passes' FROM generate_series({from} + 1, {from} + 50) g(v)"),
            format!("DELETE FROM {table} WHERE id < 0"),
        ];
        cluster.run(&statements.each_ref().map(String::as_str)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_was_away_for_a_moment_gets_what_has_changed() {
    let mut cluster = impatient(3, 600).await;
    create_tables(&cluster, "").await;
    change_all(&cluster, 1).await;
    for round in 2..4 {
        cluster.cluster.kill_storage(0).await.unwrap();
        change_all(&cluster, round).await;
        assert!(count(&cluster, "state <> 'current' AND version > 0").await > 0);
        cluster.cluster.restart_storage(0).await.unwrap();
        all_current(&cluster, 24).await;
        let status = cluster.status(0).await;
        assert_eq!((status.shards_copied, status.shards_caught_up), (0, 8), "round {round}");
        replicas_are_equal(&cluster).await;
    }
    assert_eq!(count(&cluster, "version IS NULL OR rebuild_step IS NOT NULL").await, 0);
    // It is as good as any: the only one left that has all, with another that missed nothing.
    cluster.cluster.kill_storage(1).await.unwrap();
    change_all(&cluster, 4).await;
    cluster.cluster.restart_storage(1).await.unwrap();
    all_current(&cluster, 24).await;
    replicas_are_equal(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_too_far_behind_is_copied() {
    let mut cluster = TestCluster::start_with(3, |options| {
        options.index_settings.insert("ticket_lifetime_s".into(), 1i64.into());
        options.storage_settings.insert("retention_s".into(), 0i64.into());
    })
    .await;
    create_tables(&cluster, "").await;
    change_all(&cluster, 1).await;
    cluster.cluster.kill_storage(0).await.unwrap();
    change_all(&cluster, 2).await;
    let last = cluster.status(1).await.applied_version;
    for server in 1..3 {
        eventually("old versions go", || async { cluster.status(server).await.horizon >= last }).await;
    }
    cluster.cluster.restart_storage(0).await.unwrap();
    all_current(&cluster, 24).await;
    let status = cluster.status(0).await;
    assert_eq!(status.shards_copied + status.shards_caught_up, 8);
    assert!(status.shards_copied > 0, "{status:?}");
    replicas_are_equal(&cluster).await;
}

/// The thousand rows of both tables are read, although a server that had some of them is dead.
async fn all_there_without_the_dead(cluster: &TestCluster) {
    for engine in TABLES {
        let sql = format!("SELECT sum(id) FROM {engine}_t");
        eventually("the dead server is gone around", || async { cluster.client.collect(&sql).await.is_ok() }).await;
        assert_eq!(cluster.value(&sql).await, "500500");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_go_on_without_one_of_three_and_it_catches_up() {
    let mut cluster = impatient(3, 600).await;
    create_tables(&cluster, "").await;
    let writers: Vec<_> = TABLES.map(|engine| insert_rows(&cluster.client, &format!("{engine}_t"), 0)).into();
    for (_, _, done) in &writers {
        progress("rows before", done, 10).await;
    }
    cluster.cluster.kill_storage(0).await.unwrap();
    for (_, _, done) in &writers {
        progress("rows without one server", done, 20).await;
    }
    for engine in TABLES {
        let read = cluster.client.collect(&format!("SELECT id FROM {engine}_t")).await;
        assert!(read.is_ok(), "reads go on: {read:?}");
    }
    cluster.cluster.restart_storage(0).await.unwrap();
    for (_, _, done) in &writers {
        progress("rows while it catches up", done, 20).await;
    }
    // Under load, too.
    all_current(&cluster, 2 * 4 * 3).await;
    let mut expected = BTreeMap::new();
    for ((stop, task, _), engine) in writers.into_iter().zip(TABLES) {
        stop.store(true, Ordering::Relaxed);
        expected.insert(engine, task.await.unwrap());
    }
    // What the returned server has alone is everything.
    cluster.cluster.kill_storage(1).await.unwrap();
    cluster.cluster.kill_storage(2).await.unwrap();
    for engine in TABLES {
        let sql = format!("SELECT id FROM {engine}_t");
        eventually("the others are gone around", || async { cluster.client.collect(&sql).await.is_ok() }).await;
        let rows = cluster.client.collect(&sql).await.unwrap();
        let mut ids: Vec<i64> = rows
            .batches
            .iter()
            .flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec())
            .collect();
        ids.sort_unstable();
        assert_eq!(ids, (0..expected[engine]).collect::<Vec<_>>());
    }
    // One of three is no majority.
    let error = cluster.error("INSERT INTO row_t VALUES (-1, 'never')").await;
    assert_eq!(error.code(), ErrorCode::Unavailable, "{error}");
    cluster.cluster.restart_storage(1).await.unwrap();
    eventually("writes go on with two", || async {
        cluster.client.execute("INSERT INTO row_t VALUES (-2, 'again')").await.is_ok()
    })
    .await;
    cluster.cluster.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_server_hands_over_and_is_removed() {
    let mut cluster = impatient(4, 600).await;
    create_tables(&cluster, ", replicas = 2").await;
    for engine in TABLES {
        cluster.run(&[&format!("INSERT INTO {engine}_t SELECT v, 'x' FROM generate_series(1, 1000) g(v)")]).await;
    }
    let drained = id_of(&cluster, 1).await;
    assert_eq!(
        cluster.error(&format!("ALTER CLUSTER REMOVE STORAGE SERVER '{drained}'")).await.code(),
        ErrorCode::InvalidArgument
    );
    let (stop, writer, done) = insert_rows(&cluster.client, "row_t", 10_000);
    progress("rows before", &done, 5).await;
    cluster.run(&[&format!("ALTER CLUSTER DRAIN STORAGE SERVER '{drained}'")]).await;
    eventually("it has nothing any more", || async { count(&cluster, &format!("server = '{drained}'")).await == 0 })
        .await;
    cluster.run(&[&format!("ALTER CLUSTER REMOVE STORAGE SERVER '{drained}'")]).await;
    cluster.cluster.kill_storage(1).await.unwrap();
    progress("rows after", &done, 5).await;
    stop.store(true, Ordering::Relaxed);
    let written = writer.await.unwrap();
    all_current(&cluster, 2 * 4 * 2).await;
    assert_eq!(cluster.value("SELECT count(*) FROM column_t").await, "1000");
    assert_eq!(cluster.value("SELECT count(*) FROM row_t").await, (1000 + written).to_string());
    cluster.cluster.shutdown().await.unwrap();
}

/// Two servers in each of three zones, as their files say.
#[tokio::test(flavor = "multi_thread")]
async fn replicas_of_a_shard_share_no_zone() {
    let mut cluster = impatient(6, 600).await;
    for (server, zone) in ["a", "b", "c", "a", "b", "c"].into_iter().enumerate() {
        let file = cluster.cluster.storage_folder(server).join("storage.toml");
        let settings = fs::read_to_string(&file).unwrap();
        fs::write(&file, format!("{settings}\n[labels]\nzone = \"{zone}\"\n")).unwrap();
        cluster.cluster.kill_storage(server).await.unwrap();
        cluster.cluster.restart_storage(server).await.unwrap();
    }
    let placed = "SELECT count(*) FROM drsdb.servers WHERE state = 'active' AND labels LIKE 'zone=%'";
    eventually("all have said where they are", || async { cluster.value(placed).await == "6" }).await;
    for engine in TABLES {
        // So many shards are not spread by chance.
        let options = format!("engine = '{engine}', shards = 12");
        cluster.run(&[&format!("CREATE TABLE {engine}_t (id BIGINT PRIMARY KEY, text TEXT) WITH ({options})")]).await;
        cluster.run(&[&format!("INSERT INTO {engine}_t SELECT v, 'x' FROM generate_series(1, 1000) g(v)")]).await;
    }
    // Shards, and in how many zones each is.
    let zones = "SELECT concat_ws(' ', count(*), min(zones), max(zones)) FROM
                 (SELECT count(DISTINCT s.labels) AS zones FROM drsdb.replicas r JOIN drsdb.servers s ON r.server = s.id
                  GROUP BY r.table_name, r.shard)";
    assert_eq!(cluster.value(zones).await, "24 3 3");
    assert_eq!(count(&cluster, "true").await, 24 * 3);
    // Its zone has one server left, which gets all that it had, more than its share.
    let drained = id_of(&cluster, 0).await;
    cluster.run(&[&format!("ALTER CLUSTER DRAIN STORAGE SERVER '{drained}'")]).await;
    eventually("each shard is in three zones again, without it", || async {
        count(&cluster, &format!("server = '{drained}'")).await == 0
            && count(&cluster, "state = 'current'").await == 24 * 3
            && count(&cluster, "true").await == 24 * 3
            && cluster.value(zones).await == "24 3 3"
    })
    .await;
    cluster.cluster.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_server_gets_its_share_and_more_replicas_are_made() {
    let mut cluster = impatient(1, 600).await;
    create_tables(&cluster, "").await;
    for engine in TABLES {
        cluster.run(&[&format!("INSERT INTO {engine}_t SELECT v, 'x' FROM generate_series(1, 1000) g(v)")]).await;
    }
    for servers in [2, 3] {
        cluster.cluster.add_storage().await.unwrap();
        all_current(&cluster, 2 * 4 * servers).await;
    }
    cluster.cluster.add_storage().await.unwrap();
    eventually("it has its share", || async {
        let result = cluster
            .client
            .collect("SELECT server, count(*) FROM drsdb.replicas WHERE state = 'current' GROUP BY 1")
            .await;
        let rows = result.unwrap();
        let held: Vec<i64> = rows
            .batches
            .iter()
            .flat_map(|batch| batch.column(1).as_primitive::<Int64Type>().values().to_vec())
            .collect();
        held == [6, 6, 6, 6]
    })
    .await;
    // The first one, which had everything, is not needed.
    cluster.cluster.kill_storage(0).await.unwrap();
    all_there_without_the_dead(&cluster).await;
    cluster.cluster.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stays_away_is_replaced() {
    let mut cluster = impatient(4, 3).await;
    create_tables(&cluster, "").await;
    for engine in TABLES {
        cluster.run(&[&format!("INSERT INTO {engine}_t SELECT v, 'x' FROM generate_series(1, 1000) g(v)")]).await;
    }
    let gone = id_of(&cluster, 2).await;
    cluster.cluster.kill_storage(2).await.unwrap();
    eventually("others have its shards", || async { count(&cluster, &format!("server = '{gone}'")).await == 0 }).await;
    all_current(&cluster, 2 * 4 * 3).await;
    // Nobody needs the one that is gone, nor one more.
    cluster.cluster.kill_storage(3).await.unwrap();
    all_there_without_the_dead(&cluster).await;
    cluster.cluster.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_that_is_killed_begins_again() {
    let mut cluster = impatient(3, 600).await;
    create_tables(&cluster, "").await;
    for engine in TABLES {
        cluster.run(&[&format!("INSERT INTO {engine}_t SELECT v, 'x' FROM generate_series(1, 20000) g(v)")]).await;
    }
    let (stop, writer, done) = insert_rows(&cluster.client, "row_t", 100_000);
    for round in 0..4u64 {
        cluster.cluster.kill_storage(2).await.unwrap();
        progress("rows without it", &done, 5).await;
        cluster.cluster.restart_storage(2).await.unwrap();
        // Different moments of the rebuild.
        #[allow(clippy::disallowed_methods)]
        tokio::time::sleep(Duration::from_millis(1000 + round * 150)).await;
    }
    all_current(&cluster, 2 * 4 * 3).await;
    stop.store(true, Ordering::Relaxed);
    let written = writer.await.unwrap();
    cluster.cluster.kill_storage(0).await.unwrap();
    cluster.cluster.kill_storage(1).await.unwrap();
    let sql = "SELECT count(*), count(DISTINCT id) FROM row_t";
    eventually("the others are gone around", || async { cluster.client.collect(sql).await.is_ok() }).await;
    let rows = cluster.client.collect(sql).await.unwrap();
    for column in 0..2 {
        let counted = rows.batches[0].column(column).as_primitive::<Int64Type>().value(0);
        assert_eq!(counted, 20_000 + written);
    }
    cluster.cluster.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_for_a_server_that_lost_its_disk_are_refused_by_the_one_that_has_its_url() {
    let cluster = TestCluster::start(1).await;
    let stage = |server_id: String| {
        let header =
            v1::StageHeader { transaction_id: new_ulid().to_string(), server_id, ..v1::StageHeader::default() };
        let message = v1::StageRequest { part: Some(v1::stage_request::Part::Header(header)) };
        let mut server = cluster.storage(0);
        async move { WireError::from(server.stage(futures::stream::iter([message])).await.unwrap_err()) }
    };
    let refused = stage(new_ulid().to_string()).await;
    assert_eq!(refused.code, ErrorCode::Unavailable, "{refused}");
    // The right one looks further, and finds that the rest of the header is missing.
    let broken = stage(cluster.status(0).await.server_id).await;
    assert_ne!(broken.code, ErrorCode::Unavailable, "{broken}");
    cluster.cluster.shutdown().await.unwrap();
}
