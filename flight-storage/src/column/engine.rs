//! [`ColumnEngine`]: the segments of all shards in memory, and the storage trait over them.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use datafusion::execution::SendableRecordBatchStream;
use drsdb_core::{Error, ErrorCode, Result, Table, Ulid, WireError};
use parking_lot::{Mutex, RwLock};

use super::{
    cache::ColumnCache,
    format::{CHUNK_ROWS, MAX_GROUP_CHUNKS, file_schema},
    keys::KeyFormat,
    manifest::Manifest,
    scan,
    segment::{Footers, Segment},
    segment_writer::segment_path,
    unique::UniqueCheck,
    write::{ColumnStageWriter, WriteBudget, sync_folder},
};
use crate::engine::{ScanRequest, ShardId, StageOptions, StageWriter, StorageEngine};

/// How a column engine works. [`Default`] is made for a server with a few gigabytes of memory.
#[derive(Debug, Clone)]
pub struct ColumnOptions {
    /// Memory for decoded columns and for the footers of segment files, in bytes.
    pub cache_bytes: usize,
    /// Rows of a segment, at most.
    pub segment_rows: usize,
    /// Rows of a row group, at most: a multiple of 8,192, up to 524,288. Wide tables have smaller ones.
    pub row_group_rows: usize,
    /// Memory for the rows that all loads together buffer, in bytes.
    pub write_buffer_bytes: usize,
}

impl Default for ColumnOptions {
    fn default() -> Self {
        Self {
            cache_bytes: 1 << 30,
            segment_rows: 1 << 20,
            row_group_rows: 16 * CHUNK_ROWS,
            write_buffer_bytes: 512 << 20,
        }
    }
}

impl ColumnOptions {
    fn validate(&self) -> Result<()> {
        let bad = |message: String| Err(WireError::new(ErrorCode::InvalidArgument, message).into());
        let largest = MAX_GROUP_CHUNKS * CHUNK_ROWS;
        if self.row_group_rows == 0 || !self.row_group_rows.is_multiple_of(CHUNK_ROWS) || self.row_group_rows > largest
        {
            let rows = self.row_group_rows;
            return bad(format!("row_group_rows must be a multiple of {CHUNK_ROWS} up to {largest}, not {rows}"));
        }
        if self.segment_rows < self.row_group_rows {
            return bad(format!("segment_rows must not be less than row_group_rows ({})", self.row_group_rows));
        }
        Ok(())
    }
}

/// What writers and scans of one engine share.
#[derive(Debug)]
pub struct Store {
    pub options: ColumnOptions,
    pub segments_dir: PathBuf,
    pub cache: ColumnCache,
    pub footers: Footers,
    pub write_budget: Arc<WriteBudget>,
    manifest: Manifest,
    segments: RwLock<Segments>,
}

/// The segments that there are. What an outcome changes, it changes under the lock: a scan that collects its segments sees
/// all of a transaction or none of it.
#[derive(Debug, Default)]
struct Segments {
    shards: HashMap<ShardId, Shard>,
    staged: HashMap<Ulid, Vec<Arc<Segment>>>,
    dropped: HashSet<Ulid>,
}

#[derive(Debug, Default)]
struct Shard {
    segments: Vec<Arc<Segment>>,
    /// Held from the comparison of primary keys until the segments are staged, so that of two transactions that stage
    /// the same key one sees the other.
    staging: Arc<Mutex<()>>,
}

impl Segments {
    /// Refuses a table that was dropped: an old ticket must not find it empty, nor a late load revive it.
    fn check_not_dropped(&self, table: &Table) -> Result<()> {
        if self.dropped.contains(&table.id) {
            let error = WireError::new(ErrorCode::NotFound, format!("table {} was dropped", table.name));
            return Err(error.with_field("table", &table.name).into());
        }
        Ok(())
    }

    /// Takes segments out of their shards; their files go when the last scan over them ends.
    fn remove(&mut self, gone: &[Arc<Segment>]) -> HashSet<Ulid> {
        let ids: HashSet<Ulid> = gone.iter().map(|segment| segment.id()).collect();
        let shards: HashSet<ShardId> = gone.iter().map(|segment| segment.record().shard).collect();
        for shard in shards {
            if let Some(shard) = self.shards.get_mut(&shard) {
                shard.segments.retain(|segment| !ids.contains(&segment.id()));
            }
        }
        gone.iter().for_each(|segment| segment.doom());
        ids
    }
}

impl Store {
    /// Stages finished segments of one shard and one transaction: all or none.
    pub fn stage(&self, table: &Table, primary: Option<&KeyFormat>, sorted: bool, new: &[Arc<Segment>]) -> Result<()> {
        let Some(first) = new.first() else { return Ok(()) };
        let (shard, transaction) = (first.record().shard, first.record().transaction);
        let staging = Arc::clone(&self.segments.write().shards.entry(shard).or_default().staging);
        let _staging = staging.lock();
        if let Some(key) = primary {
            let present = self.segments.read().shards.get(&shard).map(|shard| shard.segments.clone());
            let (schema, file_schema) = (&table.arrow_schema(), &file_schema(table));
            let check = UniqueCheck { table, schema, file_schema, key, sorted, footers: &self.footers };
            check.check(new, &present.unwrap_or_default())?;
        }
        self.segments.read().check_not_dropped(table)?;
        self.manifest.stage(new.iter().map(|segment| segment.record().clone()).collect())?;
        let mut segments = self.segments.write();
        if let Err(dropped) = segments.check_not_dropped(table) {
            // It was dropped while this was written: its segments go the same way.
            drop(segments);
            self.manifest.drop_table(table.id)?;
            return Err(dropped);
        }
        new.iter().for_each(|segment| segment.keep());
        segments.shards.entry(shard).or_default().segments.extend(new.iter().cloned());
        segments.staged.entry(transaction).or_default().extend(new.iter().cloned());
        Ok(())
    }

    fn forget(&self, gone: &HashSet<Ulid>) {
        self.cache.forget(gone);
        self.footers.forget(gone);
    }
}

/// The column engine. See the module for how it works.
#[derive(Debug)]
pub struct ColumnEngine {
    store: Arc<Store>,
}

impl ColumnEngine {
    /// Opens or creates the engine in `dir`, which no other process may use. Files that a crash left behind are deleted.
    pub fn open(dir: &Path, options: ColumnOptions) -> Result<ColumnEngine> {
        options.validate()?;
        let segments_dir = dir.join("segments");
        std::fs::create_dir_all(&segments_dir)
            .map_err(|error| Error::io(format!("creating {}", segments_dir.display()), error))?;
        let (manifest, known) = Manifest::open(&dir.join("manifest.sqlite"))?;
        let mut segments = Segments { dropped: known.dropped, ..Segments::default() };
        for known in known.segments {
            let path = segment_path(&segments_dir, known.record.id);
            let segment = Arc::new(Segment::known(known.record, path, known.from_version, known.to_version));
            let record = segment.record();
            segments.shards.entry(record.shard).or_default().segments.push(Arc::clone(&segment));
            if segment.is_staged() {
                segments.staged.entry(record.transaction).or_default().push(segment);
            }
        }
        delete_orphans(&segments_dir, &segments)?;
        sync_folder(&segments_dir)?;
        let footer_bytes = options.cache_bytes / 8;
        Ok(ColumnEngine {
            store: Arc::new(Store {
                cache: ColumnCache::new(options.cache_bytes - footer_bytes),
                footers: Footers::new(footer_bytes),
                write_budget: Arc::new(WriteBudget::new(options.write_buffer_bytes)),
                options,
                segments_dir,
                manifest,
                segments: RwLock::new(segments),
            }),
        })
    }

    /// Bytes of memory that decoded columns take now.
    pub fn cached_bytes(&self) -> usize {
        self.store.cache.bytes()
    }
}

/// Deletes the files of `dir` that no segment has.
fn delete_orphans(dir: &Path, segments: &Segments) -> Result<()> {
    let context = || format!("looking for abandoned files in {}", dir.display());
    let all = segments.shards.values().flat_map(|shard| &shard.segments);
    let known: HashSet<PathBuf> = all.map(|segment| segment_path(dir, segment.id())).collect();
    for entry in std::fs::read_dir(dir).map_err(|error| Error::io(context(), error))? {
        let path = entry.map_err(|error| Error::io(context(), error))?.path();
        if !known.contains(&path) {
            tracing::info!(path = %path.display(), "deleting a file that no segment has");
            std::fs::remove_file(&path).map_err(|error| Error::io(format!("deleting {}", path.display()), error))?;
        }
    }
    Ok(())
}

fn not_done(what: &str) -> Error {
    Error::new(ErrorCode::Unsupported, format!("{what} is not done"))
}

impl StorageEngine for ColumnEngine {
    fn stage(&self, options: StageOptions, table: &Arc<Table>, shard: u32) -> Result<Box<dyn StageWriter>> {
        let writer = ColumnStageWriter::new(Arc::clone(&self.store), options.transaction, Arc::clone(table), shard)?;
        Ok(Box::new(writer))
    }

    fn commit(&self, transaction: Ulid, version: u64) -> Result<()> {
        if !self.store.segments.read().staged.contains_key(&transaction) {
            return Ok(());
        }
        self.store.manifest.commit(transaction, version)?;
        let mut segments = self.store.segments.write();
        for segment in segments.staged.remove(&transaction).unwrap_or_default() {
            segment.commit(version);
        }
        Ok(())
    }

    fn abort(&self, transaction: Ulid) -> Result<()> {
        if !self.store.segments.read().staged.contains_key(&transaction) {
            return Ok(());
        }
        self.store.manifest.abort(transaction)?;
        let mut segments = self.store.segments.write();
        let gone = segments.staged.remove(&transaction).unwrap_or_default();
        let ids = segments.remove(&gone);
        drop(segments);
        self.store.forget(&ids);
        Ok(())
    }

    fn rollback_to(&self, _: Ulid, _: u32) -> Result<()> {
        Err(not_done("rolling a statement back"))
    }

    fn import(&self, _: &Arc<Table>, _: u32, _: u64) -> Result<Box<dyn StageWriter>> {
        Err(not_done("importing a shard"))
    }

    fn drop_shard(&self, _: ShardId) -> Result<()> {
        Err(not_done("dropping a shard"))
    }

    fn compact(&self, _: u64) -> Result<bool> {
        Ok(false)
    }

    fn staged_transactions(&self) -> Result<Vec<Ulid>> {
        let staged: BTreeSet<Ulid> = self.store.segments.read().staged.keys().copied().collect();
        Ok(staged.into_iter().collect())
    }

    fn drop_table(&self, table: Ulid) -> Result<()> {
        self.store.manifest.drop_table(table)?;
        let mut segments = self.store.segments.write();
        segments.dropped.insert(table);
        let shards: Vec<ShardId> = segments.shards.keys().copied().filter(|shard| shard.table == table).collect();
        let gone: Vec<Arc<Segment>> =
            shards.iter().filter_map(|shard| segments.shards.remove(shard)).flat_map(|shard| shard.segments).collect();
        let ids = segments.remove(&gone);
        segments.staged.retain(|_, staged| {
            staged.retain(|segment| !ids.contains(&segment.id()));
            !staged.is_empty()
        });
        drop(segments);
        self.store.forget(&ids);
        Ok(())
    }

    fn scan(&self, request: ScanRequest) -> Result<SendableRecordBatchStream> {
        let segments = self.store.segments.read();
        segments.check_not_dropped(&request.table)?;
        let shards = request.shards.iter().map(|&shard| ShardId { table: request.table.id, shard });
        let visible: Vec<Arc<Segment>> = shards
            .filter_map(|shard| segments.shards.get(&shard))
            .flat_map(|shard| &shard.segments)
            .filter(|segment| segment.is_visible_at(request.snapshot))
            .cloned()
            .collect();
        drop(segments);
        scan::scan(&self.store, request, visible)
    }
}
