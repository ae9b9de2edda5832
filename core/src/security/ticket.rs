//! Tickets: the right to pull one endpoint of one result. Signed, expiring, for one user.
//!
//! A ticket is an encoded [`v1::Signed`] around an encoded [`v1::Ticket`]. Opening one checks, in this order: form,
//! signature, user, expiry. Only then may what it says be run.

use bytes::Bytes;
use drsdb_proto::{ErrorCode, WireError, ids, v1};
use prost::Message;

use super::keys::{Purpose, SigningKey, VerifyingKey};
use crate::{Error, Result};

/// Signs `ticket`.
pub fn seal(key: &SigningKey, ticket: v1::Ticket) -> Bytes {
    key.sign(Purpose::Ticket, ticket.encode_to_vec()).encode_to_vec().into()
}

/// The ticket in `bytes`, if `user` may use it now.
///
/// Errors: `ticket_invalid` (garbage, altered, or another user's: the message says which), `ticket_expired`.
pub fn open(key: &VerifyingKey, bytes: &[u8], user: &str) -> Result<v1::Ticket> {
    open_at(key, bytes, user, ids::unix_ms())
}

/// [`open`] at the time `now_unix_ms`.
pub fn open_at(key: &VerifyingKey, bytes: &[u8], user: &str, now_unix_ms: u64) -> Result<v1::Ticket> {
    let signed = decode_signed(bytes).ok_or_else(|| {
        invalid("these bytes are no ticket", "send the ticket's bytes exactly as GetFlightInfo returned them")
    })?;
    key.verify(Purpose::Ticket, &signed).map_err(|_| {
        let message = "the ticket was altered, or another cluster made it";
        invalid(message, "send the ticket's bytes exactly as GetFlightInfo of this cluster returned them")
    })?;
    let ticket = v1::Ticket::decode(signed.body)
        .map_err(|error| Error::internal(format!("a signed ticket cannot be decoded: {error}")))?;
    if ticket.user != user {
        // The owner stays unnamed: the one who asks may not know them.
        return Err(invalid(
            &format!("the ticket is another user's, and {user:?} is logged in"),
            "run the query as the user who pulls its result",
        ));
    }
    if ticket.expires_unix_ms <= now_unix_ms {
        let seconds = (now_unix_ms - ticket.expires_unix_ms) / 1000;
        return Err(WireError::new(ErrorCode::TicketExpired, format!("the ticket expired {seconds} s ago"))
            .with_hint("run the query again, and pull its result at once")
            .into());
    }
    Ok(ticket)
}

fn invalid(message: &str, hint: &str) -> Error {
    WireError::new(ErrorCode::TicketInvalid, message).with_hint(hint).into()
}

/// Decodes an envelope in its only form. Protocol buffers would also accept unknown fields and repeated ones, and with
/// them many encodings of one credential.
pub(super) fn decode_signed(bytes: &[u8]) -> Option<v1::Signed> {
    let signed = v1::Signed::decode(bytes).ok()?;
    (signed.encoded_len() == bytes.len() && signed.encode_to_vec() == bytes).then_some(signed)
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_800_000_000_000;

    static KEY: LazyLock<SigningKey> = LazyLock::new(|| SigningKey::generate().unwrap().0);

    fn ticket(user: &str) -> v1::Ticket {
        v1::Ticket {
            query_id: vec![7; 16].into(),
            user: user.to_owned(),
            expires_unix_ms: NOW + 1000,
            snapshot: 42,
            workers: vec!["https://127.0.0.1:1".to_owned()],
            fragment: Some(v1::ticket::Fragment::HeadPlan(vec![1, 2, 3].into())),
            ..Default::default()
        }
    }

    fn code(bytes: &[u8], user: &str, now: u64) -> ErrorCode {
        open_at(&KEY.verifying_key(), bytes, user, now).unwrap_err().code()
    }

    #[test]
    fn a_ticket_opens_for_its_user_until_it_expires() {
        let sealed = seal(&KEY, ticket("ada"));
        assert_eq!(open_at(&KEY.verifying_key(), &sealed, "ada", NOW + 999).unwrap(), ticket("ada"));
        assert_eq!(code(&sealed, "ada", NOW + 1000), ErrorCode::TicketExpired);
        assert_eq!(code(&sealed, "ada", u64::MAX), ErrorCode::TicketExpired);
        assert_eq!(code(&sealed, "eve", NOW), ErrorCode::TicketInvalid);
        assert_eq!(code(&sealed, "", NOW), ErrorCode::TicketInvalid);
    }

    #[test]
    fn another_users_expired_ticket_says_nothing_about_its_expiry() {
        assert_eq!(code(&seal(&KEY, ticket("ada")), "eve", u64::MAX), ErrorCode::TicketInvalid);
    }

    #[test]
    fn messages_say_which_rule_is_broken() {
        let sealed = seal(&KEY, ticket("ada"));
        let message = |bytes: &[u8], user| open_at(&KEY.verifying_key(), bytes, user, NOW).unwrap_err().to_string();
        assert!(message(b"x", "ada").contains("no ticket"));
        assert!(message(&sealed, "eve").contains("another user"));
        let (stranger, _) = SigningKey::generate().unwrap();
        assert!(message(&seal(&stranger, ticket("ada")), "ada").contains("another cluster"));
    }

    #[test]
    fn a_token_is_no_ticket() {
        let token = KEY.sign(Purpose::Token, ticket("ada").encode_to_vec()).encode_to_vec();
        assert_eq!(code(&token, "ada", NOW), ErrorCode::TicketInvalid);
    }

    proptest! {
        #[test]
        fn any_flipped_byte_is_refused(position in any::<prop::sample::Index>(), mask in 1u8..=255) {
            let mut bytes = seal(&KEY, ticket("ada")).to_vec();
            let position = position.index(bytes.len());
            bytes[position] ^= mask;
            prop_assert_eq!(code(&bytes, "ada", NOW), ErrorCode::TicketInvalid);
        }

        #[test]
        fn any_cut_or_added_byte_is_refused(cut in any::<prop::sample::Index>(), added in any::<u8>()) {
            let mut bytes = seal(&KEY, ticket("ada")).to_vec();
            prop_assert_eq!(code(&bytes[..cut.index(bytes.len())], "ada", NOW), ErrorCode::TicketInvalid);
            bytes.push(added);
            prop_assert_eq!(code(&bytes, "ada", NOW), ErrorCode::TicketInvalid);
            // An unknown field (number 15, varint), which protocol buffers skip.
            bytes.pop();
            bytes.extend([15 << 3, 1]);
            prop_assert_eq!(code(&bytes, "ada", NOW), ErrorCode::TicketInvalid);
        }

        #[test]
        fn garbage_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            prop_assert_eq!(code(&bytes, "ada", NOW), ErrorCode::TicketInvalid);
        }
    }
}
