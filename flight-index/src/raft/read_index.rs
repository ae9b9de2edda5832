//! Linearizable reads: how far the own state must be to have everything that was acknowledged before.
//!
//! The leader knows, once a majority has confirmed that it still leads. That is a round trip; all reads that wait share
//! the next one:
//!
//! ```text
//!  read ──┐                             round 7 for this one alone
//!  read ──┼─▶ queue ─▶ one round ─▶ index ─▶ each waits until the own state has it
//!  read ──┘    (came during round 7: they share round 8, which begins after all of them)
//! ```
//!
//! A read that may be a little old ([`ReadConsistency::Bounded`]) makes no round while the last one is not older than that.
//! What leaders send meanwhile does not count: one that was replaced may go on sending.

use std::{sync::Arc, time::Duration};

use drsdb_core::{Error, ErrorCode, Result, WireError};
use openraft::error::{CheckIsLeaderError, RaftError};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::{
    batch::stopped,
    peers::{Call, Leader, Peers},
    propose::no_leader,
    shell::Catalog,
};
use crate::catalog::CatalogState;

/// How long a read looks for a leader that answers, and for its own state to follow.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long another server may take for one round.
const ROUND_TIME: Duration = Duration::from_secs(2);
/// How long it is waited before a leader is asked again, at most.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// Reads that may wait for a round; more wait for room in the queue.
const QUEUE: usize = 4096;

/// What a server answers that was asked how far a state must be.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ReadIndex {
    /// So far.
    At(u64),
    /// It does not lead, or cannot show that it does.
    NotLeading,
}

/// How new the state must be that a read is planned on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReadConsistency {
    /// It has everything that was acknowledged before the read.
    #[default]
    Linearizable,
    /// It has everything that was acknowledged up to so long before the read.
    Bounded(Duration),
}

/// As of when the own state is known to have everything that was acknowledged.
#[derive(Debug, Default)]
pub(super) struct Confirmed(Mutex<Option<Instant>>);

impl Confirmed {
    /// A round that was asked for at `asked` has ended, and the own state has its index.
    fn note(&self, asked: Instant) {
        let mut known = self.0.lock();
        *known = (*known).max(Some(asked));
    }

    /// Whether that is at most `bound` ago.
    fn within(&self, bound: Duration, now: Instant) -> bool {
        self.0.lock().is_some_and(|known| now.saturating_duration_since(known) <= bound)
    }
}

/// A round's outcome: the index, or why there is none.
type Round = Result<u64, WireError>;

/// Takes reads. Dropping it ends the task that makes rounds.
#[derive(Debug, Clone)]
pub(super) struct Rounds {
    queue: mpsc::Sender<oneshot::Sender<Round>>,
}

impl Rounds {
    /// Starts the task.
    pub(super) fn start(peers: Peers) -> Self {
        let (queue, mut reads) = mpsc::channel::<oneshot::Sender<Round>>(QUEUE);
        tokio::spawn(async move {
            while let Some(first) = reads.recv().await {
                let mut waiting = vec![first];
                while let Ok(next) = reads.try_recv() {
                    waiting.push(next);
                }
                let round = make_round(&peers).await;
                for read in waiting {
                    // Whoever does not wait any more does not want to know.
                    drop(read.send(round.clone()));
                }
            }
        });
        Self { queue }
    }

    /// The index of a round that begins after this call.
    pub(super) async fn next(&self) -> Round {
        let (answer, answered) = oneshot::channel();
        self.queue.send(answer).await.map_err(|_| stopped().to_wire())?;
        answered.await.map_err(|_| stopped().to_wire())?
    }
}

async fn make_round(peers: &Peers) -> Round {
    let leader = peers.leader();
    match &leader {
        Leader::Here => match peers.raft.get_read_log_id().await {
            Ok((read, _)) => Ok(read.map_or(0, |read| read.index)),
            Err(RaftError::Fatal(fatal)) => {
                Err(WireError::new(ErrorCode::Unavailable, format!("this index server stopped: {fatal}")))
            }
            Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(_))) => Err(no_leader().to_wire()),
            Err(RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(_))) => {
                Err(WireError::new(ErrorCode::Unavailable, "most index servers do not answer")
                    .with_hint("start them, then retry"))
            }
        },
        Leader::There(_, url) => {
            let asked = peers.call(url, Call::ReadIndex, &(), ROUND_TIME);
            let answer = tokio::select! {
                answer = asked => answer,
                () = peers.leader_changed(&leader, ROUND_TIME) => return Err(no_leader().to_wire()),
            };
            match answer {
                Ok(ReadIndex::At(index)) => Ok(index),
                Ok(ReadIndex::NotLeading) => Err(no_leader().to_wire()),
                Err(failed) => Err(failed.into()),
            }
        }
        Leader::Nobody => Err(no_leader().to_wire()),
    }
}

impl Catalog {
    /// A state that is new enough for a read.
    ///
    /// Errors: those of [`Catalog::linearize`], when a round is needed for it.
    pub async fn read(&self, consistency: ReadConsistency) -> Result<Arc<CatalogState>> {
        match consistency {
            ReadConsistency::Bounded(bound) if self.confirmed.within(bound, Instant::now()) => {}
            ReadConsistency::Bounded(_) | ReadConsistency::Linearizable => self.linearize().await?,
        }
        Ok(self.state())
    }

    /// Returns when [`Catalog::state`] has everything that was acknowledged by any node before the call. It waits for some
    /// seconds while the index servers elect a leader.
    ///
    /// Errors: `unavailable` when no majority answers, or this node is cut off from the others.
    pub async fn linearize(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let leader = self.peers.leader();
            let rounds = self.rounds.lock().clone().ok_or_else(stopped)?;
            let asked = Instant::now();
            let error = match rounds.next().await {
                Ok(index) => {
                    let mut applied = self.published.applied();
                    let caught_up = applied.wait_for(|applied| *applied >= index);
                    match tokio::time::timeout_at(deadline, caught_up).await {
                        Ok(Ok(_)) => {
                            self.confirmed.note(asked);
                            return Ok(());
                        }
                        Ok(Err(_)) => return Err(stopped()),
                        Err(_) => behind(),
                    }
                }
                Err(error) => error,
            };
            if let Some(stopped) = self.stopped_because() {
                return Err(stopped);
            }
            if Instant::now() >= deadline {
                return Err(error.into());
            }
            self.peers.leader_changed(&leader, ASK_AGAIN).await;
        }
    }

    /// Of a node that leads, for another one.
    pub(super) async fn read_index_for_another(&self) -> ReadIndex {
        let rounds = self.rounds.lock().clone();
        match rounds {
            Some(rounds) if self.peers.leader() == Leader::Here => {
                rounds.next().await.map_or(ReadIndex::NotLeading, ReadIndex::At)
            }
            _ => ReadIndex::NotLeading,
        }
    }
}

fn behind() -> WireError {
    let message = "this index server does not hear of what the others decide";
    Error::new(ErrorCode::Unavailable, message).to_wire().with_hint("ask another index server, or retry")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_confirmed_counts_from_when_it_was_asked_for() {
        let (confirmed, start) = (Confirmed::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let bound = Duration::from_secs(5);
        assert!(!confirmed.within(Duration::MAX, at(0)), "nothing was ever confirmed");
        confirmed.note(at(10));
        assert!(confirmed.within(bound, at(15)));
        assert!(!confirmed.within(bound, at(16)));
        // A round that was asked for earlier may end later: it confirms less.
        confirmed.note(at(8));
        assert!(confirmed.within(bound, at(15)));
        confirmed.note(at(20));
        assert!(confirmed.within(bound, at(25)));
    }
}
