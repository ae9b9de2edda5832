//! A command's way to the leader, from whichever index server it was given to.
//!
//! ```text
//!  propose ──▶ who leads? ── this node ──▶ batcher ──▶ log
//!     ▲             ├────── another one ──▶ Raft.Propose there ──▶ its batcher ──▶ log
//!     │             └────── nobody: an election is going on; wait for it
//!     └── not taken, or harmless to repeat: again, until the patience ends
//! ```
//!
//! What is lost on its way may have been committed. It is proposed again only if that makes no difference
//! ([`Command::is_idempotent`]); otherwise the error says that nobody knows, in its field `outcome`.

use std::time::Duration;

use drsdb_core::{Error, ErrorCode, Result, WireError};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{
    batch::{Failure, stopped},
    codec,
    peers::{Call, CallFailed, Leader},
    shell::Catalog,
};
use crate::catalog::{Command, Refusal, Response};

/// The largest command. Messages between voters and the log's cache are made for it.
pub(super) const MAX_COMMAND_BYTES: usize = 8 << 20;
/// How long a proposal looks for a leader that takes it: a few elections.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the leader may take to commit what it took. Longer than one election, so that a leader that is cut off is
/// found out by the others first.
const COMMIT_TIME: Duration = Duration::from_secs(8);
/// How long an answer of a leader is still waited for after another one was elected.
const LATE_ANSWER: Duration = Duration::from_millis(500);
/// How long it is waited before a leader is asked again, at most.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// How long the own state may take to have what the leader applied.
const CATCH_UP: Duration = Duration::from_secs(10);

/// What the leader says of a forwarded command.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Proposed {
    /// It was applied; the response may be a refusal.
    Applied(u64, Response),
    /// It was not taken, and never will be: another server leads.
    NotTaken,
    /// It was taken, and what became of it is not known.
    Unknown(Refusal),
}

impl Catalog {
    /// Has `command` committed and applied, and answers with the version that it made, which [`Catalog::state`] then has.
    /// It may be given to any index server. What the catalog refuses is an error here, so the response is never
    /// [`Response::Error`].
    ///
    /// Errors: what [`crate::catalog::apply`] refuses; `resource_exhausted` for a command that is too large;
    /// `unavailable` when no majority of the index servers answers for some seconds, or this node shuts down; `disk_full`
    /// and others when this node has stopped. An error with the field `outcome` = `unknown` says that the command may have
    /// taken effect, or may still.
    pub async fn propose(&self, command: Command) -> Result<(u64, Response)> {
        let bytes = codec::encoded_bytes(&command);
        if bytes > MAX_COMMAND_BYTES {
            return Err(WireError::new(
                ErrorCode::ResourceExhausted,
                format!("a change of the catalog has at most {MAX_COMMAND_BYTES} bytes, and this one has {bytes}"),
            )
            .with_hint("use fewer columns or shards, or load fewer tables at once")
            .into());
        }
        let deadline = Instant::now() + PATIENCE;
        let mut maybe_taken = false;
        loop {
            let leader = self.peers.leader();
            let proposed = match &leader {
                Leader::Here => self.propose_here(&command, bytes).await,
                Leader::There(_, url) => self.propose_there(url, &leader, &command).await,
                Leader::Nobody => Err(Failure::NotTaken(no_leader())),
            };
            let (failure, error) = match proposed {
                Ok((version, response)) => {
                    self.has_applied(version).await;
                    return Ok((version, response.into_result()?));
                }
                Err(Failure::NotTaken(error)) => (false, error),
                Err(Failure::Unknown(error)) => (true, error),
            };
            maybe_taken |= failure;
            if self.stopped_because().is_some() || self.batcher.lock().is_none() {
                return Err(if maybe_taken { unknown(error) } else { error });
            }
            if maybe_taken && !command.is_idempotent() {
                tracing::warn!(command = command.kind(), %error, "nobody knows what became of a command");
                return Err(unknown(error));
            }
            if Instant::now() >= deadline {
                return Err(if maybe_taken { unknown(error) } else { error });
            }
            self.peers.leader_changed(&leader, ASK_AGAIN).await;
        }
    }

    /// Of a node that leads, for another one.
    pub(super) async fn propose_for_another(&self, command: Command) -> Proposed {
        if self.peers.leader() != Leader::Here {
            return Proposed::NotTaken;
        }
        let bytes = codec::encoded_bytes(&command);
        match self.propose_here(&command, bytes).await {
            Ok((version, response)) => Proposed::Applied(version, response),
            Err(Failure::NotTaken(_)) => Proposed::NotTaken,
            Err(Failure::Unknown(error)) => Proposed::Unknown(error.to_wire().into()),
        }
    }

    async fn propose_here(&self, command: &Command, bytes: usize) -> Result<(u64, Response), Failure> {
        let Some(batcher) = self.batcher.lock().clone() else { return Err(Failure::NotTaken(stopped())) };
        match tokio::time::timeout(COMMIT_TIME, batcher.propose(command.clone(), bytes)).await {
            Ok(proposed) => proposed,
            Err(_) => Err(Failure::Unknown(
                WireError::new(ErrorCode::Unavailable, "most index servers do not answer")
                    .with_hint("start them, then retry")
                    .into(),
            )),
        }
    }

    async fn propose_there(&self, url: &str, leader: &Leader, command: &Command) -> Result<(u64, Response), Failure> {
        let patience = COMMIT_TIME + Duration::from_secs(1);
        let deposed = async {
            self.peers.leader_changed(leader, patience).await;
            // It may have answered already.
            #[allow(clippy::disallowed_methods)]
            tokio::time::sleep(LATE_ANSWER).await;
        };
        let proposed = tokio::select! {
            proposed = self.peers.call(url, Call::Propose, command, patience) => proposed,
            () = deposed => Err(CallFailed::Lost(
                WireError::new(ErrorCode::Unavailable, format!("index server {url} no longer leads, and did not answer"))
                    .with_field("server", url),
            )),
        };
        match proposed {
            Ok(Proposed::Applied(version, response)) => Ok((version, response)),
            Ok(Proposed::NotTaken) => Err(Failure::NotTaken(no_leader())),
            Ok(Proposed::Unknown(why)) => Err(Failure::Unknown(why.into_wire().into())),
            Err(CallFailed::NotSent(error)) => Err(Failure::NotTaken(error.into())),
            Err(CallFailed::Lost(error)) => Err(Failure::Unknown(error.into())),
        }
    }

    /// Waits until the own state has the version. A node that is cut off goes without: what was committed is committed.
    async fn has_applied(&self, version: u64) {
        let mut applied = self.published.applied();
        if tokio::time::timeout(CATCH_UP, applied.wait_for(|applied| *applied >= version)).await.is_err() {
            tracing::warn!(version, "a change was committed, and does not arrive here");
        }
    }
}

/// The error while nobody leads.
pub(super) fn no_leader() -> Error {
    WireError::new(ErrorCode::Unavailable, "the index servers have no leader now")
        .with_hint("check that most of them run and reach one another, then retry")
        .into()
}

/// The error of a command that may have been carried out.
fn unknown(error: Error) -> Error {
    let mut error = error.to_wire().with_field("outcome", "unknown");
    error.message = format!("{}; it is not known whether the change was made", error.message);
    error.hint = "look whether it was made before you repeat it".to_owned();
    error.into()
}
