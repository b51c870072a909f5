//! Errors as the classes of `medkg.errors`. Which class it is, the client's table says; here it is only looked up.

use medkg_client::config::ConfigError;
use medkg_client::error::code_name;
use medkg_client::policy::breaker::BreakerState;
use medkg_client::survey::RegistryError;
use medkg_client::{ClientError, ErrorKind};
use medkg_tls::authority::AuthorityError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// The Python exception for a failed call.
pub(crate) fn raise(py: Python<'_>, error: &ClientError) -> PyErr {
    build(py, error).unwrap_or_else(|failure| failure)
}

fn build(py: Python<'_>, error: &ClientError) -> PyResult<PyErr> {
    let details = PyDict::new(py);
    details.set_item("code", code_name(error.code))?;
    details.set_item("reason", &error.reason)?;
    details.set_item("message", &error.message)?;
    details.set_item("service", error.service.name())?;
    details.set_item("method", error.method)?;
    details.set_item("endpoint", &error.endpoint)?;
    details.set_item("request_id", &error.request_id)?;
    details.set_item("trace_id", &error.trace_id)?;
    details.set_item("tenant", &error.tenant)?;
    details.set_item("attempts", error.attempts)?;
    details.set_item("retryable", error.retryable)?;
    details.set_item("retry_after", error.retry_after.map(|wait| wait.as_secs_f64()))?;
    let violations: Vec<_> = error
        .field_violations
        .iter()
        .map(|v| (&v.field, &v.description))
        .collect();
    details.set_item("field_violations", violations)?;
    details.set_item("breaker_state", error.breaker_state.map(BreakerState::as_str))?;
    details.set_item("http_status", error.kind.row().http_status)?;
    instance(py, error.python_class(), &error.to_string(), &details)
}

/// The Python exception for a configuration that cannot be used.
pub(crate) fn config(py: Python<'_>, error: &ConfigError) -> PyErr {
    let build = || {
        let details = PyDict::new(py);
        details.set_item("message", error.to_string())?;
        let problems: Vec<_> = error.problems.iter().map(|p| (&p.field, &p.description)).collect();
        details.set_item("field_violations", problems)?;
        details.set_item("http_status", ErrorKind::Config.row().http_status)?;
        instance(py, ErrorKind::Config.row().python_class, &error.to_string(), &details)
    };
    build().unwrap_or_else(|failure| failure)
}

/// The Python exception for what `medkg certs` did not do.
pub(crate) fn certificates(py: Python<'_>, error: &AuthorityError) -> PyErr {
    let details = PyDict::new(py);
    instance(py, "MedkgError", &error.to_string(), &details).unwrap_or_else(|failure| failure)
}

/// The Python exception for a registry that cannot be used.
pub(crate) fn registry(py: Python<'_>, error: &RegistryError) -> PyErr {
    let kind = match error {
        RegistryError::Redis(_) => ErrorKind::Unavailable,
        _ => ErrorKind::Config,
    };
    let build = || {
        let details = PyDict::new(py);
        details.set_item("retryable", kind.is_transient())?;
        details.set_item("http_status", kind.row().http_status)?;
        instance(py, kind.row().python_class, &error.to_string(), &details)
    };
    build().unwrap_or_else(|failure| failure)
}

/// The Python exception for a call on a client that was closed.
pub(crate) fn closed(py: Python<'_>) -> PyErr {
    let text = "this client is closed; make a new one, or use it inside its `with` block only";
    let details = PyDict::new(py);
    instance(py, "MedkgError", text, &details).unwrap_or_else(|failure| failure)
}

/// The Python exception for a stream that is over, or is another process's.
pub(crate) fn no_stream(py: Python<'_>) -> PyErr {
    let text = "this stream has ended, or was begun in the process that this one was forked from; begin a new one";
    let details = PyDict::new(py);
    instance(py, "MedkgError", text, &details).unwrap_or_else(|failure| failure)
}

fn instance(py: Python<'_>, class: &str, text: &str, details: &Bound<'_, PyDict>) -> PyResult<PyErr> {
    let class = py.import("medkg.errors")?.getattr(class)?;
    Ok(PyErr::from_value(class.call((text,), Some(details))?))
}
