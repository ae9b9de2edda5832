//! `tpch`: load, the 22 queries on drsdb and on what it is compared with, the smallest query, result transfer.
//!
//! 1. The tables are made as Parquet files, and one process of DataFusion answers every query from them: the reference.
//! 2. The cluster starts and takes the files in through its front door.
//! 3. A first round runs every query on every engine and compares each result with the reference.
//! 4. The timed rounds: every query on every engine in turn, so that what else the machine does hits all alike; the order of
//!    the engines turns with the rounds. drsdb's results are compared in these rounds too.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use arrow::record_batch::RecordBatch;
use drsdb_benchmarks::{
    front_door,
    progress::Progress,
    tpch::{QUERIES, Query, ReferenceOptions, published, verify},
};

use super::{CommonArguments, index_memory_claim, latency, load, reference_options, transfer};
use crate::{
    data::Data,
    engine::{Engine, Run, datafusion, drsdb::Cluster, duckdb},
    process,
    report::{Claim, EngineReport, QueryReport, Ratios},
    statistics::{Times, geometric_mean},
};

/// Arguments of `tpch`.
#[derive(Debug, clap::Args)]
pub struct TpchArguments {
    #[command(flatten)]
    common: CommonArguments,
    /// Timed rounds.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Engines to compare with in the same run: datafusion, duckdb.
    #[arg(long, value_delimiter = ',')]
    compare: Vec<String>,
    /// Threads of each compared engine; by default as many as there are cores.
    #[arg(long)]
    threads: Option<usize>,
    /// Only these queries.
    #[arg(long, value_delimiter = ',')]
    queries: Vec<u8>,
    /// Runs of the smallest query; 0 leaves it out.
    #[arg(long, default_value_t = 500)]
    latency_runs: usize,
    /// Rounds of the transfer of lineitem; 0 leaves it out.
    #[arg(long, default_value_t = 5)]
    transfer_rounds: usize,
}

/// Measures and reports.
pub async fn run(arguments: TpchArguments) -> Result<()> {
    let common = &arguments.common;
    ensure!(arguments.rounds > 0, "there must be at least one round");
    let queries = selected(&arguments.queries)?;
    let options = reference_options(arguments.threads);
    let progress = Progress::new();
    let mut report = common.report(options.threads, arguments.rounds);

    let data = Data::prepare(common.data.as_deref(), common.scale, &progress)?;
    let expected = expected_results(&data, &queries, common.scale, options, &progress).await?;

    let cluster = Cluster::start(&common.cluster).await?;
    front_door::create_tables(cluster.client()).await?;
    let load = load::load(&cluster, &data.files, &progress).await?;
    report.claims.extend(index_memory_claim(&load.processes));
    report.load = Some(load);

    let mut engines = vec![Engine::Drsdb(Box::new(cluster))];
    engines.extend(compared_engines(&arguments.compare, &data, common.scale, options, &progress).await?);
    let measured = measure(&mut engines, &queries, &expected, common.scale, arguments.rounds, &progress).await?;
    report.engines = measured;
    report.ratios = ratios(&report.engines);
    report.claims.extend(query_claims(&report.ratios, common.cluster.servers));

    let Some(Engine::Drsdb(cluster)) = engines.first() else { bail!("the first engine is drsdb") };
    if arguments.latency_runs > 0 {
        let (latency, claim) = latency::measure(cluster, arguments.latency_runs).await?;
        report.latency = Some(latency);
        report.claims.push(claim);
    }
    if arguments.transfer_rounds > 0 {
        let (transfer, claim) = transfer::measure(cluster, &data, arguments.transfer_rounds, &progress).await?;
        report.transfer = Some(transfer);
        report.claims.push(claim);
        // Again, now that all of a table has been through the cluster.
        report.claims.retain(|claim| !claim.claim.starts_with("index server"));
        report.claims.extend(index_memory_claim(&process::usages(&cluster.processes())?));
    }
    for engine in engines {
        engine.stop().await?;
    }
    common.publish(&report)
}

fn selected(numbers: &[u8]) -> Result<Vec<Query>> {
    if numbers.is_empty() {
        return Ok(QUERIES.to_vec());
    }
    let find = |&number: &u8| Query::find(number).with_context(|| format!("there is no query {number}: 1 to 22"));
    numbers.iter().map(find).collect()
}

/// The reference's rows of every query, without LIMIT. At scale 1 its answers are first held against the published ones.
async fn expected_results(
    data: &Data,
    queries: &[Query],
    scale: f64,
    options: ReferenceOptions,
    progress: &Progress,
) -> Result<Vec<Vec<RecordBatch>>> {
    // A process of its own, and not the compared one: what it needs must not count there.
    let mut reference = datafusion::start(data.directory(), scale, options).await?;
    let step = progress.step("reference", queries.len() as u64, "queries");
    let mut expected = Vec::with_capacity(queries.len());
    for query in queries {
        if scale == published::SCALE {
            let answer = reference.run(&query.sql(scale), true).await?;
            published::check(query, &answer.batches.unwrap_or_default())?;
        }
        let run = reference.run(&query.unlimited_sql(scale), true).await?;
        expected.push(run.batches.unwrap_or_default());
        step.advance(1);
    }
    step.finish();
    reference.stop().await?;
    Ok(expected)
}

async fn compared_engines(
    names: &[String],
    data: &Data,
    scale: f64,
    options: ReferenceOptions,
    progress: &Progress,
) -> Result<Vec<Engine>> {
    let mut engines = Vec::new();
    for name in names {
        match name.as_str() {
            datafusion::NAME => {
                let engine = datafusion::start(data.directory(), scale, options).await?;
                engines.push(Engine::Child(Box::new(engine)));
            }
            duckdb::NAME => match duckdb::start(data.directory(), options).await {
                Ok(engine) => engines.push(Engine::Child(Box::new(engine))),
                // It is no part of this project: its absence is said, and the rest is measured.
                Err(error) => progress.say(&format!("duckdb is left out: {error:#}")),
            },
            other => bail!("cannot compare with {other:?}: known are {} and {}", datafusion::NAME, duckdb::NAME),
        }
    }
    Ok(engines)
}

/// What one engine did with one query so far.
#[derive(Debug, Default)]
struct Measured {
    rows: u64,
    cold: Duration,
    times: Vec<Duration>,
    cpu_seconds: f64,
    loopback: Vec<u64>,
    endpoints: usize,
    received_bytes: u64,
}

async fn measure(
    engines: &mut [Engine],
    queries: &[Query],
    expected: &[Vec<RecordBatch>],
    scale: f64,
    rounds: usize,
    progress: &Progress,
) -> Result<Vec<EngineReport>> {
    let mut measured: Vec<Vec<Measured>> =
        engines.iter().map(|_| queries.iter().map(|_| Measured::default()).collect()).collect();
    let step = progress.step("queries", (rounds as u64 + 1) * queries.len() as u64, "queries");
    for round in 0..=rounds {
        for (position, query) in queries.iter().enumerate() {
            for turn in 0..engines.len() {
                let index = (turn + round) % engines.len();
                let engine = &mut engines[index];
                let context = format!("query {} on {}", query.number, engine.name());
                let entry = &mut measured[index][position];
                run_once(engine, query, &expected[position], scale, round, entry).await.context(context)?;
            }
            step.advance(1);
        }
    }
    step.finish();
    engines.iter().zip(measured).map(|(engine, measured)| engine_report(engine, queries, measured)).collect()
}

async fn run_once(
    engine: &mut Engine,
    query: &Query,
    expected: &[RecordBatch],
    scale: f64,
    round: usize,
    entry: &mut Measured,
) -> Result<()> {
    let processes = engine.processes();
    let (cpu_before, loopback_before) = (process::total_cpu_seconds(&processes)?, process::loopback_bytes());
    let run = engine.run(&query.sql(scale), round == 0).await?;
    let (cpu_after, loopback_after) = (process::total_cpu_seconds(&processes)?, process::loopback_bytes());

    let Run { elapsed, rows, batches, endpoints, received_bytes } = run;
    if let Some(batches) = &batches {
        verify(expected, batches, query.ordering(), engine.rule())?;
    }
    if round == 0 {
        *entry = Measured { rows, cold: elapsed, ..Measured::default() };
        return Ok(());
    }
    ensure!(rows == entry.rows, "{rows} rows, and {} in the first round", entry.rows);
    entry.times.push(elapsed);
    entry.cpu_seconds += cpu_after - cpu_before;
    entry.loopback.extend(loopback_after.zip(loopback_before).map(|(after, before)| after - before));
    (entry.endpoints, entry.received_bytes) = (endpoints, received_bytes);
    Ok(())
}

fn engine_report(engine: &Engine, queries: &[Query], measured: Vec<Measured>) -> Result<EngineReport> {
    let cpu_seconds = measured.iter().map(|entry| entry.cpu_seconds).sum();
    let reports = queries.iter().zip(measured).map(|(query, mut entry)| {
        let times = Times::new(&entry.times);
        entry.loopback.sort_unstable();
        QueryReport {
            number: query.number,
            rows: entry.rows,
            cold_ms: entry.cold.as_secs_f64() * 1e3,
            median_ms: times.median_ms(),
            min_ms: times.min_ms(),
            max_ms: times.max_ms(),
            cpu_seconds: entry.cpu_seconds / entry.times.len() as f64,
            endpoints: entry.endpoints,
            received_bytes: entry.received_bytes,
            loopback_bytes: entry.loopback.get(entry.loopback.len() / 2).copied(),
        }
    });
    let reports = reports.collect::<Vec<_>>();
    Ok(EngineReport {
        name: engine.name().to_owned(),
        version: engine.version().to_owned(),
        geometric_mean_ms: geometric_mean(reports.iter().map(|query| query.median_ms)),
        cpu_seconds,
        queries: reports,
        processes: process::usages(&engine.processes())?,
    })
}

/// drsdb, the first engine, against each other.
fn ratios(engines: &[EngineReport]) -> BTreeMap<String, Ratios> {
    let Some((drsdb, others)) = engines.split_first() else { return BTreeMap::new() };
    let compare = |other: &EngineReport| {
        let pairs = drsdb.queries.iter().zip(&other.queries);
        let queries = pairs.map(|(left, right)| (left.number, left.median_ms / right.median_ms));
        let queries = queries.collect::<BTreeMap<_, _>>();
        let worst = queries.iter().max_by(|left, right| left.1.total_cmp(right.1));
        let (worst_query, worst) = worst.map_or((0, f64::NAN), |(&number, &ratio)| (number, ratio));
        let geometric_mean = geometric_mean(queries.values().copied());
        Ratios { geometric_mean, worst_query, worst, cpu: drsdb.cpu_seconds / other.cpu_seconds, queries }
    };
    others.iter().map(|other| (other.name.clone(), compare(other))).collect()
}

fn query_claims(ratios: &BTreeMap<String, Ratios>, servers: usize) -> Vec<Claim> {
    let Some(ratios) = ratios.get(datafusion::NAME) else { return Vec::new() };
    let limit = if servers == 1 { 1.15 } else { 1.45 };
    vec![
        Claim::at_most("22 queries against DataFusion, geometric mean", ratios.geometric_mean, limit),
        Claim::at_most(format!("slowest against DataFusion (Q{})", ratios.worst_query), ratios.worst, 2.3),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engine(name: &str, medians: &[f64]) -> EngineReport {
        let queries = medians.iter().zip(1..).map(|(&median_ms, number)| QueryReport {
            number,
            rows: 1,
            cold_ms: median_ms,
            median_ms,
            min_ms: median_ms,
            max_ms: median_ms,
            cpu_seconds: 0.0,
            endpoints: 1,
            received_bytes: 0,
            loopback_bytes: None,
        });
        EngineReport {
            name: name.to_owned(),
            version: String::new(),
            geometric_mean_ms: geometric_mean(medians.iter().copied()),
            cpu_seconds: medians.iter().sum(),
            queries: queries.collect(),
            processes: Vec::new(),
        }
    }

    #[test]
    fn ratios_are_those_of_each_query() {
        let ratios = ratios(&[engine("drsdb", &[10.0, 40.0]), engine("datafusion", &[20.0, 10.0])]);
        let ratios = &ratios["datafusion"];
        assert_eq!((ratios.worst_query, ratios.worst), (2, 4.0));
        assert!((ratios.geometric_mean - 2f64.sqrt()).abs() < 1e-12);
        assert!((ratios.cpu - 50.0 / 30.0).abs() < 1e-12);
    }

    #[test]
    fn unknown_queries_and_engines_are_named() {
        assert!(selected(&[23]).unwrap_err().to_string().contains("23"));
        assert_eq!(selected(&[]).unwrap().len(), 22);
    }

    #[test]
    fn claims_depend_on_the_number_of_servers() {
        let claims = query_claims(&ratios(&[engine("drsdb", &[11.0]), engine("datafusion", &[10.0])]), 1);
        assert!(claims.iter().all(|claim| claim.kept), "{claims:?}");
        let claims = query_claims(&ratios(&[engine("drsdb", &[13.0]), engine("datafusion", &[10.0])]), 1);
        assert!(!claims[0].kept);
        let claims = query_claims(&ratios(&[engine("drsdb", &[13.0]), engine("datafusion", &[10.0])]), 3);
        assert!(claims[0].kept);
    }
}
