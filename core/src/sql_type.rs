//! The SQL types of table columns, and what each is in Arrow.
//!
//! | SQL | stored and planned | edge (what clients see) |
//! |---|---|---|
//! | BOOLEAN, SMALLINT, INTEGER, BIGINT, REAL, DOUBLE | Boolean, Int16, Int32, Int64, Float32, Float64 | the same |
//! | DECIMAL(p, s), p <= 38 | Decimal128(p, s) | the same |
//! | CHAR(n), VARCHAR(n), TEXT | Utf8View | Utf8 |
//! | BYTEA, VARBINARY | BinaryView | Binary |
//! | DATE, TIME | Date32, Time64(us) | the same |
//! | TIMESTAMP, TIMESTAMP WITH TIME ZONE | Timestamp(us), Timestamp(us, UTC) | the same |
//! | INTERVAL | Interval(MonthDayNano) | the same |
//! | UUID | FixedSizeBinary(16) | the same, extension type `arrow.uuid` |
//! | ULID | FixedSizeBinary(16) | Utf8, 26 characters |

use std::fmt;

use arrow::datatypes::{DataType, IntervalUnit, TimeUnit};
use drsdb_proto::{ErrorCode, v1};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The largest precision of DECIMAL: what Arrow's Decimal128 holds.
pub const MAX_DECIMAL_PRECISION: u8 = 38;

/// A SQL type of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum SqlType {
    Boolean,
    SmallInt,
    Integer,
    BigInt,
    Real,
    Double,
    Decimal {
        precision: u8,
        scale: i8,
    },
    /// `length` is in characters. Values are not padded.
    Char {
        length: u32,
    },
    /// `length` is in characters; `None` is unlimited.
    Varchar {
        length: Option<u32>,
    },
    Text,
    Date,
    Time,
    Timestamp,
    TimestampTz,
    Interval,
    Bytea,
    Uuid,
    Ulid,
}

impl SqlType {
    /// The type in storage and inside plans.
    pub fn to_arrow(self) -> DataType {
        match self {
            SqlType::Boolean => DataType::Boolean,
            SqlType::SmallInt => DataType::Int16,
            SqlType::Integer => DataType::Int32,
            SqlType::BigInt => DataType::Int64,
            SqlType::Real => DataType::Float32,
            SqlType::Double => DataType::Float64,
            SqlType::Decimal { precision, scale } => DataType::Decimal128(precision, scale),
            SqlType::Char { .. } | SqlType::Varchar { .. } | SqlType::Text => DataType::Utf8View,
            SqlType::Date => DataType::Date32,
            SqlType::Time => DataType::Time64(TimeUnit::Microsecond),
            SqlType::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
            SqlType::TimestampTz => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            SqlType::Interval => DataType::Interval(IntervalUnit::MonthDayNano),
            SqlType::Bytea => DataType::BinaryView,
            SqlType::Uuid | SqlType::Ulid => DataType::FixedSizeBinary(16),
        }
    }

    /// The column type that holds every value of an Arrow type; for CREATE TABLE AS and for files.
    pub fn from_arrow(data_type: &DataType) -> Result<SqlType> {
        Ok(match data_type {
            DataType::Boolean => SqlType::Boolean,
            DataType::Int8 | DataType::UInt8 | DataType::Int16 => SqlType::SmallInt,
            DataType::UInt16 | DataType::Int32 => SqlType::Integer,
            DataType::UInt32 | DataType::Int64 => SqlType::BigInt,
            DataType::UInt64 => SqlType::Decimal { precision: 20, scale: 0 },
            DataType::Float16 | DataType::Float32 => SqlType::Real,
            DataType::Float64 => SqlType::Double,
            DataType::Decimal32(precision, scale)
            | DataType::Decimal64(precision, scale)
            | DataType::Decimal128(precision, scale) => SqlType::Decimal { precision: *precision, scale: *scale },
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null => SqlType::Text,
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView => SqlType::Bytea,
            DataType::FixedSizeBinary(16) => SqlType::Uuid,
            DataType::FixedSizeBinary(_) => SqlType::Bytea,
            DataType::Date32 | DataType::Date64 => SqlType::Date,
            DataType::Time32(_) | DataType::Time64(_) => SqlType::Time,
            DataType::Timestamp(_, None) => SqlType::Timestamp,
            DataType::Timestamp(_, Some(_)) => SqlType::TimestampTz,
            DataType::Interval(_) => SqlType::Interval,
            DataType::Dictionary(_, values) => SqlType::from_arrow(values)?,
            other => {
                return Err(Error::new(ErrorCode::Unsupported, format!("no column type holds Arrow's {other}")));
            }
        })
    }

    /// Whether values are text.
    pub fn is_text(self) -> bool {
        matches!(self, SqlType::Char { .. } | SqlType::Varchar { .. } | SqlType::Text)
    }

    /// The longest text in characters, if the type limits it.
    pub fn max_characters(self) -> Option<u32> {
        match self {
            SqlType::Char { length } => Some(length),
            SqlType::Varchar { length } => length,
            _ => None,
        }
    }

    fn kind(self) -> &'static str {
        match self {
            SqlType::Boolean => "boolean",
            SqlType::SmallInt => "smallint",
            SqlType::Integer => "integer",
            SqlType::BigInt => "bigint",
            SqlType::Real => "real",
            SqlType::Double => "double",
            SqlType::Decimal { .. } => "decimal",
            SqlType::Char { .. } => "char",
            SqlType::Varchar { .. } => "varchar",
            SqlType::Text => "text",
            SqlType::Date => "date",
            SqlType::Time => "time",
            SqlType::Timestamp => "timestamp",
            SqlType::TimestampTz => "timestamptz",
            SqlType::Interval => "interval",
            SqlType::Bytea => "bytea",
            SqlType::Uuid => "uuid",
            SqlType::Ulid => "ulid",
        }
    }

    /// The protobuf form.
    pub fn to_proto(self) -> v1::SqlType {
        let (precision, scale, length) = match self {
            SqlType::Decimal { precision, scale } => (u32::from(precision), i32::from(scale), 0),
            SqlType::Char { length } => (0, 0, length),
            SqlType::Varchar { length } => (0, 0, length.unwrap_or(0)),
            _ => (0, 0, 0),
        };
        v1::SqlType { kind: self.kind().to_owned(), precision, scale, length }
    }

    /// Back from the protobuf form.
    pub fn from_proto(proto: &v1::SqlType) -> Result<Self> {
        let bad = || Error::new(ErrorCode::InvalidArgument, format!("unknown SQL type {proto:?}"));
        Ok(match proto.kind.as_str() {
            "boolean" => SqlType::Boolean,
            "smallint" => SqlType::SmallInt,
            "integer" => SqlType::Integer,
            "bigint" => SqlType::BigInt,
            "real" => SqlType::Real,
            "double" => SqlType::Double,
            "decimal" => SqlType::Decimal {
                precision: u8::try_from(proto.precision)
                    .ok()
                    .filter(|precision| (1..=MAX_DECIMAL_PRECISION).contains(precision))
                    .ok_or_else(bad)?,
                scale: i8::try_from(proto.scale).map_err(|_| bad())?,
            },
            "char" => SqlType::Char { length: proto.length },
            "varchar" => SqlType::Varchar { length: (proto.length > 0).then_some(proto.length) },
            "text" => SqlType::Text,
            "date" => SqlType::Date,
            "time" => SqlType::Time,
            "timestamp" => SqlType::Timestamp,
            "timestamptz" => SqlType::TimestampTz,
            "interval" => SqlType::Interval,
            "bytea" => SqlType::Bytea,
            "uuid" => SqlType::Uuid,
            "ulid" => SqlType::Ulid,
            _ => return Err(bad()),
        })
    }
}

/// The type as SQL writes it.
impl fmt::Display for SqlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SqlType::Decimal { precision, scale } => write!(f, "DECIMAL({precision},{scale})"),
            SqlType::Char { length } => write!(f, "CHAR({length})"),
            SqlType::Varchar { length: Some(length) } => write!(f, "VARCHAR({length})"),
            SqlType::Varchar { length: None } => write!(f, "VARCHAR"),
            SqlType::TimestampTz => write!(f, "TIMESTAMP WITH TIME ZONE"),
            other => write!(f, "{}", other.kind().to_uppercase()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_survives_the_wire() {
        let types = [
            SqlType::Boolean,
            SqlType::SmallInt,
            SqlType::Integer,
            SqlType::BigInt,
            SqlType::Real,
            SqlType::Double,
            SqlType::Decimal { precision: 38, scale: 10 },
            SqlType::Char { length: 3 },
            SqlType::Varchar { length: Some(3) },
            SqlType::Varchar { length: None },
            SqlType::Text,
            SqlType::Date,
            SqlType::Time,
            SqlType::Timestamp,
            SqlType::TimestampTz,
            SqlType::Interval,
            SqlType::Bytea,
            SqlType::Uuid,
            SqlType::Ulid,
        ];
        for sql_type in types {
            assert_eq!(SqlType::from_proto(&sql_type.to_proto()).unwrap(), sql_type);
        }
    }
}
