//! The types of column definitions: the parser's many -> the ones there are. What cannot be kept to the letter is
//! refused, with the type to write instead.

use datafusion::sql::sqlparser::ast::{BinaryLength, CharacterLength, DataType, ExactNumberInfo, TimezoneInfo};
use drsdb_core::{ErrorCode, Result, SqlType, WireError, nearest_name};

const MAX_PRECISION: u64 = 38;
/// DECIMAL without precision and scale.
const DEFAULT_DECIMAL: SqlType = SqlType::Decimal { precision: 38, scale: 10 };
const NAMES: &[&str] = &[
    "boolean",
    "smallint",
    "integer",
    "int",
    "bigint",
    "real",
    "double",
    "decimal",
    "numeric",
    "char",
    "varchar",
    "text",
    "date",
    "time",
    "timestamp",
    "timestamptz",
    "interval",
    "bytea",
    "varbinary",
    "uuid",
    "ulid",
];

/// The column type that a definition names.
pub fn sql_type(data_type: &DataType) -> Result<SqlType, WireError> {
    Ok(match data_type {
        DataType::Bool | DataType::Boolean => SqlType::Boolean,
        DataType::SmallInt(None) | DataType::Int2(None) | DataType::Int16 => SqlType::SmallInt,
        DataType::Int(None) | DataType::Integer(None) | DataType::Int4(None) | DataType::Int32 => SqlType::Integer,
        DataType::BigInt(None) | DataType::Int8(None) | DataType::Int64 => SqlType::BigInt,
        DataType::Real | DataType::Float4 | DataType::Float32 => SqlType::Real,
        DataType::Double(ExactNumberInfo::None)
        | DataType::DoublePrecision
        | DataType::Float8
        | DataType::Float64
        | DataType::Float(ExactNumberInfo::None) => SqlType::Double,
        DataType::Float(ExactNumberInfo::Precision(bits)) => match bits {
            1..=24 => SqlType::Real,
            25..=53 => SqlType::Double,
            _ => return Err(instead(data_type, "FLOAT(1) to FLOAT(53)")),
        },
        DataType::Decimal(info) | DataType::Numeric(info) | DataType::Dec(info) => decimal(data_type, info)?,
        DataType::Char(length) | DataType::Character(length) => {
            SqlType::Char { length: text_length(data_type, length.as_ref())?.unwrap_or(1) }
        }
        DataType::Varchar(length)
        | DataType::CharacterVarying(length)
        | DataType::CharVarying(length)
        | DataType::Nvarchar(length) => SqlType::Varchar { length: text_length(data_type, length.as_ref())? },
        DataType::Text | DataType::String(None) | DataType::Clob(None) => SqlType::Text,
        DataType::Date | DataType::Date32 => SqlType::Date,
        DataType::Time(None | Some(6), TimezoneInfo::None | TimezoneInfo::WithoutTimeZone) => SqlType::Time,
        DataType::Time(..) => return Err(instead(data_type, "TIME, which keeps microseconds and no time zone")),
        DataType::Timestamp(None | Some(6), TimezoneInfo::None | TimezoneInfo::WithoutTimeZone)
        | DataType::TimestampNtz(None | Some(6))
        | DataType::Datetime(None | Some(6)) => SqlType::Timestamp,
        DataType::Timestamp(None | Some(6), TimezoneInfo::WithTimeZone | TimezoneInfo::Tz) => SqlType::TimestampTz,
        DataType::Timestamp(..) | DataType::TimestampNtz(_) | DataType::Datetime(_) => {
            return Err(instead(data_type, "TIMESTAMP or TIMESTAMP WITH TIME ZONE, which keep microseconds"));
        }
        DataType::Interval { fields: None, precision: None } => SqlType::Interval,
        DataType::Interval { .. } => return Err(instead(data_type, "INTERVAL")),
        DataType::Bytea
        | DataType::Bytes(None)
        | DataType::Blob(None)
        | DataType::Binary(None)
        | DataType::Varbinary(None | Some(BinaryLength::Max)) => SqlType::Bytea,
        DataType::Bytes(_) | DataType::Blob(_) | DataType::Binary(_) | DataType::Varbinary(_) => {
            return Err(instead(data_type, "BYTEA, which has no length"));
        }
        DataType::Uuid => SqlType::Uuid,
        DataType::TinyInt(_) | DataType::MediumInt(_) | DataType::Int128 | DataType::HugeInt => {
            return Err(instead(data_type, "SMALLINT, INTEGER, BIGINT or DECIMAL(38,0)"));
        }
        DataType::SmallInt(_) | DataType::Int(_) | DataType::Integer(_) | DataType::BigInt(_) => {
            return Err(instead(data_type, "SMALLINT, INTEGER or BIGINT without a length"));
        }
        DataType::JSON | DataType::JSONB => return Err(instead(data_type, "TEXT")),
        DataType::Unspecified => {
            return Err(WireError::new(ErrorCode::Syntax, "a column without a type").with_hint(all_names()));
        }
        DataType::Custom(name, arguments) => {
            let written = name.to_string().to_lowercase();
            match written.as_str() {
                "ulid" if arguments.is_empty() => SqlType::Ulid,
                "serial" | "bigserial" => return Err(instead(data_type, "ULID, or BIGINT with values of your own")),
                _ => return Err(unknown(&written)),
            }
        }
        other => return Err(unknown(&other.to_string().to_lowercase())),
    })
}

fn decimal(data_type: &DataType, info: &ExactNumberInfo) -> Result<SqlType, WireError> {
    let (precision, scale) = match *info {
        ExactNumberInfo::None => return Ok(DEFAULT_DECIMAL),
        ExactNumberInfo::Precision(precision) => (precision, 0),
        ExactNumberInfo::PrecisionAndScale(precision, scale) => (precision, scale),
    };
    let scale_fits = u64::try_from(scale).is_ok_and(|scale| scale <= precision);
    if !(1..=MAX_PRECISION).contains(&precision) || !scale_fits {
        return Err(instead(data_type, "DECIMAL(p,s) with p from 1 to 38 and s from 0 to p"));
    }
    Ok(SqlType::Decimal { precision: precision as u8, scale: scale as i8 })
}

fn text_length(data_type: &DataType, length: Option<&CharacterLength>) -> Result<Option<u32>, WireError> {
    match length {
        None | Some(CharacterLength::Max) => Ok(None),
        Some(CharacterLength::IntegerLength { length, .. }) => match u32::try_from(*length) {
            Ok(length @ 1..) => Ok(Some(length)),
            _ => Err(instead(data_type, "TEXT, or a length from 1 to 4294967295")),
        },
    }
}

fn instead(data_type: &DataType, write: &str) -> WireError {
    WireError::new(ErrorCode::Unsupported, format!("no column can be of type {data_type}"))
        .with_hint(format!("write {write}"))
}

fn unknown(name: &str) -> WireError {
    let hint = match nearest_name(name, NAMES.iter().copied()) {
        Some(near) => format!("did you mean {}?", near.to_uppercase()),
        None => all_names(),
    };
    WireError::new(ErrorCode::NotFound, format!("no column can be of type {name}")).with_hint(hint)
}

fn all_names() -> String {
    format!("the types are {}", NAMES.join(", ").to_uppercase())
}
