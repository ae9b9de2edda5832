//! Where a call to an index server may go, and whether it may be made again. No I/O here.

use drsdb_proto::ids::{Ulid, new_ulid};
use url::Url;

use crate::rotation::Rotation;

/// What a call is to the one who repeats it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It changes nothing.
    Read,
    /// A write that index servers know by its id: however often it arrives, and wherever, it is done once.
    Write(Ulid),
    /// The end of a transaction, which every index server answers with the transaction's outcome.
    End,
    /// A write that cannot be made again: within a transaction, or of rows that are there once.
    Single(Ulid),
}

impl Kind {
    /// A write, with a new id.
    pub fn write() -> Self {
        Kind::Write(new_ulid())
    }

    /// Whether it may be made again when nobody knows whether it was carried out.
    pub fn is_repeatable(self) -> bool {
        !matches!(self, Kind::Single(_))
    }

    /// The id that goes along.
    pub fn statement(self) -> Option<Ulid> {
        match self {
            Kind::Write(id) | Kind::Single(id) => Some(id),
            Kind::Read | Kind::End => None,
        }
    }
}

/// Which servers a call may go to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// The current one, then the others.
    Anywhere,
    /// This one, then the others.
    First(Url),
    /// This one: a transaction lives there.
    Only(Url),
}

/// A call's way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    pub kind: Kind,
    pub place: Place,
}

/// How often the only server that knows a transaction is asked: a connection that broke may be made again.
const ONLY_ATTEMPTS: usize = 2;

impl Route {
    /// Of a call that belongs to no transaction.
    pub fn anywhere(kind: Kind) -> Self {
        Route { kind, place: Place::Anywhere }
    }

    /// The next server for a call that has tried `tried`.
    pub fn next(&self, rotation: &Rotation, tried: &[Url]) -> Option<Url> {
        match &self.place {
            Place::First(server) if !tried.contains(server) => Some(server.clone()),
            Place::Anywhere | Place::First(_) => rotation.candidate(tried),
            Place::Only(server) => (tried.len() < ONLY_ATTEMPTS).then(|| server.clone()),
        }
    }

    /// Whether a transaction ends with the server.
    pub fn is_pinned(&self) -> bool {
        matches!(self.place, Place::Only(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_goes_to_its_server_and_its_end_anywhere() {
        let url = |number| Url::parse(&format!("https://index{number}:5433")).unwrap();
        let rotation = Rotation::new(vec![url(0), url(1)]);
        let asked = |place: Place| {
            let route = Route { kind: Kind::End, place };
            let mut tried = Vec::new();
            while let Some(next) = route.next(&rotation, &tried) {
                tried.push(next);
            }
            tried
        };
        assert_eq!(asked(Place::Anywhere), [url(0), url(1)]);
        assert_eq!(asked(Place::First(url(1))), [url(1), url(0)]);
        assert_eq!(asked(Place::First(url(2))), [url(2), url(0), url(1)]);
        assert_eq!(asked(Place::Only(url(1))), [url(1), url(1)]);
    }
}
