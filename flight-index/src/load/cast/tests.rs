//! What a column takes, what it refuses, and whom it blames.

use std::sync::Arc;

use arrow::{
    array::{
        ArrayRef, AsArray, BinaryArray, BooleanArray, Date64Array, Decimal128Array, DictionaryArray,
        DurationSecondArray, FixedSizeBinaryArray, Float64Array, Int32Array, Int64Array, LargeStringArray, StringArray,
        StringViewArray, TimestampNanosecondArray, TimestampSecondArray, UInt64Array,
    },
    datatypes::{Int16Type, Int32Type},
    util::pretty::pretty_format_columns,
};
use drsdb_core::{WireError, transit::stored_column};

use super::*;

fn column(sql_type: SqlType) -> Column {
    Column::new("c".to_owned(), sql_type, false)
}

fn convert(source: ArrayRef, sql_type: SqlType) -> Result<ArrayRef, WireError> {
    let column = column(sql_type);
    check_assignable(source.data_type(), &column).map_err(|error| error.to_wire())?;
    let converted = convert_column(&source, &column, 101).map_err(|error| error.to_wire())?;
    assert_eq!(converted.data_type(), &transit_type(sql_type));
    assert_eq!(converted.len(), source.len());
    let stored = stored_column(&converted, sql_type).unwrap();
    assert_eq!(stored.data_type(), &sql_type.to_arrow());
    Ok(converted)
}

fn texts(values: &[&str]) -> ArrayRef {
    Arc::new(StringArray::from(values.to_vec()))
}

/// Values as text, one a line.
fn shown(array: ArrayRef) -> String {
    let table = pretty_format_columns("c", &[array]).unwrap().to_string();
    let lines = table.lines().skip(3).filter(|line| line.starts_with('|'));
    lines.map(|line| line.trim_matches(['|', ' '])).collect::<Vec<_>>().join(";")
}

fn decimal(precision: u8, scale: i8) -> SqlType {
    SqlType::Decimal { precision, scale }
}

#[test]
fn text_becomes_every_type() {
    for (text, sql_type, expected) in [
        ("true", SqlType::Boolean, "true"),
        ("-32768", SqlType::SmallInt, "-32768"),
        ("2147483647", SqlType::Integer, "2147483647"),
        ("-9223372036854775808", SqlType::BigInt, "-9223372036854775808"),
        ("1.5e3", SqlType::Real, "1500.0"),
        ("0.1", SqlType::Double, "0.1"),
        ("99999999999999999999999999999999999999", decimal(38, 0), "99999999999999999999999999999999999999"),
        ("-0.05", decimal(4, 2), "-0.05"),
        ("abc", SqlType::Char { length: 3 }, "abc"),
        ("äöü", SqlType::Varchar { length: Some(3) }, "äöü"),
        ("1992-02-29", SqlType::Date, "1992-02-29"),
        ("23:59:59.999999", SqlType::Time, "23:59:59.999999"),
        ("2020-01-02 03:04:05.000006", SqlType::Timestamp, "2020-01-02T03:04:05.000006"),
        ("2020-01-02 03:04:05+02:00", SqlType::TimestampTz, "2020-01-02T01:04:05Z"),
        ("1 day 2 hours", SqlType::Interval, "1 days 2 hours"),
        ("\\x00ff", SqlType::Bytea, "00ff"),
        ("plain", SqlType::Bytea, "706c61696e"),
        ("01234567-89ab-cdef-0123-456789abcdef", SqlType::Uuid, "0123456789abcdef0123456789abcdef"),
    ] {
        assert_eq!(shown(convert(texts(&[text]), sql_type).unwrap()), expected, "{text} as {sql_type}");
        let view: ArrayRef = Arc::new(StringViewArray::from(vec![Some(text), None]));
        assert!(convert(view, sql_type).unwrap().is_null(1));
        let large: ArrayRef = Arc::new(LargeStringArray::from(vec![text]));
        convert(large, sql_type).unwrap();
        let dictionary: DictionaryArray<Int32Type> = [text, text].into_iter().collect();
        assert_eq!(shown(convert(Arc::new(dictionary), sql_type).unwrap()), format!("{expected};{expected}"));
    }
    let id = drsdb_core::ids::new_ulid();
    let bytes = convert(texts(&[&id.to_string()]), SqlType::Ulid).unwrap();
    assert_eq!(bytes.as_fixed_size_binary().value(0), id.to_bytes());
}

#[test]
fn a_bad_value_is_blamed_on_its_column_and_row() {
    let source = |values: ArrayRef| values;
    for (values, sql_type, expected) in [
        (texts(&["1", "x"]), SqlType::Integer, "column c, row 102: \"x\" is not a value of INTEGER"),
        (texts(&["1", ""]), SqlType::Integer, "column c, row 102: \"\" is not a value of INTEGER"),
        (texts(&["1.5"]), SqlType::BigInt, "column c, row 101: \"1.5\" is not a value of BIGINT"),
        (texts(&["2020-02-30"]), SqlType::Date, "column c, row 101: \"2020-02-30\" is not a value of DATE"),
        (texts(&["maybe"]), SqlType::Boolean, "column c, row 101: \"maybe\" is not a value of BOOLEAN"),
        (texts(&["1000.00"]), decimal(5, 2), "column c, row 101: \"1000.00\" is not a value of DECIMAL(5,2)"),
        (texts(&["abcd"]), SqlType::Char { length: 3 }, "column c, row 101: \"abcd\" is longer than CHAR(3)"),
        (
            texts(&["äöüß"]),
            SqlType::Varchar { length: Some(3) },
            "column c, row 101: \"äöüß\" is longer than VARCHAR(3)",
        ),
        (texts(&["\\x0"]), SqlType::Bytea, "column c, row 101: \"\\\\x0\" is not a BYTEA"),
        (texts(&["0123"]), SqlType::Uuid, "column c, row 101: \"0123\" is not a UUID"),
        (texts(&["01234567-89ab-cdef-0123-456789abcdeg"]), SqlType::Uuid, "is not a UUID"),
        (texts(&["ééééééééééééé"]), SqlType::Ulid, "is not a ULID"),
        (
            source(Arc::new(Int64Array::from(vec![1, 40_000]))),
            SqlType::SmallInt,
            "row 102: \"40000\" is not a value of SMALLINT",
        ),
        (source(Arc::new(UInt64Array::from(vec![u64::MAX]))), SqlType::BigInt, "is not a value of BIGINT"),
        (
            source(Arc::new(Float64Array::from(vec![1.0, 2.5]))),
            SqlType::Integer,
            "row 102: \"2.5\" would lose a part of it as INTEGER",
        ),
        (source(Arc::new(Float64Array::from(vec![f64::NAN]))), SqlType::Integer, "is not a value of INTEGER"),
        (source(Arc::new(Float64Array::from(vec![1e300]))), SqlType::Real, "is not a value of REAL"),
        (source(Arc::new(Float64Array::from(vec![1e10]))), decimal(5, 2), "is not a value of DECIMAL(5,2)"),
        (source(Arc::new(TimestampNanosecondArray::from(vec![1_000, 1_001]))), SqlType::Timestamp, "row 102"),
        (
            source(Arc::new(TimestampSecondArray::from(vec![i64::MAX]))),
            SqlType::Timestamp,
            "is not a value of TIMESTAMP",
        ),
        (source(Arc::new(TimestampSecondArray::from(vec![86_401]))), SqlType::Date, "would lose a part"),
        (source(Arc::new(Date64Array::from(vec![86_400_001]))), SqlType::Date, "would lose a part"),
        (source(Arc::new(BinaryArray::from(vec![&[0xff_u8][..]]))), SqlType::Text, "is not a value of TEXT"),
        (source(Arc::new(BinaryArray::from(vec![&[0_u8; 15][..]]))), SqlType::Uuid, "is not a UUID"),
    ] {
        let error = convert(values, sql_type).unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidValue, "{expected}: {error}");
        assert!(error.message.contains(expected), "{expected}: {error}");
        assert_eq!(error.fields["column"], "c");
        assert!(error.fields.contains_key("row") && error.fields.contains_key("value"));
        assert!(!error.hint.is_empty(), "{expected}: {error}");
    }
}

#[test]
fn values_that_fit_pass_unchanged() {
    let whole: ArrayRef = Arc::new(Float64Array::from(vec![Some(3.0), None]));
    assert_eq!(shown(convert(whole, SqlType::Integer).unwrap()), "3;");
    let infinite: ArrayRef = Arc::new(Float64Array::from(vec![f64::INFINITY, f64::NAN]));
    assert_eq!(shown(convert(infinite, SqlType::Real).unwrap()), "inf;NaN");
    let nanos: ArrayRef = Arc::new(TimestampNanosecondArray::from(vec![1_000]).with_timezone("UTC"));
    assert_eq!(shown(convert(nanos, SqlType::TimestampTz).unwrap()), "1970-01-01T00:00:00.000001Z");
    let cents: ArrayRef = Arc::new(Decimal128Array::from(vec![150]).with_precision_and_scale(10, 2).unwrap());
    assert_eq!(shown(convert(cents.clone(), decimal(12, 4)).unwrap()), "1.5000");
    assert_eq!(convert(cents, SqlType::BigInt).unwrap_err().code, ErrorCode::InvalidValue);
    let bytes: ArrayRef = Arc::new(FixedSizeBinaryArray::try_from_iter([[7u8; 16]].into_iter()).unwrap());
    assert_eq!(convert(bytes.clone(), SqlType::Uuid).unwrap().as_ref(), bytes.as_ref());
    let narrow: ArrayRef = Arc::new(Int32Array::from(vec![7]));
    assert_eq!(convert(narrow, SqlType::SmallInt).unwrap().as_primitive::<Int16Type>().value(0), 7);
    let nothing = new_null_array(&DataType::Null, 2);
    assert_eq!(convert(nothing, SqlType::Ulid).unwrap().null_count(), 2);
}

#[test]
fn types_that_have_nothing_to_do_with_each_other_are_refused() {
    let number: ArrayRef = Arc::new(Int64Array::from(vec![1]));
    let truth: ArrayRef = Arc::new(BooleanArray::from(vec![true]));
    let duration: ArrayRef = Arc::new(DurationSecondArray::from(vec![1]));
    for (values, sql_type) in [
        (&number, SqlType::Timestamp),
        (&number, SqlType::Date),
        (&number, SqlType::Boolean),
        (&truth, SqlType::Integer),
        (&number, SqlType::Uuid),
        (&truth, SqlType::Bytea),
        (&duration, SqlType::Time),
    ] {
        let error = convert(Arc::clone(values), sql_type).unwrap_err();
        assert_eq!(error.code, ErrorCode::TypeMismatch, "{:?} as {sql_type}", values.data_type());
        assert!(!error.hint.is_empty());
    }
    let list = DataType::new_list(DataType::Int64, true);
    assert_eq!(check_assignable(&list, &column(SqlType::Text)).unwrap_err().code(), ErrorCode::TypeMismatch);
}

#[test]
fn null_in_a_not_null_column_is_a_violation() {
    let column = Column { not_null: true, ..column(SqlType::Text) };
    let values: ArrayRef = Arc::new(StringArray::from(vec![Some("a"), None]));
    let error = convert_column(&values, &column, 11).unwrap_err().to_wire();
    assert_eq!(error.code, ErrorCode::ConstraintViolation);
    assert_eq!((error.fields["row"].as_str(), error.fields["constraint"].as_str()), ("12", "not_null"));
}

#[test]
fn decimals_may_have_exponents() {
    let decimal = SqlType::Decimal { precision: 12, scale: 3 };
    let texts = ["1.5e3", "0E-10", "-2.5E-1", "+12e0", ".5e1", "5.e-1", "1e-9", "1234567.8915e-3", "7", "00012e2"];
    let converted = convert(self::texts(&texts), decimal).unwrap();
    let expected =
        ["1500.000", "0.000", "-0.250", "12.000", "5.000", "0.500", "0.000", "1234.568", "7.000", "1200.000"];
    assert_eq!(shown(converted), expected.join(";"));
    for bad in ["1e", "e5", "1e1.5", "--1e2", "1e10", "1e101", "1e99999999999", "0x1e2", "1 e2", "1e+ 2"] {
        assert_eq!(convert(self::texts(&["1", bad]), decimal).unwrap_err().code, ErrorCode::InvalidValue, "{bad}");
    }
}
