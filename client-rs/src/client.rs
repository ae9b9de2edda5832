//! The client: statements, and what comes back from them. How a call finds its index server is `calls`' matter.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Instant,
};

use arrow_flight::{
    Action, FlightDescriptor, FlightInfo,
    sql::{CommandStatementQuery, ProstMessageExt},
};
use bytes::Bytes;
use drsdb_proto::{ErrorCode, WireError, v1};
use futures::TryStreamExt;
use parking_lot::Mutex;
use prost::Message;
use tonic::metadata::{AsciiMetadataValue, MetadataValue};
use url::Url;

use crate::{
    ClientOptions, Prepared, QueryResult, QueryStream, Result,
    calls::answer_of,
    channels::Channels,
    error::{Failure, name_of},
    is_read_only,
    options::check_server,
    rotation::Rotation,
    route::{Kind, Place, Route},
    session::Session,
    sql_session::SqlSession,
    sql_text::{Step, transaction_step},
    transaction::Open,
};

/// The header with where an answer goes on.
const RESUME_HEADER: &str = "drsdb-resume";

/// The header with how many milliseconds a query has taken already that is planned once more.
const SPENT_HEADER: &str = "drsdb-spent-ms";

/// A connection to a cluster. Clones share it; it is made for many calls at once.
///
/// A statement outside of a transaction is one. What it writes carries an id, so that a call whose answer was lost is made
/// again at the next index server and done once. Reads include every write that this client knows of, at whichever index
/// server they are planned.
#[derive(Clone)]
pub struct Client {
    pub(crate) inner: Arc<Inner>,
    /// What SET changed and whether BEGIN was said: the session, which clones share.
    pub(crate) sql_session: Arc<SqlSession>,
    /// The transaction that everything this client does belongs to.
    pub(crate) transaction: Option<Arc<Open>>,
}

pub(crate) struct Inner {
    pub options: ClientOptions,
    pub channels: Channels,
    pub session: Session,
    pub rotation: Mutex<Rotation>,
    /// The highest commit version that a write of this client had.
    pub seen_version: AtomicU64,
}

/// An answer to GetFlightInfo.
pub(crate) struct Planned {
    pub server: Url,
    pub info: FlightInfo,
    /// The command, if it may be planned again: when it only reads.
    pub again: Option<Bytes>,
    /// Whether it belongs to a transaction.
    pub in_transaction: bool,
}

/// Where an answer can go on that broke off: a text of the index server's.
pub(crate) type Resume = AsciiMetadataValue;

/// What is said when a query is planned once more.
pub(crate) struct Again {
    /// Where it goes on; `None`: it begins anew.
    pub resume: Option<Resume>,
    /// When its rows were first pulled: its time goes on.
    pub begun: Instant,
}

impl Planned {
    /// Where it can go on; `None`: the same plan may give other rows, or in another order.
    pub fn resume(&self) -> Option<Resume> {
        let answer = v1::RepeatableAnswer::decode(&self.info.app_metadata[..]).ok()?;
        answer.resume.parse().ok().filter(|resume: &Resume| !resume.is_empty())
    }
}

/// What a statement gave.
pub enum Executed {
    /// Rows, to be pulled.
    Rows(QueryStream),
    /// It changed something, and it is done.
    Write(WriteResult),
}

impl std::fmt::Debug for Executed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Executed::Rows(_) => f.write_str("Rows"),
            Executed::Write(result) => f.debug_tuple("Write").field(result).finish(),
        }
    }
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

impl Client {
    /// Logs in at the first index server that answers, and learns of the others from it.
    pub async fn connect(options: ClientOptions) -> Result<Client> {
        options.validate()?;
        let inner = Inner {
            channels: Channels::new(&options)?,
            session: Session::new(&options),
            rotation: Mutex::new(Rotation::new(options.index_servers.clone())),
            seen_version: AtomicU64::new(0),
            options,
        };
        let client = Client { inner: Arc::new(inner), sql_session: Arc::default(), transaction: None };
        let (server, list) = client.fetch_index_servers().await?;
        client.inner.rotation.lock().refreshed(&server, list);
        Ok(client)
    }

    /// A client of the same connections and login whose settings (SET) are its own, at their defaults, and which is in no
    /// transaction.
    pub fn new_session(&self) -> Client {
        Client { inner: self.inner.clone(), sql_session: Arc::default(), transaction: None }
    }

    /// Whether a transaction is open: one of [`Client::begin`], or one that the session's BEGIN opened.
    pub fn in_transaction(&self) -> bool {
        self.transaction.is_some() || self.sql_session.transaction().is_some()
    }

    /// Runs a statement of any kind. One with RETURNING gives rows.
    pub async fn execute(&self, sql: &str) -> Result<Executed> {
        self.executed(self.plan(sql).await?)
    }

    /// Runs a statement and streams its rows. One that returns none gives an empty stream with an empty schema.
    pub async fn query(&self, sql: &str) -> Result<QueryStream> {
        self.stream(self.plan(sql).await?)
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
        Ok(self.plan(sql).await?.info)
    }

    /// The index servers that the client knows, the current one first.
    pub fn index_servers(&self) -> Vec<Url> {
        self.inner.rotation.lock().servers()
    }

    async fn plan(&self, sql: &str) -> Result<Planned> {
        let command = CommandStatementQuery { query: sql.to_owned(), transaction_id: self.transaction_id() };
        let step = transaction_step(sql);
        if self.transaction.is_some() && matches!(step, Some(Step::Commit | Step::Rollback)) {
            return Err(WireError::new(ErrorCode::InvalidArgument, "a Transaction is not ended by SQL")
                .with_hint("call its commit or rollback")
                .into());
        }
        let Some(step) = step.filter(|_| self.transaction.is_none()) else {
            let kind = if is_read_only(sql) { Kind::Read } else { Kind::write() };
            return self.command_info(&command, kind).await;
        };
        let route = match (step, self.sql_session.transaction()) {
            (Step::Begin, _) => self.route(Kind::write())?,
            (Step::Commit | Step::Rollback, None) => Route::anywhere(Kind::End),
            (Step::Commit | Step::Rollback, Some(server)) => Route { kind: Kind::End, place: Place::First(server) },
        };
        let planned = self.planned(command.as_any().encode_to_vec().into(), &route).await;
        match &planned {
            Ok(planned) => self.sql_session.stepped(step, &planned.server),
            Err(error) => self.sql_session.step_failed(step, error),
        }
        planned
    }

    /// GetFlightInfo of a Flight SQL command; also says who answered.
    pub(crate) async fn command_info<M: ProstMessageExt>(&self, command: &M, kind: Kind) -> Result<Planned> {
        self.planned(command.as_any().encode_to_vec().into(), &self.route(kind)?).await
    }

    /// Plans a command that only reads once more: from its start, or so that the answer goes on.
    pub(crate) async fn plan_again(&self, command: Bytes, again: Again) -> Result<Planned> {
        self.planned_with(command, Some(&again), &self.route(Kind::Read)?).await
    }

    async fn planned(&self, command: Bytes, route: &Route) -> Result<Planned> {
        self.planned_with(command, None, route).await
    }

    async fn planned_with(&self, command: Bytes, again: Option<&Again>, route: &Route) -> Result<Planned> {
        let descriptor = FlightDescriptor::new_cmd(command.clone());
        let (server, info) = self
            .call(route, |mut flight, request| {
                let mut request = request.map(|()| descriptor.clone());
                if let Some(Again { resume, begun }) = again {
                    let headers = request.metadata_mut();
                    headers.insert(SPENT_HEADER, MetadataValue::from(begun.elapsed().as_millis() as u64));
                    if let Some(resume) = resume {
                        headers.insert(RESUME_HEADER, resume.clone());
                    }
                }
                async move { flight.get_flight_info(request).await.map(answer_of) }
            })
            .await?;
        let again = (route.kind == Kind::Read).then_some(command);
        Ok(Planned { server, info, again, in_transaction: route.is_pinned() })
    }

    /// DoAction with one answer at most; also says who answered.
    pub(crate) async fn action(&self, route: &Route, kind: &str, body: Bytes) -> Result<(Url, Option<Bytes>)> {
        let action = Action { r#type: kind.to_owned(), body };
        let (server, answers) = self
            .call(route, |mut flight, request| {
                let request = request.map(|()| action.clone());
                async move {
                    let (metadata, answers) = answer_of(flight.do_action(request).await?);
                    Ok((metadata, answers.try_collect::<Vec<_>>().await?))
                }
            })
            .await?;
        Ok((server, answers.into_iter().next().map(|answer| answer.body)))
    }

    pub(crate) async fn fetch_index_servers(&self) -> Result<(Url, Vec<Url>)> {
        let (server, body) = self.action(&Route::anywhere(Kind::Read), "drsdb.IndexServers", Bytes::new()).await?;
        let broken = |what: String| Failure::broken_data(&what, &server).error;
        let body = body.ok_or_else(|| broken("no list of index servers".to_owned()))?;
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
    pub(crate) fn executed(&self, planned: Planned) -> Result<Executed> {
        let stream = self.stream(planned)?;
        if stream.schema().fields().is_empty() {
            return Ok(Executed::Write(stream.write_result()));
        }
        Ok(Executed::Rows(stream))
    }

    /// Begins to pull an answer.
    pub(crate) fn stream(&self, planned: Planned) -> Result<QueryStream> {
        let stream = QueryStream::start(self.clone(), planned)?;
        self.has_seen(stream.write_result().version);
        Ok(stream)
    }
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
        let of_a_query = v1::RepeatableAnswer { resume: "17-c0ffee".to_owned() }.encode_to_vec();
        assert_eq!(WriteResult::decode(&of_a_query), WriteResult::default());
    }

    #[test]
    fn only_answers_that_say_so_can_go_on() {
        let resume = |app_metadata: Vec<u8>| {
            let info = FlightInfo::new().with_app_metadata(app_metadata);
            let server = Url::parse("https://index:1").unwrap();
            Planned { server, info, again: None, in_transaction: false }.resume()
        };
        let answer = |text: &str| v1::RepeatableAnswer { resume: text.to_owned() }.encode_to_vec();
        assert_eq!(resume(answer("17-c0ffee")).unwrap(), "17-c0ffee");
        for none in [Vec::new(), v1::WriteResult { rows: 7, version: 3 }.encode_to_vec(), answer(""), answer("a\nb")] {
            assert_eq!(resume(none), None);
        }
    }
}
