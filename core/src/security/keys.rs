//! The cluster's signing key: Ed25519 (RFC 8032), by ring.
//!
//! One key signs several kinds of things, so the kind is signed with them: a token can never pass for a ticket.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use drsdb_proto::{ErrorCode, v1};
use ring::{
    rand::SystemRandom,
    signature::{ED25519, ED25519_PUBLIC_KEY_LEN, Ed25519KeyPair, KeyPair, UnparsedPublicKey},
};

use crate::{Error, Result};

/// What a signature is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A [`v1::Ticket`].
    Ticket,
    /// A [`v1::Token`].
    Token,
}

impl Purpose {
    /// Signed ahead of the body. No domain is a prefix of another, so no signature counts for two purposes.
    fn domain(self) -> &'static [u8] {
        match self {
            Purpose::Ticket => b"drsdb ticket v1\0",
            Purpose::Token => b"drsdb token v1\0",
        }
    }

    fn message(self, body: &[u8]) -> Vec<u8> {
        [self.domain(), body].concat()
    }
}

/// Signs. Cheap to clone; its `Debug` form shows the public half only.
#[derive(Clone)]
pub struct SigningKey {
    pair: Arc<Ed25519KeyPair>,
}

impl SigningKey {
    /// A new key, and its PKCS#8 form to keep: secret bytes, for the catalog alone.
    pub fn generate() -> Result<(SigningKey, Vec<u8>)> {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())
            .map_err(|_| Error::internal("the operating system gives no random bytes for a signing key"))?;
        Ok((SigningKey::from_pkcs8(pkcs8.as_ref())?, pkcs8.as_ref().to_vec()))
    }

    /// The key in `pkcs8`, as [`SigningKey::generate`] gave it.
    pub fn from_pkcs8(pkcs8: &[u8]) -> Result<SigningKey> {
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8).map_err(|rejected| {
            Error::new(ErrorCode::Corrupt, format!("the cluster's signing key cannot be read: {rejected}"))
        })?;
        Ok(SigningKey { pair: Arc::new(pair) })
    }

    /// The public half.
    pub fn verifying_key(&self) -> VerifyingKey {
        let mut bytes = [0; ED25519_PUBLIC_KEY_LEN];
        bytes.copy_from_slice(self.pair.public_key().as_ref());
        VerifyingKey { bytes }
    }

    /// Signs `body` for `purpose`.
    pub fn sign(&self, purpose: Purpose, body: impl Into<Bytes>) -> v1::Signed {
        let body = body.into();
        let signature = self.pair.sign(&purpose.message(&body));
        v1::Signed { body, signature: Bytes::copy_from_slice(signature.as_ref()) }
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("public", &self.verifying_key()).finish_non_exhaustive()
    }
}

/// Checks what a [`SigningKey`] signed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct VerifyingKey {
    bytes: [u8; ED25519_PUBLIC_KEY_LEN],
}

impl VerifyingKey {
    /// The key in `bytes`, as [`VerifyingKey::to_bytes`] gave it.
    pub fn from_bytes(bytes: &[u8]) -> Result<VerifyingKey> {
        let bytes = bytes.try_into().map_err(|_| {
            let (got, want) = (bytes.len(), ED25519_PUBLIC_KEY_LEN);
            Error::new(ErrorCode::InvalidArgument, format!("a verifying key has {want} bytes, and this one {got}"))
        })?;
        Ok(VerifyingKey { bytes })
    }

    /// The key's 32 bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.bytes.to_vec()
    }

    /// Checks that the cluster signed `signed` for `purpose`. Nothing in `signed.body` may be believed before that.
    pub fn verify(&self, purpose: Purpose, signed: &v1::Signed) -> Result<()> {
        UnparsedPublicKey::new(&ED25519, &self.bytes).verify(&purpose.message(&signed.body), &signed.signature).map_err(
            |_| match purpose {
                Purpose::Ticket => Error::new(ErrorCode::TicketInvalid, "this cluster did not sign the ticket"),
                Purpose::Token => Error::new(ErrorCode::Unauthenticated, "this cluster did not sign the token"),
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_stored_form() {
        let (key, pkcs8) = SigningKey::generate().unwrap();
        let again = SigningKey::from_pkcs8(&pkcs8).unwrap();
        let signed = again.sign(Purpose::Token, b"body".to_vec());
        let public = VerifyingKey::from_bytes(&key.verifying_key().to_bytes()).unwrap();
        public.verify(Purpose::Token, &signed).unwrap();
    }

    #[test]
    fn a_signature_counts_for_its_purpose_key_and_body_only() {
        let (key, _) = SigningKey::generate().unwrap();
        let signed = key.sign(Purpose::Token, b"body".to_vec());
        let public = key.verifying_key();
        assert_eq!(public.verify(Purpose::Ticket, &signed).unwrap_err().code(), ErrorCode::TicketInvalid);
        let (other, _) = SigningKey::generate().unwrap();
        assert_eq!(
            other.verifying_key().verify(Purpose::Token, &signed).unwrap_err().code(),
            ErrorCode::Unauthenticated
        );
        let altered = v1::Signed { body: Bytes::from_static(b"bodY"), ..signed };
        assert!(public.verify(Purpose::Token, &altered).is_err());
    }

    #[test]
    fn broken_keys_are_refused_and_secrets_stay_out_of_logs() {
        assert_eq!(SigningKey::from_pkcs8(b"garbage").unwrap_err().code(), ErrorCode::Corrupt);
        assert_eq!(VerifyingKey::from_bytes(&[1; 31]).unwrap_err().code(), ErrorCode::InvalidArgument);
        let (key, pkcs8) = SigningKey::generate().unwrap();
        let seed = format!("{:?}", &pkcs8[16..48]);
        assert!(!format!("{key:?}").contains(seed.trim_matches(['[', ']'])));
    }
}
