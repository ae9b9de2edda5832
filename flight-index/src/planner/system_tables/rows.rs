//! Rows of system tables: cells in, a batch out.

use std::sync::Arc;

use arrow::{
    array::{
        ArrayRef, BooleanArray, Int64Array, RecordBatch, RecordBatchOptions, StringArray, TimestampMicrosecondArray,
    },
    datatypes::{DataType, Field, Schema},
};
use drsdb_core::{Result, SqlType};

/// The columns of a table.
pub type Shape = &'static [(&'static str, Kind)];

/// A column's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Text,
    Number,
    Flag,
    Time,
}

/// A value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cell {
    Null,
    Text(String),
    Number(i64),
    Flag(bool),
    /// Microseconds since 1970, UTC.
    Time(i64),
}

impl Cell {
    /// A time that is given in milliseconds.
    pub fn time(unix_ms: u64) -> Self {
        Cell::Time(i64::try_from(unix_ms).unwrap_or(i64::MAX).saturating_mul(1000))
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Cell::Text(text.to_owned())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Cell::Text(text)
    }
}

impl From<u64> for Cell {
    fn from(number: u64) -> Self {
        Cell::Number(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<u32> for Cell {
    fn from(number: u32) -> Self {
        Cell::Number(i64::from(number))
    }
}

impl From<usize> for Cell {
    fn from(number: usize) -> Self {
        Cell::from(number as u64)
    }
}

impl From<bool> for Cell {
    fn from(flag: bool) -> Self {
        Cell::Flag(flag)
    }
}

impl<T: Into<Cell>> From<Option<T>> for Cell {
    fn from(value: Option<T>) -> Self {
        value.map_or(Cell::Null, Into::into)
    }
}

/// One row.
macro_rules! row {
    ($($cell:expr),* $(,)?) => { vec![$(Cell::from($cell)),*] };
}
pub(super) use row;

/// The batch of `rows`, each as long as the shape. A cell of another kind than its column's is NULL.
pub fn batch(shape: Shape, rows: Vec<Vec<Cell>>) -> Result<RecordBatch> {
    debug_assert!(rows.iter().all(|row| row.len() == shape.len()), "rows are as long as the shape");
    let cells = |column: usize| rows.iter().map(move |row| row.get(column).unwrap_or(&Cell::Null));
    let mut fields = Vec::with_capacity(shape.len());
    let mut columns: Vec<ArrayRef> = Vec::with_capacity(shape.len());
    for (at, (name, kind)) in shape.iter().enumerate() {
        let (data_type, column): (DataType, ArrayRef) = match kind {
            Kind::Text => {
                let text = |cell: &'_ Cell| if let Cell::Text(text) = cell { Some(text.clone()) } else { None };
                (DataType::Utf8, Arc::new(cells(at).map(text).collect::<StringArray>()))
            }
            Kind::Number => {
                let number = |cell| if let &Cell::Number(number) = cell { Some(number) } else { None };
                (DataType::Int64, Arc::new(cells(at).map(number).collect::<Int64Array>()))
            }
            Kind::Flag => {
                let flag = |cell| if let &Cell::Flag(flag) = cell { Some(flag) } else { None };
                (DataType::Boolean, Arc::new(cells(at).map(flag).collect::<BooleanArray>()))
            }
            Kind::Time => {
                let time = |cell| if let &Cell::Time(time) = cell { Some(time) } else { None };
                let times = cells(at).map(time).collect::<TimestampMicrosecondArray>().with_timezone("UTC");
                (SqlType::TimestampTz.to_arrow(), Arc::new(times))
            }
        };
        fields.push(Field::new(*name, data_type, true));
        columns.push(column);
    }
    let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
    Ok(RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)?)
}
