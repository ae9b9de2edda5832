//! Values of results in a form in which engines with different Arrow types can be compared.

use std::{cmp::Ordering, fmt};

use arrow::{
    array::{Array, ArrayRef, AsArray},
    compute::cast,
    datatypes::{DataType, Date32Type, Decimal128Type, Float64Type},
    error::ArrowError,
    record_batch::RecordBatch,
};

/// What the values of a column are, whatever their Arrow type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Boolean,
    /// Integers and decimals: compared exactly.
    Number,
    Float,
    Text,
    Date,
}

impl Kind {
    pub(super) fn of(data_type: &DataType) -> Option<Self> {
        Some(match data_type {
            DataType::Boolean => Kind::Boolean,
            DataType::Float16 | DataType::Float32 | DataType::Float64 => Kind::Float,
            DataType::Decimal32(..) | DataType::Decimal64(..) | DataType::Decimal128(..) => Kind::Number,
            integer if integer.is_integer() => Kind::Number,
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Kind::Text,
            DataType::Dictionary(_, values) => Kind::of(values)?,
            DataType::Date32 | DataType::Date64 => Kind::Date,
            _ => return None,
        })
    }
}

/// One value. Numbers are `digits * 10^-scale` without trailing zeros, so that equal numbers are equal cells.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Cell {
    Null,
    Boolean(bool),
    Number {
        digits: i128,
        scale: i8,
    },
    Text(String),
    Date(i32),
    /// The bits of a float.
    Float(u64),
}

impl Cell {
    fn number(mut digits: i128, mut scale: i8) -> Self {
        while scale > 0 && digits % 10 == 0 {
            (digits, scale) = (digits / 10, scale - 1);
        }
        Cell::Number { digits, scale }
    }

    /// The value as a float, if it is a number of any kind.
    pub(super) fn as_f64(&self) -> Option<f64> {
        match self {
            Cell::Number { digits, scale } => Some(*digits as f64 / 10f64.powi(i32::from(*scale))),
            Cell::Float(bits) => Some(f64::from_bits(*bits)),
            _ => None,
        }
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cell::Null => f.write_str("NULL"),
            Cell::Boolean(value) => write!(f, "{value}"),
            Cell::Number { digits, scale } if *scale > 0 => {
                let divisor = 10i128.pow(*scale as u32);
                let sign = if *digits < 0 { "-" } else { "" };
                let (whole, fraction) =
                    (digits.unsigned_abs() / divisor as u128, digits.unsigned_abs() % divisor as u128);
                write!(f, "{sign}{whole}.{fraction:0width$}", width = *scale as usize)
            }
            Cell::Number { digits, .. } => write!(f, "{digits}"),
            Cell::Text(text) => write!(f, "{text:?}"),
            Cell::Date(days) => write!(f, "day {days}"),
            Cell::Float(bits) => write!(f, "{}", f64::from_bits(*bits)),
        }
    }
}

/// The cells of one column over all `batches`.
pub(super) fn column_cells(batches: &[RecordBatch], column: usize) -> Result<Vec<Cell>, ArrowError> {
    let mut cells = Vec::with_capacity(batches.iter().map(RecordBatch::num_rows).sum());
    for batch in batches {
        append_cells(batch.column(column), &mut cells)?;
    }
    Ok(cells)
}

fn append_cells(array: &ArrayRef, cells: &mut Vec<Cell>) -> Result<(), ArrowError> {
    let unsupported = || ArrowError::NotYetImplemented(format!("comparing values of {}", array.data_type()));
    let (target, scale) = match (Kind::of(array.data_type()).ok_or_else(unsupported)?, array.data_type()) {
        (Kind::Boolean, _) => (DataType::Boolean, 0),
        (Kind::Float, _) => (DataType::Float64, 0),
        (Kind::Text, _) => (DataType::Utf8, 0),
        (Kind::Date, _) => (DataType::Date32, 0),
        (
            Kind::Number,
            DataType::Decimal32(_, scale) | DataType::Decimal64(_, scale) | DataType::Decimal128(_, scale),
        ) => (DataType::Decimal128(38, *scale), *scale),
        (Kind::Number, _) => (DataType::Decimal128(38, 0), 0),
    };
    let array = cast(array, &target)?;
    for row in 0..array.len() {
        cells.push(if array.is_null(row) {
            Cell::Null
        } else {
            match &target {
                DataType::Boolean => Cell::Boolean(array.as_boolean().value(row)),
                DataType::Float64 => Cell::Float(array.as_primitive::<Float64Type>().value(row).to_bits()),
                DataType::Utf8 => Cell::Text(array.as_string::<i32>().value(row).to_owned()),
                DataType::Date32 => Cell::Date(array.as_primitive::<Date32Type>().value(row)),
                _ => Cell::number(array.as_primitive::<Decimal128Type>().value(row), scale),
            }
        });
    }
    Ok(())
}

/// How far two numbers may be apart: by `absolute`, or by `relative` times the larger one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tolerance {
    pub(super) relative: f64,
    pub(super) absolute: f64,
}

impl Tolerance {
    pub(super) fn close(self, left: &Cell, right: &Cell) -> bool {
        match (left.as_f64(), right.as_f64()) {
            (Some(left), Some(right)) if left.is_finite() && right.is_finite() => {
                (left - right).abs() <= self.absolute.max(self.relative * left.abs().max(right.abs()))
            }
            // Infinities by their sign, NaN by being one.
            (Some(left), Some(right)) => {
                left.is_nan() && right.is_nan() || left.partial_cmp(&right) == Some(Ordering::Equal)
            }
            _ => left == right,
        }
    }
}
