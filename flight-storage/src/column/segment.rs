//! A segment: an immutable file of rows, what the manifest says of it, and when it is visible.
//!
//! A file is believed only after its length and checksum were compared with the manifest's, once for each start of the
//! process; from then on the checksum of each block that is read is compared with what it was at that time, for disks rot. Its
//! footer is read and kept, under a budget, in [`Footers`]. A segment that was dropped stays readable
//! for the scans that hold it: its file is deleted when the last of them lets go. A segment whose file is found damaged
//! says so from then on, so that its shard can be copied from another replica.
//!
//! Not here: the contents of the file (`decode`, `prune`), how it came to be (`write`), and which of its rows were deleted
//! since (`deletes`).

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::{ErrorKind, Read, Seek, SeekFrom},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::{Buf, Bytes, buf::Reader};
use drsdb_core::{Error, ErrorCode, Result, Ulid, scan::OwnWrites};
use parking_lot::{Mutex, RwLock};
use parquet::{
    arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions},
    errors::{ParquetError, Result as ParquetResult},
    file::{
        metadata::{PageIndexPolicy, ParquetMetaData},
        reader::{ChunkReader, Length},
    },
};

use super::{
    deletes::{Deletion, Deletions, Mask},
    format::{corrupt, read_error},
    lru::Lru,
    prune::Zones,
    stats::SegmentStatistics,
};
use crate::engine::ShardId;

/// What has a checksum of its own, kept in memory.
const BLOCK_BYTES: u64 = 64 << 10;

/// The version of what is not committed, and the end of what is not deleted.
pub const NEVER: u64 = u64::MAX;

/// The smallest and the largest primary key of a segment, in the row format of its columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRange {
    /// The smallest.
    pub min: Box<[u8]>,
    /// The largest.
    pub max: Box<[u8]>,
}

impl KeyRange {
    /// Whether both ranges may have a key in common.
    pub fn overlaps(&self, other: &KeyRange) -> bool {
        self.min <= other.max && other.min <= self.max
    }
}

/// What the manifest keeps of a segment.
#[derive(Debug, Clone)]
pub struct SegmentRecord {
    /// Names the segment and its file.
    pub id: Ulid,
    /// Where its rows belong.
    pub shard: ShardId,
    /// Who wrote it.
    pub transaction: Ulid,
    /// In which of its statements.
    pub sequence: u32,
    /// Rows.
    pub rows: u64,
    /// The file's length.
    pub bytes: u64,
    /// CRC-32 of the file.
    pub checksum: u32,
    /// Of its columns.
    pub statistics: SegmentStatistics,
    /// `None` when the table has no primary key.
    pub key_range: Option<KeyRange>,
}

impl SegmentRecord {
    /// How many of the table's columns the file has: those that there were when it was written.
    pub fn columns(&self) -> usize {
        self.statistics.null_counts.len()
    }
}

/// A segment.
#[derive(Debug)]
pub struct Segment {
    record: SegmentRecord,
    path: PathBuf,
    from_version: AtomicU64,
    deletions: RwLock<Deletions>,
    /// Whether the file was found to be something else than what was written.
    damaged: AtomicBool,
    /// CRC-32 of each block of the file, once it was found to be what was written. Locked while that is being found out.
    blocks: Mutex<Option<Arc<[u32]>>>,
    doomed: AtomicBool,
}

impl Segment {
    /// A segment whose file is still to be checked.
    pub fn new(record: SegmentRecord, path: PathBuf, from_version: Option<u64>) -> Self {
        Self {
            record,
            path,
            from_version: AtomicU64::new(from_version.unwrap_or(NEVER)),
            deletions: RwLock::default(),
            damaged: AtomicBool::new(false),
            blocks: Mutex::default(),
            doomed: AtomicBool::new(false),
        }
    }

    /// What the manifest keeps of it.
    pub fn record(&self) -> &SegmentRecord {
        &self.record
    }

    /// Its name.
    pub fn id(&self) -> Ulid {
        self.record.id
    }

    /// From which version on its rows are visible; [`NEVER`] while it is staged.
    pub fn visible_from(&self) -> u64 {
        self.from_version.load(Ordering::Acquire)
    }

    /// Whether a snapshot sees its rows, or the transaction that wrote it.
    pub fn is_visible_at(&self, snapshot: u64, own: Option<OwnWrites>) -> bool {
        match self.visible_from() {
            NEVER => own
                .is_some_and(|own| own.transaction == self.record.transaction && self.record.sequence <= own.sequence),
            from => from <= snapshot,
        }
    }

    /// Whether its transaction has no outcome yet.
    pub fn is_staged(&self) -> bool {
        self.visible_from() == NEVER
    }

    /// Whether any of its rows was deleted, if only in a transaction without outcome.
    pub fn has_deletions(&self) -> bool {
        !self.deletions.read().is_empty()
    }

    /// The rows of it that a snapshot does not see, and a transaction that sees its own deletions.
    pub fn mask(&self, snapshot: u64, own: Option<OwnWrites>) -> Option<Arc<Mask>> {
        if !self.has_deletions() {
            return None;
        }
        self.deletions.write().fold();
        self.deletions.read().mask(snapshot, own)
    }

    /// For a transaction that reads `snapshot`: the rows that are not there for it, and those that others delete or have
    /// deleted since.
    pub fn view(&self, transaction: Ulid, snapshot: u64) -> (Option<Arc<Mask>>, Option<Mask>) {
        if !self.has_deletions() {
            return (None, None);
        }
        self.deletions.write().fold();
        self.deletions.read().view(transaction, snapshot, self.visible_from())
    }

    /// Every deletion.
    pub fn deletions(&self) -> Vec<Arc<Deletion>> {
        self.deletions.read().iter().cloned().collect()
    }

    /// Changes its deletions.
    pub fn change_deletions<T>(&self, change: impl FnOnce(&mut Deletions) -> T) -> T {
        change(&mut self.deletions.write())
    }

    /// Whether the file was found damaged.
    pub fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Relaxed)
    }

    /// Remembers what an error says of the file.
    pub fn note<T>(&self, result: Result<T>) -> Result<T> {
        if let Err(error) = &result
            && error.code() == ErrorCode::Corrupt
            && !self.damaged.swap(true, Ordering::Relaxed)
        {
            let ShardId { table, shard } = self.record.shard;
            tracing::error!(segment = %self.record.id, %table, shard, %error, "a segment is damaged");
        }
        result
    }

    /// Makes it visible at `version` and later.
    pub fn commit(&self, version: u64) {
        self.from_version.store(version, Ordering::Release);
    }

    /// Its file is deleted as soon as nobody holds the segment.
    pub fn doom(&self) {
        self.doomed.store(true, Ordering::Release);
    }

    /// Takes [`Segment::doom`] back.
    pub fn keep(&self) {
        self.doomed.store(false, Ordering::Release);
    }

    /// How errors name it.
    pub fn describe(&self) -> String {
        let ShardId { table, shard } = self.record.shard;
        format!("segment {} of shard {shard} of table {table}", self.record.id)
    }

    /// Opens the file, which must have the length it was written with.
    pub fn open_file(&self) -> Result<File> {
        let context = || format!("opening {}", self.describe());
        let file = File::open(&self.path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => corrupt(format!("the file of {} is missing", self.describe())),
            _ => Error::io(context(), error),
        })?;
        let length = file.metadata().map_err(|error| Error::io(context(), error))?.len();
        if length != self.record.bytes {
            let (what, expected) = (self.describe(), self.record.bytes);
            return Err(corrupt(format!("the file of {what} has {length} bytes instead of {expected}")));
        }
        Ok(file)
    }

    /// Reads bytes of the file at `offset`, which are what was written or an error. Moves the file's position.
    pub fn read(&self, file: &File, offset: u64, length: usize) -> Result<Bytes> {
        let blocks = self.blocks(file)?;
        // All of the blocks in which they lie, for each has one checksum.
        let first = offset / BLOCK_BYTES;
        let until = (offset + length as u64).div_ceil(BLOCK_BYTES).saturating_mul(BLOCK_BYTES).min(self.record.bytes);
        let from = first * BLOCK_BYTES;
        let bytes = self.read_as_it_is(file, from, until.saturating_sub(from) as usize)?;
        let found = bytes.chunks(BLOCK_BYTES as usize).map(crc32fast::hash);
        for (at, found) in found.enumerate() {
            let number = first as usize + at;
            let expected = blocks.get(number).copied().unwrap_or_default();
            if found != expected {
                let what = self.describe();
                let message =
                    format!("block {number} of the file of {what} has checksum {found:08x} instead of {expected:08x}");
                return Err(corrupt(message));
            }
        }
        let start = (offset - from) as usize;
        if bytes.len() < start + length {
            return Err(corrupt(format!("the file of {} ends too early", self.describe())));
        }
        Ok(bytes.slice(start..start + length))
    }

    fn read_as_it_is(&self, mut file: &File, offset: u64, length: usize) -> Result<Bytes> {
        let failed = |error| Error::io(format!("reading {}", self.describe()), error);
        file.seek(SeekFrom::Start(offset)).map_err(failed)?;
        let mut bytes = Vec::with_capacity(length);
        file.take(length as u64).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() < length {
            return Err(corrupt(format!("the file of {} ends too early", self.describe())));
        }
        Ok(bytes.into())
    }

    /// The blocks' checksums. The first time, the file is compared with the manifest's.
    fn blocks(&self, file: &File) -> Result<Arc<[u32]>> {
        let mut blocks = self.blocks.lock();
        if let Some(blocks) = &*blocks {
            return Ok(Arc::clone(blocks));
        }
        let known = self.compare_checksum(file)?;
        *blocks = Some(Arc::clone(&known));
        Ok(known)
    }

    /// Compares the file with its checksum, also when that was done before: disks rot.
    pub fn verify(&self) -> Result<()> {
        let verified = self.open_file().and_then(|file| self.compare_checksum(&file).map(drop));
        self.note(verified)
    }

    /// With the checksums of the blocks.
    fn compare_checksum(&self, mut file: &File) -> Result<Arc<[u32]>> {
        let failed = |error| Error::io(format!("reading {}", self.describe()), error);
        file.seek(SeekFrom::Start(0)).map_err(failed)?;
        let (mut checksum, mut blocks, mut block) = (crc32fast::Hasher::new(), Vec::new(), Vec::new());
        loop {
            block.clear();
            if file.take(BLOCK_BYTES).read_to_end(&mut block).map_err(failed)? == 0 {
                break;
            }
            let mut of_block = crc32fast::Hasher::new();
            of_block.update(&block);
            checksum.combine(&of_block);
            blocks.push(of_block.finalize());
        }
        let (found, expected) = (checksum.finalize(), self.record.checksum);
        if found != expected {
            let what = self.describe();
            return Err(corrupt(format!("the file of {what} has checksum {found:08x} instead of {expected:08x}")));
        }
        Ok(blocks.into())
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // Not deleted here (a crash, an error), it is an orphan, and those are deleted at the next start.
        if *self.doomed.get_mut()
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(segment = %self.record.id, %error, "a dropped segment's file could not be deleted");
        }
    }
}

/// A segment's file, as Parquet's reader wants it.
struct SegmentFile<'a> {
    segment: &'a Segment,
    file: File,
}

impl Length for SegmentFile<'_> {
    fn len(&self) -> u64 {
        self.segment.record.bytes
    }
}

impl ChunkReader for SegmentFile<'_> {
    type T = Reader<Bytes>;

    fn get_read(&self, start: u64) -> ParquetResult<Self::T> {
        let length = self.len().saturating_sub(start) as usize;
        Ok(self.get_bytes(start, length)?.reader())
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        self.segment.read(&self.file, start, length).map_err(|error| ParquetError::External(Box::new(error)))
    }
}

/// A segment's footer and page index, and what was made of them.
#[derive(Debug)]
pub struct Footer {
    metadata: ArrowReaderMetadata,
    /// By column; derived when they are needed first.
    pub zones: Mutex<HashMap<usize, Option<Arc<Zones>>>>,
}

impl Footer {
    /// For Arrow's reader.
    pub fn arrow(&self) -> &ArrowReaderMetadata {
        &self.metadata
    }

    /// Parquet's own.
    pub fn parquet(&self) -> &Arc<ParquetMetaData> {
        self.metadata.metadata()
    }

    /// Rows of each row group.
    pub fn group_rows(&self, row_group: usize) -> usize {
        self.parquet().row_group(row_group).num_rows() as usize
    }
}

/// The footers in memory.
#[derive(Debug)]
pub struct Footers {
    footers: Mutex<Lru<Ulid, Arc<Footer>>>,
}

impl Footers {
    /// Keeps up to `budget` bytes of them.
    pub fn new(budget: usize) -> Self {
        Self { footers: Mutex::new(Lru::new(budget)) }
    }

    /// The footer of `segment`, if it is in memory.
    pub fn get(&self, segment: &Segment) -> Option<Arc<Footer>> {
        self.footers.lock().get(segment.id()).cloned()
    }

    /// The footer of `segment`. Checks the file if it was not checked before. Blocks.
    pub fn load(&self, segment: &Segment) -> Result<Arc<Footer>> {
        if let Some(footer) = self.get(segment) {
            return Ok(footer);
        }
        let metadata = segment.note(load(segment))?;
        let bytes = metadata.metadata().memory_size();
        let footer = Arc::new(Footer { metadata, zones: Mutex::default() });
        self.footers.lock().insert(segment.id(), Arc::clone(&footer), bytes);
        Ok(footer)
    }

    /// Forgets segments that are gone.
    pub fn forget(&self, segments: &HashSet<Ulid>) {
        self.footers.lock().retain(|id| !segments.contains(id));
    }
}

fn load(segment: &Segment) -> Result<ArrowReaderMetadata> {
    let file = SegmentFile { segment, file: segment.open_file()? };
    // The file's own schema: the table may have other columns by now.
    let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Optional);
    ArrowReaderMetadata::load(&file, options)
        .map_err(|error| read_error(&format!("reading the footer of {}", segment.describe()), error))
}
