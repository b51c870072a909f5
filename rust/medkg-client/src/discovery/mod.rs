//! Which servers there are, where the configuration gives a name or a registry instead of addresses.
//!
//! What was found holds for as long as DNS says (the TTL), or two seconds for a registry, and is looked up again earlier when
//! a server fails. Nobody waits for that: calls go on with what is known. They wait for the first answer, and where
//! nothing was asked for so long that the old one is worth little. An answer that is empty or an error changes nothing:
//! the servers that are known may well be there, and their own health says whether they are.
//!
//! Nothing is looked up while no calls are made.

mod dns;
mod finder;
mod plaintext;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::config::{Address, Target};
pub(crate) use finder::Finder;
pub(crate) use plaintext::held_back;

/// Between two looks at least, however short a TTL is and however many servers fail.
const SELDOM: Duration = Duration::from_secs(1);
/// However long a TTL is: Docker says 600 seconds for what may change at any moment.
const OFTEN: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
struct State {
    /// What each target led to last.
    known: Vec<Vec<Address>>,
    /// Until when that holds.
    fresh_until: Option<Instant>,
    /// How long it was to hold.
    ttl: Duration,
    looked: Option<Instant>,
    looking: bool,
    problem: Option<String>,
}

/// What targets lead to.
#[derive(Debug)]
pub(crate) struct Discovery {
    targets: Vec<Target>,
    state: Mutex<State>,
    /// Counts the looks that ended.
    looks: watch::Sender<u64>,
}

/// What somebody who wants to call has to do.
#[derive(Debug)]
pub(crate) struct Next {
    /// Look up what the targets lead to, and hand it to [`Discovery::found`].
    pub(crate) look: bool,
    /// Wait until somebody has looked.
    pub(crate) wait: Option<watch::Receiver<u64>>,
}

impl Discovery {
    pub(crate) fn new(targets: Vec<Target>) -> Self {
        let state = State {
            known: vec![Vec::new(); targets.len()],
            ..State::default()
        };
        Self {
            targets,
            state: Mutex::new(state),
            looks: watch::Sender::new(0),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// Whether to look now, and whether to wait for it.
    pub(crate) fn next(&self, now: Instant) -> Next {
        let mut state = self.state();
        let nothing = state.known.iter().all(Vec::is_empty);
        let old = match state.fresh_until {
            Some(until) if now < until => {
                return Next {
                    look: false,
                    wait: None,
                };
            }
            // Twice as long as it was to hold: nobody has called meanwhile.
            Some(until) => now > until + state.ttl.max(SELDOM),
            None => true,
        };
        let look = !state.looking;
        state.looking = true;
        let wait = (nothing || old).then(|| self.looks.subscribe());
        Next { look, wait }
    }

    /// Takes what the targets led to, in their order; all addresses that are known then, if they changed.
    pub(crate) fn found(
        &self,
        found: Vec<Result<(Vec<Address>, Duration), String>>,
        now: Instant,
    ) -> Option<Vec<Address>> {
        let mut state = self.state();
        let before = state.known.clone();
        let mut ttl = OFTEN;
        state.problem = None;
        for (place, found) in found.into_iter().enumerate() {
            match found {
                Ok((mut addresses, holds)) if !addresses.is_empty() => {
                    addresses.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
                    addresses.dedup();
                    ttl = ttl.min(holds);
                    if let Some(known) = state.known.get_mut(place) {
                        *known = addresses;
                    }
                }
                other => {
                    let target = self.targets.get(place).map_or("", Target::as_str);
                    let why = other.err().unwrap_or_else(|| "it leads to no server".to_owned());
                    tracing::warn!(target, why, "no servers were found; those that are known stay");
                    state.problem = Some(format!("{target}: {why}"));
                    ttl = SELDOM;
                }
            }
        }
        let ttl = ttl.clamp(SELDOM, OFTEN);
        state.ttl = ttl;
        state.fresh_until = now.checked_add(ttl);
        state.looked = Some(now);
        state.looking = false;
        let mut all: Vec<Address> = state.known.iter().flatten().cloned().collect();
        let changed = state.known != before;
        drop(state);
        self.looks.send_modify(|looks| *looks += 1);
        changed.then(|| {
            let mut seen = std::collections::HashSet::new();
            all.retain(|address| seen.insert(address.clone()));
            all
        })
    }

    /// A server failed: what is known may be out of date.
    pub(crate) fn suspect(&self, now: Instant) {
        let mut state = self.state();
        if let Some(earliest) = state.looked.map(|looked| looked + SELDOM) {
            state.fresh_until = state.fresh_until.map(|until| until.min(now.max(earliest)));
        }
    }

    /// Why nothing is known.
    pub(crate) fn problem(&self) -> Option<String> {
        self.state().problem.clone()
    }

    /// A look that was given up: the next call looks.
    pub(crate) fn given_up(&self) {
        self.state().looking = false;
        self.looks.send_modify(|looks| *looks += 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn discovery() -> Discovery {
        Discovery::new(vec![Target::try_new("dns+http://gpu.example:1").unwrap()])
    }

    fn addresses(ports: &[u16]) -> Vec<Address> {
        let address = |port: &u16| Address::try_new(&format!("http://127.0.0.1:{port}")).unwrap();
        ports.iter().map(address).collect()
    }

    fn asked(discovery: &Discovery, now: Instant) -> (bool, bool) {
        let next = discovery.next(now);
        (next.look, next.wait.is_some())
    }

    #[test]
    fn the_first_call_looks_and_all_wait_for_it() {
        let (discovery, now) = (discovery(), Instant::now());
        assert_eq!(asked(&discovery, now), (true, true));
        assert_eq!(asked(&discovery, now), (false, true));
        assert_eq!(
            discovery.found(vec![Ok((addresses(&[2, 1, 2]), MINUTE))], now),
            Some(addresses(&[1, 2]))
        );
        assert_eq!(asked(&discovery, now), (false, false));
    }

    #[test]
    fn what_is_out_of_date_is_looked_up_by_one_and_waited_for_by_nobody() {
        let (discovery, now) = (discovery(), Instant::now());
        discovery.found(vec![Ok((addresses(&[1]), MINUTE))], now);
        assert_eq!(asked(&discovery, now + MINUTE), (true, false));
        assert_eq!(asked(&discovery, now + MINUTE), (false, false));
        assert_eq!(
            discovery.found(vec![Ok((addresses(&[1]), MINUTE))], now),
            None,
            "nothing changed"
        );
    }

    #[test]
    fn what_nobody_asked_for_in_a_long_time_is_waited_for() {
        let (discovery, now) = (discovery(), Instant::now());
        discovery.found(vec![Ok((addresses(&[1]), MINUTE))], now);
        assert_eq!(asked(&discovery, now + 3 * MINUTE), (true, true));
        discovery.given_up();
        assert_eq!(asked(&discovery, now + 3 * MINUTE), (true, true));
    }

    #[test]
    fn an_empty_answer_or_an_error_takes_nothing_away() {
        let (discovery, now) = (discovery(), Instant::now());
        discovery.found(vec![Ok((addresses(&[1]), MINUTE))], now);
        for nothing in [Ok((Vec::new(), MINUTE)), Err("down".to_owned())] {
            assert_eq!(discovery.found(vec![nothing], now), None);
            assert!(discovery.problem().is_some());
            assert_eq!(asked(&discovery, now + SELDOM), (true, false), "it is asked again soon");
        }
        let changed = discovery.found(vec![Ok((addresses(&[2]), MINUTE))], now);
        assert_eq!((changed, discovery.problem()), (Some(addresses(&[2])), None));
    }

    #[test]
    fn a_server_that_fails_is_a_reason_to_look_but_not_all_the_time() {
        let (discovery, now) = (discovery(), Instant::now());
        discovery.found(vec![Ok((addresses(&[1]), MINUTE))], now);
        discovery.suspect(now);
        assert_eq!(asked(&discovery, now), (false, false));
        assert_eq!(asked(&discovery, now + SELDOM), (true, false));
    }

    #[test]
    fn a_ttl_of_nothing_does_not_make_a_storm() {
        let (discovery, now) = (discovery(), Instant::now());
        discovery.found(vec![Ok((addresses(&[1]), Duration::ZERO))], now);
        assert_eq!(asked(&discovery, now), (false, false));
    }
}
