//! The status of the device, once and as it changes.

use futures_util::stream::{self, Stream};
use medkg_proto::v1;
use tokio::sync::watch;

use super::Gpu;
use crate::device::pressure::{Memory, Pressure};

impl Gpu {
    pub(super) fn status(&self) -> v1::GetStatusResponse {
        let fault = self.engine.latch.fault();
        let active = self.engine.device.as_ref().filter(|_| fault.is_none());
        let state = if active.is_some() {
            v1::DeviceState::Ready
        } else {
            v1::DeviceState::Unavailable
        };
        let detail = fault.map_or_else(
            || active.map_or_else(String::new, |device| device.detail.clone()),
            |fault| fault.to_string(),
        );
        let memory = active.and_then(|_| self.engine.memory.now());
        let pressure = match memory.map(|memory| memory.pressure) {
            None => v1::MemoryPressure::Unspecified,
            Some(Pressure::Normal) => v1::MemoryPressure::Normal,
            Some(Pressure::Warn) => v1::MemoryPressure::Warn,
            Some(Pressure::Critical) => v1::MemoryPressure::Critical,
        };
        v1::GetStatusResponse {
            state: state.into(),
            requested_device: self.choice.to_string(),
            active_device: active.map_or_else(String::new, |device| device.id.clone()),
            detail,
            server_version: env!("CARGO_PKG_VERSION").to_owned(),
            roles: self.roles.clone(),
            uptime: prost_types::Duration::try_from(self.started.elapsed()).ok(),
            threads: self.threads,
            memory_pressure: pressure.into(),
            used_memory_bytes: memory.map(|memory| memory.used),
            total_memory_bytes: memory.map_or(0, |memory| memory.total),
        }
    }

    /// The status now and whenever it is another one, until the process stops. It is made when the reader has room for it:
    /// nothing is kept for a slow one, which gets the newest.
    pub(super) fn statuses(&self) -> impl Stream<Item = v1::GetStatusResponse> + Send + use<> {
        let watching = Watching {
            gpu: self.clone(),
            memory: self.engine.memory.changes(),
            stopping: self.stopping.clone(),
            told: None,
        };
        stream::unfold(watching, async |mut watching| {
            let status = watching.next().await?;
            Some((status, watching))
        })
    }
}

/// A reader of the status.
struct Watching {
    gpu: Gpu,
    memory: watch::Receiver<Option<Memory>>,
    stopping: watch::Receiver<bool>,
    /// State, detail and pressure that it has been told.
    told: Option<(i32, String, i32)>,
}

impl Watching {
    /// The next status that differs from the one told; none once the process stops.
    async fn next(&mut self) -> Option<v1::GetStatusResponse> {
        loop {
            let status = self.gpu.status();
            let now = (status.state, status.detail.clone(), status.memory_pressure);
            if self.told.as_ref() != Some(&now) {
                self.told = Some(now);
                return Some(status);
            }
            let lost = status.state() == v1::DeviceState::Unavailable;
            tokio::select! {
                biased;
                _ = self.gpu.engine.latch.wait(), if !lost => {}
                Ok(()) = self.memory.changed() => {}
                _ = self.stopping.wait_for(|stop| *stop) => return None,
            }
        }
    }
}
