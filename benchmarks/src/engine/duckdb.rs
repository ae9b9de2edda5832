//! DuckDB through its Python package, in a process of its own; see `duckdb_engine.py` beside this crate.

use std::path::{Path, PathBuf};

use anyhow::Result;
use drsdb_benchmarks::tpch::ReferenceOptions;
use tokio::process::Command;

use super::child::ChildEngine;

/// Its name in reports and in `--compare`.
pub const NAME: &str = "duckdb";

const SCRIPT: &str = include_str!("../../duckdb_engine.py");

/// The Python that has the packages: `DRSDB_PYTHON`, else the project's virtual environment, else the system's.
pub fn python() -> PathBuf {
    if let Some(python) = std::env::var_os("DRSDB_PYTHON") {
        return PathBuf::from(python);
    }
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.venv/bin/python");
    if project.exists() { project } else { PathBuf::from("python3") }
}

/// Starts it over the tables' Parquet files in `data`.
pub async fn start(data: &Path, options: ReferenceOptions) -> Result<ChildEngine> {
    let mut command = Command::new(python());
    command
        .args(["-c", SCRIPT])
        .arg(data)
        .arg(options.threads.to_string())
        .arg((options.memory_bytes / (1024 * 1024)).to_string());
    ChildEngine::start(NAME, command).await
}
