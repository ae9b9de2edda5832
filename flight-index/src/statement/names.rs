//! Identifiers, table names and positions: small things that every statement has.

use datafusion::sql::sqlparser::{
    ast::{Ident, ObjectName, ObjectNamePart, Spanned},
    tokenizer::Location,
};
use drsdb_core::{Error, ErrorCode, Result, TableName, WireError, limits::MAX_NAME_BYTES};

/// The one catalog there is.
pub const CATALOG: &str = "drsdb";
/// The schema of a table named without one.
pub const DEFAULT_SCHEMA: &str = "public";

/// The error with fields `line` and `column`, which count from 1. Text that has no place keeps none.
pub fn positioned(error: WireError, location: Location) -> WireError {
    if location.line == 0 {
        return error;
    }
    error.with_field("line", location.line).with_field("column", location.column)
}

/// SQL's name for an identifier: lower case unless it is quoted.
pub fn identifier(ident: &Ident) -> Result<String> {
    let name = match ident.quote_style {
        Some(_) => ident.value.clone(),
        None => ident.value.to_lowercase(),
    };
    let fault = if name.is_empty() {
        "is empty"
    } else if name.len() > MAX_NAME_BYTES {
        "is longer than 255 bytes"
    } else if name.chars().any(char::is_control) {
        "has a control character"
    } else {
        return Ok(name);
    };
    let error = WireError::new(ErrorCode::InvalidArgument, format!("the name {ident} {fault}"));
    Err(positioned(error, ident.span.start).into())
}

/// The parts of a dotted name.
fn parts(name: &ObjectName) -> Result<Vec<String>> {
    let part = |part: &ObjectNamePart| match part.as_ident() {
        Some(ident) => identifier(ident),
        None => Err(bad_name(name, "is not a name")),
    };
    name.0.iter().map(part).collect()
}

fn bad_name(name: &ObjectName, fault: &str) -> Error {
    let error = WireError::new(ErrorCode::InvalidArgument, format!("{name} {fault}"))
        .with_hint("write table, schema.table or drsdb.schema.table");
    positioned(error, name.span().start).into()
}

/// `table`, `schema.table` or `drsdb.schema.table`.
pub fn table_name(name: &ObjectName) -> Result<TableName> {
    let mut parts = parts(name)?;
    if parts.len() == 3 {
        let catalog = parts.remove(0);
        if catalog != CATALOG {
            return Err(bad_name(name, "names a catalog that does not exist; the only one is drsdb"));
        }
    }
    match <[String; 2]>::try_from(parts) {
        Ok([schema, table]) => Ok(TableName::new(schema, table)),
        Err(mut parts) if parts.len() == 1 => Ok(TableName::new(DEFAULT_SCHEMA, parts.remove(0))),
        Err(_) => Err(bad_name(name, "has too many parts")),
    }
}

/// `schema` or `drsdb.schema`.
pub fn schema_name(name: &ObjectName) -> Result<String> {
    let mut parts = parts(name)?;
    if parts.len() == 2 && parts[0] == CATALOG {
        parts.remove(0);
    }
    match <[String; 1]>::try_from(parts) {
        Ok([schema]) => Ok(schema),
        Err(_) => Err(bad_name(name, "is not the name of a schema")),
    }
}

/// A name of one part: a column, a setting.
pub fn simple_name(name: &ObjectName) -> Result<String> {
    match <[String; 1]>::try_from(parts(name)?) {
        Ok([name]) => Ok(name),
        Err(_) => Err(bad_name(name, "must be one name without a dot")),
    }
}
