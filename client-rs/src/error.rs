//! The client's error, and what a failed call says about the server: did it get the request, and did it answer?

use std::error::Error as StdError;

use arrow::error::ArrowError;
use arrow_flight::error::FlightError;
use drsdb_proto::{ErrorCode, WireError};
use tonic::{Code, Status};
use url::Url;

use crate::tls::ConnectError;

/// The result of everything that can fail in the client.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error with a code of the closed set, a message, a hint and typed fields: the server's own, or the client's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(transparent)]
pub struct Error(Box<WireError>);

impl Error {
    /// An error of `code` that says `message`.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        WireError::new(code, message).into()
    }

    /// The kind.
    pub fn code(&self) -> ErrorCode {
        self.0.code
    }

    /// What is wrong.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// What to change; may be empty.
    pub fn hint(&self) -> &str {
        &self.0.hint
    }

    /// A typed detail: `line`, `column`, `table`, `server`, ...
    pub fn field(&self, name: &str) -> Option<&str> {
        self.0.fields.get(name).map(String::as_str)
    }

    /// Whether nothing took effect, and running the transaction again from its start may succeed: another one was in the
    /// way, a statement met a storage server that is gone, or a query outside of a transaction lost one while its rows came.
    pub fn is_retryable(&self) -> bool {
        !self.is_outcome_unknown() && (self.code() == ErrorCode::Conflict || self.field("outcome") == Some("none"))
    }

    /// Whether a transaction that ended in this error, wherever in it, may be run again. What is unavailable has not
    /// committed it, be it a statement, a query or its very beginning.
    pub(crate) fn allows_another_run(&self) -> bool {
        self.is_retryable() || self.code() == ErrorCode::Unavailable && !self.is_outcome_unknown()
    }

    /// Of a result that lost a server after rows of it were handed out, which come in another order the next time. What the
    /// transport has to say is for nobody to read, and stays in the field `cause`.
    pub(crate) fn cannot_go_on(&self) -> Self {
        let what = match (self.code(), self.field("server")) {
            (ErrorCode::Unavailable, Some(server)) => format!("server {server} was lost"),
            _ => self.message().to_owned(),
        };
        let mut wire: WireError = self.wire().clone();
        wire.message = format!(
            "{what}, and the result cannot go on elsewhere: rows of it were handed out, and their order is not definite"
        );
        wire.hint =
            "run the query again, or give it an ORDER BY that leaves no choice: by a key, say, or by all columns"
                .to_owned();
        wire.with_field("cause", self.message()).into()
    }

    /// Of a query: nothing took effect.
    pub(crate) fn of_a_query(&self) -> Self {
        self.wire().clone().with_field("outcome", "none").into()
    }

    /// Whether nobody could say if the statement took effect.
    pub fn is_outcome_unknown(&self) -> bool {
        self.field("outcome") == Some("unknown")
    }

    /// The whole error.
    pub fn wire(&self) -> &WireError {
        &self.0
    }
}

impl From<WireError> for Error {
    fn from(error: WireError) -> Self {
        Error(Box::new(error))
    }
}

impl From<ArrowError> for Error {
    fn from(error: ArrowError) -> Self {
        // A typed error that passed through Arrow's readers comes back whole.
        if let ArrowError::ExternalError(inner) = &error {
            if let Some(typed) = inner.downcast_ref::<Error>() {
                return typed.clone();
            }
            if let Some(wire) = inner.downcast_ref::<WireError>() {
                return wire.clone().into();
            }
        }
        Error::new(ErrorCode::InvalidValue, error.to_string())
    }
}

/// Why a call to a server failed.
#[derive(Debug)]
pub(crate) struct Failure {
    pub kind: FailureKind,
    pub error: Error,
}

/// What is known about the request after a failed call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FailureKind {
    /// There was no connection: the server never saw the request.
    NotSent,
    /// The connection broke after the request was sent: the server may have done it.
    Lost,
    /// The server answered with an error.
    Answered,
}

/// The trailer that carries drsdb's error details; a status that has it was written by a server and by nothing between.
const DETAIL_KEY: &str = "drsdb-error-bin";

impl Failure {
    /// Classifies the status of a call to `server`.
    pub fn of_status(status: Status, server: &Url) -> Self {
        let server = name_of(server);
        if let Some(connect) = connect_error(&status) {
            return Failure { kind: FailureKind::NotSent, error: connect.to_wire(&server).into() };
        }
        let typed = status.metadata().get_bin(DETAIL_KEY).is_some();
        // A status with a source was made here, from a broken stream; drsdb's servers never send the other codes bare.
        let broken =
            status.source().is_some() || matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Internal);
        if !typed && broken {
            let cause = root_cause(&status);
            let error = WireError::new(ErrorCode::Unavailable, format!("the connection to {server} broke: {cause}"))
                .with_hint("run it again; if it stays like this, look at that server")
                .with_field("server", &server);
            return Failure { kind: FailureKind::Lost, error: error.into() };
        }
        let mut error = WireError::from(status);
        error.fields.entry("answered_by".to_owned()).or_insert(server);
        Failure { kind: FailureKind::Answered, error: error.into() }
    }

    /// Classifies an error of Flight's decoder on a stream from `server`.
    pub fn of_flight(error: FlightError, server: &Url) -> Self {
        match error {
            FlightError::Tonic(status) => Self::of_status(*status, server),
            FlightError::ExternalError(inner) => match inner.downcast::<Error>() {
                Ok(error) => Failure { kind: FailureKind::Answered, error: *error },
                Err(inner) => Self::broken_data(&inner.to_string(), server),
            },
            other => Self::broken_data(&other.to_string(), server),
        }
    }

    /// The server sent what the protocol does not allow.
    pub fn broken_data(what: &str, server: &Url) -> Self {
        let server = name_of(server);
        let error = WireError::new(ErrorCode::Corrupt, format!("{server} sent data that cannot be read: {what}"));
        Failure { kind: FailureKind::Answered, error: error.with_field("server", server).into() }
    }
}

/// A server as error messages name it: `https://host:port`, without the slash that URLs end with.
pub(crate) fn name_of(server: &Url) -> String {
    server.as_str().trim_end_matches('/').to_owned()
}

fn connect_error(status: &Status) -> Option<&ConnectError> {
    let mut source = status.source();
    while let Some(current) = source {
        if let Some(connect) = current.downcast_ref::<ConnectError>() {
            return Some(connect);
        }
        source = current.source();
    }
    None
}

fn root_cause(status: &Status) -> String {
    let mut cause = status.message().to_owned();
    let mut source = status.source();
    while let Some(current) = source {
        let io = current.downcast_ref::<std::io::Error>();
        if io.is_some_and(|error| error.kind() == std::io::ErrorKind::UnexpectedEof) {
            return "it was closed without a farewell, as by a server that died".to_owned();
        }
        cause = current.to_string();
        source = current.source();
    }
    cause
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> Url {
        Url::parse("https://127.0.0.1:1").unwrap()
    }

    #[test]
    fn a_servers_own_unavailable_is_an_answer() {
        let status = Status::from(WireError::new(ErrorCode::Unavailable, "shard 3 has no server"));
        let failure = Failure::of_status(status, &server());
        assert_eq!(failure.kind, FailureKind::Answered);
        assert_eq!(failure.error.message(), "shard 3 has no server");
    }

    #[test]
    fn what_surely_did_nothing_may_be_run_again() {
        let error = |code, outcome: Option<&str>| {
            let error = WireError::new(code, "m");
            Error::from(match outcome {
                Some(outcome) => error.with_field("outcome", outcome),
                None => error,
            })
        };
        for (code, outcome, retryable, another_run) in [
            (ErrorCode::Conflict, None, true, true),
            (ErrorCode::Conflict, Some("unknown"), false, false),
            (ErrorCode::Unavailable, Some("none"), true, true),
            // A statement of its own may have done something before the answer was lost.
            (ErrorCode::Unavailable, None, false, true),
            (ErrorCode::Unavailable, Some("unknown"), false, false),
            (ErrorCode::InvalidValue, None, false, false),
        ] {
            let error = error(code, outcome);
            assert_eq!((error.is_retryable(), error.allows_another_run()), (retryable, another_run), "{error:?}");
        }
    }

    #[test]
    fn a_result_that_cannot_go_on_names_the_server_and_says_what_to_do() {
        let answer = |error: WireError| Failure::of_status(error.into(), &server()).error;
        let unavailable = |text: &str| WireError::new(ErrorCode::Unavailable, text);
        for (cause, says) in [
            (
                Failure::of_status(Status::unknown("h2 protocol error"), &server()).error,
                "server https://127.0.0.1:1 was lost,",
            ),
            (
                answer(unavailable("transport error").with_field("server", "https://b:1")),
                "server https://b:1 was lost,",
            ),
            (answer(unavailable("a storage server did nothing")), "a storage server did nothing,"),
            (answer(WireError::new(ErrorCode::Corrupt, "segment 7 is damaged")), "segment 7 is damaged,"),
        ] {
            let error = cause.cannot_go_on();
            assert!(error.message().starts_with(says) && error.hint().contains("ORDER BY"), "{error}");
            assert_eq!((error.code(), error.field("cause")), (cause.code(), Some(cause.message())));
            assert_eq!(error.field("server"), cause.field("server"));
            assert!(!error.is_retryable() && error.of_a_query().is_retryable(), "{error:?}");
        }
    }

    #[test]
    fn a_stream_without_an_end_is_lost_and_names_the_server() {
        let failure = Failure::of_status(Status::unknown("missing grpc-status trailer"), &server());
        assert_eq!(failure.kind, FailureKind::Lost);
        assert_eq!(failure.error.code(), ErrorCode::Unavailable);
        assert_eq!(failure.error.field("server"), Some("https://127.0.0.1:1"));
        assert!(failure.error.message().contains("https://127.0.0.1:1"));
    }

    #[test]
    fn a_typed_error_passes_through_arrow() {
        let error = Error::new(ErrorCode::InvalidValue, "line 3");
        assert_eq!(Error::from(ArrowError::ExternalError(Box::new(error.clone()))), error);
    }
}
