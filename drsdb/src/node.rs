//! `drsdb index` and `drsdb storage`: one server in this process, from a configuration file, the environment and flags.
//!
//! When the server takes requests it prints one line of JSON to standard output ([`Ready`]), so that whoever started it
//! on port 0 knows where it is.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use clap::Args;
use drsdb_core::{
    config::{IndexConfig, StorageConfig},
    injected, net,
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::AsyncReadExt,
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};
use tokio_util::sync::CancellationToken;
use url::Url;

/// Arguments of `drsdb index` and `drsdb storage`. Every other setting is in the file or the environment.
#[derive(Debug, Args)]
pub struct NodeArguments {
    /// The configuration file (TOML).
    #[arg(long)]
    config: Option<PathBuf>,
    /// Where to listen; overrides the file.
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// Folder of the data; overrides the file.
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Ends when standard input does: a server that another program started then never outlives it.
    #[arg(long)]
    exit_with_stdin: bool,
}

#[derive(Serialize)]
struct Flags {
    listen: Option<SocketAddr>,
    data_dir: Option<PathBuf>,
}

/// What a server says about itself when it takes requests.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ready {
    /// Where it is reached: `https://host:port`.
    pub url: String,
    /// Its process.
    pub pid: u32,
}

impl NodeArguments {
    fn flags(&self) -> Flags {
        Flags { listen: self.listen, data_dir: self.data_dir.clone() }
    }
}

/// Runs an index server until it is told to stop.
pub async fn run_index(arguments: NodeArguments) -> Result<()> {
    injected::watch()?;
    let mut config = IndexConfig::load(arguments.config.as_deref(), arguments.flags())?;
    let (listener, url) = bind(config.listen, &config.public_url)?;
    config.public_url = url.clone();
    let shutdown = CancellationToken::new();
    let (ready, became_ready) = oneshot::channel();
    let serving = drsdb_index::server::serve(listener, config, shutdown.clone(), ready);
    run(serving, url, shutdown, became_ready, arguments.exit_with_stdin).await
}

/// Runs a storage server until it is told to stop.
pub async fn run_storage(arguments: NodeArguments) -> Result<()> {
    injected::watch()?;
    let mut config = StorageConfig::load(arguments.config.as_deref(), arguments.flags())?;
    let (listener, url) = bind(config.listen, &config.public_url)?;
    config.public_url = url.clone();
    let shutdown = CancellationToken::new();
    let (ready, became_ready) = oneshot::channel();
    let serving = drsdb_storage::server::serve(listener, config, shutdown.clone(), ready);
    run(serving, url, shutdown, became_ready, arguments.exit_with_stdin).await
}

async fn run(
    serving: impl Future<Output = drsdb_core::Result<()>>,
    url: Url,
    shutdown: CancellationToken,
    became_ready: oneshot::Receiver<()>,
    exit_with_stdin: bool,
) -> Result<()> {
    let stop = shutdown.clone();
    tokio::spawn(async move {
        stop_requested(exit_with_stdin).await;
        stop.cancel();
    });
    let announce = async {
        if became_ready.await.is_ok() {
            let ready = Ready { url: url.to_string(), pid: std::process::id() };
            let line = serde_json::to_string(&ready).expect("a URL and a number are plain data");
            // Whoever started the server on a free port reads it here.
            #[allow(clippy::print_stdout)]
            {
                println!("{line}");
            }
        }
    };
    let (served, ()) = tokio::join!(serving, announce);
    Ok(served?)
}

/// Listens, and finds the port when port 0 was asked for.
pub fn bind(listen: SocketAddr, public_url: &Url) -> Result<(TcpListener, Url)> {
    let listener = net::bind(listen)?;
    let mut url = public_url.clone();
    if url.port() == Some(0) {
        let port = listener.local_addr().context("cannot tell the port")?.port();
        url.set_port(Some(port)).map_err(|()| anyhow::anyhow!("{url} takes no port"))?;
    }
    Ok((listener, url))
}

/// Waits for SIGTERM, Ctrl-C, or the end of standard input.
pub async fn stop_requested(exit_with_stdin: bool) {
    let terminated = async {
        match signal(SignalKind::terminate()) {
            Ok(mut signal) => {
                signal.recv().await;
            }
            Err(_) => std::future::pending().await,
        }
    };
    let interrupted = async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    let input_ended = async {
        if !exit_with_stdin {
            std::future::pending::<()>().await;
        }
        let mut input = tokio::io::stdin();
        let mut ignored = [0u8; 256];
        while matches!(input.read(&mut ignored).await, Ok(read) if read > 0) {}
    };
    tokio::select! {
        () = terminated => {}
        () = interrupted => {}
        () = input_ended => {}
    }
}

/// How long a server may take to start and to stop.
pub const PATIENCE: Duration = Duration::from_secs(60);
