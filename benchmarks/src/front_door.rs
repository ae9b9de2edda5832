//! A running cluster, used as any client uses it: tables created in SQL, rows loaded by ingest, queries pulled from the
//! storage servers; with what each step took.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use arrow::{
    compute::cast,
    datatypes::{DataType, Field, Schema, SchemaRef},
    error::ArrowError,
    record_batch::RecordBatch,
};
use drsdb_client::{Client, IngestOptions};
use futures::{StreamExt, TryStreamExt, stream};
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use tokio::sync::mpsc;

use crate::{
    progress::Progress,
    tpch::{TABLES, WrittenTable},
};

/// Rows of a loaded batch.
const BATCH_ROWS: usize = 64 * 1024;

/// Batches that are read ahead of the upload.
const READ_AHEAD: usize = 2;

/// A table that has been loaded.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// Its name.
    pub table: String,
    /// Rows that were committed.
    pub rows: u64,
    /// From the first batch sent to the commit.
    pub elapsed: Duration,
}

/// What a query gave, and how.
#[derive(Debug)]
pub struct Answer {
    /// All rows.
    pub batches: Vec<RecordBatch>,
    /// From the SQL text to the last row.
    pub elapsed: Duration,
    /// Endpoints that were pulled.
    pub endpoints: usize,
    /// Bytes that were pulled, as Arrow data on the wire before encryption.
    pub bytes: u64,
}

impl Answer {
    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.batches.iter().map(RecordBatch::num_rows).sum()
    }
}

/// Runs a query and takes all of its rows into memory.
pub async fn run(client: &Client, sql: &str) -> Result<Answer> {
    let started = Instant::now();
    let result = client.collect(sql).await?;
    let elapsed = started.elapsed();
    let (rows, pulled) = (result.rows() as u64, result.statistics.rows());
    ensure!(rows == pulled, "the client handed out {rows} rows, and its endpoints sent {pulled}");
    let endpoints = result.statistics.endpoints.len();
    Ok(Answer { batches: result.batches, elapsed, endpoints, bytes: result.statistics.bytes() })
}

/// Creates the tables of TPC-H.
pub async fn create_tables(client: &Client) -> Result<()> {
    for table in TABLES {
        client.execute(table.definition()).await.with_context(|| format!("cannot create table {table}"))?;
    }
    Ok(())
}

/// Loads Parquet files of the tables, each as one transaction, parents before the tables that refer to them, and otherwise
/// `at_once` tables beside each other.
pub async fn load(client: &Client, files: &[WrittenTable], at_once: usize, progress: &Progress) -> Result<Vec<Loaded>> {
    let last = files.iter().map(|file| file.table.generation()).max().unwrap_or(0);
    let mut loaded = Vec::with_capacity(files.len());
    for generation in 0..=last {
        let together = files.iter().filter(|file| file.table.generation() == generation);
        let together = stream::iter(together)
            .map(|file| load_table(client, file.table.name(), &file.path, progress))
            .buffered(at_once.max(1));
        loaded.extend(together.try_collect::<Vec<_>>().await?);
    }
    Ok(loaded)
}

/// Loads one Parquet file into a table.
pub async fn load_table(client: &Client, table: &str, path: &Path, progress: &Progress) -> Result<Loaded> {
    let context = || format!("cannot load {} into {table}", path.display());
    let file = std::fs::File::open(path).with_context(context)?;
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).with_context(context)?.with_batch_size(BATCH_ROWS);
    let rows = u64::try_from(reader.metadata().file_metadata().num_rows()).with_context(context)?;
    let schema = edge_schema(reader.schema());
    let batches = read_ahead(reader.build().with_context(context)?, Arc::clone(&schema));
    let step = Arc::new(progress.step(format!("load {table}"), rows, "rows"));
    let counted = Arc::clone(&step);
    let batches = batches.inspect_ok(move |batch| counted.advance(batch.num_rows() as u64));

    let started = Instant::now();
    let committed = client.ingest(table, schema, batches, IngestOptions::default()).await.with_context(context)?;
    let elapsed = started.elapsed();
    ensure!(committed.rows == rows, "{} of {rows} rows of {} were committed", committed.rows, path.display());
    step.finish();
    Ok(Loaded { table: table.to_owned(), rows, elapsed })
}

/// All rows of a Parquet file, in the batches that a load sends.
pub fn read_table(path: &Path) -> Result<Vec<RecordBatch>> {
    let context = || format!("cannot read {}", path.display());
    let file = std::fs::File::open(path).with_context(context)?;
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).with_context(context)?.with_batch_size(BATCH_ROWS);
    let schema = edge_schema(reader.schema());
    let batches = reader.build().with_context(context)?.map(|batch| to_schema(&batch?, &schema));
    let batches: Result<Vec<_>, ArrowError> = batches.collect();
    batches.with_context(context)
}

/// Text as plain Utf8, as everywhere at drsdb's edge.
fn edge_schema(schema: &Schema) -> SchemaRef {
    let fields = schema.fields().iter().map(|field| match field.data_type() {
        DataType::Utf8View => Field::new(field.name(), DataType::Utf8, field.is_nullable()),
        _ => field.as_ref().clone(),
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// Decodes on a thread of its own, a few batches ahead.
fn read_ahead(
    reader: ParquetRecordBatchReader,
    schema: SchemaRef,
) -> impl futures::Stream<Item = Result<RecordBatch, ArrowError>> + Send + 'static {
    let (sender, receiver) = mpsc::channel(READ_AHEAD);
    tokio::task::spawn_blocking(move || {
        for batch in reader {
            // Nobody listens any more once the load has failed: its error is the one to tell.
            if sender.blocking_send(batch.and_then(|batch| to_schema(&batch, &schema))).is_err() {
                return;
            }
        }
    });
    stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) })
}

fn to_schema(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let columns = batch.columns().iter().zip(schema.fields());
    let columns = columns.map(|(column, field)| cast(column, field.data_type())).collect::<Result<_, _>>()?;
    RecordBatch::try_new(Arc::clone(schema), columns)
}

#[cfg(test)]
mod tests {
    use arrow::compute::concat_batches;

    use super::*;
    use crate::{output::Format, tpch::write_files};

    #[tokio::test]
    async fn reading_ahead_gives_every_row_in_the_edge_types() {
        let directory = tempfile::tempdir().unwrap();
        let written = write_files(directory.path(), 0.001, Format::Parquet, 2, &Progress::hidden()).unwrap();
        for file in written {
            let reader = ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(&file.path).unwrap()).unwrap();
            let schema = edge_schema(reader.schema());
            let reader = reader.with_batch_size(1000).build().unwrap();
            let batches: Vec<_> = read_ahead(reader, schema.clone()).try_collect().await.unwrap();
            assert_eq!(batches.iter().map(|batch| batch.num_rows() as u64).sum::<u64>(), file.rows);
            assert!(batches.iter().all(|batch| batch.schema() == schema));
            let at_once = read_table(&file.path).unwrap();
            assert_eq!(concat_batches(&schema, &at_once).unwrap(), concat_batches(&schema, &batches).unwrap());
        }
    }
}
