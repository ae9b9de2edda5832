//! ALTER CLUSTER and SHOW CLUSTER: which servers there are, for administrators.

use arrow::array::{RecordBatch, StringArray, UInt64Array};
use drsdb_core::{Result, Ulid, security::Login};

use super::{FlightSqlServer, metadata};
use crate::{
    catalog::{CatalogState, Command, ServerState},
    raft::IndexServerStatus,
    statement::{AlterCluster, Show},
};

impl FlightSqlServer {
    /// ALTER CLUSTER; the version at which it is so.
    pub(super) async fn alter_cluster(&self, change: AlterCluster, caller: &Login) -> Result<u64> {
        let state = self.current_state().await?;
        state.require_admin(caller)?;
        match change {
            AlterCluster::AddIndexServer { id, url } => self.catalog.add_index_server(id, &url).await?,
            AlterCluster::RemoveIndexServer { id } => self.catalog.remove_index_server(id).await?,
            AlterCluster::AddStorageServer { id } => self.use_storage(id, ServerState::Active).await?,
            AlterCluster::DrainStorageServer { id } => self.use_storage(id, ServerState::Draining).await?,
            AlterCluster::RemoveStorageServer { id } => {
                self.catalog.propose(Command::DropServer { server: id }).await?;
            }
        }
        Ok(self.catalog.state().version())
    }

    async fn use_storage(&self, server: Ulid, state: ServerState) -> Result<()> {
        self.catalog.propose(Command::SetServerState { server, state }).await.map(drop)
    }

    /// SHOW CLUSTER: the index servers, then the storage servers.
    pub(super) async fn show_cluster(&self, state: &CatalogState, caller: &Login) -> Result<RecordBatch> {
        state.require_admin(caller)?;
        let servers = self.catalog.index_server_status().await;
        let rows: Vec<Row> = servers.iter().map(index_row).chain(storage_rows(state)).collect();
        let text = |value: fn(&Row) -> &str| StringArray::from_iter_values(rows.iter().map(value));
        Ok(RecordBatch::try_new(
            metadata::show_schema(&Show::Cluster),
            vec![
                std::sync::Arc::new(text(|row| row.kind)),
                std::sync::Arc::new(text(|row| &row.id)),
                std::sync::Arc::new(text(|row| &row.url)),
                std::sync::Arc::new(text(|row| &row.state)),
                std::sync::Arc::new(UInt64Array::from_iter(rows.iter().map(|row| row.version))),
                std::sync::Arc::new(StringArray::from_iter(rows.iter().map(|row| row.hash.as_deref()))),
                std::sync::Arc::new(UInt64Array::from_iter(rows.iter().map(|row| row.replicas))),
            ],
        )?)
    }
}

struct Row {
    kind: &'static str,
    id: String,
    url: String,
    state: String,
    version: Option<u64>,
    hash: Option<String>,
    replicas: Option<u64>,
}

/// Digits of a state's hash: enough to see a difference. `drsdb.raft` has all of them.
const HASH_DIGITS: usize = 16;

fn index_row(IndexServerStatus { server, status }: &IndexServerStatus) -> Row {
    let state = match status {
        None => "no answer".to_owned(),
        Some(_) if !server.voter => "learner".to_owned(),
        Some(status) => status.state.clone(),
    };
    Row {
        kind: "index",
        id: server.id.to_string(),
        url: server.url.clone(),
        state,
        version: status.as_ref().map(|status| status.hash.version),
        hash: status.as_ref().map(|status| status.hash.to_string().chars().take(HASH_DIGITS).collect()),
        replicas: None,
    }
}

fn storage_rows(state: &CatalogState) -> impl Iterator<Item = Row> {
    let held = state.replicas_by_server();
    state.servers().map(move |server| Row {
        kind: "storage",
        id: server.id.to_string(),
        url: server.url.clone(),
        state: state.condition(server.id).to_string(),
        version: None,
        hash: None,
        replicas: Some(held.get(&server.id).copied().unwrap_or(0)),
    })
}
