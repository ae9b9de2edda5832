//! [`ColumnEngine`]: opening it, and the storage trait.

use std::{
    collections::{BTreeSet, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use datafusion::execution::SendableRecordBatchStream;
use drsdb_core::{Error, ErrorCode, Result, Table, Ulid, WireError, crash_point};
use parking_lot::{Mutex, RwLock};

use super::{
    buffer::Buffer,
    cache::ColumnCache,
    compact,
    format::{CHUNK_ROWS, MAX_GROUP_CHUNKS},
    manifest::{self, Change},
    scan,
    segment::{Footers, Segment},
    segment_writer::segment_path,
    stage_writer::{ColumnStageWriter, ImportWriter},
    store::{State, Store},
    write::{WriteBudget, sync_folder},
};
use crate::{
    engine::{ScanRequest, ShardId, StageOptions, StageWriter, StorageEngine},
    row::RowEngine,
};

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
    /// Up to this many rows that a statement writes into a shard go to the row buffer; more become segments at once.
    pub buffer_rows: usize,
    /// Up to this many rows that become segments are looked up by their keys; more are merged with what is there.
    pub lookup_rows: usize,
    /// Told before each step of a compaction, for tests that end the process there.
    pub on_step: Option<fn(&str)>,
}

impl Default for ColumnOptions {
    fn default() -> Self {
        Self {
            cache_bytes: 1 << 30,
            segment_rows: 1 << 20,
            row_group_rows: 16 * CHUNK_ROWS,
            write_buffer_bytes: 512 << 20,
            // About what a file with its fsync costs.
            buffer_rows: 512,
            lookup_rows: 2 * CHUNK_ROWS,
            on_step: None,
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

/// The column engine. See the module for how it works.
#[derive(Debug)]
pub struct ColumnEngine {
    store: Arc<Store>,
    /// The segment that was verified last.
    verified: Mutex<Option<Ulid>>,
    /// Held by whoever commits; alone, by whoever undoes what is staged in a shard, whoever's it is.
    outcomes: RwLock<()>,
}

impl ColumnEngine {
    /// Opens or creates the engine in `dir`, which no other process may use, with a row buffer of its own.
    pub fn open(dir: &Path, options: ColumnOptions) -> Result<ColumnEngine> {
        let rows = Arc::new(RowEngine::open(&dir.join("rows"))?);
        Self::open_with(dir, options, rows)
    }

    /// Opens or creates the engine in `dir`. Its buffer and its manifest are in the file of `rows`. Files that a crash
    /// left behind are deleted.
    pub fn open_with(dir: &Path, options: ColumnOptions, rows: Arc<RowEngine>) -> Result<ColumnEngine> {
        options.validate()?;
        let segments_dir = dir.join("segments");
        std::fs::create_dir_all(&segments_dir)
            .map_err(|error| Error::io(format!("creating {}", segments_dir.display()), error))?;
        let buffer = Buffer::new(rows)?;
        let known = buffer.read(manifest::read)?;
        let state = State::new(known, &buffer, &segments_dir)?;
        delete_orphans(&segments_dir, &state)?;
        crash_point::reach("column.folder.opened");
        sync_folder(&segments_dir)?;
        crash_point::reach("column.folder.named");
        let footer_bytes = options.cache_bytes / 8;
        let store = Store {
            cache: ColumnCache::new(options.cache_bytes - footer_bytes),
            footers: Footers::new(footer_bytes),
            write_budget: Arc::new(WriteBudget::new(options.write_buffer_bytes)),
            options,
            segments_dir,
            buffer,
            state: RwLock::new(state),
            compacting: Mutex::default(),
        };
        Ok(ColumnEngine { store: Arc::new(store), verified: Mutex::default(), outcomes: RwLock::default() })
    }

    /// Bytes of memory that decoded columns take now.
    pub fn cached_bytes(&self) -> usize {
        self.store.cache.bytes()
    }

    /// A part of an operation, if the transaction has staged anything in segments.
    fn change_of(&self, transaction: Ulid, change: Change) -> Vec<Change> {
        if self.store.state.read().has_staged(transaction) { vec![change] } else { Vec::new() }
    }

    fn undo(&self, transaction: Ulid, after: Option<u32>) -> Result<()> {
        let changes = self.change_of(transaction, Change::Undo { transaction, after });
        self.store.buffer.undo(transaction, after, changes)?;
        let gone = self.store.state.write().undo(transaction, after);
        self.store.forget(&gone);
        Ok(())
    }
}

/// Deletes the files of `dir` that no segment has.
fn delete_orphans(dir: &Path, state: &State) -> Result<()> {
    let context = || format!("looking for abandoned files in {}", dir.display());
    let all = state.shards.values().flat_map(|shard| &shard.segments);
    let known: HashSet<PathBuf> = all.map(|segment| segment_path(dir, segment.id())).collect();
    // The entry of a file that seems to be nobody's may be the one that cannot be read.
    let keep = state.shards.values().any(|shard| shard.damaged);
    for entry in std::fs::read_dir(dir).map_err(|error| Error::io(context(), error))? {
        let path = entry.map_err(|error| Error::io(context(), error))?.path();
        if !known.contains(&path) && !keep {
            tracing::info!(path = %path.display(), "deleting a file that no segment has");
            std::fs::remove_file(&path).map_err(|error| Error::io(format!("deleting {}", path.display()), error))?;
        }
    }
    Ok(())
}

/// Changes of either kind are in one file, so what ends a transaction here ends it in the row engine as well.
impl StorageEngine for ColumnEngine {
    fn stage(&self, options: StageOptions, table: &Arc<Table>, shard: u32) -> Result<Box<dyn StageWriter>> {
        let writer = ColumnStageWriter::new(Arc::clone(&self.store), options, Arc::clone(table), shard)?;
        Ok(Box::new(writer))
    }

    fn commit_all(&self, commits: &[(Ulid, u64)]) -> Result<()> {
        let _staged_stays = self.outcomes.read();
        let mut queued = Vec::with_capacity(commits.len());
        for &(transaction, version) in commits {
            let changes = self.change_of(transaction, Change::Commit { transaction, version });
            queued.push((transaction, version, self.store.buffer.commit(transaction, version, changes)?));
        }
        for (transaction, version, commit) in queued {
            commit.wait()?;
            self.store.state.write().commit(transaction, version);
        }
        Ok(())
    }

    fn abort(&self, transaction: Ulid) -> Result<()> {
        self.undo(transaction, None)
    }

    fn rollback_to(&self, transaction: Ulid, sequence: u32) -> Result<()> {
        self.undo(transaction, Some(sequence))
    }

    fn import(&self, table: &Arc<Table>, shard: u32, version: u64) -> Result<Box<dyn StageWriter>> {
        self.store.state.read().check_not_dropped(table)?;
        let writer = ImportWriter::new(Arc::clone(&self.store), Arc::clone(table), shard, version)?;
        Ok(Box::new(writer))
    }

    fn forget_staged(&self, shard: ShardId) -> Result<()> {
        // A commit looks at what is staged twice: for the file, and for what is in memory.
        let _no_commits = self.outcomes.write();
        self.store.buffer.forget_staged(shard, vec![Change::ForgetStaged { shard }])?;
        let gone = self.store.state.write().forget_staged(shard);
        self.store.forget(&gone);
        Ok(())
    }

    fn drop_shard(&self, shard: ShardId) -> Result<()> {
        let change = Change::Replace { shard, segments: Vec::new(), version: 0 };
        let gone = self.store.replace_shard(shard, vec![change], |_| {})?;
        self.store.forget(&gone);
        Ok(())
    }

    fn compact(&self, horizon: u64) -> Result<bool> {
        let more = compact::compact(&self.store, horizon)?;
        Ok(self.store.buffer.compact(horizon)? || more)
    }

    fn staged_transactions(&self) -> Result<Vec<Ulid>> {
        let mut staged: BTreeSet<Ulid> = self.store.buffer.staged_transactions()?.into_iter().collect();
        staged.extend(self.store.state.read().staged());
        Ok(staged.into_iter().collect())
    }

    fn drop_table(&self, table: Ulid) -> Result<()> {
        self.store.buffer.drop_table(table, vec![Change::DropTable { table }])?;
        let gone = self.store.state.write().drop_table(table);
        self.store.forget(&gone);
        Ok(())
    }

    fn damaged(&self) -> Vec<ShardId> {
        let state = self.store.state.read();
        let mut damaged: Vec<ShardId> =
            state.shards.iter().filter(|(_, shard)| shard.is_damaged()).map(|(id, _)| *id).collect();
        damaged.sort_unstable();
        damaged
    }

    fn verify(&self) -> Result<bool> {
        let mut segments: Vec<Arc<Segment>> =
            self.store.state.read().shards.values().flat_map(|shard| &shard.segments).cloned().collect();
        segments.sort_unstable_by_key(|segment| segment.id());
        let mut verified = self.verified.lock();
        let next = segments.into_iter().find(|segment| verified.is_none_or(|last| segment.id() > last));
        *verified = next.as_ref().map(|segment| segment.id());
        let Some(segment) = next else { return Ok(false) };
        match segment.verify() {
            // It is said by `damaged`.
            Err(error) if error.code() == ErrorCode::Corrupt => Ok(true),
            other => other.map(|()| true),
        }
    }

    fn scan(&self, request: ScanRequest) -> Result<SendableRecordBatchStream> {
        scan::start(&self.store, request)
    }
}
