//! Gives all leaves of a plan the same list of servers.
//!
//! A leaf comes with the replicas of its shards, and [`choose`] picks. A stage runs task `i` on server `i`, and may read
//! several tables; so every leaf lists the union of the servers that any leaf needs, with no shards where it has none. A
//! query that needs one server only then has stages of one task, and no exchange at all.

use std::{collections::BTreeMap, sync::Arc};

use arrow::datatypes::SchemaRef;
use datafusion::{
    common::{
        Result as DfResult,
        tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion},
    },
    physical_plan::ExecutionPlan,
};
use datafusion_distributed::WorkerResolver;
use drsdb_core::{
    Error, Ulid, ids,
    scan::{ScanServer, ShardScanExec},
};
use parking_lot::Mutex;
use url::Url;

use super::choose_replicas::{ShardToRead, choose};
use crate::{catalog::CatalogState, replication::Suspects};

/// One server of the query that is being planned.
#[derive(Debug, Clone)]
pub struct QueryServer {
    /// The server.
    pub id: Ulid,
    /// Where it listens.
    pub url: Url,
    /// Servers that can run its tasks as well.
    pub also: Vec<(Ulid, Url)>,
}

/// The servers of the query that is being planned; datafusion-distributed asks it for the size of the cluster.
#[derive(Debug, Clone, Default)]
pub struct Workers(Arc<Mutex<Vec<QueryServer>>>);

impl Workers {
    /// The servers in task order; empty when the query reads no shards.
    pub fn get(&self) -> Vec<QueryServer> {
        self.0.lock().clone()
    }
}

impl WorkerResolver for Workers {
    fn get_urls(&self) -> DfResult<Vec<Url>> {
        Ok(self.0.lock().iter().map(|server| server.url.clone()).collect())
    }
}

/// Knows the servers that leaves can be stamped with.
#[derive(Debug, Clone)]
pub struct Stamper {
    pub(super) state: Arc<CatalogState>,
    pub(super) suspects: Suspects,
    /// Where the chosen servers are noted.
    pub(super) workers: Workers,
}

impl Stamper {
    /// Rewrites the leaves of `plan` and notes the servers in `workers`.
    pub fn stamp(&self, plan: Arc<dyn ExecutionPlan>) -> DfResult<Arc<dyn ExecutionPlan>> {
        let (mut leaves, mut bytes) = (Vec::new(), 0u64);
        plan.apply(|node| {
            if let Some(scan) = node.downcast_ref::<ShardScanExec>() {
                leaves.push(self.shards_of(scan));
                bytes = bytes.saturating_add(bytes_of(scan));
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
        let turn = ids::new_ulid().0 as usize;
        let choice = choose(&leaves, bytes, |server| self.suspects.contains(server), turn);
        let mut urls = BTreeMap::new();
        for server in choice.servers.iter().flat_map(|server| server.also.iter().chain([&server.id])) {
            urls.insert(*server, self.state.address_of(*server).map_err(Error::into_datafusion)?);
        }
        let with_url = |server: &Ulid| (*server, urls[server].clone());
        let query_servers = choice.servers.iter().map(|server| QueryServer {
            id: server.id,
            url: urls[&server.id].clone(),
            also: server.also.iter().map(with_url).collect(),
        });
        *self.workers.0.lock() = query_servers.collect();
        // In the order in which they were found.
        let mut leaf = 0;
        plan.transform_down(|node| {
            let Some(scan) = node.downcast_ref::<ShardScanExec>() else { return Ok(Transformed::no(node)) };
            let servers = choice.servers.iter().map(|server| ScanServer {
                id: server.id,
                url: urls[&server.id].clone(),
                shards: server.shards[leaf].clone(),
                also: server.also.clone(),
            });
            let stamped = scan.clone().with_servers(servers.collect());
            leaf += 1;
            Ok(Transformed::yes(Arc::new(stamped) as Arc<dyn ExecutionPlan>))
        })
        .data()
    }

    /// The shards of a leaf that no servers were chosen for yet.
    fn shards_of(&self, scan: &ShardScanExec) -> Vec<ShardToRead> {
        let table = self.state.table(scan.table().id);
        let rows = |shard: u32| table.and_then(|table| table.shards.get(shard as usize)).map_or(0, |s| s.stats.rows);
        let groups = scan.servers().iter().flat_map(|group| {
            let replicas: Vec<Ulid> = std::iter::once(group.id).chain(group.also.iter().copied()).collect();
            let shard = move |&shard: &u32| ShardToRead { shard, replicas: replicas.clone(), rows: rows(shard) };
            group.shards.iter().map(shard)
        });
        groups.collect()
    }
}

/// How much a leaf reads in memory, about.
fn bytes_of(scan: &ShardScanExec) -> u64 {
    /// A short text, or its view.
    const VARIABLE_WIDTH: usize = 24;
    let schema: SchemaRef = scan.schema();
    let widths = schema.fields().iter().map(|field| field.data_type().primitive_width().unwrap_or(VARIABLE_WIDTH));
    let width: usize = widths.sum();
    let rows = scan.statistics().num_rows.get_value().copied().unwrap_or(usize::MAX);
    rows.saturating_mul(width.max(1)) as u64
}
