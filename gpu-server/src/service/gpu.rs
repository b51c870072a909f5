//! `GpuService`. It answers also while there is no GPU: this is where an operator looks then.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use futures_util::stream::{self, BoxStream, Stream, StreamExt as _};
use medkg_proto::v1;
use medkg_proto::v1::gpu_service_server::GpuService;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::call;
use crate::config::{DeviceChoice, Role, ServerConfig};
use crate::device;
use crate::device::DeviceInfo;
use crate::device::leases::{Leases, TTL};
use crate::device::pressure::{Memory, Pressure};
use crate::engine::Engine;
use crate::error::Error;

const MAX_OWNER: usize = 128;
/// How long NVML may take to tell of the devices: on a GPU that hangs it may hang too.
const LIST: Duration = Duration::from_secs(10);

/// Device status and leases.
#[derive(Debug, Clone)]
pub struct Gpu {
    engine: Arc<Engine>,
    choice: DeviceChoice,
    roles: Vec<String>,
    threads: u32,
    started: Instant,
    stopping: watch::Receiver<bool>,
    leases: Arc<Mutex<Leases>>,
}

impl Gpu {
    /// Tells about `engine`'s device, until the process is `stopping`.
    pub fn new(engine: Arc<Engine>, config: &ServerConfig, stopping: watch::Receiver<bool>) -> Self {
        Self {
            engine,
            stopping,
            choice: config.device,
            roles: config
                .roles
                .iter()
                .copied()
                .map(Role::name)
                .map(str::to_owned)
                .collect(),
            threads: u32::try_from(config.threads).unwrap_or(u32::MAX),
            started: Instant::now(),
            leases: Arc::default(),
        }
    }

    fn status(&self) -> v1::GetStatusResponse {
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
    fn statuses(&self) -> impl Stream<Item = v1::GetStatusResponse> + Send + use<> {
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

    async fn devices(&self) -> Result<Vec<DeviceInfo>, Error> {
        let choice = self.choice;
        let listing = tokio::task::spawn_blocking(move || device::list(choice));
        match tokio::time::timeout(LIST, listing).await {
            Ok(devices) => devices.map_err(Error::internal),
            Err(_) => Err(Error::GpuUnavailable {
                detail: format!("the NVIDIA driver has not told of its devices for {LIST:?}"),
            }),
        }
    }

    async fn allocate(&self, tenant: &str, request: &v1::AllocateGpuRequest) -> Result<v1::AllocateGpuResponse, Error> {
        if request.memory_bytes == 0 {
            return Err(Error::invalid("memory_bytes", "is 0; ask for at least 1 byte"));
        }
        if request.owner.chars().count() > MAX_OWNER || request.owner.chars().any(char::is_control) {
            return Err(Error::invalid(
                "owner",
                format!("must have at most {MAX_OWNER} characters, none of them a control character"),
            ));
        }
        let ttl = ttl(request.ttl)?;
        self.engine.check()?;
        let devices = self.devices().await?;
        let mut leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
        let lease = leases.allocate(
            &devices,
            tenant,
            request.memory_bytes,
            &request.device,
            ttl,
            Instant::now(),
        )?;
        tracing::info!(lease = %lease.id, device = %lease.device, bytes = lease.bytes, owner = %request.owner, "lease granted");
        Ok(v1::AllocateGpuResponse {
            lease_id: lease.id,
            device: lease.device,
            memory_bytes: lease.bytes,
            expires_at: Some((SystemTime::now() + ttl).into()),
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

/// How long a lease shall hold.
fn ttl(asked: Option<prost_types::Duration>) -> Result<Duration, Error> {
    let (shortest, longest, usual) = TTL;
    let Some(ttl) = asked else { return Ok(usual) };
    Duration::try_from(ttl)
        .ok()
        .filter(|ttl| (shortest..=longest).contains(ttl))
        .ok_or_else(|| {
            let range = format!("must be {} s to {} s", shortest.as_secs(), longest.as_secs());
            Error::invalid("ttl", range)
        })
}

#[tonic::async_trait]
impl GpuService for Gpu {
    type WatchStatusStream = BoxStream<'static, Result<v1::WatchStatusResponse, Status>>;

    async fn get_status(
        &self,
        request: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        call::unary(request.metadata(), "GpuService/GetStatus", |_| async {
            Ok(self.status())
        })
        .await
    }

    async fn watch_status(
        &self,
        request: Request<v1::WatchStatusRequest>,
    ) -> Result<Response<Self::WatchStatusStream>, Status> {
        let read = |_| async { Ok(()) };
        call::unary(request.metadata(), "GpuService/WatchStatus", read).await?;
        let tell = |status| Ok(v1::WatchStatusResponse { status: Some(status) });
        Ok(Response::new(self.statuses().map(tell).boxed()))
    }

    async fn list_devices(
        &self,
        request: Request<v1::ListDevicesRequest>,
    ) -> Result<Response<v1::ListDevicesResponse>, Status> {
        call::unary(request.metadata(), "GpuService/ListDevices", |_| async {
            let active = self.status().active_device;
            let listed = self.devices().await?;
            let mut leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
            let devices = listed.into_iter().map(|device| v1::Device {
                kind: if device.is_gpu {
                    v1::DeviceKind::Cuda
                } else {
                    v1::DeviceKind::Cpu
                }
                .into(),
                name: device.name,
                total_memory_bytes: device.total_memory,
                leased_memory_bytes: leases.leased_now(&device.id, Instant::now()),
                active: device.id == active,
                id: device.id,
                used_memory_bytes: device.used_memory,
                uuid: device.uuid,
                pci_bus_id: device.pci_bus_id,
                temperature_celsius: device.temperature,
                compute_capability: device.capability,
                mig_enabled: device.mig_enabled,
                parent_uuid: device.parent_uuid,
            });
            Ok(v1::ListDevicesResponse {
                devices: devices.collect(),
            })
        })
        .await
    }

    async fn allocate_gpu(
        &self,
        request: Request<v1::AllocateGpuRequest>,
    ) -> Result<Response<v1::AllocateGpuResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let serve = |call: call::Call| async move { self.allocate(call.tenant.as_str(), &request).await };
        call::unary(&metadata, "GpuService/AllocateGPU", serve).await
    }

    async fn renew_lease(
        &self,
        request: Request<v1::RenewLeaseRequest>,
    ) -> Result<Response<v1::RenewLeaseResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        call::unary(&metadata, "GpuService/RenewLease", |call| async move {
            let ttl = ttl(request.ttl)?;
            let mut leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
            leases.renew(call.tenant.as_str(), &request.lease_id, ttl, Instant::now())?;
            tracing::info!(lease = %request.lease_id, seconds = ttl.as_secs_f64(), "lease renewed");
            Ok(v1::RenewLeaseResponse {
                expires_at: Some((SystemTime::now() + ttl).into()),
            })
        })
        .await
    }

    async fn release_gpu(
        &self,
        request: Request<v1::ReleaseGpuRequest>,
    ) -> Result<Response<v1::ReleaseGpuResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        call::unary(&metadata, "GpuService/ReleaseGPU", |call| async move {
            let mut leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
            let memory_bytes = leases.release(call.tenant.as_str(), &request.lease_id, Instant::now())?;
            tracing::info!(lease = %request.lease_id, bytes = memory_bytes, "lease released");
            Ok(v1::ReleaseGpuResponse { memory_bytes })
        })
        .await
    }
}
