//! The pass between DataFusion's physical planner and the placement of exchanges.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::{
    catalog::Session,
    common::{
        Result as DfResult, internal_datafusion_err,
        tree_node::{Transformed, TransformedResult, TreeNode},
    },
    execution::context::QueryPlanner,
    logical_expr::LogicalPlan,
    physical_plan::{
        ExecutionPlan,
        coop::CooperativeExec,
        empty::EmptyExec,
        joins::{CrossJoinExec, HashJoinExec, NestedLoopJoinExec, PiecewiseMergeJoinExec, SortMergeJoinExec},
        unnest::UnnestExec,
    },
    physical_planner::{DefaultPhysicalPlanner, PhysicalPlanner},
};
use drsdb_core::{
    scan::ShardScanExec,
    wanted::{count_kept_rows, end_unwanted},
};

use super::{single_rows::refuse_left_over, stamp_servers::Stamper};

/// Plans as DataFusion does, then has the session's [`Stamper`] stamp servers on the leaves, and makes joins yield.
#[derive(Debug)]
pub struct StampingPlanner;

#[async_trait]
impl QueryPlanner for StampingPlanner {
    async fn create_physical_plan(
        &self,
        logical_plan: &LogicalPlan,
        session: &dyn Session,
    ) -> DfResult<Arc<dyn ExecutionPlan>> {
        let stamper = session.config().get_extension::<Stamper>();
        let stamper = stamper.ok_or_else(|| internal_datafusion_err!("a session without the servers of its query"))?;
        refuse_left_over(logical_plan)?;
        let wanted = end_unwanted(logical_plan.clone(), session)?;
        let plan = DefaultPhysicalPlanner::default().create_physical_plan(&wanted, session).await?;
        let plan = count_kept_rows(yield_above_joins(stamper.stamp(plan)?)?)?;
        if stamper.workers.get().is_empty() { no_rows(plan) } else { Ok(plan) }
    }
}

/// Operators that can turn one batch into any number of them yield to the runtime now and then. Without that, a join
/// whose output is all consumed above it in one poll goes on to its end after its query was cancelled.
fn yield_above_joins(plan: Arc<dyn ExecutionPlan>) -> DfResult<Arc<dyn ExecutionPlan>> {
    plan.transform_up(|node| {
        let multiplies = node.is::<HashJoinExec>()
            || node.is::<NestedLoopJoinExec>()
            || node.is::<CrossJoinExec>()
            || node.is::<SortMergeJoinExec>()
            || node.is::<PiecewiseMergeJoinExec>()
            || node.is::<UnnestExec>();
        if !multiplies {
            return Ok(Transformed::no(node));
        }
        Ok(Transformed::yes(Arc::new(CooperativeExec::new(node)) as Arc<dyn ExecutionPlan>))
    })
    .data()
}

/// When no table of the query has a row to read, its scans need no server.
fn no_rows(plan: Arc<dyn ExecutionPlan>) -> DfResult<Arc<dyn ExecutionPlan>> {
    plan.transform_up(|node| {
        let Some(scan) = node.downcast_ref::<ShardScanExec>() else { return Ok(Transformed::no(node)) };
        let partitions = scan.properties().partitioning.partition_count();
        let empty = EmptyExec::new(scan.schema()).with_partitions(partitions);
        Ok(Transformed::yes(Arc::new(empty) as Arc<dyn ExecutionPlan>))
    })
    .data()
}
