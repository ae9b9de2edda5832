//! One server's process.

use std::{
    fs,
    path::Path,
    process::{ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use drsdb_core::injected;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, ChildStdin, Command},
};

/// A server that runs. Dropped, it is killed.
pub struct Process {
    child: Child,
    pid: u32,
    ready: Arc<AtomicBool>,
    _input: Option<ChildStdin>,
}

impl Process {
    /// Starts it; faults are injected into it through the file `faults`, and its messages go to `log`.
    pub async fn spawn(command: &[String], log: &Path, faults: &Path) -> Self {
        let log = fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
        let mut child = Command::new(&command[0])
            .args(&command[1..])
            .env("RUST_BACKTRACE", "1")
            .env(injected::VARIABLE, faults)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let pid = child.id().expect("it has just started");
        let ready = Arc::new(AtomicBool::new(false));
        let mut lines = BufReader::new(child.stdout.take().expect("its output is a pipe")).lines();
        let becomes_ready = ready.clone();
        // The one line that it prints says that it takes requests.
        tokio::spawn(async move {
            while let Ok(Some(_)) = lines.next_line().await {
                becomes_ready.store(true, Ordering::Relaxed);
            }
        });
        let input = child.stdin.take();
        Self { child, pid, ready, _input: input }
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    /// How it ended, if it did so by itself.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    pub async fn kill(mut self) {
        // One that has just ended by itself cannot be killed.
        let _ = self.child.kill().await;
    }

    /// Sends a signal, by its name without SIG.
    pub fn signal(&self, name: &str) {
        // A process that has just ended by itself is found elsewhere.
        let _ = std::process::Command::new("kill").args([&format!("-{name}"), &self.pid.to_string()]).status();
    }
}
