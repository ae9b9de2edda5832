//! From a physical plan to tickets.
//!
//! ```text
//! DistributedExec                         the top only brings partitions together, and nothing below is exchanged:
//!   CoalescePartitionsExec                one ticket for each task of the stage, pulled side by side
//!     NetworkCoalesceExec
//!       └ stage: tasks = servers   ──▶    [stage, task 0] [stage, task 1] [stage, task 2]
//!
//! DistributedExec                         anything else: one ticket with the whole plan,
//!   SortPreservingMergeExec        ──▶    redeemed at the server that becomes the head
//!     NetworkCoalesceExec ...
//! ```

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use arrow::{datatypes::SchemaRef, ipc::writer::IpcWriteOptions};
use arrow_flight::{IpcMessage, SchemaAsIpc};
use bytes::Bytes;
use datafusion::{
    common::{
        Result as DfResult,
        tree_node::{TreeNode, TreeNodeRecursion},
    },
    datasource::{memory::MemorySourceConfig, source::DataSourceExec},
    physical_plan::{
        ExecutionPlan, StatisticsArgs, StatisticsContext, coalesce_partitions::CoalescePartitionsExec,
        empty::EmptyExec, memory::LazyMemoryExec, placeholder_row::PlaceholderRowExec,
    },
};
use datafusion_distributed::{DistributedCodec, DistributedExec, NetworkBoundaryExt, NetworkCoalesceExec, Stage};
use datafusion_proto::{
    bytes::physical_plan_to_bytes_with_proto_converter, physical_plan::DeduplicatingProtoConverter,
};
use drsdb_core::{
    Error, ErrorCode, Result, Ulid, WireError, ids,
    query_session::options_of,
    scan::ShardScanExec,
    security::{keys::SigningKey, ticket},
    v1::{self, ticket::Fragment},
};

use url::Url;

use super::{MAX_LOCATIONS, PlanSession, PlannedEndpoint, PlannedQuery, QueryContext, Source};
use crate::{catalog::CatalogState, replication::Suspects};

/// What is needed to turn one query's plan into tickets.
pub struct Cutter<'a> {
    pub(super) state: &'a CatalogState,
    pub(super) session: &'a PlanSession,
    pub(super) context: &'a QueryContext,
    pub(super) key: &'a SigningKey,
    pub(super) lifetime: Duration,
    pub(super) suspects: &'a Suspects,
}

impl Cutter<'_> {
    /// Tickets for the rows of `plan`, which clients see in the edge schema `schema`.
    pub fn cut(&self, plan: Arc<dyn ExecutionPlan>, schema: SchemaRef) -> Result<PlannedQuery> {
        let statistics = StatisticsContext::new().compute(plan.as_ref(), &StatisticsArgs::new());
        let rows_estimate = statistics.ok().and_then(|s| s.num_rows.get_value().map(|&rows| rows as u64));
        let query =
            |source| PlannedQuery { schema: Arc::clone(&schema), source, ordered: true, rows_estimate, resume: None };
        if is_catalog_only(&plan)? {
            return Ok(query(Source::Catalog));
        }
        let Some(distributed) = plan.downcast_ref::<DistributedExec>() else {
            return Ok(query(Source::Endpoints(vec![self.whole_plan(plan, &schema, false)?])));
        };
        let below = Arc::clone(distributed.children()[0]);
        if let Some((stage, tasks)) = divisible_stage(&below)? {
            let endpoints = self.one_for_each_task(&stage, tasks, &schema)?;
            return Ok(PlannedQuery { ordered: false, ..query(Source::Endpoints(endpoints)) });
        }
        Ok(query(Source::Endpoints(vec![self.whole_plan(below, &schema, false)?])))
    }

    /// One ticket that runs `plan` and answers with what each part of it did.
    pub fn analyze(&self, plan: Arc<dyn ExecutionPlan>, schema: SchemaRef) -> Result<PlannedQuery> {
        let below = match plan.downcast_ref::<DistributedExec>() {
            Some(distributed) => Arc::clone(distributed.children()[0]),
            None => plan,
        };
        let endpoint = self.whole_plan(below, &schema, true)?;
        let source = Source::Endpoints(vec![endpoint]);
        Ok(PlannedQuery { schema, source, ordered: true, rows_estimate: None, resume: None })
    }

    fn one_for_each_task(
        &self,
        stage: &Arc<dyn ExecutionPlan>,
        tasks: usize,
        schema: &SchemaRef,
    ) -> Result<Vec<PlannedEndpoint>> {
        let workers = self.session.workers.get();
        let plan = self.encode(Arc::clone(stage))?;
        let mut spare = MAX_LOCATIONS.saturating_sub(tasks);
        let mut listed: BTreeSet<Ulid> = workers.iter().map(|server| server.id).collect();
        (0..tasks)
            .map(|index| {
                let task = v1::TaskFragment { plan: plan.clone(), index: index as u32, count: tasks as u32 };
                let mut locations = vec![workers[index].url.to_string()];
                for (server, url) in &workers[index].also {
                    let new = !listed.contains(server);
                    if new && spare == 0 {
                        continue;
                    }
                    spare -= usize::from(new);
                    listed.insert(*server);
                    locations.push(url.to_string());
                }
                self.seal(Fragment::Task(task), schema, false, locations)
            })
            .collect()
    }

    fn whole_plan(&self, plan: Arc<dyn ExecutionPlan>, schema: &SchemaRef, analyze: bool) -> Result<PlannedEndpoint> {
        let workers = self.session.workers.get();
        let exchanges = plan.exists(|node| Ok(node.is_network_boundary()))?;
        let encoded = self.encode(plan)?;
        if exchanges {
            return self.seal(Fragment::HeadPlan(encoded), schema, analyze, self.heads());
        }
        let task = Fragment::Task(v1::TaskFragment { plan: encoded, index: 0, count: 1 });
        let locations = match workers.as_slice() {
            [] => self.heads(),
            [server] => {
                let urls = std::iter::once(&server.url).chain(server.also.iter().map(|(_, url)| url));
                urls.map(Url::to_string).take(MAX_LOCATIONS).collect()
            }
            more => {
                return Err(Error::internal(format!("a plan without exchange reads shards of {} servers", more.len())));
            }
        };
        self.seal(task, schema, analyze, locations)
    }

    /// Servers that can be the head of this query: those that hold some of its data come first, and queries take turns.
    fn heads(&self) -> Vec<String> {
        let mut near: Vec<String> = self.session.workers.get().iter().map(|server| server.url.to_string()).collect();
        let turn = (ids::new_ulid().0 % near.len().max(1) as u128) as usize;
        near.rotate_left(turn);
        let (far, silent): (Vec<_>, Vec<_>) = self
            .state
            .servers()
            .filter(|server| !near.contains(&with_slash(&server.url)))
            .partition(|server| !self.suspects.contains(server.id));
        let mut far: Vec<String> = far.into_iter().map(|server| server.url.clone()).collect();
        if near.is_empty() && !far.is_empty() {
            let turn = (ids::new_ulid().0 % far.len() as u128) as usize;
            far.rotate_left(turn);
        }
        near.extend(far);
        near.extend(silent.into_iter().map(|server| server.url.clone()));
        near.truncate(MAX_LOCATIONS);
        near
    }

    fn encode(&self, plan: Arc<dyn ExecutionPlan>) -> Result<Bytes> {
        let codec = DistributedCodec::new_combined_with_user(self.session.state.config());
        let converter = DeduplicatingProtoConverter::default();
        Ok(physical_plan_to_bytes_with_proto_converter(plan, &codec, &converter)?)
    }

    fn seal(
        &self,
        fragment: Fragment,
        schema: &SchemaRef,
        analyze: bool,
        locations: Vec<String>,
    ) -> Result<PlannedEndpoint> {
        if locations.is_empty() {
            return Err(WireError::new(ErrorCode::Unavailable, "no storage server has registered yet")
                .with_hint("start a storage server, or wait for it, then retry")
                .into());
        }
        let message: IpcMessage = SchemaAsIpc::new(schema, &IpcWriteOptions::default()).try_into()?;
        let ticket = v1::Ticket {
            query_id: ids::new_ulid().to_bytes().to_vec().into(),
            user: self.context.user.clone(),
            expires_unix_ms: ids::unix_ms() + self.lifetime.as_millis() as u64,
            snapshot: self.context.snapshot(self.state),
            workers: self.session.workers.get().iter().map(|server| server.url.to_string()).collect(),
            options: Some(options_of(self.session.state.config()).to_proto()),
            analyze,
            schema: message.0,
            fragment: Some(fragment),
            time_limit: self.context.limit.to_proto(),
        };
        Ok(PlannedEndpoint { ticket: ticket::seal(self.key, ticket), locations })
    }
}

fn with_slash(url: &str) -> String {
    if url.ends_with('/') { url.to_owned() } else { format!("{url}/") }
}

/// The stage whose tasks can be pulled one by one, if the plan's top is nothing but that.
fn divisible_stage(plan: &Arc<dyn ExecutionPlan>) -> Result<Option<(Arc<dyn ExecutionPlan>, usize)>> {
    let Some(top) = plan.downcast_ref::<CoalescePartitionsExec>() else { return Ok(None) };
    if top.fetch().is_some() {
        return Ok(None);
    }
    let Some(coalesce) = top.input().downcast_ref::<NetworkCoalesceExec>() else { return Ok(None) };
    let Some(boundary) = top.input().as_network_boundary() else { return Ok(None) };
    if coalesce.fetch().is_some() {
        return Ok(None);
    }
    let Stage::Local(stage) = boundary.input_stage() else { return Ok(None) };
    let exchanged_below = stage.plan.exists(|node| Ok(node.is_network_boundary()))?;
    let reads_shards = reads_tables(&stage.plan)?;
    if exchanged_below || !reads_shards || stage.tasks > MAX_LOCATIONS || stage.plan.fetch().is_some() {
        return Ok(None);
    }
    Ok(Some((Arc::clone(&stage.plan), stage.tasks)))
}

/// Whether a plan reads rows of tables.
fn reads_tables(plan: &Arc<dyn ExecutionPlan>) -> Result<bool> {
    Ok(plan.exists(|node| Ok(node.is::<ShardScanExec>()))?)
}

/// Whether a plan's rows come from nothing but the statement's text.
pub fn is_constant_only(plan: &Arc<dyn ExecutionPlan>) -> Result<bool> {
    let varies = |node: &Arc<dyn ExecutionPlan>| node.children().is_empty() && !is_constant(node);
    Ok(!plan.exists(|node| Ok(varies(node)))?)
}

/// Whether an index server computes a plan's rows: they come from the catalog, or from nothing but the statement's text.
pub fn is_catalog_only(plan: &Arc<dyn ExecutionPlan>) -> Result<bool> {
    let (mut tables, mut catalog, mut generators) = (false, false, false);
    plan.apply(|node| -> DfResult<TreeNodeRecursion> {
        if node.is::<ShardScanExec>() {
            tables = true;
        } else if node.is::<LazyMemoryExec>() {
            generators = true;
        } else if node.children().is_empty() && !is_constant(node) {
            catalog = true;
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    if tables && catalog {
        return Err(WireError::new(
            ErrorCode::Unsupported,
            "a query that reads tables cannot use information_schema or WITH RECURSIVE as well",
        )
        .with_hint("run two queries, one after the other")
        .into());
    }
    Ok(catalog || !(tables || generators))
}

/// Whether a leaf is part of the statement's text.
fn is_constant(leaf: &Arc<dyn ExecutionPlan>) -> bool {
    leaf.is::<EmptyExec>()
        || leaf.is::<PlaceholderRowExec>()
        || leaf.is_network_boundary()
        || leaf
            .downcast_ref::<DataSourceExec>()
            .is_some_and(|source| source.data_source().downcast_ref::<MemorySourceConfig>().is_some())
}
