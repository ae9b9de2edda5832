//! `\d`: what tables there are, and what one of them is.

use std::io::{self, Write};

use drsdb_client::{Client, Error, ForeignKeyInfo, TableInfo};

use super::output::TablePrinter;

/// All tables.
pub async fn list(client: &Client, out: &mut impl Write) -> Result<io::Result<()>, Error> {
    let tables = client.tables().await?;
    if tables.is_empty() {
        return Ok(writeln!(out, "There are no tables."));
    }
    let mut printer = TablePrinter::of_texts(&["schema", "name", "kind", "columns"]);
    for table in tables {
        let columns = table.columns.fields().len().to_string();
        printer.add_texts(vec![table.schema, table.name, table.kind.to_lowercase(), columns]);
    }
    Ok(printer.finish(out))
}

/// One table's columns and keys.
pub async fn describe(client: &Client, name: &str, out: &mut impl Write) -> Result<io::Result<()>, Error> {
    let table = client.table(name).await?;
    let primary_key = client.primary_key(&table).await?;
    let foreign_keys = client.foreign_keys(&table).await?;
    Ok(print(&table, &primary_key, &foreign_keys, out))
}

fn print(
    table: &TableInfo,
    primary_key: &[String],
    foreign_keys: &[ForeignKeyInfo],
    out: &mut impl Write,
) -> io::Result<()> {
    writeln!(out, "{} {}.{}", table.kind.to_lowercase(), table.schema, table.name)?;
    let mut printer = TablePrinter::of_texts(&["column", "type", "null"]);
    for (position, field) in table.columns.fields().iter().enumerate() {
        let null = if field.is_nullable() { "" } else { "not null" };
        printer.add_texts(vec![field.name().clone(), table.sql_type(position), null.to_owned()]);
    }
    printer.finish(out)?;
    if !primary_key.is_empty() {
        writeln!(out, "primary key ({})", primary_key.join(", "))?;
    }
    for key in foreign_keys {
        let columns = key.columns.join(", ");
        let (schema, parent) = (&key.parent_schema, &key.parent_table);
        let parent_columns = key.parent_columns.join(", ");
        writeln!(out, "foreign key {} ({columns}) references {schema}.{parent} ({parent_columns})", key.name)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::datatypes::{DataType, Field, Schema};

    use super::*;

    #[test]
    fn a_table_is_described() {
        let name = Field::new("r_name", DataType::Utf8, true)
            .with_metadata([("drsdb.sql_type".to_owned(), "VARCHAR(25)".to_owned())].into());
        let table = TableInfo {
            schema: "public".into(),
            name: "region".into(),
            kind: "TABLE".into(),
            columns: Arc::new(Schema::new(vec![Field::new("r_key", DataType::Int64, false), name])),
        };
        let key = ForeignKeyInfo {
            name: "region_fk".into(),
            columns: vec!["r_key".into()],
            parent_schema: "public".into(),
            parent_table: "world".into(),
            parent_columns: vec!["w_key".into()],
        };
        let mut out = Vec::new();
        print(&table, &["r_key".to_owned()], &[key], &mut out).unwrap();
        let expected = "\
table public.region
| column | type        | null     |
|--------|-------------|----------|
| r_key  | Int64       | not null |
| r_name | VARCHAR(25) |          |
primary key (r_key)
foreign key region_fk (r_key) references public.world (w_key)
";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
