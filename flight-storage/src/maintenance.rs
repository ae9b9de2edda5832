//! Upkeep in the background: compaction, and a slow look whether what is stored is still what was written.
//!
//! The horizon of compaction is the version that had been applied `retention` ago: whoever reads an older snapshot by then
//! is told to begin anew. Work is done a step at a time with pauses as long as the steps, so that it takes half of one
//! thread at most.
//!
//! Not here: what is worth doing, which the engines know.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use drsdb_core::{Error, Result};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::{commits::AppliedVersion, engines::Engines};

/// How often there is a step. Engines take what has not changed between two steps for idle.
const EVERY: Duration = Duration::from_secs(2);

/// Steps of compaction between two looks at what is stored.
const VERIFY_EVERY: u32 = 8;

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
pub async fn run(engines: Engines, applied: AppliedVersion, retention: Duration, shutdown: CancellationToken) {
    let mut horizon = Horizon { retention, seen: VecDeque::new() };
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut steps = 0_u32;
    while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
        steps = steps.wrapping_add(1);
        let version = horizon.at(Instant::now(), applied.get());
        let verify = steps.is_multiple_of(VERIFY_EVERY);
        let (engines, begun) = (engines.clone(), Instant::now());
        let step = tokio::task::spawn_blocking(move || step(&engines, version, verify)).await;
        let step = step.map_err(|error| Error::internal(format!("upkeep failed: {error}")));
        if let Err(error) = step.and_then(|step| step) {
            tracing::warn!(%error, "upkeep could not do its step; trying again");
        }
        // As long a pause as the step took, beyond the usual one.
        let pause = tokio::time::Instant::now() + begun.elapsed();
        shutdown.run_until_cancelled(tokio::time::sleep_until(pause)).await;
    }
}

fn step(engines: &Engines, horizon: Option<u64>, verify: bool) -> Result<()> {
    if let Some(horizon) = horizon {
        engines.compact(horizon)?;
    }
    if verify {
        engines.verify()?;
    }
    Ok(())
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
