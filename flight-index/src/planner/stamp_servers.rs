//! Gives all leaves of a plan the same list of servers.
//!
//! A stage runs task `i` on server `i`, and may read several tables; so every leaf lists the union of the servers that any
//! leaf needs, with no shards where it has none. A query that needs one server only then has stages of one task, and no
//! exchange at all.

use std::{collections::BTreeMap, sync::Arc};

use datafusion::{
    common::{
        Result as DfResult,
        tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion},
    },
    physical_plan::ExecutionPlan,
};
use datafusion_distributed::WorkerResolver;
use drsdb_core::{
    Ulid,
    scan::{ScanServer, ShardScanExec},
};
use parking_lot::Mutex;
use url::Url;

/// The servers of the query that is being planned; datafusion-distributed asks it for the size of the cluster.
#[derive(Debug, Clone, Default)]
pub struct Workers(Arc<Mutex<Vec<(Ulid, Url)>>>);

impl Workers {
    /// The servers in task order; empty when the query reads no shards.
    pub fn get(&self) -> Vec<(Ulid, Url)> {
        self.0.lock().clone()
    }
}

impl WorkerResolver for Workers {
    fn get_urls(&self) -> DfResult<Vec<Url>> {
        Ok(self.0.lock().iter().map(|(_, url)| url.clone()).collect())
    }
}

/// Rewrites the leaves of `plan` and notes the servers in `workers`.
pub fn stamp_servers(plan: Arc<dyn ExecutionPlan>, workers: &Workers) -> DfResult<Arc<dyn ExecutionPlan>> {
    let mut union: BTreeMap<Ulid, Url> = BTreeMap::new();
    plan.apply(|node| {
        if let Some(scan) = node.downcast_ref::<ShardScanExec>() {
            union.extend(scan.servers().iter().map(|server| (server.id, server.url.clone())));
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    *workers.0.lock() = union.iter().map(|(id, url)| (*id, url.clone())).collect();
    plan.transform_up(|node| {
        let Some(scan) = node.downcast_ref::<ShardScanExec>() else { return Ok(Transformed::no(node)) };
        let servers = union.iter().map(|(id, url)| {
            let own = scan.servers().iter().find(|server| server.id == *id);
            ScanServer {
                id: *id,
                url: url.clone(),
                shards: own.map(|server| server.shards.clone()).unwrap_or_default(),
                also: own.map(|server| server.also.clone()).unwrap_or_default(),
            }
        });
        let stamped = scan.clone().with_servers(servers.collect());
        Ok(Transformed::yes(Arc::new(stamped) as Arc<dyn ExecutionPlan>))
    })
    .data()
}
