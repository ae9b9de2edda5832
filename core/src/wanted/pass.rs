//! Nodes that hand on their input's rows, and do something meanwhile.
//!
//! - `KeptRowsExec` counts them. DataFusion's `WindowAggExec`, above it, collects its whole input, copies it into one batch, and
//!   asks no memory pool for either.
//! - `YieldExec` returns to the runtime now and then. A task that is never without work could not be cancelled otherwise, and
//!   neither can the time limit of its query be noticed. tokio and DataFusion count batches for that, and a batch can take a
//!   second.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use datafusion::{
    common::{
        Result as DfResult, Statistics, internal_err,
        tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion},
    },
    execution::{
        RecordBatchStream, SendableRecordBatchStream, TaskContext,
        memory_pool::{MemoryConsumer, MemoryReservation},
    },
    physical_expr::PhysicalExpr,
    physical_plan::{
        ChildStats, DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, StatisticsArgs,
        execution_plan::{CardinalityEffect, ChildrenPropertiesMode, ReplaceChildrenOptions},
        joins::{CrossJoinExec, HashJoinExec, NestedLoopJoinExec, PiecewiseMergeJoinExec, SortMergeJoinExec},
        memory::LazyMemoryExec,
        stream::RecordBatchStreamAdapter,
        unnest::UnnestExec,
        windows::WindowAggExec,
    },
};
use futures::{Stream, TryStreamExt};
use parking_lot::Mutex;

use crate::row_bytes;

/// How long a task may work until it returns to the runtime.
const SLICE: Duration = Duration::from_millis(10);

/// What a [`PassExec`] does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Duty {
    /// Has the memory pool know that the node above keeps the rows, until the plan is dropped.
    Count = 1,
    /// Returns to the runtime.
    Yield = 2,
}

/// Hands on what it gets.
#[derive(Debug)]
pub struct PassExec {
    duty: Duty,
    input: Arc<dyn ExecutionPlan>,
    kept: Mutex<Vec<Arc<MemoryReservation>>>,
}

impl PassExec {
    /// Of the rows of `input`.
    pub fn new(duty: Duty, input: Arc<dyn ExecutionPlan>) -> Self {
        Self { duty, input, kept: Mutex::default() }
    }

    /// The wire form, but for the input.
    pub(crate) fn to_bytes(&self) -> [u8; 1] {
        [self.duty as u8]
    }

    pub(crate) fn from_bytes(bytes: &[u8], input: Arc<dyn ExecutionPlan>) -> DfResult<Self> {
        match bytes {
            [1] => Ok(Self::new(Duty::Count, input)),
            [2] => Ok(Self::new(Duty::Yield, input)),
            _ => internal_err!("a node with an input and {bytes:?}"),
        }
    }
}

/// Puts nodes into a plan that count what windows keep, and that yield: above what turns one batch into any number of them, and
/// above what makes rows of nothing. Scans yield by themselves.
pub fn count_and_yield(plan: Arc<dyn ExecutionPlan>) -> DfResult<Arc<dyn ExecutionPlan>> {
    plan.transform_up(|node| {
        if let Some(window) = node.downcast_ref::<WindowAggExec>() {
            let input = Arc::new(PassExec::new(Duty::Count, Arc::clone(window.input())));
            let options = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute);
            return Ok(Transformed::yes(node.replace_children(vec![input], options)?));
        }
        let multiplies = node.is::<HashJoinExec>()
            || node.is::<NestedLoopJoinExec>()
            || node.is::<CrossJoinExec>()
            || node.is::<SortMergeJoinExec>()
            || node.is::<PiecewiseMergeJoinExec>()
            || node.is::<UnnestExec>()
            || node.is::<LazyMemoryExec>();
        if !multiplies {
            return Ok(Transformed::no(node));
        }
        Ok(Transformed::yes(Arc::new(PassExec::new(Duty::Yield, node)) as Arc<dyn ExecutionPlan>))
    })
    .data()
}

impl DisplayAs for PassExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl ExecutionPlan for PassExec {
    fn name(&self) -> &str {
        match self.duty {
            Duty::Count => "KeptRowsExec",
            Duty::Yield => "YieldExec",
        }
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.input.properties()
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> DfResult<TreeNodeRecursion>,
    ) -> DfResult<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> DfResult<Arc<dyn ExecutionPlan>> {
        match (children.pop(), children.is_empty()) {
            (Some(input), true) => Ok(Arc::new(Self::new(self.duty, input))),
            _ => internal_err!("{} has one input", self.name()),
        }
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> DfResult<SendableRecordBatchStream> {
        if self.duty == Duty::Yield {
            return Ok(Box::pin(Sliced::new(self.input.execute(partition, context)?)));
        }
        let kept = MemoryConsumer::new("rows that a window keeps").register(context.memory_pool());
        let kept = Arc::new(kept);
        self.kept.lock().push(Arc::clone(&kept));
        let rows = self.input.execute(partition, context)?.and_then(move |batch| {
            // They are there twice when they are copied into one batch.
            let reserved = kept.try_grow(2 * row_bytes(&batch)).map(|()| batch);
            std::future::ready(reserved)
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), rows)))
    }

    fn child_stats_requests(&self, partition: Option<usize>) -> Vec<ChildStats> {
        vec![ChildStats::At(partition)]
    }

    fn statistics_from_inputs(&self, inputs: &[Arc<Statistics>], _: &StatisticsArgs) -> DfResult<Arc<Statistics>> {
        Ok(Arc::clone(&inputs[0]))
    }

    fn cardinality_effect(&self) -> CardinalityEffect {
        CardinalityEffect::Equal
    }
}

/// Rows, between which it is never longer than [`SLICE`] and one batch until the task returns to the runtime.
pub(crate) struct Sliced {
    rows: SendableRecordBatchStream,
    /// Since when the task works. `None`: it begins.
    since: Option<Instant>,
}

impl Sliced {
    pub(crate) fn new(rows: SendableRecordBatchStream) -> Self {
        Self { rows, since: None }
    }
}

impl Stream for Sliced {
    type Item = DfResult<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let since = *self.since.get_or_insert_with(Instant::now);
        if since.elapsed() > SLICE {
            self.since = None;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let polled = self.rows.as_mut().poll_next(context);
        if polled.is_pending() {
            self.since = None;
        }
        polled
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.rows.size_hint()
    }
}

impl RecordBatchStream for Sliced {
    fn schema(&self) -> SchemaRef {
        self.rows.schema()
    }
}
