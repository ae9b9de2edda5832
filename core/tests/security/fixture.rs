//! A server with small services that say who they think is calling, and the clients to call them with.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightInfo, HandshakeRequest, HandshakeResponse,
    PollInfo, PutResult, SchemaResult, Ticket,
    flight_service_client::FlightServiceClient,
    flight_service_server::{FlightService, FlightServiceServer},
};
use drsdb_core::{
    ErrorCode, Result, WireError,
    net::{self, ChannelPool},
    security::{
        AuthLayer, DevCa, Identity, Login, Role, SigningKey, TlsFiles, TlsIdentity, VerifyingKey, ticket, tls, token,
    },
    v1::{self, raft_server::RaftServer, storage_client::StorageClient, storage_server::StorageServer},
};
use futures::{StreamExt, stream::BoxStream};
use tokio::{sync::Notify, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, metadata::MetadataValue, service::Routes, transport::Channel};
use url::Url;

/// Longer than anything here takes unless it hangs.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A cluster's secrets, and one server of it.
pub struct Fixture {
    pub dir: tempfile::TempDir,
    pub ca: DevCa,
    pub key: SigningKey,
    pub server: Server,
}

/// A running server.
pub struct Server {
    pub address: SocketAddr,
    pub url: Url,
    pub services: Services,
    pub shutdown: CancellationToken,
    pub task: JoinHandle<Result<()>>,
}

impl Fixture {
    /// A storage server on a free port.
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = DevCa::open_or_create(&dir.path().join("ca")).unwrap();
        let (key, _) = SigningKey::generate().unwrap();
        let files = ca.issue(&dir.path().join("server"), Role::Storage, &[]).unwrap();
        let server = Server::start(&files, key.verifying_key(), ([127, 0, 0, 1], 0).into());
        Self { dir, ca, key, server }
    }

    pub fn issue(&self, role: Role) -> TlsFiles {
        self.ca.issue(&self.dir.path().join(format!("peer-{role}")), role, &[]).unwrap()
    }

    /// A pool that connects as a server of `role`.
    pub fn server_pool(&self, role: Role) -> ChannelPool {
        pool_of(&self.issue(role))
    }

    /// A pool that connects as a client: no certificate.
    pub fn client_pool(&self) -> ChannelPool {
        let roots = tls::trust_roots(self.ca.certificate_file()).unwrap();
        ChannelPool::new(tls::user_client_config(roots).unwrap())
    }

    pub fn flight(&self) -> FlightServiceClient<Channel> {
        FlightServiceClient::new(self.client_pool().channel(&self.server.url).unwrap())
    }

    pub fn storage(&self, pool: &ChannelPool) -> StorageClient<Channel> {
        StorageClient::new(pool.channel(&self.server.url).unwrap())
    }

    pub fn token(&self, user: &str) -> String {
        token::issue(&self.key, &login(user), Duration::from_secs(60))
    }

    /// Checks that the server serves a well-behaved client, soon.
    pub async fn assert_alive(&self) {
        let call = async { who(&mut self.flight(), Some(&format!("Bearer {}", self.token("ada")))).await };
        let answer = tokio::time::timeout(Duration::from_secs(2), call).await.expect("the server is stuck");
        assert_eq!(answer.unwrap(), "user ada");
    }
}

pub fn login(user: &str) -> Login {
    Login { user: user.to_owned(), credentials: 1 }
}

pub fn pool_of(files: &TlsFiles) -> ChannelPool {
    ChannelPool::new(tls::client_config(&TlsIdentity::load(files).unwrap()).unwrap())
}

impl Server {
    pub fn start(files: &TlsFiles, key: VerifyingKey, address: SocketAddr) -> Self {
        let listener = net::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let config = tls::server_config(&TlsIdentity::load(files).unwrap()).unwrap();
        let services = Services { key: key.clone(), running: Arc::default(), finish: Arc::default() };
        let mut routes = Routes::builder();
        routes
            .add_service(FlightServiceServer::new(services.clone()))
            .add_service(StorageServer::new(services.clone()))
            .add_service(RaftServer::new(services.clone()));
        let shutdown = CancellationToken::new();
        let auth = AuthLayer::new(Arc::new(key));
        let task = tokio::spawn(net::serve(listener, config, auth, routes.routes(), shutdown.clone()));
        let url = Url::parse(&format!("https://{address}")).unwrap();
        Self { address, url, services, shutdown, task }
    }
}

/// Sends an action that answers with the caller's identity.
pub async fn who(client: &mut FlightServiceClient<Channel>, authorization: Option<&str>) -> Result<String, WireError> {
    let request = with_authorization(Action::new("who", ""), authorization);
    let mut answers = client.do_action(request).await?.into_inner();
    let answer = answers.message().await?.expect("one answer");
    Ok(String::from_utf8(answer.body.to_vec()).unwrap())
}

pub fn with_authorization<T>(message: T, authorization: Option<&str>) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(value) = authorization {
        request.metadata_mut().insert("authorization", MetadataValue::try_from(value).unwrap());
    }
    request
}

/// The code of a call that must fail.
pub fn code<T: std::fmt::Debug, E: Into<WireError>>(result: Result<T, E>) -> ErrorCode {
    result.map_err(Into::into).unwrap_err().code
}

#[derive(Clone)]
pub struct Services {
    key: VerifyingKey,
    /// DoGet streams that are open now.
    pub running: Arc<AtomicUsize>,
    /// Lets DoGet streams end.
    pub finish: Arc<Notify>,
}

impl Services {
    pub fn running(&self) -> usize {
        self.running.load(Ordering::SeqCst)
    }
}

fn name(identity: &Identity) -> String {
    match identity {
        Identity::User(login) => format!("user {}", login.user),
        Identity::Server(role) => format!("server {role}"),
    }
}

/// Counts itself among the running streams for as long as it lives.
struct Running(Arc<AtomicUsize>);

impl Running {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

type Stream<T> = BoxStream<'static, Result<T, Status>>;

#[tonic::async_trait]
impl FlightService for Services {
    type HandshakeStream = Stream<HandshakeResponse>;
    type ListFlightsStream = Stream<FlightInfo>;
    type DoGetStream = Stream<FlightData>;
    type DoPutStream = Stream<PutResult>;
    type DoActionStream = Stream<arrow_flight::Result>;
    type ListActionsStream = Stream<ActionType>;
    type DoExchangeStream = Stream<FlightData>;

    /// Answers with the authorization header, as a login would read it.
    async fn handshake(
        &self,
        request: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<Self::HandshakeStream>, Status> {
        assert!(Identity::of(&request).is_err(), "a login has no identity yet");
        let header = request.metadata().get("authorization").map_or(&b"none"[..], |value| value.as_bytes());
        let response = HandshakeResponse { protocol_version: 0, payload: header.to_vec().into() };
        Ok(Response::new(futures::stream::iter([Ok(response)]).boxed()))
    }

    /// Streams messages, the first at once, the next when told to finish. The ticket must be the user's.
    async fn do_get(&self, request: Request<Ticket>) -> Result<Response<Self::DoGetStream>, Status> {
        let user = Identity::of(&request)?.user()?.to_owned();
        let ticket = ticket::open(&self.key, &request.get_ref().ticket, &user)?;
        let running = Running::new(&self.running);
        let finish = Arc::clone(&self.finish);
        let first = FlightData::new().with_app_metadata(ticket.query_id);
        let rest = futures::stream::once(async move {
            let _running = running;
            finish.notified().await;
            Ok(FlightData::new().with_app_metadata("last"))
        });
        Ok(Response::new(futures::stream::iter([Ok(first)]).chain(rest).boxed()))
    }

    async fn do_action(&self, request: Request<Action>) -> Result<Response<Self::DoActionStream>, Status> {
        let answer = arrow_flight::Result::new(name(Identity::of(&request)?));
        Ok(Response::new(futures::stream::iter([Ok(answer)]).boxed()))
    }

    async fn list_flights(&self, _: Request<Criteria>) -> Result<Response<Self::ListFlightsStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_flight_info(&self, _: Request<FlightDescriptor>) -> Result<Response<FlightInfo>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn poll_flight_info(&self, _: Request<FlightDescriptor>) -> Result<Response<PollInfo>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_schema(&self, _: Request<FlightDescriptor>) -> Result<Response<SchemaResult>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn do_put(&self, _: Request<Streaming<FlightData>>) -> Result<Response<Self::DoPutStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_actions(&self, _: Request<Empty>) -> Result<Response<Self::ListActionsStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn do_exchange(&self, _: Request<Streaming<FlightData>>) -> Result<Response<Self::DoExchangeStream>, Status> {
        Err(Status::unimplemented(""))
    }
}

#[tonic::async_trait]
impl v1::storage_server::Storage for Services {
    async fn stage(&self, _: Request<Streaming<v1::StageRequest>>) -> Result<Response<v1::StageResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn abort(&self, _: Request<v1::AbortRequest>) -> Result<Response<v1::AbortResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn rollback_to(&self, _: Request<v1::RollbackToRequest>) -> Result<Response<v1::RollbackToResponse>, Status> {
        Ok(Response::new(v1::RollbackToResponse {}))
    }

    async fn checksum(&self, _: Request<v1::ChecksumRequest>) -> Result<Response<v1::ChecksumResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn rebuild(&self, _: Request<v1::RebuildRequest>) -> Result<Response<v1::RebuildResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    type LookupStream = Stream<v1::ExportedRows>;

    async fn lookup(&self, _: Request<v1::LookupRequest>) -> Result<Response<Self::LookupStream>, Status> {
        Err(Status::unimplemented(""))
    }

    type ExportShardStream = Stream<v1::ExportedRows>;

    async fn export_shard(
        &self,
        _: Request<v1::ExportShardRequest>,
    ) -> Result<Response<Self::ExportShardStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn status(&self, request: Request<v1::StatusRequest>) -> Result<Response<v1::StatusResponse>, Status> {
        let server_id = name(Identity::of(&request)?);
        Ok(Response::new(v1::StatusResponse { server_id, ..Default::default() }))
    }
}

#[tonic::async_trait]
impl v1::raft_server::Raft for Services {
    async fn append(&self, request: Request<v1::RaftMessage>) -> Result<Response<v1::RaftMessage>, Status> {
        Ok(Response::new(request.into_inner()))
    }

    async fn vote(&self, _: Request<v1::RaftMessage>) -> Result<Response<v1::RaftMessage>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn install_snapshot(&self, _: Request<v1::RaftMessage>) -> Result<Response<v1::RaftMessage>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn propose(&self, _: Request<v1::RaftMessage>) -> Result<Response<v1::RaftMessage>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn read_index(&self, _: Request<v1::RaftMessage>) -> Result<Response<v1::RaftMessage>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn change_members(&self, _: Request<v1::RaftMessage>) -> Result<Response<v1::RaftMessage>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn node_status(&self, _: Request<v1::RaftMessage>) -> Result<Response<v1::RaftMessage>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn hash_state(&self, _: Request<v1::RaftMessage>) -> Result<Response<v1::RaftMessage>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn agreed_members(&self, _: Request<v1::RaftMessage>) -> Result<Response<v1::RaftMessage>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn readmit(&self, _: Request<v1::RaftMessage>) -> Result<Response<v1::RaftMessage>, Status> {
        Err(Status::unimplemented(""))
    }
}
