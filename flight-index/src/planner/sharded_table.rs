//! A table of the catalog as DataFusion sees it: schema, statistics, and a leaf for the plan.

use std::{collections::BTreeMap, sync::Arc};

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::{
    catalog::{Session, TableProvider, default_table_source::DefaultTableSource},
    common::{ColumnStatistics, Constraint, Constraints, Result as DfResult, Statistics, stats::Precision},
    logical_expr::{Expr, TableProviderFilterPushDown, TableScan, TableType},
    physical_plan::ExecutionPlan,
};
use drsdb_core::{
    Column, Error, ErrorCode, Result, Ulid, WireError,
    query_session::options_of,
    scan::{ScanServer, ShardScanExec},
};

use super::{choose_replicas::ShardToRead, prune_shards::shards_to_read, view::View};
use crate::catalog::{CatalogState, ColumnSummary, TableState};

/// The table that a scan reads, unless it is one of the system's.
pub fn scanned_table(scan: &TableScan) -> Option<&ShardedTable> {
    let source = scan.source.downcast_ref::<DefaultTableSource>()?;
    source.table_provider.downcast_ref::<ShardedTable>()
}

/// A table at one catalog state.
#[derive(Debug)]
pub struct ShardedTable {
    state: Arc<CatalogState>,
    table: Arc<TableState>,
    view: Option<Arc<View>>,
    /// The columns that can be named, by their positions in the table.
    exposed: Vec<usize>,
    schema: SchemaRef,
    constraints: Constraints,
}

impl ShardedTable {
    /// The table as it is in `state`, or as `view` has it.
    pub fn new(state: Arc<CatalogState>, table: Arc<TableState>, view: Option<Arc<View>>) -> Self {
        let definition = &table.table;
        let hidden = view.as_ref().is_some_and(|view| view.with_hidden == Some(definition.id));
        let is_exposed = |column: &Column| if hidden { !column.dropped } else { column.is_visible() };
        let exposed: Vec<usize> =
            (0..definition.columns.len()).filter(|&at| is_exposed(&definition.columns[at])).collect();
        let schema = definition.arrow_schema().project(&exposed).map(Arc::new);
        let schema = schema.expect("the exposed columns are the table's");
        let key: Option<Vec<usize>> = definition
            .primary_key
            .iter()
            .map(|position| exposed.iter().position(|exposed| exposed == position))
            .collect();
        let constraints = match key {
            Some(key) if !key.is_empty() => vec![Constraint::PrimaryKey(key)],
            _ => Vec::new(),
        };
        Self { schema, constraints: Constraints::new_unverified(constraints), exposed, state, table, view }
    }

    /// The table's id.
    pub fn id(&self) -> Ulid {
        self.table.table.id
    }

    /// Which of the table's definitions this is.
    pub fn definition_version(&self) -> u64 {
        self.table.table.version
    }

    /// The stored positions of a projection's columns; `None`: of all that can be named.
    pub fn stored_positions(&self, projection: Option<&[usize]>) -> Vec<usize> {
        match projection {
            None => self.exposed.clone(),
            Some(projection) => projection.iter().map(|&at| self.exposed[at]).collect(),
        }
    }

    fn snapshot(&self) -> u64 {
        self.view.as_ref().map_or(self.state.version(), |view| view.snapshot)
    }

    /// Whether the catalog's counts are those of the rows that are read.
    fn counts_are_exact(&self) -> bool {
        match &self.view {
            None => true,
            Some(view) => view.own.is_none() && self.table.changed_version <= view.snapshot,
        }
    }

    /// Statistics of all rows. Row counts are exact: the catalog counts every commit up to the snapshot. Those of NULLs are
    /// as long as no row was deleted.
    fn table_statistics(&self) -> Statistics {
        let mut statistics = Statistics::new_unknown(&self.schema);
        statistics.num_rows = Precision::Exact(self.table.rows() as usize);
        statistics.total_byte_size = Precision::Inexact(self.table.bytes() as usize);
        let definition = &self.table.table;
        if self.table.columns.len() == definition.columns.len() {
            let only_grew = self.table.shards.iter().all(|shard| shard.last_delete <= self.table.created_version);
            let columns = self.exposed.iter().map(|&at| {
                let mut column = column_statistics((&self.table.columns[at], &definition.columns[at]));
                if !only_grew {
                    column.null_count = column.null_count.to_inexact();
                }
                column
            });
            statistics.column_statistics = columns.collect();
        }
        if self.counts_are_exact() { statistics } else { statistics.to_inexact() }
    }

    /// Shards without rows need no server. Which those are at another snapshot, or with a transaction's own rows, the catalog
    /// does not say.
    fn with_rows(&self, mut shards: Vec<u32>) -> Vec<u32> {
        let exact = self.counts_are_exact();
        shards
            .retain(|&shard| self.table.shards.get(shard as usize).is_some_and(|shard| !exact || shard.stats.rows > 0));
        shards
    }

    /// Those of `shards` that may have rows, with the servers that have them.
    pub fn to_read(&self, shards: Vec<u32>) -> Result<Vec<ShardToRead>> {
        let groups = self.replicas_of(&self.with_rows(shards))?;
        let shards = groups.into_iter().flat_map(|group| {
            let replicas: Vec<Ulid> = std::iter::once(group.id).chain(group.also).collect();
            group.shards.into_iter().map(move |shard| ShardToRead { shard, replicas: replicas.clone(), rows: 1 })
        });
        Ok(shards.collect())
    }

    /// The replicas of `shards`, one entry for all shards that have the same ones; `stamp_servers` chooses among them.
    fn replicas_of(&self, shards: &[u32]) -> Result<Vec<ScanServer>> {
        let mut by_replicas: BTreeMap<Vec<Ulid>, Vec<u32>> = BTreeMap::new();
        for &shard in shards {
            let placed = self.table.shards.get(shard as usize);
            let holders = self.view.as_ref().and_then(|view| view.holders.get(&(self.table.table.id, shard)));
            let has_own = |server: &Ulid| holders.is_none_or(|holders| holders.contains(server));
            let replicas = placed.map(|placed| placed.readable_at(self.snapshot()).filter(has_own).collect::<Vec<_>>());
            let replicas = replicas.filter(|replicas| !replicas.is_empty()).ok_or_else(|| {
                let name = &self.table.table.name;
                WireError::new(ErrorCode::Unavailable, format!("shard {shard} of table {name} cannot be read now"))
                    .with_hint("run the query again, or start the storage servers that have it")
                    .with_field("table", name)
            })?;
            by_replicas.entry(replicas).or_default().push(shard);
        }
        by_replicas
            .into_iter()
            .map(|(replicas, shards)| {
                let (first, also) = (replicas[0], replicas[1..].to_vec());
                Ok(ScanServer { id: first, url: self.state.address_of(first)?, shards, also })
            })
            .collect()
    }
}

fn column_statistics((summary, column): (&ColumnSummary, &Column)) -> ColumnStatistics {
    let precision = |value: Option<datafusion::scalar::ScalarValue>| match value {
        Some(value) if !value.is_null() => Precision::Inexact(value),
        _ => Precision::Absent,
    };
    ColumnStatistics {
        null_count: Precision::Exact(summary.null_count as usize),
        min_value: precision(summary.min_scalar(column.sql_type)),
        max_value: precision(summary.max_scalar(column.sql_type)),
        sum_value: Precision::Absent,
        distinct_count: match summary.distinct_estimate {
            0 => Precision::Absent,
            count => Precision::Inexact(count as usize),
        },
        byte_size: Precision::Absent,
    }
}

#[async_trait]
impl TableProvider for ShardedTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn constraints(&self) -> Option<&Constraints> {
        Some(&self.constraints)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        session: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> DfResult<Arc<dyn ExecutionPlan>> {
        let table = &self.table.table;
        let projection = projection.cloned().unwrap_or_else(|| (0..self.exposed.len()).collect());
        let shards = shards_to_read(table, filters).map_err(Error::into_datafusion)?;
        let mut statistics = self.table_statistics().project(Some(&projection));
        if shards.len() < table.shards as usize {
            let rows = shards
                .iter()
                .filter_map(|&shard| self.table.shards.get(shard as usize))
                .map(|s| s.stats.rows)
                .sum::<u64>();
            statistics = statistics.to_inexact();
            statistics.num_rows = Precision::Inexact(rows as usize);
        }
        let projection: Vec<usize> = projection.into_iter().map(|at| self.exposed[at]).collect();
        let shards = self.with_rows(shards);
        let servers = self.replicas_of(&shards).map_err(Error::into_datafusion)?;
        let partitions = options_of(session.config()).target_partitions;
        let scan =
            ShardScanExec::new(Arc::clone(table), self.snapshot(), projection, servers, partitions.max(1), statistics)?;
        let own = self.view.as_ref().and_then(|view| view.own);
        Ok(Arc::new(scan.with_limit(limit.filter(|_| filters.is_empty())).with_own_writes(own)))
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> DfResult<Vec<TableProviderFilterPushDown>> {
        // The scan skips what cannot match; a filter above it decides.
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    fn statistics(&self) -> Option<Statistics> {
        Some(self.table_statistics())
    }
}
