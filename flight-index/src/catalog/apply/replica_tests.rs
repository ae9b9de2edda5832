//! Replicas never lie: whatever fails in whatever order, one that is current has every commit.
//!
//! The model has disks of storage servers beside the catalog, and lets storage servers do what they do: stage, keep calls
//! while they copy, copy, replay. Outcomes reach them at once.

use std::collections::{BTreeMap, BTreeSet};

use drsdb_core::{Column, ErrorCode, SqlType, Table, TableName, Ulid};
use proptest::prelude::*;

use super::{super::*, apply, cluster::KEPT_FOR_ABSENT};

const TABLE: Ulid = Ulid(10);
const SERVERS: std::ops::RangeInclusive<u128> = 1..=5;

#[derive(Debug, Clone, Copy)]
enum Step {
    /// A transaction stages on all replicas that are written, but for those of these servers.
    Stage {
        transaction: u8,
        failing: u8,
    },
    Commit {
        transaction: u8,
    },
    Demote {
        server: u8,
    },
    DemoteServer {
        server: u8,
    },
    /// A server finds its disk empty.
    Lose {
        server: u8,
        all: bool,
    },
    ServerUp {
        server: u8,
    },
    StartRebuild {
        server: u8,
        unheard: bool,
    },
    /// A server that rebuilds copies all, or takes what has changed since it was current.
    Copy {
        server: u8,
        whole: bool,
    },
    Finish {
        server: u8,
    },
    Add {
        server: u8,
        replaces: Option<u8>,
    },
    Remove {
        server: u8,
    },
}

fn any_step() -> impl Strategy<Value = Step> {
    let server = 1u8..=5;
    let transaction = 0u8..6;
    prop_oneof![
        8 => (transaction.clone(), prop_oneof![Just(0u8), any::<u8>()])
            .prop_map(|(transaction, failing)| Step::Stage { transaction, failing }),
        8 => transaction.prop_map(|transaction| Step::Commit { transaction }),
        3 => server.clone().prop_map(|server| Step::Demote { server }),
        1 => server.clone().prop_map(|server| Step::DemoteServer { server }),
        2 => (server.clone(), any::<bool>()).prop_map(|(server, all)| Step::Lose { server, all }),
        2 => server.clone().prop_map(|server| Step::ServerUp { server }),
        5 => (server.clone(), prop::bool::weighted(0.2))
            .prop_map(|(server, unheard)| Step::StartRebuild { server, unheard }),
        5 => (server.clone(), any::<bool>()).prop_map(|(server, whole)| Step::Copy { server, whole }),
        5 => server.clone().prop_map(|server| Step::Finish { server }),
        3 => (server.clone(), prop::option::of(1u8..=5))
            .prop_map(|(server, replaces)| Step::Add { server, replaces }),
        1 => server.prop_map(|server| Step::Remove { server }),
    ]
}

/// What a storage server has of the shard.
#[derive(Debug, Clone, Default)]
struct Disk {
    rows: BTreeSet<u64>,
    staged: BTreeSet<Ulid>,
    /// Calls that are kept while the shard is rebuilt.
    spool: Option<Vec<Ulid>>,
    copied: Option<u64>,
}

struct World {
    state: CatalogState,
    disks: BTreeMap<Ulid, Disk>,
    open: BTreeMap<u8, (Ulid, PieceInfo)>,
    outcomes: BTreeMap<Ulid, Outcome>,
    committed: BTreeSet<u64>,
    transactions: u128,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            state: CatalogState::default(),
            disks: SERVERS.map(|id| (Ulid(id), Disk::default())).collect(),
            open: BTreeMap::new(),
            outcomes: BTreeMap::new(),
            committed: BTreeSet::new(),
            transactions: 1000,
        };
        world.run(Command::Bootstrap {
            cluster_id: Ulid(1),
            signing_key_pkcs8: vec![1].into(),
            admin_user: "admin".to_owned(),
            admin_password_hash: String::new(),
        });
        for id in SERVERS {
            let server =
                StorageServer { id: Ulid(id), url: format!("https://s{id}:1"), cores: 1, labels: BTreeMap::new() };
            world.run(Command::RegisterStorage { server });
        }
        let table = Table {
            id: TABLE,
            name: TableName::new("public", "t"),
            columns: vec![Column::new("id", SqlType::BigInt, true)],
            primary_key: vec![0],
            shard_key: vec![0],
            ..Table::default()
        };
        world.run(Command::CreateTable { table, if_not_exists: false });
        world
    }

    fn run(&mut self, command: Command) -> Response {
        let version = self.state.version() + 1;
        apply(&mut self.state, version, &command)
    }

    /// A server says how far it is, when no outcome is kept any more for those that were away since.
    fn hear_long_after(&mut self, server: Ulid) {
        let (version, later) = (self.state.version(), self.state.version() + KEPT_FOR_ABSENT + 1);
        apply(&mut self.state, later, &Command::StorageApplied { server, version });
    }

    fn shard(&self) -> &ShardState {
        &self.state.table(TABLE).unwrap().shards[0]
    }

    fn disk(&mut self, server: Ulid) -> &mut Disk {
        self.disks.get_mut(&server).unwrap()
    }

    fn step(&mut self, step: Step) {
        let id = |server: u8| Ulid(u128::from(server));
        let (table, shard) = (TABLE, 0);
        match step {
            Step::Stage { transaction, failing } => self.stage(transaction, failing),
            Step::Commit { transaction } => self.commit(transaction),
            Step::Demote { server } => {
                drop(self.run(Command::DemoteReplica { table, shard, server: id(server), last: false }))
            }
            Step::DemoteServer { server } => drop(self.run(Command::DemoteServer { server: id(server) })),
            Step::ServerUp { server } => {
                // Its rebuild, if there is one, is told before its replica is looked at.
                drop(self.run(Command::ServerUp { server: id(server) }));
            }
            Step::StartRebuild { server, unheard } => {
                let server = id(server);
                let fresh = self.disk(server).spool.is_none();
                self.disk(server).spool.get_or_insert_default();
                let response = self.run(Command::StartRebuild { table, shard, server, fresh });
                if unheard {
                    // The answer is lost, and with it what was to be kept.
                    if fresh {
                        self.disk(server).spool = None;
                    }
                    return;
                }
                let current = self.shard().replica(server).is_some_and(Replica::is_current);
                if current || matches!(response, Response::Error(_)) {
                    self.disk(server).spool = None;
                }
            }
            Step::Lose { server, all } => {
                let server = id(server);
                let lost = self.run(Command::LoseReplicas { server, shard: (!all).then_some((table, shard)) });
                // Refused, it has to keep what is left of it.
                if matches!(lost, Response::Done { .. }) {
                    *self.disk(server) = Disk::default();
                }
            }
            Step::Copy { server, whole } => self.copy(id(server), whole),
            Step::Finish { server } => self.finish(id(server)),
            Step::Add { server, replaces } => {
                let replaces = replaces.map(id);
                drop(self.run(Command::AddReplica { table, shard, server: id(server), replaces }));
            }
            Step::Remove { server } => {
                drop(self.run(Command::RemoveReplica { table, shard, server: id(server) }));
            }
        }
    }

    fn stage(&mut self, name: u8, failing: u8) {
        let fails = |server: Ulid| failing & (1 << server.0) != 0;
        let shard = self.shard().clone();
        if self.open.contains_key(&name) || shard.current().next().is_none_or(fails) {
            return;
        }
        self.transactions += 1;
        let transaction = Ulid(self.transactions);
        let written = shard.replicas.iter().filter(|replica| replica.is_written()).map(|replica| replica.server);
        let acks: Vec<Ulid> = written.filter(|server| !fails(*server)).collect();
        for server in &acks {
            let disk = self.disk(*server);
            match &mut disk.spool {
                Some(spool) => spool.push(transaction),
                None => drop(disk.staged.insert(transaction)),
            }
        }
        let piece = PieceInfo { rows: 1, bytes: 1, acks, epoch: shard.epoch, ..PieceInfo::default() };
        self.open.insert(name, (transaction, piece));
    }

    fn commit(&mut self, name: u8) {
        let Some((transaction, piece)) = self.open.remove(&name) else { return };
        let tables = vec![TableChange { table: TABLE, version: 0, pieces: vec![piece] }];
        let command =
            Command::CommitTransaction { transaction, tables, statement: None, rows: None, validations: vec![] };
        let outcome = match self.run(command) {
            Response::Transaction(outcome) => outcome,
            _ => Outcome::Aborted,
        };
        self.outcomes.insert(transaction, outcome);
        for disk in self.disks.values_mut() {
            let staged = disk.staged.remove(&transaction);
            if let (Outcome::Committed { version, .. }, true) = (outcome, staged) {
                disk.rows.insert(version);
            }
        }
        if let Outcome::Committed { version, .. } = outcome {
            self.committed.insert(version);
        }
    }

    fn copy(&mut self, server: Ulid, whole: bool) {
        let version = self.state.version();
        let rebuilding = self.shard().rebuilding().any(|other| other == server);
        let Some(source) = self.shard().readable_at(version).next() else { return };
        if self.disk(server).spool.is_none() || !rebuilding {
            return;
        }
        let complete_to = self.shard().replica(server).map_or(0, |replica| replica.complete_to);
        let base = if whole { 0 } else { complete_to };
        let changed: Vec<u64> = self.disks[&source].rows.range(base + 1..).copied().collect();
        let disk = self.disk(server);
        disk.rows.retain(|version| *version <= base);
        disk.rows.extend(changed);
        disk.copied = Some(version);
        disk.staged.clear();
    }

    fn finish(&mut self, server: Ulid) {
        let outcomes = self.outcomes.clone();
        let disk = self.disk(server);
        let (Some(spool), Some(copied)) = (disk.spool.clone(), disk.copied.take()) else { return };
        for transaction in spool {
            match outcomes.get(&transaction) {
                Some(Outcome::Committed { version, .. }) if *version > copied => drop(disk.rows.insert(*version)),
                Some(_) => {}
                None => drop(disk.staged.insert(transaction)),
            }
        }
        let done = self.run(Command::ReplicaCurrent { table: TABLE, shard: 0, server, copied });
        if matches!(done, Response::Done { .. }) {
            self.disk(server).spool = None;
        }
    }

    fn check(&self) {
        let shard = self.shard();
        let servers: BTreeSet<Ulid> = shard.replicas.iter().map(|replica| replica.server).collect();
        assert_eq!(servers.len(), shard.replicas.len(), "a server has one replica");
        assert!(shard.replicas.iter().any(|replica| replica.is_current() && !replica.joining));
        assert!(shard.replicas.iter().all(|replica| !(replica.joining && replica.is_current())));
        assert!(shard.authority <= shard.epoch);
        for server in shard.current() {
            assert_eq!(self.disks[&server].rows, self.committed, "server {server} in {shard:?}");
        }
        for replica in shard.replicas.iter().filter(|replica| !replica.is_current()) {
            let up_to = |versions: &BTreeSet<u64>| versions.range(..=replica.complete_to).copied().collect::<Vec<_>>();
            let rows = &self.disks[&replica.server].rows;
            assert_eq!(up_to(rows), up_to(&self.committed), "server {} in {shard:?}", replica.server);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
    #[test]
    fn a_current_replica_has_every_commit(steps in prop::collection::vec(any_step(), 1..80)) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
            world.check();
        }
    }
}

#[test]
fn a_replica_that_missed_nothing_is_current_at_once() {
    let mut world = World::new();
    let first = world.shard().current().next().unwrap();
    let epoch = world.shard().epoch;
    world.run(Command::DemoteServer { server: first });
    assert_ne!(world.shard().current().next(), Some(first));
    assert!(world.shard().epoch > epoch && world.state.condition(first).down_since.is_some());
    world.run(Command::ServerUp { server: first });
    assert_eq!(world.shard().current().next(), Some(first), "it checks writes again");
    assert!(world.state.condition(first).down_since.is_none());
}

#[test]
fn a_missed_commit_makes_stale_and_a_copy_makes_current() {
    let mut world = World::new();
    let servers: Vec<Ulid> = world.shard().current().collect();
    let last = servers[2];
    world.stage(0, 1 << last.0);
    world.commit(0);
    assert_eq!(world.shard().current().collect::<Vec<_>>(), servers[..2]);
    world.run(Command::ServerUp { server: last });
    assert_eq!(world.shard().current().count(), 2, "it missed something");
    // Began before the rebuild, and commits after it: the first copy has it not.
    world.stage(1, 0);
    world.step(Step::StartRebuild { server: last.0 as u8, unheard: false });
    world.copy(last, true);
    world.commit(1);
    world.finish(last);
    assert_eq!(world.shard().rebuilding().collect::<Vec<_>>(), [last]);
    world.copy(last, true);
    world.finish(last);
    world.check();
    assert_eq!(world.shard().current().count(), 3);
}

#[test]
fn a_majority_stays() {
    let mut world = World::new();
    let servers: Vec<Ulid> = world.shard().current().collect();
    for (at, server) in servers.iter().enumerate() {
        let demoted = world.run(Command::DemoteReplica { table: TABLE, shard: 0, server: *server, last: false });
        assert_eq!(demoted, Response::Done { changed: at == 0 });
    }
    assert!(world.shard().is_writable());
    // Two are needed, and one has staged it.
    world.stage(0, 1 << servers[2].0);
    world.commit(0);
    assert!(world.committed.is_empty());
}

#[test]
fn what_was_staged_on_a_lost_replica_does_not_count() {
    let mut world = World::new();
    let servers: Vec<Ulid> = world.shard().current().collect();
    // Acknowledged by two of three, one of which then loses it.
    world.stage(0, 1 << servers[2].0);
    world.step(Step::Lose { server: servers[1].0 as u8, all: true });
    world.commit(0);
    assert!(world.committed.is_empty());
    world.check();
    // Rebuilt, it counts again; what it staged before does not.
    world.stage(1, 1 << servers[2].0);
    world.step(Step::StartRebuild { server: servers[1].0 as u8, unheard: false });
    world.copy(servers[1], true);
    world.finish(servers[1]);
    world.commit(1);
    assert!(world.committed.is_empty());
    world.stage(2, 0);
    world.commit(2);
    assert_eq!(world.committed.len(), 1);
    world.check();
}

#[test]
fn a_lost_replica_needs_a_copy_even_if_it_missed_nothing() {
    let mut world = World::new();
    let servers: Vec<Ulid> = world.shard().current().collect();
    let lost = servers[0];
    world.run(Command::DemoteServer { server: lost });
    world.step(Step::Lose { server: lost.0 as u8, all: true });
    world.run(Command::ServerUp { server: lost });
    world.step(Step::StartRebuild { server: lost.0 as u8, unheard: false });
    assert_eq!(world.shard().rebuilding().collect::<Vec<_>>(), [lost]);
    let again = Command::LoseReplicas { server: servers[0], shard: None };
    assert_eq!(world.run(again.clone()), Response::Done { changed: true }, "also while it is rebuilt");
    assert_eq!(world.run(again), Response::Done { changed: false });
}

#[test]
fn the_last_current_replica_is_not_given_up() {
    let mut world = World::new();
    let servers: Vec<Ulid> = world.shard().current().collect();
    let lose = |server: Ulid| Command::LoseReplicas { server, shard: None };
    for server in &servers[..2] {
        world.run(lose(*server)).into_result().unwrap();
    }
    assert!(!world.shard().is_writable(), "one of three");
    let error = world.run(lose(servers[2])).into_result().unwrap_err().to_wire();
    assert_eq!(error.code, ErrorCode::Corrupt);
    assert!(error.message.contains("shard 0 of table public.t"), "{}", error.message);
    assert_eq!(world.shard().current().collect::<Vec<_>>(), [servers[2]]);
    let of_one = Command::LoseReplicas { server: servers[2], shard: Some((TABLE, 0)) };
    assert_eq!(world.run(of_one).into_result().unwrap_err().code(), ErrorCode::Corrupt);
    // A server without replicas has nothing to lose.
    let empty = SERVERS.map(Ulid).find(|server| world.shard().replica(*server).is_none()).unwrap();
    assert_eq!(world.run(lose(empty)), Response::Done { changed: false });
    assert_eq!(world.run(lose(Ulid(99))).into_result().unwrap_err().code(), ErrorCode::NotFound);
}

#[test]
fn a_replica_moves_without_a_moment_of_fewer() {
    let mut world = World::new();
    let servers: Vec<Ulid> = world.shard().current().collect();
    let new = SERVERS.map(Ulid).find(|server| !servers.contains(server)).unwrap();
    let add = Command::AddReplica { table: TABLE, shard: 0, server: new, replaces: Some(servers[0]) };
    world.run(add.clone());
    assert_eq!(world.run(add), Response::Done { changed: false });
    assert_eq!((world.shard().counted(), world.shard().majority()), (3, 2));
    world.step(Step::StartRebuild { server: new.0 as u8, unheard: false });
    world.copy(new, true);
    world.finish(new);
    assert_eq!(world.shard().current().collect::<Vec<_>>(), [new, servers[1], servers[2]]);
    let events: Vec<Event> = world.state.events_after(0).flat_map(|(_, events)| events.to_vec()).collect();
    assert!(events.contains(&Event::ReplicaRemoved { table: TABLE, shard: 0, server: servers[0] }));
}

#[test]
fn a_server_is_dropped_when_it_is_empty_and_does_not_come_back() {
    let mut world = World::new();
    let holder = world.shard().current().next().unwrap();
    let refused = |response: Response| response.into_result().unwrap_err().code();
    assert_eq!(refused(world.run(Command::DropServer { server: holder })), ErrorCode::InvalidArgument);
    let empty = SERVERS.map(Ulid).find(|server| world.shard().replica(*server).is_none()).unwrap();
    let server = (**world.state.server(empty).unwrap()).clone();
    world.run(Command::DropServer { server: empty }).into_result().unwrap();
    assert!(world.state.server(empty).is_none());
    assert_eq!(refused(world.run(Command::RegisterStorage { server })), ErrorCode::InvalidArgument);
    assert_eq!(refused(world.run(Command::DropServer { server: empty })), ErrorCode::NotFound);
}

#[test]
fn a_server_that_is_gone_does_not_keep_commits_from_being_forgotten() {
    let mut world = World::new();
    let servers: Vec<Ulid> = world.shard().current().collect();
    let gone = servers[0];
    world.run(Command::DemoteServer { server: gone });
    world.stage(0, 0);
    world.commit(0);
    let version = world.state.version();
    for server in SERVERS.map(Ulid).filter(|server| *server != gone) {
        world.run(Command::StorageApplied { server, version });
    }
    assert!(world.state.forgotten_version() < version, "it may be back soon");
    world.hear_long_after(servers[1]);
    assert_eq!(world.state.forgotten_version(), version);
    // What it missed it does not hear any more, so it is not current even where nothing was changed.
    world.run(Command::ServerUp { server: gone });
    assert!(!world.shard().current().any(|server| server == gone));
}

#[test]
fn a_server_that_missed_an_outcome_is_not_current_without_a_copy() {
    let mut world = World::new();
    let servers: Vec<Ulid> = world.shard().current().collect();
    let gone = servers[0];
    // It has staged the change, and dies before it hears of the commit.
    world.stage(0, 0);
    world.commit(0);
    world.run(Command::DemoteServer { server: gone });
    let version = world.state.version();
    for server in SERVERS.map(Ulid).filter(|server| *server != gone) {
        world.run(Command::StorageApplied { server, version });
    }
    world.hear_long_after(servers[1]);
    assert_eq!(world.state.forgotten_version(), version);
    // It is told what is still known, and says how far it is, before anybody looks at its replicas.
    let version = world.state.version();
    world.run(Command::StorageApplied { server: gone, version });
    world.run(Command::ServerUp { server: gone });
    assert!(!world.shard().current().any(|server| server == gone));
    world.step(Step::StartRebuild { server: gone.0 as u8, unheard: false });
    assert!(!world.shard().current().any(|server| server == gone), "it has to be given a copy");
}
