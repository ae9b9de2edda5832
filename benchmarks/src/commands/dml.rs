//! `dml`: what inserts, updates and deletes cost, and what they leave for queries.
//!
//! 1. lineitem is loaded into a column table with one replica, against the parquet crate writing the same batches in one
//!    process. Both have them in memory.
//! 2. The 22 queries run. 1 % of lineitem is updated and 1 % deleted, three times each, against scans of the columns that a
//!    statement touches: an UPDATE writes rows anew, whole, and so it touches all. The queries run again, and once more when
//!    the storage servers have compacted. Compaction changes no result: that is checked. Minutes lie between these runs, and
//!    a machine may be slower by then: DataFusion on the loaded files runs the same queries in turn with drsdb, and what
//!    drsdb takes is compared in units of that.
//! 3. One row at a time: INSERT and UPDATE by primary key in a row table, in turn.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use arrow::record_batch::RecordBatch;
use drsdb_benchmarks::{
    front_door,
    progress::Progress,
    tpch::{QUERIES, Rule, verify},
};
use drsdb_client::{Client, Executed};

use super::{
    CommonArguments,
    catalog_size::{segments_below, wait_until_compacted},
    insert, reference_options,
};
use crate::{
    data::Data,
    engine::{child::ChildEngine, datafusion, drsdb::Cluster},
    report::{Claim, Dml, ScanCost, StatementCost},
    statistics::{Times, geometric_mean},
};

/// How long compaction may take.
const COMPACTION_TIME: Duration = Duration::from_secs(300);

/// How long deleted rows are kept for those who may still read them: longer than the queries after the changes take.
const RETENTION: Duration = Duration::from_secs(120);

/// Rows of the point statements' table.
const POINT_ROWS: usize = 10_000;

/// Arguments of `dml`.
#[derive(Debug, clap::Args)]
pub struct DmlArguments {
    #[command(flatten)]
    common: CommonArguments,
    /// Bulk inserts, each beside the parquet crate.
    #[arg(long, default_value_t = 3)]
    inserts: usize,
    /// Timed rounds of the queries.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Point inserts and point updates.
    #[arg(long, default_value_t = 300)]
    points: usize,
}

/// Measures and reports.
pub async fn run(arguments: DmlArguments) -> Result<()> {
    let common = &arguments.common;
    ensure!(arguments.rounds > 0 && arguments.points > 0, "there must be at least one round and one point statement");
    ensure!(arguments.inserts > 0, "there must be at least one bulk insert");
    let progress = Progress::new();
    let data = Data::prepare(common.data.as_deref(), common.scale, &progress)?;
    let retention = RETENTION.as_secs().to_string();
    let settings = [("DRSDB_RETENTION_S", retention.clone()), ("DRSDB_TICKET_LIFETIME_S", retention)];
    let cluster = Cluster::start_with(&common.cluster, &settings).await?;
    let client = cluster.client();

    let inserts = insert::rates(&cluster, &data, arguments.inserts).await?;

    front_door::create_tables(client).await?;
    front_door::load(client, &data.files, 1, &progress).await?;
    wait_until_compacted(&cluster.folder(), COMPACTION_TIME).await?;
    let mut control = datafusion::start(data.directory(), common.scale, reference_options(None)).await?;
    let before = queries(&cluster, &mut control, common.scale, arguments.rounds).await?;
    let mut statements = Vec::new();
    for statement in &STATEMENTS {
        statements.push(cost(&cluster, statement).await.with_context(|| statement.sql)?);
    }
    let after = queries(&cluster, &mut control, common.scale, arguments.rounds).await?;
    wait_until_fewer_segments(&cluster.folder()).await?;
    wait_until_compacted(&cluster.folder(), COMPACTION_TIME).await?;
    let compacted = queries(&cluster, &mut control, common.scale, arguments.rounds).await?;
    control.stop().await?;
    for ((query, expected), found) in QUERIES.iter().zip(&after.unlimited).zip(&compacted.limited) {
        let same = verify(expected, found, query.ordering(), Rule::SameEngine);
        same.with_context(|| format!("compaction changed the result of query {}", query.number))?;
    }
    let (point_insert_ms, point_update_ms) = points(client, arguments.points).await?;
    cluster.stop().await?;

    let dml = Dml {
        inserts,
        statements,
        queries_ms: [before.mean_ms, after.mean_ms, compacted.mean_ms],
        control_ms: [before.control_ms, after.control_ms, compacted.control_ms],
        point_insert_ms,
        point_update_ms,
    };
    let mut report = common.report(0, arguments.rounds);
    report.claims = claims(&dml);
    report.dml = Some(dml);
    common.publish(&report)
}

struct Statement {
    /// Changes one row in a hundred, another one for each of the residues.
    sql: &'static str,
    residues: [u32; 3],
    /// Columns that it reads or writes.
    touched: &'static [&'static str],
    /// Columns that it names, and the rest of the key.
    named: &'static [&'static str],
}

const STATEMENTS: [Statement; 2] = [
    Statement {
        sql: "UPDATE lineitem SET l_tax = l_tax + 0.01 WHERE l_orderkey % 100 = ",
        residues: [17, 41, 66],
        touched: &[
            "l_orderkey",
            "l_partkey",
            "l_suppkey",
            "l_linenumber",
            "l_quantity",
            "l_extendedprice",
            "l_discount",
            "l_tax",
            "l_returnflag",
            "l_linestatus",
            "l_shipdate",
            "l_commitdate",
            "l_receiptdate",
            "l_shipinstruct",
            "l_shipmode",
            "l_comment",
        ],
        named: &["l_orderkey", "l_linenumber", "l_tax"],
    },
    Statement {
        sql: "DELETE FROM lineitem WHERE l_orderkey % 100 = ",
        residues: [23, 50, 89],
        touched: &["l_orderkey", "l_linenumber"],
        named: &["l_orderkey", "l_linenumber"],
    },
];

fn claims(dml: &Dml) -> Vec<Claim> {
    let relative = dml.queries_ms.iter().zip(dml.control_ms).map(|(drsdb, control)| drsdb / control);
    let [before, after, compacted] = relative.collect::<Vec<_>>()[..] else { unreachable!("three of each") };
    let mut claims = vec![insert::claim(dml.inserts)];
    claims.extend(dml.statements.iter().map(|cost| {
        let verb = cost.sql.split(' ').next().unwrap_or_default();
        Claim::at_most(format!("{verb} of 1 % of lineitem against a scan"), cost.touched.ratio, 5.0)
    }));
    claims.extend([
        Claim::at_most("22 queries after the changes against before", after / before, 1.2),
        Claim::at_most("22 queries after compaction against before", compacted / before, 1.05),
        Claim::at_most("point UPDATE against INSERT, medians", dml.point_update_ms / dml.point_insert_ms, 1.5),
    ]);
    claims
}

/// Until compaction has begun: not before nobody can read deleted rows any more.
async fn wait_until_fewer_segments(folder: &Path) -> Result<()> {
    let (segments, deadline) = (segments_below(folder)?, Instant::now() + RETENTION + COMPACTION_TIME);
    while segments_below(folder)? >= segments {
        ensure!(Instant::now() < deadline, "there are still {segments} segments or more: nothing was compacted");
        #[allow(clippy::disallowed_methods, reason = "polls other processes")]
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

/// The 22 queries at one time.
struct Queries {
    /// Geometric mean of all queries' medians.
    mean_ms: f64,
    control_ms: f64,
    /// Each query's rows, with its LIMIT and without.
    limited: Vec<Vec<RecordBatch>>,
    unlimited: Vec<Vec<RecordBatch>>,
}

async fn queries(cluster: &Cluster, control: &mut ChildEngine, scale: f64, rounds: usize) -> Result<Queries> {
    let mut times = vec![Vec::with_capacity(rounds); QUERIES.len()];
    let mut control_times = times.clone();
    let (mut unlimited, mut limited) = (Vec::new(), Vec::new());
    // The first round warms up.
    for round in 0..=rounds {
        for (position, query) in QUERIES.iter().enumerate() {
            let context = || format!("query {}", query.number);
            let sql = query.sql(scale);
            let early = if round % 2 == 1 { Some(control.run(&sql, false).await.with_context(context)?) } else { None };
            let run = cluster.run(&sql).await.with_context(context)?;
            let control_run = match early {
                Some(run) => run,
                None => control.run(&sql, false).await.with_context(context)?,
            };
            match round {
                0 => {
                    limited.push(run.batches.unwrap_or_default());
                    unlimited.push(cluster.run(&query.unlimited_sql(scale)).await?.batches.unwrap_or_default());
                }
                _ => {
                    times[position].push(run.elapsed);
                    control_times[position].push(control_run.elapsed);
                }
            }
        }
    }
    let mean = |times: &[Vec<Duration>]| geometric_mean(times.iter().map(|times| Times::new(times).median_ms()));
    Ok(Queries { mean_ms: mean(&times), control_ms: mean(&control_times), limited, unlimited })
}

/// Medians: of the statement for each residue, and of scans before each.
async fn cost(cluster: &Cluster, statement: &Statement) -> Result<StatementCost> {
    let scan_of = |columns: &[&str]| {
        let columns: Vec<String> = columns.iter().map(|column| format!("max({column})")).collect();
        format!("SELECT {} FROM lineitem", columns.join(", "))
    };
    let (touched, named) = (scan_of(statement.touched), scan_of(statement.named));
    let (mut of_touched, mut of_named, mut times, mut rows) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for residue in statement.residues {
        for _ in 0..5 {
            of_touched.push(cluster.run(&touched).await?.elapsed);
            of_named.push(cluster.run(&named).await?.elapsed);
        }
        let started = Instant::now();
        rows = changed(cluster.client(), &format!("{}{residue}", statement.sql)).await?;
        times.push(started.elapsed());
    }
    let seconds = |times: &[Duration]| Times::new(times).median_ms() / 1e3;
    let scan = |sql: String, scans: &[Duration]| ScanCost {
        sql,
        seconds: seconds(scans),
        ratio: seconds(&times) / seconds(scans),
    };
    Ok(StatementCost {
        sql: format!("{}{}", statement.sql, statement.residues[0]),
        rows,
        seconds: seconds(&times),
        touched: scan(touched, &of_touched),
        named: scan(named, &of_named),
    })
}

async fn changed(client: &Client, sql: &str) -> Result<u64> {
    match client.execute(sql).await.with_context(|| sql.to_owned())? {
        Executed::Write(written) => Ok(written.rows),
        Executed::Rows(_) => anyhow::bail!("{sql} gave rows"),
    }
}

/// Medians of inserts and of updates of one row, in turn, in milliseconds.
async fn points(client: &Client, count: usize) -> Result<(f64, f64)> {
    client.execute("CREATE TABLE points (id BIGINT PRIMARY KEY, n BIGINT, text TEXT) WITH (engine = 'row')").await?;
    let rows: Vec<String> = (0..POINT_ROWS).map(|id| format!("({id}, 0, 'a row of ordinary length')")).collect();
    client.execute(&format!("INSERT INTO points VALUES {}", rows.join(", "))).await?;
    let (mut inserts, mut updates) = (Vec::with_capacity(count), Vec::with_capacity(count));
    for number in 0..count {
        let (new, old) = (POINT_ROWS + number, number * 7919 % POINT_ROWS);
        for (sql, times) in [
            (format!("INSERT INTO points VALUES ({new}, 0, 'a row of ordinary length')"), &mut inserts),
            (format!("UPDATE points SET n = n + 1 WHERE id = {old}"), &mut updates),
        ] {
            let started = Instant::now();
            let rows = changed(client, &sql).await?;
            times.push(started.elapsed());
            ensure!(rows == 1, "{sql} changed {rows} rows");
        }
    }
    Ok((Times::new(&inserts).median_ms(), Times::new(&updates).median_ms()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Inserts;

    #[test]
    fn a_statement_that_costs_too_much_is_named() {
        let scan = |seconds: f64| ScanCost { sql: String::new(), seconds, ratio: 6.0 / seconds };
        let cost = StatementCost {
            sql: "UPDATE t SET a = 1".to_owned(),
            rows: 1,
            seconds: 6.0,
            touched: scan(1.0),
            named: scan(0.5),
        };
        let dml = Dml {
            inserts: Inserts { insert_rows_per_second: 5.0, parquet_rows_per_second: 8.0 },
            statements: vec![cost],
            queries_ms: [10.0, 22.0, 20.4],
            control_ms: [5.0, 10.0, 10.0],
            point_insert_ms: 10.0,
            point_update_ms: 12.0,
        };
        let broken: Vec<String> =
            claims(&dml).into_iter().filter(|claim| !claim.kept).map(|claim| claim.claim).collect();
        assert_eq!(broken, ["UPDATE of 1 % of lineitem against a scan <= 5"]);
    }
}
