//! Arguments that several methods take, with errors that name the argument and the index.

use std::time::Duration;

use medkg_client::service::Truncation;
use medkg_client::{CallOptions, ClientError, Service};
use pyo3::exceptions::PyUnicodeEncodeError;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyString};

use crate::errors;

/// `(tenant, timeout, traceparent, tracestate, request_id)`, as `medkg.context.resolve` gives it.
pub(crate) type CallTuple = (
    Option<String>,
    Option<f64>,
    Option<String>,
    Option<String>,
    Option<String>,
);

/// Says in errors which method the arguments belong to.
#[derive(Clone, Copy)]
pub(crate) struct Arguments<'py> {
    pub(crate) py: Python<'py>,
    pub(crate) service: Service,
    pub(crate) method: &'static str,
}

impl<'py> Arguments<'py> {
    /// The error for a wrong argument.
    pub(crate) fn invalid(self, field: &str, description: &str) -> PyErr {
        errors::raise(
            self.py,
            &ClientError::invalid(self.service, self.method, field, description),
        )
    }

    pub(crate) fn call(self, call: CallTuple) -> PyResult<CallOptions> {
        let (tenant, timeout, traceparent, tracestate, request_id) = call;
        let timeout = timeout.map(|seconds| self.seconds("timeout", seconds)).transpose()?;
        Ok(CallOptions {
            tenant,
            timeout,
            traceparent,
            tracestate,
            request_id,
        })
    }

    pub(crate) fn seconds(self, field: &str, seconds: f64) -> PyResult<Duration> {
        let duration = Duration::try_from_secs_f64(seconds)
            .ok()
            .filter(|duration| !duration.is_zero());
        duration.ok_or_else(|| self.invalid(field, &format!("is {seconds}; give seconds, more than 0")))
    }

    pub(crate) fn truncation(self, truncation: Option<&str>) -> PyResult<Option<Truncation>> {
        match truncation {
            None => Ok(None),
            Some("right") => Ok(Some(Truncation::Right)),
            Some("left") => Ok(Some(Truncation::Left)),
            Some("refuse") => Ok(Some(Truncation::Refuse)),
            Some(other) => {
                let what = format!("is {other:?}; give \"right\", \"left\" or \"refuse\"");
                Err(self.invalid("truncation", &what))
            }
        }
    }

    /// The strings of an iterable; one string alone is refused, because its characters are not meant.
    pub(crate) fn strings(self, field: &str, values: &Bound<'py, PyAny>) -> PyResult<Vec<String>> {
        let Some(iterator) = (!is_one(values)).then(|| values.try_iter().ok()).flatten() else {
            let class = values.get_type().name()?;
            return Err(self.invalid(field, &format!("is a {class}; give a list of str")));
        };
        let mut strings = Vec::with_capacity(values.len().unwrap_or(0));
        for (index, value) in iterator.enumerate() {
            strings.push(self.string(|| format!("{field}[{index}]"), &value?)?);
        }
        Ok(strings)
    }

    /// Refuses what gives no strings one after the other; with `or_async` an asynchronous iterable does too.
    pub(crate) fn iterable(self, field: &str, values: &Bound<'py, PyAny>, or_async: bool) -> PyResult<()> {
        let iterates = values.hasattr("__iter__")? || values.hasattr("__getitem__")?;
        if !is_one(values) && (iterates || (or_async && values.hasattr("__aiter__")?)) {
            return Ok(());
        }
        let class = values.get_type().name()?;
        Err(self.invalid(field, &format!("is a {class}; give an iterable of str")))
    }

    pub(crate) fn optional_string(self, field: &str, value: Option<&Bound<'py, PyAny>>) -> PyResult<Option<String>> {
        value.map(|value| self.string(|| field.to_owned(), value)).transpose()
    }

    /// A whole number, at least 1; the wire's 0 stands for None, and nobody who writes 0 means that.
    pub(crate) fn optional_count(self, field: &str, value: Option<&Bound<'py, PyAny>>) -> PyResult<Option<u32>> {
        let Some(value) = value else { return Ok(None) };
        match value.extract::<u32>() {
            Ok(count) if count > 0 => Ok(Some(count)),
            _ => {
                let what = format!("is {}; give a whole number, at least 1, or None", value.repr()?);
                Err(self.invalid(field, &what))
            }
        }
    }

    pub(crate) fn string(self, field: impl Fn() -> String, value: &Bound<'py, PyAny>) -> PyResult<String> {
        let Ok(text) = value.cast::<PyString>() else {
            let class = value.get_type().name()?;
            return Err(self.invalid(&field(), &format!("is a {class}; give a str")));
        };
        match text.to_cow() {
            Ok(text) => Ok(text.into_owned()),
            Err(error) if error.is_instance_of::<PyUnicodeEncodeError>(self.py) => Err(self.invalid(
                &field(),
                "has a lone surrogate, which is no text; decode it properly first",
            )),
            Err(error) => Err(error),
        }
    }
}

/// One string, whose characters are strings too.
fn is_one(values: &Bound<'_, PyAny>) -> bool {
    values.is_instance_of::<PyString>() || values.is_instance_of::<PyBytes>() || values.is_instance_of::<PyByteArray>()
}
