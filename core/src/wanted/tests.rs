//! Plans that went through [`end_unwanted`], as one process runs them.

use std::time::Duration;

use arrow::{
    array::{AsArray, RecordBatch},
    datatypes::{Int64Type, Schema},
};
use datafusion::{
    execution::{
        memory_pool::{GreedyMemoryPool, MemoryPool},
        runtime_env::RuntimeEnvBuilder,
    },
    physical_plan::{collect, displayable, stream::RecordBatchStreamAdapter},
    prelude::{SessionConfig, SessionContext},
};
use futures::{StreamExt, stream};

use super::*;
use crate::checked_arithmetic::register_functions;

const POOL_BYTES: usize = 64 << 20;

struct Server {
    state: SessionState,
    pool: Arc<dyn MemoryPool>,
}

impl Server {
    /// Whose query is over when `over` is cancelled.
    fn new(over: CancellationToken) -> Self {
        let pool: Arc<dyn MemoryPool> = Arc::new(GreedyMemoryPool::new(POOL_BYTES));
        let runtime = RuntimeEnvBuilder::new().with_memory_pool(Arc::clone(&pool)).build_arc().unwrap();
        let config = SessionConfig::new().with_target_partitions(1).with_batch_size(1000);
        let mut state = SessionContext::new_with_config_rt(config, runtime).state();
        register_functions(&mut state).unwrap();
        register_wanted(&mut state, over).unwrap();
        Self { state, pool }
    }

    /// The only value, with how it was come by.
    async fn answer(&self, sql: &str) -> (DfResult<i64>, String) {
        let plan = self.state.create_logical_plan(sql).await.unwrap();
        let plan = end_unwanted(self.state.optimize(&plan).unwrap(), &self.state).unwrap();
        let plan = self.state.query_planner().create_physical_plan(&plan, &self.state).await.unwrap();
        let plan = count_and_yield(plan).unwrap();
        let shown = displayable(plan.as_ref()).indent(false).to_string();
        let batches = collect(plan, self.state.task_ctx()).await;
        let value = batches.map(|batches| batches[0].column(0).as_primitive::<Int64Type>().value(0));
        (value, shown)
    }
}

fn over(call: &str, window: &str, rows: usize) -> String {
    let series = format!("SELECT value AS id, repeat('x', 10000) AS s FROM generate_series(1, {rows})");
    format!("SELECT CAST(sum(length(x)) AS BIGINT) FROM (SELECT {call} OVER ({window}) AS x FROM ({series}))")
}

fn code(error: datafusion::error::DataFusionError) -> ErrorCode {
    Error::from(error).to_wire().code
}

#[tokio::test]
async fn windows_end_with_their_query() {
    let over_token = CancellationToken::new();
    let server = Server::new(over_token.clone());
    let calls = [
        ("CAST(sum(id) OVER (ORDER BY id) AS VARCHAR)", "WindowAggExec"),
        ("CAST(sum(id) OVER () AS VARCHAR)", "WindowAggExec"),
        ("first_value(s) OVER (ORDER BY id)", "BoundedWindowAggExec"),
        ("nth_value(s, 2) OVER (ORDER BY id ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING)", "WindowAggExec"),
        ("array_to_string(array_agg(id) OVER (ORDER BY id ROWS 3 PRECEDING), ',')", "BoundedWindowAggExec"),
    ];
    let statement = |call: &str| over(call, "", 10).replace(" OVER () AS x", " AS x");
    for (call, node) in calls {
        let (value, plan) = server.answer(&statement(call)).await;
        assert!(value.unwrap() > 0 && plan.contains(node), "{call}: {plan}");
    }
    over_token.cancel();
    for (call, _) in calls {
        let (value, _) = server.answer(&statement(call)).await;
        assert_eq!(code(value.unwrap_err()), ErrorCode::Cancelled, "{call}");
    }
}

#[tokio::test]
async fn what_windows_make_of_a_partition_is_held_to_the_pool() {
    for (call, window) in [
        ("string_agg(s, '')", "ORDER BY id"),
        ("string_agg(s, '')", ""),
        ("max(s)", ""),
        ("max(s)", "PARTITION BY id / 100"),
        ("max(CASE WHEN id = 1 THEN s END)", ""),
        ("last_value(s)", "ORDER BY id ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING"),
    ] {
        let server = Server::new(CancellationToken::new());
        let (value, _) = server.answer(&over(call, window, 10_000)).await;
        assert_eq!(code(value.expect_err(call)), ErrorCode::ResourceExhausted, "{call} OVER ({window})");
        drop(server.state);
        assert_eq!(server.pool.reserved(), 0, "{call} OVER ({window})");
    }
}

/// What it makes is small, and what it keeps is not.
#[tokio::test]
async fn rows_that_a_window_keeps_are_held_to_the_pool() {
    let statement = |window: &str, rows: usize| {
        let rows = format!("SELECT value AS id, repeat('x', 10000) AS s FROM generate_series(1, {rows})");
        format!("SELECT sum(length(s)) FROM (SELECT s, {window} AS n FROM ({rows})) WHERE n > 0")
    };
    let server = Server::new(CancellationToken::new());
    for window in ["ntile(7) OVER (ORDER BY id)", "sum(id) OVER ()"] {
        let (value, plan) = server.answer(&statement(window, 1_000)).await;
        assert!(plan.contains("KeptRowsExec"), "{plan}");
        assert_eq!(value.unwrap(), 1_000 * 10_000, "{window}");
        let (value, _) = server.answer(&statement(window, 10_000)).await;
        assert_eq!(code(value.expect_err(window)), ErrorCode::ResourceExhausted, "{window}");
        assert_eq!(server.pool.reserved(), 0, "{window}");
    }
    let (value, _) = server.answer(&statement("row_number() OVER (ORDER BY id)", 10_000)).await;
    assert_eq!(value.unwrap(), 10_000 * 10_000);
}

/// Every batch is there at once, and takes long: nothing else could say that time is over.
#[tokio::test]
async fn a_stream_that_always_has_rows_returns_to_the_runtime() {
    let schema = Arc::new(Schema::empty());
    let batch = RecordBatch::new_empty(Arc::clone(&schema));
    let endless = stream::repeat_with(move || {
        std::thread::sleep(Duration::from_millis(3));
        Ok(batch.clone())
    });
    let rows = Sliced::new(Box::pin(RecordBatchStreamAdapter::new(schema, endless)));
    let all = rows.fold(0, async |batches, _| batches + 1);
    assert!(tokio::time::timeout(Duration::from_millis(30), all).await.is_err());
}

/// Rows that go on make room for others, however many come.
#[tokio::test]
async fn windows_that_let_rows_go_on_take_any_number() {
    for (call, window) in [
        ("max(s)", "ORDER BY id"),
        ("first_value(s)", "ORDER BY id"),
        ("max(s)", "PARTITION BY id ORDER BY id"),
        ("min(s)", "ORDER BY id ROWS 1 PRECEDING"),
    ] {
        let server = Server::new(CancellationToken::new());
        let (value, plan) = server.answer(&over(call, window, 20_000)).await;
        assert!(plan.contains("BoundedWindowAggExec"), "{plan}");
        assert_eq!(value.expect(call), 20_000 * 10_000, "{call} OVER ({window})");
    }
}
