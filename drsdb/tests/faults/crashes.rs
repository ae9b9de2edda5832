//! A crash at every point of [`drsdb_core::crash_point`]: servers are brought there, die, and have to recover.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use drsdb_client::{Client, ErrorCode};
use drsdb_core::crash_point::{INDEX_POINTS, STORAGE_POINTS};
use tokio::time::timeout;

use crate::{
    cluster::{Cluster, Topology, pause},
    network::Node,
    replacement::remove_index,
    replicas::compare,
    run::{Run, leader, workloads},
    workload::{BulkLoad, Definitions, Engine, RECOVERY_TIME, ask, column},
};

/// How many index servers vote.
const VOTERS: &str = "SELECT count(*) FROM drsdb.raft WHERE role IN ('leader', 'follower', 'candidate')";

/// How long a server may take to come to a point that it is brought to.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long one server is waited for where another one may come to the point as well.
const PATIENCE_WITH_ONE: Duration = Duration::from_secs(2);
/// How often a server is given something to rebuild, and how long it is waited for each time.
const REBUILDS: usize = 10;
const REBUILD_TIME: Duration = Duration::from_secs(5);
/// Entries after which the index servers have forgotten the one before them: more than `snapshot_entries`.
const FORGOTTEN_AFTER: i64 = 150;
/// How long a leader that was cut off may take to hear of the next one.
const DEPOSING_TIME: Duration = Duration::from_secs(8);
/// Workloads at a time.
const WORKLOADS: usize = 2;

/// Lets an index server die at each of its points, and gives those to which none came.
pub async fn crash_index_servers(topology: Topology) -> Vec<&'static str> {
    let mut cluster = Cluster::start(topology).await;
    let mut never = Vec::new();
    for (points, seed) in INDEX_POINTS.chunk_by(is_near).zip(1_000_000..) {
        attempt(&mut cluster, seed, points, &mut never).await;
    }
    never
}

/// The same for storage servers.
pub async fn crash_storage_servers(topology: Topology) -> Vec<&'static str> {
    let mut cluster = Cluster::start(topology).await;
    let mut never = Vec::new();
    let points: Vec<_> = STORAGE_POINTS.iter().copied().filter(|point| !NEW_SERVER_POINTS.contains(point)).collect();
    for (points, seed) in points.chunk_by(is_near).zip(2_000_000..) {
        attempt(&mut cluster, seed, points, &mut never).await;
    }
    attempt(&mut cluster, 3_000_000, NEW_SERVER_POINTS, &mut never).await;
    never
}

/// Whether two points lie around the same thing: then one run has both crashes, one after the other.
fn is_near(one: &&'static str, other: &&'static str) -> bool {
    one.rsplit_once('.').map(|(thing, _)| thing) == other.rsplit_once('.').map(|(thing, _)| thing)
}

/// In the order in which a new server comes to them when it dies at each: its identity it writes down again when it has
/// registered.
const NEW_SERVER_POINTS: &[&str] = &[
    "identity.written",
    "identity.synced",
    "identity.renamed",
    "index_servers.written",
    "index_servers.renamed",
    "identity.named",
];

#[test]
fn every_point_of_a_new_server_is_there() {
    assert!(NEW_SERVER_POINTS.iter().all(|point| STORAGE_POINTS.contains(point)));
    let of_new = |point: &&&str| point.starts_with("identity.") || point.starts_with("index_servers.");
    assert_eq!(STORAGE_POINTS.iter().filter(of_new).count(), NEW_SERVER_POINTS.len());
}

/// One run, in which a server dies at each of the points.
async fn attempt(cluster: &mut Cluster, seed: u64, points: &[&'static str], never: &mut Vec<&'static str>) {
    let started = Instant::now();
    let ended = async {
        let mut workloads = workloads(seed, WORKLOADS);
        if points.iter().any(|point| point.starts_with("segment.")) {
            workloads = vec![Arc::new(BulkLoad::of_segments(seed))];
        }
        if points.iter().any(|point| point.starts_with("table.")) {
            workloads = vec![Arc::new(Definitions::new(seed, Engine::Row))];
        }
        let run = Run::start(cluster, seed, workloads).await?;
        if points == NEW_SERVER_POINTS {
            cluster.lose_disk(Node::Storage(1)).await;
        }
        if points.iter().any(|point| point.starts_with("raft.node.")) {
            let lost = Node::Index(cluster.topology.index);
            cluster.lose_disk(lost).await;
            remove_index(cluster, &run.clients[0], lost).await?;
        }
        for point in points {
            if !bring_to(cluster, &run.clients, point).await? {
                never.push(point);
            }
        }
        let crashed = started.elapsed();
        run.finish(cluster).await.map(|_| crashed)
    };
    match ended.await {
        Ok(crashed) => {
            eprintln!("{points:?}: {:.1} s, {:.1} s in all", crashed.as_secs_f64(), started.elapsed().as_secs_f64())
        }
        Err(error) => {
            let (logs, folder) = (cluster.logs(), cluster.keep_folder());
            panic!("after a crash at {points:?}: {error}\n{logs}\nfiles are kept in {}", folder.display());
        }
    }
}

/// Brings a server to `point` and lets it die there; false if none came there.
async fn bring_to(cluster: &mut Cluster, clients: &[Client], point: &'static str) -> Result<bool, String> {
    let first = Node::Storage(1);
    match point.split('.').collect::<Vec<_>>()[..] {
        ["raft", "vote", _] => {
            // The others elect another.
            let leader = leader(cluster, &clients[0]).await.unwrap_or(Node::Index(1));
            cluster.kill(leader).await;
            let others: Vec<Node> = cluster.topology.index_nodes().filter(|node| *node != leader).collect();
            let died = dies(cluster, others[0], point, PATIENCE).await;
            cluster.start_server(leader).await;
            died
        }
        ["raft", "truncate", _] => {
            // The client's server may be another one than it is for, and a snapshot may be due at that very moment.
            for _ in 0..5 {
                if depose(cluster, clients, point).await? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        ["raft", "install", _] => {
            let behind = Node::Index(cluster.topology.index);
            cluster.kill(behind).await;
            // The others go on until what it lacks is in a snapshot alone.
            let last = "SELECT max(last_log) FROM drsdb.raft";
            let forgotten = column(&ask(&clients[0], last).await?, 0)[0] + FORGOTTEN_AFTER;
            let deadline = Instant::now() + PATIENCE;
            while column(&ask(&clients[0], last).await?, 0)[0] < forgotten && Instant::now() < deadline {
                pause().await;
            }
            dies_after_start(cluster, behind, point, PATIENCE).await
        }
        ["raft", "node", _] => {
            // It is no member of the cluster yet: what it has written is nobody's.
            let new = Node::Index(cluster.topology.index);
            cluster.kill(new).await;
            cluster.empty_disk(new);
            dies_after_start(cluster, new, point, PATIENCE).await
        }
        ["raft", "rejoin", _] => {
            // It is one of them again since the last time.
            let damaged = Node::Index(cluster.topology.index);
            let voters = i64::try_from(cluster.topology.index).expect("a few");
            count_becomes(&clients[0], VOTERS, voters).await?;
            cluster.kill(damaged).await;
            cluster.damage(damaged);
            if matches!(point, "raft.rejoin.settling" | "raft.rejoin.settled") {
                // Only a start after this one finds the new files still beside their place.
                cluster.arm(damaged, "raft.rejoin.moved", 1).await;
                cluster.start_server(damaged).await;
                wait_for_death(cluster, damaged, PATIENCE).await;
                cluster.kill(damaged).await;
            }
            dies_after_start(cluster, damaged, point, PATIENCE).await
        }
        ["raft", ..] => dies(cluster, Node::Index(cluster.topology.index), point, PATIENCE).await,
        ["table" | "commit" | "outcome", _] if INDEX_POINTS.contains(&point) => {
            // Clients and storage servers may all have gone to one of them.
            let nodes: Vec<Node> = cluster.topology.index_nodes().collect();
            let deadline = Instant::now() + PATIENCE;
            for &node in nodes.iter().cycle() {
                if dies(cluster, node, point, PATIENCE_WITH_ONE).await? {
                    return Ok(true);
                }
                if Instant::now() > deadline {
                    break;
                }
            }
            Ok(false)
        }
        ["spool" | "floors" | "catch_up", _] => {
            // A copy is quick, and not every one has a call come in meanwhile that must be kept.
            for _ in 0..REBUILDS {
                cluster.kill(first).await;
                // What is written without it makes its replicas stale, and it copies them when it is back.
                let stale = "SELECT count(*) FROM drsdb.replicas WHERE state <> 'current'";
                let deadline = Instant::now() + PATIENCE;
                while column(&ask(&clients[0], stale).await?, 0) == [0] {
                    if Instant::now() > deadline {
                        return Err(format!("no replica of a dead server is stale after {PATIENCE:?}"));
                    }
                    pause().await;
                }
                if dies_after_start(cluster, first, point, REBUILD_TIME).await? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        ["row", "file" | "checkpoint" | "sums", _] | ["column", "folder", _] | ["identity" | "index_servers", _] => {
            cluster.kill(first).await;
            dies_after_start(cluster, first, point, PATIENCE).await
        }
        ["repair", _] => {
            // It has filled its row file again since the last time.
            all_are_current(&clients[0]).await?;
            cluster.kill(first).await;
            cluster.damage(first);
            dies_after_start(cluster, first, point, PATIENCE).await
        }
        ["segment", _] => {
            // Loads leave a server out whose replica is stale since the last time.
            all_are_current(&clients[0]).await?;
            dies(cluster, first, point, PATIENCE).await
        }
        _ => dies(cluster, first, point, PATIENCE).await,
    }
}

/// Has the leader take an entry that it cannot commit, and lets it die when it gives that up for another leader's.
async fn depose(cluster: &mut Cluster, clients: &[Client], point: &str) -> Result<bool, String> {
    // Storage servers stand still for long each time: what waited for them has its turn in between.
    count_becomes(&clients[0], "SELECT count(*) FROM drsdb.replicas WHERE state <> 'current'", 0).await?;
    let table = "CREATE TABLE IF NOT EXISTS deposed (id BIGINT PRIMARY KEY) WITH (engine = 'row')";
    let made = clients[0].execute(table).await;
    made.map_err(|error| format!("{table}: {}: {error}", error.code()))?;
    let leads = column(&ask(&clients[0], "SELECT id FROM drsdb.raft WHERE role = 'leader'").await?, 0);
    let leader = leads.first().and_then(|id| cluster.index_node(*id));
    let Some(old @ Node::Index(number)) = leader else { return Ok(false) };
    // A commit needs nobody's answer before it is in the log; to begin a transaction takes a majority's.
    let Ok(transaction) = clients[number - 1].begin().await else { return Ok(false) };
    let insert = format!("INSERT INTO deposed VALUES ({})", rand::random::<u32>());
    if transaction.execute(&insert).await.is_err() {
        return Ok(false);
    }
    let others: Vec<Node> = cluster.topology.index_nodes().filter(|node| *node != old).collect();
    for &other in &others {
        cluster.network.cut(old, other);
        cluster.network.cut(other, old);
    }
    let committing = tokio::spawn(transaction.commit());
    // While nothing is staged, nothing is committed: a new leader with many entries more sends a snapshot instead of them.
    let storage: Vec<Node> = cluster.topology.storage_nodes().collect();
    storage.iter().for_each(|node| cluster.set_stopped(*node, true));
    // Nobody without a majority answers this.
    let Node::Index(other) = others[0] else { unreachable!("only index servers lead") };
    let led = ask(&clients[other - 1], "SELECT count(*) FROM drsdb.replicas").await;
    cluster.arm(old, point, 1).await;
    cluster.network.heal_all();
    wait_for_death(cluster, old, DEPOSING_TIME).await;
    storage.iter().for_each(|node| cluster.set_stopped(*node, false));
    let died = cluster.disarm(old).await;
    // It was told what became of it, or that nobody knows.
    let told = timeout(PATIENCE, committing).await;
    told.map_err(|_| format!("a commit at a deposed leader hangs for {PATIENCE:?}"))?.ok();
    led.map(|_| died)
}

/// What a server kept of a transaction that was aborted while it was down is in the way of nothing that it copies.
pub async fn crash_before_an_abort(topology: Topology) -> Result<(), String> {
    let mut cluster = Cluster::start(topology).await;
    let client = &cluster.clients().await[0];
    let crashing = Node::Storage(1);
    let execute = async |sql: &str| match client.execute(sql).await {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("{sql}: {}: {error}", error.code())),
    };
    execute("CREATE TABLE kept (id BIGINT PRIMARY KEY, note VARCHAR) WITH (engine = 'row', shards = 1)").await?;
    cluster.kill(crashing).await;
    execute("INSERT INTO kept VALUES (1, 'makes a replica stale')").await?;
    // It keeps what comes in for as long as it has nothing to copy from.
    for other in cluster.topology.storage_nodes().filter(|node| *node != crashing) {
        cluster.network.cut(crashing, other);
    }
    cluster.start_server(crashing).await;
    replicas_are(client, "rebuilding", 1).await?;
    cluster.arm(crashing, "spool.synced", 1).await;
    let failed = |error: drsdb_client::Error| format!("a transaction: {}: {error}", error.code());
    let transaction = client.begin().await.map_err(failed)?;
    transaction.execute("INSERT INTO kept VALUES (2, 'aborted')").await.map_err(failed)?;
    wait_for_death(&mut cluster, crashing, PATIENCE).await;
    transaction.rollback().await.map_err(failed)?;
    execute("INSERT INTO kept VALUES (2, 'committed')").await?;
    cluster.network.heal_all();
    if !cluster.disarm(crashing).await {
        return Err(format!("{crashing} kept nothing of a statement while it rebuilt its replica"));
    }
    replicas_are(client, "current", 3).await?;
    compare(&cluster).await
}

/// Of a table that an index server was making when it died, nothing is left, and the name is free.
pub async fn crash_while_a_table_is_made(topology: Topology) -> Result<(), String> {
    let mut cluster = Cluster::start(topology).await;
    let client = cluster.clients().await.remove(0);
    let crashing = Node::Index(1);
    cluster.arm(crashing, "table.made", 1).await;
    let asking = client.new_session();
    let making = tokio::spawn(async move { asking.execute("CREATE TABLE made AS SELECT 1 AS a").await });
    wait_for_death(&mut cluster, crashing, PATIENCE).await;
    // Nobody asks again, and no other index server was there to be asked.
    making.abort();
    if !cluster.disarm(crashing).await {
        return Err(format!("{crashing} made no table"));
    }
    let tables = "SELECT count(*) FROM information_schema.tables WHERE table_name = 'made'";
    count_becomes(&client, tables, 0).await?;
    let (create, deadline) = ("CREATE TABLE made (a BIGINT)", Instant::now() + RECOVERY_TIME);
    while let Err(error) = client.execute(create).await {
        let passes = matches!(error.code(), ErrorCode::Conflict | ErrorCode::Unavailable);
        if !passes || Instant::now() > deadline {
            return Err(format!("{create}: {}: {error}", error.code()));
        }
        pause().await;
    }
    compare(&cluster).await
}

/// Waits until so many replicas are in this state.
async fn replicas_are(client: &Client, state: &str, count: i64) -> Result<(), String> {
    count_becomes(client, &format!("SELECT count(*) FROM drsdb.replicas WHERE state = '{state}'"), count).await
}

async fn all_are_current(client: &Client) -> Result<(), String> {
    count_becomes(client, "SELECT count(*) FROM drsdb.replicas WHERE state <> 'current'", 0).await
}

async fn count_becomes(client: &Client, sql: &str, count: i64) -> Result<(), String> {
    let deadline = Instant::now() + RECOVERY_TIME;
    loop {
        let found = column(&ask(client, sql).await?, 0);
        if found == [count] {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(format!("{sql} gives {found:?} after {RECOVERY_TIME:?}, and not {count}"));
        }
        pause().await;
    }
}

async fn dies_after_start(cluster: &mut Cluster, node: Node, point: &str, patience: Duration) -> Result<bool, String> {
    cluster.arm(node, point, 1).await;
    cluster.start_server(node).await;
    wait_for_death(cluster, node, patience).await;
    Ok(cluster.disarm(node).await)
}

/// Whether a server that runs comes to the point in time. It runs again afterwards.
async fn dies(cluster: &mut Cluster, node: Node, point: &str, patience: Duration) -> Result<bool, String> {
    cluster.arm(node, point, 1).await;
    wait_for_death(cluster, node, patience).await;
    Ok(cluster.disarm(node).await)
}

async fn wait_for_death(cluster: &mut Cluster, node: Node, patience: Duration) {
    let deadline = Instant::now() + patience;
    while !cluster.has_crashed(node) && Instant::now() < deadline {
        pause().await;
    }
}
