//! What a storage server answers to plans that went through here and over the wire.

use arrow::{
    array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray},
    compute::concat_batches,
    util::display::{ArrayFormatter, FormatOptions},
};
use datafusion::{
    physical_plan::collect,
    prelude::{SessionConfig, SessionContext},
};
use datafusion_proto::bytes::{physical_plan_from_bytes, physical_plan_to_bytes};
use drsdb_core::{
    checked_arithmetic::register_functions,
    wanted::{end_unwanted, register_wanted},
};
use tokio_util::sync::CancellationToken;

use super::*;

/// `t`: ids 1 to 5, and columns some of whose values are NULL.
fn session() -> DfResult<SessionContext> {
    let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(1));
    let mut state = context.state();
    register_functions(&mut state)?;
    register_wanted(&mut state, CancellationToken::new())?;
    let context = SessionContext::new_with_state(state);
    let columns: [(&str, ArrayRef); 4] = [
        ("id", Arc::new(Int64Array::from_iter_values(1..=5))),
        ("a", Arc::new(Int64Array::from(vec![Some(10), None, Some(5), None, Some(7)]))),
        ("f", Arc::new(Float64Array::from(vec![Some(0.5), Some(f64::INFINITY), Some(2.0), None, Some(4.0)]))),
        ("s", Arc::new(StringArray::from(vec![Some("v"), Some("w"), None, Some("y"), Some("z")]))),
    ];
    context.register_batch("t", RecordBatch::try_from_iter(columns)?)?;
    Ok(context)
}

/// The last column of the rows.
async fn answer(sql: &str) -> DfResult<String> {
    let (index, storage) = (session()?, session()?);
    let plan = index.state().create_logical_plan(sql).await?;
    let names = plan.schema().field_names();
    let plan = spell_out_windows(plan)?;
    assert_eq!(plan.schema().field_names(), names, "{sql}");
    let state = index.state();
    let plan = end_unwanted(state.optimize(&plan)?, &state)?;
    let bytes = physical_plan_to_bytes(state.query_planner().create_physical_plan(&plan, &state).await?)?;
    let plan = physical_plan_from_bytes(&bytes, &storage.task_ctx())?;
    let schema = plan.schema();
    let rows = concat_batches(&schema, &collect(plan, storage.task_ctx()).await?)?;
    let options = FormatOptions::new().with_null("-");
    let values = ArrayFormatter::try_new(rows.column(rows.num_columns() - 1), &options)?;
    Ok((0..rows.num_rows()).map(|row| values.value(row).to_string()).collect::<Vec<_>>().join(" "))
}

async fn over(call: &str, window: &str) -> String {
    let sql = format!("SELECT id, {call} OVER ({window}) FROM t ORDER BY id");
    answer(&sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"))
}

#[tokio::test]
async fn a_filter_leaves_rows_out() {
    for (call, window, expected) in [
        ("count(*) FILTER (WHERE a > 5)", "", "2 2 2 2 2"),
        ("count(*) FILTER (WHERE a IS NULL)", "ORDER BY id", "0 1 1 2 2"),
        ("count(a) FILTER (WHERE id > 2)", "ORDER BY id", "0 0 1 1 2"),
        ("count(DISTINCT a) FILTER (WHERE id < 4)", "", "2 2 2 2 2"),
        ("sum(id) FILTER (WHERE a IS NOT NULL)", "ORDER BY id", "1 1 4 4 9"),
        ("sum(id) FILTER (WHERE false)", "", "- - - - -"),
        ("min(a) FILTER (WHERE id > 1)", "ORDER BY id", "- - 5 5 5"),
        ("avg(id) FILTER (WHERE id % 2 = 1)", "", "3.0 3.0 3.0 3.0 3.0"),
        ("string_agg(s, '+') FILTER (WHERE id <> 2)", "", "v+y+z v+y+z v+y+z v+y+z v+y+z"),
        ("bool_or(a > 6) FILTER (WHERE id > 1)", "ORDER BY id", "- - false false true"),
        ("sum(id) FILTER (WHERE id <> 3)", "ORDER BY id ROWS BETWEEN 1 PRECEDING AND CURRENT ROW", "1 3 2 4 9"),
    ] {
        assert_eq!(over(call, window).await, expected, "{call}");
    }
}

#[tokio::test]
async fn nulls_are_ignored() {
    for (call, expected) in [
        ("lag(a) IGNORE NULLS", "- 10 10 5 5"),
        ("lead(a) IGNORE NULLS", "5 5 7 7 -"),
        ("lead(a, 2, 0) IGNORE NULLS", "7 7 0 0 0"),
        ("last_value(a) IGNORE NULLS", "10 10 5 5 7"),
        ("nth_value(a, 2) IGNORE NULLS", "- - 5 5 5"),
        ("lag(a) RESPECT NULLS", "- 10 - 5 -"),
    ] {
        assert_eq!(over(call, "ORDER BY id").await, expected, "{call}");
    }
    let around = "ORDER BY id ROWS BETWEEN 1 PRECEDING AND 1 FOLLOWING";
    assert_eq!(over("first_value(a) IGNORE NULLS", around).await, "10 10 5 5 7");
}

#[tokio::test]
async fn a_window_beside_one_of_the_other_direction_is_not_turned_round() {
    for (call, expected) in [
        ("lag(id)", "- 1 2 3 4"),
        ("lead(id)", "2 3 4 5 -"),
        ("nth_value(id, 2)", "- 2 2 2 2"),
        ("first_value(id)", "1 1 1 1 1"),
        ("last_value(id)", "1 2 3 4 5"),
        ("array_agg(id)", "[1] [1, 2] [1, 2, 3] [1, 2, 3, 4] [1, 2, 3, 4, 5]"),
        ("string_agg(s, '+')", "v v+w v+w v+w+y v+w+y+z"),
        ("bit_or(id)", "1 3 3 7 7"),
        ("sum(f)", "0.5 inf inf inf inf"),
        ("sum(id)", "1 3 6 10 15"),
        ("row_number()", "1 2 3 4 5"),
    ] {
        let sql = format!("SELECT id, max(id) OVER (ORDER BY id DESC), {call} OVER (ORDER BY id) FROM t ORDER BY id");
        assert_eq!(answer(&sql).await.unwrap(), expected, "{call}");
    }
}

#[tokio::test]
async fn what_cannot_be_said_is_refused() {
    for (call, what) in [
        ("array_agg(a) FILTER (WHERE id > 2)", "FILTER of array_agg"),
        ("lag(DISTINCT a)", "DISTINCT of lag"),
        ("row_number() IGNORE NULLS", "IGNORE NULLS of row_number"),
    ] {
        let sql = format!("SELECT {call} OVER (ORDER BY id) FROM t");
        let error = Error::from(answer(&sql).await.unwrap_err()).to_wire();
        assert_eq!(error.code, ErrorCode::Unsupported, "{error}");
        assert!(error.message.contains(what) && !error.hint.is_empty(), "{error}");
    }
}

#[tokio::test]
async fn windows_in_subqueries_are_seen_to() {
    let inner = "SELECT count(*) FILTER (WHERE a > 5) OVER () AS n FROM t";
    assert_eq!(answer(&format!("SELECT n FROM ({inner}) LIMIT 1")).await.unwrap(), "2");
    assert_eq!(answer(&format!("SELECT id FROM t WHERE id IN ({inner})")).await.unwrap(), "2");
}
