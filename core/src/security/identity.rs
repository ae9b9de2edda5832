//! Who sent a request: a user with a token, or a server of the cluster with a certificate.

use std::{fmt, net::SocketAddr};

use drsdb_proto::{ErrorCode, WireError};
use serde::{Deserialize, Serialize};
use x509_parser::{extensions::GeneralName, prelude::FromDer};

use crate::{Error, Result};

/// Names below this one say a server's role, and nothing else may have them.
pub(super) const INTERNAL_DOMAIN: &str = "drsdb.internal";

/// What a server of the cluster is. Its certificate says so, with [`Role::dns_name`] among its alternative names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Plans, and owns the catalog.
    Index,
    /// Stores, and runs queries.
    Storage,
}

impl Role {
    /// Every role.
    pub const ALL: [Role; 2] = [Role::Index, Role::Storage];

    /// The role's name: `index` or `storage`.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Index => "index",
            Role::Storage => "storage",
        }
    }

    /// The subject alternative name that gives a certificate this role.
    pub fn dns_name(self) -> &'static str {
        match self {
            Role::Index => "index.drsdb.internal",
            Role::Storage => "storage.drsdb.internal",
        }
    }

    /// The role in a certificate (DER) whose chain has been verified. One that claims several roles has none: a
    /// certificate is for one server.
    pub fn of_certificate(der: &[u8]) -> Option<Role> {
        let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(der).ok()?;
        let names = &certificate.subject_alternative_name().ok()??.value.general_names;
        let has = |role: Role| {
            let mut dns = names.iter().filter_map(|name| match name {
                GeneralName::DNSName(name) => Some(*name),
                _ => None,
            });
            dns.any(|name| name.eq_ignore_ascii_case(role.dns_name()))
        };
        match (has(Role::Index), has(Role::Storage)) {
            (true, false) => Some(Role::Index),
            (false, true) => Some(Role::Storage),
            _ => None,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The other end of a connection, as TLS proved it; every request of the connection has it among its extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Where it connects from.
    pub address: SocketAddr,
    /// What its certificate says it is; `None` for a client.
    pub role: Option<Role>,
}

/// A user, and what proved it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Login {
    /// The user's name.
    pub user: String,
    /// The catalog's version at which the user got the password that was shown. A name alone says too little: the user may
    /// have been dropped since, and somebody else have the name.
    pub credentials: u64,
}

/// Who sent a request. [`super::auth_layer::AuthLayer`] puts it among the request's extensions.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Identity {
    /// A user, by a token.
    User(Login),
    /// A server of the cluster, by its certificate.
    Server(Role),
}

impl Identity {
    /// Who sent `request`.
    pub fn of<T>(request: &tonic::Request<T>) -> Result<&Identity> {
        request.extensions().get().ok_or_else(unauthenticated)
    }

    /// The user's name; an error when a server asks in its own name.
    pub fn user(&self) -> Result<&str> {
        Ok(&self.login()?.user)
    }

    /// The user's login; an error when a server asks in its own name.
    pub fn login(&self) -> Result<&Login> {
        match self {
            Identity::User(login) => Ok(login),
            Identity::Server(role) => Err(WireError::new(
                ErrorCode::PermissionDenied,
                format!("this request needs a user, and an {role} server sent it in its own name"),
            )
            .with_hint("send the user's token along")
            .into()),
        }
    }

    /// The server's role; an error when a user asks.
    pub fn server(&self) -> Result<Role> {
        match self {
            Identity::Server(role) => Ok(*role),
            Identity::User(login) => Err(Error::new(
                ErrorCode::PermissionDenied,
                format!("user {:?} sent a request that only servers of the cluster may send", login.user),
            )),
        }
    }
}

/// The answer to a request that says nothing about its sender.
pub(super) fn unauthenticated() -> Error {
    WireError::new(ErrorCode::Unauthenticated, "nobody is logged in on this connection")
        .with_hint(
            "log in with user and password (Handshake), then send `authorization: Bearer <token>` with each request",
        )
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_without_identity_is_refused() {
        let error = Identity::of(&tonic::Request::new(())).unwrap_err();
        assert_eq!(error.code(), ErrorCode::Unauthenticated);
    }

    #[test]
    fn users_and_servers_are_not_mixed_up() {
        let mut request = tonic::Request::new(());
        let login = Login { user: "ada".to_owned(), credentials: 7 };
        request.extensions_mut().insert(Identity::User(login.clone()));
        let user = Identity::of(&request).unwrap();
        assert_eq!((user.user().unwrap(), user.login().unwrap()), ("ada", &login));
        assert_eq!(user.server().unwrap_err().code(), ErrorCode::PermissionDenied);
        let server = Identity::Server(Role::Storage);
        assert_eq!(server.server().unwrap(), Role::Storage);
        assert_eq!(server.user().unwrap_err().code(), ErrorCode::PermissionDenied);
    }

    #[test]
    fn garbage_is_not_a_role() {
        assert_eq!(Role::of_certificate(b""), None);
        assert_eq!(Role::of_certificate(&[0x30; 200]), None);
    }
}
