//! The storage server's Flight service: DoGet, and a clear answer to everything else.

use std::{fmt, pin::Pin, sync::Arc};

use arrow_flight::{
    Action, ActionType, CancelFlightInfoRequest, CancelFlightInfoResult, CancelStatus, Criteria, Empty, FlightData,
    FlightDescriptor, FlightInfo, HandshakeRequest, HandshakeResponse, PollInfo, PutResult, SchemaResult, Ticket,
    encode::FlightDataEncoderBuilder, error::FlightError, flight_service_server::FlightService,
};
use drsdb_core::{
    Error, ErrorCode, WireError,
    security::{Identity, keys::VerifyingKey, ticket},
};
use futures::{Stream, StreamExt, TryStreamExt};
use prost::Message;
use tonic::{Request, Response, Status, Streaming};

use super::{QueryEngine, messages::MESSAGE_BYTES};

const CANCEL_FLIGHT_INFO: &str = "CancelFlightInfo";

type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send + 'static>>;

/// Streams the rows that tickets stand for.
#[derive(Clone)]
pub struct FlightServer {
    engine: Arc<QueryEngine>,
    key: VerifyingKey,
}

impl fmt::Debug for FlightServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlightServer").field("engine", &self.engine).finish_non_exhaustive()
    }
}

impl FlightServer {
    /// A service that accepts tickets signed with the cluster's key.
    pub fn new(engine: Arc<QueryEngine>, key: VerifyingKey) -> Self {
        Self { engine, key }
    }
}

fn elsewhere<T>(what: &str) -> Result<T, Status> {
    Err(WireError::new(ErrorCode::Unsupported, format!("a storage server does not serve {what}"))
        .with_hint("send it to an index server; a storage server serves DoGet with the tickets of a FlightInfo")
        .into())
}

#[tonic::async_trait]
impl FlightService for FlightServer {
    type HandshakeStream = BoxStream<HandshakeResponse>;
    type ListFlightsStream = BoxStream<FlightInfo>;
    type DoGetStream = BoxStream<FlightData>;
    type DoPutStream = BoxStream<PutResult>;
    type DoExchangeStream = BoxStream<FlightData>;
    type DoActionStream = BoxStream<arrow_flight::Result>;
    type ListActionsStream = BoxStream<ActionType>;

    async fn do_get(&self, request: Request<Ticket>) -> Result<Response<Self::DoGetStream>, Status> {
        let user = Identity::of(&request)?.user()?.to_owned();
        let opened = ticket::open(&self.key, &request.get_ref().ticket, &user)?;
        let server = self.engine.server_id();
        let answer = self.engine.redeem(opened)?;
        let batches = answer.batches.map_err(move |error: Error| {
            let mut wire = error.to_wire();
            wire.fields.entry("server".to_owned()).or_insert_with(|| server.to_string());
            FlightError::Tonic(Box::new(wire.into()))
        });
        let encoder = FlightDataEncoderBuilder::new()
            .with_schema(answer.schema)
            .with_max_flight_data_size(2 * MESSAGE_BYTES)
            .build(batches);
        Ok(Response::new(encoder.map_err(status_of).boxed()))
    }

    async fn handshake(
        &self,
        _: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<Self::HandshakeStream>, Status> {
        elsewhere("logins")
    }

    async fn list_flights(&self, _: Request<Criteria>) -> Result<Response<Self::ListFlightsStream>, Status> {
        elsewhere("ListFlights")
    }

    async fn get_flight_info(&self, _: Request<FlightDescriptor>) -> Result<Response<FlightInfo>, Status> {
        elsewhere("GetFlightInfo")
    }

    async fn poll_flight_info(&self, _: Request<FlightDescriptor>) -> Result<Response<PollInfo>, Status> {
        elsewhere("PollFlightInfo")
    }

    async fn get_schema(&self, _: Request<FlightDescriptor>) -> Result<Response<SchemaResult>, Status> {
        elsewhere("GetSchema")
    }

    async fn do_put(&self, _: Request<Streaming<FlightData>>) -> Result<Response<Self::DoPutStream>, Status> {
        elsewhere("DoPut")
    }

    async fn do_exchange(&self, _: Request<Streaming<FlightData>>) -> Result<Response<Self::DoExchangeStream>, Status> {
        elsewhere("DoExchange")
    }

    /// `CancelFlightInfo`, which an index server passes on in the name of the user, or the client sends itself.
    async fn do_action(&self, request: Request<Action>) -> Result<Response<Self::DoActionStream>, Status> {
        let user = Identity::of(&request)?.user()?.to_owned();
        let action = request.into_inner();
        if action.r#type != CANCEL_FLIGHT_INFO {
            return elsewhere(&format!("the action {}", action.r#type));
        }
        let broken = |error: prost::DecodeError| {
            Status::from(WireError::new(ErrorCode::InvalidArgument, format!("the action's body is broken: {error}")))
        };
        let info = CancelFlightInfoRequest::decode(action.body).map_err(broken)?.info.unwrap_or_default();
        let mut status = CancelStatus::NotCancellable;
        for sealed in info.endpoint.iter().filter_map(|endpoint| endpoint.ticket.as_ref()) {
            // What the signature and the user say counts. A query that runs may have outlived its ticket.
            let ticket = ticket::open_at(&self.key, &sealed.ticket, &user, 0)?;
            if self.engine.cancel(&ticket.query_id) {
                status = CancelStatus::Cancelled;
            }
        }
        let body = CancelFlightInfoResult { status: status as i32 }.encode_to_vec();
        Ok(Response::new(futures::stream::iter([Ok(arrow_flight::Result { body: body.into() })]).boxed()))
    }

    async fn list_actions(&self, _: Request<Empty>) -> Result<Response<Self::ListActionsStream>, Status> {
        let action = ActionType {
            r#type: CANCEL_FLIGHT_INFO.to_owned(),
            description: "CancelFlightInfoRequest -> CancelFlightInfoResult".to_owned(),
        };
        Ok(Response::new(futures::stream::iter([Ok(action)]).boxed()))
    }
}

fn status_of(error: FlightError) -> Status {
    match error {
        FlightError::Tonic(status) => *status,
        other => Error::internal(other.to_string()).into(),
    }
}
