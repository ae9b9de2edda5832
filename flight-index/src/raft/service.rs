//! Raft messages that come in: the gRPC service `Raft`. Who may call it is decided before a call gets here.

use std::{fmt, future::Future, sync::Arc};

use drsdb_core::v1::{
    RaftMessage,
    raft_server::{Raft as RaftRpc, RaftServer},
};
use openraft::raft::VoteRequest;
use serde::{Serialize, de::DeserializeOwned};
use tonic::{Request, Response, Status};

use super::{codec, shell::Catalog, types::NodeId};

/// The largest message: room for `MAX_COMMAND_BYTES` many times over.
pub(super) const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// The service of one node.
pub struct RaftService {
    catalog: Arc<Catalog>,
}

impl fmt::Debug for RaftService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RaftService")
    }
}

impl RaftService {
    pub(super) fn server(catalog: Arc<Catalog>) -> RaftServer<Self> {
        RaftServer::new(Self { catalog })
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }
}

/// Decodes a request, has it handled, and encodes the answer: openraft's errors are part of it.
async fn handle<Q, A, F>(
    request: Request<RaftMessage>,
    handler: impl FnOnce(Q) -> F,
) -> Result<Response<RaftMessage>, Status>
where
    Q: DeserializeOwned,
    A: Serialize,
    F: Future<Output = A>,
{
    encode(&handler(decode(request)?).await)
}

fn decode<Q: DeserializeOwned>(request: Request<RaftMessage>) -> Result<Q, Status> {
    Ok(codec::decode("message of another index server", &request.into_inner().payload)?)
}

fn encode<A: Serialize>(answer: &A) -> Result<Response<RaftMessage>, Status> {
    Ok(Response::new(RaftMessage { payload: codec::encode(answer).into(), to: None }))
}

/// A node that comes back without its data under another number must not speak for the old one: it would vote again, and
/// acknowledge entries of a log that it has lost.
fn check_target(request: &Request<RaftMessage>, id: NodeId) -> Result<(), Status> {
    match request.get_ref().to {
        Some(to) if to == id => Ok(()),
        Some(to) => Err(Status::unavailable(format!("index server {id} is here, and not {to}"))),
        None => Err(Status::invalid_argument("the message does not say which index server it is for")),
    }
}

#[tonic::async_trait]
impl RaftRpc for RaftService {
    async fn append(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        check_target(&request, self.catalog.peers.id)?;
        handle(request, |request| self.catalog.peers.raft.append_entries(request)).await
    }

    async fn vote(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        check_target(&request, self.catalog.peers.id)?;
        let request: VoteRequest<NodeId> = decode(request)?;
        self.catalog.check_may_vote(request.last_log_id)?;
        encode(&self.catalog.peers.raft.vote(request).await)
    }

    async fn install_snapshot(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        check_target(&request, self.catalog.peers.id)?;
        handle(request, |request| self.catalog.peers.raft.install_snapshot(request)).await
    }

    async fn propose(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        handle(request, |command| self.catalog.propose_for_another(command)).await
    }

    async fn read_index(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        handle(request, |()| self.catalog.read_index_for_another()).await
    }

    async fn change_members(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        handle(request, |change| self.catalog.change_members_for_another(change)).await
    }

    async fn node_status(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        handle(request, |()| self.catalog.node_status()).await
    }

    async fn hash_state(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        handle(request, |versions| self.catalog.hash_for_another(versions)).await
    }

    async fn agreed_members(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        handle(request, |()| self.catalog.agreed_members()).await
    }

    async fn readmit(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        handle(request, |request| self.catalog.readmit_another(request)).await
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn messages_for_another_node_are_refused() {
        let message = |to| Request::new(RaftMessage { payload: Vec::new().into(), to });
        check_target(&message(Some(2)), 2).unwrap();
        assert_eq!(check_target(&message(Some(1)), 2).unwrap_err().code(), Code::Unavailable);
        assert_eq!(check_target(&message(None), 2).unwrap_err().code(), Code::InvalidArgument);
    }
}
