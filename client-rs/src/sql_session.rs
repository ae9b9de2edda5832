//! What a session is to the client: cookies, and where its SQL transaction is.
//!
//! Servers keep nothing about a session but its open transaction, which lives on the index server that began it.

use parking_lot::Mutex;
use tonic::metadata::MetadataMap;
use url::Url;

use crate::{Error, ErrorCode, cookies::CookieJar, sql_text::Step};

/// A session; clones of a client share it.
#[derive(Debug, Default)]
pub(crate) struct SqlSession {
    cookies: Mutex<CookieJar>,
    /// The index server that has the transaction that BEGIN opened.
    transaction: Mutex<Option<Url>>,
}

impl SqlSession {
    /// Adds the cookies to a request.
    pub fn apply(&self, request: &mut MetadataMap) {
        self.cookies.lock().apply(request);
    }

    /// Takes the cookies of an answer.
    pub fn take(&self, answer: &MetadataMap) {
        self.cookies.lock().take(answer);
    }

    /// Where the open transaction is; none is open: nowhere.
    pub fn transaction(&self) -> Option<Url> {
        self.transaction.lock().clone()
    }

    /// `server` carried out a statement that begins or ends a transaction.
    pub fn stepped(&self, step: Step, server: &Url) {
        *self.transaction.lock() = match step {
            Step::Begin => Some(server.clone()),
            Step::Commit | Step::Rollback => None,
        };
    }

    /// A statement that begins or ends a transaction failed.
    pub fn step_failed(&self, step: Step, error: &Error) {
        // What is refused as it stands has changed nothing; every other failed COMMIT has ended the transaction.
        let refused = matches!(error.code(), ErrorCode::Syntax | ErrorCode::Unauthenticated | ErrorCode::Unavailable);
        if step != Step::Begin && !refused {
            self.lost();
        }
    }

    /// The transaction is over, whatever became of it.
    pub fn lost(&self) {
        *self.transaction.lock() = None;
    }
}
