//! Redeems a ticket: decodes its plan and runs it, here alone or as the head of several servers.

use std::sync::Arc;

use arrow::{
    array::{RecordBatch, StringArray},
    datatypes::{DataType, Field, Schema, SchemaRef},
    ipc::convert::try_schema_from_ipc_buffer,
};
use datafusion::{
    common::tree_node::{Transformed, TransformedResult, TreeNode},
    execution::{SendableRecordBatchStream, SessionState, TaskContext},
    physical_plan::{ExecutionPlan, execute_stream, stream::RecordBatchStreamAdapter},
};
use datafusion_distributed::{DistributedCodec, DistributedExec, DistributedTaskContext, NetworkBoundaryExt, Stage};
use datafusion_proto::{
    bytes::physical_plan_from_bytes_with_proto_converter, physical_plan::DeduplicatingProtoConverter,
};
use drsdb_core::{
    Error, ErrorCode, Result,
    edge::EdgeConverter,
    query_session::QueryOptions,
    time_limit::TimeLimit,
    v1::{Ticket, ticket::Fragment},
};
use futures::{Stream, StreamExt, TryStreamExt, stream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use url::Url;
use uuid::Uuid;

use super::{QueryEngine, RunningQuery, messages::send_all, panics::Watch, report::report};

/// Batches between the query's runtime and the network.
const QUEUE: usize = 2;

/// Rows of one endpoint, in edge types.
#[derive(Debug)]
pub(super) struct Answer<S> {
    pub(super) schema: SchemaRef,
    pub(super) batches: S,
}

impl QueryEngine {
    /// Starts what an opened ticket stands for. Dropping the stream stops it.
    pub(super) fn redeem(
        self: &Arc<Self>,
        ticket: Ticket,
    ) -> Result<Answer<impl Stream<Item = Result<RecordBatch>> + use<>>> {
        let schema = try_schema_from_ipc_buffer(&ticket.schema).map_err(Error::from)?;
        let schema = Arc::new(schema);
        let (sender, receiver) = mpsc::channel(QUEUE);
        let engine = Arc::clone(self);
        let edge = Arc::clone(&schema);
        let running = self.start(&ticket.query_id);
        let over = running.token.clone().drop_guard();
        running.end_in_time(TimeLimit::resume(&ticket));
        let task = self.handle.spawn(async move {
            let done = tokio::select! {
                done = engine.run(ticket, edge, &sender, &running) => done,
                error = running.ended_early() => Err(error),
            };
            if let Err(error) = done {
                // What a query fails with that ran out of time is what its parts fail with once they are not wanted.
                let error = running.timed_out().unwrap_or(error);
                // A client that pulls nothing must not make it look as if the query still ran.
                drop(running);
                // Nobody is listening any more when this fails.
                let _ = sender.send(Err(error)).await;
            }
        });
        let guard = AbortOnDrop(task.abort_handle());
        // A task that panics sends no error: without this, its rows so far would look like all.
        let ended = stream::once(task).filter_map(|ended| async {
            ended.err().map(|error| Err(Error::internal(format!("the query failed: {error}"))))
        });
        let batches = ReceiverStream::new(receiver).chain(ended).map(move |batch| {
            let _ = (&guard, &over);
            batch
        });
        Ok(Answer { schema, batches: batches.boxed() })
    }

    async fn run(
        &self,
        ticket: Ticket,
        edge: SchemaRef,
        sender: &mpsc::Sender<Result<RecordBatch>>,
        query: &RunningQuery,
    ) -> Result<()> {
        let watch = Watch::begin();
        let options = ticket.options.as_ref().map(QueryOptions::from_proto).unwrap_or_default();
        let workers = ticket.workers.iter().map(|url| {
            Url::parse(url).map_err(|error| Error::internal(format!("a ticket names the server {url:?}: {error}")))
        });
        let workers = workers.collect::<Result<Vec<Url>>>()?;
        let (plan, task, distributed) = match &ticket.fragment {
            Some(Fragment::HeadPlan(plan)) => (plan, DistributedTaskContext { task_index: 0, task_count: 1 }, true),
            Some(Fragment::Task(task)) => {
                let context =
                    DistributedTaskContext { task_index: task.index as usize, task_count: task.count as usize };
                (&task.plan, context, false)
            }
            Some(Fragment::CatalogAnswer(_) | Fragment::Rows(_)) | None => {
                return Err(Error::new(ErrorCode::TicketInvalid, "this ticket is redeemed at an index server"));
            }
        };
        let session = self.head_session(&options, workers.clone(), task, query)?;
        let plan = decode_plan(plan, &session.task_ctx())?;
        let plan = if distributed { distribute(plan)? } else { plan };
        let planned = plan.schema();
        let stream = if ticket.analyze {
            analyze(plan, session, self.self_url.clone(), workers)
        } else {
            execute_stream(plan, session.task_ctx())?
        };
        let planned = if ticket.analyze { stream.schema() } else { planned };
        let converter = EdgeConverter::new(&planned, edge)?;
        send_all(stream, &converter, sender).await?;
        watch.check()
    }
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn decode_plan(bytes: &[u8], context: &TaskContext) -> Result<Arc<dyn ExecutionPlan>> {
    let codec = DistributedCodec::new_combined_with_user(context.session_config());
    let converter = DeduplicatingProtoConverter::default();
    Ok(physical_plan_from_bytes_with_proto_converter(bytes, context, &codec, &converter)?)
}

/// Makes a head's plan executable. A fresh query id on every stage lets one ticket be redeemed more than once.
fn distribute(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    let query_id = Uuid::from_u128(drsdb_core::ids::new_ulid().0);
    let mut boundaries = 0;
    let stamped = plan
        .transform_up(|node| {
            let Some(boundary) = node.as_network_boundary() else {
                return Ok(Transformed::no(node));
            };
            let Stage::Local(stage) = boundary.input_stage() else {
                return Ok(Transformed::no(node));
            };
            boundaries += 1;
            let mut stage = stage.clone();
            stage.query_id = query_id;
            let stamped: Arc<dyn ExecutionPlan> = boundary.with_input_stage(Stage::Local(stage))?;
            Ok(Transformed::yes(stamped))
        })
        .data()?;
    if boundaries == 0 {
        return Ok(stamped);
    }
    Ok(Arc::new(DistributedExec::new(stamped).with_metrics_collection(true)))
}

/// Runs the plan to its end, throws the rows away and reports what each part of it did.
fn analyze(
    plan: Arc<dyn ExecutionPlan>,
    session: SessionState,
    head: Url,
    workers: Vec<Url>,
) -> SendableRecordBatchStream {
    let schema = Arc::new(Schema::new(vec![
        Field::new("plan_type", DataType::Utf8, false),
        Field::new("plan", DataType::Utf8, false),
    ]));
    let report_schema = Arc::clone(&schema);
    let report = async move {
        let mut rows = 0usize;
        let started = std::time::Instant::now();
        let mut stream = execute_stream(Arc::clone(&plan), session.task_ctx())?;
        while let Some(batch) = stream.try_next().await? {
            rows += batch.num_rows();
        }
        let elapsed = started.elapsed();
        // The report of every server comes after the last row; a server that died must not hang it.
        let report = report(plan, &head, &workers);
        let (plan, servers) =
            tokio::time::timeout(std::time::Duration::from_secs(5), report).await.map_err(|_| {
                Error::new(ErrorCode::Unavailable, "not every server reported what it did").into_datafusion()
            })??;
        let kinds = StringArray::from(vec!["Plan with Metrics", "Servers", "Output Rows", "Duration"]);
        let texts = StringArray::from(vec![plan, servers, rows.to_string(), format!("{elapsed:?}")]);
        Ok(RecordBatch::try_new(report_schema, vec![Arc::new(kinds), Arc::new(texts)])?)
    };
    Box::pin(RecordBatchStreamAdapter::new(schema, stream::once(report).boxed()))
}
