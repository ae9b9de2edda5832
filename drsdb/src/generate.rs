//! `drsdb generate`: data to load, as files.
//!
//! - `tpch`: the eight tables of TPC-H, made by [`drsdb_benchmarks::tpch`].
//! - `random`: rows for a table definition, or for a wide table of every type; see [`random`].

mod random;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use arrow::record_batch::RecordBatchReader;
use clap::{Args, Subcommand};
use drsdb_benchmarks::{
    output::{BatchWriter, Format},
    progress::Progress,
    tpch,
};
use drsdb_core::{Column, Table, Ulid};
use drsdb_index::statement::{self, CreateTable, Statement};

/// Rows of a generated batch.
const BATCH_ROWS: usize = 8192;

/// Arguments of `drsdb generate`.
#[derive(Debug, Args)]
pub struct GenerateArguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// The eight tables of TPC-H, one file each.
    Tpch(TpchArguments),
    /// Random rows for a table; the same seed gives the same rows.
    Random(RandomArguments),
}

#[derive(Debug, Args)]
struct TpchArguments {
    /// Scale factor: 1 is about 1 GB, 8.7 million rows.
    #[arg(long)]
    scale: f64,
    /// Folder for the files.
    #[arg(long)]
    out: PathBuf,
    /// Format of the files.
    #[arg(long, value_enum, default_value = "parquet")]
    format: Format,
}

#[derive(Debug, Args)]
struct RandomArguments {
    /// The table.
    table: String,
    /// Rows.
    #[arg(long)]
    rows: u64,
    /// SQL file with the table's CREATE TABLE statement; without it, a table of all types is made up.
    #[arg(long, conflicts_with = "columns")]
    definition: Option<PathBuf>,
    /// Columns of the made-up table.
    #[arg(long, default_value_t = 50)]
    columns: usize,
    /// Share of NULLs in columns that may have them.
    #[arg(long, default_value_t = 0.1)]
    nulls: f64,
    /// Where the random numbers start.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Folder for the file, and for the definition of a made-up table.
    #[arg(long, default_value = ".")]
    out: PathBuf,
    /// Format of the file. CSV and Parquet cannot hold INTERVAL.
    #[arg(long, value_enum, default_value = "parquet")]
    format: Format,
}

/// Runs the command.
pub async fn run(arguments: GenerateArguments) -> Result<()> {
    let work = move || match arguments.what {
        What::Tpch(arguments) => generate_tpch(&arguments, &Progress::new()),
        What::Random(arguments) => generate_random(&arguments, &Progress::new()),
    };
    tokio::task::spawn_blocking(work).await.context("generating the data panicked")?
}

fn generate_tpch(arguments: &TpchArguments, progress: &Progress) -> Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let written = tpch::write_files(&arguments.out, arguments.scale, arguments.format, threads, progress)?;
    let rows = written.iter().map(|file| file.rows).sum::<u64>();
    let bytes = written.iter().map(|file| file.bytes).sum::<u64>();
    progress.say(&format!("{rows} rows, {:.1} MB in {}", bytes as f64 / 1e6, arguments.out.display()));
    Ok(())
}

fn generate_random(arguments: &RandomArguments, progress: &Progress) -> Result<()> {
    ensure!((0.0..=1.0).contains(&arguments.nulls), "--nulls is a share from 0 to 1, not {}", arguments.nulls);
    std::fs::create_dir_all(&arguments.out).with_context(|| format!("cannot create {}", arguments.out.display()))?;
    let table = match &arguments.definition {
        Some(path) => defined_table(path, &arguments.table)?,
        None => {
            let text = random::wide_definition(&arguments.table, arguments.columns, arguments.format);
            let path = arguments.out.join(format!("{}.sql", arguments.table));
            std::fs::write(&path, format!("{text};\n")).with_context(|| format!("cannot write {}", path.display()))?;
            parse_definition(&text)?.context("the made-up definition is a CREATE TABLE")?
        }
    };
    let path = arguments.out.join(format!("{}.{}", arguments.table, arguments.format.extension()));
    let options = random::RandomOptions {
        seed: arguments.seed,
        nulls: arguments.nulls,
        // CSV writes NULL and empty text alike.
        empty_text: arguments.format != Format::Csv,
    };
    let batches = random::batches(&table, arguments.rows, BATCH_ROWS, options)?;
    let mut writer = BatchWriter::create(&path, &batches.schema(), arguments.format)?;
    let step = progress.step(format!("generate {}", arguments.table), arguments.rows, "rows");
    for batch in batches {
        let batch = batch?;
        writer.write(&batch)?;
        step.advance(batch.num_rows() as u64);
    }
    let bytes = writer.finish()?;
    step.finish();
    progress.say(&format!("{} rows, {:.1} MB in {}", arguments.rows, bytes as f64 / 1e6, path.display()));
    Ok(())
}

/// The definition of `name` among the statements of an SQL file.
fn defined_table(path: &Path, name: &str) -> Result<Table> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut others = Vec::new();
    for statement in text.split(';').filter(|statement| !statement.trim().is_empty()) {
        match parse_definition(statement).with_context(|| format!("in {}", path.display()))? {
            Some(table) if table.name.table == name => return Ok(table),
            Some(table) => others.push(table.name.table),
            None => {}
        }
    }
    bail!(
        "{} has no CREATE TABLE {name}: it has {}",
        path.display(),
        match others.is_empty() {
            true => "none".to_owned(),
            false => others.join(", "),
        }
    )
}

/// The table of a CREATE TABLE statement; `None` for any other.
fn parse_definition(sql: &str) -> Result<Option<Table>> {
    let Statement::CreateTable(definition) = statement::parse(sql)? else { return Ok(None) };
    // Foreign keys need their parents' definitions, and random rows keep none.
    let definition = CreateTable { foreign_keys: Vec::new(), ..*definition };
    let no_parents = |name: &drsdb_core::TableName| {
        Err(drsdb_core::Error::internal(format!("table {name} is not looked up when no foreign key is left")))
    };
    let mut table = definition.resolve(Ulid::nil(), 1, &no_parents)?;
    if !table.has_user_key() {
        // The identity of rows is the database's to make.
        table.columns.retain(Column::is_visible);
        table.primary_key.clear();
        table.shard_key.clear();
    }
    Ok(Some(table))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(out: &Path, format: Format) -> RandomArguments {
        RandomArguments {
            table: "events".to_owned(),
            rows: 20_000,
            definition: None,
            columns: 40,
            nulls: 0.2,
            seed: 7,
            out: out.to_owned(),
            format,
        }
    }

    #[test]
    fn a_wide_table_is_written_with_its_definition() {
        let folder = tempfile::tempdir().unwrap();
        for format in [Format::Parquet, Format::Csv, Format::Arrow] {
            generate_random(&arguments(folder.path(), format), &Progress::hidden()).unwrap();
            assert!(folder.path().join(format!("events.{}", format.extension())).exists());
        }
        let table = defined_table(&folder.path().join("events.sql"), "events").unwrap();
        assert_eq!(table.columns.len(), 40);
    }

    #[test]
    fn the_definition_of_a_file_is_found_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("schema.sql");
        let sql =
            "CREATE TABLE a (x INTEGER);\nCREATE TABLE events (id BIGINT PRIMARY KEY, a INTEGER REFERENCES a (x));\n";
        std::fs::write(&path, sql).unwrap();
        assert_eq!(defined_table(&path, "events").unwrap().columns.len(), 2);
        let error = defined_table(&path, "event").unwrap_err().to_string();
        assert!(error.contains("a, events"), "{error}");
    }
}
