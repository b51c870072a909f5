//! The latch of GPU truth: once a device is lost, everything that asks hears so, until the process ends.

use std::sync::Arc;

use tokio::sync::watch;

use crate::error::Error;

/// Shared by the lanes, which close it, and by everything that must know.
#[derive(Debug, Clone)]
pub struct FaultLatch(Arc<watch::Sender<Option<Error>>>);

impl FaultLatch {
    /// Open, or closed from the start by what the probe found.
    pub fn new(fault: Option<Error>) -> Self {
        Self(Arc::new(watch::Sender::new(fault)))
    }

    /// Closes the latch if `error` means that the device can compute nothing more. The first fault is kept.
    pub fn observe(&self, error: &Error) {
        if error.is_sticky() {
            self.0.send_if_modified(|fault| {
                let first = fault.is_none();
                if first {
                    *fault = Some(error.clone());
                }
                first
            });
        }
    }

    /// The fault, if there is one.
    pub fn fault(&self) -> Option<Error> {
        self.0.borrow().clone()
    }

    /// Waits until there is a fault.
    pub async fn wait(&self) -> Error {
        let mut receiver = self.0.subscribe();
        loop {
            if let Some(fault) = receiver.borrow_and_update().clone() {
                return fault;
            }
            if receiver.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_a_lost_device_closes_it_and_the_first_fault_stays() {
        let latch = FaultLatch::new(None);
        latch.observe(&Error::GpuOutOfMemory { detail: "full".into() });
        assert!(latch.fault().is_none());
        latch.observe(&Error::GpuLost { detail: "first".into() });
        latch.observe(&Error::GpuLost {
            detail: "second".into(),
        });
        assert!(matches!(latch.wait().await, Error::GpuLost { detail } if detail == "first"));
    }
}
