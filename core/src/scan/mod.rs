//! The leaf of every plan.
//!
//! [`ShardScanExec`] is a description: table, shards by server, projection, filters, snapshot. The index server makes it;
//! it travels inside tickets and stages by [`ShardScanCodec`]; on a storage server its `execute` asks the
//! [`ShardScanner`] that the server put into the session for the rows.

mod codec;
mod exec;

use std::{fmt::Debug, sync::Arc};

use datafusion::{
    execution::SendableRecordBatchStream, physical_expr::PhysicalExpr, physical_plan::metrics::ExecutionPlanMetricsSet,
};

pub use self::{
    codec::ShardScanCodec,
    exec::{OwnWrites, ScanServer, ShardScanExec},
};
use crate::{Result, Table, Ulid};

/// What one partition of one task of a [`ShardScanExec`] reads.
#[derive(Debug, Clone)]
pub struct ShardScanTask {
    /// The table.
    pub table: Arc<Table>,
    /// The shards to read.
    pub shards: Vec<u32>,
    /// Commit version.
    pub snapshot: u64,
    /// Rows that are there at this version as well are left out.
    pub except: Option<u64>,
    /// Positions in the table's columns.
    pub projection: Vec<usize>,
    /// A conjunction over the table's full schema, which a filter above repeats.
    pub filters: Vec<Arc<dyn PhysicalExpr>>,
    /// No more rows than this are needed.
    pub limit: Option<usize>,
    /// Rows in a batch, at most.
    pub batch_rows: usize,
    /// Where the scan counts.
    pub metrics: ExecutionPlanMetricsSet,
    /// The output partition.
    pub partition: usize,
    /// The transaction that reads, if it has staged anything.
    pub own: Option<OwnWrites>,
}

/// The storage behind a [`ShardScanExec`]: a storage server puts one into the session's extensions, as a [`Scanner`].
pub trait ShardScanner: Debug + Send + Sync {
    /// The id of the server, so that a scan can refuse to run on another one.
    fn server_id(&self) -> Ulid;

    /// The rows.
    fn scan(&self, task: ShardScanTask) -> Result<SendableRecordBatchStream>;
}

/// The session extension that carries a [`ShardScanner`].
#[derive(Debug, Clone)]
pub struct Scanner(pub Arc<dyn ShardScanner>);
