//! The stored form of a minimum or maximum: bytes that compare as the values do.
//!
//! | type | bytes |
//! |---|---|
//! | BOOLEAN | 0 or 1 |
//! | integers, DECIMAL, DATE, TIME, TIMESTAMP | big-endian, sign bit flipped |
//! | REAL, DOUBLE | big-endian IEEE 754 bits in total order: NaN is the largest |
//! | CHAR, VARCHAR, TEXT, BYTEA | the bytes, cut to [`MAX_BYTES`]: a cut maximum is rounded up |
//! | UUID, ULID | the 16 bytes |
//! | INTERVAL | none: intervals have no order |
//!
//! The form is on disk for ever; tests pin it.

use std::sync::Arc;

use arrow::{
    array::{
        Array, ArrayRef, AsArray, BinaryViewArray, BooleanArray, Date32Array, Decimal128Array, FixedSizeBinaryArray,
        Float32Array, Float64Array, Int16Array, Int32Array, Int64Array, StringViewArray, Time64MicrosecondArray,
        TimestampMicrosecondArray,
    },
    datatypes::{
        Date32Type, Decimal128Type, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type, Time64MicrosecondType,
        TimestampMicrosecondType,
    },
};
use drsdb_core::SqlType;

use crate::catalog::Blob;

/// The longest text or byte string that is kept whole. It bounds the size of a commit in the log.
pub(super) const MAX_BYTES: usize = 64;

/// The stored form of a lower bound: the value at `row`, or less. `None`: no bound is known.
pub(super) fn lower(sql_type: SqlType, array: &ArrayRef, row: usize) -> Option<Blob> {
    let mut bytes = encode(sql_type, array, row)?;
    bytes.truncate(cut(sql_type, &bytes));
    Some(bytes.into())
}

/// The stored form of an upper bound: the value at `row`, or more.
pub(super) fn upper(sql_type: SqlType, array: &ArrayRef, row: usize) -> Option<Blob> {
    let mut bytes = encode(sql_type, array, row)?;
    let end = cut(sql_type, &bytes);
    if end == bytes.len() {
        return Some(bytes.into());
    }
    bytes.truncate(end);
    if sql_type.is_text() { next_text(bytes) } else { next_bytes(bytes) }.map(Blob::from)
}

/// Where to cut a value so that it keeps to [`MAX_BYTES`] and text stays text.
fn cut(sql_type: SqlType, bytes: &[u8]) -> usize {
    if bytes.len() <= MAX_BYTES {
        return bytes.len();
    }
    if !sql_type.is_text() {
        return MAX_BYTES;
    }
    // A byte of the form 10xxxxxx continues a character.
    (0..=MAX_BYTES).rev().find(|&at| bytes[at] & 0xC0 != 0x80).unwrap_or(0)
}

/// The smallest text above every text that begins with `bytes`: its last character that has a successor is raised.
fn next_text(bytes: Vec<u8>) -> Option<Vec<u8>> {
    let mut text = String::from_utf8(bytes).ok()?;
    while let Some(last) = text.pop() {
        // U+D800..U+DFFF are no characters.
        let next = if last == '\u{D7FF}' { Some('\u{E000}') } else { char::from_u32(last as u32 + 1) };
        if let Some(next) = next {
            text.push(next);
            return Some(text.into_bytes());
        }
    }
    None
}

/// The smallest byte string above every one that begins with `bytes`.
fn next_bytes(mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    while let Some(last) = bytes.pop() {
        if last < u8::MAX {
            bytes.push(last + 1);
            return Some(bytes);
        }
    }
    None
}

fn encode(sql_type: SqlType, array: &ArrayRef, row: usize) -> Option<Vec<u8>> {
    if array.data_type() != &sql_type.to_arrow() || row >= array.len() || array.is_null(row) {
        return None;
    }
    Some(match sql_type {
        SqlType::Boolean => vec![u8::from(array.as_boolean().value(row))],
        SqlType::SmallInt => (array.as_primitive::<Int16Type>().value(row) ^ i16::MIN).to_be_bytes().to_vec(),
        SqlType::Integer => (array.as_primitive::<Int32Type>().value(row) ^ i32::MIN).to_be_bytes().to_vec(),
        SqlType::Date => (array.as_primitive::<Date32Type>().value(row) ^ i32::MIN).to_be_bytes().to_vec(),
        SqlType::BigInt => long(array.as_primitive::<Int64Type>().value(row)),
        SqlType::Time => long(array.as_primitive::<Time64MicrosecondType>().value(row)),
        SqlType::Timestamp | SqlType::TimestampTz => long(array.as_primitive::<TimestampMicrosecondType>().value(row)),
        SqlType::Decimal { .. } => {
            (array.as_primitive::<Decimal128Type>().value(row) ^ i128::MIN).to_be_bytes().to_vec()
        }
        SqlType::Real => {
            let bits = array.as_primitive::<Float32Type>().value(row).to_bits() as i32;
            (order_bits_32(bits) ^ i32::MIN).to_be_bytes().to_vec()
        }
        SqlType::Double => {
            let bits = array.as_primitive::<Float64Type>().value(row).to_bits() as i64;
            long(order_bits_64(bits))
        }
        SqlType::Char { .. } | SqlType::Varchar { .. } | SqlType::Text => {
            array.as_string_view().value(row).as_bytes().to_vec()
        }
        SqlType::Bytea => array.as_binary_view().value(row).to_vec(),
        SqlType::Uuid | SqlType::Ulid => array.as_fixed_size_binary().value(row).to_vec(),
        SqlType::Interval => return None,
    })
}

fn long(value: i64) -> Vec<u8> {
    (value ^ i64::MIN).to_be_bytes().to_vec()
}

/// Between the bits of a float and an integer that orders as the float does; its own inverse.
fn order_bits_32(bits: i32) -> i32 {
    bits ^ (((bits >> 31) as u32) >> 1) as i32
}

fn order_bits_64(bits: i64) -> i64 {
    bits ^ (((bits >> 63) as u64) >> 1) as i64
}

/// The value as an array of length 1 of the stored type. `None`: bytes that no version of drsdb wrote.
pub(super) fn decode(sql_type: SqlType, bytes: &[u8]) -> Option<ArrayRef> {
    let short = || bytes.try_into().ok().map(|bytes| i16::from_be_bytes(bytes) ^ i16::MIN);
    let int = || bytes.try_into().ok().map(|bytes| i32::from_be_bytes(bytes) ^ i32::MIN);
    let long = || bytes.try_into().ok().map(|bytes| i64::from_be_bytes(bytes) ^ i64::MIN);
    Some(match sql_type {
        SqlType::Boolean => Arc::new(BooleanArray::from(vec![*bytes.first()? != 0])),
        SqlType::SmallInt => Arc::new(Int16Array::from(vec![short()?])),
        SqlType::Integer => Arc::new(Int32Array::from(vec![int()?])),
        SqlType::Date => Arc::new(Date32Array::from(vec![int()?])),
        SqlType::BigInt => Arc::new(Int64Array::from(vec![long()?])),
        SqlType::Time => Arc::new(Time64MicrosecondArray::from(vec![long()?])),
        SqlType::Timestamp => Arc::new(TimestampMicrosecondArray::from(vec![long()?])),
        SqlType::TimestampTz => Arc::new(TimestampMicrosecondArray::from(vec![long()?]).with_timezone("UTC")),
        SqlType::Decimal { precision, scale } => {
            let value = i128::from_be_bytes(bytes.try_into().ok()?) ^ i128::MIN;
            Arc::new(Decimal128Array::from(vec![value]).with_precision_and_scale(precision, scale).ok()?)
        }
        SqlType::Real => Arc::new(Float32Array::from(vec![f32::from_bits(order_bits_32(int()?) as u32)])),
        SqlType::Double => Arc::new(Float64Array::from(vec![f64::from_bits(order_bits_64(long()?) as u64)])),
        SqlType::Char { .. } | SqlType::Varchar { .. } | SqlType::Text => {
            Arc::new(StringViewArray::from(vec![std::str::from_utf8(bytes).ok()?]))
        }
        SqlType::Bytea => Arc::new(BinaryViewArray::from(vec![bytes])),
        SqlType::Uuid | SqlType::Ulid if bytes.len() == 16 => {
            Arc::new(FixedSizeBinaryArray::try_from_iter([bytes].into_iter()).ok()?)
        }
        SqlType::Uuid | SqlType::Ulid | SqlType::Interval => return None,
    })
}

/// How many values the type has from `min` to `max`, where that is a bound worth having.
pub(super) fn width(sql_type: SqlType, min: &[u8], max: &[u8]) -> Option<u64> {
    match sql_type {
        SqlType::Boolean | SqlType::SmallInt | SqlType::Integer | SqlType::BigInt | SqlType::Date => {
            // Flipping the sign bit made them unsigned numbers.
            let number = |bytes: &[u8]| bytes.iter().fold(0u128, |number, byte| number << 8 | u128::from(*byte));
            u64::try_from(number(max).checked_sub(number(min))? + 1).ok()
        }
        _ => None,
    }
}
