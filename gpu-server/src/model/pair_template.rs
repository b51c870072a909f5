//! Qwen3-Reranker's input: a chat in which the model is asked to judge a document, and answers "yes" or "no".
//!
//! The words are those of the model's own documentation (Zhang et al. 2025, Qwen3 Embedding). Opening and closing are
//! tokenised apart from what is between them, as the documentation does it; the document is cut, never the frame.

use tokenizers::Tokenizer;

const OPENING: &str = "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the \
                       Instruct provided. Note that the answer can only be \"yes\" or \"no\".<|im_end|>\n<|im_start|>user\n";
const CLOSING: &str = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n";
const INSTRUCTION: &str = "Given a web search query, retrieve relevant passages that answer the query";

type Failure = tokenizers::Error;

/// The frame around a query and a document, as token ids.
#[derive(Debug)]
pub struct PairTemplate {
    opening: Vec<u32>,
    closing: Vec<u32>,
}

impl PairTemplate {
    /// Tokenises the frame.
    ///
    /// # Errors
    /// What the tokenizer says.
    pub fn load(tokenizer: &Tokenizer) -> Result<Self, Failure> {
        let ids = |text| Ok::<_, Failure>(tokenizer.encode_fast(text, false)?.get_ids().to_vec());
        Ok(Self {
            opening: ids(OPENING)?,
            closing: ids(CLOSING)?,
        })
    }

    /// Tokens of the frame.
    pub fn tokens(&self) -> usize {
        self.opening.len() + self.closing.len()
    }

    /// What stands before the document.
    pub fn opening(query: &str, instruction: Option<&str>) -> String {
        let instruction = instruction.unwrap_or(INSTRUCTION);
        format!("<Instruct>: {instruction}\n<Query>: {query}\n<Document>: ")
    }

    /// The whole input, at most `limit` tokens, and whether its end was cut off.
    ///
    /// # Errors
    /// What the tokenizer says.
    pub fn fill(
        &self,
        tokenizer: &Tokenizer,
        opening: &str,
        document: &str,
        limit: usize,
    ) -> Result<(Vec<u32>, bool), Failure> {
        // In one string, because a token may begin before the document and end in it (": the").
        let body = tokenizer.encode_fast(format!("{opening}{document}"), false)?;
        let (body, room) = (body.get_ids(), limit - self.tokens());
        let kept = &body[..body.len().min(room)];
        Ok(([&self.opening, kept, &self.closing].concat(), body.len() > room))
    }
}
