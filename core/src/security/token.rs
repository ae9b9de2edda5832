//! Tokens: a login, proven. Stateless, so that every server accepts one without asking another server.
//!
//! Not here: whether a login still counts, for the user may have another password by now. The catalog knows that on index
//! servers, and they tell storage servers.
//!
//! A token is base64url (RFC 4648, without padding) of an encoded [`v1::Signed`] around an encoded [`v1::Token`].

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use drsdb_proto::{ErrorCode, WireError, ids, v1};
use parking_lot::Mutex;
use prost::Message;

use super::{
    Identity, Login,
    keys::{Purpose, SigningKey, VerifyingKey},
    ticket::decode_signed,
};
use crate::{Error, Result};

/// Longer texts are refused unread.
const MAX_TOKEN_LENGTH: usize = 4096;

/// How many verified tokens are remembered.
const REMEMBERED: usize = 1024;

/// Tokens by the key and their text.
type Tokens = HashMap<(VerifyingKey, Box<str>), Arc<v1::Token>>;

/// What was verified. A client sends the same token with every request, and to verify its signature takes longer than many a
/// request does. When there are too many, all are forgotten.
static VERIFIED: LazyLock<Mutex<Tokens>> = LazyLock::new(Mutex::default);

/// A token for `login`, from now for `lifetime`.
pub fn issue(key: &SigningKey, login: &Login, lifetime: Duration) -> String {
    issue_at(key, login, lifetime, ids::unix_ms())
}

/// [`issue`] at the time `now_unix_ms`.
pub fn issue_at(key: &SigningKey, login: &Login, lifetime: Duration, now_unix_ms: u64) -> String {
    let lifetime_ms = u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX);
    let Login { user, credentials } = login.clone();
    let token = v1::Token { user, expires_unix_ms: now_unix_ms.saturating_add(lifetime_ms), credentials };
    URL_SAFE_NO_PAD.encode(key.sign(Purpose::Token, token.encode_to_vec()).encode_to_vec())
}

/// Who `token` says has logged in. Errors: `unauthenticated`.
pub fn verify(key: &VerifyingKey, token: &str) -> Result<Identity> {
    verify_at(key, token, ids::unix_ms())
}

/// [`verify`] at the time `now_unix_ms`.
pub fn verify_at(key: &VerifyingKey, token: &str, now_unix_ms: u64) -> Result<Identity> {
    if token.len() > MAX_TOKEN_LENGTH {
        return Err(refused("the token is too long to be one of this cluster"));
    }
    let lookup = (key.clone(), token.into());
    let known = VERIFIED.lock().get(&lookup).cloned();
    let token = match known {
        Some(token) => token,
        None => {
            let token = Arc::new(verify_signature(key, token)?);
            let mut verified = VERIFIED.lock();
            if verified.len() >= REMEMBERED {
                verified.clear();
            }
            verified.insert(lookup, Arc::clone(&token));
            token
        }
    };
    if token.expires_unix_ms <= now_unix_ms {
        return Err(refused("the login has expired"));
    }
    Ok(Identity::User(Login { user: token.user.clone(), credentials: token.credentials }))
}

fn verify_signature(key: &VerifyingKey, token: &str) -> Result<v1::Token> {
    let signed = URL_SAFE_NO_PAD.decode(token).ok().and_then(|bytes| decode_signed(&bytes));
    let signed = signed.ok_or_else(|| refused("the text after `Bearer` is no token of this cluster"))?;
    key.verify(Purpose::Token, &signed).map_err(|_| refused("the token was altered, or another cluster made it"))?;
    v1::Token::decode(signed.body)
        .map_err(|error| Error::internal(format!("a signed token cannot be decoded: {error}")))
}

/// The error of a login from before `user` was dropped or got another password.
pub fn revoked(user: &str) -> Error {
    refused(&format!("this login counts no more: user {user} has another password since, or was dropped"))
}

fn refused(message: &str) -> Error {
    WireError::new(ErrorCode::Unauthenticated, message).with_hint("log in again with user and password").into()
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_800_000_000_000;
    const HOUR: Duration = Duration::from_secs(3600);

    static KEY: LazyLock<SigningKey> = LazyLock::new(|| SigningKey::generate().unwrap().0);

    fn login(user: &str) -> Login {
        Login { user: user.to_owned(), credentials: 7 }
    }

    fn code(token: &str) -> ErrorCode {
        verify_at(&KEY.verifying_key(), token, NOW).unwrap_err().code()
    }

    #[test]
    fn a_token_names_its_user_until_it_expires() {
        let token = issue_at(&KEY, &login("ada"), HOUR, NOW);
        let end = NOW + 3_600_000;
        assert_eq!(verify_at(&KEY.verifying_key(), &token, end - 1).unwrap(), Identity::User(login("ada")));
        let error = verify_at(&KEY.verifying_key(), &token, end).unwrap_err();
        assert_eq!(error.code(), ErrorCode::Unauthenticated);
        assert!(error.to_string().contains("expired"));
    }

    #[test]
    fn a_token_that_was_verified_counts_for_its_cluster_only() {
        let token = issue_at(&KEY, &login("ada"), HOUR, NOW);
        let (other, _) = SigningKey::generate().unwrap();
        for _ in 0..2 {
            assert_eq!(verify_at(&KEY.verifying_key(), &token, NOW).unwrap(), Identity::User(login("ada")));
            assert_eq!(verify_at(&other.verifying_key(), &token, NOW).unwrap_err().code(), ErrorCode::Unauthenticated);
        }
        for number in 0..2 * REMEMBERED {
            let token = issue_at(&KEY, &login(&number.to_string()), HOUR, NOW);
            assert_eq!(
                verify_at(&KEY.verifying_key(), &token, NOW).unwrap(),
                Identity::User(login(&number.to_string()))
            );
        }
        assert!(VERIFIED.lock().len() <= REMEMBERED);
    }

    #[test]
    fn a_token_names_the_credentials_that_were_shown() {
        let of = |credentials| Login { credentials, ..login("ada") };
        let tokens = [0, 7, u64::MAX].map(|credentials| (of(credentials), issue_at(&KEY, &of(credentials), HOUR, NOW)));
        for (login, token) in tokens {
            assert_eq!(verify_at(&KEY.verifying_key(), &token, NOW).unwrap(), Identity::User(login));
        }
    }

    #[test]
    fn a_ticket_is_no_token() {
        let body = v1::Token { user: "ada".into(), expires_unix_ms: u64::MAX, credentials: 7 }.encode_to_vec();
        let ticket = URL_SAFE_NO_PAD.encode(KEY.sign(Purpose::Ticket, body).encode_to_vec());
        assert_eq!(code(&ticket), ErrorCode::Unauthenticated);
    }

    #[test]
    fn a_token_fits_a_header_and_its_limit() {
        let token = issue_at(&KEY, &login(&"ä".repeat(256)), HOUR, NOW);
        assert!(http::HeaderValue::from_str(&format!("Bearer {token}")).is_ok());
        assert!(verify_at(&KEY.verifying_key(), &token, NOW).is_ok());
        assert_eq!(code(&"A".repeat(1 << 20)), ErrorCode::Unauthenticated);
    }

    proptest! {
        #[test]
        fn any_changed_character_is_refused(position in any::<prop::sample::Index>(), other in any::<prop::sample::Index>()) {
            const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_=+/ .";
            let token = issue_at(&KEY, &login("ada"), HOUR, NOW);
            let position = position.index(token.len());
            let replacement = ALPHABET[other.index(ALPHABET.len())];
            prop_assume!(token.as_bytes()[position] != replacement);
            let mut bytes = token.into_bytes();
            bytes[position] = replacement;
            prop_assert_eq!(code(std::str::from_utf8(&bytes).unwrap()), ErrorCode::Unauthenticated);
        }

        #[test]
        fn any_flipped_byte_below_the_text_is_refused(position in any::<prop::sample::Index>(), mask in 1u8..=255) {
            let mut bytes = URL_SAFE_NO_PAD.decode(issue_at(&KEY, &login("ada"), HOUR, NOW)).unwrap();
            let position = position.index(bytes.len());
            bytes[position] ^= mask;
            prop_assert_eq!(code(&URL_SAFE_NO_PAD.encode(bytes)), ErrorCode::Unauthenticated);
        }

        #[test]
        fn garbage_is_refused(text in "\\PC{0,200}") {
            prop_assert_eq!(code(&text), ErrorCode::Unauthenticated);
        }
    }
}
