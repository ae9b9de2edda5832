//! Benchmarks of drsdb. `benchmarks/README.md` says which command reprints which claim.
//!
//! - `tpch`: load, the 22 queries against other engines, the smallest query, result transfer.
//! - `load`, `transfer`, `latency`: one of these alone.
//! - `commits`, `insert`, `dml`, `catalog-size`: writes, and what they leave behind.
//!
//! A time counts only after the result has been verified against one process of DataFusion over the same files.
#![allow(clippy::print_stdout, reason = "prints its report on standard output")]

mod bare_flight;
mod commands;
mod data;
mod engine;
mod process;
mod report;
mod statistics;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// As in drsdb: engines are compared, and not allocators.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[derive(Parser)]
#[command(name = "drsdb-benchmarks", version, about = "Benchmarks of drsdb")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Loads TPC-H, runs the 22 queries, and measures latency and transfer.
    Tpch(commands::tpch::TpchArguments),
    /// Loads rows of lineitem and reports rows a second and the memory of each process.
    Load(commands::load::LoadArguments),
    /// Pulls the whole of lineitem, against a bare Arrow Flight server and client.
    Transfer(commands::transfer::TransferArguments),
    /// Runs the smallest query many times on one connection.
    Latency(commands::latency::LatencyArguments),
    /// Durable single-row commits a second with few and many clients, against an fsync of the same disk.
    Commits(commands::commits::CommitsArguments),
    /// Bulk inserts into a column table, against the parquet crate writing the same batches.
    Insert(commands::insert::InsertArguments),
    /// Bulk inserts, updates and deletes of lineitem, and the 22 queries before and after.
    Dml(commands::dml::DmlArguments),
    /// What transactions and segments cost the index server on disk.
    CatalogSize(commands::catalog_size::CatalogSizeArguments),
    /// DataFusion in a process of its own, started by the other commands.
    #[command(hide = true)]
    Engine(engine::datafusion::EngineArguments),
    /// A bare Flight server in a process of its own, started by the other commands.
    #[command(hide = true)]
    FlightServer(bare_flight::ServerArguments),
}

#[tokio::main]
async fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::Tpch(arguments) => commands::tpch::run(arguments).await,
        Command::Load(arguments) => commands::load::run(arguments).await,
        Command::Transfer(arguments) => commands::transfer::run(arguments).await,
        Command::Latency(arguments) => commands::latency::run(arguments).await,
        Command::Commits(arguments) => commands::commits::run(arguments).await,
        Command::Insert(arguments) => commands::insert::run(arguments).await,
        Command::Dml(arguments) => commands::dml::run(arguments).await,
        Command::CatalogSize(arguments) => commands::catalog_size::run(arguments).await,
        Command::Engine(arguments) => engine::datafusion::serve(arguments).await,
        Command::FlightServer(arguments) => bare_flight::serve(arguments).await,
    }
}
