//! Tests of [`super`]: every type, NULL and quoting, headers, and what errors name.

use arrow::{
    array::AsArray,
    datatypes::{Field, Int32Type, TimeUnit},
    util::pretty::pretty_format_batches,
};

use super::*;

fn table(columns: &[(&str, DataType, &str, bool)]) -> TableInfo {
    let field = |(name, data_type, sql_type, nullable): &(&str, DataType, &str, bool)| {
        let metadata = [("drsdb.sql_type".to_owned(), sql_type.to_string())].into();
        Field::new(*name, data_type.clone(), *nullable).with_metadata(metadata)
    };
    TableInfo {
        schema: "public".into(),
        name: "t".into(),
        kind: "TABLE".into(),
        columns: Arc::new(Schema::new(columns.iter().map(field).collect::<Vec<_>>())),
    }
}

fn people() -> TableInfo {
    table(&[
        ("id", DataType::Int32, "INTEGER", false),
        ("name", DataType::Utf8, "VARCHAR(5)", true),
        ("born", DataType::Date32, "DATE", true),
    ])
}

fn read(text: &str, table: &TableInfo, header: Header, wanted: Option<&[String]>) -> Result<Vec<RecordBatch>, Error> {
    let dialect = Dialect { delimiter: b',', null: String::new(), header };
    let batches = CsvBatches::open("f.csv", text.as_bytes(), table, &dialect, wanted)?.with_batch_rows(2);
    batches.map(|read| read.map(|read| read.batch)).collect()
}

fn ids(batches: &[RecordBatch]) -> Vec<i32> {
    let column =
        |batch: &RecordBatch| batch.column_by_name("id").unwrap().as_primitive::<Int32Type>().values().to_vec();
    batches.iter().flat_map(column).collect()
}

#[test]
fn every_type_is_read() {
    let us = TimeUnit::Microsecond;
    let table = table(&[
        ("b", DataType::Boolean, "BOOLEAN", true),
        ("s", DataType::Int16, "SMALLINT", true),
        ("l", DataType::Int64, "BIGINT", true),
        ("r", DataType::Float64, "DOUBLE", true),
        ("d", DataType::Decimal128(38, 2), "DECIMAL(38,2)", true),
        ("t", DataType::Utf8, "TEXT", true),
        ("day", DataType::Date32, "DATE", true),
        ("time", DataType::Time64(us), "TIME", true),
        ("ts", DataType::Timestamp(us, None), "TIMESTAMP", true),
        ("tz", DataType::Timestamp(us, Some("UTC".into())), "TIMESTAMP WITH TIME ZONE", true),
        ("i", DataType::Interval(arrow::datatypes::IntervalUnit::MonthDayNano), "INTERVAL", true),
        ("y", DataType::Binary, "BYTEA", true),
        ("u", DataType::FixedSizeBinary(16), "UUID", true),
        ("k", DataType::Utf8, "ULID", true),
    ]);
    let row = "true,-32768,9223372036854775807,1e-3,-0.05,\"a, \"\"b\"\"\",2024-02-29,23:59:59.5,2024-12-31 23:59:59.000001,\
               2024-01-01 01:00:00+01:00,1 month 2 days,\\x00ff,00112233-4455-6677-8899-aabbccddeeff,01ARZ3NDEKTSV4RRFFQ69G5FAV";
    let nulls = ",".repeat(13);
    let batches = read(&format!("{row}\n{nulls}\n"), &table, Header::No, None).unwrap();
    let shown = pretty_format_batches(&batches).unwrap().to_string();
    for value in [
        "true",
        "-32768",
        "9223372036854775807",
        "0.001",
        "-0.05",
        "a, \"b\"",
        "2024-02-29",
        "23:59:59.5",
        "2024-12-31T23:59:59.000001",
        "2024-01-01T00:00:00Z",
        "1 mons 2 days",
        "00ff",
        "00112233445566778899aabbccddeeff",
        "01ARZ3NDEKTSV4RRFFQ69G5FAV",
    ] {
        assert!(shown.contains(value), "{value} in\n{shown}");
    }
    assert!(batches[0].columns().iter().all(|column| column.is_null(1)), "{shown}");
}

#[test]
fn an_empty_field_is_null_only_without_quotes() {
    let batches = read("1,,\n2,\"\",\n", &people(), Header::No, None).unwrap();
    let names = batches[0].column(1).as_string::<i32>();
    assert!(names.is_null(0));
    assert_eq!((names.is_valid(1), names.value(1)), (true, ""));

    let dialect = Dialect { delimiter: b'|', null: "\\N".to_owned(), header: Header::No };
    let mut batches = CsvBatches::open("f", "1|\\N|\\N\n2||\\N\n".as_bytes(), &people(), &dialect, None).unwrap();
    let batch = batches.next().unwrap().unwrap().batch;
    assert!(batch.column(1).is_null(0) && batch.column(1).is_valid(1));
}

#[test]
fn a_header_is_recognized_and_orders_the_columns() {
    for header in [Header::Auto, Header::Yes] {
        let batches = read("Born,ID\n2024-01-01,7\n", &people(), header, None).unwrap();
        assert_eq!(ids(&batches), [7]);
        assert_eq!(batches[0].num_columns(), 2);
    }
    // The first line is data: not every field is a name.
    assert_eq!(ids(&read("1,name,\n2,b,\n3,c,\n", &people(), Header::Auto, None).unwrap()), [1, 2, 3]);
    let wanted = ["id".to_owned()];
    let batches = read("x,id\nnothing,1\n", &people(), Header::Auto, Some(&wanted)).unwrap();
    assert_eq!((ids(&batches), batches[0].num_columns()), (vec![1], 1));
    let wanted = ["born".to_owned(), "id".to_owned()];
    assert_eq!(ids(&read("2024-01-01,5\n", &people(), Header::No, Some(&wanted)).unwrap()), [5]);
    assert!(read("", &people(), Header::Auto, None).unwrap().is_empty());
    let error = read("id,nam\n1,a\n", &people(), Header::Yes, None).unwrap_err();
    assert!(error.hint().contains("did you mean name?"), "{error}");
}

#[test]
fn a_delimiter_may_end_the_line() {
    assert_eq!(ids(&read("1,a,,\n2,b,2024-01-01,\n", &people(), Header::No, None).unwrap()), [1, 2]);
    let error = read("1,a,,b\n", &people(), Header::No, None).unwrap_err();
    assert!(error.message().contains("3 fields, this one has 4"), "{error}");
}

#[test]
fn blank_lines_are_skipped_and_counted() {
    let error = read("1,a,\n\n\nx,b,\n", &people(), Header::No, None).unwrap_err();
    assert_eq!(error.field("line"), Some("4"), "{error}");
}

#[test]
fn what_does_not_fit_names_file_line_column_and_rule() {
    let cases = [
        ("1,a,\n2,b,\n99999999999,c,\n", "3", "id", "\"99999999999\" is not INTEGER", ErrorCode::InvalidValue),
        ("1,a,2024-02-30\n", "1", "born", "\"2024-02-30\" is not DATE", ErrorCode::InvalidValue),
        (
            "1,\"two\nlines\",\n2,abcdef,\n",
            "1",
            "name",
            "9 characters are more than VARCHAR(5) holds",
            ErrorCode::InvalidValue,
        ),
        ("1,äöüßé,\n,b,\n", "2", "id", "NULL in a column that is NOT NULL", ErrorCode::ConstraintViolation),
        ("1,a,\n2,\"b,\n", "2", "name", "a quoted field has a closing quote", ErrorCode::InvalidValue),
        // Of two broken rows the first is named, whichever column it is in and whatever is wrong.
        ("1,a,x\ny,b,\n", "1", "born", "\"x\" is not DATE", ErrorCode::InvalidValue),
        ("x,a,\n2,\"b,\n", "1", "id", "\"x\" is not INTEGER", ErrorCode::InvalidValue),
    ];
    for (text, line, column, rule, code) in cases {
        let error = read(text, &people(), Header::No, None).unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        let fields = ["file", "line", "column", "rule"].map(|name| error.field(name).unwrap_or_default());
        assert_eq!(fields, ["f.csv", line, column, rule], "{error}");
        for part in ["f.csv", &format!("line {line}"), &format!("column {column}"), rule] {
            assert!(error.message().contains(part), "{part} in {error}");
        }
    }
    let error = read("1,a,\n2,b\n", &people(), Header::No, None).unwrap_err();
    assert_eq!(error.message(), "f.csv, line 2: a line has 3 fields, this one has 2");
}

#[test]
fn bytes_that_are_not_text_are_found() {
    let dialect = Dialect { delimiter: b',', null: String::new(), header: Header::No };
    let mut batches = CsvBatches::open("f.csv", &b"1,a,\n2,\xff,\n"[..], &people(), &dialect, None).unwrap();
    let Err(error) = batches.next().unwrap() else { panic!("it was read") };
    assert_eq!(error.message(), "f.csv, line 2, column name: text is UTF-8");
    assert!(batches.next().is_none(), "a broken file has ended");
}

#[test]
fn an_error_beyond_the_first_batch_has_its_own_line() {
    let mut text: String = (0..1000).map(|id| format!("{id},a,\n")).collect();
    text.push_str("1000,a,tomorrow\n");
    let error = read(&text, &people(), Header::No, None).unwrap_err();
    assert_eq!((error.field("line"), error.hint()), (Some("1001"), "write a date as 2024-12-31"));
}
