//! One seed: tables, workers, faults, recovery, and the checks afterwards.

use std::{
    env,
    fmt::Write,
    ops::RangeInclusive,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use drsdb_client::Client;
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};
use tokio::{task::JoinSet, time::timeout};

use crate::{
    cluster::{Cluster, SEEDS_OF_A_CLUSTER, Topology, pause},
    nemesis::{Fault, Fired, Nemesis, Step, schedule},
    network::Node,
    replacement, replicas, voters,
    workload::{
        Bank, BulkLoad, Definitions, Engine, ForeignKeys, ListAppend, RECOVERY_TIME, UniqueKeys, Workload, column,
    },
};

/// How a run is made. With the seed, it decides everything that is not chance between the servers.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    pub topology: Topology,
    /// How long faults fire.
    pub length: Duration,
    /// Workloads at a time.
    pub workloads: usize,
    /// One run in so many loses a disk; 0: none does.
    pub replace_every: u64,
    /// What the environment must have beside the seed, for the same schedule to be run again.
    pub replay: &'static str,
}

/// Runs `seeds`, which follow each other, each ten of them on one cluster; panics with everything that is known at the first
/// that fails.
pub async fn run_seeds(seeds: impl Iterator<Item = u64>, settings: Settings) {
    let (started, mut count, mut faults) = (Instant::now(), 0, 0);
    let mut running = None;
    for seed in seeds {
        // It ends before the next one starts.
        running = running.filter(|_| !seed.is_multiple_of(SEEDS_OF_A_CLUSTER));
        if running.is_none() {
            running = Some((seed, Cluster::start(settings.topology.of_seed(seed)).await));
        }
        let (first, cluster) = running.as_mut().expect("it has just been started, if it was not there");
        faults += run_seed(cluster, *first, seed, settings).await;
        count += 1;
    }
    eprintln!("{count} seeds in {:.1} s, {faults} faults, nothing found", started.elapsed().as_secs_f64());
}

/// The seeds that the environment asks to replay: `37`, or `30-37`.
pub fn named_seeds() -> Option<RangeInclusive<u64>> {
    let text = env::var("DRSDB_FAULT_SEED").ok()?;
    let (first, last) = text.split_once('-').unwrap_or((text.as_str(), text.as_str()));
    match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => Some(first..=last),
        _ => panic!("DRSDB_FAULT_SEED is {text:?}, and must be a number, or two as in 30-37"),
    }
}

/// Runs one seed on a cluster whose first one was `first`, and gives how many faults fired; panics with everything that is
/// known if it fails.
async fn run_seed(cluster: &mut Cluster, first: u64, seed: u64, settings: Settings) -> usize {
    let settings = Settings { topology: cluster.topology, ..settings };
    let steps = schedule(seed, settings.topology, settings.length, settings.replace_every);
    let mut story = format!("seed {seed}");
    for node in &cluster.without_small_disk {
        write!(story, "\n  NOT TESTED: a full disk of {node}, for which no tmpfs can be mounted").expect("text grows");
    }
    for step in &steps {
        write!(story, "\n  {step}").expect("text grows");
    }
    let started = Instant::now();
    match attempt(cluster, seed, settings, &steps).await {
        Ok((Fired { faults, crashes }, summary)) => {
            let seconds = started.elapsed().as_secs_f64();
            eprintln!("{story}\n  {summary}\n  {faults} faults, {crashes} crashes at points, {seconds:.1} s");
            faults
        }
        Err(error) => {
            let (logs, folder, variable) = (cluster.logs(), cluster.keep_folder(), settings.replay);
            let mut replay = format!("{variable}DRSDB_FAULT_SEED={seed}");
            if first < seed {
                write!(replay, ", or with what came before on the cluster: {variable}DRSDB_FAULT_SEED={first}-{seed}")
                    .expect("text grows");
            }
            panic!(
                "{story}\nfailed: {error}\n{logs}\ndata and logs are kept in {}; replay with {replay}",
                folder.display()
            );
        }
    }
}

async fn attempt(
    cluster: &mut Cluster,
    seed: u64,
    settings: Settings,
    steps: &[Step],
) -> Result<(Fired, String), String> {
    let run = Run::start(cluster, seed, workloads(seed, settings.workloads)).await?;
    if steps.iter().any(|step| matches!(step.fault, Fault::Clock { .. })) {
        run.workloads.iter().for_each(|workload| workload.notes().clocks_differ());
    }
    let client = &run.clients[0];
    let leader = leader(cluster, client).await.unwrap_or(Node::Index(1));
    let fired = Nemesis::new(cluster, client, leader).run(steps).await;
    let summary = run.finish(cluster).await?;
    // No server need come to the point of a crash.
    if fired.faults == 0 && !steps.iter().all(|step| matches!(step.fault, Fault::Crash { .. })) {
        return Err("no fault fired: nothing was tested".to_owned());
    }
    Ok((fired, summary))
}

/// Workers that are at it.
pub struct Run {
    pub clients: Vec<Client>,
    workloads: Vec<Arc<dyn Workload>>,
    workers: JoinSet<()>,
    stop: Arc<AtomicBool>,
}

impl Run {
    /// Makes the tables of some workloads, and sets their workers to work.
    pub async fn start(cluster: &Cluster, seed: u64, workloads: Vec<Arc<dyn Workload>>) -> Result<Self, String> {
        let clients = cluster.clients().await;
        for sql in workloads.iter().flat_map(|workload| workload.setup()) {
            clients[0].execute(&sql).await.map_err(|error| format!("{sql}: {}: {error}", error.code()))?;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let workers = start_workers(&workloads, &clients, seed, &stop);
        Ok(Self { clients, workloads, workers, stop })
    }

    /// Heals everything, waits until all is well again, and checks what the workers were told; what they did is the answer.
    pub async fn finish(self, cluster: &mut Cluster) -> Result<String, String> {
        let Self { clients, workloads, mut workers, stop } = self;
        let (clients, workloads) = (&clients, &workloads);
        cluster.heal().await;
        let progressed = progress(cluster, workloads).await;
        let forgotten = replacement::forget_lost(cluster, &clients[0]).await;
        stop.store(true, Ordering::Relaxed);
        let stopped = timeout(RECOVERY_TIME, async { while workers.join_next().await.is_some() {} }).await;
        let mut problems = Vec::new();
        for workload in workloads {
            let violations = workload.notes().violations();
            problems.extend(violations.into_iter().map(|what| format!("{}: {what}", workload.name())));
        }
        problems.extend(cluster.check_alive().err());
        problems.extend(progressed.err());
        problems.extend(forgotten.err());
        if stopped.is_err() {
            problems.push(format!("workers still run {RECOVERY_TIME:?} after all faults are over"));
        }
        // Whoever cannot answer cannot be asked either.
        if problems.is_empty() {
            for workload in workloads {
                let verified = workload.verify(&clients[clients.len() - 1]).await;
                problems.extend(verified.err().map(|what| format!("{}: {what}", workload.name())));
            }
            problems.extend(replicas::compare(cluster).await.err());
            problems.extend(voters::compare(cluster, &clients[0]).await.err());
            problems.extend(cluster.check_alive().err());
        }
        let summary: Vec<String> =
            workloads.iter().map(|workload| format!("{}: {}", workload.name(), workload.notes().summary())).collect();
        if !problems.is_empty() {
            return Err(format!("{}\n  {}", problems.join("\n  "), summary.join("\n  ")));
        }
        for table in workloads.iter().flat_map(|workload| workload.tables().into_iter().rev()) {
            // Of some, nobody knows whether they are there.
            let sql = format!("DROP TABLE IF EXISTS {table} CASCADE");
            clients[0].execute(&sql).await.map_err(|error| format!("{sql}: {}: {error}", error.code()))?;
        }
        Ok(summary.join("\n  "))
    }
}

/// Those of the seed. Every kind comes in turn.
pub fn workloads(seed: u64, count: usize) -> Vec<Arc<dyn Workload>> {
    let engine = |bit: u64| if seed >> bit & 1 == 0 { Engine::Row } else { Engine::Column };
    let mut all: Vec<Arc<dyn Workload>> = vec![
        Arc::new(UniqueKeys::new(seed, engine(0), seed >> 3 & 1 == 0)),
        Arc::new(BulkLoad::new(seed, engine(1))),
        Arc::new(ListAppend::new(seed)),
        Arc::new(Bank::new(seed)),
        Arc::new(ForeignKeys::new(seed, engine(2), seed.is_multiple_of(3))),
        Arc::new(Definitions::new(seed, engine(4))),
    ];
    all.shuffle(&mut StdRng::seed_from_u64(seed ^ 0x5eed));
    all.truncate(count);
    all
}

fn start_workers(
    workloads: &[Arc<dyn Workload>],
    clients: &[Client],
    seed: u64,
    stop: &Arc<AtomicBool>,
) -> JoinSet<()> {
    let mut workers = JoinSet::new();
    for (number, workload) in workloads.iter().enumerate() {
        for worker in 0..workload.workers() {
            let (workload, stop) = (workload.clone(), stop.clone());
            // Spread over the index servers.
            let client = clients[(worker + number) % clients.len()].new_session();
            let mut random = StdRng::seed_from_u64(seed << 16 | (number << 8 | worker) as u64);
            workers.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    workload.operate(worker, &client, &mut random).await;
                    // Operations that fail at once must not keep a core busy.
                    pause().await;
                }
            });
        }
    }
    workers
}

/// Waits until each workload has had something acknowledged after all faults were over.
async fn progress(cluster: &mut Cluster, workloads: &[Arc<dyn Workload>]) -> Result<(), String> {
    let before: Vec<usize> = workloads.iter().map(|workload| workload.notes().acknowledged()).collect();
    let deadline = Instant::now() + RECOVERY_TIME;
    loop {
        let waiting =
            workloads.iter().zip(&before).find(|(workload, before)| workload.notes().acknowledged() < **before + 3);
        let Some((workload, _)) = waiting else { return Ok(()) };
        cluster.check_alive()?;
        if Instant::now() > deadline {
            return Err(format!("{}: no progress within {RECOVERY_TIME:?} after all faults are over", workload.name()));
        }
        pause().await;
    }
}

/// The index server that leads now; `None` while they elect one. Who was cut off may not know that it leads no more.
pub async fn leader(cluster: &Cluster, client: &Client) -> Option<Node> {
    let asked = client.collect("SELECT id FROM drsdb.raft WHERE role = 'leader' ORDER BY term DESC").await;
    let leader = asked.ok().and_then(|answer| column(&answer, 0).first().copied());
    leader.and_then(|id| cluster.index_node(id))
}
