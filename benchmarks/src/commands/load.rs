//! `load`: rows a second through the front door, and the memory of each process.

use anyhow::Result;
use drsdb_benchmarks::{
    front_door::{self, Loaded},
    progress::Progress,
    tpch::WrittenTable,
};

use super::{CommonArguments, index_memory_claim, loaded_table};
use crate::{data::Data, engine::drsdb::Cluster, process, report::Load};

/// Arguments of `load`.
#[derive(Debug, clap::Args)]
pub struct LoadArguments {
    #[command(flatten)]
    common: CommonArguments,
}

/// Loads and reports.
pub async fn run(arguments: LoadArguments) -> Result<()> {
    let common = &arguments.common;
    let progress = Progress::new();
    let data = Data::prepare(common.data.as_deref(), common.scale, &progress)?;
    let cluster = Cluster::start(&common.cluster).await?;
    front_door::create_tables(cluster.client()).await?;
    let load = load(&cluster, &data.files, &progress).await?;
    let mut report = common.report(0, 1);
    report.claims.extend(index_memory_claim(&load.processes));
    report.load = Some(load);
    cluster.stop().await?;
    common.publish(&report)
}

/// Loads `files` one after the other, so that each table's rate is its own.
pub async fn load(cluster: &Cluster, files: &[WrittenTable], progress: &Progress) -> Result<Load> {
    let loaded = front_door::load(cluster.client(), files, 1, progress).await?;
    let rows = loaded.iter().map(|loaded| loaded.rows).sum::<u64>();
    let seconds = loaded.iter().map(|loaded: &Loaded| loaded.elapsed.as_secs_f64()).sum::<f64>();
    Ok(Load {
        rows,
        seconds,
        rows_per_second: rows as f64 / seconds,
        tables: loaded.iter().map(loaded_table).collect(),
        processes: process::usages(&cluster.processes())?,
    })
}
