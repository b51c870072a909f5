//! `EmbeddingService`: texts to vectors.

mod assembly;
mod cached;
mod coalesced;
mod sparse;
mod stream;
mod vectors;

use std::ops::Range;
use std::sync::Arc;

use medkg_proto::v1;
use medkg_proto::v1::embedding_service_client::EmbeddingServiceClient as Stub;
use tonic::{Request, Response, Status};

use super::{ModelInfo, Truncation, Usage, truncation};
use crate::batching;
use crate::cache::Cache;
use crate::call::{Answer, Call, CallOptions, Caller, Method};
use crate::channel::Channel;
use crate::error::ClientError;
use crate::policy::classify::Service;
use assembly::Dense;
use cached::Kept;
use coalesced::Gathering;
pub use sparse::{SparseEmbeddings, SparseRequest};
pub use stream::EmbeddingStream;
pub use vectors::{Dtype, Vectors};

const GENERATE: Method = Method {
    name: "GenerateEmbeddings",
    idempotent: true,
};
const LIST_MODELS: Method = Method {
    name: "ListModels",
    idempotent: true,
};
const GET_TOKENIZER: Method = Method {
    name: "GetTokenizer",
    idempotent: true,
};

/// No method of the wire: errors of the cache are told under it.
const FORGET: Method = Method {
    name: "forget",
    idempotent: true,
};

/// Told how many texts are done, of how many.
pub type Progress = dyn Fn(usize, usize) + Send + Sync;

/// How texts are embedded.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct How {
    /// A model's name; None means the server's default.
    pub model: Option<String>,
    /// Element type of the answer; None means the server's default, float32.
    pub dtype: Option<Dtype>,
    /// What to do with texts that are too long; None means the server's default, right.
    pub truncation: Option<Truncation>,
    /// A prompt that the model knows by this name is put before each text; None means the model's default.
    pub prompt_name: Option<String>,
    /// Put before each text as it is, instead of a prompt; an empty one turns the model's default prompt off.
    pub instruction: Option<String>,
    /// Keep the first so many elements only (Matryoshka); None means all.
    pub dimensions: Option<u32>,
}

impl How {
    fn request(&self, texts: Vec<String>) -> v1::GenerateEmbeddingsRequest {
        v1::GenerateEmbeddingsRequest {
            model: self.model.clone().unwrap_or_default(),
            texts,
            options: Some(v1::EmbeddingOptions {
                dtype: self.dtype.map_or(v1::DataType::Unspecified, Dtype::wire).into(),
                truncation: truncation(self.truncation),
                prompt_name: self.prompt_name.clone().unwrap_or_default(),
                instruction: self.instruction.clone(),
                dimensions: self.dimensions.unwrap_or(0),
            }),
        }
    }
}

/// What to embed.
#[derive(Clone, Default)]
pub struct EmbedRequest {
    /// At least one text.
    pub texts: Vec<String>,
    /// How they are embedded.
    pub how: How,
    /// Told of every finished chunk.
    pub progress: Option<Arc<Progress>>,
}

/// One vector per text.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Embeddings {
    /// `rows` rows of `dimension` elements; row i belongs to text i.
    pub vectors: Vectors,
    /// As many as texts.
    pub rows: usize,
    /// Elements of one vector.
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

/// A model's `tokenizer.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TokenizerFile {
    /// The file.
    pub json: Vec<u8>,
    /// The model it belongs to.
    pub model: String,
    /// The model's digest.
    pub model_digest: String,
}

/// Calls `EmbeddingService`.
#[derive(Debug, Clone)]
pub struct EmbeddingClient {
    caller: Arc<Caller>,
    kept: Option<Arc<Kept>>,
    gathering: Option<Arc<Gathering>>,
}

impl EmbeddingClient {
    pub(crate) fn caller(&self) -> &Caller {
        &self.caller
    }

    pub(crate) fn new(caller: Arc<Caller>, cache: Option<Arc<Cache>>) -> Self {
        let kept = cache.map(|cache| Arc::new(Kept::new(cache)));
        let gathering = caller.config.coalesce.map(|config| Arc::new(Gathering::new(config)));
        Self {
            caller,
            kept,
            gathering,
        }
    }

    /// Embeds any number of texts, in as many requests as it takes; with a cache only those that are not in it.
    pub async fn embed(&self, request: EmbedRequest, options: &CallOptions) -> Result<Embeddings, ClientError> {
        let call = self.caller.begin(GENERATE, options)?;
        match &self.kept {
            Some(kept) if !request.texts.is_empty() => self.embed_through(kept, &call, request).await,
            _ => self.embed_all(&call, request).await,
        }
    }

    async fn embed_all(&self, call: &Call, request: EmbedRequest) -> Result<Embeddings, ClientError> {
        match &self.gathering {
            Some(gathering) if gathering.takes(&request) => self.embed_together(gathering, call, request).await,
            _ => self.embed_apart(call, request).await,
        }
    }

    async fn embed_apart(&self, call: &Call, request: EmbedRequest) -> Result<Embeddings, ClientError> {
        let mut parts = Dense::new(request.texts.len(), &request.how);
        let send = |range| self.generate(call, &request, range);
        let add = |range: &_, answer| parts.add(range, answer);
        self.split(call, &request.texts, request.progress.as_deref(), send, add)
            .await?;
        parts.finish(call).ok_or_else(|| incomplete(call))
    }

    async fn generate(
        &self,
        call: &Call,
        request: &EmbedRequest,
        range: Range<usize>,
    ) -> Result<Answer<v1::GenerateEmbeddingsResponse>, ClientError> {
        let message = || request.how.request(request.texts[range.clone()].to_vec());
        let send = |channel, request| async move {
            let mut stub = Stub::new(channel).max_decoding_message_size(medkg_proto::MAX_MESSAGE_BYTES);
            stub.generate_embeddings(request).await.map(Response::into_inner)
        };
        self.caller.request_anywhere(call, message, send).await
    }

    /// Makes a call about `texts` in as many requests as it takes. `request` makes one about a range of them, `add` takes
    /// its answer in or says what is wrong with it.
    async fn split<T, F>(
        &self,
        call: &Call,
        texts: &[String],
        progress: Option<&Progress>,
        request: impl Fn(Range<usize>) -> F,
        mut add: impl FnMut(&Range<usize>, Answer<T>) -> Result<(), String>,
    ) -> Result<(), ClientError>
    where
        F: Future<Output = Result<Answer<T>, ClientError>>,
    {
        let total = texts.len();
        if total == 0 {
            let problem = "is empty; give at least one text";
            let error = ClientError::invalid(Service::Embedding, call.method.name, "texts", problem);
            return Err(call.sign(error));
        }
        let batch = self.caller.config.batch;
        let ranges = batching::chunks(texts.iter().map(String::len), batch.max_items, batch.max_text_bytes());
        let mut done = 0;
        let collect = |range: Range<usize>, answer| {
            add(&range, answer).map_err(|message| broken(call.method, message))?;
            done += range.len();
            if let Some(progress) = progress {
                progress(done, total);
            }
            Ok(())
        };
        let probe = self.caller.needs_probe();
        let result = batching::run(ranges, batch, "texts", probe, request, collect).await;
        result.map_err(|error| call.sign(error))
    }

    /// The embedding models of the server, loaded or not, sorted by name.
    pub async fn models(&self, options: &CallOptions) -> Result<Vec<ModelInfo>, ClientError> {
        let call = self.caller.begin(LIST_MODELS, options)?;
        let request = || v1::EmbeddingServiceListModelsRequest {};
        let answer = self.caller.request(&call, request, list_models).await?;
        Ok(answer.message.models.into_iter().map(Into::into).collect())
    }

    /// The tokenizer of a model; None means the default model.
    pub async fn tokenizer(&self, model: Option<String>, options: &CallOptions) -> Result<TokenizerFile, ClientError> {
        let call = self.caller.begin(GET_TOKENIZER, options)?;
        let message = || v1::GetTokenizerRequest {
            model: model.clone().unwrap_or_default(),
        };
        let send = |channel, request| async move {
            let mut pieces = Stub::new(channel).get_tokenizer(request).await?.into_inner();
            let mut file = TokenizerFile {
                json: Vec::new(),
                model: String::new(),
                model_digest: String::new(),
            };
            while let Some(piece) = pieces.message().await? {
                file.json.extend_from_slice(&piece.chunk);
                (file.model, file.model_digest) = (piece.model, piece.model_digest);
            }
            Ok(file)
        };
        let answer = self.caller.request(&call, message, send).await?;
        if answer.message.json.is_empty() {
            return Err(call.sign(broken(GET_TOKENIZER, "the tokenizer is empty".to_owned())));
        }
        Ok(answer.message)
    }
}

async fn list_models(
    channel: Channel,
    request: Request<v1::EmbeddingServiceListModelsRequest>,
) -> Result<v1::EmbeddingServiceListModelsResponse, Status> {
    Stub::new(channel).list_models(request).await.map(Response::into_inner)
}

fn broken(method: Method, message: String) -> ClientError {
    ClientError::broken_answer(Service::Embedding, method.name, message)
}

/// Batching gives an answer for every text, or an error; this is the error for when it does not.
fn incomplete(call: &Call) -> ClientError {
    call.sign(broken(call.method, "an answer is missing".to_owned()))
}
