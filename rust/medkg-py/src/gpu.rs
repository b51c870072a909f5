//! The Rust half of `GpuClient` and `AsyncGpuClient`.

use std::time::SystemTime;

use medkg_client::Service;
use medkg_client::service::gpu::{AllocateRequest, DeviceDetails, DeviceInfo, GpuStatus, Lease, MemoryPressure};
use pyo3::IntoPyObjectExt as _;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::arguments::{Arguments, CallTuple};
use crate::live::Configuration;
use crate::process::PerProcess;
use crate::running::{Mode, run};
use crate::{endpoints, errors, results, watching};

/// The device; methods return answers.
#[pyclass(subclass, frozen, module = "medkg._core")]
pub(crate) struct Gpu {
    clients: PerProcess,
    mode: Mode,
}

/// The device; methods return awaitables.
#[pyclass(extends = Gpu, frozen, module = "medkg._core")]
pub(crate) struct AsyncGpu;

#[pymethods]
impl AsyncGpu {
    #[new]
    fn new(config: &Bound<'_, PyAny>) -> PyResult<PyClassInitializer<Self>> {
        let clients = PerProcess::new(config)?;
        let base = Gpu {
            clients,
            mode: Mode::Awaitable,
        };
        Ok(PyClassInitializer::from(base).add_subclass(Self))
    }
}

fn arguments<'py>(py: Python<'py>, method: &'static str) -> Arguments<'py> {
    Arguments {
        py,
        service: Service::Gpu,
        method,
    }
}

#[pymethods]
impl Gpu {
    #[new]
    fn new(config: &Bound<'_, PyAny>) -> PyResult<Self> {
        Ok(Self {
            clients: PerProcess::new(config)?,
            mode: Mode::Blocking,
        })
    }

    /// The configuration, which can be exchanged.
    #[getter]
    fn configuration(&self) -> Configuration {
        self.clients.configuration()
    }

    /// See `GpuClient.status`.
    fn status(&self, py: Python<'_>, call: CallTuple) -> PyResult<Py<PyAny>> {
        let options = arguments(py, "GetStatus").call(call)?;
        let (process, client) = self.clients.client(py)?;
        let start = move |_| async move { client.gpu().status(&options).await };
        run(py, &process, self.mode, None, start, status)
    }

    /// The watch behind `GpuClient.watch_status`.
    fn watch_status(&self, py: Python<'_>, call: CallTuple) -> PyResult<Py<PyAny>> {
        let options = arguments(py, "WatchStatus").call(call)?;
        let (process, client) = self.clients.client(py)?;
        let watch = {
            let _inside = process.handle().enter();
            client.gpu().watch_status(&options)
        };
        let watch = watch.map_err(|error| errors::raise(py, &error))?;
        watching::new(py, process, self.mode, watch)
    }

    /// See `GpuClient.devices`.
    fn devices(&self, py: Python<'_>, call: CallTuple) -> PyResult<Py<PyAny>> {
        let options = arguments(py, "ListDevices").call(call)?;
        let (process, client) = self.clients.client(py)?;
        let start = move |_| async move { client.gpu().devices(&options).await };
        run(py, &process, self.mode, None, start, devices)
    }

    /// See `GpuClient.device`.
    fn device(&self, py: Python<'_>, call: CallTuple, device: String) -> PyResult<Py<PyAny>> {
        let options = arguments(py, "GetDeviceInfo").call(call)?;
        let (process, client) = self.clients.client(py)?;
        let start = move |_| async move { client.gpu().device(device, &options).await };
        run(py, &process, self.mode, None, start, details)
    }

    /// See `GpuClient.allocate`.
    #[expect(clippy::too_many_arguments, reason = "those of the Python method")]
    fn allocate(
        &self,
        py: Python<'_>,
        call: CallTuple,
        memory_bytes: &Bound<'_, PyAny>,
        device: Option<String>,
        ttl: Option<f64>,
        owner: String,
        wait: Option<f64>,
        outlives_connection: bool,
    ) -> PyResult<Py<PyAny>> {
        let arguments = arguments(py, "AllocateGPU");
        let options = arguments.call(call)?;
        let memory_bytes = match memory_bytes.extract::<u64>() {
            Ok(bytes) if bytes > 0 => bytes,
            _ => {
                let what = format!("is {}; give a whole number of bytes, at least 1", memory_bytes.repr()?);
                return Err(arguments.invalid("memory_bytes", &what));
            }
        };
        let ttl = ttl.map(|seconds| arguments.seconds("ttl", seconds)).transpose()?;
        let wait = wait.map(|seconds| arguments.seconds("wait", seconds)).transpose()?;
        let (process, client) = self.clients.client(py)?;
        let request = AllocateRequest {
            memory_bytes,
            device,
            ttl,
            owner,
            wait,
            outlives_connection,
        };
        let start = move |_| async move { client.gpu().allocate(request, &options).await };
        run(py, &process, self.mode, None, start, lease)
    }

    /// See `GpuClient.renew`.
    fn renew(&self, py: Python<'_>, call: CallTuple, lease_id: String, ttl: Option<f64>) -> PyResult<Py<PyAny>> {
        let arguments = arguments(py, "RenewLease");
        let options = arguments.call(call)?;
        let ttl = ttl.map(|seconds| arguments.seconds("ttl", seconds)).transpose()?;
        let (process, client) = self.clients.client(py)?;
        let start = move |_| async move { client.gpu().renew(lease_id, ttl, &options).await };
        // `SystemTime` becomes an aware datetime in UTC.
        run(py, &process, self.mode, None, start, |py, end: SystemTime| {
            end.into_py_any(py)
        })
    }

    /// See `GpuClient.release`.
    fn release(&self, py: Python<'_>, call: CallTuple, lease_id: String) -> PyResult<Py<PyAny>> {
        let options = arguments(py, "ReleaseGPU").call(call)?;
        let (process, client) = self.clients.client(py)?;
        let start = move |_| async move { client.gpu().release(lease_id, &options).await };
        run(py, &process, self.mode, None, start, |py, freed: u64| {
            freed.into_py_any(py)
        })
    }

    /// See `Client.endpoints`.
    fn endpoints(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        endpoints::list(py, &self.clients, Service::Gpu)
    }

    /// See `Client.reset_breakers`.
    fn reset_breakers(&self, py: Python<'_>, address: Option<&str>) -> PyResult<usize> {
        endpoints::reset(py, &self.clients, Service::Gpu, address)
    }

    /// Lets the connections go.
    fn close(&self) {
        self.clients.close();
    }
}

pub(crate) fn status(py: Python<'_>, status: GpuStatus) -> PyResult<Py<PyAny>> {
    let fields = (
        status.state.as_str(),
        status.requested_device,
        status.active_device,
        status.detail,
        status.server_version,
        status.roles,
        status.uptime.as_secs_f64(),
        status.threads,
        status.memory_pressure.map(MemoryPressure::as_str),
        status.used_memory_bytes,
        status.total_memory_bytes,
    );
    Ok(results::class(py, "GpuStatus")?.call1(fields)?.unbind())
}

fn devices(py: Python<'_>, devices: Vec<DeviceInfo>) -> PyResult<Py<PyAny>> {
    let list = PyList::empty(py);
    for device in devices {
        list.append(device_info(py, device)?)?;
    }
    Ok(list.into_any().unbind())
}

fn device_info(py: Python<'_>, device: DeviceInfo) -> PyResult<Bound<'_, PyAny>> {
    // By name: there are more fields than a tuple of pyo3 takes.
    let fields = PyDict::new(py);
    fields.set_item("id", device.id)?;
    fields.set_item("kind", device.kind)?;
    fields.set_item("name", device.name)?;
    fields.set_item("total_memory_bytes", device.total_memory_bytes)?;
    fields.set_item("leased_memory_bytes", device.leased_memory_bytes)?;
    fields.set_item("active", device.active)?;
    fields.set_item("used_memory_bytes", device.used_memory_bytes)?;
    fields.set_item("uuid", device.uuid)?;
    fields.set_item("pci_bus_id", device.pci_bus_id)?;
    fields.set_item("temperature_celsius", device.temperature_celsius)?;
    fields.set_item("compute_capability", device.compute_capability)?;
    fields.set_item("mig_enabled", device.mig_enabled)?;
    fields.set_item("parent_uuid", device.parent_uuid)?;
    fields.set_item("held_by_others_bytes", device.held_by_others_bytes)?;
    results::class(py, "DeviceInfo")?.call((), Some(&fields))
}

fn details(py: Python<'_>, details: DeviceDetails) -> PyResult<Py<PyAny>> {
    let class = results::class(py, "LeaseInfo")?;
    let leases = PyList::empty(py);
    for lease in details.leases {
        leases.append(class.call1((lease.lease_id, lease.owner, lease.memory_bytes, lease.expires_at))?)?;
    }
    let fields = (
        device_info(py, details.device)?,
        details.driver_version,
        details.utilization_percent,
        details.power_milliwatts,
        details.uncorrected_ecc_errors,
        details.model_memory_bytes,
        leases,
    );
    Ok(results::class(py, "DeviceDetails")?.call1(fields)?.unbind())
}

fn lease(py: Python<'_>, lease: Lease) -> PyResult<Py<PyAny>> {
    // `SystemTime` becomes an aware datetime in UTC.
    let fields = (lease.lease_id, lease.device, lease.memory_bytes, lease.expires_at);
    Ok(results::class(py, "Lease")?.call1(fields)?.unbind())
}
