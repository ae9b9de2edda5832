//! A table of the catalog as DataFusion sees it: schema, statistics, and a leaf for the plan.

use std::{collections::BTreeMap, sync::Arc};

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::{
    catalog::{Session, TableProvider},
    common::{ColumnStatistics, Constraint, Constraints, Result as DfResult, Statistics, stats::Precision},
    logical_expr::{Expr, TableProviderFilterPushDown, TableType},
    physical_plan::ExecutionPlan,
};
use drsdb_core::{
    Column, Error, Result, Ulid,
    query_session::options_of,
    scan::{ScanServer, ShardScanExec},
};
use url::Url;

use super::prune_shards::shards_to_read;
use crate::catalog::{CatalogState, ColumnSummary, TableState};

/// A table at one catalog state.
#[derive(Debug)]
pub struct ShardedTable {
    state: Arc<CatalogState>,
    table: Arc<TableState>,
    schema: SchemaRef,
    constraints: Constraints,
}

impl ShardedTable {
    /// The table as it is in `state`.
    pub fn new(state: Arc<CatalogState>, table: Arc<TableState>) -> Self {
        let key = &table.table.primary_key;
        let constraints = if key.is_empty() { Vec::new() } else { vec![Constraint::PrimaryKey(key.clone())] };
        Self { schema: table.table.arrow_schema(), constraints: Constraints::new_unverified(constraints), state, table }
    }

    /// Statistics of all rows. Row and null counts are exact: the catalog counts every commit up to the snapshot.
    fn table_statistics(&self) -> Statistics {
        let mut statistics = Statistics::new_unknown(&self.schema);
        statistics.num_rows = Precision::Exact(self.table.rows() as usize);
        statistics.total_byte_size = Precision::Inexact(self.table.bytes() as usize);
        if self.table.columns.len() == self.schema.fields().len() {
            statistics.column_statistics =
                self.table.columns.iter().zip(&self.table.table.columns).map(column_statistics).collect();
        }
        statistics
    }

    /// The servers that hold `shards`, in the order of their ids.
    fn servers_of(&self, shards: &[u32]) -> Result<Vec<ScanServer>> {
        let mut by_server: BTreeMap<Ulid, Vec<u32>> = BTreeMap::new();
        for &shard in shards {
            let placed = self.table.shards.get(shard as usize);
            let Some(first) = placed.and_then(|placed| placed.readable_at(self.state.version()).next()) else {
                return Err(Error::internal(format!("shard {shard} of {} is placed nowhere", self.table.table.name)));
            };
            by_server.entry(first).or_default().push(shard);
        }
        by_server
            .into_iter()
            .map(|(id, shards)| {
                let server = self.state.server(id);
                let server = server.ok_or_else(|| Error::internal(format!("storage server {id} is not known")))?;
                let url =
                    Url::parse(&server.url).map_err(|error| Error::internal(format!("{}: {error}", server.url)))?;
                Ok(ScanServer { id, url, shards, also: Vec::new() })
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
        let projection = projection.cloned().unwrap_or_else(|| (0..table.columns.len()).collect());
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
        // Shards without rows need no server.
        let shards: Vec<u32> = shards
            .into_iter()
            .filter(|&shard| self.table.shards.get(shard as usize).is_some_and(|shard| shard.stats.rows > 0))
            .collect();
        let servers = self.servers_of(&shards).map_err(Error::into_datafusion)?;
        let partitions = options_of(session.config()).target_partitions;
        let scan = ShardScanExec::new(
            Arc::clone(table),
            self.state.version(),
            projection,
            servers,
            partitions.max(1),
            statistics,
        )?;
        Ok(Arc::new(scan.with_limit(limit.filter(|_| filters.is_empty()))))
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> DfResult<Vec<TableProviderFilterPushDown>> {
        // The scan skips what cannot match; a filter above it decides.
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    fn statistics(&self) -> Option<Statistics> {
        Some(self.table_statistics())
    }
}
