//! Where results go: [`table`], [`plan`], CSV and [`json`] to the terminal, [`mod@file`] for `\o`.

mod file;
mod json;
mod plan;
mod table;

use std::io::{self, Write};

use arrow::error::ArrowError;
use drsdb_client::{Error, QueryStream};
use futures::TryStreamExt;

pub use file::write_file;
pub use plan::is_plan;
pub use table::TablePrinter;

use super::text::{TextBatch, push_csv};

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Aligned columns.
    Table,
    /// CSV with a header.
    Csv,
    /// One JSON object a line.
    Json,
}

/// Why a result was not printed.
#[derive(Debug)]
pub enum PrintError {
    /// The query failed.
    Query(Error),
    /// The terminal, or whatever stands for it, is gone.
    Terminal(io::Error),
}

impl From<Error> for PrintError {
    fn from(error: Error) -> Self {
        PrintError::Query(error)
    }
}

impl From<ArrowError> for PrintError {
    fn from(error: ArrowError) -> Self {
        PrintError::Query(error.into())
    }
}

/// Prints a result as it comes; the number of rows.
pub async fn print(rows: &mut QueryStream, style: Style, out: &mut impl Write) -> Result<u64, PrintError> {
    let schema = rows.schema();
    let mut count = 0;
    match style {
        Style::Table if is_plan(&schema) => {
            let width = plan::terminal_width();
            while let Some(batch) = rows.try_next().await? {
                count += batch.num_rows() as u64;
                plan::print(&batch, width, out).map_err(PrintError::Terminal)?;
            }
        }
        Style::Table => {
            let mut printer = TablePrinter::new(&schema);
            while let Some(batch) = rows.try_next().await? {
                count += batch.num_rows() as u64;
                printer.add(&batch, out)?;
            }
            printer.finish(out).map_err(PrintError::Terminal)?;
        }
        Style::Csv => {
            let mut csv = header(&schema);
            out.write_all(csv.as_bytes()).map_err(PrintError::Terminal)?;
            while let Some(batch) = rows.try_next().await? {
                count += batch.num_rows() as u64;
                csv.clear();
                TextBatch::new(&batch)?.write_csv(batch.num_rows(), &mut csv)?;
                out.write_all(csv.as_bytes()).map_err(PrintError::Terminal)?;
            }
        }
        Style::Json => {
            while let Some(batch) = rows.try_next().await? {
                count += batch.num_rows() as u64;
                out.write_all(&json::lines_of(&batch)?).map_err(PrintError::Terminal)?;
            }
        }
    }
    out.flush().map_err(PrintError::Terminal)?;
    Ok(count)
}

/// The first line of a CSV.
fn header(schema: &arrow::datatypes::Schema) -> String {
    let mut line = String::new();
    for (at, field) in schema.fields().iter().enumerate() {
        line.push_str(if at > 0 { "," } else { "" });
        push_csv(field.name(), &mut line);
    }
    line.push('\n');
    line
}
