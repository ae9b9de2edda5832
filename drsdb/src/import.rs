//! `drsdb import FILE --table t`, and what the shell's `\copy` shares with it: files become one load, one transaction.
//!
//! A thread of its own reads and parses; batches go through a queue of two to the client, so that memory is bounded by a
//! few batches whatever the file's size.
//!
//! - [`csv_records`]: bytes to records, with line numbers.
//! - [`csv_batches`]: records to typed batches, with errors that name line, column and rule.
//! - [`columnar`]: Parquet and Arrow files.
//! - [`columns`]: which of the file's columns goes to which of the table's.

pub mod columnar;
pub mod columns;
pub mod csv_batches;
pub mod csv_records;

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use arrow::{
    array::RecordBatch,
    datatypes::{Schema, SchemaRef},
};
use drsdb_client::{Client, Error, ErrorCode, IngestMode, IngestOptions, TableInfo, WireError, WriteResult};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::shell::connection::ConnectArgs;

/// Rows of a batch, at most.
const BATCH_ROWS: usize = 32 * 1024;

/// Batches that wait between the reader and the client.
const QUEUE: usize = 2;

/// The name of what is piped into `drsdb import`.
const STANDARD_INPUT: &str = "-";

/// Loads files into a table, as one transaction: all of it or nothing.
#[derive(Debug, Clone, clap::Args)]
pub struct ImportArgs {
    /// CSV, Parquet or Arrow files; the name's ending says which. Several files are one load. `-` is standard input, CSV.
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// The table, as `table` or `schema.table`.
    #[arg(long)]
    pub table: String,
    /// Create the table with the columns of the first file if it does not exist (Parquet and Arrow).
    #[arg(long)]
    pub create: bool,
    #[command(flatten)]
    pub options: FileOptions,
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// How files are read.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct FileOptions {
    /// What the files are, where their names do not say.
    #[arg(long, value_enum)]
    pub format: Option<Format>,
    /// The columns to load, by name. For a CSV file without header: its columns in order.
    #[arg(long, value_delimiter = ',', value_name = "NAME,...")]
    pub columns: Option<Vec<String>>,
    /// CSV: whether the first line names the columns.
    #[arg(long, value_enum, default_value_t = Header::Auto)]
    pub header: Header,
    /// CSV: the character between fields.
    #[arg(long, value_parser = parse_delimiter, value_name = "CHAR")]
    pub delimiter: Option<u8>,
    /// CSV: the unquoted text that means NULL; an empty unquoted field unless said otherwise.
    #[arg(long, value_name = "TEXT")]
    pub null: Option<String>,
}

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Comma-separated text, RFC 4180.
    Csv,
    /// Parquet.
    Parquet,
    /// Arrow IPC, file or stream.
    Arrow,
}

/// Whether a CSV file has a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Header {
    /// It has one if every field of the first line is a column's name.
    #[default]
    Auto,
    /// It has one.
    Yes,
    /// It has none.
    No,
}

/// Reads a delimiter as flags and `\copy` write it.
pub fn parse_delimiter(text: &str) -> Result<u8, String> {
    match text {
        "\\t" | "tab" => Ok(b'\t'),
        _ if text.len() == 1 && !"\"\r\n".contains(text) => Ok(text.as_bytes()[0]),
        _ => Err("a delimiter is one ASCII character, or \\t; quotes and line ends cannot be one".to_owned()),
    }
}

impl FileOptions {
    /// The file's format, by option or by name.
    pub fn format_of(&self, file: &Path) -> Result<Format, Error> {
        if let Some(format) = self.format {
            return Ok(format);
        }
        let ending = file.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_ascii_lowercase();
        match ending.as_str() {
            "csv" | "tsv" | "tbl" | "txt" => Ok(Format::Csv),
            "parquet" => Ok(Format::Parquet),
            "arrow" | "arrows" | "feather" | "ipc" => Ok(Format::Arrow),
            _ => Err(WireError::new(ErrorCode::InvalidArgument, format!("what is {}?", file.display()))
                .with_hint("name it .csv, .parquet or .arrow, or say which with the format option")
                .into()),
        }
    }

    fn delimiter_of(&self, file: &Path) -> u8 {
        let by_name = match file.extension().and_then(|ending| ending.to_str()) {
            Some("tsv") => b'\t',
            Some("tbl") => b'|',
            _ => b',',
        };
        self.delimiter.unwrap_or(by_name)
    }
}

/// Runs `drsdb import`.
pub async fn run(args: ImportArgs) -> anyhow::Result<ExitCode> {
    let client = Client::connect(args.connect.options()?).await?;
    let mode = if args.create { IngestMode::CreateAppend } else { IngestMode::Append };
    let started = Instant::now();
    let result = tokio::select! {
        result = load(&client, &args.table, &args.files, &args.options, mode) => result,
        _ = tokio::signal::ctrl_c() => {
            Err(Error::new(ErrorCode::Cancelled, "the load was cancelled; nothing of it is visible"))
        }
    };
    match result {
        Ok(result) => {
            let line = loaded(result, started.elapsed());
            writeln!(std::io::stdout(), "{line}")?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            crate::shell::report(&error, None);
            Ok(ExitCode::FAILURE)
        }
    }
}

/// What a finished load says.
pub fn loaded(result: WriteResult, elapsed: Duration) -> String {
    let seconds = elapsed.as_secs_f64();
    let rate = result.rows as f64 / seconds.max(1e-9);
    format!("loaded {} rows in {seconds:.1} s ({rate:.0} rows/s)", result.rows)
}

/// Loads `files` into `table` as one transaction.
pub async fn load(
    client: &Client,
    table: &str,
    files: &[PathBuf],
    options: &FileOptions,
    mode: IngestMode,
) -> Result<WriteResult, Error> {
    let target = match client.table(table).await {
        Ok(info) => Target::Existing(info),
        Err(error) if error.code() == ErrorCode::NotFound && mode != IngestMode::Append => Target::New,
        Err(error) => return Err(error),
    };
    let readers = files.iter().map(|file| open(file, &target, options)).collect::<Result<Vec<_>, _>>()?;
    let schema = common_schema(&readers, files)?;

    let bytes: u64 = readers.iter().map(|reader| reader.total_bytes).sum();
    let progress = progress_bar(bytes);
    let (sender, receiver) = mpsc::channel(QUEUE);
    let bar = progress.clone();
    // Not awaited: when the load fails, the queue's other end is gone, and the reader stops at its next batch.
    tokio::task::spawn_blocking(move || {
        for reader in readers {
            for batch in reader.batches {
                let failed = batch.is_err();
                let batch = batch.map(|Read { batch, bytes }| {
                    bar.inc(bytes);
                    batch
                });
                if sender.blocking_send(batch).is_err() || failed {
                    return;
                }
            }
        }
    });
    let (schema_name, table_name) = match &target {
        Target::Existing(info) => (info.schema.as_str(), info.name.as_str()),
        Target::New => table.split_once('.').unwrap_or(("public", table)),
    };
    let ingest = IngestOptions { mode, schema: Some(schema_name.to_owned()) };
    let result = client.ingest(table_name, schema, ReceiverStream::new(receiver), ingest).await;
    progress.finish_and_clear();
    result
}

/// Where rows go.
pub enum Target {
    /// A table that is there.
    Existing(TableInfo),
    /// A table that the load creates.
    New,
}

/// A batch, and how many of the file's bytes it took.
pub struct Read {
    pub batch: RecordBatch,
    pub bytes: u64,
}

/// An open file.
pub struct Reader {
    pub schema: SchemaRef,
    pub total_bytes: u64,
    pub batches: Box<dyn Iterator<Item = Result<Read, Error>> + Send>,
}

fn open(path: &Path, target: &Target, options: &FileOptions) -> Result<Reader, Error> {
    if path == Path::new(STANDARD_INPUT) {
        return match (options.format, target) {
            (None | Some(Format::Csv), Target::Existing(table)) => {
                open_csv(path, "standard input", std::io::stdin(), 0, table, options)
            }
            (None | Some(Format::Csv), Target::New) => Err(csv_without_table()),
            (Some(_), _) => Err(WireError::new(ErrorCode::InvalidArgument, "only CSV is read from standard input")
                .with_hint("write it to a file, and name that")
                .into()),
        };
    }
    let format = options.format_of(path)?;
    let file = File::open(path).map_err(|error| unreadable(path, &error))?;
    match (format, target) {
        (Format::Parquet, _) => columnar::open_parquet(path, file, target, options.columns.as_deref()),
        (Format::Arrow, _) => columnar::open_arrow(path, file, target, options.columns.as_deref()),
        (Format::Csv, Target::New) => Err(csv_without_table()),
        (Format::Csv, Target::Existing(table)) => {
            let total_bytes = file.metadata().map_or(0, |metadata| metadata.len());
            open_csv(path, &path.display().to_string(), file, total_bytes, table, options)
        }
    }
}

fn open_csv(
    path: &Path,
    name: &str,
    input: impl std::io::Read + Send + 'static,
    total_bytes: u64,
    table: &TableInfo,
    options: &FileOptions,
) -> Result<Reader, Error> {
    let dialect = csv_batches::Dialect {
        delimiter: options.delimiter_of(path),
        null: options.null.clone().unwrap_or_default(),
        header: options.header,
    };
    let batches = csv_batches::CsvBatches::open(name, input, table, &dialect, options.columns.as_deref())?
        .with_batch_rows(BATCH_ROWS);
    Ok(Reader { schema: batches.schema(), total_bytes, batches: Box::new(batches) })
}

fn csv_without_table() -> Error {
    WireError::new(ErrorCode::InvalidArgument, "a CSV file does not say what types its columns have")
        .with_hint("create the table first")
        .into()
}

/// An error about a file as a whole.
pub fn unreadable(path: &Path, error: &dyn std::fmt::Display) -> Error {
    let file = path.display().to_string();
    WireError::new(ErrorCode::InvalidValue, format!("cannot read {file}: {error}")).with_field("file", file).into()
}

/// One load has one schema: files must agree on names and types.
fn common_schema(readers: &[Reader], files: &[PathBuf]) -> Result<SchemaRef, Error> {
    let plain = |schema: &Schema| -> Vec<_> {
        schema.fields().iter().map(|field| (field.name().clone(), field.data_type().clone())).collect()
    };
    let Some(first) = readers.first() else {
        return Err(Error::new(ErrorCode::InvalidArgument, "no file is named"));
    };
    for (reader, file) in readers.iter().zip(files) {
        if plain(&reader.schema) != plain(&first.schema) {
            let message = format!("{} has other columns than {}", file.display(), files[0].display());
            return Err(WireError::new(ErrorCode::InvalidArgument, message)
                .with_hint("load them one by one, or name the columns to load")
                .with_field("file", file.display())
                .into());
        }
    }
    Ok(first.schema.clone())
}

/// A bar on a terminal, nothing elsewhere.
fn progress_bar(bytes: u64) -> ProgressBar {
    let style = "{bar:30} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
    ProgressBar::new(bytes).with_style(ProgressStyle::with_template(style).expect("the template is well-formed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_what_a_file_is() {
        let options = FileOptions::default();
        assert_eq!(options.format_of(Path::new("a/b.CSV")).unwrap(), Format::Csv);
        assert_eq!(options.format_of(Path::new("b.parquet")).unwrap(), Format::Parquet);
        assert_eq!(options.format_of(Path::new("b.arrow")).unwrap(), Format::Arrow);
        let error = options.format_of(Path::new("b.xls")).unwrap_err();
        assert!(error.hint().contains(".parquet"), "{error}");
        assert_eq!(options.delimiter_of(Path::new("lineitem.tbl")), b'|');
        let options = FileOptions { delimiter: Some(b';'), format: Some(Format::Csv), ..options };
        assert_eq!(options.format_of(Path::new("b.xls")).unwrap(), Format::Csv);
        assert_eq!(options.delimiter_of(Path::new("lineitem.tbl")), b';');
    }

    #[test]
    fn a_delimiter_is_one_character() {
        assert_eq!(parse_delimiter("\\t"), Ok(b'\t'));
        assert_eq!(parse_delimiter("|"), Ok(b'|'));
        for bad in ["", "ab", "\"", "\n", "ä"] {
            assert!(parse_delimiter(bad).is_err(), "{bad:?}");
        }
    }
}
