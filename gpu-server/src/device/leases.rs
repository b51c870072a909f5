//! Device memory set aside by tenants. Bookkeeping only: a lease counts against a device, it allocates nothing.
//!
//! Time comes from the caller, so that expiry is tested without waiting.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::DeviceInfo;
use crate::error::Error;

/// Shortest and longest life of a lease, and the one that is given when none is asked for.
pub const TTL: (Duration, Duration, Duration) = (
    Duration::from_secs(1),
    Duration::from_secs(24 * 3600),
    Duration::from_secs(300),
);

/// Memory set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Unguessable.
    pub id: String,
    /// "cuda:N".
    pub device: String,
    /// Bytes.
    pub bytes: u64,
    /// Who asked for it, for people.
    pub owner: String,
    /// When it ends by itself.
    pub expires: Instant,
    tenant: String,
}

/// What a tenant asks for.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// Who gets it.
    pub tenant: &'a str,
    /// Who asks, for people.
    pub owner: &'a str,
    /// At least 1.
    pub bytes: u64,
    /// "cuda:N"; empty for the one with most left.
    pub device: &'a str,
    /// How long it holds.
    pub ttl: Duration,
}

/// All leases of this process.
#[derive(Debug, Default)]
pub struct Leases(HashMap<String, Lease>);

impl Leases {
    /// Sets memory aside on the device that is asked for, or on the one with most left.
    ///
    /// # Errors
    /// [`Error::GpuUnavailable`] without any GPU, [`Error::InvalidField`] for a device that is not there,
    /// [`Error::GpuMemoryExhausted`] when too little is left.
    pub fn allocate(&mut self, devices: &[DeviceInfo], ask: &Ask<'_>, now: Instant) -> Result<Lease, Error> {
        let &Ask {
            bytes, device: wanted, ..
        } = ask;
        self.expire(now);
        let gpus: Vec<&DeviceInfo> = devices.iter().filter(|device| device.is_usable_gpu()).collect();
        if gpus.is_empty() {
            return Err(Error::GpuUnavailable {
                detail: "this server has no GPU to lease memory on".to_owned(),
            });
        }
        let candidates: Vec<&DeviceInfo> = gpus
            .into_iter()
            .filter(|d| wanted.is_empty() || d.id == wanted)
            .collect();
        let free = |device: &DeviceInfo| device.total_memory.saturating_sub(self.leased(&device.id));
        let Some(best) = candidates.into_iter().max_by_key(|device| free(device)) else {
            return Err(Error::invalid(
                "device",
                format!("{wanted:?} is not one of ListDevices"),
            ));
        };
        let free_bytes = free(best);
        if free_bytes < bytes {
            return Err(Error::GpuMemoryExhausted {
                wanted_bytes: bytes,
                free_bytes,
            });
        }
        let mut random = [0_u8; 16];
        getrandom::fill(&mut random).map_err(Error::internal)?;
        let id = random
            .iter()
            .fold(String::with_capacity(32), |hex, byte| hex + &format!("{byte:02x}"));
        let lease = Lease {
            id: id.clone(),
            device: best.id.clone(),
            bytes,
            owner: ask.owner.to_owned(),
            tenant: ask.tenant.to_owned(),
            expires: now + ask.ttl,
        };
        self.0.insert(id, lease.clone());
        Ok(lease)
    }

    /// Lets a lease hold for `ttl` from `now` on.
    ///
    /// # Errors
    /// As [`Self::release`]: what has expired cannot be brought back, since its memory may be another's by now.
    pub fn renew(&mut self, tenant: &str, id: &str, ttl: Duration, now: Instant) -> Result<(), Error> {
        self.expire(now);
        match self.0.get_mut(id) {
            Some(lease) if lease.tenant == tenant => {
                lease.expires = now + ttl;
                Ok(())
            }
            _ => Err(Error::LeaseNotFound {
                lease_id: id.to_owned(),
            }),
        }
    }

    /// Gives a lease back; its bytes.
    ///
    /// # Errors
    /// [`Error::LeaseNotFound`] when it is unknown, expired, released or another tenant's: all the same to the caller.
    pub fn release(&mut self, tenant: &str, id: &str, now: Instant) -> Result<u64, Error> {
        self.expire(now);
        match self.0.get(id) {
            Some(lease) if lease.tenant == tenant => Ok(self.0.remove(id).map_or(0, |lease| lease.bytes)),
            _ => Err(Error::LeaseNotFound {
                lease_id: id.to_owned(),
            }),
        }
    }

    /// The leases of a tenant on a device, by id.
    pub fn of_tenant(&mut self, tenant: &str, device: &str, now: Instant) -> Vec<Lease> {
        self.expire(now);
        let own = |lease: &&Lease| lease.tenant == tenant && lease.device == device;
        let mut own: Vec<Lease> = self.0.values().filter(own).cloned().collect();
        own.sort_by(|a, b| a.id.cmp(&b.id));
        own
    }

    /// Bytes that leases hold on a device.
    pub fn leased_now(&mut self, device: &str, now: Instant) -> u64 {
        self.expire(now);
        self.leased(device)
    }

    fn leased(&self, device: &str) -> u64 {
        self.0
            .values()
            .filter(|lease| lease.device == device)
            .map(|lease| lease.bytes)
            .sum()
    }

    fn expire(&mut self, now: Instant) {
        self.0.retain(|_, lease| lease.expires > now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpus() -> Vec<DeviceInfo> {
        [("cuda:0", 100), ("cuda:1", 80)]
            .map(|(id, total_memory)| DeviceInfo {
                id: id.into(),
                is_gpu: true,
                name: "H100".into(),
                total_memory,
                ..DeviceInfo::default()
            })
            .into()
    }

    fn allocate(leases: &mut Leases, bytes: u64, device: &str, now: Instant) -> Result<Lease, Error> {
        leases.allocate(&gpus(), &ask(bytes, device), now)
    }

    const fn ask(bytes: u64, device: &str) -> Ask<'_> {
        Ask {
            tenant: "a",
            owner: "me",
            bytes,
            device,
            ttl: Duration::from_secs(10),
        }
    }

    #[test]
    fn the_device_with_most_left_is_taken_and_none_is_overdrawn() {
        let (mut leases, now) = (Leases::default(), Instant::now());
        assert_eq!(allocate(&mut leases, 60, "", now).unwrap().device, "cuda:0");
        assert_eq!(allocate(&mut leases, 60, "", now).unwrap().device, "cuda:1");
        let error = allocate(&mut leases, 60, "", now).unwrap_err();
        assert!(
            matches!(
                error,
                Error::GpuMemoryExhausted {
                    wanted_bytes: 60,
                    free_bytes: 40
                }
            ),
            "{error}"
        );
        assert!(matches!(
            allocate(&mut leases, 1, "cuda:7", now),
            Err(Error::InvalidField { .. })
        ));
    }

    #[test]
    fn a_lease_ends_by_itself_and_only_its_tenant_can_end_it() {
        let (mut leases, now) = (Leases::default(), Instant::now());
        let lease = allocate(&mut leases, 60, "cuda:0", now).unwrap();
        assert!(leases.release("b", &lease.id, now).is_err());
        assert_eq!(leases.leased_now("cuda:0", now), 60);
        let later = now + Duration::from_secs(10);
        assert_eq!(leases.leased_now("cuda:0", later), 0);
        assert!(leases.release("a", &lease.id, later).is_err());
    }

    #[test]
    fn a_lease_is_renewed_by_its_tenant_while_it_holds() {
        let (mut leases, now) = (Leases::default(), Instant::now());
        let lease = allocate(&mut leases, 60, "cuda:0", now).unwrap();
        let (soon, ttl) = (now + Duration::from_secs(9), Duration::from_secs(10));
        assert!(matches!(
            leases.renew("b", &lease.id, ttl, soon),
            Err(Error::LeaseNotFound { .. })
        ));
        leases.renew("a", &lease.id, ttl, soon).unwrap();
        assert_eq!(leases.leased_now("cuda:0", now + Duration::from_secs(18)), 60);
        let late = now + Duration::from_secs(19);
        assert!(matches!(
            leases.renew("a", &lease.id, ttl, late),
            Err(Error::LeaseNotFound { .. })
        ));
        assert_eq!(leases.leased_now("cuda:0", late), 0, "an expired lease stays expired");
    }

    #[test]
    fn any_size_is_counted_without_overflow() {
        let (mut leases, now) = (Leases::default(), Instant::now());
        allocate(&mut leases, 60, "cuda:0", now).unwrap();
        let error = allocate(&mut leases, u64::MAX, "", now).unwrap_err();
        assert!(
            matches!(
                error,
                Error::GpuMemoryExhausted {
                    wanted_bytes: u64::MAX,
                    free_bytes: 80
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn a_gpu_that_cuda_does_not_show_is_nothing_to_lease() {
        let hidden = [DeviceInfo {
            id: "GPU-1".into(),
            is_gpu: true,
            total_memory: 100,
            ..DeviceInfo::default()
        }];
        let error = Leases::default()
            .allocate(&hidden, &ask(1, "GPU-1"), Instant::now())
            .unwrap_err();
        assert!(matches!(error, Error::GpuUnavailable { .. }));
    }

    #[test]
    fn released_once_and_never_again() {
        let (mut leases, now) = (Leases::default(), Instant::now());
        let lease = allocate(&mut leases, 60, "", now).unwrap();
        assert_eq!(leases.release("a", &lease.id, now).unwrap(), 60);
        assert!(leases.release("a", &lease.id, now).is_err());
    }

    #[test]
    fn a_cpu_is_nothing_to_lease() {
        let cpu = [DeviceInfo {
            id: "cpu".into(),
            total_memory: 100,
            ..DeviceInfo::default()
        }];
        let error = Leases::default()
            .allocate(&cpu, &ask(1, ""), Instant::now())
            .unwrap_err();
        assert!(matches!(error, Error::GpuUnavailable { .. }));
    }
}
