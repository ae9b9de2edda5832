//! DataFusion in one process, as this binary's own child.

use std::{
    io::{BufRead, Write},
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result};
use arrow::{ipc::writer::FileWriter, record_batch::RecordBatch};
use datafusion::DATAFUSION_VERSION;
use drsdb_benchmarks::tpch::{Reference, ReferenceOptions};
use tokio::process::Command;

use super::child::{ChildEngine, Request, Response};

/// Its name in reports and in `--compare`.
pub const NAME: &str = "datafusion";

/// What the child is told.
#[derive(Debug, clap::Args)]
pub struct EngineArguments {
    /// Folder of the tables' Parquet files.
    #[arg(long)]
    data: PathBuf,
    /// Their scale factor.
    #[arg(long)]
    scale: f64,
    /// Partitions that run at once.
    #[arg(long)]
    threads: usize,
    /// Memory of running queries.
    #[arg(long)]
    memory_bytes: usize,
}

/// Starts the child.
pub async fn start(data: &Path, scale: f64, options: ReferenceOptions) -> Result<ChildEngine> {
    let mut command = Command::new(std::env::current_exe().context("cannot find this program's own file")?);
    command
        .arg("engine")
        .arg("--data")
        .arg(data)
        .args(["--scale", &scale.to_string()])
        .args(["--threads", &options.threads.to_string()])
        .args(["--memory-bytes", &options.memory_bytes.to_string()]);
    ChildEngine::start(NAME, command).await
}

/// The child: answers on standard output until standard input ends.
pub async fn serve(arguments: EngineArguments) -> Result<()> {
    let options = ReferenceOptions { threads: arguments.threads, memory_bytes: arguments.memory_bytes };
    let reference = match Reference::open(&arguments.data, arguments.scale, options).await {
        Ok(reference) => reference,
        Err(error) => return answer(&Response::Failed { error: format!("{error:#}") }),
    };
    answer(&Response::Ready { ready: format!("DataFusion {DATAFUSION_VERSION}") })?;
    // Reading blocks this thread, which has nothing else to do: queries run on the runtime's other threads.
    for line in std::io::stdin().lock().lines() {
        let request: Request = serde_json::from_str(&line?)?;
        let response = match run(&reference, request).await {
            Ok(response) => response,
            Err(error) => Response::Failed { error: format!("{error:#}") },
        };
        answer(&response)?;
    }
    Ok(())
}

async fn run(reference: &Reference, request: Request) -> Result<Response> {
    let started = Instant::now();
    let batches = reference.run(&request.sql).await?;
    let seconds = started.elapsed().as_secs_f64();
    if let Some(path) = &request.result {
        write_arrow(Path::new(path), &batches)?;
    }
    Ok(Response::Done { seconds, rows: batches.iter().map(|batch| batch.num_rows() as u64).sum() })
}

fn write_arrow(path: &Path, batches: &[RecordBatch]) -> Result<()> {
    let file = std::fs::File::create(path)?;
    let schema = batches.first().context("the reference always gives a batch")?.schema();
    let mut writer = FileWriter::try_new(std::io::BufWriter::new(file), &schema)?;
    for batch in batches {
        writer.write(batch)?;
    }
    writer.finish()?;
    Ok(())
}

fn answer(response: &Response) -> Result<()> {
    let mut output = std::io::stdout().lock();
    writeln!(output, "{}", serde_json::to_string(response)?)?;
    output.flush()?;
    Ok(())
}
