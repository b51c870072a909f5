//! The machine's devices, as the driver and the leases tell of them.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use medkg_proto::v1;

use super::Gpu;
use crate::config::DeviceChoice;
use crate::device::leases::Lease;
use crate::device::{self, DeviceDetails, DeviceInfo};
use crate::error::Error;

/// How long NVML may take to tell of the devices: on a GPU that hangs it may hang too.
const LIST: Duration = Duration::from_secs(10);

impl Gpu {
    /// What the driver says, asked beside the async threads.
    async fn ask<T: Send + 'static>(
        &self,
        ask: impl FnOnce(DeviceChoice, Option<PathBuf>) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let watched = self.engine.device.as_ref().and_then(|device| device.watched.as_ref());
        let (choice, library) = (self.choice, watched.and_then(|watched| watched.library.clone()));
        let asking = tokio::task::spawn_blocking(move || ask(choice, library));
        match tokio::time::timeout(LIST, asking).await {
            Ok(answer) => answer.map_err(Error::internal),
            Err(_) => Err(Error::GpuUnavailable {
                detail: format!("the NVIDIA driver has not told of its devices for {LIST:?}"),
            }),
        }
    }

    /// All devices.
    pub(super) async fn devices(&self) -> Result<Vec<DeviceInfo>, Error> {
        self.ask(|choice, library| device::list(choice, library.as_deref()))
            .await
    }

    /// One device, and the tenant's leases there.
    pub(super) async fn device(&self, tenant: &str, name: &str) -> Result<v1::GetDeviceInfoResponse, Error> {
        let wanted = name.to_owned();
        let found = self.ask(move |choice, library| device::describe(choice, library.as_deref(), &wanted));
        let Some(details) = found.await? else {
            let shown: String = name.chars().take(127).collect();
            let problem = format!("{shown:?} is neither the id nor the uuid of a device of ListDevices");
            return Err(Error::invalid("device", problem));
        };
        let DeviceDetails {
            info,
            driver_version,
            utilization,
            power,
            uncorrected,
        } = details;
        let leases = self.desk.of_tenant(tenant, &info.id);
        let device = self.wire(info);
        Ok(v1::GetDeviceInfoResponse {
            model_memory_bytes: if device.active {
                self.engine.models.held_bytes()
            } else {
                0
            },
            leases: leases.into_iter().map(lease_info).collect(),
            device: Some(device),
            driver_version,
            utilization_percent: utilization,
            power_milliwatts: power,
            uncorrected_ecc_errors: uncorrected,
        })
    }

    /// As the wire tells it.
    pub(super) fn wire(&self, device: DeviceInfo) -> v1::Device {
        let kind = if device.is_gpu {
            v1::DeviceKind::Cuda
        } else {
            v1::DeviceKind::Cpu
        };
        v1::Device {
            kind: kind.into(),
            name: device.name,
            total_memory_bytes: device.total_memory,
            leased_memory_bytes: self.desk.leased(&device.id),
            held_by_others_bytes: self
                .engine
                .neighbours
                .as_ref()
                .map(|neighbours| neighbours.others(&device.uuid)),
            active: device.id == self.status().active_device,
            id: device.id,
            used_memory_bytes: device.used_memory,
            uuid: device.uuid,
            pci_bus_id: device.pci_bus_id,
            temperature_celsius: device.temperature,
            compute_capability: device.capability,
            mig_enabled: device.mig_enabled,
            parent_uuid: device.parent_uuid,
        }
    }
}

fn lease_info(lease: Lease) -> v1::LeaseInfo {
    v1::LeaseInfo {
        expires_at: Some(at(lease.expires).into()),
        lease_id: lease.id,
        owner: lease.owner,
        memory_bytes: lease.bytes,
    }
}

/// On the clock that people read.
pub(super) fn at(end: Instant) -> SystemTime {
    SystemTime::now() + end.saturating_duration_since(Instant::now())
}
