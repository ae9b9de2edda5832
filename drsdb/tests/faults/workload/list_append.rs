//! List append: what [`crate::history`] checks. A list is a row's text, `,3,7,1`; half of the lists are in a row table, half
//! in a column table, so that transactions span both.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use drsdb_client::Client;
use futures::future::BoxFuture;
use rand::{Rng, rngs::StdRng};

use super::{Effect, Notes, Workload, ask, lock, values};
use crate::history::{self, History, Key, Operation, Outcome, Transaction, Value};

const KEYS: Key = 6;

pub struct ListAppend {
    seed: u64,
    notes: Notes,
    clock: Instant,
    next_value: AtomicU64,
    history: Mutex<History>,
}

impl ListAppend {
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            notes: Notes::default(),
            clock: Instant::now(),
            next_value: AtomicU64::new(1),
            history: Mutex::default(),
        }
    }

    fn table(&self, key: Key) -> String {
        format!("lists_{}_{}", if key.is_multiple_of(2) { "row" } else { "column" }, self.seed)
    }

    fn now(&self) -> u64 {
        self.clock.elapsed().as_micros() as u64
    }

    async fn transaction(&self, worker: usize, client: &Client, random: &mut StdRng) {
        let began = self.now();
        let mut operations = Vec::new();
        let steps = random.random_range(1..=4);
        // One operation needs no BEGIN: then the statement is the transaction.
        let outcome = if steps == 1 && random.random_bool(0.5) {
            self.alone(client, random, &mut operations).await
        } else {
            self.together(client, random, steps, &mut operations).await
        };
        let ended = self.now();
        lock(&self.history).transactions.push(Transaction { client: worker, operations, outcome, began, ended });
    }

    async fn alone(&self, client: &Client, random: &mut StdRng, operations: &mut Vec<Operation>) -> Outcome {
        let key = random.random_range(0..KEYS);
        if random.random_bool(0.5) {
            let Some(list) =
                self.notes.read(client, &self.select(key)).await.and_then(|read| self.parse(key, &values(&read, 0)))
            else {
                return Outcome::Aborted;
            };
            operations.push(Operation::Read { key, list });
            return Outcome::Committed;
        }
        let value = self.next_value.fetch_add(1, Ordering::Relaxed);
        operations.push(Operation::Append { key, value });
        match self.notes.write(client, &self.update(key, value)).await {
            Effect::Done(rows) => {
                self.expect_one(rows, key);
                Outcome::Committed
            }
            Effect::Refused(_) => Outcome::Aborted,
            Effect::Unknown => Outcome::Unknown,
        }
    }

    async fn together(
        &self,
        client: &Client,
        random: &mut StdRng,
        steps: usize,
        operations: &mut Vec<Operation>,
    ) -> Outcome {
        let session = client.new_session();
        if self.notes.step(&session, "BEGIN").await.is_none() {
            return Outcome::Aborted;
        }
        // What a transaction reads that cannot commit any more says nothing.
        let mut wrong = None;
        for _ in 0..steps {
            let key = random.random_range(0..KEYS);
            if random.random_bool(0.5) {
                let Some(read) = self.notes.step_read(&session, &self.select(key)).await else {
                    return Outcome::Aborted;
                };
                let rows = values(&read, 0);
                match Self::parsed(&rows) {
                    Some(list) => operations.push(Operation::Read { key, list }),
                    None => wrong = Some(format!("list {key} is {rows:?}")),
                }
            } else {
                let value = self.next_value.fetch_add(1, Ordering::Relaxed);
                operations.push(Operation::Append { key, value });
                let Some(rows) = self.notes.step(&session, &self.update(key, value)).await else {
                    return Outcome::Aborted;
                };
                self.expect_one(rows, key);
            }
        }
        if random.random_bool(0.1) {
            self.notes.step(&session, "ROLLBACK").await;
            return Outcome::Aborted;
        }
        match self.notes.write(&session, "COMMIT").await {
            Effect::Done(_) => {
                wrong.into_iter().for_each(|what| self.notes.violation(what));
                Outcome::Committed
            }
            Effect::Refused(_) => Outcome::Aborted,
            Effect::Unknown => Outcome::Unknown,
        }
    }

    fn select(&self, key: Key) -> String {
        format!("SELECT list FROM {} WHERE k = {key}", self.table(key))
    }

    fn update(&self, key: Key, value: Value) -> String {
        format!("UPDATE {} SET list = list || ',{value}' WHERE k = {key}", self.table(key))
    }

    fn expect_one(&self, rows: u64, key: Key) {
        if rows != 1 {
            self.notes.violation(format!("an append to list {key} changed {rows} rows"));
        }
    }

    fn parsed(rows: &[String]) -> Option<Vec<Value>> {
        match rows {
            [list] => list.split(',').skip(1).map(|value| value.parse().ok()).collect(),
            _ => None,
        }
    }

    fn parse(&self, key: Key, rows: &[String]) -> Option<Vec<Value>> {
        let parsed = Self::parsed(rows);
        if parsed.is_none() {
            self.notes.violation(format!("list {key} is {rows:?}"));
        }
        parsed
    }

    async fn check(&self, client: &Client) -> Result<(), String> {
        let began = self.now();
        let mut operations = Vec::new();
        for key in 0..KEYS {
            let read = ask(client, &self.select(key)).await?;
            let list = self.parse(key, &values(&read, 0)).ok_or("a list cannot be read")?;
            // Each is a transaction of its own: nobody writes any more, but one whose outcome is unknown still may.
            operations.push(Operation::Read { key, list });
        }
        let mut history = lock(&self.history).clone();
        let last = operations.into_iter().map(|operation| Transaction {
            client: self.workers(),
            operations: vec![operation],
            outcome: Outcome::Committed,
            began,
            ended: self.now(),
        });
        history.transactions.extend(last);
        let anomalies = history::check(&history);
        if anomalies.is_empty() {
            return Ok(());
        }
        let mut text = format!("{} anomalies in {} transactions", anomalies.len(), history.transactions.len());
        for anomaly in anomalies.iter().take(5) {
            text += &format!("\n  {anomaly}");
        }
        Err(text)
    }
}

impl Workload for ListAppend {
    fn name(&self) -> &'static str {
        "list append"
    }

    fn setup(&self) -> Vec<String> {
        let mut statements = Vec::new();
        for (parity, engine) in [(0, "row"), (1, "column")] {
            let table = self.table(parity);
            statements.push(format!(
                "CREATE TABLE {table} (k BIGINT PRIMARY KEY, list TEXT NOT NULL) WITH (engine = '{engine}')"
            ));
            let rows: Vec<String> =
                (0..KEYS).filter(|key| key % 2 == parity).map(|key| format!("({key}, '')")).collect();
            statements.push(format!("INSERT INTO {table} VALUES {}", rows.join(", ")));
        }
        statements
    }

    fn tables(&self) -> Vec<String> {
        vec![self.table(0), self.table(1)]
    }

    fn workers(&self) -> usize {
        5
    }

    fn operate<'a>(&'a self, worker: usize, client: &'a Client, random: &'a mut StdRng) -> BoxFuture<'a, ()> {
        Box::pin(self.transaction(worker, client, random))
    }

    fn verify<'a>(&'a self, client: &'a Client) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(self.check(client))
    }

    fn notes(&self) -> &Notes {
        &self.notes
    }
}
