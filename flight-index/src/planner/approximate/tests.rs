//! Answers of DataFusion to plans that went through here.

use arrow::{
    array::{ArrayRef, Decimal128Array, Float32Array, Float64Array, Int64Array, RecordBatch},
    datatypes::{DataType, Schema},
    util::pretty::pretty_format_batches,
};
use datafusion::{
    prelude::{SessionConfig, SessionContext},
    sql::parser::DFParser,
};

use super::*;

/// `t`: a DOUBLE, a REAL and a DECIMAL(10, 2).
async fn answer(sql: &str) -> DfResult<String> {
    let mut config = SessionConfig::new().with_target_partitions(1);
    config.options_mut().sql_parser.parse_float_as_decimal = true;
    let context = SessionContext::new_with_config(config);
    let decimals = Decimal128Array::from(vec![Some(0), Some(50), Some(1000), Some(10), None]);
    let columns: [(&str, ArrayRef); 4] = [
        ("id", Arc::new(Int64Array::from_iter_values(1..=5))),
        ("f", Arc::new(Float64Array::from(vec![Some(1e-20), Some(0.5), Some(1e300), Some(f64::INFINITY), None]))),
        ("r", Arc::new(Float32Array::from(vec![Some(0.1), Some(0.5), Some(1e30), Some(f32::NAN), None]))),
        ("d", Arc::new(decimals.with_precision_and_scale(10, 2)?)),
    ];
    context.register_batch("t", RecordBatch::try_from_iter(columns)?)?;
    let statement = exponents(DFParser::parse_sql(sql)?.pop_front().expect("a statement"));
    let plan = stay_approximate(context.state().statement_to_plan(statement).await?)?;
    let schema = Arc::clone(plan.schema());
    let rows = context.execute_logical_plan(plan).await?.collect().await?;
    for batch in &rows {
        let types = |schema: &Schema| -> Vec<DataType> {
            schema.fields().iter().map(|field| field.data_type().clone()).collect()
        };
        assert_eq!(types(&batch.schema()), types(schema.as_arrow()), "{sql}: the plan says what comes");
    }
    Ok(pretty_format_batches(&rows)?.to_string())
}

/// The first column, its values one after the other.
async fn values(sql: &str) -> String {
    let table = answer(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    let rows = table.lines().filter(|line| line.starts_with("| ")).skip(1);
    rows.map(|row| row.split('|').nth(1).unwrap_or_default().trim()).collect::<Vec<_>>().join(" ")
}

#[tokio::test]
async fn a_condition_finds_what_it_says() {
    for (condition, found) in [
        ("f = 0.0", ""),
        ("f <> 0.0", "1 2 3 4"),
        ("f > 0.5", "3 4"),
        ("0.5 < f", "3 4"),
        ("f = d", "2"),
        ("d IS NOT DISTINCT FROM f", "2 5"),
        ("f BETWEEN 0.0 AND 0.5", "1 2"),
        ("d BETWEEN 0.1 AND f", "2 3 4"),
        ("f IN (0.0, 0.5)", "2"),
        ("d IN (f, 10.0)", "2 3"),
        ("f NOT IN (0.0, 0.5)", "1 3 4"),
        ("r = 0.1", "1"),
        ("r > 0.4", "2 3 4"),
        ("f IN (SELECT d FROM t)", "2"),
        ("d IN (SELECT f FROM t)", "2"),
        ("f > (SELECT max(d) FROM t)", "3 4"),
        ("f >= ALL (SELECT d FROM t WHERE d IS NOT NULL)", "3 4"),
        ("EXISTS (SELECT 1 FROM t AS u WHERE u.d = t.f)", "2"),
        ("CASE f WHEN 0.0 THEN false ELSE true END", "1 2 3 4 5"),
        ("nullif(f, 0.0) IS NOT NULL", "1 2 3 4"),
        ("f = 5e-1", "2"),
        ("d = 5e-1", "2"),
        ("f = 1e300", "3"),
        ("f = 0.50", "2"),
        ("abs(f) > 0.5 AND NOT (f = 0.5 OR r = 0.5)", "3 4"),
    ] {
        assert_eq!(values(&format!("SELECT id FROM t WHERE {condition} ORDER BY id")).await, found, "{condition}");
    }
}

#[tokio::test]
async fn a_value_is_what_it_was() {
    for (expression, value) in [
        ("coalesce(f, 0.0)", "1e-20 0.5 1e300 inf 0.0"),
        ("CASE WHEN f IS NULL THEN 0.0 ELSE f END", "1e-20 0.5 1e300 inf 0.0"),
        ("greatest(f, 0.25)", "0.25 0.5 1e300 inf 0.25"),
        ("least(d, f)", "0.0 0.5 10.0 0.1 "),
        ("coalesce(r, 0.25)", "0.1 0.5 1e30 NaN 0.25"),
        ("coalesce(d, 0.25)", "0.00 0.50 10.00 0.10 0.25"),
        ("nullif(f, 0.5)", "1e-20  1e300 inf "),
        ("array_max(make_array(f, 0.25))", "0.25 0.5 1e300 inf 0.25"),
    ] {
        let values = values(&format!("SELECT {expression} AS v FROM t ORDER BY id")).await;
        assert_eq!(values.trim_end(), value.trim_end(), "{expression}");
    }
}

#[tokio::test]
async fn results_that_are_brought_together_keep_their_values() {
    for (sql, found) in [
        ("SELECT f FROM t WHERE id = 1 UNION ALL SELECT d FROM t WHERE id = 2", "1e-20 0.5"),
        ("SELECT d FROM t WHERE id = 2 UNION SELECT f FROM t WHERE id = 2", "0.5"),
        (
            "SELECT x FROM (SELECT d AS x FROM t WHERE id = 2 UNION ALL SELECT f FROM t WHERE id = 3) WHERE x > 1.5",
            "1e300",
        ),
        ("SELECT f FROM t INTERSECT SELECT d FROM t WHERE id = 2", "0.5"),
        ("SELECT d FROM t WHERE id < 3 EXCEPT SELECT f FROM t", "0.00"),
        ("SELECT a.id FROM t AS a JOIN t AS b ON a.f = b.d", "2"),
        ("SELECT id FROM (SELECT id, f AS k FROM t) AS a JOIN (SELECT d AS k FROM t) AS b USING (k)", "2"),
        ("SELECT max(id) FROM t GROUP BY f HAVING max(f) = 0.5", "2"),
        ("SELECT lag(f, 1, 0.25) OVER (ORDER BY id) FROM t WHERE id < 3", "0.25 1e-20"),
        ("WITH x AS (SELECT coalesce(f, 0.0) AS g FROM t) SELECT g FROM x WHERE g > 0.5 ORDER BY g", "1e300 inf"),
        (
            "WITH RECURSIVE x AS (SELECT coalesce(f, 0.0) AS g, 1 AS n FROM t WHERE id = 1 \
             UNION ALL SELECT g, n + 1 FROM x WHERE n < 2 AND g < 0.5) SELECT g FROM x",
            "1e-20 1e-20",
        ),
        (
            "WITH RECURSIVE x AS (SELECT coalesce(f, 0.0) AS g, 1 AS n FROM t WHERE id = 3 \
             UNION ALL SELECT g * 2, n + 1 FROM x WHERE n < 3) SELECT g FROM x",
            "1e300 2e300 4e300",
        ),
        ("SELECT coalesce(f, 0.0) AS v FROM t WHERE id = 1 UNION ALL SELECT f FROM t WHERE id = 3", "1e-20 1e300"),
        (
            "SELECT v FROM (SELECT coalesce(f, 0.0) AS v FROM t UNION SELECT coalesce(f, 0.1) FROM t) \
             WHERE v > 0.5 ORDER BY v",
            "1e300 inf",
        ),
        ("SELECT x FROM (VALUES (1e-20), (0.5), (NULL), (3)) AS v(x)", "1e-20 0.5  3.0"),
        ("SELECT x FROM (VALUES (1.5), (0.25)) AS v(x)", "1.50 0.25"),
        ("SELECT x FROM (VALUES (CAST(sqrt(2) AS DECIMAL(10, 2))), (0.25), (NULL)) AS v(x)", "1.41 0.25 "),
        ("SELECT x FROM (VALUES (coalesce(1e-20, 0.5)), (3)) AS v(x)", "1e-20 3.0"),
        ("SELECT x[1] FROM (VALUES (make_array(1e0)), (make_array(0.5))) AS v(x)", "1.0 0.5"),
        (
            "SELECT v[1] FROM (SELECT make_array(f) AS v FROM t WHERE id = 1 UNION ALL SELECT make_array(0.5)) AS x",
            "1e-20 0.5",
        ),
        (
            "SELECT count(*) FROM (SELECT 'a' AS v) AS x WHERE EXISTS (SELECT 1 FROM (SELECT 1 AS v) AS x \
             WHERE EXISTS (SELECT 1 FROM t WHERE t.id = x.v + 1))",
            "1",
        ),
        ("SELECT f > 0.5, count(*) FROM t WHERE id < 4 GROUP BY ROLLUP (f > 0.5) ORDER BY 2", "true false "),
        ("SELECT count(*), grouping(f > 0.5) FROM t WHERE id < 4 GROUP BY CUBE (f > 0.5) ORDER BY 1", "1 2 3"),
        (
            "SELECT coalesce(f, 0.0) AS g FROM t GROUP BY coalesce(f, 0.0) HAVING coalesce(f, 0.0) > 0.5 \
             ORDER BY coalesce(f, 0.0)",
            "1e300 inf",
        ),
        ("SELECT DISTINCT ON (f > 0.5) id FROM t WHERE id < 4 ORDER BY f > 0.5, id", "1 3"),
        (
            "SELECT x.g FROM (SELECT coalesce(f, 0.0) AS g FROM t) AS x \
             CROSS JOIN LATERAL (SELECT t.id FROM t WHERE t.d = x.g) AS y ORDER BY 1",
            "0.0 0.5",
        ),
        (
            "SELECT x.g FROM (SELECT coalesce(f, 0.0) AS g FROM t) AS x WHERE x.g IN \
             (SELECT t.d FROM t WHERE t.d < 0.6) ORDER BY 1",
            "0.0 0.5",
        ),
        (
            "SELECT g FROM (SELECT coalesce(f, 0.0) AS g FROM t) AS x WHERE EXISTS (SELECT 1 FROM t WHERE t.d = x.g) ORDER BY g",
            "0.0 0.5",
        ),
    ] {
        assert_eq!(values(sql).await, found, "{sql}");
    }
}

/// Each recursion reads the one before it: what is done to one must not double with each.
#[tokio::test]
async fn recursions_over_recursions_are_planned_once() {
    let mut sql = "WITH RECURSIVE a0 AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM a0 WHERE n < 2)".to_owned();
    for at in 1..25 {
        let before = at - 1;
        sql += &format!(", a{at} AS (SELECT n FROM a{before} UNION ALL SELECT n + 1 FROM a{at} WHERE n < 2)");
    }
    let context = SessionContext::new();
    let statement = DFParser::parse_sql(&format!("{sql} SELECT n FROM a24")).unwrap().pop_front().unwrap();
    let plan = context.state().statement_to_plan(statement).await.unwrap();
    let plan = stay_approximate(plan).unwrap();
    assert_eq!(plan.schema().fields().len(), 1);
}

#[tokio::test]
async fn a_literal_is_the_nearest_value_and_decimals_alone_stay_exact() {
    let next = "SELECT id FROM t WHERE coalesce(f - f, 0.1) + 0.2 = 0.30000000000000004 AND id = 5";
    assert_eq!(values(next).await, "5", "doubles are added");
    assert_eq!(values("SELECT 1 AS v WHERE CAST('0.30000000000000004' AS DOUBLE) = 0.30000000000000004").await, "1");
    assert_eq!(values("SELECT 1 AS v WHERE CAST('0.123456789012345678' AS DOUBLE) = 0.123456789012345678").await, "1");
    assert_eq!(values("SELECT 0.1 + 0.2 AS v").await, "0.3");
    assert_eq!(values("SELECT 1e0 / 3 AS v").await, "0.3333333333333333");
    assert!(answer("SELECT 1e400 AS v").await.is_err());
}
