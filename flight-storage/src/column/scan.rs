//! Reading: the rows of some shards at one snapshot, a row group at a time, as batches that cost nearly nothing when the
//! columns are in memory.
//!
//! ```text
//! segments ──prune──▶ row groups and their chunks ──┬─ all in the cache: taken at once, on the thread that polls
//!                                                   └─ else: a blocking thread decodes what is missing
//!                     ──▶ batches: a chunk each, arrays shared with the cache, without the rows that were deleted
//! buffer   ──────────────▶ batches of the row engine, last
//! ```
//!
//! While the batches of one row group go out, the next one is made ready. When columns must be decoded, the filters' own
//! columns come first: the filters are evaluated on them, and of the others only chunks with matching rows are decoded.
//! When everything is in memory that would be waste, since the caller filters again; but a chunk of which rows were deleted
//! has to be copied, and then rows that the filters drop are not copied either.
//!
//! Not here: what a snapshot sees (`snapshot`), where decoded columns are kept (`cache`), and what statistics say
//! (`prune`).

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use arrow::{
    array::{Array, ArrayRef, BooleanArray, RecordBatchOptions},
    compute::{FilterBuilder, and},
    datatypes::SchemaRef,
    record_batch::RecordBatch,
};
use datafusion::{
    common::{DataFusionError, cast::as_boolean_array},
    execution::{RecordBatchStream, SendableRecordBatchStream},
    physical_expr::{
        PhysicalExpr,
        expressions::DynamicFilterTracking,
        utils::{collect_columns, conjunction_opt, reassign_expr_columns},
    },
    physical_optimizer::pruning::{PruningPredicate, PruningPredicateBuilder},
    physical_plan::{
        coop::cooperative,
        metrics::{Count, MetricBuilder, Time},
    },
};
use drsdb_core::{Error, Result, Table};
use futures::Stream;
use tokio::task::JoinHandle;

use super::{
    Store,
    cache::Chunks,
    deletes::Mask,
    format::{CHUNK_ROWS, ChunkSet, chunk_rows, chunks_of, read_error, stored_schema},
    prune::{all_chunks, prune_by_bloom_filters, prune_chunks, prune_segments, wants_bloom_filters},
    read::{Origin, RowGroup},
    segment::{Footer, Segment},
    snapshot::{self, Snapshot},
};
use crate::engine::ScanRequest;

/// What a scan counts.
#[derive(Debug)]
struct Metrics {
    row_groups_pruned: Count,
    rows_read: Count,
    cache_hits: Count,
    cache_misses: Count,
    bytes_read: Count,
    decode_time: Time,
}

/// What a scan does, whatever it has done so far.
#[derive(Debug)]
struct Plan {
    store: Arc<Store>,
    table: Arc<Table>,
    table_schema: SchemaRef,
    projection: Vec<usize>,
    schema: SchemaRef,
    filter: Option<EarlyFilter>,
    pruning: Pruning,
    limit: Option<usize>,
    metrics: Metrics,
    /// Set when nobody wants more batches.
    is_dropped: AtomicBool,
}

/// What statistics are asked.
#[derive(Debug)]
enum Pruning {
    /// The same all the time.
    Fixed(Option<Arc<PruningPredicate>>),
    /// A filter that learns while the query runs, such as the bounds of a join's other side: asked anew for each segment.
    Dynamic(Arc<dyn PhysicalExpr>),
}

impl Pruning {
    fn new(filter: Option<Arc<dyn PhysicalExpr>>, schema: &SchemaRef) -> Self {
        match filter {
            Some(filter) if DynamicFilterTracking::classify(&filter).contains_dynamic_filter() => {
                Pruning::Dynamic(filter)
            }
            filter => Pruning::Fixed(filter.and_then(|filter| predicate_of(filter, schema))),
        }
    }

    fn predicate(&self, schema: &SchemaRef) -> Option<Arc<PruningPredicate>> {
        match self {
            Pruning::Fixed(predicate) => predicate.clone(),
            Pruning::Dynamic(filter) => predicate_of(Arc::clone(filter), schema),
        }
    }
}

fn predicate_of(filter: Arc<dyn PhysicalExpr>, schema: &SchemaRef) -> Option<Arc<PruningPredicate>> {
    PruningPredicateBuilder::new().with_file_schema(Arc::clone(schema)).build(filter)
}

/// The filters over only the columns that they name.
#[derive(Debug)]
struct EarlyFilter {
    columns: Vec<usize>,
    /// Where the columns are among those of the scan, if all of them are.
    projected: Option<Vec<usize>>,
    schema: SchemaRef,
    expression: Arc<dyn PhysicalExpr>,
}

impl EarlyFilter {
    fn new(filter: &Arc<dyn PhysicalExpr>, table_schema: &SchemaRef, projection: &[usize]) -> Result<Option<Self>> {
        let mut columns: Vec<usize> = collect_columns(filter).iter().map(|column| column.index()).collect();
        columns.sort_unstable();
        columns.dedup();
        if columns.is_empty() {
            return Ok(None);
        }
        let schema = Arc::new(table_schema.project(&columns)?);
        let expression = reassign_expr_columns(Arc::clone(filter), &schema)?;
        let projected = columns.iter().map(|column| projection.iter().position(|projected| projected == column));
        Ok(Some(Self { projected: projected.collect(), columns, schema, expression }))
    }

    /// Which rows of `columns` match.
    fn matches(&self, columns: Vec<ArrayRef>) -> Result<BooleanArray> {
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), columns)?;
        let matches = self.expression.evaluate(&batch)?.into_array(batch.num_rows())?;
        Ok(as_boolean_array(&matches)?.clone())
    }
}

/// Where a scan stands. It travels to the blocking thread and back.
#[derive(Debug)]
struct Cursor {
    segments: VecDeque<(Arc<Segment>, Option<Arc<Mask>>)>,
    segment: Option<OpenSegment>,
    /// Rows that went out.
    rows: usize,
}

#[derive(Debug)]
struct OpenSegment {
    segment: Arc<Segment>,
    footer: Arc<Footer>,
    mask: Option<Arc<Mask>>,
    /// Row groups to come, with the chunks to read.
    groups: VecDeque<(usize, ChunkSet)>,
}

/// A row group's decoded columns.
#[derive(Debug)]
struct Group {
    rows: usize,
    chunks: ChunkSet,
    columns: Vec<Arc<Chunks>>,
    deleted: Deleted,
}

/// Rows of a row group that are not to be seen.
#[derive(Debug, Clone, Default)]
struct Deleted {
    mask: Option<Arc<Mask>>,
    /// The row group's first chunk, counted from the segment's start.
    first_chunk: usize,
}

impl Deleted {
    /// How many rows of a chunk are left, of `rows`.
    fn left_in(&self, chunk: usize, rows: usize) -> usize {
        rows - self.mask.as_ref().map_or(0, |mask| mask.rows_in(self.first_chunk + chunk))
    }
}

#[derive(Debug)]
enum Step {
    Group(Group),
    End,
    /// It takes a thread that may block.
    MustBlock,
}

/// Opens a scan. May block.
pub fn start(store: &Arc<Store>, request: ScanRequest) -> Result<SendableRecordBatchStream> {
    let Snapshot { segments, buffer } = snapshot::collect(store, &request)?;
    let counter = |name: &'static str| MetricBuilder::new(&request.metrics).counter(name, request.partition);
    let (segments_total, segments_pruned) = (counter("segments_total"), counter("segments_pruned"));
    let metrics = Metrics {
        row_groups_pruned: counter("row_groups_pruned"),
        rows_read: counter("rows_read"),
        cache_hits: counter("cache_hits"),
        cache_misses: counter("cache_misses"),
        bytes_read: counter("bytes_read"),
        decode_time: MetricBuilder::new(&request.metrics).subset_time("decode_time", request.partition),
    };
    let table_schema = stored_schema(&request.table);
    let filter = conjunction_opt(request.filters.iter().cloned());
    let pruning = Pruning::new(filter.clone(), &table_schema);
    let found = segments.len();
    segments_total.add(found);
    let segments = match pruning.predicate(&table_schema) {
        Some(predicate) if found > 0 => prune_segments(&predicate, &table_schema, segments),
        _ => segments,
    };
    segments_pruned.add(found - segments.len());
    let schema = Arc::new(request.table.arrow_schema().project(&request.projection)?);
    let plan = Arc::new(Plan {
        store: Arc::clone(store),
        filter: filter
            .as_ref()
            .map(|filter| EarlyFilter::new(filter, &table_schema, &request.projection))
            .transpose()?
            .flatten(),
        table: request.table,
        table_schema,
        projection: request.projection,
        schema: Arc::clone(&schema),
        pruning,
        limit: request.limit,
        metrics,
        is_dropped: AtomicBool::new(false),
    });
    let cursor = Cursor { segments: segments.into(), segment: None, rows: 0 };
    Ok(Box::pin(cooperative(ScanStream {
        plan,
        batch_rows: request.batch_rows.clamp(1, CHUNK_ROWS),
        next: Next::Idle(cursor),
        batches: None,
        needed: request.limit.unwrap_or(usize::MAX),
        buffer,
        passed: Passed::default(),
        is_silent: false,
    })))
}

impl Plan {
    /// The next row group that has rows to give.
    fn step(&self, cursor: &mut Cursor, may_block: bool) -> Result<Step> {
        loop {
            if self.is_dropped.load(Ordering::Relaxed) || self.limit.is_some_and(|limit| cursor.rows >= limit) {
                return Ok(Step::End);
            }
            let Some(open) = &mut cursor.segment else {
                let Some((segment, mask)) = cursor.segments.front() else { return Ok(Step::End) };
                let Some(open) = self.open_segment(segment, mask, may_block)? else { return Ok(Step::MustBlock) };
                cursor.segments.pop_front();
                cursor.segment = Some(open);
                continue;
            };
            let Some(&(row_group, chunks)) = open.groups.front() else {
                cursor.segment = None;
                continue;
            };
            let group_rows = open.footer.group_rows(row_group);
            let deleted = open.deleted(row_group);
            let left = |chunk| deleted.left_in(chunk, chunk_rows(group_rows, chunk));
            let wanted = self.limit.map_or(chunks, |limit| limited(chunks, left, limit - cursor.rows));
            let Some(group) = self.read_group(open, row_group, wanted, may_block)? else { return Ok(Step::MustBlock) };
            open.groups.pop_front();
            if !group.chunks.is_empty() {
                cursor.rows += group.chunks.iter().map(left).sum::<usize>();
                return Ok(Step::Group(group));
            }
        }
    }

    /// Finds out which chunks of a segment to read.
    fn open_segment(
        &self,
        segment: &Arc<Segment>,
        mask: &Option<Arc<Mask>>,
        may_block: bool,
    ) -> Result<Option<OpenSegment>> {
        let predicate = self.pruning.predicate(&self.table_schema);
        let bloom = predicate.as_ref().filter(|predicate| wants_bloom_filters(predicate, &self.table));
        let footer = match self.store.footers.get(segment) {
            Some(footer) if may_block || bloom.is_none() => footer,
            _ if !may_block => return Ok(None),
            _ => self.store.footers.load(segment)?,
        };
        let mut chunks = match &predicate {
            Some(predicate) => prune_chunks(predicate, &self.table_schema, segment, &footer),
            None => all_chunks(&footer),
        };
        if let Some(predicate) = bloom
            && chunks.iter().any(|chunks| !chunks.is_empty())
        {
            let file = segment.note(segment.open_file())?;
            let bytes = prune_by_bloom_filters(predicate, &self.table, &footer, &file, &mut chunks)
                .map_err(|error| read_error(&format!("reading {}", segment.describe()), error));
            let bytes = segment.note(bytes)?;
            self.metrics.bytes_read.add(bytes as usize);
        }
        self.metrics.row_groups_pruned.add(chunks.iter().filter(|chunks| chunks.is_empty()).count());
        let mut open =
            OpenSegment { segment: Arc::clone(segment), footer, mask: mask.clone(), groups: VecDeque::new() };
        for (row_group, mut chunks) in chunks.into_iter().enumerate() {
            let (rows, deleted) = (open.footer.group_rows(row_group), open.deleted(row_group));
            let empty = chunks.iter().filter(|&chunk| deleted.left_in(chunk, chunk_rows(rows, chunk)) == 0);
            chunks = empty.fold(chunks, ChunkSet::without);
            if !chunks.is_empty() {
                open.groups.push_back((row_group, chunks));
            }
        }
        Ok(Some(open))
    }

    /// The columns of a row group; `None` when they are not all in memory and this thread may not block.
    fn read_group(
        &self,
        open: &OpenSegment,
        row_group: usize,
        wanted: ChunkSet,
        may_block: bool,
    ) -> Result<Option<Group>> {
        let (segment, footer) = (&open.segment, &open.footer);
        let group = RowGroup { table: &self.table, segment, footer, number: row_group };
        let (rows, deleted) = (group.rows(), open.deleted(row_group));
        let cached: Option<Vec<_>> =
            self.projection.iter().map(|&column| self.store.cache.get(group.key(column), wanted)).collect();
        if let Some(columns) = cached {
            self.metrics.cache_hits.add(columns.len());
            return Ok(Some(Group { rows, chunks: wanted, columns, deleted }));
        }
        if !may_block {
            return Ok(None);
        }

        let timer = self.metrics.decode_time.timer();
        let file = segment.note(segment.open_file())?;
        let read = |column: usize, wanted: ChunkSet| {
            if self.is_dropped.load(Ordering::Relaxed) {
                return Ok(Arc::new(Chunks::none(chunks_of(rows))));
            }
            let (chunks, origin) = group.column(&self.store, &file, column, wanted)?;
            match origin {
                Origin::Memory => self.metrics.cache_hits.add(1),
                Origin::Disk(bytes) => {
                    self.metrics.cache_misses.add(1);
                    self.metrics.bytes_read.add(bytes as usize);
                }
            }
            Ok(chunks)
        };
        let mut wanted = wanted;
        if let Some(filter) = &self.filter
            && self.projection.iter().any(|column| !filter.columns.contains(column))
        {
            let columns = filter.columns.iter().map(|&column| read(column, wanted)).collect::<Result<Vec<_>>>()?;
            for chunk in wanted.iter() {
                let arrays: Option<Vec<_>> = columns.iter().map(|column| column.get(chunk).cloned()).collect();
                // A chunk is missing only when the scan was dropped. A filter that fails fails above as well, where its
                // error belongs.
                if arrays.is_some_and(|arrays| filter.matches(arrays).is_ok_and(|rows| rows.true_count() == 0)) {
                    wanted = wanted.without(chunk);
                }
            }
        }
        let columns = match wanted.is_empty() {
            true => Vec::new(),
            false => self.projection.iter().map(|&column| read(column, wanted)).collect::<Result<Vec<_>>>()?,
        };
        timer.done();
        let complete = columns.iter().all(|column| wanted.minus(column.present()).is_empty());
        Ok(Some(Group { rows, chunks: if complete { wanted } else { ChunkSet(0) }, columns, deleted }))
    }
}

impl Plan {
    /// Which of the rows that are left in a chunk match the filters, if it seems worth finding out. A filter that fails does so
    /// above as well, where its error belongs, or not, where the rows that it fails for were deleted.
    fn wanted(&self, arrays: &[ArrayRef], left: &BooleanArray, passed: &mut Passed) -> Option<BooleanArray> {
        let filter = self.filter.as_ref().filter(|_| passed.is_selective())?;
        let columns = filter.projected.as_ref()?.iter().map(|&at| Arc::clone(&arrays[at]));
        let wanted = and(left, &filter.matches(columns.collect()).ok()?).ok()?;
        passed.note(wanted.true_count(), left.true_count());
        Some(wanted)
    }
}

/// How many rows the filters have let through of late.
#[derive(Debug, Default)]
struct Passed {
    rows: usize,
    of: usize,
    unasked: u32,
}

impl Passed {
    /// Chunks after which filters are tried again that dropped little: some learn while the query runs.
    const TRY_AGAIN: u32 = 32;

    fn note(&mut self, rows: usize, of: usize) {
        *self = Self { rows: self.rows / 2 + rows, of: self.of / 2 + of, unasked: 0 };
    }

    /// Whether the filters drop so much that it is worth evaluating them twice.
    fn is_selective(&mut self) -> bool {
        self.unasked += 1;
        self.rows * 2 <= self.of || self.unasked >= Self::TRY_AGAIN
    }
}

impl OpenSegment {
    fn deleted(&self, row_group: usize) -> Deleted {
        if self.mask.is_none() {
            return Deleted::default();
        }
        let first_chunk = (0..row_group).map(|before| chunks_of(self.footer.group_rows(before))).sum();
        Deleted { mask: self.mask.clone(), first_chunk }
    }
}

/// The first of `chunks` that have `limit` rows between them.
fn limited(chunks: ChunkSet, rows_in: impl Fn(usize) -> usize, limit: usize) -> ChunkSet {
    let mut rows = 0;
    let enough = chunks.iter().take_while(|&chunk| {
        let take = rows < limit;
        rows += rows_in(chunk);
        take
    });
    enough.fold(ChunkSet(0), ChunkSet::with)
}

/// The row group after the one that goes out.
enum Next {
    /// Not begun.
    Idle(Cursor),
    /// Ready before it is needed.
    Ready(Group, Cursor),
    /// On a blocking thread.
    Working(JoinHandle<(Result<Step>, Cursor)>),
    End,
}

/// The rest of a row group that goes out.
struct Batches {
    group: Group,
    /// Chunks to come.
    chunks: ChunkSet,
    /// The chunk before them, how many rows of it are to go out, and how many did.
    current: Option<(Vec<ArrayRef>, usize, usize)>,
}

impl Batches {
    /// Goes to the next chunk; answers whether there is one.
    fn advance(&mut self, plan: &Plan, passed: &mut Passed) -> Result<bool> {
        let Some(chunk) = self.chunks.iter().next() else { return Ok(false) };
        self.chunks = self.chunks.without(chunk);
        let Group { rows, columns, deleted, .. } = &self.group;
        let arrays =
            columns.iter().map(|column| Arc::clone(column.get(chunk).expect("the group was read with this chunk")));
        let arrays: Vec<ArrayRef> = arrays.collect();
        let in_chunk = chunk_rows(*rows, chunk);
        let left = deleted.mask.as_ref().and_then(|mask| mask.left_in(deleted.first_chunk + chunk, in_chunk));
        self.current = Some(match left {
            None => (arrays, in_chunk, 0),
            Some(left) => {
                let wanted = plan.wanted(&arrays, &left, passed).unwrap_or(left);
                let filter = FilterBuilder::new(&wanted).optimize().build();
                let arrays = arrays.iter().map(|array| filter.filter(array)).collect::<Result<_, _>>()?;
                plan.metrics.rows_read.add(deleted.left_in(chunk, in_chunk) - filter.count());
                (arrays, filter.count(), 0)
            }
        });
        Ok(true)
    }
}

struct ScanStream {
    plan: Arc<Plan>,
    batch_rows: usize,
    next: Next,
    batches: Option<Batches>,
    /// Rows that the caller still needs.
    needed: usize,
    /// What comes after the segments.
    buffer: Option<SendableRecordBatchStream>,
    passed: Passed,
    /// Nothing of the row group has gone out yet.
    is_silent: bool,
}

impl Drop for ScanStream {
    fn drop(&mut self) {
        self.plan.is_dropped.store(true, Ordering::Relaxed);
    }
}

impl ScanStream {
    /// Begins to make the next row group ready.
    fn prefetch(&mut self) -> Result<()> {
        let Next::Idle(mut cursor) = std::mem::replace(&mut self.next, Next::End) else {
            unreachable!("prefetch is called when nothing is under way");
        };
        self.next = match self.plan.step(&mut cursor, false)? {
            Step::Group(group) => Next::Ready(group, cursor),
            Step::End => Next::End,
            Step::MustBlock => {
                let plan = Arc::clone(&self.plan);
                Next::Working(tokio::task::spawn_blocking(move || {
                    let step = plan.step(&mut cursor, true);
                    (step, cursor)
                }))
            }
        };
        Ok(())
    }

    fn poll_group(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Group>>> {
        loop {
            match &mut self.next {
                Next::Idle(_) => self.prefetch()?,
                Next::End => return Poll::Ready(Ok(None)),
                Next::Ready(..) => {
                    let Next::Ready(group, cursor) = std::mem::replace(&mut self.next, Next::End) else {
                        unreachable!("it was ready just now");
                    };
                    self.next = Next::Idle(cursor);
                    return Poll::Ready(Ok(Some(group)));
                }
                Next::Working(task) => {
                    let outcome = ready!(Pin::new(task).poll(context));
                    self.next = Next::End;
                    let (step, cursor) =
                        outcome.map_err(|error| Error::internal(format!("a scan's decoding task failed: {error}")))?;
                    self.next = match step? {
                        Step::Group(group) => Next::Ready(group, cursor),
                        Step::End => Next::End,
                        Step::MustBlock => unreachable!("the step was allowed to block"),
                    };
                }
            }
        }
    }

    fn next_batch(&mut self) -> Result<Option<RecordBatch>> {
        let Some(batches) = self.batches.as_mut().filter(|_| self.needed > 0) else { return Ok(None) };
        while batches.current.as_ref().is_none_or(|(_, rows, offset)| offset == rows) {
            if !batches.advance(&self.plan, &mut self.passed)? {
                self.batches = None;
                return Ok(None);
            }
        }
        let (arrays, left, offset) = batches.current.as_mut().expect("it was advanced until there was one");
        let rows = self.batch_rows.min(*left - *offset).min(self.needed);
        let columns = match rows == *left {
            true => std::mem::take(arrays),
            false => arrays.iter().map(|array| array.slice(*offset, rows)).collect(),
        };
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let batch = RecordBatch::try_new_with_options(Arc::clone(&self.plan.schema), columns, &options)?;
        self.needed -= rows;
        *offset += rows;
        self.plan.metrics.rows_read.add(rows);
        Ok(Some(batch))
    }

    /// The next batch of the buffer, no longer than what is needed.
    fn poll_buffer(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<RecordBatch, DataFusionError>>> {
        let Some(buffer) = self.buffer.as_mut().filter(|_| self.needed > 0) else { return Poll::Ready(None) };
        let next = ready!(buffer.as_mut().poll_next(context)).map(|batch| {
            let batch = batch?;
            let rows = batch.num_rows().min(self.needed);
            self.needed -= rows;
            self.plan.metrics.rows_read.add(rows);
            Ok(batch.slice(0, rows))
        });
        if !matches!(next, Some(Ok(_))) {
            self.buffer = None;
        }
        Poll::Ready(next)
    }
}

impl Stream for ScanStream {
    type Item = Result<RecordBatch, DataFusionError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let failed = |stream: &mut Self, error: Error| {
            (stream.next, stream.batches, stream.buffer) = (Next::End, None, None);
            Poll::Ready(Some(Err(error.into_datafusion())))
        };
        loop {
            match self.next_batch() {
                Ok(Some(batch)) => {
                    self.is_silent = false;
                    return Poll::Ready(Some(Ok(batch)));
                }
                Ok(None) => {}
                Err(error) => return failed(&mut self, error),
            }
            if std::mem::take(&mut self.is_silent) {
                // Row groups without a match must not keep the thread from all else, nor a cancelled query from ending.
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            match ready!(self.poll_group(context)) {
                Ok(Some(group)) => {
                    self.batches = Some(Batches { chunks: group.chunks, current: None, group });
                    self.is_silent = true;
                    if let Err(error) = self.prefetch() {
                        return failed(&mut self, error);
                    }
                }
                Ok(None) => return self.poll_buffer(context),
                Err(error) => return failed(&mut self, error),
            }
        }
    }
}

impl RecordBatchStream for ScanStream {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.plan.schema)
    }
}
