//! Statements as text, and what becomes of them: read the expectations as a table.

use std::{fmt::Write, sync::Arc};

use drsdb_core::{ErrorCode, SqlType, Table, TableName, Ulid, WireError, ids::new_ulid};

use super::*;

/// What a text becomes, in one line.
fn outcome(sql: &str) -> String {
    match parse(sql) {
        Ok(Statement::Query(query)) => format!("query: {query}"),
        Ok(Statement::Explain(query)) => format!("explain: {query}"),
        Ok(Statement::Insert(insert)) => format!("insert: {insert}"),
        Ok(other) => format!("{other:?}"),
        Err(error) => shown(&error.to_wire()),
    }
}

fn shown(error: &WireError) -> String {
    let mut text = format!("{}: {}", error.code, error.message);
    if !error.hint.is_empty() {
        write!(text, " | {}", error.hint).unwrap();
    }
    if let (Some(line), Some(column)) = (error.fields.get("line"), error.fields.get("column")) {
        write!(text, " @{line}:{column}").unwrap();
    }
    text
}

fn golden(texts: &[&str]) -> String {
    texts.iter().map(|sql| format!("{sql}\n  => {}\n", outcome(sql))).collect()
}

#[test]
fn servers_are_added_and_removed_by_statements() {
    insta::assert_snapshot!(golden(&[
        "ALTER CLUSTER ADD INDEX SERVER 4 'https://host:7432'",
        "alter cluster remove index server 4;",
        "ALTER CLUSTER DRAIN STORAGE SERVER '01ARZ3NDEKTSV4RRFFQ69G5FAV'",
        "ALTER CLUSTER ADD STORAGE SERVER '01ARZ3NDEKTSV4RRFFQ69G5FAV'",
        "ALTER CLUSTER REMOVE STORAGE SERVER '01ARZ3NDEKTSV4RRFFQ69G5FAV'",
        "SHOW CLUSTER",
        "ALTER CLUSTER",
        "ALTER CLUSTER DRAIN INDEX SERVER 4",
        "ALTER CLUSTER ADD INDEX SERVER 'https://host:7432'",
        "ALTER CLUSTER ADD INDEX SERVER 4 'http://host:7432'",
        "ALTER CLUSTER REMOVE STORAGE SERVER 'host'",
        "ALTER CLUSTER REMOVE INDEX SERVER 4 5",
    ]));
}

#[test]
fn statements_are_classified() {
    insta::assert_snapshot!(golden(&[
        "SELECT 1",
        "select a from t where b = ? and c = ?;",
        "VALUES (1), (2)",
        "WITH x AS (SELECT 1) SELECT * FROM x",
        "EXPLAIN SELECT 1",
        "EXPLAIN ANALYZE VERBOSE SELECT 1",
        "INSERT INTO t (a) VALUES (1), ($1)",
        "INSERT INTO t SELECT * FROM u",
        "DROP TABLE a, B.c, \"D\"",
        "DROP TABLE IF EXISTS a CASCADE",
        "CREATE SCHEMA IF NOT EXISTS Sales",
        "DROP SCHEMA sales CASCADE",
        "CREATE USER ada WITH PASSWORD 'secret'",
        "create user if not exists \"Ada\" password 'it''s'",
        "ALTER USER ada PASSWORD 'other';",
        "DROP USER IF EXISTS ada",
        "SET time_zone = '+02:00'",
        "SET TIME ZONE '+02:00'",
        "SET batch_rows TO 100",
        "SET batch_rows = DEFAULT",
        "RESET ALL",
        "RESET batch_rows",
        "SHOW TABLES",
        "SHOW TABLES FROM sales",
        "SHOW SCHEMAS",
        "SHOW COLUMNS FROM sales.t",
        "DESCRIBE t",
        "SHOW batch_rows",
        "SHOW ALL",
    ]));
}

#[test]
fn syntax_errors_have_a_place() {
    insta::assert_snapshot!(golden(&[
        "",
        "  -- only a comment",
        "SELEC 1",
        "SELECT 1\nFROM t\nWHERE",
        "SELECT * FROM t WHERE a = 'open",
        "SELECT 1 SELECT 2",
        "SELECT 1; SELECT 2",
        "SELECT (1",
        "SELECT 1)",
        "SELECT ? + $1",
        "SELECT $x",
        "CREATE TABLE t (a INT,, b INT)",
        "CREATE USER",
        "CREATE USER ada PASSWORD secret",
        "CREATE USER ada WITH PASSWORD ''",
        "DROP USER ada, bob",
        "SELECT 'ä', FROM",
    ]));
}

#[test]
fn what_is_not_done_says_what_to_do() {
    insta::assert_snapshot!(golden(&[
        "BEGIN ISOLATION LEVEL SERIALIZABLE",
        "EXPLAIN ANALYZE DELETE FROM t",
        "COMMIT AND CHAIN",
        "COPY t FROM 'file.csv'",
        "CREATE INDEX i ON t (a)",
        "GRANT SELECT ON t TO ada",
        "PREPARE p AS SELECT 1",
        "SELECT * INTO u FROM t",
        "SELECT * FROM t FOR UPDATE",
        "EXPLAIN DROP TABLE t",
        "SHOW TABLES LIKE 'a%'",
        "SET LOCAL time_zone = 'UTC'",
        "VACUUM",
    ]));
}

#[test]
fn what_would_be_passed_over_is_refused() {
    insta::assert_snapshot!(golden(&[
        "SELECT * FROM t TABLESAMPLE BERNOULLI (10)",
        "SELECT * FROM t AS x TABLESAMPLE SYSTEM (10) REPEATABLE (1)",
        "SELECT * FROM (SELECT * FROM t) AS x TABLESAMPLE (10 ROWS)",
        "EXPLAIN SELECT * FROM u JOIN t TABLESAMPLE (10) ON true",
        "INSERT INTO u SELECT * FROM t TABLESAMPLE (10)",
        "CREATE VIEW v AS SELECT * FROM t TABLESAMPLE (10)",
        "CREATE TABLE u AS SELECT * FROM t TABLESAMPLE (10)",
        "UPDATE u SET a = t.a FROM t TABLESAMPLE (10) WHERE u.b = t.b",
        "DELETE FROM u USING t TABLESAMPLE (10) WHERE u.b = t.b",
        "MERGE INTO u USING t TABLESAMPLE (10) ON u.b = t.b WHEN MATCHED THEN DELETE",
        "DELETE FROM u WHERE a IN (SELECT a FROM t TABLESAMPLE (10))",
        "WITH x AS (SELECT * FROM t TABLESAMPLE (10)) SELECT * FROM x",
        "SELECT * FROM t FOR SYSTEM_TIME AS OF '2024-01-01'",
        "SELECT * FROM t PARTITION (p)",
        "SELECT * FROM generate_series(1, 3) WITH ORDINALITY",
        "SELECT a FROM t PREWHERE a = 1",
        "SELECT a FROM t START WITH a = 1 CONNECT BY PRIOR a = b",
        "SELECT a, count(*) FROM t GROUP BY a WITH ROLLUP",
        "SELECT quantile(0.5)(a) FROM t",
        "SELECT * FROM (SELECT * FROM t FOR UPDATE) AS x",
        "INSERT INTO u SELECT * FROM t FOR SHARE",
        "SELECT a FROM t FOR JSON AUTO",
        "SELECT a FROM t SETTINGS max_threads = 1",
        "SELECT a FROM t FORMAT CSV",
        "INSERT INTO u SELECT * INTO v FROM t",
        "SELECT k FROM l RIGHT JOIN r USING (k)",
        "SELECT k FROM l NATURAL FULL JOIN r",
    ]));
}

#[test]
fn clauses_of_aggregates_are_refused_elsewhere() {
    for (call, clause) in [
        ("abs(a) FILTER (WHERE a > 1)", "FILTER"),
        ("ABS(DISTINCT a)", "DISTINCT"),
        ("abs(a) OVER (ORDER BY b)", "OVER"),
        ("abs(a) OVER w", "OVER"),
        ("coalesce(a) IGNORE NULLS", "IGNORE NULLS"),
        ("upper(a ORDER BY a)", "ORDER BY"),
        ("abs(b) WITHIN GROUP (ORDER BY a)", "WITHIN GROUP"),
        ("sum(abs(DISTINCT a))", "DISTINCT"),
        ("unnest(a) OVER ()", "OVER"),
        ("count(DISTINCT *)", "DISTINCT *"),
        ("count(DISTINCT t.*)", "DISTINCT *"),
    ] {
        let error = parse(&format!("SELECT {call} FROM t WINDOW w AS (ORDER BY a)")).unwrap_err().to_wire();
        assert_eq!(error.code, ErrorCode::Unsupported, "{call}: {error}");
        assert!(error.message.starts_with(clause) && !error.hint.is_empty(), "{call}: {error}");
    }
    for call in [
        "count(DISTINCT a) FILTER (WHERE b > 1)",
        "array_agg(a ORDER BY b)",
        "lag(a) IGNORE NULLS OVER (ORDER BY b)",
        "percentile_cont(0.5) WITHIN GROUP (ORDER BY a)",
        "abs(ALL a)",
        "count(*)",
        // Whether there is such a function, the planner knows.
        "no_such(DISTINCT a)",
    ] {
        parse(&format!("SELECT {call} FROM t")).unwrap_or_else(|error| panic!("{call}: {error}"));
    }
}

#[test]
fn create_table_refuses_what_it_would_have_to_ignore() {
    insta::assert_snapshot!(golden(&[
        "CREATE TABLE t (a INT GENERATED ALWAYS AS IDENTITY)",
        "CREATE TABLE t (a INT REFERENCES p (a) ON DELETE SET DEFAULT)",
        "CREATE TABLE t (a BIGSERIAL)",
        "CREATE TABLE t (a INT CHECK (a > (SELECT 1)))",
        "CREATE TABLE t (a INT CHECK (a > $1))",
        "CREATE TABLE t (a INT DEFAULT b)",
        "CREATE TABLE t (a INT, UNIQUE NULLS NOT DISTINCT (a))",
        "CREATE TABLE t (a INT) AS SELECT 1",
        "CREATE MATERIALIZED VIEW v AS SELECT 1",
        "CREATE TABLE t (a INT) WITH (replicas = 0)",
        "ALTER TABLE t ALTER COLUMN a TYPE TEXT",
        "ALTER TABLE t OWNER TO ada",
        "TRUNCATE t RESTART IDENTITY",
        "COMMENT ON SCHEMA s IS 'x'",
        "COMMENT ON COLUMN a IS 'x'",
        "CREATE TABLE t (a INT, FOREIGN KEY (a) REFERENCES p (a) DEFERRABLE)",
        "CREATE TABLE t (LIKE u)",
        "CREATE TEMPORARY TABLE t (a INT)",
        "CREATE OR REPLACE TABLE t (a INT)",
        "CREATE TABLE t (a INT, A INT)",
        "CREATE TABLE t (a INT NULL NOT NULL)",
        "CREATE TABLE t (a INT PRIMARY KEY, b INT PRIMARY KEY)",
        "CREATE TABLE t (a INT PRIMARY KEY, PRIMARY KEY (a))",
        "CREATE TABLE t (a INT) WITH (shard = 3)",
        "CREATE TABLE t (a INT) WITH (colour = 'red')",
        "CREATE TABLE t (a INT) WITH (engine = 'rows')",
        "CREATE TABLE t (a INT) WITH (shards = 0)",
        "CREATE TABLE t (a INT) WITH (shards = 3, shards = 4)",
        "CREATE TABLE other.x.y (a INT)",
        "CREATE TABLE t (a TINYINT)",
        "CREATE TABLE t (a DECIMAL(39, 2))",
        "CREATE TABLE t (a DECIMAL(5, 6))",
        "CREATE TABLE t (a TIMESTAMP(3))",
        "CREATE TABLE t (a TIME WITH TIME ZONE)",
        "CREATE TABLE t (a VARBINARY(10))",
        "CREATE TABLE t (a INTERGER)",
        "CREATE TABLE t (a JSON)",
        "CREATE TABLE t (a INT[])",
        "CREATE TABLE t (a)",
        "CREATE TABLE t (a CHAR(0))",
    ]));
}

fn create(sql: &str) -> CreateTable {
    match parse(sql) {
        Ok(Statement::CreateTable(table)) => *table,
        other => panic!("{sql}: {other:?}"),
    }
}

fn no_parents(name: &TableName) -> drsdb_core::Result<Arc<Table>> {
    Err(drsdb_core::Error::new(ErrorCode::NotFound, format!("table {name} does not exist")))
}

#[test]
fn every_type_is_read() {
    let table = create(
        "CREATE TABLE t (a BOOLEAN, b SMALLINT, c INTEGER, d INT, e BIGINT, f REAL, g DOUBLE, h DOUBLE PRECISION, i FLOAT,
         j DECIMAL(12,2), k NUMERIC(5), l DECIMAL, m CHAR(3), n CHAR, o VARCHAR(7), p VARCHAR, q TEXT, r DATE, s TIME,
         t TIMESTAMP, u TIMESTAMP WITHOUT TIME ZONE, v TIMESTAMP WITH TIME ZONE, w TIMESTAMPTZ, x INTERVAL, y BYTEA,
         z VARBINARY, aa UUID, ab ULID, ac CHARACTER VARYING(9), ad STRING, ae FLOAT(24), af INT8)",
    );
    let types: Vec<String> = table.columns.iter().map(|column| column.sql_type.to_string()).collect();
    assert_eq!(
        types.join(", "),
        "BOOLEAN, SMALLINT, INTEGER, INTEGER, BIGINT, REAL, DOUBLE, DOUBLE, DOUBLE, DECIMAL(12,2), DECIMAL(5,0), \
         DECIMAL(38,10), CHAR(3), CHAR(1), VARCHAR(7), VARCHAR, TEXT, DATE, TIME, TIMESTAMP, TIMESTAMP, \
         TIMESTAMP WITH TIME ZONE, TIMESTAMP WITH TIME ZONE, INTERVAL, BYTEA, BYTEA, UUID, ULID, VARCHAR(9), TEXT, REAL, \
         BIGINT"
    );
}

#[test]
fn a_type_reads_what_it_writes() {
    for text in ["DECIMAL(12,2)", "CHAR(3)", "VARCHAR(7)", "VARCHAR", "TIMESTAMP WITH TIME ZONE", "ULID", "DOUBLE"] {
        assert_eq!(parse_type(text).unwrap().to_string(), text);
    }
    assert!(parse_type("INT, b INT").is_err());
}

#[test]
fn a_table_gets_its_keys_and_options() {
    let table = create(
        "CREATE TABLE Sales.Orders (Id BIGINT, \"Day\" DATE, note TEXT, PRIMARY KEY (id, \"Day\"))
         WITH (engine = row, shards = 3, shard_key = 'id', cluster_key = '\"Day\", id')",
    );
    let table = table.resolve(new_ulid(), 12, &no_parents).unwrap();
    assert_eq!(table.name, TableName::new("sales", "orders"));
    assert_eq!(table.engine, drsdb_core::Engine::Row);
    assert_eq!((table.shards, &table.shard_key, &table.cluster_key), (3, &vec![0], &vec![1, 0]));
    let not_null: Vec<bool> = table.columns.iter().map(|column| column.not_null).collect();
    assert_eq!(not_null, [true, true, false]);

    let plain = create("CREATE TABLE t (a INT)").resolve(new_ulid(), 12, &no_parents).unwrap();
    // Rows without a key get one that nobody sees.
    let row_id = &plain.columns[1];
    assert!(row_id.hidden && row_id.not_null && !plain.has_user_key());
    assert_eq!((plain.shards, plain.primary_key, plain.shard_key), (12, vec![1], vec![1]));
    assert_eq!((plain.cluster_key.len(), plain.engine), (0, drsdb_core::Engine::Column));
    let keyed = create("CREATE TABLE t (a INT PRIMARY KEY, b INT)").resolve(new_ulid(), 12, &no_parents).unwrap();
    assert_eq!((keyed.shard_key, keyed.cluster_key), (vec![0], vec![0]));
}

fn resolved(sql: &str) -> Result<Table, String> {
    let parent = create("CREATE TABLE p (x INT, y TEXT, z INT, PRIMARY KEY (x, y))")
        .resolve(new_ulid(), 4, &no_parents)
        .unwrap();
    let keyless = create("CREATE TABLE k (x INT)").resolve(new_ulid(), 4, &no_parents).unwrap();
    let (parent, keyless) = (Arc::new(parent), Arc::new(keyless));
    let parents = |name: &TableName| match name.table.as_str() {
        "p" => Ok(Arc::clone(&parent)),
        "k" => Ok(Arc::clone(&keyless)),
        _ => no_parents(name),
    };
    create(sql).resolve(Ulid::nil(), 4, &parents).map_err(|error| shown(&error.to_wire()))
}

#[test]
fn foreign_keys_reference_primary_keys() {
    let child = resolved("CREATE TABLE c (a INT, b TEXT, FOREIGN KEY (b, a) REFERENCES p (y, x))").unwrap();
    let key = &child.foreign_keys[0];
    assert_eq!((key.name.as_str(), &key.columns, &key.parent_columns), ("c_b_a_fkey", &vec![1, 0], &vec![1, 0]));
    let implied = resolved("CREATE TABLE c (a INT, b TEXT, CONSTRAINT k FOREIGN KEY (a, b) REFERENCES p)").unwrap();
    assert_eq!(implied.foreign_keys[0].parent_columns, [0, 1]);
    let itself = resolved("CREATE TABLE c (a INT PRIMARY KEY, b INT REFERENCES c (a))").unwrap();
    assert_eq!(itself.foreign_keys[0].parent, Ulid::nil());

    let errors: Vec<String> = [
        "CREATE TABLE c (a INT REFERENCES nowhere (a))",
        "CREATE TABLE c (a INT REFERENCES p (x))",
        "CREATE TABLE c (a INT REFERENCES k (x))",
        "CREATE TABLE c (a INT, b TEXT, FOREIGN KEY (a, b) REFERENCES p (x, yy))",
        "CREATE TABLE c (a BIGINT, b TEXT, FOREIGN KEY (a, b) REFERENCES p (x, y))",
        "CREATE TABLE c (a INT, b TEXT, FOREIGN KEY (a, bb) REFERENCES p)",
        "CREATE TABLE c (a INT, b TEXT, FOREIGN KEY (a) REFERENCES p)",
        "CREATE TABLE c (a INT, PRIMARY KEY (b))",
        "CREATE TABLE c (a INT, PRIMARY KEY (a, a))",
        "CREATE TABLE c (a INT PRIMARY KEY, b INT) WITH (shard_key = 'b')",
        "CREATE TABLE c (a INT) WITH (cluster_key = 'aa')",
        "CREATE TABLE c (a INT) WITH (shards = 99999)",
    ]
    .into_iter()
    .filter_map(|sql| parse(sql).map_or_else(|error| Some(shown(&error.to_wire())), |_| resolved(sql).err()))
    .collect();
    insta::assert_snapshot!(errors.join("\n"));
}

mod ddl;

#[test]
fn passwords_are_never_printed() {
    let statement = parse("CREATE USER ada WITH PASSWORD 'hunter2'").unwrap();
    assert!(!format!("{statement:?}").contains("hunter2"));
    let error = parse("CREATE USER ada WITH PASSWORD hunter2").unwrap_err();
    assert!(!error.to_string().contains("hunter2"));
}

/// Runs on a stack as small as a worker thread's, destructors included.
fn on_a_small_stack(sql: String) -> Result<(), ErrorCode> {
    let run = move || parse(&sql).map(drop).map_err(|error| error.code());
    std::thread::Builder::new().stack_size(2 << 20).spawn(run).unwrap().join().expect("the parser must not crash")
}

#[test]
fn hostile_texts_are_refused_and_crash_nothing() {
    let too_much = Err(ErrorCode::ResourceExhausted);
    let repeat = |text: &str, times| text.repeat(times);
    assert_eq!(on_a_small_stack(format!("SELECT {}1{}", repeat("(", 10_000), repeat(")", 10_000))), too_much);
    assert_eq!(on_a_small_stack(format!("SELECT '{}'", repeat("x", 50_000_000))), too_much);
    assert_eq!(on_a_small_stack(repeat(" ", (16 << 20) + 1)), too_much);
    assert_eq!(on_a_small_stack(repeat("(", 16 << 20)), too_much);
    assert_eq!(on_a_small_stack(format!("SELECT 1{}", repeat(" + 1", 100_000))), too_much);
    assert_eq!(on_a_small_stack(format!("SELECT 1{}", repeat(" UNION ALL SELECT 1", 100_000))), too_much);
    // The parser tries other readings of these before it gives up, and reports the last one.
    assert!(on_a_small_stack(format!("SELECT {}1", repeat("NOT ", 3_000))).is_err());
    assert!(on_a_small_stack(format!("SELECT {}1", repeat("- ", 3_000))).is_err());
    assert_eq!(
        on_a_small_stack(format!("SELECT {}1{}", repeat("CASE WHEN ", 5_000), repeat(" THEN 1 END", 5_000))),
        too_much
    );
    assert_eq!(on_a_small_stack(format!("SELECT 1{}", repeat("::int", 50_000))), too_much);
    assert_eq!(on_a_small_stack(format!("SELECT {}1{}", repeat("[", 5_000), repeat("]", 5_000))), too_much);
}

#[test]
fn texts_at_the_limits_are_read() {
    let repeat = |text: &str, times| text.repeat(times);
    assert_eq!(on_a_small_stack(format!("SELECT {}1{}", repeat("(", 90), repeat(")", 90))), Ok(()));
    assert_eq!(on_a_small_stack(format!("SELECT 1{}", repeat(" + 1", 1_900))), Ok(()));
    assert_eq!(on_a_small_stack(format!("SELECT * FROM t WHERE a = 1{}", repeat(" OR a = 1", 900))), Ok(()));
    assert_eq!(on_a_small_stack(format!("SELECT 1{}", repeat("::int", 1_900))), Ok(()));
    assert_eq!(on_a_small_stack(format!("SELECT 1{}", repeat(" UNION ALL SELECT 1", 900))), Ok(()));
    assert_eq!(on_a_small_stack(format!("SELECT * FROM t WHERE a IN (1{})", repeat(", 1", 300_000))), Ok(()));
    assert_eq!(on_a_small_stack(format!("SELECT '{}'", repeat("x", 15 << 20))), Ok(()));
}

/// The parser tries a parenthesis as several things: each level must not double its work.
#[test]
fn nesting_costs_no_exponential_time() {
    let (open, close) = ("(".repeat(90), ")".repeat(90));
    for sql in [
        format!("SELECT {open}1{close}"),
        format!("SELECT * FROM {open}t{close}"),
        format!("SELECT * FROM {open}SELECT 1{close}"),
        format!("{open}SELECT 1{close}"),
        format!("SELECT * FROM t WHERE a IN {open}1{close}"),
        format!("SELECT * FROM t WHERE {open}a = 1{close}"),
        format!("SELECT f{}1{close}", "(f".repeat(89) + "("),
        format!("INSERT INTO t VALUES ({open}1{close})"),
    ] {
        let begun = std::time::Instant::now();
        let outcome = on_a_small_stack(sql.clone());
        assert!(begun.elapsed().as_secs() < 5, "{sql}: {outcome:?} took {:?}", begun.elapsed());
    }
}

#[test]
fn a_sql_type_is_not_lost_in_a_definition() {
    let table = create("CREATE TABLE t (a VARCHAR(10))").resolve(new_ulid(), 1, &no_parents).unwrap();
    assert_eq!(table.columns[0].sql_type, SqlType::Varchar { length: Some(10) });
}
