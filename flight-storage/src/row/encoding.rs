//! How values of each SQL type are kept in SQLite, both ways. One rule: wherever a comparison may be pushed down,
//! SQLite's order of the kept values is the order that DataFusion gives the SQL values.
//!
//! | SQL | kept as | why the order holds |
//! |---|---|---|
//! | BOOLEAN, integers, DATE, TIME, TIMESTAMP | INTEGER | numbers (days or microseconds since 1970, or midnight) |
//! | REAL, DOUBLE | INTEGER | IEEE 754 bits, folded so that integers sort by its total order |
//! | DECIMAL to 18 digits | INTEGER | the unscaled number |
//! | DECIMAL beyond | BLOB of 16 | the unscaled number, big-endian, sign bit flipped |
//! | CHAR, VARCHAR, TEXT | TEXT | bytes of UTF-8, collation BINARY |
//! | BYTEA, UUID, ULID | BLOB | bytes |
//! | INTERVAL | BLOB of 16 | none: months, days and nanoseconds are not pushed down |
//!
//! SQLite's own REAL is of no use: it turns NaN into NULL and loses the sign of a zero.

use std::sync::Arc;

use arrow::{
    array::{
        Array, ArrayRef, AsArray, BinaryViewArray, BinaryViewBuilder, BooleanArray, BooleanBuilder,
        FixedSizeBinaryArray, FixedSizeBinaryBuilder, PrimitiveArray, PrimitiveBuilder, StringViewArray,
        StringViewBuilder,
    },
    datatypes::{
        ArrowPrimitiveType, DataType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int16Type, Int32Type,
        Int64Type, IntervalMonthDayNano, IntervalMonthDayNanoType, Time64MicrosecondType, TimestampMicrosecondType,
    },
};
use drsdb_core::{Error, Result, SqlType};
use rusqlite::types::{ToSqlOutput, Value, ValueRef};

use super::error::corrupt;

/// Decimals of up to this many digits fit SQLite's INTEGER.
const INTEGER_DECIMAL_DIGITS: u8 = 18;

/// The type that a column has in a STRICT table of SQLite.
pub(crate) fn column_type(sql_type: SqlType) -> &'static str {
    match sql_type {
        SqlType::Char { .. } | SqlType::Varchar { .. } | SqlType::Text => "TEXT",
        SqlType::Interval | SqlType::Bytea | SqlType::Uuid | SqlType::Ulid => "BLOB",
        SqlType::Decimal { precision, .. } if precision > INTEGER_DECIMAL_DIGITS => "BLOB",
        _ => "INTEGER",
    }
}

/// A DOUBLE as an integer that sorts by IEEE 754's total order. Its own inverse on the bits.
pub(crate) fn fold_f64(value: f64) -> i64 {
    let bits = value.to_bits() as i64;
    bits ^ ((bits >> 63) as u64 >> 1) as i64
}

fn unfold_f64(folded: i64) -> f64 {
    f64::from_bits((folded ^ ((folded >> 63) as u64 >> 1) as i64) as u64)
}

/// A REAL as an integer that sorts by IEEE 754's total order.
pub(crate) fn fold_f32(value: f32) -> i64 {
    let bits = value.to_bits() as i32;
    i64::from(bits ^ ((bits >> 31) as u32 >> 1) as i32)
}

fn unfold_f32(folded: i32) -> f32 {
    f32::from_bits((folded ^ ((folded >> 31) as u32 >> 1) as i32) as u32)
}

/// A decimal's unscaled number in the form of a column with `precision` digits.
pub(crate) fn fold_decimal(value: i128, precision: u8) -> Value {
    match i64::try_from(value) {
        Ok(small) if precision <= INTEGER_DECIMAL_DIGITS => Value::Integer(small),
        _ => Value::Blob((value ^ i128::MIN).to_be_bytes().to_vec()),
    }
}

/// The values of one column of a batch, ready to be bound to an INSERT.
pub(crate) enum Values<'a> {
    Boolean(&'a BooleanArray),
    SmallInt(&'a PrimitiveArray<Int16Type>),
    Integer(&'a PrimitiveArray<Int32Type>),
    BigInt(&'a PrimitiveArray<Int64Type>),
    Real(&'a PrimitiveArray<Float32Type>),
    Double(&'a PrimitiveArray<Float64Type>),
    Decimal(&'a PrimitiveArray<Decimal128Type>, u8),
    Text(&'a StringViewArray),
    Date(&'a PrimitiveArray<Date32Type>),
    Time(&'a PrimitiveArray<Time64MicrosecondType>),
    Timestamp(&'a PrimitiveArray<TimestampMicrosecondType>),
    Interval(&'a PrimitiveArray<IntervalMonthDayNanoType>),
    Bytes(&'a BinaryViewArray),
    Fixed(&'a FixedSizeBinaryArray),
}

impl<'a> Values<'a> {
    /// Takes an array of the type that `sql_type` is stored as.
    pub(crate) fn new(array: &'a ArrayRef, sql_type: SqlType) -> Result<Self> {
        if *array.data_type() != sql_type.to_arrow() {
            return Err(Error::internal(format!("a column of {sql_type} came as Arrow's {}", array.data_type())));
        }
        Ok(match sql_type {
            SqlType::Boolean => Values::Boolean(array.as_boolean()),
            SqlType::SmallInt => Values::SmallInt(array.as_primitive()),
            SqlType::Integer => Values::Integer(array.as_primitive()),
            SqlType::BigInt => Values::BigInt(array.as_primitive()),
            SqlType::Real => Values::Real(array.as_primitive()),
            SqlType::Double => Values::Double(array.as_primitive()),
            SqlType::Decimal { precision, .. } => Values::Decimal(array.as_primitive(), precision),
            SqlType::Char { .. } | SqlType::Varchar { .. } | SqlType::Text => Values::Text(array.as_string_view()),
            SqlType::Date => Values::Date(array.as_primitive()),
            SqlType::Time => Values::Time(array.as_primitive()),
            SqlType::Timestamp | SqlType::TimestampTz => Values::Timestamp(array.as_primitive()),
            SqlType::Interval => Values::Interval(array.as_primitive()),
            SqlType::Bytea => Values::Bytes(array.as_binary_view()),
            SqlType::Uuid | SqlType::Ulid => Values::Fixed(array.as_fixed_size_binary()),
        })
    }

    fn is_null(&self, row: usize) -> bool {
        match self {
            Values::Boolean(array) => array.is_null(row),
            Values::SmallInt(array) => array.is_null(row),
            Values::Integer(array) => array.is_null(row),
            Values::BigInt(array) => array.is_null(row),
            Values::Real(array) => array.is_null(row),
            Values::Double(array) => array.is_null(row),
            Values::Decimal(array, _) => array.is_null(row),
            Values::Text(array) => array.is_null(row),
            Values::Date(array) => array.is_null(row),
            Values::Time(array) => array.is_null(row),
            Values::Timestamp(array) => array.is_null(row),
            Values::Interval(array) => array.is_null(row),
            Values::Bytes(array) => array.is_null(row),
            Values::Fixed(array) => array.is_null(row),
        }
    }

    /// The value of `row` as SQLite keeps it.
    pub(crate) fn get(&self, row: usize) -> ToSqlOutput<'a> {
        if self.is_null(row) {
            return ToSqlOutput::Owned(Value::Null);
        }
        let integer = |value: i64| ToSqlOutput::Owned(Value::Integer(value));
        match self {
            Values::Boolean(array) => integer(i64::from(array.value(row))),
            Values::SmallInt(array) => integer(i64::from(array.value(row))),
            Values::Integer(array) => integer(i64::from(array.value(row))),
            Values::BigInt(array) => integer(array.value(row)),
            Values::Real(array) => integer(fold_f32(array.value(row))),
            Values::Double(array) => integer(fold_f64(array.value(row))),
            Values::Decimal(array, precision) => ToSqlOutput::Owned(fold_decimal(array.value(row), *precision)),
            Values::Text(array) => ToSqlOutput::Borrowed(ValueRef::Text(array.value(row).as_bytes())),
            Values::Date(array) => integer(i64::from(array.value(row))),
            Values::Time(array) => integer(array.value(row)),
            Values::Timestamp(array) => integer(array.value(row)),
            Values::Interval(array) => {
                let value = array.value(row);
                let mut bytes = Vec::with_capacity(16);
                bytes.extend_from_slice(&value.months.to_be_bytes());
                bytes.extend_from_slice(&value.days.to_be_bytes());
                bytes.extend_from_slice(&value.nanoseconds.to_be_bytes());
                ToSqlOutput::Owned(Value::Blob(bytes))
            }
            Values::Bytes(array) => ToSqlOutput::Borrowed(ValueRef::Blob(array.value(row))),
            Values::Fixed(array) => ToSqlOutput::Borrowed(ValueRef::Blob(array.value(row))),
        }
    }
}

/// Bytes of a value in memory, about.
pub(crate) fn size_of(value: &ValueRef<'_>) -> usize {
    match value {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => 16 + bytes.len(),
        _ => 8,
    }
}

/// Builds an Arrow column from kept values.
pub(crate) enum ColumnBuilder {
    Boolean(BooleanBuilder),
    SmallInt(PrimitiveBuilder<Int16Type>),
    Integer(PrimitiveBuilder<Int32Type>),
    BigInt(PrimitiveBuilder<Int64Type>),
    Real(PrimitiveBuilder<Float32Type>),
    Double(PrimitiveBuilder<Float64Type>),
    Decimal(PrimitiveBuilder<Decimal128Type>),
    Text(StringViewBuilder),
    Date(PrimitiveBuilder<Date32Type>),
    Time(PrimitiveBuilder<Time64MicrosecondType>),
    Timestamp(PrimitiveBuilder<TimestampMicrosecondType>),
    Interval(PrimitiveBuilder<IntervalMonthDayNanoType>),
    Bytes(BinaryViewBuilder),
    Fixed(FixedSizeBinaryBuilder),
}

impl ColumnBuilder {
    /// A builder for a column of `sql_type` with room for `capacity` values.
    pub(crate) fn new(sql_type: SqlType, capacity: usize) -> Self {
        let data_type = sql_type.to_arrow();
        match sql_type {
            SqlType::Boolean => ColumnBuilder::Boolean(BooleanBuilder::with_capacity(capacity)),
            SqlType::SmallInt => ColumnBuilder::SmallInt(primitive(data_type, capacity)),
            SqlType::Integer => ColumnBuilder::Integer(primitive(data_type, capacity)),
            SqlType::BigInt => ColumnBuilder::BigInt(primitive(data_type, capacity)),
            SqlType::Real => ColumnBuilder::Real(primitive(data_type, capacity)),
            SqlType::Double => ColumnBuilder::Double(primitive(data_type, capacity)),
            SqlType::Decimal { .. } => ColumnBuilder::Decimal(primitive(data_type, capacity)),
            SqlType::Char { .. } | SqlType::Varchar { .. } | SqlType::Text => {
                ColumnBuilder::Text(StringViewBuilder::with_capacity(capacity))
            }
            SqlType::Date => ColumnBuilder::Date(primitive(data_type, capacity)),
            SqlType::Time => ColumnBuilder::Time(primitive(data_type, capacity)),
            SqlType::Timestamp | SqlType::TimestampTz => ColumnBuilder::Timestamp(primitive(data_type, capacity)),
            SqlType::Interval => ColumnBuilder::Interval(primitive(data_type, capacity)),
            SqlType::Bytea => ColumnBuilder::Bytes(BinaryViewBuilder::with_capacity(capacity)),
            SqlType::Uuid | SqlType::Ulid => ColumnBuilder::Fixed(FixedSizeBinaryBuilder::with_capacity(capacity, 16)),
        }
    }

    /// Appends a kept value.
    pub(crate) fn append(&mut self, value: ValueRef<'_>) -> Result<()> {
        if matches!(value, ValueRef::Null) {
            self.append_null();
            return Ok(());
        }
        match self {
            ColumnBuilder::Boolean(builder) => builder.append_value(integer(value)? != 0),
            ColumnBuilder::SmallInt(builder) => builder.append_value(narrow(value)?),
            ColumnBuilder::Integer(builder) => builder.append_value(narrow(value)?),
            ColumnBuilder::BigInt(builder) => builder.append_value(integer(value)?),
            ColumnBuilder::Real(builder) => builder.append_value(unfold_f32(narrow(value)?)),
            ColumnBuilder::Double(builder) => builder.append_value(unfold_f64(integer(value)?)),
            ColumnBuilder::Decimal(builder) => builder.append_value(match value {
                ValueRef::Integer(small) => i128::from(small),
                other => i128::from_be_bytes(sixteen(other)?) ^ i128::MIN,
            }),
            ColumnBuilder::Text(builder) => match value {
                ValueRef::Text(bytes) => {
                    let text = std::str::from_utf8(bytes).map_err(|_| corrupt("a text that is not UTF-8"))?;
                    builder.try_append_value(text)?;
                }
                other => return Err(unexpected(other)),
            },
            ColumnBuilder::Date(builder) => builder.append_value(narrow(value)?),
            ColumnBuilder::Time(builder) => builder.append_value(integer(value)?),
            ColumnBuilder::Timestamp(builder) => builder.append_value(integer(value)?),
            ColumnBuilder::Interval(builder) => {
                let bits = i128::from_be_bytes(sixteen(value)?);
                let (months, days, nanoseconds) = ((bits >> 96) as i32, (bits >> 64) as i32, bits as i64);
                builder.append_value(IntervalMonthDayNano { months, days, nanoseconds });
            }
            ColumnBuilder::Bytes(builder) => match value {
                ValueRef::Blob(bytes) => builder.try_append_value(bytes)?,
                other => return Err(unexpected(other)),
            },
            ColumnBuilder::Fixed(builder) => builder.append_value(sixteen(value)?)?,
        }
        Ok(())
    }

    fn append_null(&mut self) {
        match self {
            ColumnBuilder::Boolean(builder) => builder.append_null(),
            ColumnBuilder::SmallInt(builder) => builder.append_null(),
            ColumnBuilder::Integer(builder) => builder.append_null(),
            ColumnBuilder::BigInt(builder) => builder.append_null(),
            ColumnBuilder::Real(builder) => builder.append_null(),
            ColumnBuilder::Double(builder) => builder.append_null(),
            ColumnBuilder::Decimal(builder) => builder.append_null(),
            ColumnBuilder::Text(builder) => builder.append_null(),
            ColumnBuilder::Date(builder) => builder.append_null(),
            ColumnBuilder::Time(builder) => builder.append_null(),
            ColumnBuilder::Timestamp(builder) => builder.append_null(),
            ColumnBuilder::Interval(builder) => builder.append_null(),
            ColumnBuilder::Bytes(builder) => builder.append_null(),
            ColumnBuilder::Fixed(builder) => builder.append_null(),
        }
    }

    /// The column so far; the builder begins anew.
    pub(crate) fn finish(&mut self) -> ArrayRef {
        match self {
            ColumnBuilder::Boolean(builder) => Arc::new(builder.finish()),
            ColumnBuilder::SmallInt(builder) => Arc::new(builder.finish()),
            ColumnBuilder::Integer(builder) => Arc::new(builder.finish()),
            ColumnBuilder::BigInt(builder) => Arc::new(builder.finish()),
            ColumnBuilder::Real(builder) => Arc::new(builder.finish()),
            ColumnBuilder::Double(builder) => Arc::new(builder.finish()),
            ColumnBuilder::Decimal(builder) => Arc::new(builder.finish()),
            ColumnBuilder::Text(builder) => Arc::new(builder.finish()),
            ColumnBuilder::Date(builder) => Arc::new(builder.finish()),
            ColumnBuilder::Time(builder) => Arc::new(builder.finish()),
            ColumnBuilder::Timestamp(builder) => Arc::new(builder.finish()),
            ColumnBuilder::Interval(builder) => Arc::new(builder.finish()),
            ColumnBuilder::Bytes(builder) => Arc::new(builder.finish()),
            ColumnBuilder::Fixed(builder) => Arc::new(builder.finish()),
        }
    }
}

fn primitive<T: ArrowPrimitiveType>(data_type: DataType, capacity: usize) -> PrimitiveBuilder<T> {
    // Carries a decimal's scale and a timestamp's zone, which the Rust type does not say.
    PrimitiveBuilder::with_capacity(capacity).with_data_type(data_type)
}

fn integer(value: ValueRef<'_>) -> Result<i64> {
    match value {
        ValueRef::Integer(number) => Ok(number),
        other => Err(unexpected(other)),
    }
}

fn narrow<T: TryFrom<i64>>(value: ValueRef<'_>) -> Result<T> {
    let number = integer(value)?;
    T::try_from(number).map_err(|_| corrupt(format!("the number {number} is beyond its column's type")).into())
}

fn sixteen(value: ValueRef<'_>) -> Result<[u8; 16]> {
    match value {
        ValueRef::Blob(bytes) => {
            bytes.try_into().map_err(|_| corrupt(format!("a value of {} bytes, not 16", bytes.len())).into())
        }
        other => Err(unexpected(other)),
    }
}

fn unexpected(value: ValueRef<'_>) -> Error {
    corrupt(format!("a value of SQLite's type {} is not what its column holds", value.data_type())).into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn folded_doubles_sort_by_total_order(a: u64, b: u64) {
            let (a, b) = (f64::from_bits(a), f64::from_bits(b));
            prop_assert_eq!(fold_f64(a).cmp(&fold_f64(b)), a.total_cmp(&b));
            prop_assert_eq!(unfold_f64(fold_f64(a)).to_bits(), a.to_bits());
        }

        #[test]
        fn folded_reals_sort_by_total_order(a: u32, b: u32) {
            let (a, b) = (f32::from_bits(a), f32::from_bits(b));
            prop_assert_eq!(fold_f32(a).cmp(&fold_f32(b)), a.total_cmp(&b));
            prop_assert_eq!(unfold_f32(fold_f32(a) as i32).to_bits(), a.to_bits());
        }

        #[test]
        fn wide_decimals_sort_as_bytes(a: i128, b: i128) {
            let blob = |value| match fold_decimal(value, 38) {
                Value::Blob(bytes) => bytes,
                other => panic!("a wide decimal became {other:?}"),
            };
            prop_assert_eq!(blob(a).cmp(&blob(b)), a.cmp(&b));
        }
    }
}
