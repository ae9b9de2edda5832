//! The one thread that writes the file, and its group commit.
//!
//! ```text
//! callers ──▶ queue ──▶ [ BEGIN  op  op  op ...  COMMIT + fsync ] ──▶ answers to all of them
//!                         while this runs, the next group gathers in the queue
//! ```
//!
//! An fsync takes milliseconds and an operation microseconds, so what comes in during one fsync shares the next: with
//! one caller each operation pays for its own, with hundreds they pay a hundredth each. Nobody waits for company.
//! Each operation has a savepoint of its own, so that one that fails takes no other with it.
//!
//! A group of nothing but outcomes is not synced: SQLite's log keeps the order, so that the next fsync, whoever asks for it,
//! makes them durable as well, and after a power loss the index servers tell them again.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, SyncSender, TryRecvError, channel, sync_channel},
    },
    thread::JoinHandle,
};

use drsdb_core::{Error, Result, crash_point};
use rusqlite::Connection;

use super::{
    error::Context,
    health::Health,
    mark::Mark,
    operations::{Done, Operation},
    pages::Pages,
};

/// A group ends at this many bytes to write, so that a load does not hold up small commits for long.
const GROUP_BYTES: usize = 4 << 20;

/// A group ends at this many operations.
const GROUP_OPERATIONS: usize = 4096;

enum Message {
    Job(Job),
    Stop,
}

struct Job {
    operation: Operation,
    /// Where the answer goes; nowhere for what the engine does on its own account.
    reply: Option<SyncSender<Result<Done>>>,
}

/// Sends operations to the writer's thread.
#[derive(Debug, Clone)]
pub(crate) struct Queue {
    sender: Sender<Message>,
}

/// The answer to come of a queued operation.
#[derive(Debug)]
pub(crate) struct Pending {
    receiver: Receiver<Result<Done>>,
}

impl Pending {
    /// Waits until the operation is durable, or has failed.
    pub(crate) fn wait(self) -> Result<Done> {
        self.receiver.recv().map_err(|_| stopped())?
    }
}

fn stopped() -> Error {
    Error::internal("the row engine has stopped: no more can be written")
}

impl Queue {
    /// Queues an operation. Operations of one caller run in the order in which they were queued.
    pub(crate) fn submit(&self, operation: Operation) -> Result<Pending> {
        let (reply, receiver) = sync_channel(1);
        self.sender.send(Message::Job(Job { operation, reply: Some(reply) })).map_err(|_| stopped())?;
        Ok(Pending { receiver })
    }

    /// Queues an operation whose end nobody waits for. If the engine has stopped, the next start does it.
    pub(crate) fn submit_unheard(&self, operation: Operation) {
        self.sender.send(Message::Job(Job { operation, reply: None })).ok();
    }
}

/// The thread; ends when this is dropped, after it has done what was queued.
#[derive(Debug)]
pub(crate) struct Writer {
    queue: Queue,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts the thread on a connection of its own, with work that was left undone.
    pub(super) fn start(
        connection: Connection,
        mark: Mark,
        pages: Arc<Pages>,
        health: Arc<Health>,
        undone: Vec<Operation>,
    ) -> Result<Self> {
        let (sender, receiver) = channel();
        let thread = std::thread::Builder::new()
            .name("row-writer".to_owned())
            .spawn(move || {
                let later = undone.into();
                let mut state = WriterThread { connection, syncs: true, mark, pages, health, receiver, later };
                while state.run_group() {}
                state.end();
            })
            .map_err(|error| Error::io("starting the row engine's writer", error))?;
        Ok(Self { queue: Queue { sender }, thread: Some(thread) })
    }

    /// A handle to queue operations with.
    pub(crate) fn queue(&self) -> &Queue {
        &self.queue
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.queue.sender.send(Message::Stop).ok();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the row engine's writer panicked");
        }
    }
}

struct WriterThread {
    connection: Connection,
    /// Whether the connection syncs what it commits.
    syncs: bool,
    mark: Mark,
    pages: Arc<Pages>,
    health: Arc<Health>,
    receiver: Receiver<Message>,
    /// Clearing up that nobody waits for: one piece of it a group, so that it never holds up anybody for long.
    later: VecDeque<Operation>,
}

impl WriterThread {
    /// Gathers a group and runs it; answers whether to go on.
    fn run_group(&mut self) -> bool {
        let (jobs, go_on) = self.gather();
        self.run_and_answer(jobs);
        if self.health.check().is_ok()
            && let Err(error) = self.health.note(self.pages.checkpoint_if_due(&self.connection))
        {
            // The log grows until it succeeds.
            tracing::warn!(%error, "the row engine could not copy its log into its file");
        }
        go_on
    }

    fn end(&self) {
        let closed = self.health.check().and_then(|()| self.pages.close(&self.connection));
        if let Err(error) = closed {
            tracing::warn!(%error, "the row engine ends with a log that the next start has to copy into its file");
        }
    }

    fn gather(&mut self) -> (Vec<Job>, bool) {
        let mut jobs = Vec::new();
        let mut bytes = 0;
        if let Some(operation) = self.later.pop_front() {
            jobs.push(Job { operation, reply: None });
        }
        while bytes < GROUP_BYTES && jobs.len() < GROUP_OPERATIONS {
            let message = if jobs.is_empty() {
                self.receiver.recv().unwrap_or(Message::Stop)
            } else {
                match self.receiver.try_recv() {
                    Ok(message) => message,
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => Message::Stop,
                }
            };
            match message {
                Message::Job(job) => {
                    bytes += job.operation.weight();
                    jobs.push(job);
                }
                Message::Stop => return (jobs, false),
            }
        }
        (jobs, true)
    }

    fn run_and_answer(&mut self, jobs: Vec<Job>) {
        if jobs.is_empty() {
            return;
        }
        match self.run_in_transaction(&jobs) {
            Ok(results) => {
                for (job, result) in jobs.into_iter().zip(results) {
                    self.answer(job, result);
                }
            }
            // The whole transaction is gone, perhaps through the fault of one: each gets one of its own. This is where
            // a full disk ends up, and small operations may still fit on it.
            Err(error) if jobs.len() > 1 => {
                tracing::warn!(%error, operations = jobs.len(), "a group of writes failed; retrying one by one");
                for job in jobs {
                    self.run_and_answer(vec![job]);
                }
            }
            Err(error) => {
                for job in jobs {
                    let result = Err(error.to_wire().into());
                    self.answer(job, result);
                }
            }
        }
    }

    fn answer(&mut self, job: Job, result: Result<Done>) {
        let mut result = result;
        match &mut result {
            Ok(done) => self.later.extend(done.later.drain(..)),
            Err(error) if job.reply.is_none() => {
                // The file keeps the work's description; the next start tries again.
                tracing::warn!(%error, operation = ?job.operation, "the row engine could not clear up");
            }
            Err(_) => {}
        }
        if let Some(reply) = job.reply {
            // A caller that went away does not want to know.
            reply.send(result).ok();
        }
    }

    /// Runs all in one transaction. An error means that nothing of it happened.
    fn run_in_transaction(&mut self, jobs: &[Job]) -> Result<Vec<Result<Done>>> {
        self.health.check()?;
        self.pages.settle()?;
        let ran = self.run_jobs(jobs);
        self.health.note(ran)
    }

    fn run_jobs(&mut self, jobs: &[Job]) -> Result<Vec<Result<Done>>> {
        let sync = !jobs.iter().all(|job| job.operation.is_outcome());
        if self.syncs != sync {
            // Not within a transaction: SQLite would not listen.
            let level = if sync { "FULL" } else { "NORMAL" };
            self.connection.pragma_update(None, "synchronous", level).context("setting up a transaction")?;
            self.syncs = sync;
        }
        self.execute("BEGIN IMMEDIATE")?;
        let results = self.run_each(jobs).and_then(|results| {
            self.mark.count(&self.connection)?;
            crash_point::reach(if sync { "row.commit.before" } else { "row.outcome.before" });
            self.execute("COMMIT")?;
            crash_point::reach(if sync { "row.commit.synced" } else { "row.outcome.written" });
            Ok(results)
        });
        if results.is_ok() {
            self.mark.advance(sync);
        } else if !self.connection.is_autocommit() {
            self.execute("ROLLBACK")?;
        }
        results
    }

    fn run_each(&self, jobs: &[Job]) -> Result<Vec<Result<Done>>> {
        let mut results = Vec::with_capacity(jobs.len());
        for job in jobs {
            self.execute("SAVEPOINT operation")?;
            let result = self.health.note(job.operation.run(&self.connection));
            if let Err(error) = result {
                // Some errors, a full disk among them, make SQLite roll back the whole transaction itself.
                if self.connection.is_autocommit() {
                    return Err(error);
                }
                self.execute("ROLLBACK TO operation")?;
                results.push(Err(error));
            } else {
                results.push(result);
            }
            self.execute("RELEASE operation")?;
        }
        Ok(results)
    }

    fn execute(&self, sql: &str) -> Result<()> {
        self.connection
            .prepare_cached(sql)
            .and_then(|mut statement| statement.execute([]))
            .map(drop)
            .context("running a transaction")
    }
}
