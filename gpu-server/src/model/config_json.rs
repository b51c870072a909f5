//! config.json of every family into an [`Architecture`], with transformers' own defaults.
//!
//! A field that would change the numbers and is not computed is refused by name: a wrong vector is worse than no vector.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::activation::Activation;
use super::architecture::{Architecture, Family, ModernBert, Qwen3};
use super::folder::Folder;
use crate::error::Error;

const FILE: &str = "config.json";

/// config.json as it is written.
#[derive(Deserialize)]
struct Raw {
    model_type: String,
    #[serde(flatten)]
    sizes: Sizes,
    #[serde(default)]
    architectures: Option<Vec<String>>,
    hidden_act: Option<String>,
    hidden_activation: Option<String>,
    layer_norm_eps: Option<f64>,
    norm_eps: Option<f64>,
    rms_norm_eps: Option<f64>,
    position_embedding_type: Option<String>,
    id2label: Option<BTreeMap<String, String>>,
    num_labels: Option<usize>,
    pad_token_id: Option<u32>,
    type_vocab_size: Option<usize>,
    is_decoder: Option<bool>,
    relative_attention_num_buckets: Option<usize>,
    // ModernBERT
    layer_types: Option<Vec<String>>,
    global_attn_every_n_layers: Option<usize>,
    local_attention: Option<i64>,
    global_rope_theta: Option<f64>,
    local_rope_theta: Option<f64>,
    norm_bias: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    classifier_pooling: Option<String>,
    classifier_bias: Option<bool>,
    classifier_activation: Option<String>,
    decoder_bias: Option<bool>,
    // Qwen3
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    rope_theta: Option<f64>,
    use_sliding_window: Option<bool>,
    is_causal: Option<bool>,
    tie_word_embeddings: Option<bool>,
    // Both: one set of parameters, or one per kind of layer.
    rope_parameters: Option<RopeParameters>,
    rope_scaling: Option<Rope>,
}

/// What has no sensible default.
#[derive(Deserialize)]
struct Sizes {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
}

#[derive(Deserialize, Default)]
struct RopeParameters {
    full_attention: Option<Rope>,
    sliding_attention: Option<Rope>,
    #[serde(flatten)]
    all: Rope,
}

#[derive(Deserialize, Default)]
struct Rope {
    #[serde(rename = "rope_theta")]
    theta: Option<f64>,
    #[serde(rename = "rope_type", alias = "type")]
    kind: Option<String>,
    #[serde(rename = "partial_rotary_factor")]
    part: Option<f64>,
}

impl Rope {
    /// Whether it is the plain rotary embedding (Su et al. 2021).
    fn is_plain(&self) -> bool {
        self.kind.as_deref().is_none_or(|kind| kind == "default") && self.part.is_none_or(|part| part >= 1.0)
    }
}

/// Reads and checks config.json.
///
/// # Errors
/// [`Error::ModelLoadFailed`] that names the field.
pub fn read(folder: &Folder) -> Result<Architecture, Error> {
    let raw: Raw = folder.required(FILE)?;
    let refuse = |field: &str, value: &dyn std::fmt::Debug, accepted: &str| {
        folder.failed(FILE, format!("{field} is {value:?}; {accepted}"))
    };
    let family = match raw.model_type.as_str() {
        "bert" => {
            absolute_positions(folder, &raw)?;
            Family::Bert {
                segments: raw.type_vocab_size.unwrap_or(2),
            }
        }
        "roberta" | "xlm-roberta" => {
            absolute_positions(folder, &raw)?;
            Family::Roberta {
                segments: raw.type_vocab_size.unwrap_or(2),
                padding: raw.pad_token_id.unwrap_or(1),
            }
        }
        "mpnet" => Family::Mpnet {
            buckets: raw.relative_attention_num_buckets.unwrap_or(32),
        },
        "modernbert" => Family::ModernBert(modern_bert(folder, &raw)?),
        "qwen3" => Family::Qwen3(qwen3(folder, &raw)?),
        other => {
            let known = "bert, roberta, xlm-roberta, mpnet, modernbert and qwen3 are computed";
            return Err(refuse("model_type", &other, known));
        }
    };
    if raw.is_decoder == Some(true) && !matches!(family, Family::Qwen3(_)) {
        return Err(refuse("is_decoder", &true, "only encoders of this family are computed"));
    }
    let modern = matches!(family, Family::ModernBert(_));
    let (field, activation) = if modern {
        ("hidden_activation", raw.hidden_activation)
    } else {
        ("hidden_act", raw.hidden_act)
    };
    let default = if matches!(family, Family::Qwen3(_)) {
        "silu"
    } else {
        "gelu"
    };
    let activation = named_activation(folder, field, activation.as_deref().unwrap_or(default))?;
    let norm_eps = match family {
        Family::ModernBert(_) => raw.norm_eps.unwrap_or(1e-5),
        Family::Qwen3(_) => raw.rms_norm_eps.unwrap_or(1e-6),
        _ => raw.layer_norm_eps.unwrap_or(1e-12),
    };
    let sizes = raw.sizes;
    let found = Architecture {
        labels: raw.id2label.map(|names| names.len()).or(raw.num_labels).unwrap_or(2),
        model_type: raw.model_type,
        classes: raw.architectures.unwrap_or_default(),
        hidden_size: sizes.hidden_size,
        intermediate_size: sizes.intermediate_size,
        num_hidden_layers: sizes.num_hidden_layers,
        num_attention_heads: sizes.num_attention_heads,
        vocab_size: sizes.vocab_size,
        max_position_embeddings: sizes.max_position_embeddings,
        activation,
        norm_eps,
        family,
    };
    check(&found, folder)?;
    Ok(found)
}

fn check(found: &Architecture, folder: &Folder) -> Result<(), Error> {
    let refuse = |field: &str, value: &dyn std::fmt::Debug, accepted: &str| {
        Err(folder.failed(FILE, format!("{field} is {value:?}; {accepted}")))
    };
    for (field, value) in [
        ("hidden_size", found.hidden_size),
        ("intermediate_size", found.intermediate_size),
        ("num_hidden_layers", found.num_hidden_layers),
        ("vocab_size", found.vocab_size),
    ] {
        if value == 0 {
            return refuse(field, &value, "it must be above 0");
        }
    }
    if found.max_tokens() < 3 {
        let accepted = "it leaves room for fewer than 3 tokens";
        return refuse("max_position_embeddings", &found.max_position_embeddings, accepted);
    }
    let heads = found.num_attention_heads;
    let divides = heads != 0 && found.hidden_size.is_multiple_of(heads);
    match &found.family {
        Family::Qwen3(own) => {
            if own.key_value_heads == 0 || heads == 0 || !heads.is_multiple_of(own.key_value_heads) {
                let accepted = "it must divide num_attention_heads";
                return refuse("num_key_value_heads", &own.key_value_heads, accepted);
            }
            if own.head_size == 0 || !own.head_size.is_multiple_of(2) {
                return refuse("head_dim", &own.head_size, "it must be even and above 0");
            }
        }
        _ if !divides => return refuse("num_attention_heads", &heads, "it must divide hidden_size"),
        Family::ModernBert(_) if !found.head_size().is_multiple_of(2) => {
            return refuse("num_attention_heads", &heads, "it must give heads of an even size");
        }
        // The code that made these checkpoints counts 32 buckets, whatever the configuration says.
        Family::Mpnet { buckets } if *buckets < 32 => {
            return refuse("relative_attention_num_buckets", buckets, "it must be at least 32");
        }
        Family::Bert { segments: 0 } | Family::Roberta { segments: 0, .. } => {
            return refuse("type_vocab_size", &0, "it must be above 0");
        }
        _ => {}
    }
    Ok(())
}

fn named_activation(folder: &Folder, field: &str, name: &str) -> Result<Activation, Error> {
    let known = "gelu, gelu_new, gelu_pytorch_tanh, relu, silu and tanh are computed";
    Activation::named(name).ok_or_else(|| folder.failed(FILE, format!("{field} is {name:?}; {known}")))
}

fn absolute_positions(folder: &Folder, raw: &Raw) -> Result<(), Error> {
    match raw.position_embedding_type.as_deref() {
        None | Some("absolute") => Ok(()),
        Some(other) => Err(folder.failed(
            FILE,
            format!("position_embedding_type is {other:?}; only absolute is computed"),
        )),
    }
}

/// Refuses every rotary embedding but the plain one, which all checkpoints of these families ship with.
fn plain_rope<'a>(folder: &Folder, ropes: impl IntoIterator<Item = Option<&'a Rope>>) -> Result<(), Error> {
    if ropes.into_iter().flatten().all(Rope::is_plain) {
        return Ok(());
    }
    let problem = "rope_parameters or rope_scaling asks for a rotary embedding that is not the default one";
    Err(folder.failed(FILE, problem))
}

fn modern_bert(folder: &Folder, raw: &Raw) -> Result<ModernBert, Error> {
    let num_hidden_layers = raw.sizes.num_hidden_layers;
    let every = raw.global_attn_every_n_layers.unwrap_or(3).max(1);
    let local: Vec<bool> = raw.layer_types.as_ref().map_or_else(
        || (0..num_hidden_layers).map(|layer| layer % every != 0).collect(),
        |types| types.iter().map(|kind| kind == "sliding_attention").collect(),
    );
    let known = |kind: &String| kind == "sliding_attention" || kind == "full_attention";
    if local.len() != num_hidden_layers || !raw.layer_types.iter().flatten().all(known) {
        let problem = "layer_types must say full_attention or sliding_attention for each of num_hidden_layers";
        return Err(folder.failed(FILE, problem));
    }
    let (full, sliding) = raw.rope_parameters.as_ref().map_or((None, None), |ropes| {
        (ropes.full_attention.as_ref(), ropes.sliding_attention.as_ref())
    });
    plain_rope(folder, [full, sliding, raw.rope_scaling.as_ref()])?;
    let theta = |rope: Option<&Rope>, old: Option<f64>, default| rope.and_then(|r| r.theta).or(old).unwrap_or(default);
    let mean_classifier = match raw.classifier_pooling.as_deref() {
        None | Some("cls") => false,
        Some("mean") => true,
        Some(other) => {
            return Err(folder.failed(
                FILE,
                format!("classifier_pooling is {other:?}; cls and mean are computed"),
            ));
        }
    };
    let activation = raw.classifier_activation.as_deref().unwrap_or("gelu");
    Ok(ModernBert {
        local,
        reach: raw.local_attention.unwrap_or(128).max(0) / 2,
        global_theta: theta(full, raw.global_rope_theta, 160_000.0),
        local_theta: theta(sliding, raw.local_rope_theta, 10_000.0),
        norm_bias: raw.norm_bias.unwrap_or(false),
        attention_bias: raw.attention_bias.unwrap_or(false),
        mlp_bias: raw.mlp_bias.unwrap_or(false),
        mean_classifier,
        classifier_bias: raw.classifier_bias.unwrap_or(false),
        classifier_activation: named_activation(folder, "classifier_activation", activation)?,
        decoder_bias: raw.decoder_bias.unwrap_or(true),
    })
}

fn qwen3(folder: &Folder, raw: &Raw) -> Result<Qwen3, Error> {
    let rope = raw.rope_parameters.as_ref().map(|ropes| &ropes.all);
    plain_rope(folder, [rope, raw.rope_scaling.as_ref()])?;
    if raw.use_sliding_window == Some(true) {
        return Err(folder.failed(FILE, "use_sliding_window is true; only full attention is computed"));
    }
    if raw.is_causal == Some(false) {
        return Err(folder.failed(FILE, "is_causal is false; only causal attention is computed for qwen3"));
    }
    let key_value_heads = raw.num_key_value_heads;
    Ok(Qwen3 {
        key_value_heads: key_value_heads.ok_or_else(|| folder.failed(FILE, "missing field `num_key_value_heads`"))?,
        head_size: raw.head_dim.unwrap_or(128),
        theta: rope.and_then(|r| r.theta).or(raw.rope_theta).unwrap_or(10_000.0),
        attention_bias: raw.attention_bias.unwrap_or(false),
        tied: raw.tie_word_embeddings.unwrap_or(false),
    })
}
