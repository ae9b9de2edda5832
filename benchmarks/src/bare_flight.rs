//! The yardstick of result transfer: Arrow Flight over TLS 1.3 with nothing around it.
//!
//! A server process holds a table in memory as Arrow batches and sends them in as many streams as asked, each over a
//! connection of its own, uncompressed, with the client's usual HTTP/2 windows; the client decodes them to batches.

use std::{
    io::{Read, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    pin::Pin,
    process::Stdio,
    sync::Arc,
    task::{self, Poll},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use arrow::{
    compute::cast,
    datatypes::{DataType, Field, Schema, SchemaRef},
    record_batch::RecordBatch,
};
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightClient, FlightData, FlightDescriptor, FlightInfo, HandshakeRequest,
    HandshakeResponse, PollInfo, PutResult, SchemaResult, Ticket,
    encode::FlightDataEncoderBuilder,
    error::FlightError,
    flight_service_client::FlightServiceClient,
    flight_service_server::{FlightService, FlightServiceServer},
};
use futures::{StreamExt, TryStreamExt, future::try_join_all, stream::BoxStream};
use hyper_util::rt::TokioIo;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncWrite, BufReader, ReadBuf},
    net::{TcpListener, TcpStream},
    process::{Child, ChildStdin, Command},
    task::JoinSet,
};
use tokio_rustls::{
    TlsAcceptor, TlsConnector,
    rustls::{
        ClientConfig, RootCertStore, ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName},
        version::TLS13,
    },
    server::TlsStream,
};
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Channel, Endpoint, Server, server::Connected},
};

/// Rows of a batch of lineitem that is a little below the 2 MiB of a message.
const BATCH_ROWS: usize = 8192;
const MESSAGE_BYTES: usize = 2 * 1024 * 1024;
/// The receive windows of drsdb's client.
const WINDOW_BYTES: u32 = 8 << 20;

/// What the server process is told.
#[derive(Debug, clap::Args)]
pub struct ServerArguments {
    /// The Parquet file to serve.
    #[arg(long)]
    file: PathBuf,
    /// Streams to cut it into.
    #[arg(long)]
    streams: usize,
}

/// What the server process says when it is ready.
#[derive(Serialize, Deserialize)]
struct Ready {
    address: SocketAddr,
    certificate: Vec<u8>,
}

/// What a pull of all streams gave.
#[derive(Debug, Clone, Copy)]
pub struct Pulled {
    /// From the first request to the last row.
    pub elapsed: Duration,
    /// Rows.
    pub rows: u64,
    /// Bytes of the decoded values.
    pub bytes: u64,
}

/// The server process, seen from the client.
pub struct BareServer {
    child: Child,
    // Held open: the server ends when its standard input does.
    stdin: ChildStdin,
    connections: Vec<Channel>,
}

impl BareServer {
    /// Starts it over `file`, and connects once for each stream.
    pub async fn start(file: &Path, streams: usize) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe().context("cannot find this program's own file")?)
            .arg("flight-server")
            .arg("--file")
            .arg(file)
            .args(["--streams", &streams.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("cannot start the bare Flight server")?;
        let stdin = child.stdin.take().expect("standard input is piped");
        let stdout = child.stdout.take().expect("standard output is piped");
        let line = BufReader::new(stdout).lines().next_line().await?.context("the bare Flight server ended at once")?;
        let ready: Ready = serde_json::from_str(&line).context("the bare Flight server's first line")?;
        let connections = try_join_all((0..streams).map(|_| connect(&ready))).await?;
        Ok(Self { child, stdin, connections })
    }

    /// Pulls every stream at once, each in a task of its own, so that decoding uses every core as in drsdb's client.
    pub async fn pull(&self) -> Result<Pulled> {
        let started = Instant::now();
        let mut pulls = JoinSet::new();
        for (stream, channel) in self.connections.iter().cloned().enumerate() {
            pulls.spawn(pull_stream(channel, stream));
        }
        let (mut rows, mut bytes) = (0, 0);
        while let Some(part) = pulls.join_next().await {
            let part = part.context("a pull panicked")??;
            rows += part.0;
            bytes += part.1;
        }
        Ok(Pulled { elapsed: started.elapsed(), rows, bytes })
    }

    /// Ends it.
    pub async fn stop(mut self) -> Result<()> {
        drop(self.stdin);
        let status = self.child.wait().await?;
        anyhow::ensure!(status.success(), "the bare Flight server ended with {status}");
        Ok(())
    }
}

/// Rows and bytes of one stream.
async fn pull_stream(channel: Channel, stream: usize) -> Result<(u64, u64)> {
    let inner = FlightServiceClient::new(channel).max_decoding_message_size(16 * MESSAGE_BYTES);
    let mut batches = FlightClient::new_from_inner(inner).do_get(Ticket::new(stream.to_string())).await?;
    let (mut rows, mut bytes) = (0, 0);
    while let Some(batch) = batches.try_next().await? {
        rows += batch.num_rows() as u64;
        bytes += value_bytes(&batch);
    }
    Ok((rows, bytes))
}

/// Bytes of a batch's values, without what its buffers hold beyond them.
pub fn value_bytes(batch: &RecordBatch) -> u64 {
    let columns = batch.columns().iter();
    columns.map(|column| column.to_data().get_slice_memory_size().unwrap_or(0) as u64).sum()
}

async fn connect(ready: &Ready) -> Result<Channel> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(ready.certificate.clone()))?;
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = TlsConnector::from(Arc::new(config));
    let address = ready.address;
    let connect = tower::service_fn(move |_| {
        let connector = connector.clone();
        async move {
            let tcp = TcpStream::connect(address).await?;
            tcp.set_nodelay(true)?;
            let name = ServerName::try_from("localhost").expect("the name is a constant that parses");
            Ok::<_, std::io::Error>(TokioIo::new(connector.connect(name, tcp).await?))
        }
    });
    Ok(Endpoint::from_shared(format!("http://{address}"))?
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .connect_with_connector(connect)
        .await?)
}

/// The server process: serves until standard input ends.
pub async fn serve(arguments: ServerArguments) -> Result<()> {
    let streams = read_streams(&arguments.file, arguments.streams)?;
    let rcgen::CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_single_cert(
            vec![cert.der().clone()],
            PrivateKeyDer::try_from(signing_key.serialize_der()).map_err(|error| anyhow::anyhow!(error))?,
        )?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let ready = Ready { address: listener.local_addr()?, certificate: cert.der().to_vec() };
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let connections = futures::stream::try_unfold((listener, acceptor), |(listener, acceptor)| async move {
        let (tcp, _) = listener.accept().await?;
        tcp.set_nodelay(true)?;
        let connection = Connection(acceptor.accept(tcp).await?);
        Ok::<_, std::io::Error>(Some((connection, (listener, acceptor))))
    });
    {
        let mut output = std::io::stdout().lock();
        writeln!(output, "{}", serde_json::to_string(&ready)?)?;
        output.flush()?;
    }
    let (stopped, stop) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        // Nothing is ever written there: reading ends when the other side is gone. Then nobody waits for an answer.
        let _ = std::io::stdin().lock().read(&mut [0]);
        let _ = stopped.send(());
    });
    let server = Server::builder()
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .add_service(FlightServiceServer::new(BareService { streams }))
        .serve_with_incoming(connections);
    tokio::select! {
        result = server => result.context("the bare Flight server failed"),
        _ = stop => Ok(()),
    }
}

/// Reads a Parquet file as plain Arrow, dealt out batch by batch.
fn read_streams(file: &Path, streams: usize) -> Result<Vec<(SchemaRef, Vec<RecordBatch>)>> {
    anyhow::ensure!(streams > 0, "there must be at least one stream");
    let open = std::fs::File::open(file).with_context(|| format!("cannot open {}", file.display()))?;
    let reader = ParquetRecordBatchReaderBuilder::try_new(open)?.with_batch_size(BATCH_ROWS).build()?;
    let mut dealt = vec![Vec::new(); streams];
    let mut plain_schema = None;
    for (number, batch) in reader.enumerate() {
        let batch = plain(&batch?)?;
        plain_schema.get_or_insert_with(|| batch.schema());
        dealt[number % streams].push(batch);
    }
    let Some(schema) = plain_schema else { bail!("{} has no rows", file.display()) };
    Ok(dealt.into_iter().map(|batches| (Arc::clone(&schema), batches)).collect())
}

fn plain(batch: &RecordBatch) -> Result<RecordBatch> {
    let schema = batch.schema();
    let fields = schema.fields().iter().map(|field| match field.data_type() {
        DataType::Utf8View => Field::new(field.name(), DataType::Utf8, field.is_nullable()),
        _ => field.as_ref().clone(),
    });
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    let columns = batch.columns().iter().zip(schema.fields());
    let columns = columns.map(|(column, field)| cast(column, field.data_type())).collect::<Result<_, _>>()?;
    Ok(RecordBatch::try_new(schema, columns)?)
}

struct BareService {
    streams: Vec<(SchemaRef, Vec<RecordBatch>)>,
}

fn not_here<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("the bare server only sends its streams"))
}

#[tonic::async_trait]
impl FlightService for BareService {
    type HandshakeStream = BoxStream<'static, Result<HandshakeResponse, Status>>;
    type ListFlightsStream = BoxStream<'static, Result<FlightInfo, Status>>;
    type DoGetStream = BoxStream<'static, Result<FlightData, Status>>;
    type DoPutStream = BoxStream<'static, Result<PutResult, Status>>;
    type DoExchangeStream = BoxStream<'static, Result<FlightData, Status>>;
    type DoActionStream = BoxStream<'static, Result<arrow_flight::Result, Status>>;
    type ListActionsStream = BoxStream<'static, Result<ActionType, Status>>;

    async fn do_get(&self, request: Request<Ticket>) -> Result<Response<Self::DoGetStream>, Status> {
        let ticket = request.into_inner().ticket;
        let stream = std::str::from_utf8(&ticket).ok().and_then(|text| text.parse::<usize>().ok());
        let stream = stream.and_then(|stream| self.streams.get(stream));
        let (schema, batches) = stream.ok_or_else(|| Status::not_found("no such stream"))?.clone();
        let batches = futures::stream::iter(batches.into_iter().map(Ok::<_, FlightError>));
        let encoded = FlightDataEncoderBuilder::new()
            .with_schema(schema)
            .with_max_flight_data_size(MESSAGE_BYTES)
            .build(batches)
            .map_err(Status::from);
        Ok(Response::new(encoded.boxed()))
    }

    async fn handshake(
        &self,
        _: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<Self::HandshakeStream>, Status> {
        not_here()
    }

    async fn list_flights(&self, _: Request<Criteria>) -> Result<Response<Self::ListFlightsStream>, Status> {
        not_here()
    }

    async fn get_flight_info(&self, _: Request<FlightDescriptor>) -> Result<Response<FlightInfo>, Status> {
        not_here()
    }

    async fn poll_flight_info(&self, _: Request<FlightDescriptor>) -> Result<Response<PollInfo>, Status> {
        not_here()
    }

    async fn get_schema(&self, _: Request<FlightDescriptor>) -> Result<Response<SchemaResult>, Status> {
        not_here()
    }

    async fn do_put(&self, _: Request<Streaming<FlightData>>) -> Result<Response<Self::DoPutStream>, Status> {
        not_here()
    }

    async fn do_exchange(&self, _: Request<Streaming<FlightData>>) -> Result<Response<Self::DoExchangeStream>, Status> {
        not_here()
    }

    async fn do_action(&self, _: Request<Action>) -> Result<Response<Self::DoActionStream>, Status> {
        not_here()
    }

    async fn list_actions(&self, _: Request<Empty>) -> Result<Response<Self::ListActionsStream>, Status> {
        not_here()
    }
}

/// An accepted connection, in the form that tonic's server takes.
struct Connection(TlsStream<TcpStream>);

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) -> Self::ConnectInfo {}
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut task::Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut task::Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
        slices: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }
}
