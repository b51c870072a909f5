//! The Rust half of `RerankingClient` and `AsyncRerankingClient`.

use medkg_client::Service;
use medkg_client::service::reranking::{Fusion, Query, RankedDocument, Rankings, RerankOptions};
use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::arguments::{Arguments, CallTuple};
use crate::live::Configuration;
use crate::process::PerProcess;
use crate::running::{Mode, run};
use crate::{endpoints, results};

/// Query-document pairs to scores; methods return answers.
#[pyclass(subclass, frozen, module = "medkg._core")]
pub(crate) struct Reranking {
    clients: PerProcess,
    mode: Mode,
}

/// Query-document pairs to scores; methods return awaitables.
#[pyclass(extends = Reranking, frozen, module = "medkg._core")]
pub(crate) struct AsyncReranking;

#[pymethods]
impl AsyncReranking {
    #[new]
    fn new(config: &Bound<'_, PyAny>) -> PyResult<PyClassInitializer<Self>> {
        let clients = PerProcess::new(config)?;
        let base = Reranking {
            clients,
            mode: Mode::Awaitable,
        };
        Ok(PyClassInitializer::from(base).add_subclass(Self))
    }
}

/// `(model, fusion, fusion_weight, top_n, truncation, instruction)`.
type How<'py> = (
    Option<String>,
    Option<String>,
    Option<f32>,
    Option<u32>,
    Option<String>,
    Option<Bound<'py, PyAny>>,
);

fn arguments<'py>(py: Python<'py>, method: &'static str) -> Arguments<'py> {
    Arguments {
        py,
        service: Service::Reranking,
        method,
    }
}

#[pymethods]
impl Reranking {
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

    /// See `RerankingClient.rerank`.
    fn rerank<'py>(
        &self,
        py: Python<'py>,
        call: CallTuple,
        query: &Bound<'py, PyAny>,
        documents: &Bound<'py, PyAny>,
        first_stage_scores: Option<&Bound<'py, PyAny>>,
        how: How<'py>,
    ) -> PyResult<Py<PyAny>> {
        let arguments = arguments(py, "RerankBatch");
        let query = read(arguments, "", query, documents, first_stage_scores)?;
        self.send(py, call, vec![query], how, one)
    }

    /// See `RerankingClient.rerank_batch`.
    fn rerank_batch<'py>(
        &self,
        py: Python<'py>,
        call: CallTuple,
        queries: &Bound<'py, PyAny>,
        how: How<'py>,
    ) -> PyResult<Py<PyAny>> {
        let arguments = arguments(py, "RerankBatch");
        let mut read_queries = Vec::with_capacity(queries.len().unwrap_or(0));
        for (index, query) in queries.try_iter()?.enumerate() {
            let query = query?;
            let prefix = format!("queries[{index}].");
            let (Ok(text), Ok(documents)) = (query.getattr("query"), query.getattr("documents")) else {
                let class = query.get_type().name()?;
                return Err(arguments.invalid(
                    &format!("queries[{index}]"),
                    &format!("is a {class}; give a RerankQuery"),
                ));
            };
            let scores = query.getattr("first_stage_scores")?;
            let scores = (!scores.is_none()).then_some(&scores);
            read_queries.push(read(arguments, &prefix, &text, &documents, scores)?);
        }
        self.send(py, call, read_queries, how, batch)
    }

    /// See `RerankingClient.models`.
    fn models(&self, py: Python<'_>, call: CallTuple) -> PyResult<Py<PyAny>> {
        let options = arguments(py, "ListModels").call(call)?;
        let (process, client) = self.clients.client(py)?;
        let start = move |_| async move { client.reranking().models(&options).await };
        run(py, &process, self.mode, None, start, results::models)
    }

    /// See `Client.endpoints`.
    fn endpoints(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        endpoints::list(py, &self.clients, Service::Reranking)
    }

    /// See `Client.reset_breakers`.
    fn reset_breakers(&self, py: Python<'_>, address: Option<&str>) -> PyResult<usize> {
        endpoints::reset(py, &self.clients, Service::Reranking, address)
    }

    /// Lets the connections go.
    fn close(&self) {
        self.clients.close();
    }
}

impl Reranking {
    fn send<'py>(
        &self,
        py: Python<'py>,
        call: CallTuple,
        queries: Vec<Query>,
        how: How<'py>,
        convert: fn(Python<'_>, Rankings) -> PyResult<Py<PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let arguments = arguments(py, "RerankBatch");
        let options = arguments.call(call)?;
        let (model, fusion, fusion_weight, top_n, truncation, instruction) = how;
        let fusion = match fusion.as_deref() {
            None => None,
            Some("none") => Some(Fusion::None),
            Some("standardized_sum") => Some(Fusion::StandardizedSum),
            Some(other) => {
                let what = format!("is {other:?}; give \"none\" or \"standardized_sum\"");
                return Err(arguments.invalid("fusion", &what));
            }
        };
        if top_n == Some(0) {
            return Err(arguments.invalid("top_n", "is 0; give at least 1, or None for all"));
        }
        let truncation = arguments.truncation(truncation.as_deref())?;
        let instruction = arguments.optional_string("instruction", instruction.as_ref())?;
        let how = RerankOptions {
            model,
            fusion,
            fusion_weight,
            top_n,
            truncation,
            instruction,
        };
        let (process, client) = self.clients.client(py)?;
        let start = move |_| async move { client.reranking().rerank_batch(queries, how, &options).await };
        run(py, &process, self.mode, None, start, convert)
    }
}

fn read<'py>(
    arguments: Arguments<'py>,
    prefix: &str,
    query: &Bound<'py, PyAny>,
    documents: &Bound<'py, PyAny>,
    first_stage_scores: Option<&Bound<'py, PyAny>>,
) -> PyResult<Query> {
    let text = arguments.string(|| format!("{prefix}query"), query)?;
    let documents = arguments.strings(&format!("{prefix}documents"), documents)?;
    let Some(scores) = first_stage_scores else {
        return Ok(Query {
            text,
            documents,
            first_stage_scores: None,
        });
    };
    let field = format!("{prefix}first_stage_scores");
    let Ok(iterator) = scores.try_iter() else {
        return Err(arguments.invalid(&field, "is no list; give one float for each document"));
    };
    let mut read_scores = Vec::with_capacity(documents.len());
    for (index, score) in iterator.enumerate() {
        match score?.extract::<f32>() {
            Ok(score) => read_scores.push(score),
            Err(_) => return Err(arguments.invalid(&format!("{field}[{index}]"), "is no number; give a float")),
        }
    }
    if read_scores.len() != documents.len() {
        let what = format!(
            "has {} scores for {} documents; give one each",
            read_scores.len(),
            documents.len()
        );
        return Err(arguments.invalid(&field, &what));
    }
    Ok(Query {
        text,
        documents,
        first_stage_scores: Some(read_scores),
    })
}

fn ranking<'py>(py: Python<'py>, documents: &[RankedDocument]) -> PyResult<Bound<'py, PyList>> {
    let class = results::class(py, "RankedDocument")?;
    let list = PyList::empty(py);
    for document in documents {
        list.append(class.call1((document.index, document.score, document.relevance))?)?;
    }
    Ok(list)
}

fn one(py: Python<'_>, answer: Rankings) -> PyResult<Py<PyAny>> {
    let documents = ranking(py, answer.rankings.first().map_or(&[], Vec::as_slice))?;
    whole(py, "RerankResult", documents.into_any(), answer)
}

fn batch(py: Python<'_>, answer: Rankings) -> PyResult<Py<PyAny>> {
    let rankings = PyList::empty(py);
    for documents in &answer.rankings {
        rankings.append(ranking(py, documents)?)?;
    }
    whole(py, "RerankBatchResult", rankings.into_any(), answer)
}

fn whole(py: Python<'_>, class: &str, ranked: Bound<'_, PyAny>, answer: Rankings) -> PyResult<Py<PyAny>> {
    let usage = results::usage(py, &answer.usage)?;
    let Rankings {
        model,
        model_digest,
        truncated_pairs,
        request_id,
        trace_id,
        degraded,
        ..
    } = answer;
    let fields = (
        ranked,
        model,
        model_digest,
        truncated_pairs,
        usage,
        request_id,
        trace_id,
        degraded,
    );
    Ok(results::class(py, class)?.call1(fields)?.unbind())
}
