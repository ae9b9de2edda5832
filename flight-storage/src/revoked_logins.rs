//! Whose logins count no more, as index servers say with each ping: a token is good until it expires as far as its signature
//! goes, and here is no catalog in which to look up its user.
//!
//! What is not heard of in time only lets tickets be redeemed that were made before, until they expire: index servers, which
//! make new ones, have the catalog.

use std::{collections::HashMap, sync::Arc};

use drsdb_core::{
    Result,
    security::{Login, token},
    v1,
};
use parking_lot::RwLock;

/// The newest revocations that were heard of. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct RevokedLogins(Arc<RwLock<HashMap<String, u64>>>);

impl RevokedLogins {
    /// Takes note of what an index server says, unless another one knew newer ones already.
    pub fn note(&self, told: Vec<v1::RevokedLogins>) {
        let newest = told.iter().map(|revoked| revoked.before).max();
        let mut known = self.0.write();
        if newest > known.values().max().copied() {
            *known = told.into_iter().map(|revoked| (revoked.user, revoked.before)).collect();
        }
    }

    /// Refuses a login that counts no more. One that is newer than all that was heard of is good.
    pub fn check(&self, login: &Login) -> Result<()> {
        match self.0.read().get(&login.user) {
            Some(before) if login.credentials < *before => Err(token::revoked(&login.user)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use drsdb_core::ErrorCode;

    use super::*;

    #[test]
    fn logins_from_before_a_revocation_are_refused() {
        let revoked = RevokedLogins::default();
        let told = |list: &[(&str, u64)]| {
            let list =
                list.iter().map(|(user, before)| v1::RevokedLogins { user: (*user).to_owned(), before: *before });
            revoked.note(list.collect());
        };
        let is_good = |user: &str, credentials| {
            let checked = revoked.check(&Login { user: user.to_owned(), credentials });
            checked.map_err(|error| assert_eq!(error.code(), ErrorCode::Unauthenticated)).is_ok()
        };
        assert!(is_good("ada", 0));
        told(&[("ada", 7)]);
        assert!(!is_good("ada", 0) && !is_good("ada", 6) && is_good("ada", 7) && is_good("ada", 8));
        assert!(is_good("bob", 0));
        // An index server that is behind, and somebody who is none, take nothing back.
        told(&[("ada", 5)]);
        told(&[]);
        assert!(!is_good("ada", 6));
        told(&[("ada", 7), ("bob", 9)]);
        assert!(!is_good("ada", 6) && !is_good("bob", 8) && is_good("bob", 9));
    }
}
