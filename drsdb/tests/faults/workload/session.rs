//! Statements and what becomes of them, as workloads see it.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use arrow::{
    array::{Array, AsArray, RecordBatch},
    datatypes::Int64Type,
};
use drsdb_client::{Client, Error, ErrorCode, Executed, QueryResult};
use tokio::time::timeout;

use super::lock;
use crate::cluster::pause;

/// How long one statement may take: longer than any fault of a short run, so that hanging for ever is found.
const STATEMENT_TIME: Duration = Duration::from_secs(30);

/// How long a cluster may take to answer again when all faults are over.
pub const RECOVERY_TIME: Duration = Duration::from_secs(45);

/// What became of a write.
#[derive(Debug, Clone)]
pub enum Effect {
    /// Acknowledged, with the number of rows.
    Done(u64),
    /// Nothing of it happened.
    Refused(ErrorCode),
    /// All of it happened, or nothing.
    Unknown,
}

impl Effect {
    /// Of a write that failed: what the error promises, or else what its code lets happen.
    pub fn of(error: &Error) -> Self {
        match (error.field("outcome"), error.code()) {
            (Some("none"), code) => Effect::Refused(code),
            (Some("unknown"), _)
            | (_, ErrorCode::Unavailable | ErrorCode::Timeout | ErrorCode::Cancelled | ErrorCode::Internal) => {
                Effect::Unknown
            }
            (_, code) => Effect::Refused(code),
        }
    }
}

/// What a workload's workers were told.
#[derive(Debug, Default)]
pub struct Notes {
    acknowledged: AtomicUsize,
    refused: AtomicUsize,
    unknown: AtomicUsize,
    /// Servers may refuse tickets and logins that others gave out.
    clocks_differ: AtomicBool,
    /// What must not happen whatever fails.
    violations: Mutex<Vec<String>>,
}

impl Notes {
    pub fn acknowledged(&self) -> usize {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Says that servers' clocks differ.
    pub fn clocks_differ(&self) {
        self.clocks_differ.store(true, Ordering::Relaxed);
    }

    /// Something was done and acknowledged.
    pub fn acknowledge(&self) {
        self.count(&self.acknowledged);
    }

    /// Something was found that must not be.
    pub fn violation(&self, what: String) {
        let mut violations = lock(&self.violations);
        if violations.len() < 10 && !violations.contains(&what) {
            violations.push(what);
        }
    }

    pub fn violations(&self) -> Vec<String> {
        lock(&self.violations).clone()
    }

    pub fn summary(&self) -> String {
        let [acknowledged, refused, unknown] =
            [&self.acknowledged, &self.refused, &self.unknown].map(|counter| counter.load(Ordering::Relaxed));
        format!("{acknowledged} acknowledged, {refused} refused, {unknown} unknown")
    }

    /// Runs a write.
    pub async fn write(&self, client: &Client, sql: &str) -> Effect {
        let effect = self.effect_of(sql, timeout(STATEMENT_TIME, client.execute(sql)).await);
        match &effect {
            Effect::Done(_) => self.count(&self.acknowledged),
            Effect::Refused(_) => self.count(&self.refused),
            Effect::Unknown => self.count(&self.unknown),
        }
        effect
    }

    /// Runs a query; `None` when it failed, which it may.
    pub async fn read(&self, client: &Client, sql: &str) -> Option<QueryResult> {
        match timeout(STATEMENT_TIME, client.collect(sql)).await {
            Ok(Ok(result)) => Some(result),
            Ok(Err(error)) => {
                self.judge(sql, &error);
                None
            }
            Err(_) => {
                self.violation(format!("hangs for {STATEMENT_TIME:?}: {sql}"));
                None
            }
        }
    }

    /// Runs a statement of a transaction: rows that it changed. An error ends the transaction, which never asked for its
    /// commit: it is refused, whatever the error.
    pub async fn step(&self, session: &Client, sql: &str) -> Option<u64> {
        match self.effect_of(sql, timeout(STATEMENT_TIME, session.execute(sql)).await) {
            Effect::Done(rows) => Some(rows),
            Effect::Refused(_) | Effect::Unknown => {
                let _ = timeout(STATEMENT_TIME, session.execute("ROLLBACK")).await;
                self.count(&self.refused);
                None
            }
        }
    }

    /// The same for a query in a transaction.
    pub async fn step_read(&self, session: &Client, sql: &str) -> Option<QueryResult> {
        let result = self.read(session, sql).await;
        if result.is_none() {
            let _ = timeout(STATEMENT_TIME, session.execute("ROLLBACK")).await;
            self.count(&self.refused);
        }
        result
    }

    fn effect_of(&self, sql: &str, ended: Result<Result<Executed, Error>, tokio::time::error::Elapsed>) -> Effect {
        match ended {
            Ok(Ok(Executed::Write(written))) => Effect::Done(written.rows),
            Ok(Ok(Executed::Rows(_))) => {
                self.violation(format!("gives rows: {sql}"));
                Effect::Unknown
            }
            Ok(Err(error)) => {
                self.judge(sql, &error);
                Effect::of(&error)
            }
            Err(_) => {
                self.violation(format!("hangs for {STATEMENT_TIME:?}: {sql}"));
                Effect::Unknown
            }
        }
    }

    /// Faults explain some errors, and others are defects whatever fails.
    pub fn judge(&self, sql: &str, error: &Error) {
        let explained = [
            ErrorCode::Unavailable,
            ErrorCode::Timeout,
            ErrorCode::Cancelled,
            ErrorCode::Conflict,
            ErrorCode::ConstraintViolation,
            ErrorCode::DiskFull,
            ErrorCode::ResourceExhausted,
        ];
        // A transaction is gone with its index server; what is said then names it.
        let transaction_gone = error.code() == ErrorCode::NotFound && error.message().contains("transaction");
        // Tickets and logins last far longer than any run.
        let expired = matches!(error.code(), ErrorCode::TicketExpired | ErrorCode::Unauthenticated)
            && self.clocks_differ.load(Ordering::Relaxed);
        if !explained.contains(&error.code()) && !transaction_gone && !expired {
            let shown: String = sql.chars().take(200).collect();
            self.violation(format!("{}: {error} ({shown})", error.code()));
        }
    }

    fn count(&self, counter: &AtomicUsize) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Runs a query when all should be well: what the cluster still does to recover is waited for.
pub async fn ask(client: &Client, sql: &str) -> Result<QueryResult, String> {
    let deadline = Instant::now() + RECOVERY_TIME;
    loop {
        match timeout(STATEMENT_TIME, client.collect(sql)).await {
            Ok(Ok(result)) => return Ok(result),
            Ok(Err(error)) if error.code() == ErrorCode::Unavailable && Instant::now() < deadline => pause().await,
            Ok(Err(error)) => return Err(format!("{sql}: {}: {error}", error.code())),
            Err(_) => return Err(format!("hangs for {STATEMENT_TIME:?} though all is well: {sql}")),
        }
    }
}

fn columns(result: &QueryResult, column: usize) -> impl Iterator<Item = &dyn Array> {
    result.batches.iter().map(move |batch: &RecordBatch| batch.column(column).as_ref())
}

/// A column of BIGINT, with NULL as the smallest value.
pub fn column(result: &QueryResult, number: usize) -> Vec<i64> {
    columns(result, number)
        .flat_map(|array| {
            let array = array.as_primitive::<Int64Type>();
            array.iter().map(|value| value.unwrap_or(i64::MIN)).collect::<Vec<_>>()
        })
        .collect()
}

/// A column of TEXT, with NULL as nothing.
pub fn values(result: &QueryResult, number: usize) -> Vec<String> {
    columns(result, number)
        .flat_map(|array| {
            let array = array.as_string::<i32>();
            array.iter().map(|value| value.unwrap_or_default().to_owned()).collect::<Vec<_>>()
        })
        .collect()
}
