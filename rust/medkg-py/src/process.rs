//! What belongs to one process: the tokio runtime, the endpoints, and every client made from them.
//!
//! After a fork only the forking thread lives on in the child. The parent's runtime has no threads there, and a lock that
//! one of them held stays held for ever; so a child must neither use what it inherited nor drop it. Everything here is
//! tagged with the process it was made in, is made when it is first needed, and is forgotten, never dropped, where the
//! tag does not match. The globals are swapped atomically instead of locked, so that there is no lock to inherit.
//!
//! The tag is the process id and a count of forks: an id alone could come back after the processes between are gone.
//!
//! Two more locks could be inherited, and are not. That of a module which a thread imports: `medkg.importing` imports what calls
//! use, and no fork comes in the middle of it. And those of the allocator: glibc's has handlers that take its locks for the time
//! of a fork; mimalloc, which is quicker, has none.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwapOption;
use medkg_client::{Client, Endpoints};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use crate::live::{Configuration, Live};
use crate::{errors, logging};

/// Threads that drive I/O. Answers to blocking calls are decoded by the threads that wait for them, so one is enough; a second
/// one would be woken for every call to see whether there is something to take over, which costs a third of a small call.
const WORKER_THREADS: usize = 1;

static CURRENT: ArcSwapOption<Process> = ArcSwapOption::const_empty();
static FORKS: AtomicU64 = AtomicU64::new(0);

/// Which process it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tag {
    pid: u32,
    forks: u64,
}

impl Tag {
    pub(crate) fn now() -> Self {
        Self {
            pid: std::process::id(),
            forks: FORKS.load(Ordering::Relaxed),
        }
    }
}

/// Has Python tell of forks.
pub(crate) fn hook(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    let hooks = pyo3::types::PyDict::new(py);
    hooks.set_item("after_in_child", pyo3::wrap_pyfunction!(after_fork_in_child, module)?)?;
    py.import("os")?.call_method("register_at_fork", (), Some(&hooks))?;
    Ok(())
}

/// Counts a fork.
#[pyfunction]
fn after_fork_in_child() {
    FORKS.fetch_add(1, Ordering::Relaxed);
    logging::forget_inherited();
}

/// What belongs to one process.
#[derive(Debug)]
pub(crate) struct Process {
    tag: Tag,
    runtime: tokio::runtime::Runtime,
    endpoints: Endpoints,
}

impl Process {
    /// This process's, made now if there is none.
    pub(crate) fn current(py: Python<'_>) -> PyResult<Arc<Self>> {
        loop {
            let seen = CURRENT.load_full();
            let tag = Tag::now();
            if let Some(process) = seen.as_ref().filter(|process| process.tag == tag) {
                return Ok(Arc::clone(process));
            }
            py.import("medkg.importing")?.call_method0("load_for_calls")?;
            logging::begin();
            let fresh = Arc::new(Self::new(tag)?);
            if let Some(inherited) = &seen {
                // Its count never reaches zero again, so it is never dropped.
                std::mem::forget(Arc::clone(inherited));
            }
            let previous = CURRENT.compare_and_swap(&seen, Some(Arc::clone(&fresh)));
            let swapped = match (&seen, previous.as_ref()) {
                (None, None) => true,
                (Some(seen), Some(previous)) => Arc::ptr_eq(seen, previous),
                _ => false,
            };
            if swapped {
                return Ok(fresh);
            }
            // Another thread was first; this runtime has nothing to do.
            if let Some(process) = Arc::into_inner(fresh) {
                process.runtime.shutdown_background();
            }
        }
    }

    fn new(tag: Tag) -> PyResult<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WORKER_THREADS)
            .thread_name("medkg")
            .enable_io()
            .enable_time()
            .build()
            .map_err(|error| PyRuntimeError::new_err(format!("medkg cannot start its I/O threads: {error}")))?;
        Ok(Self {
            tag,
            runtime,
            endpoints: Endpoints::default(),
        })
    }

    pub(crate) fn handle(&self) -> &tokio::runtime::Handle {
        self.runtime.handle()
    }

    pub(crate) fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    pub(crate) fn tag(&self) -> Tag {
        self.tag
    }

    pub(crate) fn is_current(&self) -> bool {
        self.tag == Tag::now()
    }
}

/// What a client object uses: a configuration, with one client in each process, until it is closed.
#[derive(Debug)]
pub(crate) struct PerProcess {
    live: Arc<Live>,
    closed: AtomicBool,
}

impl PerProcess {
    /// Of a `medkg.ClientConfig`, or of a `Configuration` that others use too.
    pub(crate) fn new(config: &Bound<'_, PyAny>) -> PyResult<Self> {
        Ok(Self {
            live: Live::of(config)?,
            closed: AtomicBool::new(false),
        })
    }

    /// This process and its client.
    pub(crate) fn client(&self, py: Python<'_>) -> PyResult<(Arc<Process>, Client)> {
        if self.closed.load(Ordering::Acquire) {
            return Err(errors::closed(py));
        }
        self.live.client(py)
    }

    /// The configuration, for other objects and for its exchange.
    pub(crate) fn configuration(&self) -> Configuration {
        Configuration(Arc::clone(&self.live))
    }

    /// Lets the connections go, unless others use them; further calls are refused.
    pub(crate) fn close(&self) {
        if !self.closed.swap(true, Ordering::AcqRel) {
            self.live.leave();
        }
    }
}

/// Something that lives in one process's runtime until it is taken out. A forked child has a copy that it neither uses nor
/// drops.
pub(crate) struct InProcess<T> {
    process: Arc<Process>,
    /// Locked for moments and with the GIL held, so that no fork finds it locked.
    value: Mutex<Option<T>>,
}

impl<T> InProcess<T> {
    pub(crate) fn new(process: Arc<Process>, value: T) -> Self {
        Self {
            process,
            value: Mutex::new(Some(value)),
        }
    }

    pub(crate) fn process(&self) -> &Arc<Process> {
        &self.process
    }

    /// Runs `work` on it; none if it was taken out, or belongs to another process.
    pub(crate) fn with<R>(&self, work: impl FnOnce(&mut T) -> R) -> Option<R> {
        let mut value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        value.as_mut().filter(|_| self.process.is_current()).map(work)
    }

    /// Takes it out; as [`Self::with`].
    pub(crate) fn take(&self) -> Option<T> {
        let mut value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        if self.process.is_current() { value.take() } else { None }
    }

    /// Puts it in again.
    pub(crate) fn put(&self, value: T) {
        *self.value.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
    }
}

impl<T> Drop for InProcess<T> {
    fn drop(&mut self) {
        if !self.process.is_current() {
            let value = self.value.get_mut().unwrap_or_else(PoisonError::into_inner);
            std::mem::forget(value.take());
        }
    }
}
