//! A result as a stream of record batches.
//!
//! ```text
//!   endpoint 0 --pull--> |batch|batch|          \   unordered: one queue, one budget; batches as they come
//!   endpoint 1 --pull--> |batch|                 >  ordered: a queue and a share of the budget for each endpoint;
//!   endpoint 2 --pull--> |batch|batch|batch|    /   queue 0 is emptied first, the others fill up meanwhile
//! ```
//!
//! The budget is in bytes: a pull that finds no room waits, stops reading, and HTTP/2 stops its server.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use arrow_flight::{FlightEndpoint, FlightInfo, Ticket};
use drsdb_proto::{ErrorCode, ids::Ulid, v1};
use futures::{Stream, TryStreamExt};
use parking_lot::Mutex;
use prost::Message;
use tokio::{
    sync::{
        Semaphore,
        mpsc::{UnboundedReceiver, unbounded_channel},
    },
    task::JoinSet,
};
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};
use url::Url;

use crate::{
    Client, Error, Result,
    error::Failure,
    pull::{BUFFER_UNIT_BYTES, Delivery, Pull, locations},
};

/// The rows of one result. Dropping it cancels what is still running.
pub struct QueryStream {
    schema: SchemaRef,
    ordered: bool,
    query_id: Option<Ulid>,
    rows_estimate: Option<u64>,
    write_result: crate::WriteResult,
    statistics: Arc<Mutex<Vec<EndpointStatistics>>>,
    /// Ordered: one queue an endpoint, in order. Otherwise one for all, which says `Finished` once an endpoint.
    queues: VecDeque<UnboundedReceiver<Delivery>>,
    unfinished: usize,
    ended: bool,
    cancel: CancellationToken,
    cancelled: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Stops the pulls when the stream goes.
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

impl QueryStream {
    pub(crate) fn start(client: Client, answered_by: Url, schema: SchemaRef, info: FlightInfo) -> Result<Self> {
        let options = &client.inner.options;
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
                ticket: ticket_of(endpoint, &answered_by)?,
                locations: locations(endpoint, &answered_by)?,
                schema: schema.clone(),
                deliveries,
                room,
                room_units,
                statistics: statistics.clone(),
            });
        }

        let cancel = CancellationToken::new();
        tokio::spawn(drive(pulls, parallel, cancel.clone()));
        Ok(QueryStream {
            schema,
            ordered: info.ordered,
            query_id: endpoints.first().and_then(query_id_of),
            rows_estimate: u64::try_from(info.total_records).ok(),
            write_result: crate::WriteResult::decode(&info.app_metadata),
            statistics,
            queues,
            unfinished: count,
            ended: count == 0,
            cancelled: Box::pin(cancel.clone().cancelled_owned()),
            _stop: cancel.clone().drop_guard(),
            cancel,
        })
    }

    /// The columns of every batch.
    pub fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    /// Whether the rows come in the order that the statement asked for.
    pub fn ordered(&self) -> bool {
        self.ordered
    }

    /// The query's id, as the servers' logs name it.
    pub fn query_id(&self) -> Option<Ulid> {
        self.query_id
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
        QueryStatistics { endpoints: self.statistics.lock().clone() }
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
        while let Some(batch) = self.try_next().await? {
            batches.push(batch);
        }
        Ok(QueryResult { schema: self.schema.clone(), batches, statistics: self.statistics() })
    }

    fn end(&mut self) {
        self.ended = true;
        self.cancel.cancel();
    }
}

impl Stream for QueryStream {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if self.ended {
                return Poll::Ready(None);
            }
            if self.cancelled.as_mut().poll(cx).is_ready() {
                self.end();
                return Poll::Ready(Some(Err(Error::new(ErrorCode::Cancelled, "the query was cancelled"))));
            }
            let queue = self.queues.front_mut().expect("a queue is there until the last endpoint has finished");
            let delivery = match queue.poll_recv(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(delivery) => delivery,
            };
            match delivery {
                // The permit ends here: what the consumer holds is the consumer's memory.
                Some(Delivery::Batch(batch, _permit)) => return Poll::Ready(Some(Ok(batch))),
                Some(Delivery::Finished) => {
                    self.unfinished -= 1;
                    if self.unfinished == 0 {
                        self.end();
                    } else if self.ordered {
                        self.queues.pop_front();
                    }
                }
                Some(Delivery::Failed(error)) => {
                    self.end();
                    return Poll::Ready(Some(Err(error)));
                }
                // Every pull has a last word; a queue that closes without it means that a task died.
                None => {
                    self.end();
                    let error = Error::new(ErrorCode::Internal, "a part of the result ended without saying so");
                    return Poll::Ready(Some(Err(error)));
                }
            }
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

fn ticket_of(endpoint: &FlightEndpoint, server: &Url) -> Result<Ticket> {
    endpoint.ticket.clone().ok_or_else(|| Failure::broken_data("an endpoint without a ticket", server).error)
}

/// Tickets are opaque, but their id is worth showing when it can be seen.
fn query_id_of(endpoint: &FlightEndpoint) -> Option<Ulid> {
    let signed = v1::Signed::decode(endpoint.ticket.as_ref()?.ticket.clone()).ok()?;
    let ticket = v1::Ticket::decode(signed.body).ok()?;
    ticket.query_id.as_ref().try_into().ok().map(Ulid::from_bytes)
}
