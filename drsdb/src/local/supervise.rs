//! A cluster under watch: a server that dies is told of, and started again where it was. One that ends in order was removed
//! from the cluster, and clients are not sent to it any more.

use std::{
    collections::HashMap,
    future::Future,
    time::{Duration, Instant},
};

use anyhow::Result;
use drsdb_core::security::Role;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};

use super::{LocalCluster, servers::Ended};

/// Before the first attempt to start a server again, and before each later one twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A server that ran for so long did not fail at once: the pauses begin anew.
const WELL: Duration = Duration::from_secs(60);

/// A server by role and number, from 0.
type Which = (Role, usize);

#[derive(Default)]
struct History {
    failures: u32,
    started: Option<Instant>,
}

impl History {
    fn pause(&mut self) -> Duration {
        if self.started.is_none_or(|started| started.elapsed() > WELL) {
            self.failures = 0;
        }
        let pause = FIRST_PAUSE * 2u32.saturating_pow(self.failures);
        self.failures = (self.failures + 1).min(16);
        pause.min(LONGEST_PAUSE)
    }
}

/// Watches the cluster until `stop`, then stops it in order.
pub async fn until(stop: impl Future<Output = ()>, mut cluster: LocalCluster) -> Result<()> {
    let mut stop = std::pin::pin!(stop);
    let mut histories: HashMap<Which, History> = HashMap::new();
    let mut due: FuturesUnordered<BoxFuture<'static, Which>> = FuturesUnordered::new();
    let mut dead: Vec<Which> = Vec::new();
    let mut removed: Vec<Which> = Vec::new();
    loop {
        tokio::select! {
            () = &mut stop => return cluster.shutdown().await,
            // The others go on, and clients get errors that name it: here is why.
            (which, ended) = cluster.next_death(&dead) => {
                let what = format!("the server at {} has ended ({})", cluster.server(which).url(), ended.how);
                if ended.in_order {
                    eprintln!("{what}: it was removed from the cluster");
                    dead.push(which);
                    removed.push(which);
                    if let Err(error) = cluster.leave_out(&removed) {
                        eprintln!("clients are still sent to it: {error:#}");
                    }
                    continue;
                }
                let pause = histories.entry(which).or_default().pause();
                eprintln!("{what}: it is started again in {} s", pause.as_secs());
                dead.push(which);
                due.push(after(pause, which));
            }
            Some(which) = due.next() => {
                let restarted = tokio::select! {
                    () = &mut stop => return cluster.shutdown().await,
                    restarted = cluster.restart(which) => restarted,
                };
                let history = histories.entry(which).or_default();
                match restarted {
                    Ok(()) => {
                        history.started = Some(Instant::now());
                        dead.retain(|known| *known != which);
                        eprintln!("the server at {} runs again", cluster.server(which).url());
                    }
                    Err(error) => {
                        let pause = history.pause();
                        let url = cluster.server(which).url();
                        eprintln!("the server at {url} does not start: {error:#}; next attempt in {} s", pause.as_secs());
                        due.push(after(pause, which));
                    }
                }
            }
        }
    }
}

fn after(pause: Duration, which: Which) -> BoxFuture<'static, Which> {
    // Time is the condition.
    #[allow(clippy::disallowed_methods)]
    tokio::time::sleep(pause).map(move |()| which).boxed()
}

impl LocalCluster {
    fn server(&self, (role, number): Which) -> &super::Server {
        match role {
            Role::Index => &self.index[number],
            Role::Storage => &self.storage[number],
        }
    }

    async fn restart(&mut self, (role, number): Which) -> Result<()> {
        match role {
            Role::Index => self.restart_index(number).await,
            Role::Storage => self.restart_storage(number).await,
        }
    }

    /// Tells clients of the index servers that are not among `removed`.
    fn leave_out(&self, removed: &[Which]) -> Result<()> {
        let index = self.index.iter().enumerate().filter(|(number, _)| !removed.contains(&(Role::Index, *number)));
        let urls: Vec<_> = index.map(|(_, server)| server.url().clone()).collect();
        self.layout.write_client(&urls)
    }

    /// Waits until a server ends that is not among `dead`; which one, and how.
    async fn next_death(&mut self, dead: &[Which]) -> (Which, Ended) {
        let index = self.index.iter_mut().enumerate().map(|(number, server)| ((Role::Index, number), server));
        let storage = self.storage.iter_mut().enumerate().map(|(number, server)| ((Role::Storage, number), server));
        let alive = index.chain(storage).filter(|(which, _)| !dead.contains(which));
        let deaths: Vec<_> =
            alive.map(|(which, server)| Box::pin(async move { (which, server.ended().await) })).collect();
        if deaths.is_empty() {
            return std::future::pending().await;
        }
        futures::future::select_all(deaths).await.0
    }
}
