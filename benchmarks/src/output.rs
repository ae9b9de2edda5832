//! Record batches into Parquet, CSV and Arrow files.

use std::{
    fs::{self, File},
    io::BufWriter,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result, bail};
use arrow::{
    array::{ArrayRef, AsArray, StringArray},
    datatypes::{DataType, Field, Schema, SchemaRef},
    ipc::writer::FileWriter as IpcWriter,
    record_batch::RecordBatch,
};
use parquet::{
    arrow::ArrowWriter,
    basic::Compression,
    file::properties::{EnabledStatistics, WriterProperties},
};

/// Bytes as SQL writes them, for CSV: UUIDs in groups, other bytes as `\x` and hexadecimal digits.
fn with_text(batch: &RecordBatch) -> Result<RecordBatch> {
    let (mut fields, mut columns) = (Vec::new(), Vec::new());
    for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        let text: Option<StringArray> = match column.data_type() {
            DataType::Binary => Some(column.as_binary::<i32>().iter().map(|value| value.map(bytes_text)).collect()),
            DataType::FixedSizeBinary(16) => {
                Some(column.as_fixed_size_binary().iter().map(|value| value.map(uuid_text)).collect())
            }
            _ => None,
        };
        match text {
            Some(text) => {
                fields.push(Field::new(field.name(), DataType::Utf8, field.is_nullable()));
                columns.push(Arc::new(text) as ArrayRef);
            }
            None => {
                fields.push(field.as_ref().clone());
                columns.push(Arc::clone(column));
            }
        }
    }
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes_text(bytes: &[u8]) -> String {
    format!("\\x{}", hexadecimal(bytes))
}

fn uuid_text(bytes: &[u8]) -> String {
    let digits = hexadecimal(bytes);
    [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-")
}

/// Rows of a Parquet row group: small enough that engines that hand out row groups keep all cores busy at small scales.
const ROW_GROUP_ROWS: usize = 128 * 1024;

/// A file format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
#[allow(missing_docs)]
pub enum Format {
    Parquet,
    Csv,
    Arrow,
}

impl Format {
    /// The usual end of such a file's name.
    pub fn extension(self) -> &'static str {
        match self {
            Format::Parquet => "parquet",
            Format::Csv => "csv",
            Format::Arrow => "arrow",
        }
    }
}

enum Encoder {
    Parquet(Box<ArrowWriter<File>>),
    Csv(Box<arrow::csv::Writer<BufWriter<File>>>),
    Arrow(Box<IpcWriter<BufWriter<File>>>),
}

/// Writes one file. It has its name only after [`BatchWriter::finish`]: a run that was stopped leaves no half file that
/// looks whole.
pub struct BatchWriter {
    encoder: Encoder,
    partial: PathBuf,
    path: PathBuf,
}

impl BatchWriter {
    /// Starts the file at `path`.
    pub fn create(path: &Path, schema: &SchemaRef, format: Format) -> Result<Self> {
        // CSV has no notation for it, and Parquet's interval has no nanoseconds.
        let interval = schema.fields().iter().find(|field| matches!(field.data_type(), DataType::Interval(_)));
        if let Some(field) = interval.filter(|_| format != Format::Arrow) {
            bail!("column {} is an INTERVAL, which only the format arrow holds", field.name());
        }
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let file = File::create(&partial).with_context(|| format!("cannot create {}", partial.display()))?;
        let encoder = match format {
            Format::Parquet => {
                // Page statistics of long text cost more than they prune.
                let properties = WriterProperties::builder()
                    .set_compression(Compression::SNAPPY)
                    .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
                    .set_statistics_enabled(EnabledStatistics::Page)
                    .build();
                Encoder::Parquet(Box::new(ArrowWriter::try_new(file, schema.clone(), Some(properties))?))
            }
            Format::Csv => {
                Encoder::Csv(Box::new(arrow::csv::WriterBuilder::new().with_header(true).build(BufWriter::new(file))))
            }
            Format::Arrow => Encoder::Arrow(Box::new(IpcWriter::try_new(BufWriter::new(file), schema)?)),
        };
        Ok(Self { encoder, partial, path: path.to_owned() })
    }

    /// Appends a batch.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        match &mut self.encoder {
            Encoder::Parquet(writer) => writer.write(batch)?,
            Encoder::Csv(writer) => writer.write(&with_text(batch)?)?,
            Encoder::Arrow(writer) => writer.write(batch)?,
        }
        Ok(())
    }

    /// Completes the file and gives it its name; returns its size in bytes.
    pub fn finish(self) -> Result<u64> {
        match self.encoder {
            Encoder::Parquet(writer) => {
                writer.close()?;
            }
            Encoder::Csv(writer) => {
                writer.into_inner().into_inner().context("cannot write the last rows")?;
            }
            Encoder::Arrow(mut writer) => {
                writer.finish()?;
                writer.into_inner()?.into_inner().context("cannot write the last rows")?;
            }
        }
        fs::rename(&self.partial, &self.path).with_context(|| format!("cannot name {}", self.path.display()))?;
        Ok(fs::metadata(&self.path)?.len())
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{BinaryArray, FixedSizeBinaryArray};

    use super::*;

    #[test]
    fn csv_writes_bytes_as_sql_does_and_keeps_nulls_empty() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bytes.csv");
        let uuids = [Some((0..16).collect::<Vec<u8>>()), None];
        let uuids = FixedSizeBinaryArray::try_from_sparse_iter_with_size(uuids.into_iter(), 16).unwrap();
        let batch = RecordBatch::try_from_iter([
            ("b", Arc::new(BinaryArray::from(vec![Some(&[0u8, 255][..]), None])) as ArrayRef),
            ("u", Arc::new(uuids) as ArrayRef),
        ])
        .unwrap();
        let mut writer = BatchWriter::create(&path, &batch.schema(), Format::Csv).unwrap();
        writer.write(&batch).unwrap();
        assert!(!path.exists(), "the file has its name only once it is whole");
        let bytes = writer.finish().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, "b,u\n\\x00ff,00010203-0405-0607-0809-0a0b0c0d0e0f\n,\n");
        assert_eq!(text.len() as u64, bytes);
    }

    #[test]
    fn intervals_are_refused_where_they_cannot_be_written() {
        let folder = tempfile::tempdir().unwrap();
        let interval = DataType::Interval(arrow::datatypes::IntervalUnit::MonthDayNano);
        let schema = Arc::new(Schema::new(vec![Field::new("wait", interval, true)]));
        for (format, fine) in [(Format::Csv, false), (Format::Parquet, false), (Format::Arrow, true)] {
            let result = BatchWriter::create(&folder.path().join("x"), &schema, format);
            assert_eq!(result.is_ok(), fine, "{format:?}");
            assert!(fine || result.err().unwrap().to_string().contains("wait"));
        }
    }
}
