//! Runs plans on a storage server.
//!
//! # Life of a ticket
//!
//! 1. [`FlightServer`]'s DoGet opens the ticket (signature, user, time) and hands it to the [`QueryEngine`].
//! 2. `head` decodes the plan into a session that `session` built, stamps a fresh query id on it, and executes it: as one
//!    task of a plan without exchange, or as the head that sends stages to the other servers and pulls from them.
//! 3. `worker` serves the stages that other heads send here. Its calls need a server's certificate.
//! 4. `messages` turns the rows into edge types and messages of a good size, which are streamed to the client. When the
//!    client goes away or cancels, or the query's time is over, everything that runs for it is dropped, here and elsewhere.
//!
//! Queries run on a tokio runtime of their own, so that a busy join never starves the service.

mod flight_service;
mod head;
mod messages;
mod panics;
mod report;
mod session;
mod worker;

use std::{
    collections::BTreeMap,
    fmt,
    path::Path,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use datafusion::execution::{
    SessionState,
    disk_manager::{DiskManagerBuilder, DiskManagerMode},
    memory_pool::{FairSpillPool, MemoryPool, TrackConsumersPool},
    runtime_env::{RuntimeEnv, RuntimeEnvBuilder},
};
use datafusion_distributed::Worker;
use drsdb_core::{Error, ErrorCode, Result, Ulid, net::ChannelPool, scan::Scanner, time_limit::TimeLimit};
use parking_lot::Mutex;
use tokio::{runtime::Handle, sync::Notify};
use tokio_util::sync::CancellationToken;
use url::Url;

pub use self::{flight_service::FlightServer, worker::OnQueryRuntime};
use crate::engines::Engines;

/// Consumers that an error about memory names.
const NAMED_CONSUMERS: usize = 3;

/// Everything that a plan needs to run here.
pub struct QueryEngine {
    scanner: Scanner,
    runtime_env: Arc<RuntimeEnv>,
    /// A session that has what all have, made by the first.
    functions: OnceLock<SessionState>,
    pool: Arc<dyn MemoryPool>,
    worker: Worker,
    channels: ChannelPool,
    self_url: Url,
    handle: Handle,
    running: Arc<Mutex<Running>>,
    ended: Arc<Notify>,
}

/// The tickets that are being served now, by the order in which they came.
#[derive(Debug, Default)]
struct Running {
    next: u64,
    queries: BTreeMap<u64, (Bytes, CancellationToken)>,
}

impl Running {
    /// Cancelled when the query is over.
    fn token(&self, number: u64) -> Option<CancellationToken> {
        self.queries.get(&number).map(|(_, token)| token.clone())
    }
}

impl fmt::Debug for QueryEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueryEngine").field("self_url", &self.self_url.as_str()).finish_non_exhaustive()
    }
}

impl QueryEngine {
    /// An engine that may reserve `memory_bytes` and spills to `spill_dir`; queries run on `handle`.
    pub fn new(
        engines: Engines,
        memory_bytes: usize,
        spill_dir: &Path,
        channels: ChannelPool,
        self_url: Url,
        handle: Handle,
    ) -> Result<Self> {
        panics::count_from_now_on();
        let named = std::num::NonZeroUsize::new(NAMED_CONSUMERS).expect("the constant is not zero");
        let pool: Arc<dyn MemoryPool> = Arc::new(TrackConsumersPool::new(FairSpillPool::new(memory_bytes), named));
        let disk = DiskManagerBuilder::default().with_mode(DiskManagerMode::Directories(vec![spill_dir.to_owned()]));
        let runtime_env =
            RuntimeEnvBuilder::new().with_memory_pool(Arc::clone(&pool)).with_disk_manager_builder(disk).build_arc()?;
        let scanner = Scanner(Arc::new(engines));
        let running = Arc::<Mutex<Running>>::default();
        let builder = session::WorkerSession {
            scanner: scanner.clone(),
            running: Arc::clone(&running),
            channels: channels.clone(),
        };
        let worker = Worker::from_session_builder(builder).with_runtime_env(Arc::clone(&runtime_env));
        let ended = Arc::new(Notify::new());
        handle.spawn(worker::let_go(worker.clone(), Arc::clone(&ended), Arc::clone(&pool)));
        let functions = OnceLock::new();
        Ok(Self { scanner, runtime_env, functions, pool, worker, channels, self_url, handle, running, ended })
    }

    /// The worker that other heads send stages to.
    pub fn worker(&self) -> Worker {
        self.worker.clone()
    }

    /// Told when something that ran here for another head has ended.
    pub fn ended(&self) -> Arc<Notify> {
        Arc::clone(&self.ended)
    }

    /// The runtime of queries.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// The id of this server.
    pub fn server_id(&self) -> Ulid {
        self.scanner.0.server_id()
    }

    /// Tickets that are being served now.
    pub fn running(&self) -> usize {
        self.running.lock().queries.len()
    }

    /// Ends what runs here for the tickets of a query; false when nothing does.
    pub fn cancel(&self, query_id: &[u8]) -> bool {
        let running = self.running.lock();
        let found = running.queries.values().filter(|(id, _)| id == query_id);
        found.map(|(_, token)| token.cancel()).count() > 0
    }

    fn start(&self, query_id: &Bytes) -> RunningQuery {
        let token = CancellationToken::new();
        let mut running = self.running.lock();
        let number = running.next;
        running.next += 1;
        running.queries.insert(number, (query_id.clone(), token.clone()));
        RunningQuery {
            number,
            token,
            timed_out: Arc::default(),
            running: Arc::clone(&self.running),
            ended: Arc::clone(&self.ended),
        }
    }

    /// Bytes that running queries have reserved.
    pub fn reserved_bytes(&self) -> usize {
        self.pool.reserved()
    }
}

/// A query that counts as running, and can be cancelled, for as long as this lives.
#[derive(Debug)]
struct RunningQuery {
    number: u64,
    token: CancellationToken,
    timed_out: Arc<OnceLock<Error>>,
    running: Arc<Mutex<Running>>,
    ended: Arc<Notify>,
}

impl RunningQuery {
    /// Waits until the query is to end before it has all rows: somebody cancels it, or its time is over.
    async fn ended_early(&self) -> Error {
        self.token.cancelled().await;
        self.timed_out().unwrap_or_else(|| Error::new(ErrorCode::Cancelled, "the query was cancelled"))
    }

    /// The error of a query whose time is over.
    fn timed_out(&self) -> Option<Error> {
        self.timed_out.get().map(|error| error.to_wire().into())
    }

    /// Ends the query when its time is over. This is a task of the service's runtime: all threads of the queries' own may be
    /// busy, with the very query whose time is over.
    fn end_in_time(&self, limit: TimeLimit) {
        let (token, timed_out) = (self.token.clone(), Arc::clone(&self.timed_out));
        tokio::spawn(async move {
            tokio::select! {
                error = limit.passed() => {
                    // There is one such task, and it sets this once.
                    let _ = timed_out.set(error);
                    token.cancel();
                }
                () = token.cancelled() => (),
            }
        });
    }
}

impl Drop for RunningQuery {
    fn drop(&mut self) {
        self.running.lock().queries.remove(&self.number);
        self.ended.notify_one();
    }
}
