//! Which index server is asked next. A pure state machine: no I/O, no clock.
//!
//! ```text
//!   seeds ──> [a] b  c        `a` is current: every call goes to it
//!             [a] b  c        a fails once  -> this call goes on with b, then c; `b` is current from now on
//!              a [b] c        a fails again -> it is dropped, and a new list is due
//!                [b] c        b answers the new list: unknown servers go, new ones and `a` come last, on probation
//! ```

use url::Url;

/// A server is dropped from the list after this many failures in a row.
pub(crate) const DROP_AFTER: u32 = 2;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Server {
    url: Url,
    failures: u32,
}

/// The list of index servers and the current one.
#[derive(Debug)]
pub(crate) struct Rotation {
    seeds: Vec<Url>,
    servers: Vec<Server>,
    /// Position of the current one in `servers`.
    current: usize,
    refresh_due: bool,
}

impl Rotation {
    /// Starts with the servers that the user named.
    pub fn new(seeds: Vec<Url>) -> Self {
        let servers = distinct(&seeds).map(|url| Server { url, failures: 0 }).collect();
        Self { seeds, servers, current: 0, refresh_due: false }
    }

    /// The next server for a call that has tried `tried`: the current one first, then the others in order, each once.
    /// When all of the list were tried, the seeds that are not in it are the last resort.
    pub fn candidate(&self, tried: &[Url]) -> Option<Url> {
        let count = self.servers.len();
        let listed = (0..count).map(|step| &self.servers[(self.current + step) % count].url);
        listed.chain(&self.seeds).find(|url| !tried.contains(url)).cloned()
    }

    /// `url` answered: it is the current one, and its failures are forgotten.
    pub fn succeeded(&mut self, url: &Url) {
        match self.position(url) {
            Some(position) => {
                self.servers[position].failures = 0;
                self.current = position;
            }
            // Dropped by another call meanwhile, or a seed that the cluster no longer lists: it lives, so it is back.
            None => {
                self.servers.push(Server { url: url.clone(), failures: 0 });
                self.current = self.servers.len() - 1;
            }
        }
    }

    /// `url` answered a call that had to go there: its failures are forgotten, and who is current stays.
    pub fn lives(&mut self, url: &Url) {
        if let Some(position) = self.position(url) {
            self.servers[position].failures = 0;
        }
    }

    /// `url` did not answer. The next one becomes current; at [`DROP_AFTER`] failures in a row it leaves the list.
    pub fn failed(&mut self, url: &Url) {
        let Some(position) = self.position(url) else { return };
        self.servers[position].failures += 1;
        if self.servers[position].failures >= DROP_AFTER {
            self.servers.remove(position);
            self.refresh_due = true;
            if self.current > position {
                self.current -= 1;
            }
            if self.servers.is_empty() {
                // Nobody is left: begin again from what the user said.
                self.servers = distinct(&self.seeds).map(|url| Server { url, failures: 0 }).collect();
                self.current = self.servers.iter().position(|server| server.url != *url).unwrap_or(0);
            }
            self.current %= self.servers.len();
        } else if position == self.current {
            self.current = (self.current + 1) % self.servers.len();
        }
    }

    /// Whether the list should be fetched anew; says so once, until the next drop.
    pub fn take_refresh_due(&mut self) -> bool {
        std::mem::take(&mut self.refresh_due)
    }

    /// The fetch failed: it stays due.
    pub fn refresh_failed(&mut self) {
        self.refresh_due = true;
    }

    /// Takes the cluster's list, as `from` sent it. Servers that stay keep their place; servers that are new (or that
    /// were dropped, and that the cluster still lists) come last, one failure away from being dropped.
    pub fn refreshed(&mut self, from: &Url, list: Vec<Url>) {
        self.servers.retain(|server| server.url == *from || list.contains(&server.url));
        for url in list {
            if self.position(&url).is_none() {
                // The one that sent the list is certain to live.
                let failures = if url == *from { 0 } else { DROP_AFTER - 1 };
                self.servers.push(Server { url, failures });
            }
        }
        if self.servers.is_empty() {
            self.servers.push(Server { url: from.clone(), failures: 0 });
        }
        self.current = self.position(from).unwrap_or(0);
    }

    /// The list now, the current one first.
    pub fn servers(&self) -> Vec<Url> {
        let count = self.servers.len();
        (0..count).map(|step| self.servers[(self.current + step) % count].url.clone()).collect()
    }

    fn position(&self, url: &Url) -> Option<usize> {
        self.servers.iter().position(|server| server.url == *url)
    }
}

fn distinct(urls: &[Url]) -> impl Iterator<Item = Url> + '_ {
    urls.iter().enumerate().filter(|(at, url)| !urls[..*at].contains(url)).map(|(_, url)| url.clone())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn url(number: usize) -> Url {
        Url::parse(&format!("https://index{number}:5433")).unwrap()
    }

    #[test]
    fn two_failures_drop_a_server_and_ask_for_a_new_list() {
        let mut rotation = Rotation::new(vec![url(0), url(1)]);
        rotation.failed(&url(0));
        assert_eq!(rotation.servers(), [url(1), url(0)]);
        assert!(!rotation.take_refresh_due());
        rotation.failed(&url(0));
        assert_eq!(rotation.servers(), [url(1)]);
        assert!(rotation.take_refresh_due());
        assert!(!rotation.take_refresh_due());

        // The cluster still lists the dead one: it comes last, and goes at its next failure.
        rotation.refreshed(&url(1), vec![url(0), url(1), url(2)]);
        assert_eq!(rotation.servers(), [url(1), url(0), url(2)]);
        rotation.failed(&url(0));
        assert_eq!(rotation.servers(), [url(1), url(2)]);
    }

    #[test]
    fn a_success_forgets_failures() {
        let mut rotation = Rotation::new(vec![url(0), url(1)]);
        rotation.failed(&url(0));
        rotation.succeeded(&url(0));
        rotation.failed(&url(0));
        assert_eq!(rotation.servers().len(), 2);
    }

    #[test]
    fn when_all_are_dropped_the_seeds_return() {
        let mut rotation = Rotation::new(vec![url(0)]);
        rotation.failed(&url(0));
        rotation.failed(&url(0));
        assert_eq!(rotation.servers(), [url(0)]);
    }

    #[derive(Debug, Clone)]
    enum Event {
        Succeeded(usize),
        Failed(usize),
        Refreshed(usize, Vec<usize>),
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let event = prop_oneof![
            (0usize..5).prop_map(Event::Succeeded),
            (0usize..5).prop_map(Event::Failed),
            (0usize..5, proptest::collection::vec(0usize..5, 0..5))
                .prop_map(|(from, list)| Event::Refreshed(from, list)),
        ];
        proptest::collection::vec(event, 0..60)
    }

    proptest! {
        #[test]
        fn it_always_knows_somebody_and_asks_each_once(seeds in 1usize..4, events in events()) {
            let mut rotation = Rotation::new((0..seeds).map(url).collect());
            for event in events {
                match event {
                    Event::Succeeded(server) => {
                        rotation.succeeded(&url(server));
                        prop_assert_eq!(rotation.candidate(&[]), Some(url(server)), "a live server stays current");
                    }
                    Event::Failed(server) => {
                        rotation.failed(&url(server));
                        if rotation.servers().len() > 1 {
                            prop_assert_ne!(rotation.candidate(&[]), Some(url(server)), "a dead server is not asked first");
                        }
                    }
                    Event::Refreshed(from, list) => rotation.refreshed(&url(from), list.into_iter().map(url).collect()),
                }
                let servers = rotation.servers();
                prop_assert!(!servers.is_empty());
                prop_assert!(rotation.servers.iter().all(|server| server.failures < DROP_AFTER));
                // One call: every listed server and every seed is asked, nobody twice, and then it ends.
                let mut tried = Vec::new();
                while let Some(next) = rotation.candidate(&tried) {
                    prop_assert!(!tried.contains(&next));
                    tried.push(next);
                }
                prop_assert!(servers.iter().all(|server| tried.contains(server)));
                prop_assert!((0..seeds).all(|seed| tried.contains(&url(seed))));
            }
        }
    }
}
