//! Sparse vectors over a model's vocabulary (SPLADE, Formal et al. 2021).

use std::ops::Range;
use std::sync::Arc;

use medkg_proto::v1;

use super::assembly::Sparse;
use super::{EmbeddingClient, Progress, Stub, incomplete};
use crate::call::{Answer, Call, CallOptions, Method};
use crate::error::ClientError;
use crate::service::{Truncation, Usage, truncation};

const GENERATE: Method = Method {
    name: "GenerateSparseEmbeddings",
    idempotent: true,
};

/// What to embed with a sparse model.
#[derive(Clone, Default)]
pub struct SparseRequest {
    /// At least one text.
    pub texts: Vec<String>,
    /// A model's name; None means the server's first sparse model.
    pub model: Option<String>,
    /// What to do with texts that are too long; None means the server's default, right.
    pub truncation: Option<Truncation>,
    /// Terms to keep of each text, those with the largest weights; None means all.
    pub max_terms: Option<u32>,
    /// Told of every finished chunk.
    pub progress: Option<Arc<Progress>>,
}

/// One sparse vector per text, as compressed sparse rows.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct SparseEmbeddings {
    /// Row i lies at `offsets[i]..offsets[i + 1]` of the two lists below; one more than texts.
    pub offsets: Vec<i64>,
    /// Token ids, ascending within a row.
    pub token_ids: Vec<i32>,
    /// The weight of each, above 0.
    pub weights: Vec<f32>,
    /// Words of the vocabulary.
    pub dimension: usize,
    /// Tokens of each text, special tokens included.
    pub token_counts: Vec<u32>,
    /// Indices of texts that were shortened, ascending.
    pub truncated: Vec<u32>,
    /// The model that answered.
    pub model: String,
    /// Its digest.
    pub model_digest: String,
    /// What it cost.
    pub usage: Usage,
    /// Names the call in logs.
    pub request_id: String,
    /// The call's trace.
    pub trace_id: String,
    /// Why it is not the answer that was asked for, where a fallback stood in; none: it is.
    pub degraded: Option<String>,
}

impl EmbeddingClient {
    /// Embeds any number of texts with a sparse model, in as many requests as it takes.
    pub async fn embed_sparse(
        &self,
        request: SparseRequest,
        options: &CallOptions,
    ) -> Result<SparseEmbeddings, ClientError> {
        let call = self.caller.begin(GENERATE, options)?;
        let mut parts = Sparse::new(request.texts.len());
        let send = |range| self.generate_sparse(&call, &request, range);
        let add = |range: &_, answer| parts.add(range, answer);
        self.split(&call, &request.texts, request.progress.as_deref(), send, add)
            .await?;
        parts.finish(&call).ok_or_else(|| incomplete(&call))
    }

    async fn generate_sparse(
        &self,
        call: &Call,
        request: &SparseRequest,
        range: Range<usize>,
    ) -> Result<Answer<v1::GenerateSparseEmbeddingsResponse>, ClientError> {
        let message = || v1::GenerateSparseEmbeddingsRequest {
            model: request.model.clone().unwrap_or_default(),
            texts: request.texts[range.clone()].to_vec(),
            truncation: truncation(request.truncation),
            max_terms: request.max_terms.unwrap_or(0),
        };
        let send = |channel, request| async move {
            let mut stub = Stub::new(channel).max_decoding_message_size(medkg_proto::MAX_MESSAGE_BYTES);
            let answer = stub.generate_sparse_embeddings(request).await;
            answer.map(tonic::Response::into_inner)
        };
        self.caller.request_anywhere(call, message, send).await
    }
}
