//! A map under a budget of bytes that forgets what was used longest ago.

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
};

#[derive(Debug)]
struct Entry<V> {
    value: V,
    bytes: usize,
    used: u64,
}

/// The map. What each entry weighs is said by its owner; the budget holds after every change.
#[derive(Debug)]
pub struct Lru<K, V> {
    budget: usize,
    bytes: usize,
    clock: u64,
    by_key: HashMap<K, Entry<V>>,
    by_use: BTreeMap<u64, K>,
}

impl<K: Copy + Eq + Hash, V> Lru<K, V> {
    /// An empty map for up to `budget` bytes.
    pub fn new(budget: usize) -> Self {
        Self { budget, bytes: 0, clock: 0, by_key: HashMap::new(), by_use: BTreeMap::new() }
    }

    /// The value of `key`, which now is the one used last.
    pub fn get(&mut self, key: K) -> Option<&V> {
        let entry = self.by_key.get_mut(&key)?;
        self.clock += 1;
        self.by_use.remove(&entry.used);
        self.by_use.insert(self.clock, key);
        entry.used = self.clock;
        Some(&entry.value)
    }

    /// The value of `key`, without using it.
    pub fn peek(&self, key: K) -> Option<&V> {
        self.by_key.get(&key).map(|entry| &entry.value)
    }

    /// Sets the value of `key`. What does not fit the budget is forgotten at once.
    pub fn insert(&mut self, key: K, value: V, bytes: usize) {
        self.remove(key);
        self.clock += 1;
        self.bytes += bytes;
        self.by_use.insert(self.clock, key);
        self.by_key.insert(key, Entry { value, bytes, used: self.clock });
        self.evict();
    }

    /// Changes what the entry of `key` weighs.
    pub fn resize(&mut self, key: K, bytes: usize) {
        if let Some(entry) = self.by_key.get_mut(&key) {
            self.bytes = self.bytes - entry.bytes + bytes;
            entry.bytes = bytes;
            self.evict();
        }
    }

    /// Forgets `key`.
    pub fn remove(&mut self, key: K) {
        if let Some(entry) = self.by_key.remove(&key) {
            self.by_use.remove(&entry.used);
            self.bytes -= entry.bytes;
        }
    }

    /// Forgets the keys that `keep` refuses.
    pub fn retain(&mut self, keep: impl Fn(&K) -> bool) {
        let gone: Vec<K> = self.by_key.keys().copied().filter(|key| !keep(key)).collect();
        gone.into_iter().for_each(|key| self.remove(key));
    }

    /// What all entries weigh.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn evict(&mut self) {
        while self.bytes > self.budget
            && let Some((_, &oldest)) = self.by_use.first_key_value()
        {
            self.remove(oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_budget_holds_and_the_newest_stays(operations in proptest::collection::vec((0u8..20, 0usize..50), 1..200)) {
            let mut lru = Lru::new(100);
            for (key, bytes) in operations {
                lru.insert(key, bytes, bytes);
                prop_assert!(lru.bytes() <= 100);
                prop_assert_eq!(lru.peek(key), Some(&bytes));
                prop_assert_eq!(lru.bytes(), lru.by_key.values().map(|entry| entry.bytes).sum::<usize>());
                prop_assert_eq!(lru.by_key.len(), lru.by_use.len());
            }
        }
    }

    #[test]
    fn use_decides_who_goes() {
        let mut lru = Lru::new(30);
        (0..3).for_each(|key| lru.insert(key, (), 10));
        lru.get(0);
        lru.insert(3, (), 10);
        assert_eq!((0..4).filter(|&key| lru.peek(key).is_some()).collect::<Vec<_>>(), [0, 2, 3]);
        lru.resize(3, 31);
        assert_eq!(lru.bytes(), 0);
    }
}
