//! `\d` and `\dv`: what tables and views there are, and what one of them is.
//!
//! Columns and keys come from Flight SQL's metadata. The rest is asked of `information_schema` and of drsdb's system
//! tables, and what a server does not know of is left out.

use std::io::{self, Write};

use arrow::datatypes::SchemaRef;
use drsdb_client::{Client, Error, ErrorCode, ForeignKeyInfo, TableInfo};

use super::{output::TablePrinter, text::TextBatch};

/// What `drsdb.tables` says of a table that is worth a line, and how that is called.
const PLACEMENT: [(&str, &str); 8] = [
    ("engine", "engine"),
    ("shards", "shards"),
    ("shard_key", "shard key"),
    ("cluster_key", "cluster key"),
    ("replicas", "replicas"),
    ("rows", "rows"),
    ("bytes", "bytes"),
    ("comment", "comment"),
];

/// All tables and views.
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

/// All views.
pub async fn list_views(client: &Client, out: &mut impl Write) -> Result<io::Result<()>, Error> {
    let mut printer = TablePrinter::of_texts(&["schema", "name", "columns"]);
    let mut none = true;
    for view in client.tables().await?.into_iter().filter(is_view) {
        none = false;
        printer.add_texts(vec![view.schema, view.name, view.columns.fields().len().to_string()]);
    }
    Ok(if none { writeln!(out, "There are no views.") } else { printer.finish(out) })
}

/// One table's columns, keys, constraints and placement, or a view's columns and definition.
pub async fn describe(client: &Client, name: &str, out: &mut impl Write) -> Result<io::Result<()>, Error> {
    let table = client.table(name).await?;
    let description = Description {
        primary_key: client.primary_key(&table).await?,
        foreign_keys: client.foreign_keys(&table).await?,
        extras: Extras::of(client, &table).await?,
        table,
    };
    Ok(description.print(out))
}

fn is_view(table: &TableInfo) -> bool {
    table.kind.eq_ignore_ascii_case("view")
}

struct Description {
    table: TableInfo,
    primary_key: Vec<String>,
    foreign_keys: Vec<ForeignKeyInfo>,
    extras: Extras,
}

/// What only some servers know.
#[derive(Default)]
struct Extras {
    /// Column and expression.
    defaults: Vec<(String, String)>,
    /// UNIQUE and CHECK, each as SQL has it.
    constraints: Vec<String>,
    /// Of a foreign key by name: what follows its columns.
    actions: Vec<(String, String)>,
    placement: Vec<String>,
    view: Option<String>,
}

impl Extras {
    async fn of(client: &Client, table: &TableInfo) -> Result<Self, Error> {
        // An open transaction has nothing to do with what fails here.
        let client = &client.new_session();
        let of_table = format!("table_schema = {} AND table_name = {}", literal(&table.schema), literal(&table.name));
        let of_constraint = format!("constraint_schema = {}", literal(&table.schema));
        if is_view(table) {
            let sql = format!("SELECT view_definition FROM information_schema.views WHERE {of_table}");
            let view = rows(client, &sql).await?.into_iter().flatten().next();
            return Ok(Extras { view: view.filter(|text| !text.is_empty()), ..Extras::default() });
        }
        let sql = format!("SELECT column_name, column_default FROM information_schema.columns WHERE {of_table}");
        let defaults = pairs(rows(client, &sql).await?).filter(|(_, default)| !default.is_empty()).collect();
        let sql = format!(
            "SELECT constraint_name, constraint_type FROM information_schema.table_constraints \
             WHERE {of_table} ORDER BY constraint_name"
        );
        let named: Vec<(String, String)> = pairs(rows(client, &sql).await?).collect();
        let mut constraints = Vec::new();
        for (name, kind) in &named {
            let of_this = format!("{of_constraint} AND constraint_name = {}", literal(name));
            match kind.as_str() {
                "UNIQUE" => {
                    let sql = format!(
                        "SELECT column_name FROM information_schema.key_column_usage WHERE {of_this} AND {of_table} \
                         ORDER BY ordinal_position"
                    );
                    let columns: Vec<String> = rows(client, &sql).await?.into_iter().flatten().collect();
                    constraints.push(format!("unique {name} ({})", columns.join(", ")));
                }
                "CHECK" => {
                    let sql = format!("SELECT check_clause FROM information_schema.check_constraints WHERE {of_this}");
                    let clause = rows(client, &sql).await?.into_iter().flatten().next().unwrap_or_default();
                    constraints.push(format!("check {name} {}", in_parentheses(&clause)));
                }
                _ => {}
            }
        }
        let mut actions = Vec::new();
        if named.iter().any(|(_, kind)| kind == "FOREIGN KEY") {
            let sql = format!(
                "SELECT constraint_name, update_rule, delete_rule FROM information_schema.referential_constraints \
                 WHERE {of_constraint}"
            );
            for row in rows(client, &sql).await? {
                let [name, update, delete] = row.as_slice() else { continue };
                let rule = |when: &str, rule: &str| match rule {
                    "" | "NO ACTION" => String::new(),
                    rule => format!(" on {when} {}", rule.to_lowercase()),
                };
                actions.push((name.clone(), rule("update", update) + &rule("delete", delete)));
            }
        }
        Ok(Extras { defaults, constraints, actions, placement: placement(client, table).await?, view: None })
    }
}

impl Description {
    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        let Description { table, extras, .. } = self;
        writeln!(out, "{} {}.{}", table.kind.to_lowercase(), table.schema, table.name)?;
        let mut names = vec!["column", "type", "null"];
        if !extras.defaults.is_empty() {
            names.push("default");
        }
        let mut printer = TablePrinter::of_texts(&names);
        for (position, field) in table.columns.fields().iter().enumerate() {
            let null = if field.is_nullable() { "" } else { "not null" };
            let mut row = vec![field.name().clone(), table.sql_type(position), null.to_owned()];
            if !extras.defaults.is_empty() {
                row.push(value_of(&extras.defaults, field.name()).to_owned());
            }
            printer.add_texts(row);
        }
        printer.finish(out)?;
        if !self.primary_key.is_empty() {
            writeln!(out, "primary key ({})", self.primary_key.join(", "))?;
        }
        for constraint in &extras.constraints {
            writeln!(out, "{constraint}")?;
        }
        for key in &self.foreign_keys {
            let columns = key.columns.join(", ");
            let (schema, parent) = (&key.parent_schema, &key.parent_table);
            let parent_columns = key.parent_columns.join(", ");
            let actions = value_of(&extras.actions, &key.name);
            writeln!(
                out,
                "foreign key {} ({columns}) references {schema}.{parent} ({parent_columns}){actions}",
                key.name
            )?;
        }
        if !extras.placement.is_empty() {
            writeln!(out, "{}", extras.placement.join(", "))?;
        }
        if let Some(view) = &extras.view {
            writeln!(out, "{view}")?;
        }
        Ok(())
    }
}

fn value_of<'a>(pairs: &'a [(String, String)], name: &str) -> &'a str {
    pairs.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
}

/// The words of a table's line in `drsdb.tables`.
async fn placement(client: &Client, table: &TableInfo) -> Result<Vec<String>, Error> {
    let Some((schema, lines)) = ask(client, "SELECT * FROM drsdb.tables").await? else { return Ok(Vec::new()) };
    let at = |names: &[&str]| names.iter().find_map(|name| schema.index_of(name).ok());
    let place = (at(&["table_schema", "schema", "schema_name"]), at(&["table_name", "name", "table"]));
    let (Some(schema_at), Some(name_at)) = place else { return Ok(Vec::new()) };
    let line = lines.into_iter().find(|line| line[schema_at] == table.schema && line[name_at] == table.name);
    let Some(line) = line else { return Ok(Vec::new()) };
    let told = PLACEMENT.iter().filter_map(|(column, name)| {
        let value = &line[at(&[*column])?];
        (!value.is_empty()).then(|| format!("{name}: {value}"))
    });
    Ok(told.collect())
}

/// A result as texts, NULL as an empty one; nothing where the server does not know what was asked for.
async fn rows(client: &Client, sql: &str) -> Result<Vec<Vec<String>>, Error> {
    Ok(ask(client, sql).await?.map(|(_, rows)| rows).unwrap_or_default())
}

async fn ask(client: &Client, sql: &str) -> Result<Option<(SchemaRef, Vec<Vec<String>>)>, Error> {
    let result = match client.collect(sql).await {
        Ok(result) => result,
        Err(error) if matches!(error.code(), ErrorCode::Unavailable | ErrorCode::Unauthenticated) => return Err(error),
        Err(error) => {
            tracing::debug!(%error, sql, "a description has less");
            return Ok(None);
        }
    };
    let mut rows = Vec::with_capacity(result.rows());
    for batch in &result.batches {
        let texts = TextBatch::new(batch)?;
        for row in 0..batch.num_rows() {
            let mut cells = vec![String::new(); batch.num_columns()];
            for (column, cell) in cells.iter_mut().enumerate() {
                texts.write(row, column, cell)?;
            }
            rows.push(cells);
        }
    }
    Ok(Some((result.schema, rows)))
}

fn pairs(rows: Vec<Vec<String>>) -> impl Iterator<Item = (String, String)> {
    rows.into_iter().filter_map(|row| <[String; 2]>::try_from(row).ok()).map(|[one, other]| (one, other))
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn in_parentheses(clause: &str) -> String {
    if clause.starts_with('(') && clause.ends_with(')') { clause.to_owned() } else { format!("({clause})") }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::datatypes::{DataType, Field, Schema};

    use super::*;

    fn region() -> Description {
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
        Description { table, primary_key: vec!["r_key".into()], foreign_keys: vec![key], extras: Extras::default() }
    }

    fn printed(description: &Description) -> String {
        let mut out = Vec::new();
        description.print(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_table_is_described() {
        let expected = "\
table public.region
| column | type        | null     |
|--------|-------------|----------|
| r_key  | Int64       | not null |
| r_name | VARCHAR(25) |          |
primary key (r_key)
foreign key region_fk (r_key) references public.world (w_key)
";
        assert_eq!(printed(&region()), expected);
    }

    #[test]
    fn what_a_server_knows_besides_is_told_too() {
        let mut region = region();
        region.extras = Extras {
            defaults: vec![("r_name".into(), "'nowhere'".into())],
            constraints: vec!["unique region_name (r_name)".into()],
            actions: vec![("region_fk".into(), " on delete cascade".into())],
            placement: vec!["engine: column".into(), "shards: 8".into()],
            view: None,
        };
        let expected = "\
table public.region
| column | type        | null     | default   |
|--------|-------------|----------|-----------|
| r_key  | Int64       | not null |           |
| r_name | VARCHAR(25) |          | 'nowhere' |
primary key (r_key)
unique region_name (r_name)
foreign key region_fk (r_key) references public.world (w_key) on delete cascade
engine: column, shards: 8
";
        assert_eq!(printed(&region), expected);
    }
}
