//! Plans that went through here, and DataFusion's answers to them.

use arrow::{
    array::{ArrayRef, Int64Array, RecordBatch, StringArray},
    datatypes::{Field, Schema},
    util::pretty::pretty_format_batches,
};
use datafusion::{
    common::{Constraint, Constraints},
    datasource::MemTable,
    prelude::{SessionConfig, SessionContext},
    sql::parser::DFParser,
};
use drsdb_core::checked_arithmetic::register_functions;

use super::*;

fn table(columns: Vec<(&str, bool, ArrayRef)>) -> Arc<MemTable> {
    let fields = columns.iter().map(|(name, null, values)| Field::new(*name, values.data_type().clone(), *null));
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    let values = columns.into_iter().map(|(_, _, values)| values).collect();
    let batch = RecordBatch::try_new(Arc::clone(&schema), values).unwrap();
    let key = Constraints::new_unverified(vec![Constraint::PrimaryKey(vec![0])]);
    Arc::new(MemTable::try_new(schema, vec![vec![batch]]).unwrap().with_constraints(key))
}

/// `t`: ids 1 to 4. `u`: one row with `k = 1`, two with 2, none with 3, two with 9, one with NULL. `none`: no rows.
fn context() -> SessionContext {
    let mut config = SessionConfig::new().with_target_partitions(2);
    // As datafusion-distributed has it.
    config.options_mut().optimizer.enable_physical_uncorrelated_scalar_subquery = false;
    let context = SessionContext::new_with_config(config);
    let mut state = context.state();
    register_functions(&mut state).unwrap();
    let context = SessionContext::new_with_state(state);
    let ints = |values: Vec<Option<i64>>| Arc::new(Int64Array::from(values)) as ArrayRef;
    let some = |values: &[i64]| ints(values.iter().copied().map(Some).collect());
    let names = StringArray::from(vec!["a", "b", "c", "d", "e", "f"]);
    let t = table(vec![("id", false, some(&[1, 2, 3, 4])), ("x", true, some(&[10, 20, 30, 40]))]);
    let u = table(vec![
        ("id", false, some(&[1, 2, 3, 4, 5, 6])),
        ("k", true, ints(vec![Some(1), Some(2), Some(2), Some(9), Some(9), None])),
        ("v", true, some(&[10, 20, 21, 90, 91, 60])),
        ("name", true, Arc::new(names) as ArrayRef),
    ]);
    let none = table(vec![("id", false, some(&[])), ("v", true, some(&[]))]);
    for (name, table) in [("t", t), ("u", u), ("none", none)] {
        context.register_table(name, table).unwrap();
    }
    context
}

async fn plan(context: &SessionContext, sql: &str) -> (LogicalPlan, DfResult<LogicalPlan>) {
    let statement = DFParser::parse_sql(sql).unwrap().pop_front().expect("a statement");
    let plan = context.state().statement_to_plan(statement).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    (plan.clone(), check_single_rows(plan))
}

async fn answer(sql: &str) -> DfResult<String> {
    let context = context();
    let (before, plan) = plan(&context, sql).await;
    let plan = plan?;
    assert_eq!(before.schema().field_names(), plan.schema().field_names(), "{sql}: names stay");
    let types = |plan: &LogicalPlan| -> Vec<DataType> {
        plan.schema().fields().iter().map(|field| field.data_type().clone()).collect()
    };
    assert_eq!(types(&before), types(&plan), "{sql}: types stay");
    assert_eq!(check_single_rows(plan.clone())?, plan, "{sql}: once is enough");
    let optimized = context.state().optimize(&plan)?;
    refuse_left_over(&optimized)?;
    let rows = context.execute_logical_plan(plan).await?.collect().await?;
    Ok(pretty_format_batches(&rows)?.to_string())
}

/// The rows, and their columns one after the other.
async fn values(sql: &str) -> String {
    let table = answer(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    let rows = table.lines().filter(|line| line.starts_with("| ")).skip(1);
    let cells = rows.flat_map(|row| {
        row.trim_matches('|').split('|').map(|cell| match cell.trim() {
            "" => "-".to_owned(),
            value => value.to_owned(),
        })
    });
    cells.collect::<Vec<_>>().join(" ")
}

async fn error(sql: &str) -> WireError {
    match answer(sql).await {
        Ok(table) => panic!("{sql}:\n{table}"),
        Err(error) => Error::from(error).to_wire(),
    }
}

#[tokio::test]
async fn a_second_row_is_an_error() {
    for sql in [
        "SELECT (SELECT id FROM u WHERE id < 3)",
        "SELECT (SELECT 1 UNION ALL SELECT 2)",
        "SELECT (SELECT v FROM u)",
        "SELECT (SELECT k FROM u WHERE k = 2)",
        "SELECT (SELECT 1 FROM u)",
        "SELECT (SELECT DISTINCT k FROM u)",
        "SELECT (SELECT max(v) FROM u GROUP BY k)",
        "SELECT (SELECT x FROM (VALUES (1), (2)) AS s (x))",
        "SELECT (SELECT v FROM u LIMIT 2)",
        "SELECT (SELECT v FROM u ORDER BY v)",
        // Each of them looks like one row at most to DataFusion.
        "SELECT (SELECT id FROM u WHERE id = id + 0)",
        "SELECT (SELECT a.x FROM (SELECT 1 AS x) AS a FULL JOIN (SELECT 2 AS x) AS b ON a.x = b.x)",
        "SELECT id FROM t WHERE id = (SELECT id FROM u)",
        "SELECT id FROM t WHERE id IN (SELECT (SELECT v FROM u) FROM t)",
        "SELECT (SELECT max(x) FROM t WHERE x > (SELECT v FROM u))",
        "SELECT id, (SELECT v FROM u WHERE u.k = t.id) FROM t",
        "SELECT id FROM t WHERE x = (SELECT v FROM u WHERE u.k = t.id)",
    ] {
        let error = error(sql).await;
        assert_eq!(error.code, ErrorCode::InvalidValue, "{sql}: {error}");
        assert!(error.message.contains("more than one row"), "{sql}: {error}");
        assert!(error.hint.contains("LIMIT 1"), "{sql}: {error}");
    }
}

#[tokio::test]
async fn one_row_is_its_value_and_none_is_null() {
    for (sql, found) in [
        ("SELECT (SELECT v FROM u WHERE k = 1)", "10"),
        ("SELECT (SELECT v FROM u WHERE k = 7)", "-"),
        ("SELECT (SELECT k FROM u WHERE v = 60)", "-"),
        ("SELECT (SELECT id FROM none) IS NULL", "true"),
        ("SELECT (SELECT name FROM u WHERE k = 1) || '!'", "a!"),
        ("SELECT 1 + (SELECT v FROM u WHERE k = 1)", "11"),
        ("SELECT id FROM t WHERE x = (SELECT v FROM u WHERE k = 1)", "1"),
        ("SELECT id FROM t WHERE x > (SELECT v FROM u WHERE k = 1) ORDER BY id", "2 3 4"),
        ("SELECT id FROM t WHERE x = (SELECT v FROM u WHERE k = 7)", ""),
        ("SELECT (SELECT 1 UNION SELECT 1)", "1"),
        ("SELECT (SELECT v FROM u ORDER BY v DESC LIMIT 1)", "91"),
        ("SELECT (SELECT (SELECT v FROM u WHERE k = 1) FROM t WHERE x < 20)", "10"),
        ("SELECT count(*) FROM t GROUP BY id > 2 HAVING count(*) > (SELECT k FROM u WHERE v = 10)", "2 2"),
        ("SELECT CASE WHEN x > 10 THEN (SELECT v FROM u WHERE k = 1) ELSE 0 END FROM t ORDER BY id", "0 10 10 10"),
    ] {
        assert_eq!(values(sql).await, found, "{sql}");
    }
}

#[tokio::test]
async fn a_value_about_the_row_around_it() {
    for (sql, found) in [
        ("SELECT id, (SELECT v FROM u WHERE u.k = t.id) AS r FROM t WHERE id <> 2 ORDER BY id", "1 10 3 - 4 -"),
        // Also under the name of what is compared, and as something that is computed of it.
        ("SELECT id, (SELECT k FROM u WHERE u.k = t.id) AS r FROM t WHERE id <> 2 ORDER BY id", "1 1 3 - 4 -"),
        ("SELECT id, (SELECT k + 1 AS k FROM u WHERE u.k = t.id) AS r FROM t WHERE id <> 2 ORDER BY id", "1 2 3 - 4 -"),
        ("SELECT id, 1 + (SELECT v FROM u WHERE u.k = t.id AND v < 21) AS r FROM t ORDER BY id", "1 11 2 21 3 - 4 -"),
        ("SELECT id FROM t WHERE x = (SELECT v FROM u WHERE u.k = t.id AND name < 'c') ORDER BY id", "1 2"),
        ("SELECT id FROM t WHERE (SELECT v FROM u WHERE u.k = t.id AND v <> 20) IS NULL ORDER BY id", "3 4"),
        ("SELECT id, (SELECT DISTINCT k * 2 FROM u WHERE u.k = t.id) AS r FROM t ORDER BY id", "1 2 2 4 3 - 4 -"),
        ("SELECT id, (SELECT count(*) FROM u WHERE u.k = t.id GROUP BY k) AS r FROM t ORDER BY id", "1 1 2 2 3 - 4 -"),
        (
            "SELECT id, (SELECT a.v + b.x FROM u AS a JOIN t AS b ON a.k = b.id WHERE a.id = t.id) FROM t ORDER BY id",
            "1 20 2 40 3 41 4 -",
        ),
        (
            "SELECT id, (SELECT x FROM (VALUES (1), (2)) AS s (x) WHERE x = t.id) AS r FROM t ORDER BY id",
            "1 1 2 2 3 - 4 -",
        ),
        // By the whole key, as before.
        ("SELECT id, (SELECT v FROM u WHERE u.id = t.id) AS r FROM t ORDER BY id", "1 10 2 20 3 21 4 90"),
        ("SELECT id, (SELECT v FROM u WHERE u.id = t.id AND u.v > t.x) AS r FROM t ORDER BY id", "1 - 2 - 3 - 4 90"),
    ] {
        assert_eq!(values(sql).await, found, "{sql}");
    }
}

#[tokio::test]
async fn what_cannot_be_planned_says_so() {
    for sql in [
        "SELECT id, (SELECT v FROM u WHERE u.k < t.id) FROM t",
        "SELECT id, (SELECT v FROM u WHERE u.k = t.id LIMIT 1) FROM t",
        "SELECT id, (SELECT v + t.x FROM u WHERE u.k = t.id) FROM t",
        "SELECT id, (SELECT row_number() OVER (ORDER BY v) FROM u WHERE u.k = t.id) FROM t",
        "SELECT (SELECT n + x FROM (SELECT count(*) AS n FROM u WHERE u.k = t.id), (VALUES (1), (2)) AS s (x)) FROM t",
        "SELECT id, (SELECT v FROM u WHERE CAST(u.k AS DOUBLE) = t.id) FROM t",
        "SELECT id, (SELECT v FROM u WHERE u.k = CAST(t.id AS DOUBLE)) FROM t",
        "SELECT id, (SELECT max(v) FROM u WHERE u.k < t.id) FROM t",
    ] {
        let error = error(sql).await;
        assert_eq!(error.code, ErrorCode::Unsupported, "{sql}: {error}");
        assert!(error.message.contains("uses columns from outside"), "{sql}: {error}");
        assert!(!error.hint.is_empty(), "{sql}: {error}");
    }
}

#[tokio::test]
async fn what_gives_one_row_stays_as_it_is() {
    let context = context();
    for sql in [
        "SELECT id FROM t",
        "SELECT (SELECT 1)",
        "SELECT (SELECT max(v) FROM u)",
        "SELECT (SELECT max(v) + 1 AS m FROM u HAVING count(*) > 0)",
        "SELECT (SELECT v FROM u WHERE id = 3)",
        "SELECT (SELECT v FROM u WHERE 3 = id AND v > 5)",
        "SELECT (SELECT v FROM u AS o WHERE o.id = (SELECT max(id) FROM t))",
        "SELECT (SELECT v FROM u ORDER BY v LIMIT 1)",
        "SELECT (SELECT count(*) FROM u AS a, u AS b)",
        "SELECT id FROM t WHERE x > (SELECT avg(v) FROM u WHERE u.k = t.id)",
        "SELECT id FROM t WHERE x > (SELECT v FROM u WHERE u.id = t.id)",
        "SELECT id FROM t WHERE EXISTS (SELECT 1 FROM u) AND id IN (SELECT k FROM u)",
    ] {
        let (before, after) = plan(&context, sql).await;
        assert_eq!(after.unwrap(), before, "{sql}");
    }
    // These look alike.
    for sql in ["SELECT (SELECT v FROM u WHERE id = 3.5e0)", "SELECT (SELECT v FROM u WHERE id = random())"] {
        let (before, after) = plan(&context, sql).await;
        assert_ne!(after.unwrap(), before, "{sql}");
    }
}

#[tokio::test]
async fn a_value_that_may_be_missing_may_be_null() {
    let context = context();
    let (before, after) = plan(&context, "SELECT x FROM (SELECT (SELECT id FROM u) AS x) AS s").await;
    assert!(!before.schema().field(0).is_nullable(), "DataFusion takes it from the column");
    assert!(after.unwrap().schema().field(0).is_nullable());
}
