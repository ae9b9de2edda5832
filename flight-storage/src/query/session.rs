//! The sessions in which plans are decoded and run: one for a head, one for each stage that another head sends.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::{
    common::tree_node::{TreeNode, TreeNodeRecursion},
    error::{DataFusionError, Result as DfResult},
    execution::{SessionState, SessionStateBuilder},
    physical_plan::ExecutionPlan,
};
use datafusion_distributed::{
    ChannelResolver, DistributedExt, DistributedTaskContext, NetworkBoundaryExt, RouteTasksEvent,
    RouteTasksEventResponse, WorkerChannel, WorkerQueryContext, WorkerResolver, WorkerSessionBuilder,
    grpc::{BoxCloneSyncChannel, create_worker_client},
};
use drsdb_core::{
    Error, Result,
    net::ChannelPool,
    query_session::{QueryOptions, apply_options, options_of, session_config},
    scan::{Scanner, ShardScanCodec, ShardScanExec},
};
use url::Url;

use super::QueryEngine;

/// Builds the session of a stage that another head sent.
pub(super) struct WorkerSession {
    pub(super) scanner: Scanner,
    pub(super) channels: ChannelPool,
}

#[async_trait]
impl WorkerSessionBuilder for WorkerSession {
    async fn build_session_state(&self, context: WorkerQueryContext) -> Result<SessionState, DataFusionError> {
        let mut builder = context.builder;
        let config = builder.config().get_or_insert_default();
        config.set_distributed_option_extension_from_headers::<QueryOptions>(&context.headers)?;
        let options = options_of(config);
        apply_options(config.options_mut(), &options);
        config.set_distributed_user_codec(ShardScanCodec);
        config.set_distributed_channel_resolver(Channels(self.channels.clone()));
        config.set_extension(Arc::new(self.scanner.clone()));
        Ok(builder.build())
    }
}

impl QueryEngine {
    /// The session of a head: it knows the servers of the query, and routes stages to them.
    pub(super) fn head_session(
        &self,
        options: &QueryOptions,
        workers: Vec<Url>,
        task: DistributedTaskContext,
    ) -> Result<SessionState> {
        let mut config = session_config(options)?
            .with_distributed_channel_resolver(Channels(self.channels.clone()))
            .with_distributed_worker_resolver(QueryWorkers(workers))
            .with_distributed_local_worker_context(self.worker.to_local_worker_context(self.self_url.clone()))
            .with_distributed_route_tasks_handler(route_tasks);
        config.set_extension(Arc::new(self.scanner.clone()));
        config.set_extension(Arc::new(task));
        Ok(SessionStateBuilder::new()
            .with_config(config)
            .with_runtime_env(Arc::clone(&self.runtime_env))
            .with_default_features()
            .build())
    }
}

/// The storage servers of one query, in task order.
struct QueryWorkers(Vec<Url>);

impl WorkerResolver for QueryWorkers {
    fn get_urls(&self) -> DfResult<Vec<Url>> {
        Ok(self.0.clone())
    }
}

/// Stages that read shards go to the servers that hold them; the others are spread in order, and a single task stays on
/// the head, so that its result needs no further hop.
fn route_tasks(event: RouteTasksEvent) -> Option<DfResult<RouteTasksEventResponse>> {
    let mut leaf_urls = None;
    let found = event.plan.apply(|node: &Arc<dyn ExecutionPlan>| {
        if node.is_network_boundary() {
            return Ok(TreeNodeRecursion::Jump);
        }
        if let Some(scan) = node.downcast_ref::<ShardScanExec>() {
            leaf_urls = Some(scan.servers().iter().map(|server| server.url.clone()).collect::<Vec<_>>());
            return Ok(TreeNodeRecursion::Stop);
        }
        Ok(TreeNodeRecursion::Continue)
    });
    if let Err(error) = found {
        return Some(Err(error));
    }
    let urls = match leaf_urls {
        Some(urls) if urls.len() == event.task_count => urls,
        Some(urls) => {
            return Some(Err(Error::internal(format!(
                "a stage of {} tasks reads shards of {} servers",
                event.task_count,
                urls.len()
            ))
            .into_datafusion()));
        }
        None if event.task_count == 1 => return None,
        None => {
            let workers = match datafusion_distributed::get_distributed_worker_resolver(event.task_ctx.session_config())
                .and_then(|resolver| resolver.get_urls())
            {
                Ok(workers) if !workers.is_empty() => workers,
                Ok(_) => return Some(Err(Error::internal("a ticket without servers").into_datafusion())),
                Err(error) => return Some(Err(error)),
            };
            (0..event.task_count).map(|task| workers[task % workers.len()].clone()).collect()
        }
    };
    Some(Ok(RouteTasksEventResponse::new(urls)))
}

/// Connections to other storage servers.
struct Channels(ChannelPool);

#[async_trait]
impl ChannelResolver for Channels {
    async fn get_worker_client_for_url(&self, url: &Url) -> Result<Box<dyn WorkerChannel>, DataFusionError> {
        let channel = self.0.channel(url).map_err(Error::into_datafusion)?;
        Ok(create_worker_client(BoxCloneSyncChannel::new(channel)))
    }
}
