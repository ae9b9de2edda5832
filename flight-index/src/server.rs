//! One index server, from its configuration to its orderly end.
//!
//! 1. Open the catalog. The server that has bootstrap settings makes a new cluster, with all the index servers that its
//!    configuration names; the others wait to hear of it.
//! 2. Serve Flight SQL to clients and `Cluster` and `Raft` to other servers, until told to stop or until the catalog
//!    halts.
//! 3. Beside that: bootstrap the new cluster with an id, a signing key and its first user, or wait until somebody did.
//!    Then the server is ready.

use std::{collections::BTreeMap, fs, sync::Arc, time::Duration};

use drsdb_core::{
    Error, ErrorCode, Result, WireError,
    config::{Bootstrap, IndexConfig},
    ids,
    net::{self, ChannelPool},
    security::{
        Identity, TlsIdentity,
        auth_layer::{AuthLayer, TokenVerifier},
        keys::SigningKey,
        password, tls, token,
    },
};
use tokio::{net::TcpListener, sync::oneshot};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use url::Url;

use crate::{
    catalog::Command,
    cluster_service::{ClusterService, forget_what_all_have},
    flight_sql::FlightSqlServer,
    load::Loader,
    planner::Planner,
    raft::{Catalog, CatalogOptions, Dial},
    replication::{ActiveTransactions, DriveOptions, Liveness, NeededSnapshots, ResumedSnapshots, drive},
    system::System,
    transaction::{GrpcTransport, Sessions, abort_abandoned},
};

/// How long a server that moved tries to tell the others before it serves.
const ANNOUNCE_TIME: Duration = Duration::from_secs(2);

/// Serves until `shutdown`. `listener` is bound already, so that its port is known; `ready` is told when the server takes
/// requests.
pub async fn serve(
    listener: TcpListener,
    config: IndexConfig,
    shutdown: CancellationToken,
    ready: oneshot::Sender<()>,
) -> Result<()> {
    fs::create_dir_all(&config.data_dir)
        .map_err(|error| Error::io(format!("creating {}", config.data_dir.display()), error))?;
    let identity = TlsIdentity::load(&config.tls)?;
    let channels = Arc::new(ChannelPool::new(tls::client_config(&identity)?));
    let dial = Arc::clone(&channels);
    let dial: Dial = Arc::new(move |url: &Url| dial.channel(url));
    drsdb_core::id_functions::set_index_node(config.node_id);
    let voters = match &config.bootstrap {
        Some(_) => config.initial_voters().into_iter().map(|(id, url)| (id, url.to_string())).collect(),
        None => BTreeMap::new(),
    };
    let dir = config.data_dir.join("catalog");
    let catalog = Catalog::open(CatalogOptions {
        dir,
        node_id: config.node_id,
        voters,
        named: config.initial_voters().into_iter().map(|(id, url)| (id, url.to_string())).collect(),
        dial: Arc::clone(&dial),
        snapshot_entries: config.snapshot_entries,
    })
    .await?;
    if !config.join && config.voters.is_empty() && !catalog.is_initialized().await? {
        return Err(nothing_to_do());
    }

    let active = ActiveTransactions::default();
    let resumed = ResumedSnapshots::default();
    let needed = NeededSnapshots::new(active.clone(), resumed.clone(), config.ticket_lifetime());
    let url = config.public_url.to_string();
    let liveness = Liveness::new(Arc::clone(&catalog), Arc::clone(&dial), needed, url);
    let drive_options = DriveOptions {
        demote_after: config.demote_after(),
        replace_after: config.replace_after(),
        copies: config.shard_copies,
    };
    let driving =
        drive(Arc::clone(&catalog), Arc::clone(&dial), Arc::clone(&liveness), drive_options, shutdown.clone());
    let driving = tokio::spawn(driving);
    let pinging = tokio::spawn(Arc::clone(&liveness).run(shutdown.clone()));
    let forgetting = tokio::spawn(forget_what_all_have(Arc::clone(&catalog), Arc::clone(&dial), shutdown.clone()));

    let (own_url, dialling) = (config.public_url.to_string(), Arc::clone(&dial));
    let aborting = abort_abandoned(Arc::clone(&catalog), dialling, active.clone(), own_url, shutdown.clone());
    let aborting = tokio::spawn(aborting);

    let comparing = {
        let (catalog, shutdown) = (Arc::clone(&catalog), shutdown.clone());
        tokio::spawn(async move { catalog.keep_comparing(shutdown).await })
    };

    let listing = {
        let (catalog, shutdown) = (Arc::clone(&catalog), shutdown.clone());
        tokio::spawn(async move { catalog.keep_known_servers(shutdown).await })
    };

    let config = Arc::new(config);
    let transport = Arc::new(GrpcTransport::new(Arc::clone(&channels)));
    let loader = Loader::new(Arc::clone(&catalog), transport, config.public_url.to_string());
    let loader = Arc::new(loader.watched(Arc::clone(&liveness), active.clone()));
    let sessions = Sessions::new(Arc::clone(loader.writes()));
    let system = System::new(Arc::clone(&catalog), Arc::clone(&sessions), config.node_id, Arc::clone(&dial));
    let planner = Planner::new(config.ticket_lifetime()).avoiding(liveness.suspects()).keeping(resumed);
    let planner = Arc::new(planner.with_system(Arc::new(system)));
    let flight = FlightSqlServer::new(
        Arc::clone(&catalog),
        Arc::clone(&planner),
        loader,
        Arc::clone(&sessions),
        channels,
        Arc::clone(&config),
    );
    let mut routes = Routes::builder();
    routes
        .add_service(flight.into_service())
        .add_service(ClusterService::server(Arc::clone(&catalog), active, sessions, shutdown.clone()))
        .add_service(catalog.raft_service());
    let auth = AuthLayer::new(Arc::new(CatalogTokens { catalog: Arc::clone(&catalog), planner }));

    let founding = async {
        found(&catalog, config.bootstrap.as_ref().filter(|_| !catalog.is_rejoining())).await?;
        // Before anybody asks where the index servers are; but others may have to start before they can be told.
        let mut announcing = std::pin::pin!(announce(&catalog, config.public_url.as_str()));
        let told = tokio::time::timeout(ANNOUNCE_TIME, &mut announcing).await;
        tracing::info!(id = config.node_id, url = %config.public_url, "index server is ready");
        let _ = ready.send(());
        if told.is_err() {
            announcing.await;
        }
        std::future::pending().await
    };
    let joining = async {
        match catalog.join_again(config.public_url.as_str()).await {
            Ok(()) => std::future::pending().await,
            Err(error) => Err(error),
        }
    };
    let serving = net::serve(listener, tls::server_config(&identity)?, auth, routes.routes(), shutdown.clone());
    let served = tokio::select! {
        served = serving => served,
        failed = founding => failed,
        failed = joining => failed,
        // The log cannot be written any more: to go on would be to lie.
        halted = catalog.halted() => Err(halted),
        // Nothing is left to do, which is no failure: who watches over the process need not start it again.
        () = catalog.removed() => {
            tracing::warn!(
                id = config.node_id,
                "this index server was removed from its cluster, and ends; as a new server, with an empty data_dir, \
                 join = true and another node_id, it can be added again"
            );
            Ok(())
        }
    };
    shutdown.cancel();
    for background in [forgetting, driving, pinging, aborting, comparing, listing] {
        let _ = background.await;
    }
    catalog.shutdown().await;
    served
}

/// The error of a server that neither knows a cluster nor is told how to come by one.
fn nothing_to_do() -> Error {
    let message = "this index server has no data yet, and no bootstrap settings";
    let hint = "for a new cluster, set bootstrap.admin_user and bootstrap.admin_password for its first start; to become \
                one of several index servers, set voters or join = true";
    WireError::new(ErrorCode::InvalidArgument, message).with_hint(hint).into()
}

/// Returns when the cluster is bootstrapped. A server with settings for that does it, if nobody has.
async fn found(catalog: &Catalog, first: Option<&Bootstrap>) -> Result<()> {
    let mut versions = catalog.watch();
    let Some(first) = first else {
        let known = versions.wait_for(|_| catalog.state().cluster().is_some());
        return known.await.map(drop).map_err(|_| Error::internal("the catalog ended"));
    };
    if catalog.state().cluster().is_some() {
        return Ok(());
    }
    let (_, pkcs8) = SigningKey::generate()?;
    let secret = first.admin_password.clone();
    let hashed = tokio::task::spawn_blocking(move || password::hash(&secret)).await;
    let admin_password_hash = hashed.map_err(|error| Error::internal(error.to_string()))??;
    let command = Command::Bootstrap {
        cluster_id: ids::new_ulid(),
        signing_key_pkcs8: pkcs8.into(),
        admin_user: first.admin_user.clone(),
        admin_password_hash,
    };
    loop {
        match catalog.propose(command.clone()).await {
            Ok(_) => {
                tracing::info!(user = %first.admin_user, "bootstrapped a new cluster");
                return Ok(());
            }
            // By another server, or by this one before it was restarted.
            Err(error) if error.code() == ErrorCode::AlreadyExists => return Ok(()),
            Err(error) if error.code() == ErrorCode::Unavailable => {
                tracing::warn!(%error, "the new cluster's other index servers do not answer yet; trying on");
            }
            Err(error) => return Err(error),
        }
    }
}

/// Tells the other index servers where this one is, if it moved.
async fn announce(catalog: &Catalog, url: &str) {
    while let Err(error) = catalog.announce(url).await {
        tracing::warn!(%error, "cannot tell the other index servers that this one is at {url} now");
        if error.code() != ErrorCode::Unavailable {
            return;
        }
    }
}

/// Accepts the tokens that this cluster signed, for users that still exist, with the passwords that they have now.
#[derive(Debug)]
pub(crate) struct CatalogTokens {
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) planner: Arc<Planner>,
}

impl TokenVerifier for CatalogTokens {
    fn verify(&self, text: &str) -> Result<Identity> {
        let state = self.catalog.state();
        let identity = token::verify(&self.planner.signing_key(&state)?.verifying_key(), text)?;
        state.user_of(identity.login()?)?;
        Ok(identity)
    }
}
