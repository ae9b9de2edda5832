//! Rows of one shard, in any order, become segments sorted by the cluster key; few rows stay as they are, for the buffer.
//!
//! ```text
//! write ──▶ chunks of 8,192 rows ──▶ buffer ──(full)──▶ sort ──▶ open segment ──(full, or the order breaks)──▶ file
//!        └▶ as long as rows come in order: the open segment, as soon as there is a row group of them
//! finish ─▶ very few, and nothing written yet: the chunks themselves
//!        └▶ else what is left ─▶ files ─▶ sync the folder; few: the chunks as well, for their keys
//! ```
//!
//! All writers of an engine share one budget for their buffers. When a buffer goes out and its rows follow those of the
//! open segment in key order, they are added to it: a load that comes in key order makes full segments however small its
//! share of the budget is, and segments that overlap nothing. Such a load does not wait for the buffer to be full either:
//! what need not be sorted is encoded while it is in the processor's caches, and the next rows take its memory. The first
//! row that breaks the order ends that, or a load of many short runs in order would make as many segments.
//!
//! Not here: the file's format (`format`), and what becomes of the rows (`stage_writer`, `compact`).

use std::{
    fs::File,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use arrow::{
    array::{Array, AsArray},
    compute::BatchCoalescer,
    datatypes::{DataType, SchemaRef},
    record_batch::RecordBatch,
    row::Rows,
};
use drsdb_core::{Error, Result, Table, Ulid, crash_point, row_bytes};

use super::{
    Store,
    format::{CHUNK_ROWS, Layout, MAX_GROUP_CHUNKS, file_schema},
    keys::{Clash, KeyFormat, clash_error},
    segment::{KeyRange, Segment},
    segment_writer::SegmentWriter,
    sort::Sorted,
    stats::Gatherer,
};
use crate::engine::ShardId;

/// Decoded bytes of a row group, about: what a writer and a decoding task hold at a time for a wide table.
const ROW_GROUP_BYTES: usize = 128 << 20;

/// A file is not made longer than this.
const SEGMENT_BYTES: usize = 1 << 30;

/// The memory that the buffers of all writers may take together.
#[derive(Debug)]
pub struct WriteBudget {
    bytes: usize,
    writers: AtomicUsize,
}

impl WriteBudget {
    /// A budget of `bytes`.
    pub fn new(bytes: usize) -> Self {
        Self { bytes, writers: AtomicUsize::new(0) }
    }

    /// What each writer may hold now.
    fn share(&self) -> usize {
        self.bytes / self.writers.load(Ordering::Relaxed).max(1)
    }
}

/// A writer's place in the budget.
struct Share(Arc<WriteBudget>);

impl Share {
    fn new(budget: Arc<WriteBudget>) -> Self {
        budget.writers.fetch_add(1, Ordering::Relaxed);
        Self(budget)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.0.writers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The segment being filled.
struct OpenSegment {
    writer: SegmentWriter,
    /// The last row's cluster key.
    last: Option<Box<[u8]>>,
    key_range: Option<KeyRange>,
}

/// More bytes than this are not few, however few the rows are.
const FEW_BYTES: usize = 4 << 20;

/// A segment of so few rows, if they are not long, is soon merged with others: it is not worth compressing it, nor finding
/// out which columns repeat values.
const PASSING_ROWS: usize = 2 * CHUNK_ROWS;

/// Takes the rows.
pub struct Loader {
    store: Arc<Store>,
    share: Share,
    author: (Ulid, u32),
    table: Arc<Table>,
    shard: ShardId,
    schema: SchemaRef,
    file_schema: SchemaRef,
    cluster: Option<KeyFormat>,
    primary: Option<KeyFormat>,
    /// Whether the cluster key is the primary key.
    sorted_by_primary: bool,
    coalescer: BatchCoalescer,
    /// Bytes of the rows that the coalescer holds back.
    pending_bytes: usize,
    buffer: Vec<RecordBatch>,
    buffered_bytes: usize,
    open: Option<OpenSegment>,
    /// Finished, and doomed until somebody keeps them.
    segments: Vec<Arc<Segment>>,
    gatherer: Gatherer,
    /// Whether rows that come in order are written before the buffer is full.
    streams: bool,
}

/// What a [`Loader`] made of its rows.
pub struct Loaded {
    /// Few rows, as they came. All there are, in the segments as well if there are any.
    pub few: Vec<RecordBatch>,
    /// Finished, and doomed until somebody keeps them. Without them the rows are for the buffer.
    pub segments: Vec<Arc<Segment>>,
    /// What all rows hold.
    pub gatherer: Gatherer,
}

impl Loader {
    /// Without rows. `author` is the transaction and the statement that segments will be of.
    pub fn new(store: Arc<Store>, author: (Ulid, u32), table: Arc<Table>, shard: u32) -> Result<Self> {
        let schema = table.arrow_schema();
        Ok(Self {
            share: Share::new(Arc::clone(&store.write_budget)),
            store,
            author,
            shard: ShardId { table: table.id, shard },
            file_schema: file_schema(&table),
            cluster: KeyFormat::new(&table, &table.cluster_key)?,
            primary: KeyFormat::new(&table, &table.primary_key)?,
            sorted_by_primary: !table.primary_key.is_empty() && table.cluster_key == table.primary_key,
            coalescer: BatchCoalescer::new(Arc::clone(&schema), CHUNK_ROWS),
            pending_bytes: 0,
            buffer: Vec::new(),
            buffered_bytes: 0,
            open: None,
            segments: Vec::new(),
            gatherer: Gatherer::new(&table),
            streams: true,
            schema,
            table,
        })
    }

    /// The same for rows of several segments, one after the other: each is in order, and they are to become one.
    pub fn merging(self) -> Self {
        Self { streams: false, ..self }
    }

    fn take_completed(&mut self) {
        while let Some(chunk) = self.coalescer.next_completed_batch() {
            self.buffered_bytes += row_bytes(&chunk);
            self.buffer.push(chunk);
        }
    }

    /// Sorts what is buffered and writes it. What is less than a chunk stays back unless it is the last.
    fn flush(&mut self, is_last: bool) -> Result<()> {
        if is_last {
            self.coalescer.finish_buffered_batch()?;
            self.pending_bytes = 0;
        }
        self.take_completed();
        let sorted = Sorted::new(std::mem::take(&mut self.buffer), self.cluster.as_ref())?;
        self.streams &= sorted.came_in_order();
        self.write_sorted(&sorted, is_last)
    }

    /// Writes what is buffered if it is in order and follows what is written. Otherwise it stays, and from then on rows wait until
    /// the buffer is full.
    fn stream(&mut self) -> Result<()> {
        self.buffer = match Sorted::if_in_order(std::mem::take(&mut self.buffer), self.cluster.as_ref())? {
            Ok(sorted) if self.open.as_ref().is_none_or(|open| self.follows(open, sorted.ends(0).unzip().0)) => {
                return self.write_sorted(&sorted, false);
            }
            Ok(sorted) => sorted.into_chunks(),
            Err(chunks) => chunks,
        };
        self.streams = false;
        Ok(())
    }

    /// How many chunks are streamed at a time: a new segment is laid out by what a row group of it holds.
    fn streamed_chunks(&self) -> usize {
        let options = &self.store.options;
        let continues = self.open.as_ref().is_some_and(|open| !self.is_full(open));
        if continues { 1 } else { options.row_group_rows / CHUNK_ROWS }
    }

    /// Whether no more is to be added to a segment.
    fn is_full(&self, open: &OpenSegment) -> bool {
        open.writer.rows() >= self.store.options.segment_rows as u64 || open.writer.file_bytes() >= SEGMENT_BYTES
    }

    /// Whether a row whose cluster key is `first` may be added to a segment.
    fn follows(&self, open: &OpenSegment, first: Option<&[u8]>) -> bool {
        match (&open.last, first) {
            (Some(last), Some(first)) if self.sorted_by_primary => **last < *first,
            (Some(last), Some(first)) => **last <= *first,
            _ => true,
        }
    }

    /// Writes what was buffered.
    fn write_sorted(&mut self, sorted: &Sorted, is_last: bool) -> Result<()> {
        let bytes = std::mem::take(&mut self.buffered_bytes);
        if self.sorted_by_primary
            && let Some(key) = sorted.repeated_key()
        {
            let format = self.primary.as_ref().expect("sorted by it");
            return Err(clash_error(&self.table, format, key, Clash::Itself));
        }
        let row_bytes = bytes / sorted.rows().max(1);
        let is_all = is_last && self.open.is_none();
        for chunk in 0..sorted.chunks() {
            self.write_chunk(sorted, chunk, row_bytes, is_all)?;
        }
        Ok(())
    }

    /// Adds a chunk to the open segment, or to a new one. `is_all`: no more chunks come.
    fn write_chunk(&mut self, sorted: &Sorted, number: usize, row_bytes: usize, is_all: bool) -> Result<()> {
        let chunk = sorted.chunk(number)?;
        let (first, last) = sorted.ends(number).unzip();
        let store = Arc::clone(&self.store);
        let options = &store.options;
        if let Some(open) = &self.open
            && (self.is_full(open) || !self.follows(open, first))
        {
            self.close_segment()?;
        }
        let primary_range = match &self.primary {
            Some(_) if self.sorted_by_primary => {
                first.zip(last).map(|(min, max)| KeyRange { min: min.into(), max: max.into() })
            }
            Some(primary) => range_of(&primary.keys(&chunk)?),
            None => None,
        };
        if self.open.is_none() {
            // A row group is held as a whole until it is written.
            let group_bytes = ROW_GROUP_BYTES.min(self.share.0.share());
            let chunks = (group_bytes / row_bytes.max(1) / CHUNK_ROWS).min(options.row_group_rows / CHUNK_ROWS);
            let row_group_rows = chunks.clamp(1, MAX_GROUP_CHUNKS) * CHUNK_ROWS;
            let left = sorted.rows() - number * CHUNK_ROWS;
            let layout = match is_all && left <= PASSING_ROWS && left * row_bytes <= FEW_BYTES {
                true => Layout { row_group_rows, distinct_keys: left, dictionary: Vec::new(), compressed: false },
                false => {
                    let dictionary = self.dictionary(sorted, number)?;
                    Layout { row_group_rows, distinct_keys: row_group_rows, dictionary, compressed: true }
                }
            };
            let (dir, schema) = (&store.segments_dir, &self.file_schema);
            let (table, shard, author) = (&self.table, self.shard, self.author);
            let writer = SegmentWriter::create(dir, table, schema, shard, author, &layout)?;
            self.open = Some(OpenSegment { writer, last: None, key_range: None });
        }
        let open = self.open.as_mut().expect("made above");
        open.writer.write(&chunk)?;
        open.last = last.map(Into::into);
        if let Some(range) = primary_range {
            open.key_range = Some(match open.key_range.take() {
                Some(before) => KeyRange { min: before.min.min(range.min), max: before.max.max(range.max) },
                None => range,
            });
        }
        Ok(())
    }

    fn close_segment(&mut self) -> Result<()> {
        if let Some(open) = self.open.take() {
            let (segment, gatherer) = open.writer.finish(open.key_range)?;
            segment.doom();
            self.gatherer.merge(&gatherer)?;
            self.segments.push(Arc::new(segment));
        }
        Ok(())
    }

    /// Which columns repeat values enough for a dictionary: judged by the first row group of a new segment.
    fn dictionary(&self, sorted: &Sorted, number: usize) -> Result<Vec<bool>> {
        // A dictionary that outgrows its page is given up midway, and pages and chunks fall apart: stay well below.
        const DICTIONARY_BYTES: u64 = 512 << 10;
        const SAMPLE_CHUNKS: usize = 16;
        let mut sample = Gatherer::new(&self.table);
        let first = sorted.chunk(number)?;
        let mut rows = 0;
        for number in number..sorted.chunks().min(number + SAMPLE_CHUNKS) {
            let chunk = sorted.chunk(number)?;
            sample.add(&chunk)?;
            rows += chunk.num_rows();
        }
        let value_bytes = |position: usize| match self.schema.field(position).data_type() {
            DataType::Utf8View | DataType::BinaryView => {
                let column = first.column(position);
                let long = match column.data_type() {
                    DataType::Utf8View => column.as_string_view().lengths().map(u64::from).sum::<u64>(),
                    _ => column.as_binary_view().lengths().map(u64::from).sum::<u64>(),
                };
                4 + long / first.num_rows() as u64
            }
            data_type => data_type.primitive_width().unwrap_or(16) as u64,
        };
        Ok((0..self.table.columns.len())
            .map(|position| {
                let distinct = sample.distinct_estimate(position);
                let is_boolean = self.schema.field(position).data_type() == &DataType::Boolean;
                !is_boolean && distinct * 4 <= rows as u64 && distinct * value_bytes(position) <= DICTIONARY_BYTES
            })
            .collect())
    }

    /// Takes rows of [`Table::arrow_schema`].
    pub fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        // The same arrays under the table's own schema: types and NULLs are checked on the way.
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), batch.columns().to_vec())?;
        let (bytes, rows) = (row_bytes(&batch), batch.num_rows());
        self.coalescer.push_batch(batch)?;
        let completed = self.coalescer.has_completed_batch();
        self.take_completed();
        self.pending_bytes = match completed {
            true => bytes / rows.max(1) * self.coalescer.get_buffered_rows(),
            false => self.pending_bytes + bytes,
        };
        if self.streams && self.buffer.len() >= self.streamed_chunks() {
            self.stream()?;
        }
        let share = self.share.0.share();
        if self.buffer.len() * CHUNK_ROWS >= self.store.options.segment_rows {
            self.flush(false)?;
        } else if self.buffered_bytes + self.pending_bytes >= share {
            // Rows so long that less than a chunk of them fills the buffer go out as they are; a segment ends with them.
            let is_long = self.pending_bytes >= share / 2;
            self.flush(is_long)?;
            if is_long {
                self.close_segment()?;
            }
        }
        Ok(())
    }

    /// Ends. Few rows stay as they are if they may; whether they are few is told by what comes back.
    pub fn finish(mut self, may_be_few: bool) -> Result<Loaded> {
        self.coalescer.finish_buffered_batch()?;
        self.pending_bytes = 0;
        self.take_completed();
        let rows: usize = self.buffer.iter().map(RecordBatch::num_rows).sum();
        let is_all = self.open.is_none() && self.segments.is_empty() && self.buffered_bytes <= FEW_BYTES;
        let options = &self.store.options;
        if may_be_few && is_all && rows <= options.buffer_rows {
            self.buffer.iter().try_for_each(|chunk| self.gatherer.add(chunk))?;
            return Ok(Loaded { few: self.buffer, segments: Vec::new(), gatherer: self.gatherer });
        }
        let is_few = may_be_few && is_all && rows <= options.lookup_rows;
        let few = if is_few { self.buffer.clone() } else { Vec::new() };
        self.flush(true)?;
        self.close_segment()?;
        if !self.segments.is_empty() {
            sync_folder(&self.store.segments_dir)?;
            crash_point::reach("segment.named");
        }
        Ok(Loaded { few, segments: self.segments, gatherer: self.gatherer })
    }
}

/// Makes the names of files in `dir` durable.
pub fn sync_folder(dir: &PathBuf) -> Result<()> {
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(|error| Error::io(format!("syncing {}", dir.display()), error))
}

fn range_of(keys: &Rows) -> Option<KeyRange> {
    let (min, max) = (keys.iter().min()?, keys.iter().max()?);
    Some(KeyRange { min: min.data().into(), max: max.data().into() })
}
