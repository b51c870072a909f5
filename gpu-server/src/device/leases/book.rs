//! What is held, by whom and until when; who waits. Pure: time comes from the caller, so that order and expiry are tested
//! without waiting.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::line::{Line, Ticket, Waiting};
use super::{Ask, Ended, Lease, Room};
use crate::error::Error;

/// Most that may wait, of all tenants and of one.
const MOST_WAITING: (usize, usize) = (1_024, 128);
/// Leases that have ended and are remembered, so that whoever comes too late hears why.
const REMEMBERED: usize = 1_024;
/// When to come back if too many wait.
const COME_BACK: Duration = Duration::from_secs(1);

/// All leases of this process, and the line for them.
#[derive(Debug, Default)]
pub struct Book {
    held: HashMap<String, Lease>,
    line: Line,
    /// Id, tenant and end; the newest last.
    ended: VecDeque<(String, String, Ended)>,
}

/// Whose turn it is, and where there is memory for it.
#[derive(Debug, Clone)]
pub struct Turn {
    /// The request.
    pub ticket: Ticket,
    /// What it wants.
    pub ask: Arc<Ask>,
    /// "cuda:N".
    pub device: String,
    /// As NVML writes it.
    pub uuid: String,
}

impl Book {
    /// Puts a request into the line.
    ///
    /// # Errors
    /// [`Error::QueueFull`].
    pub fn join(&mut self, ask: Ask) -> Result<Ticket, Error> {
        let (all, own) = (self.line.len(), self.line.len_of(&ask.tenant));
        if all >= MOST_WAITING.0 || own >= MOST_WAITING.1 {
            return Err(Error::QueueFull {
                waiting: format!("{own} lease requests of this tenant, {all} in all,"),
                retry_after: COME_BACK,
            });
        }
        Ok(self.line.join(Arc::new(ask)))
    }

    /// A caller is gone, or has waited long enough.
    pub fn leave(&mut self, ticket: Ticket) {
        self.line.leave(ticket);
    }

    /// Whether anybody waits.
    pub fn has_line(&self) -> bool {
        self.line.len() > 0
    }

    /// How many wait before one.
    pub fn before(&self, ticket: Ticket) -> usize {
        self.line.before(ticket)
    }

    /// The next to be served; [`Self::grant`] serves it.
    pub fn next(&self, rooms: &[Room]) -> Option<Turn> {
        let free: Vec<u64> = rooms.iter().map(|room| self.free(room)).collect();
        let (waiting, at) = self.line.next(rooms, &free)?;
        let room = &rooms[at];
        Some(Turn {
            ticket: waiting.ticket,
            ask: Arc::clone(&waiting.ask),
            device: room.id.clone(),
            uuid: room.uuid.clone(),
        })
    }

    /// Bytes of a device that may be leased now.
    pub fn free(&self, room: &Room) -> u64 {
        let left = room.total.saturating_sub(room.taken);
        left.saturating_sub(self.leased(&room.id))
    }

    /// Serves one whose turn it is; none if it has left.
    pub fn grant(&mut self, turn: &Turn, id: String, now: Instant) -> Option<Lease> {
        let Waiting { ask, .. } = self.line.leave(turn.ticket)?;
        let lease = Lease {
            id: id.clone(),
            device: turn.device.clone(),
            uuid: turn.uuid.clone(),
            bytes: ask.bytes,
            tenant: ask.tenant.clone(),
            owner: ask.owner.clone(),
            expires: now + ask.ttl,
            connection: ask.connection,
            orphaned_until: None,
            origin: ask.origin.clone(),
        };
        self.held.insert(id, lease.clone());
        Some(lease)
    }

    /// Lets a lease hold for `ttl` from `now` on. Over another connection it is bound to that one from now on.
    ///
    /// # Errors
    /// As [`Self::release`]: what has ended cannot be brought back, since its memory may be another's by now.
    pub fn renew(
        &mut self,
        tenant: &str,
        id: &str,
        ttl: Duration,
        connection: Option<u64>,
        now: Instant,
    ) -> Result<Lease, Error> {
        let missing = self.missing(tenant, id);
        let lease = self.of(tenant, id, now).ok_or(missing)?;
        lease.expires = now + ttl;
        if lease.connection.is_some() && connection.is_some() {
            lease.connection = connection;
            lease.orphaned_until = None;
        }
        Ok(lease.clone())
    }

    /// Gives a lease back.
    ///
    /// # Errors
    /// [`Error::LeaseNotFound`] when it is unknown, has ended, or is another tenant's: that is the same to the caller.
    pub fn release(&mut self, tenant: &str, id: &str, now: Instant) -> Result<Lease, Error> {
        let missing = self.missing(tenant, id);
        let found = self.of(tenant, id, now).cloned();
        let lease = found.ok_or(missing)?;
        self.held.remove(id);
        self.remember(&lease, Ended::Released);
        Ok(lease)
    }

    /// A connection died: its leases end at `until`, unless they are renewed over another one.
    pub fn orphan(&mut self, connection: u64, until: Instant) -> Vec<Lease> {
        let bound = self
            .held
            .values_mut()
            .filter(|lease| lease.connection == Some(connection));
        bound
            .map(|lease| {
                lease.orphaned_until = Some(until);
                lease.clone()
            })
            .collect()
    }

    /// Ends what is over by `now`.
    pub fn expire(&mut self, now: Instant) -> Vec<(Lease, Ended)> {
        let over: Vec<(Lease, Ended)> = self
            .held
            .extract_if(|_, lease| lease.end() <= now)
            .map(|(_, lease)| {
                let how = if lease.expires <= now {
                    Ended::Expired
                } else {
                    Ended::Orphaned
                };
                (lease, how)
            })
            .collect();
        for (lease, how) in &over {
            self.remember(lease, *how);
        }
        over
    }

    /// When a lease ends next by itself.
    pub fn wake(&self) -> Option<Instant> {
        self.held.values().map(Lease::end).min()
    }

    /// Bytes that leases hold on a device.
    pub fn leased(&self, device: &str) -> u64 {
        let here = self.held.values().filter(|lease| lease.device == device);
        here.map(|lease| lease.bytes).sum()
    }

    /// The leases of a tenant on a device, by id.
    pub fn of_tenant(&self, tenant: &str, device: &str) -> Vec<Lease> {
        let own = |lease: &&Lease| lease.tenant == tenant && lease.device == device;
        let mut own: Vec<Lease> = self.held.values().filter(own).cloned().collect();
        own.sort_by(|a, b| a.id.cmp(&b.id));
        own
    }

    fn of(&mut self, tenant: &str, id: &str, now: Instant) -> Option<&mut Lease> {
        self.held
            .get_mut(id)
            .filter(|lease| lease.tenant == tenant && lease.end() > now)
    }

    fn remember(&mut self, lease: &Lease, how: Ended) {
        if self.ended.len() == REMEMBERED {
            self.ended.pop_front();
        }
        self.ended.push_back((lease.id.clone(), lease.tenant.clone(), how));
    }

    /// Why a lease cannot be renewed or released.
    fn missing(&self, tenant: &str, id: &str) -> Error {
        let own = |(ended, owner, _): &&(String, String, Ended)| ended == id && owner == tenant;
        Error::LeaseNotFound {
            lease_id: id.chars().take(127).collect(),
            how: self.ended.iter().rfind(own).map(|(_, _, how)| *how),
        }
    }
}
