//! `RerankingService`: query-document pairs to scores.
//!
//! Queries are split over requests by their pairs, which is what takes the time; the documents of one query stay together, because a fusion standardises over them.

mod first_stage;

use std::sync::Arc;

use medkg_proto::v1;
use medkg_proto::v1::reranking_service_client::RerankingServiceClient as Stub;

use super::{ModelInfo, Truncation, Usage, truncation};
use crate::batching;
use crate::call::{Answer, Call, CallOptions, Caller, Method};
use crate::error::ClientError;
use crate::policy::classify::Service;

const RERANK_BATCH: Method = Method {
    name: "RerankBatch",
    idempotent: true,
};
const LIST_MODELS: Method = Method {
    name: "ListModels",
    idempotent: true,
};
/// The wire's limits for one request.
const MAX_QUERIES: usize = 64;
const MAX_PAIRS: usize = 4_096;

/// How a first-stage score and a cross-encoder's score become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fusion {
    /// The cross-encoder's score alone.
    None,
    /// Both standardised over the query's documents and added.
    StandardizedSum,
}

/// A query with its candidates.
#[derive(Debug, Clone, PartialEq)]
pub struct Query {
    /// The query.
    pub text: String,
    /// The candidates, at least one.
    pub documents: Vec<String>,
    /// One score per document, or None.
    pub first_stage_scores: Option<Vec<f32>>,
}

/// How to score.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RerankOptions {
    /// A model's name; None means the server's default.
    pub model: Option<String>,
    /// None means the server's default, the cross-encoder's score alone.
    pub fusion: Option<Fusion>,
    /// Weight of the cross-encoder's score in the sum; None means 1.
    pub fusion_weight: Option<f32>,
    /// How many documents to return for each query; None means all.
    pub top_n: Option<u32>,
    /// What to do with pairs that are too long; None means the server's default, right.
    pub truncation: Option<Truncation>,
    /// What "relevant" means, for a model that takes an instruction; others refuse it.
    pub instruction: Option<String>,
}

/// A scored document.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RankedDocument {
    /// Index into the query's documents.
    pub index: u32,
    /// The score that ranks; larger is better.
    pub score: f32,
    /// The cross-encoder's logit; NaN where none has seen the document ([`Rankings::degraded`]).
    pub relevance: f32,
}

/// One ranking per query.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Rankings {
    /// `rankings[i]` belongs to query i; best first.
    pub rankings: Vec<Vec<RankedDocument>>,
    /// The model that answered.
    pub model: String,
    /// Its digest.
    pub model_digest: String,
    /// Pairs that were shortened.
    pub truncated_pairs: u64,
    /// What it cost.
    pub usage: Usage,
    /// Names the call in logs.
    pub request_id: String,
    /// The call's trace.
    pub trace_id: String,
    /// Why it is not the answer that was asked for, where a fallback stood in; none: it is.
    pub degraded: Option<String>,
}

/// Calls `RerankingService`.
#[derive(Debug, Clone)]
pub struct RerankingClient {
    caller: Arc<Caller>,
}

impl RerankingClient {
    pub(crate) fn caller(&self) -> &Caller {
        &self.caller
    }

    pub(crate) fn new(caller: Arc<Caller>) -> Self {
        Self { caller }
    }

    /// Scores the documents of any number of queries, in as many requests as it takes.
    pub async fn rerank_batch(
        &self,
        queries: Vec<Query>,
        how: RerankOptions,
        options: &CallOptions,
    ) -> Result<Rankings, ClientError> {
        let call = self.caller.begin(RERANK_BATCH, options)?;
        check(&queries).map_err(|error| call.sign(error))?;
        let config = self.caller.config.batch;
        let mut all = Rankings {
            rankings: vec![Vec::new(); queries.len()],
            model: String::new(),
            model_digest: String::new(),
            truncated_pairs: 0,
            usage: Usage::default(),
            request_id: call.request_id.to_string(),
            trace_id: call.trace.trace_id_hex(),
            degraded: None,
        };
        let result = batching::run(
            ranges(&queries, config.max_items, config.max_text_bytes()),
            config,
            "queries",
            self.caller.needs_probe(),
            |range| self.send(&call, &queries[range], &how),
            |range, answer| add(&mut all, &queries, range, answer),
        );
        match result.await.map_err(|error| call.sign(error)) {
            Ok(()) => Ok(all),
            Err(error) if self.caller.config.fallback.dense_order && error.is_of_the_network() => {
                let rankings = first_stage::order(&queries, how.top_n).ok_or_else(|| error.clone())?;
                Ok(first_stage::answer(rankings, &call, &error))
            }
            Err(error) => Err(error),
        }
    }

    async fn send(
        &self,
        call: &Call,
        queries: &[Query],
        how: &RerankOptions,
    ) -> Result<Answer<v1::RerankBatchResponse>, ClientError> {
        let fusion = match how.fusion {
            None => v1::Fusion::Unspecified,
            Some(Fusion::None) => v1::Fusion::None,
            Some(Fusion::StandardizedSum) => v1::Fusion::StandardizedSum,
        };
        let message = || v1::RerankBatchRequest {
            model: how.model.clone().unwrap_or_default(),
            queries: queries.iter().map(wire).collect(),
            options: Some(v1::RerankOptions {
                fusion: fusion.into(),
                fusion_weight: how.fusion_weight,
                top_n: how.top_n.unwrap_or(0),
                truncation: truncation(how.truncation),
                instruction: how.instruction.clone(),
            }),
        };
        let send = |channel, request| async move {
            let mut stub = Stub::new(channel).max_decoding_message_size(medkg_proto::MAX_MESSAGE_BYTES);
            stub.rerank_batch(request).await.map(tonic::Response::into_inner)
        };
        self.caller.request_anywhere(call, message, send).await
    }

    /// The reranking models of the server, loaded or not, sorted by name.
    pub async fn models(&self, options: &CallOptions) -> Result<Vec<ModelInfo>, ClientError> {
        let call = self.caller.begin(LIST_MODELS, options)?;
        let send = |channel, request| async move {
            Stub::new(channel)
                .list_models(request)
                .await
                .map(tonic::Response::into_inner)
        };
        let answer = self
            .caller
            .request(&call, || v1::RerankingServiceListModelsRequest {}, send)
            .await?;
        Ok(answer.message.models.into_iter().map(Into::into).collect())
    }
}

fn invalid(field: &str, description: &str) -> ClientError {
    ClientError::invalid(Service::Reranking, RERANK_BATCH.name, field, description)
}

/// What cannot be put on the wire; everything else is the server's to judge.
fn check(queries: &[Query]) -> Result<(), ClientError> {
    if queries.is_empty() {
        return Err(invalid("queries", "is empty; give at least one query"));
    }
    for (index, query) in queries.iter().enumerate() {
        let Some(scores) = &query.first_stage_scores else {
            continue;
        };
        if scores.len() != query.documents.len() {
            let what = format!(
                "has {} scores for {} documents; give one each",
                scores.len(),
                query.documents.len()
            );
            return Err(invalid(&format!("queries[{index}].first_stage_scores"), &what));
        }
    }
    Ok(())
}

fn ranges(queries: &[Query], max_items: usize, max_bytes: usize) -> Vec<std::ops::Range<usize>> {
    // Pairs are limited as well as queries and bytes: count a query by whatever it uses most of.
    let max_pairs = max_items.min(MAX_PAIRS);
    let bytes_per_pair = (max_bytes / max_pairs).max(1);
    let sizes = queries.iter().map(|query| {
        // The model reads the query anew with each document.
        let pair = |document: &String| query.text.len() + document.len();
        let bytes: usize = query.documents.iter().map(pair).sum();
        bytes.max(query.documents.len() * bytes_per_pair)
    });
    batching::chunks(sizes, MAX_QUERIES, bytes_per_pair * max_pairs)
}

fn wire(query: &Query) -> v1::RerankQuery {
    let score = |index: usize| {
        query
            .first_stage_scores
            .as_ref()
            .and_then(|scores| scores.get(index).copied())
    };
    let documents = query.documents.iter().enumerate();
    let documents = documents.map(|(i, text)| v1::RerankDocument {
        text: text.clone(),
        first_stage_score: score(i),
    });
    v1::RerankQuery {
        query: query.text.clone(),
        documents: documents.collect(),
    }
}

fn add(
    all: &mut Rankings,
    queries: &[Query],
    range: std::ops::Range<usize>,
    answer: Answer<v1::RerankBatchResponse>,
) -> Result<(), ClientError> {
    let broken = |message| {
        Err(ClientError::broken_answer(
            Service::Reranking,
            RERANK_BATCH.name,
            message,
        ))
    };
    let Answer {
        message,
        retries,
        degraded,
    } = answer;
    if message.rankings.len() != range.len() {
        return broken(format!(
            "{} queries were answered with {} rankings",
            range.len(),
            message.rankings.len()
        ));
    }
    if all.usage.calls > 0 && all.model_digest != message.model_digest {
        return broken(format!(
            "parts of one call were answered by different models ({} {} and {} {}); give every server the same model",
            all.model, all.model_digest, message.model, message.model_digest
        ));
    }
    for (index, ranking) in range.zip(message.rankings) {
        let documents = queries[index].documents.len();
        if let Some(wrong) = ranking
            .documents
            .iter()
            .find(|document| document.index as usize >= documents)
        {
            return broken(format!(
                "document {} was ranked, but the query has {documents}",
                wrong.index
            ));
        }
        let plain = |d: v1::RankedDocument| RankedDocument {
            index: d.index,
            score: d.score,
            relevance: d.relevance,
        };
        all.rankings[index] = ranking.documents.into_iter().map(plain).collect();
    }
    (all.model, all.model_digest) = (message.model, message.model_digest);
    all.truncated_pairs += u64::from(message.truncated_pairs);
    all.usage.add(message.usage, retries);
    all.degraded = all.degraded.take().or(degraded);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(documents: usize, bytes: usize) -> Query {
        Query {
            text: "q".into(),
            documents: vec!["d".repeat(bytes); documents],
            first_stage_scores: None,
        }
    }

    #[test]
    fn no_request_breaks_a_limit_of_the_wire() {
        let queries: Vec<_> = (0..500).map(|i| query(1 + (i * 37) % 1024, i % 50)).collect();
        let ranges = ranges(&queries, usize::MAX, 8 << 20);
        assert_eq!(ranges.iter().map(ExactSizeIterator::len).sum::<usize>(), 500);
        for range in ranges {
            let pairs: usize = queries[range.clone()].iter().map(|query| query.documents.len()).sum();
            assert!(
                range.len() <= MAX_QUERIES && pairs <= MAX_PAIRS,
                "{} queries, {pairs} pairs",
                range.len()
            );
        }
    }

    #[test]
    fn a_request_holds_as_many_pairs_as_it_may_hold_texts() {
        let queries: Vec<_> = [30, 60, 38, 1, 500, 1, 127].map(|documents| query(documents, 9)).into();
        // The first request is full; a query with more documents than that travels alone.
        assert_eq!(ranges(&queries, 128, 8 << 20), [0..3, 3..4, 4..5, 5..7]);
    }

    #[test]
    fn scores_that_do_not_match_are_named() {
        let wrong = Query {
            first_stage_scores: Some(vec![1.0]),
            ..query(2, 1)
        };
        let error = check(&[query(1, 1), wrong]).unwrap_err();
        assert_eq!(error.field_violations[0].field, "queries[1].first_stage_scores");
    }
}
