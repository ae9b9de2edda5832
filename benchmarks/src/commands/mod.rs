//! The commands, one a file, and what they share.

pub mod catalog_size;
pub mod commits;
pub mod dml;
pub mod insert;
pub mod latency;
pub mod load;
pub mod tpch;
pub mod transfer;

use std::path::PathBuf;

use anyhow::Result;
use drsdb_benchmarks::{front_door::Loaded, tpch::ReferenceOptions};

use crate::{
    engine::drsdb::ClusterArguments,
    process,
    report::{Claim, LoadedTable, Report},
};

/// What every command takes.
#[derive(Debug, Clone, clap::Args)]
pub struct CommonArguments {
    /// TPC-H scale factor.
    #[arg(long, default_value_t = 1.0)]
    pub scale: f64,
    /// Folder that keeps the generated Parquet files for the next run; by default they are temporary.
    #[arg(long)]
    pub data: Option<PathBuf>,
    /// File for the report as JSON.
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// End with a failure if a claim is not kept.
    #[arg(long)]
    pub check: bool,
    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArguments,
}

impl CommonArguments {
    fn report(&self, threads: usize, rounds: usize) -> Report {
        Report {
            drsdb: env!("CARGO_PKG_VERSION"),
            machine: process::machine(),
            scale: self.scale,
            servers: self.cluster.servers,
            threads,
            rounds,
            ..Report::default()
        }
    }

    /// Prints and writes the report; fails if a claim is not kept and that was asked for.
    fn publish(&self, report: &Report) -> Result<()> {
        report.print();
        if let Some(path) = &self.json {
            report.write(path)?;
            println!("\nthe same as JSON: {}", path.display());
        }
        let broken = report.claims.iter().filter(|claim| !claim.kept).count();
        anyhow::ensure!(!self.check || broken == 0, "{broken} claims are not kept");
        Ok(())
    }
}

/// The index server's memory stays small whatever passes through the cluster.
fn index_memory_claim(processes: &[process::Usage]) -> Option<Claim> {
    let index = processes.iter().find(|usage| usage.process.role == "index")?;
    Some(Claim::at_most("index server, peak memory in MB", index.peak_memory_bytes as f64 / 1e6, 300.0))
}

fn loaded_table(loaded: &Loaded) -> LoadedTable {
    let seconds = loaded.elapsed.as_secs_f64();
    LoadedTable {
        table: loaded.table.clone(),
        rows: loaded.rows,
        seconds,
        rows_per_second: loaded.rows as f64 / seconds,
    }
}

fn reference_options(threads: Option<usize>) -> ReferenceOptions {
    let defaults = ReferenceOptions::default();
    ReferenceOptions { threads: threads.unwrap_or(defaults.threads), ..defaults }
}
