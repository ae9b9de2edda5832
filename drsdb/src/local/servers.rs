//! One server of a local cluster: a task of this process, or a process of its own.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, bail};
use drsdb_core::{
    config::{IndexConfig, StorageConfig},
    security::Role,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::oneshot,
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::{CancellationToken, DropGuard};
use url::Url;

use super::LocalOptions;
use crate::node::{self, PATIENCE, Ready};

/// A running server.
pub struct Server {
    url: Url,
    kind: Kind,
}

enum Kind {
    Task {
        /// `None` once it was seen to end.
        running: Option<Running>,
        stop: DropGuard,
    },
    /// Its standard input is a pipe from here: when this process ends, however it does, the input ends, and so does it.
    Process {
        child: Box<Child>,
        /// Not the child's own: waiting for a child closes that.
        input: Option<ChildStdin>,
        /// Of a process that was not waited for: it may yet say that it is ready, to somebody.
        _output: Option<Output>,
        pid: u32,
    },
}

type Output = Lines<BufReader<ChildStdout>>;
type Running = JoinHandle<drsdb_core::Result<()>>;

/// How a server ended that nobody stopped.
pub struct Ended {
    /// For people.
    pub how: String,
    /// Whether it had nothing left to do, and is not to be started again.
    pub in_order: bool,
}

impl Server {
    /// Starts a server with a configuration file, and waits until it takes requests.
    pub async fn start(role: Role, file: PathBuf, options: &LocalOptions) -> Result<Self> {
        Self::start_at(role, &file, options, None).await
    }

    /// Starts a server again where it was.
    pub async fn start_again(role: Role, file: PathBuf, options: &LocalOptions, url: &Url) -> Result<Self> {
        Self::start_at(role, &file, options, Some(url)).await
    }

    /// Starts a server that will be ready only when others have done something about it. It will be at `url`.
    pub async fn start_unready(role: Role, file: PathBuf, options: &LocalOptions, url: Url) -> Result<Self> {
        if options.processes {
            let mut process = spawn_process(role, &file, options, None)?;
            let pid = process.child.id().context("the server has ended")?;
            let input = process.child.stdin.take();
            let output = Some(process.output);
            Ok(Self { url, kind: Kind::Process { child: process.child, input, _output: output, pid } })
        } else {
            let task = spawn_task(role, &file)?;
            Ok(Self { url, kind: Kind::Task { running: Some(task.running), stop: task.stop.drop_guard() } })
        }
    }

    async fn start_at(role: Role, file: &Path, options: &LocalOptions, url: Option<&Url>) -> Result<Self> {
        if options.processes { start_process(role, file, options, url).await } else { start_task(role, file).await }
    }

    /// Where it is reached.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// The process it runs in.
    pub fn pid(&self) -> u32 {
        match &self.kind {
            Kind::Task { .. } => std::process::id(),
            Kind::Process { pid, .. } => *pid,
        }
    }

    /// Waits until it ends, and says how.
    pub async fn ended(&mut self) -> Ended {
        match &mut self.kind {
            Kind::Task { running, .. } => {
                let ended = match running {
                    Some(running) => running.await,
                    None => std::future::pending().await,
                };
                *running = None;
                match ended {
                    Ok(Ok(())) => Ended { how: "without an error".to_owned(), in_order: true },
                    Ok(Err(error)) => Ended { how: error.to_string(), in_order: false },
                    Err(error) => Ended { how: error.to_string(), in_order: false },
                }
            }
            Kind::Process { child, pid, .. } => match child.wait().await {
                Ok(status) => Ended { how: format!("process {pid}, {status}"), in_order: status.success() },
                Err(error) => Ended { how: format!("process {pid}, nobody knows how: {error}"), in_order: false },
            },
        }
    }

    /// Ends it with SIGKILL.
    pub async fn kill(&mut self) -> Result<()> {
        match &mut self.kind {
            Kind::Task { .. } => bail!("this server is a part of this process, and cannot be killed"),
            Kind::Process { child, .. } => child.kill().await.context("cannot kill the server"),
        }
    }

    /// Stops its process for a while with SIGSTOP, as a machine that hangs does.
    pub async fn pause(&self) -> Result<()> {
        self.signal("-STOP").await
    }

    /// Lets a paused process go on.
    pub async fn resume(&self) -> Result<()> {
        self.signal("-CONT").await
    }

    async fn signal(&self, signal: &str) -> Result<()> {
        let Kind::Process { pid, .. } = &self.kind else {
            bail!("this server is a part of this process, and cannot be paused")
        };
        let sent = Command::new("kill").args([signal, &pid.to_string()]).status().await.context("cannot run kill")?;
        if sent.success() { Ok(()) } else { bail!("process {pid} takes no signal {signal}") }
    }

    /// Stops it in order and waits for it.
    pub async fn stop(self) -> Result<()> {
        match self.kind {
            Kind::Task { running, stop } => {
                drop(stop);
                let Some(running) = running else { return Ok(()) };
                let ended = timeout(PATIENCE, running).await.context("the server does not stop")?;
                Ok(ended.context("the server panicked")??)
            }
            Kind::Process { mut child, input, pid, _output: output } => {
                // A paused one would not notice.
                drop(Command::new("kill").args(["-CONT", &pid.to_string()]).stderr(Stdio::null()).status().await);
                drop((input, output));
                match timeout(PATIENCE, child.wait()).await {
                    Ok(status) => {
                        let status = status.context("cannot wait for the server")?;
                        // A server that was killed before has no exit code.
                        if status.success() || status.code().is_none() {
                            return Ok(());
                        }
                        bail!("the server in process {pid} ended with {status}")
                    }
                    Err(_) => {
                        child.kill().await.context("cannot kill the server")?;
                        bail!("the server in process {pid} did not stop within {PATIENCE:?}, and was killed")
                    }
                }
            }
        }
    }
}

struct Task {
    url: Url,
    running: Running,
    stop: CancellationToken,
    became_ready: oneshot::Receiver<()>,
}

fn spawn_task(role: Role, file: &Path) -> Result<Task> {
    let stop = CancellationToken::new();
    let (ready, became_ready) = oneshot::channel();
    let (url, running) = match role {
        Role::Index => {
            let mut config = IndexConfig::load(Some(file), ())?;
            let (listener, url) = node::bind(config.listen, &config.public_url)?;
            config.public_url = url.clone();
            (url, tokio::spawn(drsdb_index::server::serve(listener, config, stop.clone(), ready)))
        }
        Role::Storage => {
            let mut config = StorageConfig::load(Some(file), ())?;
            let (listener, url) = node::bind(config.listen, &config.public_url)?;
            config.public_url = url.clone();
            (url, tokio::spawn(drsdb_storage::server::serve(listener, config, stop.clone(), ready)))
        }
    };
    Ok(Task { url, running, stop, became_ready })
}

async fn start_task(role: Role, file: &Path) -> Result<Server> {
    let Task { url, mut running, stop, became_ready } = spawn_task(role, file)?;
    let stop = stop.drop_guard();
    tokio::select! {
        became_ready = timeout(PATIENCE, became_ready) => {
            match became_ready {
                Ok(Ok(())) => Ok(Server { url, kind: Kind::Task { running: Some(running), stop } }),
                // It ended before it was ready: its error says why.
                Ok(Err(_)) => match running.await {
                    Ok(Err(error)) => Err(error.into()),
                    _ => bail!("it ended before it was ready"),
                },
                Err(_) => bail!("it was not ready within {PATIENCE:?}"),
            }
        }
        ended = &mut running => match ended {
            Ok(Err(error)) => Err(error.into()),
            Ok(Ok(())) => bail!("it ended before it was ready"),
            Err(error) => Err(error).context("it panicked"),
        },
    }
}

struct Process {
    child: Box<Child>,
    output: Output,
}

fn spawn_process(role: Role, file: &Path, options: &LocalOptions, url: Option<&Url>) -> Result<Process> {
    let program = match &options.program {
        Some(program) => program.clone(),
        None => std::env::current_exe().context("cannot find this program")?,
    };
    let mut command = Command::new(program);
    command.arg(role.as_str()).arg("--config").arg(file).arg("--exit-with-stdin");
    if let Some(port) = url.and_then(Url::port) {
        // The public URL is derived from the address.
        command.arg("--listen").arg(SocketAddr::from(([127, 0, 0, 1], port)).to_string());
        command.env("DRSDB_PUBLIC_URL", format!("https://127.0.0.1:{port}"));
    }
    let log = file.with_extension("log");
    let log =
        std::fs::OpenOptions::new().create(true).append(true).open(&log).context("cannot open the server's log")?;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log).kill_on_drop(true);
    // A Ctrl-C at the terminal is for the program that started the servers: it stops them in order.
    command.process_group(0);
    let mut child = command.spawn().context("cannot start the server")?;
    let output = child.stdout.take().context("the server has no output")?;
    Ok(Process { child: Box::new(child), output: BufReader::new(output).lines() })
}

async fn start_process(role: Role, file: &Path, options: &LocalOptions, url: Option<&Url>) -> Result<Server> {
    let Process { mut child, mut output } = spawn_process(role, file, options, url)?;
    let line = timeout(PATIENCE, output.next_line()).await;
    let line = match line {
        Ok(Ok(Some(line))) => line,
        Ok(_) => {
            let text = std::fs::read_to_string(file.with_extension("log")).unwrap_or_default();
            let last: Vec<&str> = text.lines().rev().take(5).collect();
            bail!(
                "it ended before it was ready; its log ends with: {}",
                last.into_iter().rev().collect::<Vec<_>>().join(" | ")
            );
        }
        Err(_) => bail!("it was not ready within {PATIENCE:?}; see {}", file.with_extension("log").display()),
    };
    let ready: Ready = serde_json::from_str(&line).with_context(|| format!("the server said {line:?}"))?;
    let url = Url::parse(&ready.url).with_context(|| format!("the server said {line:?}"))?;
    let input = child.stdin.take();
    Ok(Server { url, kind: Kind::Process { child, input, _output: None, pid: ready.pid } })
}
