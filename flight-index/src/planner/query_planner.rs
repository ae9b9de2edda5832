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
    physical_plan::{ExecutionPlan, empty::EmptyExec},
    physical_planner::{DefaultPhysicalPlanner, PhysicalPlanner},
};
use drsdb_core::{
    scan::ShardScanExec,
    wanted::{count_and_yield, end_unwanted},
};

use super::{single_rows::refuse_left_over, stamp_servers::Stamper};

/// Plans as DataFusion does, then has the session's [`Stamper`] stamp servers on the leaves, and sees to it that the
/// query can be ended.
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
        let plan = count_and_yield(stamper.stamp(plan)?)?;
        if stamper.workers.get().is_empty() { no_rows(plan) } else { Ok(plan) }
    }
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
