//! A result as a stream of record batches.
//!
//! ```text
//!   endpoint 0 --pull--> |batch|batch|          \   unordered: one queue, one budget; batches as they come
//!   endpoint 1 --pull--> |batch|                 >  ordered: a queue and a share of the budget for each endpoint;
//!   endpoint 2 --pull--> |batch|batch|batch|    /   queue 0 is emptied first, the others fill up meanwhile
//! ```
//!
//! The budget is in bytes: a pull that finds no room waits, stops reading, and HTTP/2 stops its server.
//!
//! While no row was handed out, a result that no server can give is planned again and pulled anew: nothing of the first
//! attempt is kept. After that, a result whose order can be repeated goes on: it is planned again at the same snapshot, and
//! as many rows of it are passed over as were handed out. Of any other result, the failure is final, and says so; outside of
//! a transaction the whole statement may be run again.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use arrow::{
    array::RecordBatch,
    datatypes::{Schema, SchemaRef},
};
use arrow_flight::{FlightEndpoint, Ticket};
use bytes::Bytes;
use drsdb_proto::{ErrorCode, ids::Ulid, v1};
use futures::{FutureExt, Stream};
use parking_lot::Mutex;
use prost::Message;
use tokio::{
    sync::{
        Semaphore,
        mpsc::{UnboundedReceiver, unbounded_channel},
    },
    task::{JoinHandle, JoinSet},
};
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};
use url::Url;

use crate::{
    Client, Error, Result,
    calls::wait,
    client::{Again, Planned, Resume},
    error::Failure,
    failover::{Replans, is_of_servers},
    pull::{BUFFER_UNIT_BYTES, Delivery, Pull, locations},
};

/// The rows of one result. Dropping it cancels what is still running.
pub struct QueryStream {
    client: Client,
    schema: SchemaRef,
    rows_estimate: Option<u64>,
    write_result: crate::WriteResult,
    pulling: Box<Pulling>,
    in_transaction: bool,
    /// When its rows were first pulled.
    begun: Instant,
    /// The command, if it may be planned again.
    again: Option<Bytes>,
    /// How often it was.
    replans: Replans,
    planning: Option<JoinHandle<Result<Planned>>>,
    /// Where it can go on when it has begun.
    resume: Option<Resume>,
    /// How many rows of it have left.
    handed_out: u64,
    /// How many rows of the current plan are still to be passed over, since they have left already.
    passing_over: u64,
    ended: bool,
    cancel: CancellationToken,
    cancelled: Pin<Box<WaitForCancellationFutureOwned>>,
}

/// The pulls of one plan.
struct Pulling {
    ordered: bool,
    query_id: Option<Ulid>,
    statistics: Arc<Mutex<Vec<EndpointStatistics>>>,
    /// Ordered: one queue an endpoint, in order. Otherwise one for all, which says `Finished` once an endpoint.
    queues: VecDeque<UnboundedReceiver<Delivery>>,
    unfinished: usize,
    /// Stops the pulls when this goes.
    _stop: DropGuard,
}

/// Cancels a [`QueryStream`] from elsewhere: the stream ends with an error of code `cancelled`.
#[derive(Debug, Clone)]
pub struct CancelHandle(CancellationToken);

impl CancelHandle {
    /// Stops all pulls; the servers stop working on the query.
    pub fn cancel(&self) {
        self.0.cancel();
    }
}

/// A result in memory.
#[derive(Debug, Clone)]
pub struct QueryResult {
    /// The columns.
    pub schema: SchemaRef,
    /// The rows.
    pub batches: Vec<RecordBatch>,
    /// How it was pulled.
    pub statistics: QueryStatistics,
}

impl QueryResult {
    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.batches.iter().map(RecordBatch::num_rows).sum()
    }
}

/// How a result was pulled, so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QueryStatistics {
    /// Each endpoint, in the order of the plan.
    pub endpoints: Vec<EndpointStatistics>,
}

impl QueryStatistics {
    /// Rows of all endpoints.
    pub fn rows(&self) -> u64 {
        self.endpoints.iter().map(|endpoint| endpoint.rows).sum()
    }

    /// Bytes of all endpoints, as Arrow data on the wire before encryption.
    pub fn bytes(&self) -> u64 {
        self.endpoints.iter().map(|endpoint| endpoint.bytes).sum()
    }
}

/// How one endpoint was pulled, so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EndpointStatistics {
    /// The server that it was pulled from, or is; empty before it began.
    pub server: String,
    /// How many of its locations were asked.
    pub servers_asked: usize,
    /// Rows received.
    pub rows: u64,
    /// Batches received.
    pub batches: u64,
    /// Bytes received, as Arrow data on the wire before encryption.
    pub bytes: u64,
    /// From the start of the pull to its end, waits for the consumer included; zero before the end.
    pub elapsed: Duration,
}

impl Pulling {
    fn start(client: &Client, schema: &SchemaRef, planned: &Planned, cancel: &CancellationToken) -> Result<Self> {
        let options = &client.inner.options;
        let Planned { server, info, .. } = planned;
        // A statement without columns has run already: its endpoint, there for clients that insist, has nothing.
        let endpoints = if schema.fields().is_empty() { &[][..] } else { &info.endpoint[..] };
        let count = endpoints.len();
        let statistics =
            Arc::new(Mutex::new(vec![EndpointStatistics { servers_asked: 1, ..Default::default() }; count]));
        let all_units = u32::try_from(options.buffer_bytes.div_ceil(BUFFER_UNIT_BYTES)).unwrap_or(u32::MAX >> 4);
        let parallel = options.parallel_endpoints.min(count.max(1));
        let ordered = info.ordered && count > 1;
        let room_units = if ordered { (all_units / parallel as u32).max(1) } else { all_units };

        let mut queues = VecDeque::new();
        let mut pulls = Vec::with_capacity(count);
        let shared = (!ordered).then(|| {
            let (sender, receiver) = unbounded_channel();
            queues.push_back(receiver);
            (sender, Arc::new(Semaphore::new(room_units as usize)))
        });
        for (number, endpoint) in endpoints.iter().enumerate() {
            let (deliveries, room) = shared.clone().unwrap_or_else(|| {
                let (sender, receiver) = unbounded_channel();
                queues.push_back(receiver);
                (sender, Arc::new(Semaphore::new(room_units as usize)))
            });
            pulls.push(Pull {
                client: client.clone(),
                number,
                ticket: ticket_of(endpoint, server)?,
                locations: locations(endpoint, server)?,
                schema: schema.clone(),
                deliveries,
                room,
                room_units,
                statistics: statistics.clone(),
            });
        }

        let stop = cancel.child_token();
        tokio::spawn(drive(pulls, parallel, stop.clone()));
        Ok(Pulling {
            ordered: info.ordered,
            query_id: endpoints.first().and_then(query_id_of),
            statistics,
            queues,
            unfinished: count,
            _stop: stop.drop_guard(),
        })
    }

    /// The next batch; `None`: all of them have come.
    fn poll_batch(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<RecordBatch>>> {
        while self.unfinished > 0 {
            let queue = self.queues.front_mut().expect("a queue is there until the last endpoint has finished");
            match ready!(queue.poll_recv(cx)) {
                // The permit ends here: what the consumer holds is the consumer's memory.
                Some(Delivery::Batch(batch, _permit)) => return Poll::Ready(Ok(Some(batch))),
                Some(Delivery::Finished) => {
                    self.unfinished -= 1;
                    if self.ordered && self.unfinished > 0 {
                        self.queues.pop_front();
                    }
                }
                Some(Delivery::Failed(error)) => return Poll::Ready(Err(error)),
                // Every pull has a last word; a queue that closes without it means that a task died.
                None => {
                    let error = Error::new(ErrorCode::Internal, "a part of the result ended without saying so");
                    return Poll::Ready(Err(error));
                }
            }
        }
        Poll::Ready(Ok(None))
    }
}

impl QueryStream {
    pub(crate) fn start(client: Client, planned: Planned) -> Result<Self> {
        let schema = schema_of(&planned)?;
        let cancel = CancellationToken::new();
        let pulling = Box::new(Pulling::start(&client, &schema, &planned, &cancel)?);
        Ok(QueryStream {
            client,
            schema,
            rows_estimate: u64::try_from(planned.info.total_records).ok(),
            write_result: crate::WriteResult::decode(&planned.info.app_metadata),
            ended: pulling.unfinished == 0,
            pulling,
            resume: planned.resume(),
            in_transaction: planned.in_transaction,
            begun: Instant::now(),
            again: planned.again,
            replans: Replans::default(),
            planning: None,
            handed_out: 0,
            passing_over: 0,
            cancelled: Box::pin(cancel.clone().cancelled_owned()),
            cancel,
        })
    }

    /// The columns of every batch.
    pub fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    /// Whether the rows come in the order that the statement asked for.
    pub fn ordered(&self) -> bool {
        self.pulling.ordered
    }

    /// The query's id, as the servers' logs name it.
    pub fn query_id(&self) -> Option<Ulid> {
        self.pulling.query_id
    }

    /// How many rows the planner expects.
    pub fn rows_estimate(&self) -> Option<u64> {
        self.rows_estimate
    }

    /// What a statement without rows said; zeros for a query.
    pub fn write_result(&self) -> crate::WriteResult {
        self.write_result
    }

    /// How much was pulled so far, and from where.
    pub fn statistics(&self) -> QueryStatistics {
        QueryStatistics { endpoints: self.pulling.statistics.lock().clone() }
    }

    /// Cancels this stream from elsewhere.
    pub fn cancel_handle(&self) -> CancelHandle {
        CancelHandle(self.cancel.clone())
    }

    /// Stops all pulls; the servers stop working on the query.
    pub fn cancel(self) {
        self.cancel.cancel();
    }

    /// Takes all rows into memory.
    pub async fn read_all(mut self) -> Result<QueryResult> {
        let mut batches = Vec::new();
        loop {
            let plans = self.replans.total();
            // What is only here was handed out to nobody yet: it neither counts as seen nor as progress.
            let batch = std::future::poll_fn(|cx| self.poll_batch(cx)).await?;
            if plans != self.replans.total() {
                batches.clear();
            }
            match batch {
                Some(batch) => batches.push(batch),
                None => return Ok(QueryResult { schema: self.schema(), batches, statistics: self.statistics() }),
            }
        }
    }

    /// The next batch. Whoever hands it out notes that.
    fn poll_batch(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<RecordBatch>>> {
        while !self.ended {
            if self.cancelled.as_mut().poll(cx).is_ready() {
                return self.failed(Error::new(ErrorCode::Cancelled, "the query was cancelled"));
            }
            if let Some(planning) = &mut self.planning {
                let planned = ready!(planning.poll_unpin(cx));
                self.planning = None;
                let planned = planned.unwrap_or_else(|panic| Err(Error::new(ErrorCode::Internal, panic.to_string())));
                match planned.map(|planned| self.restart(&planned)) {
                    Ok(Ok(())) => {}
                    Err(error) if self.may_plan_again(&error) => continue,
                    Ok(Err(error)) | Err(error) => return self.failed(error),
                }
            }
            match ready!(self.pulling.poll_batch(cx)) {
                Ok(Some(batch)) => {
                    if let Some(batch) = self.pass_over(batch) {
                        return Poll::Ready(Ok(Some(batch)));
                    }
                }
                Ok(None) if self.passing_over > 0 => {
                    let error =
                        Error::new(ErrorCode::Internal, "the rest of the result has fewer rows than the result");
                    return self.failed(error);
                }
                Ok(None) => self.ended = true,
                Err(error) if self.may_plan_again(&error) => {}
                Err(error) => return self.failed(error),
            }
        }
        Poll::Ready(Ok(None))
    }

    fn failed(&mut self, error: Error) -> Poll<Result<Option<RecordBatch>>> {
        self.ended = true;
        self.cancel.cancel();
        Poll::Ready(Err(self.explained(error)))
    }

    /// What the consumer is told. Of what a transaction reads, nobody here knows whether the transaction is committed by now:
    /// that nothing took effect is not said of it.
    fn explained(&self, error: Error) -> Error {
        if self.again.is_none() || !is_of_servers(error.code()) {
            return error;
        }
        let goes_on = self.handed_out == 0 || self.resume.is_some();
        let error = if goes_on { error } else { error.cannot_go_on() };
        if self.in_transaction { error } else { error.of_a_query() }
    }

    /// What of a batch has not left yet, if anything.
    fn pass_over(&mut self, batch: RecordBatch) -> Option<RecordBatch> {
        let rows = batch.num_rows() as u64;
        let passed_over = self.passing_over.min(rows);
        self.passing_over -= passed_over;
        (passed_over < rows).then(|| batch.slice(passed_over as usize, (rows - passed_over) as usize))
    }

    /// Begins to plan the query again, where that may help: from its start while nobody has seen a row of it, then so that
    /// it goes on.
    fn may_plan_again(&mut self, error: &Error) -> bool {
        let resume = self.resume_if_begun();
        let Some(command) = self.again.as_ref().filter(|_| self.handed_out == 0 || resume.is_some()) else {
            return false;
        };
        let Some(pause) = self.replans.failed(error.code()) else { return false };
        tracing::debug!(%error, rows = self.handed_out, "the query is planned again");
        let (client, command) = (self.client.clone(), command.clone());
        let again = Again { resume, begun: self.begun };
        self.planning = Some(tokio::spawn(async move {
            wait(pause).await;
            client.plan_again(command, again).await
        }));
        true
    }

    fn resume_if_begun(&self) -> Option<Resume> {
        self.resume.clone().filter(|_| self.handed_out > 0)
    }

    fn restart(&mut self, planned: &Planned) -> Result<()> {
        if schema_of(planned)? != self.schema {
            return Err(Error::new(ErrorCode::Unavailable, "the query was planned again and has other columns now"));
        }
        let resume = planned.resume();
        // A server that does not know what it was asked for has planned another result.
        if self.handed_out > 0 && resume != self.resume {
            return Err(Error::new(
                ErrorCode::Conflict,
                "the query was planned again and would not go on where it was",
            ));
        }
        self.resume = resume;
        self.passing_over = self.handed_out;
        *self.pulling = Pulling::start(&self.client, &self.schema, planned, &self.cancel)?;
        Ok(())
    }
}

impl Stream for QueryStream {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let polled = ready!(self.poll_batch(cx));
        if let Ok(Some(batch)) = &polled {
            self.handed_out += batch.num_rows() as u64;
            self.replans.helped();
        }
        Poll::Ready(polled.transpose())
    }
}

impl Drop for QueryStream {
    fn drop(&mut self) {
        if let Some(planning) = &self.planning {
            planning.abort();
        }
    }
}

/// Runs the pulls, so many at once, in order; stops them when `cancel` says so.
async fn drive(pulls: Vec<Pull>, parallel: usize, cancel: CancellationToken) {
    let mut running = JoinSet::new();
    let mut waiting = pulls.into_iter();
    let mut next = waiting.next();
    loop {
        if running.len() < parallel
            && let Some(pull) = next.take()
        {
            running.spawn(pull.run());
            next = waiting.next();
            continue;
        }
        tokio::select! {
            // Dropping the set aborts every pull, and an aborted pull resets its HTTP/2 stream.
            () = cancel.cancelled() => return,
            finished = running.join_next() => if finished.is_none() { return },
        }
    }
}

fn schema_of(planned: &Planned) -> Result<SchemaRef> {
    let Planned { server, info, .. } = planned;
    if info.schema.is_empty() {
        return Ok(Arc::new(Schema::empty()));
    }
    let schema = info.clone().try_decode_schema();
    schema.map(Arc::new).map_err(|error| Failure::broken_data(&format!("a result's schema: {error}"), server).error)
}

fn ticket_of(endpoint: &FlightEndpoint, server: &Url) -> Result<Ticket> {
    endpoint.ticket.clone().ok_or_else(|| Failure::broken_data("an endpoint without a ticket", server).error)
}

/// Tickets are opaque, but their id is worth showing when it can be seen.
fn query_id_of(endpoint: &FlightEndpoint) -> Option<Ulid> {
    let signed = v1::Signed::decode(endpoint.ticket.as_ref()?.ticket.clone()).ok()?;
    let ticket = v1::Ticket::decode(signed.body).ok()?;
    ticket.query_id.as_ref().try_into().ok().map(Ulid::from_bytes)
}
