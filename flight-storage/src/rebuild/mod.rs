//! Rebuilds replicas that missed commits, or that are new, from current ones.
//!
//! ```text
//!  index server              this server                                          a current replica
//!       │   StartRebuild at E     │ 1. keeps staged calls in a spool, and asks             │
//!       │◀────────────────────────│    (from E on it is written to)                        │
//!       │                         │ 2. takes what has changed up to a snapshot V >= E since │
//!       │                         │    it was current, or copies all rows ◀──── ExportShard │
//!       │   Stage ──────────────▶ │    ... while calls come in: spool                       │
//!       │   FinishRebuild at V    │ 3. stages what is in the spool and not in the copy      │
//!       │◀────────────────────────│ 4. the last of it while no call comes in; then it is current
//! ```
//!
//! - [`Rebuilds`]: which shards are being rebuilt, and whether a call goes to the engine or to a spool.
//! - [`spool`]: staged calls on disk, with the outcomes that were heard of.
//! - [`replay`]: from the spool into the engine.
//! - [`copy`]: the steps above, again from the start whenever one fails.
//! - [`catch_up`]: what has changed, in place of a copy.
//! - [`floors`]: the snapshots at which a copied shard can be read.
//!
//! A crash at any point begins again at step 1 with the spool as it is on disk: the engine's shard is replaced as a whole
//! when a copy is complete, what has changed is found anew, and until the catalog says that the replica is current nobody reads it.

pub mod catch_up;
pub mod copy;
pub mod floors;
pub mod replay;
pub mod spool;

use std::{
    collections::{BTreeMap, HashMap, VecDeque, hash_map::Entry},
    path::{Path, PathBuf},
    sync::Arc,
};

use drsdb_core::{Error, ErrorCode, Result, Ulid};
use parking_lot::Mutex;
use tokio::sync::{OwnedRwLockReadGuard, RwLock};

use self::spool::Spool;
use crate::{engine::ShardId, engines::Engines};

/// Outcomes that are remembered for calls that are still coming in.
const RECENT: usize = 100_000;

/// Where a staged call goes.
#[derive(Debug, Clone)]
pub enum Mode {
    /// Into the engine.
    Engine,
    /// Onto the disk as it is, until the shard has been copied.
    Spool(Arc<Spool>),
}

/// The rebuilds of one server. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Rebuilds {
    dir: Arc<PathBuf>,
    gates: Arc<Mutex<HashMap<ShardId, Arc<RwLock<Mode>>>>>,
    spools: Arc<Mutex<BTreeMap<ShardId, Arc<Spool>>>>,
    recent: Arc<Mutex<Recent>>,
}

#[derive(Debug, Default)]
struct Recent {
    order: VecDeque<Ulid>,
    outcomes: HashMap<Ulid, Option<u64>>,
}

impl Rebuilds {
    /// Rebuilds that keep their spools under `dir`; the shards that have one from before.
    pub fn open(dir: &Path) -> Result<(Self, Vec<ShardId>)> {
        std::fs::create_dir_all(dir).map_err(|error| Error::io(format!("creating {}", dir.display()), error))?;
        let left = spool::found(dir)?;
        let rebuilds = Self {
            dir: Arc::new(dir.to_owned()),
            gates: Arc::default(),
            spools: Arc::default(),
            recent: Arc::default(),
        };
        // At once: outcomes are noted there.
        for shard in &left {
            rebuilds.spool(*shard)?;
        }
        Ok((rebuilds, left))
    }

    /// Waits until a call may go into `shard`, and says where it goes. It stays so while the guard lives.
    pub async fn enter(&self, shard: ShardId) -> OwnedRwLockReadGuard<Mode> {
        self.gate(shard).read_owned().await
    }

    fn gate(&self, shard: ShardId) -> Arc<RwLock<Mode>> {
        let mut gates = self.gates.lock();
        Arc::clone(gates.entry(shard).or_insert_with(|| Arc::new(RwLock::new(Mode::Engine))))
    }

    /// The shard's spool, from disk if it is there. Blocks.
    fn spool(&self, shard: ShardId) -> Result<Arc<Spool>> {
        if let Some(spool) = self.spools.lock().get(&shard) {
            return Ok(Arc::clone(spool));
        }
        let spool = Arc::new(Spool::open(&self.dir, shard)?);
        Ok(Arc::clone(self.spools.lock().entry(shard).or_insert(spool)))
    }

    /// Whether calls were kept for the shard, now or before a restart.
    fn has_spool(&self, shard: ShardId) -> bool {
        self.spools.lock().contains_key(&shard)
    }

    fn forget(&self, shard: ShardId) -> Result<()> {
        let spool = self.spools.lock().remove(&shard);
        spool.map_or(Ok(()), |spool| spool.remove())
    }

    /// The spools that have something of any of the transactions.
    fn with(&self, transactions: &[Ulid]) -> Vec<Arc<Spool>> {
        let has_any = |spool: &&Arc<Spool>| transactions.iter().any(|transaction| spool.contains(*transaction));
        self.spools.lock().values().filter(has_any).cloned().collect()
    }

    /// The transactions that spools have something of, and whose outcomes are not known here.
    pub fn undecided(&self) -> Vec<Ulid> {
        self.spools.lock().values().flat_map(|spool| spool.undecided()).collect()
    }

    /// Begins a call into a spool. From here on the spool notes the transaction's outcome when it is heard of, so that it has it
    /// before the call is complete: what has committed without this replica is in the copy, and must not be staged again.
    pub fn begin_call(&self, spool: &Spool, transaction: Ulid, sequence: u32) -> Result<spool::Call> {
        let call = spool.begin(transaction, sequence);
        // Looked up afterwards: an outcome that is heard of now finds the call.
        if self.recent.lock().outcomes.contains_key(&transaction) {
            return Err(Error::new(ErrorCode::Cancelled, "the transaction has ended"));
        }
        Ok(call)
    }

    /// Whether the transaction is known to have been aborted.
    pub fn knows_aborted(&self, transaction: Ulid) -> bool {
        self.recent.lock().outcomes.get(&transaction) == Some(&None)
    }

    /// Takes in one outcome, see [`Rebuilds::decide_all`]. Blocks.
    pub fn decide(&self, engines: &Engines, transaction: Ulid, outcome: Option<u64>) -> Result<()> {
        self.decide_all(engines, &[(transaction, outcome)])
    }

    /// Notes transactions' outcomes, versions or `None` for an abort, in the spools that have something of them, and then has
    /// `engines` take them in. What is known to have committed is not aborted any more. Blocks.
    pub fn decide_all(&self, engines: &Engines, outcomes: &[(Ulid, Option<u64>)]) -> Result<()> {
        let mut known = Vec::with_capacity(outcomes.len());
        for &(transaction, outcome) in outcomes {
            let before = self.recent.lock().note(transaction, outcome);
            if before != outcome {
                tracing::error!(%transaction, ?outcome, known = ?before, "an outcome contradicts what was heard before");
            }
            known.push((transaction, before));
        }
        let transactions: Vec<Ulid> = known.iter().map(|(transaction, _)| *transaction).collect();
        let spools = self.with(&transactions);
        let _replay_waits: Vec<_> = spools.iter().map(|spool| spool.applying.lock()).collect();
        for spool in &spools {
            for &(transaction, outcome) in known.iter().filter(|(transaction, _)| spool.contains(*transaction)) {
                spool.decide(transaction, outcome)?;
            }
        }
        let commits: Vec<(Ulid, u64)> =
            known.iter().filter_map(|(transaction, outcome)| Some((*transaction, (*outcome)?))).collect();
        engines.commit_all(&commits)?;
        let mut aborted = known.iter().filter(|(_, outcome)| outcome.is_none());
        aborted.try_for_each(|(transaction, _)| engines.abort(*transaction))
    }

    /// Undoes a transaction's statements after `sequence` in the spools, and then in `engines`. Blocks.
    pub fn rollback_to(&self, engines: &Engines, transaction: Ulid, sequence: u32) -> Result<()> {
        let spools = self.with(&[transaction]);
        let _replay_waits: Vec<_> = spools.iter().map(|spool| spool.applying.lock()).collect();
        for spool in &spools {
            spool.rollback_to(transaction, sequence)?;
        }
        engines.rollback_to(transaction, sequence)
    }

    /// Ends a call into a spool. Its outcome may have been heard while it came in: then `engines` take it in, where the call
    /// may be staged by now, if the copy does not have it. Blocks.
    pub fn end_call(&self, engines: &Engines, spool: &Spool, call: spool::Call) -> Result<()> {
        let transaction = call.transaction;
        spool.end(call)?;
        let known = self.recent.lock().outcomes.get(&transaction).copied();
        known.map_or(Ok(()), |outcome| self.decide(engines, transaction, outcome))
    }
}

impl Recent {
    /// Answers what is known now: a commit stays one.
    fn note(&mut self, transaction: Ulid, outcome: Option<u64>) -> Option<u64> {
        let known = match self.outcomes.entry(transaction) {
            Entry::Occupied(mut known) => {
                *known.get_mut() = known.get().or(outcome);
                *known.get()
            }
            Entry::Vacant(new) => {
                self.order.push_back(transaction);
                *new.insert(outcome)
            }
        };
        if self.order.len() > RECENT
            && let Some(oldest) = self.order.pop_front()
        {
            self.outcomes.remove(&oldest);
        }
        known
    }
}

#[cfg(test)]
mod tests;
