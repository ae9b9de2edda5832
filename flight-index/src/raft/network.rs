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
};

/// How to reach a server: the channel to a URL.
pub type Dial = Arc<dyn Fn(&Url) -> Result<Channel> + Send + Sync>;

/// Makes a [`Peer`] for each other voter.
pub(super) struct Network {
    pub(super) dial: Dial,
}

/// One other voter.
pub(super) struct Peer {
    target: NodeId,
    url: String,
    dial: Dial,
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
        Peer { target, url: node.addr.clone(), dial: self.dial.clone() }
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
        let mut message = tonic::Request::new(RaftMessage { payload: codec::encode(request).into() });
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
