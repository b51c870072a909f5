//! Waiting for a call, in the blocking and in the awaitable way.
//!
//! Blocking: the call runs on the thread that waits, with the GIL released; every 50 ms it lets Python handle signals. What a
//! handler raises (`KeyboardInterrupt`, Dagster's interruption) cancels the call and goes on to the caller. No signal
//! handler is installed.
//!
//! Awaitable: see `awaiting`.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use medkg_client::ClientError;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use tokio::sync::mpsc;

use crate::awaiting::{Loop, start as start_awaitable};
use crate::process::Process;
use crate::{errors, logging};

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
    Failed,
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
            let here = Loop::running(py, process)?;
            let report = progress.map(|callback| on_the_loop(here.1.clone(), callback));
            let call = AssertUnwindSafe(start(report)).catch_unwind();
            start_awaitable(py, process, here, call, |py, ended| match ended {
                Ok(Ok(answer)) => convert(py, answer),
                Ok(Err(error)) => Err(errors::raise(py, &error)),
                Err(_) => Err(defect()),
            })
        }
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
    let (events, mut reported) = mpsc::unbounded_channel();
    let report = progress.is_some().then(|| {
        Arc::new(move |done, total| {
            // Nobody listens any more: the call is being cancelled.
            let _ = events.send((done, total));
        }) as Arc<Report>
    });
    let mut call = pin!(AssertUnwindSafe(start(report)).catch_unwind());
    loop {
        // Dropping the call cancels it.
        let event = py.detach(|| {
            let next = async {
                tokio::select! {
                    biased;
                    Some((done, total)) = reported.recv() => Event::Progress(done, total),
                    ended = &mut call => ended.map_or(Event::Failed, Event::Done),
                }
            };
            wait(process, pin!(next))
        });
        logging::hand_on(py);
        let tell = |(done, total)| match progress {
            Some(callback) => callback.call1(py, (done, total)).map(drop),
            None => Ok(()),
        };
        match event {
            Some(Event::Done(result)) => {
                // What was reported right before the end.
                while let Ok(told) = reported.try_recv() {
                    tell(told)?;
                }
                return result.map_err(|error| errors::raise(py, &error));
            }
            Some(Event::Failed) => return Err(defect()),
            Some(Event::Progress(done, total)) => tell((done, total))?,
            None => {}
        }
        py.check_signals()?;
    }
}

/// Polls a future on this thread until it ends, or until it is time to look for signals: then none. The thread sleeps without
/// a timer of the runtime's, since setting one would wake the runtime's thread once more for every call.
fn wait<T>(process: &Process, mut future: Pin<&mut impl Future<Output = T>>) -> Option<T> {
    let _inside = process.handle().enter();
    let until = Instant::now() + SIGNAL_INTERVAL;
    let (parker, unparker) = parking::pair();
    let waker = Waker::from(unparker);
    let mut context = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return Some(output);
        }
        if !parker.park_deadline(until) {
            return None;
        }
    }
}

fn defect() -> PyErr {
    PyRuntimeError::new_err("medkg failed inside a call (a defect; see stderr)")
}

/// Calls `callback` on the event loop, where it may touch what the caller's tasks touch.
fn on_the_loop(way: Loop, callback: Py<PyAny>) -> Arc<Report> {
    let callback = Arc::new(callback);
    Arc::new(move |done, total| {
        let callback = Arc::clone(&callback);
        way.deliver(Box::new(move |py| callback.call1(py, (done, total)).map(drop)));
    })
}
