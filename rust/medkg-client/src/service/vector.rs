//! `VectorService`: named collections of vectors, exact search.
//!
//! Vectors come in as the bytes of a row-major float32 array and are cut into requests without being copied. Writes are
//! split in order, one request after the other, so that a failure says how far they got; each request is written whole
//! or not at all. Queries are split too, and run side by side.

mod export;
mod filter;
mod read;
mod search;
mod sparse;
mod statistics;
mod values;

use std::collections::HashSet;
use std::sync::Arc;

use medkg_proto::v1;
use medkg_proto::v1::vector_service_client::VectorServiceClient as Stub;

use crate::batching;
use crate::call::{CallOptions, Caller, Method};
use crate::error::ClientError;
use crate::policy::classify::Service;

const CREATE: Method = Method {
    name: "CreateCollection",
    idempotent: false,
};
const CREATE_OR_ACCEPT: Method = Method {
    name: "CreateCollection",
    idempotent: true,
};
const LIST: Method = Method {
    name: "ListCollections",
    idempotent: true,
};
// A repeated drop finds the collection gone and would report a failure that was none.
const DROP: Method = Method {
    name: "DropCollection",
    idempotent: false,
};
const UPSERT: Method = Method {
    name: "UpsertVectors",
    idempotent: true,
};
const DELETE: Method = Method {
    name: "DeleteVectors",
    idempotent: true,
};
/// The wire's limits for one request.
const MAX_IDS: usize = 65_536;
const ELEMENT: usize = size_of::<f32>();

pub use export::{Export, ExportedPart};
pub use filter::{Bounds, Filter, FilterValue, MAX_FILTER_DEPTH};
pub use sparse::{RankFusion, SparseMatrix, SparseRows, Standing};
pub use statistics::{CollectionStatistics, CollectionUsage, Latency, Recall, RecallCheck, TenantStatistics};
pub use values::{
    CollectionInfo, Dimensions, Fetch, Fetched, Hit, Hits, Matrix, Metric, Points, SearchRequest, Storage, Upserted,
};

/// Calls `VectorService`.
#[derive(Debug, Clone)]
pub struct VectorClient {
    caller: Arc<Caller>,
}

impl VectorClient {
    pub(crate) fn caller(&self) -> &Caller {
        &self.caller
    }

    pub(crate) fn new(caller: Arc<Caller>) -> Self {
        Self { caller }
    }

    /// Makes a collection. Without `exist_ok` it is repeated only if the request certainly was not sent.
    pub async fn create_collection(
        &self,
        name: String,
        dimensions: Dimensions,
        (metric, storage): (Metric, Storage),
        exist_ok: bool,
        options: &CallOptions,
    ) -> Result<CollectionInfo, ClientError> {
        let method = if exist_ok { CREATE_OR_ACCEPT } else { CREATE };
        let call = self.caller.begin(method, options)?;
        let metric = match metric {
            Metric::Cosine => v1::Metric::Cosine,
            Metric::Dot => v1::Metric::Dot,
            Metric::L2 => v1::Metric::L2,
        };
        let storage = match storage {
            Storage::F32 => v1::DataType::F32,
            Storage::F16 => v1::DataType::F16,
            Storage::Bf16 => v1::DataType::Bf16,
        };
        let message = || v1::CreateCollectionRequest {
            collection: Some(v1::Collection {
                name: name.clone(),
                dimension: dimensions.dense,
                metric: metric.into(),
                storage: storage.into(),
                sparse_dimension: dimensions.sparse,
            }),
            exist_ok,
        };
        let send = |channel, request| async move {
            Stub::new(channel)
                .create_collection(request)
                .await
                .map(tonic::Response::into_inner)
        };
        let answer = self.caller.request(&call, message, send).await?.message;
        let info = collection(answer.collection, answer.created);
        info.ok_or_else(|| call.sign(broken(CREATE, "the answer has no collection".to_owned())))
    }

    /// The tenant's collections, sorted by name.
    pub async fn collections(&self, options: &CallOptions) -> Result<Vec<CollectionInfo>, ClientError> {
        let call = self.caller.begin(LIST, options)?;
        let send = |channel, request| async move {
            let mut stub = Stub::new(channel).max_decoding_message_size(medkg_proto::MAX_MESSAGE_BYTES);
            stub.list_collections(request).await.map(tonic::Response::into_inner)
        };
        let answer = self
            .caller
            .request(&call, || v1::ListCollectionsRequest {}, send)
            .await?
            .message;
        Ok(answer
            .collections
            .into_iter()
            .filter_map(|found| collection(Some(found), false))
            .collect())
    }

    /// Removes a collection; returns the points that were in it. Repeated only if it certainly was not sent.
    pub async fn drop_collection(&self, name: String, options: &CallOptions) -> Result<u64, ClientError> {
        let call = self.caller.begin(DROP, options)?;
        let send = |channel, request| async move {
            Stub::new(channel)
                .drop_collection(request)
                .await
                .map(tonic::Response::into_inner)
        };
        let message = || v1::DropCollectionRequest {
            collection: name.clone(),
        };
        Ok(self.caller.request(&call, message, send).await?.message.removed)
    }

    /// Writes any number of points, in order. After a failure, the points of the requests before it are written.
    pub async fn upsert(
        &self,
        collection: String,
        points: Points,
        options: &CallOptions,
    ) -> Result<Upserted, ClientError> {
        let call = self.caller.begin(UPSERT, options)?;
        check_points(&points).map_err(|error| call.sign(error))?;
        let config = self.caller.config.batch;
        let width = points.vectors.dimension * ELEMENT;
        let size = |i: usize| {
            let payload = points.payloads.as_ref().map_or(0, |payloads| payloads[i].len());
            let sparse = points.sparse.as_ref().map_or(0, |sparse| sparse.size(i));
            width + points.ids[i].len() + payload + sparse
        };
        let ranges = batching::chunks((0..points.ids.len()).map(size), MAX_IDS, config.max_bytes);
        let mut total = Upserted::default();
        for range in ranges {
            let message = || v1::UpsertVectorsRequest {
                collection: collection.clone(),
                ids: points.ids[range.clone()].to_vec(),
                vectors: Some(points.vectors.tensor(range.clone())),
                payloads: points
                    .payloads
                    .as_ref()
                    .map(|all| all[range.clone()].to_vec())
                    .unwrap_or_default(),
                sparse: points.sparse.as_ref().map(|all| all.wire(range.clone())),
            };
            let send = |channel, request| async move {
                Stub::new(channel)
                    .upsert_vectors(request)
                    .await
                    .map(tonic::Response::into_inner)
            };
            let answer = self.caller.request(&call, message, send).await;
            let answer = answer.map_err(|error| {
                let error = match &points.sparse {
                    Some(sparse) => sparse.shift(error, "sparse", range.start),
                    None => error,
                };
                partly(error, &["ids", "vectors", "payloads"], range.start, "written")
            })?;
            total.inserted += answer.message.inserted;
            total.replaced += answer.message.replaced;
        }
        Ok(total)
    }

    /// Removes points; returns how many of the ids were there.
    pub async fn delete(
        &self,
        collection: String,
        ids: Vec<String>,
        options: &CallOptions,
    ) -> Result<u64, ClientError> {
        let call = self.caller.begin(DELETE, options)?;
        if ids.is_empty() {
            return Err(call.sign(invalid(DELETE, "ids", "is empty; give at least one id")));
        }
        let ranges = batching::chunks(ids.iter().map(String::len), MAX_IDS, self.caller.config.batch.max_bytes);
        let mut deleted = 0;
        for range in ranges {
            let message = || v1::DeleteVectorsRequest {
                collection: collection.clone(),
                ids: ids[range.clone()].to_vec(),
            };
            let send = |channel, request| async move {
                Stub::new(channel)
                    .delete_vectors(request)
                    .await
                    .map(tonic::Response::into_inner)
            };
            let answer = self.caller.request(&call, message, send).await;
            deleted += answer
                .map_err(|error| partly(error, &["ids"], range.start, "removed"))?
                .message
                .deleted;
        }
        Ok(deleted)
    }
}

fn invalid(method: Method, field: &str, description: &str) -> ClientError {
    ClientError::invalid(Service::Vector, method.name, field, description)
}

fn broken(method: Method, message: String) -> ClientError {
    ClientError::broken_answer(Service::Vector, method.name, message)
}

fn collection(found: Option<v1::Collection>, created: bool) -> Option<CollectionInfo> {
    let found = found?;
    let metric = match found.metric() {
        v1::Metric::Unspecified | v1::Metric::Cosine => Metric::Cosine,
        v1::Metric::Dot => Metric::Dot,
        v1::Metric::L2 => Metric::L2,
    };
    let storage = match found.storage() {
        v1::DataType::Unspecified | v1::DataType::F32 => Storage::F32,
        v1::DataType::F16 => Storage::F16,
        v1::DataType::Bf16 => Storage::Bf16,
        // Of no server that this client knows.
        v1::DataType::Int8 | v1::DataType::Binary => return None,
    };
    Some(CollectionInfo {
        storage,
        name: found.name,
        dimension: found.dimension,
        sparse_dimension: found.sparse_dimension,
        metric,
        created,
    })
}

/// What has to hold over all requests of one call, and so cannot be left to the server.
fn check_points(points: &Points) -> Result<(), ClientError> {
    let count = points.ids.len();
    if count == 0 {
        return Err(invalid(UPSERT, "ids", "is empty; give at least one id"));
    }
    if points.vectors.rows != count {
        let what = format!("has {} rows for {count} ids; give one each", points.vectors.rows);
        return Err(invalid(UPSERT, "vectors", &what));
    }
    if let Some(payloads) = points.payloads.as_ref().filter(|payloads| payloads.len() != count) {
        let what = format!(
            "has {} payloads for {count} ids; give one each, or none at all",
            payloads.len()
        );
        return Err(invalid(UPSERT, "payloads", &what));
    }
    if let Some(sparse) = points.sparse.as_ref().filter(|sparse| sparse.rows() != count) {
        let what = format!(
            "has {} rows for {count} ids; give one each, or none at all",
            sparse.rows()
        );
        return Err(invalid(UPSERT, "sparse", &what));
    }
    let mut seen = HashSet::with_capacity(count);
    match points.ids.iter().position(|id| !seen.insert(id)) {
        Some(index) => Err(invalid(
            UPSERT,
            &format!("ids[{index}]"),
            "is there twice; give every id once",
        )),
        None => Ok(()),
    }
}

/// Says by the caller's indices what is wrong, and how much of a split write is done.
fn partly(error: ClientError, lists: &[&str], start: usize, done: &str) -> ClientError {
    if start == 0 {
        return error;
    }
    let error = lists
        .iter()
        .fold(error, |error, list| batching::shift(error, list, start));
    error.with(|failure| {
        failure.message = format!("{}; the first {start} points are {done}", failure.message);
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn points(ids: &[&str]) -> Points {
        let data = Bytes::from(vec![0_u8; ids.len() * 2 * ELEMENT]);
        let vectors = Matrix::try_new(data, ids.len(), 2).unwrap();
        Points {
            ids: ids.iter().map(ToString::to_string).collect(),
            vectors,
            payloads: None,
            sparse: None,
        }
    }

    #[test]
    fn bytes_that_do_not_match_the_shape_are_no_matrix() {
        assert!(Matrix::try_new(Bytes::from_static(&[0; 8]), 1, 2).is_some());
        assert!(Matrix::try_new(Bytes::from_static(&[0; 9]), 1, 2).is_none());
        assert!(Matrix::try_new(Bytes::new(), usize::MAX, 2).is_none());
    }

    #[test]
    fn a_range_of_rows_is_cut_out_without_a_copy() {
        let data = Bytes::from((0..24_u8).collect::<Vec<_>>());
        let matrix = Matrix::try_new(data.clone(), 3, 2).unwrap();
        let tensor = matrix.tensor(1..3);
        assert_eq!(tensor.data, data.slice(8..24));
        assert_eq!(tensor.shape, [2, 2]);
        assert!(std::ptr::eq(tensor.data.as_ptr(), &raw const data[8]));
    }

    #[test]
    fn a_duplicate_is_found_also_where_it_would_fall_into_another_request() {
        let error = check_points(&points(&["a", "b", "a"])).unwrap_err();
        assert_eq!(error.field_violations[0].field, "ids[2]");
    }

    #[test]
    fn lists_of_different_lengths_are_named() {
        let mut wrong = points(&["a", "b"]);
        wrong.payloads = Some(vec![String::new()]);
        assert_eq!(check_points(&wrong).unwrap_err().field_violations[0].field, "payloads");
        wrong.ids.pop();
        assert_eq!(check_points(&wrong).unwrap_err().field_violations[0].field, "vectors");
        let mut wrong = points(&["a", "b"]);
        wrong.sparse = Some(SparseMatrix::try_new(vec![0, 0], Vec::new(), Bytes::new()).unwrap());
        assert_eq!(check_points(&wrong).unwrap_err().field_violations[0].field, "sparse");
    }

    #[test]
    fn a_failure_in_a_later_request_says_what_is_done() {
        let error = partly(
            invalid(UPSERT, "vectors[1]", "holds NaN"),
            &["ids", "vectors"],
            100,
            "written",
        );
        assert_eq!(error.field_violations[0].field, "vectors[101]");
        assert_eq!(
            error.message,
            "vectors[101]: holds NaN; the first 100 points are written"
        );
    }
}
