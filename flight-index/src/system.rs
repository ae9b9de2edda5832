//! What an index server shows of itself and of the others in the system tables.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use drsdb_core::{
    Ulid, parse_ulid,
    v1::{
        ListTransactionsRequest, RunningTransaction, StatusRequest, cluster_client::ClusterClient,
        storage_client::StorageClient,
    },
};
use futures::future::join_all;
use url::Url;

use crate::{
    catalog::StorageServer,
    planner::{RaftNode, StorageNode, SystemSource, TransactionsOf},
    raft::{Catalog, Dial, IndexServerStatus, NodeId},
    transaction::Sessions,
};

/// How long another index server may take to say what runs there.
const PATIENCE: Duration = Duration::from_secs(2);

/// What system tables are made of.
pub struct System {
    catalog: Arc<Catalog>,
    sessions: Arc<Sessions>,
    node_id: NodeId,
    dial: Dial,
}

impl fmt::Debug for System {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("System").field("node_id", &self.node_id).finish_non_exhaustive()
    }
}

impl System {
    /// Of index server `node_id`, which reaches the others by `dial`.
    pub fn new(catalog: Arc<Catalog>, sessions: Arc<Sessions>, node_id: NodeId, dial: Dial) -> Self {
        Self { catalog, sessions, node_id, dial }
    }

    /// What runs on the index server at `url`; `None` when it does not answer.
    async fn running_at(&self, url: &str) -> Option<Vec<RunningTransaction>> {
        let channel = (self.dial)(&Url::parse(url).ok()?).ok()?;
        let mut client = ClusterClient::new(channel);
        let asked = client.list_transactions(ListTransactionsRequest {});
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Ok(answer)) => Some(answer.into_inner().transactions),
            Ok(Err(error)) => {
                tracing::debug!(%error, url, "an index server does not say what runs there");
                None
            }
            Err(_) => None,
        }
    }

    /// What a storage server says of itself; `None` when it does not answer.
    async fn storage_at(&self, server: &StorageServer) -> Option<StorageNode> {
        let mut client = StorageClient::new((self.dial)(&server.address().ok()?).ok()?);
        let asked = tokio::time::timeout(PATIENCE, client.status(StatusRequest::default())).await;
        let status = asked.ok()?.ok()?.into_inner();
        let rebuilds = status.rebuilds.into_iter();
        let rebuilds = rebuilds.filter_map(|one| Some(((parse_ulid(&one.table_id).ok()?, one.shard), one)));
        // Another server may have the URL now.
        let is_meant = status.server_id == server.id.to_string();
        is_meant.then(|| StorageNode { applied: status.applied_version, rebuilds: rebuilds.collect() })
    }
}

#[async_trait]
impl SystemSource for System {
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
        self.catalog.index_server_status().await.into_iter().map(node).collect()
    }

    async fn transactions(&self) -> Vec<TransactionsOf> {
        let asked = self.catalog.index_servers().into_iter().map(|server| async move {
            let running = if server.id == self.node_id {
                Some(self.sessions.running())
            } else {
                self.running_at(&server.url).await
            };
            TransactionsOf { server: server.url, running }
        });
        join_all(asked).await
    }

    async fn storage(&self) -> BTreeMap<Ulid, StorageNode> {
        let state = self.catalog.state();
        let asked = state.servers().map(|server| async move { Some((server.id, self.storage_at(server).await?)) });
        join_all(asked).await.into_iter().flatten().collect()
    }
}
