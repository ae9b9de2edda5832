//! Functions that make ids: `ulid()`, `snowflake_id()` and `gen_random_uuid()`. Each row gets its own, on whichever
//! server computes it. (`uuid()` is DataFusion's.)

use std::sync::{
    Arc,
    atomic::{AtomicU16, Ordering},
};

use arrow::{
    array::{ArrayRef, Int64Array, StringArray},
    datatypes::DataType,
};
use datafusion::{
    common::Result as DfResult,
    execution::FunctionRegistry,
    logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility},
};
use drsdb_proto::ids::{new_ulid, unix_ms};
use parking_lot::Mutex;

use crate::Ulid;

/// Bits of a snowflake id that count within a millisecond.
const SEQUENCE_BITS: u32 = 12;
/// Bits that name the process.
const NODE_BITS: u32 = 10;
/// Nodes up to this one are index servers, by their number; they make the identities of rows.
const FIRST_OTHER_NODE: u16 = 128;
/// Milliseconds of 2025-01-01: 41 bits from then on reach the year 2094.
const EPOCH_MS: u64 = 1_735_689_600_000;

/// Makes k-sortable numbers: 41 bits of milliseconds, 10 of the node, 12 that count. One node's numbers grow strictly,
/// also when its clock steps back; when a millisecond's numbers run out, it takes those of the next.
#[derive(Debug)]
pub struct SnowflakeGenerator {
    node: AtomicU16,
    /// Milliseconds and count, together.
    last: Mutex<u64>,
}

impl SnowflakeGenerator {
    /// A generator for the node.
    pub const fn new(node: u16) -> Self {
        Self { node: AtomicU16::new(node), last: Mutex::new(0) }
    }

    /// `count` numbers at the time `unix_ms`, in order.
    pub fn next_at(&self, unix_ms: u64, count: usize) -> impl Iterator<Item = i64> + use<> {
        let node = u64::from(self.node.load(Ordering::Relaxed)) & ((1 << NODE_BITS) - 1);
        let mut last = self.last.lock();
        let first = (*last + 1).max(unix_ms.saturating_sub(EPOCH_MS) << SEQUENCE_BITS);
        *last = first + count.saturating_sub(1) as u64;
        (first..first + count as u64).map(move |tick| {
            let (ms, sequence) = (tick >> SEQUENCE_BITS, tick & ((1 << SEQUENCE_BITS) - 1));
            ((ms << (NODE_BITS + SEQUENCE_BITS)) | (node << SEQUENCE_BITS) | sequence) as i64
        })
    }
}

static SNOWFLAKES: SnowflakeGenerator = SnowflakeGenerator::new(FIRST_OTHER_NODE);

/// Says that this process is index server `node` (from 1): its numbers differ from every other index server's.
pub fn set_index_node(node: u64) {
    SNOWFLAKES.node.store((node % u64::from(FIRST_OTHER_NODE)) as u16, Ordering::Relaxed);
}

/// Says that this process is the storage server `id`.
pub fn set_storage_node(id: Ulid) {
    let others = (1 << NODE_BITS) - FIRST_OTHER_NODE;
    let node = FIRST_OTHER_NODE + (id.random() % u128::from(others)) as u16;
    // In a process with an index server as well, that one's number stays.
    let _ = SNOWFLAKES.node.compare_exchange(FIRST_OTHER_NODE, node, Ordering::Relaxed, Ordering::Relaxed);
}

/// `count` numbers of this process.
pub fn snowflake_ids(count: usize) -> Int64Array {
    Int64Array::from_iter_values(SNOWFLAKES.next_at(unix_ms(), count))
}

/// Registers the functions.
pub fn register_id_functions(registry: &mut dyn FunctionRegistry) -> DfResult<()> {
    for kind in [Kind::Ulid, Kind::Snowflake, Kind::Uuid] {
        let signature = Signature::nullary(Volatility::Volatile);
        registry.register_udf(Arc::new(ScalarUDF::new_from_impl(IdFunction { kind, signature })))?;
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Ulid,
    Snowflake,
    Uuid,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct IdFunction {
    kind: Kind,
    signature: Signature,
}

impl ScalarUDFImpl for IdFunction {
    fn name(&self) -> &str {
        match self.kind {
            Kind::Ulid => "ulid",
            Kind::Snowflake => "snowflake_id",
            Kind::Uuid => "gen_random_uuid",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> DfResult<DataType> {
        Ok(match self.kind {
            Kind::Snowflake => DataType::Int64,
            Kind::Ulid | Kind::Uuid => DataType::Utf8,
        })
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> DfResult<ColumnarValue> {
        let rows = arguments.number_rows;
        let ids: ArrayRef = match self.kind {
            Kind::Snowflake => Arc::new(snowflake_ids(rows)),
            Kind::Ulid => Arc::new(StringArray::from_iter_values((0..rows).map(|_| new_ulid().to_string()))),
            Kind::Uuid => Arc::new(StringArray::from_iter_values((0..rows).map(|_| random_uuid()))),
        };
        Ok(ColumnarValue::Array(ids))
    }
}

/// A UUID of version 4 (RFC 9562).
fn random_uuid() -> String {
    // A ULID's low 80 bits are random; two of them make the 122 that are needed.
    let (a, b) = (rand_bits(), rand_bits());
    let value = (a << 64 | b & u128::from(u64::MAX)) & !(0xf << 76) & !(0x3 << 62) | (0x4 << 76) | (0x2 << 62);
    let digits = format!("{value:032x}");
    format!("{}-{}-{}-{}-{}", &digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..])
}

fn rand_bits() -> u128 {
    drsdb_proto::ids::random_bits() & u128::from(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn snowflakes_grow_whatever_the_clock_does(steps in proptest::collection::vec((0u64..1 << 40, 0usize..10_000), 1..20)) {
            let generator = SnowflakeGenerator::new(7);
            let mut last = -1;
            for (ms, count) in steps {
                for id in generator.next_at(EPOCH_MS + ms, count) {
                    prop_assert!(id > last);
                    last = id;
                }
            }
        }
    }

    #[test]
    fn nodes_never_make_the_same_number() {
        let (one, other) = (SnowflakeGenerator::new(1), SnowflakeGenerator::new(2));
        let ones: std::collections::HashSet<i64> = one.next_at(EPOCH_MS + 5, 10_000).collect();
        assert_eq!(ones.len(), 10_000);
        assert!(other.next_at(EPOCH_MS + 5, 10_000).all(|id| !ones.contains(&id)));
    }

    #[test]
    fn uuids_have_their_version() {
        let id = random_uuid();
        assert_eq!((id.len(), &id[14..15]), (36, "4"));
        assert!(matches!(&id[19..20], "8" | "9" | "a" | "b"));
        assert_ne!(id, random_uuid());
    }
}
