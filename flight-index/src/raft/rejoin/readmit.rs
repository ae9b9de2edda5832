//! What the leader does for a server that has lost what it had written: it has the others agree to go on without it, and says
//! how things stand then.
//!
//! Not here: how it is added again, which is like any new server ([`crate::raft::members`]).

use std::time::Duration;

use drsdb_core::{Error, ErrorCode, Result, Ulid};

use super::{Readmission, Readmitted, Standing};
use crate::raft::{
    batch::stopped,
    members::{NodeStatus, NotChanged},
    peers::{Call, Leader},
    propose::no_leader,
    shell::Catalog,
    types::NodeId,
};

/// How long a server may take to show that it is not lost.
const ALIVE_TIME: Duration = Duration::from_secs(2);

impl Catalog {
    /// Of a node that leads, for one that has lost what it had written.
    pub(in super::super) async fn readmit_another(&self, request: Readmission) -> Readmitted {
        if self.peers.leader() != Leader::Here {
            return Readmitted::NotLeading;
        }
        match self.let_go(&request).await {
            Ok(answer) => answer,
            Err(NotChanged::NotLeading) => Readmitted::NotLeading,
            Err(NotChanged::Refused(error)) => Readmitted::Refused(error.to_wire().into()),
        }
    }

    async fn let_go(&self, request: &Readmission) -> Result<Readmitted, NotChanged> {
        let refuse = |code, message: String| Err(NotChanged::Refused(Error::new(code, message)));
        let _one = self.changing.lock().await;
        // Whoever leads no more must not say what there is.
        self.linearize().await.map_err(NotChanged::Refused)?;
        let Some(cluster) = self.state().cluster_id() else {
            return refuse(ErrorCode::Unavailable, "the cluster is being made".to_owned());
        };
        if request.cluster.is_some_and(|theirs| theirs != cluster) {
            return refuse(ErrorCode::InvalidArgument, format!("the index servers here belong to cluster {cluster}"));
        }
        let known = self.index_servers();
        let voters = known.iter().filter(|server| server.voter).count();
        match known.iter().find(|server| server.id == request.id) {
            None if !request.again => return Ok(Readmitted::Stranger),
            None => {}
            // Whoever asks under the leader's own number has another one's configuration.
            Some(_) if request.id == self.peers.id => {
                return refuse(ErrorCode::AlreadyExists, format!("index server {} runs, and leads", request.id));
            }
            // What would be agreed on without them could not be undone.
            Some(lost) if lost.voter && voters - 1 <= voters / 2 => {
                let message = format!("of {voters} that vote, the others are no majority");
                return refuse(ErrorCode::Unavailable, message);
            }
            Some(lost) => {
                let runs = self.peers.call::<_, NodeStatus>(&lost.url, Call::NodeStatus, &(), ALIVE_TIME).await;
                if runs.is_ok_and(|status| status.id == lost.id && status.cluster == Some(cluster)) {
                    let message = format!("index server {} runs, at {}", lost.id, lost.url);
                    return refuse(ErrorCode::AlreadyExists, message);
                }
                tracing::warn!(id = lost.id, url = %lost.url, "an index server has lost its files, and joins again");
                if let Err(failed) = self.remove(lost.id).await {
                    return Ok(unsure(failed));
                }
            }
        }
        match self.standing_without(request.id, cluster).await {
            Ok(standing) => Ok(Readmitted::Removed(standing)),
            Err(failed) => Ok(unsure(failed)),
        }
    }

    /// What a server that is none any more must know to join again.
    async fn standing_without(&self, id: NodeId, cluster: Ulid) -> Result<Standing, NotChanged> {
        self.linearize().await.map_err(NotChanged::Refused)?;
        let own = self.peers.id;
        let standing = self.peers.raft.with_raft_state(move |state| {
            let membership = state.membership_state.committed();
            let vote = *state.vote_ref();
            let leads = vote.is_committed() && vote.leader_id().voted_for() == Some(own);
            let gone = membership.nodes().all(|(member, _)| *member != id);
            let servers = membership.nodes().map(|(member, node)| (*member, node.addr.clone())).collect();
            let after = membership.log_id().filter(|_| leads && gone)?;
            Some(Standing { cluster, vote, after, servers })
        });
        match standing.await {
            Ok(Some(standing)) => Ok(standing),
            Ok(None) => Err(NotChanged::NotLeading),
            Err(_) => Err(NotChanged::Refused(self.stopped_because().unwrap_or_else(stopped))),
        }
    }
}

/// The answer when the others may have begun to go on without the server that asks.
fn unsure(failed: NotChanged) -> Readmitted {
    let error = match failed {
        NotChanged::NotLeading => no_leader(),
        NotChanged::Refused(error) => error,
    };
    Readmitted::Unsure(error.to_wire().into())
}
