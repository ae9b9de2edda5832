//! Who leads, and how the other index servers are asked.

use std::{fmt, time::Duration};

use drsdb_core::{
    Error, ErrorCode, Result, WireError,
    net::was_not_sent,
    v1::{RaftMessage, raft_client::RaftClient},
};
use serde::{Serialize, de::DeserializeOwned};
use tonic::{Response, Status, transport::Channel};
use url::Url;

use super::{
    codec,
    network::Dial,
    service::MAX_MESSAGE_BYTES,
    types::{NodeId, Raft},
};

/// A leader that heard so long from no majority is cut off: the others elect another.
const CUT_OFF_MS: u64 = 3_000;

/// Where what needs the leader goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Leader {
    /// This node.
    Here,
    /// Another one, at this URL.
    There(NodeId, String),
    /// Nobody, or nobody that this node knows of.
    Nobody,
}

/// The index servers as one of them sees them. Clones are cheap.
#[derive(Clone)]
pub(super) struct Peers {
    pub(super) id: NodeId,
    pub(super) raft: Raft,
    pub(super) dial: Dial,
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peers").field("id", &self.id).finish_non_exhaustive()
    }
}

/// How a call to another server failed.
#[derive(Debug)]
pub(super) enum CallFailed {
    /// It never left this process, or was refused before anybody looked at it.
    NotSent(WireError),
    /// It may have been carried out.
    Lost(WireError),
}

impl From<CallFailed> for WireError {
    fn from(failed: CallFailed) -> Self {
        match failed {
            CallFailed::NotSent(error) | CallFailed::Lost(error) => error,
        }
    }
}

/// The calls between index servers that are drsdb's own.
#[derive(Debug, Clone, Copy)]
pub(super) enum Call {
    Propose,
    ReadIndex,
    ChangeMembers,
    NodeStatus,
    HashState,
    AgreedMembers,
    Readmit,
}

impl Peers {
    /// Who leads, as far as this node knows.
    pub(super) fn leader(&self) -> Leader {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let membership = metrics.membership_config.membership();
        match metrics.current_leader {
            Some(id) if id == self.id => {
                let alone = membership.voter_ids().eq([id]);
                let cut_off = metrics.millis_since_quorum_ack.is_some_and(|silence| silence > CUT_OFF_MS);
                if cut_off && !alone { Leader::Nobody } else { Leader::Here }
            }
            Some(id) => match membership.get_node(&id) {
                Some(node) => Leader::There(id, node.addr.clone()),
                None => Leader::Nobody,
            },
            None => Leader::Nobody,
        }
    }

    /// Returns when somebody else leads than `leader`, or at the latest after `patience`.
    pub(super) async fn leader_changed(&self, leader: &Leader, patience: Duration) {
        let mut metrics = self.raft.metrics();
        let changed = async {
            while self.leader() == *leader {
                if metrics.changed().await.is_err() {
                    // The node is gone; whoever waits finds out when it asks again.
                    std::future::pending::<()>().await;
                }
            }
        };
        // The end of the patience is no failure: it is time to ask again.
        drop(tokio::time::timeout(patience, changed).await);
    }

    /// Asks the server at `url`.
    pub(super) async fn call<Q: Serialize, A: DeserializeOwned>(
        &self,
        url: &str,
        call: Call,
        request: &Q,
        patience: Duration,
    ) -> Result<A, CallFailed> {
        ask(&self.dial, url, call, request, patience).await
    }
}

/// Asks the index server at `url`.
pub(super) async fn ask<Q: Serialize, A: DeserializeOwned>(
    dial: &Dial,
    url: &str,
    call: Call,
    request: &Q,
    patience: Duration,
) -> Result<A, CallFailed> {
    let mut client = client(dial, url).map_err(|error| CallFailed::NotSent(error.to_wire()))?;
    let mut message = tonic::Request::new(RaftMessage { payload: codec::encode(request).into(), to: None });
    message.set_timeout(patience);
    let asked = async {
        match call {
            Call::Propose => client.propose(message).await,
            Call::ReadIndex => client.read_index(message).await,
            Call::ChangeMembers => client.change_members(message).await,
            Call::NodeStatus => client.node_status(message).await,
            Call::HashState => client.hash_state(message).await,
            Call::AgreedMembers => client.agreed_members(message).await,
            Call::Readmit => client.readmit(message).await,
        }
    };
    let answer = match tokio::time::timeout(patience, asked).await {
        Ok(answer) => answer.map(Response::into_inner).map_err(|status| call_failed(status, url))?,
        Err(_) => {
            let error = WireError::new(ErrorCode::Unavailable, format!("index server {url} does not answer"));
            return Err(CallFailed::Lost(error.with_field("server", url)));
        }
    };
    codec::decode("answer of another index server", &answer.payload).map_err(|error| CallFailed::Lost(error.to_wire()))
}

fn client(dial: &Dial, url: &str) -> Result<RaftClient<Channel>> {
    let url = Url::parse(url).map_err(|error| Error::new(ErrorCode::InvalidArgument, format!("{url}: {error}")))?;
    Ok(RaftClient::new(dial(&url)?)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES))
}

fn call_failed(status: Status, url: &str) -> CallFailed {
    // Not there yet, or not allowed: decided before the call was looked at.
    let refused = matches!(
        status.code(),
        tonic::Code::Unimplemented | tonic::Code::PermissionDenied | tonic::Code::Unauthenticated
    );
    let surely_not = refused || was_not_sent(&status);
    let error = match Url::parse(url) {
        Ok(url) => drsdb_core::net::name_server(status, &url).to_wire(),
        Err(_) => WireError::from(status),
    };
    if surely_not { CallFailed::NotSent(error) } else { CallFailed::Lost(error) }
}
