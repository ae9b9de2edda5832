//! What rows read as that were written before a column was added: [`Column::initial`], and the value it stands for.
//!
//! The text is a SQL literal: `NULL`; a number, TRUE or FALSE; or a text in single quotes, in which a quote is doubled, as
//! in `'it''s'`. The type is the column's, whatever the literal looks like, and the text is read as a cast from text to it:
//! `'2024-02-29'` for a DATE, `'1 day 2 hours'` for an INTERVAL, `'\x00ff'` for a BYTEA, which may also be written X'00ff'.
//! The type's name may stand before the quotes. [`initial_literal`] writes what [`Column::initial_value`] reads.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, BinaryViewArray, FixedSizeBinaryArray, StringArray, new_null_array},
    compute::{CastOptions, cast_with_options},
    util::display::{ArrayFormatter, FormatOptions},
};
use drsdb_proto::{ErrorCode, Ulid, WireError};

use crate::{Column, Error, Result, SqlType};

/// Words that may stand before a quoted literal. They say nothing that the column does not say.
const PREFIXES: [&str; 10] =
    ["", "X", "DATE", "TIME", "TIMESTAMP", "TIMESTAMPTZ", "TIMESTAMP WITH TIME ZONE", "INTERVAL", "UUID", "ULID"];

impl Column {
    /// What [`Column::initial`] stands for: an array of length 1 of the column's stored type.
    pub fn initial_value(&self) -> Result<ArrayRef> {
        let data_type = self.sql_type.to_arrow();
        let Some(text) = self.initial.as_deref().and_then(unquote) else {
            return Ok(new_null_array(&data_type, 1));
        };
        let bad = || -> Error {
            let message = format!("the initial value of column {} is not a {}: {text}", self.name, self.sql_type);
            WireError::new(ErrorCode::InvalidValue, message).with_hint("give it in the form that CAST takes").into()
        };
        Ok(match self.sql_type {
            SqlType::Bytea => {
                let bytes = match text.strip_prefix("\\x") {
                    Some(digits) => parse_hex(digits).ok_or_else(bad)?,
                    None => text.into_bytes(),
                };
                Arc::new(BinaryViewArray::from_iter_values([bytes]))
            }
            SqlType::Uuid => {
                let bytes = uuid::Uuid::parse_str(&text).map_err(|_| bad())?.into_bytes();
                Arc::new(FixedSizeBinaryArray::try_from_iter([bytes].into_iter())?)
            }
            SqlType::Ulid => {
                let bytes = Ulid::from_string(&text).map_err(|_| bad())?.to_bytes();
                Arc::new(FixedSizeBinaryArray::try_from_iter([bytes].into_iter())?)
            }
            _ => {
                let text: ArrayRef = Arc::new(StringArray::from(vec![text.as_str()]));
                let options = CastOptions { safe: false, format_options: FormatOptions::default() };
                cast_with_options(&text, &data_type, &options).map_err(|_| bad())?
            }
        })
    }
}

/// The literal for a value of a column of `sql_type`, given as an array of length 1 of its stored type.
pub fn initial_literal(sql_type: SqlType, value: &ArrayRef) -> Result<String> {
    if value.is_null(0) {
        return Ok("NULL".to_owned());
    }
    let text = match sql_type {
        SqlType::Bytea => {
            let digits = value.as_binary_view().value(0).iter().map(|byte| format!("{byte:02x}"));
            "\\x".to_owned() + &digits.collect::<String>()
        }
        SqlType::Ulid => {
            let bytes = <[u8; 16]>::try_from(value.as_fixed_size_binary().value(0));
            Ulid::from_bytes(bytes.map_err(|_| Error::internal("a ULID that is not of 16 bytes"))?).to_string()
        }
        _ => ArrayFormatter::try_new(value, &FormatOptions::default())?.value(0).to_string(),
    };
    let literal = format!("'{}'", text.replace('\'', "''"));
    // Some values have no text form, dates beyond the calendar among them.
    let column = Column { initial: Some(literal.clone()), ..Column::new("initial", sql_type, false) };
    match column.initial_value() {
        Ok(read) if read.to_data() == value.slice(0, 1).to_data() => Ok(literal),
        _ => {
            let message = format!("{text} cannot be the initial value of a {sql_type}");
            Err(WireError::new(ErrorCode::Unsupported, message)
                .with_hint("add the column without a default, then UPDATE the rows")
                .into())
        }
    }
}

/// The text inside a literal; none for NULL.
fn unquote(literal: &str) -> Option<String> {
    let literal = literal.trim();
    if literal.eq_ignore_ascii_case("NULL") {
        return None;
    }
    if let Some((prefix, quoted)) = literal.split_once('\'')
        && PREFIXES.contains(&prefix.trim().to_ascii_uppercase().as_str())
        && let Some(quoted) = quoted.strip_suffix('\'')
    {
        let text = quoted.replace("''", "'");
        return Some(if prefix.trim().eq_ignore_ascii_case("X") { "\\x".to_owned() + &text } else { text });
    }
    Some(literal.to_owned())
}

fn parse_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text.chars().map(|digit| digit.to_digit(16).map(|digit| digit as u8)).collect();
    let digits = digits.filter(|digits| digits.len().is_multiple_of(2))?;
    Some(digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(sql_type: SqlType, literal: &str) -> Result<ArrayRef> {
        Column { initial: Some(literal.to_owned()), ..Column::new("c", sql_type, false) }.initial_value()
    }

    #[test]
    fn literals_survive_a_round_trip() {
        let literals = [
            (SqlType::Boolean, "TRUE"),
            (SqlType::SmallInt, "-7"),
            (SqlType::BigInt, "9223372036854775807"),
            (SqlType::Real, "0.1"),
            (SqlType::Double, "-1e300"),
            (SqlType::Decimal { precision: 10, scale: 2 }, "12.30"),
            (SqlType::Text, "'it''s'"),
            (SqlType::Text, "''"),
            (SqlType::Text, "'NULL'"),
            (SqlType::Text, "'''quoted'''"),
            (SqlType::Varchar { length: Some(3) }, "'abc'"),
            (SqlType::Date, "DATE '2024-02-29'"),
            (SqlType::Time, "'12:34:56.000001'"),
            (SqlType::Timestamp, "TIMESTAMP '2024-02-29 12:00:00.5'"),
            (SqlType::TimestampTz, "'2024-02-29 12:00:00+02:00'"),
            (SqlType::Interval, "INTERVAL '1 month 2 days 3.5 seconds'"),
            (SqlType::Bytea, "X'00ff'"),
            (SqlType::Bytea, "'\\x00ff'"),
            (SqlType::Bytea, "'plain'"),
            (SqlType::Bytea, "''"),
            (SqlType::Uuid, "'00000000-0000-0000-0000-000000000001'"),
            (SqlType::Ulid, "'01ARZ3NDEKTSV4RRFFQ69G5FAV'"),
        ];
        for (sql_type, literal) in literals {
            let first = value(sql_type, literal).unwrap();
            assert_eq!((first.len(), first.data_type()), (1, &sql_type.to_arrow()), "{sql_type} {literal}");
            assert_eq!(first.null_count(), 0, "{sql_type} {literal}");
            let written = initial_literal(sql_type, &first).unwrap();
            assert_eq!(&value(sql_type, &written).unwrap(), &first, "{sql_type} {literal} {written}");
        }
        assert_eq!(value(SqlType::Text, "'''quoted'''").unwrap().as_string_view().value(0), "'quoted'");
    }

    #[test]
    fn nothing_and_null_are_null() {
        assert!(value(SqlType::Date, "null").unwrap().is_null(0));
        assert!(Column::new("c", SqlType::Ulid, false).initial_value().unwrap().is_null(0));
        assert_eq!(initial_literal(SqlType::Date, &value(SqlType::Date, "NULL").unwrap()).unwrap(), "NULL");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for (sql_type, literal) in [
            (SqlType::SmallInt, "70000"),
            (SqlType::Date, "'tomorrow'"),
            (SqlType::Bytea, "X'abc'"),
            (SqlType::Ulid, "1"),
        ] {
            assert_eq!(value(sql_type, literal).unwrap_err().code(), ErrorCode::InvalidValue, "{sql_type}");
        }
    }
}
