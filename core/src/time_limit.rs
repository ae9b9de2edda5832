//! How long a statement may take: the setting `statement_timeout`, on its way through the servers.
//!
//! The time begins when an index server takes up the statement. What planning left of it goes into the tickets, as a
//! duration and not as a point in time: servers' clocks differ, and a client that pulls late has not made the servers work.
//! It goes on when a ticket is redeemed, for each redemption alone. When the rest of a result is planned again, the client says
//! how long the statement has taken by then.

use std::{future::Future, time::Duration};

use drsdb_proto::{ErrorCode, WireError, v1};
use tokio::time::{Instant, timeout_at};

use crate::{Error, Result};

/// A statement's time, which runs.
#[derive(Debug, Clone, Copy, Default)]
pub struct TimeLimit(Option<Limit>);

#[derive(Debug, Clone, Copy)]
struct Limit {
    allowed: Duration,
    end: Instant,
}

impl TimeLimit {
    /// A statement that may take as long as it likes.
    pub const NONE: Self = Self(None);

    /// The time begins now, or has begun `spent` ago; `None`: for ever.
    pub fn begin(allowed: Option<Duration>, spent: Duration) -> Self {
        Self(allowed.and_then(|allowed| limit(allowed, allowed.saturating_sub(spent), Instant::now())))
    }

    /// The time of a ticket, which goes on now.
    pub fn resume(ticket: &v1::Ticket) -> Self {
        let (times, now) = (ticket.time_limit.as_ref(), Instant::now());
        Self(times.and_then(|times| {
            limit(Duration::from_millis(times.allowed_ms), Duration::from_millis(times.left_ms), now)
        }))
    }

    /// What is left, for a ticket.
    pub fn to_proto(&self) -> Option<v1::TimeLimit> {
        self.to_proto_at(Instant::now())
    }

    fn to_proto_at(self, now: Instant) -> Option<v1::TimeLimit> {
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self.0.map(|limit| v1::TimeLimit {
            allowed_ms: milliseconds(limit.allowed),
            left_ms: milliseconds(limit.end.saturating_duration_since(now)),
        })
    }

    /// Waits until the time is over: for ever when there is no limit.
    pub async fn passed(&self) -> Error {
        let Some(limit) = self.0 else { return std::future::pending().await };
        tokio::time::sleep_until(limit.end).await;
        self.exceeded()
    }

    /// Runs `run` until the time is over, and drops it then.
    pub async fn keep<T>(&self, run: impl Future<Output = Result<T>>) -> Result<T> {
        let Some(limit) = self.0 else { return run.await };
        timeout_at(limit.end, run).await.unwrap_or_else(|_| Err(self.exceeded()))
    }

    /// The error of a statement that took longer.
    pub fn exceeded(&self) -> Error {
        let allowed = self.0.map(|limit| limit.allowed).unwrap_or_default();
        WireError::new(ErrorCode::Timeout, format!("the statement took longer than statement_timeout, {allowed:?}"))
            .with_hint("SET statement_timeout to more, or to 0 for no limit; or read or change fewer rows at a time")
            .with_field("setting", "statement_timeout")
            .into()
    }
}

/// A time that is too far away to count has no end.
fn limit(allowed: Duration, left: Duration, now: Instant) -> Option<Limit> {
    now.checked_add(left).map(|end| Limit { allowed, end })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_has_what_planning_left() {
        let begun = Instant::now();
        let allowed = Duration::from_secs(5);
        let statement = TimeLimit(limit(allowed, allowed, begun));
        let left = |seconds| statement.to_proto_at(begun + Duration::from_secs(seconds));
        assert_eq!(left(2), Some(v1::TimeLimit { allowed_ms: 5_000, left_ms: 3_000 }));
        assert_eq!(left(9), Some(v1::TimeLimit { allowed_ms: 5_000, left_ms: 0 }));
    }

    #[tokio::test]
    async fn what_is_left_ends_the_work_and_the_error_names_the_setting() {
        let time_limit = Some(v1::TimeLimit { allowed_ms: 5_000, left_ms: 1 });
        let resumed = TimeLimit::resume(&v1::Ticket { time_limit, ..Default::default() });
        let started = Instant::now();
        let error = resumed.keep(std::future::pending::<Result<()>>()).await.unwrap_err();
        assert!(started.elapsed() < Duration::from_secs(4), "only what is left counts");
        assert_eq!(error.code(), ErrorCode::Timeout);
        assert!(error.to_string().contains("statement_timeout, 5s"), "the setting, and not what was left: {error}");
        assert!(error.to_wire().hint.contains("SET statement_timeout"), "{error}");
        assert_eq!(resumed.passed().await.code(), ErrorCode::Timeout);
    }

    #[tokio::test]
    async fn what_was_spent_before_is_gone() {
        let allowed = Duration::from_secs(5);
        let left = |spent| {
            let times = TimeLimit::begin(Some(allowed), Duration::from_secs(spent)).to_proto().unwrap();
            assert_eq!(times.allowed_ms, 5_000);
            times.left_ms
        };
        assert!(left(0) > 3_000 && left(3) <= 2_000);
        assert_eq!(left(9), 0);
        let over = TimeLimit::begin(Some(allowed), allowed).keep(std::future::pending::<Result<()>>()).await;
        assert_eq!(over.unwrap_err().code(), ErrorCode::Timeout);
        assert_eq!(TimeLimit::begin(None, allowed).to_proto(), None);
    }

    #[tokio::test]
    async fn no_limit_is_no_limit() {
        let tickets = TimeLimit::resume(&v1::Ticket::default());
        let begin = |allowed| TimeLimit::begin(allowed, Duration::ZERO);
        for limit in [TimeLimit::NONE, begin(None), begin(Some(Duration::MAX)), tickets] {
            assert_eq!(limit.to_proto(), None);
            assert_eq!(limit.keep(async { Ok(1) }).await.unwrap(), 1);
            assert!(futures::poll!(Box::pin(limit.passed())).is_pending());
        }
    }
}
