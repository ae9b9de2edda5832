//! What happens to one endpoint when a server fails it, and to the whole result when no server can give an endpoint. Pure
//! state machines: no I/O, no clock.
//!
//! An endpoint's ticket gives the same rows at each of its locations, but not in a promised order: so another location
//! is tried only while no row was handed out. After that, a failure is the whole result's.
//!
//! A server that finds damage in what it has answers `corrupt`: other replicas may be sound, and it gives its own up.
//!
//! A ticket names the servers that work on it together. When one of them is dead, every location fails alike, and what
//! helps is another plan, once an index server knows of the death. While no row was handed out, any plan will do. After that
//! it is one at the same snapshot, of a result whose order the index server has found to be repeatable: then the result goes
//! on after the rows that were handed out.

use std::time::Duration;

use drsdb_proto::ErrorCode;

use crate::error::FailureKind;

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Ask the location at this position.
    Ask(usize),
    /// Log in again, then ask the same location.
    LogInAndAsk(usize),
    /// The failure is final.
    Fail,
}

/// The progress of one endpoint over its locations.
#[derive(Debug)]
pub(crate) struct Failover {
    locations: usize,
    current: usize,
    handed_out: bool,
    logged_in_again: bool,
}

impl Failover {
    /// An endpoint with so many locations; begin with the first.
    pub fn new(locations: usize) -> Self {
        Self { locations, current: 0, handed_out: false, logged_in_again: false }
    }

    /// A row has reached the consumer's side.
    pub fn handed_out(&mut self) {
        self.handed_out = true;
    }

    /// How many locations were asked so far.
    pub fn asked(&self) -> usize {
        self.current + 1
    }

    /// The current location failed.
    pub fn failed(&mut self, kind: FailureKind, code: ErrorCode) -> Verdict {
        if self.handed_out {
            return Verdict::Fail;
        }
        match (kind, code) {
            (FailureKind::NotSent | FailureKind::Lost, _)
            | (FailureKind::Answered, ErrorCode::Unavailable | ErrorCode::Corrupt) => {
                if self.current + 1 < self.locations {
                    self.current += 1;
                    Verdict::Ask(self.current)
                } else {
                    Verdict::Fail
                }
            }
            // The token ended between the plan and the pull.
            (FailureKind::Answered, ErrorCode::Unauthenticated) if !self.logged_in_again => {
                self.logged_in_again = true;
                Verdict::LogInAndAsk(self.current)
            }
            (FailureKind::Answered, _) => Verdict::Fail,
        }
    }
}

/// Waits before a result is planned again. An index server suspects a storage server that was killed within two seconds,
/// and one that has stopped within five: together they are longer than that. They begin short, since another plan may do
/// without the dead server by chance.
const PLAN_AGAIN_AFTER: [Duration; 7] = [
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(600),
    Duration::from_millis(800),
    Duration::from_millis(1000),
    Duration::from_millis(1500),
    Duration::from_millis(1500),
];

/// Whether an error of this kind is about servers, of which another plan may have others.
pub(crate) fn is_of_servers(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::Unavailable | ErrorCode::Corrupt)
}

/// How often a result was planned again. What counts is how often in vain: a read of hours may lose several servers, one after
/// the other, and needs as much patience for each.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Replans {
    total: u32,
    in_vain: u32,
}

impl Replans {
    /// The result, or its next plan, failed, and another plan would do: how long to wait before it is planned again; `None`:
    /// the failure is final.
    pub fn failed(&mut self, code: ErrorCode) -> Option<Duration> {
        let pause = *PLAN_AGAIN_AFTER.get(self.in_vain as usize).filter(|_| is_of_servers(code))?;
        self.in_vain += 1;
        self.total += 1;
        Some(pause)
    }

    /// Rows were handed out that nobody had seen. There are only so many, so that this does not go on for ever.
    pub fn helped(&mut self) {
        self.in_vain = 0;
    }

    /// How often in all. It changes whenever a result begins anew.
    pub fn total(&self) -> u32 {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_error_that_every_server_would_give_is_final() {
        let mut failover = Failover::new(3);
        assert_eq!(failover.failed(FailureKind::Answered, ErrorCode::TicketExpired), Verdict::Fail);
    }

    #[test]
    fn nothing_is_retried_after_a_row_was_handed_out() {
        let mut failover = Failover::new(3);
        failover.handed_out();
        assert_eq!(failover.failed(FailureKind::Lost, ErrorCode::Unavailable), Verdict::Fail);
    }

    #[test]
    fn a_result_is_planned_again_until_a_silent_server_is_suspect() {
        let mut replans = Replans::default();
        assert_eq!(replans.failed(ErrorCode::TicketExpired), None);
        let waited: Duration = std::iter::from_fn(|| replans.failed(ErrorCode::Unavailable)).sum();
        assert!((Duration::from_secs(5)..Duration::from_secs(10)).contains(&waited), "{waited:?}");
        assert_eq!(replans.total() as usize, PLAN_AGAIN_AFTER.len());
    }

    #[test]
    fn a_result_that_goes_on_has_all_patience_again() {
        let mut replans = Replans::default();
        for lost in 1..=3 {
            while replans.failed(ErrorCode::Unavailable).is_some() {}
            assert_eq!(replans.total() as usize, lost * PLAN_AGAIN_AFTER.len());
            replans.helped();
        }
        assert_eq!(replans.failed(ErrorCode::Unavailable), Some(PLAN_AGAIN_AFTER[0]));
    }

    fn failure() -> impl Strategy<Value = (FailureKind, ErrorCode)> {
        let kind = prop_oneof![Just(FailureKind::NotSent), Just(FailureKind::Lost), Just(FailureKind::Answered)];
        (kind, proptest::sample::select(ErrorCode::ALL))
    }

    proptest! {
        #[test]
        fn each_location_is_asked_once_in_order_and_it_ends(
            locations in 1usize..6,
            failures in proptest::collection::vec(failure(), 1..30),
            rows_after in 0usize..30,
        ) {
            let mut failover = Failover::new(locations);
            let (mut last, mut logins, mut asked) = (0, 0, 1);
            for (step, (kind, code)) in failures.into_iter().enumerate() {
                if step == rows_after {
                    failover.handed_out();
                }
                match failover.failed(kind, code) {
                    Verdict::Ask(next) => {
                        prop_assert_eq!(next, last + 1);
                        prop_assert!(next < locations && step < rows_after);
                        last = next;
                        asked += 1;
                    }
                    Verdict::LogInAndAsk(same) => {
                        prop_assert_eq!(same, last);
                        prop_assert!(step < rows_after);
                        logins += 1;
                    }
                    Verdict::Fail => break,
                }
            }
            prop_assert!(logins <= 1);
            prop_assert_eq!(failover.asked(), asked);
        }
    }
}
