//! Foreign-key race: parents are deleted while children are inserted; no snapshot ever shows a child without its parent.

use std::{
    collections::BTreeSet,
    sync::{
        Mutex,
        atomic::{AtomicI64, Ordering},
    },
};

use drsdb_client::Client;
use futures::future::BoxFuture;
use rand::{Rng, rngs::StdRng};

use super::{Effect, Engine, Notes, Workload, ask, column, lock};

const PARENTS: i64 = 8;

/// Children as their workers left them.
#[derive(Debug, Default)]
struct Children {
    there: BTreeSet<i64>,
    unknown: BTreeSet<i64>,
}

pub struct ForeignKeys {
    seed: u64,
    engine: Engine,
    /// Deleting a parent deletes its children, instead of being refused.
    cascade: bool,
    notes: Notes,
    next_child: AtomicI64,
    children: Mutex<Children>,
}

impl ForeignKeys {
    pub fn new(seed: u64, engine: Engine, cascade: bool) -> Self {
        Self {
            seed,
            engine,
            cascade,
            notes: Notes::default(),
            next_child: AtomicI64::new(1),
            children: Mutex::default(),
        }
    }

    fn parents(&self) -> String {
        format!("parents_{}", self.seed)
    }

    fn children(&self) -> String {
        format!("children_{}", self.seed)
    }

    async fn insert_child(&self, client: &Client, random: &mut StdRng) {
        let child = self.next_child.fetch_add(1, Ordering::Relaxed);
        let parent = random.random_range(0..PARENTS);
        let sql = format!("INSERT INTO {} VALUES ({child}, {parent})", self.children());
        let effect = self.notes.write(client, &sql).await;
        let mut children = lock(&self.children);
        match effect {
            Effect::Done(_) => drop(children.there.insert(child)),
            Effect::Unknown => drop(children.unknown.insert(child)),
            Effect::Refused(_) => {}
        }
    }

    async fn delete_child(&self, client: &Client) {
        // Taken out of the notes first: nobody else deletes it.
        let Some(child) = lock(&self.children).there.pop_first() else { return };
        let effect = self.notes.write(client, &format!("DELETE FROM {} WHERE id = {child}", self.children())).await;
        let mut children = lock(&self.children);
        match effect {
            Effect::Done(1) => {}
            Effect::Done(0) if self.cascade => {}
            Effect::Done(rows) => {
                self.notes.violation(format!("{rows} rows were child {child}, which was acknowledged"))
            }
            Effect::Refused(_) => drop(children.there.insert(child)),
            Effect::Unknown => drop(children.unknown.insert(child)),
        }
    }

    async fn change_parent(&self, client: &Client, random: &mut StdRng) {
        let parent = random.random_range(0..PARENTS);
        let sql = if random.random_bool(0.5) {
            format!("DELETE FROM {} WHERE id = {parent}", self.parents())
        } else {
            format!("INSERT INTO {} VALUES ({parent})", self.parents())
        };
        self.notes.write(client, &sql).await;
    }

    fn orphans(&self) -> String {
        let (parents, children) = (self.parents(), self.children());
        format!("SELECT c.id FROM {children} c LEFT JOIN {parents} p ON c.parent = p.id WHERE p.id IS NULL")
    }

    async fn look(&self, client: &Client) {
        if let Some(found) = self.notes.read(client, &self.orphans()).await
            && found.rows() > 0
        {
            self.notes.violation(format!("children without parents: {:?}", column(&found, 0)));
        }
    }

    async fn check(&self, client: &Client) -> Result<(), String> {
        let orphans = column(&ask(client, &self.orphans()).await?, 0);
        if !orphans.is_empty() {
            return Err(format!("children without parents at the end: {orphans:?}"));
        }
        let found = ask(client, &format!("SELECT id FROM {}", self.children())).await?;
        let found: BTreeSet<i64> = column(&found, 0).into_iter().collect();
        let children = lock(&self.children);
        // With CASCADE, a child may have gone with its parent.
        if !self.cascade
            && let Some(lost) = children.there.difference(&found).next()
        {
            return Err(format!("child {lost} was acknowledged and is lost"));
        }
        let known = |child: &&i64| children.there.contains(child) || children.unknown.contains(child);
        match found.iter().find(|child| !known(child)) {
            Some(extra) => Err(format!("child {extra} was refused or deleted, and is there")),
            None => Ok(()),
        }
    }
}

impl Workload for ForeignKeys {
    fn name(&self) -> &'static str {
        "foreign-key race"
    }

    fn setup(&self) -> Vec<String> {
        let (parents, children, engine) = (self.parents(), self.children(), self.engine.name());
        let action = if self.cascade { "ON DELETE CASCADE" } else { "" };
        let rows: Vec<String> = (0..PARENTS).map(|parent| format!("({parent})")).collect();
        vec![
            format!("CREATE TABLE {parents} (id BIGINT PRIMARY KEY) WITH (engine = '{engine}')"),
            format!(
                "CREATE TABLE {children} (id BIGINT PRIMARY KEY, parent BIGINT NOT NULL REFERENCES {parents} (id) {action}) \
                 WITH (engine = '{engine}')"
            ),
            format!("INSERT INTO {parents} VALUES {}", rows.join(", ")),
        ]
    }

    fn tables(&self) -> Vec<String> {
        vec![self.parents(), self.children()]
    }

    fn workers(&self) -> usize {
        5
    }

    fn operate<'a>(&'a self, worker: usize, client: &'a Client, random: &'a mut StdRng) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            match worker {
                0 => self.look(client).await,
                1 | 2 => self.change_parent(client, random).await,
                _ if random.random_bool(0.55) => self.delete_child(client).await,
                _ => self.insert_child(client, random).await,
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
