//! What collections tell of themselves, as the dataclasses of `medkg.results`.

use medkg_client::service::vector::{CollectionStatistics, CollectionUsage, Recall, TenantStatistics};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::results;

pub(crate) fn of_collection(py: Python<'_>, found: CollectionStatistics) -> PyResult<Py<PyAny>> {
    // By name: there are more fields than a tuple of pyo3 takes.
    let fields = PyDict::new(py);
    fields.set_item("name", found.collection.name)?;
    fields.set_item("dimension", found.collection.dimension)?;
    fields.set_item("metric", found.collection.metric.as_str())?;
    fields.set_item("storage", found.collection.storage.as_str())?;
    fields.set_item("sparse_dimension", found.collection.sparse_dimension)?;
    fields.set_item("points", found.points)?;
    fields.set_item("device_bytes", found.device_bytes)?;
    fields.set_item("disk_bytes", found.disk_bytes)?;
    fields.set_item("queries", found.usage.queries)?;
    fields.set_item("device", found.device)?;
    fields.set_item("usage", usage(py, &found.usage)?)?;
    fields.set_item("sparse_index_bytes", found.sparse_index_bytes)?;
    Ok(results::class(py, "CollectionStatistics")?
        .call((), Some(&fields))?
        .unbind())
}

pub(crate) fn of_tenant(py: Python<'_>, found: TenantStatistics) -> PyResult<Py<PyAny>> {
    let fields = (
        found.collections,
        found.damaged,
        found.points,
        found.device_bytes,
        found.disk_bytes,
        usage(py, &found.usage)?,
        found.sparse_index_bytes,
    );
    Ok(results::class(py, "TenantStatistics")?.call1(fields)?.unbind())
}

pub(crate) fn recall(py: Python<'_>, told: Recall) -> PyResult<Py<PyAny>> {
    let fields = (
        told.recall,
        told.expected,
        told.found,
        told.queries,
        told.mismatches,
        told.mismatched_ids,
        told.points,
    );
    Ok(results::class(py, "RecallReport")?.call1(fields)?.unbind())
}

fn usage<'py>(py: Python<'py>, usage: &CollectionUsage) -> PyResult<Bound<'py, PyAny>> {
    let latency = usage.search_latency.map(|latency| {
        let fields = (
            latency.p50.as_secs_f64(),
            latency.p90.as_secs_f64(),
            latency.p99.as_secs_f64(),
            latency.max.as_secs_f64(),
        );
        results::class(py, "Latency")?.call1(fields)
    });
    // `SystemTime` becomes an aware datetime in UTC.
    results::class(py, "CollectionUsage")?.call1((
        usage.searches,
        usage.queries,
        usage.upserts,
        usage.upserted_points,
        usage.deletes,
        usage.deleted_points,
        usage.last_write,
        latency.transpose()?,
    ))
}
