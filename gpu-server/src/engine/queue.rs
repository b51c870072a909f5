//! What waits, and which of it is computed next. Pure: time is passed in; there are no tensors and no threads here.
//!
//! Between tenants a virtual token counter decides (Sheng et al. 2024, "Fairness in Serving Large Language Models"): it rises by
//! the tokens that are computed for a tenant, and the smallest one has its turn. A tenant that comes back is lifted to the
//! smallest counter of those that wait, less what it brings, if that is within a credit: a small request of one who used less
//! than its share lately is served at once instead of sharing the device with a flood, and a flood's beginning is no
//! small request. No backlogged tenant falls behind another by more than that credit and a batch. A tenant without a turn
//! for some time gets one all the same.
//!
//! Within a tenant the oldest input leads the batch, and those near to it in length follow (see `line`): inputs of one length
//! are computed together. Inputs of other tenants join only where a batch would otherwise be too small to be worth it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::line::Line;

/// Other tenants that are asked to fill up a batch.
const COMPANIONS: usize = 32;
/// Tenants that do not wait and are remembered beside those that do.
const REMEMBERED: usize = 1_024;

/// An input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item {
    /// Its job.
    pub job: u64,
    /// Its index in the job.
    pub index: usize,
    /// Its tokens.
    pub tokens: usize,
}

/// Numbers that the policy follows.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// Tokens of a tenant's line that are looked at when a batch is made.
    pub window: usize,
    /// After this long in the window an input goes before those of a better length.
    pub age: Duration,
    /// After this long without a turn a tenant has one.
    pub patience: Duration,
    /// Tokens that a tenant may be ahead because it used less than its share before.
    pub credit: u64,
    /// Tokens below which a batch is filled up with other tenants' inputs.
    pub smallest: usize,
}

/// Inputs of one model, to be computed together.
#[derive(Debug, PartialEq, Eq)]
pub struct Picked {
    /// Whose turn it was.
    pub tenant: Arc<str>,
    /// The model's key.
    pub model: usize,
    /// At least one.
    pub items: Vec<Item>,
}

#[derive(Debug)]
struct Waiting {
    tenant: Arc<str>,
    model: usize,
    /// Inputs that wait.
    inputs: usize,
    /// Their tokens.
    tokens: usize,
    deadline: Option<Instant>,
}

#[derive(Debug)]
struct Tenant {
    /// What was computed for it, at least the level less the credit.
    own: u64,
    /// Its place in the order: as `own`, but lifted to the level less what waits.
    counter: u64,
    /// Tokens that wait.
    tokens: usize,
    /// Its last turn, or when it began to wait.
    since: Instant,
    lines: BTreeMap<usize, Line>,
}

/// What waits.
#[derive(Debug)]
pub struct Queue {
    policy: Policy,
    jobs: HashMap<u64, Waiting>,
    tenants: HashMap<Arc<str>, Tenant>,
    /// Tenants that wait, by counter.
    order: BTreeSet<(u64, Arc<str>)>,
    /// Tenants that wait, by their last turn.
    turns: BTreeSet<(Instant, Arc<str>)>,
    /// The largest counter that was the smallest of those that waited.
    level: u64,
    tokens: usize,
    next: u64,
    steps: u64,
}

impl Queue {
    /// Empty.
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            jobs: HashMap::new(),
            tenants: HashMap::new(),
            order: BTreeSet::new(),
            turns: BTreeSet::new(),
            level: 0,
            tokens: 0,
            next: 0,
            steps: 0,
        }
    }

    /// Tokens that wait.
    pub const fn tokens(&self) -> usize {
        self.tokens
    }

    /// Adds inputs of these lengths; the job's number.
    pub fn push(
        &mut self,
        tenant: &Arc<str>,
        model: usize,
        lengths: Vec<usize>,
        deadline: Option<Instant>,
        now: Instant,
    ) -> u64 {
        let job = self.next;
        self.next += 1;
        let tokens = lengths.iter().sum();
        if lengths.is_empty() {
            return job;
        }
        self.tokens += tokens;
        let waiting = Waiting {
            tenant: Arc::clone(tenant),
            model,
            inputs: lengths.len(),
            tokens,
            deadline,
        };
        self.jobs.insert(job, waiting);
        let known = self.tenants.entry(Arc::clone(tenant)).or_insert_with(|| Tenant {
            own: 0,
            counter: 0,
            tokens: 0,
            since: now,
            lines: BTreeMap::new(),
        });
        if known.lines.is_empty() {
            known.since = now;
            self.turns.insert((now, Arc::clone(tenant)));
        } else {
            self.order.remove(&(known.counter, Arc::clone(tenant)));
        }
        known.tokens += tokens;
        let (credit, brought) = (self.policy.credit, known.tokens as u64);
        // One who brings more than the credit is a flood, and has none.
        let floor = self.level.saturating_sub(if brought > credit { 0 } else { credit });
        known.own = known.own.max(floor);
        known.counter = known.own.max(self.level.saturating_sub(brought));
        self.order.insert((known.counter, Arc::clone(tenant)));
        let line = known.lines.entry(model).or_default();
        line.push(job, lengths);
        line.fill(self.policy.window, now);
        job
    }

    /// Forgets what waits of a job. One that is not there is no mistake.
    pub fn remove(&mut self, job: u64, now: Instant) {
        let Some(waiting) = self.jobs.remove(&job) else { return };
        self.tokens -= waiting.tokens;
        let Some(tenant) = self.tenants.get_mut(&waiting.tenant) else {
            return;
        };
        tenant.tokens -= waiting.tokens;
        if let Some(line) = tenant.lines.get_mut(&waiting.model) {
            line.remove(job);
            line.fill(self.policy.window, now);
        }
        self.tidy(&waiting.tenant, waiting.model);
    }

    /// The next batch: at most `budget(model)` tokens, or one input that is larger. Jobs whose deadline has passed are taken out
    /// and handed over in `expired`.
    pub fn pick(&mut self, now: Instant, budget: impl Fn(usize) -> usize, expired: &mut Vec<u64>) -> Option<Picked> {
        loop {
            let tenant = self.turn(now)?;
            if let Some(picked) = self.pick_of(&tenant, now, &budget, expired) {
                return Some(picked);
            }
        }
    }

    /// The next batch if it is one of a tenant that used less than its share lately and that `is_served` does not hold for.
    pub fn pick_light(
        &mut self,
        now: Instant,
        budget: impl Fn(usize) -> usize,
        is_served: impl Fn(&str) -> bool,
        expired: &mut Vec<u64>,
    ) -> Option<Picked> {
        loop {
            let (counter, tenant) = self.order.first()?;
            if *counter >= self.level || is_served(tenant) {
                return None;
            }
            let tenant = Arc::clone(tenant);
            if let Some(picked) = self.pick_of(&tenant, now, &budget, expired) {
                return Some(picked);
            }
        }
    }

    /// A batch that a tenant's oldest input leads; none if that one had expired.
    fn pick_of(
        &mut self,
        tenant: &Arc<str>,
        now: Instant,
        budget: &impl Fn(usize) -> usize,
        expired: &mut Vec<u64>,
    ) -> Option<Picked> {
        let lines = &self.tenants.get(tenant)?.lines;
        // Jobs are numbered in order of arrival.
        let oldest = lines.iter().filter_map(|(&model, line)| Some((line.oldest()?, model)));
        let (first, model) = oldest.min_by_key(|(item, _)| (item.job, item.index))?;
        if !self.is_wanted(first.job, now, expired) {
            return None;
        }
        self.level = self.level.max(self.order.first()?.0);
        let budget = budget(model);
        let mut picked = Picked {
            tenant: Arc::clone(tenant),
            model,
            items: vec![first],
        };
        self.take(tenant, model, first);
        let room = budget.saturating_sub(first.tokens);
        let mut held = first.tokens + self.gather(&mut picked, (tenant, model), first.tokens, room, now, expired);
        self.charge(tenant, held, now);
        self.tidy(tenant, model);
        let smallest = self.policy.smallest.min(budget);
        if held < smallest {
            let others: Vec<Arc<str>> = self
                .order
                .iter()
                .take(COMPANIONS)
                .map(|(_, name)| Arc::clone(name))
                .collect();
            for other in others.into_iter().filter(|other| other != tenant) {
                let line = (&other, model);
                let joined = self.gather(
                    &mut picked,
                    line,
                    first.tokens,
                    smallest.saturating_sub(held),
                    now,
                    expired,
                );
                if joined > 0 {
                    self.charge(&other, joined, now);
                    self.tidy(&other, model);
                    held += joined;
                }
            }
        }
        Some(picked)
    }

    /// Who goes next.
    fn turn(&self, now: Instant) -> Option<Arc<str>> {
        let (since, waits_longest) = self.turns.first()?;
        if now.saturating_duration_since(*since) >= self.policy.patience {
            return Some(Arc::clone(waits_longest));
        }
        self.order.first().map(|(_, tenant)| Arc::clone(tenant))
    }

    /// Takes inputs of one line that fit into `room`, those nearest to `length` first; their tokens.
    fn gather(
        &mut self,
        picked: &mut Picked,
        (tenant, model): (&Arc<str>, usize),
        length: usize,
        room: usize,
        now: Instant,
        expired: &mut Vec<u64>,
    ) -> usize {
        let mut held = 0;
        loop {
            let line = self
                .tenants
                .get_mut(tenant)
                .and_then(|known| known.lines.get_mut(&model));
            let Some(item) = line.and_then(|line| line.next(length, room - held, self.policy.age, now)) else {
                return held;
            };
            if self.is_wanted(item.job, now, expired) {
                self.take(tenant, model, item);
                held += item.tokens;
                picked.items.push(item);
            }
        }
    }

    /// Whether a job's deadline is still ahead; if not, it is taken out.
    fn is_wanted(&mut self, job: u64, now: Instant, expired: &mut Vec<u64>) -> bool {
        let wanted = self
            .jobs
            .get(&job)
            .is_some_and(|job| job.deadline.is_none_or(|deadline| deadline > now));
        if !wanted {
            self.remove(job, now);
            expired.push(job);
        }
        wanted
    }

    fn take(&mut self, tenant: &Arc<str>, model: usize, item: Item) {
        if let Some(known) = self.tenants.get_mut(tenant) {
            known.tokens -= item.tokens;
            if let Some(line) = known.lines.get_mut(&model) {
                line.take(item);
            }
        }
        self.tokens -= item.tokens;
        if let Some(job) = self.jobs.get_mut(&item.job) {
            job.tokens -= item.tokens;
            job.inputs -= 1;
            if job.inputs == 0 {
                self.jobs.remove(&item.job);
            }
        }
    }

    /// Notes a tenant's turn.
    fn charge(&mut self, name: &Arc<str>, tokens: usize, now: Instant) {
        let Some(tenant) = self.tenants.get_mut(name) else {
            return;
        };
        self.steps += 1;
        let waits = self.order.remove(&(tenant.counter, Arc::clone(name)));
        self.turns.remove(&(tenant.since, Arc::clone(name)));
        tenant.own += tokens as u64;
        tenant.counter += tokens as u64;
        tenant.since = now;
        if waits {
            self.order.insert((tenant.counter, Arc::clone(name)));
            self.turns.insert((now, Arc::clone(name)));
        }
        for line in tenant.lines.values_mut() {
            line.fill(self.policy.window, now);
        }
    }

    /// Forgets a line that has ended, and tenants that owe nothing.
    fn tidy(&mut self, name: &Arc<str>, model: usize) {
        let Some(tenant) = self.tenants.get_mut(name) else {
            return;
        };
        if tenant.lines.get(&model).is_some_and(Line::is_empty)
            && let Some(line) = tenant.lines.remove(&model)
        {
            self.steps += line.steps;
        }
        if tenant.lines.is_empty() {
            self.order.remove(&(tenant.counter, Arc::clone(name)));
            self.turns.remove(&(tenant.since, Arc::clone(name)));
        }
        if self.tenants.len() > 2 * self.order.len() + REMEMBERED {
            // A tenant below the floor is treated as a new one anyway. Should too many be above it, they are let off what
            // they owe, so that names alone cannot fill the memory.
            let floor = self.level.saturating_sub(self.policy.credit);
            self.tenants
                .retain(|_, tenant| !tenant.lines.is_empty() || tenant.own > floor);
            if self.tenants.len() > 2 * self.order.len() + REMEMBERED / 2 {
                self.tenants.retain(|_, tenant| !tenant.lines.is_empty());
            }
        }
    }

    /// Lookups and changes in the structures so far, of lines that have ended: what a test bounds instead of time.
    #[cfg(test)]
    pub fn steps(&self) -> u64 {
        let lines = self.tenants.values().flat_map(|tenant| tenant.lines.values());
        self.steps + lines.map(|line| line.steps).sum::<u64>()
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
