//! Passwords: argon2id (RFC 9106) hashes as PHC strings, `$argon2id$v=19$m=19456,t=2,p=1$salt$hash`.
//!
//! Every function here works for tens of milliseconds: call them where blocking is allowed. Anyone can ask for a login,
//! so the memory of logins that run at once is bounded here, and a login of a user who is not there takes as long as
//! one of a user who is.

use argon2::{Argon2, PasswordHash, PasswordHasher, PasswordVerifier, password_hash::SaltString};
pub use drsdb_proto::limits::MAX_PASSWORD_BYTES;
use drsdb_proto::{ErrorCode, WireError};
use parking_lot::{Condvar, Mutex};
use ring::rand::{SecureRandom, SystemRandom};

use crate::{Error, Result};

/// How many hashes are computed at once, each with 19 MiB of memory.
const CONCURRENT_HASHES: usize = 4;

/// A hash of the usual cost that no known password has.
const NOBODY: &str = "$argon2id$v=19$m=19456,t=2,p=1$bm9ib2R5bm9ib2R5$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// The hash of `password` with fresh salt. Errors: `invalid_argument` for an empty or far too long one.
pub fn hash(password: &str) -> Result<String> {
    if password.is_empty() || password.len() > MAX_PASSWORD_BYTES {
        let message = format!("a password has 1 to {MAX_PASSWORD_BYTES} bytes, and this one {}", password.len());
        return Err(WireError::new(ErrorCode::InvalidArgument, message).with_hint("choose another password").into());
    }
    let failed = |why: &dyn std::fmt::Display| Error::internal(format!("a password could not be hashed: {why}"));
    let mut salt = [0; 16];
    SystemRandom::new().fill(&mut salt).map_err(|_| failed(&"the operating system gives no random bytes"))?;
    let salt = SaltString::encode_b64(&salt).map_err(|error| failed(&error))?;
    let _turn = Turn::take();
    let hash = Argon2::default().hash_password(password.as_bytes(), &salt).map_err(|error| failed(&error))?;
    Ok(hash.to_string())
}

/// Whether `password` is the one that `hash` was made of.
pub fn verify(password: &str, hash: &str) -> bool {
    let Ok(hash) = PasswordHash::new(hash) else {
        tracing::error!("a stored password hash cannot be read: nobody can log in with it");
        return false;
    };
    if password.len() > MAX_PASSWORD_BYTES {
        return false;
    }
    let _turn = Turn::take();
    Argon2::default().verify_password(password.as_bytes(), &hash).is_ok()
}

/// Takes as long as [`verify`], for a user who is not there, and says no: the time of a refusal must not tell which
/// users exist.
pub fn verify_unknown(password: &str) -> bool {
    let _ = verify(password, NOBODY);
    false
}

/// The right to compute one hash, given back when dropped.
struct Turn;

static RUNNING: Mutex<usize> = Mutex::new(0);
static TURN_ENDED: Condvar = Condvar::new();

impl Turn {
    fn take() -> Turn {
        let mut running = RUNNING.lock();
        TURN_ENDED.wait_while(&mut running, |running| *running >= CONCURRENT_HASHES);
        *running += 1;
        Turn
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *RUNNING.lock() -= 1;
        TURN_ENDED.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_and_no_other_fits_its_hash() {
        let stored = hash("correct horse").unwrap();
        assert!(stored.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"));
        assert!(verify("correct horse", &stored));
        assert!(!verify("correct horsf", &stored));
        assert!(!verify("", &stored));
        assert_ne!(stored, hash("correct horse").unwrap(), "each hash has its own salt");
    }

    #[test]
    fn nobody_has_no_password() {
        let cost = |hash: &str| hash.rsplitn(3, '$').last().map(str::to_owned);
        assert_eq!(cost(NOBODY), cost(&hash("x").unwrap()), "a refusal takes as long for users who are not there");
        assert!(PasswordHash::new(NOBODY).is_ok());
        assert!(!verify_unknown("nobody"));
        assert!(!verify_unknown("anything"));
    }

    #[test]
    fn bad_input_is_refused_without_a_panic() {
        assert_eq!(hash("").unwrap_err().code(), ErrorCode::InvalidArgument);
        assert_eq!(hash(&"x".repeat(MAX_PASSWORD_BYTES + 1)).unwrap_err().code(), ErrorCode::InvalidArgument);
        assert!(!verify("x", "no hash"));
        assert!(!verify(&"x".repeat(1 << 20), &hash("x").unwrap()));
    }

    #[test]
    fn many_logins_at_once_all_get_their_turn() {
        let stored = hash("p").unwrap();
        std::thread::scope(|scope| {
            let logins: Vec<_> = (0..3 * CONCURRENT_HASHES).map(|_| scope.spawn(|| verify("p", &stored))).collect();
            assert!(logins.into_iter().all(|login| login.join().unwrap()));
        });
    }
}
