//! Entries that a leader replicates while its own disk still writes them, so that a commit waits for one fsync and not for
//! two in a row (Ongaro, Consensus: Bridging Theory and Practice, 2014, 10.2.1).
//!
//! ```text
//! append ──┬─▶ own writer ──▶ fsync ──────────────────┐
//!          └─▶ other voters ──▶ their fsync ──▶ answer ┴─▶ commit: applied here, told to the others
//! ```
//!
//! openraft counts the leader's own copy when the log store says that it is written, which is said early here. So what
//! openraft takes for committed may not be on a majority of the disks yet, and two rules make up for it:
//!
//! 1. Invariant: nobody hears of a commit before [`Unsynced::wait`] has returned for it: neither the state machine (the log
//!    store waits when openraft notes how far the log is committed, which it does before it applies) nor another node (the
//!    network waits before it sends a message that says so).
//! 2. Invariant: a node that starts again leads in a later term only. Its disk may have lost entries that others have, and in
//!    the same term it would give their indices to other ones. openraft lets a node whose vote is committed lead on at once;
//!    a vote for itself is not committed on disk ([`forget_lead`]). So a leader that starts again costs an election.
//!
//! Early are entries of the leader alone. What a follower writes, and every vote, is on disk before it is said.

use std::{collections::VecDeque, io};

use tokio::sync::watch;

use super::types::{Entry, NodeId, Vote};

/// What is being written. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Unsynced(watch::Sender<Writing>);

#[derive(Debug, Default)]
struct Writing {
    /// The first index of each append on its way to the disk, the oldest one first, as they are written.
    firsts: VecDeque<u64>,
    /// Whether one of them did not get there. None does after that.
    failed: bool,
}

impl Unsynced {
    pub(super) fn new() -> Self {
        Self(watch::Sender::default())
    }

    /// An append from index `first` on is being written. `None`: an earlier one failed, and nothing is early any more.
    pub(super) fn begin(&self, first: u64) -> Option<Append> {
        let began = self.0.send_if_modified(|writing| {
            if !writing.failed {
                writing.firsts.push_back(first);
            }
            !writing.failed
        });
        began.then(|| Append { unsynced: self.clone(), is_written: false })
    }

    /// Returns when an append did not get to the disk.
    pub(super) async fn failed(&self) {
        // The sender is in `self`.
        let _ = self.0.subscribe().wait_for(|writing| writing.failed).await;
    }

    /// Returns when all entries up to this one are on disk.
    pub(super) async fn wait(&self, index: u64) -> io::Result<()> {
        let mut writing = self.0.subscribe();
        let is_over = |writing: &Writing| writing.failed || writing.firsts.front().is_none_or(|first| *first > index);
        match writing.wait_for(is_over).await {
            Ok(writing) if writing.firsts.front().is_none_or(|first| *first > index) => Ok(()),
            Ok(_) | Err(_) => Err(io::Error::other("this index server cannot write its log")),
        }
    }
}

/// An append on its way. One that is dropped before it is written never will be.
#[derive(Debug)]
pub(super) struct Append {
    unsynced: Unsynced,
    is_written: bool,
}

impl Append {
    /// The append is on disk; it is the oldest one.
    pub(super) fn written(mut self) {
        self.is_written = true;
    }
}

impl Drop for Append {
    fn drop(&mut self) {
        self.unsynced.0.send_modify(|writing| match self.is_written {
            true => drop(writing.firsts.pop_front()),
            false => writing.failed = true,
        });
    }
}

/// Whether these are a leader's entries, and `node`, whose vote this is, is that leader. No node gets entries of its own lead
/// from another one: whoever sends them has a later vote, which is written first.
pub(super) fn are_own(entries: &[Entry], vote: Option<&Vote>, node: NodeId) -> bool {
    vote.is_some_and(|vote| {
        let leads = vote.is_committed() && vote.leader_id().voted_for() == Some(node);
        leads && entries.iter().all(|entry| entry.log_id.leader_id == *vote.leader_id())
    })
}

/// A vote as it is on disk: a node that starts again has voted for itself, and does not lead.
pub(super) fn forget_lead(mut vote: Vote, node: NodeId) -> Vote {
    if vote.leader_id().voted_for() == Some(node) {
        vote.committed = false;
    }
    vote
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use openraft::{EntryPayload, LogId};

    use super::*;

    #[tokio::test]
    async fn a_commit_waits_for_the_appends_up_to_it() {
        let unsynced = Unsynced::new();
        unsynced.wait(7).await.unwrap();
        let (first, second) = (unsynced.begin(5).unwrap(), unsynced.begin(8).unwrap());
        unsynced.wait(4).await.unwrap();
        let mut in_first = Box::pin(unsynced.wait(7));
        let mut in_second = Box::pin(unsynced.wait(8));
        assert!((&mut in_first).now_or_never().is_none() && (&mut in_second).now_or_never().is_none());
        first.written();
        in_first.await.unwrap();
        assert!((&mut in_second).now_or_never().is_none() && unsynced.failed().now_or_never().is_none());
        drop(second);
        unsynced.failed().await;
        in_second.await.unwrap_err();
        // What was on disk before stays there.
        unsynced.wait(7).await.unwrap();
        unsynced.wait(9).await.unwrap_err();
        assert!(unsynced.begin(9).is_none());
    }

    #[test]
    fn own_entries_are_those_of_the_present_lead() {
        let entry = |term, node, index| Entry {
            log_id: LogId::new(openraft::CommittedLeaderId::new(term, node), index),
            payload: EntryPayload::Blank,
        };
        let lead = Vote::new_committed(3, 1);
        assert!(are_own(&[entry(3, 1, 8), entry(3, 1, 9)], Some(&lead), 1));
        assert!(
            !are_own(&[entry(2, 1, 8), entry(3, 1, 9)], Some(&lead), 1),
            "an earlier lead's entries come from another"
        );
        assert!(!are_own(&[entry(3, 1, 8)], Some(&lead), 2), "another node's");
        assert!(!are_own(&[entry(3, 1, 8)], Some(&Vote::new(3, 1)), 1), "a candidate has no entries");
        assert!(!are_own(&[entry(3, 1, 8)], None, 1));
        // After a start: the same entries come from another leader.
        assert!(!are_own(&[entry(3, 1, 8)], Some(&forget_lead(lead, 1)), 1));
        assert_eq!(forget_lead(Vote::new_committed(3, 2), 1), Vote::new_committed(3, 2));
    }
}
