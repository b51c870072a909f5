//! What every client tells of its servers, and the breaker that is closed by hand.

use medkg_client::{EndpointStatus, Service};
use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::process::PerProcess;
use crate::{errors, results};

/// A list of `medkg.results.EndpointInfo`.
pub(crate) fn list(py: Python<'_>, clients: &PerProcess, service: Service) -> PyResult<Py<PyAny>> {
    let (process, client) = clients.client(py)?;
    let _inside = process.handle().enter();
    infos(py, client.endpoints(service))
}

/// The same, for statuses that were asked for.
pub(crate) fn infos(py: Python<'_>, statuses: Vec<EndpointStatus>) -> PyResult<Py<PyAny>> {
    let class = results::class(py, "EndpointInfo")?;
    let list = PyList::empty(py);
    for status in statuses {
        let EndpointStatus {
            address,
            breaker,
            retry_after,
            changes,
            opened,
            pending,
            serving,
            aside,
            slowness,
            last_failure,
            ..
        } = status;
        let changes: Vec<(f64, &str)> = changes
            .into_iter()
            .map(|(ago, state)| (ago.as_secs_f64(), state.as_str()))
            .collect();
        list.append(class.call1((
            address,
            breaker.as_str(),
            retry_after.map(|wait| wait.as_secs_f64()),
            changes,
            opened,
            pending,
            serving.as_str(),
            aside,
            slowness,
            last_failure,
        ))?)?;
    }
    Ok(list.into_any().unbind())
}

/// How many breakers were not closed.
pub(crate) fn reset(py: Python<'_>, clients: &PerProcess, service: Service, address: Option<&str>) -> PyResult<usize> {
    let (process, client) = clients.client(py)?;
    let _inside = process.handle().enter();
    let reset = client.reset_breakers(service, address);
    reset.map_err(|error| errors::raise(py, &error))
}
