//! Wherever replicas are, the steps of the plan bring them where they should be, and then it asks for nothing more.

use drsdb_core::{Column, SqlType, Table, TableName};
use proptest::prelude::*;

use super::*;
use crate::catalog::{Response, apply};

fn run(state: &mut CatalogState, command: &Command) -> Response {
    let version = state.version() + 1;
    apply(state, version, command)
}

fn server(id: u128) -> StorageServer {
    StorageServer { id: Ulid(id), url: format!("https://s{id}:1"), cores: 1, labels: Default::default() }
}

fn cluster(servers: u128) -> CatalogState {
    let mut state = CatalogState::default();
    let bootstrap = Command::Bootstrap {
        cluster_id: Ulid(1),
        signing_key_pkcs8: vec![1].into(),
        admin_user: "admin".to_owned(),
        admin_password_hash: String::new(),
    };
    run(&mut state, &bootstrap);
    for id in 1..=servers {
        run(&mut state, &Command::RegisterStorage { server: server(id) });
    }
    state
}

fn create(state: &mut CatalogState, id: u128, shards: u32, replicas: Option<u32>) {
    let table = Table {
        id: Ulid(id),
        name: TableName::new("public", format!("t{id}")),
        columns: vec![Column::new("id", SqlType::BigInt, true)],
        primary_key: vec![0],
        shard_key: vec![0],
        shards,
        replicas,
        ..Table::default()
    };
    let response = run(state, &Command::CreateTable { table, if_not_exists: false });
    assert_eq!(response, Response::Done { changed: true });
}

fn all(state: &CatalogState) -> Observed {
    let answering = state.servers().map(|server| server.id).collect();
    Observed { answering, ..Observed::default() }
}

fn without(state: &CatalogState, gone: u128) -> Observed {
    let mut observed = all(state);
    observed.answering.remove(&Ulid(gone));
    observed.silent.insert(Ulid(gone));
    observed
}

/// Does what the plan says, as servers would that answer and copy at once, until it says nothing; how many steps it took.
fn settle(state: &mut CatalogState, observed: &Observed) -> usize {
    settle_so_that(state, observed, |_| ())
}

/// The same; `holds` looks at the state after each step.
fn settle_so_that(state: &mut CatalogState, observed: &Observed, holds: impl Fn(&CatalogState)) -> usize {
    for round in 0..2000 {
        let actions = plan(state, observed, 2);
        if actions.is_empty() {
            return round;
        }
        let copied = actions.iter().filter(|action| matches!(action, Action::Rebuild { .. })).count();
        let added = actions.iter().filter(|a| matches!(a, Action::Propose(Command::AddReplica { .. }))).count();
        assert!(copied + added <= 2 + copied.min(2), "no more than two copies at a time: {actions:?}");
        for action in actions {
            match action {
                Action::Propose(command) => drop(run(state, &command)),
                Action::Rebuild { server, table, shard } => {
                    run(state, &Command::StartRebuild { table, shard, server, fresh: false });
                    let copied = state.version();
                    run(state, &Command::ReplicaCurrent { table, shard, server, copied });
                }
            }
            for (table, shard) in state.all_tables().flat_map(|table| table.shards.iter().map(move |s| (table, s))) {
                assert!(shard.is_writable(), "{}: {shard:?}", table.table.name);
            }
            holds(state);
        }
    }
    panic!("it does not come to an end: {:?}", plan(state, observed, 2));
}

fn held(state: &CatalogState, server: u128) -> usize {
    state.replicas_on(Ulid(server)).count()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn it_settles_where_tables_would_be_placed_now(
        before in 1u128..6,
        after in 1u128..7,
        shards in prop::collection::vec((1u32..20, prop::option::of(1u32..4)), 1..4),
        drained in prop::option::of(1u128..6),
    ) {
        let mut state = cluster(before);
        for (id, (shards, replicas)) in (100u128..).zip(&shards) {
            create(&mut state, id, *shards, *replicas);
        }
        for id in before + 1..=after {
            run(&mut state, &Command::RegisterStorage { server: server(id) });
        }
        let drained = drained.filter(|id| *id <= before && state.servers().count() > 1);
        if let Some(server) = drained {
            run(&mut state, &Command::SetServerState { server: Ulid(server), state: ServerState::Draining });
        }
        let there = all(&state);
        settle(&mut state, &there);
        let left = state.servers().count() - usize::from(drained.is_some());
        for table in state.all_tables() {
            for shard in &table.shards {
                prop_assert_eq!(shard.counted(), (replicas_of(&table.table) as usize).min(left));
                prop_assert!(shard.replicas.iter().all(|replica| replica.is_current() && !replica.joining));
            }
        }
        if let Some(server) = drained {
            prop_assert_eq!(held(&state, server), 0);
            let dropped = run(&mut state, &Command::DropServer { server: Ulid(server) });
            prop_assert_eq!(dropped, Response::Done { changed: true });
        }
        // As even as a placement from scratch.
        let fresh: Vec<&StorageServer> = state.placement_servers();
        for table in state.all_tables() {
            let target = place(table.table.shards, replicas_of(&table.table), &fresh);
            for (shard, target) in table.shards.iter().zip(target) {
                let there: BTreeSet<Ulid> = shard.current().collect();
                prop_assert_eq!(there, target.into_iter().collect::<BTreeSet<_>>());
            }
        }
    }
}

#[test]
fn replicas_that_move_within_their_zones_share_none_on_the_way() {
    let zone = |id: Ulid| (id.0 % 3).to_string();
    let labelled = |id| StorageServer { labels: [("zone".to_owned(), zone(Ulid(id)))].into(), ..server(id) };
    let mut state = cluster(0);
    let register = |ids: std::ops::RangeInclusive<u128>, state: &mut CatalogState| {
        for id in ids {
            run(state, &Command::RegisterStorage { server: labelled(id) });
        }
    };
    register(1..=3, &mut state);
    create(&mut state, 100, 24, None);
    register(4..=9, &mut state);
    let there = all(&state);
    let steps = settle_so_that(&mut state, &there, |state| {
        for shard in state.all_tables().flat_map(|table| &table.shards) {
            let zones: BTreeSet<String> = shard.current().map(zone).collect();
            assert_eq!(zones.len(), 3, "{shard:?}");
        }
    });
    assert!(steps > 24 && (1..=9).all(|id| held(&state, id) == 8));
}

#[test]
fn a_silent_server_is_demoted_and_replaced_when_it_is_gone() {
    let mut state = cluster(4);
    create(&mut state, 100, 12, None);
    let mut observed = without(&state, 2);
    settle(&mut state, &observed);
    let held_before = held(&state, 2);
    assert!(held_before > 0 && state.condition(Ulid(2)).down_since.is_some());
    assert!(state.replicas_on(Ulid(2)).all(|(_, _, replica)| !replica.is_written()));
    assert_eq!(settle(&mut state, &observed), 0, "and no more for now");

    observed.gone.insert(Ulid(2));
    settle(&mut state, &observed);
    assert_eq!(held(&state, 2), 0);
    assert!(state.all_tables().flat_map(|table| &table.shards).all(|shard| shard.current().count() == 3));
    // It comes back, empty-handed, and gets its share again.
    let observed = all(&state);
    settle(&mut state, &observed);
    assert_eq!(held(&state, 2), 9);
}

#[test]
fn a_server_that_is_gone_stays_listed_when_nobody_can_take_over() {
    let mut state = cluster(3);
    create(&mut state, 100, 4, None);
    let mut observed = without(&state, 3);
    observed.gone.insert(Ulid(3));
    settle(&mut state, &observed);
    assert_eq!(held(&state, 3), 4);
    let observed = all(&state);
    settle(&mut state, &observed);
    assert!(state.all_tables().flat_map(|table| &table.shards).all(|shard| shard.current().count() == 3));
}

#[test]
fn a_move_to_a_server_that_went_away_is_given_up() {
    let mut state = cluster(3);
    create(&mut state, 100, 1, None);
    run(&mut state, &Command::RegisterStorage { server: server(4) });
    let add = Command::AddReplica { table: Ulid(100), shard: 0, server: Ulid(4), replaces: Some(Ulid(1)) };
    run(&mut state, &add);
    let mut observed = without(&state, 4);
    settle(&mut state, &observed);
    assert_eq!(held(&state, 4), 1, "it may come back");
    observed.gone.insert(Ulid(4));
    settle(&mut state, &observed);
    assert_eq!(held(&state, 4), 0);
}
