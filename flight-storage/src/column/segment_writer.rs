//! Writes one segment file: rows in, a synced file with its checksum and statistics out. Until then the file belongs to
//! the writer, which deletes it when it is dropped.

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow::{datatypes::SchemaRef, record_batch::RecordBatch};
use drsdb_core::{Error, Result, Table, Ulid, crash_point, ids};
use parquet::{
    arrow::{ArrowWriter, arrow_writer::ArrowWriterOptions},
    errors::ParquetError,
};

use super::{
    format::{Layout, to_file, write_error, writer_properties},
    segment::{KeyRange, Segment, SegmentRecord},
    stats::Gatherer,
};
use crate::engine::ShardId;

/// Computes the checksum and the length of what passes.
#[derive(Debug)]
struct Checksummed<W> {
    inner: W,
    checksum: crc32fast::Hasher,
    bytes: u64,
    /// Why writing failed. The Parquet writer keeps only the text of some errors.
    failed: Option<std::io::ErrorKind>,
}

impl<W> Checksummed<W> {
    fn new(inner: W) -> Self {
        Self { inner, checksum: crc32fast::Hasher::new(), bytes: 0, failed: None }
    }
}

impl<W: Write> Write for Checksummed<W> {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        let written = self.inner.write(buffer).inspect_err(|error| {
            if error.kind() != std::io::ErrorKind::Interrupted {
                self.failed = Some(error.kind());
            }
        })?;
        self.checksum.update(&buffer[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

/// A file that is deleted unless it is kept.
#[derive(Debug)]
struct Unfinished {
    path: PathBuf,
    kept: bool,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "an unfinished segment's file could not be deleted");
        }
    }
}

/// Where a segment's file is.
pub fn segment_path(dir: &Path, id: Ulid) -> PathBuf {
    dir.join(format!("{id}.parquet"))
}

/// Writes a segment.
pub struct SegmentWriter {
    id: Ulid,
    shard: ShardId,
    transaction: Ulid,
    sequence: u32,
    file_schema: SchemaRef,
    writer: ArrowWriter<Checksummed<File>>,
    unfinished: Unfinished,
    gatherer: Gatherer,
    rows: u64,
}

impl SegmentWriter {
    /// Begins a file in `dir`.
    pub fn create(
        dir: &Path,
        table: &Table,
        file_schema: &SchemaRef,
        shard: ShardId,
        (transaction, sequence): (Ulid, u32),
        layout: &Layout,
    ) -> Result<Self> {
        let id = ids::new_ulid();
        let path = segment_path(dir, id);
        let context = format!("creating {}", path.display());
        let file = File::options().write(true).create_new(true).open(&path);
        let file = file.map_err(|error| Error::io(&context, error))?;
        let unfinished = Unfinished { path, kept: false };
        let output = Checksummed::new(file);
        let options = ArrowWriterOptions::new().with_properties(writer_properties(table, layout));
        let writer = ArrowWriter::try_new_with_options(output, Arc::clone(file_schema), options)
            .map_err(|error| write_error(&context, error))?;
        Ok(Self {
            id,
            shard,
            transaction,
            sequence,
            file_schema: Arc::clone(file_schema),
            writer,
            unfinished,
            gatherer: Gatherer::new(table),
            rows: 0,
        })
    }

    /// Rows so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Bytes in the file so far.
    pub fn file_bytes(&self) -> usize {
        self.writer.bytes_written()
    }

    /// Adds rows of the table's stored schema. All but the last batch must be whole chunks.
    pub fn write(&mut self, chunk: &RecordBatch) -> Result<()> {
        self.gatherer.add(chunk)?;
        self.rows += chunk.num_rows() as u64;
        let batch = to_file(chunk, &self.file_schema)?;
        self.writer.write(&batch).map_err(|error| self.failure(error))
    }

    /// Makes the file durable. The segment is doomed until somebody keeps it: dropped, it takes its file along.
    pub fn finish(mut self, key_range: Option<KeyRange>) -> Result<(Segment, Gatherer)> {
        let context = self.context();
        self.writer.finish().map_err(|error| self.failure(error))?;
        let output = self.writer.inner_mut();
        crash_point::reach("segment.written");
        output.inner.sync_all().map_err(|error| Error::io(&context, error))?;
        crash_point::reach("segment.synced");
        let record = SegmentRecord {
            id: self.id,
            shard: self.shard,
            transaction: self.transaction,
            sequence: self.sequence,
            rows: self.rows,
            bytes: output.bytes,
            checksum: output.checksum.clone().finalize(),
            statistics: self.gatherer.clone().finish()?,
            key_range,
        };
        self.unfinished.kept = true;
        Ok((Segment::new(record, self.unfinished.path.clone(), None), self.gatherer))
    }

    fn failure(&self, error: ParquetError) -> Error {
        match self.writer.inner().failed {
            Some(kind) => Error::io(self.context(), std::io::Error::new(kind, error)),
            None => write_error(&self.context(), error),
        }
    }

    fn context(&self) -> String {
        format!("writing {}", self.unfinished.path.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_what_was_written() {
        /// Takes at most three bytes at a time.
        struct Slow(Vec<u8>);
        impl Write for Slow {
            fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
                let taken = buffer.len().min(3);
                self.0.extend_from_slice(&buffer[..taken]);
                Ok(taken)
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let mut output = Checksummed::new(Slow(Vec::new()));
        output.write_all(b"ten bytes.").unwrap();
        assert_eq!(output.bytes, 10);
        assert_eq!(output.checksum.finalize(), crc32fast::hash(&output.inner.0));
    }
}
