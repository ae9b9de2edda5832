//! Calls to index servers: which is asked, in whose name, and what follows when it does not answer.
//!
//! ```text
//!   read              -> next server, each once
//!   write, by its id  -> next server, each once; when it may have been done somewhere, all of them again, a few times
//!   end of a transaction: its own server, then as a write
//!   in a transaction  -> its own server only; when that is lost, so is the transaction
//! ```

use std::{sync::atomic::Ordering, time::Duration};

use arrow_flight::flight_service_client::FlightServiceClient;
use drsdb_proto::{ErrorCode, WireError};
use tonic::{
    Request, Response, Status,
    metadata::{MetadataMap, MetadataValue},
    transport::Channel,
};
use url::Url;

use crate::{
    Client, Error, Result,
    error::{Failure, FailureKind, name_of},
    route::{Kind, Place, Route},
    session::Authorization,
};

/// The header that names a write, so that a repeated one is done once.
const STATEMENT_HEADER: &str = "drsdb-statement-id";

/// The header with the highest commit version that this client has seen: whoever answers must be at least there.
const VERSION_HEADER: &str = "drsdb-version";

/// Waits before the servers are asked again what became of a write. Another leader of the index servers is there after
/// about as long.
const ASK_AGAIN_AFTER: [Duration; 3] =
    [Duration::from_millis(200), Duration::from_millis(800), Duration::from_millis(2000)];

impl Client {
    /// Calls index servers as `route` says until one answers. `send` gets a request with the login in it.
    pub(crate) async fn call<T, F>(
        &self,
        route: &Route,
        send: impl Fn(FlightServiceClient<Channel>, Request<()>) -> F,
    ) -> Result<(Url, T)>
    where
        F: Future<Output = Result<(MetadataMap, T), Status>>,
    {
        let mut pauses = ASK_AGAIN_AFTER.into_iter();
        let mut failures: Vec<Error> = Vec::new();
        // Whether a server may have carried it out although no answer came.
        let mut maybe_done = false;
        loop {
            let mut tried: Vec<Url> = Vec::new();
            loop {
                let next = route.next(&self.inner.rotation.lock(), &tried);
                let Some(server) = next else { break };
                let Failure { kind, error } = match self.call_one(&server, route.kind, &send).await {
                    Ok(answer) => {
                        self.answered(&server, route);
                        return Ok((server, answer));
                    }
                    Err(failure) => failure,
                };
                tracing::debug!(server = %server, %error, "index server does not answer");
                if kind == FailureKind::Answered {
                    self.answered(&server, route);
                    if is_final(route, &error, maybe_done) {
                        return Err(error);
                    }
                } else {
                    self.inner.rotation.lock().failed(&server);
                }
                if kind == FailureKind::Lost && !route.kind.is_repeatable() {
                    return Err(self.lost(route, error, true));
                }
                maybe_done |= match route.kind {
                    Kind::Write(_) => kind == FailureKind::Lost || error.is_outcome_unknown(),
                    Kind::End => kind != FailureKind::NotSent,
                    Kind::Read | Kind::Single(_) => false,
                };
                failures.push(error);
                tried.push(server);
            }
            match pauses.next() {
                Some(pause) if maybe_done && !route.is_pinned() => {
                    wait(pause).await;
                    failures.clear();
                }
                _ => return Err(self.lost(route, nobody_answers(failures), maybe_done)),
            }
        }
    }

    async fn call_one<T, F>(
        &self,
        server: &Url,
        kind: Kind,
        send: impl Fn(FlightServiceClient<Channel>, Request<()>) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<(MetadataMap, T), Status>>,
    {
        let inner = &self.inner;
        let flight = inner.channels.flight(server).map_err(|error| Failure { kind: FailureKind::Answered, error })?;
        let mut authorization = inner.session.authorization(&flight, server).await.map_err(not_sent)?;
        let mut renewed = false;
        loop {
            let mut request = Request::new(());
            authorization.apply(&mut request);
            let headers = request.metadata_mut();
            self.sql_session.apply(headers);
            if let Some(id) = kind.statement() {
                let text = id.to_string().parse().expect("a ULID's text is a header value");
                headers.insert(STATEMENT_HEADER, text);
            }
            let seen = inner.seen_version.load(Ordering::Acquire);
            if seen > 0 {
                headers.insert(VERSION_HEADER, MetadataValue::from(seen));
            }
            let failure = match send(flight.clone(), request).await {
                Ok((metadata, answer)) => {
                    self.sql_session.take(&metadata);
                    return Ok(answer);
                }
                Err(status) => {
                    self.sql_session.take(status.metadata());
                    Failure::of_status(status, server)
                }
            };
            let refused = failure.kind == FailureKind::Answered && failure.error.code() == ErrorCode::Unauthenticated;
            if !refused || renewed || !inner.session.refused(&authorization) {
                return Err(failure);
            }
            authorization = inner.session.authorization(&flight, server).await.map_err(not_sent)?;
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
            self.call(&Route::anywhere(Kind::Read), |_, _| async { Ok((MetadataMap::new(), ())) }).await?;
        }
    }

    /// Remembers a commit version: what is read from now on includes it, at whichever index server.
    pub(crate) fn has_seen(&self, version: u64) {
        self.inner.seen_version.fetch_max(version, Ordering::AcqRel);
    }

    /// Notes that `server` lives, and fetches a new list of index servers in the background if one is due.
    fn answered(&self, server: &Url, route: &Route) {
        let due = {
            let mut rotation = self.inner.rotation.lock();
            match route.place {
                Place::Anywhere => rotation.succeeded(server),
                Place::First(_) | Place::Only(_) => rotation.lives(server),
            }
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

    /// The error of a call that nobody answered.
    fn lost(&self, route: &Route, error: Error, maybe_done: bool) -> Error {
        // Servers that answered that something behind them is unavailable have lost nothing.
        let server_lost = error.field("answered_by").is_none();
        match &route.place {
            Place::Only(server) if server_lost => {
                self.transaction_lost();
                transaction_lost(server, &error)
            }
            _ if maybe_done => outcome_unknown(&error),
            _ => error,
        }
    }
}

/// Whether a server's answer is the last word.
fn is_final(route: &Route, error: &Error, maybe_done: bool) -> bool {
    if !route.kind.is_repeatable() {
        return true;
    }
    match error.code() {
        // Another server may reach what this one does not.
        ErrorCode::Unavailable => route.is_pinned(),
        // It says nothing of an earlier attempt, which may be under way somewhere still, and which this one may have met:
        // later that is answered by its id.
        ErrorCode::Conflict
        | ErrorCode::ConstraintViolation
        | ErrorCode::ResourceExhausted
        | ErrorCode::DiskFull
        | ErrorCode::Cancelled
        | ErrorCode::Timeout
        | ErrorCode::Corrupt
        | ErrorCode::Internal => !(maybe_done && matches!(route.kind, Kind::Write(_))),
        // Of the statement itself: every attempt is told so.
        _ => true,
    }
}

/// An answer with its headers.
pub(crate) fn answer_of<T>(response: Response<T>) -> (MetadataMap, T) {
    let (metadata, answer, _) = response.into_parts();
    (metadata, answer)
}

/// Of a failed login: the request itself was not sent yet, whatever became of the login.
fn not_sent(failure: Failure) -> Failure {
    let kind = if failure.kind == FailureKind::Lost { FailureKind::NotSent } else { failure.kind };
    Failure { kind, ..failure }
}

/// Lets time pass.
// Other processes must come to a state that nobody here is told of.
#[allow(clippy::disallowed_methods)]
pub(crate) async fn wait(time: Duration) {
    tokio::time::sleep(time).await;
}

fn outcome_unknown(error: &Error) -> Error {
    let mut wire: WireError = error.wire().clone();
    wire.message = format!("the outcome of the statement is unknown: {}", wire.message);
    wire.hint = "look whether it took effect before running it again".to_owned();
    wire.with_field("outcome", "unknown").into()
}

fn transaction_lost(server: &Url, cause: &Error) -> Error {
    let server = name_of(server);
    WireError::new(
        ErrorCode::Conflict,
        format!("the transaction is over: the index server {server}, where it was, is lost: {}", cause.message()),
    )
    .with_hint("nothing of it took effect: run it again from its start")
    .with_field("transaction", "lost")
    .with_field("server", server)
    .into()
}

fn nobody_answers(mut failures: Vec<Error>) -> Error {
    if failures.len() == 1 {
        return failures.remove(0);
    }
    // What a server says about others is worth more than the servers that merely do not run.
    if let Some(at) = failures.iter().position(|error| error.field("answered_by").is_some()) {
        return failures.remove(at);
    }
    let causes: Vec<&str> = failures.iter().map(Error::message).collect();
    // A certificate that is refused is worth more too.
    let code = failures.iter().map(Error::code).find(|&code| code != ErrorCode::Unavailable);
    WireError::new(code.unwrap_or(ErrorCode::Unavailable), format!("no index server answers: {}", causes.join("; ")))
        .with_hint("check the addresses, and whether the index servers run")
        .into()
}
