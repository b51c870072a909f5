//! The memory of a collection's rows, as it is counted against the device. It is held before the file is written, so that
//! nothing is written which could then not be shown.

use std::sync::{Mutex, PoisonError};

use super::store::Properties;
use crate::device::ledger::{Holder, Ledger, Reservation};
use crate::error::Error;

/// What one collection holds.
#[derive(Debug)]
pub struct Growth {
    what: String,
    row_bytes: u64,
    memory: Mutex<Reservation>,
}

impl Growth {
    /// Nothing yet.
    ///
    /// # Errors
    /// None: nothing always fits.
    pub fn try_new(ledger: &Ledger, name: &str, properties: &Properties) -> Result<Self, Error> {
        Ok(Self {
            what: format!("collection {name:?}"),
            row_bytes: properties.row_bytes(),
            memory: Mutex::new(ledger.reserve(Holder::Collections, "", 0)?),
        })
    }

    /// Holds as much as a view of exactly `rows` has.
    ///
    /// # Errors
    /// [`Error::GpuMemoryHeld`].
    pub fn exactly(&self, rows: usize) -> Result<(), Error> {
        self.hold(self.row_bytes.saturating_mul(rows as u64))
    }

    /// Holds what the view may have with `rows`: it doubles where it has to grow.
    ///
    /// # Errors
    /// [`Error::GpuMemoryHeld`].
    pub fn up_to(&self, rows: usize) -> Result<(), Error> {
        let needed = self.row_bytes.saturating_mul(rows as u64);
        let now = self.memory.lock().unwrap_or_else(PoisonError::into_inner).bytes();
        if needed <= now {
            return Ok(());
        }
        self.hold(needed.max(now.saturating_mul(2)))
    }

    /// Counts as much as the view has: it is there already.
    pub fn settle(&self, bytes: u64) {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).settle(bytes);
    }

    fn hold(&self, bytes: u64) -> Result<(), Error> {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        memory.resize(&self.what, bytes)
    }
}
