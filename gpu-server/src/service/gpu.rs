//! `GpuService`. It answers also while there is no GPU: this is where an operator looks then.

mod devices;
mod status;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use futures_util::stream::{BoxStream, StreamExt as _};
use medkg_proto::v1;
use medkg_proto::v1::gpu_service_server::GpuService;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::call;
use crate::config::{DeviceChoice, Role, ServerConfig};
use crate::device::leases::{Ask, Leases, TTL};
use crate::engine::Engine;
use crate::error::Error;

const MAX_OWNER: usize = 128;

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

    fn leases(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
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
        let ask = Ask {
            tenant,
            owner: &request.owner,
            bytes: request.memory_bytes,
            device: &request.device,
            ttl,
        };
        let lease = self.leases().allocate(&devices, &ask, Instant::now())?;
        tracing::info!(lease = %lease.id, device = %lease.device, bytes = lease.bytes, owner = %request.owner, "lease granted");
        Ok(v1::AllocateGpuResponse {
            lease_id: lease.id,
            device: lease.device,
            memory_bytes: lease.bytes,
            expires_at: Some(devices::at(lease.expires).into()),
        })
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
            let devices = self.devices().await?.into_iter().map(|device| self.wire(device));
            Ok(v1::ListDevicesResponse {
                devices: devices.collect(),
            })
        })
        .await
    }

    async fn get_device_info(
        &self,
        request: Request<v1::GetDeviceInfoRequest>,
    ) -> Result<Response<v1::GetDeviceInfoResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let serve = |call: call::Call| async move { self.device(call.tenant.as_str(), &request.device).await };
        call::unary(&metadata, "GpuService/GetDeviceInfo", serve).await
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
            self.leases()
                .renew(call.tenant.as_str(), &request.lease_id, ttl, Instant::now())?;
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
            let memory_bytes = self
                .leases()
                .release(call.tenant.as_str(), &request.lease_id, Instant::now())?;
            tracing::info!(lease = %request.lease_id, bytes = memory_bytes, "lease released");
            Ok(v1::ReleaseGpuResponse { memory_bytes })
        })
        .await
    }
}
