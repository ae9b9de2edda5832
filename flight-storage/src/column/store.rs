//! [`Store`]: what writers, scans and compaction of one engine share, and the state of all shards in memory.
//!
//! # Who holds which lock
//!
//! | lock | of | held |
//! |---|---|---|
//! | `staging` | a shard | from looking at keys until what is staged is registered here and queued for the disk; compaction's last step |
//! | `switch` | a shard | read: while a scan collects its segments and begins to read the buffer; write: while compaction exchanges one for the other |
//! | `state` | all | for moments; never while something is written |
//!
//! They are taken in this order. What is staged is registered before it is durable, so that the next one who stages sees
//! it; it is taken back if it cannot be made durable. Nobody waits for a disk with a shard's `staging` held, but for
//! compaction: small writes into one shard share an fsync.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
};

use drsdb_core::{Error, ErrorCode, Result, Table, Ulid, WireError};
use parking_lot::{Mutex, RwLock};

use super::{
    ColumnOptions,
    buffer::Buffer,
    cache::ColumnCache,
    deletes::{Deletion, Outcome},
    format::corrupt,
    manifest::Known,
    plan::Look,
    segment::{Footers, NEVER, Segment},
    segment_writer::segment_path,
    write::WriteBudget,
};
use crate::engine::ShardId;

/// What writers, scans and compaction of one engine share.
#[derive(Debug)]
pub struct Store {
    pub options: ColumnOptions,
    pub segments_dir: PathBuf,
    pub cache: ColumnCache,
    pub footers: Footers,
    pub write_budget: Arc<WriteBudget>,
    /// The buffer of small writes; its file has the manifest too.
    pub buffer: Buffer,
    pub state: RwLock<State>,
    /// Held by whoever compacts.
    pub compacting: Mutex<()>,
}

/// All shards. What an outcome changes, it changes under the lock: a scan that collects its segments sees all of a
/// transaction or none of it.
#[derive(Debug, Default)]
pub struct State {
    pub shards: HashMap<ShardId, Shard>,
    staged: HashMap<Ulid, Staged>,
    dropped: HashSet<Ulid>,
    /// The newest definition of each table.
    tables: HashMap<Ulid, Arc<Table>>,
}

/// A shard's locks, see the module.
#[derive(Debug, Default)]
pub struct Locks {
    pub staging: Mutex<()>,
    pub switch: RwLock<()>,
}

/// A shard.
#[derive(Debug, Default)]
pub struct Shard {
    pub segments: Vec<Arc<Segment>>,
    pub locks: Arc<Locks>,
    /// Whether the buffer may have rows of it.
    pub buffered: bool,
    /// No snapshot below it can be read any more.
    pub horizon: u64,
    /// Whether the manifest has entries of it that cannot be believed.
    pub damaged: bool,
    /// What it was when compaction last looked.
    pub look: Look,
}

/// What a transaction without an outcome has staged in segments.
#[derive(Debug)]
struct Staged {
    /// Shared by its deletions.
    outcome: Outcome,
    shards: BTreeSet<ShardId>,
}

impl Default for Staged {
    fn default() -> Self {
        Self { outcome: Arc::new(NEVER.into()), shards: BTreeSet::new() }
    }
}

impl State {
    /// What was known at the start.
    pub fn new(known: Known, buffer: &Buffer, dir: &std::path::Path) -> Result<Self> {
        let dropped = buffer.dropped_tables()?;
        let mut state = State { dropped, tables: known.tables, ..State::default() };
        for known in known.segments {
            let path = segment_path(dir, known.record.id);
            let segment = Segment::new(known.record, path, known.from_version);
            let shard = segment.record().shard;
            if segment.is_staged() {
                state.staged.entry(segment.record().transaction).or_default().shards.insert(shard);
            }
            for deletion in known.deletions {
                if deletion.version() == NEVER {
                    let staged = state.staged.entry(deletion.transaction).or_default();
                    staged.outcome = Arc::clone(&deletion.outcome);
                    staged.shards.insert(shard);
                }
                segment.change_deletions(|deletions| deletions.add(deletion));
            }
            state.shards.entry(shard).or_default().segments.push(Arc::new(segment));
        }
        for shard in known.damaged {
            state.shards.entry(shard).or_default().damaged = true;
        }
        for (shard, horizon) in known.horizons {
            state.shards.entry(shard).or_default().horizon = horizon;
        }
        for id in buffer.shards()?.into_iter().filter(|id| state.tables.contains_key(&id.table)).collect::<Vec<_>>() {
            let (has_rows, forgotten) = buffer.has_rows(id)?;
            state.shards.entry(id).or_default().note_buffer(has_rows, forgotten);
        }
        Ok(state)
    }

    /// Refuses a table that was dropped: an old ticket must not find it empty, nor a late load revive it.
    pub fn check_not_dropped(&self, table: &Table) -> Result<()> {
        if self.dropped.contains(&table.id) {
            let error = WireError::new(ErrorCode::NotFound, format!("table {} was dropped", table.name));
            return Err(error.with_field("table", &table.name).into());
        }
        Ok(())
    }

    /// The newest definition of a table that has been written to.
    pub fn table(&self, table: Ulid) -> Option<Arc<Table>> {
        self.tables.get(&table).cloned()
    }

    /// Whether this definition of a table is to be remembered.
    pub fn is_newer(&self, table: &Table) -> bool {
        self.tables.get(&table.id).is_none_or(|known| known.version < table.version)
    }

    /// Remembers a table's definition.
    pub fn define(&mut self, table: &Arc<Table>) {
        if self.is_newer(table) {
            self.tables.insert(table.id, Arc::clone(table));
        }
    }

    /// Whether a transaction has staged anything in segments.
    pub fn has_staged(&self, transaction: Ulid) -> bool {
        self.staged.contains_key(&transaction)
    }

    /// The transactions that have.
    pub fn staged(&self) -> impl Iterator<Item = Ulid> {
        self.staged.keys().copied()
    }

    /// The outcome to come of a transaction, for what it deletes.
    pub fn outcome(&mut self, transaction: Ulid) -> Outcome {
        Arc::clone(&self.staged.entry(transaction).or_default().outcome)
    }

    /// Registers what a transaction stages in one shard.
    pub fn register(
        &mut self,
        transaction: Ulid,
        shard: ShardId,
        segments: &[Arc<Segment>],
        deletions: &[(Arc<Segment>, Deletion)],
    ) {
        self.staged.entry(transaction).or_default().shards.insert(shard);
        segments.iter().for_each(|segment| segment.keep());
        self.shards.entry(shard).or_default().segments.extend(segments.iter().cloned());
        for (segment, deletion) in deletions {
            segment.change_deletions(|deletions| deletions.add(deletion.clone()));
        }
    }

    /// Takes back what [`State::register`] did for one piece.
    pub fn withdraw(&mut self, transaction: Ulid, shard: ShardId, segments: &[Arc<Segment>], piece: Ulid) {
        let ids: HashSet<Ulid> = segments.iter().map(|segment| segment.id()).collect();
        segments.iter().for_each(|segment| segment.doom());
        let Some(present) = self.shards.get_mut(&shard) else { return };
        present.segments.retain(|segment| !ids.contains(&segment.id()));
        for segment in &present.segments {
            segment.change_deletions(|deletions| deletions.undo(|deletion| deletion.piece == piece));
        }
        self.forget_if_empty(transaction);
    }

    /// What `transaction` staged counts from `version` on.
    pub fn commit(&mut self, transaction: Ulid, version: u64) {
        let Some(staged) = self.staged.remove(&transaction) else { return };
        for shard in staged.shards.iter().filter_map(|shard| self.shards.get(shard)) {
            let own = shard.segments.iter().filter(|segment| segment.record().transaction == transaction);
            own.filter(|segment| segment.is_staged()).for_each(|segment| segment.commit(version));
        }
        staged.outcome.store(version, Ordering::Release);
    }

    /// Undoes what `transaction` staged in statements after `after`, or all of it. Answers the segments that are gone.
    pub fn undo(&mut self, transaction: Ulid, after: Option<u32>) -> HashSet<Ulid> {
        let Some(staged) = self.staged.get(&transaction) else { return HashSet::new() };
        let mut gone = HashSet::new();
        let is_undone = |sequence: u32| after.is_none_or(|after| sequence > after);
        for shard in &staged.shards {
            let Some(shard) = self.shards.get_mut(shard) else { continue };
            shard.segments.retain(|segment| {
                let record = segment.record();
                let undone = record.transaction == transaction && segment.is_staged() && is_undone(record.sequence);
                if undone {
                    segment.doom();
                    gone.insert(segment.id());
                } else if segment.has_deletions() {
                    segment.change_deletions(|deletions| {
                        deletions.undo(|deletion| deletion.transaction == transaction && is_undone(deletion.sequence));
                    });
                }
                !undone
            });
        }
        self.forget_if_empty(transaction);
        gone
    }

    /// Undoes what is staged in a shard. Answers the segments that are gone.
    pub fn forget_staged(&mut self, id: ShardId) -> HashSet<Ulid> {
        let mut gone = HashSet::new();
        let Some(shard) = self.shards.get_mut(&id) else { return gone };
        shard.segments.retain(|segment| {
            let is_staged = segment.is_staged();
            if is_staged {
                segment.doom();
                gone.insert(segment.id());
            } else if segment.has_deletions() {
                segment.change_deletions(|deletions| deletions.undo(|_| true));
            }
            !is_staged
        });
        for staged in self.staged.values_mut() {
            staged.shards.remove(&id);
        }
        self.staged.retain(|_, staged| !staged.shards.is_empty());
        gone
    }

    /// Forgets a transaction that has nothing staged any more.
    fn forget_if_empty(&mut self, transaction: Ulid) {
        let Some(staged) = self.staged.get(&transaction) else { return };
        let is_left = |shard: &Shard| {
            shard.segments.iter().any(|segment| {
                let is_own = segment.record().transaction == transaction && segment.is_staged();
                is_own || segment.deletions().iter().any(|one| one.transaction == transaction && one.version() == NEVER)
            })
        };
        if !staged.shards.iter().filter_map(|shard| self.shards.get(shard)).any(is_left) {
            self.staged.remove(&transaction);
        }
    }

    /// Forgets shards and what is staged in them. Answers the segments that are gone.
    pub fn remove_shards(&mut self, shards: &[ShardId]) -> HashSet<Ulid> {
        let mut gone = HashSet::new();
        for shard in shards {
            for segment in self.shards.remove(shard).into_iter().flat_map(|shard| shard.segments) {
                segment.doom();
                gone.insert(segment.id());
            }
            for staged in self.staged.values_mut() {
                staged.shards.remove(shard);
            }
        }
        self.staged.retain(|_, staged| !staged.shards.is_empty());
        gone
    }

    /// Forgets a table for ever. Answers the segments that are gone.
    pub fn drop_table(&mut self, table: Ulid) -> HashSet<Ulid> {
        self.dropped.insert(table);
        self.tables.remove(&table);
        let shards: Vec<ShardId> = self.shards.keys().copied().filter(|shard| shard.table == table).collect();
        self.remove_shards(&shards)
    }
}

impl Store {
    /// The locks of a shard, which is made if it is not there.
    pub fn locks(&self, shard: ShardId) -> Arc<Locks> {
        if let Some(shard) = self.state.read().shards.get(&shard) {
            return Arc::clone(&shard.locks);
        }
        Arc::clone(&self.state.write().shards.entry(shard).or_default().locks)
    }

    /// Forgets what was in memory of segments that are gone.
    pub fn forget(&self, gone: &HashSet<Ulid>) {
        if !gone.is_empty() {
            self.cache.forget(gone);
            self.footers.forget(gone);
        }
    }
}

impl Shard {
    /// Takes note of whether the buffer has rows; if not, nobody asks it any more what it has forgotten.
    pub fn note_buffer(&mut self, has_rows: bool, forgotten: u64) {
        self.buffered = has_rows;
        if !has_rows {
            self.horizon = self.horizon.max(forgotten);
        }
    }

    /// Whether anything of it was found damaged.
    pub fn is_damaged(&self) -> bool {
        self.damaged || self.segments.iter().any(|segment| segment.is_damaged())
    }

    /// Refuses what the shard cannot answer: a snapshot whose rows may be forgotten, and everything when it is damaged.
    pub fn check(&self, table: &Table, snapshot: u64, is_write: bool) -> Result<()> {
        if self.damaged {
            return Err(corrupt(format!("the manifest of a shard of table {} is damaged", table.name)));
        }
        if snapshot >= self.horizon {
            return Ok(());
        }
        let message = match is_write {
            true => format!("table {} has been compacted since the transaction began", table.name),
            false => format!("version {snapshot} is too old to be read: table {} has been compacted", table.name),
        };
        let error = WireError::new(ErrorCode::Conflict, message).with_hint("run it again");
        Err(Error::Wire(error.with_field("table", &table.name)))
    }
}
