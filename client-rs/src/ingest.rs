//! Bulk loads: a stream of batches becomes one transaction.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use arrow_flight::{
    FlightData, FlightDescriptor,
    encode::FlightDataEncoderBuilder,
    error::FlightError,
    sql::{CommandStatementIngest, ProstMessageExt, TableDefinitionOptions, TableExistsOption, TableNotExistOption},
};
use bytes::Bytes;
use drsdb_proto::{ErrorCode, WireError};
use futures::{Stream, StreamExt, TryStreamExt};
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::oneshot;
use tonic::{Status, metadata::MetadataMap};
use url::Url;

use crate::{
    Client, Error, Result, WriteResult,
    client::{Repeatable, answer_of},
    error::Failure,
};

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
    /// Loads `batches` into `table`, matching columns by name, as one transaction: all of it or nothing. An error of
    /// the stream aborts the load.
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
        use TableExistsOption::{Append, Fail as FailIfThere, Replace};
        use TableNotExistOption::{Create, Fail as FailIfMissing};
        let (if_not_exist, if_exists) = match options.mode {
            IngestMode::Append => (FailIfMissing, Append),
            IngestMode::Create => (Create, FailIfThere),
            IngestMode::CreateAppend => (Create, Append),
            IngestMode::Replace => (Create, Replace),
        };
        let command = CommandStatementIngest {
            table_definition_options: Some(TableDefinitionOptions {
                if_not_exist: if_not_exist.into(),
                if_exists: if_exists.into(),
            }),
            table: table.to_owned(),
            schema: options.schema,
            catalog: None,
            temporary: false,
            transaction_id: None,
            options: Default::default(),
        };
        let batches: Batches = Box::pin(batches.map_err(Into::into));
        let source = Arc::new(Source { batches: Mutex::new(batches), begun: AtomicBool::new(false) });
        let attempt = || source.attempt();
        let (_, metadata) = self.put_stream(&command, schema, attempt, Repeatable::No).await?;
        Ok(WriteResult::decode(&metadata))
    }

    /// DoPut of the stream that `attempt` gives; the answer's metadata. `attempt` is called once for each server that
    /// is tried, and may refuse.
    pub(crate) async fn put_stream<M: ProstMessageExt>(
        &self,
        command: &M,
        schema: SchemaRef,
        attempt: impl Fn() -> Result<Batches>,
        repeatable: Repeatable,
    ) -> Result<(Url, Bytes)> {
        let descriptor = FlightDescriptor::new_cmd(command.as_any().encode_to_vec());
        let (server, answer) = self
            .call(repeatable, |mut flight, request| {
                let (report, failed) = oneshot::channel();
                let upload = attempt().map(|batches| {
                    let batches = batches.map_err(|error| FlightError::ExternalError(Box::new(error)));
                    let encoder = FlightDataEncoderBuilder::new()
                        .with_schema(schema.clone())
                        .with_flight_descriptor(Some(descriptor.clone()))
                        .build(batches);
                    Upload { data: Box::pin(encoder), report: Some(report) }
                });
                async move {
                    let upload = match upload {
                        Ok(upload) => upload,
                        Err(error) => return Ok((MetadataMap::new(), Err(error))),
                    };
                    let exchange = async {
                        let (metadata, mut answers) = answer_of(flight.do_put(request.map(|()| upload)).await?);
                        let mut last = None;
                        while let Some(answer) = answers.message().await? {
                            last = Some(answer.app_metadata);
                        }
                        Ok::<_, Status>((metadata, Ok(last)))
                    };
                    tokio::select! {
                        biased;
                        Ok(error) = failed => Ok((MetadataMap::new(), Err(error))),
                        answer = exchange => answer,
                    }
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

/// The request body. Where the data has an error it never ends: an end would tell the server to commit what it has.
/// The call is dropped instead, which resets the stream.
struct Upload {
    data: Pin<Box<dyn Stream<Item = Result<FlightData, FlightError>> + Send>>,
    report: Option<oneshot::Sender<Error>>,
}

impl Stream for Upload {
    type Item = FlightData;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<FlightData>> {
        if self.report.is_none() {
            return Poll::Pending;
        }
        match self.data.poll_next_unpin(cx) {
            Poll::Ready(Some(Err(error))) => {
                if let Some(report) = self.report.take() {
                    let _ = report.send(input_error(error));
                }
                Poll::Pending
            }
            Poll::Ready(Some(Ok(data))) => Poll::Ready(Some(data)),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    }
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
