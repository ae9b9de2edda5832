//! Rows of a segment that were deleted: which, by whom, and from which version on. A segment's file never changes; this is
//! what does.
//!
//! ```text
//! deletion    rows that one statement deleted in one segment: staged, then at a version (shared by its transaction)
//! mask        the rows that one snapshot does not see, a bit each, by chunk
//! ```
//!
//! Deletions with a version are folded into one mask that grows with each, so that a scan of the present takes it as it
//! is; its chunks are shared with the masks before. Older snapshots, and transactions that see what they deleted
//! themselves, have masks made for them.
//!
//! Not here: finding the rows (`locate`), and keeping deletions on disk (`manifest`).

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use arrow::{
    array::BooleanArray,
    buffer::{BooleanBuffer, Buffer},
};
use drsdb_core::{Ulid, scan::OwnWrites};

use super::{format::CHUNK_ROWS, segment::NEVER};

/// Words of a chunk's bits.
const WORDS: usize = CHUNK_ROWS / 64;

/// The version of a transaction's deletions: [`NEVER`] until it commits.
pub type Outcome = Arc<AtomicU64>;

/// What one statement deleted in one segment.
#[derive(Debug, Clone)]
pub struct Deletion {
    /// Names it in the manifest, together with the segment; the same for all that the statement deleted in a shard.
    pub piece: Ulid,
    /// Who deleted.
    pub transaction: Ulid,
    /// In which of its statements.
    pub sequence: u32,
    /// From when on it counts.
    pub outcome: Outcome,
    /// Rows of the segment, in order.
    pub rows: Arc<[u32]>,
}

impl Deletion {
    /// From when on it counts; [`NEVER`] while it is staged.
    pub fn version(&self) -> u64 {
        self.outcome.load(Ordering::Acquire)
    }
}

#[derive(Debug, Clone)]
struct ChunkBits {
    bits: [u64; WORDS],
    count: u32,
}

/// Rows of a segment that do not count.
#[derive(Debug, Clone, Default)]
pub struct Mask {
    chunks: Vec<Option<Arc<ChunkBits>>>,
    rows: u64,
}

impl Mask {
    /// Adds rows.
    pub fn add(&mut self, rows: &[u32]) {
        for &row in rows {
            let (chunk, bit) = (row as usize / CHUNK_ROWS, row as usize % CHUNK_ROWS);
            if self.chunks.len() <= chunk {
                self.chunks.resize(chunk + 1, None);
            }
            let empty = || Arc::new(ChunkBits { bits: [0; WORDS], count: 0 });
            let bits = Arc::make_mut(self.chunks[chunk].get_or_insert_with(empty));
            let added = bits.bits[bit / 64] >> (bit % 64) & 1 == 0;
            bits.bits[bit / 64] |= 1 << (bit % 64);
            bits.count += u32::from(added);
            self.rows += u64::from(added);
        }
    }

    /// How many rows there are in it.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// How many of chunk `chunk`, counted from the segment's start.
    pub fn rows_in(&self, chunk: usize) -> usize {
        self.chunks.get(chunk).and_then(Option::as_ref).map_or(0, |bits| bits.count as usize)
    }

    /// Whether `row` is one.
    pub fn contains(&self, row: u32) -> bool {
        let (chunk, bit) = (row as usize / CHUNK_ROWS, row as usize % CHUNK_ROWS);
        let bits = self.chunks.get(chunk).and_then(Option::as_ref);
        bits.is_some_and(|bits| bits.bits[bit / 64] >> (bit % 64) & 1 == 1)
    }

    /// The mask that leaves, of a segment of `rows` rows, those that are in this one and not in `without`; `None` if there are
    /// none.
    pub fn inverse(&self, without: Option<&Mask>, rows: u64) -> Option<Mask> {
        let is_left = |row: &u32| self.contains(*row) && !without.is_some_and(|without| without.contains(*row));
        let others: Vec<u32> = (0..rows as u32).filter(|row| !is_left(row)).collect();
        let mut mask = Mask::default();
        mask.add(&others);
        (mask.rows() < rows).then_some(mask)
    }

    /// Which of the `rows` rows of chunk `chunk` are left; `None`: all.
    pub fn left_in(&self, chunk: usize, rows: usize) -> Option<BooleanArray> {
        let bits = self.chunks.get(chunk)?.as_ref()?;
        let left: Vec<u64> = bits.bits.iter().map(|word| !word.to_le()).collect();
        Some(BooleanArray::new(BooleanBuffer::new(Buffer::from_vec(left), 0, rows), None))
    }
}

/// The deletions of one segment.
#[derive(Debug, Default)]
pub struct Deletions {
    /// Not folded: staged, or committed since the last look.
    open: Vec<Arc<Deletion>>,
    folded: Vec<Arc<Deletion>>,
    /// The largest version of the folded ones.
    newest: u64,
    mask: Arc<Mask>,
}

impl Deletions {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty() && self.folded.is_empty()
    }

    /// Adds one.
    pub fn add(&mut self, deletion: Deletion) {
        self.open.push(Arc::new(deletion));
    }

    /// Every one.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Deletion>> {
        self.folded.iter().chain(&self.open)
    }

    /// Takes back those staged ones that `is_undone`.
    pub fn undo(&mut self, is_undone: impl Fn(&Deletion) -> bool) {
        self.open.retain(|deletion| deletion.version() != NEVER || !is_undone(deletion));
    }

    /// Puts what has a version by now into the mask.
    pub fn fold(&mut self) {
        if self.open.iter().all(|deletion| deletion.version() == NEVER) {
            return;
        }
        let is_committed = |one: &Arc<Deletion>| one.version() != NEVER;
        let (committed, open): (Vec<_>, Vec<_>) = std::mem::take(&mut self.open).into_iter().partition(is_committed);
        let mask = Arc::make_mut(&mut self.mask);
        for deletion in &committed {
            mask.add(&deletion.rows);
            self.newest = self.newest.max(deletion.version());
        }
        self.folded.extend(committed);
        self.open = open;
    }

    /// One that stands for all folded ones up to `horizon`, with the pieces that it stands for; `None` when there are not at
    /// least `least` of them.
    pub fn condensed(&mut self, horizon: u64, piece: Ulid, least: usize) -> Option<(Arc<Deletion>, Vec<Ulid>)> {
        self.fold();
        let old = || self.folded.iter().filter(|one| one.version() <= horizon);
        if old().count() < least.max(2) {
            return None;
        }
        let mut rows: Vec<u32> = old().flat_map(|deletion| deletion.rows.iter().copied()).collect();
        rows.sort_unstable();
        rows.dedup();
        let outcome = Arc::new(AtomicU64::new(old().map(|deletion| deletion.version()).max()?));
        let one = Deletion { piece, transaction: Ulid::nil(), sequence: 0, outcome, rows: rows.into() };
        Some((Arc::new(one), old().map(|deletion| deletion.piece).collect()))
    }

    /// Puts the one of [`Deletions::condensed`] in the place of those that it stands for.
    pub fn replace(&mut self, one: Arc<Deletion>, gone: &[Ulid]) {
        self.folded.retain(|deletion| !gone.contains(&deletion.piece));
        self.folded.push(one);
    }

    /// What a snapshot does not see, and a transaction that sees its own deletions; `None`: it sees all rows. All must have
    /// been folded.
    pub fn mask(&self, snapshot: u64, own: Option<OwnWrites>) -> Option<Arc<Mask>> {
        let mut mask = match snapshot >= self.newest {
            true => Arc::clone(&self.mask),
            false => {
                let mut mask = Mask::default();
                let old = self.folded.iter().filter(|deletion| deletion.version() <= snapshot);
                old.for_each(|deletion| mask.add(&deletion.rows));
                Arc::new(mask)
            }
        };
        // One that was committed since the fold counts as well, if the snapshot is that new.
        let counts = |deletion: &&Arc<Deletion>| match deletion.version() {
            NEVER => {
                own.is_some_and(|own| own.transaction == deletion.transaction && deletion.sequence <= own.sequence)
            }
            version => version <= snapshot,
        };
        for deletion in self.open.iter().filter(counts) {
            Arc::make_mut(&mut mask).add(&deletion.rows);
        }
        (mask.rows() > 0).then_some(mask)
    }

    /// For a transaction that reads `snapshot`: the rows that are not there for it, and those that others delete or have
    /// deleted since. `from` is the version that made the rows: those that it also ended never were. All must have been
    /// folded.
    pub fn view(&self, transaction: Ulid, snapshot: u64, from: u64) -> (Option<Arc<Mask>>, Option<Mask>) {
        let mut gone = self.mask(snapshot, Some(OwnWrites { transaction, sequence: u32::MAX }));
        let mut contested = Mask::default();
        // Mostly nothing is newer than the snapshot.
        let folded = if self.newest > snapshot { &self.folded[..] } else { &[] };
        for deletion in folded.iter().chain(&self.open) {
            match deletion.version() {
                NEVER if deletion.transaction != transaction => contested.add(&deletion.rows),
                NEVER => {}
                version if version <= snapshot => {}
                version if version == from => Arc::make_mut(gone.get_or_insert_default()).add(&deletion.rows),
                _ => contested.add(&deletion.rows),
            }
        }
        (gone, (contested.rows() > 0).then_some(contested))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn deletion(transaction: u128, sequence: u32, version: u64, rows: &[u32]) -> Deletion {
        Deletion {
            piece: Ulid(transaction << 32 | u128::from(sequence)),
            transaction: Ulid(transaction),
            sequence,
            outcome: Arc::new(AtomicU64::new(version)),
            rows: rows.into(),
        }
    }

    fn deleted(deletions: &Deletions, snapshot: u64, own: Option<(u128, u32)>) -> Vec<u32> {
        let own = own.map(|(transaction, sequence)| OwnWrites { transaction: Ulid(transaction), sequence });
        let mask = deletions.mask(snapshot, own).unwrap_or_default();
        (0..20_000).filter(|row| mask.contains(*row)).collect()
    }

    #[test]
    fn a_snapshot_sees_what_was_deleted_after_it() {
        let mut deletions = Deletions::default();
        deletions.add(deletion(1, 1, 5, &[3, 9000]));
        deletions.add(deletion(2, 1, 8, &[4]));
        deletions.add(deletion(3, 2, NEVER, &[5]));
        deletions.fold();
        assert_eq!(deleted(&deletions, 4, None), [] as [u32; 0]);
        assert_eq!(deleted(&deletions, 7, None), [3, 9000]);
        assert_eq!(deleted(&deletions, u64::MAX, None), [3, 4, 9000]);
        assert_eq!(deleted(&deletions, 8, Some((3, 2))), [3, 4, 5, 9000]);
        assert_eq!(deleted(&deletions, 8, Some((3, 1))), [3, 4, 9000]);
        assert_eq!(deleted(&deletions, 4, Some((3, 2))), [5]);
        let contested = |transaction, snapshot, from| deletions.view(Ulid(transaction), snapshot, from).1;
        assert!(contested(3, 8, 1).is_none());
        assert!(contested(3, 7, 1).is_some_and(|mask| mask.contains(4) && !mask.contains(3)));
        assert!(contested(1, 8, 1).is_some_and(|mask| mask.contains(5)));
        assert!(contested(3, 7, 8).is_none(), "rows that one commit made and ended never were");
        assert!(deletions.view(Ulid(3), 7, 8).0.is_some_and(|gone| gone.contains(4)));
        deletions.undo(|deletion| deletion.transaction == Ulid(3));
        assert_eq!(deleted(&deletions, 8, Some((3, 2))), [3, 4, 9000]);
    }

    #[test]
    fn condensing_changes_nothing_from_the_horizon_on() {
        let mut deletions = Deletions::default();
        (1..10).for_each(|version| deletions.add(deletion(version, 1, version as u64, &[version as u32 * 1000])));
        deletions.fold();
        let before: Vec<_> = (6..12).map(|snapshot| deleted(&deletions, snapshot, None)).collect();
        let (one, gone) = deletions.condensed(6, Ulid(77), 2).unwrap();
        assert_eq!((one.rows.len(), gone.len(), one.version()), (6, 6, 6));
        deletions.replace(one, &gone);
        assert!(deletions.condensed(6, Ulid(78), 2).is_none());
        let after: Vec<_> = (6..12).map(|snapshot| deleted(&deletions, snapshot, None)).collect();
        assert_eq!(before, after);
    }

    proptest! {
        #[test]
        fn a_mask_is_a_set(rows in prop::collection::btree_set(0..20_000_u32, 0..300), more in 0..20_000_u32) {
            let mut mask = Mask::default();
            mask.add(&rows.iter().copied().collect::<Vec<_>>());
            let shared = mask.clone();
            mask.add(&[more]);
            prop_assert_eq!(shared.rows() as usize, rows.len());
            prop_assert_eq!((0..20_000).filter(|row| shared.contains(*row)).collect::<Vec<_>>(), rows.iter().copied().collect::<Vec<_>>());
            prop_assert!(mask.contains(more));
            for chunk in 0..3 {
                let range = chunk * CHUNK_ROWS..20_000.min((chunk + 1) * CHUNK_ROWS);
                let left = shared.left_in(chunk, range.len());
                let expected = range.clone().filter(|row| !rows.contains(&(*row as u32))).count();
                prop_assert_eq!(left.map_or(range.len(), |left| left.true_count()), expected);
                prop_assert_eq!(range.len() - shared.rows_in(chunk), expected);
            }
        }
    }
}
