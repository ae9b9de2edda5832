//! Compaction: rows leave the buffer and become segments, small and much-deleted segments are written anew, and what no
//! snapshot sees any more is forgotten. It never changes what a snapshot from the horizon on sees.
//!
//! ```text
//! plan      settled rows of the buffer, and segments that are worth writing anew      (nothing is locked)
//! write     what the horizon sees of them, sorted, into new segments; files synced    (nothing is locked)
//! exchange  one operation on the file: buffer rows and old segments go, new ones come (the shard is locked)
//! ```
//!
//! What happens to the rows while they are written is carried over in the last step: a deletion of a row of an old segment
//! that the new ones still have, staged or committed, moves to the row's new place, which is found by its key; and a buffer row that
//! a transaction is about to delete, or has deleted, stays where it is, and its copy is void from the beginning.
//!
//! A crash before the exchange leaves files that nobody knows, and after it files that nobody needs.
//!
//! Not here: what is worth it (`plan`), and who calls this when (`crate::maintenance`).

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, atomic::AtomicU64},
};

use arrow::{
    array::{ArrayRef, UInt32Array},
    compute::{concat, filter_record_batch, take},
    record_batch::RecordBatch,
};
use drsdb_core::{Error, ErrorCode, Result, Table, Ulid, ids};

use super::{
    Store,
    buffer::Settled,
    deletes::{Deletion, Mask},
    format::{CHUNK_ROWS, ChunkSet, chunk_rows, chunks_of},
    keys::KeyFormat,
    locate::{Keys, Locator},
    manifest::{Change, Moved},
    plan::{self, Plan},
    read::RowGroup,
    segment::Segment,
    write::{Loaded, Loader},
};
use crate::engine::ShardId;

/// Folded deletions of a segment from which on they are made one.
const CONDENSE_FROM: usize = 8;

/// Does a step in each shard. Answers whether there is more to do.
pub fn compact(store: &Arc<Store>, horizon: u64) -> Result<bool> {
    let _only = store.compacting.lock();
    let mut shards: Vec<ShardId> = store.state.read().shards.keys().copied().collect();
    shards.sort_unstable();
    let mut more = false;
    for shard in shards {
        match compact_shard(store, shard, horizon) {
            Ok(again) => more |= again,
            // It is said by `damaged`; the others need not wait until it is replaced.
            Err(error) if error.code() == ErrorCode::Corrupt && is_damaged(store, shard) => {
                tracing::debug!(table = %shard.table, shard = shard.shard, %error, "a damaged shard is not compacted");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(more)
}

fn is_damaged(store: &Store, shard: ShardId) -> bool {
    store.state.read().shards.get(&shard).is_some_and(super::store::Shard::is_damaged)
}

fn compact_shard(store: &Arc<Store>, shard: ShardId, horizon: u64) -> Result<bool> {
    let Some(table) = store.state.read().table(shard.table) else { return Ok(false) };
    note_empty_buffer(store, shard)?;
    let plan = plan::plan(store, &table, shard, horizon)?;
    let more = plan.more;
    let condensed = condense(store, shard, horizon)?;
    if plan.rows == 0 && plan.segments.is_empty() {
        return Ok(more || condensed);
    }
    let work = Work { store, table: &table, shard, horizon, primary: KeyFormat::new(&table, &table.primary_key)? };
    work.run(plan)?;
    Ok(true)
}

/// Spares scans a look at a buffer that is empty by now.
fn note_empty_buffer(store: &Store, shard: ShardId) -> Result<()> {
    let locks = store.locks(shard);
    let _staging = locks.staging.lock();
    if !store.state.read().shards.get(&shard).is_some_and(|shard| shard.buffered) {
        return Ok(());
    }
    let (mut has_rows, mut forgotten) = store.buffer.has_rows(shard)?;
    if !has_rows {
        // What is queued is not in the file yet.
        store.buffer.settle()?;
        (has_rows, forgotten) = store.buffer.has_rows(shard)?;
    }
    if let Some(shard) = store.state.write().shards.get_mut(&shard) {
        shard.note_buffer(has_rows, forgotten);
    }
    Ok(())
}

/// Makes one of a segment's many deletions.
fn condense(store: &Store, shard: ShardId, horizon: u64) -> Result<bool> {
    let locks = store.locks(shard);
    let _staging = locks.staging.lock();
    let segments = store.state.read().shards.get(&shard).map(|shard| shard.segments.clone()).unwrap_or_default();
    for segment in segments.iter().filter(|segment| segment.has_deletions()) {
        let piece = ids::new_ulid();
        let condensed = segment.change_deletions(|all| all.condensed(horizon, piece, CONDENSE_FROM));
        let Some((one, gone)) = condensed else { continue };
        let version = one.version();
        let change = Change::Condense {
            shard,
            segment: segment.id(),
            horizon: version,
            one: Arc::clone(&one),
            gone: gone.clone(),
        };
        store.buffer.remove(shard, Vec::new(), vec![change])?;
        let mut state = store.state.write();
        segment.change_deletions(|all| all.replace(one, &gone));
        if let Some(shard) = state.shards.get_mut(&shard) {
            shard.horizon = shard.horizon.max(version);
        }
        return Ok(true);
    }
    Ok(false)
}

/// A segment that goes, and its rows that the new ones do not have.
struct Old {
    segment: Arc<Segment>,
    left_out: Arc<Mask>,
}

/// One exchange.
struct Work<'a> {
    store: &'a Arc<Store>,
    table: &'a Arc<Table>,
    shard: ShardId,
    horizon: u64,
    primary: Option<KeyFormat>,
}

impl Work<'_> {
    fn step(&self, name: &str) {
        if let Some(on_step) = self.store.options.on_step {
            on_step(name);
        }
    }

    fn run(&self, plan: Plan) -> Result<()> {
        self.step("read");
        let settled = match plan.rows {
            0 => Settled::default(),
            most => self.store.buffer.settled(self.table, self.shard, self.horizon, most)?,
        };
        let mut loader =
            Loader::new(Arc::clone(self.store), (Ulid::nil(), 0), Arc::clone(self.table), self.shard.shard)?.merging();
        settled.batches.iter().try_for_each(|batch| loader.write(batch))?;
        // What the horizon does not see any more stays behind: no snapshot from this version on may miss it.
        let mut version = settled.newest;
        let mut old = Vec::new();
        for segment in plan.segments {
            let deletions = segment.deletions();
            let forgotten = deletions.iter().map(|one| one.version()).filter(|version| *version <= self.horizon);
            version = forgotten.fold(version.max(segment.visible_from()), u64::max);
            let left_out = segment.mask(self.horizon, None).unwrap_or_default();
            self.read_segment(&segment, &left_out, &mut |batch| loader.write(batch))?;
            old.push(Old { segment, left_out });
        }
        self.step("write");
        let loaded = loader.finish(false)?;
        self.step("exchange");
        self.exchange(&old, &settled, &loaded, version)
    }

    /// Hands on the rows of a segment, but for those to be left out. Decoded columns do not go into the cache: the segment is about to go.
    fn read_segment(
        &self,
        segment: &Segment,
        left_out: &Mask,
        take: &mut dyn FnMut(&RecordBatch) -> Result<()>,
    ) -> Result<()> {
        if left_out.rows() == segment.record().rows {
            return Ok(());
        }
        let footer = self.store.footers.load(segment)?;
        let file = segment.note(segment.open_file())?;
        let schema = self.table.arrow_schema();
        let mut first_chunk = 0;
        for number in 0..footer.parquet().num_row_groups() {
            let group = RowGroup { table: self.table, segment, footer: &footer, number };
            let rows = group.rows();
            let wanted = ChunkSet::first(chunks_of(rows));
            let columns =
                (0..self.table.columns.len()).map(|column| group.column_once(self.store, &file, column, wanted));
            let columns = columns.collect::<Result<Vec<_>>>()?;
            for chunk in wanted.iter() {
                let arrays = columns.iter().map(|column| Arc::clone(column.get(chunk).expect("all chunks were read")));
                let batch = RecordBatch::try_new(Arc::clone(&schema), arrays.collect())?;
                match left_out.left_in(first_chunk + chunk, chunk_rows(rows, chunk)) {
                    None => take(&batch)?,
                    Some(left) => take(&filter_record_batch(&batch, &left)?)?,
                }
            }
            first_chunk += chunks_of(rows);
        }
        Ok(())
    }

    /// The last step. Does nothing when the shard was replaced or dropped meanwhile.
    fn exchange(&self, gone: &[Old], settled: &Settled, loaded: &Loaded, version: u64) -> Result<()> {
        let locks = self.store.locks(self.shard);
        let _staging = locks.staging.lock();
        let ids: HashSet<Ulid> = gone.iter().map(|old| old.segment.id()).collect();
        {
            let state = self.store.state.read();
            let present = state.shards.get(&self.shard).map(|shard| &shard.segments[..]).unwrap_or_default();
            let found = present.iter().filter(|segment| ids.contains(&segment.id())).count();
            if found < ids.len() || state.check_not_dropped(self.table).is_err() {
                return Ok(());
            }
        }
        // All that was staged before is in the file from here on, and nothing more can be.
        self.store.buffer.settle()?;
        let still = self.store.buffer.still_settled(self.shard, self.horizon, &settled.numbers)?;
        let new = &loaded.segments;
        let void = self.void(settled, &still, new)?;
        let moved = self.moved(gone, new)?;
        let numbers = settled.numbers.iter().copied().filter(|number| still.contains(number)).collect();
        let change = Change::Exchange {
            shard: self.shard,
            gone: ids.iter().copied().collect(),
            new: new.iter().map(|segment| segment.record().clone()).collect(),
            version,
            horizon: version,
            moved: moved.clone(),
            void: void.clone(),
        };

        let _switch = locks.switch.write();
        match self.store.buffer.remove(self.shard, numbers, vec![change]) {
            Err(error) if error.code() == ErrorCode::NotFound => return Ok(()),
            other => other?,
        }
        self.step("forget");
        let (has_rows, forgotten) = self.store.buffer.has_rows(self.shard)?;
        let mut state = self.store.state.write();
        // A table that is dropped takes none of the shard's locks.
        if state.check_not_dropped(self.table).is_err() {
            return Ok(());
        }
        let Some(shard) = state.shards.get_mut(&self.shard) else { return Ok(()) };
        let by_id: BTreeMap<Ulid, &Arc<Segment>> = new.iter().map(|segment| (segment.id(), segment)).collect();
        for Moved { from, to, piece, rows } in moved {
            let old = gone.iter().filter(|old| old.segment.id() == from).flat_map(|old| old.segment.deletions());
            // None: it was undone meanwhile.
            for deletion in old.filter(|deletion| deletion.piece == piece) {
                let deletion = Deletion { rows: Arc::clone(&rows), ..Deletion::clone(&deletion) };
                by_id[&to].change_deletions(|all| all.add(deletion));
            }
        }
        for (segment, deletion) in void {
            by_id[&segment].change_deletions(|all| all.add(deletion));
        }
        shard.segments.retain(|segment| !ids.contains(&segment.id()));
        gone.iter().for_each(|old| old.segment.doom());
        for segment in new {
            segment.keep();
            segment.commit(version);
            shard.segments.push(Arc::clone(segment));
        }
        shard.horizon = shard.horizon.max(version);
        shard.note_buffer(has_rows, forgotten);
        drop(state);
        self.store.forget(&ids);
        self.step("done");
        Ok(())
    }

    /// Rows of the new segments whose originals stay in the buffer.
    fn void(&self, settled: &Settled, still: &HashSet<i64>, new: &[Arc<Segment>]) -> Result<Vec<(Ulid, Deletion)>> {
        if still.len() == settled.numbers.len() {
            return Ok(Vec::new());
        }
        let primary = self.primary()?;
        let mut numbers = settled.numbers.iter();
        let mut keys = Vec::new();
        for batch in &settled.batches {
            let stays = numbers.by_ref().take(batch.num_rows()).map(|number| !still.contains(number));
            let stays = stays.collect::<Vec<bool>>().into();
            keys.push(filter_record_batch(&batch.project(primary.columns())?, &stays)?);
        }
        let piece = ids::new_ulid();
        let mut void: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
        for batch in keys {
            for (segment, rows) in self.places(&batch, new)? {
                void.entry(segment).or_default().extend(rows);
            }
        }
        let deletions = void.into_iter().map(|(segment, mut rows)| {
            rows.sort_unstable();
            // Before every version, so nobody ever sees them.
            let outcome = Arc::new(AtomicU64::new(0));
            let deletion = Deletion { piece, transaction: Ulid::nil(), sequence: 0, outcome, rows: rows.into() };
            (new[segment].id(), deletion)
        });
        Ok(deletions.collect())
    }

    /// Deletions of the old segments that the new ones are to have.
    fn moved(&self, gone: &[Old], new: &[Arc<Segment>]) -> Result<Vec<Moved>> {
        // One statement's deletions in several segments become one, where those become one.
        let mut moved: BTreeMap<(Ulid, usize), (Ulid, Vec<u32>)> = BTreeMap::new();
        for Old { segment, left_out } in gone {
            for deletion in segment.deletions() {
                // Those that the new segments have: they were staged then, or have come since.
                let rows = deletion.rows.iter().copied().filter(|row| !left_out.contains(*row));
                let rows: Vec<u32> = rows.collect();
                if rows.is_empty() {
                    continue;
                }
                for (to, rows) in self.places(&self.keys_of(segment, &rows)?, new)? {
                    moved.entry((deletion.piece, to)).or_insert((segment.id(), Vec::new())).1.extend(rows);
                }
            }
        }
        let moved = moved.into_iter().map(|((piece, to), (from, mut rows))| {
            rows.sort_unstable();
            Moved { from, to: new[to].id(), piece, rows: rows.into() }
        });
        Ok(moved.collect())
    }

    /// Where rows with these keys are, by segment. Each key must be there, once.
    fn places(&self, keys: &RecordBatch, new: &[Arc<Segment>]) -> Result<BTreeMap<usize, Vec<u32>>> {
        let format = self.primary()?;
        let keys = Keys::new(format, keys)?;
        let hits = Locator { store: self.store, table: self.table, format }.locate(&keys, new)?;
        if hits.len() != keys.len() {
            let (found, wanted) = (hits.len(), keys.len());
            return Err(Error::internal(format!(
                "a compaction found {found} of the {wanted} rows that it wrote itself"
            )));
        }
        let mut places: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
        for hit in hits {
            places.entry(hit.segment).or_default().push(hit.row);
        }
        Ok(places)
    }

    /// The keys of rows of a segment, which are in order.
    fn keys_of(&self, segment: &Segment, rows: &[u32]) -> Result<RecordBatch> {
        let footer = self.store.footers.load(segment)?;
        let file = segment.note(segment.open_file())?;
        let columns = self.primary()?.columns();
        let mut parts: Vec<Vec<ArrayRef>> = vec![Vec::new(); columns.len()];
        let (mut first_chunk, mut rest) = (0, rows);
        for number in 0..footer.parquet().num_row_groups() {
            let group = RowGroup { table: self.table, segment, footer: &footer, number };
            let chunks = chunks_of(group.rows());
            let of_group = rest.partition_point(|row| (*row as usize) < (first_chunk + chunks) * CHUNK_ROWS);
            let (mut mine, others) = rest.split_at(of_group);
            let wanted = mine.iter().fold(ChunkSet(0), |set, row| set.with(*row as usize / CHUNK_ROWS - first_chunk));
            let read = |&column: &usize| Ok(group.column(self.store, &file, column, wanted)?.0);
            let read =
                if mine.is_empty() { Vec::new() } else { columns.iter().map(read).collect::<Result<Vec<_>>>()? };
            for chunk in wanted.iter() {
                let start = (first_chunk + chunk) * CHUNK_ROWS;
                let of_chunk = mine.partition_point(|row| (*row as usize) < start + CHUNK_ROWS);
                let at: UInt32Array = mine[..of_chunk].iter().map(|row| Some(row - start as u32)).collect();
                for (parts, column) in parts.iter_mut().zip(&read) {
                    parts.push(take(column.get(chunk).expect("the chunk was read"), &at, None)?);
                }
                mine = &mine[of_chunk..];
            }
            (rest, first_chunk) = (others, first_chunk + chunks);
        }
        let arrays = parts.iter().map(|parts| {
            let parts: Vec<&dyn arrow::array::Array> = parts.iter().map(AsRef::as_ref).collect();
            Ok(concat(&parts)?)
        });
        Ok(RecordBatch::try_new(self.table.key_schema(), arrays.collect::<Result<_>>()?)?)
    }

    fn primary(&self) -> Result<&KeyFormat> {
        self.primary.as_ref().ok_or_else(|| Error::internal("rows of a table without a primary key were deleted"))
    }
}
