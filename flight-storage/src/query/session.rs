//! The sessions in which plans are decoded and run: one for a head, one for each stage that another head sends.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::{
    common::{
        extensions_options,
        tree_node::{TreeNode, TreeNodeRecursion},
    },
    config::ConfigExtension,
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
    Error, Result, carried_status,
    checked_arithmetic::register_functions,
    net::{ChannelPool, name_server},
    query_session::{QueryOptions, apply_options, options_of, session_config, session_like},
    scan::{Scanner, ShardScanCodec, ShardScanExec},
    wanted::register_wanted,
};
use http::Response;
use http_body_util::BodyExt;
use parking_lot::Mutex;
use tonic::{Status, body::Body};
use tower::ServiceExt;
use url::Url;

use super::{QueryEngine, Running, RunningQuery, worker};

/// Builds the session of a stage that another head sent.
pub(super) struct WorkerSession {
    pub(super) scanner: Scanner,
    pub(super) running: Arc<Mutex<Running>>,
    pub(super) channels: ChannelPool,
}

#[async_trait]
impl WorkerSessionBuilder for WorkerSession {
    async fn build_session_state(&self, context: WorkerQueryContext) -> Result<SessionState, DataFusionError> {
        let mut builder = context.builder;
        let config = builder.config().get_or_insert_default();
        config.set_distributed_option_extension_from_headers::<QueryOptions>(&context.headers)?;
        config.set_distributed_option_extension_from_headers::<QueryIdentity>(&context.headers)?;
        let options = options_of(config);
        apply_options(config.options_mut(), &options);
        config.set_distributed_user_codec(ShardScanCodec);
        config.set_distributed_channel_resolver(Channels(self.channels.clone()));
        config.set_extension(Arc::new(self.scanner.clone()));
        // A stage of another head is over when its call is; one of a head in this process, when the query is.
        let over = worker::current_call().or_else(|| {
            let identity = config.options().extensions.get::<QueryIdentity>()?;
            self.running.lock().token(identity.number)
        });
        let mut state = builder.build();
        register_functions(&mut state)?;
        register_wanted(&mut state, over.unwrap_or_default())?;
        Ok(state)
    }
}

extensions_options! {
    /// Which query of its head a stage belongs to.
    pub(super) struct QueryIdentity {
        /// Its number on the head.
        pub number: u64, default = 0
    }
}

impl ConfigExtension for QueryIdentity {
    const PREFIX: &'static str = "drsdb_query";
}

impl QueryEngine {
    /// The session of a head: it knows the servers of the query, and routes stages to them.
    pub(super) fn head_session(
        &self,
        options: &QueryOptions,
        workers: Vec<Url>,
        task: DistributedTaskContext,
        query: &RunningQuery,
    ) -> Result<SessionState> {
        let head = self.self_url.clone();
        let mut config = session_config(options)?
            .with_distributed_option_extension(QueryIdentity { number: query.number })
            .with_distributed_channel_resolver(Channels(self.channels.clone()))
            .with_distributed_worker_resolver(QueryWorkers(workers))
            .with_distributed_local_worker_context(self.worker.to_local_worker_context(self.self_url.clone()))
            .with_distributed_route_tasks_handler(move |event: RouteTasksEvent<'_>| Some(route_tasks(&event, &head)));
        config.set_extension(Arc::new(self.scanner.clone()));
        config.set_extension(Arc::new(task));
        let mut state = session_like(self.all_functions()?, config)?;
        register_wanted(&mut state, query.token.clone())?;
        Ok(state)
    }

    /// What all sessions have in common.
    fn all_functions(&self) -> Result<&SessionState> {
        if let Some(all) = self.functions.get() {
            return Ok(all);
        }
        let runtime = Arc::clone(&self.runtime_env);
        let mut state = SessionStateBuilder::new().with_runtime_env(runtime).with_default_features().build();
        register_functions(&mut state)?;
        Ok(self.functions.get_or_init(|| state))
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
fn route_tasks(event: &RouteTasksEvent<'_>, head: &Url) -> DfResult<RouteTasksEventResponse> {
    let config = event.task_ctx.session_config();
    let workers = datafusion_distributed::get_distributed_worker_resolver(config)?.get_urls()?;
    servers_of_stage(event.plan, event.task_count, head, &workers).map(RouteTasksEventResponse::new)
}

/// The servers of a stage's tasks.
pub(super) fn servers_of_stage(
    plan: &Arc<dyn ExecutionPlan>,
    tasks: usize,
    head: &Url,
    workers: &[Url],
) -> DfResult<Vec<Url>> {
    let mut holders: Option<Vec<Url>> = None;
    plan.apply(|node: &Arc<dyn ExecutionPlan>| {
        if node.is_network_boundary() {
            return Ok(TreeNodeRecursion::Jump);
        }
        if let Some(scan) = node.downcast_ref::<ShardScanExec>() {
            holders = Some(scan.servers().iter().map(|server| server.url.clone()).collect());
            return Ok(TreeNodeRecursion::Stop);
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    match holders {
        Some(urls) if urls.len() == tasks => Ok(urls),
        Some(urls) => {
            let servers = urls.len();
            Err(Error::internal(format!("a stage of {tasks} tasks reads shards of {servers} servers"))
                .into_datafusion())
        }
        None if tasks == 1 => Ok(vec![head.clone()]),
        None => Ok(workers.iter().cycle().take(tasks).cloned().collect()),
    }
}

/// Connections to other storage servers.
struct Channels(ChannelPool);

#[async_trait]
impl ChannelResolver for Channels {
    async fn get_worker_client_for_url(&self, url: &Url) -> Result<Box<dyn WorkerChannel>, DataFusionError> {
        let channel = self.0.channel(url).map_err(Error::into_datafusion)?;
        let server = Arc::new(url.clone());
        // What fails in the transport does not say which server it was: this does.
        let named = channel.map_result(move |answer: Result<Response<Body>, tonic::transport::Error>| {
            let server = Arc::clone(&server);
            Ok(match answer {
                Ok(response) => response.map(|body| Body::new(body.map_err(move |status| broken(status, &server)))),
                Err(error) => broken(Status::from_error(Box::new(error)), &server).into_http(),
            })
        });
        Ok(create_worker_client(BoxCloneSyncChannel::new(named)))
    }
}

fn broken(status: Status, server: &Url) -> Status {
    carried_status(name_server(status, server).to_wire())
}
