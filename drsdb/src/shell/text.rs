//! Values as text: for the terminal, and for CSV in the form that `\copy` and `drsdb import` read back.

use std::fmt::Write;

use arrow::{
    array::{Array, AsArray, RecordBatch, StringArray},
    datatypes::{DataType, Field},
    error::ArrowError,
    util::display::{ArrayFormatter, FormatOptions},
};

const OPTIONS: FormatOptions<'static> = FormatOptions::new()
    .with_display_error(false)
    .with_timestamp_format(Some("%Y-%m-%d %H:%M:%S%.f"))
    .with_timestamp_tz_format(Some("%Y-%m-%d %H:%M:%S%.f%:z"));

/// The columns of a batch, ready to be written as text.
pub struct TextBatch<'a>(Vec<TextColumn<'a>>);

enum TextColumn<'a> {
    /// The type of a bare NULL.
    Null,
    Text(&'a StringArray),
    Plain {
        array: &'a dyn Array,
        formatter: ArrayFormatter<'a>,
    },
    Uuid(&'a dyn Array),
    Bytes(&'a dyn Array),
}

impl<'a> TextBatch<'a> {
    /// Prepares a batch.
    pub fn new(batch: &'a RecordBatch) -> Result<Self, ArrowError> {
        let schema = batch.schema_ref();
        let columns = schema.fields().iter().zip(batch.columns()).map(|(field, array)| {
            Ok(match array.data_type() {
                DataType::Null => TextColumn::Null,
                DataType::Utf8 => TextColumn::Text(array.as_string()),
                DataType::FixedSizeBinary(16) if is_uuid(field) => TextColumn::Uuid(array),
                DataType::Binary | DataType::FixedSizeBinary(_) => TextColumn::Bytes(array),
                _ => TextColumn::Plain { array, formatter: ArrayFormatter::try_new(array, &OPTIONS)? },
            })
        });
        columns.collect::<Result<_, _>>().map(TextBatch)
    }

    /// Appends a value's text; `false` for NULL, which has none.
    pub fn write(&self, row: usize, column: usize, text: &mut String) -> Result<bool, ArrowError> {
        let broken = |_| ArrowError::CastError("a value that cannot be shown".to_owned());
        if self.is_null(row, column) {
            return Ok(false);
        }
        match &self.0[column] {
            TextColumn::Null => {}
            TextColumn::Text(array) => text.push_str(array.value(row)),
            TextColumn::Plain { formatter, .. } => formatter.value(row).write(text)?,
            TextColumn::Uuid(array) => {
                for (at, byte) in array.as_fixed_size_binary().value(row).iter().enumerate() {
                    let hyphen = if [4, 6, 8, 10].contains(&at) { "-" } else { "" };
                    write!(text, "{hyphen}{byte:02x}").map_err(broken)?;
                }
            }
            TextColumn::Bytes(array) => {
                text.push_str("\\x");
                let bytes = match array.as_binary_opt::<i32>() {
                    Some(array) => array.value(row),
                    None => array.as_fixed_size_binary().value(row),
                };
                for byte in bytes {
                    write!(text, "{byte:02x}").map_err(broken)?;
                }
            }
        }
        Ok(true)
    }

    fn is_null(&self, row: usize, column: usize) -> bool {
        match &self.0[column] {
            TextColumn::Null => true,
            TextColumn::Text(array) => array.is_null(row),
            TextColumn::Plain { array, .. } | TextColumn::Uuid(array) | TextColumn::Bytes(array) => array.is_null(row),
        }
    }

    /// Appends a batch's rows as CSV: NULL is nothing, and an empty text is quoted, so that the two can be told apart.
    pub fn write_csv(&self, rows: usize, csv: &mut String) -> Result<(), ArrowError> {
        let mut value = String::new();
        for row in 0..rows {
            for (at, column) in self.0.iter().enumerate() {
                if at > 0 {
                    csv.push(',');
                }
                match column {
                    TextColumn::Text(array) if array.is_valid(row) => push_csv(array.value(row), csv),
                    TextColumn::Plain { array, .. } if may_need_quotes(array.data_type()) => {
                        value.clear();
                        if self.write(row, at, &mut value)? {
                            push_csv(&value, csv);
                        }
                    }
                    _ => {
                        self.write(row, at, csv)?;
                    }
                }
            }
            csv.push('\n');
        }
        Ok(())
    }
}

/// Appends one CSV field that is not NULL.
pub fn push_csv(value: &str, csv: &mut String) {
    if value.is_empty() || value.bytes().any(|byte| matches!(byte, b',' | b'"' | b'\n' | b'\r')) {
        csv.push('"');
        for (at, part) in value.split('"').enumerate() {
            csv.push_str(if at > 0 { "\"\"" } else { "" });
            csv.push_str(part);
        }
        csv.push('"');
    } else {
        csv.push_str(value);
    }
}

/// Numbers, booleans, dates and times never need any.
fn may_need_quotes(data_type: &DataType) -> bool {
    !(data_type.is_numeric() || data_type.is_temporal() || data_type == &DataType::Boolean)
}

/// Whether values stand to the right: numbers.
pub fn is_number(field: &Field) -> bool {
    field.data_type().is_numeric()
}

fn is_uuid(field: &Field) -> bool {
    let is = |key: &str, value: &str| field.metadata().get(key).is_some_and(|found| found == value);
    is("ARROW:extension:name", "arrow.uuid") || is("drsdb.sql_type", "UUID")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::{
        array::{ArrayRef, BinaryArray, FixedSizeBinaryArray, NullArray, TimestampMicrosecondArray},
        datatypes::Schema,
    };

    use super::*;

    #[test]
    fn values_are_written_as_sql_writes_them() {
        let uuid = Field::new("u", DataType::FixedSizeBinary(16), true)
            .with_metadata([("ARROW:extension:name".to_owned(), "arrow.uuid".to_owned())].into());
        let bytes: Vec<u8> = (0..16).map(|at| at * 17).collect();
        let timestamps = TimestampMicrosecondArray::from(vec![Some(1_700_000_000_000_001), None]);
        let columns: Vec<(Field, ArrayRef)> = vec![
            (
                uuid,
                Arc::new(
                    FixedSizeBinaryArray::try_from_sparse_iter_with_size([Some(bytes), None].into_iter(), 16).unwrap(),
                ),
            ),
            (Field::new("b", DataType::Binary, true), Arc::new(BinaryArray::from(vec![Some(&b"\x00\xff"[..]), None]))),
            (Field::new("t", timestamps.data_type().clone(), true), Arc::new(timestamps)),
            (Field::new("s", DataType::Utf8, true), Arc::new(StringArray::from(vec!["a \"b\", c", ""]))),
            (Field::new("n", DataType::Null, true), Arc::new(NullArray::new(2))),
        ];
        let (fields, arrays): (Vec<_>, Vec<_>) = columns.into_iter().unzip();
        let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).unwrap();
        let mut csv = String::new();
        TextBatch::new(&batch).unwrap().write_csv(2, &mut csv).unwrap();
        assert_eq!(
            csv,
            "00112233-4455-6677-8899-aabbccddeeff,\\x00ff,2023-11-14 22:13:20.000001,\"a \"\"b\"\", c\",\n,,,\"\",\n"
        );
    }
}
