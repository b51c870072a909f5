//! `GpuService`: what the server computes on, and memory set aside on it.

mod watch;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use medkg_proto::v1;
use medkg_proto::v1::gpu_service_client::GpuServiceClient as Stub;

use super::duration;
use crate::call::{CallOptions, Caller, Method};
use crate::error::ClientError;
use crate::policy::classify::Service;
pub use watch::StatusWatch;

const STATUS: Method = Method {
    name: "GetStatus",
    idempotent: true,
};
const DEVICES: Method = Method {
    name: "ListDevices",
    idempotent: true,
};
const DEVICE: Method = Method {
    name: "GetDeviceInfo",
    idempotent: true,
};
// A second attempt could take a second lease, and a second release finds the lease gone.
const ALLOCATE: Method = Method {
    name: "AllocateGPU",
    idempotent: false,
};
// Twice is as good as once.
const RENEW: Method = Method {
    name: "RenewLease",
    idempotent: true,
};
const RELEASE: Method = Method {
    name: "ReleaseGPU",
    idempotent: false,
};

/// Whether the device can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceState {
    /// It computes.
    Ready,
    /// There is none that can be used.
    Unavailable,
}

impl DeviceState {
    /// `ready` or `unavailable`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Unavailable => "unavailable",
        }
    }
}

/// How short the GPU's memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemoryPressure {
    /// There is enough.
    Normal,
    /// The operator's first threshold was reached.
    Warn,
    /// The operator's second threshold was reached.
    Critical,
}

impl MemoryPressure {
    /// `normal`, `warn` or `critical`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Warn => "warn",
            Self::Critical => "critical",
        }
    }
}

/// The truth about the device.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GpuStatus {
    /// Whether it can be used.
    pub state: DeviceState,
    /// What the operator asked for.
    pub requested_device: String,
    /// What computes; empty where nothing does.
    pub active_device: String,
    /// Why, in words.
    pub detail: String,
    /// The server's version.
    pub server_version: String,
    /// The roles it serves.
    pub roles: Vec<String>,
    /// Since it started.
    pub uptime: Duration,
    /// Threads of one operation on the CPU.
    pub threads: u32,
    /// How short the memory of the active GPU is; none on a CPU, and where it is not known.
    pub memory_pressure: Option<MemoryPressure>,
    /// Bytes of it that all processes use, where it is known.
    pub used_memory_bytes: Option<u64>,
    /// Bytes that it has; 0 where it is not known.
    pub total_memory_bytes: u64,
}

/// A device.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// `cpu`, `cuda:N`, or the UUID of a GPU that CUDA does not show to the server.
    pub id: String,
    /// `cpu`, `cuda` or `unknown`.
    pub kind: &'static str,
    /// The maker's name.
    pub name: String,
    /// Bytes it has.
    pub total_memory_bytes: u64,
    /// Bytes that leases hold.
    pub leased_memory_bytes: u64,
    /// True if the server computes on it.
    pub active: bool,
    /// Bytes that all processes use, where it is known.
    pub used_memory_bytes: Option<u64>,
    /// As `nvidia-smi -L` lists it; empty for a CPU.
    pub uuid: String,
    /// Its place on the bus; empty for a CPU.
    pub pci_bus_id: String,
    /// °C of the chip, where it is known.
    pub temperature_celsius: Option<u32>,
    /// Such as `9.0`; empty where it is not known.
    pub compute_capability: String,
    /// True for a GPU that is cut into MIG devices, which are listed too.
    pub mig_enabled: bool,
    /// For a MIG device, the UUID of its GPU; else empty.
    pub parent_uuid: String,
    /// Bytes that other servers of the host hold of it, where they share a lease store.
    pub held_by_others_bytes: Option<u64>,
}

/// A device, in detail; what NVML does not tell is none.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceDetails {
    /// As `devices` tells it.
    pub device: DeviceInfo,
    /// Of the NVIDIA driver; empty where there is none.
    pub driver_version: String,
    /// Part of the last moments in which it computed for any process, 0 to 100.
    pub utilization_percent: Option<u32>,
    /// What it draws now.
    pub power_milliwatts: Option<u64>,
    /// ECC errors that could not be corrected, since the driver was loaded.
    pub uncorrected_ecc_errors: Option<u64>,
    /// Bytes of models' weights that the server's process holds there.
    pub model_memory_bytes: u64,
    /// The tenant's leases there, by id.
    pub leases: Vec<LeaseInfo>,
}

/// A lease that the tenant holds.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeaseInfo {
    /// Names it.
    pub lease_id: String,
    /// Who asked for it.
    pub owner: String,
    /// Bytes.
    pub memory_bytes: u64,
    /// When it ends by itself.
    pub expires_at: SystemTime,
}

/// What to set aside.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct AllocateRequest {
    /// Bytes.
    pub memory_bytes: u64,
    /// `cuda:N` or a UUID; None means the device with most memory left.
    pub device: Option<String>,
    /// How long the lease holds; None means the server's default.
    pub ttl: Option<Duration>,
    /// Who asks.
    pub owner: String,
    /// How long the call waits for memory, within its deadline; None means not at all.
    pub wait: Option<Duration>,
    /// If false, the lease ends soon after the connection over which it was allocated or renewed last. Clients of one process
    /// share a connection to their server, and keep it open while it is idle.
    pub outlives_connection: bool,
}

/// Memory set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lease {
    /// Names it.
    pub lease_id: String,
    /// `cuda:N`.
    pub device: String,
    /// Bytes.
    pub memory_bytes: u64,
    /// When it ends by itself.
    pub expires_at: SystemTime,
}

/// Calls `GpuService`.
#[derive(Debug, Clone)]
pub struct GpuClient {
    caller: Arc<Caller>,
}

impl GpuClient {
    pub(crate) fn caller(&self) -> &Caller {
        &self.caller
    }

    pub(crate) fn new(caller: Arc<Caller>) -> Self {
        Self { caller }
    }

    /// The truth about the device; also while there is none.
    pub async fn status(&self, options: &CallOptions) -> Result<GpuStatus, ClientError> {
        let call = self.caller.begin(STATUS, options)?;
        let send = |channel, request| async move {
            Stub::new(channel)
                .get_status(request)
                .await
                .map(tonic::Response::into_inner)
        };
        let status = self
            .caller
            .request(&call, || v1::GetStatusRequest {}, send)
            .await?
            .message;
        Ok(plain(status))
    }

    /// The devices that the server can compute on.
    pub async fn devices(&self, options: &CallOptions) -> Result<Vec<DeviceInfo>, ClientError> {
        let call = self.caller.begin(DEVICES, options)?;
        let send = |channel, request| async move {
            Stub::new(channel)
                .list_devices(request)
                .await
                .map(tonic::Response::into_inner)
        };
        let answer = self.caller.request(&call, || v1::ListDevicesRequest {}, send).await?;
        Ok(answer.message.devices.into_iter().map(device_info).collect())
    }

    /// One device, by an id or a UUID of [`Self::devices`].
    pub async fn device(&self, device: String, options: &CallOptions) -> Result<DeviceDetails, ClientError> {
        let call = self.caller.begin(DEVICE, options)?;
        let send = |channel, request| async move {
            Stub::new(channel)
                .get_device_info(request)
                .await
                .map(tonic::Response::into_inner)
        };
        let message = || v1::GetDeviceInfoRequest { device: device.clone() };
        let told = self.caller.request(&call, message, send).await?.message;
        details(told).map_err(|error| call.sign(error))
    }

    /// Sets memory aside. Repeated only if the request certainly was not sent.
    pub async fn allocate(&self, request: AllocateRequest, options: &CallOptions) -> Result<Lease, ClientError> {
        let call = self.caller.begin(ALLOCATE, options)?;
        if request.memory_bytes == 0 {
            let error = ClientError::invalid(
                Service::Gpu,
                ALLOCATE.name,
                "memory_bytes",
                "is 0; ask for at least 1 byte",
            );
            return Err(call.sign(error));
        }
        let ttl = ttl(request.ttl, ALLOCATE).map_err(|error| call.sign(error))?;
        let wait = request
            .wait
            .map(prost_types::Duration::try_from)
            .transpose()
            .map_err(|_| {
                let description = "is longer than a call can wait; give at most 1 h";
                call.sign(ClientError::invalid(Service::Gpu, ALLOCATE.name, "wait", description))
            })?;
        let message = || v1::AllocateGpuRequest {
            wait,
            outlives_connection: request.outlives_connection,
            memory_bytes: request.memory_bytes,
            device: request.device.clone().unwrap_or_default(),
            ttl,
            owner: request.owner.clone(),
        };
        let send = |channel, request| async move {
            Stub::new(channel)
                .allocate_gpu(request)
                .await
                .map(tonic::Response::into_inner)
        };
        let lease = self.caller.request(&call, message, send).await?.message;
        let expires_at = end(lease.expires_at, ALLOCATE).map_err(|error| call.sign(error))?;
        Ok(Lease {
            lease_id: lease.lease_id,
            device: lease.device,
            memory_bytes: lease.memory_bytes,
            expires_at,
        })
    }

    /// Lets a lease hold for `lasting` from now on (None: the server's default); returns when it ends then.
    pub async fn renew(
        &self,
        lease_id: String,
        lasting: Option<Duration>,
        options: &CallOptions,
    ) -> Result<SystemTime, ClientError> {
        let call = self.caller.begin(RENEW, options)?;
        let ttl = ttl(lasting, RENEW).map_err(|error| call.sign(error))?;
        let message = || v1::RenewLeaseRequest {
            lease_id: lease_id.clone(),
            ttl,
        };
        let send = |channel, request| async move {
            Stub::new(channel)
                .renew_lease(request)
                .await
                .map(tonic::Response::into_inner)
        };
        let renewed = self.caller.request(&call, message, send).await?.message;
        end(renewed.expires_at, RENEW).map_err(|error| call.sign(error))
    }

    /// Gives a lease back; returns the bytes that are free again. Repeated only if the request certainly was not sent.
    pub async fn release(&self, lease_id: String, options: &CallOptions) -> Result<u64, ClientError> {
        let call = self.caller.begin(RELEASE, options)?;
        let send = |channel, request| async move {
            Stub::new(channel)
                .release_gpu(request)
                .await
                .map(tonic::Response::into_inner)
        };
        let message = || v1::ReleaseGpuRequest {
            lease_id: lease_id.clone(),
        };
        Ok(self.caller.request(&call, message, send).await?.message.memory_bytes)
    }
}

/// As the wire tells it.
fn plain(status: v1::GetStatusResponse) -> GpuStatus {
    let state = match status.state() {
        v1::DeviceState::Ready => DeviceState::Ready,
        v1::DeviceState::Unspecified | v1::DeviceState::Unavailable => DeviceState::Unavailable,
    };
    let memory_pressure = match status.memory_pressure() {
        v1::MemoryPressure::Unspecified => None,
        v1::MemoryPressure::Normal => Some(MemoryPressure::Normal),
        v1::MemoryPressure::Warn => Some(MemoryPressure::Warn),
        v1::MemoryPressure::Critical => Some(MemoryPressure::Critical),
    };
    GpuStatus {
        state,
        requested_device: status.requested_device,
        active_device: status.active_device,
        detail: status.detail,
        server_version: status.server_version,
        roles: status.roles,
        uptime: duration(status.uptime),
        threads: status.threads,
        memory_pressure,
        used_memory_bytes: status.used_memory_bytes,
        total_memory_bytes: status.total_memory_bytes,
    }
}

/// As the wire tells it.
fn device_info(device: v1::Device) -> DeviceInfo {
    DeviceInfo {
        kind: match device.kind() {
            v1::DeviceKind::Cpu => "cpu",
            v1::DeviceKind::Cuda => "cuda",
            v1::DeviceKind::Unspecified => "unknown",
        },
        id: device.id,
        name: device.name,
        total_memory_bytes: device.total_memory_bytes,
        leased_memory_bytes: device.leased_memory_bytes,
        active: device.active,
        used_memory_bytes: device.used_memory_bytes,
        uuid: device.uuid,
        pci_bus_id: device.pci_bus_id,
        temperature_celsius: device.temperature_celsius,
        compute_capability: device.compute_capability,
        mig_enabled: device.mig_enabled,
        parent_uuid: device.parent_uuid,
        held_by_others_bytes: device.held_by_others_bytes,
    }
}

fn details(told: v1::GetDeviceInfoResponse) -> Result<DeviceDetails, ClientError> {
    let device = told.device.ok_or_else(|| {
        let message = "the device is missing".to_owned();
        ClientError::broken_answer(Service::Gpu, DEVICE.name, message)
    })?;
    let lease = |lease: v1::LeaseInfo| {
        Ok(LeaseInfo {
            expires_at: end(lease.expires_at, DEVICE)?,
            lease_id: lease.lease_id,
            owner: lease.owner,
            memory_bytes: lease.memory_bytes,
        })
    };
    Ok(DeviceDetails {
        device: device_info(device),
        driver_version: told.driver_version,
        utilization_percent: told.utilization_percent,
        power_milliwatts: told.power_milliwatts,
        uncorrected_ecc_errors: told.uncorrected_ecc_errors,
        model_memory_bytes: told.model_memory_bytes,
        leases: told.leases.into_iter().map(lease).collect::<Result<_, _>>()?,
    })
}

/// On the wire.
fn ttl(asked: Option<Duration>, method: Method) -> Result<Option<prost_types::Duration>, ClientError> {
    asked.map(prost_types::Duration::try_from).transpose().map_err(|_| {
        let description = "is longer than a lease can hold; give 1 s to 24 h";
        ClientError::invalid(Service::Gpu, method.name, "ttl", description)
    })
}

/// When a lease ends.
fn end(told: Option<prost_types::Timestamp>, method: Method) -> Result<SystemTime, ClientError> {
    told.and_then(|at| SystemTime::try_from(at).ok()).ok_or_else(|| {
        let message = "the lease has no end".to_owned();
        ClientError::broken_answer(Service::Gpu, method.name, message)
    })
}
