//! `catalog-size`: what transactions and segments cost the index server on disk.
//!
//! Two things are told apart: the entry in the commit log, which goes when it is in a snapshot of the catalog, and what it
//! leaves in the snapshots. Both are read from the file of the first index server (`catalog_bytes.py` beside this crate); what
//! SQLite adds is not counted. Segments are counted as the loads make them: storage servers merge small ones in the meantime.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use arrow::{
    array::{ArrayRef, Int64Array, RecordBatch, StringArray},
    error::ArrowError,
};
use drsdb_client::{Client, IngestOptions};
use futures::stream;
use serde::Deserialize;
use tokio::process::Command;

use super::CommonArguments;
use crate::{
    engine::{drsdb::Cluster, duckdb::python},
    report::{CatalogSize, Report},
};

/// Prints [`Kept`].
const SCRIPT: &str = include_str!("../../catalog_bytes.py");

/// Entries of the log between two snapshots: few, so that what each leaves is seen soon.
const SNAPSHOT_ENTRIES: u64 = 20;

/// After so many, all of the log is about what is measured, and a snapshot has been made since.
const LEAD_IN: u64 = 3 * SNAPSHOT_ENTRIES;

/// Arguments of `catalog-size`.
#[derive(Debug, clap::Args)]
pub struct CatalogSizeArguments {
    #[command(flatten)]
    common: CommonArguments,
    /// Transactions of one row.
    #[arg(long, default_value_t = 2_000)]
    transactions: u64,
    /// Segments to make.
    #[arg(long, default_value_t = 10_000)]
    segments: u64,
    /// Rows of each segment, about. Very few stay in the row buffer and make none.
    #[arg(long, default_value_t = 1_000)]
    segment_rows: u64,
    /// Shards of the table with the segments: each load makes a segment in each.
    #[arg(long, default_value_t = 50)]
    shards: u64,
}

/// Measures and reports.
pub async fn run(arguments: CatalogSizeArguments) -> Result<()> {
    let common = &arguments.common;
    let loads = arguments.segments.div_ceil(arguments.shards);
    ensure!(
        arguments.transactions.min(loads) >= 2 * LEAD_IN,
        "there must be at least {} transactions, and as many loads, each of which makes a segment in each shard",
        2 * LEAD_IN
    );
    let settings = [("DRSDB_SNAPSHOT_ENTRIES", SNAPSHOT_ENTRIES.to_string())];
    let cluster = Cluster::start_with(&common.cluster, &settings).await?;
    let index = cluster.folder().join("index-1").join("data").join("catalog").join("catalog.sqlite");
    let client = cluster.client();
    client.execute("CREATE TABLE commits (id BIGINT PRIMARY KEY, text TEXT) WITH (engine = 'row')").await?;
    let create = format!(
        "CREATE TABLE many (id BIGINT PRIMARY KEY, name TEXT, amount BIGINT) WITH (engine = 'column', replicas = 1, shards = {})",
        arguments.shards
    );
    client.execute(&create).await?;

    let transaction = growth(&index, arguments.transactions, async |id| {
        client.execute(&format!("INSERT INTO commits VALUES ({id}, 'a row of ordinary length')")).await?;
        Ok(())
    })
    .await?;
    let load = growth(&index, loads, async |load| {
        load_segments(client, load, arguments.shards * arguments.segment_rows).await?;
        if load == 0 {
            let made = segments_below(&cluster.folder())?;
            ensure!(
                made == arguments.shards,
                "a load made {made} segments in {} shards: change --segment-rows",
                arguments.shards
            );
        }
        Ok(())
    })
    .await?;
    cluster.stop().await?;

    // What a load costs as a transaction is not about segments.
    let of_segment = |load: f64, transaction: f64| (load - transaction) / arguments.shards as f64;
    let catalog = CatalogSize {
        transactions: arguments.transactions,
        log_bytes_per_transaction: transaction.log,
        catalog_bytes_per_transaction: transaction.catalog,
        segments: loads * arguments.shards,
        log_bytes_per_segment: of_segment(load.log, transaction.log),
        catalog_bytes_per_segment: of_segment(load.catalog, transaction.catalog),
    };
    common.publish(&Report { catalog: Some(catalog), ..common.report(0, 1) })
}

/// What an index server has on disk.
#[derive(Debug, Deserialize)]
struct Kept {
    entries: f64,
    entry_bytes: f64,
    last_entry: u64,
    snapshot_bytes: f64,
    /// The last entry in it.
    snapshot_last: u64,
}

/// Bytes that a step adds.
struct Growth {
    log: f64,
    catalog: f64,
}

/// Takes a step so many times.
async fn growth(index: &Path, times: u64, mut step: impl AsyncFnMut(u64) -> Result<()>) -> Result<Growth> {
    let before = kept(index).await?.last_entry;
    for at in 0..LEAD_IN {
        step(at).await?;
    }
    let begun = kept(index).await?;
    for at in LEAD_IN..times {
        step(at).await?;
    }
    let ended = kept(index).await?;
    ensure!(
        before <= begun.snapshot_last && begun.snapshot_last < ended.snapshot_last,
        "the index server is behind with its snapshots: {before} entries before, then {begun:?}, and {ended:?}"
    );
    let entries = (ended.last_entry - begun.last_entry) as f64 / (times - LEAD_IN) as f64;
    let covered = (ended.snapshot_last - begun.snapshot_last) as f64;
    Ok(Growth {
        log: entries * ended.entry_bytes / ended.entries,
        catalog: entries * (ended.snapshot_bytes - begun.snapshot_bytes) / covered,
    })
}

async fn kept(index: &Path) -> Result<Kept> {
    let read = Command::new(python()).args(["-c", SCRIPT]).arg(index).output().await.context("cannot start Python")?;
    let said = String::from_utf8_lossy(&read.stderr);
    ensure!(read.status.success(), "cannot read {}: {said}", index.display());
    Ok(serde_json::from_slice(&read.stdout)?)
}

async fn load_segments(client: &Client, load: u64, rows: u64) -> Result<()> {
    let ids = Int64Array::from_iter_values((0..rows).map(|row| (load * rows + row) as i64));
    let names = StringArray::from_iter_values((0..rows).map(|row| format!("name {row}")));
    let amounts = Int64Array::from_iter_values((0..rows).map(|row| (row * 7919 % 10_007) as i64));
    let batch = RecordBatch::try_from_iter([
        ("id", Arc::new(ids) as ArrayRef),
        ("name", Arc::new(names) as ArrayRef),
        ("amount", Arc::new(amounts) as ArrayRef),
    ])?;
    let schema = batch.schema();
    let batches = stream::iter([Ok::<_, ArrowError>(batch)]);
    let written = client.ingest("many", schema, batches, IngestOptions::default()).await?;
    ensure!(written.rows == rows, "{} of {rows} rows were loaded", written.rows);
    Ok(())
}

/// Bytes of all files below a folder, as the file system has allocated them.
pub fn bytes_below(folder: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let mut bytes = 0;
    visit(folder, &mut |_, metadata| bytes += metadata.blocks() * 512)?;
    Ok(bytes)
}

/// Parquet files below a folder.
pub fn segments_below(folder: &Path) -> Result<u64> {
    let mut segments = 0;
    visit(folder, &mut |path, _| segments += u64::from(path.extension().is_some_and(|end| end == "parquet")))?;
    Ok(segments)
}

/// Waits until the storage servers have stopped making and removing segments.
pub async fn wait_until_compacted(folder: &Path, most: Duration) -> Result<()> {
    const QUIET: Duration = Duration::from_secs(10);
    let deadline = Instant::now() + most;
    let (mut last, mut since) = (bytes_below(folder)?, Instant::now());
    while since.elapsed() < QUIET {
        ensure!(Instant::now() < deadline, "the storage servers still compact after {most:?}");
        #[allow(clippy::disallowed_methods, reason = "polls other processes")]
        tokio::time::sleep(Duration::from_millis(200)).await;
        let now = bytes_below(folder)?;
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    Ok(())
}

fn visit(folder: &Path, each: &mut impl FnMut(&Path, &std::fs::Metadata)) -> Result<()> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in entries.flatten() {
        // Files come and go while this looks.
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_dir() {
            visit(&entry.path(), each)?;
        } else {
            each(&entry.path(), &metadata);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_counted_in_all_folders() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("a")).unwrap();
        std::fs::write(folder.path().join("a/one.parquet"), vec![1; 10_000]).unwrap();
        std::fs::write(folder.path().join("two.sqlite"), vec![1; 10_000]).unwrap();
        assert_eq!(segments_below(folder.path()).unwrap(), 1);
        assert!(bytes_below(folder.path()).unwrap() >= 20_000);
    }
}
