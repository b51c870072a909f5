//! Whether a model's answers in bf16 stay those that it gives in f32, asked of a few texts when the model is loaded.
//!
//! Most models lose nothing that retrieval would notice; some were trained with activations that bf16 cannot tell apart or
//! hold. `--dtype auto` computes the latter in f32.

use crate::error::Error;
use crate::model::Model;
use crate::model::tokenizer::{Encoded, TextEncoder};

use super::models::Purpose;

/// Least cosine between the vectors of a text.
const COSINE: f64 = 0.999;
/// Most that a score may differ, as a share of the largest score; of 1 where all are smaller.
const SCORE: f64 = 0.02;
const QUERY: &str = "Which treatment lowers mortality in septic shock?";
/// Of several lengths and scripts, with what clinical text is full of: numbers, units, names, abbreviations.
const TEXTS: [&str; 6] = [
    "aspirin",
    "Norepinephrine is the first-line vasopressor in septic shock; a mean arterial pressure of 65 mmHg is aimed at.",
    "Patients were randomised 1:1 to dapagliflozin 10 mg once daily or placebo. Median follow-up was 18.2 months; the hazard \
     ratio for worsening heart failure or cardiovascular death was 0.74 (95% CI 0.65–0.85; p < 0.001).",
    "TP53 p.R175H, EGFR L858R and BRCA1/2 germline variants (NGS panel, hg38)",
    "Beim Vorhofflimmern senkt die orale Antikoagulation das Schlaganfallrisiko um etwa zwei Drittel.",
    "糖尿病患者的血糖控制与慢性肾脏病的进展有关。",
];

/// What a model answers to the texts.
#[derive(Debug)]
pub struct Answers {
    rows: Vec<Vec<f32>>,
    purpose: Purpose,
}

impl Answers {
    /// Computes them.
    ///
    /// # Errors
    /// What the device says.
    pub fn of(model: &Model, encoder: &TextEncoder, purpose: Purpose) -> Result<Self, Error> {
        let long = TEXTS.join(" ");
        let mut rows = Vec::with_capacity(TEXTS.len() + 1);
        for text in TEXTS.iter().copied().chain([long.as_str()]) {
            rows.push(model.forward(&[&input(purpose, encoder, QUERY, text)?])?);
        }
        Ok(Self { rows, purpose })
    }

    /// How `other`'s answers differ by more than they may; none if they do not.
    pub fn difference(&self, other: &Self) -> Option<String> {
        match self.purpose {
            Purpose::Embedding => {
                let least = self
                    .rows
                    .iter()
                    .zip(&other.rows)
                    .map(|(a, b)| cosine(a, b))
                    .fold(1.0, f64::min);
                (least < COSINE).then(|| format!("a vector's cosine is {least:.6}, at least {COSINE} is asked for"))
            }
            Purpose::Reranking => {
                let scores = |answers: &Self| -> Vec<f64> {
                    answers.rows.iter().flatten().map(|&score| f64::from(score)).collect()
                };
                let (ours, theirs) = (scores(self), scores(other));
                let largest = ours.iter().fold(1.0, |largest: f64, score| largest.max(score.abs()));
                let worst = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs() / largest);
                worst
                    .filter(|share| share.is_nan() || *share > SCORE)
                    .reduce(f64::max)
                    .map(|share| format!("a score differs by {share:.4} of the largest, at most {SCORE} is allowed"))
            }
        }
    }
}

/// -1 where a vector is not finite, or one is zero and the other is not.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    if a == b {
        return 1.0;
    }
    let dot = |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum() };
    let cosine = dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
    if cosine.is_nan() { -1.0 } else { cosine }
}

/// An input of a purpose.
///
/// # Errors
/// When the text or the pair cannot be encoded.
pub fn input(purpose: Purpose, encoder: &TextEncoder, query: &str, text: &str) -> Result<Encoded, Error> {
    match purpose {
        Purpose::Embedding => encoder.text(text, "text"),
        Purpose::Reranking => encoder.pair(&encoder.query(query)?, text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(purpose: Purpose, rows: &[&[f32]]) -> Answers {
        let rows = rows.iter().map(|row| row.to_vec()).collect();
        Answers { rows, purpose }
    }

    #[test]
    fn vectors_may_turn_a_little_and_no_more() {
        let exact = answers(Purpose::Embedding, &[&[1.0, 0.0], &[0.0, 0.0]]);
        let near = answers(Purpose::Embedding, &[&[2.0, 0.02], &[0.0, 0.0]]);
        assert_eq!(exact.difference(&near), None);
        for bad in [[1.0, 0.1], [f32::NAN, 0.0], [f32::INFINITY, 0.0], [0.0, 0.0]] {
            let far = answers(Purpose::Embedding, &[&bad, &[0.0, 0.0]]);
            assert!(
                exact.difference(&far).is_some_and(|said| said.contains("cosine")),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn scores_may_differ_by_a_share_of_the_largest() {
        let exact = answers(Purpose::Reranking, &[&[-8.0], &[0.1]]);
        assert_eq!(exact.difference(&answers(Purpose::Reranking, &[&[-8.1], &[0.2]])), None);
        for bad in [0.4, f32::NAN, f32::NEG_INFINITY] {
            let far = answers(Purpose::Reranking, &[&[-8.0], &[bad]]);
            assert!(
                exact.difference(&far).is_some_and(|said| said.contains("score")),
                "{bad}"
            );
        }
    }
}
