//! A model that answers, and the registry of such models.

pub use crate::config::models::Purpose;
use crate::device::ledger::Reservation;
use crate::model::Model;
use crate::model::checkpoint::Task;
use crate::model::pooling::PoolingKind;
use crate::model::tokenizer::TextEncoder;

use super::precise::Precise;
use super::registry::{self, Resident};

/// The models of this process.
pub type Registry = registry::Registry<ReadyModel>;

/// A model that answers.
#[derive(Debug)]
pub struct ReadyModel {
    /// What requests call it.
    pub name: String,
    /// SHA-256 of its weights, hex.
    pub digest: String,
    /// The operator's mark.
    pub revision: String,
    /// config.json's `model_type`.
    pub architecture: String,
    /// What it makes out of text.
    pub task: Task,
    /// Elements of an embedding, words of a sparse one's vocabulary; 0 for reranking.
    pub dimension: usize,
    /// How token vectors become one (of several ways the first); none for sparse models and reranking.
    pub pooling: Option<PoolingKind>,
    /// Whether embeddings have unit length.
    pub normalized: bool,
    /// Whether the weights are bf16; f32 otherwise.
    pub bf16: bool,
    /// Most tokens of a batch, where the device's memory sets a limit.
    pub most_tokens: Option<usize>,
    /// Text to ids.
    pub encoder: TextEncoder,
    /// Ids to numbers. Calls that run keep it alive when another takes its place.
    pub model: Model,
    /// Its weights, as they are counted against the device.
    pub memory: Reservation,
    /// Its fp32 twin, where it computes in another type.
    pub precise: Option<Precise>,
}

impl Resident for ReadyModel {
    fn bytes(&self) -> u64 {
        self.memory.bytes() + self.precise.as_ref().map_or(0, Precise::memory_bytes)
    }

    fn makes_sparse(&self) -> bool {
        matches!(self.task, Task::Sparse(_))
    }
}
