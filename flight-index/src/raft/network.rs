//! Raft messages that go out, to the other voters' [`super::service`].

use std::{fmt, sync::Arc};

use drsdb_core::{
    Result,
    v1::{RaftMessage, raft_client::RaftClient},
};
use openraft::{
    AnyError, BasicNode,
    error::{InstallSnapshotError, NetworkError, RPCError, RaftError, RemoteError, Unreachable},
    network::{RPCOption, RaftNetwork, RaftNetworkFactory},
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse, VoteRequest,
        VoteResponse,
    },
};
use serde::{Serialize, de::DeserializeOwned};
use tonic::{Code, Status, transport::Channel};
use url::Url;

use super::{
    codec,
    service::MAX_MESSAGE_BYTES,
    types::{NodeId, TypeConfig},
    unsynced::Unsynced,
};

/// How to reach a server: the channel to a URL.
pub type Dial = Arc<dyn Fn(&Url) -> Result<Channel> + Send + Sync>;

/// Makes a [`Peer`] for each other voter.
pub(super) struct Network {
    pub(super) dial: Dial,
    pub(super) unsynced: Unsynced,
}

/// One other voter.
pub(super) struct Peer {
    target: NodeId,
    url: String,
    dial: Dial,
    unsynced: Unsynced,
}

type CallError<E> = RPCError<NodeId, BasicNode, RaftError<NodeId, E>>;

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Network")
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: NodeId, node: &BasicNode) -> Peer {
        Peer { target, url: node.addr.clone(), dial: self.dial.clone(), unsynced: self.unsynced.clone() }
    }
}

/// Which of the service's methods to call.
#[derive(Clone, Copy)]
enum Method {
    Append,
    Vote,
    InstallSnapshot,
}

impl Peer {
    async fn call<Q, A, E>(&self, method: Method, request: &Q, option: &RPCOption) -> Result<A, CallError<E>>
    where
        Q: Serialize,
        A: DeserializeOwned,
        E: std::error::Error + DeserializeOwned,
    {
        let url = Url::parse(&self.url).map_err(|error| RPCError::Unreachable(Unreachable::new(&error)))?;
        let channel = (self.dial)(&url).map_err(|error| RPCError::Unreachable(Unreachable::new(&error)))?;
        let mut client = RaftClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let mut message =
            tonic::Request::new(RaftMessage { payload: codec::encode(request).into(), to: Some(self.target) });
        message.set_timeout(option.hard_ttl());
        let answer = match method {
            Method::Append => client.append(message).await,
            Method::Vote => client.vote(message).await,
            Method::InstallSnapshot => client.install_snapshot(message).await,
        };
        let answer = answer.map_err(|status| transport_error(&status))?.into_inner();
        let answer: Result<A, RaftError<NodeId, E>> = codec::decode("answer of another voter", &answer.payload)
            .map_err(|error| RPCError::Network(NetworkError::new(&error)))?;
        answer.map_err(|error| RPCError::RemoteError(RemoteError::new(self.target, error)))
    }
}

/// openraft waits before it tries an unreachable node again, and tries at once after other failures.
fn transport_error<E: std::error::Error>(status: &Status) -> CallError<E> {
    match status.code() {
        Code::Cancelled | Code::DeadlineExceeded => RPCError::Network(NetworkError::from(AnyError::new(status))),
        _ => RPCError::Unreachable(Unreachable::from(AnyError::new(status))),
    }
}

impl RaftNetwork<TypeConfig> for Peer {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<NodeId>, CallError<openraft::error::Infallible>> {
        // Before the others hear that entries are committed, they are on this node's disk too.
        let synced = self.unsynced.wait(request.leader_commit.map_or(0, |committed| committed.index)).await;
        synced.map_err(|error| RPCError::Unreachable(Unreachable::new(&error)))?;
        self.call(Method::Append, &request, &option).await
    }

    async fn install_snapshot(
        &mut self,
        request: InstallSnapshotRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<InstallSnapshotResponse<NodeId>, CallError<InstallSnapshotError>> {
        self.call(Method::InstallSnapshot, &request, &option).await
    }

    async fn vote(
        &mut self,
        request: VoteRequest<NodeId>,
        option: RPCOption,
    ) -> Result<VoteResponse<NodeId>, CallError<openraft::error::Infallible>> {
        self.call(Method::Vote, &request, &option).await
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    use futures::FutureExt;
    use openraft::{CommittedLeaderId, LogId, Vote};

    use super::*;

    #[tokio::test]
    async fn others_hear_of_a_commit_when_it_is_on_the_own_disk() {
        let unsynced = Unsynced::new();
        let early = unsynced.begin(5).unwrap();
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&calls);
        let dial: Dial = Arc::new(move |_: &Url| {
            counted.fetch_add(1, Ordering::Relaxed);
            Err(drsdb_core::Error::internal("nobody is there"))
        });
        let mut network = Network { dial, unsynced };
        let mut peer = network.new_client(2, &BasicNode::new("https://127.0.0.1:1/")).await;
        let request = |committed| AppendEntriesRequest {
            vote: Vote::new_committed(3, 1),
            prev_log_id: None,
            entries: Vec::new(),
            leader_commit: Some(LogId::new(CommittedLeaderId::new(3, 1), committed)),
        };
        let option = || RPCOption::new(Duration::from_secs(60));
        peer.append_entries(request(4), option()).await.unwrap_err();
        assert_eq!(calls.load(Ordering::Relaxed), 1);
        let mut waits = Box::pin(peer.append_entries(request(5), option()));
        assert!((&mut waits).now_or_never().is_none());
        assert_eq!(calls.load(Ordering::Relaxed), 1);
        early.written();
        waits.await.unwrap_err();
        assert_eq!(calls.load(Ordering::Relaxed), 2);
    }
}
