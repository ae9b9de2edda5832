//! DoAction: prepared statements, transactions, cancelling, and what a client asks about the cluster.

use std::time::Duration;

use arrow_flight::{
    Action, ActionType, CancelFlightInfoRequest, CancelFlightInfoResult, CancelStatus, FlightInfo,
    flight_service_client::FlightServiceClient,
    sql::{
        ActionBeginSavepointRequest, ActionCancelQueryRequest, ActionCancelQueryResult,
        ActionClosePreparedStatementRequest, ActionCreatePreparedStatementRequest, ActionEndSavepointRequest,
        ActionEndTransactionRequest, Any, ProstMessageExt,
    },
};
use bytes::Bytes;
use drsdb_core::{Error, ErrorCode, Result, WireError, nearest_name, security::ticket, v1};
use futures::future::join_all;
use prost::Message;
use tonic::{Code, Request, metadata::MetadataMap};
use url::Url;

use super::{
    FlightSqlServer, prepared,
    service::{Caller, unsupported},
};

const CREATE_PREPARED_STATEMENT: &str = "CreatePreparedStatement";
const CLOSE_PREPARED_STATEMENT: &str = "ClosePreparedStatement";
const CANCEL_QUERY: &str = "CancelQuery";
const CANCEL_FLIGHT_INFO: &str = "CancelFlightInfo";
const INDEX_SERVERS: &str = "drsdb.IndexServers";
const BEGIN_TRANSACTION: &str = "BeginTransaction";
const END_TRANSACTION: &str = "EndTransaction";
const BEGIN_SAVEPOINT: &str = "BeginSavepoint";
const END_SAVEPOINT: &str = "EndSavepoint";
/// Flight SQL's other action, which needs another query language.
const NOT_DONE: &[&str] = &["CreatePreparedSubstraitPlan"];

/// How long one storage server may take to cancel.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);

const ACTIONS: [(&str, &str); 9] = [
    (CREATE_PREPARED_STATEMENT, "ActionCreatePreparedStatementRequest -> ActionCreatePreparedStatementResult"),
    (CLOSE_PREPARED_STATEMENT, "ActionClosePreparedStatementRequest -> nothing"),
    (CANCEL_QUERY, "ActionCancelQueryRequest -> ActionCancelQueryResult"),
    (CANCEL_FLIGHT_INFO, "CancelFlightInfoRequest -> CancelFlightInfoResult"),
    (INDEX_SERVERS, "nothing -> drsdb.v1.IndexServers"),
    (BEGIN_TRANSACTION, "ActionBeginTransactionRequest -> ActionBeginTransactionResult"),
    (END_TRANSACTION, "ActionEndTransactionRequest -> nothing, or drsdb.v1.WriteResult of a commit"),
    (BEGIN_SAVEPOINT, "ActionBeginSavepointRequest -> ActionBeginSavepointResult"),
    (END_SAVEPOINT, "ActionEndSavepointRequest -> nothing"),
];

/// What ListActions lists.
pub fn list() -> impl Iterator<Item = ActionType> + Send + 'static {
    ACTIONS
        .into_iter()
        .map(|(name, description)| ActionType { r#type: name.to_owned(), description: description.to_owned() })
}

impl FlightSqlServer {
    /// Carries out an action; the answers are its results.
    pub(super) async fn act(&self, request: Request<Action>, caller: Caller) -> Result<Vec<arrow_flight::Result>> {
        let (metadata, _, action) = request.into_parts();
        let body = match action.r#type.as_str() {
            CREATE_PREPARED_STATEMENT => {
                let request = unpack::<ActionCreatePreparedStatementRequest>(&action.body)?;
                self.prepare(request, &caller).await?.as_any().encode_to_vec()
            }
            CLOSE_PREPARED_STATEMENT => {
                let request = unpack::<ActionClosePreparedStatementRequest>(&action.body)?;
                prepared::decode(&request.prepared_statement_handle)?;
                return Ok(Vec::new());
            }
            BEGIN_TRANSACTION => self.begin_transaction(&caller).await?.as_any().encode_to_vec(),
            END_TRANSACTION => {
                let request = unpack::<ActionEndTransactionRequest>(&action.body)?;
                match self.end_transaction(&request, &caller).await? {
                    Some(committed) => committed,
                    None => return Ok(Vec::new()),
                }
            }
            BEGIN_SAVEPOINT => {
                let request = unpack::<ActionBeginSavepointRequest>(&action.body)?;
                self.begin_savepoint(request, &caller).await?.as_any().encode_to_vec()
            }
            END_SAVEPOINT => {
                let request = unpack::<ActionEndSavepointRequest>(&action.body)?;
                self.end_savepoint(&request, &caller).await?;
                return Ok(Vec::new());
            }
            CANCEL_QUERY => {
                let request = unpack::<ActionCancelQueryRequest>(&action.body)?;
                let info = FlightInfo::decode(request.info).map_err(broken_body)?;
                // The two results have the same numbers for the same things.
                let result = self.cancel(&info, &caller, &metadata).await? as i32;
                ActionCancelQueryResult { result }.as_any().encode_to_vec()
            }
            CANCEL_FLIGHT_INFO => {
                let request = CancelFlightInfoRequest::decode(action.body).map_err(broken_body)?;
                let status = self.cancel(&request.info.unwrap_or_default(), &caller, &metadata).await? as i32;
                CancelFlightInfoResult { status }.encode_to_vec()
            }
            INDEX_SERVERS => {
                let servers = self.catalog.index_servers().into_iter().filter(|server| server.voter);
                v1::IndexServers { urls: servers.map(|server| server.url).collect() }.encode_to_vec()
            }
            other if NOT_DONE.contains(&other) => return Err(unsupported(&format!("the action {other}"))),
            other => {
                let error = WireError::new(ErrorCode::NotFound, format!("there is no action {other}"));
                return Err(match nearest_name(other, ACTIONS.map(|(name, _)| name)) {
                    Some(near) => error.with_hint(format!("did you mean {near}?")),
                    None => error.with_hint("ListActions lists them"),
                }
                .into());
            }
        };
        Ok(vec![arrow_flight::Result { body: body.into() }])
    }

    /// Cancels what runs of a query: asks every server that its tickets name. A query that nobody has pulled runs
    /// nowhere, and closing its streams stops it as well.
    async fn cancel(&self, info: &FlightInfo, caller: &Caller, metadata: &MetadataMap) -> Result<CancelStatus> {
        let key = self.planner.signing_key(&self.catalog.state())?;
        let mut servers = std::collections::BTreeSet::new();
        for endpoint in &info.endpoint {
            let sealed = endpoint.ticket.as_ref().map(|ticket| ticket.ticket.as_ref()).unwrap_or_default();
            // An expired ticket may still run; whose it is matters, and each server checks that again.
            let ticket = ticket::open_at(&key.verifying_key(), sealed, &caller.login.user, 0)?;
            servers.extend(ticket.workers);
            // Any of the endpoint's locations can have become the head.
            let locations = endpoint.location.iter().map(|location| location.uri.replace("grpc+tls://", "https://"));
            let known = self.catalog.state();
            servers.extend(locations.filter(|url| known.servers().any(|server| same_server(&server.url, url))));
        }
        if servers.is_empty() {
            return Ok(CancelStatus::NotCancellable);
        }
        let body: Bytes = CancelFlightInfoRequest { info: Some(info.clone()) }.encode_to_vec().into();
        let asked = servers.iter().map(|url| self.cancel_on(url, body.clone(), metadata));
        let mut status = CancelStatus::NotCancellable;
        for answer in join_all(asked).await {
            match answer {
                Ok(CancelStatus::Cancelled | CancelStatus::Cancelling) => status = CancelStatus::Cancelling,
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, "a storage server could not cancel"),
            }
        }
        Ok(status)
    }

    /// In the name of the user: the token goes along.
    async fn cancel_on(&self, url: &str, body: Bytes, metadata: &MetadataMap) -> Result<CancelStatus> {
        let url =
            Url::parse(url).map_err(|error| Error::internal(format!("a ticket names the server {url}: {error}")))?;
        let mut client = FlightServiceClient::new(self.channels.channel(&url)?);
        let mut request = Request::new(Action { r#type: CANCEL_FLIGHT_INFO.to_owned(), body });
        if let Some(token) = metadata.get("authorization") {
            request.metadata_mut().insert("authorization", token.clone());
        }
        request.set_timeout(CANCEL_TIMEOUT);
        let mut answers = match client.do_action(request).await {
            Ok(answers) => answers.into_inner(),
            Err(status) if matches!(status.code(), Code::Unimplemented | Code::NotFound) => {
                return Ok(CancelStatus::NotCancellable);
            }
            Err(status) => return Err(drsdb_core::net::name_server(status, &url)),
        };
        let answer = answers.message().await?.unwrap_or_default();
        let result = CancelFlightInfoResult::decode(answer.body).map_err(broken_body)?;
        Ok(CancelStatus::try_from(result.status).unwrap_or(CancelStatus::Unspecified))
    }
}

fn same_server(left: &str, right: &str) -> bool {
    left.trim_end_matches('/') == right.trim_end_matches('/')
}

fn unpack<M: ProstMessageExt>(body: &[u8]) -> Result<M> {
    let any = Any::decode(body).map_err(broken_body)?;
    let message = any.unpack::<M>().map_err(|error| Error::new(ErrorCode::InvalidArgument, error.to_string()))?;
    let expected = || {
        Error::new(ErrorCode::InvalidArgument, format!("the action's body is {}, not {}", any.type_url, M::type_url()))
    };
    message.ok_or_else(expected)
}

fn broken_body(error: prost::DecodeError) -> Error {
    Error::new(ErrorCode::InvalidArgument, format!("the action's body is broken: {error}"))
}
