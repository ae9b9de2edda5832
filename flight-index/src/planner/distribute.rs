//! What datafusion-distributed asks while it places exchanges.

use std::sync::Arc;

use datafusion::{common::Result as DfResult, physical_plan::ExecutionPlan};
use datafusion_distributed::{
    DesiredTaskCountEvent, DesiredTaskCountEventResponse, NetworkCoalesceExec, ScaleUpLeafNodeEvent,
    ScaleUpLeafNodeEventResponse,
};
use drsdb_core::scan::ShardScanExec;

/// A stage that reads shards has one task for each server of the query.
pub fn desired_task_count(event: DesiredTaskCountEvent) -> Option<DfResult<DesiredTaskCountEventResponse>> {
    let scan = event.plan.downcast_ref::<ShardScanExec>()?;
    Some(Ok(DesiredTaskCountEventResponse::desired(scan.servers().len().max(1))))
}

/// A stage that something else holds to fewer tasks cannot read shards itself: the scan becomes a stage of its own, and
/// its rows are brought together below.
///
/// ```text
///   stage of 1 task                         stage of 1 task
///   │ ...                          ──▶      │ ...
///   │   ShardScanExec (3 servers)           │   NetworkCoalesceExec
///                                           └── stage of 3 tasks: ShardScanExec
/// ```
pub fn scale_up_leaf(event: ScaleUpLeafNodeEvent) -> Option<DfResult<ScaleUpLeafNodeEventResponse>> {
    let scan = event.plan.downcast_ref::<ShardScanExec>()?;
    let servers = scan.servers().len().max(1);
    if servers == event.task_count {
        return None;
    }
    let coalesce = NetworkCoalesceExec::try_new(Arc::clone(event.plan), servers, event.task_count);
    Some(coalesce.map(|plan| ScaleUpLeafNodeEventResponse::new(Arc::new(plan) as Arc<dyn ExecutionPlan>)))
}
