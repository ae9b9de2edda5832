//! Bulk loads: a stream of batches becomes one transaction.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use arrow_flight::{
    FlightData, FlightDescriptor,
    encode::FlightDataEncoderBuilder,
    error::FlightError,
    sql::{CommandStatementIngest, ProstMessageExt, TableDefinitionOptions, TableExistsOption, TableNotExistOption},
};
use bytes::Bytes;
use drsdb_proto::{ErrorCode, WireError, ids::new_ulid};
use futures::{FutureExt, Stream, StreamExt, TryStreamExt, stream};
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::{Notify, oneshot};
use tonic::{Status, metadata::MetadataMap};
use url::Url;

use crate::{Client, Error, Result, WriteResult, calls::answer_of, error::Failure, route::Kind};

/// What to do about the table of a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IngestMode {
    /// It must exist.
    #[default]
    Append,
    /// It must not exist: it is created with the columns of the batches.
    Create,
    /// It is created if it does not exist.
    CreateAppend,
    /// It is dropped if it exists, then created.
    Replace,
}

/// Options of a load.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IngestOptions {
    /// What to do about the table.
    pub mode: IngestMode,
    /// The table's schema; none: `public`.
    pub schema: Option<String>,
}

pub(crate) type Batches = Pin<Box<dyn Stream<Item = Result<RecordBatch>> + Send>>;

impl Client {
    /// Loads `batches` into `table`, matching columns by name: all of it or nothing, as one transaction or as a part of
    /// the one that is open. An error of the stream aborts the load. A stream cannot be sent twice: when the answer is
    /// lost, the outcome is unknown; [`Client::ingest_batches`] has a known one.
    pub async fn ingest<S, E>(
        &self,
        table: &str,
        schema: SchemaRef,
        batches: S,
        options: IngestOptions,
    ) -> Result<WriteResult>
    where
        S: Stream<Item = Result<RecordBatch, E>> + Send + 'static,
        E: Into<Error> + 'static,
    {
        let batches: Batches = Box::pin(batches.map_err(Into::into));
        let source = Arc::new(Source { batches: Mutex::new(batches), begun: AtomicBool::new(false) });
        let command = self.ingest_command(table, options);
        self.load(&command, schema, || source.attempt(), Kind::Single(new_ulid())).await
    }

    /// Loads batches that are in memory, as [`Client::ingest`] does. When the answer is lost, they are sent again, and
    /// loaded once.
    pub async fn ingest_batches(
        &self,
        table: &str,
        schema: SchemaRef,
        batches: Vec<RecordBatch>,
        options: IngestOptions,
    ) -> Result<WriteResult> {
        let attempt = || -> Result<Batches> { Ok(Box::pin(stream::iter(batches.clone()).map(Ok))) };
        let command = self.ingest_command(table, options);
        self.load(&command, schema, attempt, Kind::write()).await
    }

    fn ingest_command(&self, table: &str, options: IngestOptions) -> CommandStatementIngest {
        use TableExistsOption::{Append, Fail as FailIfThere, Replace};
        use TableNotExistOption::{Create, Fail as FailIfMissing};
        let (if_not_exist, if_exists) = match options.mode {
            IngestMode::Append => (FailIfMissing, Append),
            IngestMode::Create => (Create, FailIfThere),
            IngestMode::CreateAppend => (Create, Append),
            IngestMode::Replace => (Create, Replace),
        };
        CommandStatementIngest {
            table_definition_options: Some(TableDefinitionOptions {
                if_not_exist: if_not_exist.into(),
                if_exists: if_exists.into(),
            }),
            table: table.to_owned(),
            schema: options.schema,
            catalog: None,
            temporary: false,
            transaction_id: self.transaction_id(),
            options: Default::default(),
        }
    }

    async fn load(
        &self,
        command: &CommandStatementIngest,
        schema: SchemaRef,
        attempt: impl Fn() -> Result<Batches>,
        kind: Kind,
    ) -> Result<WriteResult> {
        let (_, metadata) = self.put_stream(command, schema, attempt, kind).await?;
        let result = WriteResult::decode(&metadata);
        self.has_seen(result.version);
        Ok(result)
    }

    /// DoPut of the stream that `attempt` gives; the answer's metadata. `attempt` is called once for each server that
    /// is tried, and may refuse.
    pub(crate) async fn put_stream<M: ProstMessageExt>(
        &self,
        command: &M,
        schema: SchemaRef,
        attempt: impl Fn() -> Result<Batches>,
        kind: Kind,
    ) -> Result<(Url, Bytes)> {
        let descriptor = FlightDescriptor::new_cmd(command.as_any().encode_to_vec());
        let route = self.route(kind)?;
        let (server, answer) = self
            .call(&route, |mut flight, request| {
                let upload = attempt().map(|batches| {
                    let batches = batches.map_err(|error| FlightError::ExternalError(Box::new(error)));
                    let encoder = FlightDataEncoderBuilder::new()
                        .with_schema(schema.clone())
                        .with_flight_descriptor(Some(descriptor.clone()))
                        .build(batches);
                    Upload::new(encoder)
                });
                async move {
                    let (upload, control) = match upload {
                        Ok(upload) => upload,
                        Err(error) => return Ok((MetadataMap::new(), Err(error))),
                    };
                    // A task of its own: when the caller goes away, it still has to tell the server.
                    let given_up = control.given_up.clone();
                    let exchange = tokio::spawn(async move {
                        let exchange = async {
                            let (metadata, mut answers) = answer_of(flight.do_put(request.map(|()| upload)).await?);
                            let mut last = None;
                            while let Some(answer) = answers.message().await? {
                                last = Some(answer.app_metadata);
                            }
                            Ok::<_, Status>((metadata, last))
                        };
                        tokio::select! {
                            answer = exchange => answer,
                            () = overdue(&given_up) => Err(Status::cancelled("the upload was given up")),
                        }
                    });
                    let answer = exchange.await.unwrap_or_else(|panic| Err(Status::internal(panic.to_string())));
                    if let Some(error) = control.error.lock().take() {
                        return Ok((MetadataMap::new(), Err(error)));
                    }
                    answer.map(|(metadata, last)| (metadata, Ok(last)))
                }
            })
            .await?;
        match answer? {
            Some(metadata) => Ok((server, metadata)),
            None => Err(Failure::broken_data("no answer to a load", &server).error),
        }
    }
}

/// The caller's stream. It can be read once: an attempt that read of it is the last one.
struct Source {
    batches: Mutex<Batches>,
    begun: AtomicBool,
}

impl Source {
    fn attempt(self: &Arc<Self>) -> Result<Batches> {
        if self.begun.load(Ordering::Acquire) {
            // A second attempt would load the rest and call it all.
            return Err(WireError::new(ErrorCode::Unavailable, "the load was refused after it had begun")
                .with_hint("nothing of it is visible: run it again")
                .into());
        }
        Ok(Box::pin(Attempt(self.clone())))
    }
}

/// The source's stream for one attempt.
struct Attempt(Arc<Source>);

impl Stream for Attempt {
    type Item = Result<RecordBatch>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.begun.store(true, Ordering::Release);
        self.0.batches.lock().poll_next_unpin(cx)
    }
}

/// How long a server may take to answer an upload that was given up.
const GIVE_UP_TIMEOUT: Duration = Duration::from_secs(10);

/// What no server can take for data: its header is not Arrow's.
const GIVE_UP_HEADER: &[u8] = b"\xff\xff\xff\xff the sender gave up";

/// The request body.
///
/// An upload must never look finished when it is not, or the server would commit what it has. Ending the stream says
/// "finished", and so, to a server of the same libraries, does resetting it: HTTP/2's CANCEL arrives there as a plain
/// end. So an upload that fails, or whose caller goes away, sends a message that cannot be read, and waits for the
/// error that it causes.
struct Upload {
    data: Pin<Box<dyn Stream<Item = Result<FlightData, FlightError>> + Send>>,
    error: Arc<Mutex<Option<Error>>>,
    given_up: Arc<Notify>,
    /// Resolves when the caller is gone.
    caller: oneshot::Receiver<()>,
    state: UploadState,
}

#[derive(PartialEq, Eq)]
enum UploadState {
    Sending,
    Finished,
    GivenUp,
}

/// The caller's side of an upload; dropping it gives an unfinished one up.
struct UploadControl {
    /// Why the data ended early.
    error: Arc<Mutex<Option<Error>>>,
    given_up: Arc<Notify>,
    _alive: oneshot::Sender<()>,
}

impl Upload {
    fn new(data: impl Stream<Item = Result<FlightData, FlightError>> + Send + 'static) -> (Upload, UploadControl) {
        let (alive, caller) = oneshot::channel();
        let (error, given_up) = (Arc::new(Mutex::new(None)), Arc::new(Notify::new()));
        let control = UploadControl { error: error.clone(), given_up: given_up.clone(), _alive: alive };
        (Upload { data: Box::pin(data), error, given_up, caller, state: UploadState::Sending }, control)
    }

    fn give_up(&mut self) -> FlightData {
        self.state = UploadState::GivenUp;
        self.given_up.notify_one();
        FlightData::new().with_data_header(GIVE_UP_HEADER)
    }
}

impl Stream for Upload {
    type Item = FlightData;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<FlightData>> {
        match self.state {
            UploadState::Sending => {}
            UploadState::Finished => return Poll::Ready(None),
            // Open until the server has answered.
            UploadState::GivenUp => return Poll::Pending,
        }
        if self.caller.poll_unpin(cx).is_ready() {
            return Poll::Ready(Some(self.give_up()));
        }
        match self.data.poll_next_unpin(cx) {
            Poll::Ready(Some(Err(error))) => {
                *self.error.lock() = Some(input_error(error));
                Poll::Ready(Some(self.give_up()))
            }
            Poll::Ready(Some(Ok(data))) => Poll::Ready(Some(data)),
            Poll::Ready(None) => {
                self.state = UploadState::Finished;
                Poll::Ready(None)
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

/// Returns when an upload was given up and its server has had its time.
async fn overdue(given_up: &Notify) {
    given_up.notified().await;
    let never = std::future::pending::<()>();
    let _ = tokio::time::timeout(GIVE_UP_TIMEOUT, never).await;
}

fn input_error(error: FlightError) -> Error {
    match error {
        FlightError::ExternalError(inner) => match inner.downcast::<Error>() {
            Ok(error) => *error,
            Err(other) => Error::new(ErrorCode::InvalidValue, other.to_string()),
        },
        other => Error::new(ErrorCode::InvalidArgument, format!("the batches cannot be encoded: {other}")),
    }
}
