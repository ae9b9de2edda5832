//! What a run measured: as JSON for machines, as tables for people.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

mod writes;

pub use self::writes::{CatalogSize, CommitPoint, Commits, Dml, Inserts, ScanCost, StatementCost};
use crate::process::Usage;

/// Everything that a run measured. Absent parts were not asked for.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Version of drsdb.
    pub drsdb: &'static str,
    /// The machine.
    pub machine: BTreeMap<&'static str, String>,
    /// TPC-H scale factor.
    pub scale: f64,
    /// Storage servers.
    pub servers: usize,
    /// Threads of each compared engine.
    pub threads: usize,
    /// Timed rounds.
    pub rounds: usize,
    /// How the data came in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load: Option<Load>,
    /// The 22 queries.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub engines: Vec<EngineReport>,
    /// drsdb's time divided by each other engine's.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub ratios: BTreeMap<String, Ratios>,
    /// The smallest query.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency: Option<Latency>,
    /// A whole table pulled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transfer: Option<Transfer>,
    /// Durable commits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commits: Option<Commits>,
    /// Bulk inserts alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inserts: Option<Inserts>,
    /// Bulk inserts, updates and deletes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dml: Option<Dml>,
    /// What the index server keeps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub catalog: Option<CatalogSize>,
    /// What is promised, and what was measured.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub claims: Vec<Claim>,
}

/// A load.
#[derive(Debug, Serialize)]
pub struct Load {
    /// Rows of all tables.
    pub rows: u64,
    /// From the first batch to the last commit.
    pub seconds: f64,
    /// Rows a second.
    pub rows_per_second: f64,
    /// Each table.
    pub tables: Vec<LoadedTable>,
    /// Every process at its end.
    pub processes: Vec<Usage>,
}

/// One table of a load.
#[derive(Debug, Serialize)]
#[allow(missing_docs)]
pub struct LoadedTable {
    pub table: String,
    pub rows: u64,
    pub seconds: f64,
    pub rows_per_second: f64,
}

/// One engine over all queries.
#[derive(Debug, Serialize)]
pub struct EngineReport {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Geometric mean of the medians.
    pub geometric_mean_ms: f64,
    /// CPU seconds of all its processes over all timed rounds.
    pub cpu_seconds: f64,
    /// Each query.
    pub queries: Vec<QueryReport>,
    /// Every process at the end.
    pub processes: Vec<Usage>,
}

/// One query on one engine.
#[derive(Debug, Serialize)]
pub struct QueryReport {
    /// 1 to 22.
    pub number: u8,
    /// Rows of the result.
    pub rows: u64,
    /// The first run's time.
    pub cold_ms: f64,
    /// The median of the timed rounds.
    pub median_ms: f64,
    /// The shortest timed round.
    pub min_ms: f64,
    /// The longest timed round.
    pub max_ms: f64,
    /// CPU seconds of all the engine's processes, a run.
    pub cpu_seconds: f64,
    /// Endpoints that were pulled.
    pub endpoints: usize,
    /// Bytes that the client pulled.
    pub received_bytes: u64,
    /// Bytes that crossed the loopback interface during a run, whoever sent them: the median.
    pub loopback_bytes: Option<u64>,
}

/// drsdb against another engine.
#[derive(Debug, Serialize)]
pub struct Ratios {
    /// The geometric mean of the queries' ratios.
    pub geometric_mean: f64,
    /// The query where drsdb is slowest in comparison.
    pub worst_query: u8,
    /// Its ratio.
    pub worst: f64,
    /// CPU seconds against CPU seconds.
    pub cpu: f64,
    /// Each query's ratio.
    pub queries: BTreeMap<u8, f64>,
}

/// The smallest query on a warm connection.
#[derive(Debug, Serialize)]
#[allow(missing_docs)]
pub struct Latency {
    pub sql: String,
    pub runs: usize,
    pub median_ms: f64,
    pub p90_ms: f64,
    pub p99_ms: f64,
}

/// A whole table pulled by the client, against bare Flight.
#[derive(Debug, Serialize)]
pub struct Transfer {
    /// The statement.
    pub sql: String,
    /// Rows of the result.
    pub rows: u64,
    /// Bytes of the decoded values.
    pub value_bytes: u64,
    /// Endpoints that were pulled, and streams of the bare pair.
    pub streams: usize,
    /// Decoded megabytes a second, drsdb.
    pub megabytes_per_second: f64,
    /// Decoded megabytes a second, bare Flight.
    pub bare_megabytes_per_second: f64,
    /// drsdb's divided by bare Flight's.
    pub ratio: f64,
}

/// A promise and what was measured.
#[derive(Debug, Serialize)]
pub struct Claim {
    /// What is promised.
    pub claim: String,
    /// What was measured.
    pub measured: f64,
    /// The limit.
    pub limit: f64,
    /// Whether it was kept.
    pub kept: bool,
}

impl Claim {
    /// `measured` must be at most `limit`.
    pub fn at_most(claim: impl Into<String>, measured: f64, limit: f64) -> Self {
        Self { claim: format!("{} <= {limit}", claim.into()), measured, limit, kept: measured <= limit }
    }

    /// `measured` must be at least `limit`.
    pub fn at_least(claim: impl Into<String>, measured: f64, limit: f64) -> Self {
        Self { claim: format!("{} >= {limit}", claim.into()), measured, limit, kept: measured >= limit }
    }
}

impl Report {
    /// Writes the JSON form.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
    }

    /// Prints the tables.
    pub fn print(&self) {
        if let Some(load) = &self.load {
            print_load(load);
        }
        if !self.engines.is_empty() {
            self.print_queries();
            for engine in &self.engines {
                println!("\nprocesses of {} ({})", engine.name, engine.version);
                print_processes(&engine.processes);
            }
        }
        if let Some(latency) = &self.latency {
            println!(
                "\nsmallest query, {} runs on a warm connection: median {:.2} ms, p90 {:.2} ms, p99 {:.2} ms",
                latency.runs, latency.median_ms, latency.p90_ms, latency.p99_ms
            );
        }
        if let Some(transfer) = &self.transfer {
            println!(
                "\n{} ({} rows, {} streams): {:.0} MB/s, bare Flight {:.0} MB/s, ratio {:.2}",
                transfer.sql,
                transfer.rows,
                transfer.streams,
                transfer.megabytes_per_second,
                transfer.bare_megabytes_per_second,
                transfer.ratio
            );
        }
        if let Some(commits) = &self.commits {
            commits.print();
        }
        if let Some(inserts) = &self.inserts {
            inserts.print();
        }
        if let Some(dml) = &self.dml {
            dml.print();
        }
        if let Some(catalog) = &self.catalog {
            catalog.print();
        }
        if !self.claims.is_empty() {
            let mut table = new_table(&["claim", "measured", "kept"]);
            for claim in &self.claims {
                let kept = if claim.kept { "yes" } else { "NO" };
                table.add_row([claim.claim.clone(), format!("{:.2}", claim.measured), kept.to_owned()]);
            }
            println!("\n{table}");
        }
    }

    fn print_queries(&self) {
        let others = self.engines.iter().filter(|engine| engine.name != "drsdb").collect::<Vec<_>>();
        let mut header = vec!["query".to_owned(), "rows".to_owned()];
        header.extend(self.engines.iter().map(|engine| format!("{} ms", engine.name)));
        header.extend(others.iter().map(|engine| format!("/ {}", engine.name)));
        header.extend(["endpoints", "pulled", "loopback"].map(str::to_owned));
        let mut table = new_table(&header.iter().map(String::as_str).collect::<Vec<_>>());
        let Some(drsdb) = self.engines.iter().find(|engine| engine.name == "drsdb") else { return };
        for (index, query) in drsdb.queries.iter().enumerate() {
            let mut row = vec![format!("Q{}", query.number), query.rows.to_string()];
            row.extend(self.engines.iter().map(|engine| format!("{:.1}", engine.queries[index].median_ms)));
            row.extend(others.iter().map(|engine| format!("{:.2}", query.median_ms / engine.queries[index].median_ms)));
            row.push(query.endpoints.to_string());
            row.push(human_bytes(query.received_bytes));
            row.push(query.loopback_bytes.map_or_else(|| "-".to_owned(), human_bytes));
            table.add_row(row);
        }
        let mut mean = vec!["mean".to_owned(), String::new()];
        mean.extend(self.engines.iter().map(|engine| format!("{:.1}", engine.geometric_mean_ms)));
        mean.extend(others.iter().map(|engine| format!("{:.2}", drsdb.geometric_mean_ms / engine.geometric_mean_ms)));
        table.add_row(mean);
        println!("\nTPC-H at scale {}, hot median of {} rounds, every result verified", self.scale, self.rounds);
        println!("{table}");
        for engine in &self.engines {
            println!("{}: {:.2} CPU seconds a round", engine.name, engine.cpu_seconds / self.rounds.max(1) as f64);
        }
    }
}

fn print_load(load: &Load) {
    let mut table = new_table(&["table", "rows", "seconds", "rows/s"]);
    for loaded in &load.tables {
        table.add_row([
            loaded.table.clone(),
            loaded.rows.to_string(),
            format!("{:.2}", loaded.seconds),
            format!("{:.0}", loaded.rows_per_second),
        ]);
    }
    println!("\nload: {} rows in {:.1} s, {:.0} rows/s", load.rows, load.seconds, load.rows_per_second);
    println!("{table}");
    print_processes(&load.processes);
}

fn print_processes(processes: &[Usage]) {
    let mut table = new_table(&["process", "pid", "CPU s", "peak memory"]);
    for usage in processes {
        table.add_row([
            usage.process.role.clone(),
            usage.process.pid.to_string(),
            format!("{:.2}", usage.cpu_seconds),
            human_bytes(usage.peak_memory_bytes),
        ]);
    }
    println!("{table}");
}

/// A table with its numbers to the right: all columns but the first.
pub fn new_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_BORDERS_ONLY).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// `1.5 MB`; units of 1,000.
pub fn human_bytes(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_know_whether_they_are_kept() {
        assert!(Claim::at_most("ratio", 1.4, 1.45).kept && !Claim::at_most("ratio", 1.5, 1.45).kept);
        assert!(Claim::at_least("ratio", 0.9, 0.8).kept && !Claim::at_least("ratio", 0.7, 0.8).kept);
        assert!(!Claim::at_most("ratio", f64::NAN, 1.0).kept, "what was not measured is not kept");
    }

    #[test]
    fn parts_that_were_not_measured_are_not_in_the_json() {
        let text = serde_json::to_string(&Report { scale: 1.0, ..Report::default() }).unwrap();
        assert!(text.contains("\"scale\":1.0") && !text.contains("transfer") && !text.contains("claims"), "{text}");
    }

    #[test]
    fn bytes_are_short() {
        let texts = [999, 1_500, 2_500_000, 3_210_000_000].map(human_bytes);
        assert_eq!(texts, ["999 B", "1.5 kB", "2.5 MB", "3.21 GB"]);
    }
}
