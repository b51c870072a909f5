//! The Rust half of `embed_stream`: Python pulls the texts and hands them over one by one, so its iterators run where the
//! caller is, and what they raise is the caller's.

use std::sync::Arc;

use medkg_client::Service;
use medkg_client::service::embedding::EmbeddingStream as Stream;
use pyo3::prelude::*;

use crate::arguments::Arguments;
use crate::embedding::embeddings;
use crate::errors;
use crate::process::{InProcess, Process};
use crate::running::{Mode, run};

/// Texts in, batches of embeddings out; `next` returns them.
#[pyclass(subclass, frozen, module = "medkg._core")]
pub(crate) struct EmbeddingStream {
    /// Taken out while an answer is waited for: whoever gives up waiting gives up the stream.
    stream: Arc<InProcess<Stream>>,
    mode: Mode,
}

/// Texts in, batches of embeddings out; `next` returns awaitables.
#[pyclass(extends = EmbeddingStream, frozen, module = "medkg._core")]
pub(crate) struct AsyncEmbeddingStream;

pub(crate) fn arguments(py: Python<'_>) -> Arguments<'_> {
    Arguments {
        py,
        service: Service::Embedding,
        method: "StreamEmbeddings",
    }
}

pub(crate) fn new(py: Python<'_>, process: Arc<Process>, mode: Mode, stream: Stream) -> PyResult<Py<PyAny>> {
    let stream = Arc::new(InProcess::new(process, stream));
    let base = PyClassInitializer::from(EmbeddingStream { stream, mode });
    match mode {
        Mode::Blocking => Ok(Py::new(py, base)?.into_any()),
        Mode::Awaitable => Ok(Py::new(py, base.add_subclass(AsyncEmbeddingStream))?.into_any()),
    }
}

#[pymethods]
impl EmbeddingStream {
    /// Adds a text; True if an answer is to be taken before the next one.
    fn push(&self, py: Python<'_>, text: &Bound<'_, PyAny>) -> PyResult<bool> {
        let field = || format!("texts[{}]", self.stream.with(|stream| stream.pushed()).unwrap_or(0));
        let text = arguments(py).string(field, text)?;
        let pushed = self.stream.with(|stream| stream.push(text));
        pushed.ok_or_else(|| errors::no_stream(py))
    }

    /// Says that no more texts come.
    fn finish(&self, py: Python<'_>) -> PyResult<()> {
        let finished = self.stream.with(Stream::finish);
        finished.ok_or_else(|| errors::no_stream(py))
    }

    /// The next batch's answer; None when there is none to wait for.
    fn next(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let mut stream = self.stream.take().ok_or_else(|| errors::no_stream(py))?;
        let place = Arc::clone(&self.stream);
        let start = move |_| async move {
            let answer = stream.next().await.transpose()?;
            Ok((stream, answer))
        };
        let convert = move |py: Python<'_>, (stream, answer)| {
            place.put(stream);
            match answer {
                Some(answer) => embeddings(py, answer),
                None => Ok(py.None()),
            }
        };
        run(py, self.stream.process(), self.mode, None, start, convert)
    }

    /// Cancels what is not answered.
    fn close(&self) {
        drop(self.stream.take());
    }
}
