//! From bytes of a segment file to decoded chunks of a column. Only the pages of the chunks that are asked for are read
//! from disk, decompressed and decoded.
//!
//! Not here: which chunks are worth it (`prune`, `scan`), and what is kept of them (`cache`).

use std::fs::File;

use arrow::{
    array::{Array, ArrayRef, AsArray},
    datatypes::{ByteViewType, DataType},
};
use bytes::{Buf, Bytes, buf::Reader};
use drsdb_core::Result;
use parquet::{
    arrow::{
        ProjectionMask,
        arrow_reader::{ParquetRecordBatchReaderBuilder, RowSelection, RowSelectionPolicy},
    },
    errors::ParquetError,
    file::reader::{ChunkReader, Length},
};

use super::{
    cache::Chunks,
    format::{CHUNK_ROWS, ChunkSet, chunk_rows, chunks_of, corrupt, from_file, read_error},
    segment::{Footer, Segment},
};

/// Decodes the chunks `wanted` of column `column` in row group `row_group` into `chunks`, as `stored`, the column's type
/// in the table. Returns the number of bytes read.
pub fn decode_column(
    segment: &Segment,
    file: &File,
    footer: &Footer,
    row_group: usize,
    column: usize,
    stored: &DataType,
    wanted: ChunkSet,
    chunks: &mut Chunks,
) -> Result<u64> {
    let group_rows = footer.group_rows(row_group);
    let all = ChunkSet::first(chunks_of(group_rows));
    let selection = (wanted != all).then(|| {
        let ranges = wanted.iter().map(|chunk| {
            let start = chunk * CHUNK_ROWS;
            start..start + chunk_rows(group_rows, chunk)
        });
        RowSelection::from_consecutive_ranges(ranges, group_rows)
    });
    let source = FileParts::read(segment, file, footer, row_group, column, selection.as_ref())?;
    let bytes = source.bytes();

    let context = || format!("decoding column {column} of row group {row_group} in {}", segment.describe());
    let mask = ProjectionMask::leaves(footer.arrow().parquet_schema(), [column]);
    let mut reader = ParquetRecordBatchReaderBuilder::new_with_metadata(source, footer.arrow().clone())
        .with_row_groups(vec![row_group])
        .with_projection(mask)
        .with_batch_size(CHUNK_ROWS)
        .with_row_selection_policy(RowSelectionPolicy::Selectors);
    if let Some(selection) = selection {
        reader = reader.with_row_selection(selection);
    }
    let mut batches = reader.build().map_err(|error| read_error(&context(), error))?;
    for chunk in wanted.iter() {
        let batch = batches.next().transpose().map_err(|error| corrupt(format!("{}: {error}", context())))?;
        let batch = batch.filter(|batch| batch.num_rows() == chunk_rows(group_rows, chunk));
        let batch = batch.ok_or_else(|| corrupt(format!("{}: rows are missing", context())))?;
        chunks.insert(chunk, compact(from_file(batch.column(0).clone(), stored)?));
    }
    Ok(bytes)
}

/// An array of views must not keep much more alive than it shows.
fn compact(array: ArrayRef) -> ArrayRef {
    fn wasteful<T: ByteViewType + ?Sized>(array: &arrow::array::GenericByteViewArray<T>) -> bool {
        const SMALL: usize = 16 << 10;
        let held: usize = array.data_buffers().iter().map(|buffer| buffer.len()).sum();
        held > SMALL && held > 2 * array.total_buffer_bytes_used()
    }
    match array.data_type() {
        DataType::Utf8View if wasteful(array.as_string_view()) => std::sync::Arc::new(array.as_string_view().gc()),
        DataType::BinaryView if wasteful(array.as_binary_view()) => std::sync::Arc::new(array.as_binary_view().gc()),
        _ => array,
    }
}

/// The parts of a file that a reader will want, in memory.
#[derive(Debug)]
struct FileParts {
    file_length: u64,
    /// By offset in the file.
    parts: Vec<(u64, Bytes)>,
}

impl FileParts {
    /// Reads what `selection` needs of a column in a row group; all of it if there is none.
    fn read(
        segment: &Segment,
        file: &File,
        footer: &Footer,
        row_group: usize,
        column: usize,
        selection: Option<&RowSelection>,
    ) -> Result<Self> {
        let (start, length) = footer.parquet().row_group(row_group).column(column).byte_range();
        let pages = footer.parquet().offset_index().map(|index| index[row_group][column].page_locations());
        // What precedes the first page is the dictionary.
        let (whole, mut ranges) = (start..start + length, Vec::new());
        match (selection, pages) {
            (Some(selection), Some(pages)) if !pages.is_empty() => {
                let first_page = pages[0].offset as u64;
                ranges.extend((first_page > start).then_some(start..first_page));
                ranges.extend(selection.scan_ranges(pages));
            }
            _ => ranges.push(whole),
        }
        ranges.dedup_by(|next, before| {
            let touches = next.start == before.end;
            if touches {
                before.end = next.end;
            }
            touches
        });
        let parts = ranges
            .into_iter()
            .map(|range| Ok((range.start, segment.read(file, range.start, (range.end - range.start) as usize)?)))
            .collect::<Result<_>>()?;
        Ok(Self { file_length: segment.record().bytes, parts })
    }

    fn bytes(&self) -> u64 {
        self.parts.iter().map(|(_, bytes)| bytes.len() as u64).sum()
    }

    /// From `start` to the end of its part.
    fn from(&self, start: u64) -> Result<Bytes, ParquetError> {
        let at = self.parts.partition_point(|(offset, _)| *offset <= start);
        let part = at.checked_sub(1).map(|at| &self.parts[at]);
        part.and_then(|(offset, bytes)| {
            let skipped = usize::try_from(start - offset).ok().filter(|skipped| *skipped <= bytes.len())?;
            Some(bytes.slice(skipped..))
        })
        .ok_or_else(|| ParquetError::EOF(format!("nothing was read at offset {start}")))
    }
}

impl Length for FileParts {
    fn len(&self) -> u64 {
        self.file_length
    }
}

impl ChunkReader for FileParts {
    type T = Reader<Bytes>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        Ok(self.from(start)?.reader())
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        let bytes = self.from(start)?;
        if length > bytes.len() {
            return Err(ParquetError::EOF(format!("{length} bytes were not read at offset {start}")));
        }
        Ok(bytes.slice(..length))
    }
}
