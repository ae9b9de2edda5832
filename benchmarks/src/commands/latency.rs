//! `latency`: the smallest query that touches a table, on a warm connection.

use anyhow::{Context, Result, ensure};
use drsdb_benchmarks::{front_door, progress::Progress, tpch::Table};

use super::CommonArguments;
use crate::{
    data::Data,
    engine::drsdb::Cluster,
    report::{Claim, Latency},
    statistics::Times,
};

const SQL: &str = "SELECT 1 FROM region WHERE r_regionkey = 1";

/// Runs before any time counts.
const WARM_UP: usize = 50;

/// Arguments of `latency`.
#[derive(Debug, clap::Args)]
pub struct LatencyArguments {
    #[command(flatten)]
    common: CommonArguments,
    /// Timed runs.
    #[arg(long, default_value_t = 500)]
    runs: usize,
}

/// Measures and reports.
pub async fn run(arguments: LatencyArguments) -> Result<()> {
    let common = &arguments.common;
    let progress = Progress::new();
    let data = Data::prepare(common.data.as_deref(), common.scale, &progress)?;
    let cluster = Cluster::start(&common.cluster).await?;
    front_door::create_tables(cluster.client()).await?;
    front_door::load_table(cluster.client(), Table::Region.name(), data.file(Table::Region), &progress).await?;
    let mut report = common.report(0, 1);
    let (latency, claim) = measure(&cluster, arguments.runs).await?;
    report.latency = Some(latency);
    report.claims.push(claim);
    cluster.stop().await?;
    common.publish(&report)
}

/// Times `runs` queries, one after the other.
pub async fn measure(cluster: &Cluster, runs: usize) -> Result<(Latency, Claim)> {
    ensure!(runs > 0, "there must be at least one run");
    let mut times = Vec::with_capacity(runs);
    for run in 0..WARM_UP + runs {
        let answer = front_door::run(cluster.client(), SQL).await.context(SQL)?;
        ensure!(answer.rows() == 1, "{SQL} gave {} rows", answer.rows());
        if run >= WARM_UP {
            times.push(answer.elapsed);
        }
    }
    let times = Times::new(&times);
    let latency = Latency {
        sql: SQL.to_owned(),
        runs,
        median_ms: times.median_ms(),
        p90_ms: times.percentile_ms(0.9),
        p99_ms: times.percentile_ms(0.99),
    };
    let claim = Claim::at_most("smallest query, median in ms", latency.median_ms, 10.0);
    Ok((latency, claim))
}
