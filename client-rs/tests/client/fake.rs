//! A Flight server over real TLS whose answers a test decides: what a cluster looks like to a client, without one.
//!
//! Each server has its own runtime, so that [`FakeServer::kill`] ends it as a dead process ends: connections and all.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use arrow::{
    array::{Int64Array, RecordBatch},
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightEndpoint, FlightInfo, HandshakeRequest,
    HandshakeResponse, PollInfo, PutResult, SchemaResult, Ticket,
    decode::FlightRecordBatchStream,
    encode::FlightDataEncoderBuilder,
    error::FlightError,
    flight_service_server::{FlightService, FlightServiceServer},
    sql::{Any, Command, CommandStatementQuery},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use drsdb_client::{ClientOptions, ErrorCode, TlsRoots, WireError};
use drsdb_proto::v1;
use futures::{Stream, StreamExt, TryStreamExt, stream::BoxStream};
use parking_lot::Mutex;
use prost::Message;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{Barrier, Notify, mpsc},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap, transport::server::Connected};
use url::Url;

pub const PASSWORD: &str = "open sesame";

/// A certificate authority, a server certificate for 127.0.0.1, and what a client must trust.
pub struct Tls {
    pub ca_pem: String,
    pub config: Arc<rustls::ServerConfig>,
}

impl Tls {
    pub fn new(versions: &[&'static rustls::SupportedProtocolVersion]) -> Self {
        let ca_key = rcgen::KeyPair::generate().unwrap();
        let mut ca_params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        ca_params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca = ca_params.self_signed(&ca_key).unwrap();
        let issuer = rcgen::Issuer::new(ca_params, ca_key);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate =
            rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            )
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Tls { ca_pem: ca.pem(), config: Arc::new(config) }
    }

    pub fn options(&self, servers: impl IntoIterator<Item = Url>) -> ClientOptions {
        ClientOptions::new(servers)
            .with_tls_roots(TlsRoots::Pem(self.ca_pem.clone().into_bytes()))
            .with_login("admin", PASSWORD)
    }
}

/// What a DoGet does; the ticket is its name.
#[derive(Clone, Default)]
pub struct Part {
    /// Row values of each batch.
    pub batches: Vec<std::ops::Range<i64>>,
    /// This instead of the batches.
    pub answer: Option<RecordBatch>,
    /// Waits there until all parts of the barrier have begun.
    pub barrier: Option<Arc<Barrier>>,
    /// Waits there, before the first batch, until notified.
    pub gate: Option<Arc<Notify>>,
    /// After the last batch, this instead of the end.
    pub error: Option<WireError>,
    /// After the last batch, nothing: the stream stays open.
    pub hangs: bool,
    /// Counts batches handed to HTTP/2.
    pub produced: Arc<AtomicU64>,
    /// Set when the stream is dropped, finished or not.
    pub dropped: Arc<Notify>,
}

/// A statement, load or action as an index server got it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Who got it.
    pub server: Url,
    /// The SQL, the action's name, or `load`.
    pub what: String,
    /// Of the header that names writes.
    pub statement: Option<String>,
    /// Of the header that says what the client has seen.
    pub version: Option<String>,
    /// Of the header that says where an answer goes on.
    pub resume: Option<String>,
    /// Of the header that says how long the query has taken.
    pub spent_ms: Option<String>,
    /// The transaction that the command names.
    pub transaction: Option<String>,
}

/// What all servers of a test share.
#[derive(Default)]
pub struct Script {
    /// Answers to statements.
    pub infos: Mutex<HashMap<String, FlightInfo>>,
    /// Statements and actions that kill each server that gets them.
    pub deadly: Mutex<HashSet<String>>,
    /// The same, for the first server that gets them.
    pub deadly_once: Mutex<HashSet<String>>,
    /// Errors of statements and actions, the first to be given first.
    pub errors: Mutex<HashMap<String, VecDeque<WireError>>>,
    /// What index servers were called for, in order; without metadata and lists of servers.
    pub calls: Mutex<Vec<Call>>,
    /// Answers to tickets.
    pub parts: Mutex<HashMap<String, Part>>,
    /// What drsdb.IndexServers says.
    pub index_servers: Mutex<Vec<Url>>,
    /// Logins so far; the token of the last one alone is accepted.
    pub logins: AtomicU64,
    /// Transactions begun so far.
    pub transactions: AtomicU64,
    /// Statements in the order in which they came, with the cookie that came along.
    pub statements: Mutex<Vec<(String, Option<String>)>>,
    /// Loads: rows seen, and whether the stream ended as a finished load does.
    pub loads: Mutex<Vec<(usize, bool)>>,
    /// Told at the end of each load.
    pub load_ended: Notify,
    /// End all tokens after the next statement, before its tickets are redeemed.
    pub end_tokens_after_statement: AtomicBool,
    /// Refuse the login of a load once it has begun to arrive.
    pub refuse_begun_loads: AtomicBool,
}

impl Script {
    pub fn answer(&self, sql: &str, info: FlightInfo) {
        self.infos.lock().insert(sql.to_owned(), info);
    }

    pub fn part(&self, name: &str, part: Part) {
        self.parts.lock().insert(name.to_owned(), part);
    }

    pub fn fail(&self, what: &str, error: WireError) {
        self.errors.lock().entry(what.to_owned()).or_default().push_back(error);
    }

    /// The calls so far, without those for lists of servers; forgets them.
    pub fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.calls.lock())
    }

    fn token(&self) -> String {
        format!("token-{}", self.logins.load(Ordering::SeqCst))
    }

    /// Makes every token out there a stale one.
    pub fn end_tokens(&self) {
        self.logins.fetch_add(1, Ordering::SeqCst);
    }
}

pub fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]))
}

pub fn batch(values: std::ops::Range<i64>) -> RecordBatch {
    RecordBatch::try_new(schema(), vec![Arc::new(Int64Array::from_iter_values(values))]).unwrap()
}

/// A FlightInfo of parts; each is a ticket's name and its locations.
pub fn info(parts: &[(&str, Vec<Url>)]) -> FlightInfo {
    parts.iter().fold(FlightInfo::new().try_with_schema(&schema()).unwrap(), |info, (name, locations)| {
        let endpoint = FlightEndpoint::new().with_ticket(Ticket::new(name.to_string()));
        let uri = |url: &Url| url.as_str().replace("https://", "grpc+tls://");
        info.with_endpoint(locations.iter().fold(endpoint, |endpoint, url| endpoint.with_location(uri(url))))
    })
}

/// One server.
pub struct FakeServer {
    pub url: Url,
    runtime: Arc<Mutex<Option<tokio::runtime::Runtime>>>,
}

impl FakeServer {
    pub fn start(tls: &Tls, script: &Arc<Script>) -> FakeServer {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on_elsewhere(TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = Url::parse(&format!("https://{}", listener.local_addr().unwrap())).unwrap();
        let (accepted, connections) = mpsc::channel(16);
        let acceptor = TlsAcceptor::from(tls.config.clone());
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, accepted) = (acceptor.clone(), accepted.clone());
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        let _ = accepted.send(Ok::<_, io::Error>(Connection(stream))).await;
                    }
                });
            }
        });
        let runtime_slot = Arc::new(Mutex::new(None));
        let service = Service { url: url.clone(), script: script.clone(), runtime: runtime_slot.clone() };
        runtime.spawn(async move {
            let connections = tokio_stream::wrappers::ReceiverStream::new(connections);
            let service = FlightServiceServer::new(service);
            tonic::transport::Server::builder().add_service(service).serve_with_incoming(connections).await
        });
        *runtime_slot.lock() = Some(runtime);
        FakeServer { url, runtime: runtime_slot }
    }

    /// Ends it at once: no answer is finished, no connection closed in order.
    pub fn kill(&self) {
        kill(&self.runtime);
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.kill();
    }
}

fn kill(runtime: &Mutex<Option<tokio::runtime::Runtime>>) {
    if let Some(runtime) = runtime.lock().take() {
        runtime.shutdown_background();
    }
}

/// An address where nobody listens, and nobody will while the test runs.
pub fn dead_server() -> Url {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let url = Url::parse(&format!("https://{}", socket.local_addr().unwrap())).unwrap();
    // Bound, but never listening: the port stays taken.
    std::mem::forget(socket);
    url
}

trait BlockOnElsewhere {
    fn block_on_elsewhere<F: Future<Output: Send> + Send>(&self, future: F) -> F::Output;
}

impl BlockOnElsewhere for tokio::runtime::Runtime {
    /// Tests run in a runtime of their own, inside which another cannot block.
    fn block_on_elsewhere<F: Future<Output: Send> + Send>(&self, future: F) -> F::Output {
        std::thread::scope(|scope| scope.spawn(|| self.block_on(future)).join().unwrap())
    }
}

struct Service {
    url: Url,
    script: Arc<Script>,
    runtime: Arc<Mutex<Option<tokio::runtime::Runtime>>>,
}

impl Service {
    /// Notes a call; dies of it, or fails, where the script says so.
    async fn called(&self, metadata: &MetadataMap, what: &str, transaction: Option<&[u8]>) -> Result<(), Status> {
        let header = |name| metadata.get(name).map(|value| value.to_str().unwrap().to_owned());
        self.script.calls.lock().push(Call {
            server: self.url.clone(),
            what: what.to_owned(),
            statement: header("drsdb-statement-id"),
            version: header("drsdb-version"),
            resume: header("drsdb-resume"),
            spent_ms: header("drsdb-spent-ms"),
            transaction: transaction.map(|id| String::from_utf8(id.to_vec()).unwrap()),
        });
        let deadly = self.script.deadly.lock().contains(what) || self.script.deadly_once.lock().remove(what);
        if deadly {
            kill(&self.runtime);
            std::future::pending::<()>().await;
        }
        match self.script.errors.lock().get_mut(what).and_then(VecDeque::pop_front) {
            Some(error) => Err(error.into()),
            None => Ok(()),
        }
    }

    fn check_login<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let header = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        if header == Some(format!("Bearer {}", self.script.token()).as_str()) {
            return Ok(());
        }
        Err(WireError::new(ErrorCode::Unauthenticated, "the token has ended").into())
    }
}

type Answers<T> = BoxStream<'static, Result<T, Status>>;

#[tonic::async_trait]
impl FlightService for Service {
    type HandshakeStream = Answers<HandshakeResponse>;
    type ListFlightsStream = Answers<FlightInfo>;
    type DoGetStream = Answers<FlightData>;
    type DoPutStream = Answers<PutResult>;
    type DoExchangeStream = Answers<FlightData>;
    type DoActionStream = Answers<arrow_flight::Result>;
    type ListActionsStream = Answers<ActionType>;

    async fn handshake(
        &self,
        request: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<Self::HandshakeStream>, Status> {
        let expected = format!("Basic {}", BASE64_STANDARD.encode(format!("admin:{PASSWORD}")));
        let header = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        if header != Some(expected.as_str()) {
            return Err(WireError::new(ErrorCode::Unauthenticated, "wrong user name or password").into());
        }
        self.script.logins.fetch_add(1, Ordering::SeqCst);
        let mut response = Response::new(futures::stream::empty().boxed() as Self::HandshakeStream);
        response.metadata_mut().insert("authorization", format!("Bearer {}", self.script.token()).parse().unwrap());
        Ok(response)
    }

    async fn get_flight_info(&self, request: Request<FlightDescriptor>) -> Result<Response<FlightInfo>, Status> {
        self.check_login(&request)?;
        let cookie = request.metadata().get("cookie").map(|value| value.to_str().unwrap().to_owned());
        let any = Any::decode(request.get_ref().cmd.clone()).unwrap();
        let (sql, transaction) = match Command::try_from(any).unwrap() {
            Command::CommandStatementQuery(CommandStatementQuery { query, transaction_id }) => (query, transaction_id),
            Command::CommandPreparedStatementQuery(query) => {
                (String::from_utf8(query.prepared_statement_handle.to_vec()).unwrap(), None)
            }
            other => (other.type_url().rsplit_once('.').unwrap().1.to_owned(), None),
        };
        self.script.statements.lock().push((sql.clone(), cookie));
        self.called(request.metadata(), &sql, transaction.as_deref()).await?;
        let info = self.script.infos.lock().get(&sql).cloned();
        let info = info.ok_or_else(|| Status::from(WireError::new(ErrorCode::Syntax, format!("what is {sql}?"))))?;
        if self.script.end_tokens_after_statement.swap(false, Ordering::SeqCst) {
            self.script.end_tokens();
        }
        let mut response = Response::new(info);
        if let Some(setting) = sql.strip_prefix("SET ") {
            let cookie = format!("session={setting}; Path=/; Secure; HttpOnly");
            response.metadata_mut().insert("set-cookie", cookie.parse().unwrap());
        }
        Ok(response)
    }

    async fn do_get(&self, request: Request<Ticket>) -> Result<Response<Self::DoGetStream>, Status> {
        self.check_login(&request)?;
        let name = String::from_utf8(request.into_inner().ticket.to_vec()).unwrap();
        let part = self.script.parts.lock().get(&name).cloned();
        let part = part.ok_or_else(|| Status::from(WireError::new(ErrorCode::TicketInvalid, "garbage")))?;
        if let Some(barrier) = &part.barrier {
            barrier.wait().await;
        }
        let guard = NotifyOnDrop(part.dropped.clone());
        let (gate, hangs, error, produced) = (part.gate, part.hangs, part.error, part.produced);
        let wait = async move {
            if let Some(gate) = gate {
                gate.notified().await;
            }
            futures::stream::empty()
        };
        let schema = part.answer.as_ref().map_or_else(schema, RecordBatch::schema);
        let answer = futures::stream::iter(part.answer.map(Ok));
        let batches = futures::stream::iter(part.batches).map(move |values| {
            produced.fetch_add(1, Ordering::SeqCst);
            Ok(batch(values))
        });
        let end = async move {
            let _guard = &guard;
            if hangs {
                std::future::pending::<()>().await;
            }
            futures::stream::iter(error.map(|error| Err(FlightError::Tonic(Box::new(error.into())))))
        };
        let rows = futures::stream::once(wait)
            .flatten()
            .chain(answer)
            .chain(batches)
            .chain(futures::stream::once(end).flatten());
        let encoder = FlightDataEncoderBuilder::new().with_schema(schema).build(rows);
        Ok(Response::new(encoder.map_err(Status::from).boxed()))
    }

    async fn do_put(&self, request: Request<Streaming<FlightData>>) -> Result<Response<Self::DoPutStream>, Status> {
        self.check_login(&request)?;
        let (metadata, _, mut messages) = request.into_parts();
        let first = messages.message().await?.unwrap();
        let command = Command::try_from(Any::decode(first.flight_descriptor.clone().unwrap().cmd).unwrap()).unwrap();
        if let Command::CommandStatementIngest(ingest) = &command {
            self.called(&metadata, "load", ingest.transaction_id.as_deref()).await?;
        }
        if self.script.refuse_begun_loads.swap(false, Ordering::SeqCst) {
            messages.message().await?;
            return Err(WireError::new(ErrorCode::Unauthenticated, "the token has ended").into());
        }
        let messages = futures::stream::once(async { Ok(first) }).chain(messages.map_err(FlightError::from));
        let mut batches = FlightRecordBatchStream::new_from_flight_data(messages);
        let mut rows = 0;
        let mut sum = 0;
        let clean = loop {
            match batches.next().await {
                Some(Ok(batch)) => {
                    rows += batch.num_rows();
                    let values = batch.column(0).as_any().downcast_ref::<Int64Array>().unwrap();
                    sum += values.values().iter().sum::<i64>();
                }
                Some(Err(_)) => break false,
                None => break true,
            }
        };
        // As a real server does: a call that was reset looks ended, and is dropped when it next waits.
        let mut ended = LoadEnded { script: Arc::clone(&self.script), rows, clean: false };
        tokio::task::yield_now().await;
        ended.clean = clean;
        drop(ended);
        let app_metadata = match command {
            Command::CommandPreparedStatementQuery(_) => {
                let handle = Some(format!("bound to {sum}").into_bytes().into());
                arrow_flight::sql::DoPutPreparedStatementResult { prepared_statement_handle: handle }.encode_to_vec()
            }
            _ => v1::WriteResult { rows: rows as u64, version: 7 }.encode_to_vec(),
        };
        let answer = PutResult { app_metadata: app_metadata.into() };
        Ok(Response::new(futures::stream::iter([Ok(answer)]).boxed()))
    }

    async fn do_action(&self, request: Request<Action>) -> Result<Response<Self::DoActionStream>, Status> {
        use arrow_flight::sql::{
            ActionBeginSavepointResult, ActionBeginTransactionResult, ActionEndSavepointRequest,
            ActionEndTransactionRequest, EndTransaction, ProstMessageExt,
        };
        self.check_login(&request)?;
        let (metadata, _, Action { r#type: name, body }) = request.into_parts();
        let body = match name.as_str() {
            "BeginTransaction" => {
                self.called(&metadata, &name, None).await?;
                let number = self.script.transactions.fetch_add(1, Ordering::SeqCst);
                let id = format!("transaction {number}");
                ActionBeginTransactionResult { transaction_id: id.into() }.as_any().encode_to_vec()
            }
            "EndTransaction" => {
                let end: ActionEndTransactionRequest = Any::decode(body).unwrap().unpack().unwrap().unwrap();
                let commit = end.action() == EndTransaction::Commit;
                let what = if commit { "COMMIT action" } else { "ROLLBACK action" };
                self.called(&metadata, what, Some(&end.transaction_id)).await?;
                if !commit {
                    return Ok(Response::new(futures::stream::empty().boxed()));
                }
                v1::WriteResult { rows: 0, version: 11 }.encode_to_vec()
            }
            "BeginSavepoint" => {
                self.called(&metadata, &name, None).await?;
                ActionBeginSavepointResult { savepoint_id: "savepoint".into() }.as_any().encode_to_vec()
            }
            "EndSavepoint" => {
                let end: ActionEndSavepointRequest = Any::decode(body).unwrap().unpack().unwrap().unwrap();
                let what = if end.action == 1 { "RELEASE action" } else { "ROLLBACK TO action" };
                self.called(&metadata, what, None).await?;
                return Ok(Response::new(futures::stream::empty().boxed()));
            }
            "drsdb.IndexServers" => {
                let urls = self.script.index_servers.lock().iter().map(Url::to_string).collect();
                v1::IndexServers { urls }.encode_to_vec()
            }
            "CreatePreparedStatement" => {
                use arrow_flight::{IpcMessage, SchemaAsIpc};
                let options = Default::default();
                let IpcMessage(schema) = SchemaAsIpc::new(&schema(), &options).try_into().unwrap();
                arrow_flight::sql::ActionCreatePreparedStatementResult {
                    prepared_statement_handle: "unbound".into(),
                    dataset_schema: schema.clone(),
                    parameter_schema: schema,
                }
                .as_any()
                .encode_to_vec()
            }
            other => return Err(Status::unimplemented(other)),
        };
        Ok(Response::new(futures::stream::iter([Ok(arrow_flight::Result { body: body.into() })]).boxed()))
    }

    async fn list_flights(&self, _: Request<Criteria>) -> Result<Response<Self::ListFlightsStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn poll_flight_info(&self, _: Request<FlightDescriptor>) -> Result<Response<PollInfo>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_schema(&self, _: Request<FlightDescriptor>) -> Result<Response<SchemaResult>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn do_exchange(&self, _: Request<Streaming<FlightData>>) -> Result<Response<Self::DoExchangeStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_actions(&self, _: Request<Empty>) -> Result<Response<Self::ListActionsStream>, Status> {
        Err(Status::unimplemented(""))
    }
}

struct NotifyOnDrop(Arc<Notify>);

impl Drop for NotifyOnDrop {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

struct Connection(TlsStream<TcpStream>);

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// Rows of a stream, in the order in which they came.
pub async fn values(stream: impl Stream<Item = drsdb_client::Result<RecordBatch>>) -> drsdb_client::Result<Vec<i64>> {
    let batches: Vec<RecordBatch> = stream.try_collect().await?;
    let values = batches
        .iter()
        .flat_map(|batch| batch.column(0).as_any().downcast_ref::<Int64Array>().unwrap().values().to_vec());
    Ok(values.collect())
}

/// Notes how a load ended, also when its call is dropped.
struct LoadEnded {
    script: Arc<Script>,
    rows: usize,
    clean: bool,
}

impl Drop for LoadEnded {
    fn drop(&mut self) {
        self.script.loads.lock().push((self.rows, self.clean));
        self.script.load_ended.notify_one();
    }
}
