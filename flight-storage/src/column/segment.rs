//! A segment: an immutable file of rows, what the manifest says of it, and when it is visible.
//!
//! A file is believed only after its length and checksum were compared with the manifest's, once for each start of the
//! process; then its footer is read and kept, under a budget, in [`Footers`]. A segment that was dropped stays readable
//! for the scans that hold it: its file is deleted when the last of them lets go.
//!
//! Not here: the contents of the file (`decode`, `prune`), nor how it came to be (`write`).

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

use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use drsdb_core::{Error, Result, Ulid};
use parking_lot::Mutex;
use parquet::{
    arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions},
    file::metadata::{PageIndexPolicy, ParquetMetaData},
};

use super::{
    format::{corrupt, read_error},
    lru::Lru,
    prune::Zones,
    stats::SegmentStatistics,
};
use crate::engine::ShardId;

/// The version of what is not committed, and the end of what is not deleted.
const NEVER: u64 = u64::MAX;

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

    /// Whether `key` is within.
    pub fn contains(&self, key: &[u8]) -> bool {
        *self.min <= *key && *key <= *self.max
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

/// A segment.
#[derive(Debug)]
pub struct Segment {
    record: SegmentRecord,
    path: PathBuf,
    from_version: AtomicU64,
    to_version: AtomicU64,
    /// Whether the file was found to be what was written. Locked while that is being found out.
    checked: Mutex<bool>,
    doomed: AtomicBool,
}

impl Segment {
    /// A segment that this process has written itself, staged.
    pub fn written(record: SegmentRecord, path: PathBuf) -> Self {
        let segment = Self::known(record, path, None, None);
        *segment.checked.lock() = true;
        segment
    }

    /// A segment that the manifest knows; its file is still to be checked.
    pub fn known(record: SegmentRecord, path: PathBuf, from_version: Option<u64>, to_version: Option<u64>) -> Self {
        Self {
            record,
            path,
            from_version: AtomicU64::new(from_version.unwrap_or(NEVER)),
            to_version: AtomicU64::new(to_version.unwrap_or(NEVER)),
            checked: Mutex::new(false),
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

    /// Whether a snapshot sees its rows.
    pub fn is_visible_at(&self, snapshot: u64) -> bool {
        let from = self.from_version.load(Ordering::Acquire);
        let to = self.to_version.load(Ordering::Acquire);
        from != NEVER && from <= snapshot && (to == NEVER || snapshot < to)
    }

    /// Whether its transaction has no outcome yet.
    pub fn is_staged(&self) -> bool {
        self.from_version.load(Ordering::Acquire) == NEVER
    }

    /// Whether its rows are there now: staged or committed, and not deleted.
    pub fn is_live(&self) -> bool {
        self.to_version.load(Ordering::Acquire) == NEVER
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

    /// Reads bytes of the file at `offset`. Moves the file's position.
    pub fn read(&self, mut file: &File, offset: u64, length: usize) -> Result<Bytes> {
        let failed = |error| Error::io(format!("reading {}", self.describe()), error);
        file.seek(SeekFrom::Start(offset)).map_err(failed)?;
        let mut bytes = Vec::with_capacity(length);
        file.take(length as u64).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() < length {
            return Err(corrupt(format!("the file of {} ends too early", self.describe())));
        }
        Ok(bytes.into())
    }

    /// Compares the file with its checksum, unless that was done before.
    fn check(&self, file: &File) -> Result<()> {
        let mut checked = self.checked.lock();
        if *checked {
            return Ok(());
        }
        let (mut checksum, mut block, mut file) = (crc32fast::Hasher::new(), vec![0; 1 << 20], file);
        loop {
            match file.read(&mut block) {
                Ok(0) => break,
                Ok(length) => checksum.update(&block[..length]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io(format!("reading {}", self.describe()), error)),
            }
        }
        let (found, expected) = (checksum.finalize(), self.record.checksum);
        if found != expected {
            let what = self.describe();
            return Err(corrupt(format!("the file of {what} has checksum {found:08x} instead of {expected:08x}")));
        }
        *checked = true;
        Ok(())
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

    /// The footer of `segment`, whose columns have the types of `file_schema`. Checks the file if it was not checked
    /// before. Blocks.
    pub fn load(&self, segment: &Segment, file_schema: &SchemaRef) -> Result<Arc<Footer>> {
        if let Some(footer) = self.get(segment) {
            return Ok(footer);
        }
        let file = segment.open_file()?;
        segment.check(&file)?;
        let options = ArrowReaderOptions::new()
            .with_schema(Arc::clone(file_schema))
            .with_page_index_policy(PageIndexPolicy::Optional);
        let metadata = ArrowReaderMetadata::load(&file, options)
            .map_err(|error| read_error(&format!("reading the footer of {}", segment.describe()), error))?;
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
