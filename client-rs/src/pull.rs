//! Pulls one endpoint of a result from a storage server into the stream's buffer.

use std::{sync::Arc, time::Instant};

use arrow::{
    array::{Array, RecordBatch},
    datatypes::{Schema, SchemaRef},
};
use arrow_flight::{
    FlightEndpoint, Ticket,
    decode::{DecodedPayload, FlightDataDecoder},
    error::FlightError,
};
use drsdb_proto::{ErrorCode, WireError};
use futures::{StreamExt, TryStreamExt};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc::UnboundedSender};
use tonic::Request;
use url::Url;

use crate::{
    Client, EndpointStatistics, Error, Result,
    error::{Failure, FailureKind, name_of},
    failover::{Failover, Verdict},
    options::check_server,
    session::Authorization,
};

/// The buffer is counted in units of this many bytes: semaphores count in `u32`.
pub(crate) const BUFFER_UNIT_BYTES: usize = 1024;

/// What a pull tells the stream. Every pull's last word is `Finished` or `Failed`.
pub(crate) enum Delivery {
    Batch(RecordBatch, OwnedSemaphorePermit),
    Finished,
    Failed(Error),
}

/// One endpoint's pull.
pub(crate) struct Pull {
    pub client: Client,
    pub number: usize,
    pub ticket: Ticket,
    pub locations: Vec<Url>,
    pub schema: SchemaRef,
    pub deliveries: UnboundedSender<Delivery>,
    /// Room in the buffer, and all of it.
    pub room: Arc<Semaphore>,
    pub room_units: u32,
    pub statistics: Arc<Mutex<Vec<EndpointStatistics>>>,
}

/// The servers that an endpoint names; without any, the index server that answered.
pub(crate) fn locations(endpoint: &FlightEndpoint, answered_by: &Url) -> Result<Vec<Url>> {
    if endpoint.location.is_empty() {
        return Ok(vec![answered_by.clone()]);
    }
    let parse = |text: &str| {
        if text.starts_with("arrow-flight-reuse-connection:") {
            return Ok(answered_by.clone());
        }
        let https = text.strip_prefix("grpc+tls://").map(|rest| format!("https://{rest}"));
        let text = https.as_deref().unwrap_or(text);
        let url = Url::parse(text)
            .map_err(|error| Failure::broken_data(&format!("{text:?} as a location: {error}"), answered_by).error)?;
        check_server(&url).map(|()| url)
    };
    endpoint.location.iter().map(|location| parse(&location.uri)).collect()
}

impl Pull {
    /// Pulls to the end, over as many locations as it takes, and says its last word.
    pub async fn run(self) {
        let started = Instant::now();
        let last_word = match self.pull().await {
            Ok(()) => Delivery::Finished,
            Err(error) => Delivery::Failed(error),
        };
        self.statistics.lock()[self.number].elapsed = started.elapsed();
        // The stream may be gone: then nobody waits for the word.
        let _ = self.deliveries.send(last_word);
    }

    async fn pull(&self) -> Result<()> {
        let mut failover = Failover::new(self.locations.len());
        let mut causes: Vec<Error> = Vec::new();
        let mut position = 0;
        loop {
            let server = self.locations[position].clone();
            self.statistics.lock()[self.number].server = name_of(&server);
            let authorization = self.client.authorization().await?;
            let failure = match self.pull_from(&server, &authorization, &mut failover).await {
                Ok(()) => return Ok(()),
                Err(failure) => failure,
            };
            let verdict = failover.failed(failure.kind, failure.error.code());
            tracing::debug!(server = %server, error = %failure.error, ?verdict, "pull failed");
            match verdict {
                Verdict::Ask(next) => {
                    causes.push(failure.error);
                    position = next;
                    self.statistics.lock()[self.number].servers_asked = failover.asked();
                }
                Verdict::LogInAndAsk(same) if self.client.inner.session.refused(&authorization) => position = same,
                Verdict::LogInAndAsk(_) => return Err(final_error(failure, causes)),
                Verdict::Fail => return Err(final_error(failure, causes)),
            }
        }
    }

    async fn pull_from(
        &self,
        server: &Url,
        authorization: &Authorization,
        failover: &mut Failover,
    ) -> Result<(), Failure> {
        let flight = self.client.inner.channels.flight(server);
        let mut flight = flight.map_err(|error| Failure { kind: FailureKind::Answered, error })?;
        let mut request = Request::new(self.ticket.clone());
        authorization.apply(&mut request);
        let response = flight.do_get(request).await.map_err(|status| Failure::of_status(status, server))?;
        let stream = response.into_inner().map_err(|status| FlightError::Tonic(Box::new(status)));
        let mut decoder = FlightDataDecoder::new(stream);
        let mut seen_schema = false;
        while let Some(message) = decoder.next().await {
            let message = message.map_err(|error| Failure::of_flight(error, server))?;
            let wire_bytes = message.inner.data_header.len() + message.inner.data_body.len();
            self.statistics.lock()[self.number].bytes += wire_bytes as u64;
            match message.payload {
                DecodedPayload::Schema(schema) if !seen_schema => {
                    seen_schema = true;
                    self.check_schema(&schema, server)?;
                }
                DecodedPayload::Schema(_) => return Err(Failure::broken_data("a second schema", server)),
                DecodedPayload::RecordBatch(batch) => self.deliver(batch, server, failover).await?,
                DecodedPayload::None => {}
            }
        }
        if seen_schema { Ok(()) } else { Err(Failure::broken_data("a result without a schema", server)) }
    }

    /// Every endpoint has the columns that the index server promised; metadata may differ.
    fn check_schema(&self, schema: &Schema, server: &Url) -> Result<(), Failure> {
        let same = schema.fields().len() == self.schema.fields().len()
            && schema
                .fields()
                .iter()
                .zip(self.schema.fields())
                .all(|(one, other)| one.name() == other.name() && one.data_type() == other.data_type());
        if same {
            return Ok(());
        }
        let what = format!("columns [{}] where [{}] was promised", columns(schema), columns(&self.schema));
        Err(Failure::broken_data(&what, server))
    }

    async fn deliver(&self, batch: RecordBatch, server: &Url, failover: &mut Failover) -> Result<(), Failure> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        // Types were compared with the schema; what can still be wrong is a NULL in a column that was promised without.
        let batch =
            batch.with_schema(self.schema.clone()).map_err(|error| Failure::broken_data(&error.to_string(), server))?;
        {
            let mut statistics = self.statistics.lock();
            statistics[self.number].rows += batch.num_rows() as u64;
            statistics[self.number].batches += 1;
        }
        // A batch larger than the whole buffer takes all of it.
        let units = memory_bytes(&batch).div_ceil(BUFFER_UNIT_BYTES).clamp(1, self.room_units as usize) as u32;
        let permit = self.room.clone().acquire_many_owned(units).await.expect("the semaphore is never closed");
        failover.handed_out();
        // The stream may be gone: then this task is about to be aborted.
        let _ = self.deliveries.send(Delivery::Batch(batch, permit));
        Ok(())
    }
}

fn columns(schema: &Schema) -> String {
    let columns: Vec<String> =
        schema.fields().iter().map(|field| format!("{} {}", field.name(), field.data_type())).collect();
    columns.join(", ")
}

fn memory_bytes(batch: &RecordBatch) -> usize {
    batch.columns().iter().map(|column| column.to_data().get_slice_memory_size().unwrap_or(0)).sum()
}

/// The last failure, with the earlier ones that led to it.
fn final_error(failure: Failure, causes: Vec<Error>) -> Error {
    if causes.is_empty() {
        return failure.error;
    }
    let mut wire: WireError = failure.error.wire().clone();
    let earlier: Vec<&str> = causes.iter().map(Error::message).collect();
    if wire.code == ErrorCode::Unavailable {
        wire.message =
            format!("no server of this part of the result answers: {}; {}", earlier.join("; "), wire.message);
    }
    wire.into()
}
