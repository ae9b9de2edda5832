//! `insert`: bulk inserts into a column table with one replica, against the parquet crate writing the same batches in one
//! process. Both have them in memory, and both have them on disk when the time is taken.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use arrow::record_batch::RecordBatch;
use drsdb_benchmarks::{
    front_door,
    output::{BatchWriter, Format},
    progress::Progress,
    tpch::Table,
};
use drsdb_client::{Client, IngestOptions};

use super::CommonArguments;
use crate::{
    data::Data,
    engine::drsdb::Cluster,
    report::{Claim, Inserts},
    statistics::Times,
};

/// Arguments of `insert`.
#[derive(Debug, clap::Args)]
pub struct InsertArguments {
    #[command(flatten)]
    common: CommonArguments,
    /// Bulk inserts, each beside the parquet crate.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

/// Measures and reports.
pub async fn run(arguments: InsertArguments) -> Result<()> {
    let common = &arguments.common;
    ensure!(arguments.rounds > 0, "there must be at least one round");
    let data = Data::prepare(common.data.as_deref(), common.scale, &Progress::new())?;
    let cluster = Cluster::start(&common.cluster).await?;
    let inserts = rates(&cluster, &data, arguments.rounds).await?;
    cluster.stop().await?;
    let mut report = common.report(0, arguments.rounds);
    report.claims.push(claim(inserts));
    report.inserts = Some(inserts);
    common.publish(&report)
}

/// What `insert` claims.
pub fn claim(inserts: Inserts) -> Claim {
    let ratio = inserts.insert_rows_per_second / inserts.parquet_rows_per_second;
    Claim::at_least("bulk insert against the parquet crate, rows/s", ratio, 0.5)
}

/// Medians of `rounds`, each of which does one after the other.
pub async fn rates(cluster: &Cluster, data: &Data, rounds: usize) -> Result<Inserts> {
    let lineitem = front_door::read_table(data.file(Table::LineItem))?;
    let (mut inserts, mut parquet) = (Vec::with_capacity(rounds), Vec::with_capacity(rounds));
    for _ in 0..rounds {
        parquet.push(write_parquet(&lineitem, &cluster.folder())?);
        cluster.client().execute(&copy_of_lineitem()).await?;
        inserts.push(insert(cluster.client(), &lineitem).await?);
        cluster.client().execute("DROP TABLE copy_of_lineitem").await?;
    }
    let rate = |times: &[Duration]| rows_of(&lineitem) as f64 / Times::new(times).median_ms() * 1e3;
    Ok(Inserts { insert_rows_per_second: rate(&inserts), parquet_rows_per_second: rate(&parquet) })
}

/// Without its parents: it is loaded alone.
fn copy_of_lineitem() -> String {
    let definition = Table::LineItem.definition().replace("TABLE lineitem", "TABLE copy_of_lineitem");
    let lines: Vec<&str> = definition.lines().filter(|line| !line.trim_start().starts_with("FOREIGN KEY")).collect();
    // The line before the foreign keys was not the last one.
    let text =
        lines.join("\n").replace("PRIMARY KEY (l_orderkey, l_linenumber),", "PRIMARY KEY (l_orderkey, l_linenumber)");
    format!("{text} WITH (engine = 'column', replicas = 1)")
}

/// Writes the batches with the parquet crate, durably.
fn write_parquet(batches: &[RecordBatch], folder: &Path) -> Result<Duration> {
    let target = folder.join("parquet-probe.parquet");
    let started = Instant::now();
    let mut writer = BatchWriter::create(&target, &batches[0].schema(), Format::Parquet)?;
    for batch in batches {
        writer.write(batch)?;
    }
    writer.finish()?;
    std::fs::File::open(&target)?.sync_all()?;
    let elapsed = started.elapsed();
    std::fs::remove_file(&target)?;
    Ok(elapsed)
}

/// Loads the batches into the copy of lineitem.
async fn insert(client: &Client, batches: &[RecordBatch]) -> Result<Duration> {
    let started = Instant::now();
    let loading =
        client.ingest_batches("copy_of_lineitem", batches[0].schema(), batches.to_vec(), IngestOptions::default());
    let loaded = loading.await?.rows;
    let elapsed = started.elapsed();
    let rows = rows_of(batches);
    ensure!(loaded == rows, "{loaded} of {rows} rows were loaded");
    Ok(elapsed)
}

fn rows_of(batches: &[RecordBatch]) -> u64 {
    batches.iter().map(|batch| batch.num_rows() as u64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_has_no_parents() {
        let sql = copy_of_lineitem();
        assert!(!sql.contains("REFERENCES") && sql.contains("l_comment") && sql.contains("replicas = 1"), "{sql}");
        assert!(!sql.replace(char::is_whitespace, "").contains(",)"), "{sql}");
    }
}
