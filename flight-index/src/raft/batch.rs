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

/// One proposal on its way.
struct Queued {
    command: Command,
    bytes: usize,
    answer: oneshot::Sender<Result<(u64, Response)>>,
}

/// Takes proposals. Dropping it ends the batcher.
#[derive(Debug)]
pub(super) struct Batcher {
    queue: mpsc::Sender<Queued>,
}

impl Batcher {
    /// Starts the batcher.
    pub(super) fn start(raft: Raft, explain: impl Fn(&Fatal<NodeId>) -> Error + Send + Sync + 'static) -> Self {
        let (queue, proposals) = mpsc::channel(QUEUE);
        tokio::spawn(run(raft, proposals, explain));
        Self { queue }
    }

    /// Has `command`, which has `bytes`, committed and applied. It goes on when the caller stops to wait.
    pub(super) async fn propose(&self, command: Command, bytes: usize) -> Result<(u64, Response)> {
        let (answer, answered) = oneshot::channel();
        self.queue.send(Queued { command, bytes, answer }).await.map_err(|_| stopped())?;
        answered.await.map_err(|_| stopped())?
    }
}

async fn run(raft: Raft, mut proposals: mpsc::Receiver<Queued>, explain: impl Fn(&Fatal<NodeId>) -> Error) {
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
        match raft.client_write(Proposal { commands }).await {
            Ok(written) => {
                for (answer, (version, response)) in answers.into_iter().zip(written.data.0) {
                    // Whoever does not wait any more does not want to know.
                    drop(answer.send(Ok((version, response))));
                }
            }
            Err(error) => {
                for answer in answers {
                    drop(answer.send(Err(write_error(&error, &explain))));
                }
            }
        }
        bytes_since_snapshot += bytes;
        if bytes_since_snapshot > SNAPSHOT_AFTER_BYTES && raft.trigger().snapshot().await.is_ok() {
            bytes_since_snapshot = 0;
        }
    }
}

fn write_error(
    error: &RaftError<NodeId, ClientWriteError<NodeId, openraft::BasicNode>>,
    explain: impl Fn(&Fatal<NodeId>) -> Error,
) -> Error {
    match error {
        RaftError::Fatal(fatal) => explain(fatal),
        RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => {
            not_leader(forward.leader_node.as_ref().map(|node| node.addr.as_str()))
        }
        RaftError::APIError(error) => Error::internal(error.to_string()),
    }
}

/// The error of what only the leader can do.
pub(super) fn not_leader(leader: Option<&str>) -> Error {
    let error = WireError::new(ErrorCode::Unavailable, "this index server does not lead the others now");
    match leader {
        Some(url) => error.with_hint(format!("ask {url}")).with_field("leader", url).into(),
        None => error.with_hint("retry: the others are electing a leader").into(),
    }
}

/// The error of a node that is shutting down.
pub(super) fn stopped() -> Error {
    WireError::new(ErrorCode::Unavailable, "the index server is shutting down")
        .with_hint("ask another index server, or retry")
        .into()
}
