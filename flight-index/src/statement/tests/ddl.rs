//! Constraints, ALTER TABLE, views and comments: from text to definitions.

use drsdb_core::ReferentialAction;

use super::*;

fn resolve(sql: &str) -> Table {
    create(sql).resolve(new_ulid(), 4, &no_parents).unwrap()
}

fn alter(table: &Table, sql: &str) -> Result<Altered, String> {
    let altered = match parse(sql) {
        Ok(Statement::AlterTable(statement)) => statement.alter(table, &no_parents),
        Ok(other) => panic!("{sql}: {other:?}"),
        Err(error) => Err(error),
    };
    altered.map_err(|error| shown(&error.to_wire()))
}

fn names(table: &Table) -> Vec<String> {
    table.constraint_names().collect()
}

#[test]
fn constraints_get_names() {
    let table = resolve(
        "CREATE TABLE t (a INT PRIMARY KEY, b INT UNIQUE CHECK (b > 0), c INT CHECK (t.c > b) CHECK (c < 9),
         UNIQUE (b, c), CONSTRAINT mine CHECK (a < b), CONSTRAINT own UNIQUE (c), CHECK (b > 1), FOREIGN KEY (b) REFERENCES t)",
    );
    assert_eq!(
        names(&table),
        [
            "t_pkey",
            "t_b_key",
            "t_b_c_key",
            "own",
            "t_b_check",
            "t_check",
            "t_c_check",
            "mine",
            "t_b_check1",
            "t_b_fkey"
        ]
    );
    assert_eq!(table.checks[1].sql, "c > b", "without the table's name");
    let named = resolve("CREATE TABLE t (a INT CONSTRAINT k PRIMARY KEY)");
    assert_eq!(named.key_name().as_deref(), Some("k"));
    assert_eq!(resolve("CREATE TABLE t (a INT)").key_name(), None);
}

#[test]
fn unique_keys_have_a_table_of_their_own() {
    let table =
        resolve("CREATE TABLE t (a INT, b TEXT, c BIGINT, PRIMARY KEY (c, a), UNIQUE (b, a)) WITH (replicas = 2)");
    let [index] = unique_indexes(&table).try_into().unwrap();
    let columns: Vec<String> =
        index.columns.iter().map(|column| format!("{} {}", column.name, column.sql_type)).collect();
    assert_eq!(columns, ["u0 TEXT", "u1 INTEGER", "k0 BIGINT", "k1 INTEGER"]);
    assert!(index.columns.iter().all(|column| column.not_null));
    assert_eq!((index.primary_key.as_slice(), index.shard_key.as_slice()), ([0, 1].as_slice(), [0, 1].as_slice()));
    assert_eq!((index.id, index.shards, index.replicas), (table.uniques[0].index, table.shards, Some(2)));
    assert_eq!(index.kind, drsdb_core::TableKind::UniqueIndex { of: table.id });
    index.validate().unwrap();
}

#[test]
fn foreign_keys_say_what_happens() {
    let table = resolve(
        "CREATE TABLE t (a INT PRIMARY KEY, b INT UNIQUE, c INT REFERENCES t ON DELETE CASCADE ON UPDATE SET NULL,
         d INT REFERENCES t (b) ON DELETE RESTRICT)",
    );
    let actions: Vec<_> = table.foreign_keys.iter().map(|key| (key.on_delete, key.on_update)).collect();
    assert_eq!(actions[0], (ReferentialAction::Cascade, ReferentialAction::SetNull));
    assert_eq!(actions[1], (ReferentialAction::Restrict, ReferentialAction::NoAction));
    assert_eq!(table.foreign_keys[1].parent_columns, [1]);
    let never = create("CREATE TABLE t (a INT PRIMARY KEY, b INT NOT NULL REFERENCES t ON DELETE SET NULL)");
    assert!(never.resolve(new_ulid(), 1, &no_parents).is_err());
}

#[test]
fn columns_keep_their_positions() {
    let table = resolve("CREATE TABLE t (a INT PRIMARY KEY, b INT, c TEXT DEFAULT 'x', CHECK (b > a))");
    let altered = alter(&table, "ALTER TABLE t ADD COLUMN d INT DEFAULT 1 CHECK (d > b), DROP c, RENAME b TO \"B b\"");
    let altered = altered.unwrap();
    let columns: Vec<(&str, bool)> =
        altered.table.columns.iter().map(|column| (column.name.as_str(), column.dropped)).collect();
    assert_eq!(columns, [("a", false), ("B b", false), (".dropped.2", true), ("d", false)]);
    let checks: Vec<&str> = altered.table.checks.iter().map(|check| check.sql.as_str()).collect();
    assert_eq!(checks, ["\"B b\" > a", "d > \"B b\""]);
    assert_eq!((altered.added, altered.needs), (vec![3], vec![Need::Constraint("t_check1".to_owned())]));
    // What is undone in the same statement needs nothing.
    let undone = alter(&table, "ALTER TABLE t ADD COLUMN d INT UNIQUE, DROP COLUMN d CASCADE").unwrap();
    assert_eq!((undone.added.len(), undone.needs.len(), undone.table.uniques.len()), (0, 0, 0));
    let hidden = alter(&resolve("CREATE TABLE t (a INT)"), "ALTER TABLE t ADD b INT NOT NULL").unwrap();
    assert_eq!(hidden.table.columns[2].name, "b");
    assert!(matches!(hidden.needs.as_slice(), [Need::Empty(_)]));
}

#[test]
fn what_an_alteration_needs_and_refuses() {
    let table = resolve("CREATE TABLE t (a INT PRIMARY KEY, b INT NOT NULL, c INT UNIQUE, CHECK (c > b))");
    let needs = |sql: &str| alter(&table, sql).unwrap().needs;
    assert_eq!(needs("ALTER TABLE t ALTER COLUMN c SET NOT NULL"), [Need::NotNull(2)]);
    assert_eq!(needs("ALTER TABLE t ALTER b DROP NOT NULL, ALTER c SET DEFAULT 4, RENAME TO u"), []);
    assert_eq!(
        needs("ALTER TABLE t ADD CONSTRAINT x CHECK (b > 0), RENAME CONSTRAINT x TO y"),
        [Need::Constraint("y".to_owned())]
    );
    // Neither takes long.
    let calls = |depth: usize| format!("CHECK ({}b{} > 0)", "abs(".repeat(depth), ")".repeat(depth));
    assert_eq!(needs(&format!("ALTER TABLE t ADD CONSTRAINT x {}", calls(40))), [Need::Constraint("x".to_owned())]);
    let both = format!("ALTER TABLE t ADD CONSTRAINT x {}, RENAME CONSTRAINT x TO y", calls(40));
    assert_eq!(parse(&both).unwrap_err().code(), ErrorCode::Unsupported);
    let renamed = alter(&table, "ALTER TABLE s.t RENAME TO u").unwrap().table.name;
    assert_eq!(renamed, TableName::new("s", "u"));
    let errors: Vec<String> = [
        "ALTER TABLE t ADD COLUMN b INT",
        "ALTER TABLE t ADD PRIMARY KEY (b)",
        "ALTER TABLE t DROP COLUMN a",
        "ALTER TABLE t DROP COLUMN c",
        "ALTER TABLE t DROP COLUMN d",
        "ALTER TABLE t RENAME COLUMN b TO c",
        "ALTER TABLE t ALTER COLUMN a DROP NOT NULL",
        "ALTER TABLE t DROP CONSTRAINT t_pkey",
        "ALTER TABLE t DROP CONSTRAINT t_c_kye",
        "ALTER TABLE t RENAME CONSTRAINT t_c_key TO t_check",
        "ALTER TABLE t ADD CONSTRAINT t_check CHECK (a > 0)",
        "ALTER TABLE t ADD CHECK (x > 0)",
    ]
    .into_iter()
    .map(|sql| alter(&table, sql).expect_err(sql))
    .collect();
    insta::assert_snapshot!(errors.join("\n"));
}

#[test]
fn views_comments_and_truncation_are_read() {
    let Ok(Statement::CreateView(view)) = parse("CREATE OR REPLACE VIEW s.v (x, \"Y\") AS SELECT 1, 2") else {
        panic!()
    };
    assert_eq!((view.name, view.or_replace), (TableName::new("s", "v"), true));
    assert_eq!((view.columns, view.query.to_string().as_str()), (vec!["x".to_owned(), "Y".to_owned()], "SELECT 1, 2"));
    let Ok(Statement::DropView { names, if_exists, cascade }) = parse("DROP VIEW IF EXISTS a, s.b CASCADE") else {
        panic!()
    };
    assert_eq!((names.len(), if_exists, cascade), (2, true, true));
    let comment = |sql: &str| match parse(sql) {
        Ok(Statement::Comment { on, text, .. }) => (on, text),
        other => panic!("{sql}: {other:?}"),
    };
    let (on, text) = comment("COMMENT ON COLUMN s.t.a IS 'it''s'");
    assert_eq!(on, CommentOn::Column(TableName::new("s", "t"), "a".to_owned()));
    assert_eq!(text.as_deref(), Some("it's"));
    assert_eq!(comment("COMMENT ON TABLE t IS NULL").1, None);
    assert!(matches!(parse("TRUNCATE TABLE a, b CASCADE"), Ok(Statement::Truncate { cascade: true, .. })));
    let no_data = create("CREATE TABLE t (x) AS SELECT 1 WITH NO DATA").query.unwrap();
    assert_eq!((no_data.with_data, no_data.names), (false, vec!["x".to_owned()]));
    assert!(create("CREATE TABLE t AS SELECT 1 WITH DATA").query.unwrap().with_data);
}
