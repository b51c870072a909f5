//! One tenant's waiting inputs for one model: jobs in order of arrival, the oldest of their inputs in a window that is
//! sorted by length.
//!
//! The window is what keeps a batch's choice cheap and fair at once. Only its inputs are looked at, so the cost of a pick
//! does not grow with what waits; and since nothing behind the window is taken, an input is overtaken by a bounded number
//! of tokens, whatever lengths arrive after it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::queue::Item;

/// Where an input stands among all: job, then index. Jobs are numbered in order of arrival.
type Place = (u64, usize);

/// Behind all places.
const LAST: Place = (u64::MAX, usize::MAX);

#[derive(Debug)]
struct Seen {
    tokens: usize,
    since: Instant,
}

/// A job's inputs that are not in the window yet; at least one.
#[derive(Debug)]
struct Rest {
    lengths: Vec<usize>,
    next: usize,
}

/// The inputs.
#[derive(Debug, Default)]
pub struct Line {
    rest: BTreeMap<u64, Rest>,
    window: BTreeMap<Place, Seen>,
    by_length: BTreeSet<(usize, Place)>,
    window_tokens: usize,
    /// Lookups and changes in the structures so far: what a test bounds instead of time.
    pub steps: u64,
}

impl Line {
    /// A job's inputs join at the end.
    pub fn push(&mut self, job: u64, lengths: Vec<usize>) {
        self.steps += 1;
        if !lengths.is_empty() {
            self.rest.insert(job, Rest { lengths, next: 0 });
        }
    }

    /// Fills the window up to `tokens`; it holds at least one input if any waits.
    pub fn fill(&mut self, tokens: usize, now: Instant) {
        while self.window_tokens < tokens || self.window.is_empty() {
            let Some(mut front) = self.rest.first_entry() else {
                return;
            };
            self.steps += 1;
            let place = (*front.key(), front.get().next);
            let rest = front.get_mut();
            let length = rest.lengths[rest.next];
            rest.next += 1;
            if rest.next == rest.lengths.len() {
                front.remove();
            }
            self.window_tokens += length;
            self.by_length.insert((length, place));
            let seen = Seen {
                tokens: length,
                since: now,
            };
            self.window.insert(place, seen);
        }
    }

    /// The oldest input of the window.
    pub fn oldest(&self) -> Option<Item> {
        let (&place, seen) = self.window.first_key_value()?;
        Some(item(place, seen.tokens))
    }

    /// The oldest input of at most `room` tokens' length if it has been in the window for `age`, else the one nearest in
    /// length to `length`, the shorter and the older one where there are two; none where nothing fits.
    pub fn next(&mut self, length: usize, room: usize, age: Duration, now: Instant) -> Option<Item> {
        self.steps += 1;
        if let Some((&place, seen)) = self.window.first_key_value()
            && seen.tokens <= room
            && now.saturating_duration_since(seen.since) >= age
        {
            return Some(item(place, seen.tokens));
        }
        let below = self.by_length.range(..=(length.min(room), LAST)).next_back();
        let above = self
            .by_length
            .range((length, LAST)..)
            .next()
            .filter(|(tokens, _)| *tokens <= room);
        let tokens = match (below, above) {
            (Some(&(below, _)), Some(&(above, _))) if above - length < length - below => above,
            (Some(&(tokens, _)), _) | (None, Some(&(tokens, _))) => tokens,
            (None, None) => return None,
        };
        let &(tokens, place) = self.by_length.range((tokens, (0, 0))..).next()?;
        Some(item(place, tokens))
    }

    /// Takes an input out of the window.
    pub fn take(&mut self, item: Item) {
        self.steps += 1;
        let place = (item.job, item.index);
        if let Some(seen) = self.window.remove(&place) {
            self.by_length.remove(&(seen.tokens, place));
            self.window_tokens -= seen.tokens;
        }
    }

    /// Takes out all that is left of a job; how many tokens that was.
    pub fn remove(&mut self, job: u64) -> usize {
        let places: Vec<Place> = self
            .window
            .range((job, 0)..=(job, usize::MAX))
            .map(|(&place, _)| place)
            .collect();
        let mut tokens = 0;
        for place in places {
            self.steps += 1;
            if let Some(seen) = self.window.remove(&place) {
                self.by_length.remove(&(seen.tokens, place));
                self.window_tokens -= seen.tokens;
                tokens += seen.tokens;
            }
        }
        if let Some(rest) = self.rest.remove(&job) {
            self.steps += 1;
            tokens += rest.lengths[rest.next..].iter().sum::<usize>();
        }
        tokens
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.window.is_empty() && self.rest.is_empty()
    }
}

const fn item((job, index): Place, tokens: usize) -> Item {
    Item { job, index, tokens }
}
