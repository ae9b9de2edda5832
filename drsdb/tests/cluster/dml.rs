//! Statements that change rows, on both engines, over one and over three storage servers.

use drsdb_client::ErrorCode;

use crate::support::TestCluster;

/// A table of each engine and one without a primary key, with the same rows.
async fn tables(storage: usize) -> TestCluster {
    let cluster = TestCluster::start(storage).await;
    let values: Vec<String> = (0..200).map(|id| format!("({id}, {}, 'n{id}')", id % 10)).collect();
    for (name, key, engine) in [("r", "PRIMARY KEY", "row"), ("c", "PRIMARY KEY", "column")] {
        cluster
            .run(&[
                &format!("CREATE TABLE {name} (id BIGINT {key}, g INTEGER, name TEXT) WITH (engine = '{engine}')"),
                &format!("INSERT INTO {name} VALUES {}", values.join(",")),
            ])
            .await;
    }
    cluster
}

async fn same(cluster: &TestCluster, sql: &str, expected: &str) {
    for table in ["r", "c"] {
        let sql = sql.replace("{t}", table);
        assert_eq!(cluster.value(&sql).await, expected, "{sql}");
    }
}

async fn run(cluster: &TestCluster, sql: &str) {
    for table in ["r", "c"] {
        cluster.run(&[&sql.replace("{t}", table)]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_updated_and_deleted() {
    let cluster = tables(3).await;
    run(&cluster, "UPDATE {t} SET g = g + 100, name = upper(name) WHERE id < 50").await;
    same(&cluster, "SELECT count(*) FROM {t} WHERE g >= 100 AND name LIKE 'N%'", "50").await;
    same(&cluster, "SELECT count(*) FROM {t}", "200").await;
    same(&cluster, "SELECT sum(g) FROM {t}", "5900").await;
    // Keys move, to other shards as well.
    run(&cluster, "UPDATE {t} SET id = id + 1").await;
    same(&cluster, "SELECT min(id) * 1000 + max(id) FROM {t}", "1200").await;
    same(&cluster, "SELECT count(*) FROM {t}", "200").await;
    run(&cluster, "UPDATE {t} SET (g, name) = (SELECT max(g), 'x' FROM {t}) WHERE id = 1").await;
    same(&cluster, "SELECT g FROM {t} WHERE id = 1", "109").await;
    run(&cluster, "UPDATE {t} SET name = u.name FROM (SELECT 'from' AS name, 2 AS id) u WHERE {t}.id = u.id").await;
    same(&cluster, "SELECT name FROM {t} WHERE id = 2", "from").await;
    run(&cluster, "DELETE FROM {t} WHERE g IN (SELECT g FROM {t} WHERE id = 150)").await;
    same(&cluster, "SELECT count(*) FROM {t} WHERE g = 9", "0").await;
    run(&cluster, "DELETE FROM {t} a USING (VALUES (3), (4)) v(id) WHERE a.id = v.id").await;
    same(&cluster, "SELECT count(*) FROM {t} WHERE id IN (3, 4)", "0").await;
    run(&cluster, "TRUNCATE TABLE {t}").await;
    same(&cluster, "SELECT count(*) FROM {t}", "0").await;
    run(&cluster, "INSERT INTO {t} VALUES (1, 1, 'again')").await;
    same(&cluster, "SELECT name FROM {t}", "again").await;
}

/// More of them than a statement gathers before it sends: deletions and new rows go to the servers side by side.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_rows_are_updated() {
    let cluster = TestCluster::start(1).await;
    for (name, engine) in [("r", "row"), ("c", "column")] {
        let table =
            format!("CREATE TABLE {name} (id BIGINT PRIMARY KEY, g INTEGER) WITH (engine = '{engine}', shards = 1)");
        cluster.run(&[&table, &format!("INSERT INTO {name} SELECT value, 0 FROM generate_series(1, 100000)")]).await;
    }
    run(&cluster, "UPDATE {t} SET g = g + 1").await;
    same(&cluster, "SELECT sum(g) FROM {t}", "100000").await;
    // Each new key is that of a row that goes, perhaps later.
    run(&cluster, "UPDATE {t} SET id = id + 1, g = g + 1").await;
    same(&cluster, "SELECT min(id) * 1000000 + max(id) FROM {t}", "2100001").await;
    same(&cluster, "SELECT sum(g) * 1000000 + count(*) FROM {t}", "200000100000").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_inserted_from_queries_and_around_conflicts() {
    let cluster = tables(1).await;
    run(&cluster, "INSERT INTO {t} SELECT id + 1000, g, name FROM {t} WHERE id < 10").await;
    same(&cluster, "SELECT count(*) FROM {t}", "210").await;
    run(&cluster, "INSERT INTO {t} VALUES (1, 0, 'no'), (5000, 0, 'yes') ON CONFLICT DO NOTHING").await;
    same(&cluster, "SELECT count(*) FROM {t} WHERE name IN ('no', 'yes')", "1").await;
    let upsert = "INSERT INTO {t} VALUES (1, 7, 'new'), (6000, 7, 'new') ON CONFLICT (id) DO UPDATE \
                  SET g = excluded.g + {t}.g, name = excluded.name WHERE {t}.id < 100";
    run(&cluster, upsert).await;
    same(&cluster, "SELECT sum(g) FROM {t} WHERE name = 'new'", "15").await;
    for table in ["r", "c"] {
        let twice = format!("INSERT INTO {table} VALUES (1, 1, 'a'), (1, 2, 'b') ON CONFLICT (id) DO UPDATE SET g = 1");
        assert_eq!(cluster.error(&twice).await.code(), ErrorCode::InvalidArgument);
        let returned = cluster
            .table(&format!("UPDATE {table} SET g = 77 WHERE id = 2 RETURNING id, g, upper(name) AS loud"))
            .await;
        assert!(returned.contains("| 2  | 77 | N2   |"), "{returned}");
        let returned = cluster.table(&format!("DELETE FROM {table} WHERE id IN (2, 3) RETURNING *")).await;
        assert!(returned.contains("n2") && returned.contains("n3"), "{returned}");
        let violated = cluster.error(&format!("INSERT INTO {table} VALUES (5, 0, 'x')")).await;
        assert_eq!(violated.code(), ErrorCode::ConstraintViolation);
    }
    let merge = "MERGE INTO {t} USING (VALUES (10, 'm'), (7000, 'm'), (11, 'd')) s(id, name) ON {t}.id = s.id \
                 WHEN MATCHED AND s.name = 'd' THEN DELETE \
                 WHEN MATCHED THEN UPDATE SET name = s.name \
                 WHEN NOT MATCHED THEN INSERT (id, name) VALUES (s.id, s.name)";
    run(&cluster, merge).await;
    same(&cluster, "SELECT count(*) FROM {t} WHERE name = 'm'", "2").await;
    same(&cluster, "SELECT count(*) FROM {t} WHERE id = 11", "0").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_keys_hold_on_both_sides() {
    let cluster = TestCluster::start(3).await;
    cluster
        .run(&[
            "CREATE TABLE p (id BIGINT PRIMARY KEY, name TEXT) WITH (engine = 'row')",
            "CREATE TABLE k (id BIGINT PRIMARY KEY, p BIGINT REFERENCES p (id)) WITH (engine = 'row')",
            "INSERT INTO p VALUES (1, 'a'), (2, 'b')",
            "INSERT INTO k VALUES (10, 1), (11, NULL)",
        ])
        .await;
    let dangling = cluster.error("INSERT INTO k VALUES (12, 3)").await;
    assert_eq!(dangling.code(), ErrorCode::ConstraintViolation);
    assert_eq!(dangling.field("key"), Some("3"));
    let referred = cluster.error("DELETE FROM p WHERE id = 1").await;
    assert_eq!(referred.code(), ErrorCode::ConstraintViolation);
    assert_eq!(cluster.error("UPDATE p SET id = 5 WHERE id = 1").await.code(), ErrorCode::ConstraintViolation);
    cluster.run(&["DELETE FROM p WHERE id = 2", "UPDATE p SET name = 'c'", "DELETE FROM k", "DELETE FROM p"]).await;
    assert_eq!(cluster.value("SELECT count(*) FROM p").await, "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_rows_change_in_one_statement() {
    let cluster = TestCluster::start(3).await;
    cluster
        .run(&[
            "CREATE TABLE big (id BIGINT PRIMARY KEY, v BIGINT)",
            "INSERT INTO big SELECT value, value % 7 FROM generate_series(1, 300000)",
            "UPDATE big SET v = v + 1000 WHERE v < 6",
        ])
        .await;
    assert_eq!(cluster.value("SELECT count(*) FROM big WHERE v >= 1000").await, "257143");
    assert_eq!(cluster.value("SELECT count(*) FROM big").await, "300000");
    cluster.run(&["DELETE FROM big WHERE v >= 1000"]).await;
    assert_eq!(cluster.value("SELECT count(*) FROM big").await, "42857");
}
