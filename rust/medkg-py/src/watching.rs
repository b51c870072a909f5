//! The Rust half of `watch_status`. It is shared by whoever waits and whoever closes, so that one thread may end the waiting of
//! another one.

use std::sync::Arc;

use medkg_client::service::gpu::StatusWatch as Watch;
use pyo3::prelude::*;

use crate::errors;
use crate::gpu::status;
use crate::process::{InProcess, Process};
use crate::running::{Mode, run};

/// Statuses of the device; `next` returns them.
#[pyclass(subclass, frozen, module = "medkg._core")]
pub(crate) struct StatusWatch {
    /// Taken out when it is closed.
    watch: InProcess<Arc<Watch>>,
    mode: Mode,
}

/// Statuses of the device; `next` returns awaitables.
#[pyclass(extends = StatusWatch, frozen, module = "medkg._core")]
pub(crate) struct AsyncStatusWatch;

pub(crate) fn new(py: Python<'_>, process: Arc<Process>, mode: Mode, watch: Watch) -> PyResult<Py<PyAny>> {
    let watch = InProcess::new(process, Arc::new(watch));
    let base = PyClassInitializer::from(StatusWatch { watch, mode });
    match mode {
        Mode::Blocking => Ok(Py::new(py, base)?.into_any()),
        Mode::Awaitable => Ok(Py::new(py, base.add_subclass(AsyncStatusWatch))?.into_any()),
    }
}

#[pymethods]
impl StatusWatch {
    /// The next status; None when the watch is over.
    fn next(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        if !self.watch.process().is_current() {
            return Err(errors::no_stream(py));
        }
        let watch = self.watch.with(|watch| Arc::clone(watch));
        let start = move |_| async move {
            match watch {
                Some(watch) => watch.next().await.transpose(),
                None => Ok(None),
            }
        };
        let convert = |py: Python<'_>, told| match told {
            Some(told) => status(py, told),
            None => Ok(py.None()),
        };
        run(py, self.watch.process(), self.mode, None, start, convert)
    }

    /// Cancels the call; whoever waits is told that the watch is over.
    fn close(&self) {
        if let Some(watch) = self.watch.take() {
            watch.close();
        }
    }
}
