//! A checkpoint folder as Hugging Face transformers and sentence-transformers write it, read and checked before any
//! tensor is made.
//!
//! Files: `config.json`, `tokenizer.json` and safetensors always; `modules.json` and what it names, `tokenizer_config.json`,
//! `sentence_bert_config.json` and `config_sentence_transformers.json` where they are there.

use std::path::Path;

use serde::Deserialize;

use super::architecture::{Architecture, Family};
use super::config_json;
use super::folder::Folder;
use super::pooling::PoolingKind;
use super::prompts::Prompts;
use super::sentence::{self, LogitScore, Modules, Pooling, SpladePooling, Step};
use super::tokenizer;
use crate::error::Error;

/// What a model makes out of text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// One dense vector per text.
    Embed {
        /// How token vectors become one.
        pooling: Pooling,
        /// What happens to that one.
        steps: Vec<Step>,
    },
    /// One weight per text and word of the vocabulary.
    Sparse(SpladePooling),
    /// One score per pair.
    Score(ScoreHead),
}

/// What turns token vectors into a score.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScoreHead {
    /// The family's classifier with one label (`...ForSequenceClassification`).
    Classifier,
    /// The next word: logit of "yes" minus logit of "no" (`...ForCausalLM`).
    NextToken(LogitScore),
}

/// A folder whose configuration makes sense.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// Name and folder.
    pub folder: Folder,
    /// Shape of the network.
    pub architecture: Architecture,
    /// What it is for.
    pub task: Task,
    /// Most tokens of a text or pair, special tokens included.
    pub max_tokens: usize,
    /// Named prompts and defaults for requests.
    pub prompts: Prompts,
    /// How text becomes ids, beyond what tokenizer.json says.
    pub text: TextConfig,
}

/// How text becomes ids, beyond what tokenizer.json says.
#[derive(Debug, Clone, Copy)]
pub struct TextConfig {
    /// Whether text is lower-cased first.
    pub lower_case: bool,
    /// Whether the tokens of a pair's second text are in segment 1. If not, the model is given segment 0 throughout.
    pub segments: bool,
}

#[derive(Deserialize, Default)]
struct TokenizerConfig {
    // transformers writes 1e30 for "no limit", so this is read as a float.
    model_max_length: Option<f64>,
    model_input_names: Option<Vec<String>>,
    tokenizer_class: Option<String>,
}

impl TokenizerConfig {
    fn limit(&self) -> Option<usize> {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // bounded by the filter
        self.model_max_length
            .filter(|value| (3.0..1e9).contains(value))
            .map(|value| value as usize)
    }

    /// Whether transformers hands segments to the model: as `model_input_names` says, else as the class does.
    fn segments(&self) -> bool {
        const WITHOUT: [&str; 4] = ["Roberta", "XLMRoberta", "MPNet", "Qwen2"];
        match (&self.model_input_names, &self.tokenizer_class) {
            (Some(names), _) => names.iter().any(|name| name == "token_type_ids"),
            (None, Some(class)) => !WITHOUT.iter().any(|family| class.starts_with(family)),
            (None, None) => true,
        }
    }
}

impl Checkpoint {
    /// Reads and checks the folder's configuration for an embedding model, dense or sparse.
    ///
    /// # Errors
    /// [`Error::ModelLoadFailed`] that names the file and the field.
    pub fn for_embedding(name: &str, directory: &Path) -> Result<Self, Error> {
        let folder = Folder::new(name, directory);
        let architecture = config_json::read(&folder)?;
        let modules = sentence::modules(&folder)?;
        let prompts = Prompts::read(&folder)?;
        let task = embedding_task(&folder, &architecture, modules, prompts.truncate_dim)?;
        Self::with(folder, architecture, task)
    }

    /// Reads and checks the folder's configuration for a cross-encoder.
    ///
    /// # Errors
    /// [`Error::ModelLoadFailed`] that names the file and the field.
    pub fn for_reranking(name: &str, directory: &Path) -> Result<Self, Error> {
        let folder = Folder::new(name, directory);
        let architecture = config_json::read(&folder)?;
        let modules = sentence::modules(&folder)?;
        let head = score_head(&folder, &architecture, &modules)?;
        Self::with(folder, architecture, Task::Score(head))
    }

    fn with(folder: Folder, architecture: Architecture, task: Task) -> Result<Self, Error> {
        let transformer = sentence::transformer_config(&folder)?;
        let tokenizer: TokenizerConfig = folder.optional("tokenizer_config.json")?;
        let limit = transformer.max_seq_length.or(tokenizer.limit());
        Ok(Self {
            max_tokens: limit.unwrap_or(usize::MAX).min(architecture.max_tokens()),
            prompts: Prompts::read(&folder)?,
            text: TextConfig {
                lower_case: transformer.do_lower_case,
                segments: architecture.segments() > 1 && tokenizer.segments(),
            },
            folder,
            architecture,
            task,
        })
    }

    /// Pools and scales as the operator says instead of as the checkpoint does.
    pub fn override_with(&mut self, kind: Option<PoolingKind>, normalize: Option<bool>) {
        if let Task::Embed { pooling, steps } = &mut self.task {
            if let Some(kind) = kind {
                // As many as there were, because a dense layer behind may count on the size.
                pooling.kinds.fill(kind);
            }
            if let Some(normalize) = normalize {
                steps.retain(|step| *step != Step::Normalize);
                steps.extend(normalize.then_some(Step::Normalize));
            }
        }
    }

    /// f32 values per input: elements of an embedding, words of the vocabulary, or 1.
    pub fn width(&self) -> usize {
        match &self.task {
            Task::Embed { pooling, steps } => {
                let outputs = |step: &Step| match step {
                    Step::Dense { outputs, .. } | Step::Truncate(outputs) => Some(*outputs),
                    Step::Normalize => None,
                };
                let pooled = pooling.kinds.len() * self.architecture.hidden_size;
                steps.iter().rev().find_map(outputs).unwrap_or(pooled)
            }
            Task::Sparse(_) => self.architecture.vocab_size,
            Task::Score(_) => 1,
        }
    }

    /// Elements of an embedding, words of a sparse one's vocabulary; 0 for a reranking model.
    pub fn dimension(&self) -> usize {
        match self.task {
            Task::Embed { .. } | Task::Sparse(_) => self.width(),
            Task::Score(_) => 0,
        }
    }

    /// How token vectors become one dense vector: of several ways the first.
    pub fn pooling(&self) -> Option<PoolingKind> {
        match &self.task {
            Task::Embed { pooling, .. } => pooling.kinds.first().copied(),
            Task::Sparse(_) | Task::Score(_) => None,
        }
    }

    /// Whether embeddings have unit length.
    pub fn normalized(&self) -> bool {
        matches!(&self.task, Task::Embed { steps, .. } if steps.last() == Some(&Step::Normalize))
    }

    /// Whether a pair is put into Qwen3-Reranker's template instead of between special tokens.
    pub fn templated(&self) -> bool {
        matches!(self.task, Task::Score(_)) && matches!(self.architecture.family, Family::Qwen3(_))
    }

    /// A [`Error::ModelLoadFailed`] about one of this checkpoint's files.
    pub fn failed(&self, file: &str, problem: impl std::fmt::Display) -> Error {
        self.folder.failed(file, problem)
    }
}

/// What modules.json says, else what sentence-transformers does with a plain transformers checkpoint: the mean over the
/// tokens, or the last token of a decoder.
fn embedding_task(
    folder: &Folder,
    architecture: &Architecture,
    modules: Modules,
    truncate: Option<usize>,
) -> Result<Task, Error> {
    let refuse = |problem: &str| Err(folder.failed("modules.json", problem));
    if modules.logit_score.is_some() {
        return refuse("it is a reranking model's; serve it as one");
    }
    if let Some(splade) = modules.splade {
        if modules.pooling.is_some() {
            return refuse("Pooling after a word predictor is not computed");
        }
        if matches!(architecture.family, Family::Qwen3(_)) {
            return refuse("sparse vectors of a decoder are not computed");
        }
        return Ok(Task::Sparse(splade));
    }
    let causal = architecture
        .classes
        .first()
        .is_some_and(|class| class.ends_with("ForCausalLM"));
    let pooling = match modules.pooling {
        Some(pooling) => pooling,
        None if modules.listed => return refuse("it lists no Pooling module"),
        None if causal => Pooling::of(PoolingKind::LastToken),
        None => Pooling::of(PoolingKind::Mean),
    };
    let mut width = pooling.kinds.len() * architecture.hidden_size;
    for step in &modules.steps {
        let Step::Dense {
            path, inputs, outputs, ..
        } = step
        else {
            continue;
        };
        if *inputs != width || *outputs == 0 {
            let problem = format!("in_features is {inputs} and out_features {outputs}; it gets {width} elements");
            return Err(folder.failed(&format!("{path}/config.json"), problem));
        }
        width = *outputs;
    }
    let mut steps = modules.steps;
    // As sentence-transformers does it: behind everything else, and without scaling again.
    steps.extend(truncate.filter(|&kept| kept > 0 && kept < width).map(Step::Truncate));
    Ok(Task::Embed { pooling, steps })
}

fn score_head(folder: &Folder, architecture: &Architecture, modules: &Modules) -> Result<ScoreHead, Error> {
    let refuse = |problem: String| Err(folder.failed("config.json", problem));
    if modules.pooling.is_some() || modules.splade.is_some() {
        return Err(folder.failed("modules.json", "it is an embedding model's; serve it as one"));
    }
    if matches!(architecture.family, Family::Qwen3(_)) && architecture.is_for("ForCausalLM") {
        // Where modules.json does not say which tokens answer, they are these two words.
        let ids = match modules.logit_score {
            Some(ids) => ids,
            None => LogitScore {
                true_token_id: tokenizer::id_of(folder, "yes")?,
                false_token_id: Some(tokenizer::id_of(folder, "no")?),
            },
        };
        return Ok(ScoreHead::NextToken(ids));
    }
    if !architecture.is_for("ForSequenceClassification") {
        return refuse(format!(
            "architectures is {:?}; a reranking model must be a ...ForSequenceClassification, such as \
             BertForSequenceClassification, or a Qwen3ForCausalLM",
            architecture.classes
        ));
    }
    if architecture.labels != 1 {
        let labels = architecture.labels;
        return refuse(format!("id2label has {labels} labels; a reranking model has one"));
    }
    Ok(ScoreHead::Classifier)
}
