//! Device memory set aside by tenants. Bookkeeping only: a lease counts against a device, it allocates nothing.
//!
//! | | |
//! |---|---|
//! | `line` | who waits, and whose turn it is (pure) |
//! | `book` | what is held and by whom, until when (pure: time comes from the caller) |
//! | `desk` | the calls that ask and wait, the clock, connections that end, the audit |

pub mod book;
pub mod desk;
mod line;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use super::DeviceInfo;
use crate::error::Error;

/// Shortest and longest life of a lease, and the one that is given when none is asked for.
pub const TTL: (Duration, Duration, Duration) = (
    Duration::from_secs(1),
    Duration::from_secs(24 * 3600),
    Duration::from_secs(300),
);
/// Longest time that a call may wait for memory.
pub const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// What a tenant asks for.
#[derive(Debug, Clone)]
pub struct Ask {
    /// Who gets it.
    pub tenant: String,
    /// Who asks, for people.
    pub owner: String,
    /// At least 1.
    pub bytes: u64,
    /// An id or a UUID; empty for the device with most left.
    pub device: String,
    /// How long it holds.
    pub ttl: Duration,
    /// The connection with which the lease ends; none if it outlives it.
    pub connection: Option<u64>,
    /// The call that asked, for the audit.
    pub origin: Origin,
}

/// The call behind a lease: what happens to the lease later is told under it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origin {
    /// `x-request-id`.
    pub request_id: String,
    /// 32 hex digits; empty without a trace.
    pub trace_id: String,
}

/// Memory set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Unguessable.
    pub id: String,
    /// "cuda:N".
    pub device: String,
    /// As NVML writes it.
    pub uuid: String,
    /// Bytes.
    pub bytes: u64,
    /// Whose it is.
    pub tenant: String,
    /// Who asked for it, for people.
    pub owner: String,
    /// When it ends by itself.
    pub expires: Instant,
    /// The connection with which it ends.
    pub connection: Option<u64>,
    /// When it ends because that connection did.
    pub orphaned_until: Option<Instant>,
    /// The call that asked for it.
    pub origin: Origin,
}

impl Lease {
    /// When it ends, as things are.
    pub fn end(&self) -> Instant {
        self.orphaned_until
            .map_or(self.expires, |orphaned| orphaned.min(self.expires))
    }
}

/// How a lease ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Its owner gave it back.
    Released,
    /// Its time was over.
    Expired,
    /// Its owner's connection died and nobody renewed it.
    Orphaned,
}

/// A device on which memory may be leased.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Room {
    /// "cuda:N".
    pub id: String,
    /// As NVML writes it.
    pub uuid: String,
    /// Bytes it has.
    pub total: u64,
    /// Bytes of it that no lease can have now: what models and collections hold.
    pub taken: u64,
}

impl Room {
    /// The devices among these on which memory can be leased; nothing is taken.
    pub fn of(devices: &[DeviceInfo]) -> Vec<Self> {
        let usable = devices.iter().filter(|device| device.is_usable_gpu());
        let room = |device: &DeviceInfo| Self {
            id: device.id.clone(),
            uuid: device.uuid.clone(),
            total: device.total_memory,
            taken: 0,
        };
        usable.map(room).collect()
    }

    /// Whether the request could ever be served here.
    fn accepts(&self, ask: &Ask) -> bool {
        self.is_named(&ask.device) && self.total >= ask.bytes
    }

    fn is_named(&self, device: &str) -> bool {
        device.is_empty() || self.id == device || (!self.uuid.is_empty() && self.uuid == device)
    }
}

/// Refuses what no waiting can help.
///
/// # Errors
/// [`Error::GpuUnavailable`] without any GPU, [`Error::InvalidField`] for a device that is not there or for more than one has.
pub fn check(rooms: &[Room], ask: &Ask) -> Result<(), Error> {
    if rooms.is_empty() {
        return Err(Error::GpuUnavailable {
            detail: "this server has no GPU to lease memory on".to_owned(),
        });
    }
    let largest = rooms
        .iter()
        .filter(|room| room.is_named(&ask.device))
        .map(|room| room.total)
        .max();
    match largest {
        None => {
            let shown: String = ask.device.chars().take(127).collect();
            let problem = format!("{shown:?} is not a device of ListDevices on which memory can be leased");
            Err(Error::invalid("device", problem))
        }
        Some(largest) if largest < ask.bytes => {
            let problem = format!(
                "is {}; the largest device that can be leased on has {largest}",
                ask.bytes
            );
            Err(Error::invalid("memory_bytes", problem))
        }
        Some(_) => Ok(()),
    }
}
