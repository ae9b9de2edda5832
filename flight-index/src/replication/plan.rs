//! What is to be done next so that replicas are where they should be: a pure function.
//!
//! In order of urgency, and at most so many copies at a time:
//!
//! 1. replicas of servers that are silent are demoted,
//! 2. stale replicas whose server answers are rebuilt,
//! 3. replicas on servers that are gone for good or drained get a substitute elsewhere,
//! 4. shards with too few replicas get more, and shards move to where [`place`] would put them now: that is how a new
//!    server gets its share.

use std::collections::{BTreeMap, BTreeSet};

use drsdb_core::Ulid;

use crate::{
    catalog::{CatalogState, Command, Replica, ReplicaState, ServerState, ShardState, StorageServer, TableState},
    placement::{place, replicas_of, zone_of},
};

/// What the leader knows of the servers.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// Those that answer.
    pub answering: BTreeSet<Ulid>,
    /// Those that have been silent for long enough to be demoted.
    pub silent: BTreeSet<Ulid>,
    /// Those that have been silent for so long that others take over.
    pub gone: BTreeSet<Ulid>,
}

/// One step.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// A change of the catalog.
    Propose(Command),
    /// A server is told to rebuild its replica.
    Rebuild {
        /// The server.
        server: Ulid,
        /// The table.
        table: Ulid,
        /// The shard's number.
        shard: u32,
    },
}

/// The next steps. `copies` shards are copied at a time, at most.
pub fn plan(state: &CatalogState, observed: &Observed, copies: usize) -> Vec<Action> {
    let mut actions = Vec::new();
    let mut room = copies;
    for server in state.servers() {
        let (down, id) = (state.condition(server.id).down_since.is_some(), server.id);
        if observed.answering.contains(&id) && down {
            actions.push(Action::Propose(Command::ServerUp { server: id }));
        } else if observed.silent.contains(&id) && (!down || can_be_spared(state, id)) {
            actions.push(Action::Propose(Command::DemoteServer { server: id }));
        }
    }
    let shards: Vec<(&TableState, u32, &ShardState)> = state
        .all_tables()
        .flat_map(|table| (0..).zip(&table.shards).map(move |(number, shard)| (&**table, number, &**shard)))
        .collect();
    // Those that are being copied are told again: their server may have been restarted in the midst of it.
    for stale in [false, true] {
        for (table, number, shard) in &shards {
            for replica in &shard.replicas {
                let wanted = match replica.state {
                    ReplicaState::Current { .. } => false,
                    ReplicaState::Rebuilding { .. } => !stale,
                    ReplicaState::Stale { .. } => stale && room > 0,
                };
                if wanted && observed.answering.contains(&replica.server) && !given_up(state, observed, replica) {
                    room = room.saturating_sub(1);
                    actions.push(Action::Rebuild { server: replica.server, table: table.table.id, shard: *number });
                }
            }
        }
    }
    let targets = Targets::new(state, observed);
    for urgent in [true, false] {
        for (table, number, shard) in &shards {
            let moved = targets.next_move(state, observed, table, *number, shard, urgent);
            if let Some(command) = moved {
                let copies = matches!(command, Command::AddReplica { .. });
                if copies && room == 0 {
                    continue;
                }
                room -= usize::from(copies);
                actions.push(Action::Propose(command));
            }
        }
    }
    actions
}

/// Whether some shard has a current replica on `server` and a majority without it.
fn can_be_spared(state: &CatalogState, server: Ulid) -> bool {
    state.replicas_on(server).any(|(table, number, replica)| {
        let shard = &table.shards[number as usize];
        let others = shard.current().filter(|other| *other != server).count();
        replica.is_written() && (!replica.is_current() || others >= shard.majority())
    })
}

/// Whether a replica is not worth a copy: it is about to be taken away.
fn given_up(state: &CatalogState, observed: &Observed, replica: &Replica) -> bool {
    leaves(state, observed, replica.server)
}

/// Whether a server's replicas go elsewhere.
fn leaves(state: &CatalogState, observed: &Observed, server: Ulid) -> bool {
    observed.gone.contains(&server) || state.condition(server).state != ServerState::Active
}

/// Where shards would be placed now, by the number of shards and of replicas.
struct Targets {
    servers: Vec<Ulid>,
    placements: BTreeMap<(u32, u32), Vec<Vec<Ulid>>>,
}

impl Targets {
    fn new(state: &CatalogState, observed: &Observed) -> Self {
        let servers: Vec<&StorageServer> =
            state.servers().map(|server| &**server).filter(|server| !leaves(state, observed, server.id)).collect();
        let shapes = state.all_tables().map(|table| (table.table.shards, replicas_of(&table.table)));
        let shapes: BTreeSet<(u32, u32)> = shapes.collect();
        let placements =
            shapes.into_iter().map(|(shards, replicas)| ((shards, replicas), place(shards, replicas, &servers)));
        Self { placements: placements.collect(), servers: servers.iter().map(|server| server.id).collect() }
    }

    /// The next change of where a shard is; `urgent` ones are those without which a replica is lost or cannot leave.
    fn next_move(
        &self,
        state: &CatalogState,
        observed: &Observed,
        table: &TableState,
        number: u32,
        shard: &ShardState,
        urgent: bool,
    ) -> Option<Command> {
        let id = table.table.id;
        let replicas = replicas_of(&table.table);
        let target = self.placements.get(&(table.table.shards, replicas))?.get(number as usize)?;
        let at_work = shard.replicas.iter().find(|replica| replica.joining);
        if let Some(joining) = at_work {
            // One move at a time; one whose target went away is given up.
            let lost = leaves(state, observed, joining.server);
            let server = joining.server;
            return (urgent && lost).then_some(Command::RemoveReplica { table: id, shard: number, server });
        }
        let counted: Vec<&Replica> = shard.replicas.iter().filter(|replica| !replica.joining).collect();
        let mut leaving: Vec<&Replica> =
            counted.iter().copied().filter(|replica| !target.contains(&replica.server)).collect();
        leaving.sort_by_key(|replica| (!leaves(state, observed, replica.server), replica.is_current()));
        let must_leave = leaving.first().is_some_and(|replica| leaves(state, observed, replica.server));
        let can_come = |server: &Ulid| {
            shard.replica(*server).is_none() && self.servers.contains(server) && observed.answering.contains(server)
        };
        // One that is apart from those that stay, if there is one: the others may move later.
        let coming = |old: Option<Ulid>| {
            let zone = |server: Ulid| state.server(server).map(|server| zone_of(server));
            let staying = || counted.iter().map(|replica| replica.server).filter(|server| Some(*server) != old);
            let is_apart = |server: &Ulid| staying().all(|other| zone(other) != zone(*server));
            let mut candidates = target.iter().copied().filter(can_come);
            let first = candidates.clone().next();
            candidates.find(is_apart).or(first)
        };
        let add = |server, replaces| Command::AddReplica { table: id, shard: number, server, replaces };
        if counted.len() < target.len() {
            // More servers are there than when the table was made, or it was given more replicas.
            return coming(None).filter(|_| urgent == (counted.len() < 2)).map(|server| add(server, None));
        }
        let settled = counted.iter().all(|replica| replica.is_current());
        let old = leaving.first()?;
        if urgent != must_leave || (!urgent && !settled) {
            return None;
        }
        match coming(Some(old.server)) {
            Some(server) => Some(add(server, Some(old.server))),
            // Fewer servers are left than replicas were wanted: a drained one goes without a substitute.
            None => {
                let drained = state.condition(old.server).state != ServerState::Active;
                let others = counted.len() > target.len() && !target.is_empty();
                let spared =
                    counted.iter().filter(|r| r.is_current() && r.server != old.server).count() * 2 > counted.len() - 1;
                let all_there = target.iter().all(|server| shard.replica(*server).is_some());
                (drained && others && spared && all_there).then_some(Command::RemoveReplica {
                    table: id,
                    shard: number,
                    server: old.server,
                })
            }
        }
    }
}

#[cfg(test)]
mod tests;
