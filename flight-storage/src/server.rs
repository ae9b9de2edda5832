//! One storage server, from its configuration to its orderly end.
//!
//! 1. Open the engines, and the identity that the server has had since its first start. If their file is damaged, begin
//!    with an empty one, should everything be elsewhere ([`crate::repair`]).
//! 2. Register with an index server; the answer has the key that tickets and tokens are signed with.
//! 3. Follow commits, serve Flight, loads and other heads' stages, until told to stop.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use arrow_flight::flight_service_server::FlightServiceServer;
use drsdb_core::{
    Error, ErrorCode, Result, Ulid,
    config::StorageConfig,
    ids,
    net::{self, ChannelPool},
    security::{
        Identity, TlsIdentity,
        auth_layer::{AuthLayer, TokenVerifier},
        keys::VerifyingKey,
        tls, token,
    },
    v1::{self, cluster_client::ClusterClient, storage_server::StorageServer},
};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::{
    column::ColumnOptions,
    commits::{self, AppliedVersion, Follower, Obstacles},
    coordinators::Coordinators,
    engines::Engines,
    index_servers::{IndexServers, is_about},
    maintenance::{self, Progress, Upkeep},
    needed_snapshots::NeededSnapshots,
    open_loads::OpenLoads,
    query::{FlightServer, OnQueryRuntime, QueryEngine},
    rebuild::{Rebuilds, copy::Rebuilder},
    repair::{self, Reporter},
    revoked_logins::RevokedLogins,
    small_file::{self, Points},
    stage_service::StageService,
};

/// How long an index server may take to register this one: its own patience with an election, and some.
const REGISTER_TIME: Duration = Duration::from_secs(15);

/// The largest message of a load.
pub const LOAD_MESSAGE_BYTES: usize = 64 * 1024 * 1024;

/// What to do about a server that does not know any more which one it is.
const NAMELESS: &str = "restore server.json from a backup of data_dir; else start with an empty data_dir, as a new server: \
                        what the old one had is copied from other replicas";

/// What a storage server keeps about itself, in `server.json` of its data folder.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Registration {
    server_id: Ulid,
    cluster_id: Option<String>,
    /// Ed25519 public key.
    verifying_key: Option<Vec<u8>>,
}

impl Registration {
    /// Errors: `corrupt` when the file is damaged.
    fn open(file: &Path) -> Result<Self> {
        let kept = small_file::read(file).and_then(|kept| {
            let known = kept.map(|bytes| serde_json::from_slice::<Self>(&bytes)).transpose();
            known.map_err(|error| small_file::damaged(file, error))
        });
        match kept {
            Ok(Some(known)) => Ok(known),
            Ok(None) => {
                let fresh = Self { server_id: ids::new_ulid(), cluster_id: None, verifying_key: None };
                fresh.save(file)?;
                Ok(fresh)
            }
            Err(error) if error.code() == ErrorCode::Corrupt => Err(error.to_wire().with_hint(NAMELESS).into()),
            Err(error) => Err(error),
        }
    }

    /// A server whose name for itself got lost would be another one, and its shards nobody's.
    fn save(&self, file: &Path) -> Result<()> {
        let text = serde_json::to_vec_pretty(self).map_err(|error| Error::internal(error.to_string()))?;
        let points = Points {
            written: "identity.written",
            synced: "identity.synced",
            renamed: "identity.renamed",
            named: "identity.named",
        };
        small_file::replace(file, &text, points)
    }
}

/// Serves until `shutdown`. `listener` is bound already, so that its port is known; `ready` is told when the server takes
/// requests.
pub async fn serve(
    listener: TcpListener,
    config: StorageConfig,
    shutdown: CancellationToken,
    ready: tokio::sync::oneshot::Sender<()>,
) -> Result<()> {
    let dir: PathBuf = config.data_dir.clone();
    for folder in [dir.clone(), dir.join("spill")] {
        fs::create_dir_all(&folder).map_err(|error| Error::io(format!("creating {}", folder.display()), error))?;
    }
    let file = dir.join("server.json");
    let mut registration = Registration::open(&file)?;
    let applied = AppliedVersion::open(dir.join("applied_version"))?;
    let options = ColumnOptions { cache_bytes: config.column_cache_bytes, ..ColumnOptions::default() };
    let identity = TlsIdentity::load(&config.tls)?;
    let channels = ChannelPool::new(tls::client_config(&identity)?);
    let index_servers = IndexServers::open(config.index_servers.clone(), dir.join("index_servers.json"))?;
    let server_id = registration.server_id;
    let reporter = Reporter { channels: channels.clone(), index_servers: index_servers.clone(), server_id };
    let opening = repair::open_floors(dir.join("floors.json"), &reporter);
    let Some(floors) = shutdown.run_until_cancelled(opening).await else {
        return Ok(());
    };
    let floors = floors?;
    let open = |may_be_new: bool| {
        let (dir, applied) = (dir.clone(), applied.clone());
        let (options, floors) = (options.clone(), floors.clone());
        let opening = tokio::task::spawn_blocking(move || {
            repair::missing(&dir, !may_be_new)?;
            Engines::open(&dir, server_id, options, applied, floors)
        });
        async { opening.await.map_err(|error| Error::internal(error.to_string()))? }
    };
    let was_registered = registration.verifying_key.is_some();
    let engines = match open(!was_registered).await {
        // One that never was a part of a cluster has nothing that could be elsewhere.
        Err(damage) if damage.code() == ErrorCode::Corrupt && was_registered => {
            let giving_up = repair::give_up_everything(&dir, damage, &reporter, &floors);
            match shutdown.run_until_cancelled(giving_up).await {
                Some(given_up) => given_up?,
                None => return Ok(()),
            }
            open(true).await?
        }
        opened => opened?,
    };

    let (refuse, refused) = tokio::sync::oneshot::channel();
    let key = match &registration.verifying_key {
        // Known from before: serve at once, and tell the index servers where this server is now.
        Some(key) => {
            let key = VerifyingKey::from_bytes(key)?;
            let (config, channels, registration) = (config.clone(), channels.clone(), registration.clone());
            let (servers, stop) = (index_servers.clone(), shutdown.clone());
            let registering = async move { register(&config, &servers, &channels, &registration).await };
            tokio::spawn(async move {
                if let Some(Err(error)) = stop.run_until_cancelled(registering).await {
                    let _ = refuse.send(error);
                }
            });
            key
        }
        None => {
            let registering = register(&config, &index_servers, &channels, &registration);
            let Some(answer) = shutdown.run_until_cancelled(registering).await else {
                return Ok(());
            };
            let answer = answer?;
            registration.cluster_id = Some(answer.cluster_id);
            registration.verifying_key = Some(answer.verifying_key.to_vec());
            registration.save(&file)?;
            VerifyingKey::from_bytes(&answer.verifying_key)?
        }
    };

    let threads = config.query_threads.unwrap_or_else(cores).max(1);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name("drsdb-query")
        .enable_all()
        .build()
        .map_err(|error| Error::io("starting the query runtime", error))?;
    let queries = Arc::new(QueryEngine::new(
        engines.clone(),
        config.query_memory_bytes,
        &dir.join("spill"),
        channels.clone(),
        config.public_url.clone(),
        runtime.handle().clone(),
    )?);

    let (rebuilds, left) = {
        let dir = dir.join("rebuild");
        let opening = tokio::task::spawn_blocking(move || Rebuilds::open(&dir));
        opening.await.map_err(|error| Error::internal(error.to_string()))??
    };
    let follower = Follower {
        engines: engines.clone(),
        applied: applied.clone(),
        rebuilds,
        open: OpenLoads::default(),
        coordinators: Coordinators::default(),
        obstacles: Obstacles::default(),
        channels,
        index_servers: index_servers.clone(),
        server_id: registration.server_id,
        staged_lease: config.staged_lease(),
    };
    let progress = Progress::default();
    let needed = NeededSnapshots::new(index_servers, Instant::now());
    let upkeep =
        Upkeep { engines, applied, retention: config.retention(), needed: needed.clone(), progress: progress.clone() };
    let upkeep = tokio::spawn(maintenance::run(upkeep, shutdown.clone()));
    let rebuilder = Rebuilder {
        follower: follower.clone(),
        shutdown: shutdown.clone(),
        running: Arc::default(),
        done: Arc::default(),
    };
    rebuilder.resume(left);
    let repairing = repair::run(rebuilder.clone(), shutdown.clone());
    let revoked = RevokedLogins::default();
    let stage = StageService::new(follower.clone(), rebuilder, Arc::clone(&queries), needed, revoked.clone(), progress);
    let mut following = tokio::spawn(commits::follow(follower, shutdown.clone()));

    drsdb_core::id_functions::set_storage_node(registration.server_id);
    let worker = queries.worker().into_worker_server();
    let mut routes = Routes::builder();
    routes
        .add_service(FlightServiceServer::new(FlightServer::new(Arc::clone(&queries), key.clone())))
        .add_service(StorageServer::new(stage).max_decoding_message_size(LOAD_MESSAGE_BYTES))
        .add_service(OnQueryRuntime::new(worker, queries.handle().clone(), queries.ended()));
    let auth = AuthLayer::new(Arc::new(Tokens { key, revoked }));
    tracing::info!(server = %registration.server_id, url = %config.public_url, "storage server is ready");
    let _ = ready.send(());
    let serving = net::serve(listener, tls::server_config(&identity)?, auth, routes.routes(), shutdown.clone());
    let damaged = async {
        match repairing.await {
            Err(damage) => damage,
            // Told to stop: serving ends in its own time.
            Ok(()) => std::future::pending().await,
        }
    };
    let ahead = async {
        match (&mut following).await {
            Ok(Err(error)) => error,
            _ => std::future::pending().await,
        }
    };
    let served = tokio::select! {
        served = serving => served,
        damage = damaged => Err(damage),
        ahead = ahead => Err(ahead),
        Ok(removed) = refused => {
            // That is no failure.
            tracing::error!(error = %removed, "this server ends");
            Ok(())
        }
    };
    shutdown.cancel();
    if !following.is_finished() {
        let _ = following.await;
    }
    let _ = upkeep.await;
    // Queries that outlived the drain are cut; their clients see the connection end.
    runtime.shutdown_background();
    served
}

/// Registers with the first index server that answers; tries for as long as it takes. An error: the cluster has removed this
/// server for good.
async fn register(
    config: &StorageConfig,
    index_servers: &IndexServers,
    channels: &ChannelPool,
    registration: &Registration,
) -> Result<v1::RegisterStorageResponse> {
    let request = v1::RegisterStorageRequest {
        server_id: registration.server_id.to_string(),
        url: config.public_url.to_string(),
        cores: cores() as u32,
        labels: config.labels.clone().into_iter().collect(),
    };
    let mut attempt = 0usize;
    loop {
        let url = index_servers.at(attempt);
        let answer = async {
            let mut client = ClusterClient::new(channels.channel(&url)?);
            // One that was stopped in the middle of it must not keep this server from asking the others.
            let asked = tokio::time::timeout(REGISTER_TIME, client.register_storage(request.clone())).await;
            let silent = || Error::new(ErrorCode::Timeout, "it did not answer");
            Ok::<_, Error>(asked.map_err(|_| silent())??)
        };
        match answer.await {
            Ok(response) => {
                let response = response.into_inner();
                index_servers.learn(&response.index_servers);
                return Ok(response);
            }
            Err(error) if error.code() == ErrorCode::InvalidArgument && is_about(&error, registration.server_id) => {
                return Err(error);
            }
            Err(error) if attempt % 50 == 10 => {
                tracing::warn!(index_server = %url, %error, "cannot register yet; trying on");
            }
            Err(_) => {}
        }
        attempt += 1;
        // An index server that is not up yet tells nobody when it will be: ask again.
        #[allow(clippy::disallowed_methods)]
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Accepts the tokens that the cluster signed, as long as their logins count.
#[derive(Debug)]
struct Tokens {
    key: VerifyingKey,
    revoked: RevokedLogins,
}

impl TokenVerifier for Tokens {
    fn verify(&self, text: &str) -> Result<Identity> {
        let identity = token::verify(&self.key, text)?;
        self.revoked.check(identity.login()?)?;
        Ok(identity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_does_not_know_its_name_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("server.json");
        let fresh = Registration::open(&file).unwrap();
        assert_eq!(Registration::open(&file).unwrap().server_id, fresh.server_id);
        for damage in small_file::damages(&fs::read(&file).unwrap()) {
            fs::write(&file, &damage).unwrap();
            let error = Registration::open(&file).unwrap_err().to_wire();
            assert_eq!((error.code, error.hint.as_str()), (ErrorCode::Corrupt, NAMELESS), "{damage:?}");
        }
    }
}
