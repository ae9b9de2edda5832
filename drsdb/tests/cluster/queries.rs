//! Queries over one and over three storage servers: every shape of plan gives the rows that it should.

use crate::support::TestCluster;

/// One copy of everything: with more, a server that has all would answer such small queries alone.
const TABLES: &[&str] = &[
    "CREATE TABLE parent (id BIGINT PRIMARY KEY, name TEXT NOT NULL, size INTEGER) WITH (replicas = 1)",
    "CREATE TABLE child (id BIGINT PRIMARY KEY, parent_id BIGINT, amount DECIMAL(12,2)) WITH (replicas = 1, engine = 'row')",
    "CREATE TABLE tiny (k INTEGER PRIMARY KEY, label TEXT) WITH (shards = 1, replicas = 1)",
    "CREATE TABLE nothing (a INTEGER, b TEXT) WITH (replicas = 1)",
];

async fn filled(storage: usize) -> TestCluster {
    let cluster = TestCluster::start(storage).await;
    cluster.run(TABLES).await;
    let parents: Vec<String> = (0..500).map(|i| format!("({i}, 'p{i}', {})", i % 7)).collect();
    let children: Vec<String> = (0..2000)
        .map(|i| if i % 10 == 0 { format!("({i}, NULL, {i}.25)") } else { format!("({i}, {}, {i}.25)", i % 600) })
        .collect();
    cluster.run(&[&format!("INSERT INTO parent VALUES {}", parents.join(","))]).await;
    cluster.run(&[&format!("INSERT INTO child VALUES {}", children.join(","))]).await;
    cluster.run(&["INSERT INTO tiny VALUES (0, 'zero'), (1, 'one'), (2, 'two'), (3, NULL)"]).await;
    cluster
}

/// Queries of every shape that the planner treats in its own way. Each has one deterministic answer.
const SHAPES: &[&str] = &[
    "SELECT count(*) FROM parent",
    "SELECT count(*), min(name), max(size) FROM parent WHERE size > 3",
    "SELECT * FROM parent ORDER BY id LIMIT 5",
    "SELECT * FROM parent WHERE id = 77",
    "SELECT * FROM parent WHERE id IN (1, 2, 3, 499, 1000) ORDER BY id",
    "SELECT size, count(*) c, sum(id) FROM parent GROUP BY size ORDER BY size",
    "SELECT p.size, sum(c.amount) FROM child c JOIN parent p ON c.parent_id = p.id GROUP BY p.size ORDER BY 1",
    "SELECT count(*) FROM child c LEFT JOIN parent p ON c.parent_id = p.id WHERE p.id IS NULL",
    "SELECT count(*) FROM parent p LEFT JOIN child c ON c.parent_id = p.id WHERE c.id IS NULL",
    "SELECT count(*) FROM parent p FULL JOIN child c ON c.parent_id = p.id",
    "SELECT count(*) FROM parent p RIGHT JOIN child c ON c.parent_id = p.id",
    "SELECT count(*) FROM parent p WHERE EXISTS (SELECT 1 FROM child c WHERE c.parent_id = p.id)",
    "SELECT count(*) FROM parent p WHERE p.id NOT IN (SELECT parent_id FROM child WHERE parent_id IS NOT NULL)",
    "SELECT count(*) FROM parent p WHERE p.id NOT IN (SELECT parent_id FROM child)",
    "SELECT t.label, count(*) FROM parent p JOIN tiny t ON p.size = t.k GROUP BY t.label ORDER BY t.label",
    "SELECT count(*) FROM parent a CROSS JOIN tiny b",
    "SELECT count(*) FROM parent a JOIN tiny b ON a.size > b.k",
    "SELECT count(*) FROM parent a LEFT JOIN tiny b ON a.size < b.k",
    "SELECT count(*) FROM parent a FULL JOIN tiny b ON a.size < b.k AND a.id > 400",
    "SELECT x, count(*) FROM (SELECT size x FROM parent UNION ALL SELECT k FROM tiny) GROUP BY x ORDER BY x",
    "SELECT x FROM (SELECT size x FROM parent UNION SELECT k FROM tiny UNION SELECT 99) ORDER BY x",
    "SELECT x FROM (SELECT id x FROM parent WHERE id < 3 UNION ALL VALUES (100), (200)) ORDER BY x",
    "SELECT count(*) FROM (SELECT id FROM parent UNION ALL SELECT 1 UNION ALL SELECT id FROM child)",
    "SELECT id FROM parent INTERSECT SELECT parent_id FROM child WHERE parent_id < 5 ORDER BY 1",
    "SELECT count(*) FROM (SELECT id FROM parent EXCEPT SELECT parent_id FROM child)",
    "SELECT id, row_number() OVER (ORDER BY id) FROM parent ORDER BY id LIMIT 3",
    "SELECT size, id FROM (SELECT size, id, rank() OVER (PARTITION BY size ORDER BY id DESC) r FROM parent) WHERE r = 1 ORDER BY 1",
    "SELECT DISTINCT size FROM parent ORDER BY size",
    "SELECT count(DISTINCT size), count(DISTINCT name) FROM parent",
    "SELECT (SELECT max(id) FROM child), (SELECT count(*) FROM tiny)",
    "SELECT name FROM parent WHERE size = (SELECT max(k) FROM tiny) ORDER BY id LIMIT 2",
    "SELECT count(*) FROM parent WHERE size > (SELECT avg(size) FROM parent)",
    "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < 10) SELECT sum(n) FROM r",
    "WITH a AS (SELECT size, count(*) c FROM parent GROUP BY size) SELECT x.size, y.c FROM a x JOIN a y ON x.size = y.size ORDER BY 1",
    "SELECT * FROM nothing",
    "SELECT count(*), sum(a) FROM nothing",
    "SELECT count(*) FROM parent p LEFT JOIN nothing n ON p.id = n.a",
    "SELECT 1 + 1, 'x' || 'y', NULL",
    "SELECT v FROM generate_series(1, 5) g(v) ORDER BY v",
    "SELECT count(*) FROM generate_series(1, 1000) g(v) JOIN parent p ON p.id = g.v",
    "SELECT a.id FROM child a JOIN child b ON a.id = b.id + 1 JOIN parent p ON p.id = a.parent_id WHERE p.size = 3 ORDER BY 1 LIMIT 4",
    "SELECT size, grouping(size), count(*) FROM parent GROUP BY ROLLUP (size) ORDER BY 1, 2",
    "SELECT id FROM parent ORDER BY size DESC, id LIMIT 3 OFFSET 2",
    "SELECT sum(amount) FROM child WHERE id BETWEEN 100 AND 200 AND parent_id IS NOT NULL",
];

#[tokio::test(flavor = "multi_thread")]
async fn three_servers_answer_as_one_does() {
    let (one, three) = tokio::join!(filled(1), filled(3));
    let mut different = Vec::new();
    for sql in SHAPES {
        let expected = one.client.collect(sql).await;
        let found = three.client.collect(sql).await;
        match (expected, found) {
            (Ok(expected), Ok(found)) => {
                let text = |batches: &[arrow::array::RecordBatch]| {
                    arrow::util::pretty::pretty_format_batches(batches).unwrap().to_string()
                };
                let (expected, found) = (text(&expected.batches), text(&found.batches));
                let sorted = |text: &str| {
                    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
                    lines.sort();
                    lines
                };
                let same =
                    if sql.contains("ORDER BY") { expected == found } else { sorted(&expected) == sorted(&found) };
                if !same {
                    different.push(format!("{sql}\none server:\n{expected}\nthree servers:\n{found}"));
                }
            }
            (Err(error), _) => different.push(format!("{sql}\none server: {error}")),
            (_, Err(error)) => different.push(format!("{sql}\nthree servers: {error}")),
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n\n"));
    one.cluster.shutdown().await.unwrap();
    three.cluster.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn known_answers() {
    let cluster = filled(3).await;
    assert_eq!(cluster.value("SELECT count(*) FROM parent").await, "500");
    assert_eq!(cluster.value("SELECT sum(id) FROM child").await, "1999000");
    assert_eq!(cluster.value("SELECT name FROM parent WHERE id = 77").await, "p77");
    assert_eq!(cluster.value("SELECT count(*) FROM child WHERE parent_id IS NULL").await, "200");
    assert_eq!(
        cluster.value("SELECT count(*) FROM parent p JOIN child c ON c.parent_id = p.id").await,
        (0..2000).filter(|i| i % 10 != 0 && i % 600 < 500).count().to_string()
    );
    // Time stands still in a statement, and is near that of this machine.
    let now = "SELECT now() = now() AND current_date >= DATE '2024-01-01' AND current_timestamp = now()";
    assert_eq!(cluster.value(now).await, "true");
    cluster.run(&["CREATE TABLE stamps (at TIMESTAMP WITH TIME ZONE)", "INSERT INTO stamps VALUES (now())"]).await;
    assert_eq!(cluster.value("SELECT count(*) FROM stamps WHERE at <= now()").await, "1");
    assert_eq!(
        cluster.value("SELECT count(*) FROM parent p JOIN child c ON c.parent_id = p.id AND c.id > p.size * 100").await,
        (0..2000).filter(|i| i % 10 != 0 && i % 600 < 500 && *i > (i % 600 % 7) * 100).count().to_string()
    );
    // A predicate on the whole key is answered by one server, and by one endpoint.
    let one = cluster.client.collect("SELECT * FROM parent WHERE id = 77").await.unwrap();
    assert_eq!(one.statistics.endpoints.len(), 1);
    // A scan is pulled from all of them.
    let all = cluster.client.collect("SELECT * FROM parent").await.unwrap();
    assert_eq!(all.statistics.endpoints.len(), 3);
    assert_eq!(all.rows(), 500);
    cluster.cluster.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_tells_the_plan_and_what_each_server_did() {
    let cluster = filled(3).await;
    let plan = cluster.table("EXPLAIN SELECT size, count(*) FROM parent GROUP BY size").await;
    for part in ["ShardScanExec: table=public.parent", "NetworkShuffleExec", "mode=Partial", "1 endpoint"] {
        assert!(plan.contains(part), "{part} is missing in\n{plan}");
    }
    let verbose = cluster.table("EXPLAIN VERBOSE SELECT * FROM parent WHERE id = 3").await;
    assert!(verbose.contains("initial_logical_plan") && verbose.contains("shards=1/12"), "{verbose}");
    let analyzed = cluster.table("EXPLAIN ANALYZE SELECT size, count(*) FROM parent GROUP BY size").await;
    assert!(analyzed.contains("output_rows") && analyzed.contains("tasks=3"), "{analyzed}");
    // The rows of all shards are read, each once, and every server has its part.
    let mut scanned = 0;
    for number in 0..3 {
        let url = cluster.cluster.storage_url(number).as_str().trim_end_matches('/').to_owned();
        let (_, work) = analyzed.split_once(&format!("{url}: ")).unwrap_or_else(|| panic!("{url}: {analyzed}"));
        let (rows, work) = work.split_once(" rows scanned, ").unwrap();
        let (bytes, work) = work.split_once(" bytes read from files, ").unwrap();
        let (time, _) = work.split_once(" computed").unwrap();
        let (rows, bytes): (usize, usize) = (rows.parse().unwrap(), bytes.parse().unwrap());
        assert!(rows > 0 && bytes > 0 && time.ends_with('s'), "{analyzed}");
        scanned += rows;
    }
    assert_eq!(scanned, 500, "{analyzed}");
    // A server that has all of it is named as well.
    let one = cluster.table("EXPLAIN ANALYZE SELECT * FROM parent WHERE id = 77").await;
    assert!(one.contains(": 1 rows scanned, "), "{one}");
    cluster.cluster.shutdown().await.unwrap();
}
