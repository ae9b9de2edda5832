//! The pass between DataFusion's physical planner and the placement of exchanges.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::{
    catalog::Session,
    common::{
        Result as DfResult,
        tree_node::{Transformed, TransformedResult, TreeNode},
    },
    execution::context::QueryPlanner,
    logical_expr::LogicalPlan,
    physical_plan::{ExecutionPlan, empty::EmptyExec},
    physical_planner::{DefaultPhysicalPlanner, PhysicalPlanner},
};
use drsdb_core::scan::ShardScanExec;

use super::stamp_servers::{Workers, stamp_servers};

/// Plans as DataFusion does, then stamps servers on the leaves.
#[derive(Debug)]
pub struct StampingPlanner {
    pub(super) workers: Workers,
}

#[async_trait]
impl QueryPlanner for StampingPlanner {
    async fn create_physical_plan(
        &self,
        logical_plan: &LogicalPlan,
        session: &dyn Session,
    ) -> DfResult<Arc<dyn ExecutionPlan>> {
        let plan = DefaultPhysicalPlanner::default().create_physical_plan(logical_plan, session).await?;
        let plan = stamp_servers(plan, &self.workers)?;
        if self.workers.get().is_empty() { no_rows(plan) } else { Ok(plan) }
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
