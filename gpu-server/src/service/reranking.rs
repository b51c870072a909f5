//! `RerankingService`.

use std::ops::Range;
use std::sync::Arc;

use medkg_proto::v1::reranking_service_server::RerankingService;
use medkg_proto::v1::{self, Fusion};
use tonic::{Request, Response, Status};

use super::validate::{self, TooLong};
use super::{call, describe_all, usage};
use crate::engine::Engine;
use crate::engine::job::Caller;
use crate::engine::models::{Purpose, ReadyModel};
use crate::error::Error;
use crate::model::fusion;
use crate::model::tokenizer::{Cut, Encoded};

const MAX_QUERIES: usize = 64;
const MAX_DOCUMENTS: usize = 1_024;
const MAX_PAIRS: usize = 4_096;

/// Pairs to scores.
#[derive(Debug, Clone)]
pub struct Reranking {
    engine: Arc<Engine>,
}

impl Reranking {
    /// Served by `engine`.
    pub const fn new(engine: Arc<Engine>) -> Self {
        Self { engine }
    }

    async fn rerank(&self, request: v1::RerankBatchRequest, caller: &Caller) -> Result<v1::RerankBatchResponse, Error> {
        self.engine.check()?;
        let options = request.options.unwrap_or_default();
        let refuse = refuses_long(&options)?;
        let weight = weight(&options)?;
        if let Some(instruction) = &options.instruction {
            validate::instruction("options.instruction", instruction)?;
        }
        validate_queries(&request.queries, weight.is_some())?;
        let model = self
            .engine
            .model(Purpose::Reranking, &request.model, caller.deadline)
            .await?;
        let documents = |(q, query): (usize, &v1::RerankQuery)| (0..query.documents.len()).map(move |d| (q, d));
        let pairs: Arc<[_]> = request.queries.iter().enumerate().flat_map(documents).collect();
        let queries = Arc::new(request.queries);
        let bytes: Vec<usize> = pairs.iter().map(|&(q, d)| queries[q].documents[d].text.len()).collect();
        let work = {
            let (model, queries, pairs) = (Arc::clone(&model), Arc::clone(&queries), Arc::clone(&pairs));
            let instruction = options.instruction;
            move |range: Range<usize>| tokenise(&model, &queries, &pairs[range], instruction.as_deref(), refuse)
        };
        let inputs = self.engine.tokenise(caller, bytes, work).await?;
        let tokens = inputs.iter().map(|input| input.ids.len()).sum();
        let truncated = inputs.iter().filter(|input| input.truncated).count();
        let name = |index: usize| {
            let (q, d) = pairs[index];
            format!("queries[{q}].documents[{d}]")
        };
        let computed = self.engine.compute(&model, inputs, caller).await;
        let mut computed = computed.map_err(|error| error.named(name))?;
        let relevance = computed.take_dense()?;
        let mut scores = relevance.as_slice();
        let rankings = queries.iter().map(|query| {
            let (relevance, rest) = scores.split_at(query.documents.len());
            scores = rest;
            v1::RankedDocuments {
                documents: rank(query, relevance, weight, options.top_n as usize),
            }
        });
        Ok(v1::RerankBatchResponse {
            rankings: rankings.collect(),
            model: model.name.clone(),
            model_digest: model.digest.clone(),
            truncated_pairs: u32::try_from(truncated).unwrap_or(u32::MAX),
            usage: Some(usage(&self.engine, tokens, &computed)),
        })
    }
}

/// Whether a pair that is too long is refused; else the longer of the two is shortened.
fn refuses_long(options: &v1::RerankOptions) -> Result<bool, Error> {
    const FIELD: &str = "options.truncation";
    match validate::too_long(FIELD, options.truncation)? {
        TooLong::Shorten(Cut::Right) => Ok(false),
        TooLong::Refuse => Ok(true),
        TooLong::Shorten(Cut::Left) => Err(Error::invalid(
            FIELD,
            "TRUNCATION_LEFT is for embeddings; a pair takes TRUNCATION_RIGHT or TRUNCATION_REFUSE",
        )),
    }
}

/// The weight of the cross-encoder in a sum with the first stage; none where the first stage does not count.
fn weight(options: &v1::RerankOptions) -> Result<Option<f32>, Error> {
    match Fusion::try_from(options.fusion) {
        Ok(Fusion::Unspecified | Fusion::None) => Ok(None),
        Ok(Fusion::StandardizedSum) => match options.fusion_weight.unwrap_or(1.0) {
            weight if weight.is_finite() && weight > 0.0 => Ok(Some(weight)),
            weight => Err(Error::invalid(
                "options.fusion_weight",
                format!("is {weight}; it must be finite and above 0"),
            )),
        },
        Err(_) => Err(Error::invalid(
            "options.fusion",
            format!("{} is not a Fusion that this server knows", options.fusion),
        )),
    }
}

fn validate_queries(queries: &[v1::RerankQuery], scores_needed: bool) -> Result<(), Error> {
    validate::count("queries", queries.len(), MAX_QUERIES)?;
    let mut pairs = 0;
    for (q, query) in queries.iter().enumerate() {
        validate::text(|| format!("queries[{q}].query"), &query.query)?;
        validate::count(&format!("queries[{q}].documents"), query.documents.len(), MAX_DOCUMENTS)?;
        pairs += query.documents.len();
        for (d, document) in query.documents.iter().enumerate() {
            let field = |name: &str| format!("queries[{q}].documents[{d}].{name}");
            validate::text(|| field("text"), &document.text)?;
            match document.first_stage_score {
                Some(score) if !score.is_finite() => {
                    return Err(Error::invalid(
                        field("first_stage_score"),
                        format!("is {score}; it must be finite"),
                    ));
                }
                None if scores_needed => {
                    return Err(Error::invalid(
                        field("first_stage_score"),
                        "is missing; this fusion needs one for every document",
                    ));
                }
                _ => {}
            }
        }
    }
    validate::count("queries", pairs, MAX_PAIRS)
}

/// The pairs of one range, `pairs` being indices of query and document.
fn tokenise(
    model: &ReadyModel,
    queries: &[v1::RerankQuery],
    pairs: &[(usize, usize)],
    instruction: Option<&str>,
    refuse: bool,
) -> Result<Vec<Encoded>, Error> {
    let mut inputs = Vec::with_capacity(pairs.len());
    for part in pairs.chunk_by(|a, b| a.0 == b.0) {
        let query = &queries[part[0].0];
        let first = model.encoder.instructed(instruction, &query.query)?;
        for &(q, d) in part {
            let encoded = model.encoder.pair(&first, &query.documents[d].text)?;
            if refuse && encoded.truncated {
                let limit = model.encoder.max_tokens;
                return Err(Error::invalid(
                    format!("queries[{q}].documents[{d}].text"),
                    format!("has, with its query, more than {limit} tokens; split it, or allow truncation"),
                ));
            }
            inputs.push(encoded);
        }
    }
    Ok(inputs)
}

fn rank(query: &v1::RerankQuery, relevance: &[f32], weight: Option<f32>, top_n: usize) -> Vec<v1::RankedDocument> {
    let scores = match weight {
        None => relevance.to_vec(),
        Some(weight) => {
            let first: Vec<f32> = query
                .documents
                .iter()
                .map(|d| d.first_stage_score.unwrap_or(0.0))
                .collect();
            fusion::standardized_sum(&first, relevance, weight)
        }
    };
    let ranked = (0_u32..).zip(scores.iter().zip(relevance));
    let mut documents: Vec<v1::RankedDocument> = ranked
        .map(|(index, (&score, &relevance))| v1::RankedDocument {
            index,
            score,
            relevance,
        })
        .collect();
    // Stable: equal scores keep the request's order.
    documents.sort_by(|a, b| b.score.total_cmp(&a.score));
    if top_n > 0 {
        documents.truncate(top_n);
    }
    documents
}

#[tonic::async_trait]
impl RerankingService for Reranking {
    async fn rerank_batch(
        &self,
        request: Request<v1::RerankBatchRequest>,
    ) -> Result<Response<v1::RerankBatchResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let serve = |call: call::Call| async move { self.rerank(request, &call.caller()).await };
        call::unary(&metadata, "RerankingService/RerankBatch", serve).await
    }

    async fn list_models(
        &self,
        request: Request<v1::RerankingServiceListModelsRequest>,
    ) -> Result<Response<v1::RerankingServiceListModelsResponse>, Status> {
        call::unary(request.metadata(), "RerankingService/ListModels", |_| async {
            self.engine.check()?;
            Ok(v1::RerankingServiceListModelsResponse {
                models: describe_all(&self.engine, Purpose::Reranking),
            })
        })
        .await
    }
}
