//! Searching: any number of queries, split and put together in order.

use std::ops::Range;

use medkg_proto::v1;

use super::{ELEMENT, Hit, Hits, Matrix, SearchRequest, SparseMatrix, Standing, Stub, VectorClient, broken, invalid};
use crate::batching;
use crate::call::{Answer, Call, CallOptions, Method};
use crate::error::ClientError;
use crate::service::Usage;

const SEARCH: Method = Method {
    name: "SearchVectors",
    idempotent: true,
};
/// The wire's limit for one request.
const MAX_QUERIES: usize = 1_024;

impl VectorClient {
    /// The exact nearest points of any number of queries.
    pub async fn search(&self, request: SearchRequest, options: &CallOptions) -> Result<Hits, ClientError> {
        let call = self.caller.begin(SEARCH, options)?;
        let rows = check_queries(&request).map_err(|error| call.sign(error))?;
        let config = self.caller.config.batch;
        let width = request
            .queries
            .as_ref()
            .map_or(0, |queries| queries.dimension * ELEMENT);
        let size = |row: usize| width + request.sparse.as_ref().map_or(0, |sparse| sparse.size(row));
        let ranges = batching::chunks((0..rows).map(size), MAX_QUERIES, config.max_bytes);
        let mut all = Hits {
            hits: vec![Vec::new(); rows],
            usage: Usage::default(),
        };
        let result = batching::run(
            ranges,
            config,
            "queries",
            self.caller.needs_probe(),
            |range| self.search_range(&call, &request, range),
            |range, answer| add_hits(&mut all, range, answer),
        );
        result.await.map_err(|error| call.sign(error))?;
        Ok(all)
    }

    async fn search_range(
        &self,
        call: &Call,
        request: &SearchRequest,
        range: Range<usize>,
    ) -> Result<Answer<v1::SearchVectorsResponse>, ClientError> {
        let message = || v1::SearchVectorsRequest {
            collection: request.collection.clone(),
            queries: request.queries.as_ref().map(|queries| queries.tensor(range.clone())),
            k: request.k,
            with_payload: request.with_payload,
            filter: request.filter.clone().map(Into::into),
            score_threshold: request.score_threshold,
            sparse_queries: request.sparse.as_ref().map(|sparse| sparse.wire(range.clone())),
            fusion: request.fusion.map(Into::into),
        };
        let send = |channel, request| async move {
            let mut stub = Stub::new(channel).max_decoding_message_size(medkg_proto::MAX_MESSAGE_BYTES);
            stub.search_vectors(request).await.map(tonic::Response::into_inner)
        };
        let answer = self.caller.request(call, message, send).await;
        answer.map_err(|error| match &request.sparse {
            Some(sparse) => sparse.shift(error, "sparse_queries", range.start),
            None => error,
        })
    }
}

/// How many queries there are, of both kinds as many.
fn check_queries(request: &SearchRequest) -> Result<usize, ClientError> {
    let (dense, sparse) = (
        request.queries.as_ref().map(Matrix::rows),
        request.sparse.as_ref().map(SparseMatrix::rows),
    );
    let wrong = match (dense, sparse) {
        (None, None) => (
            "queries",
            "is missing; give dense vectors, sparse ones, or both".to_owned(),
        ),
        (Some(0), _) => ("queries", "is empty; give at least one query".to_owned()),
        (_, Some(0)) => ("sparse_queries", "is empty; give at least one query".to_owned()),
        (Some(dense), Some(sparse)) if dense != sparse => (
            "sparse_queries",
            format!("has {sparse} rows for {dense} queries; give one each"),
        ),
        (Some(rows), _) | (None, Some(rows)) => return Ok(rows),
    };
    Err(invalid(SEARCH, wrong.0, &wrong.1))
}

fn add_hits(all: &mut Hits, range: Range<usize>, answer: Answer<v1::SearchVectorsResponse>) -> Result<(), ClientError> {
    let Answer { message, retries, .. } = answer;
    if message.hits.len() != range.len() {
        let what = format!(
            "{} queries were answered with {} lists",
            range.len(),
            message.hits.len()
        );
        return Err(broken(SEARCH, what));
    }
    for (index, found) in range.zip(message.hits) {
        let plain = |point: v1::ScoredPoint| Hit {
            id: point.id,
            score: point.score,
            dense: Standing::of(point.dense_rank, point.dense_score),
            sparse: Standing::of(point.sparse_rank, point.sparse_score),
            payload: Some(point.payload).filter(|payload| !payload.is_empty()),
        };
        all.hits[index] = found.points.into_iter().map(plain).collect();
    }
    all.usage.add(message.usage, retries);
    Ok(())
}
