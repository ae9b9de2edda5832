//! ULIDs: 48 bits of milliseconds, 80 bits of randomness, sortable, made anywhere without coordination.
//!
//! Format: <https://github.com/ulid/spec>. What lives here is the generator's one promise beyond the format: ids from
//! one generator always grow, also within a millisecond and when the clock steps back.

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
pub use ulid::Ulid;

/// Makes ULIDs that grow strictly, whatever the clock does.
#[derive(Debug, Default)]
pub struct UlidGenerator {
    last: Mutex<Option<Ulid>>,
}

impl UlidGenerator {
    /// A generator that has made nothing yet.
    pub const fn new() -> Self {
        Self { last: Mutex::new(None) }
    }

    /// The next id, for the time `unix_ms` (milliseconds since 1970).
    pub fn next_at(&self, unix_ms: u64) -> Ulid {
        let mut last = self.last.lock();
        let fresh = Ulid::from_parts(unix_ms, rand::random::<u128>());
        let next = match *last {
            // Same or earlier millisecond than the last id: the last id plus one keeps the order.
            Some(previous) if previous.timestamp_ms() >= unix_ms => Ulid(previous.0.wrapping_add(1)),
            _ => fresh,
        };
        *last = Some(next);
        next
    }

    /// The next id, for now.
    pub fn next(&self) -> Ulid {
        self.next_at(unix_ms())
    }
}

static GLOBAL: UlidGenerator = UlidGenerator::new();

/// The next id of this process.
pub fn new_ulid() -> Ulid {
    GLOBAL.next()
}

/// Random bits, for ids of other forms.
pub fn random_bits() -> u128 {
    rand::random()
}

static CLOCK_OFFSET_MS: AtomicI64 = AtomicI64::new(0);

/// Sets this process's clock ahead, or back, of the machine's. For tests alone: what they step is [`unix_ms`].
pub fn set_clock_offset_ms(offset: i64) {
    CLOCK_OFFSET_MS.store(offset, Ordering::Relaxed);
}

/// Milliseconds since 1970; 0 when the clock stands before it.
#[allow(clippy::disallowed_methods)]
pub fn unix_ms() -> u64 {
    let machine = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_millis() as u64);
    machine.saturating_add_signed(CLOCK_OFFSET_MS.load(Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ids_of_this_process_grow_while_its_clock_steps() {
        const HOUR_MS: i64 = 3_600_000;
        let right = unix_ms();
        let mut last = new_ulid();
        for offset in [0, HOUR_MS, -HOUR_MS, -i64::MAX, 0] {
            set_clock_offset_ms(offset);
            let expected = right.saturating_add_signed(offset);
            assert!((expected..expected + 60_000).contains(&unix_ms()), "{offset}");
            let next = new_ulid();
            assert!(next > last, "{offset}");
            last = next;
        }
    }

    proptest! {
        #[test]
        fn ids_grow_whatever_the_clock_does(clock in proptest::collection::vec(0u64..1 << 47, 1..200)) {
            let generator = UlidGenerator::new();
            let ids: Vec<Ulid> = clock.into_iter().map(|ms| generator.next_at(ms)).collect();
            prop_assert!(ids.windows(2).all(|pair| pair[0] < pair[1]));
        }

        #[test]
        fn text_form_round_trips(ms in 0u64..1 << 48) {
            let id = UlidGenerator::new().next_at(ms);
            prop_assert_eq!(Ulid::from_string(&id.to_string()).ok(), Some(id));
            prop_assert_eq!(id.to_string().len(), 26);
        }
    }
}
