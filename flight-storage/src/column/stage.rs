//! Staging what one statement changes in one shard: its deletions find their rows, its new rows are compared with what is
//! there, and all of it becomes durable in one step.
//!
//! ```text
//! deletions ──▶ found in segments: a deletion of the segment       ┐
//!           └─▶ else: deleted in the buffer, which knows them      ├─▶ one operation of the row engine's writer
//! few rows ───▶ compared with segments, then into the buffer       │
//! more rows ──▶ segments, compared with segments and the buffer    ┘
//! ```
//!
//! What stands in the way of a change is the same as in the row engine (`crate::row`): whatever another transaction has
//! staged, and what was committed after the snapshot, is a conflict; a committed row is a violation. On a replica that
//! does not check, versions do not matter, and whatever else is in the way is a conflict.

use std::{cmp::Reverse, collections::HashSet, sync::Arc};

use arrow::{compute::filter_record_batch, record_batch::RecordBatch};
use drsdb_core::{Error, ErrorCode, Result, Table, WireError, ids};

use super::{
    Store,
    buffer::Claim,
    deletes::{Deletion, Mask},
    format::stored_schema,
    keys::{Clash, KeyFormat, clash_error, describe},
    locate::{Hit, Keys, Locator},
    manifest::Change,
    segment::{NEVER, Segment},
    store::Locks,
    unique::{Present, UniqueCheck},
};
use crate::engine::{ShardId, StageOptions};

/// New rows of a statement in one shard.
pub enum NewRows<'a> {
    /// They go to the buffer.
    Buffered(Vec<RecordBatch>),
    /// They are in finished segments; when they are few, all of them as they came, too.
    Segments { segments: &'a [Arc<Segment>], few: &'a [RecordBatch] },
}

/// Stages a statement's changes in one shard.
pub struct Stager<'a> {
    pub store: &'a Store,
    pub options: StageOptions,
    pub table: &'a Arc<Table>,
    pub shard: ShardId,
    /// The primary key.
    pub primary: Option<&'a KeyFormat>,
}

/// A segment as the transaction sees it.
struct View {
    segment: Arc<Segment>,
    /// Rows that are not there.
    gone: Option<Arc<Mask>>,
    /// Rows that others delete, or have deleted since the snapshot.
    contested: Option<Mask>,
    /// Rows that this statement deletes.
    deletes: Vec<u32>,
}

impl View {
    fn is_gone(&self, row: u32) -> bool {
        self.gone.as_ref().is_some_and(|mask| mask.contains(row))
    }

    fn is_contested(&self, row: u32) -> bool {
        self.contested.as_ref().is_some_and(|mask| mask.contains(row))
    }
}

impl Stager<'_> {
    /// Stages; durable when it returns. Answers how many rows were deleted.
    pub fn stage(&self, deletes: &[RecordBatch], rows: NewRows<'_>) -> Result<u64> {
        let locks = self.store.locks(self.shard);
        let staging = locks.staging.lock();
        let mut views = self.views(&locks)?;
        let mut deleted = 0;
        let mut in_buffer = Vec::new();
        let mut freed = Vec::with_capacity(deletes.len());
        for batch in deletes {
            deleted += batch.num_rows() as u64;
            let (keys, missing) = self.find_deleted(batch, &mut views)?;
            in_buffer.extend(missing);
            freed.push(keys);
        }
        if let Some(primary) = self.primary {
            self.check(primary, &rows, &views, &in_buffer, &freed)?;
        }
        let (buffered, new): (Vec<RecordBatch>, &[Arc<Segment>]) = match rows {
            NewRows::Buffered(batches) => (batches, &[]),
            NewRows::Segments { segments, .. } => (Vec::new(), segments),
        };

        let piece = ids::new_ulid();
        let in_rows = !in_buffer.is_empty() || !buffered.is_empty();
        let mut state = self.store.state.write();
        state.check_not_dropped(self.table)?;
        let is_newer = state.is_newer(self.table);
        let mut deletions = Vec::new();
        for view in views.iter_mut().filter(|view| !view.deletes.is_empty()) {
            let outcome = state.outcome(self.options.transaction);
            let (transaction, sequence) = (self.options.transaction, self.options.sequence);
            let rows = std::mem::take(&mut view.deletes).into();
            deletions.push((Arc::clone(&view.segment), Deletion { piece, transaction, sequence, outcome, rows }));
        }
        let in_segments = !deletions.is_empty() || !new.is_empty();
        if in_segments {
            state.register(self.options.transaction, self.shard, new, &deletions);
        }
        if in_rows {
            state.shards.entry(self.shard).or_default().buffered = true;
        }
        drop(state);
        if !in_segments && !in_rows {
            return Ok(0);
        }

        let mut changes = Vec::new();
        if is_newer {
            changes.push(Change::Define(Arc::clone(self.table)));
        }
        if in_segments {
            changes.push(Change::Stage {
                table: Arc::clone(self.table),
                segments: new.iter().map(|segment| segment.record().clone()).collect(),
                deletions: deletions.iter().map(|(segment, one)| (segment.id(), one.clone())).collect(),
            });
        }
        let (options, shard) = (self.options, self.shard.shard);
        let pending = self.store.buffer.stage(options, self.table, shard, in_buffer, buffered, changes);
        // Queued in the order in which it was registered: whoever stages next comes after it on disk as well.
        drop(staging);
        let outcome = pending.and_then(|pending| pending.wait().map(drop));
        if outcome.is_ok() && is_newer {
            self.store.state.write().define(self.table);
        }
        if outcome.is_err() && in_segments {
            self.store.state.write().withdraw(self.options.transaction, self.shard, new, piece);
        }
        outcome.map(|()| deleted)
    }

    fn views(&self, _held: &Locks) -> Result<Vec<View>> {
        let state = self.store.state.read();
        state.check_not_dropped(self.table)?;
        let Some(shard) = state.shards.get(&self.shard) else { return Ok(Vec::new()) };
        let snapshot = if self.options.checked { self.options.snapshot } else { NEVER - 1 };
        shard.check(self.table, snapshot, true)?;
        let view = |segment: &Arc<Segment>| {
            let (gone, contested) = segment.view(self.options.transaction, snapshot);
            View { segment: Arc::clone(segment), gone, contested, deletes: Vec::new() }
        };
        Ok(shard.segments.iter().map(view).collect())
    }

    /// What it means that a committed row has a key.
    fn committed(&self) -> Clash {
        if self.options.checked { Clash::Committed } else { Clash::Replica }
    }

    fn locate(&self, primary: &KeyFormat, keys: &Keys, views: &[View]) -> Result<Vec<Hit>> {
        let segments: Vec<Arc<Segment>> = views.iter().map(|view| Arc::clone(&view.segment)).collect();
        Locator { store: self.store, table: self.table, format: primary }.locate(keys, &segments)
    }

    /// Finds rows to delete in segments; answers their keys, and those of rows that are not there.
    ///
    /// The largest segments come first, since they have most of the rows; a row that is there, and that nobody else is changing,
    /// is the only one with its key, so that the other segments need not be asked for it.
    fn find_deleted(&self, batch: &RecordBatch, views: &mut [View]) -> Result<(Keys, Option<RecordBatch>)> {
        let primary = self.primary.expect("rows of a table without a primary key are not deleted");
        let keys = Keys::new(primary, batch)?;
        let mut missing = vec![true; batch.num_rows()];
        let mut left = missing.len();
        let mut rest: Option<Keys> = None;
        let mut largest_first: Vec<usize> = (0..views.len()).collect();
        largest_first.sort_by_key(|&at| Reverse(views[at].segment.record().rows));
        for at in largest_first {
            if left == 0 {
                break;
            }
            let asked = rest.as_ref().unwrap_or(&keys);
            if left * 2 <= asked.len() {
                rest = Some(asked.kept(primary, &missing)?);
            }
            let asked = rest.as_ref().unwrap_or(&keys);
            let hits = self.locate(primary, asked, std::slice::from_ref(&views[at]))?;
            left -= self.delete_hits(primary, asked, &hits, &mut views[at], &mut missing)?;
        }
        if let Some(key) = keys.repeated() {
            return Err(conflict_error(self.table, primary, key, "it is to be deleted twice"));
        }
        let missing = match left > 0 {
            true => Some(filter_record_batch(batch, &missing.into())?),
            false => None,
        };
        Ok((keys, missing))
    }

    /// Notes that rows of a segment are to be deleted, unless they are gone. Answers how many they are.
    fn delete_hits(
        &self,
        primary: &KeyFormat,
        keys: &Keys,
        hits: &[Hit],
        view: &mut View,
        missing: &mut [bool],
    ) -> Result<usize> {
        let before = view.deletes.len();
        let StageOptions { transaction, snapshot, checked, .. } = self.options;
        for hit in hits {
            let conflict = |what: &str| conflict_error(self.table, primary, keys.key(hit.key), what);
            if view.is_gone(hit.row) || view.deletes[..before].binary_search(&hit.row).is_ok() {
                continue;
            }
            match view.segment.visible_from() {
                NEVER if view.segment.record().transaction == transaction => {}
                NEVER => return Err(conflict("another transaction is writing it")),
                from if checked && from > snapshot => return Err(conflict("another transaction has changed it")),
                _ => {}
            }
            if view.is_contested(hit.row) {
                return Err(conflict("another transaction is changing or deleting it, or has done so"));
            }
            if !std::mem::replace(&mut missing[keys.position(hit.key) as usize], false) {
                return Err(Error::internal(format!("two rows of table {} have the same key", self.table.name)));
            }
            view.deletes.push(hit.row);
        }
        let found = view.deletes.len() - before;
        view.deletes.sort_unstable();
        Ok(found)
    }

    /// Compares new rows with each other and with what is there, less `deleted` in the buffer. Rows of the keys `freed` have
    /// been deleted, wherever they were.
    fn check(
        &self,
        primary: &KeyFormat,
        rows: &NewRows<'_>,
        views: &[View],
        deleted: &[RecordBatch],
        freed: &[Keys],
    ) -> Result<()> {
        let look_up =
            |few: &[RecordBatch]| few.iter().try_for_each(|batch| self.check_few(primary, batch, views, freed));
        match rows {
            // The buffer compares them with itself.
            NewRows::Buffered(few) => look_up(few),
            NewRows::Segments { segments, few } => {
                if few.is_empty() {
                    self.check_many(primary, segments, views)?;
                } else {
                    look_up(few)?;
                    self.check_many(primary, segments, &[])?;
                }
                self.check_buffer(primary, segments, deleted)
            }
        }
    }

    /// Compares rows with segments, by looking up their keys.
    fn check_few(&self, primary: &KeyFormat, batch: &RecordBatch, views: &[View], freed: &[Keys]) -> Result<()> {
        let mut batch = batch.project(primary.columns())?;
        let mut keys = Keys::new(primary, &batch)?;
        if !freed.is_empty() {
            // Whatever had a key that is free was found when it was deleted, and whoever else was writing it: an update
            // that leaves the keys alone looks for them once.
            let others = keys.not_in(freed);
            batch = match others.true_count() {
                0 => return Ok(()),
                _ => filter_record_batch(&batch, &others)?,
            };
            keys = Keys::new(primary, &batch)?;
        }
        for hit in self.locate(primary, &keys, views)? {
            let view = &views[hit.segment];
            if view.is_gone(hit.row) || view.deletes.binary_search(&hit.row).is_ok() {
                continue;
            }
            let clash = match view.segment.is_staged() {
                true if view.segment.record().transaction == self.options.transaction => Clash::Itself,
                true => Clash::OtherTransaction,
                false if view.is_contested(hit.row) => Clash::OtherTransaction,
                false => self.committed(),
            };
            return Err(clash_error(self.table, primary, keys.key(hit.key), clash));
        }
        Ok(())
    }

    /// Compares new segments with each other and with those that are there.
    fn check_many(&self, primary: &KeyFormat, new: &[Arc<Segment>], views: &[View]) -> Result<()> {
        let schema = stored_schema(self.table);
        let present: Vec<Present> = views
            .iter()
            .map(|view| {
                let mut gone = view.gone.clone();
                if !view.deletes.is_empty() {
                    Arc::make_mut(gone.get_or_insert_default()).add(&view.deletes);
                }
                Present { segment: Arc::clone(&view.segment), gone, contested: view.contested.clone() }
            })
            .collect();
        let check = UniqueCheck {
            store: self.store,
            table: self.table,
            schema: &schema,
            key: primary,
            sorted: self.table.cluster_key == self.table.primary_key,
            transaction: self.options.transaction,
            committed: self.committed(),
        };
        check.check(new, &present)
    }

    /// Compares new segments with the buffer, less what is deleted in it now.
    fn check_buffer(&self, primary: &KeyFormat, new: &[Arc<Segment>], deleted: &[RecordBatch]) -> Result<()> {
        if !self.store.state.read().shards.get(&self.shard).is_some_and(|shard| shard.buffered) {
            return Ok(());
        }
        // What was queued before this is to be seen, even if it is not on disk yet.
        self.store.buffer.settle()?;
        let mut deleted_keys: HashSet<Box<[u8]>> = HashSet::new();
        for batch in deleted {
            deleted_keys.extend(primary.keys_of(batch.columns())?.iter().map(|key| key.data().into()));
        }
        let locator = Locator { store: self.store, table: self.table, format: primary };
        for (batch, claims) in self.store.buffer.claimed_keys(self.table, self.shard.shard, self.options)? {
            let keys = Keys::new(primary, &batch)?;
            for hit in locator.locate(&keys, new)? {
                let key = keys.key(hit.key);
                if deleted_keys.contains(key) {
                    continue;
                }
                let clash = match claims[keys.position(hit.key) as usize] {
                    Claim::Committed => self.committed(),
                    Claim::Own => Clash::Itself,
                    Claim::Contested => Clash::OtherTransaction,
                };
                return Err(clash_error(self.table, primary, key, clash));
            }
        }
        Ok(())
    }
}

fn conflict_error(table: &Table, format: &KeyFormat, key: &[u8], what: &str) -> Error {
    let (names, values) = describe(table, format, key);
    let message = format!("row ({names}) = ({values}) of table {}: {what}", table.name);
    WireError::new(ErrorCode::Conflict, message)
        .with_hint("run the transaction again")
        .with_field("key", values)
        .with_field("table", &table.name)
        .into()
}
