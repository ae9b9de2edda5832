//! Tables that the index server makes up: `information_schema` of the catalog, and `drsdb`, which shows the cluster to those
//! who run it. They are built when a query names them, from the query's own catalog state.

mod cluster;
mod information_schema;
mod rows;

use std::{collections::BTreeMap, fmt, sync::Arc};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use async_trait::async_trait;
use datafusion::{
    catalog::{TableProvider, streaming::StreamingTable},
    execution::{SendableRecordBatchStream, TaskContext},
    physical_plan::{stream::RecordBatchStreamAdapter, streaming::PartitionStream},
};
use drsdb_core::{Result, Ulid, query_session::QueryOptions, v1};

use crate::catalog::CatalogState;
use rows::{Cell, Shape};

/// The schemas of system tables. No user can make a schema of such a name.
pub const SCHEMAS: [&str; 2] = ["information_schema", "drsdb"];

/// A system table: its name, its columns, and its rows.
type Entry = (&'static str, Shape, fn(&Sources<'_>) -> Vec<Vec<Cell>>);

/// What rows are made of.
struct Sources<'a> {
    state: &'a CatalogState,
    /// Of the tables that show it; the others ask nobody.
    raft: Vec<RaftNode>,
    transactions: Vec<TransactionsOf>,
    storage: BTreeMap<Ulid, StorageNode>,
    options: &'a QueryOptions,
}

/// What this server knows beyond the catalog.
#[async_trait]
pub trait SystemSource: Send + Sync + fmt::Debug {
    /// The voters and learners, as they say themselves.
    async fn raft(&self) -> Vec<RaftNode> {
        Vec::new()
    }

    /// The transactions that each index server runs, as it says itself.
    async fn transactions(&self) -> Vec<TransactionsOf> {
        Vec::new()
    }

    /// The storage servers that answer, as they say themselves.
    async fn storage(&self) -> BTreeMap<Ulid, StorageNode> {
        BTreeMap::new()
    }
}

/// Knows nothing: for planners outside of a server.
#[derive(Debug, Clone, Copy)]
pub struct NoSystem;

#[async_trait]
impl SystemSource for NoSystem {}

/// A member of the Raft group. What is not known of another server is `None`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct RaftNode {
    pub id: u64,
    pub url: String,
    /// `leader`, `follower`, `candidate` or `learner`.
    pub role: String,
    pub term: Option<u64>,
    pub last_log: Option<u64>,
    pub applied: Option<u64>,
    /// The hash of the state at `applied`.
    pub state_hash: Option<String>,
    /// Since which version it knows that another server's state differs from its own.
    pub disagrees_since: Option<u64>,
}

/// The transactions of one index server.
#[derive(Debug, Clone, PartialEq)]
pub struct TransactionsOf {
    /// The index server's URL.
    pub server: String,
    /// `None`: it does not answer.
    pub running: Option<Vec<v1::RunningTransaction>>,
}

/// A storage server.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StorageNode {
    /// The last commit that it has taken in.
    pub applied: u64,
    /// What it copies from others, by table and shard.
    pub rebuilds: BTreeMap<(Ulid, u32), v1::RebuildProgress>,
}

fn entries(schema: &str) -> &'static [Entry] {
    match schema {
        "information_schema" => information_schema::TABLES,
        "drsdb" => cluster::TABLES,
        _ => &[],
    }
}

/// The system tables of a schema.
pub fn names(schema: &str) -> impl Iterator<Item = &'static str> + use<> {
    entries(schema).iter().map(|(name, ..)| *name)
}

/// The system table `schema.name`, if it is one.
pub async fn table(
    schema: &str,
    name: &str,
    state: &CatalogState,
    system: &dyn SystemSource,
    options: &QueryOptions,
) -> Option<Result<Arc<dyn TableProvider>>> {
    let (_, shape, rows) = entries(schema).iter().find(|(known, ..)| *known == name)?;
    let raft = if cluster::shows_raft(name) { system.raft().await } else { Vec::new() };
    let transactions = if cluster::shows_transactions(name) { system.transactions().await } else { Vec::new() };
    let storage = if cluster::shows_storage(name) { system.storage().await } else { BTreeMap::new() };
    let sources = Sources { state, raft, transactions, storage, options };
    Some(rows::batch(shape, rows(&sources)).and_then(provider))
}

/// A stream and not a table in memory: those are taken for constants of a statement, and would travel to storage servers.
fn provider(batch: RecordBatch) -> Result<Arc<dyn TableProvider>> {
    let rows: Arc<dyn PartitionStream> = Arc::new(Rows { schema: batch.schema(), batch });
    Ok(Arc::new(StreamingTable::try_new(Arc::clone(rows.schema()), vec![rows])?))
}

#[derive(Debug)]
struct Rows {
    schema: SchemaRef,
    batch: RecordBatch,
}

impl PartitionStream for Rows {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let rows = futures::stream::iter([Ok(self.batch.clone())]);
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), rows))
    }
}
