//! Leases: from the wire to the desk and back, with the audit of what is refused.

use std::fmt::Display;
use std::time::Duration;

use medkg_proto::v1;
use medkg_telemetry::logging::current_trace_id;

use super::{Gpu, devices};
use crate::device::leases::{Ask, LONGEST_WAIT, Origin, Room, TTL};
use crate::error::Error;
use crate::lingering::Link;
use crate::service::call::Call;

const MAX_OWNER: usize = 128;

impl Gpu {
    pub(super) async fn allocate(
        &self,
        call: &Call,
        link: Option<Link>,
        request: v1::AllocateGpuRequest,
    ) -> Result<v1::AllocateGpuResponse, Error> {
        let (bytes, device, owner) = (request.memory_bytes, request.device.clone(), request.owner.clone());
        let outcome = self.granted(call, link, request).await;
        if let Err(error) = &outcome {
            tracing::warn!(target: "audit", audit = true, action = "AllocateGPU", outcome = "refused", bytes, device = %short(&device), owner = %short(&owner), %error, "lease refused");
        }
        outcome
    }

    async fn granted(
        &self,
        call: &Call,
        link: Option<Link>,
        request: v1::AllocateGpuRequest,
    ) -> Result<v1::AllocateGpuResponse, Error> {
        if request.memory_bytes == 0 {
            return Err(Error::invalid("memory_bytes", "is 0; ask for at least 1 byte"));
        }
        if request.owner.chars().count() > MAX_OWNER || request.owner.chars().any(char::is_control) {
            return Err(Error::invalid(
                "owner",
                format!("must have at most {MAX_OWNER} characters, none of them a control character"),
            ));
        }
        let (shortest, longest, usual) = TTL;
        let ttl = between("ttl", request.ttl, shortest, longest)?.unwrap_or(usual);
        let wait = between("wait", request.wait, Duration::ZERO, LONGEST_WAIT)?.unwrap_or_default();
        self.engine.check()?;
        let rooms = Room::of(&self.devices().await?);
        let ask = Ask {
            tenant: call.tenant.as_str().to_owned(),
            owner: request.owner,
            bytes: request.memory_bytes,
            device: request.device,
            ttl,
            connection: link
                .as_ref()
                .filter(|_| !request.outlives_connection)
                .map(|link| link.id),
            origin: Origin {
                request_id: call.request_id.clone(),
                trace_id: current_trace_id().unwrap_or_default(),
            },
        };
        let mut stopping = self.stopping.clone();
        let allocated = tokio::select! {
            biased;
            allocated = self.engine.unless_lost(self.desk.allocate(rooms, ask, wait, link)) => allocated,
            _ = stopping.wait_for(|stop| *stop) => Err(Error::ShuttingDown),
        };
        let lease = allocated?;
        Ok(v1::AllocateGpuResponse {
            lease_id: lease.id,
            device: lease.device,
            memory_bytes: lease.bytes,
            expires_at: Some(devices::at(lease.expires).into()),
        })
    }

    pub(super) fn renew(
        &self,
        call: &Call,
        link: Option<Link>,
        request: &v1::RenewLeaseRequest,
    ) -> Result<v1::RenewLeaseResponse, Error> {
        let (shortest, longest, usual) = TTL;
        let ttl = between("ttl", request.ttl, shortest, longest)?.unwrap_or(usual);
        let renewed = self.desk.renew(call.tenant.as_str(), &request.lease_id, ttl, link);
        let lease = told("RenewLease", &request.lease_id, renewed)?;
        Ok(v1::RenewLeaseResponse {
            expires_at: Some(devices::at(lease.expires).into()),
        })
    }

    pub(super) fn release(
        &self,
        call: &Call,
        request: &v1::ReleaseGpuRequest,
    ) -> Result<v1::ReleaseGpuResponse, Error> {
        let released = self.desk.release(call.tenant.as_str(), &request.lease_id);
        let lease = told("ReleaseGPU", &request.lease_id, released)?;
        Ok(v1::ReleaseGpuResponse {
            memory_bytes: lease.bytes,
        })
    }
}

/// With a refusal in the audit.
fn told<T>(action: &str, lease: &str, outcome: Result<T, Error>) -> Result<T, Error> {
    if let Err(error) = &outcome {
        tracing::warn!(target: "audit", audit = true, action, outcome = "refused", lease = %short(lease), %error, "lease refused");
    }
    outcome
}

/// What a caller sent, bounded.
fn short(text: &str) -> impl Display {
    text.chars()
        .filter(|char| !char.is_control())
        .take(128)
        .collect::<String>()
}

/// A time that a caller asks for, if it does.
fn between(
    field: &str,
    asked: Option<prost_types::Duration>,
    shortest: Duration,
    longest: Duration,
) -> Result<Option<Duration>, Error> {
    let Some(asked) = asked else { return Ok(None) };
    let asked = Duration::try_from(asked).ok();
    let fine = asked.filter(|asked| (shortest..=longest).contains(asked));
    fine.map(Some).ok_or_else(|| {
        let range = format!("must be {} s to {} s", shortest.as_secs(), longest.as_secs());
        Error::invalid(field, range)
    })
}
