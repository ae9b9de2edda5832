//! The command line of drsdb.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use drsdb::{admin, demo, generate, import, local, node, shell};

/// Servers pass memory from thread to thread all the time: rows that one reads another sends. glibc's allocator has an arena for
/// each thread and then holds several times what is used; an index server, through which all rows of loads pass and none of
/// them stays, shows it most.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Settings of the allocator: what is free goes back to the operating system within two seconds. Loads take and free the same
/// memory again and again; sooner, and half of their time in the kernel would go into giving it back and getting it again.
#[allow(unsafe_code)]
// SAFETY: jemalloc reads a pointer to a text that ends with a zero under this name, and nothing else has it.
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static ALLOCATOR_SETTINGS: Option<&'static std::ffi::c_char> =
    Some(unsafe { &*c"dirty_decay_ms:2000,muzzy_decay_ms:0".as_ptr() });

/// A distributed SQL database: columnar analytics on Arrow Flight, with ACID row writes.
#[derive(Debug, Parser)]
#[command(name = "drsdb", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// What to log, to standard error: error, warn, info, debug, or a filter such as `warn,drsdb_index=debug`.
    #[arg(long, global = true, env = "DRSDB_LOG", default_value = "warn")]
    log: String,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A whole cluster on this machine: the embedded default.
    Local(local::LocalArguments),
    /// An interactive shell, or statements from the command line or a file.
    Sql(shell::ShellArgs),
    /// Loads a CSV, Parquet or Arrow file into a table.
    Import(import::ImportArgs),
    /// Makes data.
    Generate(generate::GenerateArguments),
    /// Which servers there are: look, add, remove.
    Admin(admin::AdminArguments),
    /// Starts a cluster of processes, loads TPC-H, runs its 22 queries and checks every result.
    Demo(demo::DemoArguments),
    /// One index server.
    Index(node::NodeArguments),
    /// One storage server.
    Storage(node::NodeArguments),
}

/// For what recurses over the longest statements, of which there are copies to make and to drop. Pages that are not touched cost
/// nothing.
const STACK_BYTES: usize = 32 << 20;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Err(error) = drsdb_core::telemetry::init(&arguments.log) {
        eprintln!("error: {error}");
        return ExitCode::FAILURE;
    }
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder
        .enable_all()
        .max_blocking_threads(drsdb_storage::stage_service::MAX_BLOCKING_THREADS)
        .thread_stack_size(STACK_BYTES);
    let runtime = match builder.build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(async {
        match arguments.command {
            Command::Local(arguments) => local::run(arguments).await.map(|()| ExitCode::SUCCESS),
            Command::Sql(arguments) => shell::run(arguments).await,
            Command::Import(arguments) => import::run(arguments).await,
            Command::Generate(arguments) => generate::run(arguments).await.map(|()| ExitCode::SUCCESS),
            Command::Admin(arguments) => admin::run(arguments).await,
            Command::Demo(arguments) => demo::run(arguments).await.map(|()| ExitCode::SUCCESS),
            Command::Index(arguments) => node::run_index(arguments).await.map(|()| ExitCode::SUCCESS),
            Command::Storage(arguments) => node::run_storage(arguments).await.map(|()| ExitCode::SUCCESS),
        }
    });
    // Threads that still block, on a prompt for example, must not keep the program from ending.
    runtime.shutdown_background();
    ended.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
