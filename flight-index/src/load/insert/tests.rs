//! INSERT texts, and the batches they become.

use arrow::{
    array::{Int64Array, StringArray},
    util::pretty::pretty_format_batches,
};
use drsdb_core::ids::new_ulid;

use super::*;
use crate::statement::{Statement, parse};

fn table() -> Table {
    let sql = "CREATE TABLE t (id BIGINT PRIMARY KEY, price DECIMAL(10,2), ratio DOUBLE, name VARCHAR(5), day DATE,
               at TIMESTAMP, raw BYTEA, flag BOOLEAN)";
    let Ok(Statement::CreateTable(table)) = parse(sql) else { panic!("the table's definition is fixed") };
    let no_parents = |name: &drsdb_core::TableName| panic!("{name} is no parent");
    table.resolve(new_ulid(), 4, &no_parents).unwrap()
}

fn evaluate(sql: &str, parameters: Option<&RecordBatch>) -> Result<RecordBatch> {
    let table = table();
    let Statement::Insert(insert) = parse(sql)? else { panic!("{sql} is no INSERT") };
    let rows = Insert::new(&insert, &table)?.evaluate(parameters, &QueryOptions::default())?;
    // What comes out must be what a load takes in.
    crate::load::convert::Converter::new(Arc::new(table), &rows.schema(), &QueryOptions::default())?.convert(&rows, 1)
}

fn shown(sql: &str) -> String {
    match evaluate(sql, None) {
        Ok(rows) => pretty_format_batches(&[rows]).unwrap().to_string(),
        Err(error) => {
            let error = error.to_wire();
            let place = error.fields.get("line").map(|line| format!(" @{line}:{}", error.fields["column"]));
            format!("{}: {error}{}", error.code, place.unwrap_or_default())
        }
    }
}

#[test]
fn values_become_rows() {
    let texts = [
        "INSERT INTO t VALUES (1, 0.10, 0.1, 'ä', '2020-02-29', '2020-01-01 12:00:00', '\\x00ff', true)",
        "INSERT INTO t (name, id) VALUES ('a', -9223372036854775808), (NULL, +7)",
        "INSERT INTO t (id, price, ratio) VALUES (1 + 1, 10 / 4.0, 1e3), (3, -1.5, -1e-3), (1e3, 2, 3)",
        "INSERT INTO t (id, day, at, flag) VALUES (1, DATE '2020-01-01', TIMESTAMP '2020-01-01 00:00:01', 1 < 2)",
        "INSERT INTO t (id, day, at) VALUES (1, DATE '2020-01-01' + INTERVAL '1' DAY, '2020-01-01')",
        "INSERT INTO t (id, name, raw) VALUES (1, upper('abc'), X'0102'), ((2), concat('a', 'b'), 'x')",
    ];
    insta::assert_snapshot!(texts.map(shown).join("\n"));
}

#[test]
fn what_cannot_be_a_row_is_explained() {
    let texts = [
        "INSERT INTO t (id, nam) VALUES (1, 'a')",
        "INSERT INTO t (id, id) VALUES (1, 2)",
        "INSERT INTO t (id, name) VALUES (1, 'a'), (2)",
        "INSERT INTO t (name) VALUES ('a')",
        "INSERT INTO t (id) VALUES (NULL)",
        "INSERT INTO t (id, name) VALUES (1, 'a'), (2, 'abcdef')",
        "INSERT INTO t (id) VALUES (1), ('x')",
        "INSERT INTO t (id) VALUES (1.5)",
        "INSERT INTO t (id) VALUES (9223372036854775808)",
        "INSERT INTO t (id) VALUES (1 / 0)",
        "INSERT INTO t (id) VALUES (9223372036854775807 + 1)",
        "INSERT INTO t (id, price) VALUES (1, 123456789.00)",
        "INSERT INTO t (id, flag) VALUES (1, 2)",
        "INSERT INTO t (id) VALUES (other)",
        "INSERT INTO t (id) VALUES (nothing_like_this(1))",
        "INSERT INTO t (id) VALUES ((SELECT 1))",
        "INSERT INTO t (id) VALUES (sum(1))",
        "INSERT INTO t (id) VALUES ($1)",
        "INSERT INTO t (id) VALUES ($2 + 1)",
    ];
    insta::assert_snapshot!(texts.map(|sql| format!("{sql}\n  => {}", shown(sql))).join("\n"));
}

fn parameters_of(sql: &str) -> String {
    let Ok(Statement::Insert(insert)) = parse(sql) else { panic!("{sql} is no INSERT") };
    let table = table();
    let schema = Insert::new(&insert, &table).unwrap().parameters();
    schema.fields().iter().map(|field| format!("{} {}", field.name(), field.data_type())).collect::<Vec<_>>().join(", ")
}

#[test]
fn parameters_have_the_type_of_their_column() {
    assert_eq!(parameters_of("INSERT INTO t (id, name, day) VALUES (?, ?, ?)"), "$1 Int64, $2 Utf8, $3 Date32");
    assert_eq!(parameters_of("INSERT INTO t (id, price) VALUES ($2, $1 + 1)"), "$1 Utf8, $2 Int64");
    assert_eq!(parameters_of("INSERT INTO t (id) VALUES (1)"), "");
}

#[test]
fn a_batch_of_parameters_runs_the_statement_for_each_row() {
    let parameters = RecordBatch::try_from_iter([
        ("a", Arc::new(Int64Array::from(vec![1, 2, 3])) as ArrayRef),
        ("b", Arc::new(StringArray::from(vec![Some("x"), None, Some("z")])) as ArrayRef),
    ]);
    let rows =
        evaluate("INSERT INTO t (id, name, ratio, flag) VALUES (?, ?, 0.5, true)", Some(&parameters.unwrap())).unwrap();
    let table = pretty_format_batches(&[rows.project(&[0, 2, 3, 7]).unwrap()]).unwrap().to_string();
    insta::assert_snapshot!(table);
}

#[test]
fn parameters_may_be_part_of_an_expression() {
    let numbers: ArrayRef = Arc::new(Int64Array::from(vec![10, 20]));
    let parameters = RecordBatch::try_from_iter([("n", numbers)]).unwrap();
    let rows =
        evaluate("INSERT INTO t (id, name) VALUES ($1 * 2, concat('n', $1)), ($1, 'b')", Some(&parameters)).unwrap();
    let table = pretty_format_batches(&[rows.project(&[0, 3]).unwrap()]).unwrap().to_string();
    insta::assert_snapshot!(table);
    let none = RecordBatch::try_from_iter([("n", Arc::new(Int64Array::from(Vec::<i64>::new())) as ArrayRef)]).unwrap();
    assert_eq!(evaluate("INSERT INTO t (id) VALUES (?)", Some(&none)).unwrap().num_rows(), 0);
}
