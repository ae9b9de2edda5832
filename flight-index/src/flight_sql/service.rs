//! The gRPC methods: who asks, what for, and to which part it goes.

use std::pin::Pin;

use arrow::datatypes::Schema;
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightInfo, HandshakeRequest, HandshakeResponse,
    IpcMessage, PollInfo, PutResult, SchemaAsIpc, SchemaResult, Ticket,
    flight_service_server::FlightService,
    sql::{Any, Command},
};
use drsdb_core::{Error, ErrorCode, Result, WireError, security::Identity};
use futures::Stream;
use prost::Message;
use tonic::{Request, Response, Status, Streaming};

use super::{FlightSqlServer, session::Session};

/// A stream of answers.
pub type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Who asks, and how their session is set.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The user's name.
    pub user: String,
    /// The session's settings.
    pub session: Session,
}

impl FlightSqlServer {
    fn caller<T>(&self, request: &Request<T>) -> Result<Caller> {
        Ok(Caller {
            user: Identity::of(request)?.user()?.to_owned(),
            session: Session::of(request.metadata(), &self.options)?,
        })
    }

    async fn flight_info(&self, descriptor: FlightDescriptor, caller: &mut Caller) -> Result<FlightInfo> {
        let info = match command(&descriptor)? {
            Command::CommandStatementQuery(query) => {
                refuse_transaction(query.transaction_id.is_some())?;
                self.execute(&query.query, None, caller).await?
            }
            Command::CommandPreparedStatementQuery(query) => {
                self.execute_prepared(&query.prepared_statement_handle, caller).await?
            }
            other => self.metadata_info(other, caller)?,
        };
        Ok(info.with_descriptor(descriptor))
    }

    async fn schema_of(&self, descriptor: &FlightDescriptor, caller: &Caller) -> Result<Schema> {
        match command(descriptor)? {
            Command::CommandStatementQuery(query) => Ok(self.describe(&query.query, caller).await?.0),
            Command::CommandPreparedStatementQuery(query) => {
                let prepared = super::prepared::decode(&query.prepared_statement_handle)?;
                Ok(self.describe(&prepared.sql, caller).await?.0)
            }
            other => Ok(super::metadata::schema(&other)?.as_ref().clone()),
        }
    }
}

/// The command in a descriptor.
pub fn command(descriptor: &FlightDescriptor) -> Result<Command> {
    if descriptor.cmd.is_empty() {
        return Err(WireError::new(ErrorCode::InvalidArgument, "a descriptor without a command")
            .with_hint("send a Flight SQL command; paths are not used")
            .into());
    }
    decode_command(&descriptor.cmd)
}

/// A Flight SQL command in its envelope.
pub fn decode_command(bytes: &[u8]) -> Result<Command> {
    let broken = |error: &dyn std::fmt::Display| {
        WireError::new(ErrorCode::InvalidArgument, format!("not a Flight SQL command: {error}"))
    };
    let any = Any::decode(bytes).map_err(|error| broken(&error))?;
    Ok(Command::try_from(any).map_err(|error| broken(&error))?)
}

/// Refuses what belongs to a transaction of several statements.
pub fn refuse_transaction(inside: bool) -> Result<()> {
    if inside { Err(unsupported("a transaction of several statements")) } else { Ok(()) }
}

/// The error of a request that nothing here does.
pub fn unsupported(what: &str) -> Error {
    Error::new(ErrorCode::Unsupported, format!("{what} is not done"))
}

#[tonic::async_trait]
impl FlightService for FlightSqlServer {
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
        Ok(self.log_in(request).await?)
    }

    async fn get_flight_info(&self, request: Request<FlightDescriptor>) -> Result<Response<FlightInfo>, Status> {
        let mut caller = self.caller(&request)?;
        let info = self.flight_info(request.into_inner(), &mut caller).await?;
        Ok(caller.session.attach(Response::new(info)))
    }

    /// Nothing runs before it is pulled, so that the first poll has everything.
    async fn poll_flight_info(&self, request: Request<FlightDescriptor>) -> Result<Response<PollInfo>, Status> {
        let mut caller = self.caller(&request)?;
        let info = self.flight_info(request.into_inner(), &mut caller).await?;
        let poll = PollInfo { info: Some(info), progress: Some(1.0), ..PollInfo::default() };
        Ok(caller.session.attach(Response::new(poll)))
    }

    async fn get_schema(&self, request: Request<FlightDescriptor>) -> Result<Response<SchemaResult>, Status> {
        let caller = self.caller(&request)?;
        let schema = self.schema_of(request.get_ref(), &caller).await?;
        let IpcMessage(schema) = ipc_schema(&schema)?;
        Ok(Response::new(SchemaResult { schema }))
    }

    async fn do_get(&self, request: Request<Ticket>) -> Result<Response<Self::DoGetStream>, Status> {
        let caller = self.caller(&request)?;
        Ok(Response::new(self.answer(&request.get_ref().ticket, &caller).await?))
    }

    async fn do_put(&self, request: Request<Streaming<FlightData>>) -> Result<Response<Self::DoPutStream>, Status> {
        let mut caller = self.caller(&request)?;
        let result = self.put(request.into_inner(), &mut caller).await?;
        let answers: Self::DoPutStream = Box::pin(futures::stream::iter([Ok(result)]));
        Ok(caller.session.attach(Response::new(answers)))
    }

    async fn do_action(&self, request: Request<Action>) -> Result<Response<Self::DoActionStream>, Status> {
        let caller = self.caller(&request)?;
        let answers = self.act(request, caller).await?;
        let answers = answers.into_iter().map(Ok).collect::<Vec<_>>();
        Ok(Response::new(Box::pin(futures::stream::iter(answers))))
    }

    async fn list_actions(&self, request: Request<Empty>) -> Result<Response<Self::ListActionsStream>, Status> {
        self.caller(&request)?;
        Ok(Response::new(Box::pin(futures::stream::iter(super::actions::list().map(Ok)))))
    }

    async fn list_flights(&self, _: Request<Criteria>) -> Result<Response<Self::ListFlightsStream>, Status> {
        let error = WireError::new(ErrorCode::Unsupported, "ListFlights is not done");
        Err(error.with_hint("ask for tables with the Flight SQL command GetTables").into())
    }

    async fn do_exchange(&self, _: Request<Streaming<FlightData>>) -> Result<Response<Self::DoExchangeStream>, Status> {
        Err(unsupported("DoExchange").into())
    }
}

/// A schema as Flight sends it.
pub fn ipc_schema(schema: &Schema) -> Result<IpcMessage> {
    Ok(IpcMessage::try_from(SchemaAsIpc::new(schema, &arrow::ipc::writer::IpcWriteOptions::default()))?)
}
