//! From a seed to a schedule. Pure: a seed that failed gives the same faults again.

use std::{fmt, time::Duration};

use drsdb_core::crash_point::{INDEX_POINTS, STORAGE_POINTS};
use rand::{
    Rng, SeedableRng,
    rngs::StdRng,
    seq::{IndexedRandom, IteratorRandom},
};

use crate::{cluster::Topology, network::Node};

/// Whom a fault hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    Node(Node),
    /// The index server that leads when the fault fires.
    Leader,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL; started again at the end.
    Kill(Target),
    /// Every server at once.
    KillAll,
    /// SIGSTOP; SIGCONT at the end.
    Stop(Target),
    /// Stopped and let go on many times a second: everything it does is slow, its disk too.
    Stutter(Target),
    /// Nothing reaches it and nothing comes from it.
    Isolate(Target),
    /// What the one sends does not reach the other.
    CutOneWay { from: Node, to: Node },
    /// Neither hears the other; everyone else hears both.
    Cut { left: Node, right: Node },
    /// Everything to and from it takes longer.
    Delay { target: Target, delay: Duration },
    /// All its connections break at once.
    Reset(Target),
    /// No byte of its disk is free.
    FillDisk(Node),
    /// It dies when it comes to a point in its code for the so-manieth time; of its next start, or from now on.
    Crash { node: Node, point: &'static str, times: u64, at_start: bool },
    /// It is gone with its disk, and a new and empty server takes its place.
    Replace(Node),
    /// It is gone, and comes back with a damaged file.
    Damage(Node),
    /// Every fsync takes longer.
    SlowDisk { target: Target, slow_sync: Duration },
    /// Its wall clock steps, and back at the end.
    Clock { target: Target, offset_ms: i64 },
}

impl Fault {
    /// Whom it hits, if that may be the leader.
    pub fn target_mut(&mut self) -> Option<&mut Target> {
        match self {
            Fault::Kill(target)
            | Fault::Stop(target)
            | Fault::Stutter(target)
            | Fault::Isolate(target)
            | Fault::Reset(target)
            | Fault::Delay { target, .. }
            | Fault::SlowDisk { target, .. }
            | Fault::Clock { target, .. } => Some(target),
            _ => None,
        }
    }
}

/// A fault with its times, from the beginning of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    pub at: Duration,
    pub until: Duration,
    pub fault: Fault,
}

/// The faults of `seed` for a run of `length`, in the order of their beginnings. All of them end within it.
///
/// At most one in `replace_every` runs loses a disk, or what is on it, a storage server's and an index server's in turn: the
/// cluster then has to make new replicas before it may lose another. 0: none does.
pub fn schedule(seed: u64, topology: Topology, length: Duration, replace_every: u64) -> Vec<Step> {
    let mut random = StdRng::seed_from_u64(seed);
    // Mostly one fault after the other; sometimes several at once, which may cost a majority and then only has to leave
    // what was acknowledged.
    let steps = if random.random_bool(0.25) { random.random_range(3..=5) } else { random.random_range(1..=2) };
    let together = random.random_bool(0.25);
    let slot = length.div_f64(if together { 1.0 } else { f64::from(steps) });
    let mut schedule: Vec<Step> = (0..steps)
        .map(|number| {
            let start = if together { Duration::ZERO } else { slot * number };
            let begins = start + slot.mul_f64(random.random_range(0.05..0.4));
            let lasts = slot.mul_f64(random.random_range(0.2..0.55));
            Step { at: begins, until: begins + lasts, fault: fault(&mut random, topology) }
        })
        .collect();
    if replace_every > 0 && seed % replace_every == replace_every - 1 {
        let storage = Node::Storage(random.random_range(1..=topology.storage));
        let index = Node::Index(random.random_range(1..=topology.index));
        let fault = match seed / replace_every % 4 {
            0 => Fault::Replace(storage),
            1 => Fault::Damage(index),
            2 => Fault::Damage(storage),
            _ => Fault::Replace(index),
        };
        // With another server down as well, nobody could have kept what was acknowledged.
        schedule = vec![Step { at: length / 4, until: length / 2, fault }];
    }
    schedule.sort_by_key(|step| step.at);
    schedule
}

fn fault(random: &mut StdRng, topology: Topology) -> Fault {
    let nodes: Vec<Node> = topology.everyone().collect();
    let (left, right) = loop {
        let mut pick = || *nodes.choose(random).expect("there are servers");
        match (pick(), pick()) {
            (left, right) if left != right => break (left, right),
            _ => {}
        }
    };
    let target = target(random, topology);
    match random.random_range(0..100) {
        0..20 => Fault::Kill(target),
        20..23 => Fault::KillAll,
        23..35 => Fault::Stop(target),
        35..40 => Fault::Stutter(target),
        40..47 => Fault::SlowDisk { target, slow_sync: Duration::from_millis(random.random_range(50..=300)) },
        47..57 => Fault::Isolate(target),
        57..66 => Fault::CutOneWay { from: left, to: right },
        66..73 => Fault::Cut { left, right },
        73..79 => Fault::Delay { target, delay: Duration::from_millis(random.random_range(20..400)) },
        79..83 => Fault::Reset(target),
        83..89 => crash(random, topology),
        89..95 => Fault::Clock { target, offset_ms: clock_offset_ms(random) },
        // Where no small disk could be mounted, the run says so.
        _ => topology.small_disks().choose(random).map_or(Fault::Kill(target), Fault::FillDisk),
    }
}

fn crash(random: &mut StdRng, topology: Topology) -> Fault {
    let servers: Vec<Node> = topology.servers().collect();
    let node = *servers.choose(random).expect("there are servers");
    let points = if matches!(node, Node::Index(_)) { INDEX_POINTS } else { STORAGE_POINTS };
    let point = points.choose(random).expect("there are points");
    Fault::Crash { node, point, times: random.random_range(1..=6), at_start: random.random_bool(0.3) }
}

/// Seconds to days, each order of magnitude as often as the others: tickets last minutes, and logins a day.
fn clock_offset_ms(random: &mut StdRng) -> i64 {
    let seconds = random.random_range(2f64.ln()..3e5f64.ln()).exp();
    let ms = (seconds * 1000.0) as i64;
    if random.random_bool(0.5) { ms } else { -ms }
}

fn target(random: &mut StdRng, topology: Topology) -> Target {
    if random.random_bool(0.25) {
        return Target::Leader;
    }
    let servers: Vec<Node> = topology.servers().collect();
    Target::Node(*servers.choose(random).expect("there are servers"))
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Node(node) => write!(f, "{node}"),
            Target::Leader => f.write_str("the leader"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Kill(target) => write!(f, "kill {target}"),
            Fault::KillAll => f.write_str("kill all servers"),
            Fault::Stop(target) => write!(f, "stop {target}"),
            Fault::Stutter(target) => write!(f, "slow down {target}"),
            Fault::Isolate(target) => write!(f, "isolate {target}"),
            Fault::CutOneWay { from, to } => write!(f, "cut {from} -> {to}"),
            Fault::Cut { left, right } => write!(f, "cut {left} <-> {right}"),
            Fault::Delay { target, delay } => write!(f, "delay {target} by {} ms", delay.as_millis()),
            Fault::Reset(target) => write!(f, "reset the connections of {target}"),
            Fault::FillDisk(node) => write!(f, "fill the disk of {node}"),
            Fault::Crash { node, point, times, at_start } => {
                let start = if *at_start { "start again and " } else { "" };
                write!(f, "{start}crash {node} at {point}, passed {times} times")
            }
            Fault::Replace(node) => write!(f, "replace {node} by an empty server"),
            Fault::Damage(node) => write!(f, "kill {node} and damage its file"),
            Fault::SlowDisk { target, slow_sync } => {
                write!(f, "slow down each fsync of {target} by {} ms", slow_sync.as_millis())
            }
            Fault::Clock { target, offset_ms } => {
                write!(f, "step the clock of {target} by {:.1} s", *offset_ms as f64 / 1000.0)
            }
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:4} ms to {:4} ms: {}", self.at.as_millis(), self.until.as_millis(), self.fault)
    }
}

#[test]
fn a_seed_gives_one_schedule_and_seeds_differ() {
    use std::collections::{BTreeMap, BTreeSet};

    let length = Duration::from_secs(3);
    let mut kinds = BTreeMap::new();
    let (mut full, mut lost, mut damaged) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for seed in 0..2_000 {
        let topology = Topology::new(3, 3).of_seed(seed);
        let steps = schedule(seed, topology, length, 10);
        assert_eq!(steps, schedule(seed, topology, length, 10));
        assert!(!steps.is_empty());
        for step in &steps {
            assert!(step.at < step.until && step.until <= length, "{step}");
            match step.fault {
                Fault::FillDisk(node) => drop(full.insert(node)),
                Fault::Replace(node) => drop(lost.insert(node)),
                Fault::Damage(node) => drop(damaged.insert(node)),
                _ => {}
            }
            *kinds.entry(format!("{:?}", std::mem::discriminant(&step.fault))).or_insert(0) += 1;
        }
    }
    assert_eq!(kinds.len(), 15, "every kind of fault is there: {kinds:?}");
    let all: BTreeSet<Node> = Topology::new(3, 3).servers().collect();
    assert_eq!((&full, &lost, &damaged), (&all, &all, &all), "every server's disk gets full, lost and damaged");
    let none = schedule(9, Topology::new(3, 3), length, 0);
    assert!(none.iter().all(|step| !matches!(step.fault, Fault::Replace(_) | Fault::Damage(_) | Fault::FillDisk(_))));
}
