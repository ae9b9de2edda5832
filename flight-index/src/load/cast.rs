//! One column of a client's batch -> the column's type, with every value checked.
//!
//! Arrow's cast turns what it cannot convert into NULL when asked to; comparing NULLs before and after finds the row to
//! blame. Casts that would lose something silently (a fraction, nanoseconds) are compared with their way back.
//!
//! Values come out in the types of [`drsdb_core::transit`].

use std::{borrow::Cow, sync::Arc};

use arrow::{
    array::{
        Array, ArrayRef, AsArray, BinaryBuilder, Decimal128Array, FixedSizeBinaryBuilder, StringArray, new_null_array,
    },
    compute::{CastOptions, can_cast_types, cast, cast_with_options, kernels::cmp::neq},
    datatypes::{DataType, Decimal128Type, Float32Type, Float64Type, Time64MicrosecondType, TimeUnit},
    util::display::{ArrayFormatter, FormatOptions},
};
use drsdb_core::{Column, ErrorCode, Result, SqlType, Ulid, WireError, floats::canonical, transit::transit_type};

/// Microseconds of a day.
const DAY_US: i64 = 24 * 3600 * 1_000_000;

const SAFE: CastOptions<'static> = CastOptions { safe: true, format_options: FormatOptions::new() };

/// Kinds of values between which an assignment makes sense.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Nothing,
    Boolean,
    Number,
    Text,
    Bytes,
    Date,
    Time,
    Timestamp,
    Interval,
    Other,
}

fn kind(data_type: &DataType) -> Kind {
    match data_type {
        DataType::Null => Kind::Nothing,
        DataType::Boolean => Kind::Boolean,
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Kind::Text,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => Kind::Bytes,
        DataType::Date32 | DataType::Date64 => Kind::Date,
        DataType::Time32(_) | DataType::Time64(_) => Kind::Time,
        DataType::Timestamp(..) => Kind::Timestamp,
        DataType::Interval(_) | DataType::Duration(_) => Kind::Interval,
        DataType::Dictionary(_, values) => kind(values),
        DataType::RunEndEncoded(_, values) => kind(values.data_type()),
        numeric if numeric.is_numeric() => Kind::Number,
        _ => Kind::Other,
    }
}

/// Whether values of the Arrow type may be loaded into the column; an error that names both types if not.
pub fn check_assignable(from: &DataType, column: &Column) -> Result<()> {
    let to = transit_type(column.sql_type);
    let fits = match (kind(from), kind(&to)) {
        (Kind::Nothing, _) => true,
        (Kind::Text, Kind::Bytes) => true,
        (Kind::Bytes, Kind::Text) => !matches!(from, DataType::FixedSizeBinary(_)),
        (Kind::Bytes, Kind::Bytes) => true,
        (Kind::Other, _) => false,
        (Kind::Date, Kind::Timestamp) | (Kind::Timestamp, Kind::Date) => true,
        (source, target) => {
            (source == target || source == Kind::Text || target == Kind::Text) && can_cast_types(&plain(from), &to)
        }
    };
    if fits {
        return Ok(());
    }
    let message = format!("column {} is {} and cannot take Arrow's {from}", column.name, column.sql_type);
    Err(WireError::new(ErrorCode::TypeMismatch, message)
        .with_hint(format!("send it as Arrow's {to}, or as text"))
        .with_field("column", &column.name)
        .into())
}

fn plain(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Dictionary(_, values) => plain(values),
        DataType::RunEndEncoded(_, values) => plain(values.data_type()),
        other => other.clone(),
    }
}

/// The column's values in its transit type, as they are to be stored: all that is written passes here. `first_row` is the
/// number of the first value in the load, from 1.
pub fn convert_column(source: &ArrayRef, column: &Column, first_row: u64) -> Result<ArrayRef> {
    cast_column(source, column, first_row).map(canonical)
}

/// The same for values that are stored already: they stay as they are.
pub fn cast_column(source: &ArrayRef, column: &Column, first_row: u64) -> Result<ArrayRef> {
    let unpacked;
    let source = match source.data_type() {
        packed @ (DataType::Dictionary(..) | DataType::RunEndEncoded(..)) => {
            unpacked = cast(source, &plain(packed))?;
            &unpacked
        }
        _ => source,
    };
    let blame = Blame { column, first_row };
    let target = transit_type(column.sql_type);
    let converted = match (kind(source.data_type()), column.sql_type) {
        (Kind::Nothing, _) => new_null_array(&target, source.len()),
        (Kind::Text, SqlType::Uuid) => blame.parse_bytes(source, parse_uuid)?,
        (Kind::Text, SqlType::Ulid) => blame.parse_bytes(source, parse_ulid)?,
        (Kind::Bytes, SqlType::Uuid | SqlType::Ulid) => blame.sixteen_bytes(source)?,
        (Kind::Text, SqlType::Bytea) => blame.parse_hex(source)?,
        _ if source.data_type() == &target => Arc::clone(source),
        _ => blame.checked_cast(source, &target)?,
    };
    if let Some(limit) = column.sql_type.max_characters() {
        blame.check_length(converted.as_string::<i32>(), limit as usize)?;
    }
    if let SqlType::Decimal { precision, .. } = column.sql_type {
        blame.check_digits(converted.as_primitive::<Decimal128Type>(), precision)?;
    }
    if column.not_null && converted.null_count() > 0 {
        let row = (0..converted.len()).find(|&row| converted.is_null(row)).unwrap_or(0);
        return Err(null_in_not_null(column, first_row + row as u64));
    }
    Ok(converted)
}

/// The error of a NULL in a NOT NULL column where no table is known: whole rows are checked by
/// [`crate::dml::check_not_null`].
fn null_in_not_null(column: &Column, row: u64) -> drsdb_core::Error {
    let message = format!("column {}, row {row}: NULL in a column that is NOT NULL", column.name);
    WireError::new(ErrorCode::ConstraintViolation, message)
        .with_hint("give it a value")
        .with_field("constraint", column.not_null_name.as_deref().unwrap_or("not_null"))
        .with_field("column", &column.name)
        .with_field("row", row)
        .into()
}

/// The bytes of a ULID in text: 26 characters, which could say more than 128 bits do.
pub fn parse_ulid(text: &str) -> Option<[u8; 16]> {
    text.starts_with(|first| matches!(first, '0'..='7')).then(|| Ulid::from_string(text).ok())?.map(|id| id.to_bytes())
}

/// The bytes of a UUID in text.
pub fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    // 8-4-4-4-12 digits, or 32 without hyphens.
    let digits: Vec<u8> = match text.len() {
        36 if [8, 13, 18, 23].iter().all(|&at| text.as_bytes()[at] == b'-') => {
            text.bytes().filter(|byte| *byte != b'-').collect()
        }
        32 => text.bytes().collect(),
        _ => return None,
    };
    <[u8; 16]>::try_from(parse_hex(&digits)?).ok()
}

fn parse_hex(digits: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: u8| (byte as char).to_digit(16);
    let pairs = digits.chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return None;
    }
    pairs.map(|pair| Some((digit(pair[0])? * 16 + digit(pair[1])?) as u8)).collect()
}

/// A number such as `1.5e3`, as Python and Arrow write decimals, without its exponent, which Arrow's cast does not know. Any
/// other text as it is.
fn without_exponent(text: &str) -> Cow<'_, str> {
    /// More than any DECIMAL has on either side of its point.
    const MAX_EXPONENT: i32 = 100;
    let shifted = || {
        let (mantissa, exponent) = text.trim().split_once(['e', 'E'])?;
        let exponent = exponent.parse::<i32>().ok().filter(|exponent| exponent.abs() <= MAX_EXPONENT)?;
        let unsigned = mantissa.trim_start_matches(['-', '+']);
        let (sign, (whole, fraction)) =
            (&mantissa[..mantissa.len() - unsigned.len()], unsigned.split_once('.').unwrap_or((unsigned, "")));
        let digits = format!("{whole}{fraction}");
        if sign.len() > 1 || digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
            return None;
        }
        let point = whole.len() as i32 + exponent;
        let (before, after) = (usize::try_from(-point).unwrap_or(0), usize::try_from(point).unwrap_or(0));
        let digits = format!("{}{digits}", "0".repeat(before));
        let digits = format!("{digits:0<after$}");
        Some(format!("{sign}0{}.{}0", &digits[..after], &digits[after..]))
    };
    shifted().map_or(Cow::Borrowed(text), Cow::Owned)
}

/// Who is to blame for a value: the column, and the row.
struct Blame<'a> {
    column: &'a Column,
    first_row: u64,
}

impl Blame<'_> {
    fn error(&self, source: &dyn Array, row: usize, fault: &str, hint: &str) -> drsdb_core::Error {
        let value = ArrayFormatter::try_new(source, &FormatOptions::new())
            .map_or_else(|_| "the value".to_owned(), |formatter| formatter.value(row).to_string());
        let shown: String = value.chars().take(100).collect();
        let number = self.first_row + row as u64;
        let message = format!("column {}, row {number}: {shown:?} {fault}", self.column.name);
        WireError::new(ErrorCode::InvalidValue, message)
            .with_hint(hint)
            .with_field("column", &self.column.name)
            .with_field("row", number)
            .with_field("value", shown)
            .into()
    }

    fn checked_cast(&self, source: &ArrayRef, target: &DataType) -> Result<ArrayRef> {
        let mut converted = cast_with_options(source, target, &SAFE)?;
        if converted.null_count() > source.null_count()
            && let (Kind::Text, DataType::Decimal128(..)) = (kind(source.data_type()), target)
        {
            let plain: StringArray = self.texts(source)?.iter().map(|text| text.map(without_exponent)).collect();
            converted = cast_with_options(&plain, target, &SAFE)?;
        }
        if converted.null_count() > source.null_count() {
            let lost = |row: &usize| source.is_valid(*row) && converted.is_null(*row);
            let row = (0..source.len()).find(lost).unwrap_or(0);
            let fault = format!("is not a value of {}", self.column.sql_type);
            return Err(self.error(source, row, &fault, &values_of(self.column.sql_type)));
        }
        self.refuse_other_values(source, &converted)?;
        if loses_silently(source.data_type(), target) {
            let back = cast_with_options(&converted, source.data_type(), &SAFE)?;
            let differs = neq(source, &back)?;
            if let Some(row) = (0..differs.len()).find(|&row| differs.is_valid(row) && differs.value(row)) {
                let fault = format!("would lose a part of it as {}", self.column.sql_type);
                return Err(self.error(source, row, &fault, "round the values, or choose a wider type"));
            }
        }
        Ok(converted)
    }

    /// Casts that make another value instead of NULL: a number beyond the range of a float becomes infinite, and the
    /// leap second 23:59:60 a time after the day's end, which nothing can read.
    fn refuse_other_values(&self, source: &ArrayRef, converted: &ArrayRef) -> Result<()> {
        let infinite: Box<dyn Fn(usize) -> bool> = match converted.data_type() {
            DataType::Float32 => {
                let values = converted.as_primitive::<Float32Type>().clone();
                Box::new(move |row| values.value(row).is_infinite())
            }
            DataType::Float64 => {
                let values = converted.as_primitive::<Float64Type>().clone();
                Box::new(move |row| values.value(row).is_infinite())
            }
            DataType::Time64(TimeUnit::Microsecond) => {
                let values = converted.as_primitive::<Time64MicrosecondType>().clone();
                let late = (0..values.len()).find(|&row| values.is_valid(row) && values.value(row) >= DAY_US);
                return match late {
                    Some(row) => {
                        Err(self.error(source, row, "is not a value of TIME", "a day ends at 23:59:59.999999"))
                    }
                    None => Ok(()),
                };
            }
            _ => return Ok(()),
        };
        let meant = |row: usize| match source.data_type() {
            DataType::Float64 => source.as_primitive::<Float64Type>().value(row).is_infinite(),
            DataType::Float32 | DataType::Float16 => true,
            kind if self::kind(kind) == Kind::Text => {
                let text = ArrayFormatter::try_new(source.as_ref(), &FormatOptions::new())
                    .map(|formatter| formatter.value(row).to_string());
                text.is_ok_and(|text| text.to_ascii_lowercase().contains("inf"))
            }
            _ => false,
        };
        let overflowed = |row: &usize| converted.is_valid(*row) && infinite(*row) && !meant(*row);
        match (0..source.len()).find(overflowed) {
            Some(row) => {
                let fault = format!("is not a value of {}", self.column.sql_type);
                Err(self.error(source, row, &fault, "it is beyond the type's range"))
            }
            None => Ok(()),
        }
    }

    fn texts(&self, source: &ArrayRef) -> Result<StringArray> {
        Ok(cast(source, &DataType::Utf8)?.as_string::<i32>().clone())
    }

    fn parse_bytes(&self, source: &ArrayRef, parse: impl Fn(&str) -> Option<[u8; 16]>) -> Result<ArrayRef> {
        let texts = self.texts(source)?;
        let mut builder = FixedSizeBinaryBuilder::with_capacity(texts.len(), 16);
        for (row, text) in texts.iter().enumerate() {
            match text {
                None => builder.append_null(),
                Some(text) => {
                    let fault = || {
                        let fault = format!("is not a {}", self.column.sql_type);
                        self.error(&texts, row, &fault, &values_of(self.column.sql_type))
                    };
                    builder.append_value(parse(text).ok_or_else(fault)?)?;
                }
            }
        }
        Ok(Arc::new(builder.finish()))
    }

    fn sixteen_bytes(&self, source: &ArrayRef) -> Result<ArrayRef> {
        if source.data_type() == &DataType::FixedSizeBinary(16) {
            return Ok(Arc::clone(source));
        }
        let bytes = cast(source, &DataType::Binary)?;
        let bytes = bytes.as_binary::<i32>();
        let mut builder = FixedSizeBinaryBuilder::with_capacity(bytes.len(), 16);
        for (row, value) in bytes.iter().enumerate() {
            match value {
                None => builder.append_null(),
                Some(value) if value.len() == 16 => builder.append_value(value)?,
                Some(_) => {
                    return Err(self.error(bytes, row, &format!("is not a {}", self.column.sql_type), "send 16 bytes"));
                }
            }
        }
        Ok(Arc::new(builder.finish()))
    }

    /// `\x` and hexadecimal digits are what they say; any other text is its own bytes.
    fn parse_hex(&self, source: &ArrayRef) -> Result<ArrayRef> {
        let texts = self.texts(source)?;
        let mut builder = BinaryBuilder::with_capacity(texts.len(), texts.value_data().len());
        for (row, text) in texts.iter().enumerate() {
            match text.map(|text| (text, text.strip_prefix("\\x"))) {
                None => builder.append_null(),
                Some((text, None)) => builder.append_value(text),
                Some((_, Some(digits))) => {
                    let fault =
                        || self.error(&texts, row, "is not a BYTEA", "write \\x and pairs of hexadecimal digits");
                    builder.append_value(parse_hex(digits.as_bytes()).ok_or_else(fault)?);
                }
            }
        }
        Ok(Arc::new(builder.finish()))
    }

    /// What comes as a DECIMAL may have more digits than its type says: that is what arithmetic makes.
    fn check_digits(&self, decimals: &Decimal128Array, precision: u8) -> Result<()> {
        let end = 10_u128.pow(precision.into());
        let too_large = |row: usize| decimals.is_valid(row) && decimals.value(row).unsigned_abs() >= end;
        match (0..decimals.len()).find(|&row| too_large(row)) {
            Some(row) => Err(self.error(decimals, row, "is out of range", &values_of(self.column.sql_type))),
            None => Ok(()),
        }
    }

    fn check_length(&self, texts: &StringArray, limit: usize) -> Result<()> {
        let offsets = texts.value_offsets();
        for row in 0..texts.len() {
            // A text of no more bytes than that has no more characters either, and counting takes longer.
            let bytes = (offsets[row + 1] - offsets[row]) as usize;
            if bytes > limit && texts.is_valid(row) && texts.value(row).chars().count() > limit {
                let fault = format!("is longer than {}", self.column.sql_type);
                return Err(self.error(texts, row, &fault, "shorten it, or make the column TEXT"));
            }
        }
        Ok(())
    }
}

/// What a type's values are, for who has sent another one.
fn values_of(sql_type: SqlType) -> String {
    let range = |least: i64, most: i64| format!("{sql_type} has the whole numbers from {least} to {most}");
    match sql_type {
        SqlType::SmallInt => range(i16::MIN.into(), i16::MAX.into()),
        SqlType::Integer => range(i32::MIN.into(), i32::MAX.into()),
        SqlType::BigInt => range(i64::MIN, i64::MAX),
        SqlType::Decimal { precision, scale } => {
            let digits = i16::from(precision) - i16::from(scale);
            format!("{sql_type} has numbers of at most {digits} digits before the decimal point")
        }
        SqlType::Real | SqlType::Double => format!("{sql_type} has numbers such as -1.5 and 2e10"),
        SqlType::Boolean => "write true or false".to_owned(),
        SqlType::Date => "write a day that there is, as 2020-12-31".to_owned(),
        SqlType::Time => "write a time as 23:59:59".to_owned(),
        SqlType::Timestamp | SqlType::TimestampTz => "write a time as 2020-12-31 23:59:59".to_owned(),
        SqlType::Interval => "write an interval as 1 day 2 hours".to_owned(),
        SqlType::Uuid => "write 32 hexadecimal digits, as 01234567-89ab-cdef-0123-456789abcdef".to_owned(),
        SqlType::Ulid => "write 26 characters, as 01ARZ3NDEKTSV4RRFFQ69G5FAV".to_owned(),
        SqlType::Char { .. } | SqlType::Varchar { .. } | SqlType::Text => {
            "texts are UTF-8; a column of type BYTEA takes any bytes".to_owned()
        }
        SqlType::Bytea => "write \\x and pairs of hexadecimal digits".to_owned(),
    }
}

/// Casts that round towards zero, or drop a part, without a word.
fn loses_silently(from: &DataType, to: &DataType) -> bool {
    match (from, to) {
        (from, to) if to.is_integer() => from.is_floating() || from.is_decimal(),
        (DataType::Timestamp(..) | DataType::Date64, DataType::Date32) => true,
        (DataType::Timestamp(TimeUnit::Nanosecond, _), DataType::Timestamp(..)) => true,
        (DataType::Time64(TimeUnit::Nanosecond), DataType::Time64(_)) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
