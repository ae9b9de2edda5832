//! Record batches into Parquet, CSV and Arrow files.

use std::{
    fs::{self, File},
    io::BufWriter,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use arrow::{
    datatypes::{DataType, SchemaRef},
    ipc::writer::FileWriter as IpcWriter,
    record_batch::RecordBatch,
};
use parquet::{
    arrow::ArrowWriter,
    basic::Compression,
    file::properties::{EnabledStatistics, WriterProperties},
};

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
            Encoder::Csv(writer) => writer.write(batch)?,
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
