//! `catalog-size`: what transactions and segments cost the index server on disk.
//!
//! Sizes are those of all files of the first index server: the commit log, the catalog and its snapshots, and what SQLite
//! adds. Segments are counted as the loads make them: storage servers merge small ones in the meantime.

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

use super::CommonArguments;
use crate::{
    engine::drsdb::Cluster,
    report::{CatalogSize, Report},
};

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
    let cluster = Cluster::start(&common.cluster).await?;
    let index = cluster.folder().join("index-1");
    let client = cluster.client();
    client.execute("CREATE TABLE commits (id BIGINT PRIMARY KEY, text TEXT) WITH (engine = 'row')").await?;
    let create = format!(
        "CREATE TABLE many (id BIGINT PRIMARY KEY, name TEXT, amount BIGINT) WITH (engine = 'column', replicas = 1, shards = {})",
        arguments.shards
    );
    client.execute(&create).await?;

    let before = bytes_below(&index)?;
    for id in 0..arguments.transactions {
        client.execute(&format!("INSERT INTO commits VALUES ({id}, 'a row of ordinary length')")).await?;
    }
    let after = bytes_below(&index)?;
    let bytes_per_transaction = (after as f64 - before as f64) / arguments.transactions as f64;

    let before = bytes_below(&index)?;
    let loads = arguments.segments.div_ceil(arguments.shards);
    for load in 0..loads {
        load_segments(client, load, arguments.shards * arguments.segment_rows).await?;
        if load == 0 {
            let made = segments_below(&cluster.folder())?;
            ensure!(
                made == arguments.shards,
                "a load made {made} segments in {} shards: change --segment-rows",
                arguments.shards
            );
        }
    }
    let segments = loads * arguments.shards;
    let after = bytes_below(&index)?;
    // What the loads cost as transactions is not about segments.
    let of_segments = after as f64 - before as f64 - bytes_per_transaction * loads as f64;
    let bytes_per_segment = of_segments.max(0.0) / segments as f64;
    cluster.stop().await?;

    let catalog = CatalogSize {
        transactions: arguments.transactions,
        bytes_per_transaction,
        segments,
        bytes_per_segment,
        estimated_bytes_for_a_million: bytes_per_segment * 1e6,
    };
    common.publish(&Report { catalog: Some(catalog), ..common.report(0, 1) })
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
