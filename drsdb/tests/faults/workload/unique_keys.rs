//! Unique-key race: many clients insert the same keys at the same time; each key has one winner. The key is the table's
//! primary key, or has a UNIQUE constraint, whose keys lie in other shards than the rows. Each row also gets ids that
//! a server makes, which have to be unique whatever its clock does.

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    sync::{
        Mutex,
        atomic::{AtomicI64, Ordering},
    },
};

use drsdb_client::{Client, ErrorCode};
use futures::future::BoxFuture;
use rand::{Rng, rngs::StdRng};

use super::{Effect, Engine, Notes, Workload, ask, column, lock, values};

/// How far apart the workers may be in the row of keys.
const SPREAD: i64 = 4;

/// What was tried with one key.
#[derive(Debug, Default)]
struct Claims {
    won: Vec<i64>,
    unknown: Vec<i64>,
    /// Somebody was told that the key is taken.
    taken: bool,
}

pub struct UniqueKeys {
    table: String,
    engine: Engine,
    is_primary: bool,
    notes: Notes,
    /// Grows with the operations: all workers claim keys near it.
    front: AtomicI64,
    next_token: AtomicI64,
    claims: Mutex<HashMap<i64, Claims>>,
}

impl UniqueKeys {
    pub fn new(seed: u64, engine: Engine, is_primary: bool) -> Self {
        Self {
            table: format!("claims_{}_{seed}", engine.name()),
            engine,
            is_primary,
            notes: Notes::default(),
            front: AtomicI64::new(0),
            next_token: AtomicI64::new(1),
            claims: Mutex::default(),
        }
    }

    async fn claim(&self, client: &Client, random: &mut StdRng) {
        let front = self.front.fetch_add(1, Ordering::Relaxed) / 3;
        let key = front + random.random_range(0..SPREAD);
        let token = self.next_token.fetch_add(1, Ordering::Relaxed);
        let sql = format!("INSERT INTO {} (k, token) VALUES ({key}, {token})", self.table);
        let effect = self.notes.write(client, &sql).await;
        let mut claims = lock(&self.claims);
        let claims = claims.entry(key).or_default();
        match effect {
            Effect::Done(_) => claims.won.push(token),
            Effect::Unknown => claims.unknown.push(token),
            Effect::Refused(ErrorCode::ConstraintViolation) => claims.taken = true,
            Effect::Refused(_) => {}
        }
    }

    async fn check(&self, client: &Client) -> Result<(), String> {
        let sql = format!("SELECT k, token, id, flake FROM {}", self.table);
        let result = ask(client, &sql).await?;
        let (ids, flakes) = (values(&result, 2), column(&result, 3));
        if let Some(twice) = first_twice(&ids).or_else(|| first_twice(&flakes)) {
            return Err(format!("{}: the id {twice} was given to two rows", self.table));
        }
        let mut found: HashMap<i64, Vec<i64>> = HashMap::new();
        for (key, token) in column(&result, 0).into_iter().zip(column(&result, 1)) {
            found.entry(key).or_default().push(token);
        }
        let claims = lock(&self.claims);
        for (key, claims) in claims.iter() {
            let there = found.remove(key).unwrap_or_default();
            let wrong = match (&claims.won[..], &there[..]) {
                ([_, _, ..], _) => "several were told that they won",
                (_, [_, _, ..]) => "it is there several times",
                ([_], []) => "its acknowledged row is lost",
                ([won], [there]) if won != there => "another row than the acknowledged one is there",
                ([], [there]) if !claims.unknown.contains(there) => "a row is there that was refused",
                ([], []) if claims.taken => "somebody was told that it is taken, and it is not there",
                _ => continue,
            };
            return Err(format!("{}: key {key}: {wrong}: {claims:?}, found {there:?}", self.table));
        }
        match found.into_iter().next() {
            Some((key, tokens)) => Err(format!("{}: nobody inserted key {key}, found {tokens:?}", self.table)),
            None => Ok(()),
        }
    }
}

fn first_twice<T: Hash + Eq + ToString>(ids: &[T]) -> Option<String> {
    let mut seen = HashSet::new();
    ids.iter().find(|id| !seen.insert(*id)).map(T::to_string)
}

impl Workload for UniqueKeys {
    fn name(&self) -> &'static str {
        "unique-key race"
    }

    fn setup(&self) -> Vec<String> {
        let (table, engine) = (&self.table, self.engine.name());
        let (key, token) = if self.is_primary { ("PRIMARY KEY", "NOT NULL") } else { ("UNIQUE", "PRIMARY KEY") };
        vec![format!(
            "CREATE TABLE {table} (k BIGINT {key}, token BIGINT {token}, id ULID NOT NULL DEFAULT ulid(),
             flake BIGINT NOT NULL DEFAULT snowflake_id()) WITH (engine = '{engine}')"
        )]
    }

    fn tables(&self) -> Vec<String> {
        vec![self.table.clone()]
    }

    fn workers(&self) -> usize {
        3
    }

    fn operate<'a>(&'a self, _worker: usize, client: &'a Client, random: &'a mut StdRng) -> BoxFuture<'a, ()> {
        Box::pin(self.claim(client, random))
    }

    fn verify<'a>(&'a self, client: &'a Client) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(self.check(client))
    }

    fn notes(&self) -> &Notes {
        &self.notes
    }
}
