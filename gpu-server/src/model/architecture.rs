//! What the networks of all families are built from; `config_json` reads it.

use super::activation::Activation;
use super::packed::Numbering;

/// The shape of a network, checked.
#[derive(Debug, Clone)]
pub struct Architecture {
    /// config.json's name of the family, e.g. "xlm-roberta".
    pub model_type: String,
    /// Class names, e.g. `BertForSequenceClassification`.
    pub classes: Vec<String>,
    /// Elements of a token vector.
    pub hidden_size: usize,
    /// Elements of the feed-forward layer.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Rows of the word table.
    pub vocab_size: usize,
    /// Rows of the position table, or the positions that rotary embeddings were trained for.
    pub max_position_embeddings: usize,
    /// Activation of the feed-forward layer.
    pub activation: Activation,
    /// Added to the variance in LayerNorm or RMSNorm.
    pub norm_eps: f64,
    /// Labels of a classifier.
    pub labels: usize,
    /// What sets the family apart.
    pub family: Family,
}

/// What a family computes with beyond the common sizes.
#[derive(Debug, Clone)]
pub enum Family {
    /// BERT: positions count from 0.
    Bert {
        /// Rows of the segment table.
        segments: usize,
    },
    /// RoBERTa and XLM-RoBERTa: positions count from `padding + 1`, and a padding token inside a text has position
    /// `padding`.
    Roberta {
        /// Rows of the segment table; only the first one is used.
        segments: usize,
        /// Id of the padding token.
        padding: u32,
    },
    /// MPNet: positions as RoBERTa's, no segments, and a bias for the distance between two tokens.
    Mpnet {
        /// Rows of the bias table.
        buckets: usize,
    },
    /// ModernBERT.
    ModernBert(ModernBert),
    /// Qwen3.
    Qwen3(Qwen3),
}

/// ModernBERT's own fields (Warner et al. 2024).
#[derive(Debug, Clone)]
#[allow(clippy::struct_excessive_bools)] // each is a field of config.json
pub struct ModernBert {
    /// For each layer: whether a token sees only its neighbourhood.
    pub local: Vec<bool>,
    /// How far a token of a local layer sees, in tokens to either side.
    pub reach: i64,
    /// Base of the rotary embedding in global layers.
    pub global_theta: f64,
    /// Base of the rotary embedding in local layers.
    pub local_theta: f64,
    /// Whether LayerNorm has a bias.
    pub norm_bias: bool,
    /// Whether attention's linear layers have a bias.
    pub attention_bias: bool,
    /// Whether the feed-forward's linear layers have a bias.
    pub mlp_bias: bool,
    /// Whether the classifier reads the mean over the tokens instead of the first token.
    pub mean_classifier: bool,
    /// Whether the head's dense layer has a bias.
    pub classifier_bias: bool,
    /// Activation of the head.
    pub classifier_activation: Activation,
    /// Whether the word predictor has a bias.
    pub decoder_bias: bool,
}

/// Qwen3's own fields (Yang et al. 2025).
#[derive(Debug, Clone)]
pub struct Qwen3 {
    /// Heads of keys and values; each is read by several heads of queries.
    pub key_value_heads: usize,
    /// Elements of one head.
    pub head_size: usize,
    /// Base of the rotary embedding.
    pub theta: f64,
    /// Whether the linear layers of attention have a bias.
    pub attention_bias: bool,
    /// Whether the word predictor is the word table.
    pub tied: bool,
}

impl Architecture {
    /// Most tokens of an input, special tokens included.
    pub fn max_tokens(&self) -> usize {
        let unused = match self.numbering() {
            Numbering::FromZero => 0,
            Numbering::After(padding) => padding as usize + 1,
        };
        self.max_position_embeddings.saturating_sub(unused)
    }

    /// Elements of one attention head.
    pub fn head_size(&self) -> usize {
        match &self.family {
            Family::Qwen3(own) => own.head_size,
            _ => self.hidden_size / self.num_attention_heads,
        }
    }

    /// How the positions of an input's tokens are counted.
    pub fn numbering(&self) -> Numbering {
        match &self.family {
            Family::Roberta { padding, .. } => Numbering::After(*padding),
            // MPNet's code says 1, whatever the configuration says.
            Family::Mpnet { .. } => Numbering::After(1),
            Family::Bert { .. } | Family::ModernBert(_) | Family::Qwen3(_) => Numbering::FromZero,
        }
    }

    /// Segments that a token may be in; 1 where the family has none.
    pub fn segments(&self) -> usize {
        match &self.family {
            Family::Bert { segments } => *segments,
            _ => 1,
        }
    }

    /// What transformers puts before the encoder's tensors in a checkpoint that has a head.
    pub fn prefix(&self) -> &'static str {
        match &self.family {
            Family::Bert { .. } => "bert.",
            Family::Roberta { .. } => "roberta.",
            Family::Mpnet { .. } => "mpnet.",
            Family::ModernBert(_) | Family::Qwen3(_) => "model.",
        }
    }

    /// Whether a class name in `architectures` ends like this.
    pub fn is_for(&self, suffix: &str) -> bool {
        self.classes.iter().any(|class| class.ends_with(suffix))
    }
}
