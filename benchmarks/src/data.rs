//! The tables' Parquet files: made once, used by every engine and by the load.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use drsdb_benchmarks::{
    output::Format,
    progress::Progress,
    tpch::{TABLES, Table, WrittenTable, file_name, write_files},
};
use parquet::file::{reader::FileReader, serialized_reader::SerializedFileReader};
use tempfile::TempDir;

/// Files of one scale factor.
pub struct Data {
    /// In the order of [`TABLES`].
    pub files: Vec<WrittenTable>,
    directory: PathBuf,
    // Removed when the benchmark ends.
    _temporary: Option<TempDir>,
}

impl Data {
    /// Takes the files below `kept` if they are there, makes them there if not; without `kept`, in a temporary folder.
    pub fn prepare(kept: Option<&Path>, scale: f64, progress: &Progress) -> Result<Self> {
        let temporary = match kept {
            Some(_) => None,
            None => Some(tempfile::tempdir().context("cannot create a folder for the data")?),
        };
        let directory = match (kept, &temporary) {
            (Some(kept), _) => kept.join(format!("tpch-sf{scale}")),
            (None, Some(temporary)) => temporary.path().to_owned(),
            (None, None) => unreachable!("there is a temporary folder where none is kept"),
        };
        // A file has its name only once it is whole.
        let there = TABLES.iter().all(|&table| directory.join(file_name(table, Format::Parquet)).exists());
        let files = if there {
            TABLES.iter().map(|&table| existing(&directory, table)).collect::<Result<_>>()?
        } else {
            let threads = std::thread::available_parallelism().map_or(1, usize::from);
            write_files(&directory, scale, Format::Parquet, threads, progress)?
        };
        Ok(Self { files, directory, _temporary: temporary })
    }

    /// Their folder.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The file of a table.
    pub fn file(&self, table: Table) -> &Path {
        let file = self.files.iter().find(|file| file.table == table);
        &file.expect("there is a file for every table").path
    }
}

fn existing(directory: &Path, table: Table) -> Result<WrittenTable> {
    let path = directory.join(file_name(table, Format::Parquet));
    let context = || format!("cannot read {}", path.display());
    let file = std::fs::File::open(&path).with_context(context)?;
    let bytes = file.metadata().with_context(context)?.len();
    let reader = SerializedFileReader::new(file).with_context(context)?;
    let rows = u64::try_from(reader.metadata().file_metadata().num_rows()).with_context(context)?;
    Ok(WrittenTable { table, path, rows, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_files_are_made_once() {
        let kept = tempfile::tempdir().unwrap();
        let made = Data::prepare(Some(kept.path()), 0.001, &Progress::hidden()).unwrap();
        let modified = |data: &Data| std::fs::metadata(data.file(Table::Orders)).unwrap().modified().unwrap();
        let found = Data::prepare(Some(kept.path()), 0.001, &Progress::hidden()).unwrap();
        assert_eq!(modified(&made), modified(&found));
        let sizes = |data: &Data| data.files.iter().map(|file| (file.table, file.rows, file.bytes)).collect::<Vec<_>>();
        assert_eq!(sizes(&made), sizes(&found));
    }

    #[test]
    fn temporary_files_go_with_their_owner() {
        let data = Data::prepare(None, 0.001, &Progress::hidden()).unwrap();
        let directory = data.directory().to_owned();
        assert!(directory.exists());
        drop(data);
        assert!(!directory.exists());
    }
}
