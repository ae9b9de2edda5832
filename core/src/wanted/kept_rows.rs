//! The memory of windows that keep all rows.
//!
//! DataFusion's `WindowAggExec` collects its whole input, copies it into one batch, and asks no memory pool for either.

use std::{fmt, sync::Arc};

use arrow::array::{Array, RecordBatch};
use datafusion::{
    common::{
        Result as DfResult, Statistics, internal_err,
        tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion},
    },
    execution::{
        SendableRecordBatchStream, TaskContext,
        memory_pool::{MemoryConsumer, MemoryReservation},
    },
    physical_expr::PhysicalExpr,
    physical_plan::{
        ChildStats, DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, StatisticsArgs,
        execution_plan::{CardinalityEffect, ChildrenPropertiesMode, ReplaceChildrenOptions},
        stream::RecordBatchStreamAdapter,
        windows::WindowAggExec,
    },
};
use futures::TryStreamExt;
use parking_lot::Mutex;

/// Hands on what it gets, and has the memory pool know that the node above keeps it, until the plan is dropped.
#[derive(Debug)]
pub struct KeptRowsExec {
    input: Arc<dyn ExecutionPlan>,
    kept: Arc<Mutex<Vec<Arc<MemoryReservation>>>>,
}

impl KeptRowsExec {
    /// Of the rows of `input`.
    pub fn new(input: Arc<dyn ExecutionPlan>) -> Self {
        Self { input, kept: Arc::default() }
    }
}

/// Puts a [`KeptRowsExec`] below each window that keeps all its rows.
pub fn count_kept_rows(plan: Arc<dyn ExecutionPlan>) -> DfResult<Arc<dyn ExecutionPlan>> {
    plan.transform_up(|node| {
        let Some(window) = node.downcast_ref::<WindowAggExec>() else { return Ok(Transformed::no(node)) };
        let input = Arc::new(KeptRowsExec::new(Arc::clone(window.input())));
        let options = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute);
        Ok(Transformed::yes(node.replace_children(vec![input], options)?))
    })
    .data()
}

/// Bytes of the rows, and not of others that share their buffers.
fn rows_bytes(batch: &RecordBatch) -> usize {
    let bytes = |column: &dyn Array| column.to_data().get_slice_memory_size().unwrap_or(0);
    batch.columns().iter().map(|column| bytes(column)).sum()
}

impl DisplayAs for KeptRowsExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "KeptRowsExec")
    }
}

impl ExecutionPlan for KeptRowsExec {
    fn name(&self) -> &str {
        "KeptRowsExec"
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
            (Some(input), true) => Ok(Arc::new(Self::new(input))),
            _ => internal_err!("KeptRowsExec has one input"),
        }
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> DfResult<SendableRecordBatchStream> {
        let kept = MemoryConsumer::new("rows that a window keeps").register(context.memory_pool());
        let kept = Arc::new(kept);
        self.kept.lock().push(Arc::clone(&kept));
        let rows = self.input.execute(partition, context)?.and_then(move |batch| {
            // They are there twice when they are copied into one batch.
            let reserved = kept.try_grow(2 * rows_bytes(&batch)).map(|()| batch);
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
