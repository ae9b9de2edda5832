//! Group commit: concurrent proposals become one log entry, and so share one fsync.
//!
//! ```text
//!  propose ──┐                                  entry 7: [a]          a alone: nothing else waited
//!  propose ──┼─▶ queue ─▶ batcher ─▶ openraft ─▶ entry 8: [b, c, d]   came while entry 7 was written
//!  propose ──┘                                  entry 9: [e]
//! ```
//!
//! One entry is on its way at a time: what comes meanwhile waits, and goes together. So a lone proposal never waits for
//! company, and many cost one fsync for as many as arrive during an fsync.

use std::time::Duration;

use drsdb_core::{Error, ErrorCode, Result, WireError};
use openraft::error::{ClientWriteError, Fatal, RaftError};
use tokio::sync::{mpsc, oneshot};

use super::types::{NodeId, Proposal, Raft};
use crate::catalog::{Command, Response};

/// Commands in one entry, at most.
const MAX_COMMANDS: usize = 512;
/// Bytes of commands in one entry: an entry is closed when it reaches them.
const FULL_BYTES: usize = 1 << 20;
/// Proposals that may wait. More wait for room in the queue.
const QUEUE: usize = 4096;
/// Bytes in the log after which a snapshot is made, however few the entries.
const SNAPSHOT_AFTER_BYTES: usize = 64 << 20;

/// How long an entry is still waited for after this node lost its lead: the next leader may commit it.
const LATE_COMMIT: Duration = Duration::from_secs(2);

/// Why a proposal has no response.
#[derive(Debug)]
pub(super) enum Failure {
    /// It was not taken, and never will be.
    NotTaken(Error),
    /// It may have been committed, or may still be.
    Unknown(Error),
}

/// One proposal on its way.
struct Queued {
    command: Command,
    bytes: usize,
    answer: oneshot::Sender<Result<(u64, Response), Failure>>,
}

/// Takes proposals. Dropping it ends the batcher.
#[derive(Debug)]
pub(super) struct Batcher {
    queue: mpsc::Sender<Queued>,
}

impl Batcher {
    /// Starts the batcher.
    pub(super) fn start(
        id: NodeId,
        raft: Raft,
        explain: impl Fn(&Fatal<NodeId>) -> Error + Send + Sync + 'static,
    ) -> Self {
        let (queue, proposals) = mpsc::channel(QUEUE);
        tokio::spawn(run(id, raft, proposals, explain));
        Self { queue }
    }

    /// Has `command`, which has `bytes`, committed and applied. It goes on when the caller stops to wait.
    pub(super) async fn propose(&self, command: Command, bytes: usize) -> Result<(u64, Response), Failure> {
        let (answer, answered) = oneshot::channel();
        let queued = self.queue.send(Queued { command, bytes, answer }).await;
        queued.map_err(|_| Failure::NotTaken(stopped()))?;
        answered.await.map_err(|_| Failure::Unknown(stopped()))?
    }
}

async fn run(id: NodeId, raft: Raft, mut proposals: mpsc::Receiver<Queued>, explain: impl Fn(&Fatal<NodeId>) -> Error) {
    let mut bytes_since_snapshot = 0;
    while let Some(first) = proposals.recv().await {
        let mut bytes = first.bytes;
        let (mut commands, mut answers) = (vec![first.command], vec![first.answer]);
        while commands.len() < MAX_COMMANDS
            && bytes < FULL_BYTES
            && let Ok(next) = proposals.try_recv()
        {
            bytes += next.bytes;
            commands.push(next.command);
            answers.push(next.answer);
        }
        // What is not given to openraft is surely not taken. What is may be committed even when openraft says that another
        // node leads: it says so too of an entry that was replicated and then removed here, and which another voter that
        // has it may yet commit.
        if !leads(&raft, id) {
            for answer in answers {
                drop(answer.send(Err(Failure::NotTaken(not_leader()))));
            }
            continue;
        }
        let written = tokio::select! {
            written = raft.client_write(Proposal { commands }) => written,
            () = deposed(&raft, id) => Err(RaftError::APIError(openraft::error::ForwardToLeader::empty().into())),
        };
        match written {
            Ok(written) => {
                for (answer, (version, response)) in answers.into_iter().zip(written.data.0) {
                    // Whoever does not wait any more does not want to know.
                    drop(answer.send(Ok((version, response))));
                }
            }
            Err(error) => {
                for answer in answers {
                    drop(answer.send(Err(Failure::Unknown(write_error(&error, &explain)))));
                }
            }
        }
        bytes_since_snapshot += bytes;
        if bytes_since_snapshot > SNAPSHOT_AFTER_BYTES && raft.trigger().snapshot().await.is_ok() {
            bytes_since_snapshot = 0;
        }
    }
}

fn leads(raft: &Raft, id: NodeId) -> bool {
    let metrics = raft.metrics();
    let metrics = metrics.borrow();
    // A node that has stopped takes the proposal and says why it cannot.
    metrics.current_leader == Some(id) || metrics.running_state.is_err()
}

/// Returns when this node has not led for a while. openraft does not always answer for entries that it wrote before.
async fn deposed(raft: &Raft, id: NodeId) {
    let mut metrics = raft.metrics();
    if metrics.wait_for(|metrics| metrics.current_leader != Some(id)).await.is_err() {
        // The node is gone, and the write fails by itself.
        std::future::pending::<()>().await;
    }
    // Time is the condition: the next leader has this long to commit the entry.
    #[allow(clippy::disallowed_methods)]
    tokio::time::sleep(LATE_COMMIT).await;
}

fn write_error(
    error: &RaftError<NodeId, ClientWriteError<NodeId, openraft::BasicNode>>,
    explain: impl Fn(&Fatal<NodeId>) -> Error,
) -> Error {
    match error {
        RaftError::Fatal(fatal) => explain(fatal),
        RaftError::APIError(ClientWriteError::ForwardToLeader(_)) => {
            WireError::new(ErrorCode::Unavailable, "the index server that led lost its lead").into()
        }
        RaftError::APIError(error) => Error::internal(error.to_string()),
    }
}

/// The error of what only the leader can do.
fn not_leader() -> Error {
    WireError::new(ErrorCode::Unavailable, "this index server does not lead the others now")
        .with_hint("retry: the others are electing a leader")
        .into()
}

/// The error of a node that is shutting down.
pub(super) fn stopped() -> Error {
    WireError::new(ErrorCode::Unavailable, "the index server is shutting down")
        .with_hint("ask another index server, or retry")
        .into()
}
