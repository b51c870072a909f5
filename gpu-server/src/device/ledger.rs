//! Whose the memory of the GPU is that this process computes on: models, collections and leases share it, and none of them
//! takes what another one holds.
//!
//! What other gpu-servers of the host hold is counted as well, if they share a lease store (`neighbours`).
//!
//! It counts what is asked for, not what CUDA allocates: weights, the rows of collections, leases. Activations and the CUDA
//! context are not in it. On a CPU, and where NVML does not tell how much memory there is, nothing is refused.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::ActiveDevice;
use crate::error::Error;

/// Who holds memory for the life of a [`Reservation`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// Weights.
    Models,
    /// Rows of vectors.
    Collections,
}

/// Shared by all roles of a process.
#[derive(Debug, Clone)]
pub struct Ledger(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// "cuda:N" and its bytes.
    device: Option<(String, u64)>,
    held: Mutex<Held>,
    freed: Notify,
    /// Something is held that was not, or no more.
    moved: Notify,
}

/// Bytes.
#[derive(Debug, Clone, Copy, Default)]
struct Held {
    models: u64,
    collections: u64,
    leased: u64,
    /// Of other processes.
    neighbours: u64,
}

impl Held {
    fn of(&mut self, holder: Holder) -> &mut u64 {
        match holder {
            Holder::Models => &mut self.models,
            Holder::Collections => &mut self.collections,
        }
    }

    fn all(self) -> u64 {
        [self.models, self.collections, self.leased, self.neighbours]
            .into_iter()
            .fold(0, u64::saturating_add)
    }
}

impl Ledger {
    /// Of the memory of this device.
    pub fn of(device: Option<&ActiveDevice>) -> Self {
        let known = device.and_then(|device| Some((device.id.clone(), device.memory?)));
        Self(Arc::new(Shared {
            device: known,
            held: Mutex::default(),
            freed: Notify::new(),
            moved: Notify::new(),
        }))
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of `bytes` for `what`, until the reservation is dropped.
    ///
    /// # Errors
    /// [`Error::GpuMemoryHeld`].
    pub fn reserve(&self, holder: Holder, what: &str, bytes: u64) -> Result<Reservation, Error> {
        let mut reservation = Reservation {
            ledger: self.clone(),
            holder,
            bytes: 0,
        };
        reservation.resize(what, bytes)?;
        Ok(reservation)
    }

    /// Whether `bytes` more for `what` would be granted now.
    ///
    /// # Errors
    /// [`Error::GpuMemoryHeld`].
    pub fn check(&self, what: &str, bytes: u64) -> Result<(), Error> {
        let held = *self.held();
        self.fits(held, what, bytes)
    }

    fn fits(&self, held: Held, what: &str, more: u64) -> Result<(), Error> {
        match &self.0.device {
            Some((_, total)) if held.all().saturating_add(more) > *total => Err(Error::GpuMemoryHeld {
                what: what.to_owned(),
                wanted_bytes: more,
                total_bytes: *total,
                leased_bytes: held.leased,
                model_bytes: held.models,
                collection_bytes: held.collections,
                neighbour_bytes: held.neighbours,
            }),
            _ => Ok(()),
        }
    }

    /// Most bytes that all models together may hold now; none where that is not limited.
    pub fn room_for_models(&self) -> Option<u64> {
        let (_, total) = self.0.device.as_ref()?;
        let held = *self.held();
        Some(total.saturating_sub(held.all().saturating_sub(held.models)))
    }

    /// Bytes of a device that models and collections of this process hold.
    pub fn taken(&self, device: &str) -> u64 {
        let held = *self.held();
        if self.is_of(device) {
            held.models.saturating_add(held.collections)
        } else {
            0
        }
    }

    /// Counts a lease; false if it does not fit.
    pub fn lease(&self, device: &str, bytes: u64) -> bool {
        if !self.is_of(device) {
            return true;
        }
        let mut held = self.held();
        let fits = self.fits(*held, "", bytes).is_ok();
        if fits {
            held.leased = held.leased.saturating_add(bytes);
        }
        fits
    }

    /// A lease is over.
    pub fn end_lease(&self, device: &str, bytes: u64) {
        if self.is_of(device) {
            let mut held = self.held();
            held.leased = held.leased.saturating_sub(bytes);
        }
    }

    /// Waits until a model or a collection has given memory back; what happened before is not missed.
    pub async fn freed(&self) {
        self.0.freed.notified().await;
    }

    /// What other processes of this host hold of the device.
    pub fn set_neighbours(&self, bytes: u64) {
        self.held().neighbours = bytes;
    }

    /// Waits until models or collections hold more or less than before; what happened before is not missed.
    pub async fn moved(&self) {
        self.0.moved.notified().await;
    }

    /// Who holds how much of the device; none where nothing is counted.
    pub fn by_holder(&self) -> Option<(&str, [(&'static str, u64); 4])> {
        let (device, _) = self.0.device.as_ref()?;
        let held = *self.held();
        let holders = [
            ("models", held.models),
            ("collections", held.collections),
            ("leases", held.leased),
            ("other_servers", held.neighbours),
        ];
        Some((device, holders))
    }

    fn is_of(&self, device: &str) -> bool {
        self.0.device.as_ref().is_some_and(|(id, _)| id == device)
    }
}

/// Memory that a model or a collection holds, until this is dropped.
#[derive(Debug)]
pub struct Reservation {
    ledger: Ledger,
    holder: Holder,
    bytes: u64,
}

impl Reservation {
    /// How many are held.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Holds `bytes` from now on; if they cannot be had, as many as before.
    ///
    /// # Errors
    /// [`Error::GpuMemoryHeld`].
    pub fn resize(&mut self, what: &str, bytes: u64) -> Result<(), Error> {
        let ledger = self.ledger.clone();
        let held = ledger.held();
        let more = bytes.saturating_sub(self.bytes);
        if more > 0 {
            ledger.fits(*held, what, more)?;
        }
        self.count(held, bytes);
        Ok(())
    }

    /// Counts `bytes` that are held in fact, whether or not they were there to be had.
    pub fn settle(&mut self, bytes: u64) {
        let ledger = self.ledger.clone();
        self.count(ledger.held(), bytes);
    }

    fn count(&mut self, mut held: MutexGuard<'_, Held>, bytes: u64) {
        let own = held.of(self.holder);
        *own = own.saturating_sub(self.bytes).saturating_add(bytes);
        drop(held);
        let less = bytes < self.bytes;
        self.bytes = bytes;
        self.ledger.0.moved.notify_one();
        if less {
            self.ledger.0.freed.notify_one();
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut held = self.ledger.held();
        let own = held.of(self.holder);
        *own = own.saturating_sub(self.bytes);
        drop(held);
        self.ledger.0.moved.notify_one();
        self.ledger.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(memory: Option<u64>) -> Ledger {
        Ledger::of(Some(&ActiveDevice {
            device: tch::Device::Cpu,
            id: "cuda:0".to_owned(),
            detail: String::new(),
            fast_bf16: false,
            memory,
            watched: None,
        }))
    }

    #[test]
    fn nobody_takes_what_another_one_holds() {
        let ledger = ledger(Some(100));
        let mut model = ledger.reserve(Holder::Models, "model \"m\"", 40).unwrap();
        assert!(ledger.lease("cuda:0", 50));
        assert!(!ledger.lease("cuda:0", 11), "the model holds 40");
        let error = ledger.reserve(Holder::Collections, "collection \"c\"", 11).unwrap_err();
        let told = error.to_string();
        for part in [
            "collection \"c\" needs 11",
            "of the GPU's 100",
            "leases hold 50",
            "models 40",
        ] {
            assert!(told.contains(part), "{told}");
        }
        assert!(model.resize("model \"m\"", 51).is_err());
        assert_eq!(ledger.taken("cuda:0"), 40, "a growth that is refused changes nothing");
        assert_eq!(ledger.room_for_models(), Some(50));
        ledger.end_lease("cuda:0", 50);
        model.resize("model \"m\"", 100).unwrap();
        drop(model);
        assert!(ledger.lease("cuda:0", 100));
    }

    #[test]
    fn another_device_and_one_of_unknown_size_are_not_limited_here() {
        let known = ledger(Some(100));
        assert!(known.lease("cuda:1", u64::MAX));
        assert_eq!((known.taken("cuda:1"), known.room_for_models()), (0, Some(100)));
        let unknown = ledger(None);
        let held = unknown.reserve(Holder::Models, "a", u64::MAX).unwrap();
        assert!(unknown.reserve(Holder::Collections, "b", u64::MAX).is_ok());
        assert_eq!(unknown.room_for_models(), None);
        drop(held);
    }

    #[tokio::test]
    async fn what_is_given_back_is_told() {
        let ledger = ledger(Some(100));
        let held = ledger.reserve(Holder::Models, "a", 10).unwrap();
        drop(held);
        ledger.freed().await;
    }
}
