//! The models of this process: which ones are wanted, which ones answer, and who may use the memory.
//!
//! A model that answers is one `Arc`: a call takes it once and computes with it to its end, so loading another one under
//! the same name is an exchange of the `Arc`, and no call sees half of one and half of the other. What replaces a model is
//! loaded beside it first; if that fails, the one that served goes on serving. Loading itself happens on the loader's
//! thread (`loader`), which takes [`Order`]s from here; this module never touches a tensor. Under a memory limit models
//! that were not asked for lately leave (`room`), and the next call for one brings it back: however many calls wait for
//! it, it is loaded once.

mod entry;
mod held;
pub mod room;
mod sparse;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::config::models::{ModelSpec, Purpose};
use crate::config::models_file::{Change, Listed};
use crate::error::Error;
pub use entry::{Ended, Flight, Order, Report, Stage};
use entry::{Entry, Origin, State};
use room::{Held, Room};

/// How long a caller of a model that cannot be waited for should stay away.
const COME_BACK: Duration = Duration::from_secs(1);

/// What holds memory.
pub trait Resident {
    /// How many bytes.
    fn bytes(&self) -> u64;
    /// Whether it makes sparse vectors.
    fn makes_sparse(&self) -> bool;
}

/// All models of this process. `M` is what answers.
#[derive(Debug)]
pub struct Registry<M> {
    table: RwLock<Table<M>>,
    /// Most bytes of all models; 0 means no limit.
    limit: u64,
    /// Counts the calls, to know which model was asked for last.
    clock: AtomicU64,
    /// None once the process is about to end.
    orders: Mutex<Option<Sender<Order>>>,
    changed: watch::Sender<usize>,
}

#[derive(Debug)]
struct Table<M> {
    entries: Vec<Entry<M>>,
    /// Defaults that the models file marks; without a mark it is the first of its purpose.
    marked: Vec<(Purpose, String)>,
    /// Replaced or evicted, but calls still compute with them.
    retired: Vec<(Weak<M>, u64)>,
    next_order: u64,
}

impl<M: Resident> Registry<M> {
    /// Empty, with a limit in bytes, and the orders that a loader has to take.
    pub fn new(limit: u64) -> (Self, Receiver<Order>) {
        let (orders, receiver) = channel();
        let registry = Self {
            table: RwLock::new(Table {
                entries: Vec::new(),
                marked: Vec::new(),
                retired: Vec::new(),
                next_order: 0,
            }),
            limit,
            clock: AtomicU64::new(1),
            orders: Mutex::new(Some(orders)),
            changed: watch::Sender::new(0),
        };
        (registry, receiver)
    }

    fn read(&self) -> RwLockReadGuard<'_, Table<M>> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table<M>> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fills the registry at the start of the process and orders every model, defaults first. What does not fit beside
    /// those before it waits until it is called.
    pub fn start(&self, flags: Vec<ModelSpec>, listed: Listed) {
        let mut table = self.write();
        table.marked = listed.defaults;
        let flags = flags.into_iter().map(|spec| (Origin::Flag, spec));
        let all = flags.chain(listed.models.into_iter().map(|spec| (Origin::File, spec)));
        table.entries = (0..)
            .zip(all)
            .map(|(rank, (origin, spec))| Entry::new(spec, origin, rank, true))
            .collect();
        let defaults = Purpose::ALL.map(|purpose| table.default_of(purpose));
        let is_default = |at: &usize| defaults.contains(&Some(*at));
        let mut order: Vec<usize> = (0..table.entries.len()).collect();
        order.sort_by_key(|at| !is_default(at));
        for at in order {
            self.order(&mut table, at, None, false);
        }
    }

    /// The model called `name`; an empty name means the default. One that was evicted is loaded, and waited for as long as
    /// the deadline lets it.
    ///
    /// # Errors
    /// [`Error::ModelNotFound`] with the names that exist, [`Error::ModelNotReady`], [`Error::DeadlineExpired`], or what
    /// loading it ended with.
    pub async fn get(&self, purpose: Purpose, name: &str, deadline: Option<Instant>) -> Result<Arc<M>, Error> {
        loop {
            let (flight, took, name) = {
                let table = self.read();
                let entry = &table.entries[table.find(purpose, name)?];
                match (&entry.state, &entry.flight) {
                    (State::Ready(model), _) => {
                        entry.used.store(self.tick(), Ordering::Relaxed);
                        return Ok(Arc::clone(model));
                    }
                    (State::Failed(error), None) => return Err(error.clone()),
                    (State::Unloaded(_), None) => {
                        return Err(not_ready(&entry.spec.name, "was unloaded by an operator"));
                    }
                    (State::Evicted(_), flight) => (flight.clone(), entry.took, entry.spec.name.clone()),
                    _ => return Err(not_ready(&entry.spec.name, "is still loading")),
                }
            };
            let Some(flight) = flight else {
                self.bring_back(purpose, &name);
                continue;
            };
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if let Some(took) = took.filter(|took| left.is_some_and(|left| left < *took)) {
                return Err(Error::ModelNotReady {
                    name,
                    problem: format!("had left memory and is being loaded again, which took {took:.1?} last time"),
                    retry_after: took,
                });
            }
            let ended = match left {
                None => flight.ended().await,
                Some(left) => {
                    let bounded = tokio::time::timeout(left, flight.ended()).await;
                    bounded.map_err(|_| Error::DeadlineExpired)?
                }
            };
            if let Ended::Done(Err(error)) = ended {
                return Err(error);
            }
        }
    }

    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }

    /// Orders an evicted model, unless somebody did in the meantime.
    fn bring_back(&self, purpose: Purpose, name: &str) {
        let mut table = self.write();
        if let Ok(at) = table.find(purpose, name)
            && table.entries[at].flight.is_none()
            && matches!(table.entries[at].state, State::Evicted(_))
        {
            self.order(&mut table, at, None, true);
        }
    }

    /// Orders a model, with what it is now or with `spec`. An order that has not been filled yet is superseded.
    fn order(&self, table: &mut Table<M>, at: usize, spec: Option<ModelSpec>, evict: bool) -> Flight {
        let id = table.next_order;
        table.next_order += 1;
        let entry = &mut table.entries[at];
        let spec = spec.map_or_else(|| Arc::clone(&entry.spec), Arc::new);
        let (order, flight) = Order::new(id, spec, evict);
        entry.flight = Some(flight.clone());
        if let Some(orders) = &*self.orders.lock().unwrap_or_else(PoisonError::into_inner) {
            // Without a loader (there is no device) the order is dropped, which tells whoever waits.
            let _ = orders.send(order);
        }
        flight
    }

    /// Loads a model under its name, beside the one that serves under that name until the new one is ready.
    pub fn load(&self, spec: ModelSpec) -> Flight {
        let mut table = self.write();
        let at = table.find_exactly(spec.purpose, &spec.name).unwrap_or_else(|| {
            table
                .entries
                .push(Entry::new(spec.clone(), Origin::Admin, usize::MAX, false));
            table.entries.len() - 1
        });
        let flight = self.order(&mut table, at, Some(spec), true);
        drop(table);
        self.announce();
        flight
    }

    /// Takes a model out of memory. Calls that run finish; a load that is under way is called off.
    ///
    /// # Errors
    /// [`Error::ModelNotFound`].
    pub fn unload(&self, purpose: Purpose, name: &str) -> Result<(), Error> {
        let mut table = self.write();
        let at = table.find(purpose, name)?;
        table.entries[at].flight = None;
        let gone = table.leave(at, State::Unloaded("unloaded by an operator".to_owned()));
        drop(table);
        drop(gone);
        self.announce();
        Ok(())
    }

    /// Starts what a new version of the models file asks for. Nothing is taken away yet: once the flights have ended,
    /// [`Self::conclude`] has to be called.
    pub fn begin(&self, change: &Change) -> Vec<Flight> {
        let mut table = self.write();
        for (purpose, name) in &change.remove {
            if let Some(at) = table.find_exactly(*purpose, name) {
                table.entries[at].leaving = true;
            }
        }
        let load = |spec: &ModelSpec| {
            let at = table.find_exactly(spec.purpose, &spec.name);
            let known = at.is_some();
            let at = at.unwrap_or_else(|| {
                table
                    .entries
                    .push(Entry::new(spec.clone(), Origin::File, usize::MAX, false));
                table.entries.len() - 1
            });
            table.entries[at].origin = Origin::File;
            table.entries[at].leaving = false;
            self.order(&mut table, at, Some(spec.clone()), known)
        };
        let flights = change.load.iter().map(load).collect();
        drop(table);
        self.announce();
        flights
    }

    /// Takes away what is no longer in the models file, and moves the defaults.
    pub fn conclude(&self, change: Change) {
        let mut table = self.write();
        let mut gone = Vec::new();
        while let Some(at) = table.entries.iter().position(|entry| entry.leaving) {
            gone.extend(table.leave(at, State::Unloaded(String::new())));
            table.entries.remove(at);
        }
        table.marked = change.listed.defaults;
        for (rank, spec) in (0..).zip(&change.listed.models) {
            if let Some(at) = table.find_exactly(spec.purpose, &spec.name) {
                table.entries[at].rank = rank;
            }
        }
        table.entries.sort_by_key(|entry| (entry.origin, entry.rank));
        drop(table);
        drop(gone);
        self.announce();
    }

    /// False if the order was superseded or called off, so that filling it would be in vain.
    pub fn wants(&self, order: &Order) -> bool {
        let table = self.read();
        table.of_order(order).is_some()
    }

    /// Makes room for a model of `wanted` bytes; the names of those that left for it. `room` is what leases and collections
    /// leave of the device's memory, where that is limited.
    ///
    /// # Errors
    /// [`Error::ModelMemoryFull`]; with a wait if it fits once calls that run have ended.
    pub fn make_room(&self, order: &Order, wanted: u64, room: Option<u64>) -> Result<Vec<String>, Error> {
        let configured = (self.limit > 0).then_some(self.limit);
        let Some(limit) = configured.into_iter().chain(room).min() else {
            return Ok(Vec::new());
        };
        let mut table = self.write();
        let defaults = Purpose::ALL.map(|purpose| table.default_of(purpose));
        table.retired.retain(|(model, _)| model.strong_count() > 0);
        let retired = table.retired.iter().map(|(_, bytes)| Held {
            bytes: *bytes,
            used: 0,
            pinned: false,
            busy: true,
        });
        let (places, mut held): (Vec<usize>, Vec<Held>) = table
            .entries
            .iter()
            .enumerate()
            .filter_map(|(at, entry)| {
                let State::Ready(model) = &entry.state else { return None };
                let held = Held {
                    bytes: model.bytes(),
                    // What is about to be removed goes first.
                    used: if entry.leaving {
                        0
                    } else {
                        entry.used.load(Ordering::Relaxed)
                    },
                    pinned: order.names(entry) || (defaults.contains(&Some(at)) && !entry.leaving),
                    busy: Arc::strong_count(model) > 1,
                };
                Some((at, held))
            })
            .unzip();
        held.extend(retired);
        let full = |retry_after| Error::ModelMemoryFull {
            name: order.spec.name.clone(),
            wanted_bytes: wanted,
            held_bytes: held.iter().map(|model| model.bytes).sum(),
            limit_bytes: limit,
            retry_after,
        };
        let going = match room::plan(limit, wanted, &held) {
            Room::Evict(going) if going.is_empty() || order.evict => going,
            Room::Evict(_) | Room::Later => return Err(full(Some(COME_BACK))),
            Room::Never => return Err(full(None)),
        };
        let mut names = Vec::with_capacity(going.len());
        let mut gone = Vec::with_capacity(going.len());
        for at in going.into_iter().filter_map(|at| places.get(at).copied()) {
            let why = format!("left memory to {:?}; the next call loads it again", order.spec.name);
            names.push(table.entries[at].spec.name.clone());
            gone.extend(table.leave(at, State::Evicted(why)));
        }
        drop(table);
        if !names.is_empty() {
            drop(gone);
            self.announce();
        }
        Ok(names)
    }

    /// Ends an order with the model or the reason why there is none; false if nobody wanted it any more.
    pub fn settle(&self, order: &Order, outcome: Result<M, Error>, took: Duration) -> bool {
        let mut table = self.write();
        let Some(at) = table.of_order(order) else {
            drop(table);
            order.end(Ended::Superseded);
            return false;
        };
        let entry = &mut table.entries[at];
        entry.flight = None;
        let mut gone = None;
        let ended = match outcome {
            Ok(model) => {
                entry.spec = Arc::clone(&order.spec);
                entry.used.store(self.tick(), Ordering::Relaxed);
                entry.took = Some(took);
                entry.sparse = Some(model.makes_sparse());
                entry.counts = true;
                entry.refused.clear();
                gone = table.leave(at, State::Ready(Arc::new(model)));
                Ok(())
            }
            Err(error) => {
                if !entry.fail(order, &error) {
                    table.entries.remove(at);
                }
                Err(error)
            }
        };
        drop(table);
        drop(gone);
        self.announce();
        order.end(Ended::Done(ended));
        true
    }

    /// The models of a purpose, by name.
    pub fn list(&self, purpose: Purpose) -> Vec<Report<M>> {
        let table = self.read();
        let default = table.default_of(purpose);
        let of_purpose = table
            .entries
            .iter()
            .enumerate()
            .filter(|(_, entry)| entry.spec.purpose == purpose);
        let mut reports: Vec<Report<M>> = of_purpose
            .map(|(at, entry)| entry.report(default == Some(at)))
            .collect();
        reports.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
        reports
    }

    /// The models of a purpose that are in memory, in the order in which they were named.
    pub fn in_memory(&self, purpose: Purpose) -> Vec<Arc<M>> {
        let table = self.read();
        let of_purpose = table.entries.iter().filter(|entry| entry.spec.purpose == purpose);
        let ready = of_purpose.filter_map(|entry| match &entry.state {
            State::Ready(model) => Some(Arc::clone(model)),
            _ => None,
        });
        ready.collect()
    }

    /// One model, as [`Self::list`] tells it.
    ///
    /// # Errors
    /// [`Error::ModelNotFound`].
    pub fn report(&self, purpose: Purpose, name: &str) -> Result<Report<M>, Error> {
        let table = self.read();
        let at = table.find(purpose, name)?;
        Ok(table.entries[at].report(table.default_of(purpose) == Some(at)))
    }

    /// Whether a purpose is served: each of its models answers, or is out of memory on purpose, and there is one that can
    /// answer. A model that was added while the server runs counts once it has answered for the first time, so that
    /// neither loading it nor a mistake in it takes those down that serve.
    pub fn serves(&self, purpose: Purpose) -> bool {
        let table = self.read();
        let of_purpose = || table.entries.iter().filter(|entry| entry.spec.purpose == purpose);
        let fine = |entry: &Entry<M>| !matches!(entry.state, State::Coming | State::Failed(_));
        of_purpose().filter(|entry| entry.counts).all(fine)
            && of_purpose().any(|entry| matches!(entry.state, State::Ready(_) | State::Evicted(_)))
    }

    /// Takes no more orders, which ends the loader.
    pub fn close(&self) {
        *self.orders.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn announce(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// Changes whenever something here does.
    pub fn changed(&self) -> watch::Receiver<usize> {
        self.changed.subscribe()
    }
}

impl<M: Resident> Table<M> {
    fn find_exactly(&self, purpose: Purpose, name: &str) -> Option<usize> {
        self.entries
            .iter()
            .position(|entry| entry.spec.purpose == purpose && entry.spec.name == name)
    }

    fn find(&self, purpose: Purpose, name: &str) -> Result<usize, Error> {
        let found = if name.is_empty() {
            self.default_of(purpose)
        } else {
            self.find_exactly(purpose, name)
        };
        found.ok_or_else(|| {
            let of_purpose = self.entries.iter().filter(|entry| entry.spec.purpose == purpose);
            let known: Vec<&str> = of_purpose.map(|entry| entry.spec.name.as_str()).collect();
            Error::ModelNotFound {
                name: name.chars().take(127).collect(),
                known: known.join(", "),
            }
        })
    }

    fn default_of(&self, purpose: Purpose) -> Option<usize> {
        let marked = self.marked.iter().find(|(of, _)| *of == purpose);
        marked
            .and_then(|(_, name)| self.find_exactly(purpose, name))
            .or_else(|| self.entries.iter().position(|entry| entry.spec.purpose == purpose))
    }

    /// The entry that an order is for, if it still is.
    fn of_order(&self, order: &Order) -> Option<usize> {
        let waits = |entry: &Entry<M>| entry.flight.as_ref().is_some_and(|flight| flight.is_of(order));
        self.entries.iter().position(waits)
    }

    /// Gives an entry another state. What comes back must be dropped where no lock is held: freeing a model takes time.
    fn leave(&mut self, at: usize, state: State<M>) -> Option<Arc<M>> {
        match std::mem::replace(&mut self.entries[at].state, state) {
            State::Ready(model) => {
                self.retired.push((Arc::downgrade(&model), model.bytes()));
                Some(model)
            }
            _ => None,
        }
    }
}

fn not_ready(name: &str, problem: &str) -> Error {
    Error::ModelNotReady {
        name: name.to_owned(),
        problem: problem.to_owned(),
        retry_after: COME_BACK,
    }
}
