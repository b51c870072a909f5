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
use crate::device::neighbours::{Held, Neighbours};
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
    /// The other processes of the host, if they share a lease store.
    neighbours: Option<Arc<Neighbours>>,
    /// One at a time serves.
    serving: tokio::sync::Mutex<()>,
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
    pub fn open(ledger: Ledger, neighbours: Option<Arc<Neighbours>>, grace: Duration) -> Arc<Self> {
        let desk = Arc::new(Self {
            book: Mutex::default(),
            rooms: Mutex::default(),
            waiting: Mutex::default(),
            links: Mutex::default(),
            ledger,
            neighbours,
            serving: tokio::sync::Mutex::default(),
            grace,
            changed: Notify::new(),
        });
        tokio::spawn(Arc::clone(&desk).follow());
        desk
    }

    /// Serves whenever a lease ends by itself or something else becomes free.
    async fn follow(self: Arc<Self>) {
        loop {
            Arc::clone(&self).serve().await;
            let wake = lock(&self.book).wake();
            let ends = async {
                match wake {
                    Some(wake) => tokio::time::sleep_until(wake.into()).await,
                    None => std::future::pending().await,
                }
            };
            let others = async {
                match &self.neighbours {
                    Some(neighbours) => neighbours.freed().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = ends => {}
                () = others => {}
                () = self.changed.notified() => {}
                () = self.ledger.freed() => {}
            }
        }
    }

    /// Memory on one of these devices, waited for at most `wait`.
    ///
    /// # Errors
    /// As [`check`]; [`Error::GpuMemoryExhausted`] if it cannot be had in time, [`Error::LeaseStoreUnavailable`],
    /// [`Error::QueueFull`].
    pub async fn allocate(
        self: &Arc<Self>,
        rooms: Vec<Room>,
        ask: Ask,
        wait: Duration,
        link: Option<Link>,
    ) -> Result<Lease, Error> {
        check(&rooms, &ask)?;
        if let Some(neighbours) = &self.neighbours {
            neighbours.know(&rooms);
        }
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
        // In a task of its own: a caller that goes away does not leave it half done.
        let _ = tokio::spawn(Arc::clone(self).serve()).await;
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

    /// Why nothing was granted.
    fn exhausted(&self, ticket: Ticket, ask: &Ask) -> Error {
        if let Some(trouble) = self.neighbours.as_ref().and_then(|neighbours| neighbours.trouble()) {
            return trouble;
        }
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
        self.free(&lease.device, &lease.uuid, lease.bytes);
        tell("ReleaseGPU", "released", &lease);
        self.changed.notify_one();
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
            room.taken = self.ledger.taken(&room.id).saturating_add(self.others(&room.uuid));
        }
        rooms
    }

    /// Bytes that other processes hold of a device.
    fn others(&self, uuid: &str) -> u64 {
        self.neighbours.as_ref().map_or(0, |neighbours| neighbours.others(uuid))
    }

    /// A lease on the device is over.
    fn free(&self, device: &str, uuid: &str, bytes: u64) {
        self.ledger.end_lease(device, bytes);
        if let Some(neighbours) = &self.neighbours {
            neighbours.give_back(uuid, bytes);
        }
    }

    fn end_overdue(&self) {
        let over = lock(&self.book).expire(now());
        for (lease, how) in &over {
            self.free(&lease.device, &lease.uuid, lease.bytes);
            let outcome = if *how == Ended::Orphaned { "released" } else { "expired" };
            tell_later("LeaseEnd", outcome, lease);
        }
    }

    /// Grants what can be granted.
    async fn serve(self: Arc<Self>) {
        let _alone = self.serving.lock().await;
        self.end_overdue();
        if let Some(neighbours) = self.neighbours.as_ref().filter(|_| lock(&self.book).has_line()) {
            // Nobody is refused for what another process held a moment ago.
            neighbours.tell().await;
        }
        let mut refused = None;
        loop {
            let rooms = self.rooms();
            let Some(turn) = lock(&self.book).next(&rooms) else {
                return;
            };
            // Models and collections may have grown since the rooms were looked at; what they give back wakes the clock.
            let here = Some((turn.ticket, turn.device.clone()));
            if here == refused || !self.ledger.lease(&turn.device, turn.ask.bytes) {
                return;
            }
            match self.held(&rooms, &turn).await {
                Held::Yes => {}
                // What others hold is known now, so another device may be next, or nobody.
                Held::No => {
                    self.ledger.end_lease(&turn.device, turn.ask.bytes);
                    refused = here;
                    continue;
                }
                Held::Unknown => {
                    self.ledger.end_lease(&turn.device, turn.ask.bytes);
                    return;
                }
            }
            let lease = identity().and_then(|id| lock(&self.book).grant(&turn, id, now()));
            self.hand_over(&turn, lease);
        }
    }

    /// Whether the other processes leave what a turn wants.
    async fn held(&self, rooms: &[Room], turn: &Turn) -> Held {
        let room = rooms.iter().find(|room| room.id == turn.device);
        match self.neighbours.as_ref().zip(room) {
            Some((neighbours, room)) => neighbours.take(room, turn.ask.bytes).await,
            None => Held::Yes,
        }
    }

    fn hand_over(&self, turn: &Turn, lease: Option<Lease>) {
        let Some(lease) = lease else {
            self.free(&turn.device, &turn.uuid, turn.ask.bytes);
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
            self.free(&lease.device, &lease.uuid, lease.bytes);
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
