//! Faults: clusters of real processes whose servers are killed, stopped, cut off and starved while clients write, and what
//! must hold whatever happens.
//!
//! A [`nemesis`] makes the faults of a seed happen, on the processes of a [`cluster`] and the [`network`] between them, while
//! [`workload`]s keep notes of what they were told. Afterwards all is healed, and the notes are held against what the
//! database says. A seed that fails prints its schedule, and is run again alone with
//! `DRSDB_FAULT_SEED=37 cargo test --test faults`, or with `30-37` after those that came before it on its cluster; with
//! `DRSDB_SOAK=1` if it is one of the long ones. `make soak SECONDS=600` runs many more seeds, longer.

// A failed step of a test ends it.
#![allow(clippy::unwrap_used)]

mod cluster;
mod crashes;
mod history;
mod nemesis;
mod network;
mod replacement;
mod replicas;
mod run;
mod voters;
mod workload;

use std::time::{Duration, Instant};

use cluster::{SEEDS_OF_A_CLUSTER, Topology};
use crashes::{crash_before_an_abort, crash_index_servers, crash_storage_servers, crash_while_a_table_is_made};
use run::{Settings, named_seeds, run_seeds};

const TOPOLOGY: Topology = Topology::new(3, 3);

const SHORT: Settings =
    Settings { topology: TOPOLOGY, length: Duration::from_millis(2500), workloads: 2, replace_every: 10, replay: "" };

const LONG: Settings =
    Settings { length: Duration::from_secs(12), workloads: 6, replace_every: 5, replay: "DRSDB_SOAK=1 ", ..SHORT };

/// The seeds of a cluster each, so that two clusters can be at it at the same time.
macro_rules! seeds {
    ($($name:ident = $first:literal),+ $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                if named_seeds().is_none() {
                    run_seeds($first..$first + SEEDS_OF_A_CLUSTER, SHORT).await;
                }
            }
        )+
    };
}

seeds! {
    seeds_from_0 = 0,
    seeds_from_10 = 10,
    seeds_from_20 = 20,
    seeds_from_30 = 30,
    seeds_from_40 = 40,
}

/// Before and after everything that becomes durable or is told to another server.
#[tokio::test(flavor = "multi_thread")]
async fn index_servers_recover_from_a_crash_at_every_point() {
    if named_seeds().is_none() {
        let never = crash_index_servers(TOPOLOGY).await;
        assert!(never.is_empty(), "no index server came to {never:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn storage_servers_recover_from_a_crash_at_every_point() {
    if named_seeds().is_none() {
        let never = crash_storage_servers(TOPOLOGY).await;
        assert!(never.is_empty(), "no storage server came to {never:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_outlives_an_abort_that_its_server_missed() {
    if named_seeds().is_none() {
        crash_before_an_abort(TOPOLOGY).await.unwrap_or_else(|error| panic!("{error}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_goes_with_the_index_server_that_was_making_it() {
    if named_seeds().is_none() {
        crash_while_a_table_is_made(Topology::new(1, 1)).await.unwrap_or_else(|error| panic!("{error}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_named_seeds() {
    if let Some(seeds) = named_seeds() {
        let settings = if std::env::var_os("DRSDB_SOAK").is_some() { LONG } else { SHORT };
        run_seeds(seeds, settings).await;
    }
}

/// `make soak`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "runs for as long as it is told"]
async fn many_seeds_for_long() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number of seconds"));
    let seconds = number("DRSDB_SOAK_SECONDS").unwrap_or(60);
    let first = number("DRSDB_SOAK_FIRST_SEED").unwrap_or_else(|| rand::random_range(1_000..1_000_000_000));
    let deadline = Instant::now() + Duration::from_secs(seconds);
    run_seeds((first..).take_while(|_| Instant::now() < deadline), LONG).await;
}
