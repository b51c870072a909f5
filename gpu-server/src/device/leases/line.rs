//! Who waits for memory, and whose turn it is. Pure.
//!
//! Tenants take turns; within one it is first come, first served: each request gets a round when it comes, the one after its
//! tenant's last, or the one that is being served now (start-time fair queueing, one request a round). So the place of a request is
//! settled when it comes. Whoever's turn it is and who does not fit yet holds back everyone behind it on each device that it
//! could use: what becomes free there is saved up for it, so a large request is not starved by small ones, and nobody is
//! overtaken for memory that would do for him. On devices that it cannot use the others go on. A request that does not want
//! to wait stands in the line like any other, and leaves it at once if its turn does not come.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::{Ask, Room};

/// A request in the line.
pub type Ticket = u64;

/// One who waits.
#[derive(Debug, Clone)]
pub struct Waiting {
    /// Names it.
    pub ticket: Ticket,
    /// What it wants.
    pub ask: Arc<Ask>,
}

/// All who wait.
#[derive(Debug, Default)]
pub struct Line {
    /// By round, then by arrival.
    waiting: BTreeMap<(u64, Ticket), Waiting>,
    /// The round of each tenant's newest request, since the line was empty.
    newest: HashMap<String, u64>,
    next: Ticket,
}

impl Line {
    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// How many of a tenant wait.
    pub fn len_of(&self, tenant: &str) -> usize {
        self.in_turn().filter(|waiting| waiting.ask.tenant == tenant).count()
    }

    /// One more, behind those of its tenant.
    pub fn join(&mut self, ask: Arc<Ask>) -> Ticket {
        let ticket = self.next;
        self.next += 1;
        let now = self.waiting.first_key_value().map_or(0, |((round, _), _)| *round);
        let round = self.newest.get(&ask.tenant).map_or(now, |newest| now.max(newest + 1));
        self.newest.insert(ask.tenant.clone(), round);
        self.waiting.insert((round, ticket), Waiting { ticket, ask });
        ticket
    }

    /// Takes one out who is served, or who leaves.
    pub fn leave(&mut self, ticket: Ticket) -> Option<Waiting> {
        let key = self.waiting.keys().find(|(_, own)| *own == ticket).copied()?;
        let waiting = self.waiting.remove(&key);
        match self.waiting.first_key_value() {
            None => self.newest.clear(),
            // A round that is over puts nobody back.
            Some(((now, _), _)) => self.newest.retain(|_, newest| *newest >= *now),
        }
        waiting
    }

    /// The next to be served, and the place in `rooms` where; `free` are the bytes left there.
    pub fn next(&self, rooms: &[Room], free: &[u64]) -> Option<(&Waiting, usize)> {
        let mut open = vec![true; rooms.len()];
        for waiting in self.in_turn() {
            let accepted = |at: &usize| rooms[*at].accepts(&waiting.ask);
            let fits = (0..rooms.len()).filter(|at| open[*at] && accepted(at) && free[*at] >= waiting.ask.bytes);
            // The first of several that are equal.
            if let Some(at) = fits.rev().max_by_key(|at| free[*at]) {
                return Some((waiting, at));
            }
            for at in (0..rooms.len()).filter(accepted) {
                open[at] = false;
            }
            if !open.contains(&true) {
                break;
            }
        }
        None
    }

    /// How many stand before one.
    pub fn before(&self, ticket: Ticket) -> usize {
        self.in_turn().take_while(|waiting| waiting.ticket != ticket).count()
    }

    /// Everyone, in the order in which they would be served if there were enough for all.
    fn in_turn(&self) -> impl Iterator<Item = &Waiting> {
        self.waiting.values()
    }
}
