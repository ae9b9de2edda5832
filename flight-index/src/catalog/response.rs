//! What came of a command. Responses are as deterministic as states: a refusal is one too.

use std::collections::BTreeMap;

use drsdb_core::{Error, ErrorCode, WireError};
use serde::{Deserialize, Serialize};

/// What came of a [`super::Command`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    /// The state is as the command asked.
    Done {
        /// False when it was so before: IF EXISTS, IF NOT EXISTS, a repetition.
        changed: bool,
    },
    /// What is decided about a transaction, now or earlier.
    Transaction(Outcome),
    /// The command was refused, and the state did not change (but see
    /// [`super::Command::CommitTransaction`]: a transaction that cannot commit is aborted).
    Error(Refusal),
}

/// What is decided about a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Its rows are visible at snapshots >= `version`.
    Committed {
        /// The commit version.
        version: u64,
        /// Rows inserted and deleted; of an update, which does both, the rows updated.
        #[serde(default)]
        rows: u64,
    },
    /// It never commits.
    Aborted,
}

/// A deterministic error, as it is stored and replicated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    code: String,
    message: String,
    hint: String,
    fields: BTreeMap<String, String>,
}

impl Response {
    /// The response, or the refusal as an error.
    pub fn into_result(self) -> Result<Response, Error> {
        match self {
            Response::Error(refusal) => Err(refusal.into_wire().into()),
            done => Ok(done),
        }
    }
}

impl Refusal {
    /// The error it stands for.
    pub fn into_wire(self) -> WireError {
        let code = ErrorCode::ALL.iter().copied().find(|code| code.as_str() == self.code);
        WireError {
            code: code.unwrap_or(ErrorCode::Internal),
            message: self.message,
            hint: self.hint,
            fields: self.fields,
        }
    }
}

impl From<WireError> for Refusal {
    fn from(error: WireError) -> Self {
        Self { code: error.code.as_str().to_owned(), message: error.message, hint: error.hint, fields: error.fields }
    }
}
