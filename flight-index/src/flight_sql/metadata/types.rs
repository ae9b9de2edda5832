//! GetXdbcTypeInfo: the column types, for JDBC and ODBC drivers.

use std::sync::LazyLock;

use arrow::array::RecordBatch;
use arrow_flight::sql::{
    CommandGetXdbcTypeInfo, Nullable, Searchable, XdbcDataType, XdbcDatetimeSubcode,
    metadata::{XdbcTypeInfo, XdbcTypeInfoData, XdbcTypeInfoDataBuilder},
};
use drsdb_core::Result;

use super::build_error;

static TYPES: LazyLock<XdbcTypeInfoData> = LazyLock::new(|| {
    let mut builder = XdbcTypeInfoDataBuilder::new();
    all().for_each(|info| builder.append(info));
    builder.build().expect("the list is fixed")
});

/// The types, or those with the code that was asked for.
pub fn type_info(command: &CommandGetXdbcTypeInfo) -> Result<RecordBatch> {
    TYPES.record_batch(command.data_type).map_err(build_error)
}

fn all() -> impl Iterator<Item = XdbcTypeInfo> {
    let numbers = [
        ("SMALLINT", XdbcDataType::XdbcSmallint, 5, 10),
        ("INTEGER", XdbcDataType::XdbcInteger, 10, 10),
        ("BIGINT", XdbcDataType::XdbcBigint, 19, 10),
        ("REAL", XdbcDataType::XdbcReal, 24, 2),
        ("DOUBLE", XdbcDataType::XdbcDouble, 53, 2),
        ("DECIMAL", XdbcDataType::XdbcDecimal, 38, 10),
    ];
    let numbers = numbers.into_iter().map(|(name, code, size, radix)| {
        let decimal = code == XdbcDataType::XdbcDecimal;
        let whole = radix == 10 && !decimal;
        XdbcTypeInfo {
            create_params: decimal.then(|| vec!["precision".to_owned(), "scale".to_owned()]),
            unsigned_attribute: Some(false),
            auto_increment: Some(false),
            fixed_prec_scale: whole,
            minimum_scale: (radix == 10).then_some(0),
            maximum_scale: (radix == 10).then_some(if decimal { 38 } else { 0 }),
            num_prec_radix: Some(radix),
            ..of(name, code, Some(size))
        }
    });
    let quoted = [
        ("CHAR", XdbcDataType::XdbcChar, true),
        ("VARCHAR", XdbcDataType::XdbcVarchar, true),
        ("TEXT", XdbcDataType::XdbcLongvarchar, false),
        ("UUID", XdbcDataType::XdbcUnknownType, false),
        ("ULID", XdbcDataType::XdbcUnknownType, false),
        ("BYTEA", XdbcDataType::XdbcVarbinary, false),
    ];
    let quoted = quoted.into_iter().map(|(name, code, length)| XdbcTypeInfo {
        create_params: length.then(|| vec!["length".to_owned()]),
        case_sensitive: matches!(name, "CHAR" | "VARCHAR" | "TEXT"),
        ..literal(of(name, code, None), "'")
    });
    // Name, code, generic code, subcode, characters of a value, prefix of a literal.
    let times = [
        ("DATE", XdbcDataType::XdbcDate, XdbcDatetimeSubcode::XdbcSubcodeYear, 10, "DATE '"),
        ("TIME", XdbcDataType::XdbcTime, XdbcDatetimeSubcode::XdbcSubcodeTime, 15, "TIME '"),
        ("TIMESTAMP", XdbcDataType::XdbcTimestamp, XdbcDatetimeSubcode::XdbcSubcodeTimestamp, 26, "TIMESTAMP '"),
        (
            "TIMESTAMP WITH TIME ZONE",
            XdbcDataType::XdbcTimestamp,
            XdbcDatetimeSubcode::XdbcSubcodeTimestampWithTimezone,
            32,
            "TIMESTAMP WITH TIME ZONE '",
        ),
    ];
    let times = times.into_iter().map(|(name, code, subcode, size, prefix)| XdbcTypeInfo {
        sql_data_type: XdbcDataType::XdbcDatetime,
        datetime_subcode: Some(subcode),
        ..literal(of(name, code, Some(size)), prefix)
    });
    let interval = literal(of("INTERVAL", XdbcDataType::XdbcInterval, None), "INTERVAL '");
    let boolean = of("BOOLEAN", XdbcDataType::XdbcBit, Some(1));
    numbers.chain(quoted).chain(times).chain([interval, boolean])
}

fn of(name: &str, code: XdbcDataType, size: Option<i32>) -> XdbcTypeInfo {
    XdbcTypeInfo {
        type_name: name.to_owned(),
        data_type: code,
        sql_data_type: code,
        column_size: size,
        nullable: Nullable::NullabilityNullable,
        searchable: Searchable::Full,
        local_type_name: Some(name.to_owned()),
        ..XdbcTypeInfo::default()
    }
}

fn literal(info: XdbcTypeInfo, prefix: &str) -> XdbcTypeInfo {
    XdbcTypeInfo { literal_prefix: Some(prefix.to_owned()), literal_suffix: Some("'".to_owned()), ..info }
}
