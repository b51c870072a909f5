//! `GpuService`. It answers also while there is no GPU: this is where an operator looks then.

mod devices;
mod leases;
mod status;

use std::sync::Arc;
use std::time::Instant;

use futures_util::stream::{BoxStream, StreamExt as _};
use medkg_proto::v1;
use medkg_proto::v1::gpu_service_server::GpuService;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::call;
use crate::config::{DeviceChoice, Role, ServerConfig};
use crate::device::leases::desk::Desk;
use crate::engine::Engine;
use crate::lingering::Link;

/// Device status and leases.
#[derive(Debug, Clone)]
pub struct Gpu {
    engine: Arc<Engine>,
    choice: DeviceChoice,
    roles: Vec<String>,
    threads: u32,
    started: Instant,
    stopping: watch::Receiver<bool>,
    desk: Arc<Desk>,
}

impl Gpu {
    /// Tells about `engine`'s device, until the process is `stopping`.
    pub fn new(engine: Arc<Engine>, config: &ServerConfig, stopping: watch::Receiver<bool>) -> Self {
        Self {
            desk: Desk::open(engine.ledger.clone(), engine.neighbours.clone(), config.lease_grace),
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
        }
    }
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
        let (metadata, extensions, request) = request.into_parts();
        let link = extensions.get::<Link>().cloned();
        let serve = |call: call::Call| async move { self.allocate(&call, link, request).await };
        call::unary(&metadata, "GpuService/AllocateGPU", serve).await
    }

    async fn renew_lease(
        &self,
        request: Request<v1::RenewLeaseRequest>,
    ) -> Result<Response<v1::RenewLeaseResponse>, Status> {
        let (metadata, extensions, request) = request.into_parts();
        let link = extensions.get::<Link>().cloned();
        let serve = |call: call::Call| async move { self.renew(&call, link, &request) };
        call::unary(&metadata, "GpuService/RenewLease", serve).await
    }

    async fn release_gpu(
        &self,
        request: Request<v1::ReleaseGpuRequest>,
    ) -> Result<Response<v1::ReleaseGpuResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let serve = |call: call::Call| async move { self.release(&call, &request) };
        call::unary(&metadata, "GpuService/ReleaseGPU", serve).await
    }
}
