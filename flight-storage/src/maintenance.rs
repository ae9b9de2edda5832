//! Upkeep in the background: compaction, and a slow look whether what is stored is still what was written.
//!
//! The horizon of compaction is the version that had been applied `retention` ago, or the oldest snapshot that index servers
//! say they need ([`crate::needed_snapshots`]) if that is older: whoever reads an older one by then is told to begin anew.
//! Work is done a step at a time with pauses as long as the steps, so that it takes half of one
//! thread at most.
//!
//! Not here: what is worth doing, which the engines know.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use drsdb_core::{Error, Result};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::{commits::AppliedVersion, engines::Engines, needed_snapshots::NeededSnapshots};

/// How often there is a step. Engines take what has not changed between two steps for idle.
const EVERY: Duration = Duration::from_secs(2);

/// Steps of compaction between two looks at what is stored; in the first round after the start there is one at each step, for
/// disks rot while servers are down.
const VERIFY_EVERY: u32 = 8;

/// What upkeep has done since the start. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Progress(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    compactions: AtomicU64,
    horizon: AtomicU64,
}

impl Progress {
    /// Steps of compaction.
    pub fn compactions(&self) -> u64 {
        self.0.compactions.load(Ordering::Acquire)
    }

    /// The horizon of the last one; 0 before the first.
    pub fn horizon(&self) -> u64 {
        self.0.horizon.load(Ordering::Acquire)
    }

    fn compacted(&self, horizon: u64) {
        self.0.horizon.store(horizon, Ordering::Release);
        self.0.compactions.fetch_add(1, Ordering::AcqRel);
    }
}

/// What upkeep goes by.
#[derive(Debug, Clone)]
pub struct Upkeep {
    /// What is looked after.
    pub engines: Engines,
    /// How far commits have been applied.
    pub applied: AppliedVersion,
    /// For how long old versions stay in any case.
    pub retention: Duration,
    /// What is still read.
    pub needed: NeededSnapshots,
    /// Where it is told what was done.
    pub progress: Progress,
}

/// Which version had been applied some time ago.
#[derive(Debug)]
struct Horizon {
    retention: Duration,
    /// Oldest first; the first is the last one that is older than the retention.
    seen: VecDeque<(Instant, u64)>,
}

impl Horizon {
    fn at(&mut self, now: Instant, applied: u64) -> Option<u64> {
        if self.seen.back().is_none_or(|(_, version)| *version < applied) {
            self.seen.push_back((now, applied));
        }
        let is_old = |seen: &(Instant, u64)| now.duration_since(seen.0) >= self.retention;
        while self.seen.get(1).is_some_and(is_old) {
            self.seen.pop_front();
        }
        self.seen.front().filter(|seen| is_old(seen)).map(|(_, version)| *version)
    }
}

/// Looks after the engines until `shutdown`.
pub async fn run(upkeep: Upkeep, shutdown: CancellationToken) {
    let mut horizon = Horizon { retention: upkeep.retention, seen: VecDeque::new() };
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut steps, mut first_round) = (0_u32, true);
    while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
        steps = steps.wrapping_add(1);
        // What is needed, before how far it is: nothing that begins in between reads below.
        let begun = Instant::now();
        let needed = upkeep.needed.oldest(begun);
        let old = horizon.at(begun, upkeep.applied.get());
        let version = old.zip(needed).map(|(old, needed)| old.min(needed));
        let verify = first_round || steps.is_multiple_of(VERIFY_EVERY);
        let upkeep = upkeep.clone();
        let step = tokio::task::spawn_blocking(move || upkeep.step(version, verify)).await;
        let step = step.map_err(|error| Error::internal(format!("upkeep failed: {error}")));
        match step.and_then(|step| step) {
            Ok(more) => first_round &= more,
            Err(error) => tracing::warn!(%error, "upkeep could not do its step; trying again"),
        }
        // As long a pause as the step took, beyond the usual one.
        let pause = tokio::time::Instant::now() + begun.elapsed();
        shutdown.run_until_cancelled(tokio::time::sleep_until(pause)).await;
    }
}

impl Upkeep {
    /// Answers whether there is more to verify in this round.
    fn step(&self, horizon: Option<u64>, verify: bool) -> Result<bool> {
        // What cannot be compacted may be damaged: that is found by looking.
        let verified = if verify { self.engines.verify() } else { Ok(true) };
        if let Some(horizon) = horizon {
            self.engines.compact(horizon)?;
            self.progress.compacted(horizon);
        }
        verified
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_horizon_is_what_was_applied_a_retention_ago() {
        let (mut horizon, start) =
            (Horizon { retention: Duration::from_secs(10), seen: VecDeque::new() }, Instant::now());
        let mut at = |seconds, applied| horizon.at(start + Duration::from_secs(seconds), applied);
        assert_eq!(at(0, 5), None);
        assert_eq!(at(4, 7), None);
        assert_eq!(at(10, 7), Some(5));
        assert_eq!(at(14, 9), Some(7));
        assert_eq!(at(100, 9), Some(9));
        assert_eq!(at(101, 12), Some(9));
    }
}
