//! Reads shards at a snapshot, on a thread where blocking is allowed, into a short channel.
//!
//! One read transaction of SQLite spans the whole scan, so a table that is dropped meanwhile keeps its rows for it. While it
//! lasts the WAL can be copied into the file but not begin anew, so a scan that somebody pulls slowly costs disk.

use std::sync::Arc;

use arrow::{
    array::{RecordBatch, RecordBatchOptions},
    datatypes::SchemaRef,
};
use datafusion::{
    execution::SendableRecordBatchStream,
    physical_plan::{
        metrics::{Count, MetricBuilder},
        stream::RecordBatchReceiverStreamBuilder,
    },
};
use drsdb_core::{Error, ErrorCode, Result, WireError};
use rusqlite::types::Value;
use tokio::sync::mpsc::Sender;

use super::{
    encoding::{ColumnBuilder, size_of},
    error::{Context, name_shard},
    file::snapshot_integer,
    filter::{Condition, conjunction},
    readers::{Reader, Readers},
    shards::{ShardTable, check_not_dropped, find_shard, initial_literal},
    visibility::visible,
};
use crate::engine::{ScanRequest, ShardId};

/// A batch ends at this many bytes of values, however few rows that is.
const BATCH_BYTES: usize = 4 << 20;

/// Batches that wait to be pulled.
const CHANNEL_BATCHES: usize = 2;

const WHAT: &str = "scanning";

/// Starts a scan. Dropping the stream stops it: a batch finds nobody to take it, or SQLite's own check does.
pub(super) fn start(readers: &Arc<Readers>, request: ScanRequest) -> Result<SendableRecordBatchStream> {
    let schema = Arc::new(request.table.arrow_schema().project(&request.projection)?);
    let mut builder = RecordBatchReceiverStreamBuilder::new(Arc::clone(&schema), CHANNEL_BATCHES);
    let output = builder.tx();
    // The transaction begins here and not on the thread, so that a table dropped from now on is still whole for it.
    let scan = Scan::begin(readers, request, schema, output.clone())?;
    builder.spawn_blocking(move || {
        match scan.run() {
            // Stopped because nobody wants the rows: nobody wants the error either.
            Err(_) if output.is_closed() => Ok(()),
            other => other.map_err(Error::into_datafusion),
        }
    });
    Ok(builder.build())
}

type Output = Sender<datafusion::error::Result<RecordBatch>>;

struct Scan {
    reader: Reader,
    request: ScanRequest,
    schema: SchemaRef,
    output: Output,
    snapshot: i64,
    condition: Option<Condition>,
    /// Rows that may still be wanted.
    remaining: usize,
    bytes_read: Count,
}

impl Scan {
    fn begin(readers: &Arc<Readers>, request: ScanRequest, schema: SchemaRef, output: Output) -> Result<Self> {
        let mut reader = readers.lease()?;
        let watched = output.clone();
        reader.stop_when(move || watched.is_closed())?;
        let (condition, understood) = conjunction(&request.table, &request.filters);
        let metric = |name: &'static str| MetricBuilder::new(&request.metrics).counter(name, request.partition);
        metric("filters_pushed").add(understood);
        let bytes_read = metric("bytes_read");
        reader.execute_batch("BEGIN").context(WHAT)?;
        // The first read fixes what the transaction sees.
        check_not_dropped(&reader, &request.table)?;
        Ok(Self {
            snapshot: snapshot_integer(request.snapshot),
            remaining: request.limit.unwrap_or(usize::MAX),
            reader,
            schema,
            output,
            condition,
            bytes_read,
            request,
        })
    }

    fn run(mut self) -> Result<()> {
        let result = self.read_shards();
        let result = self.reader.health().note(result);
        // Ends the transaction also after an error, so that the connection can be kept.
        self.reader.execute_batch("ROLLBACK").context(WHAT)?;
        result
    }

    fn read_shards(&mut self) -> Result<()> {
        for shard in self.request.shards.clone() {
            if self.remaining == 0 || self.output.is_closed() {
                break;
            }
            let id = ShardId { table: self.request.table.id, shard };
            if let Some(found) = find_shard(&self.reader, id)? {
                let read =
                    if self.request.projection.is_empty() { self.count_shard(&found) } else { self.read_shard(&found) };
                read.map_err(|error| name_shard(error, id))?;
            }
        }
        Ok(())
    }

    /// The part of a statement from FROM on, and what its `?` stand for.
    fn visible_rows(&self, shard: &ShardTable) -> Result<(String, Vec<Value>)> {
        let except = self.request.except.map(snapshot_integer);
        let oldest = self.snapshot.min(except.unwrap_or(self.snapshot));
        if oldest < shard.forgotten {
            let message = format!("version {oldest} is too old to be read: its rows have been compacted");
            return Err(WireError::new(ErrorCode::Conflict, message).with_hint("run the query again").into());
        }
        let (mut condition, mut parameters) = visible(&self.reader, shard.number, self.snapshot, self.request.own)?;
        if let Some(except) = except {
            let (seen, of_seen) = visible(&self.reader, shard.number, except, None)?;
            condition += &format!(" AND NOT ({seen})");
            parameters.extend(of_seen);
        }
        let filter = match &self.condition {
            Some(condition) => {
                parameters.extend(condition.parameters.iter().cloned());
                format!(" AND {}", condition.sql)
            }
            None => String::new(),
        };
        Ok((format!("FROM {} WHERE {condition}{filter}", self.source(shard)?), parameters))
    }

    /// The shard's table, with the columns that it does not have yet.
    fn source(&self, shard: &ShardTable) -> Result<String> {
        let (name, columns) = (shard.name(), &self.request.table.columns);
        if shard.columns >= columns.len() {
            return Ok(name);
        }
        let mut all = String::from("v_from, v_to");
        for (position, column) in columns.iter().enumerate() {
            if position < shard.columns {
                all += &format!(", c{position}");
            } else {
                all += &format!(", {} AS c{position}", initial_literal(column)?);
            }
        }
        Ok(format!("(SELECT {all} FROM {name})"))
    }

    fn count_shard(&mut self, shard: &ShardTable) -> Result<()> {
        let (from, parameters) = self.visible_rows(shard)?;
        let rows: usize = self
            .reader
            .prepare_cached(&format!("SELECT count(*) {from}"))
            .and_then(|mut statement| {
                statement.query_row(rusqlite::params_from_iter(parameters), |row| row.get::<_, i64>(0))
            })
            .context(WHAT)? as usize;
        let mut left = rows.min(self.remaining);
        self.remaining -= left;
        while left > 0 {
            let rows = left.min(self.request.batch_rows.max(1));
            let options = RecordBatchOptions::new().with_row_count(Some(rows));
            let batch = RecordBatch::try_new_with_options(Arc::clone(&self.schema), vec![], &options)?;
            if !self.send(batch) {
                break;
            }
            left -= rows;
        }
        Ok(())
    }

    fn read_shard(&mut self, shard: &ShardTable) -> Result<()> {
        let (from, mut parameters) = self.visible_rows(shard)?;
        let columns: Vec<String> = self.request.projection.iter().map(|position| format!("c{position}")).collect();
        let limit = match i64::try_from(self.remaining) {
            Ok(limit) if self.request.limit.is_some() => {
                parameters.push(Value::Integer(limit));
                " LIMIT ?"
            }
            _ => "",
        };
        let sql = format!("SELECT {} {from}{limit}", columns.join(", "));
        let mut statement = self.reader.prepare_cached(&sql).context(WHAT)?;
        let mut rows = statement.query(rusqlite::params_from_iter(parameters)).context(WHAT)?;
        let mut batch = BatchBuilder::new(&self.request);
        let mut taken = 0;
        while let Some(row) = rows.next().context(WHAT)? {
            for (at, builder) in batch.columns.iter_mut().enumerate() {
                let value = row.get_ref(at).context(WHAT)?;
                batch.bytes += size_of(&value);
                builder.append(value)?;
            }
            batch.rows += 1;
            taken += 1;
            if batch.is_full() {
                self.bytes_read.add(batch.bytes);
                if !self.send(batch.finish(&self.schema)?) {
                    return Ok(());
                }
            }
        }
        if batch.rows > 0 {
            self.bytes_read.add(batch.bytes);
            self.send(batch.finish(&self.schema)?);
        }
        drop(rows);
        drop(statement);
        self.remaining -= taken;
        Ok(())
    }

    /// Hands a batch on; answers whether anybody took it.
    fn send(&self, batch: RecordBatch) -> bool {
        self.output.blocking_send(Ok(batch)).is_ok()
    }
}

struct BatchBuilder {
    columns: Vec<ColumnBuilder>,
    rows: usize,
    bytes: usize,
    max_rows: usize,
}

impl BatchBuilder {
    fn new(request: &ScanRequest) -> Self {
        let max_rows = request.batch_rows.max(1);
        let room = max_rows.min(BATCH_BYTES / (8 * request.projection.len().max(1))).min(8192);
        let columns = request
            .projection
            .iter()
            .map(|&position| ColumnBuilder::new(request.table.columns[position].sql_type, room))
            .collect();
        Self { columns, rows: 0, bytes: 0, max_rows }
    }

    fn is_full(&self) -> bool {
        self.rows >= self.max_rows || self.bytes >= BATCH_BYTES
    }

    fn finish(&mut self, schema: &SchemaRef) -> Result<RecordBatch> {
        let columns = self.columns.iter_mut().map(ColumnBuilder::finish).collect();
        (self.rows, self.bytes) = (0, 0);
        Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
    }
}
