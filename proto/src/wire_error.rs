//! The closed set of errors, and their one mapping to gRPC and back.

use std::collections::BTreeMap;

use prost::Message;
use tonic::{Code, Status, metadata::MetadataValue};

use crate::v1;

const DETAIL_KEY: &str = "drsdb-error-bin";

macro_rules! error_codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal => $grpc:ident),+ $(,)?) => {
        /// What kind of error it is. Closed: a client may match on it, and the text form never changes.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum ErrorCode { $($(#[$doc])* $name),+ }

        impl ErrorCode {
            /// Every code.
            pub const ALL: &'static [ErrorCode] = &[$(ErrorCode::$name),+];

            /// The code's stable text form.
            pub fn as_str(self) -> &'static str {
                match self { $(ErrorCode::$name => $text),+ }
            }

            fn grpc(self) -> Code {
                match self { $(ErrorCode::$name => Code::$grpc),+ }
            }
        }
    };
}

error_codes! {
    /// The SQL text cannot be parsed; fields: `line`, `column`.
    Syntax = "syntax_error" => InvalidArgument,
    /// A table, column, function or type that does not exist; the hint names the nearest.
    NotFound = "not_found" => NotFound,
    /// It exists already.
    AlreadyExists = "already_exists" => AlreadyExists,
    /// An expression's or a value's type does not fit.
    TypeMismatch = "type_mismatch" => InvalidArgument,
    /// A value that its type or operation cannot hold: overflow, division by zero, a broken line of a file.
    InvalidValue = "invalid_value" => InvalidArgument,
    /// Any other request that cannot be carried out as it stands.
    InvalidArgument = "invalid_argument" => InvalidArgument,
    /// NOT NULL, PRIMARY KEY, UNIQUE, CHECK or FOREIGN KEY; fields: `constraint`, `key`.
    ConstraintViolation = "constraint_violation" => FailedPrecondition,
    /// Nobody is logged in, the password is wrong or the token has ended.
    Unauthenticated = "unauthenticated" => Unauthenticated,
    /// Logged in, but not allowed.
    PermissionDenied = "permission_denied" => PermissionDenied,
    /// A ticket that is altered, garbage, or another user's.
    TicketInvalid = "ticket_invalid" => PermissionDenied,
    /// A ticket whose time is over: run the query again.
    TicketExpired = "ticket_expired" => PermissionDenied,
    /// A server that is needed does not answer; field: `server`. Safe to retry a read.
    Unavailable = "unavailable" => Unavailable,
    /// Another transaction committed first: run this one again.
    Conflict = "conflict" => Aborted,
    /// More memory than the query may use, or a request that is too large.
    ResourceExhausted = "resource_exhausted" => ResourceExhausted,
    /// A server's disk is full; field: `server`.
    DiskFull = "disk_full" => ResourceExhausted,
    /// SQL that drsdb does not do.
    Unsupported = "unsupported" => Unimplemented,
    /// The client cancelled it or went away.
    Cancelled = "cancelled" => Cancelled,
    /// It took longer than it may.
    Timeout = "timeout" => DeadlineExceeded,
    /// Data on disk does not match its checksum.
    Corrupt = "corrupt" => DataLoss,
    /// A defect in drsdb.
    Internal = "internal" => Internal,
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An error as it crosses the wire: every server's error type turns into this one, and clients get it back whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}{}", hint_suffix(.hint))]
pub struct WireError {
    /// The kind.
    pub code: ErrorCode,
    /// What is wrong.
    pub message: String,
    /// What to change; may be empty.
    pub hint: String,
    /// Typed details: line, column, table, constraint, server, ...
    pub fields: BTreeMap<String, String>,
}

fn hint_suffix(hint: &str) -> String {
    if hint.is_empty() { String::new() } else { format!(". Hint: {hint}") }
}

impl WireError {
    /// An error without hint and fields.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: String::new(), fields: BTreeMap::new() }
    }

    /// The same with a hint.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// The same with one more field.
    pub fn with_field(mut self, name: &str, value: impl ToString) -> Self {
        self.fields.insert(name.to_owned(), value.to_string());
        self
    }

    /// The protobuf form.
    pub fn to_detail(&self) -> v1::ErrorDetail {
        v1::ErrorDetail {
            code: self.code.as_str().to_owned(),
            message: self.message.clone(),
            hint: self.hint.clone(),
            fields: self.fields.clone().into_iter().collect(),
        }
    }

    /// Back from the protobuf form; a code this version does not know becomes [`ErrorCode::Internal`].
    pub fn from_detail(detail: v1::ErrorDetail) -> Self {
        let code = ErrorCode::ALL.iter().copied().find(|code| code.as_str() == detail.code);
        Self {
            code: code.unwrap_or(ErrorCode::Internal),
            message: detail.message,
            hint: detail.hint,
            fields: detail.fields.into_iter().collect(),
        }
    }
}

impl From<WireError> for Status {
    fn from(error: WireError) -> Status {
        let mut detail = error.to_detail();
        let mut message = error.to_string();
        // Trailers are headers, and gRPC stacks refuse large ones: a message that quotes a huge text is cut.
        truncate(&mut message, 2048);
        truncate(&mut detail.message, 2048);
        let mut status = Status::new(error.code.grpc(), message);
        status.metadata_mut().insert_bin(DETAIL_KEY, MetadataValue::from_bytes(&detail.encode_to_vec()));
        status
    }
}

fn truncate(text: &mut String, limit: usize) {
    if text.len() > limit {
        let end = (0..=limit).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.truncate(end);
        text.push_str(" [...]");
    }
}

impl From<Status> for WireError {
    fn from(status: Status) -> WireError {
        let detail = status
            .metadata()
            .get_bin(DETAIL_KEY)
            .and_then(|value| value.to_bytes().ok())
            .and_then(|bytes| v1::ErrorDetail::decode(bytes).ok());
        if let Some(detail) = detail {
            return WireError::from_detail(detail);
        }
        let code = match status.code() {
            Code::InvalidArgument | Code::OutOfRange => ErrorCode::InvalidArgument,
            Code::NotFound => ErrorCode::NotFound,
            Code::AlreadyExists => ErrorCode::AlreadyExists,
            Code::Unauthenticated => ErrorCode::Unauthenticated,
            Code::PermissionDenied => ErrorCode::PermissionDenied,
            Code::Unavailable => ErrorCode::Unavailable,
            Code::Aborted => ErrorCode::Conflict,
            Code::ResourceExhausted => ErrorCode::ResourceExhausted,
            Code::Unimplemented => ErrorCode::Unsupported,
            Code::Cancelled => ErrorCode::Cancelled,
            Code::DeadlineExceeded => ErrorCode::Timeout,
            Code::DataLoss => ErrorCode::Corrupt,
            _ => ErrorCode::Internal,
        };
        WireError::new(code, status.message())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_survives_the_wire() {
        for &code in ErrorCode::ALL {
            let error = WireError::new(code, "message").with_hint("change it").with_field("line", 7);
            assert_eq!(WireError::from(Status::from(error.clone())), error);
        }
    }

    #[test]
    fn a_huge_message_is_cut_and_stays_text() {
        let error = WireError::new(ErrorCode::Syntax, "ä".repeat(1 << 20));
        let back = WireError::from(Status::from(error));
        assert_eq!(back.code, ErrorCode::Syntax);
        assert!(back.message.len() < 4096);
    }
}
