//! [`ShardScanExec`], the execution plan node. Its wire form is in `codec.rs`.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use datafusion::{
    common::{
        Result as DfResult, Statistics,
        tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion},
    },
    config::ConfigOptions,
    execution::{RecordBatchStream, SendableRecordBatchStream, TaskContext},
    physical_expr::{
        EquivalenceProperties, Partitioning, PhysicalExpr, expressions::Column as PhysicalColumn,
        utils::collect_columns,
    },
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, StatisticsArgs,
        execution_plan::{Boundedness, EmissionType},
        filter_pushdown::{ChildPushdownResult, FilterPushdownPhase, FilterPushdownPropagation, PushedDown},
        metrics::{Count, ExecutionPlanMetricsSet, MetricBuilder, MetricsSet, Time},
    },
};
use datafusion_distributed::DistributedTaskContext;
use drsdb_proto::{ErrorCode, WireError};
use futures::Stream;
use url::Url;

use super::{Scanner, ShardScanTask};
use crate::{Error, Table, Ulid, wanted::Sliced};

/// A storage server of a scan, and what the scan reads there. Before servers are chosen: the replicas of some shards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScanServer {
    /// The server.
    pub id: Ulid,
    /// Where it listens.
    pub url: Url,
    /// The shards of the table that are read there; may be none.
    pub shards: Vec<u32>,
    /// Other servers that hold the same shards, and can stand in for it.
    pub also: Vec<Ulid>,
}

/// What a transaction sees of its own: what its statements up to `sequence` staged and deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnWrites {
    /// The transaction.
    pub transaction: Ulid,
    /// Its last statement that counts.
    pub sequence: u32,
}

/// Reads shards of one table at one snapshot.
///
/// The node is one leaf for all servers. In task `i` of its stage it stands for what `servers[i]` holds, spread over
/// `partitions` output partitions, so a stage must have exactly as many tasks as the leaf has servers, and task `i` must
/// run on `servers[i]`. Both are checked when it executes: a broken rule is an error, never a short result.
#[derive(Debug, Clone)]
pub struct ShardScanExec {
    pub(super) table: Arc<Table>,
    pub(super) snapshot: u64,
    pub(super) projection: Vec<usize>,
    pub(super) filters: Vec<Arc<dyn PhysicalExpr>>,
    pub(super) limit: Option<usize>,
    pub(super) servers: Arc<Vec<ScanServer>>,
    pub(super) partitions: usize,
    pub(super) statistics: Arc<Statistics>,
    pub(super) own: Option<OwnWrites>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl ShardScanExec {
    /// A scan without filters and limit. `statistics` are of the projected columns.
    pub fn new(
        table: Arc<Table>,
        snapshot: u64,
        projection: Vec<usize>,
        servers: Vec<ScanServer>,
        partitions: usize,
        statistics: Statistics,
    ) -> DfResult<Self> {
        let schema: SchemaRef = Arc::new(table.arrow_schema().project(&projection)?);
        Ok(Self {
            properties: Arc::new(properties(schema, partitions)),
            table,
            snapshot,
            projection,
            filters: Vec::new(),
            limit: None,
            servers: Arc::new(servers),
            partitions,
            statistics: Arc::new(statistics),
            own: None,
            metrics: ExecutionPlanMetricsSet::new(),
        })
    }

    /// The same scan with filters over the table's full schema.
    pub fn with_filters(mut self, filters: Vec<Arc<dyn PhysicalExpr>>) -> Self {
        self.filters = filters;
        self
    }

    /// The same scan, which may stop after `limit` rows.
    pub fn with_limit(mut self, limit: Option<usize>) -> Self {
        self.limit = limit;
        self
    }

    /// The same scan, which also sees what a transaction has staged.
    pub fn with_own_writes(mut self, own: Option<OwnWrites>) -> Self {
        self.own = own;
        self
    }

    /// The same scan, spread over other servers.
    pub fn with_servers(mut self, servers: Vec<ScanServer>) -> Self {
        self.servers = Arc::new(servers);
        self
    }

    /// The same scan with another number of partitions in each task.
    pub fn with_partitions(mut self, partitions: usize) -> Self {
        self.partitions = partitions;
        self.properties = Arc::new(properties(self.schema(), partitions));
        self
    }

    /// The table.
    pub fn table(&self) -> &Arc<Table> {
        &self.table
    }

    /// Statistics of the projected columns.
    pub fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    /// The servers in task order.
    pub fn servers(&self) -> &[ScanServer] {
        &self.servers
    }

    /// What this task reads in `partition`: shards are dealt out round-robin.
    fn shards_of(&self, server: &ScanServer, partition: usize) -> Vec<u32> {
        server.shards.iter().copied().skip(partition).step_by(self.partitions).collect()
    }
}

fn properties(schema: SchemaRef, partitions: usize) -> PlanProperties {
    PlanProperties::new(
        EquivalenceProperties::new(schema),
        // Nothing is declared about where rows lie: a Hash partitioning would have to line up with every consumer.
        Partitioning::UnknownPartitioning(partitions),
        EmissionType::Incremental,
        Boundedness::Bounded,
    )
}

impl DisplayAs for ShardScanExec {
    fn fmt_as(&self, format: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        let columns: Vec<&str> = self.projection.iter().map(|&i| self.table.columns[i].name.as_str()).collect();
        let shards: usize = self.servers.iter().map(|server| server.shards.len()).sum();
        let separator = if matches!(format, DisplayFormatType::TreeRender) { "\n" } else { ", " };
        if !matches!(format, DisplayFormatType::TreeRender) {
            write!(f, "ShardScanExec: ")?;
        }
        write!(f, "table={}{separator}shards={shards}/{}", self.table.name, self.table.shards)?;
        write!(f, "{separator}servers={}{separator}columns=[{}]", self.servers.len(), columns.join(", "))?;
        if !self.filters.is_empty() {
            let filters: Vec<String> = self.filters.iter().map(|filter| filter.to_string()).collect();
            write!(f, "{separator}filters=[{}]", filters.join(" AND "))?;
        }
        if let Some(limit) = self.limit {
            write!(f, "{separator}limit={limit}")?;
        }
        if matches!(format, DisplayFormatType::Verbose) {
            for server in self.servers.iter() {
                write!(f, "{separator}{}={:?}", server.url, server.shards)?;
            }
        }
        Ok(())
    }
}

impl ExecutionPlan for ShardScanExec {
    fn name(&self) -> &str {
        "ShardScanExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> DfResult<TreeNodeRecursion>,
    ) -> DfResult<TreeNodeRecursion> {
        for filter in &self.filters {
            if f(filter)? == TreeNodeRecursion::Stop {
                return Ok(TreeNodeRecursion::Stop);
            }
        }
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> DfResult<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> DfResult<SendableRecordBatchStream> {
        let task = DistributedTaskContext::from_ctx(&context);
        let scanner = context.session_config().get_extension::<Scanner>();
        let Some(scanner) = scanner else {
            return Err(Error::internal("rows are read on storage servers only").into_datafusion());
        };
        let server = self.servers.get(task.task_index).filter(|_| task.task_count == self.servers.len());
        let Some(server) = server else {
            return Err(Error::internal(format!(
                "the scan of {} is spread over {} servers, but its stage has {} tasks",
                self.table.name,
                self.servers.len(),
                task.task_count
            ))
            .into_datafusion());
        };
        let here = scanner.0.server_id();
        if server.id != here && !server.also.contains(&here) {
            // Another server is at its address since the query was planned: one that has lost its disk comes back so.
            let message = format!(
                "task {} of the scan of {} belongs on server {} and was sent to {}",
                task.task_index, self.table.name, server.id, here
            );
            let error = WireError::new(ErrorCode::Unavailable, message);
            return Err(Error::from(error.with_hint("run the query again")).into_datafusion());
        }
        let request = ShardScanTask {
            table: Arc::clone(&self.table),
            shards: self.shards_of(server, partition),
            snapshot: self.snapshot,
            except: None,
            projection: self.projection.clone(),
            filters: self.filters.clone(),
            limit: self.limit,
            batch_rows: context.session_config().batch_size(),
            metrics: self.metrics.clone(),
            partition,
            own: self.own,
        };
        let rows = scanner.0.scan(request).map_err(Error::into_datafusion)?;
        let metric = || MetricBuilder::new(&self.metrics);
        let (count, time) = (metric().output_rows(partition), metric().elapsed_compute(partition));
        Ok(Box::pin(Sliced::new(Box::pin(Measured { rows, count, time }))))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }

    fn statistics_from_inputs(&self, _: &[Arc<Statistics>], args: &StatisticsArgs) -> DfResult<Arc<Statistics>> {
        match args.partition() {
            None => Ok(Arc::clone(&self.statistics)),
            Some(_) => {
                let mut part = self.statistics.as_ref().clone().to_inexact();
                part.num_rows = part.num_rows.map(|rows| rows / self.partitions.max(1));
                part.total_byte_size = part.total_byte_size.map(|bytes| bytes / self.partitions.max(1));
                Ok(Arc::new(part))
            }
        }
    }

    fn supports_limit_pushdown(&self) -> bool {
        false
    }

    fn with_fetch(&self, _: Option<usize>) -> Option<Arc<dyn ExecutionPlan>> {
        // Each partition of each server would return up to the limit. The table gives a limit as a hint, and whoever has
        // a limit keeps it.
        None
    }

    fn handle_child_pushdown_result(
        &self,
        _phase: FilterPushdownPhase,
        result: ChildPushdownResult,
        _config: &ConfigOptions,
    ) -> DfResult<FilterPushdownPropagation<Arc<dyn ExecutionPlan>>> {
        let mut filters = self.filters.clone();
        for parent in &result.parent_filters {
            let known = collect_columns(&parent.filter).iter().all(|column| column.index() < self.projection.len());
            if known {
                filters.push(self.over_full_schema(&parent.filter)?);
            }
        }
        // A filter is a hint to the scan: whoever pushed it keeps it.
        let answer = vec![PushedDown::No; result.parent_filters.len()];
        let propagation = FilterPushdownPropagation::with_parent_pushdown_result(answer);
        if filters.len() == self.filters.len() {
            return Ok(propagation);
        }
        let limit = self.limit.filter(|_| filters.is_empty());
        let scan = self.clone().with_filters(filters).with_limit(limit);
        Ok(propagation.with_updated_node(Arc::new(scan) as Arc<dyn ExecutionPlan>))
    }
}

/// A scan's rows. What they take is counted as other nodes count it, whichever engine they come from.
struct Measured {
    rows: SendableRecordBatchStream,
    count: Count,
    time: Time,
}

impl Stream for Measured {
    type Item = DfResult<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let timer = this.time.timer();
        let polled = this.rows.as_mut().poll_next(context);
        timer.done();
        if let Poll::Ready(Some(Ok(batch))) = &polled {
            this.count.add(batch.num_rows());
        }
        polled
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.rows.size_hint()
    }
}

impl RecordBatchStream for Measured {
    fn schema(&self) -> SchemaRef {
        self.rows.schema()
    }
}

impl ShardScanExec {
    /// Rewrites an expression over the projected schema into one over the table's schema.
    fn over_full_schema(&self, filter: &Arc<dyn PhysicalExpr>) -> DfResult<Arc<dyn PhysicalExpr>> {
        Arc::clone(filter)
            .transform_up(|node| {
                let Some(column) = node.downcast_ref::<PhysicalColumn>() else {
                    return Ok(Transformed::no(node));
                };
                let moved = PhysicalColumn::new(column.name(), self.projection[column.index()]);
                Ok(Transformed::yes(Arc::new(moved) as Arc<dyn PhysicalExpr>))
            })
            .data()
    }
}
