//! Where leases are asked for: calls that wait, the clock, connections that end, and the audit of all of it.
//!
//! The book decides, this does: whenever something may have become free, whoever's turn it is is served. A caller that is gone
//! leaves the line; if it was served at that very moment, the lease is taken back.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};

use super::book::{Book, Turn};
use super::line::Ticket;
use super::{Ask, Ended, Lease, Room, check};
use crate::device::ledger::Ledger;
use crate::error::Error;
use crate::lingering::{End, Link};

/// One for all calls of a process.
#[derive(Debug)]
pub struct Desk {
    book: Mutex<Book>,
    /// The devices as they were listed last; how much they have does not change.
    rooms: Mutex<Vec<Room>>,
    waiting: Mutex<HashMap<Ticket, oneshot::Sender<Lease>>>,
    /// Connections whose end is waited for.
    links: Mutex<HashSet<u64>>,
    ledger: Ledger,
    /// How long leases outlive their connection.
    grace: Duration,
    /// Something may have become free, or ends at another time now.
    changed: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// tokio's clock, which tests can stop.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

impl Desk {
    /// Opens it. Called inside the runtime.
    pub fn open(ledger: Ledger, grace: Duration) -> Arc<Self> {
        let desk = Arc::new(Self {
            book: Mutex::default(),
            rooms: Mutex::default(),
            waiting: Mutex::default(),
            links: Mutex::default(),
            ledger,
            grace,
            changed: Notify::new(),
        });
        tokio::spawn(Arc::clone(&desk).follow());
        desk
    }

    /// Serves whenever a lease ends by itself or something else becomes free.
    async fn follow(self: Arc<Self>) {
        loop {
            self.serve();
            let wake = lock(&self.book).wake();
            let ends = async {
                match wake {
                    Some(wake) => tokio::time::sleep_until(wake.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = ends => {}
                () = self.changed.notified() => {}
                () = self.ledger.freed() => {}
            }
        }
    }

    /// Memory on one of these devices, waited for at most `wait`.
    ///
    /// # Errors
    /// As [`check`]; [`Error::GpuMemoryExhausted`] if it cannot be had in time, [`Error::QueueFull`].
    pub async fn allocate(
        self: &Arc<Self>,
        rooms: Vec<Room>,
        ask: Ask,
        wait: Duration,
        link: Option<Link>,
    ) -> Result<Lease, Error> {
        check(&rooms, &ask)?;
        *lock(&self.rooms) = rooms;
        let (reply, answer) = oneshot::channel();
        let bound = ask.connection;
        let mut place = {
            let mut book = lock(&self.book);
            let ticket = book.join(ask.clone())?;
            // Before the book is free again: nobody is served without a way to hear of it.
            lock(&self.waiting).insert(ticket, reply);
            Place {
                desk: self,
                ticket,
                answer,
                queued: false,
            }
        };
        self.serve();
        let lease = match place.answer.try_recv() {
            Ok(lease) => lease,
            Err(_) if wait.is_zero() => return Err(self.exhausted(place.ticket, &ask)),
            Err(_) => {
                let before = lock(&self.book).before(place.ticket);
                let (bytes, device, owner, seconds) = (ask.bytes, &ask.device, &ask.owner, wait.as_secs_f64());
                tracing::info!(target: "audit", audit = true, action = "AllocateGPU", outcome = "queued", device, bytes, owner, before, seconds, "lease queued");
                place.queued = true;
                let waited = tokio::time::timeout(wait, &mut place.answer).await;
                place.queued = false;
                match waited {
                    Ok(Ok(lease)) => lease,
                    Ok(Err(_)) => return Err(Error::internal("a lease has no name: the system has no randomness")),
                    Err(_) => return Err(self.exhausted(place.ticket, &ask)),
                }
            }
        };
        tell("AllocateGPU", "granted", &lease);
        if let Some(link) = link.filter(|_| bound.is_some()) {
            self.bind(link);
        }
        Ok(lease)
    }

    fn exhausted(&self, ticket: Ticket, ask: &Ask) -> Error {
        let rooms = self.rooms();
        let book = lock(&self.book);
        let named = rooms.iter().filter(|room| room.is_named(&ask.device));
        Error::GpuMemoryExhausted {
            wanted_bytes: ask.bytes,
            free_bytes: named.map(|room| book.free(room)).max().unwrap_or(0),
            waiting: book.before(ticket),
        }
    }

    /// Lets a lease hold for `ttl` from now on.
    ///
    /// # Errors
    /// [`Error::LeaseNotFound`].
    pub fn renew(self: &Arc<Self>, tenant: &str, id: &str, ttl: Duration, link: Option<Link>) -> Result<Lease, Error> {
        self.end_overdue();
        let lease = lock(&self.book).renew(tenant, id, ttl, link.as_ref().map(|link| link.id), now())?;
        tell("RenewLease", "renewed", &lease);
        if let Some(link) = link.filter(|link| lease.connection == Some(link.id)) {
            self.bind(link);
        }
        self.changed.notify_one();
        Ok(lease)
    }

    /// Gives a lease back.
    ///
    /// # Errors
    /// [`Error::LeaseNotFound`].
    pub fn release(&self, tenant: &str, id: &str) -> Result<Lease, Error> {
        self.end_overdue();
        let lease = lock(&self.book).release(tenant, id, now())?;
        self.ledger.end_lease(&lease.device, lease.bytes);
        tell("ReleaseGPU", "released", &lease);
        self.serve();
        Ok(lease)
    }

    /// Bytes that leases hold on a device.
    pub fn leased(&self, device: &str) -> u64 {
        self.end_overdue();
        lock(&self.book).leased(device)
    }

    /// The leases of a tenant on a device, by id.
    pub fn of_tenant(&self, tenant: &str, device: &str) -> Vec<Lease> {
        self.end_overdue();
        lock(&self.book).of_tenant(tenant, device)
    }

    /// Ends the leases of a connection a while after it.
    fn bind(self: &Arc<Self>, mut link: Link) {
        if !lock(&self.links).insert(link.id) {
            return;
        }
        let desk = Arc::clone(self);
        tokio::spawn(async move {
            let end = link.ended().await;
            lock(&desk.links).remove(&link.id);
            if end == End::Retired {
                // This server ended it: the owner is not known to be gone, and its next renewal binds the lease anew.
                return;
            }
            let orphaned = lock(&desk.book).orphan(link.id, now() + desk.grace);
            for lease in &orphaned {
                tell_later("ConnectionLost", "orphaned", lease);
            }
            desk.changed.notify_one();
        });
    }

    fn rooms(&self) -> Vec<Room> {
        let mut rooms = lock(&self.rooms).clone();
        for room in &mut rooms {
            room.taken = self.ledger.taken(&room.id);
        }
        rooms
    }

    fn end_overdue(&self) {
        let over = lock(&self.book).expire(now());
        for (lease, how) in &over {
            self.ledger.end_lease(&lease.device, lease.bytes);
            let outcome = if *how == Ended::Orphaned { "released" } else { "expired" };
            tell_later("LeaseEnd", outcome, lease);
        }
    }

    /// Grants what can be granted.
    fn serve(&self) {
        self.end_overdue();
        loop {
            let rooms = self.rooms();
            let mut book = lock(&self.book);
            let Some(turn) = book.next(&rooms) else { return };
            // Models and collections may have grown since the rooms were looked at; what they give back wakes the clock.
            if !self.ledger.lease(&turn.device, turn.ask.bytes) {
                return;
            }
            let lease = identity().and_then(|id| book.grant(&turn, id, now()));
            drop(book);
            self.hand_over(&turn, lease);
        }
    }

    fn hand_over(&self, turn: &Turn, lease: Option<Lease>) {
        let Some(lease) = lease else {
            self.ledger.end_lease(&turn.device, turn.ask.bytes);
            lock(&self.book).leave(turn.ticket);
            lock(&self.waiting).remove(&turn.ticket);
            return;
        };
        let reply = lock(&self.waiting).remove(&turn.ticket);
        let refused = match reply {
            Some(reply) => reply.send(lease).err(),
            None => Some(lease),
        };
        if let Some(lease) = refused {
            self.take_back(&lease);
        }
    }

    /// Of one who left before it heard of its lease.
    fn take_back(&self, lease: &Lease) {
        if lock(&self.book).release(&lease.tenant, &lease.id, now()).is_ok() {
            self.ledger.end_lease(&lease.device, lease.bytes);
        }
        self.changed.notify_one();
    }
}

/// Unguessable; none if the system has no randomness.
fn identity() -> Option<String> {
    let mut random = [0_u8; 16];
    getrandom::fill(&mut random).ok()?;
    Some(format!("{:032x}", u128::from_be_bytes(random)))
}

/// A place in the line; whoever drops it leaves.
struct Place<'a> {
    desk: &'a Desk,
    ticket: Ticket,
    answer: oneshot::Receiver<Lease>,
    /// The audit has it as waiting, and nothing after that yet.
    queued: bool,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.answer.close();
        if self.queued {
            tracing::info!(target: "audit", audit = true, action = "AllocateGPU", outcome = "left", "lease not waited for");
        }
        if lock(&self.desk.waiting).remove(&self.ticket).is_some() {
            lock(&self.desk.book).leave(self.ticket);
            self.desk.changed.notify_one();
        } else if let Ok(lease) = self.answer.try_recv() {
            self.desk.take_back(&lease);
        }
    }
}

/// Inside of the call, whose span has tenant, request id and trace.
fn tell(action: &str, outcome: &str, lease: &Lease) {
    let Lease {
        id,
        device,
        bytes,
        owner,
        ..
    } = lease;
    tracing::info!(target: "audit", audit = true, action, outcome, lease = id, device, bytes, owner, "lease {outcome}");
}

/// Outside of any call: under the one that allocated.
fn tell_later(action: &str, outcome: &str, lease: &Lease) {
    let Lease {
        id,
        device,
        bytes,
        owner,
        tenant,
        origin,
        ..
    } = lease;
    let (request_id, trace_id) = (&origin.request_id, &origin.trace_id);
    tracing::info!(target: "audit", audit = true, action, outcome, lease = id, device, bytes, owner, tenant, request_id, trace_id, "lease {outcome}");
}
