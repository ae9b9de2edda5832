//! What an index server shows of itself in the system tables.

use async_trait::async_trait;

use crate::{
    planner::{RaftNode, SystemSource},
    raft::{Catalog, IndexServerStatus},
};

#[async_trait]
impl SystemSource for Catalog {
    async fn raft(&self) -> Vec<RaftNode> {
        let node = |IndexServerStatus { server, status }: IndexServerStatus| RaftNode {
            id: server.id,
            url: server.url,
            role: status.as_ref().map_or_else(|| "does not answer".to_owned(), |status| status.state.clone()),
            term: status.as_ref().map(|status| status.term),
            last_log: status.as_ref().map(|status| status.log),
            applied: status.as_ref().map(|status| status.applied),
            disagrees_since: status.as_ref().and_then(|status| status.disagrees_since),
            state_hash: status.map(|status| status.hash.to_string()),
        };
        self.index_server_status().await.into_iter().map(node).collect()
    }
}
