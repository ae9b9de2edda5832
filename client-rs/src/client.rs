//! The client: calls to index servers, and what comes back from them.

use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use arrow_flight::{
    Action, FlightDescriptor, FlightInfo,
    flight_service_client::FlightServiceClient,
    sql::{CommandStatementQuery, ProstMessageExt},
};
use bytes::Bytes;
use drsdb_proto::{ErrorCode, WireError, v1};
use futures::TryStreamExt;
use parking_lot::Mutex;
use prost::Message;
use tonic::{Request, Response, Status, metadata::MetadataMap, transport::Channel};
use url::Url;

use crate::{
    ClientOptions, Error, Prepared, QueryResult, QueryStream, Result,
    channels::Channels,
    cookies::CookieJar,
    error::{Failure, FailureKind, name_of},
    is_read_only,
    options::check_server,
    rotation::Rotation,
    session::{Authorization, Session},
};

/// A connection to a cluster. Clones share it; it is made for many calls at once.
#[derive(Clone)]
pub struct Client {
    pub(crate) inner: Arc<Inner>,
    /// What SET changed: the session, which clones share.
    cookies: Arc<Mutex<CookieJar>>,
}

pub(crate) struct Inner {
    pub options: ClientOptions,
    pub channels: Channels,
    pub session: Session,
    rotation: Mutex<Rotation>,
}

/// What a statement gave.
pub enum Executed {
    /// Rows, to be pulled.
    Rows(QueryStream),
    /// It changed something, and it is done.
    Write(WriteResult),
}

/// What a finished write says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WriteResult {
    /// Rows inserted, updated, deleted or loaded; 0 for statements that are about no rows.
    pub rows: u64,
    /// The commit version; 0 when the statement made none.
    pub version: u64,
}

impl WriteResult {
    /// From the `app_metadata` of an answer. Flight SQL's own `DoPutUpdateResult` has the same first field.
    pub(crate) fn decode(metadata: &[u8]) -> Self {
        let decoded = v1::WriteResult::decode(metadata).unwrap_or_default();
        // Flight SQL says "unknown" as -1.
        let rows = if i64::try_from(decoded.rows).is_ok() { decoded.rows } else { 0 };
        WriteResult { rows, version: decoded.version }
    }
}

/// Whether a call may be made again at another server after it may already have been done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeatable {
    Yes,
    No,
}

impl Client {
    /// Logs in at the first index server that answers, and learns of the others from it.
    pub async fn connect(options: ClientOptions) -> Result<Client> {
        options.validate()?;
        let inner = Inner {
            channels: Channels::new(&options)?,
            session: Session::new(&options),
            rotation: Mutex::new(Rotation::new(options.index_servers.clone())),
            options,
        };
        let client = Client { inner: Arc::new(inner), cookies: Arc::default() };
        let (server, list) = client.fetch_index_servers().await?;
        client.inner.rotation.lock().refreshed(&server, list);
        Ok(client)
    }

    /// A client of the same connections and login whose settings (SET) are its own, at their defaults.
    pub fn new_session(&self) -> Client {
        Client { inner: self.inner.clone(), cookies: Arc::default() }
    }

    /// Runs a statement of any kind.
    pub async fn execute(&self, sql: &str) -> Result<Executed> {
        let (server, info) = self.statement_info(sql).await?;
        self.executed(server, info)
    }

    /// Runs a statement and streams its rows. One that returns none gives an empty stream with an empty schema.
    pub async fn query(&self, sql: &str) -> Result<QueryStream> {
        let (server, info) = self.statement_info(sql).await?;
        self.stream(server, info)
    }

    /// Runs a statement and takes all of its rows into memory.
    pub async fn collect(&self, sql: &str) -> Result<QueryResult> {
        self.query(sql).await?.read_all().await
    }

    /// Prepares a statement with `?` or `$1` parameters.
    pub async fn prepare(&self, sql: &str) -> Result<Prepared> {
        Prepared::create(self.clone(), sql).await
    }

    /// The plan's shape: schema, endpoints and their locations, without pulling a row. Statements that write are run.
    pub async fn flight_info(&self, sql: &str) -> Result<FlightInfo> {
        Ok(self.statement_info(sql).await?.1)
    }

    /// The index servers that the client knows, the current one first.
    pub fn index_servers(&self) -> Vec<Url> {
        self.inner.rotation.lock().servers()
    }

    async fn statement_info(&self, sql: &str) -> Result<(Url, FlightInfo)> {
        let command = CommandStatementQuery { query: sql.to_owned(), transaction_id: None };
        let repeatable = if is_read_only(sql) { Repeatable::Yes } else { Repeatable::No };
        self.command_info(&command, repeatable).await
    }

    /// GetFlightInfo of a Flight SQL command; also says who answered.
    pub(crate) async fn command_info<M: ProstMessageExt>(
        &self,
        command: &M,
        repeatable: Repeatable,
    ) -> Result<(Url, FlightInfo)> {
        let descriptor = FlightDescriptor::new_cmd(command.as_any().encode_to_vec());
        self.call(repeatable, |mut flight, request| {
            let request = request.map(|()| descriptor.clone());
            async move { flight.get_flight_info(request).await.map(answer_of) }
        })
        .await
    }

    /// DoAction with one answer; also says who answered.
    pub(crate) async fn action(&self, kind: &str, body: Bytes) -> Result<(Url, Bytes)> {
        let action = Action { r#type: kind.to_owned(), body };
        let (server, answers) = self
            .call(Repeatable::Yes, |mut flight, request| {
                let request = request.map(|()| action.clone());
                async move {
                    let (metadata, answers) = answer_of(flight.do_action(request).await?);
                    Ok((metadata, answers.try_collect::<Vec<_>>().await?))
                }
            })
            .await?;
        match answers.into_iter().next() {
            Some(answer) => Ok((server, answer.body)),
            None => Err(Failure::broken_data(&format!("no answer to action {kind}"), &server).error),
        }
    }

    /// Calls index servers, the current one first, until one answers. `send` gets a request with the login in it.
    pub(crate) async fn call<T, F>(
        &self,
        repeatable: Repeatable,
        send: impl Fn(FlightServiceClient<Channel>, Request<()>) -> F,
    ) -> Result<(Url, T)>
    where
        F: Future<Output = Result<(MetadataMap, T), Status>>,
    {
        let mut tried: Vec<Url> = Vec::new();
        let mut failures: Vec<Error> = Vec::new();
        loop {
            let next = self.inner.rotation.lock().candidate(&tried);
            let Some(server) = next else { break };
            let failure = match self.call_one(&server, &send).await {
                Ok(answer) => {
                    self.answered(&server);
                    return Ok((server, answer));
                }
                Err(failure) => failure,
            };
            match failure.kind {
                FailureKind::Answered => {
                    self.answered(&server);
                    return Err(failure.error);
                }
                FailureKind::Lost if repeatable == Repeatable::No => {
                    self.inner.rotation.lock().failed(&server);
                    return Err(outcome_unknown(&failure.error));
                }
                FailureKind::NotSent | FailureKind::Lost => {
                    tracing::debug!(server = %server, error = %failure.error, "index server does not answer");
                    self.inner.rotation.lock().failed(&server);
                    failures.push(failure.error);
                    tried.push(server);
                }
            }
        }
        Err(nobody_answers(failures))
    }

    async fn call_one<T, F>(
        &self,
        server: &Url,
        send: impl Fn(FlightServiceClient<Channel>, Request<()>) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<(MetadataMap, T), Status>>,
    {
        let inner = &self.inner;
        let flight = inner.channels.flight(server).map_err(|error| Failure { kind: FailureKind::Answered, error })?;
        let mut authorization = inner.session.authorization(&flight, server).await.map_err(|failure| {
            // The request itself was not sent yet, whatever became of the login.
            let kind = if failure.kind == FailureKind::Lost { FailureKind::NotSent } else { failure.kind };
            Failure { kind, ..failure }
        })?;
        let mut renewed = false;
        loop {
            let mut request = Request::new(());
            authorization.apply(&mut request);
            self.cookies.lock().apply(request.metadata_mut());
            let failure = match send(flight.clone(), request).await {
                Ok((metadata, answer)) => {
                    self.cookies.lock().take(&metadata);
                    return Ok(answer);
                }
                Err(status) => Failure::of_status(status, server),
            };
            let refused = failure.kind == FailureKind::Answered && failure.error.code() == ErrorCode::Unauthenticated;
            if !refused || renewed || !inner.session.refused(&authorization) {
                return Err(failure);
            }
            authorization = inner.session.authorization(&flight, server).await?;
            renewed = true;
        }
    }

    /// The authorization for calls to storage servers, which know no passwords: where a login is due, an index server
    /// is asked.
    pub(crate) async fn authorization(&self) -> Result<Authorization> {
        loop {
            if let Some(current) = self.inner.session.current() {
                return Ok(current);
            }
            // A call logs in before it sends; there is nothing to send here.
            self.call(Repeatable::Yes, |_, _| async { Ok((MetadataMap::new(), ())) }).await?;
        }
    }

    /// Notes that `server` lives, and fetches a new list of index servers in the background if one is due.
    fn answered(&self, server: &Url) {
        let due = {
            let mut rotation = self.inner.rotation.lock();
            rotation.succeeded(server);
            rotation.take_refresh_due()
        };
        if due {
            let client = self.clone();
            tokio::spawn(async move {
                // Boxed: this call can come from the very call that it makes.
                let fetch: std::pin::Pin<Box<dyn Future<Output = _> + Send>> = Box::pin(client.fetch_index_servers());
                let fetched = fetch.await;
                let mut rotation = client.inner.rotation.lock();
                match fetched {
                    Ok((server, list)) => rotation.refreshed(&server, list),
                    Err(error) => {
                        tracing::debug!(%error, "cannot fetch the list of index servers");
                        rotation.refresh_failed();
                    }
                }
            });
        }
    }

    async fn fetch_index_servers(&self) -> Result<(Url, Vec<Url>)> {
        let (server, body) = self.action("drsdb.IndexServers", Bytes::new()).await?;
        let broken = |what: String| Failure::broken_data(&what, &server).error;
        let list = v1::IndexServers::decode(body).map_err(|error| broken(error.to_string()))?;
        let mut urls = Vec::with_capacity(list.urls.len());
        for text in list.urls {
            let url = Url::parse(&text).map_err(|error| broken(format!("{text:?} as an index server: {error}")))?;
            check_server(&url)?;
            urls.push(url);
        }
        Ok((server, urls))
    }

    /// Sorts an answer into rows and a finished write.
    pub(crate) fn executed(&self, server: Url, info: FlightInfo) -> Result<Executed> {
        if schema_of(&info, &server)?.fields().is_empty() {
            return Ok(Executed::Write(WriteResult::decode(&info.app_metadata)));
        }
        self.stream(server, info).map(Executed::Rows)
    }

    /// Begins to pull an answer.
    pub(crate) fn stream(&self, server: Url, info: FlightInfo) -> Result<QueryStream> {
        let schema = schema_of(&info, &server)?;
        QueryStream::start(self.clone(), server, schema, info)
    }
}

/// An answer with its headers.
pub(crate) fn answer_of<T>(response: Response<T>) -> (MetadataMap, T) {
    let (metadata, answer, _) = response.into_parts();
    (metadata, answer)
}

fn schema_of(info: &FlightInfo, server: &Url) -> Result<SchemaRef> {
    if info.schema.is_empty() {
        return Ok(Arc::new(Schema::empty()));
    }
    let schema = info.clone().try_decode_schema();
    schema.map(Arc::new).map_err(|error| Failure::broken_data(&format!("a result's schema: {error}"), server).error)
}

fn outcome_unknown(error: &Error) -> Error {
    let mut wire: WireError = error.wire().clone();
    wire.message = format!("the outcome of the statement is unknown: {}", wire.message);
    wire.hint = "look whether it took effect before running it again".to_owned();
    wire.with_field("outcome", "unknown").into()
}

fn nobody_answers(mut failures: Vec<Error>) -> Error {
    if failures.len() == 1 {
        return failures.remove(0);
    }
    let causes: Vec<&str> = failures.iter().map(Error::message).collect();
    // A certificate that is refused is worth more than the servers that merely do not run.
    let code = failures.iter().map(Error::code).find(|&code| code != ErrorCode::Unavailable);
    WireError::new(code.unwrap_or(ErrorCode::Unavailable), format!("no index server answers: {}", causes.join("; ")))
        .with_hint("check the addresses, and whether the index servers run")
        .into()
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let servers: Vec<String> = self.index_servers().iter().map(name_of).collect();
        f.debug_struct("Client").field("index_servers", &servers).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_count_is_read_from_either_message() {
        let ours = v1::WriteResult { rows: 7, version: 3 }.encode_to_vec();
        assert_eq!(WriteResult::decode(&ours), WriteResult { rows: 7, version: 3 });
        let standard = arrow_flight::sql::DoPutUpdateResult { record_count: 7 }.encode_to_vec();
        assert_eq!(WriteResult::decode(&standard), WriteResult { rows: 7, version: 0 });
        let unknown = arrow_flight::sql::DoPutUpdateResult { record_count: -1 }.encode_to_vec();
        assert_eq!(WriteResult::decode(&unknown), WriteResult::default());
    }
}
