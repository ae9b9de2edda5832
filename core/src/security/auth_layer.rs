//! Who may call what: the one layer in front of every service of every server.
//!
//! | path | who may call it |
//! |---|---|
//! | `/arrow.flight.protocol.FlightService/Handshake` | everybody: it is the login |
//! | `/arrow.flight.protocol.FlightService/*` | a user with a token, or a server with a certificate |
//! | `/drsdb.v1.Raft/*` | an index server with a certificate |
//! | everything else, `/drsdb.v1.*` and the query workers' services among it | a server with a certificate |
//!
//! A request with a token runs as that user, also when a server sends it: servers pass a user's request on with the
//! user's token. A bad token is refused and never ignored. Not here: whether the password is right (Handshake's
//! service), and what a user may do (the catalog).

use std::{
    convert::Infallible,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
};

use drsdb_proto::{ErrorCode, WireError};
use futures::future::{Either, Ready, ready};
use http::{HeaderMap, Request, Response, header::AUTHORIZATION};
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use super::{Identity, Peer, Role, identity::unauthenticated, keys::VerifyingKey, token};
use crate::{Error, Result};

const HANDSHAKE: &str = "/arrow.flight.protocol.FlightService/Handshake";
const FLIGHT: &str = "/arrow.flight.protocol.FlightService/";
const RAFT: &str = "/drsdb.v1.Raft/";

/// Says who a bearer token belongs to.
pub trait TokenVerifier: Send + Sync + 'static {
    /// The user that `token` (the text after `Bearer `) proves. Errors: `unauthenticated`, also when the login counts no
    /// more, and `unavailable` while the server cannot know.
    fn verify(&self, token: &str) -> Result<Identity>;
}

impl TokenVerifier for VerifyingKey {
    fn verify(&self, text: &str) -> Result<Identity> {
        token::verify(self, text)
    }
}

/// A verifier whose key arrives later: a storage server learns it when it registers.
#[derive(Debug, Default)]
pub struct LateKey {
    key: OnceLock<VerifyingKey>,
}

impl LateKey {
    /// Without a key: every token is refused as `unavailable`.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives the key. Errors: `internal` when there is another one already, for a cluster keeps its key.
    pub fn set(&self, key: VerifyingKey) -> Result<()> {
        let first = self.key.get_or_init(|| key.clone());
        if *first != key {
            return Err(Error::internal(
                "the cluster's signing key changed: is this server's data of another cluster?",
            ));
        }
        Ok(())
    }

    /// The key, for tickets. Errors: `unavailable` while there is none.
    pub fn get(&self) -> Result<&VerifyingKey> {
        self.key.get().ok_or_else(|| {
            WireError::new(ErrorCode::Unavailable, "this server has not joined its cluster yet")
                .with_hint("try again; if it lasts, check that its index servers run")
                .into()
        })
    }
}

impl TokenVerifier for LateKey {
    fn verify(&self, text: &str) -> Result<Identity> {
        token::verify(self.get()?, text)
    }
}

/// Wraps a server's routes; see the module's documentation. [`crate::net::serve`] does it.
#[derive(Clone)]
pub struct AuthLayer {
    verifier: Arc<dyn TokenVerifier>,
}

impl AuthLayer {
    /// Tokens are checked by `verifier`.
    pub fn new(verifier: Arc<dyn TokenVerifier>) -> Self {
        Self { verifier }
    }

    /// The request's identity, `None` for a login; or why it is refused.
    fn authorize(&self, path: &str, headers: &HeaderMap, peer: Option<Peer>) -> Result<Option<Identity>> {
        if path == HANDSHAKE {
            return Ok(None);
        }
        // Without a peer, the request came past the TLS listener: then nothing is proven.
        let role = peer.and_then(|peer| peer.role);
        if path.starts_with(FLIGHT) {
            return match (bearer_token(headers)?, role) {
                (Some(token), _) => self.verifier.verify(token).map(Some),
                (None, Some(role)) => Ok(Some(Identity::Server(role))),
                (None, None) => Err(unauthenticated()),
            };
        }
        let allowed = if path.starts_with(RAFT) { &[Role::Index][..] } else { &Role::ALL[..] };
        match role {
            Some(role) if allowed.contains(&role) => Ok(Some(Identity::Server(role))),
            Some(role) => {
                Err(Error::new(ErrorCode::PermissionDenied, format!("an {role} server may not call {}", short(path))))
            }
            None => Err(WireError::new(
                ErrorCode::PermissionDenied,
                format!(
                    "only servers of the cluster may call {}, and this connection shows no server's certificate",
                    short(path)
                ),
            )
            .with_hint(
                "clients speak Flight SQL; a server needs tls.certificate with its role's name, signed by tls.ca",
            )
            .into()),
        }
    }
}

/// A path as it may stand in a message.
fn short(path: &str) -> String {
    path.chars().take(100).collect()
}

/// The token in `authorization: Bearer <token>`; `None` without the header. Any other scheme is refused.
fn bearer_token(headers: &HeaderMap) -> Result<Option<&str>> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let refuse = |message: &str| -> Error {
        WireError::new(ErrorCode::Unauthenticated, message)
            .with_hint("send one header `authorization: Bearer <token>`, with the token that Handshake returned")
            .into()
    };
    if values.next().is_some() {
        return Err(refuse("there are several authorization headers"));
    }
    let text = value.to_str().map_err(|_| refuse("the authorization header is not text"))?;
    match text.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(Some(token.trim())),
        Some((scheme, _)) if scheme.eq_ignore_ascii_case("basic") => {
            Err(refuse("user and password are for Handshake alone"))
        }
        _ => Err(refuse("the authorization header has no bearer token")),
    }
}

impl<S> Layer<S> for AuthLayer {
    type Service = AuthService<S>;

    fn layer(&self, inner: S) -> AuthService<S> {
        AuthService { auth: self.clone(), inner }
    }
}

/// What [`AuthLayer`] makes of a service.
#[derive(Clone)]
pub struct AuthService<S> {
    auth: AuthLayer,
    inner: S,
}

impl<S, B> Service<Request<B>> for AuthService<S>
where
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<Ready<Result<Response<Body>, Infallible>>, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let peer = request.extensions().get::<Peer>().copied();
        // Nothing but this layer may say who sent the request.
        request.extensions_mut().remove::<Identity>();
        match self.auth.authorize(request.uri().path(), request.headers(), peer) {
            Ok(identity) => {
                if let Some(identity) = identity {
                    request.extensions_mut().insert(identity);
                }
                Either::Right(self.inner.call(request))
            }
            Err(error) => {
                let from = peer.map(|peer| peer.address);
                tracing::debug!(path = short(request.uri().path()), ?from, %error, "request refused");
                Either::Left(ready(Ok(Status::from(error).into_http())))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::HeaderValue;

    use super::*;
    use crate::security::{Login, keys::SigningKey};

    const DO_GET: &str = "/arrow.flight.protocol.FlightService/DoGet";
    const STAGE: &str = "/drsdb.v1.Storage/Stage";
    const WORKER: &str = "/worker.WorkerService/ExecuteTask";
    const APPEND: &str = "/drsdb.v1.Raft/Append";

    struct Fixture {
        auth: AuthLayer,
        token: String,
    }

    fn ada() -> Login {
        Login { user: "ada".to_owned(), credentials: 7 }
    }

    fn fixture() -> Fixture {
        let (key, _) = SigningKey::generate().unwrap();
        let token = token::issue(&key, &ada(), Duration::from_secs(60));
        Fixture { auth: AuthLayer::new(Arc::new(key.verifying_key())), token }
    }

    fn headers(values: &[&str]) -> HeaderMap {
        values.iter().map(|value| (AUTHORIZATION, HeaderValue::from_str(value).unwrap())).collect()
    }

    fn peer(role: Option<Role>) -> Option<Peer> {
        Some(Peer { address: ([127, 0, 0, 1], 1).into(), role })
    }

    impl Fixture {
        fn ask(&self, path: &str, authorization: &[&str], role: Option<Role>) -> Result<Option<Identity>, ErrorCode> {
            self.auth.authorize(path, &headers(authorization), peer(role)).map_err(|error| error.code())
        }
    }

    #[test]
    fn the_table_of_the_module_documentation_holds() {
        let f = fixture();
        let bearer = format!("Bearer {}", f.token);
        let ada = Ok(Some(Identity::User(ada())));
        let server = |role| Ok(Some(Identity::Server(role)));
        use ErrorCode::{PermissionDenied, Unauthenticated};

        assert_eq!(f.ask(HANDSHAKE, &[], None), Ok(None));
        assert_eq!(f.ask(HANDSHAKE, &["Basic YTpi"], None), Ok(None));

        assert_eq!(f.ask(DO_GET, &[&bearer], None), ada);
        assert_eq!(f.ask(DO_GET, &[&bearer], Some(Role::Index)), ada);
        assert_eq!(f.ask(DO_GET, &[], Some(Role::Storage)), server(Role::Storage));
        assert_eq!(f.ask(DO_GET, &[], None), Err(Unauthenticated));

        for path in [STAGE, WORKER, "/", "", "/drsdb.v2.Other/Call"] {
            for role in Role::ALL {
                assert_eq!(f.ask(path, &[], Some(role)), server(role));
            }
            assert_eq!(f.ask(path, &[], None), Err(PermissionDenied));
            assert_eq!(f.ask(path, &[&bearer], None), Err(PermissionDenied), "a token is no certificate");
        }
        assert_eq!(f.ask(APPEND, &[], Some(Role::Index)), server(Role::Index));
        assert_eq!(f.ask(APPEND, &[], Some(Role::Storage)), Err(PermissionDenied));
    }

    #[test]
    fn paths_that_look_like_the_login_are_not_it() {
        let f = fixture();
        for path in [
            "/arrow.flight.protocol.FlightService/Handshake/",
            "/arrow.flight.protocol.FlightService/handshake",
            "/arrow.flight.protocol.FlightService//Handshake",
            "/arrow.flight.protocol.FlightService/",
        ] {
            assert_eq!(f.ask(path, &[], None), Err(ErrorCode::Unauthenticated), "{path}");
        }
        assert_eq!(
            f.ask("/x/arrow.flight.protocol.FlightService/Handshake", &[], None),
            Err(ErrorCode::PermissionDenied)
        );
    }

    #[test]
    fn a_bad_authorization_header_is_refused_and_never_ignored() {
        let f = fixture();
        let good = format!("bearer {}", f.token);
        assert!(f.ask(DO_GET, &[&good], None).is_ok(), "the scheme's case does not matter");
        let bad = ["", "Bearer", "Bearer ", "Bearer x", "Basic YTpi", "Negotiate x", f.token.as_str()];
        for value in bad {
            assert_eq!(f.ask(DO_GET, &[value], None), Err(ErrorCode::Unauthenticated), "{value:?}");
            let server = f.ask(DO_GET, &[value], Some(Role::Index));
            assert_eq!(server, Err(ErrorCode::Unauthenticated), "a server's certificate does not mend {value:?}");
        }
        assert_eq!(f.ask(DO_GET, &[&good, &good], None), Err(ErrorCode::Unauthenticated));
    }

    #[test]
    fn without_a_tls_peer_nothing_is_proven() {
        let f = fixture();
        let error = f.auth.authorize(STAGE, &HeaderMap::new(), None).unwrap_err();
        assert_eq!(error.code(), ErrorCode::PermissionDenied);
    }

    #[test]
    fn a_key_that_is_not_there_yet_makes_the_server_unavailable() {
        let late = LateKey::new();
        assert_eq!(TokenVerifier::verify(&late, "x").unwrap_err().code(), ErrorCode::Unavailable);
        let (key, _) = SigningKey::generate().unwrap();
        late.set(key.verifying_key()).unwrap();
        late.set(key.verifying_key()).unwrap();
        let text = token::issue(&key, &ada(), Duration::from_secs(60));
        assert_eq!(late.verify(&text).unwrap(), Identity::User(ada()));
        let (other, _) = SigningKey::generate().unwrap();
        assert_eq!(late.set(other.verifying_key()).unwrap_err().code(), ErrorCode::Internal);
    }
}
