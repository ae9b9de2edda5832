//! CSV records to batches of a table's types. Whatever does not fit names file, line, column and rule.
//!
//! Fields are gathered as text, column by column, and cast at once; only where a cast fails are the rows looked at one
//! by one, to find the first that is to blame.

use std::{io::Read as Input, path::Path, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, BinaryArray, BinaryBuilder, FixedSizeBinaryBuilder, RecordBatch, StringArray},
    compute::{CastOptions, cast_with_options},
    datatypes::{DataType, FieldRef, Schema, SchemaRef},
    util::display::FormatOptions,
};
use drsdb_client::{Error, ErrorCode, TableInfo, WireError};
use drsdb_proto::ids::Ulid;

use super::{
    Header, Read, columns,
    csv_records::{RecordError, Records},
};

/// A batch ends at this many bytes of text, however few rows they are.
const BATCH_BYTES: usize = 8 << 20;

/// A value that an error quotes is cut after so many characters.
const QUOTED_CHARACTERS: usize = 60;

/// How a CSV file is written.
#[derive(Debug, Clone)]
pub struct Dialect {
    pub delimiter: u8,
    /// The unquoted text that means NULL.
    pub null: String,
    pub header: Header,
}

/// Reads batches.
pub struct CsvBatches<R> {
    file: String,
    records: Records<R>,
    null: Vec<u8>,
    /// For each field of a record, its column; none: not loaded.
    fields: Vec<Option<usize>>,
    columns: Vec<Column>,
    schema: SchemaRef,
    batch_rows: usize,
    /// The line of each row of the batch under way.
    lines: Vec<u64>,
    text_bytes: usize,
    consumed: u64,
    ended: bool,
}

/// One column of the batch under way.
struct Column {
    field: FieldRef,
    sql_type: String,
    values: BinaryBuilder,
}

impl<R: Input> CsvBatches<R> {
    /// Reads the header, if there is one, and matches columns. `wanted`: the columns that the user named.
    pub fn open(
        file: &str,
        input: R,
        table: &TableInfo,
        dialect: &Dialect,
        wanted: Option<&[String]>,
    ) -> Result<Self, Error> {
        let mut records = Records::new(input, dialect.delimiter);
        let names = first_record(&mut records, file)?;
        let has_header = match dialect.header {
            _ if names.is_empty() => false,
            Header::Yes => true,
            Header::No => false,
            Header::Auto => is_header(&names, &table.columns, wanted),
        };
        let fields = if has_header {
            columns::match_by_name(Path::new(file), &names, &table.columns, wanted)?
        } else {
            if !names.is_empty() {
                records.unread();
            }
            let all = || (0..table.columns.fields().len()).collect();
            let positions = wanted.map(|names| columns::positions(&table.columns, names)).transpose()?;
            positions.unwrap_or_else(all).into_iter().map(Some).collect()
        };
        // From here on a field knows its column among those that are loaded, in the file's order.
        let mut columns = Vec::new();
        let fields = fields.into_iter().map(|position: Option<usize>| {
            position.map(|position| {
                let field = table.columns.fields()[position].clone();
                columns.push(Column { field, sql_type: table.sql_type(position), values: BinaryBuilder::new() });
                columns.len() - 1
            })
        });
        let fields: Vec<Option<usize>> = fields.collect();
        let schema = Schema::new(columns.iter().map(|column| column.field.clone()).collect::<Vec<_>>());
        Ok(CsvBatches {
            file: file.to_owned(),
            consumed: records.consumed(),
            records,
            null: dialect.null.clone().into_bytes(),
            fields,
            columns,
            schema: Arc::new(schema),
            batch_rows: usize::MAX,
            lines: Vec::new(),
            text_bytes: 0,
            ended: false,
        })
    }

    /// The same with batches of at most so many rows.
    pub fn with_batch_rows(mut self, rows: usize) -> Self {
        self.batch_rows = rows;
        self
    }

    /// The columns of every batch: those of the table that the file has.
    pub fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn read_batch(&mut self) -> Result<Option<Read>, Error> {
        while self.lines.len() < self.batch_rows && self.text_bytes < BATCH_BYTES {
            match self.read_row() {
                Ok(true) => {}
                Ok(false) => break,
                // An earlier row that does not fit its types comes first.
                Err(error) => return Err(self.finish_batch().err().unwrap_or(error)),
            }
        }
        let read = self.finish_batch()?;
        Ok((read.batch.num_rows() > 0).then_some(read))
    }

    /// Adds one row; `false` at the end.
    fn read_row(&mut self) -> Result<bool, Error> {
        loop {
            match self.records.next_record() {
                Ok(None) => return Ok(false),
                // A blank line is a row only where one empty field is one.
                Ok(Some(record)) if record.is_blank() && self.fields.len() > 1 => {}
                Ok(Some(_)) => break,
                Err(error) => return Err(record_error(&self.file, error, &self.fields, &self.columns)),
            }
        }
        let record = self.records.last_record();
        // Some programs, TPC's generators among them, end every field with the delimiter, the last one included.
        let ends_with_delimiter =
            record.field_count() == self.fields.len() + 1 && record.is_empty_field(self.fields.len());
        if record.field_count() != self.fields.len() && !ends_with_delimiter {
            let (found, expected, line) = (record.field_count(), self.fields.len(), record.line);
            let rule = format!("a line has {expected} fields, this one has {found}");
            return Err(line_error(&self.file, line, None, &rule).into());
        }
        for (position, column) in self.fields.iter().enumerate() {
            let Some(column) = column else { continue };
            let field = record.field(position);
            let values = &mut self.columns[*column].values;
            if !field.quoted && *field.bytes == *self.null {
                values.append_null();
            } else {
                self.text_bytes += field.bytes.len();
                values.append_value(&field.bytes);
            }
        }
        self.lines.push(record.line);
        Ok(true)
    }

    fn finish_batch(&mut self) -> Result<Read, Error> {
        let lines = std::mem::take(&mut self.lines);
        self.text_bytes = 0;
        let mut arrays = Vec::with_capacity(self.columns.len());
        let mut first_misfit: Option<(usize, WireError)> = None;
        for column in &mut self.columns {
            let text = column.values.finish();
            match column.typed(text) {
                Ok(array) => arrays.push(array),
                Err(misfit) => {
                    if first_misfit.as_ref().is_none_or(|(row, _)| misfit.row < *row) {
                        let name = column.field.name();
                        let mut error = line_error(&self.file, lines[misfit.row], Some(name), &misfit.rule);
                        error.code = misfit.code;
                        error.hint = misfit.hint.to_owned();
                        first_misfit = Some((misfit.row, error));
                    }
                }
            }
        }
        if let Some((_, error)) = first_misfit {
            return Err(error.into());
        }
        let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(lines.len()));
        let batch = RecordBatch::try_new_with_options(self.schema.clone(), arrays, &options)?;
        let before = std::mem::replace(&mut self.consumed, self.records.consumed());
        Ok(Read { batch, bytes: self.consumed.saturating_sub(before) })
    }
}

impl<R: Input> Iterator for CsvBatches<R> {
    type Item = Result<Read, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.read_batch().transpose();
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}

/// A value that does not fit its column.
struct Misfit {
    row: usize,
    code: ErrorCode,
    rule: String,
    hint: &'static str,
}

impl Column {
    fn typed(&self, text: BinaryArray) -> Result<ArrayRef, Misfit> {
        if let (false, Some(nulls)) = (self.field.is_nullable(), text.nulls())
            && let Some(row) = (0..text.len()).find(|&row| nulls.is_null(row))
        {
            let hint = "give it a value; an empty text is written as \"\"";
            let rule = "NULL in a column that is NOT NULL".to_owned();
            return Err(Misfit { row, code: ErrorCode::ConstraintViolation, rule, hint });
        }
        let data_type = self.field.data_type();
        match data_type {
            DataType::Binary => return self.each(&text, decode_bytes).map(|array| Arc::new(array) as ArrayRef),
            DataType::FixedSizeBinary(16) => return self.uuids(&text),
            _ => {}
        }
        let text = StringArray::try_from_binary(text.clone()).map_err(|_| {
            let row = first_row(&text, |value| std::str::from_utf8(value).is_err());
            Misfit {
                row,
                code: ErrorCode::InvalidValue,
                rule: "text is UTF-8".to_owned(),
                hint: "convert the file to UTF-8",
            }
        })?;
        if data_type == &DataType::Utf8 {
            self.check_text(&text)?;
            return Ok(Arc::new(text));
        }
        let options = CastOptions { safe: false, format_options: FormatOptions::default() };
        cast_with_options(&text, data_type, &options).map_err(|error| {
            // Cast again, with NULL for what cannot be cast: the first new NULL is to blame.
            let lenient = cast_with_options(&text, data_type, &CastOptions { safe: true, ..options });
            let row =
                lenient.ok().and_then(|cast| (0..text.len()).find(|&row| cast.is_null(row) && text.is_valid(row)));
            match row {
                Some(row) => self.misfit(row, text.value(row)),
                None => Misfit { row: 0, code: ErrorCode::InvalidValue, rule: error.to_string(), hint: "" },
            }
        })
    }

    fn misfit(&self, row: usize, value: &str) -> Misfit {
        let mut quoted: String = value.chars().take(QUOTED_CHARACTERS).collect();
        if quoted.len() < value.len() {
            quoted.push_str("...");
        }
        let hint = match self.field.data_type() {
            DataType::Boolean => "write true or false",
            DataType::Date32 => "write a date as 2024-12-31",
            DataType::Time64(_) => "write a time as 23:59:59.5",
            DataType::Timestamp(_, None) => "write a timestamp as 2024-12-31 23:59:59",
            DataType::Timestamp(_, Some(_)) => "write a timestamp as 2024-12-31 23:59:59+00:00",
            DataType::Interval(_) => "write an interval as 1 month 2 days 3 hours",
            DataType::FixedSizeBinary(_) => "write a UUID as 36 characters, digits in groups of 8-4-4-4-12",
            DataType::Binary => "write bytes as \\x and hexadecimal digits",
            _ => "",
        };
        Misfit { row, code: ErrorCode::InvalidValue, rule: format!("{quoted:?} is not {}", self.sql_type), hint }
    }

    /// CHAR(n), VARCHAR(n) and ULID; every other text fits.
    fn check_text(&self, text: &StringArray) -> Result<(), Misfit> {
        if self.sql_type == "ULID" {
            return match (0..text.len()).find(|&row| text.is_valid(row) && Ulid::from_string(text.value(row)).is_err())
            {
                Some(row) => Err(self.misfit(row, text.value(row))),
                None => Ok(()),
            };
        }
        let Some(most) = characters_at_most(&self.sql_type) else { return Ok(()) };
        // No more bytes than that means no more characters.
        let too_long = |value: &str| value.len() > most && value.chars().count() > most;
        match (0..text.len()).find(|&row| text.is_valid(row) && too_long(text.value(row))) {
            None => Ok(()),
            Some(row) => {
                let length = text.value(row).chars().count();
                let rule = format!("{length} characters are more than {} holds", self.sql_type);
                Err(Misfit { row, code: ErrorCode::InvalidValue, rule, hint: "" })
            }
        }
    }

    fn uuids(&self, text: &BinaryArray) -> Result<ArrayRef, Misfit> {
        let mut uuids = FixedSizeBinaryBuilder::with_capacity(text.len(), 16);
        for row in 0..text.len() {
            if text.is_null(row) {
                uuids.append_null();
                continue;
            }
            let uuid = decode_uuid(text.value(row));
            let uuid = uuid.ok_or_else(|| self.misfit(row, &String::from_utf8_lossy(text.value(row))))?;
            uuids.append_value(uuid).expect("a UUID has 16 bytes");
        }
        Ok(Arc::new(uuids.finish()))
    }

    fn each(&self, text: &BinaryArray, decode: impl Fn(&[u8]) -> Option<Vec<u8>>) -> Result<BinaryArray, Misfit> {
        let mut decoded = BinaryBuilder::with_capacity(text.len(), text.value_data().len());
        for row in 0..text.len() {
            if text.is_null(row) {
                decoded.append_null();
                continue;
            }
            let value = decode(text.value(row));
            decoded.append_value(value.ok_or_else(|| self.misfit(row, &String::from_utf8_lossy(text.value(row))))?);
        }
        Ok(decoded.finish())
    }
}

fn first_row(values: &BinaryArray, blamed: impl Fn(&[u8]) -> bool) -> usize {
    (0..values.len()).find(|&row| values.is_valid(row) && blamed(values.value(row))).unwrap_or(0)
}

/// The n of `CHAR(n)` and `VARCHAR(n)`.
fn characters_at_most(sql_type: &str) -> Option<usize> {
    let rest = sql_type.strip_prefix("VARCHAR(").or_else(|| sql_type.strip_prefix("CHAR("))?;
    rest.strip_suffix(')')?.parse().ok()
}

/// `\x` and hexadecimal digits; anything else is taken byte by byte.
fn decode_bytes(text: &[u8]) -> Option<Vec<u8>> {
    match text.strip_prefix(b"\\x") {
        Some(digits) => decode_hex(digits),
        None => Some(text.to_vec()),
    }
}

fn decode_uuid(text: &[u8]) -> Option<Vec<u8>> {
    const HYPHENS: [usize; 4] = [8, 13, 18, 23];
    let digits: Vec<u8> = match text.len() {
        32 => text.to_vec(),
        36 if HYPHENS.iter().all(|&at| text[at] == b'-') => {
            text.iter().enumerate().filter(|(at, _)| !HYPHENS.contains(at)).map(|(_, &digit)| digit).collect()
        }
        _ => return None,
    };
    decode_hex(&digits)
}

fn decode_hex(digits: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    digits.chunks_exact(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

/// The fields of the first line that has any; none for an empty file.
fn first_record<R: Input>(records: &mut Records<R>, file: &str) -> Result<Vec<String>, Error> {
    match records.next_record() {
        Ok(None) => Ok(Vec::new()),
        Ok(Some(record)) => Ok((0..record.field_count())
            .map(|at| String::from_utf8_lossy(&record.field(at).bytes).into_owned())
            .collect()),
        Err(error) => Err(record_error(file, error, &[], &[])),
    }
}

/// Every field is a column's name, each once; or, where columns were named, each of these is there.
fn is_header(names: &[String], table: &Schema, wanted: Option<&[String]>) -> bool {
    let positions: Vec<Option<usize>> = names.iter().map(|name| columns::position(table, name)).collect();
    match wanted {
        Some(wanted) => wanted
            .iter()
            .all(|name| columns::position(table, name).is_some_and(|position| positions.contains(&Some(position)))),
        None => {
            let distinct = positions.iter().enumerate().all(|(at, position)| !positions[..at].contains(position));
            !names.is_empty() && distinct && positions.iter().all(Option::is_some)
        }
    }
}

fn line_error(file: &str, line: u64, column: Option<&str>, rule: &str) -> WireError {
    let place = column.map_or(String::new(), |column| format!(", column {column}"));
    let error = WireError::new(ErrorCode::InvalidValue, format!("{file}, line {line}{place}: {rule}"))
        .with_field("file", file)
        .with_field("line", line)
        .with_field("rule", rule);
    match column {
        Some(column) => error.with_field("column", column),
        None => error,
    }
}

fn record_error(file: &str, error: RecordError, fields: &[Option<usize>], columns: &[Column]) -> Error {
    match error {
        RecordError::Io(error) => super::unreadable(Path::new(file), &error),
        RecordError::Broken { line, field, rule } => {
            let column = fields.get(field).copied().flatten().map(|column| columns[column].field.name().clone());
            let column = column.unwrap_or_else(|| (field + 1).to_string());
            line_error(file, line, Some(&column), rule).into()
        }
    }
}

#[cfg(test)]
#[path = "csv_batches_tests.rs"]
mod tests;
