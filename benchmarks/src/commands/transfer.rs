//! `transfer`: `SELECT * FROM lineitem` pulled by the client, against a bare Flight server and client with as many streams.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use drsdb_benchmarks::{front_door, progress::Progress, tpch::Table};
use futures::TryStreamExt;

use super::{CommonArguments, index_memory_claim};
use crate::{
    bare_flight::{BareServer, Pulled, value_bytes},
    data::Data,
    engine::drsdb::Cluster,
    process,
    report::{Claim, Transfer},
    statistics::Times,
};

const SQL: &str = "SELECT * FROM lineitem";

/// Arguments of `transfer`.
#[derive(Debug, clap::Args)]
pub struct TransferArguments {
    #[command(flatten)]
    common: CommonArguments,
    /// Timed rounds.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

/// Measures and reports.
pub async fn run(arguments: TransferArguments) -> Result<()> {
    let common = &arguments.common;
    let progress = Progress::new();
    let data = Data::prepare(common.data.as_deref(), common.scale, &progress)?;
    let cluster = Cluster::start(&common.cluster).await?;
    front_door::create_tables(cluster.client()).await?;
    front_door::load_table(cluster.client(), Table::LineItem.name(), data.file(Table::LineItem), &progress).await?;
    let mut report = common.report(0, arguments.rounds);
    let (transfer, claim) = measure(&cluster, &data, arguments.rounds, &progress).await?;
    report.transfer = Some(transfer);
    report.claims.push(claim);
    report.claims.extend(index_memory_claim(&process::usages(&cluster.processes())?));
    cluster.stop().await?;
    common.publish(&report)
}

/// Pulls with drsdb and with the bare pair in turn, after one round of each that does not count.
pub async fn measure(cluster: &Cluster, data: &Data, rounds: usize, progress: &Progress) -> Result<(Transfer, Claim)> {
    ensure!(rounds > 0, "there must be at least one round");
    let (first, streams) = pull(cluster).await?;
    let bare = BareServer::start(data.file(Table::LineItem), streams).await?;
    let bytes = check(&first, &bare.pull().await?)?;
    let step = progress.step("transfer", rounds as u64, "rounds");
    let (mut drsdb_times, mut bare_times) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let (pulled, _) = pull(cluster).await?;
        let bare_pulled = bare.pull().await?;
        check(&pulled, &bare_pulled)?;
        drsdb_times.push(pulled.elapsed);
        bare_times.push(bare_pulled.elapsed);
        step.advance(1);
    }
    step.finish();
    bare.stop().await?;
    let megabytes = bytes as f64 / 1e6;
    let megabytes_per_second = megabytes / (Times::new(&drsdb_times).median_ms() / 1e3);
    let bare_megabytes_per_second = megabytes / (Times::new(&bare_times).median_ms() / 1e3);
    let ratio = megabytes_per_second / bare_megabytes_per_second;
    let transfer = Transfer {
        sql: SQL.to_owned(),
        rows: first.rows,
        value_bytes: bytes,
        streams,
        megabytes_per_second,
        bare_megabytes_per_second,
        ratio,
    };
    Ok((transfer, Claim::at_least("result transfer against bare Flight", ratio, 0.8)))
}

/// Both must have brought the same rows; returns the bytes of their values. How rows are cut into batches makes a small
/// difference: each batch has an offset more than it has texts.
fn check(drsdb: &Pulled, bare: &Pulled) -> Result<u64> {
    ensure!(drsdb.rows == bare.rows, "drsdb brought {} rows, and bare Flight {}", drsdb.rows, bare.rows);
    let apart = drsdb.bytes.abs_diff(bare.bytes);
    ensure!(apart * 100 <= bare.bytes, "drsdb brought {} bytes, and bare Flight {}", drsdb.bytes, bare.bytes);
    Ok(bare.bytes)
}

/// Pulls the table and drops each batch once it is counted.
async fn pull(cluster: &Cluster) -> Result<(Pulled, usize)> {
    let started = Instant::now();
    let mut stream = cluster.client().query(SQL).await.context(SQL)?;
    let (mut rows, mut bytes) = (0, 0);
    while let Some(batch) = stream.try_next().await.context(SQL)? {
        rows += batch.num_rows() as u64;
        bytes += value_bytes(&batch);
    }
    let pulled = Pulled { elapsed: started.elapsed(), rows, bytes };
    Ok((pulled, stream.statistics().endpoints.len()))
}
