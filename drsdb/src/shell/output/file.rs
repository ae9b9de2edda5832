//! `\o`: a result streamed to a CSV, Parquet or Arrow file. The file appears whole or not at all.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
};

use arrow::{array::RecordBatch, datatypes::SchemaRef, ipc::writer::FileWriter};
use drsdb_client::{Error, ErrorCode, QueryStream, WireError};
use futures::TryStreamExt;
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression, ZstdLevel},
    errors::ParquetError,
    file::properties::WriterProperties,
};
use tempfile::NamedTempFile;

use super::super::text::TextBatch;
use crate::import::{FileOptions, Format};

/// Writes all of `rows` to `path`; the number of rows. What was there before is replaced, at the end.
pub async fn write_file(rows: &mut QueryStream, path: &Path) -> Result<u64, Error> {
    let format = FileOptions::default().format_of(path)?;
    let cannot = |error: io::Error| write_error(path, &error);
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let file = temporary_file(folder).map_err(cannot)?;
    let mut writer = Writer::new(format, rows.schema(), file.reopen().map_err(cannot)?, path)?;
    let mut count = 0;
    while let Some(batch) = rows.try_next().await? {
        count += batch.num_rows() as u64;
        tokio::task::block_in_place(|| writer.write(&batch, path))?;
    }
    tokio::task::block_in_place(|| {
        writer.finish(path)?;
        file.as_file().sync_all().map_err(cannot)?;
        file.persist(path).map_err(|error| cannot(error.error))
    })?;
    Ok(count)
}

/// In the same folder, so that it can become the file by being renamed; it goes away if it does not.
fn temporary_file(folder: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".drsdb-");
    // As any new file: who may read it is the umask's affair.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder)
}

enum Writer {
    Csv(BufWriter<File>),
    Parquet(Box<ArrowWriter<BufWriter<File>>>),
    Arrow(Box<FileWriter<BufWriter<File>>>),
}

impl Writer {
    fn new(format: Format, schema: SchemaRef, file: File, path: &Path) -> Result<Self, Error> {
        let mut file = BufWriter::with_capacity(1 << 20, file);
        Ok(match format {
            Format::Csv => {
                file.write_all(super::header(&schema).as_bytes()).map_err(|error| write_error(path, &error))?;
                Writer::Csv(file)
            }
            Format::Parquet => {
                let compression = Compression::ZSTD(ZstdLevel::default());
                let properties = WriterProperties::builder().set_compression(compression).build();
                let writer = ArrowWriter::try_new(file, schema, Some(properties));
                Writer::Parquet(Box::new(writer.map_err(|error| parquet_error(path, error))?))
            }
            Format::Arrow => Writer::Arrow(Box::new(FileWriter::try_new(file, &schema)?)),
        })
    }

    fn write(&mut self, batch: &RecordBatch, path: &Path) -> Result<(), Error> {
        match self {
            Writer::Csv(file) => {
                let mut csv = String::new();
                TextBatch::new(batch)?.write_csv(batch.num_rows(), &mut csv)?;
                file.write_all(csv.as_bytes()).map_err(|error| write_error(path, &error))
            }
            Writer::Parquet(writer) => writer.write(batch).map_err(|error| parquet_error(path, error)),
            Writer::Arrow(writer) => Ok(writer.write(batch)?),
        }
    }

    fn finish(self, path: &Path) -> Result<(), Error> {
        match self {
            Writer::Csv(mut file) => file.flush().map_err(|error| write_error(path, &error)),
            Writer::Parquet(writer) => {
                let mut file = writer.into_inner().map_err(|error| parquet_error(path, error))?;
                file.flush().map_err(|error| write_error(path, &error))
            }
            Writer::Arrow(mut writer) => {
                writer.finish()?;
                writer.get_mut().flush().map_err(|error| write_error(path, &error))
            }
        }
    }
}

fn write_error(path: &Path, error: &io::Error) -> Error {
    let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    let code = if full { ErrorCode::DiskFull } else { ErrorCode::InvalidArgument };
    let file = path.display().to_string();
    WireError::new(code, format!("cannot write {file}: {error}")).with_field("file", file).into()
}

fn parquet_error(path: &Path, error: ParquetError) -> Error {
    match error {
        ParquetError::External(inner) if inner.is::<io::Error>() => {
            let io = inner.downcast::<io::Error>().expect("the type was checked");
            write_error(path, &io)
        }
        other => {
            let file = path.display().to_string();
            WireError::new(ErrorCode::InvalidArgument, format!("cannot write {file}: {other}"))
                .with_field("file", file)
                .into()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::{
        array::{Int64Array, StringArray},
        datatypes::{DataType, Field, Schema},
        util::pretty::pretty_format_batches,
    };
    use drsdb_client::TableInfo;

    use super::*;
    use crate::import::{
        Header, Target, columnar,
        csv_batches::{CsvBatches, Dialect},
    };

    #[test]
    fn every_format_is_read_back_as_it_was() {
        let fields = vec![Field::new("id", DataType::Int64, false), Field::new("name", DataType::Utf8, true)];
        let schema = Arc::new(Schema::new(fields));
        let names = StringArray::from(vec![Some("a,\"b\"\nc"), None, Some("")]);
        let columns = [Arc::new(Int64Array::from(vec![1, 2, 3])) as _, Arc::new(names) as _];
        let batch = RecordBatch::try_new(schema.clone(), columns.to_vec()).unwrap();
        let table = TableInfo { schema: "s".into(), name: "t".into(), kind: "TABLE".into(), columns: schema.clone() };
        let folder = tempfile::tempdir().unwrap();
        for (format, name) in [(Format::Csv, "f.csv"), (Format::Parquet, "f.parquet"), (Format::Arrow, "f.arrow")] {
            let path = folder.path().join(name);
            let mut writer = Writer::new(format, schema.clone(), File::create(&path).unwrap(), &path).unwrap();
            writer.write(&batch, &path).unwrap();
            writer.finish(&path).unwrap();
            let file = File::open(&path).unwrap();
            let target = Target::Existing(table.clone());
            let back: Vec<RecordBatch> = match format {
                Format::Csv => {
                    let dialect = Dialect { delimiter: b',', null: String::new(), header: Header::Auto };
                    let batches = CsvBatches::open(name, file, &table, &dialect, None).unwrap();
                    batches.map(|read| read.unwrap().batch).collect()
                }
                Format::Parquet => {
                    let reader = columnar::open_parquet(&path, file, &target, None).unwrap();
                    reader.batches.map(|read| read.unwrap().batch).collect()
                }
                Format::Arrow => {
                    let reader = columnar::open_arrow(&path, file, &target, None).unwrap();
                    reader.batches.map(|read| read.unwrap().batch).collect()
                }
            };
            let show = |batches: &[RecordBatch]| pretty_format_batches(batches).unwrap().to_string();
            assert_eq!(show(&back), show(std::slice::from_ref(&batch)), "{name}");
            assert_eq!(back[0].column(1).null_count(), 1, "{name}");
        }
    }
}
