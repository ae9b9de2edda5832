//! The login: a password becomes a bearer token, and a token that is about to end becomes a new one.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use arrow_flight::{HandshakeRequest, flight_service_client::FlightServiceClient};
use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use drsdb_proto::{ErrorCode, ids::unix_ms, v1};
use futures::TryStreamExt;
use parking_lot::RwLock;
use prost::Message;
use tonic::{Request, Status, metadata::AsciiMetadataValue, transport::Channel};
use url::Url;

use crate::{
    ClientOptions, Error, Secret,
    error::{Failure, FailureKind},
};

/// A token, ready to be a header.
#[derive(Debug, Clone)]
pub(crate) struct Authorization {
    header: Option<AsciiMetadataValue>,
    /// Counts logins; tells a stale token from the current one.
    generation: u64,
    /// From then on a new login is made first, so that nothing begins with a token that ends under way.
    renew_unix_ms: Option<u64>,
}

impl Authorization {
    /// Adds it to a request.
    pub fn apply<T>(&self, request: &mut Request<T>) {
        if let Some(header) = &self.header {
            request.metadata_mut().insert("authorization", header.clone());
        }
    }
}

/// Who the client is.
pub(crate) struct Session {
    login: Option<(String, Secret)>,
    current: RwLock<Option<Authorization>>,
    logins: AtomicU64,
    /// Held during a login, so that many calls at once log in once.
    logging_in: tokio::sync::Mutex<()>,
}

impl Session {
    pub fn new(options: &ClientOptions) -> Self {
        let login = options.user.clone().zip(options.password.clone());
        Self { login, current: RwLock::new(None), logins: AtomicU64::new(0), logging_in: tokio::sync::Mutex::new(()) }
    }

    /// The authorization that calls use now; none: a login must come first.
    pub fn current(&self) -> Option<Authorization> {
        if self.login.is_none() {
            return Some(Authorization { header: None, generation: 0, renew_unix_ms: None });
        }
        let current = self.current.read().clone()?;
        let ending = current.renew_unix_ms.is_some_and(|at| at <= unix_ms());
        (!ending).then_some(current)
    }

    /// The authorization for a call; logs in at `server` when there is none that lasts.
    pub async fn authorization(
        &self,
        flight: &FlightServiceClient<Channel>,
        server: &Url,
    ) -> Result<Authorization, Failure> {
        if let Some(current) = self.current() {
            return Ok(current);
        }
        let _guard = self.logging_in.lock().await;
        if let Some(current) = self.current() {
            return Ok(current);
        }
        let (user, password) = self.login.as_ref().expect("without a login there is always a current authorization");
        let token =
            log_in(flight.clone(), user, password).await.map_err(|status| Failure::of_status(status, server))?;
        let header = format!("Bearer {token}").parse().map_err(|_| Failure {
            kind: FailureKind::Answered,
            error: Error::new(ErrorCode::Internal, format!("{server} sent a token that is not a header value")),
        })?;
        // After nine tenths of its life.
        let now = unix_ms();
        let renew_unix_ms = expiry(&token).map(|end| now + end.saturating_sub(now) / 10 * 9);
        let generation = self.logins.fetch_add(1, Ordering::Relaxed) + 1;
        let fresh = Authorization { header: Some(header), generation, renew_unix_ms };
        *self.current.write() = Some(fresh.clone());
        Ok(fresh)
    }

    /// A server refused `stale`. Says whether a new login may help; the next [`Session::authorization`] makes it.
    pub fn refused(&self, stale: &Authorization) -> bool {
        if self.login.is_none() {
            return false;
        }
        let mut current = self.current.write();
        if current.as_ref().is_some_and(|current| current.generation <= stale.generation) {
            *current = None;
        }
        true
    }
}

async fn log_in(mut flight: FlightServiceClient<Channel>, user: &str, password: &Secret) -> Result<Arc<str>, Status> {
    let mut request = Request::new(futures::stream::iter([HandshakeRequest::default()]));
    let credentials = BASE64_STANDARD.encode(format!("{user}:{}", password.expose()));
    let mut header: AsciiMetadataValue =
        format!("Basic {credentials}").parse().expect("base64 is always a valid header value");
    header.set_sensitive(true);
    request.metadata_mut().insert("authorization", header);
    let response = flight.handshake(request).await?;
    let header = response.metadata().get("authorization").and_then(|value| value.to_str().ok());
    let token = header.and_then(|value| value.strip_prefix("Bearer ")).map(Arc::from);
    // Reading to the end is what tells a login that failed late from one that worked.
    let answers: Vec<_> = response.into_inner().try_collect().await?;
    let payload =
        answers.iter().find_map(|answer| std::str::from_utf8(&answer.payload).ok().filter(|text| !text.is_empty()));
    token.or_else(|| payload.map(Arc::from)).ok_or_else(|| {
        drsdb_proto::WireError::new(ErrorCode::Internal, "the login was answered without a token").into()
    })
}

/// When a token ends, if it can be seen: to the client it is opaque otherwise.
fn expiry(token: &str) -> Option<u64> {
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(token.trim_end_matches('=')).ok()?;
    let signed = v1::Signed::decode(bytes.as_slice()).ok()?;
    let token = v1::Token::decode(signed.body).ok()?;
    (token.expires_unix_ms > 0).then_some(token.expires_unix_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_token_is_seen_and_garbage_has_none() {
        let body = v1::Token { user: "admin".into(), expires_unix_ms: 1234, credentials: 7 }.encode_to_vec().into();
        let signed = v1::Signed { body, signature: vec![1; 64].into() };
        assert_eq!(expiry(&BASE64_URL_SAFE_NO_PAD.encode(signed.encode_to_vec())), Some(1234));
        assert_eq!(expiry("not a token"), None);
    }
}
