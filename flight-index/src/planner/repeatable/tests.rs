//! Statements over a catalog with some tables: which of them give the same rows in the same order, and which do not.

use std::{sync::Arc, time::Duration};

use datafusion::sql::parser::Statement;
use drsdb_core::{TableName, Ulid, query_session::QueryOptions, security::keys::SigningKey};

use super::*;
use crate::{
    catalog::{CatalogState, Command, Response, StorageServer, apply},
    planner::{Planner, QueryContext},
    statement::{Statement as Classified, parse},
};

/// `t` and `u` have a key; of `u`, `ref` names a row of `t`, or none. `pair` has a key of two columns, `heap` none. `named` has
/// a UNIQUE column beside its key.
const TABLES: [&str; 5] = [
    "CREATE TABLE t (id BIGINT PRIMARY KEY, n BIGINT, name TEXT, price DECIMAL(10, 2), f DOUBLE, born TIMESTAMP)",
    "CREATE TABLE u (id BIGINT PRIMARY KEY, ref BIGINT, v BIGINT, g DOUBLE)",
    "CREATE TABLE pair (a BIGINT, b BIGINT, v BIGINT, PRIMARY KEY (a, b))",
    "CREATE TABLE heap (x BIGINT, y BIGINT)",
    "CREATE TABLE named (id BIGINT PRIMARY KEY, label TEXT UNIQUE, v BIGINT)",
];

fn state() -> Arc<CatalogState> {
    let (_, pkcs8) = SigningKey::generate().unwrap();
    let bootstrap = Command::Bootstrap {
        cluster_id: Ulid(1),
        signing_key_pkcs8: pkcs8.into(),
        admin_user: "admin".to_owned(),
        admin_password_hash: "hash".to_owned(),
    };
    let server =
        StorageServer { id: Ulid(2), url: "https://storage:1".to_owned(), cores: 2, labels: Default::default() };
    let mut state = CatalogState::default();
    let mut apply_next = |command: &Command| {
        let version = state.version() + 1;
        let response = apply(&mut state, version, command);
        assert!(!matches!(response, Response::Error(_)), "{response:?}");
    };
    apply_next(&bootstrap);
    apply_next(&Command::RegisterStorage { server });
    for (number, sql) in (100..).zip(TABLES) {
        let Ok(Classified::CreateTable(table)) = parse(sql) else { panic!("{sql} creates a table") };
        let no_parents = |name: &TableName| panic!("{name} is no parent");
        let table = table.resolve(Ulid(number), 4, &no_parents).unwrap();
        apply_next(&Command::CreateTable { table, if_not_exists: false });
    }
    Arc::new(state)
}

async fn check(expected: bool, statements: &[&str]) {
    let (state, planner) = (state(), Planner::new(Duration::from_secs(60)));
    for sql in statements {
        let Ok(Classified::Query(statement)) = parse(sql) else { panic!("{sql} is a query") };
        let context = QueryContext::new("admin", QueryOptions::default());
        let session = planner.session(&state, &context).unwrap();
        let plan = planner.logical_plan(&session, Statement::Statement(statement), None).await;
        let plan = plan.unwrap_or_else(|error| panic!("{sql}: {error}"));
        assert_eq!(is_repeatable(&plan), expected, "{sql}\n{}", plan.display_indent());
    }
}

async fn repeatable(statements: &[&str]) {
    check(true, statements).await;
}

async fn not_repeatable(statements: &[&str]) {
    check(false, statements).await;
}

#[tokio::test]
async fn a_key_decides_the_place_of_a_row() {
    repeatable(&[
        "SELECT * FROM t ORDER BY id",
        "SELECT name FROM t ORDER BY id DESC",
        "SELECT name, n + 1 FROM t WHERE n > 3 ORDER BY name NULLS FIRST, id",
        "SELECT name FROM t ORDER BY n, id LIMIT 10 OFFSET 20",
        "SELECT id AS x, name AS id FROM t ORDER BY x",
        "SELECT s.k, s.twice FROM (SELECT id AS k, n * 2 AS twice FROM t) AS s ORDER BY k",
        "SELECT v FROM pair ORDER BY b, a",
        "SELECT v FROM pair WHERE a = 7 ORDER BY b",
        "WITH s AS (SELECT id, n FROM t WHERE n IS NOT NULL) SELECT n FROM s ORDER BY id",
    ])
    .await;
    not_repeatable(&[
        "SELECT * FROM t",
        "SELECT * FROM t LIMIT 10",
        "SELECT * FROM t ORDER BY n",
        "SELECT id FROM t ORDER BY name",
        "SELECT v FROM pair ORDER BY a",
        "SELECT v FROM pair WHERE a > 7 ORDER BY b",
        "SELECT v FROM pair WHERE a = 7 OR a = 8 ORDER BY b",
        // The name of the key, but not the key.
        "SELECT n AS id, name FROM t ORDER BY id",
        "SELECT name FROM t ORDER BY id % 10",
        "SELECT x FROM heap ORDER BY y",
        // Sorted below, and not at the top.
        "SELECT * FROM (SELECT * FROM t ORDER BY id) AS s",
        "SELECT * FROM (SELECT * FROM t ORDER BY id) AS s WHERE n > 3",
        "SELECT name, (SELECT max(v) FROM u WHERE u.ref = s.n) FROM (SELECT * FROM t ORDER BY id) AS s",
        "SELECT * FROM generate_series(1, 10) AS g(v) ORDER BY v",
        "SELECT * FROM drsdb.servers ORDER BY 1",
    ])
    .await;
}

#[tokio::test]
async fn a_unique_column_that_may_be_null_is_no_key() {
    repeatable(&["SELECT label, v FROM named ORDER BY label, id"]).await;
    not_repeatable(&["SELECT label, v FROM named ORDER BY label"]).await;
}

#[tokio::test]
async fn rows_that_look_alike_may_change_places() {
    repeatable(&[
        "SELECT x, y FROM heap ORDER BY x, y",
        "SELECT y, x FROM heap ORDER BY y DESC, x LIMIT 3",
        "SELECT x, x + y FROM heap ORDER BY y, x",
        "SELECT name FROM t ORDER BY name",
        "SELECT DISTINCT n FROM t ORDER BY n",
        "SELECT x, y FROM heap UNION ALL SELECT x, y FROM heap ORDER BY x, y",
        "SELECT n FROM t UNION SELECT v FROM u ORDER BY 1",
        "SELECT n FROM t INTERSECT SELECT v FROM u ORDER BY 1",
        "SELECT n FROM t EXCEPT SELECT v FROM u ORDER BY 1",
        "SELECT t.id FROM t LEFT JOIN u ON u.ref = t.id ORDER BY t.id",
    ])
    .await;
    not_repeatable(&[
        "SELECT x, y FROM heap ORDER BY x",
        // The key is there twice, with other columns.
        "SELECT id, n FROM t UNION ALL SELECT id, n + 1 FROM t ORDER BY id",
        "SELECT id, n FROM t UNION SELECT id, v FROM u ORDER BY id",
        "SELECT id, n FROM t UNION ALL SELECT id, n FROM t ORDER BY id",
    ])
    .await;
}

#[tokio::test]
async fn keys_are_followed_through_joins() {
    repeatable(&[
        "SELECT u.v, t.name FROM u JOIN t ON u.ref = t.id ORDER BY u.id",
        "SELECT u.v, t.name FROM u, t WHERE u.ref = t.id ORDER BY u.id",
        "SELECT u.v, t.name FROM u LEFT JOIN t ON u.ref = t.id ORDER BY u.id",
        "SELECT u.v, t.name FROM u LEFT JOIN t ON u.ref = t.id AND u.v > 3 AND t.n < 7 ORDER BY u.id",
        "SELECT u.v, t.name FROM t RIGHT JOIN u ON u.ref = t.id ORDER BY u.id",
        "SELECT u.v, t.name FROM u JOIN t ON u.ref = t.id ORDER BY t.id, u.id",
        "SELECT u.v, t.name FROM u CROSS JOIN t ORDER BY u.id, t.id",
        "SELECT u.v, t.name FROM u LEFT JOIN t ON u.v < t.n ORDER BY u.id, t.id",
        "SELECT a.n, b.n FROM t AS a FULL JOIN t AS b ON a.n = b.id ORDER BY a.id, b.id",
        "SELECT id FROM t WHERE id IN (SELECT ref FROM u) ORDER BY id",
        "SELECT n FROM t WHERE EXISTS (SELECT 1 FROM u WHERE u.ref = t.id) ORDER BY id",
        "SELECT n FROM t WHERE n > (SELECT max(v) FROM u) ORDER BY id",
        "SELECT p.v, t.name FROM pair p JOIN t ON p.b = t.id WHERE p.a = 1 ORDER BY t.id",
    ])
    .await;
    not_repeatable(&[
        // Several rows of `u` for one of `t`.
        "SELECT u.v, t.name FROM u JOIN t ON u.ref = t.id ORDER BY t.id",
        "SELECT t.name, u.v FROM t LEFT JOIN u ON u.ref = t.id ORDER BY t.id",
        "SELECT u.v, t.name FROM u CROSS JOIN t ORDER BY u.id",
        "SELECT u.v, t.name FROM u LEFT JOIN t ON u.v < t.n ORDER BY u.id",
        // The key is NULL where nothing matches.
        "SELECT u.v, t.name FROM u LEFT JOIN t ON u.ref = t.id ORDER BY t.id, t.name",
        "SELECT u.v, t.name FROM u FULL JOIN t ON u.ref = t.id ORDER BY u.id",
        "SELECT t.name, s.c FROM t LEFT JOIN (SELECT v, count(*) AS c FROM u GROUP BY v) AS s ON s.v = t.n ORDER BY s.v",
        "SELECT n FROM t WHERE id IN (SELECT ref FROM u LIMIT 3) ORDER BY id",
        "SELECT n FROM t WHERE n > (SELECT avg(g) FROM u) ORDER BY id",
    ])
    .await;
}

/// A group without a name, and a row without a match: both have NULL there, and only one of them a count.
#[tokio::test]
async fn a_group_of_nulls_is_no_row_without_match() {
    let counts = "(SELECT v, count(*) AS c FROM u GROUP BY v) AS s";
    let sql = format!("SELECT s.v, s.c FROM t LEFT JOIN {counts} ON s.v IS NOT DISTINCT FROM t.n ORDER BY s.v");
    not_repeatable(&[sql.as_str()]).await;
}

#[tokio::test]
async fn aggregates_of_rows_in_any_order_are_the_same() {
    repeatable(&[
        "SELECT n, count(*), sum(id), min(name), max(f), avg(price), bool_and(n > 3) FROM t GROUP BY n ORDER BY n",
        "SELECT n, count(DISTINCT name) FILTER (WHERE id > 3) FROM t GROUP BY n HAVING count(*) > 1 ORDER BY n",
        "SELECT n AS k, sum(price) AS s FROM t GROUP BY n ORDER BY s DESC, k",
        "SELECT n % 10, count(*) FROM t GROUP BY 1 ORDER BY 1",
        "SELECT count(*) FROM t ORDER BY 1",
        "SELECT t.id, t.name, sum(u.v) FROM t JOIN u ON u.ref = t.id GROUP BY t.id, t.name ORDER BY t.id",
    ])
    .await;
    not_repeatable(&[
        "SELECT n, sum(price) AS s FROM t GROUP BY n ORDER BY s",
        "SELECT n, sum(f) FROM t GROUP BY n ORDER BY n",
        "SELECT n, avg(f) FROM t GROUP BY n ORDER BY n",
        // A mean of integers is computed with floats.
        "SELECT n, avg(id) FROM t GROUP BY n ORDER BY n",
        "SELECT n, stddev(id) FROM t GROUP BY n ORDER BY n",
        "SELECT n, array_agg(id) FROM t GROUP BY n ORDER BY n",
        "SELECT n, string_agg(name, ',' ORDER BY id) FROM t GROUP BY n ORDER BY n",
        "SELECT n, first_value(name ORDER BY id) FROM t GROUP BY n ORDER BY n",
        "SELECT n, approx_distinct(name) FROM t GROUP BY n ORDER BY n",
        "SELECT n, name, count(*) FROM t GROUP BY ROLLUP (n, name) ORDER BY n, name",
        "SELECT f * 2, count(*) FROM t GROUP BY 1 ORDER BY 1",
        "SELECT DISTINCT f * 2 FROM t ORDER BY 1",
    ])
    .await;
}

#[tokio::test]
async fn floats_sort_only_as_they_are_stored() {
    repeatable(&[
        "SELECT f, id FROM t ORDER BY f, id",
        "SELECT f AS g FROM t ORDER BY g",
        "SELECT id, f * 2 FROM t ORDER BY id",
        "SELECT f, count(*) FROM t GROUP BY f ORDER BY f",
    ])
    .await;
    not_repeatable(&[
        "SELECT f * 2 AS g, id FROM t ORDER BY g, id",
        "SELECT n, max(f) AS m FROM t GROUP BY n ORDER BY m, n",
    ])
    .await;
}

#[tokio::test]
async fn clocks_chance_windows_and_limits_below_the_top_are_not_repeatable() {
    not_repeatable(&[
        "SELECT id, now() FROM t ORDER BY id",
        "SELECT id FROM t WHERE born < now() ORDER BY id",
        "SELECT id, current_date FROM t ORDER BY id",
        "SELECT id, random() FROM t ORDER BY id",
        "SELECT id, ulid() FROM t ORDER BY id",
        "SELECT id FROM t ORDER BY id, random()",
        "SELECT id FROM (SELECT id FROM t LIMIT 10) AS s ORDER BY id",
        "SELECT id FROM (SELECT id FROM t ORDER BY id LIMIT 10) AS s ORDER BY id",
        "SELECT u.id FROM u JOIN (SELECT id FROM t LIMIT 1) AS s ON u.ref = s.id ORDER BY u.id",
        "SELECT id, row_number() OVER (ORDER BY n) FROM t ORDER BY id",
        "SELECT DISTINCT ON (n) n, id FROM t ORDER BY n",
        "SELECT id FROM t WHERE id IN (SELECT ref FROM u WHERE random() < 0.5) ORDER BY id",
    ])
    .await;
}

#[tokio::test]
async fn what_is_given_in_the_statement_is_the_same_each_time() {
    repeatable(&[
        "SELECT t.name, s.w FROM t JOIN (VALUES (1, 'a'), (2, 'b')) AS s(k, w) ON t.id = s.k ORDER BY t.id, s.w",
        "SELECT id FROM t WHERE name LIKE 'a%' AND CASE WHEN n > 3 THEN id IN (1, 2) ELSE n BETWEEN 1 AND 5 END ORDER BY id",
    ])
    .await;
}
