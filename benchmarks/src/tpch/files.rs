//! The eight tables as files, one a table.

use std::{
    path::{Path, PathBuf},
    sync::Mutex,
    thread,
};

use anyhow::{Context, Result};
use arrow::array::RecordBatchReader;

use super::{TABLES, Table, batches};
use crate::{
    output::{BatchWriter, Format},
    progress::Progress,
};

const BATCH_ROWS: usize = 16 * 1024;

/// A table that has been written.
#[derive(Debug, Clone)]
pub struct WrittenTable {
    /// Which.
    pub table: Table,
    /// Its file.
    pub path: PathBuf,
    /// Rows in it.
    pub rows: u64,
    /// Bytes of it.
    pub bytes: u64,
}

/// The name of a table's file.
pub fn file_name(table: Table, format: Format) -> String {
    format!("{}.{}", table.name(), format.extension())
}

/// Writes the tables at `scale` into `directory`, `threads` tables at once, and returns them in the order of [`TABLES`].
pub fn write_files(
    directory: &Path,
    scale: f64,
    format: Format,
    threads: usize,
    progress: &Progress,
) -> Result<Vec<WrittenTable>> {
    anyhow::ensure!(scale > 0.0 && scale.is_finite(), "the scale factor must be above 0, such as 0.1, and not {scale}");
    std::fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    // The largest table is last in `TABLES` and so first off the stack: the others are made beside it.
    let waiting = Mutex::new(TABLES.to_vec());
    let written = Mutex::new(Vec::with_capacity(TABLES.len()));
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.clamp(1, TABLES.len()))
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    loop {
                        let Some(table) = waiting.lock().expect("no worker panics with it").pop() else {
                            return Ok(());
                        };
                        let done = write_table(directory, table, scale, format, progress)?;
                        written.lock().expect("no worker panics with it").push(done);
                    }
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("a worker does not panic"))
    })?;
    let mut written = written.into_inner().expect("no worker panicked");
    written.sort_by_key(|done| TABLES.iter().position(|table| *table == done.table));
    Ok(written)
}

fn write_table(
    directory: &Path,
    table: Table,
    scale: f64,
    format: Format,
    progress: &Progress,
) -> Result<WrittenTable> {
    let path = directory.join(file_name(table, format));
    let step = progress.step(format!("generate {table}"), table.rows(scale), "rows");
    let reader = batches(table, scale, 1, 1, BATCH_ROWS);
    let mut writer = BatchWriter::create(&path, &reader.schema(), format)?;
    let mut rows = 0;
    for batch in reader {
        let batch = batch?;
        writer.write(&batch)?;
        rows += batch.num_rows() as u64;
        step.advance_to(rows);
    }
    let bytes = writer.finish()?;
    step.finish();
    Ok(WrittenTable { table, path, rows, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_is_written_whole() {
        for format in [Format::Parquet, Format::Csv, Format::Arrow] {
            let directory = tempfile::tempdir().unwrap();
            let written = write_files(directory.path(), 0.001, format, 2, &Progress::hidden()).unwrap();
            assert_eq!(written.iter().map(|done| done.table).collect::<Vec<_>>(), TABLES);
            for done in &written {
                assert_eq!(std::fs::metadata(&done.path).unwrap().len(), done.bytes);
            }
            assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), TABLES.len(), "no partial file is left");
            if format == Format::Csv {
                let text = std::fs::read_to_string(&written[0].path).unwrap();
                assert_eq!(text.lines().count(), 1 + 5, "a header and five regions");
            }
        }
    }

    #[test]
    fn a_scale_that_makes_no_sense_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        for scale in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(write_files(directory.path(), scale, Format::Csv, 1, &Progress::hidden()).is_err());
        }
    }
}
