//! ALTER CLUSTER, which changes what servers there are:
//!
//! ```text
//! ALTER CLUSTER ADD INDEX SERVER 4 'https://host:7432'
//! ALTER CLUSTER REMOVE INDEX SERVER 4
//! ALTER CLUSTER {ADD | DRAIN | REMOVE} STORAGE SERVER '01J...'
//! SHOW CLUSTER
//! ```

use datafusion::sql::sqlparser::tokenizer::{Span, TokenWithSpan};
use drsdb_core::{ErrorCode, Result, Ulid, WireError, parse_ulid};
use url::Url;

use super::{Show, Statement, cursor::Cursor, names};

const HINT: &str = "ALTER CLUSTER ADD INDEX SERVER 4 'https://host:port', ALTER CLUSTER REMOVE INDEX SERVER 4, ALTER CLUSTER \
                    {ADD | DRAIN | REMOVE} STORAGE SERVER 'id'";

/// What ALTER CLUSTER changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AlterCluster {
    /// A new index server, which runs and waits.
    AddIndexServer {
        /// Its number.
        id: u64,
        /// `https://host:port`.
        url: String,
    },
    /// An index server that votes no more.
    RemoveIndexServer {
        /// Its number.
        id: u64,
    },
    /// A storage server that takes shards (again).
    AddStorageServer {
        /// Its id.
        id: Ulid,
    },
    /// A storage server whose shards go elsewhere.
    DrainStorageServer {
        /// Its id.
        id: Ulid,
    },
    /// A storage server that is gone for good.
    RemoveStorageServer {
        /// Its id.
        id: Ulid,
    },
}

/// The statement, if the tokens begin like one.
pub fn parse(tokens: &[TokenWithSpan]) -> Result<Option<Statement>> {
    let mut cursor = Cursor::new(tokens, HINT);
    if cursor.word("SHOW") && cursor.word("CLUSTER") {
        cursor.end()?;
        return Ok(Some(Statement::Show(Show::Cluster)));
    }
    let mut cursor = Cursor::new(tokens, HINT);
    if !(cursor.word("ALTER") && cursor.word("CLUSTER")) {
        return Ok(None);
    }
    let verb = ["ADD", "DRAIN", "REMOVE"].into_iter().find(|verb| cursor.word(verb));
    let verb = verb.ok_or_else(|| cursor.expected("ADD, DRAIN or REMOVE"))?;
    let index = verb != "DRAIN" && cursor.word("INDEX");
    if !index && !cursor.word("STORAGE") {
        let what = if verb == "DRAIN" { "STORAGE SERVER" } else { "INDEX SERVER or STORAGE SERVER" };
        return Err(cursor.expected(what));
    }
    cursor.expect_word("SERVER")?;
    let change = match (index, verb) {
        (true, "ADD") => {
            let id = cursor.number("the new server's node_id")?;
            let (url, span) = cursor.text("its URL in single quotes")?;
            AlterCluster::AddIndexServer { id, url: checked_url(&url, span)? }
        }
        (true, _) => AlterCluster::RemoveIndexServer { id: cursor.number("a server's node_id")? },
        (false, verb) => {
            let (text, span) = cursor.text("a server's id in single quotes")?;
            let id = parse_ulid(&text).map_err(|_| {
                let message = format!("{text:?} is not a storage server's id");
                let error = WireError::new(ErrorCode::InvalidArgument, message).with_hint("SHOW CLUSTER lists them");
                names::positioned(error, span.start)
            })?;
            match verb {
                "ADD" => AlterCluster::AddStorageServer { id },
                "DRAIN" => AlterCluster::DrainStorageServer { id },
                _ => AlterCluster::RemoveStorageServer { id },
            }
        }
    };
    cursor.end()?;
    Ok(Some(Statement::AlterCluster(change)))
}

/// A server's URL as it writes it itself.
fn checked_url(text: &str, span: Span) -> Result<String> {
    let url = Url::parse(text).ok().filter(|url| url.scheme() == "https" && url.has_host() && url.path() == "/");
    match url {
        Some(url) => Ok(url.to_string()),
        None => {
            let message = format!("an index server's URL is https://host:port, not {text:?}");
            Err(names::positioned(WireError::new(ErrorCode::InvalidArgument, message), span.start).into())
        }
    }
}
