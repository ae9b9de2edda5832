//! One process of DataFusion over the tables' Parquet files: the oracle.

use std::{path::Path, sync::Arc};

use anyhow::{Context, Result};
use arrow::record_batch::RecordBatch;
use datafusion::{
    execution::{memory_pool::FairSpillPool, runtime_env::RuntimeEnvBuilder},
    prelude::{ParquetReadOptions, SessionConfig, SessionContext},
};

use super::{Query, TABLES, file_name};
use crate::output::Format;

/// How much the reference may use.
#[derive(Debug, Clone, Copy)]
pub struct ReferenceOptions {
    /// Partitions that run at once.
    pub threads: usize,
    /// Memory of running queries; what needs more spills to disk, or fails.
    pub memory_bytes: usize,
}

impl Default for ReferenceOptions {
    fn default() -> Self {
        Self {
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: 2 * 1024 * 1024 * 1024,
        }
    }
}

/// The tables, ready to be queried.
pub struct Reference {
    context: SessionContext,
    scale: f64,
}

impl Reference {
    /// Opens the Parquet files that [`super::write_files`] wrote into `directory` at `scale`.
    pub async fn open(directory: &Path, scale: f64, options: ReferenceOptions) -> Result<Self> {
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(FairSpillPool::new(options.memory_bytes)))
            .build_arc()
            .context("cannot set up DataFusion")?;
        let mut config = SessionConfig::new().with_target_partitions(options.threads);
        // As in drsdb and in SQL's standard: 0.2 is a decimal, 2e-1 is a float.
        config.options_mut().sql_parser.parse_float_as_decimal = true;
        let context = SessionContext::new_with_config_rt(config, runtime);
        for table in TABLES {
            let path = directory.join(file_name(table, Format::Parquet));
            let path = path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?;
            context
                .register_parquet(table.name(), path, ParquetReadOptions::default())
                .await
                .with_context(|| format!("cannot open {path}"))?;
        }
        Ok(Self { context, scale })
    }

    /// The result of a query as any client sees it.
    pub async fn answer(&self, query: &Query) -> Result<Vec<RecordBatch>> {
        self.run(&query.sql(self.scale)).await.with_context(|| format!("query {} of the reference", query.number))
    }

    /// The result without LIMIT: what [`super::verify()`] takes as expected.
    pub async fn expected(&self, query: &Query) -> Result<Vec<RecordBatch>> {
        let sql = query.unlimited_sql(self.scale);
        self.run(&sql).await.with_context(|| format!("query {} of the reference", query.number))
    }

    /// The result of any query. There is always a batch, so that a result without rows has columns too.
    pub async fn run(&self, sql: &str) -> Result<Vec<RecordBatch>> {
        let query = self.context.sql(sql).await?;
        let schema = Arc::clone(query.schema().inner());
        let mut batches = query.collect().await?;
        if batches.is_empty() {
            batches.push(RecordBatch::new_empty(schema));
        }
        Ok(batches)
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::UInt64Array;

    use super::*;
    use crate::{
        progress::Progress,
        tpch::{QUERIES, Rule, verify, write_files},
    };

    /// The smallest scale at which most queries find rows.
    const SCALE: f64 = 0.01;

    async fn reference(directory: &Path, threads: usize) -> Reference {
        let options = ReferenceOptions { threads, ..ReferenceOptions::default() };
        Reference::open(directory, SCALE, options).await.unwrap()
    }

    /// One thread against four: what is order or chance in a result must pass the check, for every query.
    #[tokio::test]
    async fn every_query_runs_and_its_result_passes_the_check() {
        let directory = tempfile::tempdir().unwrap();
        write_files(directory.path(), SCALE, Format::Parquet, 2, &Progress::hidden()).unwrap();
        let (one, four) = (reference(directory.path(), 1).await, reference(directory.path(), 4).await);
        let mut with_rows = 0;
        for query in QUERIES {
            let expected = one.expected(&query).await.unwrap();
            let actual = four.answer(&query).await.unwrap();
            verify(&expected, &actual, query.ordering(), Rule::SameEngine)
                .unwrap_or_else(|mismatch| panic!("query {}: {mismatch}", query.number));
            with_rows += usize::from(actual.iter().any(|batch| batch.num_rows() > 0));
            for &key in query.ordering().keys {
                assert!(key < expected[0].num_columns(), "query {} orders by a column that it has", query.number);
            }
        }
        // The data is too small for some of them to find anything; if many found nothing, the data would be wrong.
        assert!(with_rows >= 18, "only {with_rows} queries had rows");
    }

    /// The declared order is the one in the text: sorted rows with two keys exchanged must be refused.
    #[tokio::test]
    async fn a_result_in_the_wrong_order_fails_the_check() {
        let directory = tempfile::tempdir().unwrap();
        write_files(directory.path(), SCALE, Format::Parquet, 2, &Progress::hidden()).unwrap();
        let reference = reference(directory.path(), 1).await;
        for number in [1, 3, 9, 10, 13, 16] {
            let query = Query::find(number).unwrap();
            let expected = reference.expected(&query).await.unwrap();
            let answer = reference.answer(&query).await.unwrap();
            let answer = arrow::compute::concat_batches(&answer[0].schema(), &answer).unwrap();
            let last = answer.num_rows() - 1;
            assert!(last > 0, "query {number} needs rows to be reordered");
            let order = UInt64Array::from_iter_values((0..=last as u64).rev());
            let reversed = arrow::compute::take_record_batch(&answer, &order).unwrap();
            assert!(verify(&expected, &[answer], query.ordering(), Rule::SameEngine).is_ok());
            assert!(verify(&expected, &[reversed], query.ordering(), Rule::SameEngine).is_err(), "query {number}");
        }
    }
}
