//! The Rust half of `VectorClient` and `AsyncVectorClient`.

use std::sync::Arc;

use medkg_client::Service;
use medkg_client::service::vector::{
    CollectionInfo, Dimensions, Fetch, Fetched, Hits, Metric, Points, RankFusion, RecallCheck, SearchRequest, Storage,
    Upserted,
};
use pyo3::IntoPyObjectExt as _;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::arguments::{Arguments, CallTuple};
use crate::live::Configuration;
use crate::process::PerProcess;
use crate::running::{Mode, run};
use crate::{arrays, endpoints, export, filters, results, sparse, statistics};

/// Vector search; methods return answers.
#[pyclass(subclass, frozen, module = "medkg._core")]
pub(crate) struct Vector {
    clients: PerProcess,
    mode: Mode,
}

/// Vector search; methods return awaitables.
#[pyclass(extends = Vector, frozen, module = "medkg._core")]
pub(crate) struct AsyncVector;

#[pymethods]
impl AsyncVector {
    #[new]
    fn new(config: &Bound<'_, PyAny>) -> PyResult<PyClassInitializer<Self>> {
        let clients = PerProcess::new(config)?;
        let base = Vector {
            clients,
            mode: Mode::Awaitable,
        };
        Ok(PyClassInitializer::from(base).add_subclass(Self))
    }
}

/// `k`, whether to return payloads, the filter, the least score, and how two kinds of queries are fused.
type How<'py> = (
    u32,
    bool,
    Option<Bound<'py, PyAny>>,
    Option<f32>,
    Option<Bound<'py, PyAny>>,
);

fn arguments<'py>(py: Python<'py>, method: &'static str) -> Arguments<'py> {
    Arguments {
        py,
        service: Service::Vector,
        method,
    }
}

#[pymethods]
impl Vector {
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

    /// See `VectorClient.create_collection`.
    fn create_collection(
        &self,
        py: Python<'_>,
        call: CallTuple,
        name: String,
        dimensions: (u32, u32),
        how: (String, String),
        exist_ok: bool,
    ) -> PyResult<Py<PyAny>> {
        let arguments = arguments(py, "CreateCollection");
        let options = arguments.call(call)?;
        let (metric, storage) = how;
        let metric = match metric.as_str() {
            "cosine" => Metric::Cosine,
            "dot" => Metric::Dot,
            "l2" => Metric::L2,
            other => {
                let what = format!("is {other:?}; give \"cosine\", \"dot\" or \"l2\"");
                return Err(arguments.invalid("metric", &what));
            }
        };
        let storage = match storage.as_str() {
            "f32" => Storage::F32,
            "f16" => Storage::F16,
            "bf16" => Storage::Bf16,
            other => {
                let what = format!("is {other:?}; give \"f32\", \"f16\" or \"bf16\"");
                return Err(arguments.invalid("storage", &what));
            }
        };
        let (dense, sparse) = dimensions;
        let dimensions = Dimensions { dense, sparse };
        let (process, client) = self.clients.client(py)?;
        let start = move |_| async move {
            client
                .vector()
                .create_collection(name, dimensions, (metric, storage), exist_ok, &options)
                .await
        };
        run(py, &process, self.mode, None, start, |py, info| {
            Ok(collection(py, info)?.unbind())
        })
    }

    /// See `VectorClient.collections`.
    fn collections(&self, py: Python<'_>, call: CallTuple) -> PyResult<Py<PyAny>> {
        let options = arguments(py, "ListCollections").call(call)?;
        let (process, client) = self.clients.client(py)?;
        let start = move |_| async move { client.vector().collections(&options).await };
        run(
            py,
            &process,
            self.mode,
            None,
            start,
            |py, found: Vec<CollectionInfo>| {
                let list = PyList::empty(py);
                for info in found {
                    list.append(collection(py, info)?)?;
                }
                Ok(list.into_any().unbind())
            },
        )
    }

    /// See `VectorClient.drop_collection`.
    fn drop_collection(&self, py: Python<'_>, call: CallTuple, name: String) -> PyResult<Py<PyAny>> {
        let options = arguments(py, "DropCollection").call(call)?;
        let (process, client) = self.clients.client(py)?;
        let start = move |_| async move { client.vector().drop_collection(name, &options).await };
        run(py, &process, self.mode, None, start, |py, removed: u64| {
            removed.into_py_any(py)
        })
    }

    /// See `VectorClient.upsert`.
    fn upsert<'py>(
        &self,
        py: Python<'py>,
        call: CallTuple,
        name: String,
        ids: &Bound<'py, PyAny>,
        vectors: (Bound<'py, PyAny>, Option<Bound<'py, PyAny>>),
        payloads: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let arguments = arguments(py, "UpsertVectors");
        let options = arguments.call(call)?;
        let (dense, sparse) = vectors;
        let (process, client) = self.clients.client(py)?;
        let points = Points {
            ids: arguments.strings("ids", ids)?,
            vectors: arrays::matrix(arguments, "vectors", &dense, false)?,
            payloads: payloads.map(|payloads| to_json(arguments, payloads)).transpose()?,
            sparse: sparse
                .map(|sparse| sparse::matrix(arguments, "sparse", &sparse))
                .transpose()?,
        };
        let start = move |_| async move { client.vector().upsert(name, points, &options).await };
        run(py, &process, self.mode, None, start, |py, done: Upserted| {
            Ok(results::class(py, "UpsertResult")?
                .call1((done.inserted, done.replaced))?
                .unbind())
        })
    }

    /// See `VectorClient.delete`.
    fn delete<'py>(
        &self,
        py: Python<'py>,
        call: CallTuple,
        name: String,
        ids: &Bound<'py, PyAny>,
    ) -> PyResult<Py<PyAny>> {
        let arguments = arguments(py, "DeleteVectors");
        let options = arguments.call(call)?;
        let ids = arguments.strings("ids", ids)?;
        let (process, client) = self.clients.client(py)?;
        let start = move |_| async move { client.vector().delete(name, ids, &options).await };
        run(py, &process, self.mode, None, start, |py, deleted: u64| {
            deleted.into_py_any(py)
        })
    }

    /// See `VectorClient.search`.
    fn search<'py>(
        &self,
        py: Python<'py>,
        call: CallTuple,
        name: String,
        queries: Option<&Bound<'py, PyAny>>,
        sparse: Option<&Bound<'py, PyAny>>,
        how: How<'py>,
    ) -> PyResult<Py<PyAny>> {
        let (k, with_payload, filter, score_threshold, fusion) = how;
        let arguments = arguments(py, "SearchVectors");
        let options = arguments.call(call)?;
        // Before the arrays are looked at: it loads numpy (`process`).
        let (process, client) = self.clients.client(py)?;
        let request = SearchRequest {
            collection: name,
            queries: queries
                .map(|queries| arrays::matrix(arguments, "queries", queries, true))
                .transpose()?,
            sparse: sparse
                .map(|sparse| sparse::matrix(arguments, "sparse_queries", sparse))
                .transpose()?,
            fusion: fusion.map(|fusion| read_fusion(arguments, &fusion)).transpose()?,
            k,
            with_payload,
            filter: filter.map(|filter| filters::read(arguments, &filter)).transpose()?,
            score_threshold,
        };
        let start = move |_| async move { client.vector().search(request, &options).await };
        run(py, &process, self.mode, None, start, hits)
    }

    /// See `VectorClient.fetch`.
    fn fetch<'py>(
        &self,
        py: Python<'py>,
        call: CallTuple,
        name: String,
        ids: &Bound<'py, PyAny>,
        wanted: (bool, bool, bool),
    ) -> PyResult<Py<PyAny>> {
        let arguments = arguments(py, "FetchVectors");
        let options = arguments.call(call)?;
        let ids = arguments.strings("ids", ids)?;
        let (process, client) = self.clients.client(py)?;
        let (vectors, payloads, sparse) = wanted;
        let wanted = Fetch {
            vectors,
            payloads,
            sparse,
        };
        let start = move |_| async move { client.vector().fetch(name, ids, wanted, &options).await };
        run(py, &process, self.mode, None, start, fetched)
    }

    /// See `VectorClient.count`.
    fn count<'py>(
        &self,
        py: Python<'py>,
        call: CallTuple,
        name: String,
        wanted: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let arguments = arguments(py, "CountVectors");
        let options = arguments.call(call)?;
        let filter = wanted.map(|filter| filters::read(arguments, filter)).transpose()?;
        let (process, client) = self.clients.client(py)?;
        let start = move |_| async move { client.vector().count(name, filter, &options).await };
        run(py, &process, self.mode, None, start, |py, count: u64| {
            count.into_py_any(py)
        })
    }

    /// See `VectorClient.statistics`.
    fn statistics(&self, py: Python<'_>, call: CallTuple, name: String) -> PyResult<Py<PyAny>> {
        let options = arguments(py, "GetCollectionStatistics").call(call)?;
        let (process, client) = self.clients.client(py)?;
        let start = move |_| async move { client.vector().statistics(name, &options).await };
        run(py, &process, self.mode, None, start, statistics::of_collection)
    }

    /// The reading behind `VectorClient.export`.
    fn export(&self, py: Python<'_>, call: CallTuple, name: String) -> PyResult<Py<PyAny>> {
        let options = arguments(py, "ExportVectors").call(call)?;
        let (process, client) = self.clients.client(py)?;
        let start = move |_| async move { client.vector().export(name, &options).await };
        let (of, mode) = (Arc::clone(&process), self.mode);
        run(py, &process, mode, None, start, move |py, reading| {
            export::new(py, of, mode, reading)
        })
    }

    /// See `VectorClient.tenant_statistics`.
    fn tenant_statistics(&self, py: Python<'_>, call: CallTuple) -> PyResult<Py<PyAny>> {
        let options = arguments(py, "GetTenantStatistics").call(call)?;
        let (process, client) = self.clients.client(py)?;
        let start = move |_| async move { client.vector().tenant_statistics(&options).await };
        run(py, &process, self.mode, None, start, statistics::of_tenant)
    }

    /// See `VectorClient.check_recall`.
    fn check_recall(
        &self,
        py: Python<'_>,
        call: CallTuple,
        name: String,
        how: (u32, u32, u64, bool),
    ) -> PyResult<Py<PyAny>> {
        let options = arguments(py, "CheckRecall").call(call)?;
        let (sample, k, seed, sparse) = how;
        let check = RecallCheck {
            sample,
            k,
            seed,
            sparse,
        };
        let (process, client) = self.clients.client(py)?;
        let start = move |_| async move { client.vector().check_recall(name, check, &options).await };
        run(py, &process, self.mode, None, start, statistics::recall)
    }

    /// See `Client.endpoints`.
    fn endpoints(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        endpoints::list(py, &self.clients, Service::Vector)
    }

    /// See `Client.reset_breakers`.
    fn reset_breakers(&self, py: Python<'_>, address: Option<&str>) -> PyResult<usize> {
        endpoints::reset(py, &self.clients, Service::Vector, address)
    }

    /// Lets the connections go.
    fn close(&self) {
        self.clients.close();
    }
}

/// A `medkg.results.RankFusion`.
fn read_fusion<'py>(arguments: Arguments<'py>, fusion: &Bound<'py, PyAny>) -> PyResult<RankFusion> {
    let class = results::class(arguments.py, "RankFusion")?;
    if !fusion.is_instance(&class)? {
        let what = format!("is a {}; give a medkg.RankFusion", fusion.get_type().name()?);
        return Err(arguments.invalid("fusion", &what));
    }
    let number = |name: &str| -> PyResult<Option<f64>> {
        let value = fusion.getattr(name)?;
        let wrong = |_| arguments.invalid(&format!("fusion.{name}"), "is no number; give one, or None");
        value.extract().map_err(wrong)
    };
    Ok(RankFusion {
        candidates: arguments.optional_count(
            "fusion.candidates",
            Some(&fusion.getattr("candidates")?).filter(|n| !n.is_none()),
        )?,
        rank_constant: number("rank_constant")?,
        dense_weight: number("dense_weight")?,
        sparse_weight: number("sparse_weight")?,
    })
}

/// Payloads as JSON objects; None becomes an empty string, which the wire takes for "none".
fn to_json(arguments: Arguments<'_>, payloads: &Bound<'_, PyAny>) -> PyResult<Vec<String>> {
    let py = arguments.py;
    let dumps = py.import("json")?.getattr("dumps")?;
    let how = PyDict::new(py);
    how.set_item("ensure_ascii", false)?;
    how.set_item("allow_nan", false)?;
    let mut texts = Vec::with_capacity(payloads.len().unwrap_or(0));
    for (index, payload) in payloads.try_iter()?.enumerate() {
        let payload = payload?;
        if payload.is_none() {
            texts.push(String::new());
            continue;
        }
        let field = || format!("payloads[{index}]");
        let Ok(object) = py.get_type::<PyDict>().call1((&payload,)) else {
            let class = payload.get_type().name()?;
            return Err(arguments.invalid(&field(), &format!("is a {class}; give a mapping or None")));
        };
        let text = dumps
            .call((object,), Some(&how))
            .map_err(|error| arguments.invalid(&field(), &format!("cannot be written as JSON: {}", error.value(py))))?;
        texts.push(arguments.string(field, &text)?);
    }
    Ok(texts)
}

pub(crate) fn collection(py: Python<'_>, info: CollectionInfo) -> PyResult<Bound<'_, PyAny>> {
    let (metric, storage) = (info.metric.as_str(), info.storage.as_str());
    results::class(py, "CollectionInfo")?.call1((
        info.name,
        info.dimension,
        metric,
        storage,
        info.created,
        info.sparse_dimension,
    ))
}

fn hits(py: Python<'_>, answer: Hits) -> PyResult<Py<PyAny>> {
    let class = results::class(py, "Hit")?;
    let loads = py.import("json")?.getattr(intern!(py, "loads"))?;
    let all = PyList::empty(py);
    for found in answer.hits {
        let list = PyList::empty(py);
        for hit in found {
            let payload = hit.payload.map(|payload| loads.call1((payload,))).transpose()?;
            let (dense, sparse) = (hit.dense, hit.sparse);
            list.append(class.call1((
                hit.id,
                hit.score,
                payload,
                dense.map(|standing| standing.rank),
                dense.map(|standing| standing.score),
                sparse.map(|standing| standing.rank),
                sparse.map(|standing| standing.score),
            ))?)?;
        }
        all.append(list)?;
    }
    Ok(all.into_any().unbind())
}

fn fetched(py: Python<'_>, found: Fetched) -> PyResult<Py<PyAny>> {
    let rows = found.ids.len();
    let vectors = found.vectors.map(|elements| arrays::matrix_of(py, elements, rows));
    let loads = py.import("json")?.getattr(intern!(py, "loads"))?;
    let payloads = found.payloads.map(|payloads| {
        let loaded = payloads
            .into_iter()
            .map(|payload| payload.map(|payload| loads.call1((payload,))).transpose());
        loaded.collect::<PyResult<Vec<_>>>()
    });
    let sparse = found.sparse.map(|sparse| sparse::rows(py, sparse)).transpose()?;
    let fields = (
        found.ids,
        vectors.transpose()?,
        payloads.transpose()?,
        found.missing,
        sparse,
    );
    Ok(results::class(py, "FetchResult")?.call1(fields)?.unbind())
}
