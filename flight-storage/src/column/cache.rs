//! Decoded columns in memory, under a budget of bytes: what makes a second scan cost nearly nothing.
//!
//! An entry is a column of one row group, cut into chunks; chunks that no scan has wanted yet may be missing. An entry is
//! filled under its own lock, so that scans that want the same one decode it once; entries are evicted whole, the one
//! used longest ago first. What a scan holds stays valid whatever is evicted: the arrays are shared.
//!
//! Not here: how a chunk is decoded (`decode`).

use std::{collections::HashSet, sync::Arc};

use arrow::array::{Array, ArrayData, ArrayRef};
use drsdb_core::{Result, Ulid};
use parking_lot::{Mutex, MutexGuard};

use super::{format::ChunkSet, lru::Lru};

/// Names an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CacheKey {
    /// The segment.
    pub segment: Ulid,
    /// The row group's number in it.
    pub row_group: u32,
    /// The column's position in the table.
    pub column: u32,
}

/// The decoded chunks of a column in one row group.
#[derive(Debug, Clone)]
pub struct Chunks {
    arrays: Vec<Option<ArrayRef>>,
    present: ChunkSet,
}

impl Chunks {
    /// None of `count` chunks.
    pub fn none(count: usize) -> Self {
        Self { arrays: vec![None; count], present: ChunkSet(0) }
    }

    /// Which chunks are there.
    pub fn present(&self) -> ChunkSet {
        self.present
    }

    /// Chunk `chunk`, if it is there.
    pub fn get(&self, chunk: usize) -> Option<&ArrayRef> {
        self.arrays[chunk].as_ref()
    }

    /// Puts chunk `chunk` there.
    pub fn insert(&mut self, chunk: usize, array: ArrayRef) {
        self.arrays[chunk] = Some(array);
        self.present = self.present.with(chunk);
    }

    /// Bytes of memory behind the chunks; a buffer that several share counts once.
    fn bytes(&self) -> usize {
        fn add(data: &ArrayData, seen: &mut HashSet<*const u8>, bytes: &mut usize) {
            let nulls = data.nulls().map(|nulls| nulls.buffer());
            for buffer in data.buffers().iter().chain(nulls) {
                if seen.insert(buffer.data_ptr().as_ptr()) {
                    *bytes += buffer.capacity();
                }
            }
            data.child_data().iter().for_each(|child| add(child, seen, bytes));
        }
        let (mut seen, mut bytes) = (HashSet::new(), size_of::<Self>());
        for array in self.arrays.iter().flatten() {
            bytes += size_of::<ArrayData>();
            add(&array.to_data(), &mut seen, &mut bytes);
        }
        bytes
    }
}

/// One entry's place. Held by its scans and, while it is within the budget, by the cache.
#[derive(Debug, Default)]
struct Slot {
    /// Held while chunks are decoded.
    filling: Mutex<()>,
    chunks: Mutex<Option<Arc<Chunks>>>,
}

/// The cache.
#[derive(Debug)]
pub struct ColumnCache {
    slots: Mutex<Lru<CacheKey, Arc<Slot>>>,
}

impl ColumnCache {
    /// A cache that keeps up to `budget` bytes.
    pub fn new(budget: usize) -> Self {
        Self { slots: Mutex::new(Lru::new(budget)) }
    }

    /// The chunks of `key`, if all that are `wanted` are decoded. Never waits for a decoding.
    pub fn get(&self, key: CacheKey, wanted: ChunkSet) -> Option<Arc<Chunks>> {
        let slot = Arc::clone(self.slots.lock().get(key)?);
        let chunks = slot.chunks.lock().clone()?;
        wanted.minus(chunks.present()).is_empty().then_some(chunks)
    }

    /// The chunks of `key`; `decode` is asked for those of the `wanted` that are missing of `count` in all, by one
    /// caller at a time. Blocks.
    pub fn get_or_decode(
        &self,
        key: CacheKey,
        count: usize,
        wanted: ChunkSet,
        decode: impl FnOnce(ChunkSet, &mut Chunks) -> Result<()>,
    ) -> Result<Arc<Chunks>> {
        let slot = self.slot(key);
        let _filling: MutexGuard<'_, ()> = slot.filling.lock();
        let before = slot.chunks.lock().clone();
        let missing = before.as_ref().map_or(wanted, |chunks| wanted.minus(chunks.present()));
        if let Some(chunks) = before.as_ref()
            && missing.is_empty()
        {
            return Ok(Arc::clone(chunks));
        }
        let mut chunks = before.map_or_else(|| Chunks::none(count), |chunks| chunks.as_ref().clone());
        decode(missing, &mut chunks)?;
        let chunks = Arc::new(chunks);
        *slot.chunks.lock() = Some(Arc::clone(&chunks));
        self.account(key, &slot, chunks.bytes());
        Ok(chunks)
    }

    /// Bytes held now.
    pub fn bytes(&self) -> usize {
        self.slots.lock().bytes()
    }

    /// Forgets segments that are gone.
    pub fn forget(&self, segments: &HashSet<Ulid>) {
        self.slots.lock().retain(|key| !segments.contains(&key.segment));
    }

    fn slot(&self, key: CacheKey) -> Arc<Slot> {
        let mut slots = self.slots.lock();
        if let Some(slot) = slots.get(key) {
            return Arc::clone(slot);
        }
        let slot = Arc::new(Slot::default());
        slots.insert(key, Arc::clone(&slot), 0);
        slot
    }

    /// Books what an entry now holds; others, or itself, make room.
    fn account(&self, key: CacheKey, slot: &Arc<Slot>, bytes: usize) {
        let mut slots = self.slots.lock();
        // Evicted, and perhaps made anew by another scan, while this one decoded: then only that scan's one counts.
        if slots.peek(key).is_some_and(|held| Arc::ptr_eq(held, slot)) {
            slots.resize(key, bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use arrow::array::Int64Array;

    use super::*;

    fn key(column: u32) -> CacheKey {
        CacheKey { segment: Ulid(7), row_group: 0, column }
    }

    fn array(rows: i64) -> ArrayRef {
        Arc::new(Int64Array::from_iter_values(0..rows))
    }

    fn fill(cache: &ColumnCache, column: u32, wanted: ChunkSet) -> ChunkSet {
        let mut decoded = ChunkSet(0);
        let decode = |missing: ChunkSet, chunks: &mut Chunks| {
            decoded = missing;
            missing.iter().for_each(|chunk| chunks.insert(chunk, array(1000)));
            Ok(())
        };
        cache.get_or_decode(key(column), 4, wanted, decode).unwrap();
        decoded
    }

    #[test]
    fn only_missing_chunks_are_decoded() {
        let cache = ColumnCache::new(1 << 20);
        assert_eq!(fill(&cache, 0, ChunkSet(0b0011)), ChunkSet(0b0011));
        assert_eq!(fill(&cache, 0, ChunkSet(0b0110)), ChunkSet(0b0100));
        assert!(cache.get(key(0), ChunkSet(0b0111)).is_some());
        assert!(cache.get(key(0), ChunkSet(0b1000)).is_none());
        assert!(cache.get(key(1), ChunkSet(1)).is_none());
    }

    #[test]
    fn the_least_recently_used_goes_first_and_the_budget_holds() {
        let cache = ColumnCache::new(30_000);
        for column in 0..3 {
            fill(&cache, column, ChunkSet(1));
        }
        assert!(cache.get(key(0), ChunkSet(1)).is_some());
        fill(&cache, 3, ChunkSet(1));
        assert!(cache.bytes() <= 30_000, "{}", cache.bytes());
        assert!(cache.get(key(1), ChunkSet(1)).is_none());
        assert!(cache.get(key(0), ChunkSet(1)).is_some());
        cache.forget(&HashSet::from([Ulid(7)]));
        assert_eq!(cache.bytes(), 0);
    }

    #[test]
    fn what_is_larger_than_the_budget_is_served_and_not_kept() {
        let cache = ColumnCache::new(100);
        assert_eq!(fill(&cache, 0, ChunkSet(1)), ChunkSet(1));
        assert_eq!(cache.bytes(), 0);
    }

    #[test]
    fn a_shared_buffer_counts_once() {
        let mut chunks = Chunks::none(2);
        let whole = array(1000);
        chunks.insert(0, whole.slice(0, 500));
        let one = chunks.bytes();
        chunks.insert(1, whole.slice(500, 500));
        assert!(chunks.bytes() < one + 1000);
    }

    #[test]
    fn a_failed_decoding_leaves_nothing_behind() {
        let cache = ColumnCache::new(1 << 20);
        let failed = cache.get_or_decode(key(0), 4, ChunkSet(1), |_, _| Err(drsdb_core::Error::internal("broken")));
        assert!(failed.is_err());
        assert_eq!(fill(&cache, 0, ChunkSet(1)), ChunkSet(1));
    }

    #[test]
    fn concurrent_misses_decode_once() {
        let (cache, decoded) = (ColumnCache::new(1 << 20), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let decode = |missing: ChunkSet, chunks: &mut Chunks| {
                        decoded.fetch_add(1, Ordering::Relaxed);
                        missing.iter().for_each(|chunk| chunks.insert(chunk, array(10)));
                        Ok(())
                    };
                    cache.get_or_decode(key(0), 4, ChunkSet(1), decode).unwrap();
                });
            }
        });
        assert_eq!(decoded.load(Ordering::Relaxed), 1);
    }
}
