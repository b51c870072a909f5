//! What a server tells about its models.

use medkg_proto::v1;

/// How token vectors become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Pooling {
    /// Mean over the tokens that are not padding.
    Mean,
    /// The first token's vector.
    Cls,
    /// The last token's vector.
    LastToken,
    /// Mean weighted by position, 1 for the first token.
    WeightedMean,
    /// The largest value of each element.
    Max,
    /// Sum divided by the square root of the number of tokens.
    MeanSqrtLength,
    /// Largest log(1 + ReLU(logit)) of each word of the vocabulary.
    Splade,
}

impl Pooling {
    /// Its name in Python: `mean`, `cls`, `last_token`, `weighted_mean`, `max`, `mean_sqrt_length` or `splade`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Cls => "cls",
            Self::LastToken => "last_token",
            Self::WeightedMean => "weighted_mean",
            Self::Max => "max",
            Self::MeanSqrtLength => "mean_sqrt_length",
            Self::Splade => "splade",
        }
    }
}

/// What a model makes out of text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ModelKind {
    /// One dense vector per text.
    Dense,
    /// One sparse vector per text.
    Sparse,
    /// One score per query and document.
    Reranker,
}

impl ModelKind {
    /// Its name in Python: `dense`, `sparse` or `reranker`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::Sparse => "sparse",
            Self::Reranker => "reranker",
        }
    }
}

/// Where a model is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ModelState {
    /// The server did not say.
    Unknown,
    /// It is being read, checked and warmed up.
    Loading,
    /// It answers.
    Ready,
    /// Loading ended with an error.
    Failed,
    /// Configured, but not in memory.
    Unloaded,
}

impl ModelState {
    /// Its name in Python: `unknown`, `loading`, `ready`, `failed` or `unloaded`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Loading => "loading",
            Self::Ready => "ready",
            Self::Failed => "failed",
            Self::Unloaded => "unloaded",
        }
    }
}

/// What a checkpoint wants to see before a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// What requests call it.
    pub name: String,
    /// What is put before the text.
    pub text: String,
}

/// A model that a server is configured with. What only a loaded model tells is 0 or empty before that.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ModelInfo {
    /// The name to ask for.
    pub name: String,
    /// Lower-case hex SHA-256 of the weights.
    pub digest: String,
    /// `model_type`, e.g. `bert`.
    pub architecture: String,
    /// Elements of one embedding; 0 for a reranking model.
    pub dimension: u32,
    /// Most tokens of a text or pair, special tokens included.
    pub max_tokens: u32,
    /// How token vectors become one; None for a reranking model.
    pub pooling: Option<Pooling>,
    /// True if embeddings have unit L2 norm.
    pub normalized: bool,
    /// Element type while computing: `float32`, `float16` or `bfloat16`.
    pub compute_dtype: &'static str,
    /// `cpu` or `cuda:N`.
    pub device: String,
    /// True if calls that name no model get this one.
    pub is_default: bool,
    /// What it makes; None while that is not known.
    pub kind: Option<ModelKind>,
    /// Where it is in its life.
    pub state: ModelState,
    /// Why it failed or was unloaded; empty while it is ready.
    pub detail: String,
    /// Bytes of device memory that its weights hold.
    pub memory_bytes: u64,
    /// The revision that the operator named for it; empty if none.
    pub revision: String,
    /// Its named prompts, sorted by name.
    pub prompts: Vec<Prompt>,
    /// The prompt of calls that name none.
    pub default_prompt: Option<String>,
}

impl From<v1::Model> for ModelInfo {
    fn from(model: v1::Model) -> Self {
        Self {
            pooling: match model.pooling() {
                v1::Pooling::Unspecified => None,
                v1::Pooling::Mean => Some(Pooling::Mean),
                v1::Pooling::Cls => Some(Pooling::Cls),
                v1::Pooling::LastToken => Some(Pooling::LastToken),
                v1::Pooling::WeightedMean => Some(Pooling::WeightedMean),
                v1::Pooling::Max => Some(Pooling::Max),
                v1::Pooling::MeanSqrtLength => Some(Pooling::MeanSqrtLength),
                v1::Pooling::Splade => Some(Pooling::Splade),
            },
            compute_dtype: match model.compute_dtype() {
                v1::DataType::F32 => "float32",
                v1::DataType::F16 => "float16",
                v1::DataType::Bf16 => "bfloat16",
                v1::DataType::Int8 => "int8",
                v1::DataType::Binary | v1::DataType::Unspecified => "unknown",
            },
            kind: match model.kind() {
                v1::ModelKind::Unspecified => None,
                v1::ModelKind::Dense => Some(ModelKind::Dense),
                v1::ModelKind::Sparse => Some(ModelKind::Sparse),
                v1::ModelKind::Reranker => Some(ModelKind::Reranker),
            },
            state: match model.state() {
                v1::ModelState::Unspecified => ModelState::Unknown,
                v1::ModelState::Loading => ModelState::Loading,
                v1::ModelState::Ready => ModelState::Ready,
                v1::ModelState::Failed => ModelState::Failed,
                v1::ModelState::Unloaded => ModelState::Unloaded,
            },
            name: model.name,
            digest: model.digest,
            architecture: model.architecture,
            dimension: model.dimension,
            max_tokens: model.max_tokens,
            normalized: model.normalized,
            device: model.device,
            is_default: model.is_default,
            detail: model.detail,
            memory_bytes: model.memory_bytes,
            revision: model.revision,
            prompts: model.prompts.into_iter().map(Into::into).collect(),
            default_prompt: Some(model.default_prompt).filter(|name| !name.is_empty()),
        }
    }
}

impl From<v1::Prompt> for Prompt {
    fn from(prompt: v1::Prompt) -> Self {
        Self {
            name: prompt.name,
            text: prompt.text,
        }
    }
}
