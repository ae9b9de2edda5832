//! Bank transfers: money moves between accounts in row and in column tables, and no snapshot ever shows more or less of it.
//!
//! Each transfer also writes a line of a ledger, in the same transaction. So that afterwards it can be told which of the
//! transfers whose outcome nobody knows took place, and that each balance is what the ledger says.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Mutex,
        atomic::{AtomicI64, Ordering},
    },
};

use drsdb_client::Client;
use futures::future::BoxFuture;
use rand::{Rng, rngs::StdRng};

use super::{Effect, Notes, Workload, ask, column, lock};

const ACCOUNTS: i64 = 12;
const OPENING: i64 = 100;

pub struct Bank {
    seed: u64,
    notes: Notes,
    next_transfer: AtomicI64,
    acknowledged: Mutex<BTreeSet<i64>>,
    unknown: Mutex<BTreeSet<i64>>,
}

impl Bank {
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            notes: Notes::default(),
            next_transfer: AtomicI64::new(1),
            acknowledged: Mutex::default(),
            unknown: Mutex::default(),
        }
    }

    /// Even accounts are in the one table, odd ones in the other.
    fn accounts(&self, account: i64) -> String {
        format!("accounts_{}_{}", if account % 2 == 0 { "row" } else { "column" }, self.seed)
    }

    fn ledger(&self) -> String {
        format!("ledger_{}", self.seed)
    }

    fn all_accounts(&self) -> String {
        let (even, odd) = (self.accounts(0), self.accounts(1));
        format!("SELECT id, balance FROM {even} UNION ALL SELECT id, balance FROM {odd}")
    }

    async fn transfer(&self, client: &Client, random: &mut StdRng) {
        let transfer = self.next_transfer.fetch_add(1, Ordering::Relaxed);
        let source = random.random_range(0..ACCOUNTS);
        let target = (source + random.random_range(1..ACCOUNTS)) % ACCOUNTS;
        let amount = random.random_range(1..=30);
        let computed = random.random_bool(0.5);
        if let Some(session) = self.prepare(client, source, target, amount, computed, transfer).await {
            match self.notes.write(&session, "COMMIT").await {
                Effect::Done(_) => drop(lock(&self.acknowledged).insert(transfer)),
                Effect::Unknown => drop(lock(&self.unknown).insert(transfer)),
                Effect::Refused(_) => {}
            }
        }
    }

    /// Everything but the commit.
    async fn prepare(
        &self,
        client: &Client,
        source: i64,
        target: i64,
        amount: i64,
        computed: bool,
        transfer: i64,
    ) -> Option<Client> {
        let session = client.new_session();
        self.notes.step(&session, "BEGIN").await?;
        let mut balances = Vec::new();
        for account in [source, target] {
            let sql = format!("SELECT balance FROM {} WHERE id = {account}", self.accounts(account));
            let found = column(&self.notes.step_read(&session, &sql).await?, 0);
            let &[balance] = &found[..] else {
                self.notes.violation(format!("account {account} has {} rows", found.len()));
                return None;
            };
            balances.push(balance);
        }
        if balances[0] < amount {
            self.notes.step(&session, "ROLLBACK").await?;
            return None;
        }
        for (account, balance, change) in [(source, balances[0], -amount), (target, balances[1], amount)] {
            // By what was read, or by what is there: in a snapshot it is the same.
            let new = if computed { format!("{}", balance + change) } else { format!("balance + ({change})") };
            let sql = format!("UPDATE {} SET balance = {new} WHERE id = {account}", self.accounts(account));
            let changed = self.notes.step(&session, &sql).await?;
            if changed != 1 {
                self.notes.violation(format!("{changed} rows changed: {sql}"));
            }
        }
        let line = format!("INSERT INTO {} VALUES ({transfer}, {source}, {target}, {amount})", self.ledger());
        self.notes.step(&session, &line).await?;
        Some(session)
    }

    async fn look(&self, client: &Client) {
        let Some(result) = self.notes.read(client, &self.all_accounts()).await else { return };
        let balances = column(&result, 1);
        let sum: i64 = balances.iter().sum();
        if balances.len() != ACCOUNTS as usize || sum != ACCOUNTS * OPENING {
            self.notes.violation(format!("{} accounts hold {sum} together: {balances:?}", balances.len()));
        }
    }

    async fn check(&self, client: &Client) -> Result<(), String> {
        // In one snapshot: a transfer whose outcome nobody knows may still take place.
        let (even, odd) = (self.accounts(0), self.accounts(1));
        let sql = format!(
            "SELECT id, source, target, amount FROM {} UNION ALL SELECT id, balance, NULL, NULL FROM {even} \
             UNION ALL SELECT id, balance, NULL, NULL FROM {odd}",
            self.ledger()
        );
        let result = ask(client, &sql).await?;
        let fields: Vec<Vec<i64>> = (0..4).map(|number| column(&result, number)).collect();
        let mut found = BTreeMap::new();
        let mut lines = Vec::new();
        let rows = fields[0].iter().zip(&fields[1]).zip(fields[2].iter().zip(&fields[3]));
        for ((first, second), (third, fourth)) in rows {
            match [*first, *second, *third, *fourth] {
                [account, balance, i64::MIN, _] => drop(found.insert(account, balance)),
                line => lines.push(line),
            }
        }
        let mut expected: BTreeMap<i64, i64> = (0..ACCOUNTS).map(|account| (account, OPENING)).collect();
        for [_, source, target, amount] in &lines {
            *expected.entry(*source).or_default() -= amount;
            *expected.entry(*target).or_default() += amount;
        }
        if found != expected {
            return Err(format!("the accounts hold {found:?}, and the ledger says {expected:?}"));
        }
        let there: BTreeSet<i64> = lines.iter().map(|[transfer, ..]| *transfer).collect();
        let (acknowledged, unknown) = (lock(&self.acknowledged), lock(&self.unknown));
        if there.len() != lines.len() {
            return Err(format!("the ledger has {} lines and {} keys", lines.len(), there.len()));
        }
        if let Some(lost) = acknowledged.difference(&there).next() {
            return Err(format!("transfer {lost} was acknowledged and is lost"));
        }
        if let Some(extra) = there.iter().find(|line| !acknowledged.contains(line) && !unknown.contains(line)) {
            return Err(format!("transfer {extra} was refused and took place"));
        }
        Ok(())
    }
}

impl Workload for Bank {
    fn name(&self) -> &'static str {
        "bank transfer"
    }

    fn setup(&self) -> Vec<String> {
        let mut statements = Vec::new();
        for (parity, engine) in [(0, "row"), (1, "column")] {
            let table = self.accounts(parity);
            statements.push(format!(
                "CREATE TABLE {table} (id BIGINT PRIMARY KEY, balance BIGINT NOT NULL CHECK (balance >= 0)) \
                 WITH (engine = '{engine}')"
            ));
            let rows: Vec<String> = (0..ACCOUNTS)
                .filter(|account| account % 2 == parity)
                .map(|account| format!("({account}, {OPENING})"))
                .collect();
            statements.push(format!("INSERT INTO {table} VALUES {}", rows.join(", ")));
        }
        statements.push(format!(
            "CREATE TABLE {} (id BIGINT PRIMARY KEY, source BIGINT, target BIGINT, amount BIGINT)",
            self.ledger()
        ));
        statements
    }

    fn tables(&self) -> Vec<String> {
        vec![self.accounts(0), self.accounts(1), self.ledger()]
    }

    fn workers(&self) -> usize {
        4
    }

    fn operate<'a>(&'a self, worker: usize, client: &'a Client, random: &'a mut StdRng) -> BoxFuture<'a, ()> {
        Box::pin(async move { if worker == 0 { self.look(client).await } else { self.transfer(client, random).await } })
    }

    fn verify<'a>(&'a self, client: &'a Client) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(self.check(client))
    }

    fn notes(&self) -> &Notes {
        &self.notes
    }
}
