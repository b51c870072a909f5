//! The files that sentence-transformers puts beside a checkpoint for what follows the transformer; `prompts` are apart.
//!
//! `modules.json` decides, not which folders exist: `2_Normalize` has no files and is often not packed. A module that is
//! not computed is refused by name.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::activation::Activation;
use super::folder::Folder;
use super::pooling::PoolingKind;
use crate::error::Error;

const MODULES: &str = "modules.json";
const TRANSFORMER: &str = "sentence_bert_config.json";

/// How token vectors become one vector per text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pooling {
    /// At least one; several are concatenated in this order.
    pub kinds: Vec<PoolingKind>,
    /// Whether the tokens of a prompt take part.
    pub include_prompt: bool,
}

impl Pooling {
    /// One kind, over all tokens.
    pub fn of(kind: PoolingKind) -> Self {
        Self {
            kinds: vec![kind],
            include_prompt: true,
        }
    }
}

/// What happens to a pooled vector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A linear layer, `linear.weight` and `linear.bias` in a file of its own, and an activation.
    Dense {
        /// The module's folder, which has the weights.
        path: String,
        /// Elements of its input.
        inputs: usize,
        /// Elements of its output.
        outputs: usize,
        /// Whether it has a bias.
        bias: bool,
        /// What follows it; none for `Identity`.
        activation: Option<Activation>,
    },
    /// Scales to unit length.
    Normalize,
    /// Keeps the first elements (`truncate_dim`).
    Truncate(usize),
}

/// How logits over the vocabulary become one sparse vector (Formal et al. 2021).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SpladePooling {
    /// Sum over the tokens instead of the largest value.
    pub sum: bool,
    /// log(1 + x) twice (Lassance et al.; `log1p_relu`).
    pub twice: bool,
}

/// The token ids whose logits make a score.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogitScore {
    /// "yes".
    pub true_token_id: u32,
    /// "no"; without it the score is the logit of "yes" alone.
    pub false_token_id: Option<u32>,
}

/// What modules.json lists after the transformer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Modules {
    /// Whether there is a modules.json.
    pub listed: bool,
    /// `Pooling`.
    pub pooling: Option<Pooling>,
    /// `Dense` and `Normalize`, in order.
    pub steps: Vec<Step>,
    /// `SpladePooling`.
    pub splade: Option<SpladePooling>,
    /// `LogitScore`.
    pub logit_score: Option<LogitScore>,
}

/// How the transformer takes text.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct TransformerConfig {
    /// Most tokens of a text.
    #[serde(default)]
    pub max_seq_length: Option<usize>,
    /// Whether text is lower-cased before the tokenizer sees it.
    #[serde(default)]
    pub do_lower_case: bool,
    /// "fill-mask" where logits over the vocabulary are pooled.
    #[serde(default)]
    transformer_task: Option<String>,
}

#[derive(Deserialize)]
struct Module {
    #[serde(default)]
    path: String,
    #[serde(rename = "type")]
    class: String,
}

#[derive(Deserialize)]
struct PoolingConfig {
    pooling_mode: Option<OneOrMore>,
    include_prompt: Option<bool>,
    // One flag per mode: `pooling_mode_mean_tokens` and its kin.
    #[serde(flatten)]
    rest: BTreeMap<String, serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

#[derive(Deserialize)]
struct DenseConfig {
    in_features: usize,
    out_features: usize,
    #[serde(default = "yes")]
    bias: bool,
    activation_function: Option<String>,
    module_input_name: Option<String>,
    module_output_name: Option<String>,
}

const fn yes() -> bool {
    true
}

#[derive(Deserialize)]
struct SpladeConfig {
    pooling_strategy: Option<String>,
    activation_function: Option<String>,
}

#[derive(Deserialize)]
struct LogitScoreConfig {
    true_token_id: u32,
    false_token_id: Option<u32>,
}

/// Reads modules.json and the configuration of each module; nothing is listed where there is none.
///
/// # Errors
/// [`Error::ModelLoadFailed`] that names the file, and the module or the field.
pub fn modules(folder: &Folder) -> Result<Modules, Error> {
    let listed: Vec<Module> = folder.optional(MODULES)?;
    let mut found = Modules {
        listed: !listed.is_empty(),
        ..Modules::default()
    };
    for (position, module) in listed.iter().enumerate() {
        let class = module.class.rsplit('.').next().unwrap_or_default();
        let transformer = matches!(class, "Transformer" | "MLMTransformer");
        if transformer != (position == 0) {
            return Err(folder.failed(MODULES, "a Transformer must be the first module, and the only one"));
        }
        if transformer {
            if !module.path.is_empty() {
                let problem = format!("the Transformer lies in {:?}; move its files to the top", module.path);
                return Err(folder.failed(MODULES, problem));
            }
            let config: TransformerConfig = transformer_config(folder)?;
            if class == "MLMTransformer" || config.transformer_task.as_deref() == Some("fill-mask") {
                found.splade = Some(SpladePooling::default());
            }
            continue;
        }
        folder.inside(MODULES, &module.path)?;
        let file = format!("{}/config.json", module.path);
        match class {
            "Normalize" => found.steps.push(Step::Normalize),
            "Pooling" => found.pooling = Some(pooling(folder, &file)?),
            "Dense" => found.steps.push(dense(folder, &module.path, &file)?),
            "SpladePooling" => found.splade = Some(splade(folder, &file)?),
            "LogitScore" => {
                let LogitScoreConfig {
                    true_token_id,
                    false_token_id,
                } = folder.required(&file)?;
                found.logit_score = Some(LogitScore {
                    true_token_id,
                    false_token_id,
                });
            }
            // Does nothing outside training.
            "Dropout" => {}
            other => return Err(folder.failed(MODULES, format!("module {other:?} is not computed"))),
        }
        // What follows pooling works on its result; an order that says otherwise means something else.
        if !found.steps.is_empty() && found.pooling.is_none() {
            return Err(folder.failed(MODULES, format!("{class} stands before Pooling, which is not computed")));
        }
    }
    Ok(found)
}

/// Reads `sentence_bert_config.json`.
///
/// # Errors
/// [`Error::ModelLoadFailed`] that names the field.
pub fn transformer_config(folder: &Folder) -> Result<TransformerConfig, Error> {
    folder.optional(TRANSFORMER)
}

fn pooling(folder: &Folder, file: &str) -> Result<Pooling, Error> {
    let config: PoolingConfig = folder.required(file)?;
    let modes = match config.pooling_mode {
        Some(OneOrMore::One(mode)) => vec![mode],
        Some(OneOrMore::More(modes)) => modes,
        None => {
            // sentence-transformers concatenates in this order, whatever the order in the file.
            let flags = [
                "cls_token",
                "max_tokens",
                "mean_tokens",
                "mean_sqrt_len_tokens",
                "weightedmean_tokens",
            ];
            let set = |flag: &&str| config.rest.get(&format!("pooling_mode_{flag}")) == Some(&true.into());
            let mut modes: Vec<String> = flags.iter().filter(|flag| set(flag)).map(ToString::to_string).collect();
            if set(&"lasttoken") {
                modes.push("lasttoken".to_owned());
            }
            let known = |key: &str| key == "lasttoken" || flags.contains(&key);
            let unknown = config.rest.iter().find_map(|(key, value)| {
                let mode = key.strip_prefix("pooling_mode_")?;
                (value.as_bool() == Some(true) && !known(mode)).then_some(key)
            });
            if let Some(flag) = unknown {
                return Err(folder.failed(file, format!("{flag} is not computed")));
            }
            modes
        }
    };
    let kinds = modes.iter().map(|mode| match mode.as_str() {
        "cls" | "cls_token" => Ok(PoolingKind::Cls),
        "max" | "max_tokens" => Ok(PoolingKind::Max),
        "mean" | "mean_tokens" => Ok(PoolingKind::Mean),
        "mean_sqrt_len_tokens" => Ok(PoolingKind::MeanSqrtLength),
        "weightedmean" | "weightedmean_tokens" => Ok(PoolingKind::WeightedMean),
        "lasttoken" => Ok(PoolingKind::LastToken),
        other => Err(folder.failed(file, format!("pooling_mode {other:?} is not computed"))),
    });
    let mut kinds: Vec<PoolingKind> = kinds.collect::<Result<_, _>>()?;
    if kinds.is_empty() {
        // What sentence-transformers does where no mode is on.
        kinds.push(PoolingKind::Mean);
    }
    Ok(Pooling {
        kinds,
        include_prompt: config.include_prompt.unwrap_or(true),
    })
}

fn dense(folder: &Folder, path: &str, file: &str) -> Result<Step, Error> {
    let config: DenseConfig = folder.required(file)?;
    for name in [&config.module_input_name, &config.module_output_name]
        .into_iter()
        .flatten()
    {
        if name != "sentence_embedding" {
            return Err(folder.failed(file, format!("a Dense module on {name:?} is not computed")));
        }
    }
    // torch.nn's classes only: sentence-transformers imports no other either.
    let class = config
        .activation_function
        .as_deref()
        .unwrap_or("torch.nn.modules.activation.Tanh");
    let activation = match class.strip_prefix("torch.nn.").and_then(|path| path.rsplit('.').next()) {
        Some("Identity") => None,
        Some("Tanh") => Some(Activation::Tanh),
        Some("ReLU") => Some(Activation::Relu),
        Some("GELU") => Some(Activation::Gelu),
        Some("SiLU") => Some(Activation::Silu),
        _ => return Err(folder.failed(file, format!("activation_function {class:?} is not computed"))),
    };
    Ok(Step::Dense {
        path: path.to_owned(),
        inputs: config.in_features,
        outputs: config.out_features,
        bias: config.bias,
        activation,
    })
}

fn splade(folder: &Folder, file: &str) -> Result<SpladePooling, Error> {
    let config: SpladeConfig = folder.required(file)?;
    let sum = match config.pooling_strategy.as_deref() {
        None | Some("max") => false,
        Some("sum") => true,
        Some(other) => return Err(folder.failed(file, format!("pooling_strategy {other:?} is not computed"))),
    };
    let twice = match config.activation_function.as_deref() {
        None | Some("relu") => false,
        Some("log1p_relu") => true,
        Some(other) => return Err(folder.failed(file, format!("activation_function {other:?} is not computed"))),
    };
    Ok(SpladePooling { sum, twice })
}
