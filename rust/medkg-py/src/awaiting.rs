//! Answers on their way to an event loop (docs/adr/0018-answers-for-asyncio.md).
//!
//! A call runs on the runtime's threads, and what it ends with is put into the inbox of the event loop that waits for it. The
//! first one writes a byte to a socket that the loop watches; the loop then takes everything that has come meanwhile,
//! converts it and sets the futures. So no thread of ours waits for the GIL, and a loop with many calls in flight is woken
//! once for many answers.
//!
//! What is awaited holds the call: dropping it, or a cancellation that is thrown into it, cancels the call on the wire.

use std::cell::RefCell;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Weak};

use pyo3::PyTraverseError;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyTuple, PyWeakref, PyWeakrefReference};
use tokio::task::{AbortHandle, JoinHandle};

use crate::logging;
use crate::process::Process;

/// What is done on the event loop, with the GIL.
type Delivery = Box<dyn FnOnce(Python<'_>) -> PyResult<()> + Send>;

/// What waits for an event loop. The loop holds it, by watching [`Inbox`].
struct Waiting {
    deliveries: medkg_client::inbox::Inbox<Delivery>,
    bell: UnixStream,
    /// The end that the loop watches.
    heard: UnixStream,
}

/// The callback of an event loop.
#[pyclass(frozen, module = "medkg._core")]
struct Inbox {
    waiting: Arc<Waiting>,
}

#[pymethods]
impl Inbox {
    fn __call__(&self, py: Python<'_>) {
        // Before they are taken: a byte that is written later is heard again.
        let _ = (&self.waiting.heard).read(&mut [0; 64]);
        for delivery in self.waiting.deliveries.take() {
            // What goes wrong with one must not keep the others from their answers.
            if let Err(error) = delivery(py) {
                error.write_unraisable(py, None);
            }
        }
        logging::hand_on(py);
    }
}

/// The loop that ran last on a thread, the process it ran in, and what waits for it.
type Last = (Py<PyWeakref>, Weak<Process>, Weak<Waiting>);

thread_local! {
    static LAST: RefCell<Option<Last>> = const { RefCell::new(None) };
}

/// The way to an event loop.
#[derive(Clone)]
pub(crate) struct Loop {
    waiting: Arc<Waiting>,
}

impl Loop {
    /// The loop that runs on this thread, and the way to it.
    pub(crate) fn running<'py>(py: Python<'py>, process: &Arc<Process>) -> PyResult<(Bound<'py, PyAny>, Self)> {
        static GET: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let get = GET.get_or_try_init(py, || {
            let asyncio = py.import("asyncio")?;
            Ok::<_, PyErr>(asyncio.getattr("get_running_loop")?.unbind())
        })?;
        let event_loop = get.bind(py).call0()?;
        let known = LAST.with_borrow(|last| {
            let (of, made_by, waiting) = last.as_ref()?;
            let same = of.bind(py).upgrade().is_some_and(|of| of.is(&event_loop));
            // A forked child shares the socket with its parent, so it makes one of its own.
            let ours = made_by.upgrade().is_some_and(|made_by| Arc::ptr_eq(&made_by, process));
            waiting.upgrade().filter(|_| same && ours)
        });
        let waiting = match known {
            Some(waiting) => waiting,
            None => open(py, process, &event_loop)?,
        };
        Ok((event_loop, Self { waiting }))
    }

    /// Has something done on the loop. A loop that is closed does nothing any more.
    pub(crate) fn deliver(&self, delivery: Delivery) {
        if self.waiting.deliveries.push(delivery) {
            // One byte at a time never fills it.
            let _ = (&self.waiting.bell).write(&[1]);
        }
    }
}

fn open(py: Python<'_>, process: &Arc<Process>, event_loop: &Bound<'_, PyAny>) -> PyResult<Arc<Waiting>> {
    let (bell, heard) = UnixStream::pair()?;
    bell.set_nonblocking(true)?;
    heard.set_nonblocking(true)?;
    let waiting = Arc::new(Waiting {
        deliveries: medkg_client::inbox::Inbox::default(),
        bell,
        heard,
    });
    let inbox = Inbox {
        waiting: Arc::clone(&waiting),
    };
    // The loop keeps the inbox, and so the socket, until it is closed.
    event_loop.call_method1("add_reader", (waiting.heard.as_raw_fd(), Py::new(py, inbox)?))?;
    let of = PyWeakrefReference::new(event_loop)?
        .into_any()
        .cast_into::<PyWeakref>()?;
    LAST.set(Some((of.unbind(), Arc::downgrade(process), Arc::downgrade(&waiting))));
    Ok(waiting)
}

/// Cancels a call unless it has ended.
struct Cancelling {
    task: AbortHandle,
    process: Arc<Process>,
}

impl Cancelling {
    fn cancel(&self) {
        // A forked child has a copy; the call is its parent's, and the runtime's locks may be held there for ever.
        if self.process.is_current() {
            self.task.abort();
        }
    }
}

impl Drop for Cancelling {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// A call that runs. Awaiting it gives its answer; dropping it cancels it.
#[pyclass(frozen, module = "medkg._core")]
pub(crate) struct Call {
    future: Py<PyAny>,
    task: Arc<Cancelling>,
}

/// Runs `call` on the process's runtime; `convert` makes what it ends with the answer, on the event loop.
pub(crate) fn start<T: Send + 'static>(
    py: Python<'_>,
    process: &Arc<Process>,
    (event_loop, way): (Bound<'_, PyAny>, Loop),
    call: impl Future<Output = T> + Send + 'static,
    convert: impl FnOnce(Python<'_>, T) -> PyResult<Py<PyAny>> + Send + 'static,
) -> PyResult<Py<PyAny>> {
    let future = event_loop.call_method0(pyo3::intern!(py, "create_future"))?.unbind();
    let answered = future.clone_ref(py);
    let task: JoinHandle<()> = process.handle().spawn(async move {
        let outcome = call.await;
        way.deliver(Box::new(move |py| settle(py, answered.bind(py), convert(py, outcome))));
    });
    let task = Arc::new(Cancelling {
        task: task.abort_handle(),
        process: Arc::clone(process),
    });
    Ok(Py::new(py, Call { future, task })?.into_any())
}

fn settle(py: Python<'_>, future: &Bound<'_, PyAny>, outcome: PyResult<Py<PyAny>>) -> PyResult<()> {
    // Nobody waits any more for a future that was cancelled.
    if future.call_method0(pyo3::intern!(py, "done"))?.is_truthy()? {
        return Ok(());
    }
    match outcome {
        Ok(answer) => future.call_method1(pyo3::intern!(py, "set_result"), (answer,))?,
        Err(error) => future.call_method1(pyo3::intern!(py, "set_exception"), (error,))?,
    };
    Ok(())
}

#[pymethods]
impl Call {
    fn __await__(&self, py: Python<'_>) -> PyResult<Steps> {
        let steps = self.future.call_method0(py, pyo3::intern!(py, "__await__"))?;
        Ok(Steps {
            steps,
            task: Arc::clone(&self.task),
        })
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.future)
    }
}

/// The awaiting of a call: a future's, which holds the call.
#[pyclass(frozen, module = "medkg._core")]
struct Steps {
    steps: Py<PyAny>,
    task: Arc<Cancelling>,
}

#[pymethods]
impl Steps {
    fn __iter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.steps.call_method0(py, pyo3::intern!(py, "__next__"))
    }

    #[pyo3(signature = (*arguments))]
    fn throw(&self, py: Python<'_>, arguments: &Bound<'_, PyTuple>) -> PyResult<Py<PyAny>> {
        self.task.cancel();
        self.steps.call_method1(py, pyo3::intern!(py, "throw"), arguments)
    }

    fn close(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.task.cancel();
        self.steps.call_method0(py, pyo3::intern!(py, "close"))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.steps)
    }
}
