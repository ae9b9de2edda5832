//! Makes a schedule's faults happen.

use std::time::Duration;

use drsdb_client::Client;
use tokio::time::{Instant, sleep_until, timeout};

use super::{Fault, Step, Target};
use crate::{
    cluster::Cluster,
    network::{Network, Node},
    run::leader,
};

/// How long it is asked who leads: while other faults keep servers from answering, it is who led before.
const LOOK_TIME: Duration = Duration::from_millis(500);

/// Of a stuttering server: how long it runs, and how long it stands still.
const STUTTER_RUNS: Duration = Duration::from_millis(15);
const STUTTER_STANDS: Duration = Duration::from_millis(60);

/// One run of a schedule.
pub struct Nemesis<'a> {
    cluster: &'a mut Cluster,
    client: &'a Client,
    /// Who led the index servers when somebody last said so.
    leader: Node,
    fired: Fired,
}

/// What has happened.
#[derive(Debug, Clone, Copy, Default)]
pub struct Fired {
    pub faults: usize,
    /// Servers that died where they were told to.
    pub crashes: usize,
}

enum Moment {
    Begin,
    Stutter(bool),
    End,
}

impl<'a> Nemesis<'a> {
    pub fn new(cluster: &'a mut Cluster, client: &'a Client, leader: Node) -> Self {
        Self { cluster, client, leader, fired: Fired::default() }
    }

    /// Runs all steps, and gives how many faults fired.
    pub async fn run(mut self, steps: &[Step]) -> Fired {
        let started = Instant::now();
        let mut faults: Vec<Fault> = steps.iter().map(|step| step.fault).collect();
        let mut moments = Vec::new();
        for (number, step) in steps.iter().enumerate() {
            moments.push((step.at, Moment::Begin, number));
            if matches!(step.fault, Fault::Stutter(_)) {
                let (mut at, mut stopped) = (step.at, true);
                while at < step.until {
                    moments.push((at, Moment::Stutter(stopped), number));
                    at += if stopped { STUTTER_STANDS } else { STUTTER_RUNS };
                    stopped = !stopped;
                }
            }
            moments.push((step.until, Moment::End, number));
        }
        moments.sort_by_key(|(at, ..)| *at);
        for (at, moment, number) in moments {
            let fault = &mut faults[number];
            // The schedule is made of times.
            #[allow(clippy::disallowed_methods)]
            sleep_until(started + at).await;
            match moment {
                Moment::Begin => {
                    self.aim(fault).await;
                    self.begin(*fault).await;
                }
                Moment::Stutter(stopped) => {
                    if let Fault::Stutter(target) = *fault {
                        let node = self.node(target);
                        self.cluster.set_stopped(node, stopped);
                    }
                }
                Moment::End => self.end(*fault).await,
            }
        }
        self.fired
    }

    /// Decides who is meant by the leader: what begins at one server ends at the same.
    async fn aim(&mut self, fault: &mut Fault) {
        let Some(target) = fault.target_mut().filter(|target| **target == Target::Leader) else { return };
        let found = timeout(LOOK_TIME, leader(self.cluster, self.client)).await;
        self.leader = found.ok().flatten().unwrap_or(self.leader);
        *target = Target::Node(self.leader);
    }

    fn node(&self, target: Target) -> Node {
        match target {
            Target::Node(node) => node,
            Target::Leader => self.leader,
        }
    }

    async fn begin(&mut self, mut fault: Fault) {
        let fires = match fault.target_mut() {
            // Who does not run feels nothing of it.
            Some(target) => self.cluster.runs(self.node(*target)),
            // Of a crash, it is known at the end.
            None => !matches!(fault, Fault::Crash { .. }),
        };
        self.fired.faults += usize::from(fires);
        match fault {
            Fault::Kill(target) => self.cluster.kill(self.node(target)).await,
            Fault::KillAll => {
                for node in self.cluster.topology.servers() {
                    self.cluster.kill(node).await;
                }
            }
            Fault::Stop(target) => self.cluster.set_stopped(self.node(target), true),
            Fault::Stutter(_) => {}
            Fault::Isolate(target) => self.each_link_of(self.node(target), |network, from, to| network.cut(from, to)),
            Fault::CutOneWay { from, to } => self.cluster.network.cut(from, to),
            Fault::Cut { left, right } => {
                self.cluster.network.cut(left, right);
                self.cluster.network.cut(right, left);
            }
            Fault::Delay { target, delay } => {
                self.each_link_of(self.node(target), |network, from, to| network.delay(from, to, delay));
            }
            Fault::Reset(target) => self.cluster.network.reset(self.node(target)),
            Fault::FillDisk(node) => self.cluster.fill_disk(node),
            Fault::Crash { node, point, times, at_start } => {
                if at_start {
                    self.cluster.kill(node).await;
                }
                self.cluster.arm(node, point, times).await;
                self.cluster.start_server(node).await;
            }
            Fault::Replace(node) => self.cluster.lose_disk(node).await,
            Fault::Damage(node) => {
                self.cluster.kill(node).await;
                self.cluster.damage(node);
            }
            Fault::SlowDisk { target, slow_sync } => self.cluster.set_slow_disk(self.node(target), slow_sync).await,
            Fault::Clock { target, offset_ms } => self.cluster.set_clock(self.node(target), offset_ms).await,
        }
    }

    async fn end(&mut self, fault: Fault) {
        match fault {
            Fault::Kill(target) => self.cluster.start_server(self.node(target)).await,
            Fault::KillAll => {
                for node in self.cluster.topology.servers() {
                    self.cluster.start_server(node).await;
                }
            }
            Fault::Stop(target) | Fault::Stutter(target) => self.cluster.set_stopped(self.node(target), false),
            Fault::Isolate(target) | Fault::Delay { target, .. } => {
                self.each_link_of(self.node(target), |network, from, to| network.heal(from, to));
            }
            Fault::CutOneWay { from, to } => self.cluster.network.heal(from, to),
            Fault::Cut { left, right } => {
                self.cluster.network.heal(left, right);
                self.cluster.network.heal(right, left);
            }
            Fault::Reset(_) => {}
            Fault::FillDisk(node) => self.cluster.free_disk(node).await,
            Fault::Crash { node, .. } => {
                let crashed = usize::from(self.cluster.disarm(node).await);
                self.fired.crashes += crashed;
                self.fired.faults += crashed;
            }
            Fault::Replace(node) | Fault::Damage(node) => self.cluster.start_server(node).await,
            Fault::SlowDisk { target, .. } => self.cluster.set_slow_disk(self.node(target), Duration::ZERO).await,
            Fault::Clock { target, .. } => self.cluster.set_clock(self.node(target), 0).await,
        }
    }

    fn each_link_of(&self, node: Node, change: impl Fn(&Network, Node, Node)) {
        for other in self.cluster.topology.everyone().filter(|other| *other != node) {
            change(&self.cluster.network, node, other);
            change(&self.cluster.network, other, node);
        }
    }
}
