//! `commits`: durable commits of one row each, with few and with many clients.
//!
//! A commit is durable on a majority of the shard's replicas and of the index servers before it is acknowledged. One client
//! waits for each of its commits, so that it sees their latency; many share fsyncs, so that they see what group commit gives.

use std::{
    fs::OpenOptions,
    io::Write,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use drsdb_client::{Client, Executed};
use tokio::task::JoinSet;

use super::CommonArguments;
use crate::{
    engine::drsdb::Cluster,
    report::{Claim, CommitPoint, Commits},
    statistics::Times,
};

/// Connections of all clients together: above that they share them, as a pool does.
const MOST_CONNECTIONS: usize = 16;

/// Fsyncs for a median.
const FSYNCS: usize = 100;

/// Arguments of `commits`.
#[derive(Debug, clap::Args)]
pub struct CommitsArguments {
    #[command(flatten)]
    common: CommonArguments,
    /// Numbers of clients, the smallest first.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 64, 256])]
    clients: Vec<usize>,
    /// Seconds for each number of clients.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
}

/// Measures and reports.
pub async fn run(arguments: CommitsArguments) -> Result<()> {
    let common = &arguments.common;
    ensure!(arguments.clients.iter().all(|clients| *clients > 0), "there must be at least one client");
    let cluster = Cluster::start(&common.cluster).await?;
    cluster
        .client()
        .execute("CREATE TABLE commits (id BIGINT PRIMARY KEY, client BIGINT, text TEXT) WITH (engine = 'row')")
        .await?;
    let mut connections = Vec::new();
    for _ in 0..arguments.clients.iter().copied().max().unwrap_or(1).min(MOST_CONNECTIONS) {
        connections.push(cluster.connect().await?);
    }
    let slow_sync = Duration::from_millis(common.cluster.slow_sync_ms);
    let before = fsync_ms(&cluster.folder(), slow_sync)?;
    let ids = Arc::new(AtomicI64::new(0));
    let time = Duration::from_secs_f64(arguments.seconds);
    let mut points = Vec::new();
    for &clients in &arguments.clients {
        points.push(measure(&connections, clients, time, &ids).await?);
    }
    let after = fsync_ms(&cluster.folder(), slow_sync)?;
    let known = cluster.run("SELECT id FROM commits").await?.rows;
    let acknowledged = ids.load(Ordering::Relaxed) as u64;
    ensure!(known == acknowledged, "{acknowledged} commits were acknowledged, and {known} rows are there");
    cluster.stop().await?;

    let commits = Commits { fsync_ms: (before + after) / 2.0, points };
    let mut report = common.report(0, 1);
    report.claims = claims(&commits);
    report.commits = Some(commits);
    common.publish(&report)
}

fn claims(commits: &Commits) -> Vec<Claim> {
    let with = |clients: usize| commits.points.iter().find(|point| point.clients == clients);
    let mut claims = Vec::new();
    if let (Some(one), Some(many)) = (with(1), with(64)) {
        let ratio = many.commits_per_second / one.commits_per_second;
        claims.push(Claim::at_least("commits/s, 64 clients against one", ratio, 20.0));
    }
    if let Some(one) = with(1) {
        let limit = 3.0 * commits.fsync_ms + 5.0;
        claims.push(Claim::at_most("one client's commit, median in ms (3 fsyncs + 5 ms)", one.median_ms, round(limit)));
    }
    claims
}

fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

async fn measure(connections: &[Client], clients: usize, time: Duration, ids: &Arc<AtomicI64>) -> Result<CommitPoint> {
    // Connected, logged in, planned once.
    let warm_up = run_clients(connections, clients, time.div_f64(5.0), ids).await?;
    ensure!(!warm_up.is_empty(), "no commit was acknowledged");
    let started = Instant::now();
    let times = run_clients(connections, clients, time, ids).await?;
    let seconds = started.elapsed().as_secs_f64();
    let commits = times.len() as u64;
    let times = Times::new(&times);
    Ok(CommitPoint {
        clients,
        commits,
        commits_per_second: commits as f64 / seconds,
        median_ms: times.median_ms(),
        p99_ms: times.percentile_ms(0.99),
    })
}

async fn run_clients(
    connections: &[Client],
    clients: usize,
    time: Duration,
    ids: &Arc<AtomicI64>,
) -> Result<Vec<Duration>> {
    let deadline = Instant::now() + time;
    let mut running = JoinSet::new();
    for number in 0..clients {
        let (client, ids) = (connections[number % connections.len()].new_session(), ids.clone());
        running.spawn(async move {
            let mut times = Vec::new();
            while Instant::now() < deadline {
                let id = ids.fetch_add(1, Ordering::Relaxed);
                let sql = format!("INSERT INTO commits VALUES ({id}, {number}, 'a row of ordinary length')");
                let started = Instant::now();
                match client.execute(&sql).await? {
                    Executed::Write(written) => ensure!(written.rows == 1, "{sql} wrote {} rows", written.rows),
                    Executed::Rows(_) => anyhow::bail!("{sql} gave rows"),
                }
                times.push(started.elapsed());
            }
            Ok(times)
        });
    }
    let mut times = Vec::new();
    while let Some(client) = running.join_next().await {
        times.extend(client.context("a client panicked")??);
    }
    Ok(times)
}

/// The median time of appending 4 KiB to a file in `folder` and waiting until it is on the disk, which takes `slow_sync`
/// longer than it would.
fn fsync_ms(folder: &Path, slow_sync: Duration) -> Result<f64> {
    let path = folder.join("fsync-probe");
    let context = || format!("cannot write {}", path.display());
    let mut file = OpenOptions::new().create(true).append(true).open(&path).with_context(context)?;
    let mut times = Vec::with_capacity(FSYNCS);
    for _ in 0..FSYNCS {
        file.write_all(&[7; 4096]).with_context(context)?;
        let started = Instant::now();
        // As the servers do.
        std::thread::sleep(slow_sync);
        file.sync_all().with_context(context)?;
        times.push(started.elapsed());
    }
    std::fs::remove_file(&path).with_context(context)?;
    Ok(Times::new(&times).median_ms())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_follow_the_disk() {
        let point = |clients, commits_per_second, median_ms| CommitPoint {
            clients,
            commits: 1,
            commits_per_second,
            median_ms,
            p99_ms: median_ms,
        };
        let commits = Commits { fsync_ms: 6.0, points: vec![point(1, 60.0, 16.0), point(64, 1300.0, 49.0)] };
        assert!(claims(&commits).iter().all(|claim| claim.kept), "{:?}", claims(&commits));
        let commits = Commits { fsync_ms: 1.0, points: vec![point(1, 60.0, 16.0), point(64, 700.0, 90.0)] };
        assert!(claims(&commits).iter().all(|claim| !claim.kept));
    }

    #[test]
    fn an_fsync_takes_time_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        assert!(fsync_ms(folder.path(), Duration::ZERO).unwrap() > 0.0);
        assert!(fsync_ms(folder.path(), Duration::from_millis(2)).unwrap() > 2.0);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
