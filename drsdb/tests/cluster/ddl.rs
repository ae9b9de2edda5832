//! Definitions that change under rows that are there, on both engines.

use drsdb_core::ErrorCode;

use crate::support::TestCluster;

/// A result's cells, row by row.
async fn rows(cluster: &TestCluster, sql: &str) -> Vec<String> {
    let table = cluster.table(sql).await;
    let rows = table.lines().filter(|line| line.starts_with('|')).skip(1);
    rows.map(|row| row.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>().join(" ")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_follow_their_table() {
    let cluster = TestCluster::start(2).await;
    for engine in ["row", "column"] {
        let create =
            format!("CREATE TABLE t (a INT PRIMARY KEY, b INT, c TEXT) WITH (engine = '{engine}', shards = 3)");
        cluster.run(&[&create, "INSERT INTO t VALUES (1, 10, 'x'), (2, 20, NULL), (3, NULL, 'z')"]).await;
        cluster
            .run(&[
                "ALTER TABLE t ADD COLUMN d TEXT NOT NULL DEFAULT 'it''s'",
                "ALTER TABLE t ADD COLUMN e INT",
                "ALTER TABLE t RENAME COLUMN b TO bb",
                "INSERT INTO t (a, bb, e) VALUES (4, 40, 400)",
            ])
            .await;
        assert_eq!(
            rows(&cluster, "SELECT * FROM t ORDER BY a").await,
            ["1 10 x it's ", "2 20  it's ", "3  z it's ", "4 40  it's 400"]
        );
        assert_eq!(rows(&cluster, "SELECT count(*) FROM t WHERE d = 'it''s' AND e IS NULL").await, ["3"]);
        // What rows are not, they cannot be made by a definition.
        assert_eq!(
            cluster.error("ALTER TABLE t ALTER COLUMN bb SET NOT NULL").await.code(),
            ErrorCode::ConstraintViolation
        );
        assert_eq!(
            cluster.error("ALTER TABLE t ADD CONSTRAINT small CHECK (bb < 40)").await.code(),
            ErrorCode::ConstraintViolation
        );
        assert_eq!(cluster.error("ALTER TABLE t ADD COLUMN f INT NOT NULL").await.code(), ErrorCode::Unsupported);
        cluster
            .run(&["ALTER TABLE t ADD CONSTRAINT small CHECK (bb < 50)", "ALTER TABLE t ALTER COLUMN d SET NOT NULL"])
            .await;
        let error = cluster.error("INSERT INTO t (a, bb) VALUES (5, 50)").await;
        assert_eq!(error.code(), ErrorCode::ConstraintViolation);
        assert!(error.to_string().contains("small"), "{error}");
        cluster.run(&["ALTER TABLE t DROP COLUMN bb CASCADE", "ALTER TABLE t ADD COLUMN bb TEXT"]).await;
        assert_eq!(rows(&cluster, "SELECT a, bb FROM t WHERE a < 3 ORDER BY a").await, ["1 ", "2 "]);
        cluster.run(&["UPDATE t SET bb = 'new' WHERE a = 1", "DELETE FROM t WHERE a = 2"]).await;
        assert_eq!(rows(&cluster, "SELECT a, bb, d FROM t ORDER BY a").await, ["1 new it's", "3  it's", "4  it's"]);
        cluster.run(&["DROP TABLE t"]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_and_views_are_made_of_queries() {
    let cluster = TestCluster::start(2).await;
    cluster
        .run(&[
            "CREATE TABLE t (a INT PRIMARY KEY, b TEXT)",
            "INSERT INTO t VALUES (1, 'x'), (2, 'y'), (3, 'z')",
            "CREATE VIEW v (n, twice) AS SELECT a, a * 2 FROM t WHERE a > 1",
            "CREATE VIEW w AS SELECT v.n, t.b FROM v JOIN t ON t.a = v.n",
            "CREATE TABLE copy AS SELECT n, b AS name FROM w",
        ])
        .await;
    assert_eq!(rows(&cluster, "SELECT * FROM w ORDER BY n").await, ["2 y", "3 z"]);
    assert_eq!(rows(&cluster, "SELECT sum(twice) FROM v").await, ["10"]);
    assert_eq!(rows(&cluster, "SELECT * FROM copy ORDER BY n").await, ["2 y", "3 z"]);
    // The rows of a table without a key have an identity all the same.
    cluster.run(&["DELETE FROM copy WHERE n = 2"]).await;
    assert_eq!(rows(&cluster, "SELECT * FROM copy").await, ["3 z"]);
    assert_eq!(cluster.error("CREATE TABLE broken AS SELECT a / 0 FROM t").await.code(), ErrorCode::InvalidValue);
    assert_eq!(cluster.error("SELECT * FROM broken").await.code(), ErrorCode::NotFound);
    assert_eq!(cluster.error("DROP TABLE t").await.code(), ErrorCode::ConstraintViolation);
    cluster.run(&["DROP TABLE t CASCADE"]).await;
    assert_eq!(cluster.error("SELECT * FROM w").await.code(), ErrorCode::NotFound);
}
