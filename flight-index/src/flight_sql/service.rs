//! The gRPC methods: who asks, what for, and to which part it goes.

use std::{pin::Pin, time::Duration};

use arrow::datatypes::Schema;
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightInfo, HandshakeRequest, HandshakeResponse,
    IpcMessage, PollInfo, PutResult, SchemaAsIpc, SchemaResult, Ticket,
    flight_service_server::FlightService,
    sql::{Any, Command},
};
use drsdb_core::{
    Error, ErrorCode, Result, Ulid, WireError,
    security::{Identity, Login},
};
use futures::Stream;
use prost::Message;
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap};

use super::{FlightSqlServer, MAX_RESPONSE_BYTES, session::Session};
use crate::{planner::Resume, transaction::Handle};

/// A stream of answers.
pub type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Who asks, and how their session is set.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The user, as logged in.
    pub login: Login,
    /// The session's settings.
    pub session: Session,
    /// The transaction that the request itself names; the session's may be another one.
    pub named: Option<Handle>,
    /// The client's id of the write, so that asking again is safe.
    pub statement: Option<Ulid>,
    /// The answer of which the client has a part, and wants the rest.
    pub resume: Option<Resume>,
    /// How long the statement has taken before, of which this is another plan.
    pub spent: Duration,
}

/// The header with the id of a write.
const STATEMENT_HEADER: &str = "drsdb-statement-id";
/// The header with the highest commit version that the client has seen.
const VERSION_HEADER: &str = "drsdb-version";
/// The header with where an answer goes on that broke off: the same statement is planned once more, and gives the same rows in
/// the same order.
const RESUME_HEADER: &str = "drsdb-resume";
/// The header with how many milliseconds a query has taken already that is planned once more.
const SPENT_HEADER: &str = "drsdb-spent-ms";
/// How long this server may be behind what a client has seen.
const CATCH_UP_TIME: Duration = Duration::from_secs(10);

impl Caller {
    /// The transaction that a request belongs to.
    pub fn transaction(&self) -> Option<&Handle> {
        self.named.as_ref().or(self.session.transaction())
    }

    /// Notes the `transaction_id` of a request; nothing when it has none.
    pub fn name_transaction(&mut self, id: Option<&[u8]>) -> Result<()> {
        if let Some(id) = id.filter(|id| !id.is_empty()) {
            self.named = Some(Handle::decode(id)?);
        }
        Ok(())
    }
}

impl FlightSqlServer {
    async fn caller<T>(&self, request: &Request<T>) -> Result<Caller> {
        let metadata = request.metadata();
        let spent_ms: Option<u64> = header(metadata, SPENT_HEADER, |text| text.parse().ok())?;
        let caller = Caller {
            login: Identity::of(request)?.login()?.clone(),
            session: Session::of(metadata, &self.options)?,
            named: None,
            statement: header(metadata, STATEMENT_HEADER, |text| Ulid::from_string(text).ok())?,
            resume: header(metadata, RESUME_HEADER, |text| text.parse::<Resume>().ok())?,
            spent: Duration::from_millis(spent_ms.unwrap_or_default()),
        };
        let seen: Option<u64> = header(metadata, VERSION_HEADER, |text| text.parse().ok())?;
        if let Some(version) = seen.max(caller.resume.map(|resume| resume.snapshot)) {
            self.catch_up(version).await?;
        }
        Ok(caller)
    }

    /// Waits until this server knows of a commit that the client has seen.
    async fn catch_up(&self, version: u64) -> Result<()> {
        let mut versions = self.catalog.watch();
        if self.catalog.state().version() >= version {
            return Ok(());
        }
        let reached = versions.wait_for(|known| *known >= version);
        match tokio::time::timeout(CATCH_UP_TIME, reached).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(WireError::new(
                ErrorCode::Unavailable,
                format!("this index server does not know yet of version {version}, which the client has seen"),
            )
            .with_hint("ask another index server, or retry")
            .into()),
        }
    }

    async fn flight_info(&self, descriptor: FlightDescriptor, caller: &mut Caller) -> Result<FlightInfo> {
        let info = match command(&descriptor)? {
            Command::CommandStatementQuery(query) => {
                caller.name_transaction(query.transaction_id.as_deref())?;
                self.execute(&query.query, None, caller).await?
            }
            Command::CommandPreparedStatementQuery(query) => {
                self.execute_prepared(&query.prepared_statement_handle, caller).await?
            }
            other => self.metadata_info(other, caller)?,
        };
        let info = info.with_descriptor(descriptor);
        let bytes = info.encoded_len();
        if bytes > MAX_RESPONSE_BYTES {
            // The plan of a query has its constants in it. What RETURNING gave has a lower limit of its own.
            let message = format!("the plan of the query takes {bytes} bytes; at most {MAX_RESPONSE_BYTES} are sent");
            return Err(WireError::new(ErrorCode::ResourceExhausted, message)
                .with_hint("it has a large constant: write a shorter one, or read it from a table")
                .into());
        }
        Ok(info)
    }

    async fn schema_of(&self, descriptor: &FlightDescriptor, caller: &Caller) -> Result<Schema> {
        match command(descriptor)? {
            Command::CommandStatementQuery(query) => Ok(self.describe(&query.query, caller).await?.0),
            Command::CommandPreparedStatementQuery(query) => {
                let prepared = super::prepared::decode(&query.prepared_statement_handle)?;
                match super::prepared::decode_parameters(&prepared.parameters)? {
                    Some(values) => self.describe_bound(&prepared.sql, &values, caller).await,
                    None => Ok(self.describe(&prepared.sql, caller).await?.0),
                }
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

/// A header's value; `None` without the header.
fn header<T>(metadata: &MetadataMap, name: &str, parse: impl Fn(&str) -> Option<T>) -> Result<Option<T>> {
    let Some(value) = metadata.get(name) else { return Ok(None) };
    let parsed = value.to_str().ok().and_then(parse);
    let parsed =
        parsed.ok_or_else(|| WireError::new(ErrorCode::InvalidArgument, format!("the header {name} is broken")))?;
    Ok(Some(parsed))
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
        let mut caller = self.caller(&request).await?;
        let info = self.flight_info(request.into_inner(), &mut caller).await;
        let info = info.map_err(|error| caller.session.attach_status(error.into()))?;
        Ok(caller.session.attach(Response::new(info)))
    }

    /// Nothing runs before it is pulled, so that the first poll has everything.
    async fn poll_flight_info(&self, request: Request<FlightDescriptor>) -> Result<Response<PollInfo>, Status> {
        let mut caller = self.caller(&request).await?;
        let info = self.flight_info(request.into_inner(), &mut caller).await;
        let info = info.map_err(|error| caller.session.attach_status(error.into()))?;
        let poll = PollInfo { info: Some(info), progress: Some(1.0), ..PollInfo::default() };
        Ok(caller.session.attach(Response::new(poll)))
    }

    async fn get_schema(&self, request: Request<FlightDescriptor>) -> Result<Response<SchemaResult>, Status> {
        let caller = self.caller(&request).await?;
        let schema = self.schema_of(request.get_ref(), &caller).await?;
        let IpcMessage(schema) = ipc_schema(&schema)?;
        Ok(Response::new(SchemaResult { schema }))
    }

    async fn do_get(&self, request: Request<Ticket>) -> Result<Response<Self::DoGetStream>, Status> {
        let caller = self.caller(&request).await?;
        Ok(Response::new(self.answer(&request.get_ref().ticket, &caller).await?))
    }

    async fn do_put(&self, request: Request<Streaming<FlightData>>) -> Result<Response<Self::DoPutStream>, Status> {
        let mut caller = self.caller(&request).await?;
        let result = self.put(request.into_inner(), &mut caller).await;
        let result = result.map_err(|error| caller.session.attach_status(error.into()))?;
        let answers: Self::DoPutStream = Box::pin(futures::stream::iter([Ok(result)]));
        Ok(caller.session.attach(Response::new(answers)))
    }

    async fn do_action(&self, request: Request<Action>) -> Result<Response<Self::DoActionStream>, Status> {
        let caller = self.caller(&request).await?;
        let answers = self.act(request, caller).await?;
        let answers = answers.into_iter().map(Ok).collect::<Vec<_>>();
        Ok(Response::new(Box::pin(futures::stream::iter(answers))))
    }

    async fn list_actions(&self, request: Request<Empty>) -> Result<Response<Self::ListActionsStream>, Status> {
        self.caller(&request).await?;
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
