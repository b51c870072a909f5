//! The Rust half of `export`. It is shared by whoever waits and whoever closes, so that one thread may end the waiting of another
//! one.

use std::sync::Arc;

use medkg_client::service::vector::{Export as Reading, ExportedPart};
use pyo3::prelude::*;

use crate::process::{InProcess, Process};
use crate::running::{Mode, run};
use crate::{arrays, errors, results, sparse, vector};

/// The points of a collection; `next` returns them.
#[pyclass(subclass, frozen, module = "medkg._core")]
pub(crate) struct VectorExport {
    /// Taken out when it is closed.
    reading: InProcess<Arc<Reading>>,
    mode: Mode,
}

/// The points of a collection; `next` returns awaitables.
#[pyclass(extends = VectorExport, frozen, module = "medkg._core")]
pub(crate) struct AsyncVectorExport;

pub(crate) fn new(py: Python<'_>, process: Arc<Process>, mode: Mode, reading: Reading) -> PyResult<Py<PyAny>> {
    let reading = InProcess::new(process, Arc::new(reading));
    let base = PyClassInitializer::from(VectorExport { reading, mode });
    match mode {
        Mode::Blocking => Ok(Py::new(py, base)?.into_any()),
        Mode::Awaitable => Ok(Py::new(py, base.add_subclass(AsyncVectorExport))?.into_any()),
    }
}

#[pymethods]
impl VectorExport {
    /// What the collection is.
    fn info(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let info = self.reading.with(|reading| reading.collection.clone());
        let info = info.ok_or_else(|| errors::no_stream(py))?;
        Ok(vector::collection(py, info)?.unbind())
    }

    /// The next points; None when there are no more.
    fn next(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        if !self.reading.process().is_current() {
            return Err(errors::no_stream(py));
        }
        let reading = self.reading.with(|reading| Arc::clone(reading));
        let start = move |_| async move {
            match reading {
                Some(reading) => reading.next().await.transpose(),
                None => Ok(None),
            }
        };
        let convert = |py: Python<'_>, told| match told {
            Some(part) => batch(py, part),
            None => Ok(py.None()),
        };
        run(py, self.reading.process(), self.mode, None, start, convert)
    }

    /// Cancels the call; whoever waits is told that there are no more.
    fn close(&self) {
        if let Some(reading) = self.reading.take() {
            reading.close();
        }
    }
}

fn batch(py: Python<'_>, part: ExportedPart) -> PyResult<Py<PyAny>> {
    let rows = part.ids.len();
    let vectors = arrays::matrix_of(py, part.vectors, rows)?;
    let sparse = part.sparse.map(|rows| sparse::rows(py, rows)).transpose()?;
    Ok(results::class(py, "ExportBatch")?
        .call1((part.ids, vectors, part.payloads, sparse))?
        .unbind())
}
