//! Text to token ids with Hugging Face `tokenizers`, the implementation that the reference uses too.
//!
//! A tokenizer.json may hard-code truncation and padding that contradict the model (all-MiniLM-L6-v2 says 128 where the
//! model takes 256). Both are replaced: the model's own limit truncates, and nothing is padded.

use std::collections::HashMap;

use bytes::Bytes;
use serde::Deserialize;
use tokenizers::normalizers::{Lowercase, Sequence};
use tokenizers::{Encoding, NormalizerWrapper, PostProcessor as _, Tokenizer, TruncationDirection};

use super::checkpoint::{Checkpoint, Task};
use super::folder::Folder;
use super::pair_template::PairTemplate;
use super::prompts::Prompts;
use crate::error::Error;

const FILE: &str = "tokenizer.json";

/// The end of a text that is cut off where it is too long. Special tokens stay in either case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// The first tokens stay.
    Right,
    /// The last tokens stay.
    Left,
}

/// One input as the model takes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids, special tokens included.
    pub ids: Vec<u32>,
    /// Segment of each token.
    pub type_ids: Vec<u32>,
    /// Tokens at the front which the model does not pool: a prompt, and the special tokens before it.
    pub skipped: usize,
    /// Whether something was cut off.
    pub truncated: bool,
}

/// A query, prepared once for all its documents.
#[derive(Debug)]
pub struct Query(Prepared);

#[derive(Debug)]
enum Prepared {
    /// Tokens, without special ones.
    Tokens(Box<Encoding>),
    /// Everything of the template that stands before the document.
    Opening(String),
}

/// A model's tokenizer.
#[derive(Debug)]
pub struct TextEncoder {
    /// The model, for errors.
    name: String,
    tokenizer: Tokenizer,
    single_specials: usize,
    pair_specials: usize,
    template: Option<PairTemplate>,
    segments: bool,
    skips_prompts: bool,
    /// What the checkpoint puts before texts, by name.
    pub prompts: Prompts,
    /// tokenizer.json with truncation and padding off, for clients that count tokens.
    pub json: Bytes,
    /// Most tokens of an input, special tokens included.
    pub max_tokens: usize,
}

impl TextEncoder {
    /// Reads the checkpoint's tokenizer.json.
    ///
    /// # Errors
    /// [`Error::ModelLoadFailed`] that names the file.
    pub fn load(checkpoint: &Checkpoint) -> Result<Self, Error> {
        let failed = |problem: &dyn std::fmt::Display| checkpoint.failed(FILE, problem);
        let bytes = std::fs::read(checkpoint.folder.path(FILE)).map_err(|error| failed(&error))?;
        let mut tokenizer = Tokenizer::from_bytes(&bytes).map_err(|error| failed(&error))?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| failed(&error))?;
        if checkpoint.text.lower_case {
            lower_case(&mut tokenizer);
        }
        // An id without a row in the embedding table would be read out of bounds; on a GPU that costs the device.
        let largest = tokenizer.get_vocab(true).into_values().max().unwrap_or(0);
        let rows = checkpoint.architecture.vocab_size;
        if largest as usize >= rows {
            return Err(failed(&format!(
                "it has the token id {largest}, but config.json's vocab_size is {rows}"
            )));
        }
        let template = checkpoint.templated().then(|| PairTemplate::load(&tokenizer));
        let template = template.transpose().map_err(|error| failed(&error))?;
        let json = tokenizer.to_string(false).map_err(|error| failed(&error))?;
        let added = |pair: bool| tokenizer.get_post_processor().map_or(0, |p| p.added_tokens(pair));
        let (single_specials, pair_specials) = (added(false), added(true));
        let frame = template.as_ref().map_or(pair_specials, PairTemplate::tokens);
        let max_tokens = checkpoint.max_tokens;
        if max_tokens <= frame.max(single_specials) {
            return Err(failed(&format!(
                "the model takes {max_tokens} tokens, which special tokens alone fill"
            )));
        }
        let encoder = Self {
            name: checkpoint.folder.name().to_owned(),
            single_specials,
            pair_specials,
            template,
            segments: checkpoint.text.segments,
            skips_prompts: matches!(&checkpoint.task, Task::Embed { pooling, .. } if !pooling.include_prompt),
            prompts: checkpoint.prompts.clone(),
            json: json.into(),
            max_tokens,
            tokenizer,
        };
        encoder.check_segments(checkpoint)?;
        Ok(encoder)
    }

    /// A segment without a row in the segment table would be read out of bounds too.
    fn check_segments(&self, checkpoint: &Checkpoint) -> Result<(), Error> {
        let pair = self.pair(&self.query("a")?, "b")?;
        let largest = pair.type_ids.into_iter().max().unwrap_or(0);
        let rows = checkpoint.architecture.segments();
        if (largest as usize) < rows {
            return Ok(());
        }
        let problem = format!("it puts tokens into segment {largest}, but config.json's type_vocab_size is {rows}");
        Err(checkpoint.failed(FILE, problem))
    }

    /// One text.
    ///
    /// # Errors
    /// [`Error::InvalidField`] on `field` when nothing but special tokens is left of it.
    pub fn text(&self, text: &str, field: &str) -> Result<Encoded, Error> {
        self.prompted("", text, Cut::Right, field)
    }

    /// One text with a prompt put before it, as one string (sentence-transformers' way): where the first tokens of what
    /// is too long are cut off, those of the prompt go first.
    ///
    /// # Errors
    /// [`Error::InvalidField`] on `field` when nothing but special tokens is left of the text itself.
    pub fn prompted(&self, prompt: &str, text: &str, side: Cut, field: &str) -> Result<Encoded, Error> {
        let mut encoding = if prompt.is_empty() {
            self.plain(text)?
        } else {
            self.plain(&format!("{prompt}{text}"))?
        };
        // Beside a prompt the text is looked at alone, but only where it may be nothing: ASCII letters always are tokens.
        let certain = encoding.is_empty() || prompt.is_empty() || text.contains(|c: char| c.is_ascii_alphanumeric());
        if encoding.is_empty() || (!certain && self.plain(text)?.is_empty()) {
            return Err(Error::invalid(
                field,
                "has no token the model can read (only whitespace or control characters); leave it out",
            ));
        }
        let before = encoding.len();
        let truncated = cut(&mut encoding, self.max_tokens - self.single_specials, side);
        let lost = match side {
            Cut::Right => 0,
            Cut::Left => before - encoding.len(),
        };
        let mut encoded = self.finish(encoding, None, truncated)?;
        // Something must be left to pool.
        let skipped = self.skipped(prompt)?.saturating_sub(lost);
        encoded.skipped = skipped.min(encoded.ids.len() - 1);
        Ok(encoded)
    }

    /// Tokens of a prompt that the model does not pool. Counted as sentence-transformers counts: the prompt as a text of
    /// its own, without a special token at its end.
    fn skipped(&self, prompt: &str) -> Result<usize, Error> {
        if !self.skips_prompts || prompt.is_empty() {
            return Ok(0);
        }
        let ids = self.finish(self.plain(prompt)?, None, false)?.ids;
        let special = |id: &u32| {
            let word = self.tokenizer.id_to_token(*id);
            word.is_some_and(|word| self.tokenizer.get_added_vocabulary().is_special_token(&word))
        };
        Ok(ids.len() - usize::from(ids.last().is_some_and(special)))
    }

    /// A query, to be paired with documents.
    ///
    /// # Errors
    /// [`Error::Internal`] when the tokenizer fails.
    pub fn query(&self, query: &str) -> Result<Query, Error> {
        self.instructed(None, query)
    }

    /// A query; `instruction` says what "relevant" means, to a model whose template asks.
    ///
    /// # Errors
    /// [`Error::InvalidField`] on `options.instruction` for a model that takes none; [`Error::Internal`] when the
    /// tokenizer fails.
    pub fn instructed(&self, instruction: Option<&str>, query: &str) -> Result<Query, Error> {
        let prepared = match (&self.template, instruction) {
            (Some(_), instruction) => Prepared::Opening(PairTemplate::opening(query, instruction)),
            (None, Some(_)) => {
                let name = &self.name;
                let problem =
                    format!("is not taken by model {name:?}, which sees query and document only; leave it out");
                return Err(Error::invalid("options.instruction", problem));
            }
            (None, None) => {
                let mut encoding = self.plain(query)?;
                // More than this can never stay, whatever the document is.
                cut(&mut encoding, self.max_tokens, Cut::Right);
                Prepared::Tokens(Box::new(encoding))
            }
        };
        Ok(Query(prepared))
    }

    /// A query with a document. The longer of the two is cut at its end, token by token; in a template, what stands last.
    ///
    /// # Errors
    /// [`Error::Internal`] when the tokenizer fails.
    pub fn pair(&self, query: &Query, document: &str) -> Result<Encoded, Error> {
        match (&query.0, &self.template) {
            (Prepared::Tokens(first), _) => {
                let (mut first, mut second) = ((**first).clone(), self.plain(document)?);
                let room = self.max_tokens - self.pair_specials;
                let (keep_first, keep_second) = longest_first(first.len(), second.len(), room);
                let cut_first = cut(&mut first, keep_first, Cut::Right);
                let truncated = cut(&mut second, keep_second, Cut::Right) || cut_first;
                self.finish(first, Some(second), truncated)
            }
            (Prepared::Opening(opening), Some(template)) => {
                let (ids, truncated) = template
                    .fill(&self.tokenizer, opening, document, self.max_tokens)
                    .map_err(Error::internal)?;
                Ok(Encoded {
                    type_ids: vec![0; ids.len()],
                    ids,
                    skipped: 0,
                    truncated,
                })
            }
            (Prepared::Opening(_), None) => Err(Error::internal("a query of another model")),
        }
    }

    fn plain(&self, text: &str) -> Result<Encoding, Error> {
        self.tokenizer.encode_fast(text, false).map_err(Error::internal)
    }

    fn finish(&self, first: Encoding, second: Option<Encoding>, truncated: bool) -> Result<Encoded, Error> {
        let encoding = self
            .tokenizer
            .post_process(first, second, true)
            .map_err(Error::internal)?;
        let ids = encoding.get_ids().to_vec();
        let type_ids = if self.segments {
            encoding.get_type_ids().to_vec()
        } else {
            vec![0; ids.len()]
        };
        Ok(Encoded {
            ids,
            type_ids,
            skipped: 0,
            truncated,
        })
    }
}

/// The id of a word that must be one token.
///
/// # Errors
/// [`Error::ModelLoadFailed`] that names the word.
pub fn id_of(folder: &Folder, word: &str) -> Result<u32, Error> {
    #[derive(Deserialize)]
    struct File {
        model: Model,
    }
    #[derive(Deserialize)]
    struct Model {
        vocab: HashMap<String, u32>,
    }
    let file: File = folder.required(FILE)?;
    let id = file.model.vocab.get(word).copied();
    id.ok_or_else(|| {
        folder.failed(
            FILE,
            format!("it has no token {word:?}, which a reranking model answers with"),
        )
    })
}

/// Puts `Lowercase` before the tokenizer's own normalisation, unless that does it already.
fn lower_case(tokenizer: &mut Tokenizer) {
    fn lowers(normalizer: &NormalizerWrapper) -> bool {
        match normalizer {
            NormalizerWrapper::Lowercase(_) => true,
            NormalizerWrapper::BertNormalizer(bert) => bert.lowercase,
            NormalizerWrapper::Sequence(several) => several.as_ref().iter().any(lowers),
            _ => false,
        }
    }
    let own = tokenizer.get_normalizer().cloned();
    if !own.as_ref().is_some_and(lowers) {
        let steps = std::iter::once(NormalizerWrapper::Lowercase(Lowercase)).chain(own);
        tokenizer.with_normalizer(Some(Sequence::new(steps.collect())));
    }
}

/// Keeps `length` tokens; true if something was cut. What is cut off is dropped at once: tokenizers would otherwise
/// combine the rests of both halves of a pair with each other, which is quadratic in their lengths.
fn cut(encoding: &mut Encoding, length: usize, side: Cut) -> bool {
    let too_long = encoding.len() > length;
    if too_long {
        let direction = match side {
            Cut::Right => TruncationDirection::Right,
            Cut::Left => TruncationDirection::Left,
        };
        encoding.truncate(length, 0, direction);
        drop(encoding.take_overflowing());
    }
    too_long
}

/// How many tokens of two inputs stay when both together may have `limit`: what removing one token at a time from the
/// longer one leads to (`longest_first` of Hugging Face tokenizers).
fn longest_first(first: usize, second: usize, limit: usize) -> (usize, usize) {
    let (short, long) = (first.min(second), first.max(second));
    if short + long <= limit {
        return (first, second);
    }
    let (short, long) = if short <= limit / 2 {
        (short, limit - short)
    } else {
        (limit / 2, limit - limit / 2)
    };
    if first <= second { (short, long) } else { (long, short) }
}

#[cfg(test)]
mod tests {
    use super::longest_first;

    #[test]
    fn the_longer_one_is_cut_first() {
        assert_eq!(longest_first(5, 5, 10), (5, 5));
        assert_eq!(longest_first(3, 100, 10), (3, 7));
        assert_eq!(longest_first(100, 3, 10), (7, 3));
        assert_eq!(longest_first(100, 90, 11), (6, 5));
        assert_eq!(longest_first(90, 100, 11), (5, 6));
    }
}
