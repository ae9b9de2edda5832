//! Bytes of everything that is stored or sent: MessagePack with field names, so that fields can be added later.

use std::io;

use drsdb_core::{Error, ErrorCode, WireError};
use serde::{Serialize, de::DeserializeOwned};

/// The bytes of `value`.
pub(super) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    rmp_serde::to_vec_named(value).expect("every type of the catalog can be written as MessagePack")
}

/// The value of `bytes`, which `what` names in the error.
pub(super) fn decode<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, Error> {
    rmp_serde::from_slice(bytes).map_err(|error| {
        WireError::new(ErrorCode::Corrupt, format!("the catalog's {what} cannot be read: {error}"))
            .with_hint("it was written by a newer version of drsdb, or it is damaged: restore the data directory")
            .into()
    })
}

/// How many bytes [`encode`] would give.
pub(super) fn encoded_bytes<T: Serialize>(value: &T) -> usize {
    struct Counter(usize);

    impl io::Write for Counter {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    let mut counter = Counter(0);
    let written = rmp_serde::encode::write_named(&mut counter, value);
    written.expect("every type of the catalog can be written as MessagePack");
    counter.0
}
