//! Rows that the index server needs itself. For those of a query it is a client like any other: it takes the tickets to the
//! storage servers, with a token for the user in whose name it asks. Those of a lookup it asks for as a server.

use std::{io::Cursor, sync::Arc};

use arrow::{array::RecordBatch, ipc::reader::StreamReader};
use arrow_flight::{
    Ticket, decode::FlightRecordBatchStream, error::FlightError, flight_service_client::FlightServiceClient,
};
use drsdb_core::{
    Error, ErrorCode, Result,
    edge::{EdgeConverter, edge_schema},
    net::{ChannelPool, name_server},
    v1::{LookupRequest, storage_client::StorageClient},
};
use futures::{Stream, StreamExt, TryStreamExt, stream, stream::BoxStream};
use tonic::Request;
use url::Url;

use crate::planner::{LookupCall, PlannedEndpoint};

/// The largest message that is accepted; servers send about 2 MiB.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// Pulls all endpoints, side by side. Rows come as fast as they are taken.
pub fn pull(
    channels: Arc<ChannelPool>,
    token: String,
    endpoints: Vec<PlannedEndpoint>,
) -> BoxStream<'static, Result<RecordBatch>> {
    let streams = stream::iter(endpoints).map(move |endpoint| {
        let (channels, token) = (Arc::clone(&channels), token.clone());
        stream::once(async move { open(&channels, &token, endpoint).await }).try_flatten().boxed()
    });
    streams.flatten_unordered(None).boxed()
}

/// Opens an endpoint at the first of its locations that answers.
async fn open(
    channels: &ChannelPool,
    token: &str,
    endpoint: PlannedEndpoint,
) -> Result<impl Stream<Item = Result<RecordBatch>> + Send + use<>> {
    let mut last = Error::internal("an endpoint without locations");
    for location in &endpoint.locations {
        let url = Url::parse(location)
            .map_err(|error| Error::internal(format!("a plan names the server {location}: {error}")))?;
        let mut client = FlightServiceClient::new(channels.channel(&url)?).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let mut request = Request::new(Ticket::new(endpoint.ticket.clone()));
        let header = format!("Bearer {token}").parse().map_err(|_| Error::internal("a token that is no header"))?;
        request.metadata_mut().insert("authorization", header);
        match client.do_get(request).await {
            Ok(answer) => {
                let messages = answer.into_inner().map_err(|status| FlightError::Tonic(Box::new(status)));
                let rows = FlightRecordBatchStream::new_from_flight_data(messages);
                return Ok(rows.map_err(move |error| match error {
                    FlightError::Tonic(status) => name_server(*status, &url),
                    other => Error::internal(format!("rows of {url} cannot be read: {other}")),
                }));
            }
            Err(status) => {
                last = name_server(status, &url);
                if last.code() != ErrorCode::Unavailable {
                    return Err(last);
                }
                tracing::debug!(error = %last, "a location of an endpoint does not answer");
            }
        }
    }
    Err(last)
}

/// Asks the first of a lookup's servers that answers for all of its rows.
pub async fn look_up(channels: &ChannelPool, call: LookupCall) -> Result<Vec<RecordBatch>> {
    let converter = EdgeConverter::new(&call.schema, edge_schema(&call.schema))?;
    let mut last = Error::internal("a lookup that nobody can answer");
    for (id, url) in call.servers {
        let request = LookupRequest { server_id: id.to_string(), ..call.request.clone() };
        match ask(channels, &url, request).await {
            Ok(batches) => return batches.iter().map(|batch| converter.convert(batch)).collect(),
            Err(error) if error.code() == ErrorCode::Unavailable => {
                tracing::debug!(%error, "a server of a lookup does not answer");
                last = error;
            }
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

async fn ask(channels: &ChannelPool, url: &Url, request: LookupRequest) -> Result<Vec<RecordBatch>> {
    let mut client = StorageClient::new(channels.channel(url)?).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let mut messages = client.lookup(request).await.map_err(|status| name_server(status, url))?.into_inner();
    let mut batches = Vec::new();
    while let Some(message) = messages.message().await.map_err(|status| name_server(status, url))? {
        for batch in StreamReader::try_new(Cursor::new(message.batch), None)? {
            batches.push(batch?);
        }
    }
    Ok(batches)
}
