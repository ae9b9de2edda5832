//! Which of a file's columns goes to which of the table's, by name.

use std::path::Path;

use arrow::datatypes::Schema;
use drsdb_client::{Error, ErrorCode, WireError};

/// The position of the column called `name`: exactly, else in lower case, as unquoted SQL names are.
pub fn position(schema: &Schema, name: &str) -> Option<usize> {
    let exact = schema.index_of(name).ok();
    exact.or_else(|| schema.index_of(&name.trim().to_lowercase()).ok())
}

/// For each column that the file has, the table's column, or none for one that is not to be loaded. `wanted` are the
/// columns that the user named; without them every column of the file must be one of the table's.
pub fn match_by_name(
    file: &Path,
    names: &[String],
    table: &Schema,
    wanted: Option<&[String]>,
) -> Result<Vec<Option<usize>>, Error> {
    let wanted = wanted.map(|names| positions(table, names)).transpose()?;
    let mut matched = Vec::with_capacity(names.len());
    for name in names {
        let found = position(table, name);
        match (&wanted, found) {
            (Some(wanted), found) => matched.push(found.filter(|position| wanted.contains(position))),
            (None, Some(position)) => matched.push(Some(position)),
            (None, None) => {
                let error = unknown_column(name, table);
                let message = format!("{}: {}", file.display(), error.message);
                return Err(WireError { message, ..error }.with_field("file", file.display()).into());
            }
        }
    }
    for (at, position) in matched.iter().enumerate() {
        if position.is_some() && matched[..at].contains(position) {
            let message = format!("{}: column {} is there twice", file.display(), names[at]);
            return Err(WireError::new(ErrorCode::InvalidArgument, message).with_field("file", file.display()).into());
        }
    }
    if let Some(missing) = wanted.iter().flatten().find(|&&position| !matched.contains(&Some(position))) {
        let message = format!("{} has no column {}", file.display(), table.field(*missing).name());
        let error = WireError::new(ErrorCode::NotFound, message).with_hint(format!("it has {}", names.join(", ")));
        return Err(error.with_field("file", file.display()).into());
    }
    Ok(matched)
}

/// The positions of the table's columns that the user named.
pub fn positions(table: &Schema, names: &[String]) -> Result<Vec<usize>, Error> {
    names.iter().map(|name| position(table, name).ok_or_else(|| unknown_column(name, table).into())).collect()
}

fn unknown_column(name: &str, table: &Schema) -> WireError {
    let names = table.fields().iter().map(|field| field.name().as_str());
    let hint = match drsdb_core::nearest_name(name, names) {
        Some(nearest) => format!("did you mean {nearest}? To leave columns of the file out, name those to load"),
        None => "to leave columns of the file out, name those to load".to_owned(),
    };
    WireError::new(ErrorCode::NotFound, format!("the table has no column {name}")).with_hint(hint)
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{DataType, Field};

    use super::*;

    fn table() -> Schema {
        Schema::new(["id", "name", "Age"].map(|name| Field::new(name, DataType::Utf8, true)).to_vec())
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| name.to_string()).collect()
    }

    #[test]
    fn columns_match_by_name_in_any_order() {
        let file = Path::new("f");
        let matched = match_by_name(file, &names(&["Age", "ID"]), &table(), None).unwrap();
        assert_eq!(matched, [Some(2), Some(0)]);
        let wanted = names(&["name"]);
        let matched = match_by_name(file, &names(&["extra", "name", "id"]), &table(), Some(&wanted)).unwrap();
        assert_eq!(matched, [None, Some(1), None]);
    }

    #[test]
    fn a_column_that_does_not_fit_is_named() {
        let file = Path::new("f.csv");
        let error = match_by_name(file, &names(&["id", "nam"]), &table(), None).unwrap_err();
        assert!(error.message().contains("f.csv") && error.hint().contains("did you mean name?"), "{error}");
        let error = match_by_name(file, &names(&["id", "ID"]), &table(), None).unwrap_err();
        assert!(error.message().contains("twice"), "{error}");
        let error = match_by_name(file, &names(&["id"]), &table(), Some(&names(&["name"]))).unwrap_err();
        assert!(error.message().contains("has no column name"), "{error}");
        let error = match_by_name(file, &names(&["id"]), &table(), Some(&names(&["nam"]))).unwrap_err();
        assert_eq!(error.code(), ErrorCode::NotFound);
    }
}
