//! Bad input: a typed error that says what to change, and a cluster that goes on.

use drsdb_client::{Client, ErrorCode};

use crate::support::TestCluster;

#[tokio::test(flavor = "multi_thread")]
async fn every_mistake_has_its_error() {
    let cluster = TestCluster::start(2).await;
    cluster
        .run(&["CREATE TABLE city (id BIGINT PRIMARY KEY, name VARCHAR(5) NOT NULL, small SMALLINT, at TIMESTAMP)"])
        .await;
    cluster.run(&["INSERT INTO city VALUES (1, 'a', 1, NULL), (2, 'b', 0, NULL), (3, 'c', 32767, NULL)"]).await;
    cluster.run(&["CREATE TABLE kinds (u ULID, t TIME, r REAL, d DOUBLE)"]).await;
    cluster.run(&["INSERT INTO kinds (t, r, d) VALUES ('23:59:59.999999', 3e38, 'inf'), (NULL, '-inf', 1e308)"]).await;
    let deep = format!("SELECT {}1{}", "(".repeat(10_000), ")".repeat(10_000));
    let huge = format!("SELECT '{}'", "x".repeat(50 << 20));
    cluster.run(&["CREATE TABLE large (big DECIMAL(38, 0))"]).await;
    cluster.run(&[&format!("INSERT INTO large VALUES ({0}), ({0})", "9".repeat(38))]).await;
    let stored = "UPDATE large SET big = big + 1".to_owned();
    let summed = "SELECT sum(big) FROM large".to_owned();
    let cases: &[(&str, ErrorCode, &str)] = &[
        ("SELEC 1", ErrorCode::Syntax, ""),
        ("SELECT id\n  FROM city WHERE", ErrorCode::Syntax, ""),
        ("SELECT * FROM citty", ErrorCode::NotFound, "city"),
        ("SELECT nme FROM city", ErrorCode::NotFound, "name"),
        ("SELECT 1 / 0", ErrorCode::InvalidValue, ""),
        ("SELECT id / (small - small) FROM city", ErrorCode::InvalidValue, ""),
        ("SELECT 9223372036854775807 + id FROM city", ErrorCode::InvalidValue, ""),
        ("SELECT sum(9223372036854775807 - id + 1) FROM city", ErrorCode::InvalidValue, "BIGINT"),
        ("SELECT -(id - 9223372036854775807 - 2) FROM city WHERE id = 1", ErrorCode::InvalidValue, ""),
        ("INSERT INTO city VALUES (9223372036854775807 + 1, 'x', 1, NULL)", ErrorCode::InvalidValue, ""),
        ("SELECT abs(id - 9223372036854775807 - 2) FROM city WHERE id = 1", ErrorCode::InvalidValue, "overflow"),
        ("SELECT abs(-9223372036854775808)", ErrorCode::InvalidValue, "overflow"),
        ("INSERT INTO city VALUES (abs(-9223372036854775808), 'x', 1, NULL)", ErrorCode::InvalidValue, "overflow"),
        ("SELECT CAST('abc' AS INTEGER)", ErrorCode::InvalidValue, ""),
        ("SELECT name + at FROM city", ErrorCode::TypeMismatch, ""),
        ("INSERT INTO city VALUES (1, 'dup', 1, NULL)", ErrorCode::ConstraintViolation, ""),
        ("INSERT INTO city VALUES (9, NULL, 1, NULL)", ErrorCode::ConstraintViolation, "name"),
        ("INSERT INTO city VALUES (9, 'too long', 1, NULL)", ErrorCode::InvalidValue, "name"),
        ("INSERT INTO city VALUES (9, 'x', 40000, NULL)", ErrorCode::InvalidValue, "small"),
        ("INSERT INTO kinds (u) VALUES ('8ZZZZZZZZZZZZZZZZZZZZZZZZZ')", ErrorCode::InvalidValue, "u"),
        ("SELECT * FROM kinds WHERE u = '8ZZZZZZZZZZZZZZZZZZZZZZZZZ'", ErrorCode::InvalidValue, "ULID"),
        ("INSERT INTO kinds (t) VALUES ('23:59:60')", ErrorCode::InvalidValue, "t"),
        ("INSERT INTO kinds (r) VALUES (1e39)", ErrorCode::InvalidValue, "r"),
        ("INSERT INTO kinds (d) VALUES (1e309)", ErrorCode::InvalidValue, "d"),
        ("SELECT 1 EXCEPT ALL SELECT 1", ErrorCode::Unsupported, "EXCEPT ALL"),
        ("SELECT * FROM (SELECT 1 INTERSECT ALL SELECT 1) x", ErrorCode::Unsupported, "INTERSECT ALL"),
        ("SELECT name SIMILAR TO 'a' FROM city", ErrorCode::Unsupported, "SIMILAR"),
        ("SELECT * FROM city TABLESAMPLE BERNOULLI (10)", ErrorCode::Unsupported, "TABLESAMPLE"),
        ("SELECT id FROM city WHERE name ~ '['", ErrorCode::InvalidValue, "regular expression"),
        ("SELECT sqrt(-id) FROM city", ErrorCode::InvalidValue, "square root"),
        ("SELECT sum(name) FROM city", ErrorCode::TypeMismatch, "sum takes no argument of type String"),
        ("SELECT 1e400", ErrorCode::InvalidValue, "exponent"),
        ("SELECT repeat('x', 20000000)", ErrorCode::ResourceExhausted, "shorter"),
        ("SELECT repeat('x', 20000000) FROM city", ErrorCode::ResourceExhausted, "constant"),
        ("SELECT id FROM city RIGHT JOIN city AS c USING (id)", ErrorCode::Unsupported, "ON l.k = r.k"),
        (&stored, ErrorCode::InvalidValue, "big"),
        (&summed, ErrorCode::InvalidValue, "DECIMAL(38, 0)"),
        ("SELECT count(DISTINCT *) FROM city", ErrorCode::Unsupported, "SELECT DISTINCT * FROM"),
        ("DELETE city", ErrorCode::Unsupported, "DELETE FROM"),
        ("DELETE city WHERE id = 1", ErrorCode::Unsupported, "DELETE FROM"),
        ("CREATE TABLE city (id INTEGER)", ErrorCode::AlreadyExists, "city"),
        ("CREATE TABLE t (a INTEGER GENERATED ALWAYS AS IDENTITY)", ErrorCode::Unsupported, "snowflake_id"),
        ("DROP TABLE nope", ErrorCode::NotFound, "nope"),
        ("UPDATE city SET smal = 1", ErrorCode::NotFound, "small"),
        ("BEGIN ISOLATION LEVEL SERIALIZABLE", ErrorCode::Unsupported, ""),
        (&deep, ErrorCode::ResourceExhausted, ""),
        (&huge, ErrorCode::ResourceExhausted, ""),
    ];
    let mut wrong = Vec::new();
    for (sql, code, mention) in cases {
        let shown = &sql[..sql.len().min(60)];
        let error = cluster.error(sql).await;
        let text = error.to_string();
        if error.code() != *code || !text.contains(mention) {
            wrong.push(format!("{shown}: expected {code} with {mention:?}, found {} {text}", error.code()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Rows, and not a count that the catalog could answer.
    assert_eq!(cluster.client.collect("SELECT id FROM city WHERE name < 'z'").await.unwrap().rows(), 3);
    cluster.cluster.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_syntax_error_names_line_and_column() {
    let cluster = TestCluster::start(1).await;
    let error = cluster.error("SELECT 1\n  FROM (x").await;
    assert_eq!(error.code(), ErrorCode::Syntax);
    assert_eq!(error.wire().fields.get("line").map(String::as_str), Some("2"), "{error:?}");
    assert!(error.wire().fields.contains_key("column"), "{error:?}");
    cluster.cluster.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_in_without_the_right_login() {
    let cluster = TestCluster::start(1).await;
    let mut options = cluster.cluster.client_options();
    options.password = Some("wrong".into());
    let refused = Client::connect(options.clone()).await.map(drop).expect_err("a wrong password is refused");
    assert_eq!(refused.code(), ErrorCode::Unauthenticated);
    options.user = Some("nobody".to_owned());
    let refused = Client::connect(options).await.map(drop).expect_err("an unknown user is refused");
    assert_eq!(refused.code(), ErrorCode::Unauthenticated);
    let mut options = cluster.cluster.client_options();
    options.password = Some("x".repeat(100_000).into());
    let refused = Client::connect(options).await.map(drop).expect_err("a password that nobody has is refused");
    assert_eq!(refused.code(), ErrorCode::InvalidArgument);
    cluster.cluster.shutdown().await.unwrap();
}
