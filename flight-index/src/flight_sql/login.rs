//! Handshake: name and password in, bearer token out.
//!
//! Clients send `authorization: Basic base64(name:password)` (Flight SQL) or the same as a protobuf in the first message
//! (older Flight). The token comes back as a header and as the answer's payload.

use std::time::Duration;

use arrow_flight::{BasicAuth, HandshakeRequest, HandshakeResponse};
use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use drsdb_core::{
    Error, ErrorCode, Result, WireError,
    security::{password, token},
};
use prost::Message;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Streaming, metadata::MetadataMap};

use super::{FlightSqlServer, service::Answers};

/// Drivers differ in whether they pad what they send.
const BASIC: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Logins at the same time. Each holds a thread while it waits for its turn to be hashed; the process has thousands.
static LOGINS: Semaphore = Semaphore::const_new(512);

/// How long a client may take to send its login.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(10);

impl FlightSqlServer {
    /// Checks name and password, and issues a token.
    pub(super) async fn log_in(
        &self,
        request: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<Answers<HandshakeResponse>>> {
        let (metadata, _, mut messages) = request.into_parts();
        let (name, secret) = match basic_header(&metadata)? {
            Some(login) => login,
            None => {
                let first = tokio::time::timeout(LOGIN_TIMEOUT, messages.message()).await;
                let first = first.map_err(|_| no_login())??.ok_or_else(no_login)?;
                let login = BasicAuth::decode(first.payload).map_err(|_| no_login())?;
                (login.username, login.password)
            }
        };
        let token = self.token_for(name, secret).await?;
        let answer = HandshakeResponse { protocol_version: 0, payload: token.clone().into() };
        let answers: Answers<HandshakeResponse> = Box::pin(futures::stream::iter([Ok(answer)]));
        let mut response = Response::new(answers);
        let header = format!("Bearer {token}").parse().map_err(|_| Error::internal("a token that is no header"))?;
        response.metadata_mut().insert("authorization", header);
        Ok(response)
    }

    async fn token_for(&self, name: String, secret: String) -> Result<String> {
        let state = self.current_state().await?;
        let user = state.user(&name).cloned();
        let hash = user.as_ref().map(|user| user.password_hash.clone());
        // Hashing takes tens of milliseconds by design, and as long for a user who does not exist.
        let verify = move || match hash {
            Some(hash) => password::verify(&secret, &hash),
            None => password::verify_unknown(&secret),
        };
        // Whoever may not log in can still ask: so the queue is bounded.
        let _place = LOGINS.try_acquire().map_err(|_| {
            let error = WireError::new(ErrorCode::ResourceExhausted, "too many logins at the same time");
            error.with_hint("try again in a moment; keep connections, and the token, instead of logging in each time")
        })?;
        let known = tokio::task::spawn_blocking(verify).await;
        let known = known.map_err(|panic| Error::internal(format!("checking a password failed: {panic}")))?;
        let Some(user) = user.filter(|_| known) else {
            return Err(WireError::new(ErrorCode::Unauthenticated, "wrong user name or password")
                .with_hint("check both; an administrator can set a new password with ALTER USER")
                .into());
        };
        let key = self.planner.signing_key(&state)?;
        Ok(token::issue(&key, &user.login(), self.config.token_lifetime()))
    }
}

fn no_login() -> Error {
    WireError::new(ErrorCode::Unauthenticated, "the handshake carries no login")
        .with_hint("send the header `authorization: Basic ...` with user name and password")
        .into()
}

fn basic_header(metadata: &MetadataMap) -> Result<Option<(String, String)>> {
    let Some(value) = metadata.get("authorization") else { return Ok(None) };
    let login = value
        .to_str()
        .ok()
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("basic"))
        .and_then(|(_, encoded)| BASIC.decode(encoded.trim()).ok())
        .and_then(|login| String::from_utf8(login).ok());
    let login = login.ok_or_else(no_login)?;
    let (name, secret) = login.split_once(':').ok_or_else(no_login)?;
    Ok(Some((name.to_owned(), secret.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(value: &str) -> Result<Option<(String, String)>> {
        let mut metadata = MetadataMap::new();
        metadata.insert("authorization", value.parse().unwrap());
        basic_header(&metadata)
    }

    #[test]
    fn the_basic_header_is_name_and_password() {
        let expected = Some(("ada".to_owned(), "pass:word".to_owned()));
        assert_eq!(header(&format!("Basic {}", BASIC.encode("ada:pass:word"))).unwrap(), expected);
        assert_eq!(basic_header(&MetadataMap::new()).unwrap(), None);
        for broken in ["Basic", "Basic !!", "Bearer abc", &format!("Basic {}", BASIC.encode("ada"))] {
            assert_eq!(header(broken).unwrap_err().code(), ErrorCode::Unauthenticated, "{broken}");
        }
    }
}
