//! Which replica of each shard a query reads: a pure function.
//!
//! A query that reads little is planned on one server, if one has all that it reads: nothing is exchanged then, and queries
//! take turns with the servers that could. Any other query reads each shard where least is read so far, so that all servers
//! with replicas do about the same:
//!
//! ```text
//!            A    B    C     rows      shards by size, each on its least busy server
//! shard 0    x    x          50        0 ▶ A   A 50
//! shard 1    x         x     40        1 ▶ C   A 50  C 40
//! shard 2    x    x    x     30        2 ▶ B   A 50  C 40  B 30
//! shard 3         x    x     20        3 ▶ B   A 50  C 40  B 50
//! ```
//!
//! Servers that do not answer are read only where nobody else can be.

use std::collections::{BTreeMap, BTreeSet};

use drsdb_core::Ulid;

/// Queries that read no more than this in all are planned on one server: about what one reads in 50 ms.
pub const SMALL_QUERY_BYTES: u64 = 64 << 20;

/// A shard that a leaf reads.
#[derive(Debug, Clone)]
pub struct ShardToRead {
    /// Its number.
    pub shard: u32,
    /// Servers at which the snapshot can be read, in the shard's order; at least one.
    pub replicas: Vec<Ulid>,
    /// How much there is to read.
    pub rows: u64,
}

/// Where a query reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The servers, in task order.
    pub servers: Vec<ChosenServer>,
}

/// One server of a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChosenServer {
    /// The server.
    pub id: Ulid,
    /// Servers that have all shards that are read here.
    pub also: Vec<Ulid>,
    /// The shards that each leaf reads here.
    pub shards: Vec<Vec<u32>>,
}

/// Chooses for the leaves of a query, which read about `bytes` in all. `turn` is any number, another one for each query.
pub fn choose(leaves: &[Vec<ShardToRead>], bytes: u64, suspect: impl Fn(Ulid) -> bool, turn: usize) -> Choice {
    let common = stand_ins(leaves.iter().flatten());
    let (mut able, doubtful): (Vec<Ulid>, Vec<Ulid>) = common.into_iter().partition(|server| !suspect(*server));
    if bytes <= SMALL_QUERY_BYTES && !able.is_empty() {
        let turn = turn % able.len();
        able.rotate_left(turn);
        let (id, mut also) = (able[0], able.split_off(1));
        also.extend(doubtful);
        let shards = leaves.iter().map(|leaf| leaf.iter().map(|shard| shard.shard).collect()).collect();
        return Choice { servers: vec![ChosenServer { id, also, shards }] };
    }
    let assigned = spread(leaves, &suspect);
    let servers = assigned.into_iter().map(|(id, shards)| {
        let read_here = leaves.iter().zip(&shards);
        let read_here = read_here.flat_map(|(leaf, shards)| leaf.iter().filter(|shard| shards.contains(&shard.shard)));
        let mut also: Vec<Ulid> = stand_ins(read_here).into_iter().filter(|server| *server != id).collect();
        also.sort_by_key(|server| suspect(*server));
        ChosenServer { id, also, shards }
    });
    Choice { servers: servers.collect() }
}

/// The servers that have all of the shards.
fn stand_ins<'a>(mut shards: impl Iterator<Item = &'a ShardToRead>) -> BTreeSet<Ulid> {
    let first = shards.next().map(|shard| shard.replicas.iter().copied().collect()).unwrap_or_default();
    shards.fold(first, |common: BTreeSet<Ulid>, shard| {
        common.into_iter().filter(|server| shard.replicas.contains(server)).collect()
    })
}

/// The shards of each leaf by the server that reads them.
fn spread(leaves: &[Vec<ShardToRead>], suspect: impl Fn(Ulid) -> bool) -> BTreeMap<Ulid, Vec<Vec<u32>>> {
    let mut all: Vec<(usize, &ShardToRead)> =
        leaves.iter().enumerate().flat_map(|(leaf, shards)| shards.iter().map(move |shard| (leaf, shard))).collect();
    all.sort_by_key(|(leaf, shard)| (std::cmp::Reverse(shard.rows), *leaf, shard.shard));
    let mut busy: BTreeMap<Ulid, u64> = BTreeMap::new();
    let mut assigned: BTreeMap<Ulid, Vec<Vec<u32>>> = BTreeMap::new();
    for (leaf, shard) in all {
        let load = |server: &Ulid| busy.get(server).copied().unwrap_or(0);
        // Of equally busy ones the first in the shard's order.
        let Some(server) = shard.replicas.iter().copied().min_by_key(|server| (suspect(*server), load(server))) else {
            continue;
        };
        *busy.entry(server).or_default() += shard.rows.max(1);
        assigned.entry(server).or_insert_with(|| vec![Vec::new(); leaves.len()])[leaf].push(shard.shard);
    }
    for shards in assigned.values_mut().flatten() {
        shards.sort_unstable();
    }
    assigned
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shard(shard: u32, replicas: &[u128], rows: u64) -> ShardToRead {
        ShardToRead { shard, replicas: replicas.iter().copied().map(Ulid).collect(), rows }
    }

    fn any_leaves() -> impl Strategy<Value = Vec<Vec<ShardToRead>>> {
        let replicas = prop::sample::subsequence((1u128..7).collect::<Vec<_>>(), 1..4).prop_shuffle();
        let leaf = prop::collection::vec((replicas, 0u64..1000), 0..12).prop_map(|shards| {
            (0..).zip(shards).map(|(number, (replicas, rows))| shard(number, &replicas, rows)).collect()
        });
        prop::collection::vec(leaf, 1..4)
    }

    proptest! {
        #[test]
        fn every_shard_is_read_once_where_it_is(
            leaves in any_leaves(),
            suspects in prop::collection::btree_set(1u128..7, 0..4),
            small: bool,
            turn: usize,
        ) {
            let suspect = |server: Ulid| suspects.contains(&server.0);
            let choice = choose(&leaves, if small { 0 } else { u64::MAX }, suspect, turn);
            for (number, leaf) in leaves.iter().enumerate() {
                for shard in leaf {
                    let reading = choice.servers.iter().filter(|server| server.shards[number].contains(&shard.shard));
                    let reading: Vec<_> = reading.collect();
                    prop_assert_eq!(reading.len(), 1);
                    for server in reading[0].also.iter().chain([&reading[0].id]) {
                        prop_assert!(shard.replicas.contains(server));
                    }
                    let avoidable = shard.replicas.iter().any(|server| !suspect(*server));
                    prop_assert!(!(avoidable && suspect(reading[0].id)));
                }
                let read: usize = choice.servers.iter().map(|server| server.shards[number].len()).sum();
                prop_assert_eq!(read, leaf.len());
            }
            for server in &choice.servers {
                prop_assert!(!server.also.contains(&server.id));
            }
        }
    }

    #[test]
    fn little_is_read_on_one_server_in_turn() {
        let leaf: Vec<_> = (0..12).map(|number| shard(number, &[1, 2, 3], 10)).collect();
        let heads: BTreeSet<Ulid> = (0..3)
            .map(|turn| {
                let choice = choose(std::slice::from_ref(&leaf), 1000, |_| false, turn);
                assert_eq!((choice.servers.len(), choice.servers[0].also.len()), (1, 2));
                choice.servers[0].id
            })
            .collect();
        assert_eq!(heads.len(), 3);
        // Not on one that does not answer, but that one is named last.
        let choice = choose(&[leaf], 1000, |server| server == Ulid(2), 1);
        assert_eq!((choice.servers[0].id, choice.servers[0].also.as_slice()), (Ulid(3), &[Ulid(1), Ulid(2)][..]));
    }

    #[test]
    fn much_is_read_everywhere() {
        let leaf: Vec<_> = (0..12).map(|number| shard(number, &[1, 2, 3], 10)).collect();
        let choice = choose(&[leaf], u64::MAX, |_| false, 0);
        let read: Vec<usize> = choice.servers.iter().map(|server| server.shards[0].len()).collect();
        assert_eq!(read, [4, 4, 4]);
    }
}
