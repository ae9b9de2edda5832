//! Which storage servers hold which shard: capacity-bounded rendezvous hashing, a pure function.
//!
//! Every pair of a shard and a server has a weight, a hash of the two. Pairs are taken from the heaviest to the
//! lightest, and a pair is used if its shard has no server yet and its server has room:
//!
//! ```text
//!            server A   server B   server C       5 shards on 3 servers: 1 each, and 2 servers take one more
//! shard 0       91         40         17          91  A takes shard 0
//! shard 1       33         72          8          80  A takes shard 4, one more
//! shard 2       65         64         70          72  B takes shard 1
//! shard 3       55         12         41          70  C takes shard 2      65, 64: shard 2 has a server
//! shard 4       80         30         22          55  A is full            41  C takes shard 3, one more
//! ```
//!
//! The order of the servers does not matter, every server gets the same number of shards within one, and a server that
//! joins or leaves moves few shards beyond those that it must take or leave behind (rendezvous hashing alone moves no
//! others, but does not balance).
//!
//! Only the shard's number counts and not the table: tables with equally many shards, created on the same servers, lie
//! alike, and rows with equal shard keys meet on one server. The result is recorded in the catalog when a table is
//! created; it is the record that counts, not what this function would say later.

use std::cmp::Reverse;

use drsdb_core::Ulid;

/// The servers of each shard, first replica first; one replica each today. Empty if there is no server.
pub fn place(shards: u32, servers: &[Ulid]) -> Vec<Vec<Ulid>> {
    let mut servers = servers.to_vec();
    servers.sort_unstable();
    servers.dedup();
    if servers.is_empty() {
        return Vec::new();
    }
    let base = shards as usize / servers.len();
    let mut with_one_more = shards as usize % servers.len();

    // Equal weights are as good as impossible; the server and the shard make the order total all the same.
    let mut pairs: Vec<(Reverse<u64>, usize, u32)> = servers
        .iter()
        .enumerate()
        .flat_map(|(server, id)| (0..shards).map(move |shard| (Reverse(weight(*id, shard)), server, shard)))
        .collect();
    pairs.sort_unstable();

    let mut held = vec![0; servers.len()];
    let mut placed: Vec<Option<usize>> = vec![None; shards as usize];
    for (_, server, shard) in pairs {
        let place = &mut placed[shard as usize];
        if place.is_some() || held[server] > base || (held[server] == base && with_one_more == 0) {
            continue;
        }
        if held[server] == base {
            with_one_more -= 1;
        }
        held[server] += 1;
        *place = Some(server);
    }
    let server = |place: Option<usize>| servers[place.expect("there is room for exactly as many shards as there are")];
    placed.into_iter().map(|place| vec![server(place)]).collect()
}

/// The weight of a pair. Pinned by a test: another one would place new tables unlike the old ones.
fn weight(server: Ulid, shard: u32) -> u64 {
    let high = (server.0 >> 64) as u64;
    let low = server.0 as u64;
    mix(mix(mix(high) ^ low) ^ u64::from(shard))
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn moved(before: &[Vec<Ulid>], after: &[Vec<Ulid>]) -> usize {
        before.iter().zip(after).filter(|(before, after)| before != after).count()
    }

    proptest! {
        #[test]
        fn every_server_gets_the_same_number_within_one(
            shards in 1u32..300,
            ids in proptest::collection::hash_set(any::<u128>(), 1..40),
        ) {
            let servers: Vec<Ulid> = ids.into_iter().map(Ulid).collect();
            let placement = place(shards, &servers);
            prop_assert_eq!(placement.len(), shards as usize);
            let mut held: BTreeMap<Ulid, usize> = servers.iter().map(|server| (*server, 0)).collect();
            for replicas in &placement {
                prop_assert_eq!(replicas.len(), 1);
                *held.get_mut(&replicas[0]).unwrap() += 1;
            }
            let (least, most) = (held.values().min().unwrap(), held.values().max().unwrap());
            prop_assert!(most - least <= 1, "from {} to {} shards a server", least, most);
        }

        #[test]
        fn the_order_of_the_servers_does_not_matter(
            shards in 1u32..100,
            ids in proptest::collection::vec(any::<u128>(), 1..20),
            by in any::<proptest::sample::Index>(),
        ) {
            let servers: Vec<Ulid> = ids.into_iter().map(Ulid).collect();
            let mut turned = servers.clone();
            turned.rotate_left(by.index(servers.len()));
            prop_assert_eq!(place(shards, &servers), place(shards, &turned));
        }

        #[test]
        fn a_server_that_joins_moves_few_shards(
            shards in 1u32..300,
            ids in proptest::collection::hash_set(any::<u128>(), 2..20),
        ) {
            let servers: Vec<Ulid> = ids.into_iter().map(Ulid).collect();
            let (before, after) = (place(shards, &servers[1..]), place(shards, &servers));
            // What the new server takes has to move. Room that others lose at the same time moves some more.
            let taken = after.iter().filter(|replicas| replicas[0] == servers[0]).count();
            let moved = moved(&before, &after);
            prop_assert!(moved >= taken);
            prop_assert!(moved <= 3 * taken + servers.len(), "{} moved for {} taken", moved, taken);
        }
    }

    #[test]
    fn on_average_a_join_moves_less_than_twice_the_least() {
        let ids = drsdb_core::ids::UlidGenerator::new();
        let (mut moves, mut least) = (0, 0);
        for round in 0..50 {
            let servers: Vec<Ulid> = (0..8).map(|server| ids.next_at(round * 1000 + server)).collect();
            let (before, after) = (place(48, &servers[1..]), place(48, &servers));
            moves += moved(&before, &after);
            least += 48 / 8;
        }
        assert!(moves < 2 * least, "{moves} moves where {least} were needed");
    }

    #[test]
    fn twice_the_same_server_is_one_server() {
        let server = Ulid(7);
        assert_eq!(place(3, &[server, server]), vec![vec![server]; 3]);
        assert!(place(3, &[]).is_empty());
    }

    #[test]
    fn placement_is_pinned() {
        let servers = [Ulid(1), Ulid(2 << 64), Ulid(3)];
        let position = |replicas: &Vec<Ulid>| servers.iter().position(|server| *server == replicas[0]).unwrap();
        let positions: Vec<usize> = place(12, &servers).iter().map(position).collect();
        assert_eq!(positions, [0, 0, 1, 2, 1, 0, 0, 2, 2, 1, 1, 2]);
    }
}
