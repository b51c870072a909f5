//! Golden vectors and scores: what a checkpoint must compute, written down when it was known to be right.
//!
//! A digest says that the weights are the ones that were meant; golden values say that what is computed with them is, too:
//! pooling, normalisation, tokenizer and element type included. A model that misses them does not serve.

use std::path::Path;

use serde::Deserialize;

/// The file that is used if none is named.
pub const FILE: &str = "medkg-golden.json";

const MAX_BYTES: u64 = 64 * 1024 * 1024;

/// Lengths of vectors may differ by this share of the golden one's: the cosine alone would not see that a model no longer
/// normalises.
const LENGTH: f64 = 0.01;

/// What is compared.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Golden {
    /// Of an embedding model.
    Vectors(Embeddings),
    /// Of a reranking model.
    Scores(Relevance),
}

/// Texts and their vectors.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Embeddings {
    /// The texts.
    pub texts: Vec<String>,
    /// One vector per text.
    pub vectors: Vec<Vec<f32>>,
    /// Least cosine between a vector and its golden one.
    #[serde(default = "cosine")]
    pub cosine: f64,
}

/// Pairs and their scores.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Relevance {
    /// Query and document.
    pub pairs: Vec<(String, String)>,
    /// One score per pair: the model's relevance, without any fusion.
    pub scores: Vec<f32>,
    /// Most that a score may differ.
    #[serde(default = "tolerance")]
    pub tolerance: f64,
}

const fn cosine() -> f64 {
    0.9999
}

const fn tolerance() -> f64 {
    1e-3
}

/// Reads a file of golden values.
///
/// # Errors
/// What is wrong with it.
pub fn read(path: &Path) -> Result<Golden, String> {
    let size = std::fs::metadata(path).map_err(|error| error.to_string())?.len();
    if size > MAX_BYTES {
        return Err(format!("has {size} bytes; at most {MAX_BYTES} are read"));
    }
    let text = std::fs::read(path).map_err(|error| error.to_string())?;
    parse(&text)
}

fn parse(text: &[u8]) -> Result<Golden, String> {
    let golden: Golden = serde_json::from_slice(text).map_err(|_| {
        "expected {\"texts\": [..], \"vectors\": [[..]], \"cosine\": 0.9999} or \
         {\"pairs\": [[query, document]], \"scores\": [..], \"tolerance\": 0.001}"
            .to_owned()
    })?;
    let (inputs, outputs) = match &golden {
        Golden::Vectors(golden) => (golden.texts.len(), golden.vectors.len()),
        Golden::Scores(golden) => (golden.pairs.len(), golden.scores.len()),
    };
    if inputs == 0 || inputs != outputs {
        return Err(format!(
            "has {inputs} inputs and {outputs} outputs; there must be as many, and at least one"
        ));
    }
    Ok(golden)
}

impl Embeddings {
    /// Compares the vector of text `index` with its golden one.
    ///
    /// # Errors
    /// How they differ.
    pub fn check(&self, index: usize, found: &[f32]) -> Result<(), String> {
        let wanted = &self.vectors[index];
        if wanted.len() != found.len() {
            let (has, golden) = (found.len(), wanted.len());
            return Err(format!(
                "vectors[{index}] has {golden} elements, the model's vector {has}"
            ));
        }
        let dot = |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum() };
        let (length, golden) = (dot(found, found).sqrt(), dot(wanted, wanted).sqrt());
        let cosine = dot(found, wanted) / (length * golden);
        if cosine.is_nan() || cosine < self.cosine {
            return Err(format!(
                "vectors[{index}]: the cosine is {cosine:.6}; at least {} is asked for",
                self.cosine
            ));
        }
        if (length - golden).abs() > LENGTH * golden {
            return Err(format!(
                "vectors[{index}] has the length {golden:.4}, the model's vector {length:.4}"
            ));
        }
        Ok(())
    }
}

impl Relevance {
    /// Compares the score of pair `index` with its golden one.
    ///
    /// # Errors
    /// How they differ.
    pub fn check(&self, index: usize, found: f32) -> Result<(), String> {
        let wanted = self.scores[index];
        if (f64::from(found) - f64::from(wanted)).abs() <= self.tolerance {
            return Ok(());
        }
        let tolerance = self.tolerance;
        Err(format!(
            "scores[{index}] is {wanted}, the model's {found}; they may differ by {tolerance}"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vectors(text: &str) -> Embeddings {
        match parse(text.as_bytes()).unwrap() {
            Golden::Vectors(golden) => golden,
            other @ Golden::Scores(_) => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_vector_must_point_the_same_way_and_be_as_long() {
        let golden = vectors(r#"{"texts": ["a"], "vectors": [[0.6, 0.8]]}"#);
        assert_eq!(golden.check(0, &[0.6, 0.8]), Ok(()));
        assert!(golden.check(0, &[0.8, 0.6]).unwrap_err().contains("cosine"));
        assert!(golden.check(0, &[6.0, 8.0]).unwrap_err().contains("length"));
        assert!(golden.check(0, &[0.6]).unwrap_err().contains("elements"));
        assert!(golden.check(0, &[f32::NAN, 0.8]).is_err());
        assert!(golden.check(0, &[0.0, 0.0]).is_err());
        let loose = vectors(r#"{"texts": ["a"], "vectors": [[0.6, 0.8]], "cosine": 0.9}"#);
        assert_eq!(loose.check(0, &[0.8, 0.6]), Ok(()));
    }

    #[test]
    fn a_score_may_differ_by_the_tolerance() {
        let text = r#"{"pairs": [["q", "d"]], "scores": [1.5], "tolerance": 0.01}"#;
        let Golden::Scores(golden) = parse(text.as_bytes()).unwrap() else {
            panic!("not scores")
        };
        assert_eq!(golden.check(0, 1.505), Ok(()));
        assert!(golden.check(0, 1.52).is_err());
        assert!(golden.check(0, f32::NAN).is_err());
    }

    #[test]
    fn what_compares_nothing_is_refused() {
        for text in [
            "{}",
            r#"{"texts": [], "vectors": []}"#,
            r#"{"texts": ["a"], "vectors": []}"#,
            r#"{"texts": ["a"], "vectors": [[1.0]], "cosin": 0.5}"#,
            r#"{"pairs": [["q"]], "scores": [1.0]}"#,
        ] {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
    }
}
