//! `EmbeddingService`.

mod encoding;
mod options;
mod sparse;

use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use futures_util::{Stream, StreamExt as _};
use medkg_proto::v1;
use medkg_proto::v1::embedding_service_server::EmbeddingService;
use tokio::sync::{RwLock, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::Instrument as _;

use super::validate::{self, TooLong};
use super::{call, describe_all, status, usage};
use crate::engine::Engine;
use crate::engine::job::{Caller, Computed};
use crate::engine::models::{Purpose, ReadyModel};
use crate::engine::registry::Resident as _;
use crate::error::Error;
use crate::model::tokenizer::{Cut, Encoded};
use options::Options;

const MAX_TEXTS: usize = 4_096;
/// Requests of one stream that are in work at once.
const STREAM_WINDOW: usize = 4;
const TOKENIZER_PIECE: usize = 256 * 1024;

/// Texts to vectors.
#[derive(Debug, Clone)]
pub struct Embedding {
    engine: Arc<Engine>,
    stopping: watch::Receiver<bool>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A batch of a stream in work; nobody computes it once nobody waits for it.
struct Batch(tokio::task::JoinHandle<Result<v1::StreamEmbeddingsResponse, Status>>);

impl Drop for Batch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Embedding {
    /// Served by `engine`, until `stopping` says so.
    pub const fn new(engine: Arc<Engine>, stopping: watch::Receiver<bool>) -> Self {
        Self { engine, stopping }
    }

    /// A stream does not compete with itself: a batch for which the queue has no room is computed once none of the others,
    /// which share `gate`, is in work.
    async fn embed_of_stream(
        &self,
        gate: &RwLock<()>,
        batch: v1::GenerateEmbeddingsRequest,
        caller: &Caller,
    ) -> Result<v1::GenerateEmbeddingsResponse, Error> {
        {
            let _beside_others = gate.read().await;
            match self.embed(batch.clone(), caller).await {
                Err(Error::QueueFull { .. }) => {}
                outcome => return outcome,
            }
        }
        // Fair: those that come later wait behind this one.
        let _alone = gate.write().await;
        self.embed(batch, caller).await
    }

    async fn embed(
        &self,
        request: v1::GenerateEmbeddingsRequest,
        caller: &Caller,
    ) -> Result<v1::GenerateEmbeddingsResponse, Error> {
        self.engine.check()?;
        let options = Options::read(request.options.unwrap_or_default())?;
        validate_texts(&request.texts)?;
        let model = self
            .engine
            .model(Purpose::Embedding, &request.model, caller.deadline)
            .await?;
        if model.makes_sparse() {
            let problem = format!(
                "{:?} makes sparse vectors; ask GenerateSparseEmbeddings for them",
                model.name
            );
            return Err(Error::invalid("model", problem));
        }
        let dimension = options.dimension(&model)?;
        encoding::fits(request.texts.len(), dimension, options.dtype)?;
        let texts = Texts {
            all: request.texts,
            prompt: options.prompt(&model)?,
            too_long: options.too_long,
        };
        let mut answer = embed(&self.engine, &model, texts, caller).await?;
        let rows = answer.computed.take_dense()?;
        let rows = encoding::shortened(rows, answer.computed.width, dimension, model.normalized);
        Ok(v1::GenerateEmbeddingsResponse {
            embeddings: Some(encoding::tensor(&rows, dimension, options.dtype)?),
            usage: Some(usage(&self.engine, answer.tokens, &answer.computed)),
            token_counts: answer.token_counts,
            truncated: answer.truncated,
            model: model.name.clone(),
            model_digest: model.digest.clone(),
        })
    }
}

/// Texts to embed, and how they are tokenised.
#[derive(Debug)]
struct Texts {
    all: Vec<String>,
    /// Put before each of them.
    prompt: String,
    too_long: TooLong,
}

/// What a model made of texts.
#[derive(Debug)]
struct Embedded {
    computed: Computed,
    /// Of each text.
    token_counts: Vec<u32>,
    /// Of all texts.
    tokens: usize,
    /// Indices of the texts that were shortened.
    truncated: Vec<u32>,
}

fn validate_texts(texts: &[String]) -> Result<(), Error> {
    validate::count("texts", texts.len(), MAX_TEXTS)?;
    let mut texts = texts.iter().enumerate();
    texts.try_for_each(|(index, text)| validate::text(|| format!("texts[{index}]"), text))
}

async fn embed(engine: &Engine, model: &Arc<ReadyModel>, texts: Texts, caller: &Caller) -> Result<Embedded, Error> {
    let tokenising = Arc::clone(model);
    let bytes: Vec<usize> = texts.all.iter().map(String::len).collect();
    let work = move |range| tokenise(&tokenising, &texts, range);
    let inputs = engine.tokenise(caller, bytes, work).await?;
    let length = |input: &Encoded| u32::try_from(input.ids.len()).unwrap_or(u32::MAX);
    let token_counts = inputs.iter().map(length).collect();
    let truncated = (0_u32..).zip(&inputs).filter(|(_, input)| input.truncated);
    let truncated = truncated.map(|(index, _)| index).collect();
    let tokens = inputs.iter().map(|input| input.ids.len()).sum();
    let computed = engine
        .compute(model, inputs, caller)
        .await
        .map_err(|error| error.named(|index| format!("texts[{index}]")))?;
    Ok(Embedded {
        computed,
        token_counts,
        tokens,
        truncated,
    })
}

fn tokenise(model: &ReadyModel, texts: &Texts, range: Range<usize>) -> Result<Vec<Encoded>, Error> {
    let side = match texts.too_long {
        TooLong::Shorten(side) => side,
        TooLong::Refuse => Cut::Right,
    };
    let encode = |index: usize| {
        let field = format!("texts[{index}]");
        let encoded = model.encoder.prompted(&texts.prompt, &texts.all[index], side, &field)?;
        if texts.too_long == TooLong::Refuse && encoded.truncated {
            let limit = model.encoder.max_tokens;
            let with = if texts.prompt.is_empty() {
                ""
            } else {
                ", with its prompt,"
            };
            return Err(Error::invalid(
                field,
                format!("has{with} more than {limit} tokens; split it, or allow truncation"),
            ));
        }
        Ok(encoded)
    };
    range.map(encode).collect()
}

#[tonic::async_trait]
impl EmbeddingService for Embedding {
    async fn generate_embeddings(
        &self,
        request: Request<v1::GenerateEmbeddingsRequest>,
    ) -> Result<Response<v1::GenerateEmbeddingsResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let serve = |call: call::Call| async move { self.embed(request, &call.caller()).await };
        call::unary(&metadata, "EmbeddingService/GenerateEmbeddings", serve).await
    }

    async fn generate_sparse_embeddings(
        &self,
        request: Request<v1::GenerateSparseEmbeddingsRequest>,
    ) -> Result<Response<v1::GenerateSparseEmbeddingsResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let serve = |call: call::Call| async move { sparse::generate(&self.engine, request, &call.caller()).await };
        call::unary(&metadata, "EmbeddingService/GenerateSparseEmbeddings", serve).await
    }

    type StreamEmbeddingsStream = Answers<v1::StreamEmbeddingsResponse>;

    async fn stream_embeddings(
        &self,
        request: Request<Streaming<v1::StreamEmbeddingsRequest>>,
    ) -> Result<Response<Self::StreamEmbeddingsStream>, Status> {
        let call = call::Call::read(request.metadata(), "EmbeddingService/StreamEmbeddings")?;
        let (span, caller) = (call.span.clone(), call.caller());
        let mut batches = request.into_inner();
        let service = self.clone();
        let started = Instant::now();
        // The channel and the answer that is waited for are the window: the next request is read only when there is
        // room for its answer. Answers are tasks, so that several batches are in work while the order stays; dropping
        // the stream aborts them.
        let (answers, receiver) = mpsc::channel::<Batch>(STREAM_WINDOW - 1);
        let mut stopping = self.stopping.clone();
        let feed = async move {
            let gate = Arc::new(RwLock::new(()));
            while let Ok(room) = answers.reserve().await {
                let message = tokio::select! {
                    biased;
                    // A drain would last as long as the client has texts. It is told to go on elsewhere, once what is in
                    // work is answered.
                    _ = stopping.wait_for(|stop| *stop) => {
                        call::finish(started, Some(&Error::ShuttingDown));
                        Some(Err(status::from_error(&Error::ShuttingDown)))
                    }
                    message = batches.next() => message,
                };
                let Some(message) = message else {
                    return call::finish(started, None);
                };
                let (service, caller) = (service.clone(), caller.clone());
                let last = message.is_err();
                let gate = Arc::clone(&gate);
                let answer = async move {
                    let batch = message?.batch.unwrap_or_default();
                    match service.embed_of_stream(&gate, batch, &caller).await {
                        Ok(batch) => Ok(v1::StreamEmbeddingsResponse { batch: Some(batch) }),
                        Err(error) => {
                            call::finish(started, Some(&error));
                            Err(status::from_error(&error))
                        }
                    }
                };
                room.send(Batch(tokio::spawn(answer.in_current_span())));
                if last {
                    return;
                }
            }
        };
        tokio::spawn(feed.instrument(span));
        let mut failed = false;
        let stream = ReceiverStream::new(receiver)
            .then(|mut batch| async move {
                (&mut batch.0)
                    .await
                    .unwrap_or_else(|_| Err(call::broken_stream("a batch of the stream was lost")))
            })
            // The first error ends the stream.
            .take_while(move |answer| {
                let go_on = !failed;
                failed |= answer.is_err();
                std::future::ready(go_on)
            });
        Ok(Response::new(Box::pin(stream)))
    }

    async fn list_models(
        &self,
        request: Request<v1::EmbeddingServiceListModelsRequest>,
    ) -> Result<Response<v1::EmbeddingServiceListModelsResponse>, Status> {
        call::unary(request.metadata(), "EmbeddingService/ListModels", |_| async {
            self.engine.check()?;
            Ok(v1::EmbeddingServiceListModelsResponse {
                models: describe_all(&self.engine, Purpose::Embedding),
            })
        })
        .await
    }

    type GetTokenizerStream = Answers<v1::GetTokenizerResponse>;

    async fn get_tokenizer(
        &self,
        request: Request<v1::GetTokenizerRequest>,
    ) -> Result<Response<Self::GetTokenizerStream>, Status> {
        let (metadata, _, request) = request.into_parts();
        let answer = call::unary(&metadata, "EmbeddingService/GetTokenizer", |call| async move {
            self.engine
                .model(Purpose::Embedding, &request.model, call.deadline)
                .await
        });
        let model = answer.await?.into_inner();
        let json = model.encoder.json.clone();
        let pieces = (0..json.len()).step_by(TOKENIZER_PIECE).map(move |start| {
            let end = json.len().min(start + TOKENIZER_PIECE);
            let chunk = json.slice(start..end);
            Ok(v1::GetTokenizerResponse {
                chunk,
                model: model.name.clone(),
                model_digest: model.digest.clone(),
            })
        });
        Ok(Response::new(Box::pin(tokio_stream::iter(pieces))))
    }
}
