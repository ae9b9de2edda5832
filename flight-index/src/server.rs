//! One index server, from its configuration to its orderly end.
//!
//! 1. Open the catalog; a new cluster is bootstrapped with an id, a signing key and its first user.
//! 2. Serve Flight SQL to clients and `Cluster` and `Raft` to other servers, until told to stop or until the catalog
//!    halts.

use std::{collections::BTreeMap, fs, sync::Arc};

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
    load::{GrpcTransport, Loader},
    planner::Planner,
    raft::{Catalog, CatalogOptions, Dial},
};

/// The only voter, until there are more.
const NODE_ID: u64 = 1;

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
    let catalog = Catalog::open(CatalogOptions {
        dir: config.data_dir.join("catalog"),
        node_id: NODE_ID,
        voters: BTreeMap::from([(NODE_ID, config.public_url.to_string())]),
        dial: Arc::new(move |url: &Url| dial.channel(url)),
    })
    .await?;
    if catalog.state().cluster().is_none() {
        bootstrap(&catalog, config.bootstrap.as_ref()).await?;
    }

    let dial = Arc::clone(&channels);
    let dial: Dial = Arc::new(move |url: &Url| dial.channel(url));
    let forgetting = tokio::spawn(forget_what_all_have(Arc::clone(&catalog), dial, shutdown.clone()));

    let config = Arc::new(config);
    let planner = Arc::new(Planner::new(config.ticket_lifetime()));
    let loader = Arc::new(Loader::new(Arc::clone(&catalog), Arc::new(GrpcTransport::new(Arc::clone(&channels)))));
    let flight =
        FlightSqlServer::new(Arc::clone(&catalog), Arc::clone(&planner), loader, channels, Arc::clone(&config));
    let mut routes = Routes::builder();
    routes
        .add_service(flight.into_service())
        .add_service(ClusterService::server(Arc::clone(&catalog), shutdown.clone()))
        .add_service(catalog.raft_service());
    let auth = AuthLayer::new(Arc::new(CatalogTokens { catalog: Arc::clone(&catalog), planner }));

    tracing::info!(url = %config.public_url, "index server is ready");
    let _ = ready.send(());
    let serving = net::serve(listener, tls::server_config(&identity)?, auth, routes.routes(), shutdown.clone());
    let served = tokio::select! {
        served = serving => served,
        // The log cannot be written any more: to go on would be to lie.
        halted = catalog.halted() => Err(halted),
    };
    shutdown.cancel();
    let _ = forgetting.await;
    catalog.shutdown().await;
    served
}

/// Makes a new cluster.
async fn bootstrap(catalog: &Catalog, first: Option<&Bootstrap>) -> Result<()> {
    let Some(first) = first else {
        return Err(WireError::new(
            ErrorCode::InvalidArgument,
            "this index server has no data yet, and no bootstrap settings",
        )
        .with_hint("set bootstrap.admin_user and bootstrap.admin_password for its first start")
        .into());
    };
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
    catalog.propose(command).await?;
    tracing::info!(user = %first.admin_user, "bootstrapped a new cluster");
    Ok(())
}

/// Accepts the tokens that this cluster signed, for users that still exist.
#[derive(Debug)]
struct CatalogTokens {
    catalog: Arc<Catalog>,
    planner: Arc<Planner>,
}

impl TokenVerifier for CatalogTokens {
    fn verify(&self, text: &str) -> Result<Identity> {
        let state = self.catalog.state();
        let identity = token::verify(&self.planner.signing_key(&state)?.verifying_key(), text)?;
        match &identity {
            Identity::User(user) if state.user(user).is_none() => {
                Err(Error::new(ErrorCode::Unauthenticated, format!("user {user} does not exist any more")))
            }
            _ => Ok(identity),
        }
    }
}
