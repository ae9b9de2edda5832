//! How a server finds out that it was removed.
//!
//! Nobody tells it: it may have been away when the others agreed, and from then on it is sent nothing any more. So a server
//! that hears of no leader, or whose own list lacks it, asks those that it knows for theirs. A list counts when a majority
//! has committed it, and when it is no older than the own one: a server that is just being added has an own one that is
//! newer than what anybody has committed.

use std::time::Duration;

use drsdb_core::Ulid;
use futures::{StreamExt, stream::FuturesUnordered};
use serde::{Deserialize, Serialize};

use super::{
    peers::{Call, Leader},
    shell::Catalog,
    types::{LogId, NodeId},
};

/// How often a server asks that has reason to.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// How long another server may take to answer.
const ANSWER_TIME: Duration = Duration::from_secs(2);

/// The index servers that a server knows to be agreed on.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Agreed {
    cluster: Option<Ulid>,
    /// The entry with the list.
    at: Option<LogId>,
    members: Vec<NodeId>,
}

impl Catalog {
    /// Returns when the index servers have agreed to go on without this one.
    pub async fn removed(&self) {
        let mut ticks = tokio::time::interval(ASK_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut suspected = false;
        loop {
            ticks.tick().await;
            let before = std::mem::replace(&mut suspected, self.may_be_removed());
            // An election makes no leader for a moment: that is no reason to ask.
            if before && suspected && self.others_say_removed().await {
                return;
            }
        }
    }

    fn may_be_removed(&self) -> bool {
        // It was, and is about to be added again.
        if self.is_rejoining() {
            return false;
        }
        let servers = self.index_servers();
        let listed = servers.iter().any(|server| server.id == self.peers.id);
        !servers.is_empty() && (!listed || self.peers.leader() == Leader::Nobody)
    }

    async fn others_say_removed(&self) -> bool {
        let Ok(own) = self.peers.raft.with_raft_state(|state| *state.membership_state.effective().log_id()).await
        else {
            return false;
        };
        let (cluster, id) = (self.state().cluster_id(), self.peers.id);
        let others = self.index_servers().into_iter().filter(|server| server.id != id);
        let mut answers: FuturesUnordered<_> = others
            .map(|server| async move {
                self.peers.call::<_, Option<Agreed>>(&server.url, Call::AgreedMembers, &(), ANSWER_TIME).await
            })
            .collect();
        while let Some(answer) = answers.next().await {
            if answer.ok().flatten().is_some_and(|agreed| agreed.is_without(id, own, cluster)) {
                return true;
            }
        }
        false
    }

    /// For another server, which asks whether it is among them.
    pub(super) async fn agreed_members(&self) -> Option<Agreed> {
        // A server that is behind the others, or cut off from them, would speak of what has been.
        self.linearize().await.ok()?;
        let cluster = self.state().cluster_id();
        let agreed = self.peers.raft.with_raft_state(move |state| {
            let membership = state.membership_state.committed();
            let members = membership.nodes().map(|(id, _)| *id).collect();
            Agreed { cluster, at: *membership.log_id(), members }
        });
        agreed.await.ok()
    }
}

impl Agreed {
    /// Whether `id`, whose own list is of the entry `own`, has been removed from `cluster`.
    fn is_without(&self, id: NodeId, own: Option<LogId>, cluster: Option<Ulid>) -> bool {
        self.cluster.is_some() && self.cluster == cluster && self.at >= own && !self.members.contains(&id)
    }
}

#[cfg(test)]
mod tests {
    use openraft::CommittedLeaderId;

    use super::*;

    fn at(index: u64) -> Option<LogId> {
        Some(LogId::new(CommittedLeaderId::new(3, 1), index))
    }

    #[test]
    fn only_a_list_that_is_as_new_counts() {
        let cluster = Some(Ulid(7));
        let agreed = Agreed { cluster, at: at(10), members: vec![1, 3] };
        assert!(agreed.is_without(2, at(10), cluster));
        assert!(agreed.is_without(2, at(4), cluster));
        // It is being added just now.
        assert!(!agreed.is_without(2, at(11), cluster));
        assert!(!agreed.is_without(3, at(4), cluster));
        assert!(!agreed.is_without(2, at(4), Some(Ulid(8))));
        assert!(!Agreed { cluster: None, ..agreed }.is_without(2, None, None));
    }
}
