//! Answers as the dataclasses of `medkg.results`, for what several services share.

use medkg_client::service::{ModelInfo, ModelKind, Pooling, Usage};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

/// A dataclass of `medkg.results`.
pub(crate) fn class<'py>(py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
    py.import("medkg.results")?.getattr(name)
}

pub(crate) fn usage<'py>(py: Python<'py>, usage: &Usage) -> PyResult<Bound<'py, PyAny>> {
    class(py, "Usage")?.call1((
        usage.tokens,
        usage.batches,
        usage.queue_time.as_secs_f64(),
        usage.compute_time.as_secs_f64(),
        &usage.device,
        usage.calls,
        usage.retries,
        usage.cache_hits,
    ))
}

pub(crate) fn models(py: Python<'_>, models: Vec<ModelInfo>) -> PyResult<Py<PyAny>> {
    let class = class(py, "ModelInfo")?;
    let list = PyList::empty(py);
    for model in models {
        let prompts = PyDict::new(py);
        for prompt in &model.prompts {
            prompts.set_item(&prompt.name, &prompt.text)?;
        }
        // By name: there are more fields than a tuple of pyo3 takes, and each says here what it is.
        let fields = PyDict::new(py);
        fields.set_item("name", model.name)?;
        fields.set_item("digest", model.digest)?;
        fields.set_item("architecture", model.architecture)?;
        fields.set_item("dimension", model.dimension)?;
        fields.set_item("max_tokens", model.max_tokens)?;
        fields.set_item("pooling", model.pooling.map(Pooling::as_str))?;
        fields.set_item("normalized", model.normalized)?;
        fields.set_item("compute_dtype", model.compute_dtype)?;
        fields.set_item("device", model.device)?;
        fields.set_item("is_default", model.is_default)?;
        fields.set_item("kind", model.kind.map(ModelKind::as_str))?;
        fields.set_item("state", model.state.as_str())?;
        fields.set_item("detail", model.detail)?;
        fields.set_item("memory_bytes", model.memory_bytes)?;
        fields.set_item("revision", model.revision)?;
        fields.set_item("prompts", prompts)?;
        fields.set_item("default_prompt", model.default_prompt)?;
        list.append(class.call((), Some(&fields))?)?;
    }
    Ok(list.into_any().unbind())
}
