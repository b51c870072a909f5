//! Waiting for a call, in the blocking and in the awaitable way.
//!
//! Blocking: the call runs on the runtime while this thread waits with the GIL released, and wakes every 50 ms to let
//! Python handle signals. What a handler raises (`KeyboardInterrupt`, Dagster's interruption) cancels the call and goes
//! on to the caller. No signal handler is installed.
//!
//! Awaitable: an `asyncio` future; cancelling the task that awaits it cancels the call. The answer is converted on a
//! thread that may wait for the GIL, never on one that drives I/O (docs/adr/0004-pyo3-async-runtimes.md).

use std::any::Any;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::task::{Context, Poll};
use std::time::Duration;

use medkg_client::ClientError;
use pyo3::IntoPyObjectExt as _;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3_async_runtimes::generic::{ContextExt, JoinError, Runtime};
use pyo3_async_runtimes::{TaskLocals, generic::future_into_py};

use crate::errors;
use crate::process::{Process, attached};

/// How often a waiting call lets Python handle signals.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(50);

/// How a class's methods give their answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// They return them.
    Blocking,
    /// They return awaitables.
    Awaitable,
}

/// Told how much is done, of how much. In blocking mode from the thread that waits, in awaitable mode from the event
/// loop.
pub(crate) type Report = dyn Fn(usize, usize) + Send + Sync;

enum Event<T> {
    Progress(usize, usize),
    Done(Result<T, ClientError>),
}

/// Runs `start(report)` on the runtime of `process` and gives its answer, converted by `convert`.
pub(crate) fn run<T, F>(
    py: Python<'_>,
    process: &Arc<Process>,
    mode: Mode,
    progress: Option<Py<PyAny>>,
    start: impl FnOnce(Option<Arc<Report>>) -> F,
    convert: impl FnOnce(Python<'_>, T) -> PyResult<Py<PyAny>> + Send + 'static,
) -> PyResult<Py<PyAny>>
where
    T: Send + 'static,
    F: Future<Output = Result<T, ClientError>> + Send + 'static,
{
    match mode {
        Mode::Blocking => convert(py, block(py, process, progress.as_ref(), start)?),
        Mode::Awaitable => {
            let report = progress.map(|callback| on_the_loop(py, callback)).transpose()?;
            let future = start(report);
            let answer = future_into_py::<MedkgRuntime, _, _>(py, async move {
                // Errors travel as values, so that their classes are looked up where the GIL may be waited for.
                Ok(Answer {
                    result: future.await,
                    convert,
                })
            })?;
            Ok(answer.unbind())
        }
    }
}

/// Cancels a call unless it has ended.
struct CancelOnDrop(tokio::task::JoinHandle<()>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Waits for `start(report)` and gives its answer.
pub(crate) fn block<T, F>(
    py: Python<'_>,
    process: &Arc<Process>,
    progress: Option<&Py<PyAny>>,
    start: impl FnOnce(Option<Arc<Report>>) -> F,
) -> PyResult<T>
where
    T: Send + 'static,
    F: Future<Output = Result<T, ClientError>> + Send + 'static,
{
    let (events, mut received) = mpsc::channel();
    let report = progress.is_some().then(|| {
        let events = events.clone();
        Arc::new(move |done, total| {
            // Nobody listens any more: the call is being cancelled.
            let _ = events.send(Event::Progress(done, total));
        }) as Arc<Report>
    });
    let future = start(report);
    let _task = CancelOnDrop(process.handle().spawn(async move {
        let _ = events.send(Event::Done(future.await));
    }));
    loop {
        let event;
        (event, received) = py.detach(move || (received.recv_timeout(SIGNAL_INTERVAL), received));
        match event {
            Ok(Event::Done(result)) => return result.map_err(|error| errors::raise(py, &error)),
            Ok(Event::Progress(done, total)) => {
                if let Some(callback) = progress {
                    callback.call1(py, (done, total))?;
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return Err(PyRuntimeError::new_err(
                    "medkg failed inside a call (a defect; see stderr)",
                ));
            }
        }
        py.check_signals()?;
    }
}

/// Calls `callback` on the running event loop, where it may touch what the caller's tasks touch.
fn on_the_loop(py: Python<'_>, callback: Py<PyAny>) -> PyResult<Arc<Report>> {
    let event_loop = pyo3_async_runtimes::get_running_loop(py)?.unbind();
    Ok(Arc::new(move |done, total| {
        // None: the interpreter is going away. An error: the loop is closed. Either way nobody waits for news.
        let _ = attached(|py| {
            event_loop
                .call_method1(py, "call_soon_threadsafe", (&callback, done, total))
                .is_ok()
        });
    }))
}

struct Answer<T, C> {
    result: Result<T, ClientError>,
    convert: C,
}

impl<'py, T, C> IntoPyObject<'py> for Answer<T, C>
where
    C: FnOnce(Python<'_>, T) -> PyResult<Py<PyAny>>,
{
    type Target = PyAny;
    type Output = Bound<'py, PyAny>;
    type Error = PyErr;

    fn into_pyobject(self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        match self.result {
            Ok(value) => (self.convert)(py, value)?.into_bound_py_any(py),
            Err(error) => Err(errors::raise(py, &error)),
        }
    }
}

/// Tells pyo3-async-runtimes about the runtime of the current process; its own tokio support has one for ever.
struct MedkgRuntime;

tokio::task_local! {
    static LOCALS: TaskLocals;
}

/// The end of a task, as pyo3-async-runtimes wants to see it.
struct Ended(tokio::task::JoinError);

impl JoinError for Ended {
    fn is_panic(&self) -> bool {
        self.0.is_panic()
    }

    fn into_panic(self) -> Box<dyn Any + Send + 'static> {
        self.0.into_panic()
    }
}

/// A task that may never have been started.
struct Task(Option<tokio::task::JoinHandle<()>>);

impl Future for Task {
    type Output = Result<(), Ended>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Some(task) => Pin::new(task).poll(context).map_err(Ended),
            None => Poll::Ready(Ok(())),
        }
    }
}

/// The runtime: the one this thread works for, or the process's.
fn handle() -> Option<tokio::runtime::Handle> {
    let here = tokio::runtime::Handle::try_current().ok();
    here.or_else(|| attached(|py| Process::current(py).ok().map(|process| process.handle().clone())).flatten())
}

impl Runtime for MedkgRuntime {
    type JoinError = Ended;
    type JoinHandle = Task;

    fn spawn<F>(future: F) -> Task
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Task(handle().map(|handle| handle.spawn(future)))
    }

    fn spawn_blocking<F>(work: F) -> Task
    where
        F: FnOnce() + Send + 'static,
    {
        // What is handed over here attaches to the interpreter, which panics once that is going away.
        let guarded = || {
            attached(|_| work());
        };
        Task(handle().map(|handle| handle.spawn_blocking(guarded)))
    }
}

impl ContextExt for MedkgRuntime {
    fn scope<F, R>(locals: TaskLocals, future: F) -> Pin<Box<dyn Future<Output = R> + Send>>
    where
        F: Future<Output = R> + Send + 'static,
    {
        Box::pin(LOCALS.scope(locals, future))
    }

    fn get_task_locals() -> Option<TaskLocals> {
        LOCALS.try_with(Clone::clone).ok()
    }
}
