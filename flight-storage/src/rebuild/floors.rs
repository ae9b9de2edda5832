//! From which snapshot on a shard can be read here. A copy has no older versions of its rows, and a shard that moved away
//! has nothing: a scan at an older snapshot, by a ticket from before, must fail and not find less. A server that has lost
//! everything, or the floors, has one for all shards, also for those that it does not know of any more.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use drsdb_core::{Error, ErrorCode, Result, Ulid, WireError};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::{
    engine::ShardId,
    small_file::{self, Points},
};

/// Of a shard that is not here.
const NEVER: u64 = u64::MAX;

/// The floors of all shards that have one, kept in a file. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Floors {
    file: Arc<PathBuf>,
    floors: Arc<Mutex<Known>>,
}

#[derive(Debug, Clone, Default)]
struct Known {
    /// Of every shard.
    all: u64,
    shards: BTreeMap<ShardId, u64>,
}

/// What is in the file.
#[derive(Serialize, Deserialize)]
struct Kept {
    all: u64,
    shards: Vec<(Ulid, u32, u64)>,
}

impl Floors {
    /// Reads the file, if it is there.
    ///
    /// Errors: `corrupt` when it is damaged: whoever reads here all the same may find less, see [`Floors::lost`].
    pub fn open(file: PathBuf) -> Result<Self> {
        let damaged = |error| small_file::damaged(&file, error);
        let kept = match small_file::read(&file)? {
            // It was a list before.
            Some(bytes) if bytes.starts_with(b"[") => {
                Kept { all: 0, shards: serde_json::from_slice(&bytes).map_err(damaged)? }
            }
            Some(bytes) => serde_json::from_slice(&bytes).map_err(damaged)?,
            None => Kept { all: 0, shards: Vec::new() },
        };
        let shards = kept.shards.into_iter().map(|(table, shard, floor)| (ShardId { table, shard }, floor));
        let known = Known { all: kept.all, shards: shards.collect() };
        Ok(Self { file: Arc::new(file), floors: Arc::new(Mutex::new(known)) })
    }

    /// In the place of a damaged file: no shard can be read here below `version`, which no floor in it was above.
    pub fn lost(file: PathBuf, version: u64) -> Result<Self> {
        let floors = Self { file: Arc::new(file), floors: Arc::default() };
        floors.set_all(version)?;
        Ok(floors)
    }

    /// No shard can be read here below `version`: what was here is lost.
    pub fn set_all(&self, version: u64) -> Result<()> {
        self.change(|known| known.all = known.all.max(version))
    }

    /// The shard can be read from `version` on.
    pub fn set(&self, shard: ShardId, version: u64) -> Result<()> {
        self.change(|known| {
            known.shards.insert(shard, version);
        })
    }

    /// The shard cannot be read here any more. False if it was copied here again after `version`, or if nobody knows whether
    /// it was.
    pub fn close(&self, shard: ShardId, version: u64) -> Result<bool> {
        let floor = {
            let known = self.floors.lock();
            known.shards.get(&shard).copied().unwrap_or(0).max(known.all)
        };
        if floor != NEVER && floor > version {
            return Ok(false);
        }
        self.set(shard, NEVER).map(|()| true)
    }

    /// Nothing is kept for a table that is gone.
    pub fn drop_table(&self, table: Ulid) -> Result<()> {
        if self.floors.lock().shards.keys().any(|shard| shard.table == table) {
            self.change(|known| known.shards.retain(|shard, _| shard.table != table))?;
        }
        Ok(())
    }

    /// Whether `snapshot` can be read of all the shards; the error says what to do.
    pub fn check(&self, table: Ulid, shards: &[u32], snapshot: u64) -> Result<()> {
        let known = self.floors.lock();
        let below = |shard: &&u32| {
            let floor = known.shards.get(&ShardId { table, shard: **shard }).copied().unwrap_or(0);
            floor.max(known.all) > snapshot
        };
        match shards.iter().find(below) {
            None => Ok(()),
            Some(shard) => Err(WireError::new(
                ErrorCode::Unavailable,
                format!("shard {shard} cannot be read here at version {snapshot}: it was copied or moved since"),
            )
            .with_hint("run the query again")
            .into()),
        }
    }

    fn change(&self, change: impl FnOnce(&mut Known)) -> Result<()> {
        let mut floors = self.floors.lock();
        let mut changed = floors.clone();
        change(&mut changed);
        let shards = changed.shards.iter().map(|(shard, floor)| (shard.table, shard.shard, *floor)).collect();
        let bytes = serde_json::to_vec(&Kept { all: changed.all, shards })
            .map_err(|error| Error::internal(error.to_string()))?;
        let points = Points {
            written: "floors.written",
            synced: "floors.synced",
            renamed: "floors.renamed",
            named: "floors.named",
        };
        small_file::replace(&self.file, &bytes, points)?;
        *floors = changed;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::small_file::damages;

    #[test]
    fn no_damage_lets_a_scan_find_less() {
        let dir = tempfile::tempdir().unwrap();
        let (file, shard) = (dir.path().join("floors.json"), ShardId { table: Ulid(1), shard: 2 });
        Floors::open(file.clone()).unwrap().set(shard, 10).unwrap();
        for damage in damages(&fs::read(&file).unwrap()) {
            fs::write(&file, &damage).unwrap();
            assert_eq!(Floors::open(file.clone()).unwrap_err().code(), ErrorCode::Corrupt, "{damage:?}");
        }
        drop(Floors::lost(file.clone(), 20).unwrap());
        let floors = Floors::open(file).unwrap();
        assert!(floors.check(Ulid(1), &[2], 19).is_err());
        floors.check(Ulid(1), &[2], 20).unwrap();
        assert!(!floors.close(shard, 19).unwrap(), "it may have been copied since");
        assert!(floors.close(shard, 20).unwrap());
    }

    #[test]
    fn copies_are_read_from_their_snapshot_on() {
        let dir = tempfile::tempdir().unwrap();
        let (file, shard) = (dir.path().join("floors.json"), ShardId { table: Ulid(1), shard: 2 });
        let floors = Floors::open(file.clone()).unwrap();
        floors.check(Ulid(1), &[2], 0).unwrap();
        floors.set(shard, 10).unwrap();
        assert_eq!(floors.check(Ulid(1), &[1, 2], 9).unwrap_err().code(), ErrorCode::Unavailable);
        floors.check(Ulid(1), &[1, 2], 10).unwrap();
        assert!(!floors.close(shard, 9).unwrap(), "an old removal does not take a newer copy");
        assert!(floors.close(shard, 11).unwrap());
        let floors = Floors::open(file).unwrap();
        assert!(floors.check(Ulid(1), &[2], 1000).is_err());
        floors.drop_table(Ulid(1)).unwrap();
        floors.check(Ulid(1), &[2], 0).unwrap();
    }

    #[test]
    fn a_server_that_lost_everything_reads_nothing_from_before() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("floors.json");
        fs::write(&file, br#"[["00000000000000000000000001",2,5]]"#).unwrap();
        let floors = Floors::open(file.clone()).unwrap();
        assert!(floors.check(Ulid(1), &[2], 4).is_err(), "the older form is understood");
        floors.set_all(20).unwrap();
        floors.set_all(10).unwrap();
        let floors = Floors::open(file).unwrap();
        for (table, shard) in [(1, 2), (7, 0)] {
            assert_eq!(floors.check(Ulid(table), &[shard], 19).unwrap_err().code(), ErrorCode::Unavailable);
            floors.check(Ulid(table), &[shard], 20).unwrap();
        }
    }
}
