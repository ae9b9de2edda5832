//! Plans that went through here, and DataFusion's answers to them.

use arrow::{
    array::{ArrayRef, Int64Array, RecordBatch},
    util::pretty::pretty_format_batches,
};
use datafusion::prelude::{SessionConfig, SessionContext};

use super::*;

/// `x1` and `y1`, whose `a` can be NULL and whose `b` cannot.
fn context() -> SessionContext {
    let mut config = SessionConfig::new().with_target_partitions(1);
    config.options_mut().optimizer.enable_physical_uncorrelated_scalar_subquery = false;
    let context = SessionContext::new_with_config(config);
    let tables = [("x1", vec![Some(1), Some(2), None], vec![1, 2, 3]), ("y1", vec![Some(1), None], vec![1, 2])];
    for (name, a, b) in tables {
        let columns: [(&str, ArrayRef); 2] =
            [("a", Arc::new(Int64Array::from(a))), ("b", Arc::new(Int64Array::from(b)))];
        context.register_batch(name, RecordBatch::try_from_iter(columns).unwrap()).unwrap();
    }
    context
}

async fn planned(sql: &str) -> DfResult<LogicalPlan> {
    three_valued(context().state().create_logical_plan(sql).await?)
}

/// The first column, its values one after the other.
async fn values(sql: &str) -> String {
    let plan = planned(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    let frame = context().execute_logical_plan(plan).await.unwrap();
    let rows = frame.collect().await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    let table = pretty_format_batches(&rows).unwrap().to_string();
    let rows = table.lines().filter(|line| line.starts_with("| ")).skip(1);
    rows.map(|row| row.split('|').nth(1).unwrap_or_default().trim()).collect::<Vec<_>>().join(" ")
}

/// How many IN, EXISTS and scalar subqueries there are.
async fn shape(condition: &str) -> (usize, usize, usize) {
    let plan = planned(&format!("SELECT b FROM x1 WHERE {condition}")).await.unwrap();
    let (mut members, mut existing, mut scalars) = (0, 0, 0);
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|expr| {
                match expr {
                    Expr::InSubquery(_) => members += 1,
                    Expr::Exists(_) => existing += 1,
                    Expr::ScalarSubquery(_) => scalars += 1,
                    _ => {}
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })
    .unwrap();
    (members, existing, scalars)
}

#[tokio::test]
async fn only_what_can_be_null_is_written_out() {
    for (condition, expected) in [
        ("a IN (SELECT a FROM y1)", (1, 0, 0)),
        ("a NOT IN (SELECT a FROM y1) AND b > 1", (1, 0, 0)),
        ("b > 1 AND NOT (a IN (SELECT a FROM y1))", (1, 0, 0)),
        ("a IN (SELECT a FROM y1 WHERE y1.b = x1.b)", (1, 0, 0)),
        ("a IN (SELECT a FROM y1) OR b > 5", (0, 1, 0)),
        ("a NOT IN (SELECT a FROM y1) OR b > 5", (0, 1, 2)),
        ("b NOT IN (SELECT a FROM y1) OR b > 5", (0, 1, 1)),
        ("a NOT IN (SELECT b FROM y1) OR b > 5", (0, 1, 1)),
        ("b NOT IN (SELECT b FROM y1) OR b > 5", (0, 1, 0)),
        ("a NOT IN (SELECT a FROM y1 WHERE y1.b = x1.b)", (0, 3, 0)),
        ("a + 1 NOT IN (SELECT a FROM y1)", (0, 1, 2)),
        ("5 NOT IN (SELECT a FROM y1)", (0, 0, 2)),
        ("a IN (SELECT max(a) FROM y1) OR b > 5", (0, 0, 1)),
        ("EXISTS (SELECT a FROM y1) OR b > 5", (0, 1, 0)),
    ] {
        assert_eq!(shape(condition).await, expected, "{condition}");
    }
}

#[tokio::test]
async fn a_condition_tells_null_from_false() {
    for (condition, found) in [
        ("a NOT IN (SELECT a FROM y1) OR a > 100", ""),
        ("NOT (a IN (SELECT a FROM y1) AND b < 100)", ""),
        ("NOT (a IN (SELECT a FROM y1) AND b < 2)", "2 3"),
        ("(a IN (SELECT a FROM y1)) IS NULL", "2 3"),
        ("(a IN (SELECT a FROM y1)) = (b = 1)", "1"),
        ("coalesce(a IN (SELECT a FROM y1), true)", "1 2 3"),
        ("CASE WHEN a IN (SELECT a FROM y1) THEN b > 1 ELSE (a IN (SELECT a FROM y1)) IS NULL END", "2 3"),
        ("a NOT IN (SELECT a FROM y1 WHERE y1.b = x1.b)", "3"),
        ("a NOT IN (SELECT a FROM y1 WHERE y1.b = x1.b) OR b > 100", "3"),
        ("a NOT IN (SELECT a FROM y1 WHERE b > 5) OR b > 100", "1 2 3"),
        ("(a IN (SELECT a FROM x1)) IS NULL", "3"),
        ("b IN (SELECT b FROM y1) OR b > 100", "1 2"),
        ("5 NOT IN (SELECT a FROM y1)", ""),
        ("5 NOT IN (SELECT b FROM y1)", "1 2 3"),
        ("nullif(a, 2) NOT IN (SELECT b FROM y1 WHERE b = 2)", "1"),
        ("(SELECT max(a) FROM x1) NOT IN (SELECT b FROM y1) OR b = 3", "3"),
    ] {
        assert_eq!(values(&format!("SELECT b FROM x1 WHERE {condition} ORDER BY b")).await, found, "{condition}");
    }
}

#[tokio::test]
async fn a_subquery_can_be_of_any_kind() {
    for (condition, found) in [
        ("(a IN (SELECT DISTINCT a FROM y1)) IS NULL", "2 3"),
        ("(a IN (SELECT a FROM y1 UNION ALL SELECT b FROM y1)) IS NULL", "3"),
        ("(a IN (SELECT a FROM y1 ORDER BY a LIMIT 1)) IS NULL", "3"),
        ("(a IN (SELECT max(a) FROM y1)) IS NULL", "3"),
        ("(a IN (SELECT max(a) FROM y1 GROUP BY b)) IS NULL", "2 3"),
        ("(a IN (SELECT DISTINCT a FROM y1 WHERE y1.b = x1.b ORDER BY a)) IS NULL", "2"),
        ("(a IN (SELECT max(a) FROM y1 WHERE y1.b = x1.b)) IS NULL", "2 3"),
        ("(a IN (SELECT a FROM y1 WHERE y1.b = x1.b GROUP BY a HAVING count(*) = 1)) IS NULL", "2"),
        ("0 IN (SELECT count(*) FROM y1 WHERE y1.b = x1.b)", "3"),
        ("b IN (SELECT b FROM y1 WHERE NOT (a IN (SELECT a FROM x1 WHERE a > 1) AND b < 100))", "1"),
    ] {
        assert_eq!(values(&format!("SELECT b FROM x1 WHERE {condition} ORDER BY b")).await, found, "{condition}");
    }
}

#[tokio::test]
async fn a_select_list_has_subqueries() {
    for (selected, found) in [
        ("coalesce(CAST(a IN (SELECT a FROM y1) AS VARCHAR), 'null')", "true null null"),
        ("coalesce(CAST(a NOT IN (SELECT a FROM y1 WHERE y1.b = x1.b) AS VARCHAR), 'null')", "false null true"),
        ("CASE WHEN a IN (SELECT b FROM y1) THEN b ELSE 0 END", "1 2 0"),
        ("EXISTS (SELECT x1.a FROM y1 WHERE y1.b = x1.b ORDER BY y1.a LIMIT 1)", "true true false"),
        ("NOT EXISTS (SELECT 1 FROM y1 WHERE a > 1)", "true true true"),
        ("EXISTS (SELECT max(a) FROM y1 WHERE y1.b = x1.b)", "true true true"),
    ] {
        assert_eq!(values(&format!("SELECT {selected} FROM x1 ORDER BY b")).await, found, "{selected}");
    }
    let sql = "SELECT a IN (SELECT a FROM y1) FROM x1";
    let unchanged = context().state().create_logical_plan(sql).await.unwrap();
    assert_eq!(planned(sql).await.unwrap().schema().field_names(), unchanged.schema().field_names());
}

#[tokio::test]
async fn conditions_of_joins_are_conditions() {
    let sql = "SELECT x1.b FROM x1 JOIN y1 ON x1.b = y1.b \
               AND (x1.a NOT IN (SELECT b FROM y1 WHERE b > 1) OR y1.a IS NULL) ORDER BY x1.b";
    assert_eq!(values(sql).await, "1 2");
    let sql = "SELECT coalesce(y1.b, 0) FROM x1 LEFT JOIN y1 ON x1.b = y1.b \
               AND y1.a NOT IN (SELECT b FROM x1 WHERE b > 1) ORDER BY x1.b";
    assert_eq!(values(sql).await, "1 0 0");
}

#[tokio::test]
async fn what_would_be_wrong_is_refused() {
    for sql in [
        "SELECT b FROM x1 WHERE a IN (SELECT a FROM y1 WHERE y1.b = x1.b LIMIT 1)",
        "SELECT b FROM x1 WHERE a NOT IN (SELECT a FROM y1 WHERE y1.b = x1.b LIMIT 1)",
        "SELECT b FROM x1 WHERE a IN (SELECT row_number() OVER () FROM y1 WHERE y1.b = x1.b)",
        "SELECT b FROM x1 WHERE a IN (SELECT max(a) FROM y1 WHERE y1.b = x1.b HAVING count(*) = 0) OR b > 5",
        "SELECT b FROM x1 WHERE a NOT IN (SELECT a FROM y1 WHERE random() < 0.5) OR b > 5",
        "SELECT x1.b FROM x1 LEFT JOIN y1 ON x1.b = y1.b AND (y1.a NOT IN (SELECT a FROM x1) OR x1.b > 1)",
    ] {
        let error = planned(sql).await.map_err(Error::from).unwrap_err();
        assert_eq!(error.code(), ErrorCode::Unsupported, "{sql}: {error}");
    }
    let sql = "SELECT sum(CASE WHEN a IN (SELECT a FROM y1) THEN 1 END) FROM x1";
    let plan = planned(sql).await.unwrap();
    let error = explain(context().state().create_physical_plan(&plan).await.unwrap_err());
    assert_eq!(error.code(), ErrorCode::Unsupported);
    assert!(error.to_wire().hint.contains("join"));
}
