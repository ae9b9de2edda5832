//! Columns of a row group through the cache: what is not in memory is decoded and kept.
//!
//! A column that was added to the table after the segment was written has its initial value in every row. Not here: what
//! is read when (`scan`, `locate`, `unique`).

use std::{fs::File, sync::Arc};

use arrow::array::ArrayRef;
use datafusion::scalar::ScalarValue;
use drsdb_core::{Result, Table};

use super::{
    Store,
    cache::{CacheKey, Chunks},
    decode::decode_column,
    format::{CHUNK_ROWS, ChunkSet, chunk_rows, chunks_of},
    segment::{Footer, Segment},
};

/// A row group of a segment, for reading.
#[derive(Debug, Clone, Copy)]
pub struct RowGroup<'a> {
    /// The segment's table.
    pub table: &'a Table,
    /// The segment.
    pub segment: &'a Segment,
    /// Its footer.
    pub footer: &'a Footer,
    /// The row group's number.
    pub number: usize,
}

/// How a column was come by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// It was in memory.
    Memory,
    /// This many bytes were read and decoded.
    Disk(u64),
}

impl RowGroup<'_> {
    /// Rows of it.
    pub fn rows(&self) -> usize {
        self.footer.group_rows(self.number)
    }

    /// Names a column of it in the cache.
    pub fn key(&self, column: usize) -> CacheKey {
        CacheKey { segment: self.segment.id(), row_group: self.number as u32, column: column as u32 }
    }

    /// The chunks `wanted` of a column. Blocks.
    pub fn column(&self, store: &Store, file: &File, column: usize, wanted: ChunkSet) -> Result<(Arc<Chunks>, Origin)> {
        if let Some(chunks) = store.cache.get(self.key(column), wanted) {
            return Ok((chunks, Origin::Memory));
        }
        let mut origin = Origin::Memory;
        let decode = |missing: ChunkSet, chunks: &mut Chunks| {
            origin = self.decode(file, column, missing, chunks)?;
            Ok(())
        };
        let chunks = store.cache.get_or_decode(self.key(column), chunks_of(self.rows()), wanted, decode);
        Ok((self.segment.note(chunks)?, origin))
    }

    /// The same, for somebody after whom nobody will want it: the cache may help, and keeps nothing of it.
    pub fn column_once(&self, store: &Store, file: &File, column: usize, wanted: ChunkSet) -> Result<Arc<Chunks>> {
        if let Some(chunks) = store.cache.get(self.key(column), wanted) {
            return Ok(chunks);
        }
        let mut chunks = Chunks::none(chunks_of(self.rows()));
        self.segment.note(self.decode(file, column, wanted, &mut chunks))?;
        Ok(Arc::new(chunks))
    }

    fn decode(&self, file: &File, column: usize, missing: ChunkSet, chunks: &mut Chunks) -> Result<Origin> {
        if column >= self.segment.record().columns() {
            let value = initial_values(self.table, column, CHUNK_ROWS.min(self.rows()))?;
            missing.iter().for_each(|at| chunks.insert(at, value.slice(0, chunk_rows(self.rows(), at))));
            return Ok(Origin::Memory);
        }
        let stored = self.table.arrow_type(column);
        let bytes = decode_column(self.segment, file, self.footer, self.number, column, &stored, missing, chunks)?;
        Ok(Origin::Disk(bytes))
    }
}

/// What rows hold in a column that was added after them.
fn initial_values(table: &Table, column: usize, rows: usize) -> Result<ArrayRef> {
    let value = ScalarValue::try_from_array(&table.columns[column].initial_value()?, 0)?;
    Ok(value.to_array_of_size(rows)?)
}
