//! The Rust half of `EmbeddingClient` and `AsyncEmbeddingClient`.

use medkg_client::Service;
use medkg_client::service::embedding::{
    Dtype, EmbedRequest, Embeddings, How, SparseEmbeddings, SparseRequest, TokenizerFile,
};
use numpy::PyArray1;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::arguments::{Arguments, CallTuple};
use crate::live::Configuration;
use crate::process::PerProcess;
use crate::running::{Mode, run};
use crate::streaming;
use crate::{arrays, endpoints, errors, results};

/// Texts to vectors; methods return answers.
#[pyclass(subclass, frozen, module = "medkg._core")]
pub(crate) struct Embedding {
    clients: PerProcess,
    mode: Mode,
}

/// Texts to vectors; methods return awaitables.
#[pyclass(extends = Embedding, frozen, module = "medkg._core")]
pub(crate) struct AsyncEmbedding;

#[pymethods]
impl AsyncEmbedding {
    #[new]
    fn new(config: &Bound<'_, PyAny>) -> PyResult<PyClassInitializer<Self>> {
        let clients = PerProcess::new(config)?;
        let base = Embedding {
            clients,
            mode: Mode::Awaitable,
        };
        Ok(PyClassInitializer::from(base).add_subclass(Self))
    }
}

/// `(model, dtype, truncation, prompt_name, instruction, dimensions)`.
type HowTuple<'py> = (
    Option<String>,
    Option<String>,
    Option<String>,
    Option<Bound<'py, PyAny>>,
    Option<Bound<'py, PyAny>>,
    Option<Bound<'py, PyAny>>,
);

fn arguments<'py>(py: Python<'py>, method: &'static str) -> Arguments<'py> {
    Arguments {
        py,
        service: Service::Embedding,
        method,
    }
}

fn how(arguments: Arguments<'_>, how: HowTuple<'_>) -> PyResult<How> {
    let (model, dtype, truncation, prompt_name, instruction, dimensions) = how;
    Ok(How {
        model,
        dtype: dtype.map(|name| self::dtype(arguments, &name)).transpose()?,
        truncation: arguments.truncation(truncation.as_deref())?,
        prompt_name: arguments.optional_string("prompt_name", prompt_name.as_ref())?,
        instruction: arguments.optional_string("instruction", instruction.as_ref())?,
        dimensions: arguments.optional_count("dimensions", dimensions.as_ref())?,
    })
}

#[pymethods]
impl Embedding {
    #[new]
    fn new(config: &Bound<'_, PyAny>) -> PyResult<Self> {
        Ok(Self {
            clients: PerProcess::new(config)?,
            mode: Mode::Blocking,
        })
    }

    /// The configuration, which can be exchanged.
    #[getter]
    fn configuration(&self) -> Configuration {
        self.clients.configuration()
    }

    /// See `EmbeddingClient.embed`.
    fn embed<'py>(
        &self,
        py: Python<'py>,
        call: CallTuple,
        texts: &Bound<'py, PyAny>,
        how: HowTuple<'py>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let arguments = arguments(py, "GenerateEmbeddings");
        let options = arguments.call(call)?;
        let how = self::how(arguments, how)?;
        let texts = arguments.strings("texts", texts)?;
        let (process, client) = self.clients.client(py)?;
        let start = move |progress| async move {
            let request = EmbedRequest { texts, how, progress };
            client.embedding().embed(request, &options).await
        };
        run(py, &process, self.mode, progress, start, embeddings)
    }

    /// The stream behind `EmbeddingClient.embed_stream`; `texts` are only looked at, not pulled.
    fn embed_stream<'py>(
        &self,
        py: Python<'py>,
        call: CallTuple,
        texts: &Bound<'py, PyAny>,
        how: HowTuple<'py>,
        batch_size: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let arguments = streaming::arguments(py);
        let options = arguments.call(call)?;
        let how = self::how(arguments, how)?;
        let batch_size = arguments.optional_count("batch_size", batch_size)?;
        arguments.iterable("texts", texts, self.mode == Mode::Awaitable)?;
        let (process, client) = self.clients.client(py)?;
        let stream = {
            let _inside = process.handle().enter();
            let batch_size = batch_size.map(|size| size as usize);
            client.embedding().stream(how, batch_size, &options)
        };
        let stream = stream.map_err(|error| errors::raise(py, &error))?;
        streaming::new(py, process, self.mode, stream)
    }

    /// See `EmbeddingClient.embed_sparse`; `how` is `(model, truncation, max_terms)`.
    fn embed_sparse<'py>(
        &self,
        py: Python<'py>,
        call: CallTuple,
        texts: &Bound<'py, PyAny>,
        how: (Option<String>, Option<String>, Option<Bound<'py, PyAny>>),
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let arguments = arguments(py, "GenerateSparseEmbeddings");
        let options = arguments.call(call)?;
        let (model, truncation, max_terms) = how;
        let truncation = arguments.truncation(truncation.as_deref())?;
        let max_terms = arguments.optional_count("max_terms", max_terms.as_ref())?;
        let texts = arguments.strings("texts", texts)?;
        let (process, client) = self.clients.client(py)?;
        let start = move |progress| async move {
            let request = SparseRequest {
                texts,
                model,
                truncation,
                max_terms,
                progress,
            };
            client.embedding().embed_sparse(request, &options).await
        };
        run(py, &process, self.mode, progress, start, sparse)
    }

    /// See `EmbeddingClient.models`.
    fn models(&self, py: Python<'_>, call: CallTuple) -> PyResult<Py<PyAny>> {
        let options = arguments(py, "ListModels").call(call)?;
        let (process, client) = self.clients.client(py)?;
        let start = move |_| async move { client.embedding().models(&options).await };
        run(py, &process, self.mode, None, start, results::models)
    }

    /// See `EmbeddingClient.tokenizer`.
    fn tokenizer(&self, py: Python<'_>, call: CallTuple, model: Option<String>) -> PyResult<Py<PyAny>> {
        let options = arguments(py, "GetTokenizer").call(call)?;
        let (process, client) = self.clients.client(py)?;
        let start = move |_| async move { client.embedding().tokenizer(model, &options).await };
        run(py, &process, self.mode, None, start, tokenizer)
    }

    /// See `EmbeddingClient.cache_stats`.
    fn cache_stats(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let (_, client) = self.clients.client(py)?;
        let Some(stats) = client.embedding().cache_stats() else {
            return Ok(py.None());
        };
        // By name: there are more fields than a person keeps apart by place.
        let fields = PyDict::new(py);
        for (name, value) in [
            ("hits", stats.hits),
            ("remote_hits", stats.remote_hits),
            ("misses", stats.misses),
            ("shared", stats.shared),
            ("remote_errors", stats.remote_errors),
            ("corrupt", stats.corrupt),
            ("dropped", stats.dropped),
            ("entries", stats.entries),
            ("bytes", stats.bytes),
        ] {
            fields.set_item(name, value)?;
        }
        Ok(results::class(py, "CacheStats")?.call((), Some(&fields))?.unbind())
    }

    /// See `EmbeddingClient.forget_cached`.
    fn forget(&self, py: Python<'_>, call: CallTuple, digest: Option<String>) -> PyResult<Py<PyAny>> {
        let options = arguments(py, "forget").call(call)?;
        let (process, client) = self.clients.client(py)?;
        let start = move |_| async move { client.embedding().forget(digest.as_deref(), &options).await };
        let told = |py: Python<'_>, removed: u64| Ok(removed.into_pyobject(py)?.into_any().unbind());
        run(py, &process, self.mode, None, start, told)
    }

    /// See `Client.endpoints`.
    fn endpoints(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        endpoints::list(py, &self.clients, Service::Embedding)
    }

    /// See `Client.reset_breakers`.
    fn reset_breakers(&self, py: Python<'_>, address: Option<&str>) -> PyResult<usize> {
        endpoints::reset(py, &self.clients, Service::Embedding, address)
    }

    /// Lets the connections go.
    fn close(&self) {
        self.clients.close();
    }
}

fn dtype(arguments: Arguments<'_>, name: &str) -> PyResult<Dtype> {
    let found = Dtype::ALL.into_iter().find(|dtype| dtype.as_str() == name);
    found.ok_or_else(|| {
        let known = Dtype::ALL.map(|dtype| format!("{:?}", dtype.as_str())).join(", ");
        arguments.invalid("dtype", &format!("is {name:?}; give one of {known}"))
    })
}

pub(crate) fn embeddings(py: Python<'_>, answer: Embeddings) -> PyResult<Py<PyAny>> {
    let dtype = answer.vectors.dtype().as_str();
    let (vectors, scales) = arrays::vectors(py, answer.vectors, answer.rows)?;
    let result = results::class(py, "EmbeddingResult")?.call1((
        vectors,
        PyArray1::from_vec(py, answer.token_counts),
        answer.truncated,
        answer.model,
        answer.model_digest,
        results::usage(py, &answer.usage)?,
        answer.request_id,
        answer.trace_id,
        dtype,
        answer.dimension,
        scales,
        answer.degraded,
    ))?;
    Ok(result.unbind())
}

fn sparse(py: Python<'_>, answer: SparseEmbeddings) -> PyResult<Py<PyAny>> {
    let result = results::class(py, "SparseEmbeddingResult")?.call1((
        PyArray1::from_vec(py, answer.offsets),
        PyArray1::from_vec(py, answer.token_ids),
        PyArray1::from_vec(py, answer.weights),
        answer.dimension,
        PyArray1::from_vec(py, answer.token_counts),
        answer.truncated,
        answer.model,
        answer.model_digest,
        results::usage(py, &answer.usage)?,
        answer.request_id,
        answer.trace_id,
        answer.degraded,
    ))?;
    Ok(result.unbind())
}

fn tokenizer(py: Python<'_>, file: TokenizerFile) -> PyResult<Py<PyAny>> {
    let json = PyBytes::new(py, &file.json);
    Ok(results::class(py, "TokenizerFile")?
        .call1((json, file.model, file.model_digest))?
        .unbind())
}
