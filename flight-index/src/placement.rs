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
//! Further replicas are placed the same way, round by round, on servers that do not have the shard yet, with room for what
//! all rounds so far give each server. A server in another zone, or else another rack, goes before one that is near a
//! replica of the shard: labels say where a server is, and one without them is a place of its own. When the heaviest pairs
//! leave a shard without a server that is far enough and has room, others of the round make room, as in a bipartite
//! matching, or else a server leaves its one more to another; when nobody can, being apart counts more than balance.
//! Without labels somebody always can up to the fifth replica, later nearly always.
//!
//! Only the shard's number counts and not the table: tables with equally many shards, created on the same servers, lie
//! alike, and rows with equal shard keys meet on one server. The result is recorded in the catalog when a table is
//! created, and the placement driver ([`crate::replication`]) moves shards towards it when servers come and go; it is the
//! record that counts, not what this function would say later.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, VecDeque},
};

use drsdb_core::{Table, Ulid};

use crate::catalog::StorageServer;

/// Replicas of a shard whose table does not say how many, if there are as many servers.
pub const DEFAULT_REPLICAS: u32 = 3;

/// How many replicas the shards of a table are to have, if there are as many servers.
pub fn replicas_of(table: &Table) -> u32 {
    table.replicas.unwrap_or(DEFAULT_REPLICAS).max(1)
}

/// The servers of each shard, first replica first: `replicas` each, or as many as there are servers. Empty if there is no
/// server.
pub fn place(shards: u32, replicas: u32, servers: &[&StorageServer]) -> Vec<Vec<Ulid>> {
    // One that is listed twice is one server, and the order does not matter.
    let servers: Vec<&StorageServer> =
        servers.iter().map(|server| (server.id, *server)).collect::<BTreeMap<_, _>>().into_values().collect();
    if servers.is_empty() {
        return Vec::new();
    }
    let mut placing = Placing::new(shards, &servers);
    for round in 1..=(replicas as usize).min(servers.len()) {
        placing.round(round);
    }
    let ids = |chosen: &Vec<usize>| chosen.iter().map(|&server| servers[server].id).collect();
    placing.chosen.iter().map(ids).collect()
}

/// A placement that is being made. Servers are numbered.
struct Placing {
    /// The servers of each shard so far.
    chosen: Vec<Vec<usize>>,
    /// How many replicas each server has.
    held: Vec<usize>,
    /// Zone and rack of each server, numbered.
    places: Vec<(usize, usize)>,
    /// Pairs of server and shard, the heaviest first.
    pairs: Vec<(usize, usize)>,
    /// Replicas that every server has room for, and how many servers have room for one more.
    base: usize,
    with_one_more: usize,
}

impl Placing {
    fn new(shards: u32, servers: &[&StorageServer]) -> Self {
        // Equal weights are as good as impossible; the server and the shard make the order total all the same.
        let weighed = servers.iter().enumerate().flat_map(|(number, server)| {
            (0..shards).map(move |shard| (Reverse(weight(server.id, shard)), number, shard as usize))
        });
        let mut weighed: Vec<_> = weighed.collect();
        weighed.sort_unstable();
        Self {
            chosen: vec![Vec::new(); shards as usize],
            held: vec![0; servers.len()],
            places: places(servers),
            pairs: weighed.into_iter().map(|(_, server, shard)| (server, shard)).collect(),
            base: 0,
            with_one_more: 0,
        }
    }

    /// Gives every shard its replica number `round`, from 1.
    fn round(&mut self, round: usize) {
        let together = self.chosen.len() * round;
        self.base = together / self.held.len();
        self.with_one_more = together % self.held.len();
        // Where a shard may go depends on the rounds before alone.
        let allowed: Vec<Vec<bool>> = (0..self.chosen.len()).map(|shard| self.farthest(shard)).collect();
        let mut placed: Vec<Option<usize>> = vec![None; self.chosen.len()];
        for at in 0..self.pairs.len() {
            let (server, shard) = self.pairs[at];
            if placed[shard].is_none() && allowed[shard][server] && self.has_room(server) {
                self.take(server);
                placed[shard] = Some(server);
            }
        }
        for shard in 0..placed.len() {
            if placed[shard].is_none() && !self.make_room(shard, &allowed, &mut placed) {
                let nearest_to_empty = (0..self.held.len()).filter(|&server| allowed[shard][server]);
                let server = nearest_to_empty.min_by_key(|&server| self.held[server]);
                let server = server.expect("there are more servers than rounds before");
                self.held[server] += 1;
                placed[shard] = Some(server);
            }
        }
        for (chosen, server) in self.chosen.iter_mut().zip(placed) {
            chosen.extend(server);
        }
    }

    /// Which servers are as far from the shard's replicas as any server can be.
    fn farthest(&self, shard: usize) -> Vec<bool> {
        let near = |server: usize| {
            let ((zone, rack), chosen) = (self.places[server], &self.chosen[shard]);
            let in_zone = chosen.iter().filter(|&&other| self.places[other].0 == zone).count();
            let in_rack = chosen.iter().filter(|&&other| self.places[other] == (zone, rack)).count();
            (!chosen.contains(&server)).then_some((in_zone, in_rack))
        };
        let nearness: Vec<Option<(usize, usize)>> = (0..self.held.len()).map(near).collect();
        let least = nearness.iter().flatten().min().copied();
        nearness.iter().map(|near| near.is_some() && *near == least).collect()
    }

    fn has_room(&self, server: usize) -> bool {
        self.held[server] < self.base || (self.held[server] == self.base && self.with_one_more > 0)
    }

    fn take(&mut self, server: usize) {
        if self.held[server] == self.base {
            self.with_one_more -= 1;
        }
        self.held[server] += 1;
    }

    /// Finds a short chain of shards that each move to another server, so that `shard` finds room.
    fn make_room(&mut self, shard: usize, allowed: &[Vec<bool>], placed: &mut [Option<usize>]) -> bool {
        let mut reached: Vec<Option<Reached>> = vec![None; self.held.len()];
        let mut waiting = VecDeque::from([shard]);
        // The first full server reached that could still take one more in place of another.
        let mut heir = None;
        loop {
            let Some(mover) = waiting.pop_front() else {
                // Only now, because it moves a shard more: one that has one more gives up a shard, and the heir has it.
                let Some(heir) = heir.take() else { return false };
                for (server, reached) in reached.iter_mut().enumerate() {
                    if reached.is_none() && self.held[server] == self.base + 1 {
                        *reached = Some(Reached::LeavingOneMoreTo(heir));
                        waiting.extend((0..placed.len()).filter(|&other| placed[other] == Some(server)));
                    }
                }
                continue;
            };
            for server in 0..self.held.len() {
                if reached[server].is_some() || !allowed[mover][server] || placed[mover] == Some(server) {
                    continue;
                }
                reached[server] = Some(Reached::By(mover));
                if !self.has_room(server) {
                    if self.held[server] == self.base {
                        heir.get_or_insert(server);
                    }
                    waiting.extend((0..placed.len()).filter(|&other| placed[other] == Some(server)));
                    continue;
                }
                self.take(server);
                let mut to = server;
                while let Some(how) = reached[to] {
                    match how {
                        Reached::By(mover) => match placed[mover].replace(to) {
                            Some(from) => to = from,
                            None => return true,
                        },
                        Reached::LeavingOneMoreTo(heir) => {
                            self.held[to] -= 1;
                            self.held[heir] += 1;
                            to = heir;
                        }
                    }
                }
            }
        }
    }
}

/// How the search for room came to a server.
#[derive(Clone, Copy)]
enum Reached {
    /// This shard may move there.
    By(usize),
    /// It has one more than others, and this server would have it instead.
    LeavingOneMoreTo(usize),
}

/// The zone and the rack of each server, numbered. A server that does not say where it is, is a place of its own.
fn places(servers: &[&StorageServer]) -> Vec<(usize, usize)> {
    let mut zones = BTreeMap::new();
    let mut racks = BTreeMap::new();
    let mut places = Vec::with_capacity(servers.len());
    for &server in servers {
        let next = zones.len();
        let zone = *zones.entry(zone_of(server)).or_insert(next);
        let next = racks.len();
        places.push((zone, *racks.entry((zone, label(server, "rack"))).or_insert(next)));
    }
    places
}

/// Where a server is, as far as replicas are to be apart; one without labels is a place of its own.
pub fn zone_of(server: &StorageServer) -> Result<&str, Ulid> {
    // A rack alone tells as much as a zone does.
    label(server, "zone").or_else(|_| label(server, "rack"))
}

fn label<'a>(server: &'a StorageServer, name: &str) -> Result<&'a str, Ulid> {
    server.labels.get(name).map(String::as_str).ok_or(server.id)
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
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn server(id: Ulid, labels: &[(&str, String)]) -> StorageServer {
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        StorageServer { id, url: String::new(), cores: 1, labels }
    }

    fn servers(ids: impl IntoIterator<Item = u128>) -> Vec<StorageServer> {
        ids.into_iter().map(|id| server(Ulid(id), &[])).collect()
    }

    fn place_all(shards: u32, replicas: u32, servers: &[StorageServer]) -> Vec<Vec<Ulid>> {
        place(shards, replicas, &servers.iter().collect::<Vec<_>>())
    }

    /// Replicas that are not where they were.
    fn moved(before: &[Vec<Ulid>], after: &[Vec<Ulid>]) -> usize {
        let new = |(before, after): (&Vec<Ulid>, &Vec<Ulid>)| after.iter().filter(|id| !before.contains(id)).count();
        before.iter().zip(after).map(new).sum()
    }

    /// Fewest and most entries of `placement` on one of the servers.
    fn spread<'a>(servers: &[StorageServer], placement: impl Iterator<Item = &'a Ulid>) -> (usize, usize) {
        let mut held: BTreeMap<Ulid, usize> = servers.iter().map(|server| (server.id, 0)).collect();
        placement.for_each(|id| *held.get_mut(id).unwrap() += 1);
        (*held.values().min().unwrap(), *held.values().max().unwrap())
    }

    proptest! {
        #[test]
        fn every_server_gets_the_same_number_within_one(
            shards in 1u32..120,
            replicas in 1u32..5,
            ids in proptest::collection::hash_set(any::<u128>(), 1..20),
        ) {
            let servers = servers(ids);
            let placement = place_all(shards, replicas, &servers);
            prop_assert_eq!(placement.len(), shards as usize);
            for chosen in &placement {
                let distinct: BTreeSet<&Ulid> = chosen.iter().collect();
                prop_assert_eq!(distinct.len(), (replicas as usize).min(servers.len()));
                prop_assert_eq!(chosen.len(), distinct.len());
            }
            let (least, most) = spread(&servers, placement.iter().flatten());
            prop_assert!(most - least <= 1, "from {} to {} replicas a server", least, most);
            let (least, most) = spread(&servers, placement.iter().map(|chosen| &chosen[0]));
            prop_assert!(most - least <= 1, "from {} to {} first replicas a server", least, most);
        }

        #[test]
        fn the_order_of_the_servers_does_not_matter(
            shards in 1u32..60,
            replicas in 1u32..4,
            ids in proptest::collection::vec(any::<u128>(), 1..20),
            by in any::<proptest::sample::Index>(),
        ) {
            let servers = servers(ids);
            let mut turned = servers.clone();
            turned.rotate_left(by.index(servers.len()));
            prop_assert_eq!(place_all(shards, replicas, &servers), place_all(shards, replicas, &turned));
        }

        #[test]
        fn replicas_are_in_different_zones_while_there_are_zones(
            shards in 1u32..60,
            replicas in 1u32..5,
            zones in proptest::collection::vec(0u8..5, 1..20),
        ) {
            let servers: Vec<StorageServer> = (1u128..)
                .zip(&zones)
                .map(|(id, zone)| server(Ulid(id << 64), &[("zone", zone.to_string())]))
                .collect();
            let distinct = zones.iter().collect::<BTreeSet<_>>().len();
            for chosen in place_all(shards, replicas, &servers) {
                let zone_of = |id: &Ulid| zones[(id.0 >> 64) as usize - 1];
                let used: BTreeSet<u8> = chosen.iter().map(zone_of).collect();
                prop_assert_eq!(used.len(), chosen.len().min(distinct));
            }
        }

        #[test]
        fn a_server_that_joins_moves_few_shards(
            shards in 1u32..200,
            replicas in 1u32..4,
            ids in proptest::collection::hash_set(any::<u128>(), 5..20),
        ) {
            let servers = servers(ids);
            let (before, after) = (place_all(shards, replicas, &servers[1..]), place_all(shards, replicas, &servers));
            // What the new server takes has to move. Room that others lose at the same time moves some more.
            let taken = after.iter().filter(|chosen| chosen.contains(&servers[0].id)).count();
            let moved = moved(&before, &after);
            prop_assert!(moved >= taken);
            prop_assert!(moved <= 4 * taken + 2 * servers.len(), "{} moved for {} taken", moved, taken);
        }
    }

    #[test]
    fn one_more_goes_to_another_server_where_only_that_balances() {
        let servers = servers([
            294402888367673091645424596704926799538,
            68844021395915263597504425200360523157,
            72547279559796733527170828646993614405,
            18196644305705567441376909539683723291,
        ]);
        assert_eq!(spread(&servers, place_all(7, 3, &servers).iter().flatten()), (5, 6));
    }

    #[test]
    fn on_average_a_join_moves_less_than_twice_the_least() {
        let ids = drsdb_core::ids::UlidGenerator::new();
        for replicas in [1, 3] {
            let (mut moves, mut least) = (0, 0);
            for round in 0..50 {
                let servers = servers((0..8).map(|server| ids.next_at(round * 1000 + server).0));
                let (before, after) = (place_all(48, replicas, &servers[1..]), place_all(48, replicas, &servers));
                moves += moved(&before, &after);
                least += 48 * replicas as usize / 8;
            }
            assert!(moves < 2 * least, "{moves} moves where {least} were needed for {replicas} replicas");
        }
    }

    #[test]
    fn racks_count_where_zones_do_not_suffice() {
        let at = |id, zone: &str, rack: &str| server(Ulid(id), &[("zone", zone.to_owned()), ("rack", rack.to_owned())]);
        let servers = [at(1, "a", "1"), at(2, "a", "1"), at(3, "a", "2"), at(4, "a", "2")];
        for chosen in place_all(12, 2, &servers) {
            let in_first = chosen.iter().filter(|id| id.0 <= 2).count();
            assert_eq!(in_first, 1, "one in each rack: {chosen:?}");
        }
    }

    #[test]
    fn first_replicas_do_not_depend_on_how_many_there_are() {
        let servers = servers([1, 2 << 64, 3, 4 << 32]);
        let (one, three) = (place_all(24, 1, &servers), place_all(24, 3, &servers));
        assert!(one.iter().zip(&three).all(|(one, three)| one[0] == three[0]));
    }

    #[test]
    fn twice_the_same_server_is_one_server() {
        let servers = servers([7, 7]);
        assert_eq!(place_all(3, 2, &servers), vec![vec![Ulid(7)]; 3]);
        assert!(place(3, 3, &[]).is_empty());
    }

    #[test]
    fn placement_is_pinned() {
        let servers = servers([1, 2 << 64, 3]);
        let position = |replicas: &Vec<Ulid>| servers.iter().position(|server| server.id == replicas[0]).unwrap();
        let positions: Vec<usize> = place_all(12, 3, &servers).iter().map(position).collect();
        assert_eq!(positions, [0, 0, 1, 2, 1, 0, 0, 2, 2, 1, 1, 2]);
    }
}
