//! Definitions as a client makes, changes and sees them. The tables have no rows, so that the index server answers alone.

use super::*;

async fn client() -> (Front, Client) {
    let front = Front::new().await;
    let client = front.admin().await;
    (front, client)
}

/// The cells of a result, row by row.
async fn cells(client: &mut Client, sql: &str) -> Vec<String> {
    let table = rows_of(client, sql).await;
    let rows = table.lines().filter(|line| line.starts_with('|')).skip(1);
    rows.map(|row| row.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>().join(" ").trim_end().to_owned())
        .collect()
}

/// The names of a query's columns.
async fn fields_of(client: &mut Client, sql: &str) -> Vec<String> {
    let info = client.execute(sql.to_owned(), None).await.unwrap_or_else(|error| panic!("{sql}: {}", wire(error)));
    info.try_decode_schema().unwrap().fields().iter().map(|field| field.name().clone()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn constraints_are_named_and_shown() {
    let (front, mut client) = client().await;
    run(
        &mut client,
        "CREATE TABLE parent (id BIGINT PRIMARY KEY, code VARCHAR(10) UNIQUE, price DECIMAL(10,2) DEFAULT 1.5
             CHECK (price > 0), made TIMESTAMP DEFAULT now(), tag ULID DEFAULT ulid(), CONSTRAINT both CHECK (id <> price))",
    )
    .await;
    run(
        &mut client,
        "CREATE TABLE child (a BIGINT REFERENCES parent ON DELETE CASCADE, b VARCHAR(10) DEFAULT 'x',
             FOREIGN KEY (b) REFERENCES parent (code) ON UPDATE SET NULL)",
    )
    .await;
    let constraints =
        "SELECT table_name, constraint_name, constraint_type FROM information_schema.table_constraints ORDER BY 1, 2";
    assert_eq!(
        cells(&mut client, constraints).await,
        [
            "child child_a_fkey FOREIGN KEY",
            "child child_b_fkey FOREIGN KEY",
            "parent both CHECK",
            "parent parent_code_key UNIQUE",
            "parent parent_pkey PRIMARY KEY",
            "parent parent_price_check CHECK",
        ]
    );
    let columns = "SELECT column_name, ordinal_position, column_default, is_nullable, data_type
                   FROM information_schema.columns WHERE table_name = 'child' ORDER BY 2";
    assert_eq!(cells(&mut client, columns).await, ["a 1  YES bigint", "b 2 'x' YES character varying"]);
    let rules = "SELECT constraint_name, unique_constraint_name, update_rule, delete_rule
                 FROM information_schema.referential_constraints ORDER BY 1";
    assert_eq!(
        cells(&mut client, rules).await,
        ["child_a_fkey parent_pkey NO ACTION CASCADE", "child_b_fkey parent_code_key SET NULL NO ACTION"]
    );
    let usage = "SELECT column_name, ordinal_position, position_in_unique_constraint
                 FROM information_schema.key_column_usage WHERE constraint_name LIKE 'child%' ORDER BY 1";
    assert_eq!(cells(&mut client, usage).await, ["a 1 1", "b 1 1"]);
    let checks = "SELECT constraint_name, check_clause FROM information_schema.check_constraints ORDER BY 1";
    assert_eq!(cells(&mut client, checks).await, ["both id <> price", "parent_price_check price > 0"]);
    // The identity of rows without a key, and the keys of UNIQUE, are nobody's business.
    assert_eq!(
        cells(&mut client, "SELECT table_name FROM information_schema.tables ORDER BY 1").await,
        ["child", "parent"]
    );
    assert_eq!(cells(&mut client, "SHOW TABLES").await.len(), 2);
    assert_eq!(front.catalog.state().tables().count(), 3);
    let kinds = "SELECT table_name, kind, engine FROM drsdb.tables WHERE kind <> 'table'";
    assert_eq!(cells(&mut client, kinds).await, ["parent_code_key unique index row"]);
    assert_eq!(fields_of(&mut client, "SELECT * FROM child").await, ["a", "b"]);
    assert_eq!(refused(&mut client, "SELECT _row_id FROM child").await.code, ErrorCode::NotFound);
    run(&mut client, "DROP TABLE child, parent").await;
    assert_eq!(front.catalog.state().tables().count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expressions_of_definitions_are_checked() {
    let (_front, mut client) = client().await;
    for (definition, code) in [
        ("a INT CHECK (a)", ErrorCode::TypeMismatch),
        ("a INT CHECK (b > 0)", ErrorCode::NotFound),
        ("a INT CHECK (sum(a) > 0)", ErrorCode::InvalidArgument),
        ("a INT CHECK (a > (SELECT 1))", ErrorCode::Unsupported),
        ("a INT CHECK (a > random())", ErrorCode::Unsupported),
        ("a INT DEFAULT 'x'", ErrorCode::InvalidValue),
        ("a SMALLINT DEFAULT 70000", ErrorCode::InvalidValue),
        ("a DATE DEFAULT true", ErrorCode::TypeMismatch),
        ("a INT DEFAULT b, b INT", ErrorCode::InvalidArgument),
        ("a INT DEFAULT nowhere()", ErrorCode::NotFound),
        ("a INT GENERATED ALWAYS AS IDENTITY", ErrorCode::Unsupported),
        ("a INT, CONSTRAINT x UNIQUE (a), CONSTRAINT x CHECK (a > 0)", ErrorCode::AlreadyExists),
    ] {
        let error = refused(&mut client, &format!("CREATE TABLE t ({definition})")).await;
        assert_eq!(error.code, code, "{definition}: {}", error.message);
    }
    run(
        &mut client,
        "CREATE TABLE t (a DATE DEFAULT '2024-02-29', b DOUBLE DEFAULT 0.1, c BIGINT DEFAULT snowflake_id(),
             d UUID DEFAULT gen_random_uuid(), e DATE DEFAULT current_date, f TEXT DEFAULT upper('x'), g INT DEFAULT -1)",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_are_altered() {
    let (front, mut client) = client().await;
    run(&mut client, "CREATE TABLE t (a INT PRIMARY KEY, b INT, c INT CHECK (c > b))").await;
    run(&mut client, "ALTER TABLE t ADD COLUMN d TEXT NOT NULL DEFAULT 'it''s', ADD COLUMN IF NOT EXISTS b INT").await;
    run(&mut client, "ALTER TABLE t RENAME COLUMN b TO bb").await;
    run(&mut client, "ALTER TABLE t ADD CONSTRAINT u UNIQUE (bb, d), ALTER COLUMN c SET DEFAULT 7").await;
    let table = front.catalog.state().find_table(&TableName::new("public", "t")).unwrap().table.clone();
    assert_eq!((table.version, table.checks[0].sql.as_str()), (3, "c > bb"));
    assert_eq!(table.columns[3].initial.as_deref(), Some("'it''s'"));
    let described = cells(&mut client, "SELECT column_name, column_default FROM information_schema.columns").await;
    assert_eq!(described, ["a", "bb", "c 7", "d 'it''s'"]);

    assert_eq!(refused(&mut client, "ALTER TABLE t DROP COLUMN bb").await.code, ErrorCode::InvalidArgument);
    assert_eq!(refused(&mut client, "ALTER TABLE t DROP COLUMN a CASCADE").await.code, ErrorCode::InvalidArgument);
    assert_eq!(refused(&mut client, "ALTER TABLE t ADD COLUMN a INT").await.code, ErrorCode::AlreadyExists);
    assert_eq!(refused(&mut client, "ALTER TABLE t DROP COLUMN e").await.code, ErrorCode::NotFound);
    assert_eq!(
        refused(&mut client, "ALTER TABLE t ALTER COLUMN a DROP NOT NULL").await.code,
        ErrorCode::InvalidArgument
    );
    run(&mut client, "ALTER TABLE t DROP COLUMN IF EXISTS e, DROP COLUMN bb CASCADE").await;
    let state = front.catalog.state();
    let table = &state.find_table(&TableName::new("public", "t")).unwrap().table;
    assert!(table.uniques.is_empty() && table.checks.is_empty() && table.columns[1].dropped);
    assert_eq!(state.tables().count(), 1, "the index went with its constraint");
    // The name is free, the position is not.
    run(&mut client, "ALTER TABLE t ADD bb TEXT").await;
    assert_eq!(cells(&mut client, "SELECT column_name FROM information_schema.columns").await, ["a", "c", "d", "bb"]);
    run(&mut client, "CREATE VIEW v AS SELECT a, c, d, bb FROM t").await;
    assert_eq!(refused(&mut client, "ALTER TABLE t RENAME TO t2").await.code, ErrorCode::ConstraintViolation);
    assert_eq!(refused(&mut client, "ALTER TABLE t RENAME c TO cc").await.code, ErrorCode::ConstraintViolation);
    run(&mut client, "DROP VIEW v").await;
    run(&mut client, "ALTER TABLE t RENAME TO t2").await;
    run(&mut client, "ALTER TABLE IF EXISTS t DROP COLUMN c").await;
    assert_eq!(fields_of(&mut client, "SELECT * FROM t2").await, ["a", "c", "d", "bb"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn views_are_names_for_queries() {
    let (front, mut client) = client().await;
    run(&mut client, "CREATE TABLE t (a INT PRIMARY KEY, b TEXT, c INT)").await;
    run(&mut client, "CREATE VIEW v (x) AS SELECT a, b FROM t WHERE a > 1").await;
    run(&mut client, "CREATE VIEW w AS SELECT v.x, v.b || '!' AS loud FROM v JOIN t ON t.a = v.x").await;
    run(&mut client, "CREATE VIEW everything AS SELECT * FROM t").await;
    assert_eq!(fields_of(&mut client, "SELECT * FROM w").await, ["x", "loud"]);
    run(&mut client, "ALTER TABLE t ADD COLUMN d INT").await;
    assert_eq!(fields_of(&mut client, "SELECT * FROM everything").await, ["a", "b", "c"]);
    let listed = "SELECT table_name, table_type FROM information_schema.tables ORDER BY 1";
    assert_eq!(cells(&mut client, listed).await, ["everything VIEW", "t BASE TABLE", "v VIEW", "w VIEW"]);
    assert_eq!(cells(&mut client, "DESCRIBE v").await[0], "x INTEGER true");

    assert_eq!(refused(&mut client, "DROP TABLE t").await.code, ErrorCode::ConstraintViolation);
    assert_eq!(refused(&mut client, "DROP VIEW v").await.code, ErrorCode::ConstraintViolation);
    assert_eq!(refused(&mut client, "DROP TABLE v").await.code, ErrorCode::InvalidArgument);
    assert_eq!(refused(&mut client, "CREATE VIEW t AS SELECT 1").await.code, ErrorCode::AlreadyExists);
    assert_eq!(refused(&mut client, "CREATE VIEW v AS SELECT 1").await.code, ErrorCode::AlreadyExists);
    assert_eq!(refused(&mut client, "CREATE VIEW z AS SELECT nothing FROM t").await.code, ErrorCode::NotFound);
    assert_eq!(refused(&mut client, "CREATE VIEW z AS SELECT 1 AS a, 2 AS a").await.code, ErrorCode::InvalidArgument);
    let cycle = "CREATE OR REPLACE VIEW v AS SELECT x, loud AS b FROM w";
    assert_eq!(refused(&mut client, cycle).await.code, ErrorCode::InvalidArgument);
    let narrower = "CREATE OR REPLACE VIEW v AS SELECT a AS x FROM t";
    assert_eq!(refused(&mut client, narrower).await.code, ErrorCode::ConstraintViolation);
    run(&mut client, "CREATE OR REPLACE VIEW v AS SELECT a AS x, b, c FROM t").await;
    run(&mut client, "CREATE VIEW IF NOT EXISTS v AS SELECT 1").await;
    assert_eq!(refused(&mut client, "ALTER TABLE t DROP COLUMN c").await.code, ErrorCode::ConstraintViolation);
    run(&mut client, "ALTER TABLE t DROP COLUMN c CASCADE").await;
    assert_eq!(front.catalog.state().views().count(), 0, "views of views go too");
    run(&mut client, "CREATE VIEW v AS SELECT a FROM t").await;
    run(&mut client, "COMMENT ON VIEW v IS 'it''s a view'").await;
    run(&mut client, "COMMENT ON COLUMN t.a IS 'the key'").await;
    assert_eq!(cells(&mut client, "DESCRIBE t").await[0], "a INTEGER false primary key  the key");
    run(&mut client, "DROP TABLE t CASCADE").await;
    assert_eq!(front.catalog.state().views().count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_system_shows_itself() {
    let (_front, mut client) = client().await;
    run(&mut client, "CREATE TABLE t (a INT) WITH (shards = 2)").await;
    assert!(!cells(&mut client, "SELECT * FROM drsdb.servers WHERE kind = 'storage'").await.is_empty());
    assert_eq!(cells(&mut client, "SELECT shard, rows FROM drsdb.shards ORDER BY 1").await, ["0 0", "1 0"]);
    let current = "SELECT count(DISTINCT shard) FROM drsdb.replicas WHERE state = 'current' AND is_first";
    assert_eq!(cells(&mut client, current).await, ["2"]);
    let joined = "SELECT r.table_name FROM drsdb.replicas r JOIN drsdb.servers s ON r.server = s.id WHERE r.shard = 0";
    assert!(!cells(&mut client, joined).await.is_empty());
    for table in ["transactions", "raft", "settings"] {
        rows_of(&mut client, &format!("SELECT * FROM drsdb.{table}")).await;
    }
    assert_eq!(refused(&mut client, "CREATE SCHEMA drsdb").await.code, ErrorCode::InvalidArgument);
    assert!(refused(&mut client, "CREATE TABLE drsdb.t (a INT)").await.code == ErrorCode::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_is_made_of_a_query() {
    let (front, mut client) = client().await;
    run(&mut client, "CREATE TABLE t (a VARCHAR(5), b DECIMAL(12,2), c ULID)").await;
    run(&mut client, "CREATE TABLE u (x) AS SELECT a, b * 2 AS double, c FROM t WITH NO DATA").await;
    let state = front.catalog.state();
    let table = &state.find_table(&TableName::new("public", "u")).unwrap().table;
    let columns: Vec<String> =
        table.visible_columns().map(|(_, column)| format!("{} {}", column.name, column.sql_type)).collect();
    assert_eq!((columns[0].as_str(), columns[2].as_str()), ("x VARCHAR(5)", "c ULID"));
    run(&mut client, "CREATE TABLE IF NOT EXISTS u AS SELECT 1").await;
    assert_eq!(refused(&mut client, "CREATE TABLE w (a, b) AS SELECT 1").await.code, ErrorCode::InvalidArgument);
    assert_eq!(refused(&mut client, "SELECT 1 WITH NO DATA").await.code, ErrorCode::Syntax);
    // Whoever has lost the answer asks again, and gets the first one.
    client.set_header("drsdb-statement-id", drsdb_core::Ulid(1).to_string());
    for _ in 0..2 {
        assert_eq!(run(&mut client, "CREATE TABLE w AS SELECT 1 AS a UNION ALL SELECT 2").await, 2);
    }
    client.set_header("drsdb-statement-id", drsdb_core::Ulid(2).to_string());
    assert_eq!(refused(&mut client, "CREATE TABLE w AS SELECT 1 AS a").await.code, ErrorCode::AlreadyExists);
    let state = front.catalog.state();
    assert_eq!(state.find_table(&TableName::new("public", "w")).unwrap().rows(), 2);
    assert_eq!((state.tables().count(), state.making().count()), (3, 0));
}
