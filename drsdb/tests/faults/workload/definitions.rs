//! Definitions that change beside readers and writers: columns, tables and a view come, get other names and go, and a table is
//! emptied again and again.
//!
//! Each of them is changed by one worker alone, which so knows what it was told last; a statement whose outcome nobody knows
//! may still take effect later, so what it is about is left alone from then on. No name is given twice: whoever is told that a
//! name exists already, or that something acknowledged does not exist, has found a defect.

use std::{
    collections::BTreeSet,
    fmt::Debug,
    sync::{
        Mutex,
        atomic::{AtomicI64, Ordering},
    },
};

use drsdb_client::{Client, QueryResult};
use futures::future::BoxFuture;
use rand::{Rng, rngs::StdRng, seq::IteratorRandom};

use super::{Effect, Engine, Notes, Workload, ask, column, lock, values};

/// Rows that are there from the beginning.
const FIRST_ROW: i64 = 0;

/// Things of a kind, as their worker left them.
#[derive(Debug, Default)]
struct Known<T> {
    there: BTreeSet<T>,
    unknown: BTreeSet<T>,
}

impl<T: Clone + Debug + Ord> Known<T> {
    /// Notes what became of a statement that takes `old` away and makes `new`.
    fn change(&mut self, effect: &Effect, old: &[T], new: &[T]) {
        if matches!(effect, Effect::Refused(_)) {
            return;
        }
        self.there.retain(|thing| !old.contains(thing));
        match effect {
            Effect::Done(_) => self.there.extend(new.iter().cloned()),
            _ => self.unknown.extend(old.iter().chain(new).cloned()),
        }
    }

    /// Holds what was found against it.
    fn check(&self, what: &str, found: impl IntoIterator<Item = T>) -> Result<(), String> {
        let found: BTreeSet<T> = found.into_iter().collect();
        if let Some(lost) = self.there.difference(&found).next() {
            return Err(format!("{what} {lost:?} was acknowledged and is lost"));
        }
        match found.iter().find(|&thing| !self.there.contains(thing) && !self.unknown.contains(thing)) {
            Some(extra) => Err(format!("{what} {extra:?} was refused or taken away, and is there")),
            None => Ok(()),
        }
    }
}

/// Which definition a view has.
#[derive(Debug, Default)]
struct Generation {
    acknowledged: i64,
    unknown: BTreeSet<i64>,
}

pub struct Definitions {
    seed: u64,
    engine: Engine,
    notes: Notes,
    next: AtomicI64,
    /// Of the table that is altered.
    columns: Mutex<Known<String>>,
    rows: Mutex<Known<i64>>,
    /// Of the table that is emptied.
    emptied_rows: Mutex<Known<i64>>,
    /// Tables that come and go.
    made: Mutex<Known<String>>,
    generation: Mutex<Generation>,
}

impl Definitions {
    pub fn new(seed: u64, engine: Engine) -> Self {
        let rows = Known { there: BTreeSet::from([FIRST_ROW]), ..Known::default() };
        Self {
            seed,
            engine,
            notes: Notes::default(),
            next: AtomicI64::new(FIRST_ROW + 1),
            columns: Mutex::default(),
            rows: Mutex::new(rows),
            emptied_rows: Mutex::default(),
            made: Mutex::default(),
            generation: Mutex::default(),
        }
    }

    fn altered(&self) -> String {
        format!("altered_{}", self.seed)
    }

    fn emptied(&self) -> String {
        format!("emptied_{}", self.seed)
    }

    fn view(&self) -> String {
        format!("viewed_{}", self.seed)
    }

    fn made_prefix(&self) -> String {
        format!("made_{}_", self.seed)
    }

    fn next(&self) -> i64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn view_of_generation(&self, generation: i64) -> String {
        let (view, table) = (self.view(), self.altered());
        format!("VIEW {view} AS SELECT k, writer, CAST({generation} AS BIGINT) AS generation FROM {table}")
    }

    /// Adds, renames or drops a column. Its name has the number that every row reads there, and whether it was renamed.
    async fn alter(&self, client: &Client, random: &mut StdRng) {
        let picked = lock(&self.columns).there.iter().choose(random).cloned();
        let (operation, old, new) = match picked {
            Some(old) if old.starts_with('c') && random.random_bool(0.3) => {
                let new = old.replace('c', "r");
                (format!("RENAME COLUMN {old} TO {new}"), Some(old), Some(new))
            }
            Some(old) if random.random_bool(0.5) => (format!("DROP COLUMN {old}"), Some(old), None),
            _ => {
                let number = self.next();
                let not_null = if random.random_bool(0.5) { "NOT NULL" } else { "" };
                (format!("ADD COLUMN c{number} BIGINT {not_null} DEFAULT {number}"), None, Some(format!("c{number}")))
            }
        };
        let effect = self.notes.write(client, &format!("ALTER TABLE {} {operation}", self.altered())).await;
        lock(&self.columns).change(&effect, old.as_slice(), new.as_slice());
    }

    /// Makes, renames or drops a table, or gives the view another definition.
    async fn redefine(&self, client: &Client, random: &mut StdRng) {
        if random.random_bool(0.3) {
            return self.replace_view(client).await;
        }
        let picked = lock(&self.made).there.iter().choose(random).cloned();
        let (sql, old, new) = match picked {
            Some(old) if !old.ends_with("renamed") && random.random_bool(0.3) => {
                let new = format!("{old}_renamed");
                (format!("ALTER TABLE {old} RENAME TO {new}"), Some(old), Some(new))
            }
            Some(old) if random.random_bool(0.5) => (format!("DROP TABLE {old}"), Some(old), None),
            _ if random.random_bool(0.5) => return self.copy(client).await,
            _ => {
                let new = format!("{}{}", self.made_prefix(), self.next());
                let columns = "(id BIGINT PRIMARY KEY, other BIGINT UNIQUE)";
                (format!("CREATE TABLE {new} {columns} WITH (engine = '{}')", self.engine.name()), None, Some(new))
            }
        };
        let effect = self.notes.write(client, &sql).await;
        lock(&self.made).change(&effect, old.as_slice(), new.as_slice());
    }

    /// CREATE TABLE AS: the copy has at least the rows that were acknowledged before, or it is not there.
    async fn copy(&self, client: &Client) {
        let new = format!("{}{}", self.made_prefix(), self.next());
        let rows = lock(&self.rows).there.len() as i64;
        let sql = format!("CREATE TABLE {new} AS SELECT k, writer FROM {}", self.altered());
        let effect = self.notes.write(client, &sql).await;
        if let Effect::Done(_) = effect
            && let Some(counted) = self.notes.read(client, &format!("SELECT count(*) FROM {new}")).await
            && column(&counted, 0)[0] < rows
        {
            self.notes.violation(format!("{new} has {:?} of at least {rows} rows", column(&counted, 0)));
        }
        lock(&self.made).change(&effect, &[], &[new]);
    }

    async fn replace_view(&self, client: &Client) {
        let generation = self.next();
        let sql = format!("CREATE OR REPLACE {}", self.view_of_generation(generation));
        let effect = self.notes.write(client, &sql).await;
        let mut known = lock(&self.generation);
        match effect {
            Effect::Done(_) => known.acknowledged = generation,
            Effect::Unknown => drop(known.unknown.insert(generation)),
            Effect::Refused(_) => {}
        }
    }

    async fn write(&self, worker: usize, client: &Client) {
        let key = self.next();
        let sql = format!("INSERT INTO {} (k, writer) VALUES ({key}, {worker})", self.altered());
        let effect = self.notes.write(client, &sql).await;
        lock(&self.rows).change(&effect, &[], &[key]);
    }

    async fn empty_or_fill(&self, client: &Client, random: &mut StdRng) {
        let table = self.emptied();
        let (sql, old, new) = if random.random_bool(0.4) {
            let old: Vec<i64> = lock(&self.emptied_rows).there.iter().copied().collect();
            (format!("TRUNCATE TABLE {table}"), old, Vec::new())
        } else {
            let new = vec![self.next(), self.next()];
            (format!("INSERT INTO {table} VALUES ({}), ({})", new[0], new[1]), Vec::new(), new)
        };
        let effect = self.notes.write(client, &sql).await;
        lock(&self.emptied_rows).change(&effect, &old, &new);
    }

    async fn look(&self, client: &Client, random: &mut StdRng) {
        let before = lock(&self.rows).there.clone();
        if random.random_bool(0.5) {
            let sql = format!("SELECT * FROM {}", self.altered());
            let Some(result) = self.notes.read(client, &sql).await else { return };
            if let Some(wrong) = misread(&result) {
                self.notes.violation(wrong);
            }
            let found: BTreeSet<i64> = column(&result, 0).into_iter().collect();
            if let Some(lost) = before.difference(&found).next() {
                self.notes.violation(format!("row {lost} was acknowledged and is not seen"));
            }
        } else {
            let sql = format!("SELECT min(generation), max(generation), count(*) FROM {}", self.view());
            let Some(result) = self.notes.read(client, &sql).await else { return };
            let [first, last, rows] = [0, 1, 2].map(|number| column(&result, number)[0]);
            if first != last || rows < before.len() as i64 {
                let what = format!("the view has generations {first} to {last}, and {rows} rows");
                self.notes.violation(format!("{what} of at least {}", before.len()));
            }
        }
    }

    async fn check(&self, client: &Client) -> Result<(), String> {
        let table = self.altered();
        let sql = format!(
            "SELECT column_name FROM information_schema.columns
             WHERE table_name = '{table}' AND column_name NOT IN ('k', 'writer')"
        );
        let columns = values(&ask(client, &sql).await?, 0);
        lock(&self.columns).check("column", columns)?;
        let rows = ask(client, &format!("SELECT * FROM {table}")).await?;
        misread(&rows).map_or(Ok(()), Err)?;
        lock(&self.rows).check("row", column(&rows, 0))?;
        let rows = ask(client, &format!("SELECT k FROM {}", self.emptied())).await?;
        lock(&self.emptied_rows).check("row of the emptied table", column(&rows, 0))?;
        let tables = values(&ask(client, "SELECT table_name FROM information_schema.tables").await?, 0);
        let prefix = self.made_prefix();
        lock(&self.made).check("table", tables.into_iter().filter(|name| name.starts_with(&prefix)))?;
        let found = ask(client, &format!("SELECT max(generation) FROM {}", self.view())).await?;
        let (found, known) = (column(&found, 0)[0], lock(&self.generation));
        if found != known.acknowledged && !known.unknown.contains(&found) {
            return Err(format!("the view has generation {found}: {known:?}"));
        }
        Ok(())
    }
}

/// A column in which a row reads as something else than the column's number: the default of rows that are older and newer.
fn misread(result: &QueryResult) -> Option<String> {
    result.schema.fields().iter().enumerate().find_map(|(at, field)| {
        let number = field.name().strip_prefix(['c', 'r'])?.parse::<i64>().ok()?;
        let value = column(result, at).into_iter().find(|value| *value != number)?;
        Some(format!("a row reads {value} in column {}", field.name()))
    })
}

impl Workload for Definitions {
    fn name(&self) -> &'static str {
        "changes of definitions"
    }

    fn setup(&self) -> Vec<String> {
        let other = if self.engine == Engine::Row { Engine::Column } else { Engine::Row };
        let (altered, emptied) = (self.altered(), self.emptied());
        let (engine, other) = (self.engine.name(), other.name());
        vec![
            format!("CREATE TABLE {altered} (k BIGINT PRIMARY KEY, writer BIGINT) WITH (engine = '{engine}')"),
            format!("CREATE TABLE {emptied} (k BIGINT PRIMARY KEY) WITH (engine = '{other}')"),
            format!("INSERT INTO {altered} VALUES ({FIRST_ROW}, 0)"),
            format!("CREATE {}", self.view_of_generation(0)),
        ]
    }

    fn tables(&self) -> Vec<String> {
        let made = lock(&self.made);
        let made = made.there.union(&made.unknown).cloned();
        [self.altered(), self.emptied()].into_iter().chain(made).collect()
    }

    fn workers(&self) -> usize {
        5
    }

    fn operate<'a>(&'a self, worker: usize, client: &'a Client, random: &'a mut StdRng) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            match worker {
                0 => self.alter(client, random).await,
                1 => self.redefine(client, random).await,
                2 => self.empty_or_fill(client, random).await,
                3 => self.look(client, random).await,
                _ => self.write(worker, client).await,
            }
        })
    }

    fn verify<'a>(&'a self, client: &'a Client) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(self.check(client))
    }

    fn notes(&self) -> &Notes {
        &self.notes
    }
}
