//! From which snapshot on a shard can be read here. A copy has no older versions of its rows, and a shard that moved away
//! has nothing: a scan at an older snapshot, by a ticket from before, must fail and not find less.

use std::{collections::BTreeMap, fs, path::PathBuf, sync::Arc};

use drsdb_core::{Error, ErrorCode, Result, Ulid, WireError, crash_point};
use parking_lot::Mutex;

use crate::engine::ShardId;

/// Of a shard that is not here.
const NEVER: u64 = u64::MAX;

/// The floors of all shards that have one, kept in a file. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Floors {
    file: Arc<PathBuf>,
    floors: Arc<Mutex<BTreeMap<ShardId, u64>>>,
}

impl Floors {
    /// Reads the file, if it is there.
    pub fn open(file: PathBuf) -> Result<Self> {
        let context = |error| Error::io(format!("reading {}", file.display()), error);
        let listed: Vec<(Ulid, u32, u64)> = match fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| Error::new(ErrorCode::Corrupt, format!("{} is damaged: {error}", file.display())))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(context(error)),
        };
        let floors = listed.into_iter().map(|(table, shard, floor)| (ShardId { table, shard }, floor));
        Ok(Self { file: Arc::new(file), floors: Arc::new(Mutex::new(floors.collect())) })
    }

    /// The shard can be read from `version` on.
    pub fn set(&self, shard: ShardId, version: u64) -> Result<()> {
        self.change(|floors| floors.insert(shard, version).map(drop).unwrap_or_default())
    }

    /// The shard cannot be read here any more. False if it was copied here again after `version`.
    pub fn close(&self, shard: ShardId, version: u64) -> Result<bool> {
        let known = self.floors.lock().get(&shard).copied();
        if known.is_some_and(|floor| floor != NEVER && floor > version) {
            return Ok(false);
        }
        self.set(shard, NEVER).map(|()| true)
    }

    /// Nothing is kept for a table that is gone.
    pub fn drop_table(&self, table: Ulid) -> Result<()> {
        if self.floors.lock().keys().any(|shard| shard.table == table) {
            self.change(|floors| floors.retain(|shard, _| shard.table != table))?;
        }
        Ok(())
    }

    /// Whether `snapshot` can be read of all the shards; the error says what to do.
    pub fn check(&self, table: Ulid, shards: &[u32], snapshot: u64) -> Result<()> {
        let floors = self.floors.lock();
        if floors.is_empty() {
            return Ok(());
        }
        let below =
            |shard: &&u32| floors.get(&ShardId { table, shard: **shard }).is_some_and(|floor| *floor > snapshot);
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

    fn change(&self, change: impl FnOnce(&mut BTreeMap<ShardId, u64>)) -> Result<()> {
        let mut floors = self.floors.lock();
        let mut changed = floors.clone();
        change(&mut changed);
        let listed: Vec<(Ulid, u32, u64)> =
            changed.iter().map(|(shard, floor)| (shard.table, shard.shard, *floor)).collect();
        let bytes = serde_json::to_vec(&listed).map_err(|error| Error::internal(error.to_string()))?;
        let context = |error| Error::io(format!("writing {}", self.file.display()), error);
        let temporary = self.file.with_extension("new");
        fs::write(&temporary, bytes).map_err(context)?;
        crash_point::reach("floors.written");
        fs::File::open(&temporary).and_then(|written| written.sync_all()).map_err(context)?;
        crash_point::reach("floors.synced");
        fs::rename(&temporary, self.file.as_ref()).map_err(context)?;
        crash_point::reach("floors.renamed");
        if let Some(dir) = self.file.parent() {
            fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(context)?;
        }
        crash_point::reach("floors.named");
        *floors = changed;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
